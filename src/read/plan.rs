//! Decides which events a read replaces, and applies the rows to the draft. Pure: no I/O, no clock, no async.
//!
//! An event has two sides: `betpawa` holds the latest rows of `odds_snapshots`, `competitors` those of
//! `competitor_odds_snapshots`.
//!
//! # Invariants
//! - A1: The packed markets of a held snapshot are kept only if the snapshot is still the latest, no log row names its
//!   markets, and its side of the event could be read before.
//! - A2: A side of an event is replaced whole, by the rows of one database snapshot.
//! - A3: An event that is not held is read whole. Its rows may be older than the cursor, so no log row names them.
//! - A4: A read of everything packs all markets anew. A held snapshot keeps its packed markets only if they are equal in
//!   content to the new ones. An equal id proves nothing: a change that no trigger saw leaves the id as it is.

use std::{collections::BTreeSet, iter::Peekable, sync::Arc, vec};

use hashbrown::HashMap;

use crate::{
    decode::packer::{MarketCollector, Packer},
    model::{
        BetpawaSnapshots, CachedEvent, CachedSnapshot, CompetitorSnapshots, PackedMarkets, Source,
    },
    read::{
        change_log::ChangeSet,
        keys::Keys,
        rows::{EventRow, SnapshotHeader, SnapshotHeaders},
        unreadable::Kept,
    },
    store::draft::Draft,
};

/// The ids of the events that a read changes (`events`), and of those whose `betpawa` or `competitors` side it
/// replaces.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) events: BTreeSet<i64>,
    pub(crate) betpawa: BTreeSet<i64>,
    pub(crate) competitors: BTreeSet<i64>,
}

impl Scope {
    /// The scope of a change set. `linked_events` are the events to which the changed competitor events are linked now.
    ///
    /// If the link itself changed, the event linked before is affected, too. The log row of the competitor event names
    /// it, so it is in `change_set.competitors`.
    pub(crate) fn new(draft: &Draft, change_set: &ChangeSet, linked_events: &[i64]) -> Scope {
        // Changed markets matter only for snapshots that an event holds. If another snapshot becomes the latest, a log
        // row of that snapshot names its event.
        let markets = change_set.betpawa_markets.named().iter();
        let mut betpawa: BTreeSet<i64> = change_set
            .betpawa
            .named()
            .iter()
            .copied()
            .chain(markets.flat_map(|id| draft.events_of_betpawa_snapshot(*id)))
            .collect();
        let markets = change_set.competitor_markets.named().iter();
        let mut competitors: BTreeSet<i64> = change_set
            .competitors
            .named()
            .iter()
            .chain(linked_events)
            .copied()
            .chain(markets.flat_map(|id| draft.events_of_competitor_snapshot(*id)))
            .collect();
        if change_set.betpawa_markets.is_coarse() {
            betpawa.extend(events_with(draft, |event| {
                let mut held = event.betpawa.iter();
                held.any(|(_, held)| change_set.betpawa_markets.contains(held.snapshot_id))
            }));
        }
        if change_set.competitor_markets.is_coarse() {
            competitors.extend(events_with(draft, |event| {
                let mut held = event.competitors.iter();
                held.any(|(_, held)| change_set.competitor_markets.contains(held.snapshot_id))
            }));
        }
        let events = change_set
            .events
            .named()
            .iter()
            .chain(&betpawa)
            .chain(&competitors)
            .copied()
            .collect();
        Scope {
            events,
            betpawa,
            competitors,
        }
    }

    /// Adds all events of the tables whose changes the log does not name. `window` has the kickoffs of all events in the
    /// window. An event that is held but no longer in it is removed.
    pub(crate) fn widen(
        &mut self,
        draft: &Draft,
        change_set: &ChangeSet,
        window: &HashMap<i64, EventRow>,
    ) {
        let all = || draft.ids_in(..).chain(window.keys().copied());
        if change_set.events.is_all() {
            self.events.extend(all());
        }
        if change_set.betpawa.is_all() {
            self.betpawa.extend(all());
        }
        if change_set.competitors.is_all() || change_set.competitor_events.is_all() {
            self.competitors.extend(all());
        }
        self.events.extend(&self.betpawa);
        self.events.extend(&self.competitors);
    }

    /// Takes what cannot be read out of the scope, so the draft keeps it as it is.
    fn keep(&mut self, kept: &Kept) {
        self.events.retain(|id| !kept.events.contains(id));
        let is_read =
            |id: &i64, side: &BTreeSet<i64>| !kept.events.contains(id) && !side.contains(id);
        self.betpawa.retain(|id| is_read(id, &kept.betpawa));
        self.competitors.retain(|id| is_read(id, &kept.competitors));
    }

    /// Narrows the sides to the events in the window, which are the keys of `kickoffs`. Adds both sides of those that
    /// are not held yet (A3).
    pub(crate) fn narrow(&mut self, draft: &Draft, kickoffs: &HashMap<i64, EventRow>) {
        let new = kickoffs
            .keys()
            .copied()
            .filter(|id| draft.event(*id).is_none());
        self.betpawa.extend(new.clone());
        self.competitors.extend(new);
        self.betpawa.retain(|id| kickoffs.contains_key(id));
        self.competitors.retain(|id| kickoffs.contains_key(id));
    }
}

