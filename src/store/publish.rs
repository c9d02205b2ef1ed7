//! Gives readers the next state by one atomic swap. Only this file knows how.
//!
//! # Invariants
//! - B1: A reader gets a state that one `publish` passed as a whole, never a part of one.
//! - B2: Each cache has exactly one publisher: neither it nor its owner can be cloned.
//! - B3: Readers do not free retired states, unless they outlive the publisher.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    error::Error,
    metrics::{
        progress::Progress,
        reload::CountingReloads,
        status::{AuditPasses, ChangeLog, Counters, Status},
        timing::Timers,
    },
    store::{
        changes::{Change, Changes, KEPT},
        state::{Cut, Moment, State},
    },
};

/// What a handle shares with the follower or writer that feeds it.
pub(crate) struct Shared {
    state: ArcSwap<State>,
    status: watch::Sender<Status>,
    pub(crate) counters: Counting,
    pub(crate) timers: Timers,
    pub(crate) progress: Progress,
    /// Set by the follower after a read.
    pub(crate) audit: ArcSwap<AuditPasses>,
    pub(crate) pruned_below: AtomicU64,
    pub(crate) next_xid: AtomicU64,
    pub(crate) feed_version: AtomicI32,
    /// Weak, because the publisher owns the sender: the stream must end when the publisher is dropped.
    changes: broadcast::WeakSender<Arc<Change>>,
    /// Notified after each publication and each proof.
    proven: Notify,
    pub(crate) request: Request,
    /// From this age on a view that is followed tells that the database does not answer.
    late_millis: AtomicU64,
}

/// What handles have requested from the follower.
#[derive(Debug, Default)]
pub(crate) struct Request {
    requested: Notify,
    resync: AtomicBool,
    /// The greatest transaction id that a handle waits for, or waited for.
    awaited: AtomicU64,
}

impl Request {
    /// Requests a read now, rather than at the next notification or poll.
    pub(crate) fn read(&self) {
        self.requested.notify_one();
    }

    /// Requests a read now, because a handle waits for this transaction.
    pub(crate) fn read_for(&self, xid: u64) {
        self.awaited.fetch_max(xid, Ordering::Relaxed);
        self.read();
    }

    /// Whether a handle waits for a transaction that this cut does not show.
    #[cfg(feature = "nats")]
    pub(crate) fn waits(&self, shown: Option<&Cut>) -> bool {
        let xid = self.awaited.load(Ordering::Relaxed);
        xid > 0 && shown.is_none_or(|cut| !cut.shows(xid))
    }

    /// Requests that everything be read again.
    pub(crate) fn resync(&self) {
        self.resync.store(true, Ordering::Release);
        self.requested.notify_one();
    }

    /// Waits until a handle requests something. One request since the last call is remembered, however many there were.
    /// A cancelled wait loses none.
    pub(crate) async fn requested(&self) {
        self.requested.notified().await;
    }

    /// Whether a handle requested that everything be read again. Clears the request.
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
    /// [`Counters`] that can be counted up.
    Counting for Counters:
    reads notifications polls requested_reads lost_notifications log_rows snapshots_read rows_read malformed_rows_read unreadable_rows published evicted_events
    reloads reconnects resumed failures audited_events audited_headers audit_passes audit_headers_passes audit_mismatches
    relay_deltas relay_bytes relay_states relay_answers relay_gaps relay_refused relay_mismatches, reloads_by_reason: CountingReloads
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

    /// Whether the follower cannot read, has ended, or has heard nothing of the database for so long that it may have
    /// lost it.
    #[cfg(feature = "nats")]
    pub(crate) fn is_out_of_touch(&self) -> bool {
        let late = Duration::from_millis(self.late_millis.load(Ordering::Relaxed));
        match *self.status.borrow() {
            Status::Disconnected { .. } | Status::Ended { .. } => true,
            Status::Live | Status::PollingOnly { .. } => self.load().age() > late,
            // A whole read may take long.
            _ => false,
        }
    }

    /// Whether a follower or a writer still feeds the cache.
    #[cfg(feature = "nats")]
    pub(crate) fn is_fed(&self) -> bool {
        self.changes.upgrade().is_some()
    }

