//! Lookups and walks, compared with their floors in the same run. The floor of a lookup is a plain `hashbrown` map of
//! the same events. The floor of a walk is a dense array of them.
//!
//! ```sh
//! cargo bench --bench lookup
//! ```
//!
//! `LARGE` (110000) is the number of events in the second part of the run. The default takes about 400 MB.
#![allow(clippy::expect_used, missing_docs)]

use std::{
    hint::black_box,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use oddscache::{CachedEvent, OddsCache, Reader, State};
use oddscache_testkit::bench::{
    Candidate, REAL, event_ids, filled, line, median, put, quantile, shuffled, side_by_side,
};

type Plain = HashMap<i64, Arc<CachedEvent>>;

fn plain(cache: &OddsCache) -> Plain {
    let ids = cache.event_ids();
    ids.iter()
        .map(|id| (*id, cache.event(*id).expect("held")))
        .collect()
}

/// Reads a field of the event. Every lookup ends with this, so that it has to follow the pointer.
fn read_field(event: &CachedEvent) -> u64 {
    event.betpawa().len() as u64
}

fn in_state(state: &State, id: i64) -> u64 {
    state.event(id).map_or(0, read_field)
}

fn sum(ids: &[i64], mut look: impl FnMut(i64) -> u64) -> u64 {
    ids.iter().map(|id| look(black_box(*id))).sum()
}

fn one_thread(cache: &OddsCache, ids: &[i64]) {
    let map = plain(cache);
    let view = cache.view();
    let mut reader = cache.reader();
    let fifty: Vec<i64> = ids.iter().take(50).copied().collect();
    let units = ids.len();
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "floor: plain map, borrowed",
            Box::new(|| sum(ids, |id| map.get(&id).map_or(0, |event| read_field(event)))),
        ),
        (
            "a held view",
            Box::new(|| sum(ids, |id| in_state(&view, id))),
        ),
        (
            "the handle: Reader::state",
            Box::new(|| sum(ids, |id| in_state(reader.state(), id))),
        ),
        (
            "the handle: OddsCache::read",
            Box::new(|| sum(ids, |id| cache.read(|state| in_state(state, id)))),
        ),
        (
            "the handle: OddsCache::get_betpawa_snapshot, refcounted",
            Box::new(|| {
                sum(ids, |id| {
                    cache
                        .get_betpawa_snapshot(id)
                        .map_or(0, |found| found.len() as u64)
                })
            }),
        ),
        (
            "the handle: OddsCache::view().event",
            Box::new(|| sum(ids, |id| in_state(&cache.view(), id))),
        ),
    ];
    let times = side_by_side(301, units, &mut candidates);
    let goal = ["", "<= 1.5", "", "<= 4", "", ""];
    for (((name, _), time), goal) in candidates.iter().zip(&times).zip(goal) {
        line(name, *time, "ns", time / times[0], goal);
    }
    drop(candidates);
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "floor: 50 events of the plain map",
            Box::new(|| {
                (0..20)
                    .map(|_| {
                        sum(&fifty, |id| {
                            map.get(&id).map_or(0, |event| read_field(event))
                        })
                    })
                    .sum()
            }),
        ),
        (
            "50 events of one view, borrowed",
            Box::new(|| (0..20).map(|_| sum(&fifty, |id| in_state(&view, id))).sum()),
        ),
        (
            "50 events through the handle: one OddsCache::read",
            Box::new(|| {
                (0..20)
                    .map(|_| cache.read(|state| sum(&fifty, |id| in_state(state, id))))
                    .sum()
            }),
        ),
    ];
    let times = side_by_side(301, 20, &mut candidates);
    for (((name, _), time), goal) in candidates.iter().zip(&times).zip(["", "<= 1.5", ""]) {
        line(name, *time, "ns", time / times[0], goal);
    }
}

/// Lookups per second of `threads` threads together. `look` makes a lookup function for each thread.
fn rate(
    threads: usize,
    ids: &[i64],
    look: &(dyn Fn() -> Box<dyn FnMut(i64) -> u64> + Sync),
) -> f64 {
    // Enough passes that the scheduler gives each thread a core of its own.
    const PASSES: usize = 20_000;
    let barrier = Barrier::new(threads + 1);
    let took = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut look = look();
                    black_box(sum(ids, &mut look));
                    barrier.wait();
                    for _ in 0..PASSES {
                        black_box(sum(ids, &mut look));
                    }
                })
            })
            .collect();
        barrier.wait();
        let begun = Instant::now();
        for thread in threads {
            thread.join().expect("reads");
        }
        begun.elapsed()
    });
    (threads * PASSES * ids.len()) as f64 / took.as_secs_f64()
}

