//! What can go wrong, done on purpose: `oddscache demo --incident ...`. Each says what happens, what to watch, and when
//! the promise held; and ends with a comparison of the whole cache with the database.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use deadpool_postgres::Pool;
use indicatif::HumanCount;
use oddscache::{Change, Changes, OddsCache, Status};
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};
use tokio_postgres::Client;

use super::{
    cluster::Cluster,
    connect,
    network::Network,
    observer::{Observer, say},
    scraper::{
        Control, Counters,
        changes::{self, Kind, Target},
    },
    verify,
};

/// What `--incident` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Incident {
    /// The server is restarted
    Restart,
    /// The network between the cache and the server is cut, silently, and healed
    Partition,
    /// A trigger is disabled while the application writes, and enabled again
    TriggerOff,
    /// One transaction changes every event
    Bulk,
    /// All of these, one after the other
    All,
}

impl Incident {
    /// Those that are meant, in the order they were asked for.
    pub(super) fn plan(asked: &[Incident]) -> Vec<Incident> {
        let all = [Self::Restart, Self::Partition, Self::TriggerOff, Self::Bulk];
        asked
            .iter()
            .flat_map(|incident| match incident {
                Self::All => all.to_vec(),
                one => vec![*one],
            })
            .collect()
    }

    fn what(self) -> &'static str {
        match self {
            Self::Restart => "the server is stopped, and started again three seconds later",
            Self::Partition => {
                "the network between the cache and the server falls silent; no connection is closed"
            }
            Self::TriggerOff => {
                "a trigger of market_odds is disabled: the application's changes are not logged"
            }
            Self::Bulk => "one transaction takes new odds for every event of every bookmaker",
            Self::All => "everything",
        }
    }

    fn watch(self) -> &'static str {
        match self {
            Self::Restart => {
                "the page turns grey and says since when; the old odds stay readable; then the epoch goes up"
            }
            Self::Partition => {
                "the age grows at once; within 15 s the page says that the database is lost; then it recovers"
            }
            Self::TriggerOff => {
                "the cache notices within a poll, takes nothing for current any more, and reads all anew"
            }
            Self::Bulk => {
                "nothing moves while it runs; at its COMMIT the whole board lights up at once"
            }
            Self::All => "the page",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Partition => "partition",
            Self::TriggerOff => "trigger-off",
            Self::Bulk => "bulk",
            Self::All => "all",
        }
    }
}

/// A dead connection is known within this (README); some more for a machine that has other work too.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

/// How long the cache may take to be back, connecting and reading everything.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// How long trouble lasts, so that one can look at it.
const TROUBLE: Duration = Duration::from_secs(3);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Everything that incidents happen to.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    /// Of the application and the comparisons, past the network that can be cut.
    pub(super) dsn: String,
    pub(super) pool: Pool,
    /// Where there is to be a partition.
    pub(super) network: Option<Network>,
    pub(super) cache: OddsCache,
    pub(super) control: Control,
    pub(super) counts: std::sync::Arc<Counters>,
    pub(super) seed: u64,
}

