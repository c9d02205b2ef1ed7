//! Settings of a role, a database or an administrator that could disturb the follower's sessions.

use std::time::{Duration, Instant};

use oddscache::Counters;
use oddscache_testkit::{
    Database, cluster, eventually,
    followed::{Followed, rarely},
    server_version,
};

/// The listener called a function that writes to the write-ahead log. Its arguments differ between versions (17 added a
/// fourth), and an administrator can revoke the right to call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_need_no_right_that_an_administrator_can_revoke() {
    let database = Database::seeded();
    let role = database.reader();
    database.psql(
        "do $$ declare f record; begin
           for f in select p.oid::regprocedure as name from pg_proc p where p.proname = 'pg_logical_emit_message' loop
             execute format('revoke execute on function %s from public', f.name);
           end loop; end $$",
    );
    let followed = Followed::by_notifications(&database, &role).await;
    followed.follows_by_notifications().await;
}

/// Waiting for notifications must not assign a transaction id. After a crash the server could assign that id again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_waits_for_notifications_writes_nothing() {
    let database = Database::seeded();
    let role = database.reader();
    database.psql(&format!(
        "alter role {role} set default_transaction_read_only = on"
    ));
    let followed = Followed::by_notifications(&database, &role).await;
    followed.follows_by_notifications().await;
}

/// Waits until the session was idle for longer than the time-outs of the role allow.
async fn quiet(followed: &Followed) {
    let mut since = (Instant::now(), 0);
    eventually("three quiet seconds", async || {
        let reads = followed.cache.counters().reads;
        if reads != since.1 {
            since = (Instant::now(), reads);
        }
        since.0.elapsed() > Duration::from_secs(3)
    })
    .await;
}

/// With a role that has `transaction_timeout = '40ms'` the cache was never warm: the server ended every session
/// (25P04).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_time_out_of_the_role_ends_a_session() {
    let database = Database::seeded();
    let role = database.reader();
    let mut settings = vec![
        "idle_session_timeout = '200ms'",
        "statement_timeout = '40ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '40ms'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
    ];
    if server_version() >= 17 {
        settings.push("transaction_timeout = '40ms'");
    }
    for setting in settings {
        database.psql(&format!("alter role {role} set {setting}"));
    }
    let followed = Followed::by_notifications(&database, &role).await;
    quiet(&followed).await;
    followed.follows_by_notifications().await;
}

/// Any setting can be given to a role. With some of these the server ended sessions, or the cache held texts in another
/// form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_hostile_settings_at_once_change_nothing() {
    let database = Database::seeded();
    let role = database.reader();
    // How the server prints these columns depends on the settings.
    database.psql(
        "alter table market_odds alter handicap_type type interval using '1 day 02:03:04';
         alter table competitor_market_odds alter handicap_type type bytea using '\\x00ff5c';
         alter table market_odds alter betpawa_market_name type date using '2001-02-13';
         update market_odds set line = 0.1::float8 + 0.2::float8",
    );
    database.make_hostile(&role);
    let dsn = cluster().dsn_as(&role, &database.name);
    let followed = Followed::beside(&dsn, &database.dsn(), |config| {
        rarely(config).warmup_connections(2)
    })
    .await;
    followed.check("the seed").await;
    followed.live().await;
    for sql in [
        "update market_odds set line = 1 / 3.0::float8, handicap_type = '3 days'",
        "insert into odds_snapshots (id, event_id, bookmaker_id) values (9000, 1, 1)",
        "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (9000, 'é', '2002-03-04', '[]')",
        "update competitor_events set betpawa_event_id = 2 where id = 1",
        "update events set kickoff = kickoff + interval '1 hour'",
        "truncate competitor_market_odds",
    ] {
        followed.changes(sql).await;
    }
    quiet(&followed).await;
    followed.follows_by_notifications().await;
    assert_eq!(followed.cache.counters().failures, 0);
    drop(followed);

    let followed = Followed::beside(&dsn, &database.dsn(), |config| {
        config
            .audit_cycle(Duration::from_millis(1))
            .audit_budget(1.0)
    })
    .await;
    let passes = |now: &Counters| now.audit_passes > 1;
    let counters = followed.counted("two passes of the audit", passes).await;
    assert_eq!(counters.audit_mismatches, 0);
    followed
        .step("update market_odds set line = 3 / 7.0::float8")
        .await;
    // On a busy machine the role's `transaction_timeout` may pass between BEGIN and the statement that lifts it. A setting
    // that breaks a statement would fail each of the many steps.
    let now = followed.cache.counters();
    assert!(now.failures < 5 && now.reads > 50, "{now:?}");
}
