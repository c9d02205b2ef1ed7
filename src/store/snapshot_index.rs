//! Which events show a snapshot: a change of its markets names only the snapshot.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Pairs of snapshot and event. Mostly one to one, but nothing in the database forbids two snapshots of one id: the key
/// of `odds_snapshots` is id and `captured_at`.
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

    /// The events that show a snapshot.
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
    fn a_snapshot_may_be_shown_by_two_events() {
        let mut owners = SnapshotIndex::default();
        for (snapshot_id, event_id) in [(1, 10), (1, 11), (1, 10), (2, 10)] {
            owners.insert(snapshot_id, event_id);
        }
        owners.remove(1, 10);
        assert_eq!(owners.get(1).collect::<Vec<_>>(), [11]);
        assert_eq!(owners.get(2).collect::<Vec<_>>(), [10]);
        assert_eq!(owners.get(3).count(), 0);
    }
}
