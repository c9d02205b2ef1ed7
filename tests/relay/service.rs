//! The service publishes to a relay, and follows one.

use std::path::PathBuf;

use nkeys::KeyPairType;
use oddscache_testkit::{
    Database, eventually,
    nats::Nats,
    service::{SERVE, Service, command},
};

use crate::{
    Publisher, Subscriber,
    access::{Operated, key, nkey_user},
    relay,
    tls::Secured,
};

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
    subscriber.follows(&second.followed, 5, "the second").await;
    first.signal("-CONT");
    let mut last = subscriber.cache.view();
    for line in 6..26 {
        let view = subscriber
            .follows(&second.followed, line, "still the second")
            .await;
        assert!(view.cut().as_of >= last.cut().as_of);
        last = view;
    }
    subscriber.fresh().await;
    assert_eq!(last.epoch(), epoch, "the history is the same");
    assert_eq!(subscriber.cache.counters().relay_mismatches, 0);
}

/// A service at its most verbose log level, with these variables.
async fn verbose(dsn: &str, flags: &[&str], variables: &[(&str, &str)]) -> Service {
    let mut command = command(&[&SERVE[..], &["--log", "trace"], flags].concat());
    command.envs(variables.iter().copied());
    if !dsn.is_empty() {
        command.env("DATABASE_URL", dsn);
    }
    Service::spawn(command).await
}

/// Ends the service, and fails the test if its log contains one of these.
async fn assert_not_logged(mut service: Service, secrets: &[&str]) {
    service.signal("-TERM");
    service.ended().await;
    let log = service.rest_of_log().await.join("\n");
    assert!(
        log.contains("connected successfully"),
        "the log is not verbose"
    );
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// By TLS with client certificates and an nkey, all given by flags and variables.
#[tokio::test]
async fn flags_name_certificates_and_an_nkey() {
    let user = key(KeyPairType::User, 1);
    let Some(secured) = Secured::start("127.0.0.1", "verify: true", &nkey_user(&user)).await else {
        return;
    };
    let path = |path: PathBuf| path.display().to_string();
    let (certificate, key) = secured.client("client");
    let (root, certificate, key) = (path(secured.root()), path(certificate), path(key));
    let files = [
        "--relay-ca",
        &root,
        "--relay-cert",
        &certificate,
        "--relay-key",
        &key,
    ];
    let seed = user.seed().expect("a seed");
    let variables = [("ODDSCACHE_RELAY_NKEY", seed.as_str())];
    let database = Database::seeded();
    let url = secured.url();
    let to = [&["--relay-to", &url][..], &files].concat();
    let publisher = verbose(&database.dsn(), &to, &variables).await;
    let from = [&["--relay-from", &url][..], &files].concat();
    let subscriber = verbose("", &from, &variables).await;
    publisher.ready().await;
    subscriber.ready().await;
    let private = std::fs::read_to_string(&key).expect("a key");
    let private = private.lines().nth(1).expect("a line of the key");
    for service in [publisher, subscriber] {
        assert_not_logged(service, &[&seed, private]).await;
    }
    // Without the seed the log says what is missing, and how to go on.
    let mut stranger = verbose("", &from, &[]).await;
    stranger.logs(&["requires a login", "an nkey"]).await;
}

#[tokio::test]
async fn a_flag_names_a_credentials_file() {
    let Some(operated) = Operated::start().await else {
        return;
    };
    let (file, seed) = operated.credentials("user", &operated.account);
    let file = file.display().to_string();
    let url = operated.nats.url();
    let database = Database::seeded();
    let to = ["--relay-to", &url, "--relay-creds", &file];
    let publisher = verbose(&database.dsn(), &to, &[]).await;
    let from = ["--relay-from", &url, "--relay-creds", &file];
    let subscriber = verbose("", &from, &[]).await;
    subscriber.ready().await;
    let jwt = std::fs::read_to_string(&file).expect("a file");
    let jwt = jwt.lines().nth(1).expect("a JWT");
    for service in [publisher, subscriber] {
        assert_not_logged(service, &[&seed, jwt]).await;
    }
}

#[tokio::test]
async fn flags_name_a_user_or_a_token_but_not_both() {
    let settings = "authorization { users: [ { user: me, password: \"open sesame\" } ] }";
    let Some(nats) = Nats::start(settings).await else {
        return;
    };
    let from = nats.url();
    let from = ["--relay-from", &from];
    let user = ["--relay-user", "me"];
    let by_user = [&from[..], &user].concat();
    for (password, words) in [
        // Nobody has published yet.
        ("open sesame", "stream not found"),
        ("hunter2", "refuses the user or the password"),
    ] {
        let mut service = verbose("", &by_user, &[("ODDSCACHE_RELAY_PASSWORD", password)]).await;
        let mut log = String::new();
        while !log.contains(words) {
            log += &service.line().await.expect("it runs");
        }
        assert!(!log.contains(password), "{log}");
    }
    let mut both = command(&[&SERVE[..], &by_user].concat());
    both.env("ODDSCACHE_RELAY_TOKEN", "hunter2");
    let ended = oddscache_testkit::service::ended(&mut both);
    assert!(!ended.errors.contains("hunter2"), "{}", ended.errors);
    assert_ne!(ended.code, Some(0));
    assert!(
        ended
            .errors
            .contains("give one of --relay-user, --relay-token"),
        "{}",
        ended.errors
    );
}
