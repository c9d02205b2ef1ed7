//! The next state. Only its one writer sees it: the writer applies changes here, then publishes the result as a whole.
//!
//! # Invariants
//! - D1: After every change, the totals and both snapshot indexes equal what a walk over all events would give.
//! - D2: Each held event that has a kickoff is in `kickoffs` under its current kickoff.
//! - D3: Each event that differs from the last published state is in `before`, with its published value.
//! - D4: The published digest is the sum of the digests of all published events.

use std::{cmp::Reverse, collections::BinaryHeap, mem::size_of, ops::RangeBounds, sync::Arc};

use hashbrown::HashMap;

use crate::{
    decode::packer::Packer,
    metrics::stats::{MemoryStats, Stats, WarmupStats},
    model::{
        BetpawaSnapshots, Bookmakers, CachedEvent, CompetitorSnapshots, EventHeader, Micros,
        PackedMarkets, Tournament,
    },
    store::{
        changes::Change,
        snapshot_index::SnapshotIndex,
        state::{Cut, Moment, Proof, State},
        table::Table,
    },
};

/// The writer's copy of the state. Except for `packer`, its fields change only through its methods.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    table: Table,
    betpawa_index: SnapshotIndex,
    competitor_index: SnapshotIndex,
    /// Events by kickoff, the earliest on top. An entry becomes stale when its event leaves or moves; [`Draft::evict`]
    /// skips it.
    kickoffs: BinaryHeap<Reverse<(Micros, i64)>>,
    totals: Stats,
    event_bytes: usize,
    /// The published value of each event that changed since the last [`Draft::change`]; `None` if it was absent.
    before: HashMap<i64, Option<Arc<CachedEvent>>>,
    /// The sum of the digests of the events in the last published state. What changed since is in `before`.
    published_digest: u128,
    pub(crate) packer: Packer,
}

impl Draft {
    pub(crate) fn event(&self, event_id: i64) -> Option<&Arc<CachedEvent>> {
        self.table.get(event_id)
    }

    /// How many events the draft holds.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The events that show this snapshot of `odds_snapshots`.
    pub(crate) fn events_of_betpawa_snapshot(&self, snapshot_id: i64) -> impl Iterator<Item = i64> {
        self.betpawa_index.get(snapshot_id)
    }

    /// The events that show this snapshot of `competitor_odds_snapshots`.
    pub(crate) fn events_of_competitor_snapshot(
        &self,
        snapshot_id: i64,
    ) -> impl Iterator<Item = i64> {
        self.competitor_index.get(snapshot_id)
    }

