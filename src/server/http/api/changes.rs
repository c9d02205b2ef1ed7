//! `GET /v1/changes`: what each publication changed, as server-sent events. A separate event marks each gap.
//!
//! | event | id | data |
//! |---|---|---|
//! | `start` | of the current view | `as_of`, `epoch` |
//! | `change` | of the published view | `as_of`, `epoch`, event ids: `betpawa`, `competitors` by source, `kickoffs`, `names` |
//! | `lagged` | of the current view | `as_of`, `epoch` |
//!
//! The ids of a `change` are those of the events that differ. After `start` a client reads all events, then applies
//! changes. After `lagged` changes are missing, so it reads all events again.
//!
//! With `odds=true` a `change` also has `odds`: the entries of the event list for the events that differ and are held.
//! They are of the newest view at the time of sending, which may be newer than the change. Applied in order they never
//! go back.
//!
//! A client that comes back with `Last-Event-ID` gets the changes that it missed. It gets `lagged` if they are too long
//! ago, or if the id is of another process. A client that reads too slowly gets `lagged`, too. So does a client with
//! `odds=true` if the odds that it missed are more than those of the whole list: the list is compressed and shared. No
//! client delays another one, or the follower.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use futures_util::stream;
use oddscache::{Change, InlineMarkets, OddsCache, View};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{AbortHandle, JoinError, spawn_blocking},
    time::timeout,
};

use crate::server::http::{cut, problem::problem};

/// How many changes are kept for clients that come back.
const KEPT: usize = 1024;

/// How often a quiet stream sends something, so that proxies do not end it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A comment, which clients ignore.
const STILL_HERE: Bytes = Bytes::from_static(b":\n\n");

/// How many bytes of recently written events are kept, for all streams that send them.
const WRITTEN_BYTES: usize = 8 << 20;

/// The odds of at most this many events are written without a blocking thread: it would cost more than it saves.
const FEW_EVENTS: usize = 64;

/// The recent changes, shared by all streams.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    kept: Arc<Mutex<VecDeque<Arc<Change>>>>,
    /// The version of the newest change.
    newest: watch::Receiver<u64>,
    written: Arc<Mutex<Written>>,
    /// Locked while the odds of many events are written.
    writer: Arc<tokio::sync::Mutex<()>>,
    /// One permit for each stream that may still be opened.
    places: Arc<Semaphore>,
    /// How many streams may be open.
    most: usize,
    keeping: AbortHandle,
}

