//! Rows that the server cannot send: a value is out of range or damaged, or text is not in the encoding of the
//! database. The error of such a row ends the transaction, and with it the read of all other rows.
//!
//! So the follower makes the read again, this time with a savepoint before each statement. It repeats a statement that
//! fails for each half of its keys, until only the keys at fault remain. The read goes on without their rows. It leaves
//! out a market row, and it keeps an event, or a side of it, as the draft holds it.
//!
//! # Invariants
//! - X1: A read either fails or has all rows but those of the keys in [`Progress::found`].
//! - X2: While there are such keys, every read looks for more of them. So an error of a row ends no read.
//! - X3: Such a key is read again when the log names it, when everything is read, and after growing pauses.
//! - X4: What was kept is old. So once it can be read, all of it is read again, with its markets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{error::Error, metrics::status::Fault, sql::Table, store::draft::Draft};

/// Names the smallest set of rows that one statement reads: a table, and a value of its key column, the one that the
/// change log records. Two tables stand for something else. [`Table::CompetitorEvents`] with an event's id means the
/// event's latest competitor snapshots. [`Table::CompetitorOddsSnapshots`] with a competitor event's id means its link
/// to an event.
pub(crate) type Key = (Table, i64);

/// The rows of a key that cannot be read.
#[derive(Debug, Clone)]
struct Found {
    /// The ids of the market rows that cannot be read. Empty if no row of the key can be read.
    rows: Vec<i64>,
    reason: String,
}

/// The keys that cannot be read, and when to try each again.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    keys: BTreeMap<Key, Entry>,
    /// Whether the next read must look for such rows, because the last one met one.
    is_searching: bool,
}

#[derive(Debug)]
struct Entry {
    found: Found,
    tries: u32,
    retry_at: Instant,
}

/// If more keys cannot be read, single rows are not the cause, and the read fails.
const MOST_KEYS: usize = 20_000;

/// How many keys one read tries again because their pause is over.
const MOST_AT_ONCE: usize = 16;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The most keys that the status names. It only counts the rest.
const MOST_NAMED: usize = 20;

impl Unreadable {
    /// Makes the next read look for rows that cannot be read.
    pub(crate) fn search(&mut self) {
        self.is_searching = true;
    }

    /// Begins a read. `None` if there is no reason to look for such rows.
    pub(crate) fn begin(&self) -> Option<Search> {
        self.is_looking().then(|| Search {
            known: self.keys.keys().copied().collect(),
            progress: Mutex::default(),
        })
    }

    /// Whether the next read looks for such rows.
    pub(crate) fn is_looking(&self) -> bool {
        self.is_searching || !self.keys.is_empty()
    }

    /// How long until a key is to be tried again. `None` if there is none.
    pub(crate) fn until_due(&self, now: Instant) -> Option<Duration> {
        let due = self.keys.values().map(|entry| entry.retry_at).min();
        due.map(|due| due.saturating_duration_since(now))
    }

    /// The keys that one read tries again now. Others that are due wait for the next read, so that none takes long.
    pub(crate) fn due(&self, now: Instant) -> impl Iterator<Item = Key> {
        let is_due = move |(_, entry): &(&Key, &Entry)| entry.retry_at <= now;
        let due = self.keys.iter().filter(is_due).map(|(key, _)| *key);
        due.take(MOST_AT_ONCE)
    }

    /// The events whose row cannot be read.
    pub(crate) fn events(&self) -> impl Iterator<Item = i64> {
        let events = self
            .keys
            .keys()
            .filter(|(table, _)| *table == Table::Events);
        events.map(|(_, id)| *id)
    }

    /// Notes the end of a read. `is_tried` says whether the read covered a known key, besides those that
    /// [`Search::shares`] noted; `is_kept` whether its snapshot belongs to what is kept, so that its rows were not applied.
    /// Returns how many rows were not known to be unreadable before.
    pub(crate) fn ended(
        &mut self,
        search: Search,
        mut is_tried: impl FnMut(Key) -> bool,
        is_kept: impl Fn(Key) -> bool,
        now: Instant,
    ) -> usize {
        self.is_searching = false;
        let Progress { found, tried } = search.into_progress();
        self.keys.retain(|key, _| {
            let is_tried = tried.contains(key) || is_tried(*key);
            found.contains_key(key) || is_kept(*key) || !is_tried
        });
        let mut new_rows: usize = 0;
        for (key, found) in found {
            let known = self.keys.get(&key);
            let known_rows = known.map_or(0, |entry| entry.found.rows.len().max(1));
            new_rows += found.rows.len().max(1).saturating_sub(known_rows);
            let tries = known.map_or(0, |entry| entry.tries.saturating_add(1));
            let pause = FIRST_PAUSE
                .saturating_mul(1 << tries.min(16))
                .min(LONGEST_PAUSE);
            // Spread out, so that not all are due at once.
            let retry_at = now + pause.mul_f64(0.75 + 0.5 * fastrand::f64());
            self.keys.insert(
                key,
                Entry {
                    found,
                    tries,
                    retry_at,
                },
            );
        }
        new_rows
    }

    /// Forgets the markets of snapshots that are no longer held.
    pub(crate) fn keep_held(&mut self, is_held: impl Fn(Table, i64) -> bool) {
        self.keys.retain(|(table, id), _| match table {
            Table::MarketOdds | Table::CompetitorMarketOdds => is_held(*table, *id),
            _ => true,
        });
    }

