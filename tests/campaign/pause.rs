//! A pause. Nobody writes, no fault is active, and both followers must equal the oracle.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};
use oddscache::{OddsCache, Status, View, sql::Script};
use oddscache_testkit::{dump, followed, oracle, same};
use serde_json::Value;
use tokio::time::sleep;
use tokio_postgres::Client;

use crate::{
    faults::Scene,
    feed::NO_FEED,
    plan::{Fault, Kind},
    schema::DELETE_POISON,
    world::{UNSEEN, World},
};

/// The cache must be current again within this time after the last fault.
pub(crate) const CATCH_UP: Duration = Duration::from_secs(40);

/// Waits until a view is proven current after the end of all faults, by a follower that reads the feed again. Returns
/// its epoch.
pub(crate) async fn recovered(scene: &Scene) -> u64 {
    let world = &scene.world;
    let ended = Instant::now();
    while ended.elapsed() < CATCH_UP && world.violation().is_none() {
        let asked = Instant::now();
        let view = scene.embedded.cache.view();
        let proven = asked.checked_sub(view.age());
        // Without the feed, or while the feed comes back, an epoch is about to begin.
        let follows = match scene.embedded.cache.status() {
            Status::Live | Status::PollingOnly { .. } => true,
            Status::Degraded { faults, .. } => {
                !faults.iter().any(|fault| fault.what.starts_with(NO_FEED))
            }
            _ => false,
        };
        if follows && proven.is_some_and(|proven| proven > ended) {
            return view.epoch();
        }
        sleep(Duration::from_millis(10)).await;
    }
    let status = scene.embedded.cache.status();
    world.violate(
        "recovery",
        format!("no view was proven current within {CATCH_UP:?} after all faults ended: {status}"),
    );
    0
}

/// Fails if a new epoch began. Only faults that can undo commits may begin one.
pub(crate) fn same_epoch(scene: &Scene, before: u64) {
    let now = scene.embedded.cache.view().epoch();
    if now != before && scene.world.violation().is_none() {
        let what = format!(
            "{now} after {before}, though no connection was lost; {}; last error: {:?}",
            scene.embedded.cache.status(),
            scene.world.report.figures().last_error
        );
        scene.world.violate("epochs", what);
    }
}

/// Runs a pause. `faults` are those since the last pause. `unseen` is a fault that writes a row which no trigger sees.
pub(crate) async fn pause(scene: &Scene, faults: &[Kind], unseen: Option<&Fault>) {
    let mut result = compare(scene, faults).await;
    if result.is_ok() && scene.is_poisoned() {
        result = scene.correct().await;
        if result.is_ok() {
            result = compare(scene, &[]).await;
        }
    }
    if result.is_ok() {
        result = whole(scene).await;
    }
    if result.is_ok() {
        let audit = scene.service.check_audit().await;
        result = audit.map_err(|what| ("nothing missed", what));
    }
    if result.is_ok()
        && let Some(fault) = unseen
    {
        scene.world.active.begin(fault.kind);
        result = write_unseen(scene, fault.kind).await;
        scene.world.active.end(fault.kind);
        scene.world.report.inflicted(fault.kind);
    }
    if let Err((check, what)) = result {
        scene.world.violate(check, what);
    }
}

