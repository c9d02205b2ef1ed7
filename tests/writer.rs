//! The writing half of a cache, and what readers may rely on with every writer.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use oddscache::{
    CachedEvent, CachedSnapshot, Config, Error, Follower, MarketInput, NamesInput, OddsCache,
    OutcomeInput, SnapshotInput, Status, TournamentInput, View, Writer,
};
use oddscache_testkit::dump;
use proptest::prelude::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_750_000_000 + seconds, 123_456_000).expect("a time")
}

fn market(id: &str, odds: f64) -> MarketInput {
    MarketInput {
        betpawa_market_id: id.to_owned(),
        betpawa_market_name: format!("market {id}"),
        outcomes: vec![OutcomeInput::new("1", odds), OutcomeInput::new("2", None)],
        ..MarketInput::default()
    }
}

fn snapshot(snapshot_id: i64, event_id: i64, bookmaker_id: i64) -> SnapshotInput {
    SnapshotInput {
        snapshot_id,
        event_id,
        bookmaker_id,
        captured_at: at(snapshot_id),
        last_confirmed_at: None,
        markets: vec![market("3743", 1.5)],
    }
}

/// Readers see whole publications.
#[test]
fn readers_see_nothing_before_publish_and_everything_after_it() {
    let (cache, mut writer) = OddsCache::detached();
    writer.put_betpawa_snapshot(&snapshot(1, 1, 1), Some(at(0)));
    writer.put_competitor_snapshot("sportybet", &snapshot(1, 2, 0), None);
    assert!(cache.view().is_empty());
    assert_eq!(cache.event_ids(), Vec::<i64>::new());
    assert_eq!(cache.kickoff(1), None);
    writer.publish();
    assert_eq!(cache.event_ids(), [1, 2]);
    writer.clear();
    writer.put_betpawa_snapshot(&snapshot(3, 3, 1), None);
    assert_eq!(cache.event_ids(), [1, 2]);
    let change = writer.publish();
    assert_eq!(cache.event_ids(), [3]);
    assert_eq!((change.event_ids(), change.version), (vec![1, 2, 3], 2));
    assert_eq!(cache.counters().published, 2);
}

/// An event has one snapshot of each bookmaker and of each source.
#[test]
fn a_snapshot_replaces_the_one_of_its_bookmaker_or_source() {
    let (cache, mut writer) = OddsCache::detached();
    for (id, bookmaker) in [(1, 1), (2, 2), (3, 1)] {
        writer.put_betpawa_snapshot(&snapshot(id, 7, bookmaker), None);
    }
    for (id, source) in [(1, "sportybet"), (2, "bet9ja"), (3, "bet9ja")] {
        writer.put_competitor_snapshot(source, &snapshot(id, 7, 5), None);
    }
    writer.publish();
    let betpawa = cache.get_betpawa_snapshot(7).expect("held");
    let held = betpawa.iter().map(|(id, held)| (id, held.snapshot_id()));
    assert!(held.eq([(1, 3), (2, 2)]));
    let competitors = cache.get_competitor_snapshot(7).expect("held");
    let held = competitors.iter();
    let held =
        held.map(|(source, held)| (source.as_str(), held.snapshot_id(), held.bookmaker_id()));
    assert!(held.eq([("bet9ja", 3, 0), ("sportybet", 1, 0)]));
    // The snapshot that was put last counts, even if its id is smaller.
    writer.put_betpawa_snapshot(&snapshot(0, 7, 1), None);
    writer.publish();
    let betpawa = cache.get_betpawa_snapshot(7).expect("held");
    assert_eq!(betpawa.get(1).map(CachedSnapshot::snapshot_id), Some(0));
}

