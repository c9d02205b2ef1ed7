//! The service under load while the application scrapes: requests at a steady rate, subscribers of changes, and a copy of all
//! events kept by them alone. Prints errors, latencies, and the service's memory at the start, each minute and at the end.
//!
//! ```sh
//! cargo bench --bench load                                                # a minute
//! SECONDS=1800 RATE=1000 SUBSCRIBERS=100 cargo bench --bench load         # half an hour
//! ```
//!
//! `CYCLE` is the time in which the application scrapes everything once (60 s; the real one takes 300), `EVENTS` how many
//! there are (1,100). The service is the real binary, a process of its own; everything else, the clients and the application,
//! shares the machine with it. A latency counts from the moment at which a request was due, not from when it was sent. Ends with
//! code 1 if there was an error, a gap that was not told, or a copy that differs.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod mirror;
mod rate;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use oddscache::sql::Script;
use oddscache_testkit::{
    cluster::Cluster,
    demo::{self, Application, Size},
    load::{
        client::{Client, Tally, view_of},
        process::Service,
        subscriber::{self, Shared},
    },
};
use rate::{Load, Tallies};
use tokio::{task::JoinSet, time::sleep};
use tokio_postgres::NoTls;

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a whole number")),
        Err(_) => otherwise,
    }
}

const DATABASE: &str = "postgres";

async fn prepare(events: u32) -> Cluster {
    let settings = [
        "shared_buffers = 512MB",
        "max_wal_size = 4GB",
        "fsync = off",
    ];
    let cluster = Cluster::start(&settings).expect("a cluster");
    let (client, connection) = tokio_postgres::connect(&cluster.dsn(DATABASE), NoTls)
        .await
        .expect("connects");
    tokio::spawn(connection);
    let size = Size {
        events,
        ..Size::default()
    };
    demo::fill(&client, &size).await;
    for script in [Script::Install, Script::Indexes] {
        oddscache_testkit::run_script_on(&cluster, DATABASE, script, &[]);
    }
    client
        .batch_execute("vacuum analyze")
        .await
        .expect("analyzed");
    cluster
}

/// All requests together.
fn sum(tallies: &Tallies) -> Tally {
    let mut sum = Tally::default();
    for (_, tally) in tallies.lock().expect("a lock").iter() {
        sum.merge(tally);
    }
    sum
}

/// What all subscribers saw together.
fn summary(subscribers: &[Shared]) -> String {
    let all: Vec<_> = subscribers
        .iter()
        .map(|seen| seen.lock().expect("a lock").clone())
        .collect();
    let total = |of: fn(&subscriber::Seen) -> u64| all.iter().map(of).sum::<u64>();
    format!(
        "{} changes, {} lagged, {} untold gaps, {} reconnects",
        total(|seen| seen.changes),
        total(|seen| seen.lagged),
        total(|seen| seen.untold),
        total(|seen| seen.reconnects)
    )
}

