//! What subscribers cost the database and the publisher, in CPU time. The publisher is a process of its own.

use std::time::{Duration, Instant};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::StreamExt;
use oddscache::{Config, OddsCache};
use oddscache_testkit::{
    process::{cpu, family_cpu, parent},
    service::Service,
};
use tokio::{
    task::JoinSet,
    time::{interval_at, sleep, timeout},
};
use tokio_postgres::Client;

use crate::{Bench, number, write};

/// A question of a subscriber that lacks nothing, waits for nothing and knows no term.
pub(crate) const QUESTION: &[u8] = b"oc\x01\0\0\0";

/// Transactions of a scrape, and the time between two of them.
const TRANSACTIONS: u32 = 20;
const PERIOD: Duration = Duration::from_millis(400);

/// Subscribers of one kind. They end when this is dropped.
struct Crowd {
    _tasks: JoinSet<()>,
    _caches: Vec<OddsCache>,
}

impl Crowd {
    async fn real(bench: &Bench, count: usize) -> Crowd {
        let (mut tasks, mut caches) = (JoinSet::new(), Vec::new());
        for _ in 0..count {
            let (cache, follower) = OddsCache::connect(Config::relay(bench.relay()));
            tasks.spawn(async move { drop(follower.run().await) });
            cache.ready().await.expect("warm");
            caches.push(cache);
        }
        Crowd {
            _tasks: tasks,
            _caches: caches,
        }
    }

    /// Each has a connection and a bare consumer, and asks as often as a subscriber does.
    async fn simulated(bench: &Bench, count: usize) -> Crowd {
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let client = async_nats::connect(bench.nats.url()).await.unwrap();
            let config = OrderedConfig {
                deliver_subject: client.new_inbox(),
                deliver_policy: DeliverPolicy::New,
                ..OrderedConfig::default()
            };
            let stream = jetstream::new(client.clone())
                .get_stream("oddscache_odds")
                .await;
            let consumer = stream.unwrap().create_consumer(config).await.unwrap();
            let mut messages = consumer.messages().await.unwrap();
            tasks.spawn(async move {
                loop {
                    let pause = Duration::from_millis(fastrand::u64(640..960));
                    let asked = Instant::now();
                    while let Some(rest) = pause.checked_sub(asked.elapsed()) {
                        let _ = timeout(rest, messages.next()).await;
                    }
                    let _ = client.request("oddscache.odds.ask", QUESTION.into()).await;
                }
            });
        }
        Crowd {
            _tasks: tasks,
            _caches: Vec::new(),
        }
    }
}

/// CPU time of all processes of the server that this client is connected to, in seconds.
struct Database(u32);

impl Database {
    async fn of(client: &Client) -> Database {
        let row = client
            .query_one("select pg_backend_pid()", &[])
            .await
            .expect("a pid");
        Database(parent(u32::try_from(row.get::<_, i32>(0)).expect("a pid")))
    }

    fn cpu(&self) -> f64 {
        family_cpu(self.0)
    }
}

