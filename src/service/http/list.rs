//! `GET /v1/list`: the event list with inline odds.
//!
//! Most ask for all of it, and of one view it is the same for all of them: it is made once, compressed once by each
//! encoding that is asked for, and they share the bytes. One at a time makes a form of it, from the newest view there is:
//! whoever waits meanwhile is served by that one, however quickly views follow each other. Pages and parts of it are written
//! for who asks.
//!
//! Held are the newest list that was asked for and its compressed forms, with their views, and older ones until nobody
//! reads them. Where those weigh too much, since many take theirs slowly, the list too goes out piece by piece from the view.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use oddscache::{EventList, InlineMarkets, OddsCache, View};
use tokio::{sync::OwnedMutexGuard, task::spawn_blocking};

use super::{
    Api,
    encoding::{self, Encoding},
    events::{self, Form},
    fields, problem,
    query::{self, Asked},
};
use crate::service::cut::answer;

/// Lists that are not the newest any more, and are still being read, may weigh so much together before another is made.
const OLD_BYTES: usize = 32 << 20;

/// `GET /v1/list`
pub(super) async fn list(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let asked = Asked::read(&uri, query::EVENTS, fields::ENTRY)?;
    let view = super::view(&api.cache, &asked.freshness).await?;
    let in_pieces = |view: &View| {
        let form = Form::new(Some(api.inline.clone()), &asked);
        events::page(&api, view, &uri, &headers, &asked, form)
    };
    if !asked.is_everything() {
        return Ok(in_pieces(&view));
    }
    if crate::service::cut::is_known(&view, &headers) {
        // Nothing to make.
        return Ok(answer(&view, &headers, || ().into_response()));
    }
    let encoding = encoding::wanted(&headers);
    let made = api
        .lists
        .of(&api.cache, view.version(), encoding)
        .await?
        // It was waited for, and the database may be away.
        .filter(|made| asked.freshness.allows(&made.view));
    let Some(made) = made else {
        let view = super::view(&api.cache, &asked.freshness).await?;
        return Ok(in_pieces(&view));
    };
    Ok(answer(&made.view, &headers, || {
        let body = Body::from(Bytes::from_owner(Owner(Arc::clone(&made))));
        let mut response = ([(CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        response
    }))
}

/// The whole list in all its forms.
#[derive(Debug)]
pub(super) struct Lists {
    plain: Newest<EventList>,
    gzip: Newest<()>,
    #[cfg(feature = "zstd")]
    zstd: Newest<()>,
    /// Bytes of all lists that somebody holds.
    held: Arc<AtomicUsize>,
    /// See [`OLD_BYTES`].
    most_old: usize,
}

/// The newest list in one form.
#[derive(Debug)]
struct Newest<Maker> {
    /// Locked by who makes the next.
    maker: Arc<tokio::sync::Mutex<Maker>>,
    /// Locked to take or put one reference.
    list: Mutex<Option<Arc<Made>>>,
}

/// The list of one view in one form.
#[derive(Debug)]
struct Made {
    view: View,
    bytes: Bytes,
    held: Arc<AtomicUsize>,
}

impl Drop for Made {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// What an answer's body holds, so that it counts until it was sent.
struct Owner(Arc<Made>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl<Maker> Newest<Maker> {
    fn new(maker: Maker) -> Newest<Maker> {
        Newest {
            maker: Arc::new(tokio::sync::Mutex::new(maker)),
            list: Mutex::default(),
        }
    }

    fn newest(&self) -> Option<Arc<Made>> {
        self.list
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn not_before(&self, version: u64) -> Option<Arc<Made>> {
        self.newest().filter(|made| made.view.version() >= version)
    }

    fn bytes(&self) -> usize {
        self.newest().map_or(0, |made| made.bytes.len())
    }

    /// Waits for the turn to make the next one; `Err` has the one that was made meanwhile, if that will do.
    async fn turn(&self, version: u64) -> Result<OwnedMutexGuard<Maker>, Arc<Made>> {
        if let Some(made) = self.not_before(version) {
            return Err(made);
        }
        let turn = Arc::clone(&self.maker).lock_owned().await;
        self.not_before(version).map_or(Ok(turn), Err)
    }

    fn put(&self, made: Made) -> Arc<Made> {
        let made = Arc::new(made);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        *list = Some(Arc::clone(&made));
        made
    }
}

impl Lists {
    pub(super) fn new(inline: InlineMarkets) -> Lists {
        Lists {
            plain: Newest::new(EventList::of(inline)),
            gzip: Newest::new(()),
            #[cfg(feature = "zstd")]
            zstd: Newest::new(()),
            held: Arc::default(),
            most_old: OLD_BYTES,
        }
    }

    /// The list of this version or a newer one, as it goes to a client; `None` if too many old ones are being read.
    async fn of(
        self: &Arc<Lists>,
        cache: &OddsCache,
        version: u64,
        encoding: Option<Encoding>,
    ) -> Result<Option<Arc<Made>>, Response> {
        let Some(encoding) = encoding else {
            return self.plain(cache, version).await;
        };
        let turn = match self.compressed(encoding).turn(version).await {
            Ok(turn) => turn,
            Err(made) => return Ok(Some(made)),
        };
        // The newest, for all who wait by now.
        let Some(plain) = self.plain(cache, cache.view().version()).await? else {
            return Ok(None);
        };
        let lists = Arc::clone(self);
        let made = spawn_blocking(move || {
            let _turn = turn;
            let bytes = encoding.encode(&plain.bytes)?;
            let made = lists.made(plain.view.clone(), bytes.into());
            std::io::Result::Ok(lists.compressed(encoding).put(made))
        });
        let made = made.await.map_err(|error| failed(&error))?;
        made.map(Some).map_err(|error| failed(&error))
    }

    async fn plain(
        self: &Arc<Lists>,
        cache: &OddsCache,
        version: u64,
    ) -> Result<Option<Arc<Made>>, Response> {
        let mut renderer = match self.plain.turn(version).await {
            Ok(renderer) => renderer,
            Err(made) => return Ok(Some(made)),
        };
        if self.is_crowded() {
            return Ok(None);
        }
        // The newest, for all who wait by now.
        let (lists, view) = (Arc::clone(self), cache.view());
        let made = spawn_blocking(move || {
            let json = renderer.render(&view);
            lists.plain.put(lists.made(view, json))
        });
        made.await.map(Some).map_err(|error| failed(&error))
    }

    fn compressed(&self, encoding: Encoding) -> &Newest<()> {
        match encoding {
            Encoding::Gzip => &self.gzip,
            #[cfg(feature = "zstd")]
            Encoding::Zstd => &self.zstd,
        }
    }

    fn made(&self, view: View, bytes: Bytes) -> Made {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        Made {
            view,
            bytes,
            held: Arc::clone(&self.held),
        }
    }

    /// Whether the old ones that are being read weigh too much for another to become old.
    fn is_crowded(&self) -> bool {
        let newest = self.plain.bytes() + self.gzip.bytes();
        #[cfg(feature = "zstd")]
        let newest = newest + self.zstd.bytes();
        let held = self.held.load(Ordering::Relaxed);
        held.saturating_sub(newest) > self.most_old
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "the event list could not be made");
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the event list could not be made; the log says why",
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use chrono::{DateTime, TimeDelta, Utc};
    use futures_util::{FutureExt, future::join_all};
    use oddscache::{SnapshotInput, Writer};

    use super::*;
    use crate::service::{changes::Hub, metrics::Requests};

    fn publish(writer: &mut Writer, number: i64) {
        let snapshot = SnapshotInput {
            snapshot_id: number,
            event_id: 7,
            bookmaker_id: 1,
            captured_at: DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(number),
            last_confirmed_at: None,
            markets: vec![],
        };
        writer.put_betpawa_snapshot(&snapshot, None);
        writer.publish();
    }

    fn lists() -> Lists {
        Lists::new(InlineMarkets::new([("3743", None)]))
    }

    /// However many views follow each other while one is made.
    #[tokio::test]
    async fn all_who_wait_are_served_by_one_list() {
        let (cache, mut writer) = OddsCache::detached();
        let lists = Arc::new(lists());
        let mut number = 0;
        for encoding in [
            None,
            Some(Encoding::Gzip),
            #[cfg(feature = "zstd")]
            Some(Encoding::Zstd),
        ] {
            let busy = Arc::clone(&lists.plain.maker).lock_owned().await;
            let mut waiting = Vec::new();
            for _ in 0..50 {
                number += 1;
                publish(&mut writer, number);
                let (lists, cache) = (Arc::clone(&lists), cache.clone());
                let version = cache.view().version();
                let mut asking = Box::pin(async move { lists.of(&cache, version, encoding).await });
                assert!((&mut asking).now_or_never().is_none());
                waiting.push(asking);
            }
            drop(busy);
            let served = join_all(waiting).await.into_iter();
            let served: Vec<_> = served.map(|made| made.unwrap().unwrap()).collect();
            let different: BTreeSet<_> = served.iter().map(Arc::as_ptr).collect();
            assert_eq!(different.len(), 1, "{encoding:?}");
            assert_eq!(served[0].view.version(), cache.view().version());
        }
    }

    #[tokio::test]
    async fn what_gets_too_old_while_it_is_waited_for_is_not_given() {
        let (cache, mut writer) = OddsCache::detached();
        publish(&mut writer, 1);
        let inline = InlineMarkets::new([("3743", None)]);
        let api = Api {
            hub: Hub::start(&cache, 1),
            cache: cache.clone(),
            requests: Requests::default(),
            lists: Arc::new(Lists::new(inline.clone())),
            inline,
            order: Arc::default(),
        };
        let ask = |api: Api| {
            let uri = Uri::from_static("/v1/list?max_age=1s");
            Box::pin(list(State(api), uri, HeaderMap::new()))
        };
        assert_eq!(ask(api.clone()).await.unwrap().status(), StatusCode::OK);
        publish(&mut writer, 2);
        let busy = Arc::clone(&api.lists.plain.maker).lock_owned().await;
        let mut asking = [ask(api.clone()), ask(api)];
        for asking in &mut asking {
            assert!(asking.now_or_never().is_none());
        }
        let wait = Duration::from_millis(10);
        while cache.view().age() <= Duration::from_secs(1) {
            tokio::time::sleep(wait).await;
        }
        drop(busy);
        for answer in join_all(asking).await {
            let status = answer.unwrap_err().status();
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[tokio::test]
    async fn old_lists_that_are_read_are_bounded() {
        let (cache, mut writer) = OddsCache::detached();
        let lists = Arc::new(Lists {
            most_old: 1000,
            ..lists()
        });
        for encoding in [None, Some(Encoding::Gzip)] {
            let mut slow = Vec::new();
            for number in 1..=100 {
                publish(&mut writer, number);
                let version = cache.view().version();
                let made = lists.of(&cache, version, encoding).await.unwrap();
                slow.extend(made.map(|made| Bytes::from_owner(Owner(made))));
            }
            assert!((3..30).contains(&slow.len()), "{} are held", slow.len());
            let held = lists.held.load(Ordering::Relaxed);
            assert!((1000..2000).contains(&held), "{held} bytes");
            // Those that are done make room.
            drop(slow);
            let version = cache.view().version();
            assert!(lists.of(&cache, version, encoding).await.unwrap().is_some());
        }
    }
}
