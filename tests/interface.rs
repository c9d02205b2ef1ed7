//! Promises of the library's public types to the programs that embed it: threads, secrets, and JSON between caches.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{error::Error as StdError, fmt::Debug, time::Duration};

use oddscache::{
    BetpawaSnapshots, CachedEvent, CachedMarket, CachedSnapshot, Change, ChangeLog, Changes,
    CompetitorSnapshots, Config, Connection, Counters, Cut, Error, EventList, Follower,
    InlineMarkets, Lagged, MarketInput, Markets, MemoryStats, OddsCache, Outcome, OutcomeInput,
    Outcomes, Reader, Reading, Reloads, SnapshotInput, Source, SslMode, State, Stats, Status,
    Timing, TimingBucket, Timings, Tls, View, WarmupStats, Writer, sql,
};

fn moves<T: Send + Unpin + Debug>() {}
fn shared<T: Send + Sync + Unpin + Debug>() {}
fn cloned<T: Send + Sync + Unpin + Debug + Clone>() {}
fn error<T: StdError + Send + Sync + Clone + 'static>() {}
fn sent<T: Send>(_: &T) {}

/// Public types can move to another thread and implement `Debug`. Those that are cheap to copy implement `Clone`.
#[test]
fn types_are_send_and_debug_and_cheap_ones_clone() {
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
    cloned::<Reading>();
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
    shared::<Changes>();
    moves::<Writer>();
    moves::<Follower>();
    moves::<Connection>();
    error::<Error>();
    error::<Lagged>();
    error::<sql::ScriptError>();
}

/// All public futures are `Send`, so that a program can spawn them on any runtime.
#[test]
fn futures_are_send() {
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
    #[cfg(feature = "nats")]
    sent(
        &oddscache::Relay::new("nats://nowhere")
            .expect("a URL")
            .inspect(true),
    );
    drop(writer);
}

/// The `Debug` output of a configuration, a follower or a cache contains no password.
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

/// `SnapshotInput` reads the JSON that a cache writes, so one process can feed the cache of another.
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
    // Without a confirmation, a cache serves the time of capture as `last_confirmed_at`.
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

/// The table of features is complete.
#[test]
fn the_documentation_names_every_feature() {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("a manifest");
    let documentation = include_str!("../src/lib.rs");
    let features = manifest["features"].as_table().expect("features");
    for feature in features.keys().filter(|name| *name != "default") {
        let row = format!("//! | `{feature}` | ");
        assert!(
            documentation.contains(&row),
            "{feature} is not in the table of features"
        );
    }
}
