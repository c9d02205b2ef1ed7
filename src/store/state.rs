//! The state in which readers look things up: one committed state of the database. It never changes.
//!
//! # Invariants
//! - V1: A state never changes: the draft copies a page that a state shares before it writes to it.
//! - V2: Each event in the table has at least one snapshot.
//! - V3: A lookup takes no lock, allocates nothing and does no I/O.

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};

use crate::{
    metrics::{stats::Stats, status::Fault},
    model::{BetpawaSnapshots, Bookmakers, CachedEvent, CompetitorSnapshots, PgSnapshot, Server},
    store::table::Table,
};

/// Which committed state of the database a view equals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The database's clock (`now()`) in the transaction that read the state. UTC. If that clock was set back by less
    /// than a minute, this is the later time of an earlier read.
    pub as_of: DateTime<Utc>,
    /// `pg_current_snapshot()` of that transaction, as PostgreSQL prints it: `xmin:xmax:xip,...`
    pub snapshot: String,
    /// The view holds only events with a kickoff after this time: `as_of` minus the lookback. It never goes back. UTC.
    pub window_start: DateTime<Utc>,
    /// Whether the server was a standby (`pg_is_in_recovery()`). A standby may lag behind its primary.
    pub standby: bool,
    pub(crate) server: Server,
}

impl Cut {
    /// Whether this state certainly contains what transaction `xid` wrote, if it committed. `xid` is what `select
    /// pg_current_xact_id()` returned in that transaction.
    ///
    /// A standby does not report which transactions are in progress. There a transaction counts as contained only after
    /// all older ones have ended.
    ///
    /// The answer means nothing for a transaction of another server, or of a time before the epoch changed. Parses the
    /// text of `snapshot`; takes no lock.
    pub fn shows(&self, xid: u64) -> bool {
        PgSnapshot::parse(&self.snapshot).is_some_and(|snapshot| snapshot.shows(xid, self.standby))
    }

    /// Whether this cut is of the same history of the server as `before`, and not older. So a state of this cut may
    /// follow one of that cut within an epoch.
    #[cfg(feature = "nats")]
    pub(crate) fn follows(&self, before: &Cut) -> bool {
        let snapshots = (
            PgSnapshot::parse(&self.snapshot),
            PgSnapshot::parse(&before.snapshot),
        );
        let shows_all = match snapshots {
            (Some(now), Some(before)) => now.shows_all_of(&before),
            // A writer's states have no snapshot.
            _ => self.snapshot == before.snapshot,
        };
        shows_all && self.as_of >= before.as_of && self.server.has_run_on_since(&before.server)
    }
}

/// The latest cut at which a state was found to equal the database. All views of the state share it: a read that finds
/// nothing new moves it forward.
pub(crate) struct Proof(ArcSwap<Proven>);

#[derive(Debug)]
struct Proven {
    cut: Arc<Cut>,
    /// When that read began. That was before the server took its snapshot, so the age is never understated. `None`
    /// before the first read.
    at: Option<Moment>,
}

/// A point in time by both clocks. The monotonic clock may stand still while the machine is suspended; the wall clock
/// can be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// The moment that was `age` before.
    #[cfg(feature = "nats")]
    pub(crate) fn before(self, age: Duration) -> Option<Moment> {
        Some(Moment {
            monotonic: self.monotonic.checked_sub(age)?,
            wall: self.wall.checked_sub(age)?,
        })
    }

    /// The time since then, by the clock that shows more. Overstating an age is safe; understating it is not.
    pub(crate) fn elapsed(self) -> Duration {
        self.monotonic
            .elapsed()
            .max(self.wall.elapsed().unwrap_or_default())
    }
}

impl Proof {
    pub(crate) fn new(cut: Arc<Cut>, at: Option<Moment>) -> Proof {
        Proof(ArcSwap::from_pointee(Proven { cut, at }))
    }

    pub(crate) fn cut(&self) -> Arc<Cut> {
        Arc::clone(&self.0.load().cut)
    }

