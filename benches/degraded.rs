//! While the change feed does not log every change: how late an unlogged change shows, and what the reads of everything
//! cost.
//!
//! ```sh
//! cargo bench --bench degraded
//! ```
//!
//! For each amount of data, the benchmark starts a private server, and `oddscache serve` in a process of its own. It
//! disables a trigger, and commits changes that are not logged. The floor is the service's own read of everything, from
//! its first warmup. `EVENTS` (`1100 11000`) lists the numbers of events. `CHANGES` (5) is the number of changes.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use oddscache_testkit::{
    bench::server::{self, Server},
    demo::Size,
    process::cpu,
    service::Service,
};
use serde_json::Value;
use tokio::time::sleep;
use tokio_postgres::Client;

const PAUSE: Duration = Duration::from_millis(20);

async fn backends(client: &Client) -> Vec<u32> {
    let sql = "select pid from pg_stat_activity where application_name like 'oddscache %'";
    let rows = client.query(sql, &[]).await.expect("backends");
    let pid = |row: &tokio_postgres::Row| u32::try_from(row.get::<_, i32>(0)).expect("a pid");
    rows.iter().map(pid).collect()
}

fn line(event: &Value) -> &Value {
    let snapshots = event["betpawa"].as_object().expect("snapshots");
    &snapshots.values().next().expect("a snapshot")["markets"][0]["line"]
}

/// Commits a change that is not logged. Returns how long it took to show, and the greatest age seen until then.
async fn unlogged(service: &Service, client: &Client, event: i64, value: i64) -> (f64, f64) {
    let sql = format!(
        "update market_odds set line = {value} where snapshot_id =
         (select max(id) from odds_snapshots where event_id = {event} and bookmaker_id = 1)"
    );
    client.batch_execute(&sql).await.expect("updated");
    let committed = Instant::now();
    let mut oldest: f64 = 0.0;
    loop {
        let answer = service.json(&format!("/v1/events/{event}")).await;
        if line(&answer).as_f64() == Some(value as f64) {
            return (committed.elapsed().as_secs_f64(), oldest);
        }
        let stats = service.json("/v1/stats").await;
        oldest = oldest.max(stats["age_ms"].as_f64().expect("an age") / 1e3);
        sleep(PAUSE).await;
    }
}

async fn measure(events: u32, changes: usize) {
    let size = Size {
        events,
        ..Size::default()
    };
    let settings = ["shared_buffers = 1GB", "max_wal_size = 4GB"];
    let Server {
        cluster: _cluster,
        dsn,
        client,
    } = server::of_size(&settings, &size).await;
    let service = Service::measured(&dsn, &[]).await;
    service.ready().await;
    let stats = service.json("/v1/stats").await;
    let floor = stats["last_warmup"]["seconds"].as_f64().expect("warm");
    let sql = "select event_id::int8 from odds_snapshots join events on events.id = event_id where bookmaker_id = 1
        and kickoff > now() at time zone 'UTC' + interval '1 day' limit 1";
    let event: i64 = client.query_one(sql, &[]).await.expect("an event").get(0);
    let disable = "alter table market_odds disable trigger oddscache_update";
    client.batch_execute(disable).await.expect("disabled");
    let mut bound = Value::Null;
    while bound.is_null() {
        sleep(PAUSE).await;
        bound = service.json("/readyz").await["degraded"]["bound_ms"].clone();
    }
    let pids = backends(&client).await;
    let server = || pids.iter().map(|pid| cpu(*pid)).sum::<f64>();
    let (begun, before) = (Instant::now(), (cpu(service.pid()), server()));
    let (mut latest, mut oldest, mut greatest) = (0.0_f64, 0.0_f64, 0.0_f64);
    for change in 0..changes {
        let value = 1_000 + i64::try_from(change).expect("few");
        let (took, age) = unlogged(&service, &client, event, value).await;
        let bound = service.json("/readyz").await["degraded"]["bound_ms"].clone();
        greatest = greatest.max(bound.as_f64().expect("degraded") / 1e3);
        (latest, oldest) = (latest.max(took), oldest.max(age));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let percent = |before: f64, after: f64| (after - before) / seconds * 100.0;
    println!(
        "{events:>8}{:>12.2} s{:>12.1} s{:>12.1} s{:>8.1}x{:>12.1} s{:>11.2} %{:>11.2} %",
        floor,
        greatest,
        latest,
        latest / floor,
        oldest,
        percent(before.0, cpu(service.pid())),
        percent(before.1, server()),
    );
}

#[tokio::main]
async fn main() {
    let number = |name: &str, otherwise: &str| std::env::var(name).unwrap_or(otherwise.to_owned());
    let changes = number("CHANGES", "5").parse().expect("a number");
    println!("3 bookmakers x 50 markets an event; {changes} changes that are not logged");
    println!(
        "{:>8}{:>14}{:>14}{:>14}{:>9}{:>14}{:>13}{:>13}",
        "events", "whole read", "bound", "latest", "ratio", "oldest view", "service", "server"
    );
    for events in number("EVENTS", "1100 11000").split_whitespace() {
        measure(events.parse().expect("a number"), changes).await;
    }
    println!(
        "service, server: shares of one core; the server's leaves out sessions that ended meanwhile"
    );
}
