//! The keys of a table whose rows must be read again.
//!
//! # Invariants
//! - F3: A set contains every key that was added to it. If it grows too large, it becomes coarser, and never smaller.

use std::collections::BTreeSet;

/// A block of snapshot ids is all that are equal in the bits above these: 1,024 ids. `log_change()` in
/// `sql/install.sql` forms the same blocks.
const BLOCK_BITS: u32 = 10;

/// If more keys than this are named, the set becomes coarser. This bounds memory.
const MOST_NAMED: usize = 100_000;

/// See the [module](self).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    named: BTreeSet<i64>,
    /// Numbers of blocks of ids.
    blocks: BTreeSet<i64>,
    is_all: bool,
}

/// What a set becomes that names too many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coarser {
    Blocks,
    All,
}

impl Keys {
    pub(crate) fn contains(&self, key: i64) -> bool {
        self.is_all || self.named.contains(&key) || self.blocks.contains(&(key >> BLOCK_BITS))
    }

    /// Whether it contains every key.
    pub(crate) fn is_all(&self) -> bool {
        self.is_all
    }

    /// Whether it contains keys that it does not name.
    pub(crate) fn is_coarse(&self) -> bool {
        self.is_all || !self.blocks.is_empty()
    }

    /// The keys that it names one by one.
    pub(crate) fn named(&self) -> &BTreeSet<i64> {
        &self.named
    }

    pub(crate) fn insert(&mut self, key: i64) {
        self.named.insert(key);
    }

    /// Adds keys, and becomes `coarser` if they are too many.
    pub(crate) fn extend(&mut self, keys: Vec<i64>, coarser: Coarser) {
        // A merge visits every key of the set once, and is faster for many keys. For few, single inserts are faster.
        match keys.len() * 8 > self.named.len() {
            true => self.named.append(&mut keys.into_iter().collect()),
            false => self.named.extend(keys),
        }
        if self.named.len() > MOST_NAMED {
            match coarser {
                Coarser::All => self.add_all(),
                Coarser::Blocks => {
                    let named = std::mem::take(&mut self.named);
                    self.add_blocks(named.into_iter().map(|key| key >> BLOCK_BITS));
                }
            }
        }
    }

    /// Adds all keys of blocks.
    pub(crate) fn add_blocks(&mut self, blocks: impl IntoIterator<Item = i64>) {
        self.blocks.extend(blocks);
        if self.blocks.len() > MOST_NAMED {
            self.add_all();
        }
    }

    /// Adds every key.
    pub(crate) fn add_all(&mut self) {
        *self = Keys {
            is_all: true,
            ..Keys::default()
        };
    }
}

#[cfg(test)]
impl<const N: usize> From<[i64; N]> for Keys {
    fn from(keys: [i64; N]) -> Keys {
        let named = BTreeSet::from(keys);
        Keys {
            named,
            ..Keys::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// F3, also beyond the bounds: the keys lie so far apart that each is in a block of its own.
        #[test]
        fn a_set_contains_every_key_that_was_added(
            steps in proptest::collection::vec((any::<i32>(), 1_usize..60_000, 0_u32..20, any::<bool>(), 0_u8..3), 1..6)
        ) {
            let mut keys = Keys::default();
            let mut added = Vec::new();
            for (first, count, distance, blocks, how) in steps {
                let ids = (0..count).map(|n| i64::from(first) + ((n as i64) << distance));
                added.extend([ids.clone().next(), ids.clone().next_back()].into_iter().flatten());
                let coarser = if blocks { Coarser::Blocks } else { Coarser::All };
                match how {
                    0 => ids.for_each(|id| keys.insert(id)),
                    1 => keys.extend(ids.collect(), coarser),
                    _ => keys.add_blocks(ids.map(|id| id >> BLOCK_BITS)),
                }
                for id in &added {
                    prop_assert!(keys.contains(*id), "{id}");
                }
                prop_assert!(keys.named.len() + keys.blocks.len() <= 4 * MOST_NAMED);
            }
        }
    }

    #[test]
    fn a_set_contains_only_what_was_added() {
        let mut keys = Keys::from([7]);
        assert!(keys.contains(7) && !keys.contains(8) && !keys.is_coarse());
        keys.add_blocks([2, -1]);
        for (key, is_in) in [
            (2047, false),
            (2048, true),
            (3071, true),
            (3072, false),
            (-1, true),
            (-1024, true),
            (0, false),
        ] {
            assert_eq!(keys.contains(key), is_in, "{key}");
        }
        assert!(keys.is_coarse() && !keys.is_all());
        keys.add_all();
        assert!(keys.contains(i64::MIN) && keys.is_all() && keys.named().is_empty());
    }
}