/// A lookup returns nothing for an event without snapshots of that side, through the handle and in a view.
#[test]
fn an_event_without_snapshots_of_a_side_is_absent_there() {
    let (cache, mut writer) = OddsCache::detached();
    writer.put_betpawa_snapshot(&snapshot(1, 1, 1), None);
    writer.put_competitor_snapshot("bet9ja", &snapshot(2, 2, 0), None);
    writer.publish();
    let view = cache.view();
    assert!(cache.get_betpawa_snapshot(2).is_none() && view.get_betpawa_snapshot(2).is_none());
    assert!(cache.get_competitor_snapshot(1).is_none());
    assert!(view.get_competitor_snapshot(1).is_none());
    assert!(cache.event(3).is_none() && view.event(3).is_none());
    let ids = [1, 2, 3, 2];
    assert!(cache.get_betpawa_snapshots(&ids).keys().eq(&[1]));
    assert!(view.get_betpawa_snapshots(&ids).keys().eq(&[1]));
    assert!(cache.get_competitor_snapshots(&ids).keys().eq(&[2]));
    assert!(view.get_competitor_snapshots(&ids).keys().eq(&[2]));
    assert_eq!(cache.get_betpawa_snapshots(&[]).len(), 0);
    let stats = cache.stats();
    assert_eq!((stats.betpawa_events, stats.competitor_events), (1, 1));
    assert_eq!((stats.total_snapshots, stats.total_markets), (2, 2));
    assert_eq!(stats.last_warmup, None);
    assert_eq!(&stats, view.stats());
}

/// Snapshots without a kickoff must not remove a known one.
#[test]
fn a_kickoff_stays_until_another_one_is_put() {
    let (cache, mut writer) = OddsCache::detached();
    let publish = |writer: &mut Writer| {
        writer.publish();
        assert_eq!(cache.kickoff(1), cache.view().kickoff(1));
        cache.kickoff(1)
    };
    writer.put_betpawa_snapshot(&snapshot(1, 1, 1), None);
    assert_eq!(publish(&mut writer), None);
    writer.put_competitor_snapshot("bet9ja", &snapshot(1, 1, 0), Some(at(10)));
    assert_eq!(publish(&mut writer), Some(at(10)));
    writer.put_betpawa_snapshot(&snapshot(2, 1, 1), None);
    writer.put_competitor_snapshot("bet9ja", &snapshot(2, 1, 0), None);
    assert_eq!(publish(&mut writer), Some(at(10)));
    writer.put_betpawa_snapshot(&snapshot(3, 1, 1), Some(at(20)));
    assert_eq!(publish(&mut writer), Some(at(20)));
}

/// Eviction uses the latest kickoff, includes the cutoff, and needs a publication to be visible.
#[test]
fn eviction_removes_events_with_a_kickoff_up_to_the_cutoff() {
    let (cache, mut writer) = OddsCache::detached();
    for event in 1..=4 {
        writer.put_betpawa_snapshot(&snapshot(event, event, 1), Some(at(event)));
    }
    writer.put_betpawa_snapshot(&snapshot(5, 5, 1), None);
    // This event is postponed, so its first kickoff no longer counts.
    writer.put_betpawa_snapshot(&snapshot(6, 1, 1), Some(at(9)));
    writer.publish();
    assert_eq!(writer.evict_expired(at(3)), 2);
    assert_eq!(cache.event_ids(), [1, 2, 3, 4, 5]);
    writer.publish();
    assert_eq!(cache.event_ids(), [1, 4, 5]);
    assert_eq!(cache.view().cut().window_start, at(3));
    assert_eq!(writer.evict_expired(at(3)), 0);
    assert_eq!(writer.evict_expired(at(100)), 2);
    writer.publish();
    // Event 5 has no kickoff, so it stays.
    assert_eq!(cache.event_ids(), [5]);
    writer.clear();
    writer.publish();
    assert!(cache.view().is_empty());
    assert_eq!(cache.stats().total_snapshots, 0);
}

