//! The age of the view: while nobody writes, while the application scrapes, and while everything is read again.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use oddscache::OddsCache;
use oddscache_testkit::{bench::quantile, connect, followed::run};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    line::{Line, time},
    world::{World, typical},
};

/// How long the quiet times are measured.
const QUIET: Duration = Duration::from_secs(8);

/// The time between two transactions of the load.
const PERIOD: Duration = Duration::from_millis(250);

const COLUMNS: &str = "betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away, \
    outcomes, market_groups";

/// An application that inserts one snapshot with its markets, a few times a second.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// The statements that insert a snapshot of an upcoming event, with markets like those of the newest snapshot.
pub(crate) async fn prepare(client: &tokio_postgres::Client) {
    let template = format!(
        "create temp table template as select {COLUMNS} from market_odds
             where snapshot_id = (select max(snapshot_id) from market_odds) order by id;
         create temp table upcoming as select id, row_number() over (order by id) - 1 as place from events
             where kickoff > now() at time zone 'UTC' + interval '1 hour' and id % 20 <> 5 and id % 40 <> 7"
    );
    run(client, &template).await;
}

/// Inserts a snapshot of one upcoming event with its markets.
pub(crate) fn insert(number: u32) -> String {
    format!(
        "with s as (insert into odds_snapshots (event_id, bookmaker_id, captured_at)
             select id, 1, now() at time zone 'UTC' from upcoming
             where place = {number} * 7919::bigint % (select count(*) from upcoming) returning id)
         insert into market_odds (snapshot_id, {COLUMNS}) select s.id, {COLUMNS} from s, template"
    )
}

impl Load {
    async fn start(dsn: &str) -> Load {
        let client = connect(dsn).await;
        prepare(&client).await;
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    run(&client, &insert(number)).await;
                    sleep(PERIOD).await;
                }
            }
        });
        Load { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load ends");
    }
}

/// The ages and versions of the views that a reader takes every millisecond.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Samples>,
}

#[derive(Default)]
struct Samples {
    ages: Vec<f64>,
    versions: BTreeSet<u64>,
}

impl Sampler {
    fn start(cache: &OddsCache) -> Sampler {
        let (cache, stop) = (cache.clone(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut samples = Samples::default();
                while !stop.load(Ordering::Relaxed) {
                    let view = cache.view();
                    samples.ages.push(view.age().as_secs_f64());
                    samples.versions.insert(view.version());
                    thread::sleep(Duration::from_millis(1));
                }
                samples
            }
        });
        Sampler { stop, thread }
    }

    fn stop(self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it samples")
    }
}

/// The ages of a time in which nobody asks for anything.
async fn quiet(world: &World) -> Samples {
    let sampler = Sampler::start(world.cache());
    sleep(QUIET).await;
    sampler.stop()
}

pub(crate) async fn measure(world: &World, rounds: u32) {
    let mut idle = quiet(world).await.ages;
    let idle = quantile(&mut idle, 0.99);
    Line::seconds("age, p99: nobody writes", idle)
        .note("the follower polls once a second")
        .print();

    let load = Load::start(&world.dsn).await;
    sleep(PERIOD * 4).await;
    let mut following = quiet(world).await.ages;
    let following = quantile(&mut following, 0.99);
    Line::seconds("age, p99: 4 snapshots a second are written", following)
        .beside_seconds(idle, "nobody writes")
        .print();

    let (mut all, mut costs, mut moved) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let sampler = Sampler::start(world.cache());
        costs.push(world.resync().await);
        let samples = sampler.stop();
        all.extend(samples.ages);
        // The first version is the view from before, and the last the one that the read of everything makes.
        moved += samples.versions.len().saturating_sub(2);
        world.settle().await;
    }
    load.stop().await;
    let cost = typical(&costs);
    let oldest = quantile(&mut all, 1.0);
    Line::seconds(
        "age, p99: the same, while everything is read again (`resync()`)",
        quantile(&mut all, 0.99),
    )
    .beside_seconds(following, "only following")
    .cost(&cost)
    .note(format!(
        "each takes {}; at most {} old; {moved} other views published in {rounds} of them",
        time(cost.seconds),
        time(oldest)
    ))
    .print();
}
