//! The database of a campaign, and the state that its parts share. Groups of events keep invariants. Free events keep
//! none.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache::{OddsCache, sql::Script};
use oddscache_testkit::cluster::Cluster;
use tokio_postgres::{Client, NoTls};

use crate::{kinds, ledger::Ledger, plan::Kind, report::Report};

/// The number of groups. A transaction that writes odds of a group gives all its events one new generation. It does so
/// for betPawa and for a competitor.
pub(crate) const GROUPS: usize = 4;

/// The number of events in a group.
pub(crate) const MEMBERS: i64 = 4;

/// Free events have the ids from 1 to this.
pub(crate) const FREE: i64 = 12;

/// The id of the event for writes that only the audit finds. No other transaction writes to it.
pub(crate) const UNSEEN: i64 = 500;

/// The id of the event for rows that cannot be read, and for rows in odd partitions. No other transaction writes to it,
/// except for confirmations.
pub(crate) const QUIET: i64 = 2_000;

/// The first value of every amount.
pub(crate) const AMOUNT: i64 = 100;

/// The ids of a group's first and last event.
pub(crate) fn members(group: usize) -> (i64, i64) {
    let first = 1_000 + 10 * group as i64;
    (first, first + MEMBERS - 1)
}

/// The sum of a group's amounts, of betPawa and the competitor together. It is constant.
pub(crate) const SUM: i64 = 2 * AMOUNT * MEMBERS;

pub(crate) const SETTINGS: &[&str] = &[
    "fsync = off",
    "max_connections = 60",
    "max_prepared_transactions = 20",
    "shared_buffers = '64MB'",
    // With these settings a crash does lose asynchronous commits.
    "wal_writer_delay = '10s'",
    "wal_writer_flush_after = '128MB'",
];

/// The name of the socket at [`World::address`].
const SOCKET: &str = ".s.PGSQL.5432";

/// The first rows. Event 99 is long past. The markets `bulk` and `wide` belong to no snapshot. A line may have any number
/// of digits, so that one can be out of the range of a double.
const DATA: &str = r#"
alter table market_odds alter column line type numeric;
create schema campaign;
create table campaign.flushed (at timestamptz);
create table campaign.groups (id int primary key);
insert into campaign.groups select generate_series(0, {groups} - 1);
insert into bookmakers (id, name, slug) select b, 'b' || b, 'b' || b from generate_series(1, 3) b;
insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
select e, 'sr' || e, '', '', '', now() at time zone 'UTC'
    + case when e < 1000 and e % 6 = 0 then interval '-3 hours' when e = 99 then interval '-30 days' else interval '1 day' end
from (select generate_series(1, {free}) union select 99 union select {unseen} union select {quiet}
      union select 1000 + 10 * g + m from generate_series(0, {groups} - 1) g, generate_series(0, {members} - 1) m) as e(e);
insert into odds_snapshots (event_id, bookmaker_id) select e.id, b from events e, generate_series(1, 2) b where e.id <> 99;
insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups)
select s.id, case bookmaker_id when 1 then 'gen' else 'amount' end, 'Marker', case bookmaker_id when 1 then 1 else {amount} end,
       '[{"name": "1", "odds": 1.5}]', '["main"]'
from odds_snapshots s;
insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
select k * 10000 + e.id, case k when 2 then 'bet9ja' else 'sportybet' end, case when k < 3 then e.id end, e.kickoff, 'x' || k || e.id, ''
from events e, generate_series(1, 3) k where e.id <> 99;
insert into competitor_odds_snapshots (competitor_event_id) select c.id from competitor_events c where c.id < 30000;
insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
select s.id, case c.source when 'sportybet' then 'gen' else 'amount' end, 'Marker', case c.source when 'sportybet' then 1 else {amount} end,
       '[{"name": "1", "odds": 1.5}]'
from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id;
insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
select 50000000 + n, 'bulk', '', '[]' from generate_series(1, 20100) n;
insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
select 60000000 + n * 1024, 'wide', '', '[]' from generate_series(1, 20100) n;
create role stranger login;
"#;