    /// All held events, in no particular order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Arc<CachedEvent>> {
        self.table.iter()
    }

    /// The packed markets of a held snapshot of `odds_snapshots`.
    pub(crate) fn betpawa_markets(&self, snapshot_id: i64) -> Option<&Arc<PackedMarkets>> {
        let events = self.events_of_betpawa_snapshot(snapshot_id);
        let mut snapshots = events
            .filter_map(|id| self.event(id))
            .flat_map(|event| event.betpawa.iter());
        let (_, held) = snapshots.find(|(_, held)| held.snapshot_id == snapshot_id)?;
        Some(&held.packed)
    }

    /// The packed markets of a held snapshot of `competitor_odds_snapshots`.
    pub(crate) fn competitor_markets(&self, snapshot_id: i64) -> Option<&Arc<PackedMarkets>> {
        let events = self.events_of_competitor_snapshot(snapshot_id);
        let mut snapshots = events
            .filter_map(|id| self.event(id))
            .flat_map(|event| event.competitors.iter());
        let (_, held) = snapshots.find(|(_, held)| held.snapshot_id == snapshot_id)?;
        Some(&held.packed)
    }

    /// The ids of all held events within a range, in no particular order. Looks at no event.
    pub(crate) fn ids_in(&self, range: impl RangeBounds<i64>) -> impl Iterator<Item = i64> {
        self.table.ids_in(range)
    }

    /// Replaces `old` by this draft, which took over its interned names. Equal events keep the memory of the published
    /// ones; all others count as changed. Costs a comparison of every event.
    pub(crate) fn replace(&mut self, old: &mut Draft) {
        self.published_digest = old.published_digest;
        let held = old.table.iter().chain(self.table.iter());
        let mut ids: Vec<i64> = held.map(|event| event.event_id).collect();
        ids.extend(old.before.keys());
        ids.sort_unstable();
        ids.dedup();
        let mut before = std::mem::take(&mut old.before);
        for event_id in ids {
            // Readers see the value in `old.before` if `old` has changed the event since it was published. Otherwise
            // they see the value in `old` itself.
            let published = match before.remove(&event_id) {
                Some(published) => published,
                None => old.event(event_id).cloned(),
            };
            match (published, self.event(event_id)) {
                (Some(published), Some(now)) if published.same(now) => {
                    // Equal: share the published event, so that it does not count as changed (D3).
                    self.before.remove(&event_id);
                    self.table.insert(published);
                }
                // Added and removed since the last publication: nothing to tell.
                (None, None) => {
                    self.before.remove(&event_id);
                }
                (published, _) => {
                    self.before.insert(event_id, published);
                }
            }
        }
    }

    /// The digest of what the draft holds: the wrapping sum over its events. Two drafts that hold the same have the same
    /// digest, in any two processes. Costs a hash of each event that changed since the last publication, not more: a
    /// sum moves with single events (D3, D4).
    pub(crate) fn digest(&self) -> u128 {
        let mut digest = self.published_digest;
        for (event_id, before) in &self.before {
            let of = |event: Option<&Arc<CachedEvent>>| event.map_or(0, |event| event.digest());
            digest = digest
                .wrapping_sub(of(before.as_ref()))
                .wrapping_add(of(self.event(*event_id)));
        }
        digest
    }

    /// What differs from the last published state. Forgets the differences, so the caller must publish this draft next.
    pub(crate) fn change(&mut self, cut: Arc<Cut>, epoch: u64) -> Change {
        self.published_digest = self.digest();
        let mut change = Change {
            cut,
            epoch,
            ..Change::default()
        };
        let mut differing: Vec<_> = std::mem::take(&mut self.before).into_iter().collect();
        differing.sort_unstable_by_key(|(event_id, _)| *event_id);
        for (event_id, before) in differing {
            let now = self.event(event_id).map(|event| &**event);
            change.note(event_id, before.as_deref(), now);
        }
        change
    }

    /// An empty draft that takes the interned names of this one, and nothing else. The caller may move the names back.
    pub(crate) fn successor(&mut self) -> Draft {
        Draft {
            packer: std::mem::take(&mut self.packer),
            ..Draft::default()
        }
    }

    /// Sets what an event holds from now on. An event without any snapshot is removed.
    pub(crate) fn set(
        &mut self,
        event_id: i64,
        header: impl Into<EventHeader>,
        betpawa: BetpawaSnapshots,
        competitors: CompetitorSnapshots,
    ) {
        if betpawa.is_empty() && competitors.is_empty() {
            self.remove(event_id);
            return;
        }
        let event = CachedEvent::new(event_id, header, betpawa, competitors);
        let event = Arc::new(event.with_bookmakers(self.packer.lookup.bookmakers()));
        let kickoff = event.kickoff;
        let old = self.event(event_id).cloned();
        if old.as_ref().is_some_and(|old| old.same(&event)) {
            return;
        }
        // If only times differ, neither the totals nor the snapshot indexes change. Most changes are of this kind.
        if !old.as_ref().is_some_and(|old| old.counts_as(&event)) {
            if let Some(old) = &old {
                self.forget(old);
            }
            self.count(&event);
        }
        // Only the first change since the last publication is noted: it alone saw what readers still see (D3).
        self.before.entry(event_id).or_insert_with(|| old.clone());
        if let Some(kickoff) = kickoff
            && old.as_ref().is_none_or(|old| old.kickoff != Some(kickoff))
        {
            self.kickoffs.push(Reverse((kickoff, event_id)));
        }
        self.table.insert(event);
    }

    /// Sets the rows of `bookmakers`, and those of `tournaments` that were read. Gives them to the events that name them.
    /// Costs a look at each event if a row differs.
    pub(crate) fn set_lookup(
        &mut self,
        bookmakers: Bookmakers,
        tournaments: impl IntoIterator<Item = Tournament>,
    ) {
        let lookup = &mut self.packer.lookup;
        let has_other_bookmakers = lookup.set_bookmakers(bookmakers);
        let mut renamed: HashMap<i64, Arc<Tournament>> = HashMap::new();
        for tournament in tournaments {
            let (id, held) = (tournament.id(), lookup.held(tournament.id()));
            let shared = lookup.share(tournament);
            if held.is_some_and(|held| !Arc::ptr_eq(&held, &shared)) {
                renamed.insert(id, shared);
            }
        }
        if !has_other_bookmakers && renamed.is_empty() {
            return;
        }
        let events: Vec<Arc<CachedEvent>> = self.table.iter().cloned().collect();
        for event in events {
            let mut header = event.header();
            if let Some(tournament) = &mut header.tournament
                && let Some(renamed) = renamed.get(&tournament.id())
            {
                *tournament = Arc::clone(renamed);
            }
            let (betpawa, competitors) = (event.betpawa.clone(), event.competitors.clone());
            self.set(event.event_id, header, betpawa, competitors);
        }
    }

    /// Removes an event. Returns whether the draft held it.
    pub(crate) fn remove(&mut self, event_id: i64) -> bool {
        let Some(old) = self.table.remove(event_id) else {
            return false;
        };
        self.forget(&old);
        self.before.entry(event_id).or_insert(Some(old));
        true
    }

    /// Removes all events with a kickoff at or before `window_start`. Returns how many. Costs only the events removed.
    pub(crate) fn evict(&mut self, window_start: Micros) -> usize {
        let mut evicted = 0;
        while let Some(Reverse((kickoff, event_id))) = self.kickoffs.peek().copied() {
            if kickoff > window_start {
                break;
            }
            self.kickoffs.pop();
            // Otherwise the entry is stale: the event has gone or has another kickoff.
            if self
                .event(event_id)
                .is_some_and(|event| event.kickoff == Some(kickoff))
            {
                evicted += usize::from(self.remove(event_id));
            }
        }
        evicted
    }

    /// Adds an event to the totals and to the snapshot indexes (D1).
    fn count(&mut self, event: &CachedEvent) {
        self.totals.betpawa_events += usize::from(!event.betpawa.is_empty());
        self.totals.competitor_events += usize::from(!event.competitors.is_empty());
        for snapshot in event.snapshots() {
            self.totals.total_snapshots += 1;
            self.totals.total_markets += snapshot.packed.market_count();
            self.totals.malformed_rows += snapshot.malformed_rows();
        }
        self.event_bytes += event.heap_bytes();
        for (_, snapshot) in event.betpawa.iter() {
            self.betpawa_index
                .insert(snapshot.snapshot_id, event.event_id);
        }
        for (_, snapshot) in event.competitors.iter() {
            self.competitor_index
                .insert(snapshot.snapshot_id, event.event_id);
        }
    }

    /// Takes an event out of the totals and the snapshot indexes (D1).
    fn forget(&mut self, event: &CachedEvent) {
        self.totals.betpawa_events -= usize::from(!event.betpawa.is_empty());
        self.totals.competitor_events -= usize::from(!event.competitors.is_empty());
        for snapshot in event.snapshots() {
            self.totals.total_snapshots -= 1;
            self.totals.total_markets -= snapshot.packed.market_count();
            self.totals.malformed_rows -= snapshot.malformed_rows();
        }
        self.event_bytes -= event.heap_bytes();
        for (_, snapshot) in event.betpawa.iter() {
            self.betpawa_index
                .remove(snapshot.snapshot_id, event.event_id);
        }
        for (_, snapshot) in event.competitors.iter() {
            self.competitor_index
                .remove(snapshot.snapshot_id, event.event_id);
        }
    }

    /// What the draft holds and how much memory that takes. The caller fills in `last_warmup`.
    pub(crate) fn stats(&self) -> Stats {
        let memory = self.memory();
        Stats {
            memory_bytes: memory.total(),
            memory,
            ..self.totals.clone()
        }
    }

    fn memory(&self) -> MemoryStats {
        MemoryStats {
            events_bytes: self.event_bytes,
            names_bytes: self.packer.heap_bytes(),
            // Both the draft and the published view have a list of pages. They share the pages.
            table_bytes: self.table.page_bytes() + 2 * self.table.list_bytes(),
            snapshot_index_bytes: self.betpawa_index.heap_bytes()
                + self.competitor_index.heap_bytes(),
            kickoffs_bytes: self.kickoffs.capacity() * size_of::<(Micros, i64)>(),
        }
    }

    /// The state to publish. Costs a copy of the list of pages; the next change to the draft copies the pages that it
    /// touches. Also frees interned names that are no longer used.
    pub(crate) fn state(
        &mut self,
        cut: Arc<Cut>,
        epoch: u64,
        proven: Option<Moment>,
        last_warmup: Option<WarmupStats>,
    ) -> State {
        self.packer.sweep();
        // Postponed events leave stale entries behind. Rebuild the heap before these outnumber the events.
        if self.kickoffs.len() > 2 * self.table.len() + 64 {
            let current = self.table.iter();
            self.kickoffs = current
                .filter_map(|event| Some(Reverse((event.kickoff?, event.event_id))))
                .collect();
        }
        State {
            table: self.table.clone(),
            epoch,
            version: 0,
            digest: self.digest(),
            stats: Stats {
                last_warmup,
                ..self.stats()
            },
            proof: Proof::new(cut, proven),
            unreadable: Vec::new(),
            bookmakers: self.packer.lookup.bookmakers().cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use chrono::DateTime;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::model::{
        Bookmaker, CachedSnapshot, EventNames, MarketInput, OutcomeInput, SnapshotInput,
    };

    #[derive(Debug, Clone)]
    enum Step {
        /// Event, kickoff, bookmakers and sources; each of these with its number of markets.
        Set(i64, Option<i64>, Vec<(i64, u8)>, Vec<(u8, u8)>),
        /// Changes only the times of the snapshots that the event shows.
        Touch(i64, i64),
        Remove(i64),
        Evict(i64),
        Publish,
        Successor,
        /// Names the bookmakers and tournaments anew.
        Rename(u8),
    }

    /// A header whose names differ with the kickoff.
    fn header(draft: &mut Draft, event: i64, kickoff: Option<i64>) -> EventHeader {
        let name = "n".repeat(usize::try_from(kickoff.unwrap_or_default() % 7).unwrap_or_default());
        EventHeader {
            kickoff: kickoff.map(Micros),
            names: EventNames::new([Some(&name), None, Some("away"), None]),
            tournament: (event % 3 > 0).then(|| draft.packer.lookup.tournament(event % 3)),
        }
    }

    fn rename(draft: &mut Draft, number: u8) {
        let name = number.to_string();
        let bookmakers =
            (0..i64::from(number % 4)).map(|id| (id, Bookmaker::new(Some(&name), None)));
        let tournament = Tournament::new(1, [Some(&name), None, None]);
        draft.set_lookup(bookmakers.collect(), [tournament]);
    }

    fn step() -> impl Strategy<Value = Step> {
        let event = 0..40i64;
        let set = (
            event.clone(),
            proptest::option::weighted(0.8, 0..100i64),
            vec((1..4i64, 0..3u8), 0..4),
            vec((0..3u8, 0..3u8), 0..3),
        );
        prop_oneof![
            12 => set.prop_map(|(event, kickoff, betpawa, competitors)| Step::Set(event, kickoff, betpawa, competitors)),
            3 => (event.clone(), 0..3i64).prop_map(|(event, at)| Step::Touch(event, at)),
            3 => event.prop_map(Step::Remove),
            2 => (0..100i64).prop_map(Step::Evict),
            2 => Just(Step::Publish),
            1 => Just(Step::Successor),
            2 => any::<u8>().prop_map(Step::Rename),
        ]
    }

    fn snapshot(
        draft: &mut Draft,
        snapshot_id: i64,
        event_id: i64,
        bookmaker_id: i64,
        markets: u8,
    ) -> CachedSnapshot {
        let outcome = |name: &str| OutcomeInput {
            name: name.to_owned(),
            odds: Some(1.5),
            is_active: true,
            extra: serde_json::Map::new(),
        };
        let market = |number: u8| MarketInput {
            betpawa_market_id: number.to_string(),
            outcomes: vec![outcome("1"), outcome("2")],
            ..MarketInput::default()
        };
        draft.packer.snapshot(&SnapshotInput {
            snapshot_id,
            event_id,
            bookmaker_id,
            captured_at: DateTime::UNIX_EPOCH,
            last_confirmed_at: None,
            markets: (0..markets).map(market).collect(),
        })
    }

    /// Sets `captured_at` of all snapshots that an event shows, and nothing else.
    fn touch(draft: &mut Draft, event_id: i64, captured_at: i64) {
        let Some(held) = draft.event(event_id).cloned() else {
            return;
        };
        let captured_at = Micros(captured_at);
        let touched = |held: &CachedSnapshot| CachedSnapshot {
            captured_at,
            ..held.clone()
        };
        let own = held.betpawa.iter().map(|(_, held)| touched(held));
        let others = held.competitors.iter();
        let others = others.map(|(source, held)| (source.clone(), touched(held)));
        let own = BetpawaSnapshots::new(own.collect());
        let others = CompetitorSnapshots::new(others.collect());
        draft.set(event_id, held.header(), own, others);
    }

    /// An event id and its kickoff.
    type Shown = (i64, Option<Micros>);

    fn state(draft: &mut Draft) -> State {
        draft.state(Arc::default(), 1, Some(Moment::now()), None)
    }

    fn held(state: &State) -> Vec<&Arc<CachedEvent>> {
        state.table.iter().collect()
    }

    /// Checks D1 and D2 by a walk over all events.
    fn assert_invariants(draft: &mut Draft, model: &BTreeMap<i64, Option<i64>>) {
        let mut walk = Stats::default();
        let (mut bytes, mut betpawa, mut competitors) = (0, BTreeSet::new(), BTreeSet::new());
        let events: Vec<Arc<CachedEvent>> = draft.table.iter().cloned().collect();
        for event in &events {
            walk.betpawa_events += usize::from(!event.betpawa.is_empty());
            walk.competitor_events += usize::from(!event.competitors.is_empty());
            for snapshot in event.snapshots() {
                walk.total_snapshots += 1;
                walk.total_markets += snapshot.packed.market_count();
                walk.malformed_rows += snapshot.malformed_rows();
            }
            bytes += event.heap_bytes();
            betpawa.extend(
                event
                    .betpawa
                    .iter()
                    .map(|(_, held)| (held.snapshot_id, event.event_id)),
            );
            competitors.extend(
                event
                    .competitors
                    .iter()
                    .map(|(_, held)| (held.snapshot_id, event.event_id)),
            );
        }
        assert_eq!(draft.totals, walk);
        assert_eq!(draft.event_bytes, bytes);
        assert_eq!(draft.betpawa_index.pairs(), betpawa);
        assert_eq!(draft.competitor_index.pairs(), competitors);
        assert_eq!(draft.len(), events.len());
        let digests = events.iter().map(|event| event.digest());
        assert_eq!(draft.digest(), digests.fold(0, u128::wrapping_add), "D4");
        let held: BTreeMap<i64, Option<i64>> = events
            .iter()
            .map(|event| (event.event_id, event.kickoff.map(|kickoff| kickoff.0)))
            .collect();
        assert_eq!(&held, model);
        for event in &events {
            let found = draft.event(event.event_id).expect("in the table");
            assert!(Arc::ptr_eq(found, event));
            if let Some(kickoff) = event.kickoff {
                let entry = Reverse((kickoff, event.event_id));
                assert!(draft.kickoffs.iter().any(|other| *other == entry), "D2");
            }
        }
    }

    proptest! {
        #[test]
        fn totals_indexes_and_kickoffs_equal_a_fresh_walk(steps in vec(step(), 1..80)) {
            let mut draft = Draft::default();
            let mut model = BTreeMap::new();
            let mut published: Vec<(State, Vec<Shown>)> = Vec::new();
            let mut next_id = 0;
            for step in steps {
                match step {
                    Step::Set(event, kickoff, betpawa, competitors) => {
                        let mut own = Vec::new();
                        for (bookmaker, markets) in betpawa {
                            next_id += 1;
                            own.push(snapshot(&mut draft, next_id, event, bookmaker, markets));
                        }
                        let mut others = Vec::new();
                        for (source, markets) in competitors {
                            next_id += 1;
                            let source = draft.packer.source(&source.to_string());
                            others.push((source, snapshot(&mut draft, next_id, event, 0, markets)));
                        }
                        if own.is_empty() && others.is_empty() {
                            model.remove(&event);
                        } else {
                            model.insert(event, kickoff);
                        }
                        let header = header(&mut draft, event, kickoff);
                        draft.set(event, header, BetpawaSnapshots::new(own), CompetitorSnapshots::new(others));
                    }
                    Step::Touch(event, at) => touch(&mut draft, event, at),
                    Step::Remove(event) => {
                        prop_assert_eq!(draft.remove(event), model.remove(&event).is_some());
                    }
                    Step::Evict(start) => {
                        let before = model.len();
                        model.retain(|_, kickoff| kickoff.is_none_or(|kickoff| kickoff > start));
                        prop_assert_eq!(draft.evict(Micros(start)), before - model.len());
                    }
                    Step::Rename(number) => rename(&mut draft, number),
                    Step::Publish => {
                        let state = state(&mut draft);
                        let shown = held(&state).iter().map(|event| (event.event_id, event.kickoff)).collect();
                        published.push((state, shown));
                    }
                    Step::Successor => {
                        draft = draft.successor();
                        model.clear();
                    }
                }
                assert_invariants(&mut draft, &model);
            }
            // V1: published states have not changed.
            for (state, shown) in &published {
                let now: Vec<Shown> = held(state).iter().map(|event| (event.event_id, event.kickoff)).collect();
                prop_assert_eq!(&now, shown);
                prop_assert_eq!(state.table.len(), shown.len());
                for (event, _) in shown {
                    prop_assert_eq!(state.event(*event).map(|event| event.event_id), Some(*event));
                }
            }
        }
    }

    proptest! {
        /// D3, as subscribers see it: a change names exactly the events that differ from the last published state.
        #[test]
        fn a_change_names_exactly_what_differs(steps in vec(step(), 1..80)) {
            let mut draft = Draft::default();
            let mut published: BTreeMap<i64, Arc<CachedEvent>> = BTreeMap::new();
            // A snapshot's id follows from its content, so that an event may leave and come back with equal content.
            let id_of = |event: i64, key: i64, markets: u8| (event * 10 + key) * 10 + i64::from(markets);
            for step in steps.into_iter().chain([Step::Publish]) {
                match step {
                    Step::Set(event, kickoff, betpawa, competitors) => {
                        let event = event % 6;
                        let own = betpawa
                            .into_iter()
                            .map(|(key, markets)| snapshot(&mut draft, id_of(event, key, markets), event, key, markets))
                            .collect();
                        let others = competitors
                            .into_iter()
                            .map(|(key, markets)| {
                                let source = draft.packer.source(&key.to_string());
                                (source, snapshot(&mut draft, id_of(event, 5, markets), event, 0, markets))
                            })
                            .collect();
                        let header = header(&mut draft, event, kickoff.map(|kickoff| kickoff % 3 * 40));
                        draft.set(event, header, BetpawaSnapshots::new(own), CompetitorSnapshots::new(others));
                    }
                    Step::Rename(number) => rename(&mut draft, number),
                    Step::Touch(event, at) => touch(&mut draft, event % 6, at),
                    Step::Remove(event) => {
                        draft.remove(event % 6);
                    }
                    Step::Evict(start) => {
                        draft.evict(Micros(start));
                    }
                    Step::Successor => {
                        // A reload that no longer finds every third event.
                        let kept: Vec<_> = draft.table.iter().cloned().collect();
                        let mut next = draft.successor();
                        for event in kept.iter().filter(|event| event.event_id % 3 != 0) {
                            next.set(event.event_id, event.header(), event.betpawa.clone(), event.competitors.clone());
                        }
                        next.replace(&mut draft);
                        draft = next;
                    }
                    Step::Publish => {
                        let change = draft.change(Arc::default(), 1);
                        state(&mut draft);
                        let now: BTreeMap<i64, Arc<CachedEvent>> = draft
                            .table
                            .iter()
                            .map(|event| (event.event_id, Arc::clone(event)))
                            .collect();
                        let ids: BTreeSet<i64> = published.keys().chain(now.keys()).copied().collect();
                        let differ: Vec<i64> = ids
                            .into_iter()
                            .filter(|id| match (published.get(id), now.get(id)) {
                                (Some(a), Some(b)) => !a.same(b),
                                _ => true,
                            })
                            .collect();
                        prop_assert_eq!(change.event_ids(), differ);
                        published = now;
                    }
                }
            }
        }
    }

    /// Processes of different builds compare digests, so a change of the form must be deliberate: it needs a new version
    /// of whatever carries digests from one process to another.
    #[test]
    fn the_digest_is_the_same_in_every_process_and_build() {
        let mut draft = Draft::default();
        rename(&mut draft, 3);
        for event in [7, -7] {
            let own = snapshot(&mut draft, 1, event, 1, 2);
            let other = snapshot(&mut draft, 2, event, 0, 1);
            let source = draft.packer.source("sportybet");
            let header = header(&mut draft, event, Some(1_000_000));
            draft.set(
                event,
                header,
                BetpawaSnapshots::new(vec![own]),
                CompetitorSnapshots::new(vec![(source, other)]),
            );
        }
        assert_eq!(
            format!("{:x}", draft.digest()),
            "8ee49b4b3907a28cf88becdf67ebd507"
        );
        assert_eq!(state(&mut draft).digest, draft.digest());
    }

    #[test]
    fn a_moved_snapshot_belongs_to_its_new_event() {
        let mut draft = Draft::default();
        let put = |draft: &mut Draft, event: i64, ids: &[i64]| {
            let snapshots = ids
                .iter()
                .map(|id| snapshot(draft, *id, event, *id, 1))
                .collect();
            draft.set(
                event,
                None,
                BetpawaSnapshots::new(snapshots),
                CompetitorSnapshots::default(),
            );
        };
        put(&mut draft, 1, &[7, 8]);
        put(&mut draft, 2, &[9]);
        // A snapshot may move before or after its old event loses it.
        put(&mut draft, 2, &[9, 7]);
        put(&mut draft, 1, &[8]);
        assert!(draft.events_of_betpawa_snapshot(7).eq([2]));
        put(&mut draft, 2, &[9]);
        put(&mut draft, 1, &[7, 8]);
        assert!(draft.events_of_betpawa_snapshot(7).eq([1]));
        draft.remove(1);
        assert_eq!(draft.events_of_betpawa_snapshot(7).count(), 0);
        assert!(draft.events_of_betpawa_snapshot(9).eq([2]));
    }

    #[test]
    fn pages_are_freed_with_their_events() {
        let mut draft = Draft::default();
        for round in 0..50 {
            for event in 0..20 {
                let snapshot = snapshot(&mut draft, round * 20 + event, event + round * 100, 1, 0);
                draft.set(
                    event + round * 100,
                    Some(Micros(round)),
                    BetpawaSnapshots::new(vec![snapshot]),
                    CompetitorSnapshots::default(),
                );
            }
            assert_eq!(draft.evict(Micros(round)), 20);
            state(&mut draft);
        }
        assert_eq!(draft.table.page_bytes(), 0);
        assert!(draft.kickoffs.is_empty());
    }

    /// Each postponement leaves a stale entry behind. These must not accumulate.
    #[test]
    fn stale_kickoffs_do_not_accumulate() {
        let mut draft = Draft::default();
        for kickoff in 0..10_000 {
            let snapshot = snapshot(&mut draft, 1, 1, 1, 0);
            draft.set(
                1,
                Some(Micros(kickoff)),
                BetpawaSnapshots::new(vec![snapshot]),
                CompetitorSnapshots::default(),
            );
            state(&mut draft);
        }
        assert!(draft.kickoffs.len() < 100, "{}", draft.kickoffs.len());
    }
}
