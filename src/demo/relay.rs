//! `oddscache demo --relay`: two processes publish to a private NATS server, and three caches follow it.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use oddscache::Relay;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    nats::{Nats, last_lines},
    process::Process,
};
use crate::server::client::{Url, for_health_checks};

/// How many caches follow the relay.
pub(super) const SUBSCRIBERS: usize = 3;

const PUBLISHERS: usize = 2;

/// How long a publisher may take to start, and to answer a question.
const START: Duration = Duration::from_secs(60);

/// How long one request to a publisher may take.
const REQUEST: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(5);

/// A private NATS server with two publishers. Dropping it ends all of them.
pub(super) struct Relayed {
    /// By their numbers. They end before the server.
    publishers: BTreeMap<usize, Publisher>,
    nats: Nats,
    /// The database that the publishers follow.
    dsn: String,
}

/// A process `oddscache serve --relay-to`.
struct Publisher {
    address: SocketAddr,
    _process: Process,
}

/// What a publisher's `/v1/stats` says.
#[derive(Deserialize)]
struct Stats {
    counters: RelayCounters,
}

#[derive(Clone, Deserialize)]
struct RelayCounters {
    relay_answers: u64,
    relay_states: u64,
}

impl Relayed {
    /// Starts the server and the publishers. Returns when there is a state that subscribers can read.
    pub(super) async fn start(program: PathBuf, dsn: String) -> anyhow::Result<Relayed> {
        let mut relayed = Relayed {
            publishers: BTreeMap::new(),
            nats: Nats::start(&program).await?,
            dsn,
        };
        for number in 1..=PUBLISHERS {
            relayed.publish(number).await?;
        }
        let has_state = |now: &RelayCounters, _: &RelayCounters| now.relay_states > 0;
        relayed.first(has_state).await?;
        Ok(relayed)
    }

    pub(super) fn relay(&self) -> anyhow::Result<Relay> {
        Ok(Relay::new(self.nats.url())?)
    }

    pub(super) fn url(&self) -> &str {
        self.nats.url()
    }

    /// Where the publishers' pages are.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        let publishers = self.publishers.iter();
        publishers.map(|(number, publisher)| (*number, publisher.address))
    }

    /// Starts a publisher, and waits until it listens.
    pub(super) async fn publish(&mut self, number: usize) -> anyhow::Result<()> {
        let program = env::current_exe().context("finding this program")?;
        let log = self.nats.folder().join(format!("publisher-{number}.log"));
        // A publisher that is started again appends to its log.
        let before = fs::read_to_string(&log).map_or(0, |text| text.len());
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
        let arguments = [&arguments[..], &["--relay-to", self.nats.url()]].concat();
        let variables = [("DATABASE_URL", &*self.dsn)];
        let process = Process::start(&program, &arguments, &variables, &log, None)?;
        let begun = Instant::now();
        let address = loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let new = text.get(before..).unwrap_or_default();
            if let Some(address) = new.lines().find_map(listens_at) {
                break address;
            }
            if begun.elapsed() > START {
                bail!("publisher {number} did not start: {}", last_lines(&log));
            }
            sleep(PAUSE).await;
        };
        let publisher = Publisher {
            address,
            _process: process,
        };
        self.publishers.insert(number, publisher);
        Ok(())
    }

    /// Kills a publisher with SIGKILL.
    pub(super) fn kill(&mut self, number: usize) {
        self.publishers.remove(&number);
    }

    /// The number of the publisher that answers the subscribers' questions, which only the leader does.
    pub(super) async fn leader(&self) -> anyhow::Result<usize> {
        let answers =
            |now: &RelayCounters, before: &RelayCounters| now.relay_answers > before.relay_answers;
        self.first(answers).await
    }

    /// Waits until this is true of a publisher's counters, as they are now and as they were first seen.
    async fn first(
        &self,
        is: impl Fn(&RelayCounters, &RelayCounters) -> bool,
    ) -> anyhow::Result<usize> {
        let mut before = BTreeMap::new();
        let begun = Instant::now();
        while begun.elapsed() < START {
            for (number, publisher) in &self.publishers {
                let now = Relayed::counters(publisher.address).await;
                let now = now.with_context(|| format!("asking publisher {number}"))?;
                if is(&now, before.entry(*number).or_insert_with(|| now.clone())) {
                    return Ok(*number);
                }
            }
            sleep(PAUSE).await;
        }
        bail!("no publisher leads")
    }

    async fn counters(address: SocketAddr) -> anyhow::Result<RelayCounters> {
        let client = for_health_checks(&Url::of(address, false), REQUEST)?;
        let (_, body) = client.get("/v1/stats").await?;
        let stats: Stats = serde_json::from_slice(&body).context("reading its statistics")?;
        Ok(stats.counters)
    }
}

/// The address in a line of a service's log, if the line has one.
fn listens_at(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    line.pointer("/fields/address")?.as_str()?.parse().ok()
}
