//! The data that every store holds: 1,100 events with three snapshots of 50 markets each.

use std::time::Duration;

use chrono::{DateTime, Utc};
use oddscache::{
    BetpawaSnapshots, CachedEvent, CachedSnapshot, CompetitorSnapshots, MarketInput, OddsCache,
    OutcomeInput, SnapshotInput, Writer,
};

pub const EVENTS: i64 = 1100;
pub const MARKETS: i64 = 50;
pub const SOURCES: [&str; 2] = ["bet9ja", "sportybet"];
/// The number of all markets.
pub const ALL_MARKETS: f64 = (EVENTS * 3 * MARKETS) as f64;
/// The number of events in an update. An update has all their snapshots.
pub const UPDATED_EVENTS: i64 = 50;

/// The markets shown in the event list.
pub const INLINE: [(&str, Option<f64>); 4] = [
    ("3743", None),
    ("5000", Some(2.5)),
    ("3795", None),
    ("4693", None),
];

pub fn is_inline(betpawa_market_id: &str, line: Option<f64>) -> bool {
    INLINE
        .iter()
        .any(|(id, wanted)| betpawa_market_id == *id && (wanted.is_none() || line == *wanted))
}

pub fn time() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub fn kickoff(event_id: i64) -> DateTime<Utc> {
    time() + Duration::from_secs((event_id * 7919 % EVENTS).unsigned_abs() * 300)
}

/// A snapshot of bookmaker 1, or of a source if `offer` is 2 or more. One market in eight names players of the event.
pub fn snapshot(event_id: i64, offer: i64, generation: i64) -> SnapshotInput {
    let mut key = ((event_id * 10 + offer) * 1000 + generation) as u64;
    let mut outcomes = |names: &[&str]| -> Vec<OutcomeInput> {
        let outcome = |name: &&str| {
            key = key
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let odds = 1.01 + (key >> 40) as f64 % 1500.0 / 100.0;
            OutcomeInput {
                is_active: key >> 58 != 0,
                ..OutcomeInput::new(*name, (odds * 100.0).round() / 100.0)
            }
        };
        names.iter().map(outcome).collect()
    };
    let markets = (0..MARKETS).map(|n| {
        let scores = [
            "1-0", "2-0", "2-1", "0-0", "1-1", "2-2", "0-1", "0-2", "1-2", "Other",
        ];
        let numbered = format!("Market number {n} - Full Time");
        let (id, name, line, names): (i64, &str, Option<f64>, &[&str]) = match n {
            0 => (3743, "1X2 - Full Time", None, &["1", "X", "2"]),
            1 => (
                5000,
                "Over/Under - Full Time",
                Some(2.5),
                &["Over", "Under"],
            ),
            2 => (
                3795,
                "Both Teams To Score - Full Time",
                None,
                &["Yes", "No"],
            ),
            3 => (4693, "Double Chance - Full Time", None, &["1X", "X2", "12"]),
            4..9 => {
                let line = Some(n as f64 - 0.5);
                (5000, "Over/Under - Full Time", line, &["Over", "Under"])
            }
            9 => (1_096_755, "Correct Score - Full Time", None, &scores),
            44.. => (28_000_000 + n, "Anytime Goalscorer", None, &["a", "b", "c"]),
            _ => {
                let line = (n % 3 == 0).then_some(n as f64 / 2.0);
                (4700 + n, &numbered, line, &["1", "X", "2"])
            }
        };
        let mut outcomes = outcomes(names);
        if n >= 44 {
            for (player, outcome) in outcomes.iter_mut().enumerate() {
                outcome.name = format!("{}. Player {event_id}-{n}", ['A', 'B', 'C'][player]);
            }
        }
        MarketInput {
            betpawa_market_id: id.to_string(),
            betpawa_market_name: name.to_owned(),
            line,
            outcomes,
            market_groups: vec!["Main".into(), "Goals".into()],
            ..MarketInput::default()
        }
    });
    SnapshotInput {
        snapshot_id: (event_id * 10 + offer) * 1000 + generation,
        event_id,
        bookmaker_id: i64::from(offer == 1),
        captured_at: time(),
        last_confirmed_at: None,
        markets: markets.collect(),
    }
}

/// Puts the three snapshots of an event.
pub fn put(writer: &mut Writer, event_id: i64, mut snapshot: impl FnMut(i64) -> SnapshotInput) {
    let kickoff = Some(kickoff(event_id));
    writer.put_betpawa_snapshot(&snapshot(1), kickoff);
    for (offer, source) in (2..).zip(SOURCES) {
        writer.put_competitor_snapshot(source, &snapshot(offer), kickoff);
    }
}

pub fn filled() -> (OddsCache, Writer) {
    let (cache, mut writer) = OddsCache::detached();
    for event_id in 1..=EVENTS {
        put(&mut writer, event_id, |offer| snapshot(event_id, offer, 0));
    }
    writer.publish();
    (cache, writer)
}

/// The events of an update.
pub fn updated(round: i64) -> impl Iterator<Item = i64> {
    (0..UPDATED_EVENTS).map(move |n| (n * 22 + round * 7) % EVENTS + 1)
}

/// All event ids in an order that defeats the processor caches.
pub fn scattered() -> Vec<i64> {
    (0..EVENTS).map(|n| n * 769 % EVENTS + 1).collect()
}

/// An event as a container stores it, with the cache's own packed snapshots.
#[derive(Clone)]
pub struct Entry {
    pub event_id: i64,
    pub generation: i64,
    pub betpawa: BetpawaSnapshots,
    pub competitors: CompetitorSnapshots,
}

impl Entry {
    pub fn new(event: &CachedEvent) -> Entry {
        Entry {
            event_id: event.event_id(),
            generation: 0,
            betpawa: event.betpawa().clone(),
            competitors: event.competitors().clone(),
        }
    }

    /// Reads a little of the event that a lookup found.
    pub fn touch(&self) -> usize {
        self.betpawa.len() + self.competitors.len()
    }

    pub fn inline(&self) -> f64 {
        inline(&self.betpawa, &self.competitors)
    }
}

/// The sum of the inline odds.
pub fn inline(betpawa: &BetpawaSnapshots, competitors: &CompetitorSnapshots) -> f64 {
    let own = betpawa.iter().map(|(_, snapshot)| snapshot);
    let all = own.chain(competitors.iter().map(|(_, snapshot)| snapshot));
    all.map(|snapshot: &CachedSnapshot| -> f64 {
        let shown = snapshot
            .markets()
            .filter(|market| is_inline(market.betpawa_market_id(), market.line()));
        let odds = shown
            .flat_map(|market| market.outcomes())
            .map(|outcome| outcome.odds());
        odds.map(Option::unwrap_or_default).sum()
    })
    .sum()
}
