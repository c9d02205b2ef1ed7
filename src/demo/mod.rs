//! `oddscache demo`: the service on a private PostgreSQL, with a simulated application that keeps writing.

mod bulk;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the tests use all of it, through tests/testkit"
)]
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod connection;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the tests use all of it, through tests/testkit"
)]
mod dataset;
mod incident;
mod leader;
mod nats;
mod network;
mod observer;
#[allow(unreachable_pub, reason = "tests/testkit includes it")]
mod packages;
#[cfg(test)]
mod packages_tests;
mod process;
mod relay;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the tests use all of it, through tests/testkit"
)]
mod scraper;
mod verify;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use oddscache::{Config, Counters, History, OddsCache, sql::Script};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use crate::server::{
    commands::sql,
    http::{
        address::Address,
        router::default_inline,
        server::{Server, Serving},
    },
    signals::end_signal,
    stdout::print_line,
};
use cluster::Cluster;
use connection::{connect, pool};
use dataset::Scale;
use incident::{Incident, Stage};
use nats::Nats;
use network::Network;
use relay::{Relayed, SUBSCRIBERS};
use scraper::{Control, Pace, Scraper};

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// Upcoming events; each has a snapshot of the platform's own and of two competitors
    #[arg(long, env = "ODDSCACHE_DEMO_EVENTS", default_value_t = 1100, value_parser = clap::value_parser!(u32).range(40..))]
    events: u32,
    /// Markets of a snapshot
    #[arg(long, env = "ODDSCACHE_DEMO_MARKETS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    markets: u32,
    /// Snapshots of each event and bookmaker in the database, most of them history
    #[arg(long, env = "ODDSCACHE_DEMO_HISTORY", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    history: u32,
    /// How many of these, newest first, have markets. The real application has 52, all with markets: that takes some GB
    /// and some minutes
    #[arg(long, env = "ODDSCACHE_DEMO_HISTORY_WITH_MARKETS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    history_with_markets: u32,
    /// The time in which the simulated application scrapes every event once
    #[arg(long, env = "ODDSCACHE_DEMO_CYCLE", default_value = "1m", value_parser = humantime::parse_duration)]
    cycle: Duration,
    /// How often to pause the application and compare the whole cache with the database
    #[arg(long, env = "ODDSCACHE_DEMO_VERIFY_EVERY", default_value = "1m", value_parser = humantime::parse_duration)]
    verify_every: Duration,
    /// End after this long, and after the incidents, instead of at Ctrl-C
    #[arg(long = "for", env = "ODDSCACHE_DEMO_FOR", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Follow by a relay: on a private nats-server, one process publishes, another one stands by, and three caches follow
    #[arg(long, env = "ODDSCACHE_DEMO_RELAY")]
    relay: bool,
    /// Let something go wrong; may be given several times
    #[arg(
        long = "incident",
        env = "ODDSCACHE_DEMO_INCIDENT",
        value_enum,
        value_name = "KIND",
        value_delimiter = ','
    )]
    incidents: Vec<Incident>,
    /// How long to wait before each incident
    #[arg(long, env = "ODDSCACHE_DEMO_INCIDENT_AFTER", default_value = "10s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    incident_after: Duration,
    /// Another seed gives other data
    #[arg(long, env = "ODDSCACHE_DEMO_SEED", default_value_t = 1)]
    seed: u64,
    /// Where to serve HTTP. With --relay it is the first subscriber's address; the others get free ports
    #[arg(
        long,
        env = "ODDSCACHE_LISTEN",
        default_value = "127.0.0.1:7979",
        value_name = "ADDRESS:PORT"
    )]
    listen: SocketAddr,
}

/// How often a line is printed.
const LINE_EVERY: Duration = Duration::from_secs(5);

const DATABASE: &str = "odds";

/// Runs until Ctrl-C, SIGTERM or the end of `--for`. Fails if the cache ever differs from the database.
pub(crate) async fn run(arguments: DemoArguments) -> anyhow::Result<ExitCode> {
    let plan = Incident::plan(&arguments.incidents, arguments.relay)?;
    let nats_server = arguments.relay.then(Nats::program).transpose()?;
    // Without fsync: the data is thrown away.
    let settings = [
        "fsync = off",
        "shared_buffers = 256MB",
        "max_wal_size = 4GB",
        "autovacuum_naptime = 15s",
    ];
    print_line!("starting a private PostgreSQL ...");
    let starting = spawn_blocking(move || Cluster::start(&settings));
    let cluster = starting.await.context("starting the cluster")??;
    let result = tokio::select! {
        result = show(&arguments, &plan, nats_server, &cluster) => result.map(|()| ExitCode::SUCCESS),
        signal = end_signal() => {
            print_line!("\n{}: ending", signal?);
            Ok(ExitCode::SUCCESS)
        }
    };
    // Stops the server and deletes its files.
    spawn_blocking(move || drop(cluster))
        .await
        .context("stopping the cluster")?;
    print_line!("stopped PostgreSQL and deleted its files");
    result
}

