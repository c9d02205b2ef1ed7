//! Incidents on purpose: `oddscache demo --incident ...`. Each prints what happens, what to watch, and when the promise
//! held. It ends with a comparison of the whole cache with the database.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use deadpool_postgres::Pool;
use indicatif::HumanCount;
use oddscache::{Error, OddsCache, Status};
use tokio::{task::block_in_place, time::sleep};
use tokio_postgres::Client;

use crate::server::stdout::print_line;

use super::{
    cluster::Cluster,
    connection::connect,
    network::Network,
    observer::{Observer, say},
    relay::Relayed,
    scraper::{Control, Counters, partitions::NO_NEW_PARTITIONS},
    verify,
};

/// What `--incident` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Incident {
    /// The server is restarted
    Restart,
    /// The network between the cache and the server is cut, silently, and healed
    Partition,
    /// A trigger is disabled while the application writes, and enabled again
    TriggerOff,
    /// One transaction changes every event
    Bulk,
    /// With --relay: the publisher that leads is killed
    Leader,
    /// All of these that the demo can show, one after the other
    All,
}

impl Incident {
    /// The single incidents, in the order of the flags.
    ///
    /// # Errors
    /// An incident that needs a relay, or does not happen to one.
    pub(super) fn plan(named: &[Incident], relay: bool) -> Result<Vec<Incident>, Error> {
        let all: &[Incident] = match relay {
            true => &[Self::Leader],
            false => &[Self::Restart, Self::Partition, Self::TriggerOff, Self::Bulk],
        };
        let mut plan = Vec::new();
        for incident in named {
            match incident {
                Self::All => plan.extend_from_slice(all),
                one if all.contains(one) => plan.push(*one),
                Self::Leader => {
                    let reason = "the incident `leader` needs --relay";
                    return Err(Error::Config(reason.to_owned()));
                }
                _ => {
                    let reason = "with --relay the only incident is `leader`";
                    return Err(Error::Config(reason.to_owned()));
                }
            }
        }
        Ok(plan)
    }

    /// What happens, and what to watch.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Restart => (
                "the server is stopped, and started again three seconds later",
                "the page turns grey and says since when; the old odds stay readable; then the epoch goes up",
            ),
            Self::Partition => (
                "the network between the cache and the server falls silent; no connection is closed",
                "the age grows at once; within 15 s the page says that the database is lost; then it recovers",
            ),
            Self::TriggerOff => (
                "a trigger of market_odds is disabled: the application's changes are not logged",
                "the cache notices within a poll, says that it is degraded, and reads everything again and again",
            ),
            Self::Bulk => (
                "one transaction writes new odds for every event and bookmaker; the application pauses",
                "nothing moves while it runs; at its COMMIT the whole board lights up at once",
            ),
            Self::Leader => (
                "the publisher that leads is killed",
                "the age of each subscriber grows; after about 4 s the other publisher leads, and the epoch stays",
            ),
            Self::All => ("everything", "the page"),
        }
    }
}

/// The cache notices a dead connection within 15 s (README). The rest is for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

/// How long the cache may take to connect again and read everything.
pub(super) const BACK_WITHIN: Duration = Duration::from_secs(120);

/// How long a fault lasts, so that one can watch it.
const TROUBLE: Duration = Duration::from_secs(3);

/// Locks of the application keep the cache from reading for less than this.
const LONG: Duration = Duration::from_secs(5);

/// A read that was under way may prove the view up to a poll interval after the fault began. The rest is for a busy
/// machine.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// The pauses between two looks at the cache, and at the database.
const PAUSE: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(100);

/// Everything that an incident acts on.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    /// For the application and the comparisons. It does not go through the network that can be cut.
    pub(super) dsn: String,
    pub(super) pool: Pool,
    /// Only if there will be a partition.
    pub(super) network: Option<Network>,
    pub(super) cache: OddsCache,
    /// With a relay: the other subscribers, and the relay.
    pub(super) others: Vec<OddsCache>,
    pub(super) relayed: Option<&'a mut Relayed>,
    pub(super) control: Control,
    pub(super) counts: std::sync::Arc<Counters>,
    pub(super) seed: u64,
}