    /// About the next transaction id of the server, if transaction `xid` cannot have begun at `asked`: a read that began
    /// later found the server far from it. `None` if that is not certain. On a standby it never is, because the standby
    /// lags behind.
    pub(crate) fn cannot_have_begun(&self, xid: u64, asked: Moment) -> Option<u64> {
        // `xmax` follows the latest transaction that has *ended*. Those that have begun since may have greater ids, but
        // the ids in use never span more than half of the 32 bits that PostgreSQL stores of each.
        const SPAN: u64 = 1 << 31;
        let proven = self.0.load();
        let is_later = (proven.at).is_some_and(|at| at.monotonic >= asked.monotonic);
        let next = PgSnapshot::parse(&proven.cut.snapshot)?.xmax;
        let is_far = xid >= next.saturating_add(SPAN);
        (is_later && !proven.cut.standby && is_far).then_some(next)
    }

    /// Notes that the state also equals the database at this later cut. `at` is when the read began.
    pub(crate) fn renew(&self, cut: Arc<Cut>, at: Moment) {
        let at = Some(at);
        self.0.store(Arc::new(Proven { cut, at }));
    }
}

/// One committed state of the database, over all events at once. It never changes; a [`View`] holds it.
///
/// Lookups take no lock and do no I/O. They allocate nothing, except for the map that a lookup of several events
/// returns.
pub struct State {
    pub(crate) table: Table,
    pub(crate) epoch: u64,
    /// The publisher sets it.
    pub(crate) version: u64,
    /// [`Draft::digest`](crate::store::draft::Draft::digest) of what the state holds.
    pub(crate) digest: u128,
    pub(crate) stats: Stats,
    pub(crate) proof: Proof,
    pub(crate) unreadable: Vec<Fault>,
    /// What the relay passes on. Readers find these rows in the events.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "for the relay"))]
    pub(crate) bookmakers: Option<Arc<Bookmakers>>,
}

/// A [`State`] to hold: one committed state of the database, over all events at once. Its methods are those of
/// [`State`].
///
/// Take one view for a request that makes several lookups, so that they agree with each other. A clone counts one
/// reference. A view blocks nobody and may be held across threads and awaits; it only keeps its memory.
#[derive(Clone)]
pub struct View(pub(crate) Arc<State>);

