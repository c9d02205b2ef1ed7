//! Stores in this process that could hold the events. Each is used as its own documentation recommends. All use the
//! hash function of `hashbrown`, which is the fastest among theirs.

use std::{
    sync::{Arc, Mutex, RwLock},
    time::Instant,
};

use chrono::{DateTime, Utc};
use hashbrown::{DefaultHashBuilder, HashMap};
use oddscache::{CachedEvent, OddsCache, SnapshotInput, State, View, Writer};
use serde_json::{Value, json};

use crate::data::{self, Entry, inline, is_inline};

/// Events by id. Methods with a body are compiled for each store, so only their call is dynamic.
pub trait Store: Send + Sync {
    fn one(&self, event_id: i64) -> usize;

    /// Looks several events up, with the best batch call of the store.
    fn many(&self, event_ids: &[i64]) -> usize {
        event_ids.iter().map(|id| self.one(*id)).sum()
    }

    /// The sum of the inline odds of all events.
    fn inline(&self) -> f64;

    /// Prepares an update of 50 events (150 snapshots) and makes it visible. Returns when the preparation ended. `None`
    /// if the store cannot be written.
    fn update(&self, round: i64) -> Option<Instant>;

    /// Gives all events this generation in one batch.
    fn touch_all(&self, generation: i64);

    /// The least and the greatest generation that a reader of all events sees at once.
    fn span(&self) -> (i64, i64);

    fn pass(&self, event_ids: &[i64]) -> usize {
        event_ids.iter().map(|id| self.one(*id)).sum()
    }

