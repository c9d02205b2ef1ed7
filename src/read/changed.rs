//! Reads the rows that a read of changes needs, within its transaction.
//!
//! Step by step this would take six round trips, because each answer says what to read next: linked events, kickoffs,
//! headers of the events in the window, markets of the new snapshots. So if there are few changes, it guesses from the
//! log what will be needed, and requests all of that in one round trip. A second round reads what the guess left out.
//!
//! # Invariants
//! - G1: Extra rows are ignored; missing rows are fetched in a second query. The plan is the same as if each query had
//!   waited for the answers before it.
//! - G2: The kickoff and the names of a held event are still those held, unless a log row names the event. So they are
//!   not read again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hashbrown::HashMap;
use tokio_postgres::Row;

use crate::{
    config::Config,
    error::Error,
    model::{Micros, PackedMarkets},
    postgres::{
        connection::Connection,
        pipeline::{all_three, both},
    },
    read::{
        change_log::ChangeSet,
        keys::Keys,
        parallel,
        plan::{Plan, Scope},
        rows::{EventRow, Reader, Side, SnapshotHeaders, note_kickoff},
        source::Source,
        transaction::ReadStart,
        unreadable::Search,
    },
    store::draft::Draft,
};

/// Changes of more keys than this are read step by step. A guess would read too many extra rows, and statements that
/// are planned for the actual keys pay off.
const MOST_KEYS_AT_ONCE: usize = 400;

/// From this many snapshots on, their markets are read on several connections.
pub(crate) const WORTH_HELPERS: usize = 1_000;

/// The greatest snapshot ids read so far. A market row of a greater id belongs to a new snapshot, which will be needed.
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

/// Whether there are so few keys that all rows are requested at once.
pub(crate) fn are_few(change_set: &ChangeSet) -> bool {
    change_set.named() <= MOST_KEYS_AT_ONCE && change_set.coarse().next().is_none()
}

/// Reads the rows of `change_set`, and plans what becomes of them.
pub(crate) async fn changed(
    reader: Reader<'_>,
    draft: &mut Draft,
    change_set: &ChangeSet,
    start: &ReadStart,
    newest: &mut Newest,
    source: Source<'_>,
) -> Result<(Plan, PlanMarkets), Error> {
    let window_start = start.window_start;
    // First round: the guess. An empty request still reads the linked events, because the log does not name them.
    let mut request = match are_few(change_set) && reader.search.is_none() {
        true => Request::at_once(draft, change_set, *newest),
        false => Request::default(),
    };
    let (linked, mut headers, rows) = request.send(reader, change_set, window_start).await?;
    // The answers cover the linked events too, so note them as requested.
    let linked_events: Vec<i64> = linked.iter().map(|(id, _)| *id).collect();
    if request.with_linked {
        request.competitors.extend(&linked_events);
    }
    request.events.extend(&linked_events);
    for (event_id, kickoff) in linked {
        if let Some(kickoff) = kickoff {
            note_kickoff(&mut headers.kickoffs, event_id, kickoff);
        }
    }
    // Second round: what the guess left out. Then the plan, and the markets that it still lacks.
    let scope = complete(
        reader,
        draft,
        change_set,
        window_start,
        &request,
        &linked_events,
        &mut headers,
    );
    let scope = Box::pin(scope).await?;
    newest.note(&headers);
    let kept = |search: &Search| (search.kept(), search.doubtful());
    let kept = reader.search.map(kept).unwrap_or_default();
    let plan = Plan::part(draft, change_set, scope, headers, kept);
    let packed_markets = match plan.snapshots_to_read() >= WORTH_HELPERS && reader.search.is_none()
    {
        true => {
            let read = PlanMarkets::read_with_helpers(source, start, reader, &plan, draft);
            Box::pin(read).await
        }
        false => PlanMarkets::read_missing(reader, &plan, draft, &request, &rows).await,
    };
    Ok((plan, packed_markets?))
}

