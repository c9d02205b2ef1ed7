//! Finds the events that show a snapshot. A log row about a snapshot's markets names only the snapshot.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Pairs of snapshot id and event id. Nearly always one event per snapshot. Two events may share an id: the primary key
/// of `odds_snapshots` is `id` and `captured_at`, so the database allows two rows with one id.
#[derive(Debug, Default)]
pub(crate) struct SnapshotIndex {
    pairs: HashTable<(i64, i64)>,
    build: DefaultHashBuilder,
}

impl SnapshotIndex {
    pub(crate) fn insert(&mut self, snapshot_id: i64, event_id: i64) {
        let SnapshotIndex { pairs, build } = self;
        let pair = (snapshot_id, event_id);
        let entry = pairs.entry(
            build.hash_one(snapshot_id),
            |other| *other == pair,
            |(id, _)| build.hash_one(id),
        );
        entry.or_insert(pair);
    }

    pub(crate) fn remove(&mut self, snapshot_id: i64, event_id: i64) {
        let hash = self.build.hash_one(snapshot_id);
        if let Ok(entry) = self
            .pairs
            .find_entry(hash, |pair| *pair == (snapshot_id, event_id))
        {
            entry.remove();
        }
    }

    /// The events that show a snapshot. Allocates nothing.
    pub(crate) fn get(&self, snapshot_id: i64) -> impl Iterator<Item = i64> {
        let pairs = self.pairs.iter_hash(self.build.hash_one(snapshot_id));
        pairs
            .filter(move |(id, _)| *id == snapshot_id)
            .map(|(_, event_id)| *event_id)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.pairs.allocation_size()
    }

    #[cfg(test)]
    pub(crate) fn pairs(&self) -> std::collections::BTreeSet<(i64, i64)> {
        self.pairs.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_events_may_show_one_snapshot_id() {
        let mut index = SnapshotIndex::default();
        for (snapshot_id, event_id) in [(1, 10), (1, 11), (1, 10), (2, 10)] {
            index.insert(snapshot_id, event_id);
        }
        index.remove(1, 10);
        assert_eq!(index.get(1).collect::<Vec<_>>(), [11]);
        assert_eq!(index.get(2).collect::<Vec<_>>(), [10]);
        assert_eq!(index.get(3).count(), 0);
    }
}
