//! Event id -> event: the one structure that lookups go through.
//!
//! PostgreSQL assigns ids in ascending order, so events that are held at the same time have neighbouring ids.
//! Thirty-two neighbouring ids share a page, and a hash table finds the pages:
//!
//! - A lookup visits one slot of the hash table and one slot of a page.
//! - A copy of the table counts one reference per page.
//! - A change copies only the pages that it touches.
//! - A walk goes through memory mostly in sequence.
//!
//! `hashbrown` alone would give neither the cheap copy nor the order.
//!
//! # Invariants
//! - T1: Between a page's home slot and the slot that it has, no slot is empty (linear probing). So a search may end at
//!   an empty slot.
//! - T2: At most half of the slots are taken, so every search reaches an empty one.
//! - T3: A page that another table shares is copied before it is written to.
//! - T4: Each page holds at least one event.

use std::{mem::size_of, ops::RangeBounds, sync::Arc};

use crate::model::CachedEvent;

/// Ids that differ only in this many low bits share a page.
const PAGE_BITS: u32 = 5;
const PAGE: usize = 1 << PAGE_BITS;

type Events = [Option<Arc<CachedEvent>>; PAGE];

#[derive(Debug, Clone)]
struct Page {
    /// The part that all ids of the page have in common: all but the low bits.
    number: i64,
    events: Arc<Events>,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The slots of the hash table: none, or a power of two.
    pages: Box<[Option<Page>]>,
    /// How far to shift a hash so that it becomes the number of a slot.
    shift: u32,
    taken: usize,
    len: usize,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            pages: Box::default(),
            shift: u64::BITS - 1,
            taken: 0,
            len: 0,
        }
    }
}

/// The number of an id's page, and the position in that page.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn page_and_position(event_id: i64) -> (i64, usize) {
    (event_id >> PAGE_BITS, event_id as usize % PAGE)
}

impl Table {
    pub(crate) fn get(&self, event_id: i64) -> Option<&Arc<CachedEvent>> {
        let (number, at) = page_and_position(event_id);
        let mut slot = self.home(number);
        loop {
            // An empty table has no slot at all.
            let page = self.pages.get(slot)?.as_ref()?;
            if page.number == number {
                return page.events[at].as_ref();
            }
            slot = self.next_slot(slot);
        }
    }

    /// Returns the event that was there before.
    pub(crate) fn insert(&mut self, event: Arc<CachedEvent>) -> Option<Arc<CachedEvent>> {
        let (number, at) = page_and_position(event.event_id);
        let slot = match self.find(number) {
            Some(slot) => slot,
            None => self.insert_page(number),
        };
        let old = self.write(slot, at, Some(event));
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove(&mut self, event_id: i64) -> Option<Arc<CachedEvent>> {
        let (number, at) = page_and_position(event_id);
        let slot = self.find(number)?;
        // Look before copying: removing an absent event must not copy the page (T3).
        self.pages[slot].as_ref()?.events[at].as_ref()?;
        let removed = self.write(slot, at, None);
        self.len -= 1;
        let page = self.pages[slot].as_ref();
        if page.is_some_and(|page| page.events.iter().all(Option::is_none)) {
            self.remove_page(slot);
        }
        removed
    }

    /// How many events there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All events, mostly ordered by id within a page.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<CachedEvent>> {
        let pages = self.pages.iter().flatten();
        pages.flat_map(|page| page.events.iter()).flatten()
    }

    /// The ids of all events within a range, in no particular order. Looks at each page, and into those in the range.
    pub(crate) fn ids_in(&self, range: impl RangeBounds<i64>) -> impl Iterator<Item = i64> {
        let pages = self.pages.iter().flatten();
        let ids = pages.flat_map(|page| {
            let first = page.number << PAGE_BITS;
            // Not `first..`: that would overflow behind the greatest id.
            let held = page.events.iter().zip(first..=first | (PAGE as i64 - 1));
            held.filter_map(|(event, id)| event.as_ref().map(|_| id))
        });
        ids.filter(move |id| range.contains(id))
    }

