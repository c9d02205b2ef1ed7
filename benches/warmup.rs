//! A whole warmup, compared with psql copying the same rows to /dev/null in binary. Both connect and read. The warmup
//! also decodes and publishes.
//!
//! ```sh
//! cargo bench --bench warmup
//! ```
//!
//! The two take turns. `ROUNDS` (15) is the number of turns.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use oddscache::Config;
use oddscache_testkit::bench::{
    figures::{median, milliseconds},
    server::{self, Server},
};

/// The fastest query known: 20 % faster than a join, and faster than LATERAL for the latest snapshot.
const COPY_BETPAWA: &str = "COPY (SELECT m.id, m.snapshot_id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, \
    m.handicap_home, m.handicap_away, m.outcomes, m.market_groups, m.unavailable_at FROM market_odds m \
    WHERE m.snapshot_id = ANY(ARRAY(SELECT max(s.id) FROM odds_snapshots s JOIN events e ON e.id = s.event_id \
    WHERE e.kickoff > (now() AT TIME ZONE 'UTC') - interval '2 hours' GROUP BY s.event_id, s.bookmaker_id))) TO STDOUT (FORMAT binary)";
const COPY_COMPETITORS: &str = "COPY (SELECT m.id, m.snapshot_id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, \
    m.handicap_home, m.handicap_away, m.outcomes, m.market_groups, m.unavailable_at FROM competitor_market_odds m \
    WHERE m.snapshot_id = ANY(ARRAY(SELECT max(s.id) FROM competitor_odds_snapshots s JOIN competitor_events c \
    ON c.id = s.competitor_event_id JOIN events e ON e.id = c.betpawa_event_id \
    WHERE e.kickoff > (now() AT TIME ZONE 'UTC') - interval '2 hours' AND c.deleted_at IS NULL \
    GROUP BY c.betpawa_event_id, c.source))) TO STDOUT (FORMAT binary)";

fn copy(server: &Server) -> Duration {
    let begun = Instant::now();
    let status = server
        .cluster
        .client("psql")
        .expect("psql")
        .args(["-Xq", "-d", &server.dsn, "-c", "SET jit = off"])
        .args(["-c", COPY_BETPAWA, "-c", COPY_COMPETITORS])
        .stdout(Stdio::null())
        .status()
        .expect("psql");
    assert!(status.success());
    begun.elapsed()
}

async fn warm_up(config: &Config) -> (Duration, Duration, usize) {
    let begun = Instant::now();
    let view = oddscache::warm_up(config.clone()).await.expect("warm");
    let took = begun.elapsed();
    let stats = view.stats();
    let warmup = stats.last_warmup.as_ref().expect("warm");
    (
        took,
        Duration::from_secs_f64(warmup.seconds),
        stats.total_markets,
    )
}

#[tokio::main]
async fn main() {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let server = server::start(&[]).await;
    let config = Config::new(&server.dsn).expect("a configuration");
    let (mut ours, mut inner, mut theirs, mut markets) = (vec![], vec![], vec![], 0);
    for round in 0..rounds.unwrap_or(15) + 1 {
        let (took, transaction, found) = warm_up(&config).await;
        let copied = copy(&server);
        // The first round fills the server's caches and does not count.
        if round > 0 {
            ours.push(took);
            inner.push(transaction);
            theirs.push(copied);
            markets = found;
        }
    }
    println!("{markets} markets, medians of {} rounds", ours.len());
    let (ours, inner, theirs) = (median(&mut ours), median(&mut inner), median(&mut theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "warm_up(): {} (its transaction {})",
        milliseconds(ours),
        milliseconds(inner)
    );
    println!("psql COPY: {}", milliseconds(theirs));
    println!("ratio: {ratio:.2}");
}
