//! The calls allocate what the crate's documentation says.
//!
//! The allocator counts for the whole process, so this binary has a single test. tests/memory.rs covers the lookups in
//! a filled cache.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{alloc::System, hint::black_box, time::Duration};

use chrono::Utc;
use oddscache::{MarketInput, OddsCache, OutcomeInput, SnapshotInput};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The number of allocations of the second `call`. The first call may allocate what a thread or a lock needs only once.
fn allocations<R>(mut call: impl FnMut() -> R) -> usize {
    black_box(call());
    let region = Region::new(ALLOCATOR);
    black_box(call());
    let change = region.change();
    change.allocations + change.reallocations
}

/// A call allocates if its documentation says so, and not otherwise.
#[test]
fn calls_allocate_as_documented() {
    let (cache, mut writer) = OddsCache::detached();
    let mut extra = OutcomeInput::new("X", 3.5);
    extra.extra.insert("id".to_owned(), 7.into());
    let snapshot = SnapshotInput {
        snapshot_id: 1,
        event_id: 7,
        bookmaker_id: 1,
        captured_at: Utc::now(),
        last_confirmed_at: None,
        markets: vec![MarketInput {
            betpawa_market_id: "3743".to_owned(),
            outcomes: vec![OutcomeInput::new("1", 2.5), extra],
            ..MarketInput::default()
        }],
    };
    writer.put_betpawa_snapshot(&snapshot, None);
    writer.publish();
    let view = cache.view();
    let mut reader = cache.reader();
    let hour = Duration::from_secs(3600);
    let market = view
        .get_betpawa_snapshot(7)
        .and_then(|s| s.get(1)?.market("3743", None));
    let market = market.expect("put");

    let nothing = [
        ("clone of the handle", allocations(|| cache.clone())),
        ("clone of a view", allocations(|| view.clone())),
        ("OddsCache::view", allocations(|| cache.view())),
        (
            "OddsCache::view_within",
            allocations(|| cache.view_within(hour).expect("young")),
        ),
        (
            "OddsCache::read",
            allocations(|| cache.read(|state| state.event(7).is_some())),
        ),
        ("OddsCache::reader", allocations(|| cache.reader())),
        ("OddsCache::event", allocations(|| cache.event(7))),
        (
            "OddsCache::get_betpawa_snapshot",
            allocations(|| cache.get_betpawa_snapshot(7)),
        ),
        (
            "OddsCache::get_competitor_snapshot",
            allocations(|| cache.get_competitor_snapshot(7)),
        ),
        ("OddsCache::kickoff", allocations(|| cache.kickoff(7))),
        ("OddsCache::is_warm", allocations(|| cache.is_warm())),
        ("OddsCache::stats", allocations(|| cache.stats())),
        ("OddsCache::counters", allocations(|| cache.counters())),
        ("OddsCache::change_log", allocations(|| cache.change_log())),
        ("OddsCache::changes", allocations(|| cache.changes())),
        ("OddsCache::resync", allocations(|| cache.resync())),
        ("Reader::state", allocations(|| reader.state().len())),
        ("State::cut", allocations(|| view.cut())),
        (
            "State::age",
            allocations(|| (view.age(), view.epoch(), view.version())),
        ),
        ("State::events", allocations(|| view.events().count())),
        ("State::stats", allocations(|| view.stats().total_markets)),
        (
            "CachedSnapshot::market",
            allocations(|| market.outcomes().map(|o| o.name().len()).sum::<usize>()),
        ),
        (
            "Outcome::extra of none",
            allocations(|| market.outcomes().next().expect("put").extra()),
        ),
    ];
    for (call, allocated) in nothing {
        assert_eq!(allocated, 0, "{call}");
    }
    let something = [
        ("OddsCache::event_ids", allocations(|| cache.event_ids())),
        (
            "OddsCache::get_betpawa_snapshots",
            allocations(|| cache.get_betpawa_snapshots(&[7])),
        ),
        (
            "State::get_betpawa_snapshots",
            allocations(|| view.get_betpawa_snapshots(&[7]).len()),
        ),
        (
            "Outcome::extra",
            allocations(|| market.outcomes().nth(1).expect("put").extra()),
        ),
        (
            "OddsCache::view_within, too old",
            allocations(|| cache.view_within(Duration::ZERO).is_err()),
        ),
    ];
    for (call, allocated) in something {
        assert!(
            allocated > 0,
            "{call} allocates nothing; correct its documentation"
        );
    }
}