impl Hub {
    /// Keeps changes from now on, until the handle's follower is gone. Needs a runtime.
    pub(crate) fn start(cache: &OddsCache, most_streams: usize) -> Hub {
        // Subscribe before reading the version, so that no change falls between the two.
        let mut changes = cache.changes();
        let (tell, newest) = watch::channel(cache.view().version());
        let kept = Arc::new(Mutex::new(VecDeque::<Arc<Change>>::with_capacity(KEPT)));
        let ours = Arc::clone(&kept);
        let keeping = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                // After lagging, versions are missing in `kept`. `after` notices that for each client.
                let Ok(change) = change else { continue };
                let version = change.version;
                {
                    let mut kept = ours.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.len() == KEPT {
                        kept.pop_front();
                    }
                    kept.push_back(change);
                }
                tell.send_modify(|newest| *newest = version.max(*newest));
            }
        });
        Hub {
            kept,
            newest,
            written: Arc::default(),
            writer: Arc::default(),
            places: Arc::new(Semaphore::new(most_streams)),
            most: most_streams,
            keeping: keeping.abort_handle(),
        }
    }

    /// How many streams are open.
    pub(crate) fn open(&self) -> usize {
        self.most - self.places.available_permits()
    }

    /// Ends all streams.
    pub(crate) fn stop(&self) {
        self.keeping.abort();
    }

    /// The changes after `version`, in order; `None` if some of them are missing.
    fn after(&self, version: u64) -> Option<Vec<Arc<Change>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let from = kept.partition_point(|change| change.version <= version);
        let changes: Vec<_> = kept.range(from..).cloned().collect();
        // Each publication raises the version by one, so a gap means that changes are missing. A client's version
        // beyond the newest is of another process.
        let newest = *self.newest.borrow();
        let end = changes.last().map_or(version, |change| change.version);
        let mut expected = version;
        let whole = changes.iter().all(|change| {
            expected += 1;
            change.version == expected
        });
        (version <= newest && newest <= end && whole).then_some(changes)
    }

    /// The event of a change, with the odds of the newest view if they are wanted. `None` if it could not be made.
    async fn event_of(
        &self,
        change: &Arc<Change>,
        cache: &OddsCache,
        inline: Option<&InlineMarkets>,
    ) -> Option<Bytes> {
        // The client has no odds of a newer view than this. So odds of this view or a newer one never go back.
        let least = inline.map(|_| cache.view().version());
        if let Some(event) = self.written(change.version, least) {
            return Some(event);
        }
        let Some(inline) = inline.filter(|_| change.event_ids().len() > FEW_EVENTS) else {
            // Without the lock: two tasks may write the same event, but none waits.
            return Some(self.write(change, cache, inline));
        };
        let turn = Arc::clone(&self.writer).lock_owned().await;
        if let Some(event) = self.written(change.version, least) {
            return Some(event);
        }
        // On a blocking thread, because it takes milliseconds, and longer for more events.
        let (hub, change) = (self.clone(), Arc::clone(change));
        let (cache, inline) = (cache.clone(), inline.clone());
        let written = spawn_blocking(move || {
            let _turn = turn;
            hub.write(&change, &cache, Some(&inline))
        });
        let written = written.await;
        let failed =
            |error: &JoinError| tracing::error!(%error, "a change could not be written out");
        written.inspect_err(failed).ok()
    }

    /// The event of a change if it was written, with odds of version `least` or newer.
    fn written(&self, change: u64, least: Option<u64>) -> Option<Bytes> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(change, least)
    }

    fn write(&self, change: &Change, cache: &OddsCache, inline: Option<&InlineMarkets>) -> Bytes {
        let odds = inline.map(|inline| (inline, cache.view()));
        let event = change_event(change, odds.as_ref().map(|(inline, view)| (*inline, view)));
        let key = Key {
            change: change.version,
            odds: odds.map(|(_, view)| view.version()),
        };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.put(key, event.clone());
        event
    }

    pub(crate) fn stream(
        &self,
        cache: OddsCache,
        inline: Option<InlineMarkets>,
        request: &HeaderMap,
    ) -> Response {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let sentence =
                "too many streams of changes are open; try again later, or raise --most-streams";
            return problem(StatusCode::SERVICE_UNAVAILABLE, sentence);
        };
        // An id that is not ours stands for a version that never comes. So the client gets `lagged`.
        let last = request.get("last-event-id").map(|id| {
            let id = id.to_str().ok();
            id.and_then(cut::version).unwrap_or(u64::MAX)
        });
        let client = Client {
            hub: self.clone(),
            cache,
            inline,
            last,
            waiting: VecDeque::new(),
            _place: place,
        };
        let events = stream::unfold(client, |mut client| async {
            let event = match timeout(KEEP_ALIVE, client.next()).await {
                Ok(event) => event?,
                Err(_) => STILL_HERE,
            };
            Some((Ok::<_, Infallible>(event), client))
        });
        let headers = [
            (CONTENT_TYPE, "text/event-stream"),
            // A proxy that compressed the stream would delay events.
            (CACHE_CONTROL, "no-cache, no-transform"),
            // Without this header nginx buffers the stream, and so delays events.
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(events)).into_response()
    }
}

/// Names a written event: the version of its change, and the version of its odds if it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    change: u64,
    odds: Option<u64>,
}

/// Recently written events. All streams send the same events at about the same time.
/// They fit into [`WRITTEN_BYTES`], unless the newest alone does not.
#[derive(Debug, Default)]
struct Written {
    events: VecDeque<(Key, Bytes)>,
    bytes: usize,
}

