use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

#[cfg(feature = "nats")]
use crate::relay::{address::Relay, publish::RelayPublisher};
use crate::{
    config::Config,
    error::Error,
    follower::Follower,
    metrics::{
        progress::Reading,
        stats::Stats,
        status::{AuditPasses, ChangeLog, Counters, Status},
        timing::Timings,
    },
    model::{BetpawaSnapshots, CachedEvent, CompetitorSnapshots},
    reader::Reader,
    store::{
        changes::Changes,
        publish::{Publisher, Shared},
        state::{Moment, State, View},
    },
    writer::Writer,
};

/// The shared handle: clone it into every task and thread that reads odds.
///
/// A lookup takes no lock, does no I/O, and allocates nothing unless it returns a map or a list. Each lookup uses the
/// latest committed state. Take a [`View`] when several lookups must agree.
#[derive(Clone)]
pub struct OddsCache {
    shared: Arc<Shared>,
}

impl OddsCache {
    /// An empty handle, and the follower that fills it and keeps it equal to the database. Does no I/O: spawn
    /// [`Follower::run`], then await [`OddsCache::ready`].
    #[must_use = "the follower must be spawned for anything to happen"]
    pub fn connect(config: Config) -> (OddsCache, Follower) {
        let (shared, publisher) = Publisher::new(Status::Warming);
        (OddsCache { shared }, Follower::new(config, publisher))
    }

    /// An empty handle, and the writing half for a test or for a process that feeds the cache itself. Does no I/O.
    /// [`OddsCache::ready`] returns at once; [`OddsCache::is_warm`] is true after the first [`Writer::publish`].
    #[must_use]
    pub fn detached() -> (OddsCache, Writer) {
        let (shared, publisher) = Publisher::new(Status::Detached);
        (OddsCache { shared }, Writer::new(publisher))
    }

    /// Publishes what this cache holds to a relay, which any number of processes can follow ([`Config::relay`]). Does no
    /// I/O: spawn [`RelayPublisher::run`]. Neither the follower nor readers wait for it.
    #[cfg(feature = "nats")]
    #[must_use = "the publisher must be spawned for anything to happen"]
    pub fn relay_to(&self, relay: Relay) -> RelayPublisher {
        RelayPublisher::new(relay, Arc::clone(&self.shared))
    }

