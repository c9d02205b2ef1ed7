//! Renders the event list as JSON. Copies everything that has not changed from the list rendered last.
//!
//! # Invariants
//! - L1: While `last` is held, an address identifies an event or its markets: they never change (V1, M1).
//! - L2: `json` is the list of `last`; the bytes between two neighbouring entry ends are one event.
//! - L3: The text of a snapshot's markets depends only on the packed markets and on the inline markets: times stand
//!   outside of it.

mod write;

use std::{fmt, mem::size_of, ops::Range, sync::Arc};

use bytes::Bytes;
use hashbrown::HashSet;

use crate::{
    model::{CachedEvent, Micros},
    store::state::View,
};
use write::{Before, Fragment, Inline, write_entry, write_event, write_markets};

/// The event list with inline odds as JSON: all events of a view, ordered by kickoff, then id. Each shows a few markets
/// of every snapshot.
///
/// ```json
/// [{"event_id":7,"kickoff":"2026-01-01T18:00:00Z","name":"Arsenal - Chelsea","home_team":"Arsenal",
///   "away_team":"Chelsea","sportradar_id":"sr:match:1",
///   "tournament":{"id":3,"name":"Premier League","country":"England","sport":"Football"},"odds":[
///   {"bookmaker":"betpawa","bookmaker_id":1,"bookmaker_slug":"betpawa","bookmaker_name":"betPawa",
///     "last_confirmed_at":"2026-01-01T12:00:00Z","markets":[
///     {"betpawa_market_id":"3743","betpawa_market_name":"1X2","line":null,"margin":4.42,"outcomes":[
///       {"name":"1","odds":2.1,"is_active":true}],"available":true,"unavailable_since":null}]}]}]
/// ```
///
/// The real list has no line breaks.
/// - `odds` lists the snapshots of `odds_snapshots` by bookmaker, then the competitors' by source. A competitor has its
///   source as `bookmaker`, and 0 as `bookmaker_id`.
/// - Names are those of [`CachedEvent::name`] and [`CachedEvent::tournament`], and those of the bookmaker's row in
///   `bookmakers`. Unknown names are null.
/// - `markets` are ordered by row id.
/// - `margin` is the bookmaker's margin in per cent: `(sum(1 / odds) - 1) * 100`, rounded to two digits. It is null if
///   there is no outcome, or one without odds above 0.
/// - `unavailable_since` is the column `unavailable_at`. A market is `available` while it is null.
/// - Times are UTC. Numbers are written as serde_json writes them.
///
/// The list writes only what changed since its last call, and copies the rest from the list that it rendered then. That
/// costs little more than copying the whole list. An unchanged view costs one comparison.
///
/// Make one list for each choice of inline markets, and put it behind a lock if several threads render it.
///
/// ```
/// use oddscache::{EventList, OddsCache};
///
/// let (cache, _writer) = OddsCache::detached();
/// let mut list = EventList::new([("3743", None), ("5000", Some(2.5))]);
/// assert_eq!(list.render(&cache.view()), "[]");
/// ```
pub struct EventList {
    inline: InlineMarkets,
    last: Option<View>,
    json: Buffer,
    entries: Entries,
    /// The list before the last one. Its memory is written again once nobody reads it: fresh memory would cost as much
    /// as the copying.
    spare: Buffer,
    fragments_written: u64,
}

/// Which markets of each snapshot the event list shows: those with a given `betpawa_market_id` and, if one is given, a
/// given line. A clone counts one reference.
///
/// It can also write single events as [`EventList`] writes them, for answers that are not a whole list.
///
/// ```
/// use chrono::{DateTime, Utc};
/// use oddscache::{InlineMarkets, OddsCache, SnapshotInput};
///
/// let (cache, mut writer) = OddsCache::detached();
/// let at = DateTime::<Utc>::UNIX_EPOCH;
/// let snapshot = SnapshotInput {
///     snapshot_id: 1, event_id: 7, bookmaker_id: 1, captured_at: at, last_confirmed_at: None, markets: vec![],
/// };
/// writer.put_betpawa_snapshot(&snapshot, Some(at));
/// writer.publish();
/// let (inline, mut out) = (InlineMarkets::new([("3743", None)]), Vec::new());
/// inline.write_event(cache.view().event(7).expect("published"), &mut out);
/// assert!(out.starts_with(br#"{"event_id":7,"kickoff":"1970-01-01T00:00:00Z","name":null"#));
/// ```
#[derive(Debug, Clone)]
pub struct InlineMarkets(Arc<[Inline]>);

impl InlineMarkets {
    /// Selects the markets with one of these `betpawa_market_id`s. A line of `None` selects every line.
    pub fn new<Id: Into<Box<str>>>(
        inline: impl IntoIterator<Item = (Id, Option<f64>)>,
    ) -> InlineMarkets {
        let inline = inline.into_iter().map(|(id, line)| Inline {
            betpawa_market_id: id.into(),
            line,
        });
        InlineMarkets(inline.collect())
    }