/// A view is one state for ever (P1).
#[test]
fn a_view_does_not_change_after_it_was_taken() {
    let (cache, mut writer) = OddsCache::detached();
    let mut views: Vec<(View, Vec<Value>)> = Vec::new();
    for round in 0..60 {
        // Events come, change and go, on several pages of the table.
        for event in (round % 7)..(round % 7 + 40) {
            let snapshot = snapshot(round * 100 + event, event, round % 3);
            writer.put_betpawa_snapshot(&snapshot, Some(at(round)));
        }
        if round % 5 == 4 {
            writer.evict_expired(at(round - 2));
        }
        if round % 20 == 19 {
            writer.clear();
        }
        writer.publish();
        views.push((cache.view(), dump(&cache.view())));
    }
    drop(writer);
    for (view, dumped) in &views {
        assert_eq!(&dump(view), dumped);
    }
}

/// Readers see markets and outcomes in the order in which they were put.
#[test]
fn markets_and_outcomes_keep_their_order() {
    let (cache, mut writer) = OddsCache::detached();
    let ids = ["5000", "3743", "9", "5000", "10", "1"];
    let mut input = snapshot(1, 1, 1);
    input.markets = ids.iter().map(|id| market(id, 2.0)).collect();
    let outcomes = ["Over", "Under", "Over", "A"].map(|name| OutcomeInput::new(name, 1.1));
    input.markets[3].outcomes = outcomes.to_vec();
    input.markets[4].outcomes.clear();
    writer.put_betpawa_snapshot(&input, None);
    writer.publish();
    let held = cache.get_betpawa_snapshot(1).expect("held");
    let markets = held.get(1).expect("held").markets();
    assert_eq!(markets.len(), 6);
    let listed = markets.clone().map(|market| market.betpawa_market_id());
    assert!(listed.eq(ids));
    let names = |index: usize| -> Vec<&str> {
        let market = markets.clone().nth(index).expect("listed");
        market.outcomes().map(|outcome| outcome.name()).collect()
    };
    assert_eq!(names(3), ["Over", "Under", "Over", "A"]);
    assert_eq!(names(4), Vec::<&str>::new());
    assert_eq!(names(5), ["1", "2"]);
}

/// The keys are part of the interface.
#[test]
fn an_event_serialises_to_exactly_these_keys() {
    let (cache, mut writer) = OddsCache::detached();
    let mut input = snapshot(12, 1, 3);
    // An unknown key may have the name of a field. It must not appear twice.
    let extra = json!({"id": 7, "name": "B", "a": {"b": [1, null]}});
    input.last_confirmed_at = Some(at(60));
    input.markets = vec![
        MarketInput {
            betpawa_market_id: "5000".to_owned(),
            betpawa_market_name: "Over/Under".to_owned(),
            line: Some(2.5),
            handicap_type: Some("asian".to_owned()),
            handicap_home: Some(-0.5),
            handicap_away: Some(0.5),
            outcomes: vec![OutcomeInput {
                name: "Over".to_owned(),
                odds: Some(1.85),
                is_active: false,
                extra: extra.as_object().expect("an object").clone(),
            }],
            market_groups: vec![json!("main"), json!("goals")],
            unavailable_at: Some(at(30)),
        },
        market("3743", 1.5),
    ];
    writer.put_betpawa_snapshot(&input, Some(at(3600)));
    input.last_confirmed_at = None;
    input.markets.clear();
    writer.put_competitor_snapshot("bet9ja", &input, None);
    let names = NamesInput {
        name: Some("a - b".to_owned()),
        tournament: Some(TournamentInput {
            id: 4,
            sport: Some("Football".to_owned()),
            ..TournamentInput::default()
        }),
        ..NamesInput::default()
    };
    assert!(writer.put_names(1, &names) && !writer.put_names(2, &names));
    writer.put_bookmaker(3, Some("slug"), None);
    writer.publish();
    let time = |seconds| serde_json::to_value(at(seconds)).expect("JSON");
    assert_eq!(time(0), json!("2025-06-15T15:06:40.123456Z"));
    let expected = json!({
        "event_id": 1,
        "kickoff": time(3600),
        "name": "a - b", "home_team": null, "away_team": null, "sportradar_id": null,
        "tournament": {"id": 4, "name": null, "country": null, "sport": "Football"},
        "bookmakers": {"3": {"slug": "slug", "name": null}},
        "betpawa": {"3": {
            "snapshot_id": 12, "event_id": 1, "bookmaker_id": 3, "captured_at": time(12), "last_confirmed_at": time(60),
            "markets": [
                {
                    "betpawa_market_id": "5000", "betpawa_market_name": "Over/Under", "line": 2.5, "handicap_type": "asian",
                    "handicap_home": -0.5, "handicap_away": 0.5,
                    "outcomes": [{"name": "Over", "odds": 1.85, "is_active": false, "id": 7, "a": {"b": [1, null]}}],
                    "market_groups": ["main", "goals"], "unavailable_at": time(30),
                },
                {
                    "betpawa_market_id": "3743", "betpawa_market_name": "market 3743", "line": null, "handicap_type": null,
                    "handicap_home": null, "handicap_away": null,
                    "outcomes": [{"name": "1", "odds": 1.5, "is_active": true}, {"name": "2", "odds": null, "is_active": true}],
                    "market_groups": [], "unavailable_at": null,
                },
            ],
        }},
        "competitors": {"bet9ja": {
            "snapshot_id": 12, "event_id": 1, "bookmaker_id": 0, "captured_at": time(12), "last_confirmed_at": time(12),
            "markets": [],
        }},
    });
    let event = cache.event(1).expect("held");
    assert_eq!(serde_json::to_value(&*event).expect("JSON"), expected);
    // Compare the text, too, because a `Value` would hide a key that appears twice.
    let text = serde_json::to_string(&*event).expect("JSON");
    assert_eq!(text.matches("\"name\"").count(), 6);
    assert_eq!(text.len(), expected.to_string().len());
    let snapshots = serde_json::to_value(event.betpawa()).expect("JSON");
    assert_eq!(snapshots, expected["betpawa"]);
}

