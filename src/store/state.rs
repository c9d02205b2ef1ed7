//! What readers look things up in: one immutable committed state.
//!
//! | invariant | |
//! |---|---|
//! | V1 | a view never changes; the draft copies a page of the table before it writes to one that a view shares |
//! | V2 | each event in the table has at least one snapshot |
//! | V3 | a lookup takes no lock, allocates nothing and does no I/O |

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
    metrics::stats::Stats,
    model::{BetpawaSnapshots, CachedEvent, CompetitorSnapshots, PgSnapshot},
    store::table::Table,
};

/// The committed state of the database that a view equals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The database's clock (`now()`) in the transaction that read it; where that clock was put back by less than a minute,
    /// the time it had been at. UTC.
    pub as_of: DateTime<Utc>,
    /// `pg_current_snapshot()` of that transaction, as PostgreSQL prints it: `xmin:xmax:xip,...`
    pub snapshot: String,
    /// Only events with a kickoff after this are held: `as_of` less the lookback, never earlier than before. UTC.
    pub window_start: DateTime<Utc>,
    /// Whether the server was a standby (`pg_is_in_recovery()`), which may itself be behind its primary.
    pub standby: bool,
}

impl Cut {
    /// Whether this state surely contains what a transaction wrote, if it committed: `xid` is what
    /// `select pg_current_xact_id()` said in it. A standby does not tell which transactions were in progress, so there a
    /// transaction counts as contained only once all older ones have ended too. Parses `snapshot`; means nothing for a
    /// transaction of another server, or before the epoch changed.
    pub fn shows(&self, xid: u64) -> bool {
        PgSnapshot::parse(&self.snapshot).is_some_and(|snapshot| snapshot.shows(xid, self.standby))
    }
}

/// Up to which cut a state was found to be the database's. All holders of the view share it: a read that finds nothing new
/// moves it on.
pub(crate) struct Proof(ArcSwap<Proven>);

#[derive(Debug)]
struct Proven {
    cut: Arc<Cut>,
    /// Before the cut's snapshot was taken, so that the age is never understated; `None` before the first.
    at: Option<Moment>,
}

/// A point in time by both clocks: the monotonic one stands still while the machine is suspended, the other is set at will.
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

    /// The greater of what the two clocks say: too old is safe, too young is not.
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

    /// The state is also the database's at this later cut.
    pub(crate) fn renew(&self, cut: Arc<Cut>, at: Moment) {
        let at = Some(at);
        self.0.store(Arc::new(Proven { cut, at }));
    }
}

/// What a [`View`] holds: one committed state of the database, over all events at once, which never changes.
///
/// Lookups take no lock, allocate nothing (those of several events: the map they return) and do no I/O.
pub struct State {
    pub(crate) table: Table,
    pub(crate) epoch: u64,
    /// Given when it is published.
    pub(crate) version: u64,
    pub(crate) stats: Stats,
    pub(crate) proof: Proof,
}

/// One immutable committed state of the database, over all events at once; its lookups are those of [`State`].
///
/// Take one for a request that makes several lookups, so that they agree with each other. Holding it costs nobody anything
/// but its memory; it may cross threads and awaits.
#[derive(Clone)]
pub struct View(pub(crate) Arc<State>);

impl View {
    /// Whether it is this very state, not only an equal one.
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
    /// The state before the first warmup.
    pub(crate) fn empty() -> State {
        State {
            table: Table::default(),
            epoch: 0,
            version: 0,
            stats: Stats::default(),
            proof: Proof::new(Arc::default(), None),
        }
    }

    /// An event with all its snapshots; `None` unless one bookmaker or competitor at least has one.
    pub fn event(&self, event_id: i64) -> Option<&CachedEvent> {
        self.table.get(event_id).map(|event| &**event)
    }

    /// The latest snapshots of an event in `odds_snapshots`, by bookmaker; `None` if there is none.
    pub fn get_betpawa_snapshot(&self, event_id: i64) -> Option<&BetpawaSnapshots> {
        self.event(event_id)
            .map(CachedEvent::betpawa)
            .filter(|snapshots| !snapshots.is_empty())
    }

    /// The latest snapshots of an event in `competitor_odds_snapshots`, by source; `None` if there is none.
    pub fn get_competitor_snapshot(&self, event_id: i64) -> Option<&CompetitorSnapshots> {
        self.event(event_id)
            .map(CachedEvent::competitors)
            .filter(|snapshots| !snapshots.is_empty())
    }

    /// [`State::get_betpawa_snapshot`] of several events: event id -> bookmaker id -> snapshot. Events without are absent.
    pub fn get_betpawa_snapshots(&self, event_ids: &[i64]) -> HashMap<i64, &BetpawaSnapshots> {
        event_ids
            .iter()
            .filter_map(|id| Some((*id, self.get_betpawa_snapshot(*id)?)))
            .collect()
    }

    /// [`State::get_competitor_snapshot`] of several events: event id -> source -> snapshot. Events without are absent.
    pub fn get_competitor_snapshots(
        &self,
        event_ids: &[i64],
    ) -> HashMap<i64, &CompetitorSnapshots> {
        event_ids
            .iter()
            .filter_map(|id| Some((*id, self.get_competitor_snapshot(*id)?)))
            .collect()
    }

    /// When an event begins, UTC; `None` if it is absent or nobody said.
    pub fn kickoff(&self, event_id: i64) -> Option<DateTime<Utc>> {
        self.event(event_id)?.kickoff()
    }

    /// The ids of all events, ascending. Allocates the list and sorts it.
    pub fn event_ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.table.iter().map(|event| event.event_id).collect();
        ids.sort_unstable();
        ids
    }

    /// All events, in no order that means anything; in memory mostly one after the other.
    pub fn events(&self) -> impl Iterator<Item = &CachedEvent> {
        self.table.iter().map(|event| &**event)
    }

    /// How many events it holds. Reads a number.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether it holds no event; so does the view before the first warmup.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds and what that weighs, counted when it was published.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The latest committed state of the database that was found to equal this view. Moves on while nothing changes.
    /// Counts one reference.
    pub fn cut(&self) -> Arc<Cut> {
        self.proof.cut()
    }

    /// How long ago this view was last proven to be the current state of the server it is read from, by the local clocks;
    /// `Duration::MAX` before the first warmup. It runs on from the moment a newer view is published, or the database
    /// cannot be read. A server that is a standby may itself be behind its primary.
    pub fn age(&self) -> Duration {
        self.proof
            .0
            .load()
            .at
            .map_or(Duration::MAX, Moment::elapsed)
    }

    /// Changes when the state was replaced after a warmup instead of moved forward: 0 before the first, then 1, 2, ...
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Counts the states that were published since the handle was made: 0 before the first, then 1, 2, ... Two states of one
    /// handle hold the same exactly if this is the same; nothing changes for as long as it stays.
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
            .finish()
    }
}

/// Which state it is, not all that it holds.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug("State", f)
    }
}

/// Which state it is, not all that it holds.
impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debug("View", f)
    }
}
