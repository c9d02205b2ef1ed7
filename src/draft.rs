//! The next state, private to the one writer: changes are applied here, then published whole.
//!
//! | invariant | |
//! |---|---|
//! | D1 | after every change the totals and owners equal what a walk over all events would give |
//! | D2 | each held event is in `kickoffs` under its current kickoff, if it has one |

use std::{cmp::Reverse, collections::BinaryHeap, mem::size_of, sync::Arc, time::Instant};

use hashbrown::HashMap;

use crate::{
    model::{BetpawaSnapshots, CachedEvent, CachedSnapshot, CompetitorSnapshots, Micros},
    pack::Packer,
    stats::{Stats, WarmupStats},
    view::{CHUNK, Chunk, Cut, Index, Proof, State},
};

/// The draft. Everything but `packer` changes only through its methods.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    index: Arc<Index>,
    chunks: Vec<Arc<Chunk>>,
    free: Vec<u32>,
    /// Which event shows a snapshot: a change of its markets names only the snapshot.
    betpawa_owners: HashMap<i64, i64>,
    competitor_owners: HashMap<i64, i64>,
    /// Events by kickoff, the earliest on top. Entries whose event has gone or moved are stale, and skipped.
    kickoffs: BinaryHeap<Reverse<(Micros, i64)>>,
    totals: Stats,
    event_bytes: usize,
    pub(crate) packer: Packer,
}

impl Draft {
    pub(crate) fn event(&self, event_id: i64) -> Option<&Arc<CachedEvent>> {
        let slot = *self.index.get(&event_id)? as usize;
        self.chunks.get(slot / CHUNK)?[slot % CHUNK].as_ref()
    }

    /// How many events are held.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The event that shows a snapshot of `odds_snapshots`.
    pub(crate) fn betpawa_owner(&self, snapshot_id: i64) -> Option<i64> {
        self.betpawa_owners.get(&snapshot_id).copied()
    }

    /// The event that shows a snapshot of `competitor_odds_snapshots`.
    pub(crate) fn competitor_owner(&self, snapshot_id: i64) -> Option<i64> {
        self.competitor_owners.get(&snapshot_id).copied()
    }

    /// An empty draft that takes over the interned names of this one, which keeps all else and can take them back.
    pub(crate) fn successor(&mut self) -> Draft {
        Draft {
            packer: std::mem::take(&mut self.packer),
            ..Draft::default()
        }
    }

    /// Sets what an event holds from now on; without any snapshot it is absent.
    pub(crate) fn set(
        &mut self,
        event_id: i64,
        kickoff: Option<Micros>,
        betpawa: BetpawaSnapshots,
        competitors: CompetitorSnapshots,
    ) {
        if betpawa.is_empty() && competitors.is_empty() {
            self.remove(event_id);
            return;
        }
        let event = Arc::new(CachedEvent {
            event_id,
            kickoff,
            betpawa,
            competitors,
        });
        let old = self.event(event_id).cloned();
        if let Some(old) = &old {
            self.forget(old);
        }
        self.count(&event);
        if let Some(kickoff) = kickoff
            && old.as_ref().is_none_or(|old| old.kickoff != Some(kickoff))
        {
            self.kickoffs.push(Reverse((kickoff, event_id)));
        }
        let slot = match self.index.get(&event_id) {
            Some(slot) => *slot,
            None => self.claim(event_id),
        };
        self.write(slot, Some(event));
    }

    /// Removes an event; says whether it was there.
    pub(crate) fn remove(&mut self, event_id: i64) -> bool {
        let Some(old) = self.event(event_id).cloned() else {
            return false;
        };
        self.forget(&old);
        if let Some(slot) = Arc::make_mut(&mut self.index).remove(&event_id) {
            self.write(slot, None);
            self.free.push(slot);
        }
        true
    }

    /// Removes all events with a kickoff at or before `window_start`; says how many.
    pub(crate) fn evict(&mut self, window_start: Micros) -> usize {
        let mut evicted = 0;
        while let Some(Reverse((kickoff, event_id))) = self.kickoffs.peek().copied() {
            if kickoff > window_start {
                break;
            }
            self.kickoffs.pop();
            if self
                .event(event_id)
                .is_some_and(|event| event.kickoff == Some(kickoff))
            {
                evicted += usize::from(self.remove(event_id));
            }
        }
        evicted
    }

