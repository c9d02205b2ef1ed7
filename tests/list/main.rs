//! The event list equals the JSON that serde_json writes for the same view. It writes only changed snapshots again.
#![allow(clippy::unwrap_used, missing_docs)]

use chrono::{DateTime, TimeDelta, Utc};
use oddscache::{
    EventList, InlineMarkets, MarketInput, NamesInput, OddsCache, OutcomeInput, SnapshotInput,
    TournamentInput, Writer,
};
use oddscache_testkit::plain;
use proptest::{collection::vec, prelude::*, sample::select};

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn snapshot(event_id: i64, bookmaker_id: i64, odds: f64) -> SnapshotInput {
    let market = |id: &str, line, odds| MarketInput {
        betpawa_market_id: id.to_owned(),
        betpawa_market_name: format!("Market {id}"),
        line,
        outcomes: vec![OutcomeInput::new("1", odds), OutcomeInput::new("2", 1.5)],
        ..MarketInput::default()
    };
    SnapshotInput {
        snapshot_id: event_id,
        event_id,
        bookmaker_id,
        captured_at: time(1_000_000),
        last_confirmed_at: None,
        markets: vec![
            market("1", None, 9.0),
            market("3743", None, odds),
            market("5000", Some(3.5), 9.0),
            market("5000", Some(2.5), odds),
        ],
    }
}

/// A cache with `events` events of three snapshots each.
fn filled(events: i64) -> (OddsCache, Writer) {
    let (cache, mut writer) = OddsCache::detached();
    for event in 1..=events {
        let kickoff = Some(time(event));
        writer.put_betpawa_snapshot(&snapshot(event, 1, 2.0), kickoff);
        for source in ["bet9ja", "sportybet"] {
            writer.put_competitor_snapshot(source, &snapshot(event, 0, 2.0), kickoff);
        }
    }
    writer.publish();
    (cache, writer)
}

#[derive(Debug, Clone)]
enum Step {
    /// Event, bookmaker (from 10 on: a competitor source), markets, kickoff.
    Put(i64, i64, Vec<MarketInput>, Option<i64>),
    /// Puts an earlier snapshot again, with a later `last_confirmed_at`.
    Confirm(usize, i64),
    /// Event, its names, a bookmaker and its name.
    Name(i64, NamesInput, i64, Option<String>),
    Evict(i64),
    Clear,
    Publish,
    /// Renders the view from this many publications ago.
    Render(usize),
    /// From here on keeps the rendered lists, as slow clients do. `false` ends that.
    Keep(bool),
    Forget,
}

fn odds() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        6 => (1010..30_000u32).prop_map(|thousandths| Some(f64::from(thousandths) / 1000.0)),
        2 => any::<f64>().prop_map(Some),
        1 => prop_oneof![Just(0.0), Just(-0.0), Just(1e-310), Just(f64::INFINITY), Just(1e22), Just(3.0)].prop_map(Some),
        1 => Just(None),
    ]
}

fn market() -> impl Strategy<Value = MarketInput> {
    let id = select(vec!["3743", "5000", "3795", "4693", "1"]);
    let line = prop_oneof![3 => Just(Some(2.5)), 1 => Just(None), 1 => any::<f64>().prop_map(Some)];
    let name = prop_oneof![3 => "[a-z]{0,6}", 1 => any::<String>()];
    let outcomes = vec((name.clone(), odds(), any::<bool>()), 0..4);
    let unavailable = proptest::option::weighted(0.2, 0..4_000_000_000_000_000i64);
    let outcome = |(name, odds, is_active): (String, Option<f64>, bool)| OutcomeInput {
        is_active,
        ..OutcomeInput::new(name, odds)
    };
    (id, name, line, outcomes, unavailable).prop_map(
        move |(id, name, line, outcomes, unavailable)| MarketInput {
            betpawa_market_id: id.to_owned(),
            betpawa_market_name: name,
            line,
            outcomes: outcomes.into_iter().map(outcome).collect(),
            unavailable_at: unavailable.and_then(DateTime::from_timestamp_micros),
            ..MarketInput::default()
        },
    )
}

