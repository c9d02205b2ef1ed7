//! The kinds of change that the application makes, each as the statements of one transaction.
//!
//! The scraper decides how the transaction ends (commit or rollback) and how long it stays open.

use fastrand::Rng;
use tokio_postgres::{Error, Transaction};

use super::{
    effect::{Effect, Target},
    partitions,
    scrape::{self, Side},
};

/// A kind of change. Each was seen to break a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Kind {
    /// Some events' odds moved: a new snapshot each, with all its markets.
    Scrape,
    CompetitorScrape,
    /// No odds moved: `last_confirmed_at` of a list of snapshots is set.
    Confirm,
    CompetitorConfirm,
    /// Superseded markets and old snapshots are deleted.
    Retention,
    KickoffMoved,
    /// Postponed or abandoned: the kickoff is set far into the past.
    KickoffLeftWindow,
    KickoffReturned,
    EventAdded,
    /// A competitor's event is linked to another of our events, or to none.
    CompetitorRelinked,
    CompetitorDeleted,
    CompetitorRestored,
    /// The newest snapshot is deleted with its markets, so the one before is the latest again.
    NewestDeleted,
    CompetitorNewestDeleted,
    /// A market arrives in a later transaction than its snapshot.
    LateMarket,
    MarketsUnavailable,
    MarketsAvailable,
    OutcomesUpdated,
    /// Rows are written straight into a partition.
    LeafWritten,
    PartitionAttached,
    PartitionDropped,
    LeafTruncated,
    /// Work that is rolled back.
    RolledBack,
    /// Work of which a part is rolled back to a savepoint.
    Savepoint,
    /// A transaction that starts now and commits much later.
    LongTransaction,
}

use Kind::*;

impl Kind {
    /// All kinds, with how often each happens in a cycle besides the scraping itself.
    pub(crate) const RATES: [(Kind, f64); 25] = [
        (Scrape, 0.0),
        (CompetitorScrape, 0.0),
        (Confirm, 1.0),
        (CompetitorConfirm, 1.0),
        (Retention, 0.0),
        (KickoffMoved, 2.0),
        (KickoffLeftWindow, 0.3),
        (KickoffReturned, 0.3),
        (EventAdded, 0.3),
        (CompetitorRelinked, 1.0),
        (CompetitorDeleted, 0.5),
        (CompetitorRestored, 0.5),
        (NewestDeleted, 1.0),
        (CompetitorNewestDeleted, 1.0),
        (LateMarket, 3.0),
        (MarketsUnavailable, 3.0),
        (MarketsAvailable, 3.0),
        (OutcomesUpdated, 3.0),
        (LeafWritten, 1.0),
        (PartitionAttached, 0.6),
        (PartitionDropped, 0.3),
        (LeafTruncated, 0.3),
        (RolledBack, 1.0),
        (Savepoint, 1.0),
        (LongTransaction, 1.0),
    ];

    /// Its place in [`Kind::RATES`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Whether it takes locks on a whole table; those are done one at a time.
    pub(crate) fn is_ddl(self) -> bool {
        matches!(self, PartitionAttached | PartitionDropped | LeafTruncated)
    }
}

/// Events in the cache's window, as the application sees it.
const IN_WINDOW: &str = "kickoff > now() at time zone 'UTC' - interval '2 hours'";

/// Carries out one change. The server's `random()` was seeded for this transaction.
pub(crate) async fn apply(
    kind: Kind,
    tx: &Transaction<'_>,
    target: Target,
    rng: &mut Rng,
) -> Result<Effect, Error> {
    match kind {
        Scrape | LongTransaction => scrape::scrape(tx, Side::Own, target, rng).await,
        CompetitorScrape => scrape::scrape(tx, Side::Competitor, target, rng).await,
        Confirm => scrape::confirm(tx, Side::Own, target).await,
        CompetitorConfirm => scrape::confirm(tx, Side::Competitor, target).await,
        Retention => scrape::retention(tx).await,
        EventAdded => scrape::add_event(tx, rng).await,
        RolledBack => {
            let done = scrape::scrape(tx, Side::Own, target, rng).await?;
            Ok(done
                .and(simple(tx, CompetitorRelinked).await?)
                .and(simple(tx, OutcomesUpdated).await?))
        }
        Savepoint => {
            tx.batch_execute("savepoint kept").await?;
            let done = simple(tx, KickoffMoved).await?;
            tx.batch_execute("savepoint undone").await?;
            scrape::scrape(tx, Side::Own, target, rng).await?;
            simple(tx, NewestDeleted).await?;
            tx.batch_execute("rollback to savepoint undone; release savepoint kept")
                .await?;
            Ok(done.and(simple(tx, OutcomesUpdated).await?))
        }
        LeafWritten => partitions::write_leaf(tx, rng).await,
        PartitionAttached => partitions::attach(tx, rng).await,
        PartitionDropped => partitions::drop_old(tx).await,
        LeafTruncated => partitions::truncate_old(tx).await,
        _ => simple(tx, kind).await,
    }
}

