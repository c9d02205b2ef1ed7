use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    model::{
        BetpawaSnapshots, Bookmaker, CachedSnapshot, CompetitorSnapshots, EventHeader, Micros,
        NamesInput, SnapshotInput,
    },
    store::{
        changes::Change,
        draft::Draft,
        publish::Publisher,
        state::{Cut, Moment},
    },
};

/// The writing half of a cache without a follower: for tests, and for processes that get the odds from elsewhere.
///
/// Changes are private until [`Writer::publish`] makes all of them visible at once. No call does I/O or waits. A cache
/// has one writer:
///
/// ```compile_fail
/// let (_cache, writer) = oddscache::OddsCache::detached();
/// let second = writer.clone();
/// ```
pub struct Writer {
    publisher: Publisher,
    draft: Draft,
    window_start: DateTime<Utc>,
}

/// A writer's states never go back, so one epoch suffices.
const EPOCH: u64 = 1;

impl Writer {
    pub(crate) fn new(publisher: Publisher) -> Writer {
        Writer {
            publisher,
            draft: Draft::default(),
            window_start: DateTime::UNIX_EPOCH,
        }
    }

    /// Sets the snapshot of an event and bookmaker. Replaces the one held, even if that has a greater id. Equal markets
    /// share memory with those held. `kickoff` is UTC; `None` keeps the kickoff given before. Allocates what is new.
    pub fn put_betpawa_snapshot(
        &mut self,
        snapshot: &SnapshotInput,
        kickoff: Option<DateTime<Utc>>,
    ) {
        let packed = self.draft.packer.snapshot(snapshot);
        self.change(snapshot.event_id, kickoff, |betpawa, _| {
            let held = betpawa.get(packed.bookmaker_id);
            *betpawa = betpawa.with(packed.sharing(held));
        });
    }

    /// Sets the snapshot of an event and source. Replaces the one held, even if that has a greater id. Its bookmaker id
    /// becomes 0. `kickoff` is UTC; `None` keeps the kickoff given before. Allocates what is new.
    pub fn put_competitor_snapshot(
        &mut self,
        source: &str,
        snapshot: &SnapshotInput,
        kickoff: Option<DateTime<Utc>>,
    ) {
        let packed = CachedSnapshot {
            bookmaker_id: 0,
            ..self.draft.packer.snapshot(snapshot)
        };
        let source = self.draft.packer.source(source);
        self.change(snapshot.event_id, kickoff, |_, competitors| {
            let held = competitors.get(source.as_str());
            *competitors = competitors.with(source, packed.sharing(held));
        });
    }

    /// Sets the names of an event. Returns whether it is held: an event without a snapshot has no names. Allocates the
    /// names. If the tournament is renamed, costs a look at each event.
    pub fn put_names(&mut self, event_id: i64, names: &NamesInput) -> bool {
        let Some(event) = self.draft.event(event_id).cloned() else {
            return false;
        };
        if let Some(tournament) = &names.tournament {
            let held = self.draft.packer.lookup.bookmakers();
            let bookmakers = held.map(|all| (**all).clone()).unwrap_or_default();
            self.draft.set_lookup(bookmakers, [tournament.tournament()]);
        }
        let tournament = names.tournament.as_ref();
        let header = EventHeader {
            kickoff: event.kickoff,
            names: names.names(),
            tournament: tournament.map(|of| self.draft.packer.lookup.tournament(of.id)),
        };
        let (betpawa, competitors) = (event.betpawa.clone(), event.competitors.clone());
        self.draft.set(event_id, header, betpawa, competitors);
        true
    }

    /// Sets the slug and the name of a bookmaker. Costs a look at each event.
    pub fn put_bookmaker(&mut self, bookmaker_id: i64, slug: Option<&str>, name: Option<&str>) {
        let held = self.draft.packer.lookup.bookmakers();
        let mut bookmakers = held.map(|all| (**all).clone()).unwrap_or_default();
        bookmakers.insert(bookmaker_id, Bookmaker::new(slug, name));
        self.draft.set_lookup(bookmakers, []);
    }

    fn change(
        &mut self,
        event_id: i64,
        kickoff: Option<DateTime<Utc>>,
        change: impl FnOnce(&mut BetpawaSnapshots, &mut CompetitorSnapshots),
    ) {
        let held = self.draft.event(event_id);
        let held = held.map(|event| {
            (
                event.header(),
                event.betpawa.clone(),
                event.competitors.clone(),
            )
        });
        let (mut header, mut betpawa, mut competitors) = held.unwrap_or_default();
        header.kickoff = kickoff.map(Micros::from_utc).or(header.kickoff);
        change(&mut betpawa, &mut competitors);
        self.draft.set(event_id, header, betpawa, competitors);
    }

    /// Removes all events with a kickoff at or before `cutoff` (UTC), and returns how many. Events without a kickoff
    /// stay.
    pub fn evict_expired(&mut self, cutoff: DateTime<Utc>) -> usize {
        self.window_start = self.window_start.max(cutoff);
        self.draft.evict(Micros::from_utc(cutoff))
    }

    /// Removes all events.
    pub fn clear(&mut self) {
        let mut empty = self.draft.successor();
        empty.replace(&mut self.draft);
        self.draft = empty;
    }

    /// Makes all changes since the last call visible at once, as the next
    /// [`State::version`](crate::store::state::State::version). Returns what subscribers get: the ids of the events that
    /// differ. Copies only the pages that changed.
    pub fn publish(&mut self) -> Arc<Change> {
        let cut = Arc::new(Cut {
            as_of: Utc::now(),
            window_start: self.window_start,
            ..Cut::default()
        });
        let change = self.draft.change(Arc::clone(&cut), EPOCH);
        let state = self.draft.state(cut, EPOCH, Some(Moment::now()), None);
        self.publisher.publish(state, change)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("draft", &self.draft.stats())
            .finish_non_exhaustive()
    }
}
