//! A row that the server cannot send does not stop the others. The follower finds it, names it, counts it and tries it
//! again.

use std::time::Duration;

use oddscache::{Config, Fault, OddsCache, Status, warm_up};
use oddscache_testkit::{
    Database, assert_same, cluster, connect, dump, eventually,
    followed::{Followed, SEED, run},
    normal, psql, same,
};
use serde_json::Value;

/// Waits until the status names exactly these faults, each by its words. Returns them.
async fn unreadable(cache: &OddsCache, faults: &[&str]) -> Vec<Fault> {
    let mut found = Vec::new();
    eventually(&format!("{faults:?}"), async || {
        let Status::Degraded {
            faults: now, bound, ..
        } = cache.status()
        else {
            return faults.is_empty() && cache.status() == Status::Live;
        };
        let is_it = now.len() == faults.len()
            && now
                .iter()
                .zip(faults)
                .all(|(fault, words)| fault.what.contains(words));
        found = now;
        is_it && bound.is_none()
    })
    .await;
    found
}

/// What the oracle would show without these rows.
async fn without(followed: &Followed, deletion: &str) -> Vec<Value> {
    followed
        .run(&format!(
            "begin; set local session_replication_role = replica; {deletion}"
        ))
        .await;
    let events = followed
        .oracle(followed.cache.view().cut().window_start)
        .await;
    followed.run("rollback").await;
    events
}

/// Waits until the cache shows what the oracle would show without these rows.
async fn shows_without(followed: &Followed, deletion: &str) {
    eventually(deletion, async || {
        let expected = without(followed, deletion).await;
        same(&dump(&followed.cache.view()), &expected).is_ok()
    })
    .await;
}

const HUGE: &str = "update market_odds set line = '1e400' where id in (1121, 2222)";
const NOT_HUGE: &str = "update market_odds set line = 1 where id in (1121, 2222)";
const WITHOUT_HUGE: &str = "delete from market_odds where line > '1e300'::numeric";
const HUGE_ROWS: [&str; 2] = [
    "cannot read market_odds id 1121 of snapshot 112, left out: a value could not be converted (SQLSTATE 22003)",
    "cannot read market_odds id 2222 of snapshot 222, left out: a value could not be converted (SQLSTATE 22003)",
];

/// One number stopped the cache for every event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_out_of_range_is_left_out_and_all_else_is_followed() {
    let database = Database::seeded();
    database.psql("alter table market_odds alter line type numeric");
    let followed = Followed::new(&database).await;
    followed.run(HUGE).await;
    unreadable(&followed.cache, &HUGE_ROWS).await;
    shows_without(&followed, WITHOUT_HUGE).await;
    // Other rows of the same snapshot, of the same event, and of other events are followed.
    for id in [1122, 1221, 3121] {
        followed
            .run(&format!(
                "update market_odds set line = {id} where id = {id}"
            ))
            .await;
        shows_without(&followed, WITHOUT_HUGE).await;
    }
    // A read of everything leaves the same rows out.
    followed.cache.resync();
    followed.counted("a reload", |now| now.reloads == 2).await;
    unreadable(&followed.cache, &HUGE_ROWS).await;
    shows_without(&followed, WITHOUT_HUGE).await;
    followed.run(NOT_HUGE).await;
    unreadable(&followed.cache, &[]).await;
    followed.check("corrected").await;
    let counters = followed.cache.counters();
    assert_eq!(
        (
            counters.unreadable_rows,
            counters.reconnects,
            followed.epoch()
        ),
        (2, 0, 1)
    );
}

/// A restart never became warm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_starts_leaves_the_row_out() {
    let database = Database::seeded();
    database.psql(&format!(
        "alter table market_odds alter line type numeric; {HUGE}"
    ));
    for connections in [1, 2, 4] {
        let several = |config: Config| config.warmup_connections(connections);
        let followed = Followed::with(&database.dsn(), several).await;
        shows_without(&followed, WITHOUT_HUGE).await;
        unreadable(&followed.cache, &HUGE_ROWS).await;
        let config = Config::new(&database.dsn()).expect("dsn");
        let view = warm_up(several(config)).await.expect("warm");
        let named = view.unreadable().iter().map(|fault| fault.what.as_str());
        assert!(named.eq(HUGE_ROWS));
        assert_same(
            &dump(&view),
            &without(&followed, WITHOUT_HUGE).await,
            "read once",
        );
    }
}