/// The kinds that are one statement. Random choices are scalar sub-selects or materialized, so that they are made once.
// Longer than others: a table of statements, which reads best in one piece.
async fn simple(tx: &Transaction<'_>, kind: Kind) -> Result<Effect, Error> {
    let event = format!("(select id from events where {IN_WINDOW} order by random() limit 1)");
    let newest = format!("(select max(id) from odds_snapshots where event_id = {event})");
    let competitor_event = |which: &str| {
        format!(
            "(select id from competitor_events where {IN_WINDOW} and {which} order by random() limit 1)"
        )
    };
    let statement = match kind {
        KickoffMoved => format!(
            "update events set kickoff = kickoff + interval '5 minutes' * (1 + floor(random() * 36)) where id = {event}"
        ),
        KickoffLeftWindow => format!(
            "update events set kickoff = now() at time zone 'UTC' - interval '3 hours' - interval '3 days' * random()
             where id = {event}"
        ),
        KickoffReturned => "
            update events set kickoff = date_trunc('minute', now() at time zone 'UTC') + interval '3 days' * random()
            where id = (select id from events
                        where kickoff < now() at time zone 'UTC' - interval '2 hours'
                          and kickoff > now() at time zone 'UTC' - interval '8 days'
                        order by random() limit 1)"
            .to_owned(),
        CompetitorRelinked => format!(
            "update competitor_events
             set betpawa_event_id = case when random() < 0.2 and betpawa_event_id is not null then null else {event} end
             where id = {}",
            competitor_event("true")
        ),
        CompetitorDeleted => format!(
            "update competitor_events set deleted_at = now() at time zone 'UTC' where id = {}",
            competitor_event("deleted_at is null")
        ),
        CompetitorRestored => format!(
            "update competitor_events set deleted_at = null where id = {}",
            competitor_event("deleted_at is not null")
        ),
        NewestDeleted => format!(
            "with doomed as materialized (select {newest} as id),
                  markets as (delete from market_odds where snapshot_id in (select id from doomed))
             delete from odds_snapshots where id in (select id from doomed)"
        ),
        // The foreign key deletes its markets.
        CompetitorNewestDeleted => format!(
            "delete from competitor_odds_snapshots
             where id = (select max(id) from competitor_odds_snapshots where competitor_event_id = {})",
            competitor_event("deleted_at is null")
        ),
        LateMarket => format!(
            "with newest as materialized (select {newest} as id)
             insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes, market_groups)
             select id, '29' || lpad(floor(random() * 1000000)::text, 6, '0'), 'Player ' || floor(random() * 1000) || ' To Assist',
                    jsonb_build_array(
                        jsonb_build_object('name', 'Yes', 'odds', round((1.5 + random() * 8)::numeric, 2), 'is_active', true),
                        jsonb_build_object('name', 'No', 'odds', round((1.05 + random())::numeric, 2), 'is_active', true)),
                    '[\"Players\"]'
             from newest
             where id is not null"
        ),
        MarketsUnavailable => format!(
            "update market_odds set unavailable_at = now() at time zone 'UTC'
             where snapshot_id = {newest} and unavailable_at is null and random() < 0.3"
        ),
        MarketsAvailable => format!(
            "with newest as materialized (
                 select max(id) as id from odds_snapshots
                 where event_id in (select id from events where {IN_WINDOW} order by random() limit 20)
                 group by event_id)
             update market_odds set unavailable_at = null
             where snapshot_id in (select id from newest) and unavailable_at is not null"
        ),
        OutcomesUpdated => format!(
            "update market_odds
             set outcomes = jsonb_set(outcomes, '{{0,odds}}', to_jsonb(round((1.01 + random() * 9)::numeric, 2)))
             where snapshot_id = {newest} and jsonb_typeof(outcomes) = 'array' and random() < 0.2"
        ),
        _ => return Ok(Effect::default()),
    };
    let rows = tx.execute(&statement, &[]).await?;
    Ok(Effect {
        rows,
        markets: if kind == LateMarket { rows } else { 0 },
        ..Effect::default()
    })
}