    /// Returns once the cache is warm. After that it always returns at once, even if the follower has ended since. To
    /// learn whether the follower still runs, ask [`View::age`](State::age) or [`OddsCache::status`]. Dropping the
    /// future is harmless.
    ///
    /// # Errors
    /// The error that ended the follower before the cache was warm; [`Error::FollowerStopped`] if it was dropped.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut status = self.shared.status();
        loop {
            match &*status.borrow_and_update() {
                Status::Detached => return Ok(()),
                _ if self.is_warm() => return Ok(()),
                Status::Ended { error } => {
                    return Err(error.clone().unwrap_or(Error::FollowerStopped));
                }
                _ => {}
            }
            // The sender lives in `shared`, so this cannot fail.
            if status.changed().await.is_err() {
                return Err(Error::FollowerStopped);
            }
        }
    }

    /// Whether the cache has ever been warm. If so, there is something to look up, however old. Takes no lock,
    /// allocates nothing.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.shared.load().epoch > 0
    }

    /// What the cache is doing. Takes a lock, which is held only for moments, and copies texts: use it for probes, not
    /// beside every lookup.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().borrow().clone()
    }

    /// The latest committed state. Counts one reference. Hold it as long as you like: it costs only the memory of what
    /// has changed since.
    #[must_use]
    pub fn view(&self) -> View {
        View(self.shared.load_full())
    }

    /// Looks something up in the latest committed state, without counting a reference: the cheapest way for one lookup,
    /// or for a few that agree with each other. The state stays in memory while `look` runs, so `look` must not wait
    /// for anything. Takes no lock, allocates nothing.
    ///
    /// ```
    /// # let (cache, _writer) = oddscache::OddsCache::detached();
    /// let markets = cache.read(|state| state.event(4711).map(|event| event.betpawa().len()));
    /// # assert_eq!(markets, None);
    /// ```
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shared.load())
    }

    /// A reader for a hot loop; see [`Reader`]. Counts two references.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared))
    }

    /// The latest committed state, if it was proven current within the last `max_age`. Does not wait for a newer proof.
    /// Counts one reference; allocates only for the error. Rows that cannot be read do not count: an event that is served
    /// as last known may be older. [`State::unreadable`] names it.
    ///
    /// # Errors
    /// [`Error::TooStale`] if it is older, and before the first warmup.
    pub fn view_within(&self, max_age: Duration) -> Result<View, Error> {
        let view = self.view();
        let age = view.age();
        if age > max_age {
            return Err(Error::TooStale {
                age,
                max_age,
                status: self.status().to_string(),
            });
        }
        Ok(view)
    }

    /// Waits for a view that contains what the transaction `xid` wrote, if it committed: read-your-writes across
    /// processes. The writer asks for `xid` before it commits, and passes it on afterwards:
    ///
    /// ```sql
    /// SELECT pg_current_xact_id();
    /// ```
    ///
    /// Makes the follower read at once instead of at the next notification. On a standby it may take until the next
    /// poll, or as long as older transactions last: see [`Cut::shows`](crate::store::state::Cut::shows). Does not block
    /// the thread. Dropping the future is harmless. Needs a tokio runtime with time.
    ///
    /// # Errors
    /// [`Error::NotShown`] after `timeout`, or as soon as the follower has ended. [`Error::NotBegun`] as soon as a read
    /// that began after this call finds the server so far from this id that no transaction can have it: waiting would
    /// not help. Caches that follow a standby or a relay cannot find that out.
    pub async fn wait_for(&self, xid: u64, timeout: Duration) -> Result<View, Error> {
        let asked = Moment::now();
        let shows = |state: &State| state.proof.cut().shows(xid);
        // A relay proves an age without the cut that belongs to it. Its subscribers do not know the next id either.
        let next = |state: &State| match self.change_log().next_xid {
            0 => None,
            _ => state.proof.cannot_have_begun(xid, asked),
        };
        if !shows(&self.shared.load()) {
            self.shared.request.read_for(xid);
        }
        let decided = |state: &State| shows(state) || next(state).is_some();
        let decided = tokio::time::timeout(timeout, self.shared.wait_until(decided)).await;
        match decided.ok().flatten() {
            Some(state) if shows(&state) => Ok(View(state)),
            Some(state) if let Some(next) = next(&state) => Err(Error::NotBegun { xid, next }),
            _ => Err(Error::NotShown {
                xid,
                timeout,
                status: self.status().to_string(),
            }),
        }
    }

    /// A stream of what each later publication changes. Take a view *after* this call: a publication in between is then
    /// in the view and also comes as a change. A subscriber costs the follower one reference for each publication.
    /// Takes a lock, which is held only for moments.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.shared.changes()
    }

    /// Makes the follower read everything again, slice by slice, while it goes on following. So views stay fresh
    /// meanwhile. Returns at once, without waiting for that. [`Counters::reloads`] counts it when it is over. In the database, `oddscache.resync()` asks the same of all followers. Seldom needed: the
    /// follower itself notices when it must read everything again.
    pub fn resync(&self) {
        self.shared.request.resync();
    }

    /// The latest snapshots of an event in `odds_snapshots`, by bookmaker; `None` if there is none. Counts one
    /// reference.
    pub fn get_betpawa_snapshot(&self, event_id: i64) -> Option<BetpawaSnapshots> {
        let state = self.shared.load();
        let snapshots = state.event(event_id)?.betpawa();
        (!snapshots.is_empty()).then(|| snapshots.clone())
    }

    /// The latest snapshots of an event in `competitor_odds_snapshots`, by source; `None` if there is none. Counts one
    /// reference.
    pub fn get_competitor_snapshot(&self, event_id: i64) -> Option<CompetitorSnapshots> {
        let state = self.shared.load();
        let snapshots = state.event(event_id)?.competitors();
        (!snapshots.is_empty()).then(|| snapshots.clone())
    }

    /// [`OddsCache::get_betpawa_snapshot`] for several events, from one state: event id -> bookmaker id -> snapshot.
    /// Events without one are absent. Allocates the map and counts a reference for each event.
    pub fn get_betpawa_snapshots(&self, event_ids: &[i64]) -> HashMap<i64, BetpawaSnapshots> {
        let found = self.view();
        let found = found.get_betpawa_snapshots(event_ids);
        found
            .into_iter()
            .map(|(event_id, snapshots)| (event_id, snapshots.clone()))
            .collect()
    }

    /// [`OddsCache::get_competitor_snapshot`] for several events, from one state: event id -> source -> snapshot.
    /// Events without one are absent. Allocates the map and counts a reference for each event.
    pub fn get_competitor_snapshots(&self, event_ids: &[i64]) -> HashMap<i64, CompetitorSnapshots> {
        let found = self.view();
        let found = found.get_competitor_snapshots(event_ids);
        found
            .into_iter()
            .map(|(event_id, snapshots)| (event_id, snapshots.clone()))
            .collect()
    }

    /// An event with all its snapshots; `None` if it has none. Counts one reference.
    pub fn event(&self, event_id: i64) -> Option<Arc<CachedEvent>> {
        self.shared.load().table.get(event_id).cloned()
    }

    /// `events.kickoff`, UTC; `None` if the event is absent, or a [`Writer`] gave no kickoff. Takes no lock, allocates
    /// nothing.
    pub fn kickoff(&self, event_id: i64) -> Option<DateTime<Utc>> {
        self.shared.load().kickoff(event_id)
    }

    /// The ids of all events, ascending. Allocates the list and sorts it.
    pub fn event_ids(&self) -> Vec<i64> {
        self.view().event_ids()
    }

    /// What the latest state holds, and the memory it takes. Copies a few numbers.
    pub fn stats(&self) -> Stats {
        self.shared.load().stats.clone()
    }

    /// How much has been done since the cache was made. Copies a few numbers one after the other, so some may be newer
    /// than others.
    pub fn counters(&self) -> Counters {
        self.shared.counters.get()
    }

    /// How long commits took to become visible, and where the time went, since the cache was made. Allocates a short
    /// list for each of the five.
    pub fn timings(&self) -> Timings {
        self.shared.timers.get()
    }

    /// How long the passes of the audit took, and will take, as of its last step. All `None` before the first pass, and in
    /// a cache that no follower of a database feeds. Copies a few numbers.
    pub fn audit(&self) -> AuditPasses {
        self.shared.audit()
    }

    /// How far the read of everything is that is running now; `None` if there is none. Also before the first warmup.
    /// Takes a lock for a few instructions.
    pub fn reading(&self) -> Option<Reading> {
        self.shared.progress.get()
    }

    /// Which feed is installed and how far its log reaches, as of the last read; zeros before the first warmup. Copies
    /// three numbers.
    pub fn change_log(&self) -> ChangeLog {
        self.shared.change_log()
    }
}

impl fmt::Debug for OddsCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OddsCache")
            .field("view", &self.view())
            .field("status", &self.status())
            .finish()
    }
}
