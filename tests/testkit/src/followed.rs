//! A followed cache, and a connection that plays the application.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oddscache::{Config, Counters, Error, OddsCache, Status, Timings, View};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::{Database, assert_same, cluster, connect, dump, eventually, oracle};

/// The transactions that a `pg_snapshot` shows.
#[derive(Debug, PartialEq)]
pub struct Shown {
    xmax: u64,
    in_progress: Vec<u64>,
}

impl Shown {
    /// Parses `xmin:xmax:xip,...`. `None` while there is no snapshot.
    pub fn parse(snapshot: &str) -> Option<Shown> {
        let mut parts = snapshot.split(':').skip(1);
        let number = |text: &str| text.parse().expect("a transaction id");
        let xmax = number(parts.next()?);
        let list = parts.next().expect("a list").split(',');
        let in_progress = list.filter(|xid| !xid.is_empty()).map(number).collect();
        Some(Shown { xmax, in_progress })
    }

    /// Whether the snapshot shows this transaction, provided that it has committed.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && !self.in_progress.contains(&xid)
    }

    /// Whether it shows all transactions that `earlier` shows. A greater `xmax` alone does not prove that, because
    /// other tests use the same cluster.
    pub fn includes(&self, earlier: &Shown) -> bool {
        let hidden = |xid: &&u64| **xid < earlier.xmax && !earlier.in_progress.contains(xid);
        self.xmax >= earlier.xmax && !self.in_progress.iter().any(|xid| hidden(&xid))
    }
}

#[derive(Debug)]
pub struct Followed {
    pub cache: OddsCache,
    pub app: Client,
    pub follower: JoinHandle<Result<(), Error>>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Neither polls nor audits within the time of a test. So only notifications bring changes.
pub fn rarely(config: Config) -> Config {
    config
        .poll_interval(Duration::from_secs(3600))
        .audit_cycle(Duration::from_secs(600_000))
}

const READER_WAITS: &str = "select exists (select from pg_locks l join pg_stat_activity a using (pid) where not l.granted
    and l.database = (select oid from pg_database where datname = current_database()) and a.application_name = 'oddscache follow')";

/// How to follow.
impl Followed {
    pub async fn new(database: &Database) -> Followed {
        Followed::with(&database.dsn(), |config| config).await
    }

    /// A cache that follows a database of its own with the seed.
    pub async fn seeded() -> Followed {
        Followed::new(&Database::seeded()).await
    }

    /// Follows with a short poll interval, so that a test does not depend on notifications.
    pub async fn with(dsn: &str, change: impl FnOnce(Config) -> Config) -> Followed {
        Followed::beside(dsn, dsn, change).await
    }

    /// Follows one server while the application writes to another, or as another role.
    pub async fn beside(dsn: &str, app: &str, change: impl FnOnce(Config) -> Config) -> Followed {
        let often = Duration::from_millis(50);
        let config = Config::new(dsn).expect("dsn").poll_interval(often);
        Followed::start(change(config), app).await
    }

    /// Follows with exactly this configuration.
    pub async fn start(config: Config, app: &str) -> Followed {
        let app = connect(app).await;
        let (cache, follower) = OddsCache::connect(config);
        let follower = tokio::spawn(follower.run());
        cache.ready().await.expect("warm");
        Followed {
            cache,
            app,
            follower,
        }
    }

    /// Follows as this role, by notifications only.
    pub async fn by_notifications(database: &Database, role: &str) -> Followed {
        let dsn = cluster().dsn_as(role, &database.name);
        let followed = Followed::beside(&dsn, &database.dsn(), rarely).await;
        followed.live().await;
        followed
    }
}

/// What the application does.
impl Followed {
    pub async fn run(&self, sql: &str) {
        run(&self.app, sql).await;
    }

    /// Runs a statement, and compares the cache with the oracle. Returns the events.
    pub async fn step(&self, sql: &str) -> Vec<Value> {
        self.run(sql).await;
        self.check(sql).await
    }

