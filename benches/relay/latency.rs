//! Time from COMMIT until a subscriber shows a change. The floors: the publisher's own view, which is a direct handle, and
//! a bare JetStream consumer that gets the same message.

use std::time::{Duration, Instant};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::StreamExt;
use oddscache_testkit::bench::figures::{median, milliseconds, quantile};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{Bench, Cache, number, write};

/// A bare consumer on a runtime of its own. It notes when each message came, and the version to which it leads.
struct Bare {
    runtime: Runtime,
    came: mpsc::UnboundedReceiver<(Instant, u64)>,
}

impl Bare {
    async fn start(url: String) -> Bare {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let (sender, came) = mpsc::unbounded_channel();
        let (ready, mut is_ready) = watch::channel(false);
        runtime.spawn(async move {
            let client = async_nats::connect(&url).await.unwrap();
            let stream = jetstream::new(client.clone())
                .get_stream("oddscache_odds")
                .await;
            let config = OrderedConfig {
                deliver_subject: client.new_inbox(),
                deliver_policy: DeliverPolicy::New,
                ..OrderedConfig::default()
            };
            let consumer = stream.unwrap().create_consumer(config).await.unwrap();
            let mut messages = consumer.messages().await.unwrap();
            let _ = ready.send(true);
            while let Some(Ok(message)) = messages.next().await {
                let _ = sender.send((Instant::now(), version(&message.payload)));
            }
        });
        is_ready.wait_for(|is_ready| *is_ready).await.unwrap();
        Bare { runtime, came }
    }
}

/// The publisher's version after a change: the seventh number of the message, after three bytes of magic.
fn version(message: &[u8]) -> u64 {
    let mut rest = message[3..].iter();
    let mut number = || {
        let (mut number, mut shift) = (0_u128, 0);
        for byte in rest.by_ref() {
            number |= u128::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    };
    let numbers: Vec<u128> = (0..7).map(|_| number()).collect();
    u64::try_from(numbers[6]).expect("a version")
}

fn drain<T>(queue: &mut mpsc::UnboundedReceiver<T>) -> Vec<T> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

/// Commits one snapshot again and again, and prints how soon each shows it.
async fn commits(
    bench: &Bench,
    caches: [&mut Cache; 2],
    bare: &mut Bare,
    count: usize,
    what: &str,
) {
    let [publisher, subscriber] = caches;
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    let (mut added, mut floor) = (Vec::new(), Vec::new());
    // The events that no scrape changes.
    let events = &bench.events[bench.batch().len()..];
    for nth in 0..count {
        drain(&mut publisher.seen);
        drain(&mut subscriber.seen);
        drain(&mut bare.came);
        let event = events[nth % events.len()];
        bench.writer.batch_execute("begin").await.expect("begun");
        write(&bench.writer, &[event]).await;
        let sent = Instant::now();
        bench
            .writer
            .batch_execute("commit")
            .await
            .expect("committed");
        let (one, shown) = publisher.shows(i64::from(event)).await;
        let (two, _) = subscriber.shows(i64::from(event)).await;
        direct.push(one.saturating_duration_since(sent));
        relayed.push(two.saturating_duration_since(sent));
        added.push(two.saturating_duration_since(one));
        sleep(Duration::from_millis(30)).await;
        // The subscriber got the same message. One message may contain several publications.
        let came = drain(&mut bare.came);
        let same = came.into_iter().find(|(_, version)| *version >= shown);
        floor.extend(same.map(|(at, _)| at.saturating_duration_since(one)));
    }
    println!("{count} commits of one snapshot, {what} (p50, p99):");
    for (what, times) in [
        ("COMMIT to the publisher's view", &mut direct),
        ("COMMIT to a subscriber's view", &mut relayed),
        ("the publisher's view to the subscriber's", &mut added),
        ("the publisher's view to a bare consumer", &mut floor),
    ] {
        let (p50, p99) = (median(times), quantile(times, 0.99));
        println!(
            "  {what:42}{:>12}{:>12}",
            milliseconds(p50),
            milliseconds(p99)
        );
    }
    let ratio = |one: &mut [Duration], two: &mut [Duration]| {
        median(one).as_secs_f64() / median(two).as_secs_f64()
    };
    println!(
        "  medians: subscriber x{:.2} of the publisher's view; the relay's part x{:.2} of the bare consumer",
        ratio(&mut relayed, &mut direct),
        ratio(&mut added, &mut floor)
    );
}

pub(crate) async fn run(bench: &Bench, publisher: &mut Cache, subscriber: &mut Cache) {
    let count = number("COMMITS", 300);
    let mut bare = Bare::start(bench.nats.url()).await;
    commits(bench, [publisher, subscriber], &mut bare, count, "quiet").await;
    let (batch, dsn) = (bench.batch().to_vec(), bench.server.dsn.clone());
    let scraper = Bench::writer(&dsn).await;
    let (stop, is_stopped) = watch::channel(false);
    let scrape = tokio::spawn(async move {
        while !*is_stopped.borrow() {
            write(&scraper, &batch).await;
        }
    });
    let what = "while another client changes 150 snapshots in a transaction, again and again";
    commits(bench, [publisher, subscriber], &mut bare, count / 2, what).await;
    let _ = stop.send(true);
    scrape.await.unwrap();
    bare.runtime.shutdown_background();
}
