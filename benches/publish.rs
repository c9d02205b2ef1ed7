//! Publishing a scrape batch of 150 snapshots of 50 events, at three sizes of the cache. Measured with and without
//! readers that hold old views.
//!
//! ```sh
//! cargo bench --bench publish
//! ```
//!
//! The new snapshots have no markets, because `--bench decode` measures packing them. The first snapshots, which they
//! replace, have twenty. A `Writer` replaces an event for each of its three snapshots, while a follower replaces it
//! once.
#![allow(clippy::expect_used, missing_docs)]

use std::{collections::VecDeque, time::Instant};

use oddscache_testkit::bench::{SOURCES, event_ids, filled, mix, quantile, snapshot};

const EVENTS: usize = 50;
const ROUNDS: usize = 400;

fn measure(events: usize, held: usize) {
    let ids = event_ids(events);
    let (cache, mut writer) = filled(&ids, 20);
    let mut views = VecDeque::new();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        // The events of a batch begin about the same time, but their ids are not neighbours.
        let chosen: Vec<i64> = (0..EVENTS)
            .map(|n| ids[mix((round * EVENTS + n) as u64) as usize % ids.len()])
            .collect();
        let version = round as i64 + 2;
        let inputs: Vec<_> = chosen
            .iter()
            .map(|event_id| [0, 1, 2].map(|bookmaker| snapshot(*event_id, bookmaker, 0, version)))
            .collect();
        let begun = Instant::now();
        for [own, others @ ..] in &inputs {
            writer.put_betpawa_snapshot(own, None);
            for (source, other) in SOURCES.iter().zip(others) {
                writer.put_competitor_snapshot(source, other, None);
            }
        }
        writer.publish();
        times.push(begun.elapsed().as_nanos() as f64 / 1000.0);
        views.push_back(cache.view());
        if views.len() > held {
            views.pop_front();
        }
    }
    let [p10, p50, p99, most] = [0.1, 0.5, 0.99, 1.0].map(|at| quantile(&mut times, at));
    let goal = match events {
        1_100 => "<= 80 at the median",
        110_000 => "<= 400 at the median",
        _ => "",
    };
    println!("{events:>9}{held:>8}{p10:>10.0}{p50:>10.0}{p99:>10.0}{most:>10.0}   {goal}");
}

fn main() {
    println!(
        "150 snapshots of 50 events, {ROUNDS} times; microseconds from the first put until published"
    );
    println!("   events    held       p10       p50       p99       max");
    for events in [1_100, 11_000, 110_000] {
        for held in [0, 12] {
            measure(events, held);
        }
    }
}
