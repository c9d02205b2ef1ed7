//! CPU time of a follower while nobody writes, with and without the audit, at real scale. Measures the service and the
//! backends that PostgreSQL runs for it.
//!
//! ```sh
//! cargo bench --bench rest
//! ```
//!
//! The benchmark starts a private server with 1,100 upcoming events. It runs `oddscache serve` on it twice, in its own
//! process, and reads CPU times from /proc. `SECONDS` (120) is the time of each measurement. The default is as long as
//! a whole pass of the audit.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use oddscache_testkit::{
    bench::server::{self, Server},
    process::cpu,
    service::Service,
};
use tokio::time::sleep;
use tokio_postgres::Client;

async fn backends(client: &Client) -> Vec<u32> {
    let sql = "select pid from pg_stat_activity where application_name like 'oddscache %'";
    let rows = client.query(sql, &[]).await.expect("backends");
    rows.iter()
        .map(|row| u32::try_from(row.get::<_, i32>(0)).expect("a pid"))
        .collect()
}

/// The counters of the audit, as text.
async fn audited(service: &Service) -> String {
    let stats = service.json("/v1/stats").await;
    let counter = |name: &str| stats["counters"][name].clone();
    format!(
        "{} events audited in {} passes, {} mismatches",
        counter("audited_events"),
        counter("audit_passes"),
        counter("audit_mismatches")
    )
}

/// The shares of a core that the service and its backends take, and a note.
async fn watch(dsn: &str, client: &Client, audit_cycle: &str, seconds: f64) -> (f64, f64, String) {
    let service = Service::measured(dsn, &["--audit-cycle", audit_cycle]).await;
    // Wait until it is warm and has received its first notification.
    sleep(Duration::from_secs(15)).await;
    let pids = backends(client).await;
    let server = || pids.iter().map(|pid| cpu(*pid)).sum::<f64>();
    let before = (cpu(service.pid()), server());
    sleep(Duration::from_secs_f64(seconds)).await;
    let after = (cpu(service.pid()), server());
    let mut note = format!("   {}", audited(&service).await);
    if backends(client).await != pids {
        note.push_str("; it connected again meanwhile, so the share of the server is too low");
    }
    (
        (after.0 - before.0) / seconds,
        (after.1 - before.1) / seconds,
        note,
    )
}

#[tokio::main]
async fn main() {
    let seconds = std::env::var("SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seconds = seconds.unwrap_or(120.0);
    let Server {
        cluster: _cluster,
        dsn,
        client,
    } = server::start(&[]).await;
    println!(
        "1,100 events x 3 bookmakers x 50 markets, nothing written, {seconds} s each, poll interval 1 s"
    );
    println!("{:<28}{:>14}{:>14}", "", "service", "server");
    for (name, cycle) in [
        ("without the audit", "1000h"),
        ("with the audit (120 s)", "2m"),
    ] {
        let (service, server, note) = watch(&dsn, &client, cycle, seconds).await;
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        println!(
            "{name:<28}{:>14}{:>14}{note}",
            percent(service),
            percent(server)
        );
    }
    println!("in per cent of one core");
}
