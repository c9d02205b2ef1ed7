//! Selects the events of an answer, in the order of the list: by kickoff, then id.

use std::sync::{Arc, Mutex, PoisonError};

use oddscache::View;

use super::query::{Only, Place, Range};

/// The events of an answer, and where the next page begins.
#[derive(Debug, PartialEq)]
pub(crate) struct Selection {
    pub(crate) ids: Vec<i64>,
    /// The place of the last event, if there are more.
    pub(crate) next: Option<Place>,
}

/// The events of the newest view in order. Sorting them for each page would cost more than the page.
#[derive(Debug, Default)]
pub(crate) struct Order(Mutex<Option<(u64, Arc<[Place]>)>>);

impl Order {
    /// All places of a view. Sorts them once for each newer version.
    fn of(&self, view: &View) -> Arc<[Place]> {
        let known = |held: &Option<(u64, Arc<[Place]>)>| held.clone();
        let last = known(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some((version, places)) = &last
            && *version == view.version()
        {
            return Arc::clone(places);
        }
        // Without the lock: several requests may sort the same view, but none waits.
        let mut places: Vec<Place> = view
            .events()
            .map(|event| (event.kickoff(), event.event_id()))
            .collect();
        places.sort_unstable();
        let places: Arc<[Place]> = places.into();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known(&held).is_none_or(|(version, _)| version < view.version()) {
            *held = Some((view.version(), Arc::clone(&places)));
        }
        places
    }

    /// The events of `view` that are within `range` and have a snapshot that is wanted.
    pub(crate) fn select(&self, view: &View, range: &Range, only: Option<&Only>) -> Selection {
        let places = match &range.ids {
            None => self.of(view),
            Some(ids) => {
                let held = ids.iter().filter_map(|id| view.event(*id));
                let mut places: Vec<Place> = held
                    .map(|event| (event.kickoff(), event.event_id()))
                    .collect();
                places.sort_unstable();
                places.into()
            }
        };
        let begin = places.partition_point(|place| {
            range.after.is_some_and(|after| *place <= after)
                || range.from.is_some_and(|from| place.0 < Some(from))
        });
        let limit = range.limit.unwrap_or(usize::MAX);
        let mut ids = Vec::with_capacity(limit.min(places.len() - begin));
        let mut last = None;
        for place in &places[begin..] {
            let (kickoff, event_id) = *place;
            if range.to.is_some_and(|to| kickoff >= Some(to)) {
                break;
            }
            // An event without a kickoff is not before any time.
            if range.to.is_some() && kickoff.is_none() {
                continue;
            }
            let is_in = |only: &Only| view.event(event_id).is_some_and(|event| only.is_in(event));
            if only.is_none_or(is_in) {
                if ids.len() == limit {
                    return Selection { ids, next: last };
                }
                ids.push(event_id);
                last = Some(*place);
            }
        }
        Selection { ids, next: None }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use chrono::{DateTime, TimeDelta, Utc};
    use oddscache::{OddsCache, SnapshotInput};
    use proptest::prelude::*;

    use super::{Only, Order, Place, View};
    use crate::server::http::api::query::Range as Requested;

    fn time(hour: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hour)
    }

    fn view(events: &[(i64, Option<i64>, bool)]) -> View {
        let (cache, mut writer) = OddsCache::detached();
        for (event_id, kickoff, own) in events {
            let kickoff = kickoff.map(time);
            let snapshot = SnapshotInput {
                snapshot_id: 1,
                event_id: *event_id,
                bookmaker_id: i64::from(*own),
                captured_at: time(0),
                last_confirmed_at: None,
                markets: vec![],
            };
            match own {
                true => writer.put_betpawa_snapshot(&snapshot, kickoff),
                false => writer.put_competitor_snapshot("bet9ja", &snapshot, kickoff),
            }
        }
        writer.publish();
        cache.view()
    }

    fn only() -> impl Strategy<Value = Option<Only>> {
        prop_oneof![
            Just(None),
            Just(Some(Only::bookmaker(1))),
            Just(Some(Only::bookmaker(2))),
            Just(Some(Only::source("betpawa"))),
            Just(Some(Only::source("bet9ja"))),
        ]
    }

    /// Ids, kickoffs and whether the snapshot is of `odds_snapshots`.
    fn events(
        ids: Range<i64>,
        count: Range<usize>,
    ) -> impl Strategy<Value = Vec<(i64, Option<i64>, bool)>> {
        let kickoff = proptest::option::weighted(0.9, 0..6i64);
        proptest::collection::vec((ids, kickoff, any::<bool>()), count)
    }

    proptest! {
        /// The pages, whatever their size, make up the list that a filter over all events gives. Events that come
        /// between two pages do not change that.
        #[test]
        fn pages_are_the_list_in_pieces(
            events in events(0..20, 0..30),
            ids in proptest::option::weighted(0.3, proptest::collection::btree_set(0..25i64, 0..12)),
            from in proptest::option::of(0..6i64),
            to in proptest::option::of(0..6i64),
            only in only(),
            limit in 1..7usize,
            other in events(20..40, 0..9),
        ) {
            let view_before = view(&events);
            let both: Vec<_> = events.iter().chain(&other).copied().collect();
            let view_after = view(&both);
            let wanted = |view: &View| -> Vec<Place> {
                let mut wanted: Vec<Place> = view
                    .events()
                    .filter(|event| {
                        ids.as_ref().is_none_or(|ids| ids.contains(&event.event_id()))
                            && from.is_none_or(|from| event.kickoff() >= Some(time(from)))
                            && to.is_none_or(|to| event.kickoff().is_some_and(|kickoff| kickoff < time(to)))
                            && only.as_ref().is_none_or(|only| only.is_in(event))
                    })
                    .map(|event| (event.kickoff(), event.event_id()))
                    .collect();
                wanted.sort();
                wanted
            };
            let order = Order::default();
            let mut range = Requested {
                ids: ids.clone().map(|ids| ids.into_iter().collect()),
                from: from.map(time),
                to: to.map(time),
                ..Requested::default()
            };
            let whole = order.select(&view_before, &range, only.as_ref());
            let expected: Vec<i64> = wanted(&view_before).iter().map(|place| place.1).collect();
            prop_assert_eq!(&whole.ids, &expected);
            prop_assert_eq!(whole.next, None);

            range.limit = Some(limit);
            let mut paged: Vec<i64> = Vec::new();
            loop {
                let page = order.select(&view_before, &range, only.as_ref());
                prop_assert!(page.ids.len() <= limit && (page.next.is_none() || page.ids.len() == limit));
                paged.extend(&page.ids);
                // An event that was there all the time comes exactly once. A new event comes if its place is after
                // the page's end.
                if let Some(next) = page.next {
                    range.after = Some(next);
                    let ahead = Requested { limit: None, ids: range.ids.clone(), ..range };
                    let rest = Order::default().select(&view_after, &ahead, only.as_ref());
                    let expected: Vec<i64> =
                        wanted(&view_after).iter().filter(|place| **place > next).map(|place| place.1).collect();
                    prop_assert_eq!(&rest.ids, &expected);
                } else {
                    break;
                }
            }
            prop_assert_eq!(paged, expected);
        }
    }
}