impl Stage<'_> {
    pub(super) fn caches(&self) -> impl Iterator<Item = &OddsCache> {
        [&self.cache].into_iter().chain(&self.others)
    }

    /// Pauses the application and compares all that each cache holds with the database. Says how many events were
    /// equal.
    pub(super) async fn compare(&self) -> anyhow::Result<String> {
        self.control.pause().await;
        let client = connect(&self.dsn).await?;
        let mut events = 0;
        for cache in self.caches() {
            events = verify::verify(cache, &client).await?;
        }
        self.control.resume();
        let whose = match self.relayed {
            Some(_) => " of each subscriber",
            None => "",
        };
        let events = HumanCount(events as u64);
        Ok(format!("all {events} events{whose} equal the database"))
    }

    /// Runs an incident, from the announcement to the comparison. Fails if a promise did not hold.
    pub(super) async fn happen(&mut self, incident: Incident) -> anyhow::Result<()> {
        let (what, watch) = incident.texts();
        let name = incident
            .to_possible_value()
            .map_or(String::new(), |value| value.get_name().to_owned());
        print_line!("\nincident {name}: {what}\n  watch     {watch}");
        let begun = Instant::now();
        let observers: Vec<Observer> = (1..)
            .zip(self.caches())
            .map(|(number, cache)| {
                let name = match self.relayed {
                    Some(_) => format!("subscriber {number}"),
                    None => "the cache".to_owned(),
                };
                Observer::start(name, cache, begun)
            })
            .collect();
        match incident {
            Incident::Restart => self.restart(begun).await,
            Incident::Partition => self.partition(begun).await,
            Incident::TriggerOff => self.trigger_off(begun).await,
            Incident::Bulk => self.bulk(begun).await,
            Incident::Leader => self.leader(begun).await,
            Incident::All => Ok(()),
        }
        .with_context(|| format!("incident {name}"))?;
        for observer in observers {
            say(begun, observer.end()?);
        }
        let equal = self.compare().await?;
        say(
            begun,
            format!("incident {name} is over, and the promise held: {equal}\n"),
        );
        Ok(())
    }

    async fn restart(&self, begun: Instant) -> anyhow::Result<()> {
        let epoch = self.cache.view().epoch();
        // Blocks this thread until the server has stopped. Other tasks go on.
        block_in_place(|| self.cluster.stop("fast"))?;
        let stopped = Instant::now();
        say(begun, "the server is stopped");
        self.until(KNOWN_WITHIN, "the cache to notice", is_cut_off)
            .await?;
        sleep(TROUBLE).await;
        let age = self.age_since(stopped)?;
        let reloads = self.cache.counters().reloads;
        block_in_place(|| self.cluster.boot())?;
        say(
            begun,
            format!(
                "the server is started; the cache says that it is {:.1} s old",
                age.as_secs_f64()
            ),
        );
        self.until(BACK_WITHIN, "the cache to be back", |cache| {
            follows(cache) && cache.counters().reloads > reloads && cache.view().epoch() > epoch
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
        self.until(BACK_WITHIN, "the cache to follow", follows)
            .await?;
        let written = self.counts.read().transactions;
        network.cut();
        let cut = Instant::now();
        say(begun, "the network is cut; the application writes on");
        let age = async {
            self.until(KNOWN_WITHIN, "the cache to notice", |cache| {
                is_cut_off(cache) && cache.view().age() > LONG
            })
            .await?;
            sleep(TROUBLE).await;
            self.age_since(cut)
        }
        .await;
        // It resumes, unless something else than the network made it read everything.
        let reads = |cache: &OddsCache| cache.counters().resumed + cache.counters().reloads;
        let before = reads(&self.cache);
        // Also after an error, because the end of the demo waits for the cache's connections.
        network.heal();
        let missed = self.counts.read().transactions - written;
        say(
            begun,
            format!(
                "the network is healed; the cache says that it is {:.1} s old, and is {missed} transactions behind",
                age?.as_secs_f64()
            ),
        );
        self.until(BACK_WITHIN, "the cache to be back", |cache| {
            follows(cache) && reads(cache) > before && cache.view().age() < TROUBLE
        })
        .await?;
        say(begun, "back: the cache has read what it had missed");
        Ok(())
    }

    async fn trigger_off(&self, begun: Instant) -> anyhow::Result<()> {
        let client = connect(&self.dsn).await?;
        self.until(BACK_WITHIN, "the cache to follow", follows)
            .await?;
        // Its session holds the lock, so it ends with the incident.
        let hold = format!("select pg_advisory_lock({NO_NEW_PARTITIONS})");
        client.batch_execute(&hold).await.context("locking")?;
        self.alter(&client, "DISABLE").await?;
        let disabled = Instant::now();
        say(
            begun,
            "the trigger oddscache_insert of market_odds is disabled",
        );
        let unlogged = self.unlogged(&client, disabled).await;
        let reloads = self.cache.counters().reloads;
        self.alter(&client, "ENABLE ALWAYS").await?;
        let (markets, age) = unlogged?;
        say(
            begun,
            format!(
                "the trigger is enabled again, after {} markets without a log row; the cache says that it is {:.1} s old",
                HumanCount(markets),
                age.as_secs_f64()
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

    /// Waits until the cache knows that the trigger is off and the application has written markets that are not logged.
    /// Returns how many markets, and the age that the cache reports.
    async fn unlogged(
        &self,
        client: &Client,
        disabled: Instant,
    ) -> anyhow::Result<(u64, Duration)> {
        const DOING: &str = "counting markets";
        let row = client
            .query_one("select coalesce(max(id), 0) from market_odds", &[])
            .await
            .context(DOING)?;
        let newest: i64 = row.try_get(0).context(DOING)?;
        self.until(KNOWN_WITHIN, "the cache to notice", |cache| {
            let status = cache.status();
            matches!(status, Status::Degraded { .. })
        })
        .await?;
        loop {
            let row = client
                .query_one("select count(*) from market_odds where id > $1", &[&newest])
                .await
                .context(DOING)?;
            let markets: i64 = row.try_get(0).context(DOING)?;
            if markets > 0 && disabled.elapsed() > TROUBLE {
                return Ok((markets.unsigned_abs(), self.cache.view().age()));
            }
            ensure!(
                disabled.elapsed() < BACK_WITHIN,
                "the application wrote no market within {} s",
                BACK_WITHIN.as_secs()
            );
            sleep(LOOK).await;
        }
    }

    /// The age that the cache reports. It must be at least the time since the fault began, because no read can have
    /// succeeded since then.
    fn age_since(&self, fault: Instant) -> anyhow::Result<Duration> {
        let least = fault.elapsed().saturating_sub(UNDER_WAY);
        let age = self.cache.view().age();
        ensure!(
            age >= least,
            "the cache says that it is {:.1} s old, and cannot be younger than {:.1} s",
            age.as_secs_f64(),
            least.as_secs_f64()
        );
        ensure!(
            !follows(&self.cache),
            "the cache calls itself current: its status is {}",
            self.cache.status()
        );
        Ok(age)
    }

    /// Pauses the application first. Otherwise ALTER TABLE would wait for its transactions, and everybody else for the
    /// lock.
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

    pub(super) async fn until(
        &self,
        within: Duration,
        what: &str,
        condition: impl Fn(&OddsCache) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !condition(&self.cache) {
            if Instant::now() > deadline {
                bail!(
                    "waited {} s in vain for {what}; its status is {}",
                    within.as_secs(),
                    self.cache.status()
                );
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Whether it follows the database, with notifications or by polling.
fn follows(cache: &OddsCache) -> bool {
    matches!(cache.status(), Status::Live | Status::PollingOnly { .. })
}

/// Whether it knows that it cannot read the database.
fn is_cut_off(cache: &OddsCache) -> bool {
    matches!(cache.status(), Status::Disconnected { .. })
}
