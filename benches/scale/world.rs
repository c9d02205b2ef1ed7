//! The database, a cache that follows it, and what a change costs that cache.

use std::time::{Duration, Instant};

use oddscache::{Config, Counters, OddsCache, Status, sql::Script};
use oddscache_testkit::{
    bench::median,
    cluster::Cluster,
    connect,
    demo::{self, Size},
    followed::run,
    run_script_on, xid,
};
use tokio::{runtime::Runtime, time::sleep};
use tokio_postgres::Client;

/// A whole read of 110,000 events takes minutes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Snapshots of an event long past, for a job that deletes old markets. They have the ids from 1 on. They are more than
/// a log row can list.
pub(crate) const OLD: u32 = 25_000;

/// How many ids above the old ones no snapshot has.
pub(crate) const SPARE: u32 = 10_000;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) dsn: String,
    pub(crate) client: Client,
    follower: Option<(OddsCache, Runtime)>,
}

/// What a change cost the follower, until the view showed it.
#[derive(Debug, Clone)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    rows: u64,
    snapshots: u64,
    whole: String,
    /// Whether the epoch is the one from before.
    pub(crate) keeps_epoch: bool,
}

impl Cost {
    /// Rows of the application's tables; snapshots whose markets were read; how often everything was read, and why.
    pub(crate) fn columns(&self) -> [String; 3] {
        [
            self.rows.to_string(),
            format!("{} snapshots", self.snapshots),
            self.whole.clone(),
        ]
    }
}

/// What the cache had counted when a change began.
pub(crate) struct Before {
    pub(crate) counters: Counters,
    epoch: u64,
}

/// The cost of several like changes: the median of the times, and the rows of the last.
pub(crate) fn typical(costs: &[Cost]) -> Cost {
    let mut times: Vec<f64> = costs.iter().map(|cost| cost.seconds).collect();
    let last = costs.last().expect("a change");
    Cost {
        seconds: median(&mut times),
        keeps_epoch: costs.iter().all(|cost| cost.keeps_epoch),
        ..last.clone()
    }
}

/// Neither the audit nor a time-out shall disturb what is measured.
pub(crate) fn config(dsn: &str) -> Config {
    let config = Config::new(dsn).expect("a dsn");
    config
        .audit_cycle(Duration::from_secs(1_000_000))
        .warmup_timeout(PATIENCE)
}

pub(crate) fn runtime(threads: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(threads).thread_name("follower");
    builder.enable_all().build().expect("a runtime")
}

/// Waits until it is true. Asks every millisecond.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "timed out: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Creates the application's tables with this amount of data, and the change feed.
async fn fill(cluster: &Cluster, database: &str, size: &Size) -> Client {
    let client = connect(&cluster.dsn(database)).await;
    demo::create(&client).await;
    let old = format!(
        "alter sequence odds_snapshots_id_seq restart {}",
        OLD + SPARE + 1
    );
    run(&client, &old).await;
    demo::load(&client, size).await;
    // Event 1 kicked off a month ago.
    let old = format!(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
             select id, 1, 1, now() at time zone 'UTC' - interval '20 days' from generate_series(1, {OLD}) id;
         insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             select id, kind, kind, '[{{\"name\": \"1\", \"odds\": 2.5, \"is_active\": true}}]'
             from generate_series(1, {OLD}) id, unnest('{{3743,5000}}'::text[]) kind"
    );
    run(&client, &old).await;
    for script in [Script::Install, Script::Indexes] {
        run_script_on(cluster, database, script, &[]);
    }
    run(&client, "vacuum analyze").await;
    client
}

impl World {
    /// A private server with this amount of data. Nothing follows it yet.
    pub(crate) async fn new(size: &Size) -> World {
        let cluster = Cluster::start(&[
            "shared_buffers = 1GB",
            "max_wal_size = 8GB",
            "checkpoint_timeout = 1h",
            "autovacuum = off",
            "max_connections = 300",
        ])
        .expect("a cluster");
        let client = fill(&cluster, "postgres", size).await;
        World {
            dsn: cluster.dsn("postgres"),
            client,
            cluster,
            follower: None,
        }
    }