impl Written {
    /// If `least` is `None`, an event without odds. Otherwise an event with odds of version `least` or newer.
    fn get(&self, change: u64, least: Option<u64>) -> Option<Bytes> {
        // The newest first, because most clients want it.
        let mut events = self.events.iter().rev();
        let found = events.find(|(key, _)| {
            key.change == change && key.odds.is_some() == least.is_some() && key.odds >= least
        });
        found.map(|(_, event)| event.clone())
    }

    fn put(&mut self, key: Key, event: Bytes) {
        if self.get(key.change, key.odds).is_some() {
            return;
        }
        self.bytes += event.len();
        self.events.push_back((key, event));
        // Few entries, because `get` looks at each.
        while self.events.len() > 64 || (self.bytes > WRITTEN_BYTES && self.events.len() > 1) {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.map_or(0, |(_, event)| event.len());
        }
    }
}

/// One stream.
struct Client {
    hub: Hub,
    cache: OddsCache,
    /// The markets that are sent with each change, if any.
    inline: Option<InlineMarkets>,
    /// The version of the last event; `None` before the first.
    last: Option<u64>,
    waiting: VecDeque<Arc<Change>>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// The next event to send; `None` when no more can come. Dropping the future loses nothing.
    async fn next(&mut self) -> Option<Bytes> {
        let Some(last) = self.last else {
            return Some(self.current("start"));
        };
        loop {
            // The change stays in the queue until its event is made, because this future may be dropped meanwhile.
            if let Some(change) = self.waiting.front() {
                let inline = self.inline.as_ref();
                let event = self.hub.event_of(change, &self.cache, inline).await?;
                self.last = Some(change.version);
                self.waiting.pop_front();
                return Some(event);
            }
            match self.hub.after(last) {
                None => return Some(self.current("lagged")),
                Some(changes) if changes.is_empty() => {
                    let mut newest = self.hub.newest.clone();
                    newest.wait_for(|newest| *newest > last).await.ok()?;
                }
                Some(changes) if self.are_too_many(&changes) => {
                    return Some(self.current("lagged"));
                }
                Some(changes) => self.waiting.extend(changes),
            }
        }
    }

    /// Whether the odds of these changes are more than those of all held events. Those of one change never are.
    fn are_too_many(&self, changes: &[Arc<Change>]) -> bool {
        if self.inline.is_none() || changes.len() == 1 {
            return false;
        }
        let view = self.cache.view();
        let most = view.len().max(FEW_EVENTS);
        let mut events = 0;
        changes.iter().any(|change| {
            let held = |id: &i64| view.event(*id).is_some();
            events += change.event_ids().iter().filter(|id| held(id)).count();
            events > most
        })
    }

    /// An event of the current view, from which a client can start.
    fn current(&mut self, name: &str) -> Bytes {
        self.waiting.clear();
        let view = self.cache.view();
        // The hub may not have seen the newest changes yet. The client gets them next, so they are no gap.
        let version = view.version().min(*self.hub.newest.borrow());
        self.last = Some(version);
        event(name, version, &state(&view).to_string().into_bytes())
    }
}

fn state(view: &View) -> Value {
    json!({ "as_of": view.cut().as_of, "epoch": view.epoch() })
}

fn change_event(change: &Change, odds: Option<(&InlineMarkets, &View)>) -> Bytes {
    let competitors = change.competitors.iter();
    let competitors: serde_json::Map<String, Value> = competitors
        .map(|(source, ids)| (source.to_string(), json!(ids)))
        .collect();
    let data = json!({
        "as_of": change.cut.as_of,
        "epoch": change.epoch,
        "betpawa": change.betpawa,
        "competitors": competitors,
        "kickoffs": change.kickoffs,
        "names": change.names,
    });
    let mut data = data.to_string().into_bytes();
    if let Some((inline, view)) = odds {
        // Remove the closing brace, to add a field.
        data.pop();
        data.extend_from_slice(b",\"odds\":[");
        let ids = change.event_ids().into_iter();
        for (index, event) in ids.filter_map(|id| view.event(id)).enumerate() {
            if index > 0 {
                data.push(b',');
            }
            inline.write_event(event, &mut data);
        }
        data.extend_from_slice(b"]}");
    }
    event("change", change.version, &data)
}

