//! The event list as JSON, put together from what the last one and the view have in common.
//!
//! | invariant | |
//! |---|---|
//! | L1 | an address stands for the event or the markets at it as long as `last` is held: views never change (V1, M1), and what is held is not freed, so nothing else can come to lie there |
//! | L2 | `json` is the list of `last`, and entry for entry the bytes between two ends are what its event is written as |
//! | L3 | what is written of a snapshot's markets depends on them and on the inline markets alone: times stand outside |

mod write;

use std::{fmt, mem::size_of, ops::Range, sync::Arc};

use bytes::Bytes;
use hashbrown::HashSet;

use crate::{
    model::{CachedEvent, Micros},
    store::state::View,
};
use write::{Before, Fragment, Inline, write_entry, write_event, write_markets};

/// The event list with inline odds as JSON: all events of a view by kickoff, then id, each with a few markets of every
/// snapshot.
///
/// ```json
/// [{"event_id":7,"kickoff":"2026-01-01T18:00:00Z","odds":[
///   {"bookmaker":"betpawa","bookmaker_id":1,"last_confirmed_at":"2026-01-01T12:00:00Z","markets":[
///     {"betpawa_market_id":"3743","betpawa_market_name":"1X2","line":null,"margin":4.42,"outcomes":[
///       {"name":"1","odds":2.1,"is_active":true}],"available":true,"unavailable_since":null}]}]}]
/// ```
///
/// (on one line). `odds` has the snapshots of `odds_snapshots` by bookmaker, then the competitors' by source, with
/// `bookmaker_id` 0 and the source as `bookmaker`; `markets` keep their order. `margin` is the bookmaker's share in per cent,
/// `(sum(1 / odds) - 1) * 100` to two digits, null where an outcome has no odds above 0. `unavailable_since` is the column
/// `unavailable_at`, and a market is `available` while that is null. Numbers are written as serde_json writes them.
///
/// Only what changed since the last call is written anew; the rest is copied from the list made then, which costs little
/// more than copying all of it. An unchanged view costs a comparison. Made and owned by whoever serves the list, one for
/// each choice of inline markets; behind a lock if several do.
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
    /// The list before, to be written over once nobody reads it: fresh memory costs as much again as copying into it.
    spare: Buffer,
    fragments_written: u64,
}

/// Which markets the event list shows of each snapshot: those with one of a few `betpawa_market_id`s, and with its line where
/// one is given. Cloning counts a reference.
///
/// Writes single events as [`EventList`] writes them, for answers that are no whole list.
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
/// assert!(out.starts_with(br#"{"event_id":7,"kickoff":"1970-01-01T00:00:00Z","odds":[{"bookmaker":"betpawa""#));
/// ```
#[derive(Debug, Clone)]
pub struct InlineMarkets(Arc<[Inline]>);

impl InlineMarkets {
    /// The markets with one of these `betpawa_market_id`s, and this line if there is one.
    pub fn new<Id: Into<Box<str>>>(
        inline: impl IntoIterator<Item = (Id, Option<f64>)>,
    ) -> InlineMarkets {
        let inline = inline.into_iter().map(|(id, line)| Inline {
            betpawa_market_id: id.into(),
            line,
        });
        InlineMarkets(inline.collect())
    }

    /// Appends the entry of an event, as it stands in the list. Costs some 2 us a snapshot.
    pub fn write_event(&self, event: &CachedEvent, out: &mut Vec<u8>) {
        self.write_event_where(event, |_, _| true, out);
    }

    /// The same with only those snapshots of which `wanted` says so, asked with `bookmaker` and `bookmaker_id` as they stand
    /// in the list.
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

    /// Bytes asked of the allocator.
    fn heap_bytes(&self) -> usize {
        let ids = self.0.iter().map(Inline::heap_bytes).sum::<usize>();
        2 * size_of::<usize>() + size_of_val(&*self.0) + ids
    }
}