async fn show(
    arguments: &DemoArguments,
    plan: &[Incident],
    nats_server: Option<PathBuf>,
    cluster: &Cluster,
) -> anyhow::Result<()> {
    let server_version = prepare(arguments, cluster).await?;
    let dsn = cluster.dsn(DATABASE);

    let network = match plan.contains(&Incident::Partition) {
        true => {
            let socket = format!(".s.PGSQL.{}", cluster.port());
            Some(Network::start(cluster.socket_dir().join(socket)).await?)
        }
        false => None,
    };
    let way = network.as_ref().map(|network| network.dsn(DATABASE));
    // Declared before the tasks, so that it ends after them.
    let mut relayed = match nats_server {
        Some(program) => Some(Relayed::start(program, dsn.clone()).await?),
        None => None,
    };
    let configs = match &relayed {
        Some(relayed) => vec![Config::relay(relayed.relay()?); SUBSCRIBERS],
        None => vec![Config::new(way.as_ref().unwrap_or(&dsn))?],
    };
    // Dropping it ends its tasks. At Ctrl-C they end before the server, so that they do not report its end.
    let mut tasks = JoinSet::new();
    let (mut caches, mut servers) = (Vec::new(), Vec::new());
    let mut listen = arguments.listen;
    for config in configs {
        let history = match relayed {
            Some(_) => None,
            None => Some(History::new(config.clone(), 2, Duration::from_secs(5))?),
        };
        let (cache, follower) = OddsCache::connect(config);
        let serving = Serving {
            history,
            ..Serving::default()
        };
        let address = Address::Tcp(listen);
        servers.push(Server::start(address, &cache, serving, default_inline()).await?);
        listen.set_port(0);
        tasks.spawn(async move { follower.run().await.context("the follower") });
        caches.push(cache);
    }
    for cache in &caches {
        cache.ready().await?;
    }
    let addresses: Vec<Address> = servers
        .iter()
        .map(|server| server.address.clone())
        .collect();
    introduce(&caches, &addresses, &server_version, &dsn);
    if let Some(relayed) = &relayed {
        introduce_relay(relayed, &addresses).await?;
    }
    print_line!("\nthe simulated application writes; Ctrl-C ends everything\n");
    let pace = Pace {
        cycle: arguments.cycle,
        ..Pace::default()
    };
    let pool = pool(&dsn)?;
    let application = Scraper::new(pool.clone(), arguments.seed, pace);
    let mut caches = caches.into_iter();
    let mut stage = Stage {
        cluster,
        dsn,
        pool,
        network,
        cache: caches.next().context("there is no cache")?,
        others: caches.collect(),
        relayed: relayed.as_mut(),
        control: Control::new(),
        counts: application.counters(),
        seed: arguments.seed,
    };
    let control = stage.control.clone();
    tasks.spawn({
        let control = control.clone();
        async move {
            application.run(control).await;
            Ok(())
        }
    });
    let result = tokio::select! {
        result = watch(arguments, plan, &mut stage) => result,
        // Neither the follower nor the application ends by itself.
        Some(ended) = tasks.join_next() => ended.map_err(Into::into).flatten().and(Err(anyhow!("a task ended"))),
    };
    control.stop().await;
    drop(tasks);
    for server in servers {
        server.stop().await;
    }
    result
}

/// Says what was warmed up, and where to look.
fn introduce(caches: &[OddsCache], addresses: &[Address], server_version: &str, dsn: &str) {
    let ([cache, ..], [address, ..]) = (caches, addresses) else {
        return;
    };
    let warmup = cache.stats().last_warmup.clone().unwrap_or_default();
    print_line!(
        "warmed up in {:.2} s: {} events, {} snapshots, {} markets, {} of memory",
        warmup.seconds,
        HumanCount(warmup.events as u64),
        HumanCount(warmup.snapshots as u64),
        HumanCount(warmup.markets as u64),
        HumanBytes(warmup.memory_bytes as u64)
    );
    let (base, id) = (
        format!("http://{address}"),
        cache.event_ids().first().copied().unwrap_or(1),
    );
    print_line!("\nopen the page\n  {base}/\nand look at");
    for path in [
        &format!("/v1/events/{id}"),
        "/v1/events?ids=200,201",
        "/v1/dump",
        "/v1/stats",
        "/metrics",
        "/readyz",
    ] {
        print_line!("  {base}{path}");
    }
    print_line!(
        "and at the database ({server_version}), with psql or any command that reads DATABASE_URL\n  \
         psql \"{dsn}\"\n  export DATABASE_URL=\"{dsn}\""
    );
}

