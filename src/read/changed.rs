//! The rows that a read of changes needs, within its transaction.
//!
//! What few changes need is asked for all at once, as far as the log tells: one round trip instead of six. What the answers
//! show to be missing is asked for after them.
//!
//! | invariant | |
//! |---|---|
//! | G1 | what is asked for too much is not looked at, what was not asked for is asked for: a plan is the same as if each question had waited for the answers before it |
//! | G2 | the kickoff of a held event is still the one held, unless a log row names the event, so it is not asked for |

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::{try_join, try_join3};
use hashbrown::HashMap;
use tokio_postgres::Row;

use crate::{
    error::Error,
    model::{Body, Micros},
    read::{
        change_log::ChangeSet,
        plan::{Plan, Scope},
        rows::{Reader, Side, SnapshotHeaders},
    },
    store::draft::Draft,
};

/// Changes of more keys than this are read step by step, by statements that are planned for them.
const FEW: usize = 400;

/// The greatest ids of snapshots seen: the markets of newer ones belong to snapshots that are about to be held.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Newest {
    pub(crate) betpawa: i64,
    pub(crate) competitors: i64,
}

impl Newest {
    pub(crate) fn note(&mut self, headers: &SnapshotHeaders) {
        let betpawa = headers.betpawa.iter().map(|header| header.snapshot_id);
        self.betpawa = betpawa.fold(self.betpawa, i64::max);
        let competitors = headers.competitors.iter().map(|header| header.snapshot_id);
        self.competitors = competitors.fold(self.competitors, i64::max);
    }
}

/// Whether it is worth asking for all at once.
pub(crate) fn are_few(change_set: &ChangeSet) -> bool {
    let sets = [
        &change_set.events,
        &change_set.betpawa,
        &change_set.competitors,
        &change_set.competitor_events,
        &change_set.betpawa_markets,
        &change_set.competitor_markets,
    ];
    sets.iter().map(|set| set.len()).sum::<usize>() <= FEW
}

/// Reads what `dirty` asks for, all at once where it is little.
pub(crate) async fn changed(
    reader: Reader<'_>,
    draft: &mut Draft,
    change_set: &ChangeSet,
    window_start: Micros,
    newest: &mut Newest,
) -> Result<(Plan, Bodies), Error> {
    let mut asked = match are_few(change_set) {
        true => Asked::at_once(draft, change_set, *newest),
        false => Asked::default(),
    };
    let (linked, mut headers, rows) = asked.ask(reader, change_set, window_start).await?;
    let linked_events: Vec<i64> = linked.iter().map(|(id, _)| *id).collect();
    if asked.with_linked {
        asked.competitors.extend(&linked_events);
    }
    asked.events.extend(&linked_events);
    headers.kickoffs.extend(
        linked
            .into_iter()
            .filter_map(|(id, kickoff)| Some((id, kickoff?))),
    );
    let scope = complete(
        reader,
        draft,
        change_set,
        window_start,
        &asked,
        &linked_events,
        &mut headers,
    );
    let scope = scope.await?;
    newest.note(&headers);
    let plan = Plan::part(draft, change_set, scope, headers);
    let bodies = Bodies::read_on(reader, &plan, draft, &asked, &rows).await?;
    Ok((plan, bodies))
}

/// What the answers show to be missing: kickoffs, then headers of the events that turn out to be within the window (G1).
async fn complete(
    reader: Reader<'_>,
    draft: &Draft,
    change_set: &ChangeSet,
    window_start: Micros,
    asked: &Asked,
    linked_events: &[i64],
    headers: &mut SnapshotHeaders,
) -> Result<Scope, Error> {
    let mut scope = Scope::new(draft, change_set, linked_events);
    let mut events = Vec::new();
    for id in scope.events.difference(&asked.events) {
        match known_kickoff(draft, change_set, *id) {
            Some(kickoff) if kickoff > window_start => drop(headers.kickoffs.insert(*id, kickoff)),
            Some(_) => {}
            None => events.push(*id),
        }
    }
    headers
        .kickoffs
        .extend(reader.kickoffs(window_start, &events).await?);
    scope.narrow(draft, &headers.kickoffs);
    let betpawa: Vec<i64> = scope.betpawa.difference(&asked.betpawa).copied().collect();
    let competitors: Vec<i64> = scope
        .competitors
        .difference(&asked.competitors)
        .copied()
        .collect();
    headers
        .betpawa
        .retain(|header| scope.betpawa.contains(&header.event_id));
    headers
        .competitors
        .retain(|header| scope.competitors.contains(&header.event_id));
    let (own, others) = try_join(
        reader.betpawa_headers(&betpawa),
        reader.competitor_headers(&competitors, &[]),
    )
    .await?;
    headers.betpawa.extend(own);
    headers.competitors.extend(others);
    Ok(scope)
}

/// G2.
fn known_kickoff(draft: &Draft, change_set: &ChangeSet, event_id: i64) -> Option<Micros> {
    match change_set.events.contains(&event_id) {
        true => None,
        false => draft.event(event_id)?.kickoff,
    }
}

/// What is asked for before it is known to be needed.
#[derive(Debug, Default)]
struct Asked {
    events: BTreeSet<i64>,
    betpawa: BTreeSet<i64>,
    competitors: BTreeSet<i64>,
    /// Whether `competitors` stands also for the events that changed competitor events are linked to.
    with_linked: bool,
    betpawa_markets: Vec<i64>,
    competitor_markets: Vec<i64>,
}

/// Ids of the events that competitor events are linked to, with the kickoffs of those in the window.
type Linked = Vec<(i64, Option<Micros>)>;