/// A snapshot that the draft will hold.
#[derive(Debug)]
struct Planned<K> {
    header: SnapshotHeader<K>,
    /// The packed markets that are kept (A1). `None` if they must be read.
    packed: Option<Arc<PackedMarkets>>,
}

/// What the draft will hold once the missing packed markets are read.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    scope: Scope,
    /// The kickoffs and names of the events in the window. An event of the scope that is missing here is removed.
    kickoffs: HashMap<i64, EventRow>,
    /// Ascending by event; those of one event in the order of the answer.
    betpawa: Vec<Planned<i64>>,
    competitors: Vec<Planned<Source>>,
    /// What the draft keeps, because it cannot be read.
    kept: Kept,
}

impl Plan {
    /// The plan for the events of `scope`. The draft keeps all others.
    pub(crate) fn part(
        draft: &Draft,
        change_set: &ChangeSet,
        mut scope: Scope,
        headers: SnapshotHeaders,
        (kept, doubtful): (Kept, Kept),
    ) -> Plan {
        scope.keep(&kept);
        // The snapshot held under the same key, whose packed markets may be kept (A1).
        let betpawa = |header: &SnapshotHeader<i64>| {
            let event = draft.event(header.event_id)?;
            let is_old = doubtful.has_betpawa(header.event_id);
            event.betpawa.get(header.key).filter(|_| !is_old)
        };
        let competitors = |header: &SnapshotHeader<Source>| {
            let event = draft.event(header.event_id)?;
            let is_old = doubtful.has_competitors(header.event_id);
            event
                .competitors
                .get(header.key.as_str())
                .filter(|_| !is_old)
        };
        let betpawa = planned(headers.betpawa, betpawa, &change_set.betpawa_markets);
        let competitors = planned(
            headers.competitors,
            competitors,
            &change_set.competitor_markets,
        );
        Plan {
            scope,
            kickoffs: headers.kickoffs,
            betpawa,
            competitors,
            kept,
        }
    }

    /// The plan for all events of `headers`, and for those of `held`, which it removes unless `headers` has them. All
    /// markets must be read (A4). If the draft is empty, the caller must copy what is kept into it, by [`Plan::keep`].
    pub(crate) fn whole(
        held: impl IntoIterator<Item = i64>,
        headers: SnapshotHeaders,
        kept: Kept,
    ) -> Plan {
        let all: BTreeSet<i64> = headers.kickoffs.keys().copied().chain(held).collect();
        let scope = Scope {
            events: all.clone(),
            betpawa: all.clone(),
            competitors: all,
        };
        let (draft, change_set) = (Draft::default(), ChangeSet::default());
        Plan::part(&draft, &change_set, scope, headers, (kept, Kept::default()))
    }

    /// Copies what is kept from `held` into an empty draft that shares its interned names.
    pub(crate) fn keep(&self, held: &Draft, draft: &mut Draft) {
        let Kept {
            events,
            betpawa,
            competitors,
        } = &self.kept;
        for id in events.iter().chain(betpawa).chain(competitors) {
            let Some(event) = held.event(*id) else {
                continue;
            };
            let is_whole = events.contains(id);
            let betpawa = match is_whole || betpawa.contains(id) {
                true => event.betpawa.clone(),
                false => BetpawaSnapshots::default(),
            };
            let competitors = match is_whole || competitors.contains(id) {
                true => event.competitors.clone(),
                false => CompetitorSnapshots::default(),
            };
            draft.set(*id, event.header(), betpawa, competitors);
        }
    }

    /// The ids of the tournaments that the events of the plan name.
    pub(crate) fn tournament_ids(&self) -> impl Iterator<Item = i64> {
        self.kickoffs.values().filter_map(|row| row.tournament_id)
    }

    /// The ids of the bookmakers whose snapshots in `odds_snapshots` the plan has.
    pub(crate) fn bookmaker_ids(&self) -> impl Iterator<Item = i64> {
        self.betpawa.iter().map(|planned| planned.header.key)
    }

    /// How many snapshots' markets must be read, at most.
    pub(crate) fn snapshots_to_read(&self) -> usize {
        let betpawa = self
            .betpawa
            .iter()
            .filter(|planned| planned.packed.is_none());
        let competitors = self.competitors.iter();
        let competitors = competitors.filter(|planned| planned.packed.is_none());
        betpawa.count() + competitors.count()
    }

    /// Ids of the snapshots of `odds_snapshots` whose markets must be read, ascending, each once.
    pub(crate) fn betpawa_to_read(&self) -> Vec<i64> {
        to_read(&self.betpawa)
    }

    /// Ids of the snapshots of `competitor_odds_snapshots` whose markets must be read, ascending, each once.
    pub(crate) fn competitors_to_read(&self) -> Vec<i64> {
        to_read(&self.competitors)
    }

