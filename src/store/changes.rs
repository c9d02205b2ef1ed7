//! What a publication changed, and the stream by which subscribers learn of it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures_util::Stream;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    model::{CachedEvent, CachedSnapshot, CompetitorSnapshots, Source},
    store::state::Cut,
};

/// What differs between a published state and the one before it: ids of events, by source. The view has the odds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Which committed state of the database was published.
    pub cut: Arc<Cut>,
    /// The epoch of that state. If it differs from the epoch of the change before, the server may have lost history.
    /// The lists still hold the full difference between the two states.
    pub epoch: u64,
    /// The [`State::version`](crate::store::state::State::version) of that state.
    pub version: u64,
    /// Events whose snapshots of `odds_snapshots` are new, changed or gone. Ascending.
    pub betpawa: Vec<i64>,
    /// Events whose snapshots of `competitor_odds_snapshots` are new, changed or gone, by source. Ascending.
    pub competitors: BTreeMap<Source, Vec<i64>>,
    /// Events whose kickoff moved. Events that are new or gone are only in the other lists. Ascending.
    pub kickoffs: Vec<i64>,
    /// Events whose names changed: their own, or those of their tournament or of a bookmaker. Events that are new or
    /// gone are only in the other lists. Ascending.
    pub names: Vec<i64>,
}

impl Change {
    /// Notes how an event differs. The caller must pass events in ascending order, so that the lists are sorted.
    pub(crate) fn note(
        &mut self,
        event_id: i64,
        before: Option<&CachedEvent>,
        after: Option<&CachedEvent>,
    ) {
        let betpawa_same = match (before, after) {
            (Some(before), Some(after)) => before.betpawa.same(&after.betpawa),
            (one, other) => one.or(other).is_none_or(|event| event.betpawa.is_empty()),
        };
        if !betpawa_same {
            self.betpawa.push(event_id);
        }
        let (old, new) = (before.map(competitors), after.map(competitors));
        let mut differs = |source: &Source| match self.competitors.get_mut(source) {
            Some(ids) => ids.push(event_id),
            None => {
                self.competitors.insert(source.clone(), vec![event_id]);
            }
        };
        // Both sides are ordered by source: walk through them together and compare source by source.
        let (mut old, mut new) = (side(old).peekable(), side(new).peekable());
        while let Some(source) = match (old.peek(), new.peek()) {
            (Some((old, _)), Some((new, _))) => Some((*old).min(*new)),
            (old, new) => old.or(new).map(|(source, _)| *source),
        } {
            let was = old.next_if(|(old, _)| *old == source);
            let is = new.next_if(|(new, _)| *new == source);
            let same = match (was, is) {
                (Some((_, was)), Some((_, is))) => was.difference(is).is_none(),
                _ => false,
            };
            if !same {
                differs(source);
            }
        }
        if let (Some(before), Some(after)) = (before, after)
            && before.kickoff != after.kickoff
        {
            self.kickoffs.push(event_id);
        }
        if let (Some(before), Some(after)) = (before, after)
            && !before.same_names(after)
        {
            self.names.push(event_id);
        }
    }

    /// Whether nothing differs between the two states.
    pub fn is_empty(&self) -> bool {
        self.betpawa.is_empty()
            && self.competitors.is_empty()
            && self.kickoffs.is_empty()
            && self.names.is_empty()
    }

    /// The ids of all events that differ in any way. Ascending. Allocates the list.
    pub fn event_ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self
            .competitors
            .values()
            .chain([&self.betpawa, &self.kickoffs, &self.names])
            .flatten()
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn competitors(event: &CachedEvent) -> &CompetitorSnapshots {
    &event.competitors
}

fn side(side: Option<&CompetitorSnapshots>) -> impl Iterator<Item = (&Source, &CachedSnapshot)> {
    side.into_iter().flat_map(CompetitorSnapshots::iter)
}

/// How many changes are kept for a subscriber that does not take them.
pub(crate) const KEPT: usize = 256;

/// A subscriber took changes too slowly, so the oldest were dropped. Take a new
/// [`OddsCache::view`](crate::cache::OddsCache::view) and continue from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{missed} changes were dropped because they were not taken in time; start again from a new view"
)]
#[non_exhaustive]
pub struct Lagged {
    /// How many changes were dropped.
    pub missed: u64,
}

/// The changes published since the subscription, in order. Every gap is reported as [`Lagged`].
///
/// Take a view *after* subscribing. A change published in between is then in the view and also comes from the stream.
pub struct Changes {
    receiver: broadcast::Receiver<Arc<Change>>,
}

impl Changes {
    pub(crate) fn new(receiver: broadcast::Receiver<Arc<Change>>) -> Changes {
        Changes { receiver }
    }

    /// Waits for the next change. `None` once the follower (or the writer) is gone and all changes were taken. Dropping
    /// the future loses no change.
    ///
    /// At most 256 changes are kept for a subscriber.
    ///
    /// # Errors
    /// [`Lagged`] if more than that were waiting. The next call returns the oldest change that was kept.
    pub async fn next(&mut self) -> Option<Result<Arc<Change>, Lagged>> {
        match self.receiver.recv().await {
            Ok(change) => Some(Ok(change)),
            Err(RecvError::Lagged(missed)) => Some(Err(Lagged { missed })),
            Err(RecvError::Closed) => None,
        }
    }

    /// The same changes as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Arc<Change>, Lagged>> + Send {
        futures_util::stream::unfold(self, |mut changes| async {
            Some((changes.next().await?, changes))
        })
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("waiting", &self.receiver.len())
            .finish()
    }
}
