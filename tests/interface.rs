//! What the library's types promise to whoever embeds them, beyond what they do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{error::Error as StdError, fmt::Debug, time::Duration};

use oddscache::{
    BetpawaSnapshots, CachedEvent, CachedMarket, CachedSnapshot, Change, ChangeLog, Changes,
    CompetitorSnapshots, Config, Counters, Cut, Error, EventList, Follower, Histogram,
    InlineMarkets, Lagged, MarketInput, Markets, MemoryStats, OddsCache, Outcome, OutcomeInput,
    Outcomes, Reader, Reloads, SnapshotInput, Source, SslMode, State, Stats, Status, Timing,
    TimingBucket, Timings, Tls, View, WarmupStats, Wire, Writer, sql,
};

fn moves<T: Send + Unpin + Debug>() {}
fn shared<T: Send + Sync + Unpin + Debug>() {}
fn cloned<T: Send + Sync + Unpin + Debug + Clone>() {}
fn error<T: StdError + Send + Sync + Clone + 'static>() {}
fn sent<T: Send>(_: &T) {}

#[test]
fn types_cross_threads_show_themselves_and_clone_where_that_is_cheap() {
    cloned::<OddsCache>();
    cloned::<View>();
    cloned::<Reader>();
    cloned::<Config>();
    cloned::<Tls>();
    cloned::<SslMode>();
    cloned::<Cut>();
    cloned::<Change>();
    cloned::<Status>();
    cloned::<Stats>();
    cloned::<WarmupStats>();
    cloned::<Counters>();
    cloned::<Reloads>();
    cloned::<ChangeLog>();
    cloned::<MemoryStats>();
    cloned::<Timings>();
    cloned::<Timing>();
    cloned::<TimingBucket>();
    cloned::<BetpawaSnapshots>();
    cloned::<CompetitorSnapshots>();
    cloned::<CachedSnapshot>();
    cloned::<Source>();
    cloned::<Markets<'static>>();
    cloned::<CachedMarket<'static>>();
    cloned::<Outcomes<'static>>();
    cloned::<Outcome<'static>>();
    cloned::<SnapshotInput>();
    cloned::<MarketInput>();
    cloned::<OutcomeInput>();
    cloned::<sql::Script>();
    cloned::<sql::Function>();
    shared::<CachedEvent>();
    shared::<State>();
    shared::<EventList>();
    shared::<InlineMarkets>();
    shared::<Histogram>();
    shared::<Changes>();
    moves::<Writer>();
    moves::<Follower>();
    moves::<Wire>();
    error::<Error>();
    error::<Lagged>();
    error::<sql::ScriptError>();
}

/// So that they can be spawned, and raced in any `select`.
#[test]
fn futures_cross_threads() {
    let (cache, writer) = OddsCache::detached();
    sent(&cache.ready());
    sent(&cache.wait_for(1, Duration::ZERO));
    let mut changes = cache.changes();
    sent(&changes.next());
    sent(&changes.into_stream());
    let config = Config::new("host=/nowhere").expect("a configuration");
    sent(&config.open());
    sent(&oddscache::warm_up(config.clone()));
    sent(&OddsCache::connect(config).1.run());
    drop(writer);
}

/// What looks at a password or a certificate's key by mistake sees none.
#[test]
fn debug_shows_no_secret() {
    let config = Config::new("postgres://user:opensesame@localhost/odds").expect("a configuration");
    let (cache, follower) = OddsCache::connect(config.clone());
    for shown in [
        format!("{config:?}"),
        format!("{follower:?}"),
        format!("{cache:?}"),
        config.target(),
    ] {
        assert!(!shown.contains("opensesame"), "{shown}");
    }
}

/// The owned inputs read what the cache writes, so that one process can feed another's.
#[test]
fn a_snapshot_goes_from_one_cache_to_another_as_json() {
    let market = MarketInput {
        betpawa_market_id: "5000".to_owned(),
        betpawa_market_name: "Over/Under".to_owned(),
        line: Some(2.5),
        outcomes: vec![
            OutcomeInput::new("Over", 1.85),
            OutcomeInput::new("Under", None),
        ],
        ..MarketInput::default()
    };
    let snapshot = SnapshotInput {
        snapshot_id: 9,
        event_id: 7,
        bookmaker_id: 3,
        captured_at: "2030-01-01T12:00:00.000001Z".parse().expect("a time"),
        last_confirmed_at: None,
        markets: vec![market],
    };
    let (first, mut writer) = OddsCache::detached();
    writer.put_betpawa_snapshot(&snapshot, None);
    writer.publish();
    let json = serde_json::to_string(first.event(7).expect("put").betpawa().get(3).expect("put"));
    let json = json.expect("JSON");

    let (second, mut writer) = OddsCache::detached();
    let read: SnapshotInput = serde_json::from_str(&json).expect("the same shape");
    // A cache always knows when, at the latest, the odds were confirmed.
    let expected = SnapshotInput {
        last_confirmed_at: Some(snapshot.captured_at),
        ..snapshot
    };
    assert_eq!(read, expected);
    writer.put_betpawa_snapshot(&read, None);
    writer.publish();
    let event = |cache: &OddsCache| serde_json::to_value(cache.event(7)).expect("JSON");
    assert_eq!(event(&first), event(&second));
}