impl View {
    /// Whether both are the same state, not merely equal ones.
    pub(crate) fn is(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for View {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl State {
    /// The state of a cache before its first warmup.
    pub(crate) fn empty() -> State {
        State {
            table: Table::default(),
            epoch: 0,
            version: 0,
            digest: 0,
            stats: Stats::default(),
            proof: Proof::new(Arc::default(), None),
            unreadable: Vec::new(),
            bookmakers: None,
        }
    }

    /// An event with all its snapshots. `None` if neither a bookmaker nor a competitor has one.
    pub fn event(&self, event_id: i64) -> Option<&CachedEvent> {
        self.table.get(event_id).map(|event| &**event)
    }

    /// The latest snapshots of an event in `odds_snapshots`: bookmaker id -> snapshot. `None` if there is none.
    pub fn get_betpawa_snapshot(&self, event_id: i64) -> Option<&BetpawaSnapshots> {
        self.event(event_id)
            .map(CachedEvent::betpawa)
            .filter(|snapshots| !snapshots.is_empty())
    }

    /// The latest snapshots of an event in `competitor_odds_snapshots`: source -> snapshot. `None` if there is none.
    pub fn get_competitor_snapshot(&self, event_id: i64) -> Option<&CompetitorSnapshots> {
        self.event(event_id)
            .map(CachedEvent::competitors)
            .filter(|snapshots| !snapshots.is_empty())
    }

    /// The same as [`State::get_betpawa_snapshot`] for several events: event id -> bookmaker id -> snapshot. Leaves out
    /// events that have none. Allocates the map.
    pub fn get_betpawa_snapshots(&self, event_ids: &[i64]) -> HashMap<i64, &BetpawaSnapshots> {
        event_ids
            .iter()
            .filter_map(|id| Some((*id, self.get_betpawa_snapshot(*id)?)))
            .collect()
    }

    /// The same as [`State::get_competitor_snapshot`] for several events: event id -> source -> snapshot. Leaves out
    /// events that have none. Allocates the map.
    pub fn get_competitor_snapshots(
        &self,
        event_ids: &[i64],
    ) -> HashMap<i64, &CompetitorSnapshots> {
        event_ids
            .iter()
            .filter_map(|id| Some((*id, self.get_competitor_snapshot(*id)?)))
            .collect()
    }

    /// When an event begins. UTC. `None` if the view does not hold the event, or if its kickoff is unknown.
    pub fn kickoff(&self, event_id: i64) -> Option<DateTime<Utc>> {
        self.event(event_id)?.kickoff()
    }

    /// The ids of all events, ascending. Allocates and sorts the list.
    pub fn event_ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.table.iter().map(|event| event.event_id).collect();
        ids.sort_unstable();
        ids
    }

    /// All events, in no particular order. Walks through memory mostly in sequence; allocates nothing.
    pub fn events(&self) -> impl Iterator<Item = &CachedEvent> {
        self.table.iter().map(|event| &**event)
    }

    /// How many events the view holds. Constant time.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the view holds no event, as before the first warmup.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the view holds and how much memory that takes, as counted when it was published.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The rows that this view lacks, or shows as last read, because the server cannot send them. Usually empty. At
    /// most 21 entries: if there are more, the last one says how many more. Neither locks nor allocates. See
    /// [`Status::Degraded`](crate::Status::Degraded).
    pub fn unreadable(&self) -> &[Fault] {
        &self.unreadable
    }

    /// The latest committed state of the database that was found to equal this view. It moves forward while nothing
    /// changes. Counts one reference.
    pub fn cut(&self) -> Arc<Cut> {
        self.proof.cut()
    }

    /// How long ago this view was last proven to equal the current state of the server, by the local clocks.
    /// `Duration::MAX` before the first warmup.
    ///
    /// The age grows while the database cannot be read, and once a newer view has been published. If the server is a
    /// standby, it may itself lag behind its primary.
    pub fn age(&self) -> Duration {
        self.proof
            .0
            .load()
            .at
            .map_or(Duration::MAX, Moment::elapsed)
    }

    /// Counts how often a warmup replaced the state instead of changes moving it forward: 0 before the first warmup,
    /// then 1, 2, ...
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Counts the states that were published since the handle was made: 0 before the first, then 1, 2, ... Two views of
    /// one handle with the same version hold the same data.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl State {
    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("cut", &self.cut())
            .field("epoch", &self.epoch())
            .field("events", &self.len())
            .field("digest", &format_args!("{:032x}", self.digest))
            .finish()
    }
}

/// Prints which state it is, not what it holds.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug("State", f)
    }
}

/// Prints which state it is, not what it holds.
impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug("View", f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a read of a primary that began after the question can say so, and only of ids that are far ahead: a
    /// transaction that has not ended may have an id beyond those of all that have.
    #[test]
    fn a_later_read_of_a_primary_tells_that_a_transaction_cannot_have_begun() {
        let cut = |standby| {
            let snapshot = "10:20:12".to_owned();
            let cut = Cut::default();
            Arc::new(Cut {
                snapshot,
                standby,
                ..cut
            })
        };
        let far = 20 + (1 << 31);
        let before = Moment::now();
        let at = Moment::now();
        let proof = Proof::new(cut(false), Some(at));
        assert_eq!(proof.cannot_have_begun(far, before), Some(20));
        assert_eq!(proof.cannot_have_begun(u64::MAX, before), Some(20));
        assert_eq!(proof.cannot_have_begun(far - 1, before), None);
        assert_eq!(proof.cannot_have_begun(12, before), None);
        let later = Moment {
            monotonic: at.monotonic + Duration::from_millis(1),
            ..at
        };
        assert_eq!(proof.cannot_have_begun(far, later), None);
        let of_standby = Proof::new(cut(true), Some(at));
        assert_eq!(of_standby.cannot_have_begun(far, before), None);
        let unproven = Proof::new(cut(false), None);
        assert_eq!(unproven.cannot_have_begun(far, before), None);
    }
}
