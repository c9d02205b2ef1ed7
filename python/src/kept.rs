//! Snapshot objects that were seen lately. Whoever asks for the same events again gets the same objects, with their
//! markets already made.
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
use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};

use crate::{
    names,
    snapshot::{CachedSnapshot, Held},
};

/// The bytes of objects after which the generations move: at most about twice this is kept. A page of 50 events with 50
/// markets for each of three bookmakers takes half of it.
const GENERATION_BYTES: usize = 1 << 20;
/// What a snapshot object takes without its markets, with its place in the tables.
const SNAPSHOT_BYTES: usize = 256;

pub(crate) struct Kept {
    generations: Mutex<Generations>,
    /// The bytes of objects made since the generations moved.
    made: Arc<AtomicUsize>,
    pub(crate) naive_times: bool,
}

#[derive(Default)]
struct Generations {
    young: HashMap<i64, Objects>,
    old: HashMap<i64, Objects>,
}

/// The objects of an event.
#[derive(Default)]
struct Objects {
    betpawa: Vec<Py<CachedSnapshot>>,
    competitors: Vec<Py<CachedSnapshot>>,
}

/// The objects, or none while they are in use (N3).
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
        let known = self
            .objects(py, event_id)
            .map(|objects| &mut objects.betpawa);
        // Taken out, because making an object may run Python code.
        let known = known.map(std::mem::take).unwrap_or_default();
        let dict = PyDict::new(py);
        let mut objects = Vec::with_capacity(snapshots.len());
        for (bookmaker_id, snapshot) in snapshots.iter() {
            let object = self.object(py, &known, snapshot)?;
            dict.set_item(bookmaker_id, &object)?;
            objects.push(object);
        }
        if let Some(kept) = self.objects(py, event_id) {
            kept.betpawa = objects;
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
        let known = self
            .objects(py, event_id)
            .map(|objects| &mut objects.competitors);
        let known = known.map(std::mem::take).unwrap_or_default();
        let sources: Vec<Bound<'py, PyString>> = {
            let mut names = names::lend();
            let sources = snapshots
                .iter()
                .map(|(source, _)| names.text(py, source.as_str()));
            sources.collect()
        };
        let dict = PyDict::new(py);
        let mut objects = Vec::with_capacity(snapshots.len());
        for ((_, snapshot), source) in snapshots.iter().zip(sources) {
            let object = self.object(py, &known, snapshot)?;
            dict.set_item(source, &object)?;
            objects.push(object);
        }
        if let Some(kept) = self.objects(py, event_id) {
            kept.competitors = objects;
        }
        Ok(dict)
    }

    /// The objects of an event, moved to the young generation. `None` while they are in use.
    fn objects(&mut self, py: Python<'_>, event_id: i64) -> Option<&mut Objects> {
        let generations = &mut **self.generations.as_mut()?;
        if self.kept.made.load(Ordering::Relaxed) > GENERATION_BYTES {
            self.kept.made.store(0, Ordering::Relaxed);
            generations.old = std::mem::take(&mut generations.young);
        }
        Some(generations.young.entry(event_id).or_insert_with(|| {
            let objects = generations.old.remove(&event_id).unwrap_or_default();
            let all = objects.betpawa.iter().chain(&objects.competitors);
            let bytes = all
                .map(|object| SNAPSHOT_BYTES + object.get().made_bytes(py))
                .sum();
            self.kept.made.fetch_add(bytes, Ordering::Relaxed);
            objects
        }))
    }

    /// The object of a snapshot: a known one, or a new one.
    fn object(
        &self,
        py: Python<'_>,
        known: &[Py<CachedSnapshot>],
        snapshot: &oddscache::CachedSnapshot,
    ) -> PyResult<Py<CachedSnapshot>> {
        let held =
            |object: &Py<CachedSnapshot>,
             test: fn(&oddscache::CachedSnapshot, &oddscache::CachedSnapshot) -> bool| {
                object
                    .get()
                    .held()
                    .is_some_and(|held| test(&held.snapshot, snapshot))
            };
        if let Some(same) = known
            .iter()
            .find(|object| held(object, oddscache::CachedSnapshot::is))
        {
            return Ok(same.clone_ref(py));
        }
        let before = known
            .iter()
            .find(|object| held(object, oddscache::CachedSnapshot::shares_markets));
        self.kept.made.fetch_add(SNAPSHOT_BYTES, Ordering::Relaxed);
        let new = Held {
            snapshot: snapshot.clone(),
            naive_times: self.kept.naive_times,
            made: Arc::clone(&self.kept.made),
        };
        CachedSnapshot::of(py, new, before.map(Py::get))
    }
}