    /// Appends one event to `out`, written as in the list. Costs about 2 us per snapshot.
    pub fn write_event(&self, event: &CachedEvent, out: &mut Vec<u8>) {
        self.write_event_where(event, |_, _| true, out);
    }

    /// The same as [`InlineMarkets::write_event`], with only those snapshots for which `wanted` returns true. It is
    /// called with the `bookmaker` and `bookmaker_id` of the list.
    pub fn write_event_where(
        &self,
        event: &CachedEvent,
        wanted: impl Fn(&str, i64) -> bool,
        out: &mut Vec<u8>,
    ) {
        write_event(out, event, wanted, |out, snapshot| {
            write_markets(out, &self.0, snapshot);
        });
    }

    /// Bytes that the selection requested from the allocator.
    fn heap_bytes(&self) -> usize {
        let ids = self.0.iter().map(Inline::heap_bytes).sum::<usize>();
        2 * size_of::<usize>() + size_of_val(&*self.0) + ids
    }
}

/// Where each event and its snapshots stand in a list.
#[derive(Default)]
struct Entries {
    /// One entry per event, in the order of the list.
    events: Vec<Entry>,
    /// One fragment per snapshot, entry after entry.
    fragments: Vec<Fragment>,
}

#[derive(Clone, Copy)]
struct Entry {
    event_id: i64,
    kickoff: Option<Micros>,
    address: usize,
    end: Place,
}

/// A boundary between two entries.
#[derive(Clone, Copy)]
struct Place {
    /// In the JSON, after the separator.
    byte: usize,
    /// In the list of fragments.
    fragment: usize,
}

/// An event of the list to be rendered.
struct Planned<'v> {
    event: &'v CachedEvent,
    /// The index of its entry in the last list.
    old: Option<usize>,
    unchanged: bool,
}

impl EventList {
    /// A list of the markets with one of these `betpawa_market_id`s. A line of `None` selects every line. Renders
    /// nothing yet.
    #[must_use]
    pub fn new<Id: Into<Box<str>>>(
        inline: impl IntoIterator<Item = (Id, Option<f64>)>,
    ) -> EventList {
        EventList::of(InlineMarkets::new(inline))
    }

    /// A list of the markets that `inline` selects. Renders nothing yet.
    pub fn of(inline: InlineMarkets) -> EventList {
        EventList {
            inline,
            last: None,
            json: Buffer::default(),
            entries: Entries::default(),
            spare: Buffer::default(),
            fragments_written: 0,
        }
    }

    /// Renders the list of `view`, as JSON in UTF-8. Cloning the result is cheap. While a clone is held, the list
    /// cannot use its memory again.
    pub fn render(&mut self, view: &View) -> Bytes {
        if self.last.as_ref().is_some_and(|last| last.is(view)) {
            return self.json.bytes.clone();
        }
        let planned = self.plan(view);
        let mut json =
            std::mem::take(&mut self.spare).reuse(self.json.bytes.len().max(512 * planned.len()));
        let mut entries = Entries {
            events: Vec::with_capacity(planned.len()),
            fragments: Vec::with_capacity(self.entries.fragments.len() + 16),
        };
        json.push(b'[');
        let mut rest = &planned[..];
        while let Some(first) = rest.first() {
            // Unchanged events that were neighbours in the last list are copied in one piece. Any other event is
            // written anew.
            let (run, old) = unchanged_run(rest);
            if run > 0 {
                let bytes = &self.json.bytes;
                entries.copy(&mut json, &self.entries, bytes, old..old + run);
                // The last entry of the old list ends with a bracket, not a comma.
                if let Some(separator) = json.last_mut() {
                    *separator = b',';
                }
            } else {
                let before = first.old.and_then(|index| self.before(index));
                self.fragments_written += write_entry(
                    &mut json,
                    &mut entries.fragments,
                    &self.inline.0,
                    first.event,
                    before,
                );
                json.push(b',');
                entries.push(first.event, json.len());
            }
            rest = &rest[run.max(1)..];
        }
        match json.last_mut() {
            Some(separator) if !planned.is_empty() => *separator = b']',
            _ => json.push(b']'),
        }
        self.spare = std::mem::replace(&mut self.json, Buffer::new(json));
        self.entries = entries;
        self.last = Some(view.clone());
        self.json.bytes.clone()
    }

    /// How many snapshots had their markets written so far. Grows with each changed snapshot, not with confirmations.
    pub fn fragments_written(&self) -> u64 {
        self.fragments_written
    }

    /// Bytes requested from the allocator: the last list, the one before it, and about a hundred bytes per event. The
    /// list also holds the view rendered last, whose memory is not counted here.
    pub fn memory_bytes(&self) -> usize {
        self.json.capacity
            + self.spare.capacity
            + self.entries.events.capacity() * size_of::<Entry>()
            + self.entries.fragments.capacity() * size_of::<Fragment>()
            + self.inline.heap_bytes()
    }