/// While nothing changes, a row is tried again after pauses that grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_tried_again_ever_more_seldom() {
    let database = Database::seeded();
    database.psql(
        "alter table market_odds alter line type numeric; update market_odds set line = '1e400' where id = 1121",
    );
    let rarely = |config: Config| {
        let never = Duration::from_secs(600_000);
        config
            .poll_interval(Duration::from_secs(600))
            .audit_cycle(never)
    };
    let followed = Followed::with(&database.dsn(), rarely).await;
    let tries = || followed.cache.counters().polls;
    let (mut pauses, mut seen, mut at) = (Vec::new(), tries(), std::time::Instant::now());
    while pauses.len() < 3 {
        eventually("another try", async || tries() > seen).await;
        let pause = at.elapsed();
        (seen, at) = (tries(), std::time::Instant::now());
        // At first it polls as long as transactions of other tests are open.
        if pause > Duration::from_millis(900) {
            pauses.push(pause);
        }
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[2] > pauses[0] * 2, "{pauses:?}");
    assert_eq!(followed.cache.counters().reloads, 1);
}

/// For each table: the key of a row that the cache holds, and what the status says if that row cannot be read.
const POISONED: [(&str, i64, &str); 6] = [
    (
        "events",
        1,
        "cannot read event 1 in events, served as last known",
    ),
    (
        "odds_snapshots",
        112,
        "cannot read the latest snapshots of event 1 in odds_snapshots, served as last known",
    ),
    (
        "competitor_events",
        1,
        "cannot read the latest snapshots of event 1 in competitor_odds_snapshots",
    ),
    (
        "competitor_odds_snapshots",
        12,
        "cannot read the latest snapshots of event 1 in competitor_odds_snapshots",
    ),
    (
        "market_odds",
        1121,
        "cannot read all markets of snapshot 112 in market_odds, left out",
    ),
    (
        "competitor_market_odds",
        121,
        "cannot read all markets of snapshot 12 in competitor_market_odds, left out",
    ),
];

/// With a policy that fails for chosen rows, any row of any table becomes one that the server cannot send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_row_of_any_table_may_be_unreadable() {
    let (database, dsn) = poisonable(&POISONED.map(|(table, ..)| table));
    let allowed = |config: Config| config.allow_row_security(true);
    let followed = Followed::beside(&dsn, &database.dsn(), allowed).await;
    for (table, id, words) in POISONED {
        let known = followed.check("all rows can be read").await;
        // The log names the row, so it is read again.
        let touch = format!("update {table} set id = id where id = {id}");
        followed
            .run(&format!(
                "insert into poisoned values ('{table}', {id}); {touch}"
            ))
            .await;
        unreadable(&followed.cache, &[words]).await;
        // The policy fails even when the ids of the markets are read, so all of the snapshot are left out.
        let deletion = format!("delete from {table} where snapshot_id = {}", id / 10);
        let shown = match table.ends_with("market_odds") {
            true => without(&followed, &deletion).await,
            false => known.clone(),
        };
        assert_same(&dump(&followed.cache.view()), &shown, words);
        // The other events go on. A second bad row is found while the first one is known.
        followed
            .run("update market_odds set line = 2 where snapshot_id in (222, 312)")
            .await;
        followed
            .run("update events set kickoff = kickoff + interval '1 second' where id = 2")
            .await;
        let others = |events: Vec<Value>| -> Vec<Value> {
            events
                .into_iter()
                .filter(|event| event["event_id"] != normal(1.into()))
                .collect()
        };
        eventually("the others", async || {
            let view = followed.cache.view();
            let expected = followed.oracle(view.cut().window_start).await;
            same(&others(dump(&view)), &others(expected)).is_ok()
        })
        .await;
        // A cache that starts has nothing to serve as last known. It serves the other events.
        let first = Followed::beside(&dsn, &database.dsn(), allowed).await;
        unreadable(&first.cache, &[words]).await;
        let view = first.cache.view();
        let expected = first.oracle(view.cut().window_start).await;
        assert_same(&others(dump(&view)), &others(expected), words);
        // The log does not say that the row can be read again. The next try finds out.
        run(&followed.app, "truncate poisoned").await;
        for cache in [&first, &followed] {
            unreadable(&cache.cache, &[]).await;
            cache.check(table).await;
        }
    }
    let counters = followed.cache.counters();
    assert_eq!((counters.reconnects, counters.reloads), (0, 1));
    assert_eq!(counters.audit_mismatches, 0);
}

