//! What the service logs: not the same a thousand times, and more while it is asked to.

use std::time::Duration;

use oddscache_testkit::{connect, eventually};
use serde_json::Value;
use tokio::time::timeout;

use super::{Database, Served, run, text, with_odds};

impl Served {
    /// The next message; `None` at the end.
    async fn message(&mut self) -> Option<Value> {
        let line = timeout(Duration::from_secs(60), self.log.next_line());
        let line = line.await.expect("it logs").expect("readable")?;
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    /// Messages up to one that is wanted, which is the last.
    async fn messages_until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.message().await;
            messages.push(message.expect("what is wanted comes before the end"));
            if messages.last().is_some_and(&wanted) {
                return messages;
            }
        }
    }

    async fn rest(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            messages.push(message);
        }
        messages
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect(name).parse().expect("a number")
    }
}

fn says(message: &Value, words: &str) -> bool {
    message["fields"]["message"]
        .as_str()
        .is_some_and(|text| text.contains(words))
}

fn repeated(message: &Value) -> u64 {
    message["fields"]["repeated"].as_u64().unwrap_or(0)
}

const MALFORMED: &str = "malformed row; the cache serves the fields that it can read";

#[tokio::test]
async fn what_repeats_is_counted_and_not_written() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let mut served = Served::start(&database.dsn(), &["--log-repeats", "3"]).await;
    served.warm().await;
    app.batch_execute("update market_odds set outcomes = '3'")
        .await
        .unwrap();
    let messages = served.messages_until(|message| repeated(message) > 0).await;
    let written = messages
        .iter()
        .filter(|message| says(message, MALFORMED) && repeated(message) == 0);
    assert_eq!(written.count(), 3, "{messages:#?}");
    let last = messages.last().expect("one");
    // Of sixteen, each of which is named again should a lock on a busy machine make the read begin anew.
    let held = repeated(last);
    assert!(held >= 13 && last["level"] == "WARN", "{last}");
    let told = format!("{MALFORMED} … repeated {held} times");
    assert!(says(last, &told), "{last}");
    let held_back = "oddscache_messages_held_back_total";
    assert_eq!(served.metric(held_back).await, held as f64);
    let warned = served
        .metric("oddscache_messages_total{level=\"warn\"}")
        .await;
    assert!(warned >= 3.0 + held as f64, "{warned}");

    // What is held back at the end is told then.
    app.batch_execute("update market_odds set outcomes = '4'")
        .await
        .unwrap();
    eventually("held back", async || {
        served.metric(held_back).await >= held as f64 + 13.0
    })
    .await;
    served.signal("-TERM");
    let rest = served.rest().await;
    let (mut written, mut told) = (0, 0);
    for message in rest.iter().filter(|message| says(message, MALFORMED)) {
        told += repeated(message);
        written += u64::from(repeated(message) == 0);
    }
    assert!(written == 3 && told >= 13, "{rest:#?}");
}

#[tokio::test]
async fn a_signal_asks_for_more_and_for_as_before() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let lookback = ["--lookback", "2s"];
    let mut served = Served::start(&database.dsn(), &lookback).await;
    served.warm().await;
    // Held for a moment, then dropped for the time alone; again, should the machine be too slow to see it held.
    let evict = async |served: &Served| {
        let evicted = served.metric("oddscache_evicted_events_total").await;
        eventually("an event is dropped", async || {
            let sql = "update events set kickoff = now() at time zone 'UTC' - interval '1 s' where id = 1";
            app.batch_execute(sql).await.unwrap();
            let gone = async || served.metric("oddscache_evicted_events_total").await > evicted;
            let outside = async || served.get("/v1/events/1").await.0 == 404;
            eventually("it is out of the window", async || gone().await || outside().await).await;
            gone().await
        })
        .await;
    };
    let debug = "oddscache_messages_total{level=\"debug\"}";
    evict(&served).await;
    assert_eq!(served.metric(debug).await, 0.0);
    served.signal("-USR2");
    served
        .messages_until(|message| says(message, "SIGUSR2: logging oddscache=debug"))
        .await;
    evict(&served).await;
    let messages = served
        .messages_until(|message| says(message, "evicted"))
        .await;
    assert_eq!(messages.last().expect("one")["level"], "DEBUG");
    // Not what others say.
    assert!(
        messages
            .iter()
            .all(|message| message["target"].as_str().unwrap().starts_with("oddscache"))
    );

    served.signal("-USR2");
    served
        .messages_until(|message| says(message, "as before"))
        .await;
    let counted = served.metric(debug).await;
    assert!(counted >= 1.0);
    evict(&served).await;
    assert_eq!(served.metric(debug).await, counted);
    served.signal("-TERM");
    let rest = served.rest().await;
    assert!(
        rest.iter().all(|message| !says(message, "evicted")),
        "{rest:#?}"
    );
}

#[test]
fn text_is_for_people_and_a_filter_that_is_none_is_refused() {
    let output = run(&["dump", "--without-feed"], &Database::application().dsn());
    let log = text(&output.stderr);
    let line = log.lines().next().expect("a line");
    assert!(
        line.contains(" INFO oddscache::follow: warming up"),
        "{log}"
    );
    let output = run(
        &["dump", "--log", "oddscache=loud"],
        "host=/nowhere user=u dbname=d",
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--log oddscache=loud: not a log filter"));
}

/// Row 5: a log that nobody prunes grows without end, so it must be said.
#[tokio::test]
async fn a_failing_prune_is_told_once_and_counted() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    app.batch_execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no pruning today'; end $$;
         create trigger refuse before update on oddscache.log_state execute function refuse()",
    )
    .await
    .unwrap();
    let mut served = Served::start(&database.dsn(), &["--prune-interval", "100ms"]).await;
    let told = |message: &Value| says(message, "the change log was not pruned");
    let messages = served.messages_until(told).await;
    let last = messages.last().expect("one");
    assert_eq!(last["level"], "WARN", "{last}");
    let error = last["fields"]["error"].as_str().expect("an error");
    assert!(
        error.contains("no pruning today (SQLSTATE P0001)"),
        "{error}"
    );
    assert!(
        says(last, "oddscache.change_log grows") && says(last, "oddscache doctor"),
        "{last}"
    );
    eventually("it fails again", async || {
        served.metric("oddscache_prune_failures_total").await >= 3.0
    })
    .await;
    app.batch_execute("drop trigger refuse on oddscache.log_state")
        .await
        .unwrap();
    let messages = served
        .messages_until(|message| says(message, "is pruned again"))
        .await;
    assert!(!messages.iter().any(told), "{messages:#?}");
    let pruning = &served.json("/v1/stats").await["pruning"];
    assert!(pruning["failed"].as_u64() >= Some(3), "{pruning}");
    assert!(pruning["done"].as_u64() >= Some(1), "{pruning}");
}