impl Stage<'_> {
    /// Pauses the application and compares the whole cache with the database. Returns how many events were equal.
    pub(super) async fn compare(&self) -> anyhow::Result<usize> {
        self.control.pause().await;
        let client = connect(&self.dsn).await?;
        let events = verify::verify(&self.cache, &client).await?;
        self.control.resume();
        Ok(events)
    }

    /// Lets one happen, from the announcement to the comparison. Fails if a promise did not hold.
    pub(super) async fn happen(&self, incident: Incident) -> anyhow::Result<()> {
        println!(
            "\nincident {}: {}\n  watch     {}",
            incident.name(),
            incident.what(),
            incident.watch()
        );
        let begun = Instant::now();
        let observer = Observer::start(&self.cache, begun);
        match incident {
            Incident::Restart => self.restart(begun).await,
            Incident::Partition => self.partition(begun).await,
            Incident::TriggerOff => self.trigger_off(begun).await,
            Incident::Bulk => self.bulk(begun).await,
            Incident::All => Ok(()),
        }
        .with_context(|| format!("incident {}", incident.name()))?;
        say(begun, observer.end()?);
        let events = self.compare().await?;
        say(
            begun,
            format!(
                "incident {} is over, and the promise held: all {} events equal the database\n",
                incident.name(),
                HumanCount(events as u64)
            ),
        );
        Ok(())
    }

    async fn restart(&self, begun: Instant) -> anyhow::Result<()> {
        let epoch = self.cache.view().epoch();
        // Blocks for as long as the server takes, while other tasks go on elsewhere.
        block_in_place(|| self.cluster.stop("fast"))?;
        say(begun, "the server is stopped");
        self.until(KNOWN_WITHIN, "the cache to notice", |cache| !follows(cache))
            .await?;
        sleep(TROUBLE).await;
        block_in_place(|| self.cluster.boot())?;
        say(begun, "the server is started");
        self.until(BACK_WITHIN, "the cache to be back", |cache| {
            follows(cache) && cache.view().epoch() > epoch
        })
        .await?;
        let view = self.cache.view();
        say(
            begun,
            format!(
                "back: everything was read again, epoch {}, age {} ms",
                view.epoch(),
                view.age().as_millis()
            ),
        );
        Ok(())
    }

    async fn partition(&self, begun: Instant) -> anyhow::Result<()> {
        let network = self
            .network
            .as_ref()
            .context("there is no network that can be cut")?;
        let written = self.counts.read().transactions;
        network.cut();
        say(begun, "the network is cut; the application writes on");
        let noticed = self
            .until(KNOWN_WITHIN, "the cache to notice", |cache| !follows(cache))
            .await;
        if noticed.is_ok() {
            sleep(TROUBLE).await;
        }
        // In any case: the application's pause does not wait for the cache, but the end of the demo does.
        network.heal();
        noticed?;
        let missed = self.counts.read().transactions - written;
        say(
            begun,
            format!(
                "the network is healed; the cache was {:.1} s old, and {missed} transactions behind",
                self.cache.view().age().as_secs_f64()
            ),
        );
        self.until(BACK_WITHIN, "the cache to be back", |cache| {
            follows(cache) && cache.view().age() < TROUBLE
        })
        .await?;
        say(
            begun,
            "back: everything was read again beside the readable old view",
        );
        Ok(())
    }

    async fn trigger_off(&self, begun: Instant) -> anyhow::Result<()> {
        let client = connect(&self.dsn).await?;
        let reloads = self.cache.counters().reloads;
        self.alter(&client, "DISABLE").await?;
        let written = self.counts.read().transactions;
        say(
            begun,
            "the trigger oddscache_insert of market_odds is disabled",
        );
        let noticed = self
            .until(KNOWN_WITHIN, "the cache to notice", |cache| !follows(cache))
            .await;
        // Long enough for the application to write what nobody logs.
        let deadline = Instant::now() + BACK_WITHIN;
        while noticed.is_ok()
            && Instant::now() < deadline
            && (self.counts.read().transactions < written + 3 || begun.elapsed() < TROUBLE)
        {
            sleep(PAUSE).await;
        }
        self.alter(&client, "ENABLE ALWAYS").await?;
        noticed?;
        say(
            begun,
            format!(
                "the trigger is enabled again, after {} transactions of the application; the cache was {:.1} s old",
                self.counts.read().transactions - written,
                self.cache.view().age().as_secs_f64()
            ),
        );
        self.until(BACK_WITHIN, "the cache to be back", |cache| {
            follows(cache) && cache.counters().reloads > reloads && cache.view().age() < TROUBLE
        })
        .await?;
        say(
            begun,
            "back: everything was read again, so nothing is missed",
        );
        Ok(())
    }

    /// Waits for the application, whose transactions would be waited for with the table locked.
    async fn alter(&self, client: &Client, how: &str) -> anyhow::Result<()> {
        self.control.pause().await;
        let altered = client
            .batch_execute(&format!(
                "ALTER TABLE market_odds {how} TRIGGER oddscache_insert"
            ))
            .await
            .with_context(|| format!("{how} TRIGGER oddscache_insert ON market_odds"));
        self.control.resume();
        altered
    }

    async fn bulk(&self, begun: Instant) -> anyhow::Result<()> {
        let before: BTreeSet<i64> = self.cache.event_ids().into_iter().collect();
        let mut changes = self.cache.changes();
        let mut client = self.pool.get().await.context("a connection")?;
        let tx = client.transaction().await?;
        tx.batch_execute("set local jit = off").await?;
        let row = tx
            .query_one("select pg_current_xact_id()::text", &[])
            .await?;
        let xid: u64 = row.try_get::<_, String>(0)?.parse()?;
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
        let ids: Vec<i64> = before.iter().copied().collect();
        let (mut snapshots, mut markets) = (0, 0);
        for (kind, statement) in sides {
            let rows = tx.query(statement, &[&ids]).await?;
            let target = Target {
                ids: rows.iter().map(|row| row.get(0)).collect(),
                changed: 1.0,
            };
            let mut rng = fastrand::Rng::with_seed(self.seed);
            let done = changes::apply(kind, &tx, target, &mut rng).await?;
            snapshots += done.snapshots;
            markets += done.markets;
        }
        say(
            begun,
            format!(
                "{} snapshots with {} markets are written, and none is seen: COMMIT",
                HumanCount(snapshots),
                HumanCount(markets)
            ),
        );
        tx.commit().await?;
        let committed = Instant::now();
        let view = self.cache.wait_for(xid, BACK_WITHIN).await?;
        let took = committed.elapsed();
        let change = publication(&mut changes, xid).await?;
        let changed: BTreeSet<i64> = change.event_ids().into_iter().collect();
        let missing: Vec<i64> = before
            .iter()
            .filter(|id| view.event(**id).is_some() && !changed.contains(id))
            .copied()
            .collect();
        ensure!(
            missing.is_empty(),
            "the publication that shows the transaction leaves out {} events: {missing:?}",
            missing.len()
        );
        say(
            begun,
            format!(
                "{} events changed in one publication, {:.0} ms after COMMIT returned",
                HumanCount(changed.len() as u64),
                1000.0 * took.as_secs_f64()
            ),
        );
        Ok(())
    }

    async fn until(
        &self,
        within: Duration,
        what: &str,
        condition: impl Fn(&OddsCache) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !condition(&self.cache) {
            if Instant::now() > deadline {
                bail!(
                    "waited {} s in vain for {what}; it is {}",
                    within.as_secs(),
                    self.cache.status()
                );
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Whether it follows the database, woken or polling.
fn follows(cache: &OddsCache) -> bool {
    matches!(cache.status(), Status::Live | Status::PollingOnly { .. })
}

/// The first publication that shows a transaction.
async fn publication(changes: &mut Changes, xid: u64) -> anyhow::Result<std::sync::Arc<Change>> {
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
