use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    mem::size_of,
    sync::{Arc, OnceLock},
};

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{
    digest::{Content, halves},
    market::ARC_HEADER,
    names::{Bookmaker, Bookmakers, EventHeader, EventNames, Tournament},
    snapshot::CachedSnapshot,
    time::Micros,
};

/// An event with the latest snapshot of each bookmaker and each competitor. It never changes and holds at least one
/// snapshot.
#[derive(Debug)]
pub struct CachedEvent {
    pub(crate) event_id: i64,
    pub(crate) kickoff: Option<Micros>,
    pub(crate) names: EventNames,
    pub(crate) tournament: Option<Arc<Tournament>>,
    /// The rows of `bookmakers`, also of those without a snapshot here. All events share them. Events that an exchange
    /// of the rows did not change keep the old ones.
    bookmakers: Option<Arc<Bookmakers>>,
    pub(crate) betpawa: BetpawaSnapshots,
    pub(crate) competitors: CompetitorSnapshots,
    /// Set by the first [`CachedEvent::digest`]. In two halves: a `u128` would pad each event to a multiple of 16 bytes.
    digest: OnceLock<[u64; 2]>,
}

impl CachedEvent {
    pub(crate) fn new(
        event_id: i64,
        header: impl Into<EventHeader>,
        betpawa: BetpawaSnapshots,
        competitors: CompetitorSnapshots,
    ) -> CachedEvent {
        let EventHeader {
            kickoff,
            names,
            tournament,
        } = header.into();
        CachedEvent {
            event_id,
            kickoff,
            names,
            tournament,
            bookmakers: None,
            betpawa,
            competitors,
            digest: OnceLock::new(),
        }
    }

    /// The same event with these rows of `bookmakers`.
    pub(crate) fn with_bookmakers(self, bookmakers: Option<&Arc<Bookmakers>>) -> CachedEvent {
        CachedEvent {
            bookmakers: bookmakers.cloned(),
            ..self
        }
    }

    /// All but the snapshots. Counts references.
    pub(crate) fn header(&self) -> EventHeader {
        EventHeader {
            kickoff: self.kickoff,
            names: self.names.clone(),
            tournament: self.tournament.clone(),
        }
    }

    /// `events.id`.
    pub fn event_id(&self) -> i64 {
        self.event_id
    }

    /// `events.kickoff`: when the event begins. UTC, to the microsecond. A follower always knows it. It is `None` only
    /// if a [`Writer`](crate::writer::Writer) gave none.
    pub fn kickoff(&self) -> Option<DateTime<Utc>> {
        self.kickoff.map(Micros::to_utc)
    }

    /// `events.name`, such as "Arsenal - Chelsea": at most its first 255 characters. It belongs to the same committed
    /// state as the kickoff. `None` if it is null, or if the table has no such column. Allocates nothing.
    pub fn name(&self) -> Option<&str> {
        self.names.columns()[0]
    }

    /// `events.home_team`; see [`CachedEvent::name`].
    pub fn home_team(&self) -> Option<&str> {
        self.names.columns()[1]
    }

    /// `events.away_team`; see [`CachedEvent::name`].
    pub fn away_team(&self) -> Option<&str> {
        self.names.columns()[2]
    }

    /// `events.sportradar_id`, by which other systems know the event; see [`CachedEvent::name`].
    pub fn sportradar_id(&self) -> Option<&str> {
        self.names.columns()[3]
    }

    /// The tournament that `events.tournament_id` names. `None` if that is null, or if the table has no such column.
    ///
    /// The id belongs to the same committed state as the kickoff. The names may be older by up to a minute while the
    /// database can be read: no trigger logs changes of `tournaments` and `sports`, so a follower reads them again
    /// twice a minute. Without these tables, or without the right to read them, the tournament has no names. Allocates
    /// nothing.
    pub fn tournament(&self) -> Option<&Tournament> {
        self.tournament.as_deref()
    }

