//! Many handles come back at once after a restart of the server. Beside them an application asks.

use std::time::{Duration, Instant};

use oddscache::{Counters, OddsCache};
use oddscache_testkit::{bench::quantile, connect};
use tokio::{
    runtime::Runtime,
    time::{sleep, timeout},
};

use crate::{
    line::{Line, time},
    world::{World, config, runtime, until},
};

/// How long the application asks where no handle comes back.
const ALONE: Duration = Duration::from_secs(5);

/// The time between two of its questions.
const PAUSE: Duration = Duration::from_millis(5);

/// The newest odds of one event.
const ASK: &str = "select * from market_odds where snapshot_id =
    (select max(id) from odds_snapshots where event_id = $1 and bookmaker_id = 1)";

/// Handles of this process, each with its own follower.
struct Herd {
    caches: Vec<OddsCache>,
    runtime: Runtime,
}

impl Herd {
    async fn start(dsn: &str, count: u32) -> Herd {
        let runtime = runtime(2);
        let mut caches = Vec::new();
        for _ in 0..count {
            let (cache, follower) = OddsCache::connect(config(dsn));
            runtime.spawn(follower.run());
            cache.ready().await.expect("warm");
            caches.push(cache);
        }
        Herd { caches, runtime }
    }

    fn sum(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        let counters = self.caches.iter().map(|cache| counter(&cache.counters()));
        counters.sum()
    }
}

struct Restarted {
    /// Seconds from when the server accepts connections until all handles are fresh.
    seconds: f64,
    /// p99 of the application's question meanwhile.
    asked: f64,
    longest: f64,
    rows: u64,
    whole: u64,
}

/// Asks until it is dropped, and adds the times.
async fn ask(dsn: &str, events: i64, times: &mut Vec<f64>) {
    let client = connect(dsn).await;
    let statement = client.prepare(ASK).await.expect("prepared");
    loop {
        let event = i32::try_from(1 + fastrand::i64(0..events)).expect("an id");
        let begun = Instant::now();
        client.query(&statement, &[&event]).await.expect("odds");
        times.push(begun.elapsed().as_secs_f64());
        sleep(PAUSE).await;
    }
}

async fn restart(world: &mut World, count: u32) -> Restarted {
    let herd = Herd::start(&world.dsn, count).await;
    let events: i64 = {
        let row = world
            .client
            .query_one("select max(id)::int8 from events", &[])
            .await;
        row.expect("events").get(0)
    };
    let rows = |herd: &Herd| herd.sum(|counters| counters.rows_read);
    let reloads = |herd: &Herd| herd.sum(|counters| counters.reloads);
    let before = (rows(&herd), reloads(&herd));
    let started = world.restart().await;
    let mut times = Vec::new();
    let fresh = async {
        until("all are fresh", || {
            let is_fresh = |cache: &OddsCache| cache.view().age() < started.elapsed();
            herd.caches.iter().all(is_fresh)
        })
        .await;
        if count == 0 {
            sleep(ALONE).await;
        }
        started.elapsed().as_secs_f64()
    };
    let seconds = tokio::select! {
        seconds = fresh => seconds,
        () = ask(&world.dsn, events, &mut times) => unreachable!("it asks for ever"),
    };
    let restarted = Restarted {
        seconds,
        asked: quantile(&mut times, 0.99),
        longest: quantile(&mut times, 1.0),
        rows: rows(&herd) - before.0,
        whole: reloads(&herd) - before.1,
    };
    herd.runtime.shutdown_background();
    // The next measurement begins without their connections.
    let gone = async {
        let sql = "select from pg_stat_activity where application_name like 'oddscache %'";
        while !world
            .client
            .query(sql, &[])
            .await
            .expect("sessions")
            .is_empty()
        {
            sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), gone).await.expect("gone");
    restarted
}

/// Leaves a world that is followed again.
pub(crate) async fn measure(world: &mut World, count: u32) {
    world.stop_following();
    let nobody = restart(world, 0).await;
    let one = restart(world, 1).await;
    let all = restart(world, count).await;
    world.follow().await;
    let note = |restarted: &Restarted| {
        format!(
            "{} rows and {} whole reads in all",
            restarted.rows, restarted.whole
        )
    };
    Line::seconds("restart of the server: 1 handle, until fresh", one.seconds)
        .note(note(&one))
        .print();
    let what = format!("restart of the server: {count} handles, until all are fresh");
    Line::seconds(what, all.seconds)
        .beside_seconds(one.seconds, "1 handle")
        .note(note(&all))
        .print();
    let what = format!("an application's query until then, p99: {count} handles");
    Line::seconds(what, all.asked)
        .beside_seconds(nobody.asked, "no handle")
        .note(format!(
            "at most {}, without a handle {}",
            time(all.longest),
            time(nobody.longest)
        ))
        .print();
}
