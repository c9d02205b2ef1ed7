//! `oddscache demo --incident`: each incident happens, is reported, and ends with the cache equal to the database.

use oddscache_testkit::programs::optional;

use super::{demo, ended_demo};

/// Runs a small demo until the incident is over. The output must contain these words in this order.
async fn told(incident: &str, words: &[&str]) {
    told_by(&[], incident, words).await;
}

/// The same, of a demo with more flags.
async fn told_by(flags: &[&str], incident: &str, words: &[&str]) {
    let when = ["--incident-after", "500ms", "--for", "1s"];
    let demo = demo(&[flags, &["--incident", incident], &when].concat());
    let printed = ended_demo(demo).await.ok().out;
    let begins = format!("incident {incident}: ");
    let over = format!("incident {incident} is over, and the promise held: all ");
    let mut rest = printed.as_str();
    for word in [&[&*begins], words, &[&over]].concat() {
        let found = rest.split_once(word);
        (_, rest) = found.unwrap_or_else(|| panic!("no {word:?} in place: {printed}"));
    }
    let (told, _) = printed.split_once(&over).expect("just found");
    assert!(told.contains("never taken back"), "{printed}");
}

/// The demo reports the restart, the age of the view, and the new epoch.
#[tokio::test]
async fn the_cache_recovers_from_a_restart_of_the_server() {
    let words = [
        "the cache is disconnected",
        "the server is started; the cache says that it is ",
        "back: everything was read again, epoch 2",
    ];
    told("restart", &words).await;
}

/// The demo reports that the age grew while the network was cut.
#[tokio::test]
async fn the_cache_notices_a_cut_network_and_recovers() {
    let words = [
        "the network is cut",
        "the cache is disconnected",
        "the network is healed; the cache says that it is ",
        "back: ",
    ];
    told("partition", &words).await;
}

/// The demo writes rows that no trigger logs, and reports that the cache has them afterwards.
#[tokio::test]
async fn the_cache_notices_a_disabled_trigger_and_misses_nothing() {
    let words = [
        "oddscache_insert is disabled (repair: ALTER TABLE",
        "the trigger is enabled again, after ",
        " markets without a log row; the cache says that it is ",
        "back: everything was read again",
    ];
    told("trigger-off", &words).await;
}

/// The demo looks at the cache until COMMIT, and sees no part of the transaction before.
#[tokio::test]
async fn a_transaction_over_everything_is_one_publication() {
    let words = [
        "the cache read the database since and shows none: COMMIT",
        " events changed in one publication, ",
        "; all ",
        " snapshots are new",
    ];
    told("bulk", &words).await;
}

/// The demo reports when each subscriber follows the publisher that is left, and that nothing went back or differs.
#[tokio::test]
async fn subscribers_follow_the_other_publisher_when_the_leader_is_killed() {
    let Some(_) = optional(&["nats-server"], "nats-server") else {
        return;
    };
    let words = [
        "led, and is killed",
        "follows the other one, ",
        "follows the other one, ",
        "follows the other one, ",
        "still epoch 1; ",
        "a reader of subscriber 1 looked ",
        "a reader of subscriber 2 looked ",
        "a reader of subscriber 3 looked ",
    ];
    told_by(&["--relay"], "leader", &words).await;
}

/// A user learns at once which demo shows an incident.
#[tokio::test]
async fn an_incident_of_the_other_kind_of_demo_is_refused() {
    let without = demo(&["--incident", "leader"]);
    ended_demo(without).await.with(2, &["needs --relay"]);
    let Some(_) = optional(&["nats-server"], "nats-server") else {
        return;
    };
    let with = demo(&["--relay", "--incident", "bulk"]);
    ended_demo(with).await.with(2, &["the only incident is"]);
}

/// A user who mistypes an incident sees which ones exist.
#[tokio::test]
async fn an_unknown_incident_is_refused_with_a_list_of_the_known_ones() {
    let demo = demo(&["--incident", "flood"]);
    ended_demo(demo).await.with(2, &["trigger-off"]);
}