    /// The row of `bookmakers` with this id. It may be older than the event by up to a minute, as the names of a
    /// [`CachedEvent::tournament`]. `None` if there is none, or if the follower may not read the table. Allocates
    /// nothing.
    pub fn bookmaker(&self, bookmaker_id: i64) -> Option<&Bookmaker> {
        self.bookmakers.as_ref()?.get(&bookmaker_id)
    }

    /// The rows of `bookmakers` of those bookmakers that have a snapshot here, by id. Bookmakers without a row are
    /// missing. Allocates the map; see [`CachedEvent::bookmaker`].
    pub fn bookmakers(&self) -> BTreeMap<i64, &Bookmaker> {
        let ids = self.betpawa.iter().map(|(id, _)| id);
        ids.filter_map(|id| Some((id, self.bookmaker(id)?)))
            .collect()
    }

    /// Whether both events show the same names, also of each bookmaker that has a snapshot in both.
    pub(crate) fn same_names(&self, other: &CachedEvent) -> bool {
        let are_shared = match (&self.bookmakers, &other.bookmakers) {
            (Some(own), Some(others)) => Arc::ptr_eq(own, others),
            (own, others) => own.is_none() && others.is_none(),
        };
        self.names == other.names
            && self.tournament == other.tournament
            && (are_shared
                || self.betpawa.iter().all(|(id, _)| {
                    other.betpawa.get(id).is_none() || self.bookmaker(id) == other.bookmaker(id)
                }))
    }

    /// The latest snapshots of `odds_snapshots`, by bookmaker. Borrows.
    pub fn betpawa(&self) -> &BetpawaSnapshots {
        &self.betpawa
    }

    /// The latest snapshots of `competitor_odds_snapshots`, by source. Borrows.
    pub fn competitors(&self) -> &CompetitorSnapshots {
        &self.competitors
    }

    /// The digest of all that the event shows. Equal events have equal digests in every process. Computed by the first
    /// call only, because a draft replaces many events before anyone asks.
    pub(crate) fn digest(&self) -> u128 {
        let [low, high] = *self.digest.get_or_init(|| {
            let snapshots = self.betpawa.len() + self.competitors.len();
            let mut content = Content::with_capacity(256 + 128 * snapshots);
            let kickoff = self.kickoff.map(|Micros(kickoff)| kickoff.cast_unsigned());
            content.numbers([
                self.event_id.cast_unsigned(),
                u64::from(kickoff.is_some()),
                kickoff.unwrap_or_default(),
                self.betpawa.len() as u64,
            ]);
            for column in self.names.columns() {
                content.text(column);
            }
            let tournament = self.tournament.as_deref();
            content.optional(tournament.map(|tournament| tournament.id().cast_unsigned()));
            for column in tournament.map(Tournament::columns).unwrap_or_default() {
                content.text(column);
            }
            for (bookmaker_id, snapshot) in self.betpawa.iter() {
                let bookmaker = self.bookmaker(bookmaker_id);
                content.text(bookmaker.and_then(Bookmaker::slug));
                content.text(bookmaker.and_then(Bookmaker::name));
                snapshot.write_content(&mut content);
            }
            for (source, snapshot) in self.competitors.iter() {
                content.text(Some(source.as_str()));
                snapshot.write_content(&mut content);
            }
            halves(content.digest())
        });
        u128::from(high) << 64 | u128::from(low)
    }

    /// Whether both events hold the same. Both must use the same interner.
    pub(crate) fn same(&self, other: &CachedEvent) -> bool {
        self.event_id == other.event_id
            && self.kickoff == other.kickoff
            && self.same_names(other)
            && self.betpawa.same(&other.betpawa)
            && self.competitors.same(&other.competitors)
    }

