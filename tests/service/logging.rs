//! The log of the service: repeated messages are held back, and a signal asks for more messages.

use oddscache_testkit::{
    Database, connect, eventually,
    followed::run as write,
    service::{Service, run},
};
use serde_json::Value;

use super::{served, with_odds};

/// Reads messages up to the first wanted one, which is the last in the result.
async fn messages_until(served: &mut Service, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut messages = Vec::new();
    loop {
        let message = served.message().await;
        messages.push(message.expect("what is wanted comes before the end"));
        if messages.last().is_some_and(&wanted) {
            return messages;
        }
    }
}

/// Ends the service. Returns its remaining messages.
async fn last_messages(mut served: Service) -> Vec<Value> {
    served.signal("-TERM");
    let lines = served.rest_of_log().await;
    let lines = lines.iter().map(|line| serde_json::from_str(line));
    lines.collect::<Result<_, _>>().expect("JSON")
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

/// Thousands of malformed rows must not fill the log.
#[tokio::test]
async fn repeated_messages_are_counted_and_held_back() {
    let (database, mut served) = served(&["--log-repeats", "3"]).await;
    database.psql("update market_odds set outcomes = '3'");
    let messages = messages_until(&mut served, |message| repeated(message) > 0).await;
    let is_written = |message: &&Value| says(message, MALFORMED) && repeated(message) == 0;
    let written = messages.iter().filter(is_written).count();
    assert_eq!(written, 3, "{messages:#?}");
    let last = messages.last().expect("one");
    // There are 16 malformed rows. If a lock on a busy machine makes the read begin again, each row counts twice.
    let held = repeated(last);
    assert!(held >= 13 && last["level"] == "WARN", "{last}");
    let told = format!("{MALFORMED} … repeated {held} times");
    assert!(says(last, &told), "{last}");
    let held_back = "oddscache_messages_held_back_total";
    assert_eq!(served.metric(held_back).await, held as f64);
    let warned = "oddscache_messages_total{level=\"warn\"}";
    let warned = served.metric(warned).await;
    assert!(warned >= 3.0 + held as f64, "{warned}");

    // At its end the service reports what it still holds back.
    database.psql("update market_odds set outcomes = '4'");
    eventually("held back", async || {
        served.metric(held_back).await >= held as f64 + 13.0
    })
    .await;
    let rest = last_messages(served).await;
    let written = rest.iter().filter(is_written).count();
    let malformed = rest.iter().filter(|message| says(message, MALFORMED));
    let told: u64 = malformed.map(repeated).sum();
    assert!(written == 3 && told >= 13, "{rest:#?}");
}

/// An operator gets debug messages without a restart.
#[tokio::test]
async fn sigusr2_switches_debug_messages_on_and_off() {
    let (database, mut served) = served(&["--lookback", "2s"]).await;
    let app = connect(&database.dsn()).await;
    // The event is held for a moment, and then leaves the window as time passes. On a slow machine the service may
    // never hold it, so try again.
    let evict = async |served: &Service| {
        let evicted = served.metric("oddscache_evicted_events_total").await;
        eventually("an event is dropped", async || {
            let sql = "update events set kickoff = now() at time zone 'UTC' - interval '1 s' where id = 1";
            write(&app, sql).await;
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
    let more = "SIGUSR2: logging oddscache=debug";
    served.logs(&[more]).await;
    evict(&served).await;
    let messages = messages_until(&mut served, |message| says(message, "evicted")).await;
    assert_eq!(messages.last().expect("one")["level"], "DEBUG");
    for message in messages {
        // No other crate logs at this level.
        let target = message["target"].as_str().unwrap();
        assert!(target.starts_with("oddscache"), "{message}");
    }

    served.signal("-USR2");
    served.logs(&["as before"]).await;
    let counted = served.metric(debug).await;
    assert!(counted >= 1.0);
    evict(&served).await;
    assert_eq!(served.metric(debug).await, counted);
    let rest = last_messages(served).await;
    let is_told = rest.iter().any(|message| says(message, "evicted"));
    assert!(!is_told, "{rest:#?}");
}

/// Without settings the log is text for people, at the level INFO.
#[test]
fn the_default_log_is_text_and_an_invalid_filter_is_refused() {
    let dump = run(&["dump", "--without-feed"], &Database::application().dsn());
    let line = dump.errors.lines().next().expect("a line");
    let warming_up = " INFO oddscache::follow: warming up";
    assert!(line.contains(warming_up), "{dump:?}");
    let loud = ["dump", "--log", "oddscache=loud"];
    let dump = run(&loud, "host=/nowhere user=u dbname=d");
    dump.with(2, &["--log oddscache=loud: not a log filter"]);
}

/// A change log that is not pruned grows without end. So the service must report a failure, but not each time.
#[tokio::test]
async fn a_failing_prune_is_logged_once_and_counted() {
    let database = with_odds();
    database.psql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no pruning today'; end $$;
         create trigger refuse before update on oddscache.log_state execute function refuse()",
    );
    let mut served = Service::start(&database.dsn(), &["--prune-interval", "100ms"]).await;
    let told = |message: &Value| says(message, "the change log was not pruned");
    let messages = messages_until(&mut served, told).await;
    let last = messages.last().expect("one");
    assert_eq!(last["level"], "WARN", "{last}");
    let error = last["fields"]["error"].as_str().expect("an error");
    let refused = "no pruning today (SQLSTATE P0001)";
    assert!(error.contains(refused), "{error}");
    assert!(says(last, "oddscache.change_log grows"), "{last}");
    assert!(says(last, "oddscache doctor"), "{last}");
    eventually("it fails again", async || {
        served.metric("oddscache_prune_failures_total").await >= 3.0
    })
    .await;
    database.psql("drop trigger refuse on oddscache.log_state");
    let messages = messages_until(&mut served, |message| says(message, "is pruned again")).await;
    assert!(!messages.iter().any(told), "{messages:#?}");
    let pruning = &served.json("/v1/stats").await["pruning"];
    assert!(pruning["failed"].as_u64() >= Some(3), "{pruning}");
    assert!(pruning["done"].as_u64() >= Some(1), "{pruning}");
}