/// Says who publishes to the relay, and who follows it.
async fn introduce_relay(relayed: &Relayed, subscribers: &[Address]) -> anyhow::Result<()> {
    print_line!("\nat the relay's processes and caches");
    let leader = relayed.leader().await?;
    for (number, address) in relayed.addresses() {
        let does = match number == leader {
            true => "follows the database, and publishes",
            false => "follows the database, and stands by",
        };
        print_line!("  publisher {number}   http://{address}/  {does}");
    }
    for (number, address) in (1..).zip(subscribers) {
        print_line!("  subscriber {number}  http://{address}/  follows the relay alone");
    }
    let url = relayed.url();
    print_line!("and at the relay itself\n  oddscache doctor --relay-from {url}");
    Ok(())
}

/// Creates the database, its data and the change feed; returns the server's version.
async fn prepare(arguments: &DemoArguments, cluster: &Cluster) -> anyhow::Result<String> {
    let client = connect(&cluster.dsn("postgres")).await?;
    client
        .batch_execute(&format!("CREATE DATABASE {DATABASE}"))
        .await
        .context("creating the database")?;
    let rows = client
        .query_typed("SHOW server_version", &[])
        .await
        .context("asking for the version")?;
    let version = rows
        .first()
        .map_or(Ok(String::new()), |row| row.try_get(0))
        .context("asking for the version")?;

    let client = connect(&cluster.dsn(DATABASE)).await?;
    dataset::create(&client).await?;
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("loading {msg:<12} {wide_bar} {human_pos}/{human_len} rows")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    print_line!(
        "loading synthetic data ({} events) ...",
        HumanCount(arguments.events.into())
    );
    let scale = Scale {
        events: arguments.events,
        markets: arguments.markets,
        history: arguments.history,
        history_with_markets: arguments.history_with_markets,
        seed: arguments.seed,
    };
    let loaded = dataset::load(&client, &scale, |done, total, what| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(what.to_owned());
    })
    .await?;
    bar.finish_and_clear();
    print_line!(
        "loaded {} events, {} snapshots, {} markets in {:.1} s ({})",
        HumanCount(loaded.events),
        HumanCount(loaded.snapshots),
        HumanCount(loaded.markets),
        loaded.elapsed.as_secs_f64(),
        HumanBytes(loaded.database_bytes)
    );
    sql::apply(
        Script::Install,
        Script::Install.text(),
        &Config::new(&cluster.dsn(DATABASE))?,
        sql::Output::Nothing,
    )
    .await?;
    print_line!("installed the change feed (sql/install.sql)");
    Ok(format!("PostgreSQL {version}"))
}

/// Prints a line every few seconds. Lets the incidents happen, then compares every `--verify-every`.
async fn watch(
    arguments: &DemoArguments,
    plan: &[Incident],
    stage: &mut Stage<'_>,
) -> anyhow::Result<()> {
    let mut lines = Lines::new(&stage.cache);
    for incident in plan {
        lines.print(&stage.cache, arguments.incident_after).await;
        stage.happen(*incident).await?;
    }
    loop {
        // Compare at the end of `--for`, if that comes before the next regular comparison.
        let left = arguments
            .duration
            .map(|duration| duration.saturating_sub(lines.begun.elapsed()));
        let verify_every = arguments.verify_every;
        lines
            .print(&stage.cache, left.unwrap_or(verify_every).min(verify_every))
            .await;
        let equal = stage.compare().await?;
        let written = stage.counts.read();
        print_line!(
            "         the application pauses: {equal}, after {} of its transactions ({} failed)",
            HumanCount(written.transactions),
            written.failed
        );
        if left.is_some_and(|left| left <= verify_every) {
            return Ok(());
        }
    }
}

/// Prints how the demo goes, in lines of figures.
struct Lines {
    begun: Instant,
    before: Counters,
}

impl Lines {
    fn new(cache: &OddsCache) -> Lines {
        Lines {
            begun: Instant::now(),
            before: cache.counters(),
        }
    }

    /// Prints a line every few seconds for this time, and one at its end.
    async fn print(&mut self, cache: &OddsCache, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            sleep(LINE_EVERY.min(left)).await;
            let now = cache.counters();
            line(self.begun.elapsed(), cache, self.before, now);
            self.before = now;
            if left <= LINE_EVERY {
                return;
            }
        }
    }
}

fn line(elapsed: Duration, cache: &OddsCache, before: Counters, now: Counters) {
    let (view, stats) = (cache.view(), cache.stats());
    print_line!(
        "{:>6.0} s  {}  age {:>4} ms  {} events  {} snapshots  {} markets  {}  +{} updates  +{} snapshots read  {} reloads",
        elapsed.as_secs_f64(),
        cache.status(),
        view.age().as_millis(),
        view.len(),
        stats.total_snapshots,
        stats.total_markets,
        HumanBytes(stats.memory_bytes as u64),
        now.published - before.published,
        now.snapshots_read - before.snapshots_read,
        now.reloads,
    );
}