    /// Drops all memory and the view rendered last. The next list is written from scratch.
    pub fn clear(&mut self) {
        self.last = None;
        self.json = Buffer::default();
        self.entries = Entries::default();
        self.spare = Buffer::default();
    }

    /// All events of `view`, in the order of the list.
    fn plan<'v>(&self, view: &'v View) -> Vec<Planned<'v>> {
        let mut planned = Vec::with_capacity(view.len());
        let mut in_order = true;
        for (index, entry) in self.entries.events.iter().enumerate() {
            if let Some(event) = view.event(entry.event_id) {
                let unchanged = entry.address == address(event);
                // An unchanged event is not read at all: its address suffices (L1).
                in_order &= unchanged || event.kickoff == entry.kickoff;
                planned.push(Planned {
                    event,
                    old: Some(index),
                    unchanged,
                });
            }
        }
        // Events that the last list did not have.
        if planned.len() < view.len() {
            in_order = false;
            let listed: HashSet<i64> = planned.iter().map(|listed| listed.event.event_id).collect();
            let new = view
                .events()
                .filter(|event| !listed.contains(&event.event_id));
            planned.extend(new.map(|event| Planned {
                event,
                old: None,
                unchanged: false,
            }));
        }
        if !in_order {
            // Sorting is quick, because the list is nearly in order already.
            planned.sort_by_key(|planned| (planned.event.kickoff, planned.event.event_id));
        }
        planned
    }

    /// The event at this index, as the last list wrote it.
    fn before(&self, index: usize) -> Option<Before<'_>> {
        let entry = self.entries.events.get(index)?;
        let start = self.entries.start(index);
        Some(Before {
            json: self.json.bytes.get(start.byte..entry.end.byte)?,
            fragments: self
                .entries
                .fragments
                .get(start.fragment..entry.end.fragment)?,
        })
    }
}

/// How many of the first events are unchanged and were neighbours in the last list, in this order; and the index there
/// of the first.
fn unchanged_run(planned: &[Planned<'_>]) -> (usize, usize) {
    let from = planned
        .first()
        .and_then(|first| first.old)
        .unwrap_or_default();
    let run = planned
        .iter()
        .zip(from..)
        .take_while(|(planned, next)| planned.unchanged && planned.old == Some(*next))
        .count();
    (run, from)
}

fn address(event: &CachedEvent) -> usize {
    std::ptr::from_ref(event).addr()
}

impl Entries {
    /// Where an entry begins: where the one before it ends.
    fn start(&self, index: usize) -> Place {
        let before = index
            .checked_sub(1)
            .and_then(|index| self.events.get(index));
        // The first entry begins after the opening bracket.
        let first = Place {
            byte: 1,
            fragment: 0,
        };
        before.map_or(first, |entry| entry.end)
    }

    fn push(&mut self, event: &CachedEvent, end: usize) {
        self.events.push(Entry {
            event_id: event.event_id,
            kickoff: event.kickoff,
            address: address(event),
            end: Place {
                byte: end,
                fragment: self.fragments.len(),
            },
        });
    }

    /// Appends a range of entries of another list. By L2 their bytes are one piece.
    fn copy(&mut self, json: &mut Vec<u8>, old: &Entries, old_json: &[u8], run: Range<usize>) {
        let (from, to) = (old.start(run.start), old.start(run.end));
        let now = Place {
            byte: json.len(),
            fragment: self.fragments.len(),
        };
        json.extend_from_slice(&old_json[from.byte..to.byte]);
        self.fragments
            .extend_from_slice(&old.fragments[from.fragment..to.fragment]);
        self.events
            .extend(old.events[run].iter().map(|entry| Entry {
                end: Place {
                    byte: entry.end.byte - from.byte + now.byte,
                    fragment: entry.end.fragment - from.fragment + now.fragment,
                },
                ..*entry
            }));
    }
}

/// Bytes with their capacity, which `Bytes` does not tell.
#[derive(Default)]
struct Buffer {
    bytes: Bytes,
    capacity: usize,
}

impl Buffer {
    fn new(json: Vec<u8>) -> Buffer {
        Buffer {
            capacity: json.capacity(),
            bytes: json.into(),
        }
    }

    /// An empty buffer with room for somewhat more than the last list. Uses this buffer's memory if nobody reads it and
    /// its size fits.
    fn reuse(self, last: usize) -> Vec<u8> {
        if (last + last / 64..=2 * last).contains(&self.capacity)
            && let Ok(mut bytes) = self.bytes.try_into_mut()
        {
            // Clear it first; otherwise the conversion would move the old content to the front.
            bytes.clear();
            return bytes.into();
        }
        Vec::with_capacity(last + last / 8 + 256)
    }
}

impl fmt::Debug for EventList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventList")
            .field("events", &self.entries.events.len())
            .field("bytes", &self.json.bytes.len())
            .finish_non_exhaustive()
    }
}