/// An application may add keys to its outcomes without a new version of the cache.
#[test]
fn unknown_keys_of_an_outcome_are_kept() {
    let (cache, mut writer) = OddsCache::detached();
    let json = json!([{"name": "1", "odds": 1.5, "is_active": true, "id": "x", "nested": {"a": [1.25, "é"]}}, {"name": "2", "odds": null}]);
    let mut input = snapshot(1, 1, 1);
    input.markets[0].outcomes = serde_json::from_value(json).expect("outcomes");
    writer.put_betpawa_snapshot(&input, None);
    writer.publish();
    let held = cache.get_betpawa_snapshot(1).expect("held");
    let mut markets = held.get(1).expect("held").markets();
    let market = markets.next().expect("a market");
    let extras = market
        .outcomes()
        .map(|outcome| Value::from(outcome.extra()));
    let expected = [json!({"id": "x", "nested": {"a": [1.25, "é"]}}), json!({})];
    assert!(extras.eq(expected));
    assert!(market.outcomes().all(|outcome| outcome.is_active()));
}

fn round_trip(odds: Vec<Option<f64>>) -> Vec<Option<f64>> {
    let (cache, mut writer) = OddsCache::detached();
    let mut input = snapshot(1, 1, 1);
    let outcomes = odds.iter().map(|odds| OutcomeInput::new("x", *odds));
    input.markets[0].outcomes = outcomes.collect();
    input.markets.push(input.markets[0].clone());
    writer.put_betpawa_snapshot(&input, None);
    writer.publish();
    let held = cache.get_betpawa_snapshot(1).expect("held");
    let lists = held.get(1).expect("held").markets();
    let lists: Vec<Vec<_>> = lists
        .map(|market| market.outcomes().map(|outcome| outcome.odds()).collect())
        .collect();
    assert_eq!(format!("{:?}", lists[0]), format!("{:?}", lists[1]));
    lists[0].clone()
}

fn bits(odds: &[Option<f64>]) -> Vec<Option<u64>> {
    odds.iter().map(|odds| odds.map(f64::to_bits)).collect()
}

