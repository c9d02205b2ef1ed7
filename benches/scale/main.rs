//! What keeps a cache of many events current: the cost of what changed, and of what still makes the follower read
//! everything again.
//!
//! ```sh
//! cargo bench --bench scale                                   # 1,100 events, one to three minutes
//! EVENTS=11000 HISTORY=1 cargo bench --bench scale
//! EVENTS=110000 HISTORY=1 MARKETS=10 ROUNDS=1 PART=whole,partitions,lost,catalog,audit cargo bench --bench scale
//! ```
//!
//! The benchmark starts a private server, and prints one table. Each line has its floor, taken in the same run. It uses
//! only what the library and the service show to everybody.
//!
//! | variable | default | |
//! |---|---|---|
//! | `EVENTS` | 1100 | upcoming events, each with three bookmakers |
//! | `MARKETS` | 50 | markets of a snapshot |
//! | `HISTORY` | 2 | snapshots of each event and bookmaker, with their markets |
//! | `HANDLES` | 10 | handles that come back after a restart of the server |
//! | `ROUNDS` | 3 | how often what does not change the data is repeated |
//! | `PART` | all but `audit` | a list of `whole,age,memory,partitions,lost,catalog,statements,audit,herd,readers,truncate` |
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod age;
mod audit;
mod changes;
mod herd;
mod line;
mod readers;
mod whole;
mod world;

use std::time::Instant;

use oddscache_testkit::{bench::REAL, demo::Size};
use world::{World, typical};

/// The number in a variable of the environment.
fn number(name: &str, otherwise: u32) -> u32 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn is_wanted(part: &str) -> bool {
    let wanted = std::env::var("PART");
    wanted.map_or(true, |parts| parts.split(',').any(|wanted| wanted == part))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let begun = Instant::now();
    let history = number("HISTORY", 2);
    let size = Size {
        events: number("EVENTS", REAL as u32),
        markets: number("MARKETS", 50),
        history,
        history_with_markets: history,
    };
    let rounds = number("ROUNDS", 3);
    let mut world = World::new(&size).await;
    world.follow().await;
    // The first read of everything fills the server's caches. The others are the floor of what may cost less.
    let mut whole = Vec::new();
    for _ in 0..=rounds {
        whole.push(world.resync().await);
        world.settle().await;
    }
    let whole = typical(&whole[1..]);
    let held = world.cache().stats();
    println!(
        "{} events, {} snapshots, {} markets, {:.1} MiB held; made in {:.0} s\n\n{}",
        world.cache().view().len(),
        held.total_snapshots,
        held.total_markets,
        held.memory_bytes as f64 / 1_048_576.0,
        begun.elapsed().as_secs_f64(),
        line::HEAD
    );
    if is_wanted("whole") {
        whole::beside_copy(&world, rounds).await;
    }
    if is_wanted("age") {
        age::measure(&world, rounds).await;
    }
    if is_wanted("memory") {
        whole::memory(&world).await;
    }
    let poll = changes::polls(&world).await;
    if is_wanted("partitions") {
        changes::partitions(&world, &poll).await;
    }
    if is_wanted("lost") {
        changes::lost_connection(&world, rounds).await;
    }
    if is_wanted("catalog") {
        changes::catalog(&world, &whole).await;
    }
    if is_wanted("statements") {
        changes::statements(&world, &whole, rounds).await;
    }
    // It takes at least the two minutes of a cycle, so only who names it waits for it.
    if std::env::var("PART").is_ok() && is_wanted("audit") {
        audit::measure(&world).await;
    }
    if is_wanted("herd") {
        herd::measure(&mut world, number("HANDLES", 10)).await;
    }
    if is_wanted("readers") {
        readers::pages(&world, &size).await;
    }
    if is_wanted("truncate") {
        changes::truncate(&world, &whole).await;
    }
    world.stop_following();
    drop(world);
    if is_wanted("readers") {
        readers::in_memory(size.events as usize);
    }
    println!("\nmeasured in {:.0} s", begun.elapsed().as_secs_f64());
}