    /// Whether replacing `other` by this event leaves all totals and the snapshot index unchanged. That holds if both
    /// show the same snapshot ids with the same packed markets, and their names take the same memory.
    pub(crate) fn counts_as(&self, other: &CachedEvent) -> bool {
        let sizes = |event: &CachedEvent| (event.betpawa.len(), event.competitors.len());
        let pair = |(a, b): (&CachedSnapshot, &CachedSnapshot)| {
            a.snapshot_id == b.snapshot_id
                && Arc::ptr_eq(&a.packed, &b.packed)
                // Times do not enter the totals, except that a missing `captured_at` counts as a malformed row.
                && (a.captured_at == Micros::UNKNOWN) == (b.captured_at == Micros::UNKNOWN)
        };
        sizes(self) == sizes(other)
            && self.names.heap_bytes() == other.names.heap_bytes()
            && self.snapshots().zip(other.snapshots()).all(pair)
    }

    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &CachedSnapshot> {
        self.betpawa
            .0
            .iter()
            .chain(self.competitors.0.iter().map(|(_, snapshot)| snapshot))
    }

    /// Bytes that this event and its packed markets requested from the allocator. What the interner owns is not
    /// counted.
    pub(crate) fn heap_bytes(&self) -> usize {
        ARC_HEADER
            + size_of::<CachedEvent>()
            + self.names.heap_bytes()
            + slice_bytes(&self.betpawa.0)
            + slice_bytes(&self.competitors.0)
            + self
                .snapshots()
                .map(|snapshot| snapshot.packed.heap_bytes())
                .sum::<usize>()
    }
}

fn slice_bytes<T>(slice: &Arc<[T]>) -> usize {
    // An empty `Arc` of a slice points to a static of the standard library.
    if slice.is_empty() {
        0
    } else {
        ARC_HEADER + size_of_val(&**slice)
    }
}

/// `{"event_id":1,"kickoff":"...Z","name":"...","home_team":"...","away_team":"...","sportradar_id":"...",
/// "tournament":{"id":1,"name":"...","country":"...","sport":"..."},"bookmakers":{"<id>":{"slug":"...","name":"..."}},
/// "betpawa":{"<bookmaker_id>":{snapshot}},"competitors":{"<source>":{snapshot}}}`. Unknown names are null, and unknown
/// bookmakers are missing.
impl Serialize for CachedEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("CachedEvent", 10)?;
        let [name, home_team, away_team, sportradar_id] = self.names.columns();
        fields.serialize_field("event_id", &self.event_id)?;
        fields.serialize_field("kickoff", &self.kickoff())?;
        fields.serialize_field("name", &name)?;
        fields.serialize_field("home_team", &home_team)?;
        fields.serialize_field("away_team", &away_team)?;
        fields.serialize_field("sportradar_id", &sportradar_id)?;
        fields.serialize_field("tournament", &self.tournament())?;
        fields.serialize_field("bookmakers", &self.bookmakers())?;
        fields.serialize_field("betpawa", &self.betpawa)?;
        fields.serialize_field("competitors", &self.competitors)?;
        fields.end()
    }
}

/// An event's latest snapshots of `odds_snapshots`: bookmaker id -> snapshot, ordered by bookmaker id.
///
/// Cloning counts one reference; it neither locks nor allocates.
#[derive(Debug, Clone, Default)]
pub struct BetpawaSnapshots(Arc<[CachedSnapshot]>);

impl BetpawaSnapshots {
    /// Sorts by bookmaker. If a bookmaker comes several times, its last snapshot stays.
    pub(crate) fn new(mut snapshots: Vec<CachedSnapshot>) -> BetpawaSnapshots {
        BetpawaSnapshots::of(&mut snapshots)
    }

    /// Like [`BetpawaSnapshots::new`], but drains a buffer that the caller uses again.
    pub(crate) fn of(snapshots: &mut Vec<CachedSnapshot>) -> BetpawaSnapshots {
        // `dedup_by_key` keeps the first of equal keys; the list is reversed so that the last one given comes first.
        snapshots.reverse();
        snapshots.sort_by_key(|snapshot| snapshot.bookmaker_id);
        snapshots.dedup_by_key(|snapshot| snapshot.bookmaker_id);
        if snapshots.is_empty() {
            return BetpawaSnapshots::default();
        }
        BetpawaSnapshots(snapshots.drain(..).collect())
    }

    /// These snapshots, with `snapshot` in place of the one of its bookmaker. Allocates a new list.
    pub(crate) fn with(&self, snapshot: CachedSnapshot) -> BetpawaSnapshots {
        BetpawaSnapshots::new(self.0.iter().cloned().chain([snapshot]).collect())
    }