    /// Runs a step that must change what the cache holds. Otherwise it would prove nothing.
    pub async fn changes(&self, sql: &str) -> Vec<Value> {
        // Not `check`: without a change nothing may make the follower read.
        let before = self.oracle(self.cache.view().cut().window_start).await;
        let after = self.step(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        after
    }

    /// Sets the line of snapshot 112's markets.
    pub async fn set_line(&self, line: i32) {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        self.run(&sql).await;
    }

    /// Deletes a betPawa snapshot.
    pub async fn delete(&self, snapshot: i64) {
        let sql = format!("delete from odds_snapshots where id = {snapshot}");
        self.run(&sql).await;
    }

    /// Terminates the follower's backend of this purpose: `follow` or `listen`.
    pub async fn terminate(&self, purpose: &str) {
        let sql = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
             where datname = current_database() and application_name = 'oddscache {purpose}'"
        );
        let row = self.app.query_one(&sql, &[]).await.expect("terminated");
        assert_eq!(row.get::<_, i64>(0), 1, "one backend");
    }
}

/// What the cache shows.
impl Followed {
    /// The transactions that are committed now.
    pub async fn committed(&self) -> Shown {
        let sql = "select pg_current_snapshot()::text";
        let row = self.app.query_one(sql, &[]).await.expect("a snapshot");
        Shown::parse(row.get(0)).expect("a snapshot")
    }

    /// Waits for a view that shows every transaction committed by now.
    pub async fn caught_up(&self, what: &str) -> View {
        let committed = self.committed().await;
        let mut notified_at = Instant::now();
        eventually(what, async || {
            // Other tests commit in the same cluster. Nothing makes a follower that hardly ever polls read these. What
            // concerns it must reach it without this.
            if notified_at.elapsed() > Duration::from_secs(5) && self.shows_the_log().await {
                notified_at = Instant::now();
                let _ = self.app.batch_execute("notify oddscache").await;
            }
            shows(&self.cache.view(), &committed)
        })
        .await;
        self.cache.view()
    }

    /// Whether the view shows each transaction in the change log. Also if there is no log.
    async fn shows_the_log(&self) -> bool {
        let sql = "select distinct xid::text from oddscache.change_log";
        let rows = self.app.query(sql, &[]).await.unwrap_or_default();
        let view = self.cache.view();
        let is_shown = |xid: &str| xid.parse().is_ok_and(|xid| view.cut().shows(xid));
        rows.iter().all(|row| is_shown(row.get(0)))
    }

    pub async fn oracle(&self, window_start: DateTime<Utc>) -> Vec<Value> {
        oracle(&self.app, window_start).await
    }

    /// Waits for a view that shows every transaction committed by now, and compares it with the oracle. Returns the
    /// events.
    pub async fn check(&self, what: &str) -> Vec<Value> {
        let view = self.caught_up(what).await;
        let expected = self.oracle(view.cut().window_start).await;
        assert_same(&dump(&view), &expected, what);
        assert_totals(&view, &expected, what);
        expected
    }

    /// Waits for a state of this epoch, and compares it with the oracle. A state of an older epoch may show
    /// transactions that the server has lost.
    pub async fn check_epoch(&self, epoch: u64, what: &str) -> Vec<Value> {
        eventually(what, async || self.epoch() >= epoch).await;
        let held = self.check(what).await;
        assert_eq!(self.epoch(), epoch, "{what}");
        held
    }

    /// Checks the view while nothing can be read. It equals `before`, and its age is at least the time since `gone`.
    pub async fn ages(&self, before: &[Value], epoch: u64, gone: Instant) {
        let view = self.cache.view();
        eventually("ages", async || view.age() > Duration::from_millis(300)).await;
        let at_least = gone.elapsed();
        let view = self.cache.view();
        assert!(view.age() >= at_least, "{:?} < {at_least:?}", view.age());
        assert_eq!(view.epoch(), epoch);
        assert_eq!(dump(&view), before);
    }

    pub fn epoch(&self) -> u64 {
        self.cache.view().epoch()
    }

    /// The number of reloads, with the first warmup.
    pub fn reloads(&self) -> u64 {
        self.cache.counters().reloads
    }
}

/// The status of the follower, and what it counts.
impl Followed {
    pub async fn live(&self) {
        eventually("live", async || self.cache.status() == Status::Live).await;
    }

    /// Waits until the follower only polls, for a reason that contains this word.
    pub async fn polling(&self, word: &str) {
        eventually("polling", async || {
            matches!(self.cache.status(), Status::PollingOnly { reason } if reason.contains(word))
        })
        .await;
    }