fn names() -> impl Strategy<Value = NamesInput> {
    let text = || proptest::option::of(prop_oneof![3 => "[a-z]{0,6}", 1 => any::<String>()]);
    let tournament = proptest::option::of((0..3i64, text(), text(), text()));
    let names = (text(), text(), text(), text(), tournament);
    names.prop_map(
        |(name, home_team, away_team, sportradar_id, tournament)| NamesInput {
            name,
            home_team,
            away_team,
            sportradar_id,
            tournament: tournament.map(|(id, name, country, sport)| TournamentInput {
                id,
                name,
                country,
                sport,
            }),
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let put = (
        1..12i64,
        8..13i64,
        vec(market(), 0..5),
        proptest::option::of(0..9i64),
    );
    prop_oneof![
        10 => put.prop_map(|(event, bookmaker, markets, kickoff)| Step::Put(event, bookmaker, markets, kickoff)),
        4 => (any::<usize>(), 0..100_000_000i64).prop_map(|(which, at)| Step::Confirm(which, at)),
        3 => (1..12i64, names(), 8..10i64, proptest::option::of("[a-z\"]{0,3}"))
            .prop_map(|(event, names, bookmaker, name)| Step::Name(event, names, bookmaker, name)),
        1 => (0..4i64).prop_map(Step::Evict),
        1 => Just(Step::Clear),
        8 => Just(Step::Publish),
        8 => prop_oneof![5 => Just(0), 1 => 0..4usize].prop_map(Step::Render),
        1 => any::<bool>().prop_map(Step::Keep),
        1 => Just(Step::Forget),
    ]
}

fn put(writer: &mut Writer, snapshot: &SnapshotInput, kickoff: Option<i64>) {
    let kickoff = kickoff.map(time);
    match snapshot.bookmaker_id {
        source @ 10.. => {
            let source = format!("source \"{source}\"");
            writer.put_competitor_snapshot(&source, snapshot, kickoff);
        }
        _ => writer.put_betpawa_snapshot(snapshot, kickoff),
    }
}

fn run(steps: Vec<Step>) {
    let (cache, mut writer) = OddsCache::detached();
    let mut list = EventList::new(plain::INLINE);
    let mut views = vec![cache.view()];
    let mut puts: Vec<SnapshotInput> = Vec::new();
    let (mut keep, mut kept) = (false, Vec::new());
    for step in steps {
        match step {
            Step::Put(event_id, bookmaker_id, markets, kickoff) => {
                let snapshot = SnapshotInput {
                    snapshot_id: 1,
                    event_id,
                    bookmaker_id,
                    captured_at: time(1_700_000_000),
                    last_confirmed_at: None,
                    markets,
                };
                put(&mut writer, &snapshot, kickoff);
                puts.push(snapshot);
            }
            Step::Confirm(which, at) => {
                let count = puts.len();
                if let Some(snapshot) = puts.get_mut(which % count.max(1)) {
                    snapshot.last_confirmed_at = DateTime::from_timestamp_micros(at * 16_411);
                    put(&mut writer, snapshot, None);
                }
            }
            Step::Name(event_id, names, bookmaker_id, name) => {
                writer.put_names(event_id, &names);
                writer.put_bookmaker(bookmaker_id, name.as_deref(), Some("name"));
            }
            Step::Evict(at) => {
                writer.evict_expired(time(at));
            }
            Step::Clear => writer.clear(),
            Step::Publish => {
                writer.publish();
                views.push(cache.view());
            }
            Step::Render(ago) => {
                let view = &views[views.len().saturating_sub(1 + ago)];
                let json = list.render(view);
                assert_eq!(std::str::from_utf8(&json).unwrap(), plain::list(view));
                if keep {
                    kept.push((view.clone(), json));
                }
            }
            Step::Keep(from_now) => keep = from_now,
            Step::Forget => list.clear(),
        }
    }
    for (view, json) in kept {
        let expected = plain::list(&view);
        assert_eq!(json, expected, "a list that was handed out changed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// After any sequence of writes, the list equals the one written from scratch, for the latest view and for older
    /// ones. A list that was handed out never changes.
    #[test]
    fn the_list_equals_the_one_that_serde_writes(steps in vec(step(), 0..80)) {
        run(steps);
    }
}

/// The list writes a snapshot's fragment again only if its odds changed. A new time or kickoff writes no fragment.
#[test]
fn only_changed_snapshots_are_written_again() {
    let (cache, mut writer) = filled(100);
    let mut list = EventList::new(plain::INLINE);
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    assert_eq!(list.fragments_written(), 300);

    // Two views of the same state share one list.
    let first = list.render(&cache.view());
    let again = list.render(&cache.view());
    assert_eq!(first.as_ptr(), again.as_ptr());

    // Confirmations change times but no odds.
    for event in 1..=100 {
        let confirmed = SnapshotInput {
            last_confirmed_at: Some(time(2_000_000 + event)),
            ..snapshot(event, 1, 2.0)
        };
        writer.put_betpawa_snapshot(&confirmed, None);
    }
    writer.publish();
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    assert_eq!(list.fragments_written(), 300);

    // Each of the four snapshots with new odds is written again.
    for event in [1, 50, 51, 100] {
        writer.put_betpawa_snapshot(&snapshot(event, 1, 3.0), None);
    }
    writer.publish();
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    assert_eq!(list.fragments_written(), 304);

    // A new kickoff moves an event in the list and writes nothing. A new event is written.
    writer.put_betpawa_snapshot(&snapshot(1, 1, 3.0), Some(time(70)));
    writer.put_betpawa_snapshot(&snapshot(101, 1, 3.0), Some(time(0)));
    writer.publish();
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    assert_eq!(list.fragments_written(), 305);

    // Evicted events leave nothing behind.
    writer.evict_expired(time(90));
    writer.publish();
    assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    assert_eq!(list.fragments_written(), 305);
}

/// A single event has the same JSON as in the list, without the snapshots that the filter leaves out.
#[test]
fn single_events_are_written_as_in_the_list() {
    let (cache, _writer) = filled(20);
    let (view, inline) = (cache.view(), InlineMarkets::new(plain::INLINE));
    let mut all = b"[".to_vec();
    let mut own = Vec::new();
    for (index, id) in view.event_ids().into_iter().enumerate() {
        if index > 0 {
            all.push(b',');
        }
        inline.write_event(view.event(id).unwrap(), &mut all);
        own.clear();
        let is_wanted = |bookmaker: &str, id: i64| bookmaker == "sportybet" || id == 1;
        inline.write_event_where(view.event(id).unwrap(), is_wanted, &mut own);
        let own: serde_json::Value = serde_json::from_slice(&own).unwrap();
        let whole: serde_json::Value = serde_json::from_str(&plain::list(&view)).unwrap();
        let whole = &whole[index]["odds"];
        assert_eq!(own["odds"], serde_json::json!([whole[0], whole[2]]));
    }
    all.push(b']');
    assert_eq!(String::from_utf8(all).unwrap(), plain::list(&view));
    assert_eq!(EventList::of(inline).render(&view), plain::list(&view));
}

/// A list that a client still holds does not change when later lists are rendered.
#[test]
fn a_held_list_does_not_change() {
    let (cache, mut writer) = filled(10);
    let mut list = EventList::new(plain::INLINE);
    let (view, json) = (cache.view(), list.render(&cache.view()));
    for round in 0..5 {
        writer.put_betpawa_snapshot(&snapshot(3, 1, 4.0 + f64::from(round)), None);
        writer.publish();
        assert_eq!(list.render(&cache.view()), plain::list(&cache.view()));
    }
    assert_eq!(json, plain::list(&view));
}

/// The memory of the event list stays below three times its JSON, even after most events have left.
#[test]
fn memory_is_bounded() {
    let (cache, mut writer) = filled(200);
    let mut list = EventList::new(plain::INLINE);
    let mut render = |cache: &OddsCache| {
        let json = list.render(&cache.view()).len();
        (list.memory_bytes(), json)
    };
    for round in 0..50 {
        for event in 1..=200 {
            writer.put_betpawa_snapshot(&snapshot(event, 1, 2.0 + f64::from(round)), None);
        }
        writer.publish();
        let (bytes, json) = render(&cache);
        assert!(bytes < 3 * json, "{bytes} bytes for a list of {json}");
    }
    // Only a few events are left. After two more lists, no large buffer may remain.
    writer.evict_expired(time(195));
    writer.publish();
    render(&cache);
    for odds in [3.0, 4.0] {
        writer.put_betpawa_snapshot(&snapshot(200, 1, odds), None);
        writer.publish();
        render(&cache);
    }
    let (bytes, json) = render(&cache);
    let most = 3 * json + 5000;
    assert!(bytes < most, "{bytes} bytes for a list of {json}");
}