/// What stands where in a list.
#[derive(Default)]
struct Entries {
    /// In the order of the list.
    events: Vec<Entry>,
    /// Of their snapshots, entry by entry.
    fragments: Vec<Fragment>,
}

#[derive(Clone, Copy)]
struct Entry {
    event_id: i64,
    kickoff: Option<Micros>,
    address: usize,
    end: Place,
}

/// Between two entries.
#[derive(Clone, Copy)]
struct Place {
    /// In the bytes, after the separator.
    byte: usize,
    /// In the fragments.
    fragment: usize,
}

/// An event to be listed.
struct Planned<'v> {
    event: &'v CachedEvent,
    /// The entry of its id in the last list.
    old: Option<usize>,
    unchanged: bool,
}

impl EventList {
    /// A list that shows the markets with one of these `betpawa_market_id`s, and this line if there is one. Writes
    /// nothing yet.
    #[must_use]
    pub fn new<Id: Into<Box<str>>>(
        inline: impl IntoIterator<Item = (Id, Option<f64>)>,
    ) -> EventList {
        EventList::of(InlineMarkets::new(inline))
    }

    /// A list that shows these markets.
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

    /// The list of `view`. Sharing the result is free; while a reader holds one, its memory is not used again.
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
            let (run, old) = unchanged_run(rest);
            if run > 0 {
                let bytes = &self.json.bytes;
                entries.copy(&mut json, &self.entries, bytes, old..old + run);
                // The last one of a list has the bracket there.
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

    /// How many snapshots' markets it has written so far: goes up with each changed snapshot, not with confirmations.
    pub fn fragments_written(&self) -> u64 {
        self.fragments_written
    }

    /// Bytes it asked of the allocator: the last list, the one before, and some hundred an event. Beside them it holds the
    /// view rendered last, which weighs something of its own once the cache has moved on.
    pub fn memory_bytes(&self) -> usize {
        self.json.capacity
            + self.spare.capacity
            + self.entries.events.capacity() * size_of::<Entry>()
            + self.entries.fragments.capacity() * size_of::<Fragment>()
            + self.inline.heap_bytes()
    }

    /// Lets go of the view rendered last and of all memory; the next list is written whole.
    pub fn clear(&mut self) {
        self.last = None;
        self.json = Buffer::default();
        self.entries = Entries::default();
        self.spare = Buffer::default();
    }

    /// All events of `view` in the order of the list.
    fn plan<'v>(&self, view: &'v View) -> Vec<Planned<'v>> {
        let mut planned = Vec::with_capacity(view.len());
        let mut in_order = true;
        for (index, entry) in self.entries.events.iter().enumerate() {
            if let Some(event) = view.event(entry.event_id) {
                let unchanged = entry.address == address(event);
                // What has not changed is not even looked at.
                in_order &= unchanged || event.kickoff == entry.kickoff;
                planned.push(Planned {
                    event,
                    old: Some(index),
                    unchanged,
                });
            }
        }
        if planned.len() < view.len() {
            in_order = false;
            let known: HashSet<i64> = planned.iter().map(|known| known.event.event_id).collect();
            let new = view
                .events()
                .filter(|event| !known.contains(&event.event_id));
            planned.extend(new.map(|event| Planned {
                event,
                old: None,
                unchanged: false,
            }));
        }
        if !in_order {
            // Quick with what is nearly in order.
            planned.sort_by_key(|planned| (planned.event.kickoff, planned.event.event_id));
        }
        planned
    }

    /// What the last list has of an event.
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

/// How many events from the first on are as they were, and next to each other in the last list too; and where there.
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
        // After the bracket.
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

    /// Adds entries of another list, of which L2 says that their bytes are one stretch.
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

/// Bytes do not tell their capacity.
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

    /// Room for somewhat more than the last list: this one's, if nobody reads it and it is not far too large.
    fn reuse(self, last: usize) -> Vec<u8> {
        if (last + last / 64..=2 * last).contains(&self.capacity)
            && let Ok(mut bytes) = self.bytes.try_into_mut()
        {
            // Else its contents would be moved to where they are.
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
