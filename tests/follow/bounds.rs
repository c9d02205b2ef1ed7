//! Each of these tests failed once, because the follower did not keep one of its documented bounds. The first line says
//! how.

use std::time::{Duration, Instant};

use oddscache::{Config, Counters, Error, Status, warm_up};
use oddscache_testkit::{
    Database, cluster, connect, eventually,
    followed::{Followed, rarely, run, shows},
};

/// Creates a role with the rights of the cache, runs `sql`, and returns the role's connection string.
fn reader(database: &Database, sql: &str) -> String {
    let role = database.reader();
    database.psql(&sql.replace("{role}", &role));
    cluster().dsn_as(&role, &database.name)
}

/// SQL that makes each read of `events` run the statement `otherwise`, except in a warmup. While nothing changes, only
/// the audit reads `events`. So only the audit fails.
fn only_the_audit_fails(otherwise: &str) -> String {
    format!(
        "create function trouble() returns boolean language plpgsql as $$ begin \
           if current_setting('statement_timeout') <> '5min' then {otherwise}; end if; return true; end $$; \
         alter table events enable row level security; create policy every_row on events using (trouble())"
    )
}

/// Follows until five steps of the audit have failed. Returns the number of reloads, and the epoch.
async fn after_failed_audits(dsn: &str) -> (u64, u64) {
    let followed = Followed::with(dsn, |config| {
        config
            .allow_row_security(true)
            .read_timeout(Duration::from_millis(500))
            .audit_cycle(Duration::from_secs(10))
            .audit_budget(1.0)
    })
    .await;
    let five = |now: &Counters| now.failures >= 5;
    followed.counted("five failed steps", five).await;
    (followed.reloads(), followed.epoch())
}

/// A step of the audit that took longer than `read_timeout` ended the connection. Each time, a warmup and a new epoch
/// followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_step_of_the_audit_does_not_end_the_connection() {
    let database = Database::seeded();
    let dsn = reader(&database, &only_the_audit_fails("perform pg_sleep(5)"));
    assert_eq!(after_failed_audits(&dsn).await, (1, 1));
}

/// After each error of the audit a warmup followed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_always_fails_causes_no_warmups() {
    let database = Database::seeded();
    let trouble = "raise exception 'trouble' using errcode = '53400'";
    let dsn = reader(&database, &only_the_audit_fails(trouble));
    assert_eq!(after_failed_audits(&dsn).await, (1, 1));
}

/// After a read gave way to a lock, the follower read again only at the next notification or poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_gave_way_is_made_once_the_lock_is_gone() {
    let database = Database::seeded();
    let followed = Followed::by_notifications(&database, "postgres").await;
    let other = connect(&database.dsn()).await;
    // With the bug the next poll or audit caused the read.
    let mut best = Duration::MAX;
    for line in 1..=5 {
        run(&other, "begin; lock table events in access exclusive mode").await;
        let failures = followed.cache.counters().failures;
        followed.set_line(line).await;
        let committed = followed.committed().await;
        let gave_way = |now: &Counters| now.failures > failures;
        followed.counted("gave way", gave_way).await;
        run(&other, "commit").await;
        let began = Instant::now();
        eventually("shown", async || shows(&followed.cache.view(), &committed)).await;
        best = best.min(began.elapsed());
    }
    assert!(best < Duration::from_secs(3), "{best:?}");
}

/// A budget of NaN ended the follower with a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_nan_does_not_panic() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .audit_budget("nan".parse().expect("a float"))
            .audit_cycle(Duration::from_secs(1))
    })
    .await;
    eventually("a pass", async || {
        assert!(!followed.follower.is_finished());
        followed.cache.counters().audit_passes > 0
    })
    .await;
}

/// What the listener sends resolved names by the role's search path. So another role's function could run with the
/// rights of the cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_does_not_depend_on_the_search_path() {
    let database = Database::seeded();
    let dsn = reader(
        &database,
        "create schema trap; create table trap.caught (how text); \
         grant usage on schema trap to {role}; grant insert on trap.caught to {role}; \
         alter role {role} set search_path = trap, public, pg_catalog; \
         create function trap.hashtextextended(text, int) returns bigint language sql as \
           $$ insert into trap.caught values ('run by the listener'); select 1::bigint $$; \
         create function trap.pg_advisory_unlock_all() returns void language sql as \
           $$ insert into trap.caught values ('run by the listener') $$",
    );
    let followed = Followed::beside(&dsn, &database.dsn(), |config| config).await;
    followed.live().await;
    followed.until_awake().await;
    assert_eq!(database.psql("select count(*) from trap.caught"), "0");
}

