//! The service under load while the application scrapes. Clients send requests at a steady rate, subscribers follow the
//! changes, and one client keeps a copy of all events from the changes alone. Prints errors, latencies, and the
//! service's memory at the start, each minute and at the end.
//!
//! ```sh
//! cargo bench --bench load                                                # a minute
//! SECONDS=1800 RATE=1000 SUBSCRIBERS=100 cargo bench --bench load         # half an hour
//! ```
//!
//! `CYCLE` (60) is the time in seconds in which the application scrapes everything once. The real application takes
//! 300. `EVENTS` (1100) is the number of events. The service is the real binary in its own process. The clients and the
//! application share the machine with it. A latency counts from the time when a request was due, not from when it was
//! sent. The exit code is 1 after an error, a gap that the service did not report, or a copy that differs.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod mirror;
mod rate;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use oddscache_testkit::{
    bench::server::{self, Server},
    demo::{Application, Size},
    load::{
        client::{Client, Counts, view_of},
        subscriber::{self, Shared},
    },
    process::{cpu, memory},
    service::Service,
};
use rate::{CountsByKind, Load};
use tokio::{task::JoinSet, time::sleep};

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a whole number")),
        Err(_) => otherwise,
    }
}

/// The counts of all kinds of request together.
fn sum(by_kind: &CountsByKind) -> Counts {
    let mut sum = Counts::default();
    for (_, counts) in by_kind.lock().expect("a lock").iter() {
        sum.merge(counts);
    }
    sum
}

/// The sums over all subscribers, as text.
fn summary(subscribers: &[Shared]) -> String {
    let all: Vec<_> = subscribers
        .iter()
        .map(|seen| seen.lock().expect("a lock").clone())
        .collect();
    let total = |of: fn(&subscriber::Seen) -> u64| all.iter().map(of).sum::<u64>();
    format!(
        "{} changes, {} lagged, {} unreported gaps, {} reconnects",
        total(|seen| seen.changes),
        total(|seen| seen.lagged),
        total(|seen| seen.untold),
        total(|seen| seen.reconnects)
    )
}

/// Waits until every subscriber knows the view that the service serves. Returns the number of those that do not after a
/// minute, and the view.
async fn settled(client: &Client, subscribers: &[Shared], id: i64) -> (usize, String) {
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

/// Compares the service, the copy and the database while nobody writes. Tries again if an event begins meanwhile.
/// Returns the number of events, or the differences.
async fn agree(
    client: &Client,
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
    let settings = [
        "shared_buffers = 512MB",
        "max_wal_size = 4GB",
        "fsync = off",
    ];
    let size = Size {
        events,
        ..Size::default()
    };
    let Server {
        cluster: _cluster,
        dsn,
        ..
    } = server::of_size(&settings, &size).await;
    let mut service = Service::measured(&dsn, &["--most-streams", "10000"]).await;
    service.ready().await;
    let (address, pid) = (service.address(), service.pid());
    let client = Client::new(address);
    let all = mirror::all(&client).await.expect("all events");
    let ids: Vec<i64> = all.into_keys().collect();
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
        // The first subscriber collects the changed events for the copy.
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
    // The service allocates some memory only once. Let it do so before the first figure.
    sleep(Duration::from_secs(3)).await;
    let at_start = memory(pid);
    println!("{:>7}  {at_start}", "start");
    let load = Load::start(address, rate, ids.clone());
    let begun = Instant::now();
    let (mut before, mut spent) = (Counts::default(), cpu(pid));
    let minute = Duration::from_secs(60);
    while begun.elapsed() < seconds {
        let from = Instant::now();
        sleep(minute.min(seconds.saturating_sub(begun.elapsed()))).await;
        service.assert_runs();
        let (now, spent_now) = (sum(&load.by_kind), cpu(pid));
        println!(
            "{:>5.0} s  {}  {:.0} answers/s, {:.1} MB/s, {} errors, p99 so far {:.2} ms  {}  cpu {:.0} %  {} transactions ({} failed)",
            begun.elapsed().as_secs_f64(),
            memory(pid),
            (now.latencies.count() - before.latencies.count()) as f64
                / from.elapsed().as_secs_f64(),
            (now.bytes - before.bytes) as f64 / 1e6 / from.elapsed().as_secs_f64(),
            now.errors() + load.unsent.load(Ordering::Relaxed),
            now.latencies.quantile(0.99).as_secs_f64() * 1e3,
            summary(&subscribers),
            (spent_now - spent) / from.elapsed().as_secs_f64() * 100.0,
            application.transactions(),
            application.failed(),
        );
        (before, spent) = (now, spent_now);
    }
    let took = begun.elapsed();
    let unsent = Arc::clone(&load.unsent);
    let by_kind = load.stop().await;
    application.stop().await;
    let (behind, served) = settled(&client, &subscribers, ids[0]).await;
    // Take the lock before aborting. A round that is aborted midway has taken the changes, but has not applied them.
    let mut copy = copy.lock().await;
    following.abort();
    let agreed = agree(&client, &subscribers[0], &mut copy, &dsn).await;

    println!();
    for (kind, counts) in by_kind.lock().expect("a lock").iter() {
        if counts.latencies.count() > 0 {
            println!(
                "{kind:<18}{:>9} answers  {}  {:?}",
                counts.latencies.count(),
                counts.latencies.line(),
                counts.statuses
            );
        }
    }
    let all = sum(&by_kind);
    let achieved = all.latencies.count() as f64 / took.as_secs_f64();
    println!(
        "{:<18}{:>9} answers  {}",
        "all",
        all.latencies.count(),
        all.latencies.line()
    );
    println!(
        "requested {rate}/s, answered {achieved:.0}/s; {:.1} MB/s",
        all.bytes as f64 / 1e6 / took.as_secs_f64()
    );
    let unsent = unsent.load(Ordering::Relaxed);
    println!(
        "errors: {} ({unsent} could not be sent) {:?}",
        all.errors() + unsent,
        all.errors
    );
    println!(
        "subscribers: {}; {behind} of {} do not know view {served}",
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
        Err(differs) => println!("copy, service and database differ: {differs}"),
    }
    println!(
        "memory: {at_start} at the start, {} at the end",
        memory(pid)
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
            "FAILED: see above"
        }
    );
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
