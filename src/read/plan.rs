//! From what was read to the next draft. Pure: no I/O, no clock, no async.
//!
//! | invariant | |
//! |---|---|
//! | A1 | the body of a held snapshot is kept only if its id is still the latest and no log row names its markets |
//! | A2 | a side (betpawa, competitors) of an event is replaced whole, by what one snapshot of the database says of it |
//! | A3 | an event that was not held is read whole: what it holds now may be older than the cursor |

use std::{collections::BTreeSet, iter::Peekable, sync::Arc, vec};

use hashbrown::HashMap;

use crate::{
    decode::packer::{Bodies, Packer},
    model::{
        BetpawaSnapshots, Body, CachedEvent, CachedSnapshot, CompetitorSnapshots, Micros, Source,
    },
    read::{
        change_log::ChangeSet,
        rows::{SnapshotHeader, SnapshotHeaders},
    },
    store::draft::Draft,
};

/// Which events must be looked at, and which of their sides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) events: BTreeSet<i64>,
    pub(crate) betpawa: BTreeSet<i64>,
    pub(crate) competitors: BTreeSet<i64>,
}

impl Scope {
    /// `linked_events`: those that the changed competitor events are linked to now. What they were linked to before is in
    /// `dirty.competitors`, since a change of the link is a change of the competitor event.
    pub(crate) fn new(draft: &Draft, change_set: &ChangeSet, linked_events: &[i64]) -> Scope {
        // A snapshot that nobody shows is read whole if it becomes the latest, for which its own log row sees.
        let markets = change_set.betpawa_markets.iter();
        let betpawa: BTreeSet<i64> = change_set
            .betpawa
            .iter()
            .copied()
            .chain(markets.flat_map(|id| draft.betpawa_owners(*id)))
            .collect();
        let markets = change_set.competitor_markets.iter();
        let competitors: BTreeSet<i64> = change_set
            .competitors
            .iter()
            .chain(linked_events)
            .copied()
            .chain(markets.flat_map(|id| draft.competitor_owners(*id)))
            .collect();
        let events = change_set
            .events
            .iter()
            .chain(&betpawa)
            .chain(&competitors)
            .copied()
            .collect();
        Scope {
            events,
            betpawa,
            competitors,
        }
    }

    /// Once the kickoffs are known: an event within the window that is not held is read whole (A3), one outside not at all.
    pub(crate) fn narrow(&mut self, draft: &Draft, kickoffs: &HashMap<i64, Micros>) {
        let new = kickoffs
            .keys()
            .copied()
            .filter(|id| draft.event(*id).is_none());
        self.betpawa.extend(new.clone());
        self.competitors.extend(new);
        self.betpawa.retain(|id| kickoffs.contains_key(id));
        self.competitors.retain(|id| kickoffs.contains_key(id));
    }
}

/// A snapshot to be held; its body, if that can be kept.
#[derive(Debug)]
struct Planned<K> {
    header: SnapshotHeader<K>,
    body: Option<Arc<Body>>,
}

/// What will be held, but for the bodies still to be read.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    scope: Scope,
    kickoffs: HashMap<i64, Micros>,
    /// By event; those of one event as they were read.
    betpawa: Vec<Planned<i64>>,
    competitors: Vec<Planned<Source>>,
}

impl Plan {
    /// The plan for a part of the events, beside what `draft` holds.
    pub(crate) fn part(
        draft: &Draft,
        change_set: &ChangeSet,
        scope: Scope,
        headers: SnapshotHeaders,
    ) -> Plan {
        let betpawa =
            |header: &SnapshotHeader<i64>| draft.event(header.event_id)?.betpawa.get(header.key);
        let competitors = |header: &SnapshotHeader<Source>| {
            let event = draft.event(header.event_id)?;
            event.competitors.get(header.key.as_str())
        };
        let betpawa = planned(headers.betpawa, betpawa, &change_set.betpawa_markets);
        let competitors = planned(
            headers.competitors,
            competitors,
            &change_set.competitor_markets,
        );
        Plan {
            scope,
            kickoffs: headers.kickoffs,
            betpawa,
            competitors,
        }
    }

    /// The plan for all events, from nothing.
    pub(crate) fn whole(headers: SnapshotHeaders) -> Plan {
        let all: BTreeSet<i64> = headers.kickoffs.keys().copied().collect();
        let scope = Scope {
            events: all.clone(),
            betpawa: all.clone(),
            competitors: all,
        };
        Plan::part(&Draft::default(), &ChangeSet::default(), scope, headers)
    }