/// A database whose tables have a policy that fails for the rows in the table `poisoned`, and the connection string of a
/// role that it concerns.
fn poisonable(tables: &[&str]) -> (Database, String) {
    let database = Database::seeded();
    database.psql(
        "create table poisoned (name text, id bigint);
         create function readable(of text, row_id bigint) returns boolean language plpgsql as $$ begin
             if exists (select from public.poisoned where name = of and id = row_id) then
                 raise exception 'this row is damaged'; end if;
             return true; end $$",
    );
    for table in tables {
        database.psql(&format!(
            "alter table {table} enable row level security; create policy readable on {table} using (public.readable('{table}', id))"
        ));
    }
    let reader = database.reader();
    database.psql(&format!("grant select on poisoned to {reader}"));
    let dsn = cluster().dsn_as(&reader, &database.name);
    (database, dsn)
}

/// Follows such a database without the audit, which would find what the reads miss.
async fn follow_poisonable(tables: &[&str]) -> Followed {
    let (database, dsn) = poisonable(tables);
    let never = Duration::from_secs(600_000);
    let config = |config: Config| config.allow_row_security(true).audit_cycle(never);
    Followed::beside(&dsn, &database.dsn(), config).await
}

/// What was logged while a row could not be read, was lost: the event was kept as it was, and the log was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_a_row_could_not_be_read_shows_afterwards() {
    let followed =
        follow_poisonable(&["events", "odds_snapshots", "competitor_odds_snapshots"]).await;
    let snapshot = "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (113, 1, 1, now())";
    for (poison, touch, change) in [
        // In the same read, and in a later one; a new snapshot, and markets of a held one.
        (
            "('events', 1)",
            "update events set id = id where id = 1",
            snapshot,
        ),
        (
            "('events', 1)",
            "update events set id = id where id = 1",
            "update market_odds set line = 7 where snapshot_id = 122",
        ),
        (
            "('odds_snapshots', 122)",
            "update odds_snapshots set id = id where id = 122",
            "update market_odds set line = 8 where snapshot_id = 122",
        ),
        (
            "('competitor_odds_snapshots', 12)",
            "update competitor_odds_snapshots set id = id where id = 12",
            "update competitor_market_odds set line = 9 where snapshot_id = 12",
        ),
    ] {
        for together in [true, false] {
            followed.check("all rows can be read").await;
            followed
                .run(&format!("insert into poisoned values {poison}"))
                .await;
            match together {
                true => {
                    followed
                        .run(&format!("begin; {touch}; {change}; commit"))
                        .await
                }
                false => {
                    followed.run(touch).await;
                    let is_degraded = || matches!(followed.cache.status(), Status::Degraded { .. });
                    eventually("degraded", async || is_degraded()).await;
                    followed.run(change).await;
                }
            }
            followed.caught_up(change).await;
            followed.run("truncate poisoned").await;
            unreadable(&followed.cache, &[]).await;
            followed.check(change).await;
            followed
                .run("delete from odds_snapshots where id = 113")
                .await;
        }
    }
    let counters = followed.cache.counters();
    assert_eq!((counters.reconnects, counters.reloads), (0, 1));
}

