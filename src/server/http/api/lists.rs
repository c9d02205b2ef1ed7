//! The whole event list with inline odds, made once for all clients.
//!
//! Most clients want the whole list, which is the same for all clients of one view. So it is made once for each view,
//! and compressed once for each encoding. All clients share the bytes. Plain text and each encoding are forms of the
//! list. One task at a time makes a form, from the newest view. All requests that wait meanwhile get that form, even if
//! newer views follow quickly.
//!
//! The newest list and its compressed forms stay in memory. An older list stays only while a client reads it. If slow
//! clients hold too many old lists, the list goes out piece by piece from the view instead.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use axum::{body::Bytes, http::StatusCode, response::Response};
use oddscache::{EventList, InlineMarkets, OddsCache, View};
use tokio::{sync::OwnedMutexGuard, task::spawn_blocking};

use super::encoding::Encoding;
use crate::server::http::problem::problem;

/// How many bytes of old lists clients may still be reading when another list is made.
const OLD_BYTES: usize = 32 << 20;

/// The whole list in all its forms.
#[derive(Debug)]
pub(crate) struct Lists {
    plain: Newest<EventList>,
    gzip: Newest<()>,
    #[cfg(feature = "zstd")]
    zstd: Newest<()>,
    /// The bytes of all lists in memory.
    held: Arc<AtomicUsize>,
    /// See [`OLD_BYTES`].
    most_old: usize,
}

/// The newest list in one form.
#[derive(Debug)]
struct Newest<Maker> {
    /// Locked while the next list is made.
    maker: Arc<tokio::sync::Mutex<Maker>>,
    /// Locked for a moment, to copy or replace the reference.
    list: Mutex<Option<Arc<Made>>>,
}

/// The list of one view in one form.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) view: View,
    bytes: Bytes,
    held: Arc<AtomicUsize>,
}

impl Drop for Made {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// An answer's body owns this, so that the list counts as held until it is sent.
pub(crate) struct Owner(pub(crate) Arc<Made>);

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

    /// Waits for the turn to make the next list. `Err` is a list that another task has made meanwhile, if it is new
    /// enough.
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
    pub(crate) fn new(inline: InlineMarkets) -> Lists {
        Lists {
            plain: Newest::new(EventList::of(inline)),
            gzip: Newest::new(()),
            #[cfg(feature = "zstd")]
            zstd: Newest::new(()),
            held: Arc::default(),
            most_old: OLD_BYTES,
        }
    }

    /// The list of this version or a newer one, encoded. `None` if clients still read too many old ones.
    pub(crate) async fn of(
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
        // Make it from the newest view, so that it serves all requests that wait by now.
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
        // Make it from the newest view, so that it serves all requests that wait by now.
        let (lists, view) = (Arc::clone(self), cache.view());
        let made = spawn_blocking(move || {
            let json = renderer.render(&view);
            lists.plain.put(lists.made(view, json))
        });
        made.await.map(Some).map_err(|error| failed(&error))
    }

    /// No list is made while the guard is held.
    #[cfg(test)]
    pub(crate) async fn hold_up(&self) -> OwnedMutexGuard<EventList> {
        Arc::clone(&self.plain.maker).lock_owned().await
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

    /// Whether clients hold too many bytes of old lists to make another one.
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
pub(super) mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, TimeDelta, Utc};
    use futures_util::{FutureExt, future::join_all};
    use oddscache::{SnapshotInput, Writer};

    use super::*;

    /// Publishes a view that is newer than those with smaller numbers.
    pub(crate) fn publish(writer: &mut Writer, number: i64) {
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

    /// One list, even if many views follow each other while it is made.
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
            let busy = lists.hold_up().await;
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
            // Clients that are done make room.
            drop(slow);
            let version = cache.view().version();
            assert!(lists.of(&cache, version, encoding).await.unwrap().is_some());
        }
    }
}