fn two_threads(cache: &OddsCache, ids: &[i64]) {
    let map = Arc::new(plain(cache));
    let floor = || -> Box<dyn FnMut(i64) -> u64> {
        let map = Arc::clone(&map);
        Box::new(move |id| map.get(&id).map_or(0, |event| read_field(event)))
    };
    let read = || -> Box<dyn FnMut(i64) -> u64> {
        let cache = cache.clone();
        Box::new(move |id| cache.read(|state| in_state(state, id)))
    };
    let reader = || -> Box<dyn FnMut(i64) -> u64> {
        let mut reader: Reader = cache.reader();
        Box::new(move |id| in_state(reader.state(), id))
    };
    let counted = || -> Box<dyn FnMut(i64) -> u64> {
        let cache = cache.clone();
        Box::new(move |id| {
            cache
                .get_betpawa_snapshot(id)
                .map_or(0, |found| found.len() as u64)
        })
    };
    type Look<'a> = &'a (dyn Fn() -> Box<dyn FnMut(i64) -> u64> + Sync);
    let candidates: [(&str, Look<'_>, &str); 4] = [
        ("2 threads: plain map", &floor, ""),
        ("2 threads: OddsCache::read", &read, ">= 1.6"),
        ("2 threads: Reader::state", &reader, ">= 1.6"),
        ("2 threads: get_betpawa_snapshot, refcounted", &counted, ""),
    ];
    let mut rates = [const { (Vec::new(), Vec::new()) }; 4];
    // One and two threads take turns, because a machine that shares its cores does not always have two free.
    for _ in 0..9 {
        for ((_, look, _), (one, two)) in candidates.iter().zip(&mut rates) {
            one.push(rate(1, ids, *look));
            two.push(rate(2, ids, *look));
        }
    }
    for ((name, _, goal), (one, two)) in candidates.iter().zip(&mut rates) {
        let (one, two) = (median(one), median(two));
        let (rate, speed_up) = (two / 1e6, two / one);
        println!("{name:<58}{rate:>10.1} M/s{speed_up:>7.2}x   {goal} (speed-up)");
    }
}

/// The p99 of single lookups through the handle, with and without a writer that publishes 25 batches a second.
fn beside_a_writer(ids: &[i64]) {
    let (cache, mut writer) = filled(ids, 50);
    let stop = AtomicBool::new(false);
    let writing = AtomicBool::new(false);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut version = 2;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(40));
                if writing.load(Ordering::Relaxed) {
                    let first = version as usize * 50 % (ids.len() - 50);
                    for id in &ids[first..first + 50] {
                        put(&mut writer, *id, 50, version);
                    }
                    writer.publish();
                    version += 1;
                }
            }
        });
        // Each measured time includes one reading of the clock. Subtract its median.
        let mut clock: Vec<f64> = (0..100_000)
            .map(|_| Instant::now().elapsed().as_nanos() as f64)
            .collect();
        let clock = quantile(&mut clock, 0.5);
        for round in 0..20 {
            let beside_it = round % 2 == 1;
            writing.store(beside_it, Ordering::Relaxed);
            let until = Instant::now() + Duration::from_millis(400);
            let mut times = Vec::new();
            for id in ids.iter().cycle() {
                let begun = Instant::now();
                black_box(cache.read(|state| in_state(state, black_box(*id))));
                times.push(begun.elapsed().as_nanos() as f64 - clock);
                if times.len() % 1024 == 0 && Instant::now() > until {
                    break;
                }
            }
            let p99 = quantile(&mut times, 0.99);
            if beside_it { &mut beside } else { &mut alone }.push(p99);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (alone, beside) = (median(&mut alone), median(&mut beside));
    line(
        "floor: OddsCache::read, p99, nobody writes",
        alone,
        "ns",
        1.0,
        "",
    );
    line(
        "the same beside 25 publications a second, p99",
        beside,
        "ns",
        beside / alone,
        "<= 1.5",
    );
}

fn inline(event: &CachedEvent) -> u64 {
    let own = event.betpawa().iter().map(|(_, snapshot)| snapshot);
    let others = event.competitors().iter().map(|(_, snapshot)| snapshot);
    let markets = own
        .chain(others)
        .flat_map(|snapshot| snapshot.markets().take(4));
    markets
        .flat_map(|market| market.outcomes())
        .map(|outcome| outcome.odds().map_or(0, |odds| (odds * 1000.0) as u64))
        .sum()
}

fn walk(events: usize, rounds: usize) {
    let (cache, _writer) = filled(&event_ids(events), 20);
    let view = cache.view();
    let mut dense: Vec<Arc<CachedEvent>> = plain(&cache).into_values().collect();
    // In the order of their addresses, which is the fastest order to walk.
    dense.sort_by_key(|event| Arc::as_ptr(event) as usize);
    let hashed = plain(&cache);
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "floor: the inline markets of all, dense array",
            Box::new(|| dense.iter().map(|event| inline(event)).sum()),
        ),
        (
            "the inline markets of all, State::events",
            Box::new(|| view.events().map(inline).sum()),
        ),
        (
            "for comparison: a plain map's order",
            Box::new(|| hashed.values().map(|event| inline(event)).sum()),
        ),
    ];
    let times = side_by_side(rounds, events, &mut candidates);
    for (((name, _), time), goal) in candidates.iter().zip(&times).zip(["", "<= 1.5", ""]) {
        line(name, *time, "ns", time / times[0], goal);
    }
}

fn main() {
    let large = std::env::var("LARGE")
        .ok()
        .and_then(|text| text.parse().ok());
    let ids = event_ids(REAL);
    let order = shuffled(&ids);
    println!(
        "{REAL} events x 3 x 50 markets; nanoseconds per lookup (in a walk: per event), medians of interleaved rounds"
    );
    let (cache, writer) = filled(&ids, 50);
    one_thread(&cache, &order);
    two_threads(&cache, &order);
    drop((cache, writer));
    beside_a_writer(&order);
    walk(REAL, 101);
    let large = large.unwrap_or(110_000);
    println!("{large} events x 3 x 20 markets");
    let ids = event_ids(large);
    let order = shuffled(&ids);
    let (cache, writer) = filled(&ids, 0);
    one_thread(&cache, &order);
    drop((cache, writer));
    walk(large, 11);
}
