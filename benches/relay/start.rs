//! The start of a subscriber. The floor reads the same messages by a bare client with a connection of its own.

use std::time::{Duration, Instant};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push::OrderedConfig},
};
use futures_util::{StreamExt, stream};
use oddscache::{Config, OddsCache};
use oddscache_testkit::bench::figures::{median, milliseconds};

use crate::{Bench, Cache, cost::QUESTION};

/// Times of a bare client, each from the beginning.
struct Bare {
    connected: Duration,
    has_state: Duration,
    has_all: Duration,
    bytes: usize,
}

/// The number that ends at the end of a message.
fn last_number(message: &[u8]) -> u64 {
    let begins = message[..message.len() - 1]
        .iter()
        .rposition(|byte| byte & 0x80 == 0);
    let bytes = &message[begins.map_or(0, |place| place + 1)..];
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
}

/// Reads what a subscriber reads at its start, in the same order and as many at once, and decodes nothing.
async fn read(url: &str) -> Bare {
    let begun = Instant::now();
    let client = async_nats::connect(url).await.unwrap();
    let connected = begun.elapsed();
    let jetstream = jetstream::new(client.clone());
    let states = jetstream.get_stream("oddscache_odds_state").await.unwrap();
    let get = async |subject: String| states.direct_get_last_for_subject(subject).await.unwrap();
    let head = get("oddscache.odds.state.head".to_owned()).await.payload;
    // Three bytes of magic, then the name of the slot with its length, then the number of parts.
    let slot = char::from(head[4]);
    let parts = head[5..].iter().zip(0_u32..);
    let end = parts
        .clone()
        .position(|(byte, _)| byte & 0x80 == 0)
        .unwrap();
    let parts = parts.take(end + 1);
    let parts = parts.fold(0, |sum, (byte, place)| {
        sum | u32::from(byte & 0x7f) << (7 * place)
    });
    let subjects = (0..parts).map(|part| format!("oddscache.odds.state.{slot}.{part}"));
    let mut parts = std::pin::pin!(stream::iter(subjects.map(&get)).buffered(4));
    let mut bytes = head.len();
    while let Some(part) = parts.next().await {
        bytes += part.payload.len();
    }
    client
        .request("oddscache.odds.ask", QUESTION.into())
        .await
        .unwrap();
    let has_state = begun.elapsed();
    let position = last_number(&head);
    let mut deltas = jetstream.get_stream("oddscache_odds").await.unwrap();
    let last = deltas.info().await.unwrap().state.last_sequence;
    if last > position {
        let config = OrderedConfig {
            deliver_subject: client.new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: position + 1,
            },
            ..OrderedConfig::default()
        };
        let consumer = deltas.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        loop {
            let message = messages.next().await.unwrap().unwrap();
            bytes += message.payload.len();
            if message.info().unwrap().stream_sequence >= last {
                break;
            }
        }
    }
    Bare {
        connected,
        has_state,
        has_all: begun.elapsed(),
        bytes,
    }
}

pub(crate) async fn run(bench: &Bench, publisher: &OddsCache) {
    let (mut ready, mut equal, mut bare, mut read_state) = (vec![], vec![], vec![], vec![]);
    for _ in 0..15 {
        bare.push(read(&bench.nats.url()).await);
        let begun = Instant::now();
        let late = Cache::start(Config::relay(bench.relay()));
        late.cache.ready().await.expect("warm");
        ready.push(begun.elapsed());
        while late.cache.view().cut().as_of < publisher.view().cut().as_of {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        equal.push(begun.elapsed());
        let warmup = late.cache.stats().last_warmup.expect("warm").seconds;
        read_state.push(Duration::from_secs_f64(warmup));
        late.runtime.shutdown_background();
    }
    let of = |time: fn(&Bare) -> Duration| median(&mut bare.iter().map(time).collect::<Vec<_>>());
    let (connected, has_state, has_all) = (
        of(|bare| bare.connected),
        of(|bare| bare.has_state),
        of(|bare| bare.has_all),
    );
    let (ready, equal, state) = (
        median(&mut ready),
        median(&mut equal),
        median(&mut read_state),
    );
    println!(
        "start of a subscriber, {} bytes, medians of 15:",
        bare[0].bytes
    );
    for (what, own, floor) in [
        ("until it shows a state", ready, has_state),
        ("until it shows what the publisher shows", equal, has_all),
    ] {
        println!(
            "  {what:42}{:>12}; bare {:>10}; x{:.2}",
            milliseconds(own),
            milliseconds(floor),
            own.as_secs_f64() / floor.as_secs_f64()
        );
    }
    println!(
        "  of these: reading and decoding the state {}; the bare client's connection {}, its reading {}",
        milliseconds(state),
        milliseconds(connected),
        milliseconds(has_state - connected)
    );
}
