//! The only file that knows how a state becomes the one that readers get: one atomic swap.
//!
//! | invariant | |
//! |---|---|
//! | P1 | a reader gets a state that one `publish` gave whole, never part of one |
//! | P2 | there is one publisher to a cache: it does not clone, and neither does what owns it |
//! | P3 | readers do not free retired states, unless they outlive the publisher |

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    error::Error,
    metrics::{
        reload::CountingReloads,
        status::{ChangeLog, Counters, Status},
        timing::Timers,
    },
    store::{
        changes::{Change, Changes, KEPT},
        state::{Cut, Moment, State},
    },
};

/// What a handle and its writer share.
pub(crate) struct Shared {
    state: ArcSwap<State>,
    status: watch::Sender<Status>,
    pub(crate) counters: Counting,
    pub(crate) timers: Timers,
    /// Told by the follower; each is what it was at some read.
    pub(crate) pruned_below: AtomicU64,
    pub(crate) next_xid: AtomicU64,
    pub(crate) feed_version: AtomicI32,
    /// The sender is the publisher's, so that the stream ends with it.
    changes: broadcast::WeakSender<Arc<Change>>,
    /// Told after each publication and proof.
    proven: Notify,
    pub(crate) request: Request,
}

/// What handles ask of the follower.
#[derive(Debug, Default)]
pub(crate) struct Request {
    asked: Notify,
    resync: AtomicBool,
}

impl Request {
    /// To read now rather than at the next bell or poll.
    pub(crate) fn read(&self) {
        self.asked.notify_one();
    }

    /// To read everything again.
    pub(crate) fn resync(&self) {
        self.resync.store(true, Ordering::Release);
        self.asked.notify_one();
    }

    /// Waits for a wish since the last call; at most one is remembered. Cancellation loses none.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Whether everything is to be read again; asks once.
    pub(crate) fn take_resync(&self) -> bool {
        self.resync.swap(false, Ordering::AcqRel)
    }
}

macro_rules! counting {
    ($(#[$doc:meta])* $counting:ident for $counters:ident: $($name:ident)* $(, $part:ident: $of:ident)?) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $counting {
            $(pub(crate) $name: AtomicU64,)*
            $(pub(crate) $part: $of,)?
        }

        impl $counting {
            pub(crate) fn get(&self) -> $counters {
                $counters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    $($part: self.$part.get(),)?
                }
            }
        }
    };
}

counting! {
    /// [`Counters`] as they count.
    Counting for Counters:
    reads notifications polls asks heartbeats log_rows snapshots_read rows_read malformed_rows_read published evicted_events reloads
    reconnects failures audited_events audit_passes audit_mismatches, reloads_by_reason: CountingReloads
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Shared {
    pub(crate) fn load(&self) -> Guard<Arc<State>> {
        self.state.load()
    }

    pub(crate) fn swap(&self) -> &ArcSwap<State> {
        &self.state
    }

    pub(crate) fn load_full(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What the follower last knew of the change log.
    pub(crate) fn change_log(&self) -> ChangeLog {
        ChangeLog {
            pruned_below: self.pruned_below.load(Ordering::Relaxed),
            next_xid: self.next_xid.load(Ordering::Relaxed),
            feed_version: self.feed_version.load(Ordering::Relaxed),
        }
    }

    /// From the next publication on; already ended if the publisher is gone.
    pub(crate) fn changes(&self) -> Changes {
        let receiver = match self.changes.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        Changes::new(receiver)
    }

    /// Waits for a published state that is, or is proven at a cut, of which `enough` is true. `None` if there will be none.
    pub(crate) async fn wait_until(&self, enough: impl Fn(&State) -> bool) -> Option<Arc<State>> {
        let mut proven = std::pin::pin!(self.proven.notified());
        loop {
            // Before looking, so that no proof falls between looking and waiting.
            proven.as_mut().enable();
            let ended = self.changes.upgrade().is_none();
            let state = self.load_full();
            if enough(&state) {
                return Some(state);
            }
            if ended {
                return None;
            }
            proven.as_mut().await;
            proven.set(self.proven.notified());
        }
    }
}

/// The writing half.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    changes: broadcast::Sender<Arc<Change>>,
    /// States that readers may still hold.
    retired: Vec<Arc<State>>,
    /// Of the state published last.
    version: u64,
}

impl Publisher {
    pub(crate) fn new(status: Status) -> (Arc<Shared>, Publisher) {
        let changes = broadcast::Sender::new(KEPT);
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(State::empty()),
            status: watch::Sender::new(status),
            counters: Counting::default(),
            timers: Timers::default(),
            pruned_below: AtomicU64::new(0),
            next_xid: AtomicU64::new(0),
            feed_version: AtomicI32::new(0),
            changes: changes.downgrade(),
            proven: Notify::new(),
            request: Request::default(),
        });
        (
            Arc::clone(&shared),
            Publisher {
                shared,
                changes,
                retired: Vec::new(),
                version: 0,
            },
        )
    }

    /// Readers get `state` from now on, and subscribers what differs.
    pub(crate) fn publish(&mut self, mut state: State, mut change: Change) {
        self.version += 1;
        (state.version, change.version) = (self.version, self.version);
        // The swap settles what readers under way still owe to the old one's reference count, so one is ours alone.
        self.retired.push(self.shared.state.swap(Arc::new(state)));
        self.free_retired();
        add(&self.shared.counters.published, 1);
        // After the swap: who takes a view for a change finds it there. Fails where nobody subscribed.
        let _ = self.changes.send(Arc::new(change));
        self.shared.proven.notify_waiters();
    }

    /// The published state was found to be the database's at a later cut too; `at`: before its snapshot was taken.
    pub(crate) fn prove(&mut self, cut: Arc<Cut>, at: Moment) {
        self.free_retired();
        self.shared.load().proof.renew(cut, at);
        self.shared.proven.notify_waiters();
    }

    fn free_retired(&mut self) {
        self.retired.retain(|state| Arc::strong_count(state) > 1);
    }

    pub(crate) fn request(&self) -> &Request {
        &self.shared.request
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.shared.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    /// Says that nobody follows any more. The first who says it says why.
    pub(crate) fn end(&self, error: Option<Error>) {
        self.shared.status.send_if_modified(|current| {
            let is_news = !matches!(current, Status::Ended { .. });
            if is_news {
                *current = Status::Ended { error };
            }
            is_news
        });
    }

    pub(crate) fn counters(&self) -> &Counting {
        &self.shared.counters
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.shared.timers
    }

    pub(crate) fn set_change_log(&self, log: ChangeLog) {
        let shared = &self.shared;
        shared
            .pruned_below
            .store(log.pruned_below, Ordering::Relaxed);
        shared.next_xid.store(log.next_xid, Ordering::Relaxed);
        shared
            .feed_version
            .store(log.feed_version, Ordering::Relaxed);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Who waits for a state finds that there will be none.
        self.changes = broadcast::Sender::new(1);
        self.shared.proven.notify_waiters();
    }
}