/// An event as it stands in a stream. `data` is JSON, so it has no line break.
fn event(name: &str, version: u64, data: &[u8]) -> Bytes {
    let head = format!("event: {name}\nid: {}\ndata: ", cut::id(version));
    let mut event = Vec::with_capacity(head.len() + data.len() + 2);
    event.extend_from_slice(head.as_bytes());
    event.extend_from_slice(data);
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, Utc};
    use futures_util::{FutureExt, future::join_all};
    use oddscache::{SnapshotInput, Writer};

    use super::*;

    fn put(writer: &mut Writer, event_id: i64, snapshot_id: i64) {
        let snapshot = SnapshotInput {
            snapshot_id,
            event_id,
            bookmaker_id: 1,
            captured_at: DateTime::<Utc>::UNIX_EPOCH,
            last_confirmed_at: None,
            markets: vec![],
        };
        writer.put_betpawa_snapshot(&snapshot, None);
    }

    /// Once, even if views follow each other quickly.
    #[tokio::test]
    async fn many_odds_are_written_once_for_all() {
        let (cache, mut writer) = OddsCache::detached();
        let mut changes = cache.changes();
        for event_id in 0..100 {
            put(&mut writer, event_id, 1);
        }
        writer.publish();
        let change = changes.next().await.unwrap().unwrap();
        let hub = Hub::start(&cache, 1);
        let inline = InlineMarkets::new([("3743", None)]);
        let busy = Arc::clone(&hub.writer).lock_owned().await;
        let mut waiting = Vec::new();
        for snapshot_id in 2..22 {
            put(&mut writer, 7, snapshot_id);
            writer.publish();
            let mut asking = Box::pin(hub.event_of(&change, &cache, Some(&inline)));
            assert!((&mut asking).now_or_never().is_none());
            waiting.push(asking);
        }
        drop(busy);
        let events: Vec<Bytes> = join_all(waiting).await.into_iter().flatten().collect();
        assert_eq!(events.len(), 20);
        let different: BTreeSet<_> = events.iter().map(|event| event.as_ptr()).collect();
        assert_eq!(different.len(), 1);
        let text = String::from_utf8(events[0].to_vec()).unwrap();
        assert_eq!(text.matches("\"event_id\"").count(), 100);
        // An older event is not enough.
        put(&mut writer, 7, 22);
        writer.publish();
        let newer = hub.event_of(&change, &cache, Some(&inline)).await.unwrap();
        assert_ne!(newer.as_ptr(), events[0].as_ptr());
    }

    #[test]
    fn what_is_kept_of_written_events_is_bounded() {
        let key = |change| Key { change, odds: None };
        let mut written = Written::default();
        let event = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
        for change in 0..1000 {
            written.put(key(change), event(10));
            written.put(key(change), event(10));
        }
        assert_eq!((written.events.len(), written.bytes), (64, 640));
        assert!(written.get(999, None).is_some() && written.get(0, None).is_none());
        let with_odds = Key {
            change: 999,
            odds: Some(999),
        };
        assert!(written.get(999, Some(999)).is_none());
        for change in 1000..1100 {
            written.put(key(change), event(WRITTEN_BYTES / 4));
        }
        assert_eq!(written.events.len(), 4);
        written.put(with_odds, event(2 * WRITTEN_BYTES));
        assert_eq!(
            (written.events.len(), written.bytes),
            (1, 2 * WRITTEN_BYTES)
        );
        // Newer odds are good enough, older ones are not.
        assert!(written.get(999, Some(998)).is_some() && written.get(999, Some(1000)).is_none());
        assert!(written.get(999, None).is_none() && written.get(998, Some(999)).is_none());
    }
}
