//! What a publication changed, and the stream that tells subscribers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures_util::Stream;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    model::{CachedEvent, CachedSnapshot, CompetitorSnapshots, Source},
    store::state::Cut,
};

/// What differs between a published state and the one before it: ids of events, per source. The odds themselves are in
/// the view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The committed state of the database that was published.
    pub cut: Arc<Cut>,
    /// The epoch of that state. Where it differs from the last change's, history may have been lost: the lists are still
    /// the whole difference between the two states.
    pub epoch: u64,
    /// The [`State::version`](crate::store::state::State::version) of that state.
    pub version: u64,
    /// Events whose snapshots of `odds_snapshots` are not what they were: new, changed, or gone. Ascending.
    pub betpawa: Vec<i64>,
    /// The same for `competitor_odds_snapshots`, by source. Ascending.
    pub competitors: BTreeMap<Source, Vec<i64>>,
    /// Events whose kickoff moved; those that came or went with all they have are only in the other lists. Ascending.
    pub kickoffs: Vec<i64>,
}

impl Change {
    /// Notes in what an event differs; the events must come in ascending order.
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
        // Both are by source.
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
    }

    /// Whether both states hold the same.
    pub fn is_empty(&self) -> bool {
        self.betpawa.is_empty() && self.competitors.is_empty() && self.kickoffs.is_empty()
    }

    /// The events that differ in anything. Ascending; allocates the list.
    pub fn event_ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self
            .competitors
            .values()
            .chain([&self.betpawa, &self.kickoffs])
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

/// This many changes are kept for a subscriber that does not take them.
pub(crate) const KEPT: usize = 256;

/// A subscriber did not take changes as fast as they came, and the oldest were dropped: take a new
/// [`OddsCache::view`](crate::cache::OddsCache::view) and go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{missed} changes were dropped since they were not taken in time; start again from a new view"
)]
#[non_exhaustive]
pub struct Lagged {
    /// How many changes are missing here.
    pub missed: u64,
}

/// The changes published since it was made, in order, without a gap that it does not tell of.
///
/// Take a view *after* subscribing: what was published in between is in the view and comes as a change as well.
pub struct Changes {
    receiver: broadcast::Receiver<Arc<Change>>,
}

impl Changes {
    pub(crate) fn new(receiver: broadcast::Receiver<Arc<Change>>) -> Changes {
        Changes { receiver }
    }

    /// Waits for the next change. `None` once the follower (or the writer) is gone and all changes were taken. At most 256
    /// are kept for a subscriber; one that lags further behind gets [`Lagged`] in place of those it missed, then the
    /// oldest that is kept. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Arc<Change>, Lagged>> {
        match self.receiver.recv().await {
            Ok(change) => Some(Ok(change)),
            Err(RecvError::Lagged(missed)) => Some(Err(Lagged { missed })),
            Err(RecvError::Closed) => None,
        }
    }

    /// The same as a [`Stream`].
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