    /// The ids of the events that the two tables do not share, in no particular order, some of them twice. Compares one
    /// address for each page that they share.
    #[cfg(feature = "nats")]
    pub(crate) fn differing(&self, other: &Table) -> Vec<i64> {
        let mut ids = Vec::new();
        for (one, two) in [(self, other), (other, self)] {
            for page in one.pages.iter().flatten() {
                let found = two.find(page.number);
                let same = found.and_then(|slot| two.pages[slot].as_ref());
                if same.is_some_and(|same| Arc::ptr_eq(&same.events, &page.events)) {
                    continue;
                }
                for event in page.events.iter().flatten() {
                    let held = two.get(event.event_id);
                    if !held.is_some_and(|held| Arc::ptr_eq(held, event)) {
                        ids.push(event.event_id);
                    }
                }
            }
        }
        ids
    }

    /// Bytes that the pages requested from the allocator.
    pub(crate) fn page_bytes(&self) -> usize {
        self.taken * (size_of::<Events>() + 2 * size_of::<usize>())
    }

    /// Bytes that the hash table requested from the allocator. Unlike the pages, each copy of the table has its own.
    pub(crate) fn list_bytes(&self) -> usize {
        size_of_val(&*self.pages)
    }

    // The upper bits of the product depend on all bits of the number, so no regular pattern of ids makes pages collide.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn home(&self, number: i64) -> usize {
        ((number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    fn next_slot(&self, slot: usize) -> usize {
        (slot + 1) & (self.pages.len() - 1)
    }

    fn find(&self, number: i64) -> Option<usize> {
        let mut slot = self.home(number);
        while self.pages.get(slot)?.as_ref()?.number != number {
            slot = self.next_slot(slot);
        }
        Some(slot)
    }

    /// Writes to a page, after copying it if another table shares it (T3). Returns what was there.
    fn write(
        &mut self,
        slot: usize,
        at: usize,
        event: Option<Arc<CachedEvent>>,
    ) -> Option<Arc<CachedEvent>> {
        let page = self.pages[slot].as_mut()?;
        std::mem::replace(&mut Arc::make_mut(&mut page.events)[at], event)
    }

    /// Adds an empty page and returns its slot. Grows the table first if it would become more than half full (T2).
    fn insert_page(&mut self, number: i64) -> usize {
        if (self.taken + 1) * 2 > self.pages.len() {
            self.resize((self.pages.len() * 2).max(4));
        }
        self.taken += 1;
        let events = Arc::default();
        self.place_page(Page { number, events })
    }

    /// Puts a page into the first empty slot from its home slot on (T1).
    fn place_page(&mut self, page: Page) -> usize {
        let mut slot = self.home(page.number);
        while self.pages[slot].is_some() {
            slot = self.next_slot(slot);
        }
        self.pages[slot] = Some(page);
        slot
    }

    /// Removes a page and closes the gap: moves back every later page that linear probing had pushed past it (T1).
    fn remove_page(&mut self, mut hole: usize) {
        self.pages[hole] = None;
        self.taken -= 1;
        let mut slot = self.next_slot(hole);
        while let Some(page) = &self.pages[slot] {
            // Move the page only if the hole lies between its home slot and its slot; otherwise a search for it would
            // miss it. Distances wrap around the end of the table.
            let from_home = |to: usize| to.wrapping_sub(self.home(page.number));
            let mask = self.pages.len() - 1;
            if from_home(hole) & mask < from_home(slot) & mask {
                self.pages.swap(hole, slot);
                hole = slot;
            }
            slot = self.next_slot(slot);
        }
        if self.taken * 8 < self.pages.len() && self.pages.len() > 4 {
            self.resize(self.pages.len() / 2);
        }
    }

    /// Moves all pages to a hash table of another size.
    fn resize(&mut self, slots: usize) {
        let pages = std::mem::replace(&mut self.pages, (0..slots).map(|_| None).collect());
        self.shift = u64::BITS - slots.trailing_zeros();
        for page in pages.into_iter().flatten() {
            self.place_page(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ops::Bound};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::model::Micros;

    fn event(event_id: i64, version: i64) -> Arc<CachedEvent> {
        Arc::new(CachedEvent::new(
            event_id,
            Some(Micros(version)),
            Default::default(),
            Default::default(),
        ))
    }

    fn version(event: &Arc<CachedEvent>) -> i64 {
        event.kickoff.expect("a version").0
    }

    fn versions(table: &Table) -> BTreeMap<i64, i64> {
        let pairs = table.iter().map(|event| (event.event_id, version(event)));
        pairs.collect()
    }

    /// Checks T1, T2 and T4, and that a lookup finds every event.
    fn assert_sound(table: &Table) {
        let mut pages = 0;
        for (slot, page) in table.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            pages += 1;
            let mut passed = table.home(page.number);
            while passed != slot {
                assert!(table.pages[passed].is_some(), "T1");
                passed = table.next_slot(passed);
            }
            assert!(page.events.iter().any(Option::is_some), "T4");
        }
        assert_eq!(pages, table.taken);
        assert!(pages * 2 <= table.pages.len(), "T2");
        assert!(pages * 8 >= table.pages.len() || table.pages.len() <= 4);
        assert_eq!(table.iter().count(), table.len());
        for event in table.iter() {
            let found = table.get(event.event_id).expect("what is there is found");
            assert!(Arc::ptr_eq(found, event));
        }
    }

    proptest! {
        /// The table behaves like a map, and copies taken on the way never change (T3).
        #[test]
        fn behaves_like_a_map_whose_copies_do_not_change(
            steps in vec((0..8i64, 0..64i64, 0..6u8), 0..400),
            stride in prop_oneof![Just(1i64), Just(-7), Just(16), Just(4096), Just(i64::MAX / 70)],
        ) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut copies = Vec::new();
            for (step, id, what) in steps {
                let id = (id - 20) * stride;
                match what {
                    0 | 1 => {
                        let removed = table.remove(id);
                        prop_assert_eq!(removed.as_ref().map(version), model.remove(&id));
                    }
                    2 if step == 0 => copies.push((table.clone(), model.clone())),
                    _ => {
                        let replaced = table.insert(event(id, step));
                        prop_assert_eq!(replaced.as_ref().map(version), model.insert(id, step));
                    }
                }
                assert_sound(&table);
                for id in -20..44 {
                    prop_assert_eq!(table.get(id * stride).is_some(), model.contains_key(&(id * stride)));
                }
            }
            prop_assert_eq!(versions(&table), model);
            for (copy, model) in copies {
                prop_assert_eq!(versions(&copy), model);
            }
        }
    }

    #[test]
    fn no_pattern_of_ids_makes_pages_collide() {
        for stride in [1, 16, 1_024, 1 << 20, 1 << 40, -48] {
            let mut table = Table::default();
            for id in 0..5_000 {
                table.insert(event(id * stride, 1));
            }
            assert_sound(&table);
            let mut worst = 0;
            for (slot, page) in table.pages.iter().enumerate() {
                let home = page.as_ref().map_or(slot, |page| table.home(page.number));
                worst = worst.max(slot.wrapping_sub(home) & (table.pages.len() - 1));
            }
            assert!(worst < 64, "{stride}: {worst}");
            for id in 0..5_000 {
                table.remove(id * stride);
            }
            assert_eq!((table.len(), table.pages.len()), (0, 4));
        }
    }

    /// The list of ids overflowed on the page of the greatest id.
    #[test]
    fn the_ids_in_a_range_are_listed_to_the_very_ends() {
        let mut table = Table::default();
        let all = [i64::MIN, -33, -1, 0, 31, 32, 5_000, i64::MAX - 1, i64::MAX];
        for id in all {
            table.insert(event(id, 1));
        }
        let listed = |range: (Bound<i64>, Bound<i64>)| {
            let mut ids: Vec<i64> = table.ids_in(range).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(listed((Bound::Unbounded, Bound::Unbounded)), all);
        let between = (Bound::Excluded(-33), Bound::Included(32));
        assert_eq!(listed(between), [-1, 0, 31, 32]);
        let last = (Bound::Excluded(i64::MAX - 1), Bound::Unbounded);
        assert_eq!(listed(last), [i64::MAX]);
    }

    /// Removing an absent event must not copy its page.
    #[test]
    fn removing_an_absent_event_copies_nothing() {
        let mut table = Table::default();
        table.insert(event(1, 1));
        let copy = table.clone();
        assert!(table.remove(2).is_none() && table.remove(100).is_none());
        let page = |table: &Table| {
            Arc::as_ptr(&table.pages.iter().flatten().next().expect("a page").events)
        };
        assert_eq!(page(&table), page(&copy));
    }
}