/// The status was live although the follower listened in another database. Changes in this database do not notify
/// there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_in_another_database_is_not_live() {
    let (database, another) = (Database::seeded(), Database::application());
    let listen = Config::new(&another.dsn()).expect("dsn");
    let followed = Followed::with(&database.dsn(), |config| config.listen_from(listen)).await;
    eventually("found out", async || {
        assert_ne!(followed.cache.status(), Status::Live);
        matches!(followed.cache.status(), Status::PollingOnly { reason } if reason.contains("another database"))
    })
    .await;
}

/// A role that is read-only by default was never live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_read_only_is_live() {
    let database = Database::seeded();
    let dsn = reader(
        &database,
        "alter role {role} set default_transaction_read_only = on",
    );
    let followed = Followed::with(&dsn, |config| config).await;
    followed.live().await;
}

/// The server refused the longest lookback, and its error did not name the setting.
#[tokio::test]
async fn the_longest_lookback_is_accepted() {
    let database = Database::seeded();
    let config = Config::new(&database.dsn()).expect("dsn");
    let view = warm_up(config.lookback(Duration::MAX)).await;
    assert!(view.is_ok(), "{view:?}");
}

/// After the listening connection was lost, the status stayed live until the next poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_changes_at_once_when_the_listening_connection_is_lost() {
    let database = Database::seeded();
    let role = format!("listener_of_{}", database.name);
    database.psql(&format!("create role {role} login superuser"));
    let listen = Config::new(&cluster().dsn_as(&role, &database.name)).expect("dsn");
    let config = |config| rarely(config).listen_from(listen);
    let followed = Followed::with(&database.dsn(), config).await;
    followed.live().await;
    let cache = &followed.cache;
    // The follower reads a few times once it listens. Wait for the last of these reads.
    let mut quiet = (Instant::now(), 0);
    eventually("a second without a read", async || {
        let reads = cache.counters().reads;
        if reads != quiet.1 {
            quiet = (Instant::now(), reads);
        }
        quiet.0.elapsed() > Duration::from_secs(1)
    })
    .await;
    database.psql(&format!(
        "alter role {role} nologin; select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'"
    ));
    eventually("not live", async || cache.status() != Status::Live).await;
}

/// Behind a pooler in transaction mode, server sessions went on listening after the follower had left them. The pooler
/// then gave them to other clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_of_a_pooler_is_left_listening() {
    use oddscache_testkit::pgbouncer::PgBouncer;
    let database = Database::seeded();
    let settings = ["pool_mode = transaction", "default_pool_size = 10"];
    let Some(pooler) = PgBouncer::start(cluster(), &settings).await else {
        return;
    };
    let name = format!("dbname={}", database.name);
    let dsn = pooler.dsn().replace("dbname=postgres", &name);
    let followed = Followed::with(&dsn, |config| config).await;
    followed.polling(&Error::Pooled.to_string()).await;
    // Keep all clients in a transaction at the same time, so that each has a session of its own.
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = connect(&dsn).await;
        run(&client, "begin").await;
        clients.push(client);
    }
    let mut listening = 0;
    for client in &clients {
        let sql = "select count(*) from pg_listening_channels()";
        let row = client.query_typed(sql, &[]).await.expect("counts");
        listening += row[0].get::<_, i64>(0);
    }
    assert_eq!(listening, 0);
}

/// The size of an audit step left out events without odds. With many of these, a pass took much longer than its cycle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_keeps_its_cycle_with_many_events_without_odds() {
    let database = Database::seeded();
    database.psql(
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
         select e, 'sr' || e, 'x', 'x', 'x', now() at time zone 'utc' + interval '1 day' from generate_series(1000, 6000) e",
    );
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(Duration::from_millis(10))
            .audit_cycle(Duration::from_secs(4))
            .audit_budget(1.0)
    })
    .await;
    followed.counted("a pass", |now| now.audit_passes > 0).await;
}