    /// Measures each lookup in nanoseconds, with the time that the clock takes.
    fn latencies(&self, event_ids: &[i64], out: &mut Vec<u32>) {
        for id in event_ids {
            let begun = Instant::now();
            std::hint::black_box(self.one(*id));
            out.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }
}

/// The cache, with lookups through the handle. Each lookup sees the latest state.
pub struct Handle {
    pub cache: OddsCache,
    pub writer: Mutex<Writer>,
    /// The times that `publish` alone took, in seconds.
    pub publishing: Arc<Mutex<Vec<f64>>>,
}

fn touch(event: &CachedEvent) -> usize {
    event.betpawa().len() + event.competitors().len()
}

fn empty(event_id: i64, offer: i64, generation: i64) -> SnapshotInput {
    SnapshotInput {
        snapshot_id: generation,
        event_id,
        bookmaker_id: i64::from(offer == 1),
        captured_at: data::time(),
        last_confirmed_at: None,
        markets: Vec::new(),
    }
}

impl Store for Handle {
    fn one(&self, event_id: i64) -> usize {
        let look = |state: &State| state.event(event_id).map_or(0, touch);
        self.cache.read(look)
    }
    fn many(&self, event_ids: &[i64]) -> usize {
        let view = self.cache.view();
        let found = event_ids.iter().filter_map(|id| view.event(*id));
        found.map(touch).sum()
    }
    fn inline(&self) -> f64 {
        let view = self.cache.view();
        view.events()
            .map(|event| inline(event.betpawa(), event.competitors()))
            .sum()
    }
    /// The new snapshots have no markets. The other stores get packed snapshots, and packing costs the same for all.
    fn update(&self, round: i64) -> Option<Instant> {
        let mut writer = self.writer.lock().expect("the writer");
        let prepare = |id| [1, 2, 3].map(|offer| empty(id, offer, round));
        let prepared: Vec<[SnapshotInput; 3]> = data::updated(round).map(prepare).collect();
        let begun = Instant::now();
        for [own, theirs @ ..] in prepared {
            writer.put_betpawa_snapshot(&own, None);
            for (source, snapshot) in data::SOURCES.iter().zip(theirs) {
                writer.put_competitor_snapshot(source, &snapshot, None);
            }
        }
        let published = Instant::now();
        writer.publish();
        let took = published.elapsed().as_secs_f64();
        self.publishing.lock().expect("times").push(took);
        Some(begun)
    }
    fn touch_all(&self, generation: i64) {
        let mut writer = self.writer.lock().expect("the writer");
        for event_id in 1..=data::EVENTS {
            writer.put_betpawa_snapshot(&empty(event_id, 1, generation), None);
        }
        writer.publish();
    }
    fn span(&self) -> (i64, i64) {
        let view = self.cache.view();
        let own = view.events().filter_map(|event| event.betpawa().get(1));
        span(own.map(|snapshot| snapshot.snapshot_id()))
    }
}

/// The cache, with lookups in one view, as a request holds it.
pub struct Held(pub View);

impl Store for Held {
    fn one(&self, event_id: i64) -> usize {
        self.0.event(event_id).map_or(0, touch)
    }
    fn inline(&self) -> f64 {
        let events = self.0.events();
        events
            .map(|event| inline(event.betpawa(), event.competitors()))
            .sum()
    }
    fn update(&self, _: i64) -> Option<Instant> {
        None
    }
    fn touch_all(&self, _: i64) {}
    fn span(&self) -> (i64, i64) {
        (0, 0)
    }
}

fn span(generations: impl Iterator<Item = i64>) -> (i64, i64) {
    generations.fold((i64::MAX, i64::MIN), |(least, greatest), generation| {
        (least.min(generation), greatest.max(generation))
    })
}

pub type Map = HashMap<i64, Arc<Entry>>;

/// The floor: a map that nobody changes.
pub struct Plain(pub Map);

impl Store for Plain {
    fn one(&self, event_id: i64) -> usize {
        self.0.get(&event_id).map_or(0, |entry| entry.touch())
    }
    fn inline(&self) -> f64 {
        self.0.values().map(|entry| entry.inline()).sum()
    }
    fn update(&self, _: i64) -> Option<Instant> {
        None
    }
    fn touch_all(&self, _: i64) {}
    fn span(&self) -> (i64, i64) {
        (0, 0)
    }
}

/// The events of an update, as a container stores them.
fn replaced(get: impl Fn(i64) -> Option<Arc<Entry>>, round: i64) -> Vec<Entry> {
    let entry = |id| get(id).map(|entry| Entry::clone(&entry));
    data::updated(round).filter_map(entry).collect()
}

fn touched(get: impl Fn(i64) -> Option<Arc<Entry>>, generation: i64) -> Vec<Arc<Entry>> {
    let entry = |id| {
        let entry = get(id)?;
        Some(Arc::new(Entry {
            generation,
            ..Entry::clone(&entry)
        }))
    };
    (1..=data::EVENTS).filter_map(entry).collect()
}

/// A store with a lock. Readers and the writer take it for a whole batch.
macro_rules! locked {
    ($name:ident, $lock:ty, $read:ident, $write:ident) => {
        pub struct $name(pub $lock);

        impl Store for $name {
            fn one(&self, event_id: i64) -> usize {
                let map = $read(&self.0);
                map.get(&event_id).map_or(0, |entry| entry.touch())
            }
            fn many(&self, event_ids: &[i64]) -> usize {
                let map = $read(&self.0);
                let found = event_ids.iter().filter_map(|id| map.get(id));
                found.map(|entry| entry.touch()).sum()
            }
            fn inline(&self) -> f64 {
                $read(&self.0).values().map(|entry| entry.inline()).sum()
            }
            fn update(&self, round: i64) -> Option<Instant> {
                let new = replaced(|id| $read(&self.0).get(&id).cloned(), round);
                let begun = Instant::now();
                let mut map = $write(&self.0);
                for entry in new {
                    map.insert(entry.event_id, Arc::new(entry));
                }
                Some(begun)
            }
            fn touch_all(&self, generation: i64) {
                let new = touched(|id| $read(&self.0).get(&id).cloned(), generation);
                let mut map = $write(&self.0);
                for entry in new {
                    map.insert(entry.event_id, entry);
                }
            }
            fn span(&self) -> (i64, i64) {
                span($read(&self.0).values().map(|entry| entry.generation))
            }
        }
    };
}

fn std_read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().expect("not poisoned")
}
fn std_write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().expect("not poisoned")
}
fn parking_read<T>(lock: &parking_lot::RwLock<T>) -> parking_lot::RwLockReadGuard<'_, T> {
    lock.read()
}
fn parking_write<T>(lock: &parking_lot::RwLock<T>) -> parking_lot::RwLockWriteGuard<'_, T> {
    lock.write()
}