/// Waits until the status says that every change arrives. Installs the feed again where the status says so: a partition
/// that was detached meanwhile may have been left out.
async fn whole(scene: &Scene) -> Result<(), Wrong> {
    let began = Instant::now();
    loop {
        let status = scene.embedded.cache.status();
        if matches!(status, Status::Live | Status::PollingOnly { .. }) {
            return Ok(());
        }
        if began.elapsed() > CATCH_UP {
            return Err(("a repair repairs", status.to_string()));
        }
        let named = scene.named().unwrap_or_default();
        if named.iter().any(|fault| fault.what.contains("no trigger")) {
            scene.script(Script::Install, &[]).await;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Writes a row that no trigger sees. If every table has its triggers, the audit must find it, count it and repair the
/// cache. A partition without triggers makes the cache degraded instead.
async fn write_unseen(scene: &Scene, kind: Kind) -> Result<(), Wrong> {
    let (world, cache) = (&scene.world, &scene.embedded.cache);
    let mismatches = || cache.counters().audit_mismatches;
    let before = mismatches();
    world.mismatches.store(u64::MAX, Ordering::Relaxed);
    let insert = |table: &str, at: &str| {
        format!(
            "insert into {table} (id, event_id, bookmaker_id, captured_at) select nextval(pg_get_serial_sequence('odds_snapshots', 'id')), \
             {UNSEEN}, 1, {at}"
        )
    };
    if kind == Kind::LostLogRow {
        let sql = format!(
            "begin; {}; delete from oddscache.change_log where xid = pg_current_xact_id(); commit",
            insert("odds_snapshots", "now() at time zone 'UTC'")
        );
        scene.world.admin(&sql).await;
    } else {
        let partition = "create table odds_snapshots_2018 partition of odds_snapshots for values from ('2018-01-01') to ('2019-01-01')";
        scene.world.admin(partition).await;
        // The new partition is read. The row must come after that read.
        caught_up(cache, &world.connect().await).await?;
        let insert = insert("odds_snapshots_2018", "'2018-06-01'");
        scene.shows_unlogged(UNSEEN, &insert).await;
    }
    let began = Instant::now();
    while kind == Kind::LostLogRow && mismatches() == before {
        if began.elapsed() > CATCH_UP {
            let what = format!("it found nothing within {CATCH_UP:?}");
            return Err(("the audit finds what no trigger saw", what));
        }
        sleep(Duration::from_millis(10)).await;
    }
    // The audit counts a difference before it repairs it, so the first comparisons may fail.
    let mut result = compare(scene, &[]).await;
    while result.is_err() && began.elapsed() < CATCH_UP {
        sleep(Duration::from_millis(20)).await;
        result = compare(scene, &[]).await;
    }
    if kind == Kind::BareLeaf {
        scene.world.admin("drop table odds_snapshots_2018").await;
        caught_up(cache, &world.connect().await).await?;
    }
    world.mismatches.store(mismatches(), Ordering::Relaxed);
    scene.service.excuse_audit().await;
    result
}

pub(crate) type Wrong = (&'static str, String);

/// An error that is not the fault of the cache.
pub(crate) fn itself(error: impl std::fmt::Debug) -> Wrong {
    ("the campaign itself", format!("{error:?}"))
}

/// A connection to a database in which no transaction is open.
pub(crate) async fn at_rest(world: &World) -> Result<Client, Wrong> {
    let client = world.connect().await;
    let left = "select count(*) from pg_prepared_xacts";
    let row = client.query_one(left, &[]).await.map_err(itself)?;
    if row.get::<_, i64>(0) > 0 {
        return Err(itself("a prepared transaction is left over"));
    }
    Ok(client)
}

async fn compare(scene: &Scene, faults: &[Kind]) -> Result<(), Wrong> {
    let (world, cache) = (&scene.world, &scene.embedded.cache);
    let client = at_rest(world).await?;
    let began = Instant::now();
    let view = caught_up(cache, &client).await?;
    let expected = expected_of(scene, &client, view.cut().window_start).await?;
    same(&dump(&view), &expected).map_err(|what| ("the embedded cache equals the oracle", what))?;
    world.report.figures().comparisons += 1;
    let replica = scene.replica.equals(cache).await;
    replica.map_err(|what| ("a replica fed by changes equals the cache", what))?;
    epochs(scene, faults)?;

    // The two queries run at different times, and the service's window moves with the database's clock. So compare
    // until both are equal.
    loop {
        let found = scene.service.dump().await;
        let start = "select now() - interval '2 hours'";
        let row = client.query_one(start, &[]).await.map_err(itself)?;
        let start = row.get::<_, SystemTime>(0).into();
        let expected = expected_of(scene, &client, start).await?;
        let result = found.and_then(|found| same(&found, &expected));
        let Err(what) = result else { break };
        if let Some(status) = scene.service.ended() {
            // If the service starts during a fault that waiting does not fix, it exits with 1. Start it again, as a
            // process manager would. A warm service survives every fault.
            if status.code() != Some(1) || !faults.contains(&Kind::Killed) {
                return Err(("the service lives", format!("it ended: {status}")));
            }
            scene.service.spawn();
        }
        if began.elapsed() > CATCH_UP {
            return Err(("the service equals the oracle", what));
        }
        sleep(Duration::from_millis(50)).await;
    }
    world.report.figures().service_comparisons += 1;
    Ok(())
}

/// What the oracle shows without the rows that cannot be read.
async fn expected_of(
    scene: &Scene,
    client: &Client,
    window_start: DateTime<Utc>,
) -> Result<Vec<Value>, Wrong> {
    if !scene.is_poisoned() {
        return Ok(oracle(client, window_start).await);
    }
    let delete = format!("begin; set local session_replication_role = replica; {DELETE_POISON}");
    client.batch_execute(&delete).await.map_err(itself)?;
    let events = oracle(client, window_start).await;
    client.batch_execute("rollback").await.map_err(itself)?;
    Ok(events)
}

/// Waits for a view that shows every transaction committed by now.
pub(crate) async fn caught_up(cache: &OddsCache, client: &Client) -> Result<View, Wrong> {
    let snapshot = "select pg_current_snapshot()::text";
    let row = client.query_one(snapshot, &[]).await.map_err(itself)?;
    let committed = followed::Shown::parse(row.get(0)).expect("a snapshot");
    let began = Instant::now();
    loop {
        let view = cache.view();
        if followed::shows(&view, &committed) {
            return Ok(view);
        }
        if began.elapsed() > CATCH_UP {
            let status = cache.status();
            let what = format!("{view:?} after {CATCH_UP:?}; {status}");
            return Err(("catching up", what));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Fails if the server may have lost commits, but no new epoch began.
fn epochs(scene: &Scene, faults: &[Kind]) -> Result<(), Wrong> {
    let now = scene.embedded.cache.view().epoch();
    let before = {
        let mut figures = scene.world.report.figures();
        std::mem::replace(&mut figures.epochs, now)
    };
    let lost = [
        Kind::RestartFast,
        Kind::RestartImmediate,
        Kind::KillPostmaster,
        Kind::AsyncCrash,
        Kind::Failover,
    ];
    if before == 0 {
        return Ok(());
    }
    if let Some(kind) = faults.iter().find(|kind| lost.contains(kind))
        && now == before
    {
        return Err(("epochs", format!("still {now} after: {}", kind.name())));
    }
    Ok(())
}