/// Waits until every subscriber was told of the view that is served; returns how many were not, and the view.
async fn settled(client: &mut Client, subscribers: &[Shared], id: i64) -> (usize, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, tag, _) = client
            .take(&format!("/v1/events?ids={id}"), None)
            .await
            .expect("an answer");
        let (process, version) = tag.as_deref().and_then(view_of).expect("a tag");
        let served = format!("{process}-{version}");
        let behind = subscribers
            .iter()
            .filter(|seen| seen.lock().expect("a lock").last != served)
            .count();
        if behind == 0 || Instant::now() > deadline {
            return (behind, served);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the service, the copy and the database agree, once nobody writes; events that begin meanwhile are given time.
async fn agree(
    client: &mut Client,
    seen: &Shared,
    copy: &mut mirror::Copy,
    dsn: &str,
) -> Result<usize, String> {
    let mut differs = String::new();
    for _ in 0..20 {
        while mirror::catch_up(client, seen, copy).await? {}
        let served = mirror::all(client).await?;
        let config = oddscache::Config::new(dsn).map_err(|error| error.to_string())?;
        let view = oddscache::warm_up(config)
            .await
            .map_err(|error| error.to_string())?;
        let held = view
            .events()
            .map(|event| (event.event_id(), serde_json::to_value(event).expect("JSON")));
        let held: BTreeMap<i64, serde_json::Value> = held.collect();
        let different = |a: &mirror::Copy, b: &mirror::Copy| {
            let ids = a.keys().chain(b.keys()).filter(|id| a.get(id) != b.get(id));
            ids.copied().collect::<std::collections::BTreeSet<i64>>()
        };
        let (copied, stored) = (different(copy, &served), different(&served, &held));
        if copied.is_empty() && stored.is_empty() {
            return Ok(served.len());
        }
        differs = format!(
            "the copy differs from the service in {copied:?}, the service from the database in {stored:?}"
        );
        sleep(Duration::from_millis(500)).await;
    }
    Err(differs)
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let seconds = Duration::from_secs(setting("SECONDS", 60));
    let (rate, count) = (setting("RATE", 1000), setting("SUBSCRIBERS", 100));
    let cycle = Duration::from_secs(setting("CYCLE", 60));
    let events = u32::try_from(setting("EVENTS", 1100)).expect("a number of events");
    println!("loading {events} events ...");
    let cluster = prepare(events).await;
    let dsn = cluster.dsn(DATABASE);
    let mut service = Service::start(
        env!("CARGO_BIN_EXE_oddscache"),
        &dsn,
        &["--most-streams", "10000"],
    );
    let address: SocketAddr = service.address;
    let mut client = Client::new(address);
    while !matches!(client.take("/readyz", None).await, Ok((status, ..)) if status == 200) {
        service.assert_runs();
        sleep(Duration::from_millis(50)).await;
    }
    let ids: Vec<i64> = mirror::all(&mut client)
        .await
        .expect("all events")
        .into_keys()
        .collect();
    let with_odds = count.div_ceil(10);
    println!(
        "{} events held; {rate} requests/s, {count} subscribers, {with_odds} of them with odds, a scrape cycle of {} s, for {} s",
        ids.len(),
        cycle.as_secs(),
        seconds.as_secs()
    );

    let mut tasks = JoinSet::new();
    let subscribers: Vec<Shared> = (0..count.max(1)).map(|_| Shared::default()).collect();
    for (number, seen) in subscribers.iter().enumerate() {
        // The first tells the copy what to take.
        let odds = number as u64 >= count - with_odds;
        tasks.spawn(subscriber::run(
            address,
            Arc::clone(seen),
            number == 0,
            odds,
        ));
    }
    let copy = Arc::new(tokio::sync::Mutex::new(mirror::Copy::new()));
    let following = tasks.spawn(mirror::follow(
        address,
        Arc::clone(&subscribers[0]),
        Arc::clone(&copy),
    ));
    let application = Application::start(&dsn, cycle);
    // Until everything that is made once is made.
    sleep(Duration::from_secs(3)).await;
    let at_start = service.memory();
    println!("{:>7}  {at_start}", "start");
    let load = Load::start(address, rate, ids.clone());
    let begun = Instant::now();
    let (mut before, mut cpu) = (Tally::default(), service.cpu());
    let minute = Duration::from_secs(60);
    while begun.elapsed() < seconds {
        let from = Instant::now();
        sleep(minute.min(seconds.saturating_sub(begun.elapsed()))).await;
        service.assert_runs();
        let (now, spent) = (sum(&load.tallies), service.cpu());
        println!(
            "{:>5.0} s  {}  {:.0} answers/s, {:.1} MB/s, {} errors, p99 so far {:.2} ms  {}  cpu {:.0} %  {} transactions ({} failed)",
            begun.elapsed().as_secs_f64(),
            service.memory(),
            (now.latencies.count() - before.latencies.count()) as f64
                / from.elapsed().as_secs_f64(),
            (now.bytes - before.bytes) as f64 / 1e6 / from.elapsed().as_secs_f64(),
            now.errors() + load.unsent.load(Ordering::Relaxed),
            now.latencies.quantile(0.99).as_secs_f64() * 1e3,
            summary(&subscribers),
            (spent - cpu) / from.elapsed().as_secs_f64() * 100.0,
            application.transactions(),
            application.failed(),
        );
        (before, cpu) = (now, spent);
    }
    let took = begun.elapsed();
    let unsent = Arc::clone(&load.unsent);
    let tallies = load.stop().await;
    application.stop().await;
    let (behind, served) = settled(&mut client, &subscribers, ids[0]).await;
    // Not in the middle of a round, which has taken what changed already.
    let mut copy = copy.lock().await;
    following.abort();
    let agreed = agree(&mut client, &subscribers[0], &mut copy, &dsn).await;

    println!();
    for (kind, tally) in tallies.lock().expect("a lock").iter() {
        if tally.latencies.count() > 0 {
            println!(
                "{kind:<18}{:>9} answers  {}  {:?}",
                tally.latencies.count(),
                tally.latencies.line(),
                tally.statuses
            );
        }
    }
    let all = sum(&tallies);
    let achieved = all.latencies.count() as f64 / took.as_secs_f64();
    println!(
        "{:<18}{:>9} answers  {}",
        "all",
        all.latencies.count(),
        all.latencies.line()
    );
    println!(
        "asked for {rate}/s, answered {achieved:.0}/s; {:.1} MB/s",
        all.bytes as f64 / 1e6 / took.as_secs_f64()
    );
    let unsent = unsent.load(Ordering::Relaxed);
    println!(
        "errors: {} ({unsent} could not be sent) {:?}",
        all.errors() + unsent,
        all.errors
    );
    println!(
        "subscribers: {}; {behind} of {} not at {served}",
        summary(&subscribers),
        subscribers.len()
    );
    for seen in &subscribers {
        if let Some(wrong) = &seen.lock().expect("a lock").wrong {
            println!("  {wrong}");
        }
    }
    match &agreed {
        Ok(events) => println!("copy, service and database agree: {events} events"),
        Err(differs) => println!("they do not agree: {differs}"),
    }
    println!(
        "memory: {at_start} at the start, {} at the end",
        service.memory()
    );
    let untold: u64 = subscribers
        .iter()
        .map(|seen| seen.lock().expect("a lock").untold)
        .sum();
    let well = all.errors() + unsent + untold == 0 && behind == 0 && agreed.is_ok();
    println!(
        "{}",
        if well {
            "no error"
        } else {
            "NOT WELL: see above"
        }
    );
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