    /// Waits until the follower has given up its connection. Returns the error.
    pub async fn disconnected(&self) -> Error {
        self.disconnected_by(|_| true).await
    }

    /// The same, but waits for an error of this kind.
    pub async fn disconnected_by(&self, is_it: impl Fn(&Error) -> bool) -> Error {
        let mut found = None;
        eventually("disconnected", async || {
            found = match self.cache.status() {
                Status::Disconnected { error, .. } => Some(error).filter(&is_it),
                _ => None,
            };
            found.is_some()
        })
        .await;
        found.expect("just seen")
    }

    /// Waits until the counters meet a condition. Returns the counters.
    pub async fn counted(&self, what: &str, is_so: impl Fn(&Counters) -> bool) -> Counters {
        eventually(what, async || is_so(&self.cache.counters())).await;
        self.cache.counters()
    }

    /// Waits until the audit has made one whole pass. A pass may already be under way, so this waits for the end of two.
    pub async fn audited(&self) -> Counters {
        let before = self.cache.counters().audit_passes;
        let two_more = |now: &Counters| now.audit_passes >= before + 2;
        self.counted("two passes of the audit", two_more).await
    }

    /// Waits until this many more reads have failed.
    pub async fn fails(&self, times: u64) {
        let before = self.cache.counters().failures;
        let failed = |counters: &Counters| counters.failures >= before + times;
        self.counted("reads fail", failed).await;
    }

    /// Waits until this many commits are timed.
    pub async fn timed(&self, count: u64) -> Timings {
        let commits = || self.cache.timings().commit_to_visible.count;
        eventually("commits are timed", async || commits() >= count).await;
        self.cache.timings()
    }

    /// Waits until the follower waits for notifications, and has read since.
    pub async fn listening(&self) -> Counters {
        self.live().await;
        let reads = self.cache.counters().reads;
        self.counted("two reads", |now| now.reads > reads + 1).await
    }

    /// Checks that a notification brings a change, and that the follower lost no connection.
    pub async fn follows_by_notifications(&self) {
        self.set_line(7).await;
        self.check("by notification").await;
        assert_eq!(self.cache.counters().reconnects, 0);
        assert_eq!(self.cache.status(), Status::Live);
        assert_eq!(self.epoch(), 1);
    }

    /// The number of sessions that make writers notify.
    pub async fn waiting(&self) -> i64 {
        let sql = "select count(*) from pg_locks l join pg_database d on d.oid = l.database
            where l.locktype = 'advisory' and l.mode = 'ShareLock' and l.granted and d.datname = current_database()";
        let row = self.app.query_one(sql, &[]).await.expect("locks");
        row.get(0)
    }

    /// Commits small transactions until no follower waits for notifications.
    pub async fn until_awake(&self) {
        let mut line = 0;
        for often in [20, 1] {
            eventually("nobody waits for notifications", async || {
                line += 1;
                self.set_line(line).await;
                line % often != 0 || self.waiting().await == 0
            })
            .await;
        }
    }

    pub async fn reader_waits(&self) {
        eventually("the reader waits", async || {
            let row = self.app.query_one(READER_WAITS, &[]).await.expect("locks");
            row.get(0)
        })
        .await;
    }
}

pub fn shows(view: &View, committed: &Shown) -> bool {
    Shown::parse(&view.cut().snapshot).is_some_and(|shown| shown.includes(committed))
}

/// The totals of a view equal what its events hold.
fn assert_totals(view: &View, events: &[Value], what: &str) {
    let side = |event: &Value, side: &str| event[side].as_object().expect("a map").clone();
    let snapshots = |name| events.iter().map(move |event| side(event, name));
    let some = |name| snapshots(name).filter(|map| !map.is_empty()).count();
    let all = || snapshots("betpawa").chain(snapshots("competitors"));
    let markets = |map: &serde_json::Map<String, Value>| -> usize {
        let lists = map.values().map(|snapshot| snapshot["markets"].as_array());
        lists.map(|list| list.expect("a list").len()).sum()
    };
    let stats = view.stats();
    let counted = [
        stats.betpawa_events,
        stats.competitor_events,
        stats.total_snapshots,
        stats.total_markets,
    ];
    let held = [
        some("betpawa"),
        some("competitors"),
        all().map(|map| map.len()).sum(),
        all().map(|map| markets(&map)).sum(),
    ];
    assert_eq!(counted, held, "{what}: totals");
}