/// Starts a cluster and creates the database of a campaign.
pub(crate) fn cluster() -> Cluster {
    let cluster = Cluster::start(SETTINGS).expect("a private PostgreSQL cluster");
    let data = DATA
        .replace("{groups}", &GROUPS.to_string())
        .replace("{members}", &MEMBERS.to_string())
        .replace("{free}", &FREE.to_string())
        .replace("{unseen}", &UNSEEN.to_string())
        .replace("{quiet}", &QUIET.to_string())
        .replace("{amount}", &AMOUNT.to_string());
    let old = "create table odds_snapshots_old partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01')";
    let grants = Script::Grants.fill(&[("prune", "on")]).expect("a setting");
    for args in [
        ["-qf", "src/demo/schema.sql"].as_slice(),
        &["-qc", old],
        &["-qf", "sql/install.sql"],
        &["-qc", &grants],
        &["-qc", &data],
    ] {
        cluster.psql_ok("postgres", args);
    }
    cluster
}

/// The state that all parts of a campaign share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    /// The current primary. A failover replaces it.
    cluster: Mutex<Arc<Cluster>>,
    /// Has the file of the service's clock, and a socket that leads to the current primary, as a virtual address does.
    pub(crate) home: tempfile::TempDir,
    pub(crate) ledger: Ledger,
    pub(crate) report: Report,
    pub(crate) active: Active,
    /// The kind of transaction that clients run more often during a fault.
    pub(crate) bias: Mutex<Option<kinds::Kind>>,
    /// Odd while commits may get lost. Each change adds one.
    durability: AtomicU64,
    pub(crate) failovers: AtomicU64,
    /// The market rows that cannot be read, until the next pause corrects them.
    pub(crate) poisoned: Mutex<Vec<i64>>,
    /// Whether clients avoid transactions that cause a reload.
    pub(crate) ordinary: AtomicBool,
    /// Whether clients mostly update prices, without pauses, so that many states are published.
    pub(crate) quick: AtomicBool,
    /// Clients stop when this is set. Readers stop when `ended` is set.
    pub(crate) round_over: AtomicBool,
    pub(crate) ended: AtomicBool,
    pub(crate) round: AtomicU64,
    /// How many differences the audit may find. If it finds more, the follower missed a change.
    pub(crate) mismatches: Arc<AtomicU64>,
    /// The embedded cache, once it is warm.
    pub(crate) cache: OnceLock<OddsCache>,
    violation: Mutex<Option<String>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let world = World {
            seed,
            cluster: Mutex::new(Arc::new(cluster())),
            home: tempfile::tempdir_in("/tmp").expect("a directory"),
            ledger: Ledger::new(GROUPS),
            report: Report::default(),
            active: Active::default(),
            bias: Mutex::default(),
            durability: AtomicU64::new(0),
            failovers: AtomicU64::new(0),
            poisoned: Mutex::default(),
            ordinary: AtomicBool::new(false),
            quick: AtomicBool::new(false),
            round_over: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            round: AtomicU64::new(0),
            mismatches: Arc::default(),
            cache: OnceLock::new(),
            violation: Mutex::new(None),
        };
        world.move_address(&world.cluster());
        world
    }

    /// The current primary.
    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.lock().expect("not poisoned"))
    }

    /// Makes another server the primary. Returns the former one.
    pub(crate) fn replace_cluster(&self, by: Cluster) -> Arc<Cluster> {
        let by = Arc::new(by);
        self.move_address(&by);
        std::mem::replace(&mut *self.cluster.lock().expect("not poisoned"), by)
    }

    fn move_address(&self, cluster: &Cluster) {
        let socket = format!(".s.PGSQL.{}", cluster.port());
        let (address, new) = (self.home.path().join(SOCKET), self.home.path().join("new"));
        let link = symlink(cluster.socket_dir().join(socket), &new);
        link.and_then(|()| fs::rename(new, address))
            .expect("a symbolic link");
    }

    /// The connection string of the address that always leads to the current primary.
    pub(crate) fn address(&self) -> String {
        let home: &Path = self.home.path();
        let host = home.display();
        format!("host={host} port=5432 user=oddscache dbname=postgres")
    }

    /// The number by which a client knows whether its commit is durable. See [`World::is_durable`].
    pub(crate) fn durability(&self) -> u64 {
        self.durability.load(Ordering::SeqCst)
    }

    /// Whether a transaction that began at this number, and whose COMMIT was answered, cannot get lost.
    pub(crate) fn is_durable(&self, began: u64) -> bool {
        began.is_multiple_of(2) && self.durability() == began
    }

    /// Begins or ends a time in which commits may get lost.
    pub(crate) fn change_durability(&self) {
        self.durability.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn dsn(&self) -> String {
        self.cluster().dsn("postgres")
    }

    /// Records a broken promise, if it is the first, and ends the campaign.
    pub(crate) fn violate(&self, check: &str, what: impl std::fmt::Display) {
        let mut violation = self.violation.lock().expect("not poisoned");
        if violation.is_none() {
            let round = self.round.load(Ordering::Relaxed);
            let faults = self.active.names();
            *violation = Some(format!(
                "check `{check}`: {what}\nround {round}, faults active or just over: {faults}"
            ));
        }
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.violation.lock().expect("not poisoned").clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.violation().is_some()
    }

    /// Connects as the superuser. Waits for up to a minute while the server starts.
    pub(crate) async fn connect(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match tokio_postgres::connect(&self.dsn(), NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < deadline, "no connection: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The active faults, and those that ended recently.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<Vec<Span>>);

#[derive(Debug, Clone, Copy)]
struct Span {
    kind: Kind,
    began: Instant,
    ended: Option<Instant>,
    recovered: bool,
}

impl Span {
    /// Whether the fault is still active or ended less than this long ago.
    fn ended_within(&self, time: Duration) -> bool {
        self.ended.is_none_or(|ended| ended.elapsed() < time)
    }
}

/// A fault may still have effects for this time after its end. `Active` remembers faults for twice as long.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(20);

impl Active {
    fn spans(&self) -> std::sync::MutexGuard<'_, Vec<Span>> {
        self.0.lock().expect("not poisoned")
    }

    pub(crate) fn begin(&self, kind: Kind) {
        self.spans().push(Span {
            kind,
            began: Instant::now(),
            ended: None,
            recovered: false,
        });
    }

    pub(crate) fn end(&self, kind: Kind) {
        let mut spans = self.spans();
        let mut newest = spans.iter_mut().rev();
        if let Some(span) = newest.find(|span| span.kind == kind && span.ended.is_none()) {
            span.ended = Some(Instant::now());
        }
        spans.retain(|span| span.ended_within(2 * AFTERMATH));
    }

    /// The faults that are active, and those from which no reader has seen a recovery yet.
    pub(crate) fn now(&self) -> Vec<Kind> {
        let spans = self.spans();
        let now = spans.iter().filter(|span| !span.recovered);
        now.map(|span| span.kind).collect()
    }

    /// Records that a view was proven current at this moment. So the follower has recovered from all faults that ended
    /// before. Returns the time that each recovery took.
    pub(crate) fn recover(&self, proven: Instant) -> Vec<(Kind, Duration)> {
        let mut spans = self.spans();
        let over = spans
            .iter_mut()
            .filter(|span| !span.recovered && span.ended.is_some_and(|ended| ended < proven));
        over.map(|span| {
            span.recovered = true;
            (span.kind, span.ended.unwrap_or(span.began).elapsed())
        })
        .collect()
    }

    fn names(&self) -> String {
        let spans = self.spans();
        let recent = spans.iter();
        let recent = recent.filter(|span| span.ended_within(Duration::from_secs(10)));
        let name = |span: &Span| match span.ended {
            Some(at) => format!("{}, ended {:?} ago", span.kind.name(), at.elapsed()),
            None => span.kind.name().to_owned(),
        };
        let names: Vec<String> = recent.map(name).collect();
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join("; "),
        }
    }
}
