//! The change feed does not log every change. The follower goes on, says so, and bounds how late a change shows that is
//! not logged.

use std::time::{Duration, Instant};

use oddscache::{Fault, OddsCache, Status, sql::Table};
use oddscache_testkit::{
    Database, assert_same, cases, dump, eventually,
    followed::{Followed, run},
    same, xid,
};

/// Waits until the cache is degraded by one fault that names all these words. Returns the fault and the bound.
async fn degraded(cache: &OddsCache, words: &[&str]) -> (Fault, Duration) {
    let (mut found, begun_at) = (None, Instant::now());
    eventually(&format!("degraded by {words:?}"), async || {
        assert!(
            begun_at.elapsed() < Duration::from_secs(30),
            "{words:?}: {}",
            cache.status()
        );
        if let Status::Degraded { faults, bound, .. } = cache.status()
            && let [fault] = faults.as_slice()
            && words.iter().all(|word| fault.what.contains(word))
        {
            found = bound.map(|bound| (fault.clone(), bound));
        }
        found.is_some()
    })
    .await;
    found.expect("just seen")
}

/// Waits until the cache equals the oracle.
async fn equal(followed: &Followed, what: &str) {
    eventually(what, async || {
        let view = followed.cache.view();
        let expected = followed.oracle(view.cut().window_start).await;
        same(&dump(&view), &expected).is_ok()
    })
    .await;
}

/// Loaders such as `pg_restore --disable-triggers` do this. It leaves the triggers as ENABLE instead of ENABLE ALWAYS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_disabled_and_enabled_by_a_loader() {
    let followed = Followed::seeded().await;
    followed.live().await;
    for table in Table::ALL.map(Table::name) {
        let load = format!(
            "alter table {table} disable trigger all; alter table {table} enable trigger all"
        );
        followed.run(&load).await;
        let words = [
            table,
            "oddscache_insert",
            "oddscache_truncate",
            "not ENABLE ALWAYS",
        ];
        let (fault, _) = degraded(&followed.cache, &words).await;
        followed.run(&fault.repair).await;
        followed.live().await;
    }
    let load =
        "alter table market_odds disable trigger all; alter table market_odds enable trigger all";
    followed.run(load).await;
    let (fault, bound) = degraded(&followed.cache, &["market_odds"]).await;
    assert!(bound >= Duration::from_secs(1));
    // A logged change shows as ever.
    followed.set_line(7).await;
    equal(&followed, "a logged change").await;
    // One that is not logged shows within the bound. Until then, the age shows that it may be missing.
    let unlogged = "begin; set local session_replication_role = replica; update market_odds set line = 9 where snapshot_id = 112";
    for _ in 0..3 {
        let reloads = followed.reloads();
        followed.run(unlogged).await;
        let xid = xid(&followed.app).await;
        followed.run("commit").await;
        let committed = Instant::now();
        // A reader that waits for a transaction gets a view that has it, logged or not.
        let waiting = async {
            let patience = Duration::from_secs(60);
            followed.cache.wait_for(xid, patience).await.expect("shown")
        };
        let ((), view) = tokio::join!(shows_in_time(&followed, committed), waiting);
        let expected = followed.oracle(view.cut().window_start).await;
        assert_same(&dump(&view), &expected, "read your writes");
        // The first of these reads may have begun before the change.
        assert!(followed.reloads() <= reloads + 2);
        followed.set_line(8).await;
        equal(&followed, "a logged change").await;
    }
    followed.run(&fault.repair).await;
    followed.live().await;
    followed.check("repaired").await;
    assert_eq!(followed.epoch(), 1);
    assert_eq!(followed.cache.counters().reconnects, 0);
}

/// Waits until the cache equals the oracle. Until then, the age of its view is at least the time since `committed`.
async fn shows_in_time(followed: &Followed, committed: Instant) {
    eventually("the change that is not logged", async || {
        let view = followed.cache.view();
        let (missing_for, age) = (committed.elapsed(), view.age());
        let expected = followed.oracle(view.cut().window_start).await;
        let equal = same(&dump(&view), &expected).is_ok();
        assert!(equal || age >= missing_for, "{age:?} < {missing_for:?}");
        equal
    })
    .await;
}

/// A statement that names a partition fires only the triggers of this partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_straight_into_a_partition_without_triggers() {
    let followed = Followed::seeded().await;
    let create = "create table fresh partition of odds_snapshots for values from ('2100-01-01') to ('2100-02-01')";
    followed.run(create).await;
    degraded(&followed.cache, &["fresh"]).await;
    let before = followed.check("created").await;
    followed.run("insert into fresh (id, event_id, bookmaker_id, captured_at) values (9999, 1, 1, '2100-01-15')").await;
    shows_in_time(&followed, Instant::now()).await;
    assert_ne!(before, dump(&followed.cache.view()));
}

/// The follower finds every kind of fault, on a table or a partition, both at the start and later. The status names the
/// fault and its repair, and the repair works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_is_named_and_its_repair_repairs_it() {
    let database = Database::seeded();
    let later = Followed::new(&database).await;
    for [sql, words] in cases(
        "drop trigger oddscache_update on market_odds => market_odds has no trigger for update
         drop trigger oddscache_delete on events; create trigger oddscache_delete after delete on events referencing old table as old_rows for each statement when (current_user = 'x') execute function oddscache.log_change('events'); alter table events enable always trigger oddscache_delete => events has no trigger for delete
         drop trigger oddscache_update on market_odds; create trigger oddscache_update after update on market_odds referencing old table as old_rows new table as new_rows for each statement execute function oddscache.log_change('competitor_market_odds'); alter table market_odds enable always trigger oddscache_update => market_odds has no trigger for update
         drop trigger oddscache_insert on odds_snapshots_default => odds_snapshots_default has no trigger for insert
         alter table events disable trigger oddscache_delete => on public.events, oddscache_delete is disabled
         alter table events enable trigger oddscache_delete => on public.events, oddscache_delete is not ENABLE ALWAYS
         alter table competitor_events enable replica trigger oddscache_truncate => oddscache_truncate is not ENABLE ALWAYS
         create table other (like market_odds); create table child () inherits (market_odds) => public.child has no trigger for delete, insert, truncate, update
         alter table child inherit other => public.child also inherits from public.other
         create table fresh partition of odds_snapshots for values from ('2100-01-01') to ('2100-02-01') => fresh has no trigger for delete, insert, truncate, update",
    ) {
        later.live().await;
        later.run(sql).await;
        let (fault, _) = degraded(&later.cache, &[words]).await;
        let first = Followed::new(&database).await;
        assert_eq!(degraded(&first.cache, &[words]).await.0, fault);
        equal(&first, sql).await;
        match fault.repair.starts_with("ALTER") {
            true => run(&later.app, &fault.repair).await,
            false => {
                assert!(fault.repair.contains("oddscache sql install --apply"), "{}", fault.repair);
                oddscache_testkit::psql(&database.name, &["-qf", "sql/install.sql"]);
            }
        }
        first.live().await;
    }
    later.live().await;
    later.check("all repaired").await;
}
