//! The audit finds each change that no trigger saw, and names, counts and repairs it. It finds nothing else.

use std::time::Duration;

use oddscache::Counters;
use oddscache_testkit::{Database, cluster, followed::Followed};

/// Follows the seed with an audit that never rests.
async fn audited() -> Followed {
    Followed::with(&Database::seeded().dsn(), |config| {
        config
            .poll_interval(Duration::from_millis(20))
            .audit_cycle(Duration::from_millis(40))
            .audit_budget(1.0)
    })
    .await
}

/// Commits a change without its log rows, as if no trigger had seen it.
async fn unseen(followed: &Followed, sql: &str) {
    let sql = format!("begin; {sql}; delete from oddscache.change_log; commit");
    followed.run(&sql).await;
}

/// Each statement changes rows in a different way and leaves no log row. Only the audit can find such a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_finds_and_repairs_every_change_that_no_trigger_saw() {
    let followed = audited().await;
    let mut before = followed.check("the seed").await;
    let epoch = followed.epoch();
    let changes = [
        "update events set kickoff = kickoff + interval '1 hour' where id = 1",
        "update events set kickoff = now() - interval '3 hours' where id = 2",
        "update events set kickoff = now() + interval '3 hours' where id = 2",
        "update odds_snapshots set last_confirmed_at = now() where id = 112",
        "update odds_snapshots set captured_at = captured_at + interval '1 second' where id = 122",
        "delete from odds_snapshots where id = 112",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select 9112, 1, 1, now() at time zone 'utc'",
        "update market_odds set line = 9 where snapshot_id = 122",
        "delete from market_odds where snapshot_id = 122",
        "update market_odds set unavailable_at = now() where snapshot_id = 222",
        "update competitor_market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 1.2345678}]' where snapshot_id = 12",
        "update competitor_events set deleted_at = now() where id = 1",
        "update competitor_events set betpawa_event_id = 1 where id = 21",
        "delete from competitor_odds_snapshots where id = 112",
    ];
    for sql in changes {
        let mismatches = followed.cache.counters().audit_mismatches;
        unseen(&followed, sql).await;
        let found = |now: &Counters| now.audit_mismatches > mismatches;
        followed.counted(sql, found).await;
        followed.audited().await;
        let after = followed.check(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        let now = followed.cache.counters().audit_mismatches;
        assert_eq!(now, mismatches + 1, "{sql}: one event");
        before = after;
    }
    assert_eq!(followed.epoch(), epoch);
}

/// A false finding would make the follower read everything again, time after time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_finds_nothing_that_triggers_saw() {
    let followed = audited().await;
    for round in 0..30 {
        let sql = format!(
            "update market_odds set line = {round} where snapshot_id in (112, 122, 222);
             update odds_snapshots set last_confirmed_at = now() where id = 212;
             update odds_snapshots set captured_at = captured_at + interval '1 second' where id in (121, 122);
             update events set kickoff = kickoff + interval '1 second';
             update competitor_events set betpawa_event_id = {} where id = 21;
             insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select {}, 2, 2, now() at time zone 'utc';
             insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
               select {event}, 'r{round}', 'x', 'x', 'x', now() at time zone 'utc' + interval '1 day';
             insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
               select {}, {event}, 1, now() at time zone 'utc';
             delete from odds_snapshots where event_id = {event} - 3; delete from events where id = {event} - 3",
            round % 2 + 1,
            5000 + round,
            6000 + round,
            event = 100 + round,
        );
        followed.run(&sql).await;
    }
    followed.audited().await;
    followed.check("thirty rounds").await;
    let counters = followed.cache.counters();
    assert_eq!((counters.audit_mismatches, counters.reloads), (0, 1));
    assert!(counters.audited_events > 0 && counters.audited_headers > 0);
    assert!(counters.audit_headers_passes > 0);
    let passes = followed.cache.audit();
    let seconds = [passes.headers, passes.full].map(|pass| pass.last_seconds);
    assert!(
        seconds
            .iter()
            .all(|seconds| seconds.is_some_and(|seconds| seconds < 60.0))
    );
}

/// Follows with an audit that never rests. The steps of the audit read `table` through a policy that fails for the rows
/// of `failing`.
async fn audited_but(database: &Database, table: &str, failing: &str) -> Followed {
    let role = database.reader();
    // A step of the audit has a fifth of `read_timeout` for a statement.
    database.psql(&format!(
        "create function trouble(row_of {table}) returns boolean language plpgsql as $$ begin \
           if current_setting('statement_timeout') = '2s' and {failing} then \
             raise exception 'trouble' using errcode = '53400'; end if; return true; end $$; \
         alter table {table} enable row level security; \
         create policy every_row on {table} using (trouble({table}))"
    ));
    let dsn = cluster().dsn_as(&role, &database.name);
    Followed::beside(&dsn, &database.dsn(), |config| {
        config
            .allow_row_security(true)
            .read_timeout(Duration::from_secs(10))
            .poll_interval(Duration::from_millis(20))
            .audit_cycle(Duration::from_millis(40))
            .audit_budget(1.0)
    })
    .await
}

