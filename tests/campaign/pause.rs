//! A pause: nobody writes, no fault is under way, and both followers must equal the oracle.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    common::{difference, dump, followed, oracle},
    faults::Scene,
    plan::Kind,
};

/// Within this after the last fault everything is as if there had been none.
const CATCH_UP: Duration = Duration::from_secs(40);

/// Waits until a view is proven as of a moment after all faults; returns its epoch.
pub(crate) async fn recovered(scene: &Scene) -> u64 {
    let world = &scene.world;
    let ended = Instant::now();
    while ended.elapsed() < CATCH_UP && world.violation().is_none() {
        let asked = Instant::now();
        let view = scene.embedded.cache.view();
        let proven = asked.checked_sub(view.age());
        if proven.is_some_and(|proven| proven > ended) {
            return view.epoch();
        }
        sleep(Duration::from_millis(10)).await;
    }
    let status = scene.embedded.cache.status();
    world.violate(
        "recovery",
        format!("nothing was proven within {CATCH_UP:?} after all faults ended: {status}"),
    );
    0
}

/// What cannot have taken anything back must not replace the state.
pub(crate) fn same_epoch(scene: &Scene, before: u64) {
    let now = scene.embedded.cache.view().epoch();
    if now != before && scene.world.violation().is_none() {
        let what = format!("{now} after {before}, though no connection was lost; {}", scene.embedded.cache.status());
        scene.world.violate("epochs", what);
    }
}

/// The faults are those since the last pause.
pub(crate) async fn pause(scene: &Scene, faults: &[Kind]) {
    let world = &scene.world;
    if let Err((check, what)) = compare(scene, faults).await {
        world.violate(check, what);
    }
}

async fn compare(scene: &Scene, faults: &[Kind]) -> Result<(), (&'static str, String)> {
    let (world, cache) = (&scene.world, &scene.embedded.cache);
    let client = world.connect().await;
    let row = client.query_one("select pg_current_snapshot()::text, count(*) from pg_prepared_xacts", &[]);
    let row = row.await.map_err(|error| ("the campaign itself", format!("{error:?}")))?;
    if row.get::<_, i64>(1) > 0 {
        return Err(("the campaign itself", "a prepared transaction was left".to_owned()));
    }
    let committed = followed::Shown::parse(row.get(0)).expect("a snapshot");
    let began = Instant::now();
    let view = loop {
        let view = cache.view();
        if followed::shows(&view, &committed) {
            break view;
        }
        if began.elapsed() > CATCH_UP {
            let what = format!("{view:?} after {CATCH_UP:?}; {}", cache.status());
            return Err(("catching up", what));
        }
        sleep(Duration::from_millis(5)).await;
    };
    let expected = oracle(&client, view.cut().window_start).await;
    same(&dump(&view), &expected).map_err(|what| ("the embedded cache equals the oracle", what))?;
    world.report.figures().comparisons += 1;
    epochs(scene, faults)?;

    // Its window moves on with the database's clock, so it is compared until it is equal.
    loop {
        let found = scene.service.dump().await;
        let row = client.query_one("select now() - interval '2 hours'", &[]).await;
        let row = row.map_err(|error| ("the campaign itself", format!("{error:?}")))?;
        let expected = oracle(&client, row.get::<_, SystemTime>(0).into()).await;
        let result = found.and_then(|found| same(&found, &expected));
        let Err(what) = result else { break };
        if let Some(status) = scene.service.ended() {
            // One that was started beside a fault that waiting does not mend ends with 1, and is started again as an
            // operator would have it. Once warm it survives everything.
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

/// The state is replaced if the server's history may have been lost.
fn epochs(scene: &Scene, faults: &[Kind]) -> Result<(), (&'static str, String)> {
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

/// Where two lists of events differ first.
fn same(cache: &[Value], oracle: &[Value]) -> Result<(), String> {
    let ids = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["event_id"].to_string()).collect()
    };
    if ids(cache) != ids(oracle) {
        return Err(format!(
            "events {:?} in the cache, {:?} in the oracle",
            ids(cache),
            ids(oracle)
        ));
    }
    let differences = cache.iter().zip(oracle).find_map(|(cache, oracle)| {
        Some((&cache["event_id"], difference("", cache, oracle)?))
    });
    match differences {
        Some((id, what)) => Err(format!("event {id}: {what}")),
        None => Ok(()),
    }
}