    /// The snapshots of `odds_snapshots` whose markets must be read.
    pub(crate) fn betpawa_to_read(&self) -> Vec<i64> {
        to_read(&self.betpawa)
    }

    /// The snapshots of `competitor_odds_snapshots` whose markets must be read.
    pub(crate) fn competitors_to_read(&self) -> Vec<i64> {
        to_read(&self.competitors)
    }

    /// Makes `draft` what the plan says. The bodies are those read for it; a snapshot without one has no markets.
    pub(crate) fn apply(
        mut self,
        draft: &mut Draft,
        betpawa_bodies: &HashMap<i64, Arc<Body>>,
        competitor_bodies: &HashMap<i64, Arc<Body>>,
    ) {
        // Scope and plans are both by event.
        let mut betpawa_left = std::mem::take(&mut self.betpawa).into_iter().peekable();
        let mut competitors_left = std::mem::take(&mut self.competitors).into_iter().peekable();
        // Used again, for what an event shows is allocated in its size.
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for event_id in std::mem::take(&mut self.scope.events) {
            let Some(kickoff) = self.kickoffs.get(&event_id).copied() else {
                draft.remove(event_id);
                continue;
            };
            let held: Option<Arc<CachedEvent>> = draft.event(event_id).cloned();
            let betpawa = if self.scope.betpawa.contains(&event_id) {
                own.extend(of_event(&mut betpawa_left, event_id).map(|planned| {
                    let bookmaker_id = planned.header.key;
                    planned.snapshot(bookmaker_id, betpawa_bodies, &mut draft.packer)
                }));
                BetpawaSnapshots::of(&mut own)
            } else {
                held.as_ref()
                    .map(|event| event.betpawa.clone())
                    .unwrap_or_default()
            };
            let competitors = if self.scope.competitors.contains(&event_id) {
                others.extend(of_event(&mut competitors_left, event_id).map(|planned| {
                    let source = draft.packer.source(planned.header.key.as_str());
                    let snapshot = planned.snapshot(0, competitor_bodies, &mut draft.packer);
                    (source, snapshot)
                }));
                CompetitorSnapshots::of(&mut others)
            } else {
                held.as_ref()
                    .map(|event| event.competitors.clone())
                    .unwrap_or_default()
            };
            draft.set(event_id, Some(kickoff), betpawa, competitors);
        }
    }
}

/// The heads by event, each with its body if A1 lets it keep that.
fn planned<'d, K>(
    headers: Vec<SnapshotHeader<K>>,
    held: impl Fn(&SnapshotHeader<K>) -> Option<&'d CachedSnapshot>,
    dirty_markets: &BTreeSet<i64>,
) -> Vec<Planned<K>> {
    let plan = |header: SnapshotHeader<K>| {
        let id = header.snapshot_id;
        let keeps = |held: &&CachedSnapshot| held.snapshot_id == id && !dirty_markets.contains(&id);
        let body = held(&header)
            .filter(keeps)
            .map(|held| Arc::clone(&held.body));
        Planned { header, body }
    };
    let mut planned: Vec<Planned<K>> = headers.into_iter().map(plan).collect();
    planned.sort_by_key(|planned| planned.header.event_id);
    planned
}

/// What was planned for an event, where all those before it were asked for.
fn of_event<K>(
    planned: &mut Peekable<vec::IntoIter<Planned<K>>>,
    event_id: i64,
) -> impl Iterator<Item = Planned<K>> {
    while planned
        .next_if(|next| next.header.event_id < event_id)
        .is_some()
    {}
    std::iter::from_fn(move || planned.next_if(|next| next.header.event_id == event_id))
}

fn to_read<K>(planned: &[Planned<K>]) -> Vec<i64> {
    let missing = planned.iter().filter(|planned| planned.body.is_none());
    let mut ids: Vec<i64> = missing.map(|planned| planned.header.snapshot_id).collect();
    ids.sort_unstable();
    ids
}

impl<K> Planned<K> {
    fn snapshot(
        self,
        bookmaker_id: i64,
        bodies: &HashMap<i64, Arc<Body>>,
        packer: &mut Packer,
    ) -> CachedSnapshot {
        let SnapshotHeader {
            event_id,
            snapshot_id,
            captured_at,
            last_confirmed_at,
            ..
        } = self.header;
        let body = self
            .body
            .or_else(|| bodies.get(&snapshot_id).cloned())
            .unwrap_or_else(|| Bodies::empty(packer));
        let last_confirmed_at = last_confirmed_at.unwrap_or(captured_at);
        CachedSnapshot {
            snapshot_id,
            event_id,
            bookmaker_id,
            captured_at,
            last_confirmed_at,
            body,
        }
    }
}
