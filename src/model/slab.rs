use std::{hash::BuildHasher, sync::Arc};

use hashbrown::HashTable;

/// Equal values once, each in a numbered place that stays its own until it is removed.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Place<T>>,
    by_hash: HashTable<u32>,
    /// The first of the free places, each of which names the next one.
    free: u32,
    pointee_bytes: usize,
}

#[derive(Debug)]
enum Place<T> {
    Held(Held<T>),
    Free(u32),
}

#[derive(Debug)]
struct Held<T> {
    value: Arc<T>,
    next: [u32; 2],
}

/// What goes into [`Slots`].
pub(super) trait Slotted {
    /// The same for equal values. Not kept: places are many, and the table grows seldom.
    fn hash(&self, build: &impl BuildHasher) -> u64;

    /// Bytes asked of the allocator for one of these in an `Arc`, without what it shares.
    fn heap_bytes(&self) -> usize;
}

/// No place: there are never as many.
pub(super) const NONE: u32 = u32::MAX;

/// What is not worth giving back.
const FEW: usize = 64;

/// Gives back most of a table of which little is in use; the room left lasts until twice as much is held.
pub(super) fn shrink_table<T>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) {
    if table.capacity() > FEW && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len(), hash);
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots {
            places: Vec::new(),
            by_hash: HashTable::new(),
            free: NONE,
            pointee_bytes: 0,
        }
    }
}

impl<T: Slotted> Slots<T> {
    fn held(&self, place: u32) -> Option<&Held<T>> {
        match self.places.get(place as usize)? {
            Place::Held(held) => Some(held),
            Place::Free(_) => None,
        }
    }

    pub(super) fn get(&self, place: u32) -> Option<&Arc<T>> {
        self.held(place).map(|held| &held.value)
    }

    /// What [`Slots::set_next`] said of a place, if it still holds what it did.
    pub(super) fn next(&self, place: u32) -> [u32; 2] {
        self.held(place).map_or([NONE; 2], |held| held.next)
    }

    pub(super) fn set_next(&mut self, place: u32, next: [u32; 2]) {
        if let Some(Place::Held(held)) = self.places.get_mut(place as usize) {
            held.next = next;
        }
    }

    pub(super) fn find(&self, hash: u64, mut equal: impl FnMut(&Arc<T>) -> bool) -> Option<u32> {
        let found = self.by_hash.find(hash, |place| {
            self.held(*place).is_some_and(|held| equal(&held.value))
        });
        found.copied()
    }

    pub(super) fn insert(&mut self, hash: u64, value: T, build: &impl BuildHasher) -> u32 {
        self.pointee_bytes += value.heap_bytes();
        let held = Place::Held(Held {
            value: Arc::new(value),
            next: [NONE; 2],
        });
        let place = match self.places.get_mut(self.free as usize) {
            Some(free) => {
                let place = self.free;
                if let Place::Free(next) = std::mem::replace(free, held) {
                    self.free = next;
                }
                place
            }
            None => {
                if self.places.len() == self.places.capacity() {
                    // By a quarter: twice as many would be half of it empty for long.
                    self.places.reserve_exact(16 + self.places.len() / 4);
                }
                self.places.push(held);
                // 2^32 values would not fit into memory.
                u32::try_from(self.places.len() - 1).unwrap_or(NONE)
            }
        };
        let places = &self.places;
        self.by_hash
            .insert_unique(hash, place, |place| match places.get(*place as usize) {
                Some(Place::Held(held)) => held.value.hash(build),
                _ => 0,
            });
        place
    }

    /// Removes the value of a place if nobody else holds it.
    pub(super) fn remove_unheld(&mut self, place: u32, build: &impl BuildHasher) -> Option<T> {
        let held = self.held(place)?;
        // A count of one cannot rise meanwhile, since only we could clone it (M3).
        if Arc::strong_count(&held.value) > 1 {
            return None;
        }
        let hash = held.value.hash(build);
        if let Ok(found) = self.by_hash.find_entry(hash, |other| *other == place) {
            found.remove();
        }
        let free = Place::Free(std::mem::replace(&mut self.free, place));
        let Place::Held(held) = std::mem::replace(&mut self.places[place as usize], free) else {
            return None;
        };
        let value = Arc::into_inner(held.value)?;
        self.pointee_bytes -= value.heap_bytes();
        Some(value)
    }

    /// Gives back memory after most of what was held has gone. Costs a look while there is nothing to do.
    pub(super) fn shrink(&mut self, build: &impl BuildHasher) {
        let held = self.by_hash.len();
        let places = &mut self.places;
        // Only from the end: a held value keeps its place.
        if places.len() > FEW
            && held < places.len() / 4
            && matches!(places.last(), Some(Place::Free(_)))
        {
            while let Some(Place::Free(_)) = places.last() {
                places.pop();
            }
            places.shrink_to_fit();
            self.free = NONE;
            for (place, slot) in (0..).zip(places.iter_mut()) {
                if let Place::Free(next) = slot {
                    *next = std::mem::replace(&mut self.free, place);
                }
            }
        }
        let places = &self.places;
        shrink_table(&mut self.by_hash, |place| {
            match places.get(*place as usize) {
                Some(Place::Held(held)) => held.value.hash(build),
                _ => 0,
            }
        });
    }

    /// How many places there are, free ones included.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_hash.is_empty() && self.pointee_bytes == 0
    }

    /// Bytes asked of the allocator, all included.
    pub(super) fn heap_bytes(&self) -> usize {
        self.pointee_bytes
            + self.by_hash.allocation_size()
            + self.places.capacity() * size_of::<Place<T>>()
    }
}