    fn claim(&mut self, event_id: i64) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            let first = self.chunks.len() * CHUNK;
            self.chunks.push(Arc::default());
            // Four thousand million events would not fit into memory.
            let first = u32::try_from(first).unwrap_or(u32::MAX);
            self.free.extend((first + 1..first + CHUNK as u32).rev());
            first
        });
        Arc::make_mut(&mut self.index).insert(event_id, slot);
        slot
    }

    /// Copies the chunk first if a view shares it (V1).
    fn write(&mut self, slot: u32, event: Option<Arc<CachedEvent>>) {
        let slot = slot as usize;
        Arc::make_mut(&mut self.chunks[slot / CHUNK])[slot % CHUNK] = event;
    }

    fn count(&mut self, event: &CachedEvent) {
        self.totals.betpawa_events += usize::from(!event.betpawa.is_empty());
        self.totals.competitor_events += usize::from(!event.competitors.is_empty());
        for body in event.bodies() {
            self.totals.total_snapshots += 1;
            self.totals.total_markets += body.market_count();
            self.totals.malformed_rows += body.malformed_rows();
        }
        self.event_bytes += event.heap_bytes();
        self.betpawa_owners.extend(
            event
                .betpawa
                .iter()
                .map(|(_, snapshot)| (snapshot.snapshot_id, event.event_id)),
        );
        let owners = event
            .competitors
            .iter()
            .map(|(_, snapshot)| (snapshot.snapshot_id, event.event_id));
        self.competitor_owners.extend(owners);
    }

    fn forget(&mut self, event: &CachedEvent) {
        self.totals.betpawa_events -= usize::from(!event.betpawa.is_empty());
        self.totals.competitor_events -= usize::from(!event.competitors.is_empty());
        for body in event.bodies() {
            self.totals.total_snapshots -= 1;
            self.totals.total_markets -= body.market_count();
            self.totals.malformed_rows -= body.malformed_rows();
        }
        self.event_bytes -= event.heap_bytes();
        // A snapshot may have moved to another event, which is then its owner and stays so.
        let owned_by = |owners: &mut HashMap<i64, i64>, snapshot: &CachedSnapshot| {
            if owners.get(&snapshot.snapshot_id) == Some(&event.event_id) {
                owners.remove(&snapshot.snapshot_id);
            }
        };
        event
            .betpawa
            .iter()
            .for_each(|(_, snapshot)| owned_by(&mut self.betpawa_owners, snapshot));
        event
            .competitors
            .iter()
            .for_each(|(_, snapshot)| owned_by(&mut self.competitor_owners, snapshot));
    }

    /// What it holds and weighs now. `last_warmup` is not its to say.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            memory_bytes: self.heap_bytes(),
            ..self.totals.clone()
        }
    }

    fn heap_bytes(&self) -> usize {
        self.event_bytes
            + self.packer.heap_bytes()
            + self.index.allocation_size()
            + self.chunks.len() * (size_of::<Chunk>() + 2 * size_of::<usize>())
            // The draft's own list of chunks, and the published view's.
            + (self.chunks.capacity() + self.chunks.len()) * size_of::<Arc<Chunk>>()
            + self.free.capacity() * size_of::<u32>()
            + self.betpawa_owners.allocation_size()
            + self.competitor_owners.allocation_size()
            + self.kickoffs.capacity() * size_of::<(Micros, i64)>()
    }

    /// The state to publish. The next change to the draft copies what it touches.
    pub(crate) fn state(
        &mut self,
        cut: Cut,
        epoch: u64,
        proven: Instant,
        last_warmup: Option<WarmupStats>,
    ) -> State {
        self.packer.sweep();
        if self.kickoffs.len() > 2 * self.index.len() + 64 {
            let current = self.chunks.iter().flat_map(|chunk| chunk.iter()).flatten();
            self.kickoffs = current
                .filter_map(|event| Some(Reverse((event.kickoff?, event.event_id))))
                .collect();
        }
        State {
            index: Arc::clone(&self.index),
            chunks: self.chunks.as_slice().into(),
            epoch,
            stats: Stats {
                last_warmup,
                ..self.stats()
            },
            proof: Proof::new(cut, proven),
        }
    }
}