    /// Another database of the same server. Returns its connection string.
    pub(crate) async fn beside(&self, name: &str, size: &Size) -> String {
        run(&self.client, &format!("create database {name}")).await;
        fill(&self.cluster, name, size).await;
        self.cluster.dsn(name)
    }

    /// Restarts the server, by a fast shutdown. Nothing may follow it. Returns when it accepted connections again.
    pub(crate) async fn restart(&mut self) -> Instant {
        run(&self.client, "checkpoint").await;
        self.cluster.stop("fast").expect("stopped");
        self.cluster.boot().expect("started");
        let started = Instant::now();
        self.client = connect(&self.dsn).await;
        started
    }

    /// The followed cache.
    pub(crate) fn cache(&self) -> &OddsCache {
        &self.follower.as_ref().expect("it follows").0
    }

    pub(crate) async fn follow(&mut self) {
        let runtime = runtime(2);
        let (cache, follower) = OddsCache::connect(config(&self.dsn));
        runtime.spawn(follower.run());
        cache.ready().await.expect("warm");
        self.follower = Some((cache, runtime));
        self.settle().await;
    }

    pub(crate) fn stop_following(&mut self) {
        if let Some((_, runtime)) = self.follower.take() {
            runtime.shutdown_background();
        }
    }

    /// Waits until the follower is live and rests no longer because of the reads before.
    pub(crate) async fn settle(&self) {
        let cache = self.cache();
        until("live", || cache.status() == Status::Live).await;
        for _ in 0..3 {
            self.change("").await;
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn before(&self) -> Before {
        Before {
            counters: self.cache().counters(),
            epoch: self.cache().view().epoch(),
        }
    }

    pub(crate) fn since(&self, before: &Before, seconds: f64) -> Cost {
        let (old, now) = (&before.counters, self.cache().counters());
        let of_reason = |(reason, count): (oddscache::ReloadReason, u64)| {
            let more = count - old.reloads_by_reason.of(reason);
            (more > 0).then(|| format!("{more} ({})", reason.name()))
        };
        let whole: Vec<String> = now.reloads_by_reason.iter().filter_map(of_reason).collect();
        let failed = now.failures - old.failures;
        let failed = (failed > 0).then(|| format!("after {failed} failures"));
        let whole = match whole.is_empty() {
            true => vec!["no".to_owned()],
            false => whole,
        };
        let whole: Vec<String> = whole.into_iter().chain(failed).collect();
        Cost {
            seconds,
            rows: now.rows_read - old.rows_read,
            snapshots: now.snapshots_read - old.snapshots_read,
            whole: whole.join(", "),
            keeps_epoch: self.cache().view().epoch() == before.epoch,
        }
    }

    /// Runs statements in one transaction. Measures from COMMIT until the view shows it.
    pub(crate) async fn change(&self, sql: &str) -> Cost {
        run(&self.client, "begin").await;
        run(&self.client, sql).await;
        self.commit().await
    }

    /// Commits the client's transaction. Measures from COMMIT until the view shows it.
    pub(crate) async fn commit(&self) -> Cost {
        let xid = xid(&self.client).await;
        let before = self.before();
        let sent = Instant::now();
        run(&self.client, "commit").await;
        let shown = self.cache().wait_for(xid, PATIENCE).await;
        let seconds = sent.elapsed().as_secs_f64();
        shown.expect("shown");
        self.since(&before, seconds)
    }

    /// Makes the follower read everything again. Measures until the new view is published.
    pub(crate) async fn resync(&self) -> Cost {
        let cache = self.cache();
        let before = self.before();
        let asked = Instant::now();
        cache.resync();
        until("everything read", || {
            cache.counters().reloads > before.counters.reloads
                && !matches!(cache.status(), Status::Resyncing { .. })
        })
        .await;
        self.since(&before, asked.elapsed().as_secs_f64())
    }
}
