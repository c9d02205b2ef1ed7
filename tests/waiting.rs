//! Readers never wait for a lock, even while a writer publishes without pause. A thread that waits for a lock gives up
//! the processor voluntarily. Linux counts for each thread how often it did so.
#![cfg(target_os = "linux")]

use std::{
    collections::HashMap,
    fs,
    hint::black_box,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::DateTime;
use oddscache::{OddsCache, SnapshotInput};

const EVENTS: i64 = 64;

fn snapshot(event_id: i64, snapshot_id: i64) -> SnapshotInput {
    SnapshotInput {
        snapshot_id,
        event_id,
        bookmaker_id: 1,
        captured_at: DateTime::UNIX_EPOCH,
        last_confirmed_at: None,
        markets: Vec::new(),
    }
}

/// How often this thread has given up the processor voluntarily.
fn sleeps() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("the count").trim().parse().expect("a number")
}

/// How often two threads gave up the processor during their lookups while a third one wrote.
fn slept(write: impl Fn(i64) + Sync, look: impl Fn(i64) + Sync) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                write(round);
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    // Warm up, because a thread may sleep when it does something for the first time.
                    (0..1000).for_each(&look);
                    let before = sleeps();
                    (0..100_000).for_each(&look);
                    sleeps() - before
                })
            })
            .collect();
        let slept = readers
            .into_iter()
            .map(|reader| reader.join().expect("reads"))
            .sum();
        stop.store(true, Ordering::Relaxed);
        slept
    })
}

/// A lookup takes no lock that the writer could hold (P5).
#[test]
fn no_look_up_waits_for_a_writer() {
    // A page fault makes a thread sleep, too. So one try without a sleep is enough. With a lock, every try has sleeps.
    let (cache, writer) = OddsCache::detached();
    let writer = Mutex::new(writer);
    let write = |round: i64| {
        let mut writer = writer.lock().expect("the only one");
        writer.put_betpawa_snapshot(&snapshot(round % EVENTS, round), None);
        writer.publish();
    };
    (1..=EVENTS).for_each(write);
    let look = |round: i64| {
        black_box(cache.read(|state| state.event(round % EVENTS).is_some()));
        black_box(cache.get_betpawa_snapshot(round % EVENTS));
        black_box(cache.kickoff(round % EVENTS));
        black_box(cache.view().age() < Duration::ZERO);
    };
    let tries: Vec<u64> = (0..5).map(|_| slept(write, look)).collect();
    assert!(tries.contains(&0), "lookups slept: {tries:?}");

    // The same with a lock, which shows that this test can fail.
    let locked = Mutex::new(HashMap::new());
    let write = |round: i64| {
        let mut map = locked.lock().expect("not poisoned");
        map.insert(round % EVENTS, vec![round; 100]);
    };
    let look = |round: i64| {
        let map = locked.lock().expect("not poisoned");
        black_box(map.get(&(round % EVENTS)).map(Vec::len));
    };
    let tries: Vec<u64> = (0..5).map(|_| slept(write, look)).collect();
    assert!(!tries.contains(&0), "lookups behind a lock: {tries:?}");
}