    /// Applies the plan to `draft`. The packed markets are those that were read for it; a snapshot without one has no
    /// markets.
    pub(crate) fn apply(
        mut self,
        draft: &mut Draft,
        betpawa_markets: &HashMap<i64, Arc<PackedMarkets>>,
        competitor_markets: &HashMap<i64, Arc<PackedMarkets>>,
    ) {
        // Scope and snapshots both ascend by event, so one pass over each suffices.
        let mut betpawa_left = std::mem::take(&mut self.betpawa).into_iter().peekable();
        let mut competitors_left = std::mem::take(&mut self.competitors).into_iter().peekable();
        // The same two buffers serve all events: `of` drains a buffer into an allocation of the exact size.
        let (mut betpawa_read, mut competitors_read) = (Vec::new(), Vec::new());
        for event_id in std::mem::take(&mut self.scope.events) {
            // The event was deleted, or is outside the window.
            let Some(row) = self.kickoffs.remove(&event_id) else {
                draft.remove(event_id);
                continue;
            };
            // Each side comes whole from the rows read, or whole from the draft (A2).
            let held: Option<Arc<CachedEvent>> = draft.event(event_id).cloned();
            let betpawa = if self.scope.betpawa.contains(&event_id) {
                betpawa_read.extend(of_event(&mut betpawa_left, event_id).map(|planned| {
                    let bookmaker_id = planned.header.key;
                    planned.snapshot(bookmaker_id, betpawa_markets, &mut draft.packer)
                }));
                BetpawaSnapshots::of(&mut betpawa_read)
            } else {
                held.as_ref()
                    .map(|event| event.betpawa.clone())
                    .unwrap_or_default()
            };
            let competitors = if self.scope.competitors.contains(&event_id) {
                competitors_read.extend(of_event(&mut competitors_left, event_id).map(|planned| {
                    let source = draft.packer.source(planned.header.key.as_str());
                    let snapshot = planned.snapshot(0, competitor_markets, &mut draft.packer);
                    (source, snapshot)
                }));
                CompetitorSnapshots::of(&mut competitors_read)
            } else {
                held.as_ref()
                    .map(|event| event.competitors.clone())
                    .unwrap_or_default()
            };
            let header = row.header(&mut draft.packer);
            draft.set(event_id, header, betpawa, competitors);
        }
    }
}

/// The ids of the held events for which `is_changed` is true.
fn events_with<'d>(
    draft: &'d Draft,
    is_changed: impl Fn(&CachedEvent) -> bool + 'd,
) -> impl Iterator<Item = i64> {
    let events = draft.events().filter(move |event| is_changed(event));
    events.map(|event| event.event_id)
}

/// The snapshots ascending by event, each with the packed markets that it keeps (A1).
fn planned<'d, K>(
    headers: Vec<SnapshotHeader<K>>,
    held: impl Fn(&SnapshotHeader<K>) -> Option<&'d CachedSnapshot>,
    changed_markets: &Keys,
) -> Vec<Planned<K>> {
    let plan = |header: SnapshotHeader<K>| {
        let id = header.snapshot_id;
        let keeps =
            |held: &&CachedSnapshot| held.snapshot_id == id && !changed_markets.contains(id);
        let packed = held(&header)
            .filter(keeps)
            .map(|held| Arc::clone(&held.packed));
        Planned { header, packed }
    };
    let mut planned: Vec<Planned<K>> = headers.into_iter().map(plan).collect();
    planned.sort_by_key(|planned| planned.header.event_id);
    planned
}

/// Takes the snapshots of an event from the list, and skips those of events before it. `event_id` must ascend from call
/// to call.
fn of_event<K>(
    planned: &mut Peekable<vec::IntoIter<Planned<K>>>,
    event_id: i64,
) -> impl Iterator<Item = Planned<K>> {
    while planned
        .next_if(|next| next.header.event_id < event_id)
        .is_some()
    {}
    std::iter::from_fn(move || planned.next_if(|next| next.header.event_id == event_id))
}

fn to_read<K>(planned: &[Planned<K>]) -> Vec<i64> {
    let missing = planned.iter().filter(|planned| planned.packed.is_none());
    let mut ids: Vec<i64> = missing.map(|planned| planned.header.snapshot_id).collect();
    ids.sort_unstable();
    // Several events may have snapshots of one id. If the id were listed twice, two connections could each read its
    // markets.
    ids.dedup();
    ids
}

impl<K> Planned<K> {
    fn snapshot(
        self,
        bookmaker_id: i64,
        packed_markets: &HashMap<i64, Arc<PackedMarkets>>,
        packer: &mut Packer,
    ) -> CachedSnapshot {
        let SnapshotHeader {
            event_id,
            snapshot_id,
            captured_at,
            last_confirmed_at,
            ..
        } = self.header;
        let packed = self
            .packed
            .or_else(|| packed_markets.get(&snapshot_id).cloned())
            .unwrap_or_else(|| MarketCollector::empty(packer));
        let last_confirmed_at = last_confirmed_at.unwrap_or(captured_at);
        CachedSnapshot {
            snapshot_id,
            event_id,
            bookmaker_id,
            captured_at,
            last_confirmed_at,
            packed,
        }
    }
}