    pub(crate) fn same(&self, other: &BetpawaSnapshots) -> bool {
        self.len() == other.len()
            && self
                .0
                .iter()
                .zip(&*other.0)
                .all(|(a, b)| a.difference(b).is_none())
    }

    /// The snapshot of one bookmaker (`odds_snapshots.bookmaker_id`); `None` if it has none. Allocates nothing.
    pub fn get(&self, bookmaker_id: i64) -> Option<&CachedSnapshot> {
        // There are only a few: a linear scan is faster than a binary search.
        self.0
            .iter()
            .find(|snapshot| snapshot.bookmaker_id == bookmaker_id)
    }

    /// Pairs of bookmaker id and snapshot, ordered by bookmaker id. Allocates nothing.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (i64, &CachedSnapshot)> {
        self.0
            .iter()
            .map(|snapshot| (snapshot.bookmaker_id, snapshot))
    }

    /// How many bookmakers have a snapshot.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no bookmaker has a snapshot.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for BetpawaSnapshots {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The name of a competitor, as in `competitor_events.source`: "sportybet", "bet9ja", ...
///
/// Cloning counts one reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(Arc<str>);

impl Source {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        ARC_HEADER + self.0.len()
    }
}

impl From<&str> for Source {
    fn from(name: &str) -> Source {
        Source(name.into())
    }
}

impl Borrow<str> for Source {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event's latest snapshots of `competitor_odds_snapshots`: source -> snapshot, ordered by source.
///
/// Cloning counts one reference; it neither locks nor allocates.
#[derive(Debug, Clone, Default)]
pub struct CompetitorSnapshots(Arc<[(Source, CachedSnapshot)]>);

impl CompetitorSnapshots {
    /// Sorts by source. If a source comes several times, its last snapshot stays.
    pub(crate) fn new(mut snapshots: Vec<(Source, CachedSnapshot)>) -> CompetitorSnapshots {
        CompetitorSnapshots::of(&mut snapshots)
    }

    /// Like [`CompetitorSnapshots::new`], but drains a buffer that the caller uses again.
    pub(crate) fn of(snapshots: &mut Vec<(Source, CachedSnapshot)>) -> CompetitorSnapshots {
        // `dedup_by` keeps the first of equal keys; the list is reversed so that the last one given comes first.
        snapshots.reverse();
        snapshots.sort_by(|(a, _), (b, _)| a.cmp(b));
        snapshots.dedup_by(|(a, _), (b, _)| a == b);
        if snapshots.is_empty() {
            return CompetitorSnapshots::default();
        }
        CompetitorSnapshots(snapshots.drain(..).collect())
    }

    /// These snapshots, with `snapshot` in place of the one of `source`. Allocates a new list.
    pub(crate) fn with(&self, source: Source, snapshot: CachedSnapshot) -> CompetitorSnapshots {
        CompetitorSnapshots::new(self.0.iter().cloned().chain([(source, snapshot)]).collect())
    }

    pub(crate) fn same(&self, other: &CompetitorSnapshots) -> bool {
        let pair = |((source, a), (other, b)): (&(Source, CachedSnapshot), &(Source, _))| {
            source == other && a.difference(b).is_none()
        };
        self.len() == other.len() && self.0.iter().zip(&*other.0).all(pair)
    }

    /// The snapshot of one source, `None` if it has none. `source` must equal `competitor_events.source` exactly, case
    /// included. Allocates nothing.
    pub fn get(&self, source: &str) -> Option<&CachedSnapshot> {
        self.0
            .iter()
            .find(|(name, _)| name.as_str() == source)
            .map(|(_, snapshot)| snapshot)
    }

    /// Pairs of source and snapshot, ordered by source. Allocates nothing.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Source, &CachedSnapshot)> {
        self.0.iter().map(|(source, snapshot)| (source, snapshot))
    }

    /// How many sources have a snapshot.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no source has a snapshot.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for CompetitorSnapshots {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(source, snapshot)| (source.as_str(), snapshot)),
        )
    }
}