/// Two searches on one connection rolled back each other's savepoints, and the connection was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_both_sides_that_cannot_be_read_at_once() {
    let followed = follow_poisonable(&["odds_snapshots", "competitor_odds_snapshots"]).await;
    followed.run("insert into poisoned values ('odds_snapshots', 112), ('competitor_odds_snapshots', 12)").await;
    for _ in 0..5 {
        followed
            .run(
                "begin; update odds_snapshots set last_confirmed_at = now() where id in (112, 222);
                 update competitor_odds_snapshots set last_confirmed_at = now() where id in (12, 22); commit",
            )
            .await;
        followed.caught_up("both sides").await;
    }
    assert_eq!(followed.cache.counters().reconnects, 0);
    followed.run("truncate poisoned").await;
    unreadable(&followed.cache, &[]).await;
    followed.check("both sides").await;
}

/// Bytes that are no UTF-8 in a database that does not check them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_utf8() {
    let database = Database {
        name: "no_encoding".to_owned(),
    };
    psql(
        "postgres",
        &[
            "-qc",
            "create database no_encoding encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0",
        ],
    );
    for script in ["src/demo/schema.sql", "sql/install.sql"] {
        psql(&database.name, &["-qf", script]);
    }
    let app = connect(&database.dsn()).await;
    run(&app, SEED).await;
    let followed = Followed::new(&database).await;
    let known = followed.check("the seed").await;
    followed
        .run("update market_odds set betpawa_market_name = E'\\xff' where id = 1121")
        .await;
    unreadable(&followed.cache, &["market_odds id 1121 of snapshot 112"]).await;
    shows_without(&followed, "delete from market_odds where id = 1121").await;
    followed
        .run("update market_odds set betpawa_market_name = 'good' where id = 1121")
        .await;
    unreadable(&followed.cache, &[]).await;
    followed
        .run("update competitor_events set source = E'\\xff' where id = 1")
        .await;
    unreadable(
        &followed.cache,
        &["the latest snapshots of event 1 in competitor_odds_snapshots"],
    )
    .await;
    let held = dump(&followed.cache.view());
    assert_eq!(held[0]["competitors"], known[0]["competitors"]);
    followed
        .run("update competitor_events set source = 'new' where id = 1")
        .await;
    unreadable(&followed.cache, &[]).await;
    followed.check("corrected").await;
}

/// A long value whose parts are lost, as after a fault of a disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_data() {
    let followed = Followed::seeded().await;
    let toast = "select reltoastrelid::regclass::text from pg_class where relname = 'market_odds'";
    followed
        .run(
            "alter table market_odds alter outcomes set storage external;
             update market_odds set outcomes = jsonb_build_array(jsonb_build_object('name', repeat('x', 20000), 'odds', 2))
             where id = 1121",
        )
        .await;
    followed.check("a long value").await;
    let row = followed.app.query_one(toast, &[]).await.expect("a table");
    let toast: String = row.get(0);
    followed
        .run(&format!(
            "set allow_system_table_mods = on;
             update pg_class set relkind = 'r' where oid = '{toast}'::regclass; delete from {toast};
             update pg_class set relkind = 't' where oid = '{toast}'::regclass; reset allow_system_table_mods;
             update market_odds set line = 5 where id = 1121"
        ))
        .await;
    unreadable(
        &followed.cache,
        &["cannot read market_odds id 1121 of snapshot 112, left out"],
    )
    .await;
    // The oracle cannot read the row either. And PostgreSQL cannot even delete it.
    let shown = || {
        let view = followed.cache.view();
        let event = &dump(&view)[0]["betpawa"];
        [&event["1"]["markets"], &event["2"]["markets"]].map(Clone::clone)
    };
    assert_eq!(shown()[0].as_array().map(Vec::len), Some(1));
    let before = shown();
    followed
        .run("update market_odds set line = 6 where snapshot_id in (112, 122) and id <> 1121")
        .await;
    eventually("the others", async || {
        shown()
            .iter()
            .zip(&before)
            .all(|(now, before)| now != before)
    })
    .await;
}
