use std::{hash::BuildHasher, sync::Arc};

use hashbrown::HashTable;

/// Holds one copy of each distinct value, in a numbered slot that stays the same until the value is removed.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    by_hash: HashTable<u32>,
    /// The first free slot; each free slot names the next one. [`NONE`] if there is none.
    free: u32,
    pointee_bytes: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Held(Held<T>),
    Free(u32),
}

#[derive(Debug)]
struct Held<T> {
    value: Arc<T>,
    next: [u32; 2],
}

/// A value that a [`Slab`] can hold.
pub(super) trait Slotted {
    /// Equal values have equal hashes. The slab does not store the hash: there are many slots, and the table seldom
    /// grows.
    fn hash(&self, build: &impl BuildHasher) -> u64;

    /// Bytes that one value in an `Arc` requested from the allocator, without what it shares.
    fn heap_bytes(&self) -> usize;
}

/// Stands for "no slot". There are never so many slots.
pub(super) const NONE: u32 = u32::MAX;

/// Tables up to this size are not shrunk.
const FEW: usize = 64;

/// Shrinks a table that is mostly empty. The room left is enough for twice as many entries, so it does not grow again
/// at once.
pub(super) fn shrink_table<T>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) {
    if table.capacity() > FEW && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len(), hash);
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab {
            slots: Vec::new(),
            by_hash: HashTable::new(),
            free: NONE,
            pointee_bytes: 0,
        }
    }
}

impl<T: Slotted> Slab<T> {
    fn held(&self, slot: u32) -> Option<&Held<T>> {
        match self.slots.get(slot as usize)? {
            Slot::Held(held) => Some(held),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Arc<T>> {
        self.held(slot).map(|held| &held.value)
    }

    /// The two slots that [`Slab::set_next`] noted for this slot.
    pub(super) fn next(&self, slot: u32) -> [u32; 2] {
        self.held(slot).map_or([NONE; 2], |held| held.next)
    }

    pub(super) fn set_next(&mut self, slot: u32, next: [u32; 2]) {
        if let Some(Slot::Held(held)) = self.slots.get_mut(slot as usize) {
            held.next = next;
        }
    }

    pub(super) fn find(&self, hash: u64, mut equal: impl FnMut(&Arc<T>) -> bool) -> Option<u32> {
        let found = self.by_hash.find(hash, |slot| {
            self.held(*slot).is_some_and(|held| equal(&held.value))
        });
        found.copied()
    }

    pub(super) fn insert(&mut self, hash: u64, value: T, build: &impl BuildHasher) -> u32 {
        self.pointee_bytes += value.heap_bytes();
        let held = Slot::Held(Held {
            value: Arc::new(value),
            next: [NONE; 2],
        });
        let slot = match self.slots.get_mut(self.free as usize) {
            Some(free) => {
                let slot = self.free;
                if let Slot::Free(next) = std::mem::replace(free, held) {
                    self.free = next;
                }
                slot
            }
            None => {
                if self.slots.len() == self.slots.capacity() {
                    // Grow by a quarter: doubling would leave up to half of the memory unused for a long time.
                    self.slots.reserve_exact(16 + self.slots.len() / 4);
                }
                self.slots.push(held);
                // Memory ends long before 2^32 values.
                u32::try_from(self.slots.len() - 1).unwrap_or(NONE)
            }
        };
        let slots = &self.slots;
        self.by_hash
            .insert_unique(hash, slot, |slot| match slots.get(*slot as usize) {
                Some(Slot::Held(held)) => held.value.hash(build),
                _ => 0,
            });
        slot
    }

    /// Removes the value in this slot if nobody else holds it.
    pub(super) fn remove_unheld(&mut self, slot: u32, build: &impl BuildHasher) -> Option<T> {
        let held = self.held(slot)?;
        // A count of one cannot grow meanwhile: only the owner of this slab could clone the `Arc`, and it is borrowed
        // here (M3).
        if Arc::strong_count(&held.value) > 1 {
            return None;
        }
        let hash = held.value.hash(build);
        if let Ok(found) = self.by_hash.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        // Put the freed slot first in the list of free slots.
        let free = Slot::Free(std::mem::replace(&mut self.free, slot));
        let Slot::Held(held) = std::mem::replace(&mut self.slots[slot as usize], free) else {
            return None;
        };
        let value = Arc::into_inner(held.value)?;
        self.pointee_bytes -= value.heap_bytes();
        Some(value)
    }

    /// Gives back memory after most values have gone. Cheap if there is nothing to do.
    pub(super) fn shrink(&mut self, build: &impl BuildHasher) {
        let held = self.by_hash.len();
        let slots = &mut self.slots;
        // Only slots at the end can go: a value must keep its number.
        if slots.len() > FEW
            && held < slots.len() / 4
            && matches!(slots.last(), Some(Slot::Free(_)))
        {
            while let Some(Slot::Free(_)) = slots.last() {
                slots.pop();
            }
            slots.shrink_to_fit();
            // The list of free slots may name slots that are gone. Link the remaining ones anew.
            self.free = NONE;
            for (number, slot) in (0..).zip(slots.iter_mut()) {
                if let Slot::Free(next) = slot {
                    *next = std::mem::replace(&mut self.free, number);
                }
            }
        }
        let slots = &self.slots;
        shrink_table(&mut self.by_hash, |slot| match slots.get(*slot as usize) {
            Some(Slot::Held(held)) => held.value.hash(build),
            _ => 0,
        });
    }

    /// How many slots there are, free ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_hash.is_empty() && self.pointee_bytes == 0
    }

    /// Bytes requested from the allocator by the slab and all that it owns.
    pub(super) fn heap_bytes(&self) -> usize {
        self.pointee_bytes
            + self.by_hash.allocation_size()
            + self.slots.capacity() * size_of::<Slot<T>>()
    }
}