/// Packing must not change odds that do not fit into its short form.
#[test]
fn awkward_odds_keep_their_bits() {
    let usual = [
        -1.5,
        1.0,
        1.001,
        1.85,
        1000.0,
        0.1 + 0.2,
        1.0005,
        2e6,
        1e-3,
        5e-4,
    ];
    // Odds around the greatest number of thousandths that fits into 30 bits.
    let packed = [1_073_741.823, 1_073_741.822, 1_073_741.824];
    let least = [
        0.0,
        -0.0,
        5e-324,
        f64::MIN_POSITIVE,
        f64::EPSILON,
        1.0 + f64::EPSILON,
    ];
    let greatest = [
        1e300,
        -1e300,
        f64::MAX,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let all = [&usual[..], &packed, &least, &greatest].concat();
    let mut odds: Vec<Option<f64>> = all.into_iter().map(Some).collect();
    odds.insert(3, None);
    odds.push(None);
    assert_eq!(bits(&round_trip(odds.clone())), bits(&odds));
}

proptest! {
    /// Packing must not change any odds.
    #[test]
    fn odds_keep_their_bits(odds in proptest::collection::vec(proptest::option::weighted(0.9, prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        any::<f64>(),
        (0..2_000_000_000u32).prop_map(|thousandths| f64::from(thousandths) / 1000.0),
        (0..100_000u32).prop_map(|hundredths| f64::from(hundredths) / 100.0),
        (0..u64::MAX >> 12).prop_map(f64::from_bits),
    ]), 0..30)) {
        prop_assert_eq!(bits(&round_trip(odds.clone())), bits(&odds));
    }
}

/// `read` on the handle and a `Reader` both see the latest state, also after the writer has freed the states before.
#[test]
fn a_reader_follows_each_publication() {
    let (cache, mut writer) = OddsCache::detached();
    let mut reader = cache.reader();
    let mut second = reader.clone();
    assert_eq!(reader.state().len(), 0);
    for event in 1..=40 {
        writer.put_betpawa_snapshot(&snapshot(event, event, 1), None);
        assert_eq!(reader.state().len() as i64, event - 1);
        writer.publish();
        assert_eq!(reader.state().len() as i64, event);
        assert!(reader.state().event(event).is_some());
        assert_eq!(cache.read(|state| state.len()) as i64, event);
    }
    drop(cache);
    assert_eq!(second.state().len(), 40);
}

/// Handles and views can be used from any thread.
#[test]
fn handles_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<OddsCache>();
    shared::<View>();
    shared::<CachedEvent>();
    shared::<CachedSnapshot>();
    shared::<Arc<CachedEvent>>();
    shared::<Config>();
    shared::<Error>();
    shared::<Status>();
    sent::<Writer>();
    sent::<Follower>();
}

/// A cache without a database has nothing to wait for.
#[tokio::test]
async fn a_detached_cache_is_ready_at_once() {
    let (cache, writer) = OddsCache::detached();
    cache.ready().await.expect("ready");
    assert_eq!(cache.status(), Status::Detached);
    drop(writer);
    cache.ready().await.expect("ready");
}

/// The names of players change over months. The cache must free the names that no event has any more.
#[test]
fn names_do_not_pile_up() {
    let (cache, mut writer) = OddsCache::detached();
    let put_day = |writer: &mut Writer, day: i64| {
        for event in 0..50 {
            let mut input = snapshot(day * 100 + event, day * 100 + event, 1);
            let player = |number| market(&format!("player {day} {event} {number}"), 1.5);
            input.markets = (0..10).map(player).collect();
            writer.put_betpawa_snapshot(&input, Some(at(day)));
        }
        writer.evict_expired(at(day - 1));
        writer.publish();
        cache.stats().memory_bytes
    };
    put_day(&mut writer, 0);
    let start = put_day(&mut writer, 1);
    let days = (2..100).map(|day| put_day(&mut writer, day));
    let most = days.max().expect("days");
    // At most two days are held at a time. The names of one more day may wait for the next sweep.
    assert!(most < 3 * start, "{start} bytes grew to {most}");
}

