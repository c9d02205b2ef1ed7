//! What a follower costs while nothing is written: without and with the audit, on both sides, at real scale.
//!
//! Starts a private server with 1,100 upcoming events, and on it `oddscache serve` twice in turn, as a process of its own.
//! CPU time is read from /proc, of the service and of the server's processes for it. `cargo bench --bench rest`; `SECONDS`
//! sets how long each is watched (120, a whole pass of the audit).
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oddscache_testkit::bench::server::{self, Server};
use tokio_postgres::Client;

/// Clock ticks a second in /proc/PID/stat, on every Linux there is.
const TICKS: f64 = 100.0;

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    (ticks(12).unwrap_or_default() + ticks(13).unwrap_or_default()) / TICKS
}

async fn backends(client: &Client) -> Vec<u32> {
    let sql = "select pid from pg_stat_activity where application_name = 'oddscache'";
    let rows = client.query(sql, &[]).await.expect("backends");
    rows.iter()
        .map(|row| u32::try_from(row.get::<_, i32>(0)).expect("a pid"))
        .collect()
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the service says of its audit.
fn audited(address: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(address)?;
        write!(
            stream,
            "GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().expect("the service answers");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let stats: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let counter = |name: &str| stats["counters"][name].clone();
    format!(
        "{} events audited in {} passes, {} mismatches",
        counter("audited_events"),
        counter("audit_passes"),
        counter("audit_mismatches")
    )
}

/// Shares of a core: the service's, and the server's for it.
async fn watch(dsn: &str, client: &Client, audit_cycle: &str, seconds: f64) -> (f64, f64, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let child = Command::new(env!("CARGO_BIN_EXE_oddscache"))
        .args(["serve", "--listen", &address, "--audit-cycle", audit_cycle])
        .env("DATABASE_URL", dsn)
        .env("ODDSCACHE_LOG", "warn")
        .stdout(Stdio::null())
        .spawn()
        .expect("the service starts");
    let service = Service(child);
    // Warm, and its bell proven.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pids = backends(client).await;
    let cpu = |pids: &[u32]| pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let before = (cpu_seconds(service.0.id()), cpu(&pids));
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let after = (cpu_seconds(service.0.id()), cpu(&pids));
    let mut note = format!("   {}", audited(&address));
    if backends(client).await != pids {
        note.push_str("; it reconnected meanwhile: the server's share is too low");
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