locked!(StdLock, RwLock<Map>, std_read, std_write);
locked!(
    ParkingLot,
    parking_lot::RwLock<Map>,
    parking_read,
    parking_write
);

pub struct DashMap(pub dashmap::DashMap<i64, Arc<Entry>, DefaultHashBuilder>);

impl Store for DashMap {
    fn one(&self, event_id: i64) -> usize {
        self.0.get(&event_id).map_or(0, |entry| entry.touch())
    }
    fn inline(&self) -> f64 {
        self.0.iter().map(|entry| entry.inline()).sum()
    }
    fn update(&self, round: i64) -> Option<Instant> {
        let new = replaced(|id| self.0.get(&id).map(|entry| Arc::clone(&entry)), round);
        let begun = Instant::now();
        for entry in new {
            self.0.insert(entry.event_id, Arc::new(entry));
        }
        Some(begun)
    }
    fn touch_all(&self, generation: i64) {
        let get = |id| self.0.get(&id).map(|entry| Arc::clone(&entry));
        for entry in touched(get, generation) {
            self.0.insert(entry.event_id, entry);
        }
    }
    fn span(&self) -> (i64, i64) {
        span(self.0.iter().map(|entry| entry.generation))
    }
}

pub struct Papaya(pub papaya::HashMap<i64, Arc<Entry>, DefaultHashBuilder>);

impl Store for Papaya {
    fn one(&self, event_id: i64) -> usize {
        self.0.pin().get(&event_id).map_or(0, |entry| entry.touch())
    }
    fn many(&self, event_ids: &[i64]) -> usize {
        let map = self.0.pin();
        let found = event_ids.iter().filter_map(|id| map.get(id));
        found.map(|entry| entry.touch()).sum()
    }
    fn inline(&self) -> f64 {
        self.0.pin().values().map(|entry| entry.inline()).sum()
    }
    fn update(&self, round: i64) -> Option<Instant> {
        let map = self.0.pin();
        let new = replaced(|id| map.get(&id).cloned(), round);
        let begun = Instant::now();
        for entry in new {
            map.insert(entry.event_id, Arc::new(entry));
        }
        Some(begun)
    }
    fn touch_all(&self, generation: i64) {
        let map = self.0.pin();
        for entry in touched(|id| map.get(&id).cloned(), generation) {
            map.insert(entry.event_id, entry);
        }
    }
    fn span(&self) -> (i64, i64) {
        span(self.0.pin().values().map(|entry| entry.generation))
    }
}

/// Each lookup clones the `Arc` and updates the statistics of the eviction policy.
pub struct Moka(pub moka::sync::Cache<i64, Arc<Entry>, DefaultHashBuilder>);

impl Store for Moka {
    fn one(&self, event_id: i64) -> usize {
        self.0.get(&event_id).map_or(0, |entry| entry.touch())
    }
    fn inline(&self) -> f64 {
        self.0.iter().map(|(_, entry)| entry.inline()).sum()
    }
    fn update(&self, round: i64) -> Option<Instant> {
        let new = replaced(|id| self.0.get(&id), round);
        let begun = Instant::now();
        for entry in new {
            self.0.insert(entry.event_id, Arc::new(entry));
        }
        Some(begun)
    }
    fn touch_all(&self, generation: i64) {
        for entry in touched(|id| self.0.get(&id), generation) {
            self.0.insert(entry.event_id, entry);
        }
    }
    fn span(&self) -> (i64, i64) {
        span(self.0.iter().map(|(_, entry)| entry.generation))
    }
}