    /// What the follower last read about the change log.
    pub(crate) fn change_log(&self) -> ChangeLog {
        ChangeLog {
            pruned_below: self.pruned_below.load(Ordering::Relaxed),
            next_xid: self.next_xid.load(Ordering::Relaxed),
            feed_version: self.feed_version.load(Ordering::Relaxed),
        }
    }

    /// How long the passes of the audit take.
    pub(crate) fn audit(&self) -> AuditPasses {
        **self.audit.load()
    }

    /// The changes from the next publication on. Already ended if the publisher is gone.
    pub(crate) fn changes(&self) -> Changes {
        let receiver = match self.changes.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        Changes::new(receiver)
    }

    /// Waits until `enough` accepts the published state. Asks again after each publication, and after each proof that
    /// moved the cut forward. `None` if the publisher ended before that.
    pub(crate) async fn wait_until(&self, enough: impl Fn(&State) -> bool) -> Option<Arc<State>> {
        let mut proven = std::pin::pin!(self.proven.notified());
        loop {
            // Listen before looking at the state. Otherwise a proof between the two would go unnoticed.
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

/// The writing half of a cache.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    changes: broadcast::Sender<Arc<Change>>,
    /// Replaced states that readers may still hold.
    retired: Vec<Arc<State>>,
    /// The version of the last published state.
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
            audit: ArcSwap::default(),
            progress: Progress::default(),
            pruned_below: AtomicU64::new(0),
            next_xid: AtomicU64::new(0),
            feed_version: AtomicI32::new(0),
            late_millis: AtomicU64::new(u64::MAX),
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

    /// Gives `state` to readers and `change` to subscribers, and returns the change with its version. Costs one pointer
    /// swap and never waits for readers.
    pub(crate) fn publish(&mut self, mut state: State, mut change: Change) -> Arc<Change> {
        self.version += 1;
        (state.version, change.version) = (self.version, self.version);
        // arc-swap lets readers borrow a state without counting; the swap turns such borrows into counted references.
        // Once the count is one, only we hold the state, and we free it (B3).
        self.retired.push(self.shared.state.swap(Arc::new(state)));
        self.free_retired();
        add(&self.shared.counters.published, 1);
        // Send after the swap, so that a subscriber who takes a view on a change finds the change in it. Without
        // subscribers sending fails, which is fine.
        let change = Arc::new(change);
        let _ = self.changes.send(Arc::clone(&change));
        self.shared.proven.notify_waiters();
        change
    }

    /// Notes that the published state also equals the database at a later cut. `at` is when the read began, before the
    /// server took its snapshot.
    pub(crate) fn prove(&mut self, cut: Arc<Cut>, at: Moment) {
        self.free_retired();
        self.shared.load().proof.renew(cut, at);
        self.shared.proven.notify_waiters();
    }

    /// Says from which age on a view tells that the database does not answer.
    pub(crate) fn late_from(&self, age: Duration) {
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.shared.late_millis.store(millis, Ordering::Relaxed);
    }

    /// The state that readers see.
    pub(crate) fn published(&self) -> Guard<Arc<State>> {
        self.shared.load()
    }

    fn free_retired(&mut self) {
        self.retired.retain(|state| Arc::strong_count(state) > 1);
    }

    pub(crate) fn request(&self) -> &Request {
        &self.shared.request
    }

    #[cfg(feature = "nats")]
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.shared.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    /// Sets the status to "ended". The first call wins, because it knows the real reason.
    pub(crate) fn end(&self, error: Option<Error>) {
        self.shared.status.send_if_modified(|current| {
            let is_first = !matches!(current, Status::Ended { .. });
            if is_first {
                *current = Status::Ended { error };
            }
            is_first
        });
    }

    pub(crate) fn counters(&self) -> &Counting {
        &self.shared.counters
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.shared.timers
    }

    pub(crate) fn set_audit(&self, passes: AuditPasses) {
        self.shared.audit.store(Arc::new(passes));
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.shared.progress
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
        // Tasks that wait for a state must learn that none will come: end the stream, then wake them.
        self.changes = broadcast::Sender::new(1);
        self.shared.proven.notify_waiters();
    }
}
