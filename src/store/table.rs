//! Event id -> event: the one structure that look-ups go through.
//!
//! Ids are given out in order and events come and go in order, so neighbours in time are neighbours in id: thirty-two
//! neighbouring ids share a page, and the pages are in a hash table of their own. A look-up is one entry of that table and
//! one place of a page away from the event, a copy of the table costs a reference a page, a change copies the pages it
//! touches, and a walk goes through memory much as it was filled. `hashbrown` has neither the sharing nor the order.
//!
//! | invariant | |
//! |---|---|
//! | T1 | between the home of a page and its place there is no empty place (linear probing), so a search ends at the first one |
//! | T2 | at most half of the places are taken, so there is an empty one |
//! | T3 | a page that another table shares is copied before it is written to |
//! | T4 | each page holds an event |

use std::{mem::size_of, sync::Arc};

use crate::model::CachedEvent;

/// Ids that differ in the lowest bits only share a page.
const PAGE_BITS: u32 = 5;
const PAGE: usize = 1 << PAGE_BITS;

type Events = [Option<Arc<CachedEvent>>; PAGE];

#[derive(Debug, Clone)]
struct Page {
    /// What the ids have in common: all but the lowest bits.
    number: i64,
    events: Arc<Events>,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// A power of two of places, or none.
    pages: Box<[Option<Page>]>,
    /// How far to shift a hash so that it is a place.
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

/// Page and place in it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn split(event_id: i64) -> (i64, usize) {
    (event_id >> PAGE_BITS, event_id as usize % PAGE)
}

impl Table {
    pub(crate) fn get(&self, event_id: i64) -> Option<&Arc<CachedEvent>> {
        let (number, at) = split(event_id);
        let mut place = self.home(number);
        loop {
            // Of an empty table there is no place.
            let page = self.pages.get(place)?.as_ref()?;
            if page.number == number {
                return page.events[at].as_ref();
            }
            place = self.after(place);
        }
    }

    /// Returns the event that it takes the place of.
    pub(crate) fn insert(&mut self, event: Arc<CachedEvent>) -> Option<Arc<CachedEvent>> {
        let (number, at) = split(event.event_id);
        let place = match self.find(number) {
            Some(place) => place,
            None => self.claim(number),
        };
        let old = self.put(place, at, Some(event));
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove(&mut self, event_id: i64) -> Option<Arc<CachedEvent>> {
        let (number, at) = split(event_id);
        let place = self.find(number)?;
        // Nothing is copied for an event that is not there.
        self.pages[place].as_ref()?.events[at].as_ref()?;
        let removed = self.put(place, at, None);
        self.len -= 1;
        let page = self.pages[place].as_ref();
        if page.is_some_and(|page| page.events.iter().all(Option::is_none)) {
            self.give_up(place);
        }
        removed
    }

    /// How many events there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All events, neighbours in id mostly one after the other.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<CachedEvent>> {
        let pages = self.pages.iter().flatten();
        pages.flat_map(|page| page.events.iter()).flatten()
    }

    /// Bytes asked of the allocator for the pages.
    pub(crate) fn page_bytes(&self) -> usize {
        self.taken * (size_of::<Events>() + 2 * size_of::<usize>())
    }

    /// Bytes asked of the allocator for the list of pages, of which each copy has its own.
    pub(crate) fn list_bytes(&self) -> usize {
        size_of_val(&*self.pages)
    }

    // The upper bits of the product depend on all bits of the number, so no pattern in the ids crowds pages together.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn home(&self, number: i64) -> usize {
        ((number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.pages.len() - 1)
    }

    fn find(&self, number: i64) -> Option<usize> {
        let mut place = self.home(number);
        while self.pages.get(place)?.as_ref()?.number != number {
            place = self.after(place);
        }
        Some(place)
    }

    /// T3.
    fn put(
        &mut self,
        place: usize,
        at: usize,
        event: Option<Arc<CachedEvent>>,
    ) -> Option<Arc<CachedEvent>> {
        let page = self.pages[place].as_mut()?;
        std::mem::replace(&mut Arc::make_mut(&mut page.events)[at], event)
    }

    /// A place for a page that has none.
    fn claim(&mut self, number: i64) -> usize {
        if (self.taken + 1) * 2 > self.pages.len() {
            self.resize((self.pages.len() * 2).max(4));
        }
        self.taken += 1;
        let events = Arc::default();
        self.settle(Page { number, events })
    }

    /// Puts a page at the first empty place from its home on.
    fn settle(&mut self, page: Page) -> usize {
        let mut place = self.home(page.number);
        while self.pages[place].is_some() {
            place = self.after(place);
        }
        self.pages[place] = Some(page);
        place
    }

    /// Removes a page; whoever was pushed beyond it moves up (T1).
    fn give_up(&mut self, mut hole: usize) {
        self.pages[hole] = None;
        self.taken -= 1;
        let mut place = self.after(hole);
        while let Some(page) = &self.pages[place] {
            let from_home = |to: usize| to.wrapping_sub(self.home(page.number));
            let mask = self.pages.len() - 1;
            if from_home(hole) & mask < from_home(place) & mask {
                self.pages.swap(hole, place);
                hole = place;
            }
            place = self.after(place);
        }
        if self.taken * 8 < self.pages.len() && self.pages.len() > 4 {
            self.resize(self.pages.len() / 2);
        }
    }

    fn resize(&mut self, places: usize) {
        let pages = std::mem::replace(&mut self.pages, (0..places).map(|_| None).collect());
        self.shift = u64::BITS - places.trailing_zeros();
        for page in pages.into_iter().flatten() {
            self.settle(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::model::Micros;

    fn event(event_id: i64, version: i64) -> Arc<CachedEvent> {
        Arc::new(CachedEvent {
            event_id,
            kickoff: Some(Micros(version)),
            betpawa: Default::default(),
            competitors: Default::default(),
        })
    }

    fn version(event: &Arc<CachedEvent>) -> i64 {
        event.kickoff.expect("a version").0
    }

    fn versions(table: &Table) -> BTreeMap<i64, i64> {
        let pairs = table.iter().map(|event| (event.event_id, version(event)));
        pairs.collect()
    }

    /// T1, T2 and T4, and that all is found.
    fn assert_sound(table: &Table) {
        let mut pages = 0;
        for (place, page) in table.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            pages += 1;
            let mut passed = table.home(page.number);
            while passed != place {
                assert!(table.pages[passed].is_some(), "T1");
                passed = table.after(passed);
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
        /// Beside a map; copies taken on the way stay as they were (T3).
        #[test]
        fn is_a_map_whose_copies_do_not_change(
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
    fn no_pattern_crowds_pages_together() {
        for stride in [1, 16, 1_024, 1 << 20, 1 << 40, -48] {
            let mut table = Table::default();
            for id in 0..5_000 {
                table.insert(event(id * stride, 1));
            }
            assert_sound(&table);
            let mut worst = 0;
            for (place, page) in table.pages.iter().enumerate() {
                let home = page.as_ref().map_or(place, |page| table.home(page.number));
                worst = worst.max(place.wrapping_sub(home) & (table.pages.len() - 1));
            }
            assert!(worst < 64, "{stride}: {worst}");
            for id in 0..5_000 {
                table.remove(id * stride);
            }
            assert_eq!((table.len(), table.pages.len()), (0, 4));
        }
    }

    /// A removal must not copy a page that it does not change.
    #[test]
    fn nothing_is_copied_for_what_is_not_there() {
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
