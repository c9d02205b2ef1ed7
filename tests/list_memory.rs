//! The event list reports the memory that the allocator counts. After the first lists, it reuses its buffers.
//!
//! The allocator counts for the whole process, so this binary has a single test.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::System;

use chrono::{DateTime, TimeDelta};
use oddscache::{EventList, MarketInput, OddsCache, OutcomeInput, SnapshotInput};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn snapshot(event_id: i64, odds: f64) -> SnapshotInput {
    let outcome = |name: &str| OutcomeInput::new(name, odds);
    let market = MarketInput {
        betpawa_market_id: "3743".to_owned(),
        betpawa_market_name: "1X2".to_owned(),
        outcomes: vec![outcome("1"), outcome("X"), outcome("2")],
        ..MarketInput::default()
    };
    SnapshotInput {
        snapshot_id: 1,
        event_id,
        bookmaker_id: 1,
        captured_at: DateTime::UNIX_EPOCH,
        last_confirmed_at: None,
        markets: vec![market; 3],
    }
}

/// `EventList::memory_bytes` is off by less than 3 %. From the fourth list on, a render allocates less than half of its
/// JSON.
#[test]
fn reported_memory_equals_allocated_memory() {
    let (cache, mut writer) = OddsCache::detached();
    for event in 1..=500 {
        let kickoff = Some(DateTime::UNIX_EPOCH + TimeDelta::hours(event));
        writer.put_betpawa_snapshot(&snapshot(event, 2.0), kickoff);
    }
    writer.publish();
    let mut list = EventList::new([("3743", None), ("5000", Some(2.5))]);
    for round in 0..6 {
        // The counted region contains the rendering alone, not the packing of the event.
        let view = cache.view();
        let rendering = Region::new(ALLOCATOR);
        let json = list.render(&view).len();
        let asked = rendering.change().bytes_allocated;
        if round >= 3 {
            assert!(
                asked < json / 2,
                "allocated {asked} bytes to write a list of {json}"
            );
        }
        drop(view);
        writer.put_betpawa_snapshot(&snapshot(1 + round, 3.0), None);
        writer.publish();
    }
    let before = Region::new(ALLOCATOR);
    let counted = list.memory_bytes();
    list.clear();
    let change = before.change();
    let held = change.bytes_deallocated - change.bytes_allocated;
    println!("{counted} bytes counted, {held} held");
    assert!(counted > 100_000);
    let off = (held as f64 / counted as f64 - 1.0).abs();
    assert!(off < 0.03, "{counted} bytes counted, {held} held");
}