/// Reads the rows that the first round left out, and drops the extra ones (G1). Returns the events that the plan
/// changes.
async fn complete(
    reader: Reader<'_>,
    draft: &Draft,
    change_set: &ChangeSet,
    window_start: Micros,
    request: &Request,
    linked_events: &[i64],
    headers: &mut SnapshotHeaders,
) -> Result<Scope, Error> {
    let mut scope = Scope::new(draft, change_set, linked_events);
    // The kickoffs decide which events are in the window. Those of held events are known (G2).
    if change_set.has_all_headers() {
        let window = reader.all_kickoffs(window_start).await?;
        scope.widen(draft, change_set, &window);
        let events = window.into_iter();
        let events = events.filter(|(id, _)| scope.events.contains(id));
        headers.kickoffs.extend(events);
    } else {
        let mut events = Vec::new();
        for id in scope.events.difference(&request.events) {
            match known_kickoff(draft, change_set, *id) {
                Some(known) if known.kickoff > window_start => {
                    headers.kickoffs.insert(*id, known);
                }
                Some(_) => {}
                None => events.push(*id),
            }
        }
        headers
            .kickoffs
            .extend(reader.kickoffs(window_start, &events).await?);
    }
    // Now the window is known: which headers are missing, and which are extra?
    scope.narrow(draft, &headers.kickoffs);
    let missing = scope.betpawa.difference(&request.betpawa);
    let betpawa: Vec<i64> = missing.copied().collect();
    let missing = scope.competitors.difference(&request.competitors);
    let competitors: Vec<i64> = missing.copied().collect();
    // For all events other statements are faster. Those cannot be halved.
    let is_whole = |keys: &Keys| keys.is_all() && reader.search.is_none();
    let own = async {
        match is_whole(&change_set.betpawa) {
            true => reader.all_betpawa_headers(window_start).await,
            false => reader.betpawa_headers(&betpawa).await,
        }
    };
    let is_whole = is_whole(&change_set.competitors) || is_whole(&change_set.competitor_events);
    let others = async {
        match is_whole {
            true => reader.all_competitor_headers(window_start).await,
            false => reader.competitor_headers(&competitors, &[]).await,
        }
    };
    let (own, others) = match reader.search {
        // Two searches at once would roll back each other's savepoints.
        Some(_) => (own.await?, others.await?),
        None => both(own, others).await?,
    };
    headers.betpawa.extend(own);
    headers.competitors.extend(others);
    headers
        .betpawa
        .retain(|header| scope.betpawa.contains(&header.event_id));
    headers
        .competitors
        .retain(|header| scope.competitors.contains(&header.event_id));
    Ok(scope)
}

/// The kickoff and names of a held event that no log row names (G2).
fn known_kickoff(draft: &Draft, change_set: &ChangeSet, event_id: i64) -> Option<EventRow> {
    match change_set.events.contains(event_id) {
        true => None,
        false => EventRow::held(draft.event(event_id)?),
    }
}

/// What the first round reads, before it is known what is needed.
#[derive(Debug, Default)]
struct Request {
    /// Events whose kickoffs are read.
    events: BTreeSet<i64>,
    /// Events whose snapshots in `odds_snapshots` are read.
    betpawa: BTreeSet<i64>,
    /// Events whose snapshots in `competitor_odds_snapshots` are read.
    competitors: BTreeSet<i64>,
    /// Whether to read also the snapshots of the events to which changed competitor events are linked.
    with_linked: bool,
    /// Snapshots whose rows in `market_odds` are read; ascending.
    betpawa_markets: Vec<i64>,
    /// Snapshots whose rows in `competitor_market_odds` are read; ascending.
    competitor_markets: Vec<i64>,
}

/// Ids of the events to which competitor events are linked, with the kickoffs and names of those in the window.
type Linked = Vec<(i64, Option<EventRow>)>;

