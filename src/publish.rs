//! The only file that knows how a state becomes the one that readers get: one atomic swap.
//!
//! | invariant | |
//! |---|---|
//! | P1 | a reader gets a state that one `publish` gave whole, never part of one |
//! | P2 | there is one publisher to a cache: it does not clone, and neither does what owns it |
//! | P3 | readers do not free retired states, unless they outlive the publisher |

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::{
    status::{Counters, Status},
    view::{Cut, Moment, State},
};

/// What a handle and its writer share.
pub(crate) struct Shared {
    state: ArcSwap<State>,
    status: watch::Sender<Status>,
    pub(crate) counters: Counting,
}

macro_rules! counting {
    ($($name:ident)*) => {
        /// [`Counters`] as they count.
        #[derive(Debug, Default)]
        pub(crate) struct Counting {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counting {
            pub(crate) fn get(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counting! { reads bells log_rows snapshots_read published evicted_events reloads failures }

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Shared {
    pub(crate) fn load(&self) -> Guard<Arc<State>> {
        self.state.load()
    }

    pub(crate) fn load_full(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
}

/// The writing half.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    /// States that readers may still hold.
    retired: Vec<Arc<State>>,
}

impl Publisher {
    pub(crate) fn new(status: Status) -> (Arc<Shared>, Publisher) {
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(State::empty()),
            status: watch::Sender::new(status),
            counters: Counting::default(),
        });
        (
            Arc::clone(&shared),
            Publisher {
                shared,
                retired: Vec::new(),
            },
        )
    }

    /// Readers get `state` from now on.
    pub(crate) fn publish(&mut self, state: State) {
        // The swap settles what readers under way still owe to the old one's reference count, so one is ours alone.
        self.retired.push(self.shared.state.swap(Arc::new(state)));
        self.retired.retain(|state| Arc::strong_count(state) > 1);
        add(&self.shared.counters.published, 1);
    }

    /// The published state was found to be the database's at a later cut too; `at`: before its snapshot was taken.
    pub(crate) fn prove(&self, cut: Cut, at: Moment) {
        self.shared.load().proof.renew(cut, at);
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.shared.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    pub(crate) fn counters(&self) -> &Counting {
        &self.shared.counters
    }
}