/// Once only growth caused a sweep. So the names of a large eviction stayed for ever.
#[test]
fn memory_comes_back_after_everything_is_evicted() {
    let (cache, mut writer) = OddsCache::detached();
    writer.put_betpawa_snapshot(&snapshot(1, 1, 1), None);
    writer.publish();
    let start = cache.stats().memory_bytes;
    for event in 2..2000 {
        let mut input = snapshot(event, event, 1);
        let player = |number| market(&format!("player {event} {number}"), 1.5);
        input.markets = (0..20).map(player).collect();
        writer.put_betpawa_snapshot(&input, Some(at(event)));
    }
    writer.publish();
    let full = cache.stats().memory_bytes;
    writer.evict_expired(at(10_000) + TimeDelta::days(1));
    for _ in 0..64 {
        writer.publish();
    }
    let end = cache.stats().memory_bytes;
    assert!(full > 100 * start, "{start} {full}");
    assert!(
        end < full / 10,
        "{start} grew to {full}, came back to {end}"
    );
}

/// `is` and `shares_markets` tell whether two snapshots are the same without a look at the markets.
#[test]
fn a_confirmed_snapshot_shares_its_markets_and_is_another() {
    let (cache, mut writer) = OddsCache::detached();
    let of = |cache: &OddsCache| {
        let snapshots = cache.get_betpawa_snapshot(1).expect("published");
        snapshots.get(1).expect("published").clone()
    };
    writer.put_betpawa_snapshot(&snapshot(1, 1, 1), None);
    writer.publish();
    let first = of(&cache);
    assert!(first.is(&of(&cache)) && first.is(&first.clone()));
    let confirmed = SnapshotInput {
        last_confirmed_at: Some(at(60)),
        ..snapshot(1, 1, 1)
    };
    writer.put_betpawa_snapshot(&confirmed, None);
    writer.publish();
    assert!(first.shares_markets(&of(&cache)) && !first.is(&of(&cache)));
    let changed = SnapshotInput {
        markets: vec![market("3743", 1.6)],
        ..snapshot(1, 1, 1)
    };
    writer.put_betpawa_snapshot(&changed, None);
    writer.publish();
    assert!(!first.shares_markets(&of(&cache)) && !first.is(&of(&cache)));
}

/// `nth` skips markets without visiting them, so it must find the same ones, with their own odds.
#[test]
fn the_nth_market_is_the_one_that_iterating_finds() {
    let (cache, mut writer) = OddsCache::detached();
    let markets = (0..300).map(|n| {
        let mut market = market(&n.to_string(), f64::from(n) + 1.5);
        let more =
            (0..n % 5).map(|extra| OutcomeInput::new(extra.to_string(), f64::from(extra + n)));
        market.outcomes.extend(more);
        market
    });
    let snapshot = SnapshotInput {
        markets: markets.collect(),
        ..snapshot(1, 1, 1)
    };
    writer.put_betpawa_snapshot(&snapshot, None);
    writer.publish();
    let snapshots = cache.get_betpawa_snapshot(1).expect("published");
    let snapshot = snapshots.get(1).expect("published");
    let json = |market: Option<oddscache::CachedMarket<'_>>| market.map(|market| json!(market));
    let all: Vec<Value> = snapshot.markets().map(|market| json!(market)).collect();
    for index in 0..all.len() {
        assert_eq!(
            json(snapshot.markets().nth(index)).as_ref(),
            Some(&all[index])
        );
        let mut rest = snapshot.markets();
        assert!(rest.next().is_some());
        assert_eq!(json(rest.nth(index)).as_ref(), all.get(index + 1));
        assert_eq!(json(rest.next()).as_ref(), all.get(index + 2));
        assert_eq!(rest.len(), all.len().saturating_sub(index + 3));
    }
    assert!(snapshot.markets().nth(300).is_none() && snapshot.markets().nth(usize::MAX).is_none());
}