impl Request {
    /// Reads all of it in one round trip. Returns the linked events, the headers, and the market rows of both sides.
    async fn send(
        &self,
        reader: Reader<'_>,
        change_set: &ChangeSet,
        window_start: Micros,
    ) -> Result<(Linked, SnapshotHeaders, (Vec<Row>, Vec<Row>)), Error> {
        let competitor_events = change_set.competitor_events.named().iter();
        let competitor_events: Vec<i64> = competitor_events.copied().collect();
        let events: Vec<i64> = self.events.iter().copied().collect();
        let betpawa: Vec<i64> = self.betpawa.iter().copied().collect();
        let competitors: Vec<i64> = self.competitors.iter().copied().collect();
        let linked_too: &[i64] = match self.with_linked {
            true => &competitor_events,
            false => &[],
        };
        // All queries are sent before the first answer is awaited.
        let (linked, (kickoffs, headers), rows) = all_three(
            reader.linked_events(window_start, &competitor_events),
            both(
                reader.kickoffs(window_start, &events),
                both(
                    reader.betpawa_headers(&betpawa),
                    reader.competitor_headers(&competitors, linked_too),
                ),
            ),
            both(
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

    /// The guess: all rows that the change set may need, as far as the log and the draft tell.
    fn at_once(draft: &Draft, change_set: &ChangeSet, newest: Newest) -> Request {
        let Scope {
            events,
            mut betpawa,
            mut competitors,
        } = Scope::new(draft, change_set, &[]);
        // An event that is not held must be read whole if it is in the window (A3 of `plan`).
        let new: Vec<i64> = events
            .iter()
            .copied()
            .filter(|id| draft.event(*id).is_none())
            .collect();
        betpawa.extend(&new);
        competitors.extend(&new);
        let betpawa_markets = change_set.betpawa_markets.named().iter().copied();
        let competitor_markets = change_set.competitor_markets.named().iter().copied();
        let unknown = |id: &i64| known_kickoff(draft, change_set, *id).is_none();
        // Of the snapshots with changed markets, only the new ones and those that the draft holds are needed.
        Request {
            events: events.into_iter().filter(unknown).collect(),
            betpawa,
            competitors,
            with_linked: true,
            betpawa_markets: betpawa_markets
                .filter(|id| {
                    *id > newest.betpawa || draft.events_of_betpawa_snapshot(*id).next().is_some()
                })
                .collect(),
            competitor_markets: competitor_markets
                .filter(|id| {
                    *id > newest.competitors
                        || draft.events_of_competitor_snapshot(*id).next().is_some()
                })
                .collect(),
        }
    }
}

/// The packed markets that a plan needs, by snapshot id.
pub(crate) struct PlanMarkets {
    /// The number of snapshots whose markets were read.
    snapshots_read: usize,
    betpawa: HashMap<i64, Arc<PackedMarkets>>,
    competitors: HashMap<i64, Arc<PackedMarkets>>,
}

impl PlanMarkets {
    /// Reads the markets of all snapshots of the plan, on one connection.
    pub(crate) async fn read(
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
    ) -> Result<PlanMarkets, Error> {
        let none = (Vec::new(), Vec::new());
        PlanMarkets::read_missing(reader, plan, draft, &Request::default(), &none).await
    }

    /// Opens helpers, and reads the same with them.
    async fn read_with_helpers(
        source: Source<'_>,
        start: &ReadStart,
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
    ) -> Result<PlanMarkets, Error> {
        let Source {
            client,
            config,
            names,
        } = source;
        let exported = parallel::export(client, config, start).await?;
        let helpers = parallel::open(config, names, start, exported.as_deref()).await;
        PlanMarkets::read_with(&helpers, config, reader, plan, draft).await
    }

    /// Reads the same on several connections, each of which reads a share. If one of them fails or falls silent,
    /// `reader` starts again and reads everything alone (E2 of [`crate::read::parallel`]).
    pub(crate) async fn read_with(
        helpers: &[Connection],
        config: &Config,
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
    ) -> Result<PlanMarkets, Error> {
        let helpers: Vec<Reader<'_>> = helpers
            .iter()
            .map(|helper| Reader {
                client: &helper.client,
                ..reader
            })
            .collect();
        // Half of the read time-out: this connection may be idle in its transaction meanwhile, which the server allows
        // only for that time-out.
        let silence = config.read_timeout / 2;
        let (betpawa, competitors) = (plan.betpawa_to_read(), plan.competitors_to_read());
        reader.expect(betpawa.len() + competitors.len());
        let shared = async {
            Ok::<_, Error>(PlanMarkets {
                snapshots_read: betpawa.len() + competitors.len(),
                betpawa: reader
                    .markets(&helpers, silence, Side::Betpawa, &betpawa, draft)
                    .await?,
                competitors: reader
                    .markets(&helpers, silence, Side::Competitors, &competitors, draft)
                    .await?,
            })
        };
        match shared.await {
            // This connection's transaction may be aborted. And without helpers it would meet the same row.
            Err(error) if helpers.is_empty() || matches!(error, Error::UnreadableRow { .. }) => {
                Err(error)
            }
            Err(error) => {
                tracing::warn!(%error, "reading on several connections failed; reading on one");
                reader.expect(betpawa.len() + competitors.len());
                match PlanMarkets::read(reader, plan, draft).await {
                    // This connection's own statement had failed first, so that error is the cause.
                    Err(consequence) if consequence.is_consequence() => Err(error),
                    read => read,
                }
            }
            Ok(read) => Ok(read),
        }
    }

    /// Packs the market `rows` of the first round, and reads the other markets that the plan needs. No snapshot is in
    /// both.
    async fn read_missing(
        reader: Reader<'_>,
        plan: &Plan,
        draft: &mut Draft,
        request: &Request,
        rows: &(Vec<Row>, Vec<Row>),
    ) -> Result<PlanMarkets, Error> {
        let (betpawa, competitors) = (plan.betpawa_to_read(), plan.competitors_to_read());
        let snapshots_read = betpawa.len() + competitors.len();
        // The first round read all markets of the snapshots that it requested, so `extend` replaces none of them.
        let missing = without(betpawa, &request.betpawa_markets);
        let mut betpawa = reader.pack(Side::Betpawa, &rows.0, draft)?;
        betpawa.extend(
            reader
                .markets(&[], Duration::MAX, Side::Betpawa, &missing, draft)
                .await?,
        );
        let missing = without(competitors, &request.competitor_markets);
        let mut competitors = reader.pack(Side::Competitors, &rows.1, draft)?;
        competitors.extend(
            reader
                .markets(&[], Duration::MAX, Side::Competitors, &missing, draft)
                .await?,
        );
        Ok(PlanMarkets {
            snapshots_read,
            betpawa,
            competitors,
        })
    }

    /// Applies the plan to `draft`. Returns how many snapshots' markets were read for it.
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
