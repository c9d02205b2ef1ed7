//! `oddscache doctor` finds what is wrong with a relay, and nothing in a sound one.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use oddscache_testkit::{
    Database,
    nats::Nats,
    service::{Ended, Service, command, ended},
};
use serde_json::Value;

use crate::access::users;

/// The exit code, and the findings: id, object, level, what.
struct Report {
    code: Option<i32>,
    findings: Vec<Value>,
}

fn doctor(arguments: &[&str], variables: &[(&str, &str)]) -> Report {
    let mut doctor = command(&[&["doctor", "--json"], arguments].concat());
    let Ended { code, out, errors } = ended(doctor.envs(variables.iter().copied()));
    assert!(!out.contains("pass of"), "a secret is printed: {out}");
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {errors}"));
    let findings = report["findings"].as_array().expect("findings").clone();
    Report { code, findings }
}

impl Report {
    #[track_caller]
    fn ends(&self, code: i32) -> &Report {
        assert_eq!(self.code, Some(code), "{:#?}", self.findings);
        self
    }

    /// Fails the test unless a finding of this id has this level, and a text with these words.
    #[track_caller]
    fn has(&self, id: &str, level: &str, words: &str) -> &Report {
        let is = |finding: &&Value| {
            finding["id"] == id && finding["level"] == level && finding.to_string().contains(words)
        };
        let found = self.findings.iter().find(is);
        assert!(
            found.is_some(),
            "no {level} {id} {words}: {:#?}",
            self.findings
        );
        self
    }

    /// Fails the test unless all findings about the relay are `ok` or good to know.
    #[track_caller]
    fn is_sound(&self) -> &Report {
        let bad = |finding: &Value| {
            let is_relay = finding["id"].as_str().expect("an id").starts_with("relay.");
            is_relay && (finding["level"] == "fail" || finding["level"] == "warn")
        };
        assert!(!self.findings.iter().any(bad), "{:#?}", self.findings);
        self
    }
}

/// With the documented permissions doctor finds nothing, on either side, and writes nothing.
#[tokio::test]
async fn nothing_is_wrong_with_a_sound_relay() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let (database, url) = (Database::seeded(), nats.url());
    let login = |user: &'static str| {
        let password = match user {
            "publisher" => "pass of publisher",
            _ => "pass of subscriber",
        };
        [
            ("ODDSCACHE_RELAY_USER", user),
            ("ODDSCACHE_RELAY_PASSWORD", password),
        ]
    };
    let dsn = database.dsn();
    let to = ["--relay-to", &url];
    let _publisher = Service::start_with(&dsn, &to, &login("publisher")).await;
    let from = ["--relay-from", &url];
    oddscache_testkit::eventually("it leads", async || {
        doctor(&from, &login("subscriber")).code == Some(0)
    })
    .await;
    doctor(&from, &login("subscriber"))
        .is_sound()
        .has("relay.reachable", "ok", "nats-server 2.")
        .has("relay.stream", "ok", "the states")
        .has("relay.leader", "ok", "a publisher leads since 20")
        .has("relay.follow", "ok", "3 events");
    doctor(&to, &login("publisher"))
        .ends(0)
        .is_sound()
        .has("relay.stream", "ok", "the changes")
        .has("relay.stream", "ok", "the lease")
        .has("relay.leader", "info", "a publisher leads")
        .has("relay.size", "ok", "of 1024.0 MiB are used")
        .has("relay.rights", "ok", "nothing was written");
    // With a database, that is checked too.
    let with_database = [&login("publisher")[..], &[("DATABASE_URL", &dsn)]].concat();
    doctor(&[&to[..], &["--quick"]].concat(), &with_database)
        .is_sound()
        .has("server.reachable", "ok", "PostgreSQL")
        .has("relay.rights", "ok", "");
    // A subscriber's login may not publish.
    doctor(&to, &login("subscriber"))
        .ends(1)
        .has("relay.stream", "fail", "permissions");
    let wrong = [
        ("ODDSCACHE_RELAY_USER", "subscriber"),
        ("ODDSCACHE_RELAY_PASSWORD", "wrong"),
    ];
    doctor(&from, &wrong)
        .ends(1)
        .has("relay.reachable", "fail", "check the login");
}

/// A relay that nobody publishes to has no streams. That is a fault for a subscriber, and the beginning for a publisher.
#[tokio::test]
async fn a_relay_without_a_publisher_is_found() {
    let Some(nats) = Nats::start("max_payload: 65536").await else {
        return;
    };
    let url = nats.url();
    doctor(&["--relay-from", &url], &[])
        .ends(1)
        .has("relay.stream", "fail", "oddscache serve --relay-to")
        .has("relay.leader", "fail", "nobody publishes")
        .has("relay.payload", "warn", "65536");
    doctor(&["--relay-to", &url], &[])
        .ends(0)
        .has("relay.stream", "info", "the first publisher makes it")
        .has("relay.leader", "warn", "nobody publishes")
        .has("relay.rights", "ok", "");
    drop(nats);
    doctor(&["--relay-from", &url], &[])
        .ends(1)
        .has("relay.reachable", "fail", "nats-server runs");
}

/// Streams that somebody made by hand may have settings with which the relay does not work.
#[tokio::test]
async fn wrong_settings_of_streams_are_found() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let client = async_nats::connect(nats.url()).await.expect("a server");
    let jetstream = jetstream::new(client);
    for (name, subject, config) in [
        (
            "oddscache_odds",
            "oddscache.odds.>",
            stream::Config {
                discard: stream::DiscardPolicy::New,
                max_bytes: 1 << 20,
                ..stream::Config::default()
            },
        ),
        (
            "oddscache_odds_state",
            "oddscache.odds-state.>",
            stream::Config {
                max_messages_per_subject: 5,
                ..stream::Config::default()
            },
        ),
        (
            "KV_oddscache_odds",
            "$KV.oddscache_odds.>",
            stream::Config {
                max_messages_per_subject: 1,
                max_age: Duration::from_secs(60),
                allow_direct: true,
                ..stream::Config::default()
            },
        ),
    ] {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            ..config
        };
        jetstream.create_stream(config).await.expect("a stream");
    }
    let url = nats.url();
    let report = doctor(&["--relay-from", &url], &[]);
    report.ends(1);
    for words in [
        "not oddscache.odds.delta",
        "it refuses new messages",
        "nats stream rm oddscache_odds;",
        "not oddscache.odds.state.>",
        "it keeps 5 messages of a subject, not 1",
        "direct get",
        "the lease lasts 60.0 s, not 3.0 s",
    ] {
        report.has("relay.stream", "fail", words);
    }

    // A publisher of another name finds its own streams, of which one was made smaller.
    let config = stream::Config {
        name: "oddscache_small".to_owned(),
        subjects: vec!["oddscache.small.delta".to_owned()],
        max_bytes: 1 << 20,
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.expect("a stream");
    doctor(&["--relay-to", &url, "--relay-name", "small"], &[])
        .ends(0)
        .has("relay.stream", "warn", "it keeps 1048576 bytes")
        .has("relay.stream", "warn", "nats stream edit oddscache_small")
        .has("relay.stream", "info", "is missing; it is for the lease");
}