/// The pass over headers alone finds each change of an id or a time, and that an event came or went: here the full pass
/// always fails, because the audit cannot read markets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pass_over_headers_finds_what_no_trigger_saw() {
    let database = Database::seeded();
    let followed = audited_but(&database, "market_odds", "true").await;
    let mut before = followed.check("the seed").await;
    let changes = [
        "update events set kickoff = kickoff + interval '1 hour' where id = 1",
        "update events set kickoff = now() - interval '3 hours' where id = 2",
        "update events set kickoff = now() + interval '3 hours' where id = 2",
        "update odds_snapshots set last_confirmed_at = now() where id = 112",
        "update odds_snapshots set captured_at = captured_at + interval '1 second' where id = 122",
        "update odds_snapshots set captured_at = now() - interval '40 days' where id = 122",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select 9112, 1, 1, now() at time zone 'utc'",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select 9113, 2, 77, now() at time zone 'utc'",
        "delete from odds_snapshots where id = 9112",
        "update competitor_events set deleted_at = now() where id = 1",
        "update competitor_events set betpawa_event_id = 1 where id = 21",
        "update competitor_events set betpawa_event_id = null where id = 21",
        "update competitor_events set deleted_at = null where id = 1",
        "insert into competitor_odds_snapshots (id, competitor_event_id, captured_at) \
           select 9012, id, now() at time zone 'utc' from competitor_events where betpawa_event_id = 1 and deleted_at is null \
           order by id limit 1",
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
           select 77, 'sr77', 'x', 'x', 'x', now() at time zone 'utc' + interval '1 day'; \
         insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) select 5, 77, 1, now() at time zone 'utc'",
        "delete from events where id = 77",
    ];
    for sql in changes {
        let mismatches = followed.cache.counters().audit_mismatches;
        unseen(&followed, sql).await;
        let found = |now: &Counters| now.audit_mismatches > mismatches;
        followed.counted(sql, found).await;
        let reloads = mismatches + 2;
        followed.counted(sql, |now| now.reloads >= reloads).await;
        let after = followed.check(sql).await;
        assert_ne!(before, after, "{sql}: changes nothing that the cache holds");
        before = after;
    }
    let counters = followed.cache.counters();
    assert_eq!((counters.audit_passes, counters.audited_events), (0, 0));
    assert!(counters.audit_headers_passes > 0);
}

/// If a full pass takes long, the markets of the event that changed last are compared early. Those of another one are
/// not, though it comes first by its id. Here the full pass never reaches either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_young_price_is_compared_before_an_old_one() {
    let database = Database::seeded();
    database.psql(
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
           select e, 'sr' || e, 'x', 'x', 'x', now() at time zone 'utc' + interval '9 days' from generate_series(1001, 2500) e; \
         insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) \
           select e + 100000, e, 1, now() at time zone 'utc' - interval '9 days' from generate_series(1001, 2500) e; \
         update odds_snapshots set captured_at = now() at time zone 'utc' where id = 102400; \
         insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) \
           select e + 100000, e + 100000, '1', 'x', '[{\"name\": \"1\", \"odds\": 2.5}]' from generate_series(1001, 2500) e",
    );
    let failing = "row_of.event_id between 2000 and 2500";
    let followed = audited_but(&database, "odds_snapshots", failing).await;
    let before = followed.check("the seed").await;
    let sql = "update market_odds set line = 9 where snapshot_id in (102300, 102400)";
    unseen(&followed, sql).await;
    followed
        .counted(sql, |now| now.audit_mismatches > 0 && now.reloads > 1)
        .await;
    // The repair reads everything again.
    assert_ne!(before, followed.check(sql).await);
    let counters = followed.cache.counters();
    assert_eq!((counters.audit_mismatches, counters.audit_passes), (1, 0));
    assert!(followed.cache.audit().full.expected_seconds.is_some());
}

/// Uses the default budget. The tests above set a larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_is_on_by_default() {
    let followed = Followed::seeded().await;
    let audited = |now: &Counters| now.audited_events > 0;
    let counters = followed.counted("audited", audited).await;
    assert_eq!(counters.audit_mismatches, 0);
}
