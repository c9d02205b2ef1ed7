//! The library's handle, and what feeds it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use oddscache::{OddsCache, View, Writer};
use pyo3::prelude::*;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

use crate::{errors, memory, view::Shown};

/// How long the follower may take to end. It has nothing to save.
const SHUTDOWN: Duration = Duration::from_secs(2);

pub(crate) struct Handle {
    pub(crate) cache: OddsCache,
    feed: Mutex<Option<Feed>>,
    inherited: Inherited,
}

/// What a process that was forked has of its parent.
#[derive(Default)]
struct Inherited {
    epoch: u64,
    version: u64,
    /// The last state, until this process has one of its own that was proven current.
    shown: ArcSwapOption<Shown>,
}

/// What fills the cache.
pub(crate) enum Feed {
    Follower(Following),
    Writer(Box<Writer>),
}

/// The runtime with the follower. It has one thread.
pub(crate) struct Following {
    pub(crate) runtime: Runtime,
    follower: JoinHandle<()>,
}

impl Following {
    /// Drops the follower, then the runtime. A follower whose runtime went first would take that for an error.
    fn end(self) {
        let Following { runtime, follower } = self;
        follower.abort();
        runtime.block_on(async {
            // It ends at its next step. If it does not, the runtime's end is waited for as long again.
            let _ = tokio::time::timeout(SHUTDOWN, follower).await;
        });
        runtime.shutdown_timeout(SHUTDOWN);
    }
}

impl Handle {
    pub(crate) fn detached() -> Handle {
        let (cache, writer) = OddsCache::detached();
        Handle {
            cache,
            feed: Mutex::new(Some(Feed::Writer(Box::new(writer)))),
            inherited: Inherited::default(),
        }
    }

    /// A handle whose follower runs in a thread of its own. Returns at once.
    pub(crate) fn connect(
        py: Python<'_>,
        config: oddscache::Config,
        inherited: Option<Shown>,
    ) -> PyResult<Handle> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("oddscache")
            .enable_all()
            .build()
            .map_err(|error| errors::other(py, format!("no thread for the follower: {error}")))?;
        let (cache, follower) = OddsCache::connect(config);
        runtime.spawn(memory::release_after_reloads(cache.changes()));
        let follower = runtime.spawn(async {
            // Its error is in the status, and in the log.
            let _ = follower.run().await;
        });
        Ok(Handle {
            cache,
            feed: Mutex::new(Some(Feed::Follower(Following { runtime, follower }))),
            inherited: Inherited {
                epoch: inherited.as_ref().map_or(0, |shown| shown.epoch),
                version: inherited.as_ref().map_or(0, |shown| shown.version),
                shown: ArcSwapOption::new(inherited.map(Arc::new)),
            },
        })
    }

    /// The latest state. A process that was forked shows its parent's last one until it has one of its own.
    pub(crate) fn shown(&self) -> Shown {
        // In this order: once the parent's state is gone, there is one of our own.
        let inherited = self.inherited.shown.load();
        let view = self.cache.view();
        if let Some(inherited) = &*inherited {
            // The first state that comes by a relay may be older than the parent's. It is not yet proven current then.
            if view.age() == Duration::MAX {
                return Shown::clone(inherited);
            }
            self.inherited.shown.store(None);
        }
        self.numbered(view)
    }

    /// A view of this handle, its epoch and version counted on from those of the parent.
    pub(crate) fn numbered(&self, view: View) -> Shown {
        let (epoch, version) = self.inherited();
        Shown {
            epoch: epoch + view.epoch(),
            version: version + view.version(),
            view,
        }
    }

    /// The epoch and the version that the parent had. Zeros if there is none.
    pub(crate) fn inherited(&self) -> (u64, u64) {
        (self.inherited.epoch, self.inherited.version)
    }

    /// What fills the cache. `None` once it is closed.
    pub(crate) fn feed(&self) -> MutexGuard<'_, Option<Feed>> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the follower or the writer. Waits for the follower's thread.
    pub(crate) fn close(&self, py: Python<'_>) {
        let feed = self.feed().take();
        if let Some(Feed::Follower(following)) = feed {
            py.detach(|| following.end());
        }
    }
}

/// For a cache that nobody closed: the follower ends by itself soon.
impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(Feed::Follower(following)) = self.feed().take() {
            following.follower.abort();
            following.runtime.shutdown_background();
        }
    }
}