/// Plain objects with text and JSON values, as in a program that keeps rows as it read them.
#[expect(dead_code, reason = "held for what they weigh")]
pub struct ObjectMarket {
    pub betpawa_market_id: String,
    pub betpawa_market_name: String,
    pub line: Option<f64>,
    pub handicap_type: Option<String>,
    pub handicap_home: Option<f64>,
    pub handicap_away: Option<f64>,
    pub outcomes: Value,
    pub market_groups: Value,
    pub unavailable_at: Option<DateTime<Utc>>,
}

#[expect(dead_code, reason = "held for what they weigh")]
pub struct ObjectSnapshot {
    pub snapshot_id: i64,
    pub bookmaker: String,
    pub captured_at: DateTime<Utc>,
    pub last_confirmed_at: DateTime<Utc>,
    pub markets: Vec<ObjectMarket>,
}

pub struct ObjectEvent {
    pub generation: i64,
    pub snapshots: Vec<ObjectSnapshot>,
}

impl ObjectEvent {
    pub fn new(event_id: i64, generation: i64) -> ObjectEvent {
        let snapshot = |offer: i64| {
            let made = data::snapshot(event_id, offer, generation);
            ObjectSnapshot {
                snapshot_id: made.snapshot_id,
                bookmaker: ["betpawa", "bet9ja", "sportybet"][offer as usize - 1].to_owned(),
                captured_at: made.captured_at,
                last_confirmed_at: made.captured_at,
                markets: made.markets.into_iter().map(ObjectMarket::new).collect(),
            }
        };
        ObjectEvent {
            generation,
            snapshots: (1..=3).map(snapshot).collect(),
        }
    }
}

impl ObjectMarket {
    fn new(made: oddscache::MarketInput) -> ObjectMarket {
        ObjectMarket {
            outcomes: json!(made.outcomes),
            betpawa_market_id: made.betpawa_market_id,
            betpawa_market_name: made.betpawa_market_name,
            line: made.line,
            handicap_type: made.handicap_type,
            handicap_home: made.handicap_home,
            handicap_away: made.handicap_away,
            market_groups: made.market_groups.into(),
            unavailable_at: made.unavailable_at,
        }
    }
}

pub struct Objects(pub RwLock<HashMap<i64, ObjectEvent>>);

impl Store for Objects {
    fn one(&self, event_id: i64) -> usize {
        let map = std_read(&self.0);
        map.get(&event_id).map_or(0, |event| event.snapshots.len())
    }
    fn many(&self, event_ids: &[i64]) -> usize {
        let map = std_read(&self.0);
        let found = event_ids.iter().filter_map(|id| map.get(id));
        found.map(|event| event.snapshots.len()).sum()
    }
    fn inline(&self) -> f64 {
        let map = std_read(&self.0);
        let snapshots = map.values().flat_map(|event| &event.snapshots);
        let markets = snapshots.flat_map(|snapshot| &snapshot.markets);
        let shown = markets.filter(|market| is_inline(&market.betpawa_market_id, market.line));
        let outcomes = shown.filter_map(|market| market.outcomes.as_array());
        let odds = outcomes
            .flatten()
            .filter_map(|outcome| outcome["odds"].as_f64());
        odds.sum()
    }
    fn update(&self, round: i64) -> Option<Instant> {
        let made = |id| (id, ObjectEvent::new(id, round));
        let new: Vec<(i64, ObjectEvent)> = data::updated(round).map(made).collect();
        let begun = Instant::now();
        let mut map = std_write(&self.0);
        for (event_id, event) in new {
            // This frees the old event, which is a part of the cost.
            map.insert(event_id, event);
        }
        Some(begun)
    }
    fn touch_all(&self, generation: i64) {
        for event in std_write(&self.0).values_mut() {
            event.generation = generation;
        }
    }
    fn span(&self) -> (i64, i64) {
        span(std_read(&self.0).values().map(|event| event.generation))
    }
}