/// Runs statements. Fails the test unless they succeed.
pub async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

/// Two events of the coming days, one just inside the window of two hours (3) and one just outside it (4). Each has an
/// older and a newer snapshot of two bookmakers and two sources. Each of these snapshots has two markets.
///
/// An id says what the row belongs to:
/// - A snapshot of bookmaker `b` is `event * 100 + b * 10 + age`. Age 1 is the older, 2 the newer.
/// - A competitor event of sportybet has the id of its event, and one of bet9ja has ten more. Of sportybet, 21 is
///   linked to no event.
/// - A competitor's snapshot is `competitor event * 10 + age`.
/// - A market is `snapshot * 10 + 1` or `+ 2`. Its prices follow from its id.
pub const SEED: &str = r#"
insert into bookmakers (id, name, slug) values (1, 'betpawa', 'betpawa'), (2, 'other', 'other');
insert into sports (id, name) values (1, 'Football');
insert into tournaments (id, sport_id, name, country) values (1, 1, 'Premier League', 'England'), (2, null, 'Cup', null);
insert into events (id, tournament_id, sportradar_id, name, home_team, away_team, kickoff)
select e, (array[1, 2, null, 1])[e], 'sr' || e, 'home ' || e || ' - away ' || e, 'home ' || e, 'away ' || e,
       now() at time zone 'UTC' + case e when 3 then interval '-110 minutes' when 4 then interval '-130 minutes'
                                       else e * interval '1 day' end
from generate_series(1, 4) e;
insert into odds_snapshots (id, event_id, bookmaker_id, captured_at, raw_response, last_confirmed_at)
select e * 100 + b * 10 + age, e, b, now() at time zone 'UTC' - (3 - age) * interval '10 minutes', '{"raw": true}',
       case b when 1 then now() at time zone 'UTC' - interval '1 minute' end
from generate_series(1, 4) e, generate_series(1, 2) b, generate_series(1, 2) age;
insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
select c, case when c between 11 and 14 then 'bet9ja' else 'sportybet' end, case when c < 20 then c % 10 end,
       now() at time zone 'UTC', 'x' || c, 'sr' || c
from unnest(array[1, 2, 3, 4, 11, 12, 13, 14, 21]) c;
insert into competitor_odds_snapshots (id, competitor_event_id, captured_at)
select c.id * 10 + age, c.id, now() at time zone 'UTC' - (3 - age) * interval '10 minutes'
from competitor_events c, generate_series(1, 2) age;
insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups)
select s.id * 10 + m, s.id, (array['3743', '5000'])[m], (array['1X2', 'Over/Under'])[m], (array[null, 2.5])[m],
       jsonb_build_array(
           jsonb_build_object('name', (array['1', 'Over'])[m], 'odds', 1 + (s.id * 10 + m) / 1000.0, 'is_active', true),
           jsonb_build_object('name', (array['2', 'Under'])[m], 'odds', 3 + (s.id * 10 + m) / 1000.0, 'is_active', m = 1)),
       '["main"]'
from odds_snapshots s, generate_series(1, 2) m;
insert into competitor_market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, handicap_type, handicap_home,
    handicap_away, outcomes, unavailable_at)
select s.id * 10 + m, s.id, (array['3743', '4693'])[m], (array['1X2', 'Handicap'])[m], (array[null, 'asian'])[m],
       (array[null, -0.5])[m], (array[null, 0.5])[m],
       jsonb_build_array(jsonb_build_object('name', '1', 'odds', 1 + (s.id * 10 + m) / 1000.0)),
       case when m = 2 and s.id % 10 = 1 then now() at time zone 'UTC' end
from competitor_odds_snapshots s, generate_series(1, 2) m;
"#;

impl Database {
    /// A database with the change feed and [`SEED`]. The first call creates a template, which is then copied.
    pub fn seeded() -> Database {
        static TEMPLATE: std::sync::OnceLock<Database> = std::sync::OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let database = Database::with_feed();
            database.psql(SEED);
            database
        });
        Database::copy(&template.name)
    }
}
