//! Each of these once showed the follower fall short of what it says of its bounds. The first line says how.

use std::time::{Duration, Instant};

use oddscache::{Config, Error, OddsCache, Status, sql::Script, warm_up};
use oddscache_testkit::{
    Database, cluster, connect, eventually,
    followed::{Followed, run},
    run_script,
};

/// A role with the cache's rights, for a database in which it is subject to what `sql` says.
fn reader(database: &Database, sql: &str) -> String {
    let role = format!("reader_of_{}", database.name);
    run_script(&database.name, Script::Grants, &[("role", &role)]);
    database.psql(&sql.replace("{role}", &role));
    cluster().dsn_as(&role, &database.name)
}

/// Rows of `events` are readable to a warmup, and not to a read of changes: only the audit of a quiet database reads those.
fn only_the_audit_fails(otherwise: &str) -> String {
    format!(
        "create function trouble() returns boolean language plpgsql as $$ begin \
           if current_setting('statement_timeout') <> '5min' then {otherwise}; end if; return true; end $$; \
         alter table events enable row level security; create policy every_row on events using (trouble())"
    )
}

/// Follows until five steps of the audit have failed; returns what became of the rest meanwhile.
async fn after_failed_audits(dsn: &str) -> (u64, u64) {
    let followed = Followed::with(dsn, |config| {
        config
            .allow_row_security(true)
            .read_timeout(Duration::from_millis(500))
            .audit_cycle(Duration::from_secs(10))
            .audit_budget(1.0)
    })
    .await;
    eventually("five failed steps", async || {
        followed.cache.counters().failures >= 5
    })
    .await;
    (
        followed.cache.counters().reloads,
        followed.cache.view().epoch(),
    )
}

/// A step of the audit that took longer than `read_timeout` cost the connection, a warmup and the epoch, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_step_of_the_audit_does_not_bring_the_follower_down() {
    let database = Database::seeded();
    let dsn = reader(&database, &only_the_audit_fails("perform pg_sleep(5)"));
    assert_eq!(after_failed_audits(&dsn).await, (1, 1));
}

/// An error of the audit was answered by a warmup without a pause, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_always_fails_is_not_answered_by_ceaseless_warmups() {
    let database = Database::seeded();
    let trouble = "raise exception 'trouble' using errcode = '22012'";
    let dsn = reader(&database, &only_the_audit_fails(trouble));
    assert_eq!(after_failed_audits(&dsn).await, (1, 1));
}

/// After a lock was in the way, the read that it kept from being done waited for another bell or the poll interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_gave_way_is_done_once_the_lock_is_gone() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .poll_interval(Duration::from_secs(600))
            .audit_cycle(Duration::from_secs(600_000))
    })
    .await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    let other = connect(&database.dsn()).await;
    // Without the mend a heartbeat brought it, more than 4 s later each time.
    let mut best = Duration::MAX;
    for line in 1..=5 {
        run(&other, "begin; lock table events in access exclusive mode").await;
        let failures = followed.cache.counters().failures;
        followed
            .run(&format!(
                "update market_odds set line = {line} where snapshot_id = 112"
            ))
            .await;
        let committed = followed.committed().await;
        eventually("gave way", async || {
            followed.cache.counters().failures > failures
        })
        .await;
        run(&other, "commit").await;
        let began = Instant::now();
        eventually("shown", async || {
            oddscache_testkit::followed::shows(&followed.cache.view(), &committed)
        })
        .await;
        best = best.min(began.elapsed());
    }
    assert!(best < Duration::from_secs(3), "{best:?}");
}

/// A budget that is no number ended the follower with a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_no_number_does_not_panic() {
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

/// The role's search path had a say in what the heartbeat is, and what it named was run with the cache's rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_is_not_led_astray_by_the_search_path() {
    let database = Database::seeded();
    let dsn = reader(
        &database,
        "create schema trap; create table trap.caught (how text); \
         grant usage on schema trap to {role}; grant insert on trap.caught to {role}; \
         alter role {role} set search_path = trap, public, pg_catalog; \
         create function trap.format(text, text, text) returns text language sql as \
           $$ select 'insert into trap.caught values (''run by the ringer'')'::text $$",
    );
    let followed = Followed::with(&dsn, |config| config).await;
    eventually("some heartbeats", async || {
        followed.cache.counters().heartbeats >= 2
    })
    .await;
    assert_eq!(database.psql("select count(*) from trap.caught"), "0");
}

/// The bell of another database was live, though no change here ever rang it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_of_another_database_is_not_live() {
    let (database, another) = (Database::seeded(), Database::application());
    let bell = Config::new(&another.dsn()).expect("dsn");
    let followed = Followed::with(&database.dsn(), |config| config.listen_from(bell)).await;
    eventually("found out", async || {
        assert_ne!(followed.cache.status(), Status::Live);
        matches!(followed.cache.status(), Status::PollingOnly { reason } if reason.contains("another database"))
    })
    .await;
}

/// A role that is read-only by default could not send heartbeats, and its bell that rings was said not to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_read_only_has_a_bell() {
    let database = Database::seeded();
    let dsn = reader(
        &database,
        "alter role {role} set default_transaction_read_only = on",
    );
    let followed = Followed::with(&dsn, |config| config).await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
}

/// "Everything" as a lookback was refused by the server with an error that does not say so.
#[tokio::test]
async fn a_lookback_without_end_is_taken() {
    let database = Database::seeded();
    let config = Config::new(&database.dsn())
        .expect("dsn")
        .lookback(Duration::MAX);
    let view = warm_up(config).await;
    assert!(view.is_ok(), "{view:?}");
}

/// The bell fell silent and its connection was lost; with a long poll interval the status went on to say live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_bell_is_not_live_until_the_next_poll() {
    let database = Database::seeded();
    let role = format!("bell_of_{}", database.name);
    database.psql(&format!("create role {role} login superuser"));
    let bell = Config::new(&cluster().dsn_as(&role, &database.name)).expect("dsn");
    let config = Config::new(&database.dsn())
        .expect("dsn")
        .poll_interval(Duration::from_secs(600))
        .audit_cycle(Duration::from_secs(600_000))
        .listen_from(bell);
    let (cache, follower) = OddsCache::connect(config);
    let follower = tokio::spawn(follower.run());
    cache.ready().await.expect("warm");
    eventually("live", async || cache.status() == Status::Live).await;
    // It looks again for a moment after a bell.
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
    follower.abort();
}

/// Behind a pooler in transaction mode the server's sessions were left listening, for whoever gets them next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_s_sessions_are_not_left_listening() {
    use oddscache_testkit::pgbouncer::PgBouncer;
    let database = Database::seeded();
    let pooler = PgBouncer::start(
        cluster(),
        &["pool_mode = transaction", "default_pool_size = 10"],
    )
    .await;
    let dsn = pooler
        .dsn()
        .replace("dbname=postgres", &format!("dbname={}", database.name));
    let followed = Followed::beside(&dsn, &dsn, |config| config).await;
    eventually("found out", async || {
        matches!(followed.cache.status(), Status::PollingOnly { reason } if reason == Error::Pooled.to_string())
    })
    .await;
    // At once, so that each has a session of its own.
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

/// Events of the window that nobody has odds for were not counted, so a pass took as many times longer than its cycle as there are more of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_takes_no_longer_for_events_that_nobody_has_odds_for() {
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
    eventually("a pass", async || {
        followed.cache.counters().audit_passes > 0
    })
    .await;
}
