use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Cache};

use crate::store::{publish::Shared, state::State};

/// A reader for the hot loop of one thread or task, made by [`OddsCache::reader`](crate::cache::OddsCache::reader).
///
/// It remembers the last state. Each call compares one pointer to learn whether there is a newer one. It keeps that
/// state in memory until the next call or until it is dropped. Code that pauses for long should use
/// [`OddsCache::read`](crate::cache::OddsCache::read) instead.
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

    /// The latest committed state. Lookups in it agree with each other. The next call may return a newer one. Takes no
    /// lock and allocates nothing. It does not free the previous state either; the follower or writer does.
    pub fn state(&mut self) -> &State {
        self.latest.load()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
