//! Clocks, medians and threads.

use std::{
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use oddscache_testkit::bench::median;

use crate::{data, stores::Store};

/// The time that `run` takes, in seconds.
pub fn timed<R>(run: impl FnOnce() -> R) -> f64 {
    let begun = Instant::now();
    black_box(run());
    begun.elapsed().as_secs_f64()
}

/// Runs `read` while another thread calls `write` with 1, 2, 3 and so on.
pub fn while_another<R>(write: impl Fn(u64) + Send + Sync, read: impl FnOnce() -> R) -> R {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            (1..)
                .take_while(|_| !ended.load(Ordering::Relaxed))
                .for_each(&write);
        });
        let result = read();
        ended.store(true, Ordering::Relaxed);
        result
    })
}

/// Lookups per second of all threads together. All of them run for the whole time.
pub fn rate(store: &dyn Store, ids: &[i64], threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = || {
            store.pass(ids);
            barrier.wait();
            let begun = Instant::now();
            let mut passes = 0;
            while !ended.load(Ordering::Relaxed) {
                black_box(store.pass(ids));
                passes += 1;
            }
            (passes * ids.len()) as f64 / begun.elapsed().as_secs_f64()
        };
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        thread::sleep(Duration::from_millis(60));
        ended.store(true, Ordering::Relaxed);
        let rates = readers.into_iter().map(thread::ScopedJoinHandle::join);
        rates.map(|rate| rate.expect("a reader")).sum()
    })
}

/// The 99th percentile of a lookup in nanoseconds, without the time that the clock takes.
pub fn p99(store: &dyn Store, ids: &[i64], span: Duration) -> f64 {
    let look = |_| Instant::now().elapsed().as_nanos() as f64;
    let mut clock: Vec<f64> = (0..10_000).map(look).collect();
    let clock = median(&mut clock);
    let mut all = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < span {
        store.latencies(ids, &mut all);
    }
    let index = all.len() * 99 / 100;
    let (_, p99, _) = all.select_nth_unstable(index);
    f64::from(*p99) - clock
}

/// The same while a writer publishes 25 updates of 150 snapshots a second.
pub fn p99_beside_a_writer(store: &dyn Store, ids: &[i64], span: Duration) -> f64 {
    let begun = Instant::now();
    let write = |round: u64| {
        store.update(round.cast_signed());
        let next = Duration::from_millis(40) * u32::try_from(round).unwrap_or(u32::MAX);
        thread::sleep(next.saturating_sub(begun.elapsed()));
    };
    while_another(write, || p99(store, ids, span))
}

/// Reads all events while a writer touches all of them, again and again. Returns how many views showed two generations,
/// and how many views there were.
pub fn torn(store: &dyn Store, span: Duration) -> (u64, u64) {
    store.touch_all(0);
    while_another(
        |generation| store.touch_all(generation.cast_signed()),
        || {
            let begun = Instant::now();
            let (mut torn, mut views) = (0, 0);
            while begun.elapsed() < span {
                let (least, greatest) = store.span();
                views += 1;
                torn += u64::from(least != greatest);
            }
            (torn, views)
        },
    )
}

/// The rate of two readers, divided by that of one.
pub fn speed_up(store: &dyn Store, ids: &[i64]) -> f64 {
    rate(store, ids, 2) / rate(store, ids, 1)
}

pub fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let mut version = std::process::Command::new("rustc");
    let version = version.arg("--version").output();
    let version = version.map(|output| output.stdout).unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    let (events, markets) = (data::EVENTS, data::MARKETS);
    format!(
        "{cores} cores, {model}; {}; {events} events x 3 x {markets} markets",
        version.trim()
    )
}