impl Asked {
    /// Asks, in one round trip. Also for the market rows of snapshots that are or are about to be held.
    async fn ask(
        &self,
        reader: Reader<'_>,
        change_set: &ChangeSet,
        window_start: Micros,
    ) -> Result<(Linked, SnapshotHeaders, (Vec<Row>, Vec<Row>)), Error> {
        let competitor_events: Vec<i64> = change_set.competitor_events.iter().copied().collect();
        let events: Vec<i64> = self.events.iter().copied().collect();
        let betpawa: Vec<i64> = self.betpawa.iter().copied().collect();
        let competitors: Vec<i64> = self.competitors.iter().copied().collect();
        let linked_too: &[i64] = match self.with_linked {
            true => &competitor_events,
            false => &[],
        };
        let (linked, (kickoffs, headers), rows) = try_join3(
            reader.linked_events(window_start, &competitor_events),
            try_join(
                reader.kickoffs(window_start, &events),
                try_join(
                    reader.betpawa_headers(&betpawa),
                    reader.competitor_headers(&competitors, linked_too),
                ),
            ),
            try_join(
                reader.market_rows(Side::Betpawa, &self.betpawa_markets),
                reader.market_rows(Side::Competitors, &self.competitor_markets),
            ),
        )
        .await?;
        let (betpawa, competitors) = headers;
        let headers = SnapshotHeaders {
            kickoffs,
            betpawa,
            competitors,
        };
        Ok((linked, headers, rows))
    }

    fn at_once(draft: &Draft, change_set: &ChangeSet, newest: Newest) -> Asked {
        let Scope {
            events,
            mut betpawa,
            mut competitors,
        } = Scope::new(draft, change_set, &[]);
        let new: Vec<i64> = events
            .iter()
            .copied()
            .filter(|id| draft.event(*id).is_none())
            .collect();
        betpawa.extend(&new);
        competitors.extend(&new);
        let betpawa_markets = change_set.betpawa_markets.iter().copied();
        let competitor_markets = change_set.competitor_markets.iter().copied();
        let unknown = |id: &i64| known_kickoff(draft, change_set, *id).is_none();
        Asked {
            events: events.into_iter().filter(unknown).collect(),
            betpawa,
            competitors,
            with_linked: true,
            betpawa_markets: betpawa_markets
                .filter(|id| *id > newest.betpawa || draft.betpawa_owners(*id).next().is_some())
                .collect(),
            competitor_markets: competitor_markets
                .filter(|id| {
                    *id > newest.competitors || draft.competitor_owners(*id).next().is_some()
                })
                .collect(),
        }
    }
}

/// The bodies that a plan needs.
pub(crate) struct Bodies {
    /// How many snapshots' markets were read for them.
    snapshots_read: usize,
    betpawa: HashMap<i64, Arc<Body>>,
    competitors: HashMap<i64, Arc<Body>>,
}

impl Bodies {
    pub(crate) async fn read(
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
    ) -> Result<Bodies, Error> {
        let none = (Vec::new(), Vec::new());
        Bodies::read_on(reader, plan, draft, &Asked::default(), &none).await
    }

    /// The same with the help of further connections, each of which reads a share of it, and without where one fails or is
    /// silent for longer than `patience`.
    pub(crate) async fn read_with(
        helpers: &[Reader<'_>],
        patience: Duration,
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
    ) -> Result<Bodies, Error> {
        let (betpawa, competitors) = (plan.betpawa_to_read(), plan.competitors_to_read());
        let packer = &mut draft.packer;
        let shared = async {
            Ok::<_, Error>(Bodies {
                snapshots_read: betpawa.len() + competitors.len(),
                betpawa: reader
                    .markets(helpers, patience, Side::Betpawa, &betpawa, packer)
                    .await?,
                competitors: reader
                    .markets(helpers, patience, Side::Competitors, &competitors, packer)
                    .await?,
            })
        };
        match shared.await {
            Err(error) if !helpers.is_empty() => {
                tracing::info!(%error, "a further connection was of no help; reading without");
                Bodies::read(reader, plan, draft).await
            }
            read => read,
        }
    }

    /// The same, where the rows of some are at hand.
    async fn read_on(
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
        asked: &Asked,
        rows: &(Vec<Row>, Vec<Row>),
    ) -> Result<Bodies, Error> {
        let (betpawa, competitors) = (plan.betpawa_to_read(), plan.competitors_to_read());
        let snapshots_read = betpawa.len() + competitors.len();
        let packer = &mut draft.packer;
        let missing = without(betpawa, &asked.betpawa_markets);
        let mut betpawa = reader.pack(Side::Betpawa, &rows.0, packer)?;
        betpawa.extend(
            reader
                .markets(&[], Duration::MAX, Side::Betpawa, &missing, packer)
                .await?,
        );
        let missing = without(competitors, &asked.competitor_markets);
        let mut competitors = reader.pack(Side::Competitors, &rows.1, packer)?;
        competitors.extend(
            reader
                .markets(&[], Duration::MAX, Side::Competitors, &missing, packer)
                .await?,
        );
        Ok(Bodies {
            snapshots_read,
            betpawa,
            competitors,
        })
    }

    /// Returns `snapshots_read`.
    pub(crate) fn apply(self, plan: Plan, draft: &mut Draft) -> usize {
        plan.apply(draft, &self.betpawa, &self.competitors);
        self.snapshots_read
    }
}

/// Those of `ids` that are not in `sorted`.
fn without(mut ids: Vec<i64>, sorted: &[i64]) -> Vec<i64> {
    ids.retain(|id| sorted.binary_search(id).is_err());
    ids
}
