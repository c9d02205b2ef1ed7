//! The incident in which one transaction changes every event. Readers see all of it or nothing.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::{Context, anyhow, ensure};
use indicatif::HumanCount;
use oddscache::{CachedEvent, Change, Changes, View};
use tokio::time::timeout;
use tokio_postgres::Transaction;

use super::{
    incident::{BACK_WITHIN, Stage},
    observer::say,
    scraper::{
        changes::{self, Kind},
        effect::{Effect, Target},
    },
};

impl Stage<'_> {
    pub(super) async fn bulk(&self, begun: Instant) -> anyhow::Result<()> {
        // Pause the application, because the cache would rightly show what it commits meanwhile.
        self.control.pause().await;
        let done = self.bulk_alone(begun).await;
        self.control.resume();
        done
    }

    async fn bulk_alone(&self, begun: Instant) -> anyhow::Result<()> {
        let before: BTreeSet<i64> = self.cache.event_ids().into_iter().collect();
        let mut changes = self.cache.changes();
        let mut client = self.pool.get().await.context("a connection")?;
        let tx = client.transaction().await?;
        tx.batch_execute("set local jit = off").await?;
        let row = tx
            .query_one("select pg_current_xact_id()::text", &[])
            .await?;
        let xid: u64 = row.try_get::<_, String>(0)?.parse()?;
        let newest = Newest::read(&tx).await?;
        let done = self.rewrite(&tx, &before).await?;
        let written = Instant::now();
        // The cache must read the database after the last row was written.
        self.until(
            BACK_WITHIN,
            "the cache to read the database before COMMIT",
            |cache| cache.view().age() < written.elapsed(),
        )
        .await?;
        let view = self.cache.view();
        let (new, _) = newest.count(view.events());
        ensure!(
            new == 0,
            "{new} snapshots are shown before their transaction's COMMIT"
        );
        say(
            begun,
            format!(
                "{} snapshots with {} markets are written; the cache read the database since and shows none: COMMIT",
                HumanCount(done.snapshots),
                HumanCount(done.markets)
            ),
        );
        tx.commit().await?;
        let committed = Instant::now();
        let view = self.cache.wait_for(xid, BACK_WITHIN).await?;
        let took = committed.elapsed();
        let (new, old) = newest.count(before.iter().filter_map(|id| view.event(*id)));
        ensure!(
            new > 0 && old == 0,
            "the view that shows the transaction has {new} of its snapshots, and {old} older ones"
        );
        let change = publication(&mut changes, xid).await?;
        let changed: BTreeSet<i64> = change.event_ids().into_iter().collect();
        let missing = left_out(&view, &before, &changed);
        ensure!(
            missing.is_empty(),
            "the publication that shows the transaction leaves out {} events: {missing:?}",
            missing.len()
        );
        say(
            begun,
            format!(
                "{} events changed in one publication, {:.0} ms after COMMIT returned; all {} snapshots are new",
                HumanCount(changed.len() as u64),
                1000.0 * took.as_secs_f64(),
                HumanCount(new)
            ),
        );
        Ok(())
    }

    /// Writes new odds for these events, of all bookmakers.
    async fn rewrite(
        &self,
        tx: &Transaction<'_>,
        events: &BTreeSet<i64>,
    ) -> anyhow::Result<Effect> {
        let sides = [
            (
                Kind::Scrape,
                "select id::bigint from events where id = any($1::bigint[]) order by id",
            ),
            (
                Kind::CompetitorScrape,
                "select id::bigint from competitor_events
                 where betpawa_event_id = any($1::bigint[]) and deleted_at is null
                 order by id",
            ),
        ];
        let ids: Vec<i64> = events.iter().copied().collect();
        let mut all = Effect::default();
        for (kind, statement) in sides {
            let rows = tx.query(statement, &[&ids]).await?;
            let target = Target {
                ids: rows.iter().map(|row| row.get(0)).collect(),
                changed: 1.0,
            };
            let mut rng = fastrand::Rng::with_seed(self.seed);
            all = all.and(changes::apply(kind, tx, target, &mut rng).await?);
        }
        Ok(all)
    }
}

/// The newest snapshot ids before the transaction, which writes alone.
#[derive(Debug, Clone, Copy)]
struct Newest {
    own: i64,
    competitor: i64,
}

impl Newest {
    async fn read(tx: &Transaction<'_>) -> anyhow::Result<Newest> {
        let statement = "select (select coalesce(max(id), 0)::bigint from odds_snapshots),
                                (select coalesce(max(id), 0)::bigint from competitor_odds_snapshots)";
        let row = tx.query_one(statement, &[]).await?;
        Ok(Newest {
            own: row.try_get(0)?,
            competitor: row.try_get(1)?,
        })
    }

    /// How many snapshots of these events are newer, and how many are not.
    fn count<'a>(self, events: impl Iterator<Item = &'a CachedEvent>) -> (u64, u64) {
        let (mut newer, mut older) = (0, 0);
        for event in events {
            let own = event.betpawa().iter();
            let own = own.map(|(_, snapshot)| snapshot.snapshot_id() > self.own);
            let theirs = event.competitors().iter();
            let theirs = theirs.map(|(_, snapshot)| snapshot.snapshot_id() > self.competitor);
            for is_newer in own.chain(theirs) {
                *(if is_newer { &mut newer } else { &mut older }) += 1;
            }
        }
        (newer, older)
    }
}

/// Events that were held before and still are, but did not change.
fn left_out(view: &View, before: &BTreeSet<i64>, changed: &BTreeSet<i64>) -> Vec<i64> {
    before
        .difference(changed)
        .filter(|id| view.event(**id).is_some())
        .copied()
        .collect()
}

/// The first publication that shows a transaction.
async fn publication(changes: &mut Changes, xid: u64) -> anyhow::Result<Arc<Change>> {
    loop {
        let next = timeout(BACK_WITHIN, changes.next()).await;
        let change = next
            .context("no publication came")?
            .ok_or_else(|| anyhow!("no more publications come"))??;
        if change.cut.shows(xid) {
            return Ok(change);
        }
    }
}