    /// A fault for each of the first keys, and one that counts the rest. For the status.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let named = self.keys.iter().take(MOST_NAMED);
        let mut faults: Vec<Fault> = named.map(|(key, entry)| entry.found.fault(*key)).collect();
        let others = self.keys.len().saturating_sub(MOST_NAMED);
        if others > 0 {
            faults.push(Fault {
                what: format!("{others} more that cannot be read"),
                repair: REPAIR.to_owned(),
            });
        }
        faults
    }
}

const REPAIR: &str =
    "correct or delete the row; until then it is tried again, first after 1 s, later every 5 min";

impl Found {
    fn fault(&self, (table, id): Key) -> Fault {
        let (name, reason) = (table.name(), &self.reason);
        let rows: Vec<String> = self
            .rows
            .iter()
            .take(MOST_NAMED)
            .map(i64::to_string)
            .collect();
        let rows = rows.join(", ");
        let what = match table {
            Table::Events => format!("event {id} in {name}, served as last known"),
            Table::OddsSnapshots => {
                format!("the latest snapshots of event {id} in {name}, served as last known")
            }
            Table::CompetitorEvents => format!(
                "the latest snapshots of event {id} in competitor_odds_snapshots, served as last known"
            ),
            Table::CompetitorOddsSnapshots => {
                format!("the event of competitor event {id}, not followed")
            }
            Table::MarketOdds | Table::CompetitorMarketOdds if rows.is_empty() => {
                format!("all markets of snapshot {id} in {name}, left out")
            }
            Table::MarketOdds | Table::CompetitorMarketOdds => {
                format!("{name} id {rows} of snapshot {id}, left out")
            }
        };
        let what = format!("cannot read {what}: {reason}");
        Fault {
            what,
            repair: REPAIR.to_owned(),
        }
    }
}

/// A read that looks for rows that cannot be read.
#[derive(Debug)]
pub(crate) struct Search {
    /// The keys that could not be read before. Each is read on its own.
    known: BTreeSet<Key>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    found: BTreeMap<Key, Found>,
    /// The known keys that were read, whether they could be or not.
    tried: BTreeSet<Key>,
}

impl Search {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing panics while it is locked; the data would still be whole.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_progress(self) -> Progress {
        self.progress
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Divides ids into shares, each for one statement: a known key has a share of its own, other keys share one by up
    /// to `most`. Notes that the known keys are tried.
    pub(crate) fn shares(&self, table: Table, ids: &[i64], most: usize) -> Vec<Vec<i64>> {
        let is_known = |id: &i64| self.known.contains(&(table, *id));
        let (known, others): (Vec<i64>, Vec<i64>) = ids.iter().partition(|id| is_known(id));
        self.progress()
            .tried
            .extend(known.iter().map(|id| (table, *id)));
        let alone = known.into_iter().map(|id| vec![id]);
        others
            .chunks(most)
            .map(<[i64]>::to_vec)
            .chain(alone)
            .collect()
    }

    /// Notes that rows of a key cannot be read. `rows` is empty if none of them can be.
    ///
    /// # Errors
    /// `error` itself if there are too many such keys.
    pub(crate) fn note(&self, key: Key, rows: Vec<i64>, error: &Error) -> Result<(), Error> {
        let Error::UnreadableRow { reason, .. } = error else {
            return Err(error.clone());
        };
        let mut progress = self.progress();
        if progress.found.len() >= MOST_KEYS {
            return Err(error.clone());
        }
        let reason = reason.clone();
        progress.found.insert(key, Found { rows, reason });
        Ok(())
    }

    /// The events with rows that cannot be read, or could not before.
    pub(crate) fn events(&self, draft: &Draft) -> BTreeSet<i64> {
        let progress = self.progress();
        let mut events = BTreeSet::new();
        for (table, id) in self.known.iter().chain(progress.found.keys()) {
            match table {
                Table::MarketOdds => events.extend(draft.events_of_betpawa_snapshot(*id)),
                Table::CompetitorMarketOdds => {
                    events.extend(draft.events_of_competitor_snapshot(*id));
                }
                Table::Events | Table::OddsSnapshots | Table::CompetitorEvents => {
                    events.insert(*id);
                }
                // Nobody knows the event, because the link to it cannot be read.
                Table::CompetitorOddsSnapshots => {}
            }
        }
        events
    }

    /// The events that the draft must keep as it holds them, whole or in part, because they cannot be read.
    pub(crate) fn kept(&self) -> Kept {
        Kept::of(self.progress().found.keys())
    }

    /// The same for those that could not be read before: what the draft holds of them may be old.
    pub(crate) fn doubtful(&self) -> Kept {
        Kept::of(self.known.iter())
    }
}

/// The ids of events that the draft keeps as it holds them: whole events, and events of which one side is kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) events: BTreeSet<i64>,
    pub(crate) betpawa: BTreeSet<i64>,
    pub(crate) competitors: BTreeSet<i64>,
}

impl Kept {
    fn of<'k>(keys: impl Iterator<Item = &'k Key>) -> Kept {
        let mut kept = Kept::default();
        for (table, id) in keys {
            match table {
                Table::Events => kept.events.insert(*id),
                Table::OddsSnapshots => kept.betpawa.insert(*id),
                Table::CompetitorEvents => kept.competitors.insert(*id),
                _ => false,
            };
        }
        kept
    }

    /// Whether the `betpawa` side of the event is among them.
    pub(crate) fn has_betpawa(&self, event_id: i64) -> bool {
        self.events.contains(&event_id) || self.betpawa.contains(&event_id)
    }

    /// Whether the `competitors` side of the event is among them.
    pub(crate) fn has_competitors(&self, event_id: i64) -> bool {
        self.events.contains(&event_id) || self.competitors.contains(&event_id)
    }
}
