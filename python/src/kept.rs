//! Snapshot objects that were seen lately. A lookup of the same events again returns the same objects, with their
//! markets already made.
//!
//! Objects are kept from the second time on that an event is asked for, so a walk over all events leaves nothing behind.
//!
//! There are two generations of bounded size. What is asked for moves to the young one. When the objects made since then
//! exceed the bound, the old generation is dropped, and the young one becomes the old one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use oddscache::{BetpawaSnapshots, CompetitorSnapshots};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    names,
    snapshot::{CachedSnapshot, Held},
};

/// The bytes of objects after which the generations move: at most about twice this is kept. A page of 50 events with 50
/// markets for each of three bookmakers fits into one generation.
const GENERATION_BYTES: usize = 768 << 10;
/// What a snapshot object takes without its markets.
const SNAPSHOT_BYTES: usize = 200;
/// What an event takes in the tables.
const EVENT_BYTES: usize = 100;

pub(crate) struct Kept {
    generations: Mutex<Generations>,
    /// The bytes of kept objects that were made since the generations moved.
    made: Arc<AtomicUsize>,
    pub(crate) naive_times: bool,
}

/// Objects by event and side. An empty list says that the event was asked for once.
type Objects = HashMap<(i64, Side), Vec<Py<CachedSnapshot>>>;

#[derive(Default)]
struct Generations {
    young: Objects,
    old: Objects,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Betpawa,
    Competitors,
}

/// The objects, or none while they are in use (J3).
pub(crate) struct Lent<'a> {
    kept: &'a Kept,
    generations: Option<MutexGuard<'a, Generations>>,
}

impl Kept {
    pub(crate) fn new(naive_times: bool) -> Kept {
        Kept {
            generations: Mutex::default(),
            made: Arc::default(),
            naive_times,
        }
    }

    pub(crate) fn lend(&self) -> Lent<'_> {
        let generations = match self.generations.try_lock() {
            Ok(generations) => Some(generations),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        };
        Lent {
            kept: self,
            generations,
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(mut generations) = self.lend().generations {
            *generations = Generations::default();
        }
    }
}

impl Lent<'_> {
    /// bookmaker id -> snapshot
    pub(crate) fn betpawa<'py>(
        &mut self,
        py: Python<'py>,
        event_id: i64,
        snapshots: &BetpawaSnapshots,
    ) -> PyResult<Bound<'py, PyDict>> {
        let key = (event_id, Side::Betpawa);
        let known = self.take(py, key);
        let dict = PyDict::new(py);
        let mut objects = Vec::with_capacity(snapshots.len());
        for (bookmaker_id, snapshot) in snapshots.iter() {
            let object = self.object(py, known.as_deref(), snapshot)?;
            dict.set_item(bookmaker_id, &object)?;
            objects.push(object);
        }
        if known.is_some() {
            self.keep(key, objects);
        }
        Ok(dict)
    }

    /// source -> snapshot
    pub(crate) fn competitors<'py>(
        &mut self,
        py: Python<'py>,
        event_id: i64,
        snapshots: &CompetitorSnapshots,
    ) -> PyResult<Bound<'py, PyDict>> {
        let key = (event_id, Side::Competitors);
        let known = self.take(py, key);
        let dict = PyDict::new(py);
        let mut objects = Vec::with_capacity(snapshots.len());
        for (source, snapshot) in snapshots.iter() {
            let object = self.object(py, known.as_deref(), snapshot)?;
            let source = names::lend().text(py, source.as_str());
            dict.set_item(source, &object)?;
            objects.push(object);
        }
        if known.is_some() {
            self.keep(key, objects);
        }
        Ok(dict)
    }

    /// Takes out the objects of an event. `None` if it is asked for the first time, or while the objects are in use: then
    /// new ones are not kept.
    ///
    /// They are taken out because making others may run Python code.
    fn take(&mut self, py: Python<'_>, key: (i64, Side)) -> Option<Vec<Py<CachedSnapshot>>> {
        let made = &self.kept.made;
        let generations = &mut **self.generations.as_mut()?;
        if made.load(Ordering::Relaxed) > GENERATION_BYTES {
            made.store(0, Ordering::Relaxed);
            generations.old = std::mem::take(&mut generations.young);
        }
        if let Some(objects) = generations.young.get_mut(&key) {
            return Some(std::mem::take(objects));
        }
        let objects = generations.old.remove(&key);
        let bytes = objects.iter().flatten();
        let bytes = bytes.map(|object| SNAPSHOT_BYTES + object.get().made_bytes(py));
        made.fetch_add(EVENT_BYTES + bytes.sum::<usize>(), Ordering::Relaxed);
        generations.young.insert(key, Vec::new());
        objects
    }

    fn keep(&mut self, key: (i64, Side), objects: Vec<Py<CachedSnapshot>>) {
        if let Some(generations) = &mut self.generations {
            generations.young.insert(key, objects);
        }
    }

    /// The object of a snapshot: a known one, or a new one.
    fn object(
        &self,
        py: Python<'_>,
        known: Option<&[Py<CachedSnapshot>]>,
        snapshot: &oddscache::CachedSnapshot,
    ) -> PyResult<Py<CachedSnapshot>> {
        type Test = fn(&oddscache::CachedSnapshot, &oddscache::CachedSnapshot) -> bool;
        let find = |test: Test| {
            let mut objects = known.unwrap_or_default().iter();
            objects.find(|object| {
                let held = object.get().held();
                held.is_some_and(|held| test(&held.snapshot, snapshot))
            })
        };
        if let Some(same) = find(oddscache::CachedSnapshot::is) {
            return Ok(same.clone_ref(py));
        }
        let before = find(oddscache::CachedSnapshot::shares_markets);
        let made = known.map(|_| Arc::clone(&self.kept.made));
        if let Some(made) = &made {
            made.fetch_add(SNAPSHOT_BYTES, Ordering::Relaxed);
        }
        let new = Held {
            snapshot: snapshot.clone(),
            naive_times: self.kept.naive_times,
            made,
        };
        CachedSnapshot::of(py, new, before.map(Py::get))
    }
}
