//! Logins and permissions.

use oddscache::Relay;
use oddscache_testkit::{Database, nats::Nats};

use crate::{Publisher, Subscriber};

/// The permissions that `src/relay/README.md` names.
pub(super) fn users() -> String {
    let readme = include_str!("../../src/relay/README.md");
    let row = |who: &str| {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| {who} | `")));
        let row = row.expect("a row of the table");
        let cells: Vec<&str> = row.split(" | ").collect();
        let subjects = |cell: &str| -> String {
            let subjects = cell.split('`').skip(1).step_by(2);
            let subjects = subjects.filter(|subject| *subject != "allow_responses");
            let subjects: Vec<String> = subjects.map(|subject| format!("\"{subject}\"")).collect();
            subjects.join(", ")
        };
        let responses = match row.contains("allow_responses") {
            true => "allow_responses: true",
            false => "",
        };
        format!(
            "{{ user: {who}, password: \"pass of {who}\", permissions: {{ publish: [{}], subscribe: [{}], {responses} }} }}",
            subjects(cells[1]),
            subjects(cells[2])
        )
    };
    format!(
        "authorization {{ users: [ {}, {} ] }}",
        row("publisher"),
        row("subscriber")
    )
}

fn relay_as(nats: &Nats, user: &str) -> Relay {
    let relay = Relay::new(&nats.url()).expect("a URL");
    relay.user_and_password(user, &format!("pass of {user}"))
}

#[tokio::test]
async fn the_documented_permissions_suffice() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay_as(&nats, "publisher")).await;
    let subscriber = Subscriber::ready(relay_as(&nats, "subscriber")).await;
    for line in 1..4 {
        publisher.followed.set_line(line).await;
        publisher.followed.caught_up("a change").await;
        subscriber
            .equals(&publisher.followed.cache, "a change")
            .await;
    }
    subscriber.fresh().await;
    assert_eq!(subscriber.cache.counters().relay_gaps, 0);
    // A second publisher asks for the lease that the first one has.
    let second = Publisher::start(&database, relay_as(&nats, "publisher")).await;
    drop(publisher);
    second.followed.set_line(9).await;
    second.followed.caught_up("a change").await;
    subscriber
        .equals(&second.followed.cache, "the second")
        .await;
}

#[tokio::test]
async fn a_subscriber_may_not_publish() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let database = Database::seeded();
    // It follows the database, but may not publish: nothing comes of it.
    let _publisher = Publisher::start(&database, relay_as(&nats, "subscriber")).await;
    let subscriber = Subscriber::start(relay_as(&nats, "subscriber"));
    oddscache_testkit::eventually("the subscriber says what it misses", async || {
        subscriber
            .cache
            .status()
            .to_string()
            .contains("stream not found")
    })
    .await;
    assert!(!subscriber.cache.is_warm());
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_printed() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let relay = Relay::new(&nats.url()).expect("a URL");
    let relay = relay.user_and_password("subscriber", "not-the-password");
    let printed = format!("{relay:?}");
    let subscriber = Subscriber::start(relay);
    oddscache_testkit::eventually("the login is refused", async || {
        subscriber.cache.status().name() == "disconnected"
    })
    .await;
    let status = subscriber.cache.status().to_string();
    assert!(status.contains("authorization"), "{status}");
    assert!(!status.contains("not-the") && !printed.contains("not-the"));
}

#[tokio::test]
async fn a_token_logs_in() {
    let Some(nats) = Nats::start("authorization { token: \"a-token\" }").await else {
        return;
    };
    let relay = Relay::new(&nats.url()).expect("a URL").token("a-token");
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay.clone()).await;
    let subscriber = Subscriber::ready(relay).await;
    subscriber
        .equals(&publisher.followed.cache, "by a token")
        .await;
}

#[tokio::test]
async fn the_url_may_hold_the_login() {
    let settings = "authorization { user: \"me@here\", password: \"p:w/d\" }";
    let Some(nats) = Nats::start(settings).await else {
        return;
    };
    let url = nats.url().replace("nats://", "nats://me%40here:p%3Aw%2Fd@");
    let relay = Relay::new(&url).expect("a URL");
    assert!(!format!("{relay:?}").contains("p:w"), "{relay:?}");
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay.clone()).await;
    let subscriber = Subscriber::ready(relay).await;
    subscriber
        .equals(&publisher.followed.cache, "by the URL")
        .await;
    for wrong in ["", "nats://", "http://[", "nats://%zz@localhost"] {
        assert!(Relay::new(wrong).is_err(), "{wrong}");
    }
}