/// CPU time of the database over a scrape, in seconds.
async fn scrape(bench: &Bench, database: &Database) -> f64 {
    let before = database.cpu();
    let mut due = interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    for _ in 0..TRANSACTIONS {
        due.tick().await;
        write(&bench.writer, bench.batch()).await;
    }
    due.tick().await;
    database.cpu() - before
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The CPU time per second while nobody writes, in milliseconds.
async fn per_second(cpu: impl Fn() -> f64) -> f64 {
    let seconds = number("SECONDS", 20) as f64;
    let before = cpu();
    sleep(Duration::from_secs_f64(seconds)).await;
    (cpu() - before) / seconds * 1e3
}

async fn handle_at_rest(bench: &Bench, database: &Database) {
    let (mut without, mut with, mut connections) = (vec![], vec![], 0);
    for _ in 0..number("ROUNDS", 3) {
        without.push(per_second(|| database.cpu()).await);
        let (cache, follower) = OddsCache::connect(Config::new(&bench.server.dsn).unwrap());
        let follower = tokio::spawn(follower.run());
        cache.ready().await.expect("warm");
        // Its first notification has come by then.
        sleep(Duration::from_secs(10)).await;
        with.push(per_second(|| database.cpu()).await);
        let sql = "select count(*) from pg_stat_activity where application_name like 'oddscache%'";
        let row = bench
            .server
            .client
            .query_one(sql, &[])
            .await
            .expect("a count");
        connections = row.get::<_, i64>(0);
        follower.abort();
        let _ = follower.await;
        sleep(Duration::from_secs(1)).await;
    }
    let (with, without) = (median(with), median(without));
    println!(
        "a direct handle at rest: {connections} connections; the server takes {:.2} ms of CPU a second more ({with:.2} less {without:.2})",
        with - without
    );
}

async fn questions(bench: &Bench, publisher: &Service) {
    let (mut without, mut with, mut answered) = (vec![], vec![], vec![]);
    for _ in 0..number("ROUNDS", 3) {
        without.push(per_second(|| cpu(publisher.pid())).await);
        let crowd = Crowd::simulated(bench, 1000).await;
        sleep(Duration::from_secs(2)).await;
        let answers = async || publisher.metric("oddscache_relay_answers_total").await;
        let (before, at) = (answers().await, Instant::now());
        with.push(per_second(|| cpu(publisher.pid())).await);
        answered.push((answers().await - before) / at.elapsed().as_secs_f64());
        drop(crowd);
        sleep(Duration::from_secs(2)).await;
    }
    let (with, without, answered) = (median(with), median(without), median(answered));
    println!(
        "the publisher at rest: {:.2} % of a core; with 1,000 simulated subscribers {:.2} %, {answered:.0} answers a second, {:.1} us each",
        without / 10.0,
        with / 10.0,
        (with - without) * 1e3 / answered
    );
}

/// How many transactions the database has run.
async fn transactions(client: &Client) -> f64 {
    // Sessions report what they did about every second.
    sleep(Duration::from_secs(2)).await;
    let sql = "select (xact_commit + xact_rollback)::float8 from pg_stat_database where datname = current_database()";
    client.query_one(sql, &[]).await.expect("a count").get(0)
}

async fn scrapes(bench: &Bench, database: &Database, publisher: &Service) {
    let crowds = [(1, true), (10, true), (100, true), (1000, false)];
    let mut times: [(Vec<f64>, Vec<f64>, Vec<f64>); 4] = Default::default();
    scrape(bench, database).await;
    for _ in 0..number("ROUNDS", 3) {
        let mut first = None;
        for ((count, is_real), (seconds, ratios, ran)) in crowds.into_iter().zip(&mut times) {
            let crowd = match is_real {
                true => Crowd::real(bench, count).await,
                false => Crowd::simulated(bench, count).await,
            };
            sleep(Duration::from_secs(2)).await;
            let before = transactions(&bench.server.client).await;
            let took = scrape(bench, database).await;
            ran.push(transactions(&bench.server.client).await - before);
            drop(crowd);
            seconds.push(took);
            ratios.push(took / *first.get_or_insert(took));
            sleep(Duration::from_secs(1)).await;
        }
    }
    println!("CPU time of PostgreSQL over {TRANSACTIONS} transactions of 150 changed snapshots:");
    for ((count, is_real), (seconds, ratios, ran)) in crowds.into_iter().zip(times) {
        let kind = if is_real { "real" } else { "simulated" };
        println!(
            "  {count:>5} {kind:10} {:.3} s, x{:.3} of one subscriber (from {:.3} to {:.3}), {:.0} transactions",
            median(seconds),
            median(ratios.clone()),
            ratios.iter().copied().fold(f64::MAX, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
            median(ran)
        );
    }
    println!(
        "  the publisher has taken {:.1} s of CPU altogether",
        cpu(publisher.pid())
    );
}

pub(crate) async fn run(bench: &Bench) {
    let database = Database::of(&bench.writer).await;
    handle_at_rest(bench, &database).await;
    let publisher = Service::measured(&bench.server.dsn, &["--relay-to", &bench.nats.url()]).await;
    publisher.ready().await;
    sleep(Duration::from_secs(10)).await;
    questions(bench, &publisher).await;
    scrapes(bench, &database, &publisher).await;
}
