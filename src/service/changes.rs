//! `GET /v1/changes`: what each publication changed, as server-sent events, without a gap that it does not tell of.
//!
//! | event | id | data |
//! |---|---|---|
//! | `start` | of the view at this moment | `as_of`, `epoch`: take the events after it, and go on from there |
//! | `change` | of the view that was published | `as_of`, `epoch`, and the ids of the events that differ: `betpawa`, `competitors` by source, `kickoffs` |
//! | `lagged` | of the view at this moment | as `start`: changes before it are missing, so take the events anew |
//!
//! A client that comes back with `Last-Event-ID` gets what it missed, or `lagged` if that is no longer known (of another
//! process, or too long ago). So does one that takes its events too slowly. No client holds up another one, or the follower.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use oddscache::{Change, OddsCache, View};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::AbortHandle,
};

use super::cut;

/// So many changes are kept for clients that come back.
const KEPT: usize = 1024;

/// A stream that is quiet says so this often, or proxies would end it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The changes of late, and who waits for the next.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    kept: Arc<Mutex<VecDeque<Arc<Change>>>>,
    /// Version of the newest one kept.
    newest: watch::Receiver<u64>,
    places: Arc<Semaphore>,
    most: usize,
    keeping: AbortHandle,
}

impl Hub {
    /// Keeps changes from now on, until the handle's follower is gone. Must be called within a runtime.
    pub(crate) fn start(cache: &OddsCache, most_streams: usize) -> Hub {
        // First, so that no change falls between the version and the first one kept.
        let mut changes = cache.changes();
        let (tell, newest) = watch::channel(cache.view().version());
        let kept = Arc::new(Mutex::new(VecDeque::<Arc<Change>>::with_capacity(KEPT)));
        let ours = Arc::clone(&kept);
        let keeping = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                // One that lagged leaves a hole in the versions, which each client sees for itself.
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
        // Of a version that never was, also of another process.
        let newest = *self.newest.borrow();
        let end = changes.last().map_or(version, |change| change.version);
        let mut expected = version;
        let whole = changes.iter().all(|change| {
            expected += 1;
            change.version == expected
        });
        (version <= newest && newest <= end && whole).then_some(changes)
    }

    pub(crate) fn stream(&self, cache: OddsCache, request: &HeaderMap) -> Response {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let sentence =
                "too many streams of changes are open; try again later, or raise --most-streams";
            return super::http::problem(StatusCode::SERVICE_UNAVAILABLE, sentence);
        };
        let last = request.get("last-event-id").map(|id| {
            let id = id.to_str().ok();
            id.and_then(cut::version).unwrap_or(u64::MAX)
        });
        let client = Client {
            hub: self.clone(),
            cache,
            last,
            waiting: VecDeque::new(),
            _place: place,
        };
        let events = stream::unfold(client, |mut client| async {
            let event = client.next().await?;
            Some((Ok::<_, Infallible>(event), client))
        });
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        Sse::new(events).keep_alive(keep_alive).into_response()
    }
}

/// One stream.
struct Client {
    hub: Hub,
    cache: OddsCache,
    /// The version told last; `None` before the first.
    last: Option<u64>,
    waiting: VecDeque<Arc<Change>>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// `None` when no more can come.
    async fn next(&mut self) -> Option<Event> {
        let Some(last) = self.last else {
            return Some(self.here("start"));
        };
        loop {
            if let Some(change) = self.waiting.pop_front() {
                self.last = Some(change.version);
                return Some(told(&change));
            }
            match self.hub.after(last) {
                None => return Some(self.here("lagged")),
                Some(changes) if changes.is_empty() => {
                    let mut newest = self.hub.newest.clone();
                    newest.wait_for(|newest| *newest > last).await.ok()?;
                }
                Some(changes) => self.waiting.extend(changes),
            }
        }
    }

    /// Where a client can start from: the view at this moment.
    fn here(&mut self, name: &str) -> Event {
        self.waiting.clear();
        let view = self.cache.view();
        // What the hub has not been told yet comes after, and is no gap.
        let version = view.version().min(*self.hub.newest.borrow());
        self.last = Some(version);
        event(name, version, &state(&view))
    }
}

fn state(view: &View) -> Value {
    json!({ "as_of": view.cut().as_of, "epoch": view.epoch() })
}

fn told(change: &Change) -> Event {
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
    });
    event("change", change.version, &data)
}

fn event(name: &str, version: u64, data: &Value) -> Event {
    Event::default()
        .event(name)
        .id(cut::id(version))
        .data(data.to_string())
}
