//! The service publishes to a relay, and follows one.

use oddscache_testkit::{
    Database, eventually,
    nats::Nats,
    service::{SERVE, Service, command},
};

use crate::{Publisher, Subscriber, relay};

#[tokio::test]
async fn a_service_without_a_database_answers_as_its_publisher_does() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Service::warm(&database.dsn(), &["--relay-to", &nats.url()]).await;
    let url = nats.url();
    let from = [&SERVE[..], &["--relay-from", &url]].concat();
    let subscriber = Service::spawn(command(&from)).await;
    subscriber.ready().await;
    eventually("both answer the same", async || {
        let (one, two) = (
            publisher.get("/v1/events").await,
            subscriber.get("/v1/events").await,
        );
        let events = |answer: &str| {
            let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
            answer["events"].clone()
        };
        one.0 == 200 && two.0 == 200 && events(&one.1) == events(&two.1)
    })
    .await;
    let status = subscriber.json("/v1/stats").await;
    assert_eq!(status["status"], "live", "{status}");
    assert!(subscriber.metric("oddscache_relay_answers_total").await > 0.0);
    assert!(publisher.metric("oddscache_relay_states_total").await > 0.0);
}

#[test]
fn a_service_cannot_do_both() {
    let both = [
        "serve",
        "--relay-from",
        "nats://h",
        "--relay-to",
        "nats://h",
    ];
    let ended = oddscache_testkit::service::ended(&mut command(&both));
    ended.with(2, &["--relay-to", "--relay-from"]);
}

/// A frozen leader that wakes up adds nothing, and no reader goes back.
#[tokio::test]
async fn a_frozen_leader_harms_nothing() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let database = Database::seeded();
    let to = ["--relay-to", &nats.url()];
    let first = Service::warm(&database.dsn(), &to).await;
    let subscriber = Subscriber::ready(relay(&nats)).await;
    subscriber.fresh().await;
    let second = Publisher::start(&database, relay(&nats)).await;
    let epoch = subscriber.cache.view().epoch();
    first.signal("-STOP");
    second.followed.set_line(5).await;
    second.followed.caught_up("a change").await;
    subscriber
        .equals(&second.followed.cache, "the second")
        .await;
    first.signal("-CONT");
    let mut last = subscriber.cache.view();
    for line in 6..26 {
        second.followed.set_line(line).await;
        second.followed.caught_up("a change").await;
        let view = subscriber
            .equals(&second.followed.cache, "still the second")
            .await;
        assert!(view.cut().as_of >= last.cut().as_of);
        last = view;
    }
    subscriber.fresh().await;
    assert_eq!(last.epoch(), epoch, "the history is the same");
    assert_eq!(subscriber.cache.counters().relay_mismatches, 0);
}
