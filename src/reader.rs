use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Cache};

use crate::store::{publish::Shared, state::State};

/// One thread's or task's own reader, for a loop that looks up all the time: made by
/// [`OddsCache::reader`](crate::cache::OddsCache::reader).
///
/// Remembers the state it gave last and compares one pointer to see whether there is a newer one. So it keeps that state in
/// memory until it is asked again or dropped: no reader for what rests for long, for which there is
/// [`OddsCache::read`](crate::cache::OddsCache::read).
#[derive(Clone)]
pub struct Reader {
    latest: Cache<Source, Arc<State>>,
}

/// Where the states come from.
#[derive(Clone)]
struct Source(Arc<Shared>);

impl Deref for Source {
    type Target = ArcSwap<State>;

    fn deref(&self) -> &ArcSwap<State> {
        self.0.swap()
    }
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>) -> Reader {
        Reader {
            latest: Cache::new(Source(shared)),
        }
    }

    /// The latest committed state. Lookups in it agree with each other; the next call may give a newer one. Takes no lock,
    /// allocates nothing, and leaves it to the writer to free the state before.
    pub fn state(&mut self) -> &State {
        self.latest.load()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
