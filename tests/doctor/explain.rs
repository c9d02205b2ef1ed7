//! `oddscache explain`: which rows an event comes from, and whether a service agrees.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Child,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use oddscache_testkit::eventually;
use serde_json::json;

use super::*;

fn explain(dsn: &str, event: &str, more: &[&str]) -> (i32, Value) {
    json_of(&[&["explain", event], more].concat(), dsn)
}

/// A stand-in for a service: answers `GET` with given values.
struct Answering {
    url: String,
}

impl Answering {
    fn new(stats: Value, event: Option<Value>) -> Answering {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut buffer = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    let read = stream.read(&mut buffer).unwrap();
                    request.extend_from_slice(&buffer[..read]);
                }
                let is_stats = request.starts_with(b"GET /v1/stats ");
                let (status, body) = match (&event, is_stats) {
                    (_, true) => ("200 OK", stats.to_string()),
                    (Some(event), _) => ("200 OK", event.to_string()),
                    (None, _) => ("404 Not Found", "{}".to_owned()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Answering { url }
    }
}

/// `oddscache serve` on a free port.
struct Served {
    child: Child,
    url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    async fn start(dsn: &str) -> Served {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let child = command(&["serve", "--listen", &address], dsn)
            .spawn()
            .expect("the binary runs");
        let served = Served {
            child,
            url: format!("http://{address}"),
        };
        let ready = format!("{}/readyz", served.url);
        eventually("it is warm", async || {
            reqwest::get(&ready)
                .await
                .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        served
    }
}

fn hours_ago(hours: i64) -> DateTime<Utc> {
    DateTime::<Utc>::from(std::time::SystemTime::now()) - chrono::Duration::hours(hours)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_agrees_and_the_origin_is_told() {
    let sound = Sound::new();
    let served = Served::start(&sound.dsn()).await;
    sound.database.psql(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-01-01');
         update competitor_events set deleted_at = now() where id = 11;
         update market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 7.25}]' where id = 1221",
    );
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &served.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");
    assert_eq!(told["differences"], json!([]));
    assert_eq!(told["database"]["standing"], "held");
    assert!(told["service"]["stats"]["as_of"].is_string());
    let latest = told["database"]["latest"].as_array().unwrap();
    let ids: Vec<(&Value, &Value, &Value)> = latest
        .iter()
        .map(|latest| {
            (
                &latest["snapshot_id"],
                &latest["beaten"],
                &latest["markets"],
            )
        })
        .collect();
    // The greatest id wins, whatever its captured_at. The deleted competitor event does not count.
    assert_eq!(
        ids,
        [
            (&json!(900), &json!(2), &json!(0)),
            (&json!(122), &json!(1), &json!(2)),
            (&json!(12), &json!(1), &json!(2))
        ]
    );
    assert_eq!(latest[0]["captured_at"], "2020-01-01T00:00:00Z");
    assert_eq!(latest[0]["older"][0]["snapshot_id"], 112);
    assert_eq!(latest[2]["source"], "sportybet");
    let deleted: Vec<&Value> = told["database"]["competitor_events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| !event["deleted_at"].is_null())
        .collect();
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0]["id"], 11);
    let log = told["database"]["log"].as_array().unwrap();
    let newest: Vec<&Value> = log.iter().take(3).map(|row| &row["table_name"]).collect();
    assert_eq!(
        newest,
        ["market_odds", "competitor_events", "odds_snapshots"]
    );

    // The text for people.
    let output = run(&["explain", "1", "--url", &served.url], &sound.dsn());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "bookmaker 1: snapshot 900, captured 2020-01-01T00:00:00Z",
        "it replaced 2: 112 of ",
        "competitor event 11 (bet9ja x11) does not count: deleted at",
        "UPDATE market_odds",
        "agrees: ",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    // The service shows what can be read of a malformed row. That is no difference.
    sound.database.psql("update market_odds set outcomes = '[7, {\"name\": \"1\", \"odds\": \"2.5\"}]' where id = 1222");
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &served.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");

    // The event is absent from the database and from the service.
    let (code, told) = explain(&sound.dsn(), "4", &["--url", &served.url]);
    assert_eq!(
        (code, &told["verdict"], &told["database"]["standing"]),
        (0, &json!("agrees"), &json!("outside_window"))
    );
}

#[test]
fn an_absent_event_has_its_reason() {
    let sound = Sound::new();
    sound.database.psql(
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
         values (7, 'sr7', 'x', 'x', 'x', now() at time zone 'UTC' + interval '1 hour'); \
         insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id, deleted_at) \
         values (7, 'sportybet', 7, now(), 'x7', 'sr7', now()); insert into competitor_odds_snapshots (competitor_event_id) values (7)",
    );
    for (event, standing) in [
        ("99", "no_such_event"),
        ("4", "outside_window"),
        ("7", "no_snapshot"),
        ("3", "held"),
    ] {
        let (code, told) = explain(&sound.dsn(), event, &["--no-service"]);
        assert_eq!((code, &told["verdict"]), (0, &json!("database_only")));
        assert_eq!(told["database"]["standing"], standing, "{told:#}");
    }
    // With a longer lookback the same event is held.
    let (_, told) = explain(&sound.dsn(), "4", &["--no-service", "--lookback", "3h"]);
    assert_eq!(told["database"]["standing"], "held");
}

/// What a service would hold now. The binary reads it from the database.
fn held(dsn: &str, event: i64) -> Value {
    let output = run(&["dump"], dsn);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .find(|value| value["event_id"] == event)
        .expect("held")
}

#[test]
fn a_difference_is_a_fault_unless_a_newer_change_explains_it() {
    let sound = Sound::new();
    let stats =
        |as_of: DateTime<Utc>| json!({"as_of": as_of, "age_ms": 7, "epoch": 3, "status": "live"});
    // A time that is later than the database's clock in any case.
    let current = stats(hours_ago(-1));
    let right = held(&sound.dsn(), 1);

    let service = Answering::new(current.clone(), Some(right.clone()));
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &service.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");

    let mut wrong = right.clone();
    wrong["betpawa"]["1"]["markets"][0]["outcomes"][1]["odds"] = json!(9.5);
    wrong["competitors"]["sportybet"]["snapshot_id"] = json!(11);
    let service = Answering::new(current.clone(), Some(wrong));
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &service.url]);
    assert_eq!((code, &told["verdict"]), (1, &json!("differs")), "{told:#}");
    let fields: Vec<&Value> = told["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["field"])
        .collect();
    assert_eq!(
        fields,
        [
            "betpawa.1.markets.0.outcomes.1.odds",
            "competitors.sportybet.snapshot_id"
        ]
    );
    assert_eq!(told["differences"][0]["service"], 9.5);
    assert!(
        told["reason"].as_str().unwrap().contains("this is a fault"),
        "{told:#}"
    );

    // Only one side holds the event.
    let service = Answering::new(current.clone(), None);
    assert_eq!(explain(&sound.dsn(), "1", &["--url", &service.url]).0, 1);
    let service = Answering::new(current, Some(right.clone()));
    assert_eq!(explain(&sound.dsn(), "99", &["--url", &service.url]).0, 1);

    // The service is behind: a change that is newer than its cut explains the difference.
    let before = Utc::now();
    sound
        .database
        .psql("update events set kickoff = kickoff + interval '1 minute' where id = 1");
    let service = Answering::new(stats(before), Some(right));
    let began = Instant::now();
    let (code, told) = explain(
        &sound.dsn(),
        "1",
        &["--url", &service.url, "--wait", "200ms"],
    );
    assert_eq!((code, &told["verdict"]), (1, &json!("differs")), "{told:#}");
    assert!(
        told["reason"]
            .as_str()
            .unwrap()
            .contains("a newer change explains it"),
        "{told:#}"
    );
    let after_cut = told["database"]["log"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["after_cut"] == true);
    assert_eq!(after_cut.count(), 1, "{told:#}");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn explain_names_what_it_may_not_read_and_its_usage() {
    let sound = Sound::new();
    let reader = format!("reader_{}", sound.database.name);
    sound.database.psql(&format!(
        "create role {reader} login; grant select on all tables in schema public to {reader}"
    ));
    let (code, told) = explain(
        &cluster().dsn_as(&reader, &sound.database.name),
        "1",
        &["--no-service"],
    );
    assert_eq!(code, 0);
    assert!(
        told["database"]["log_trouble"]
            .as_str()
            .unwrap()
            .contains("permission denied"),
        "{told:#}"
    );
    for wrong in [
        &["explain"][..],
        &["explain", "x"],
        &["explain", "1", "--url", "ftp://cache"],
        &["doctor", "--bogus"],
    ] {
        assert_eq!(run(wrong, &sound.dsn()).status.code(), Some(2), "{wrong:?}");
    }
    // A service that the caller names must answer.
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = run(
        &["explain", "1", "--url", &format!("http://{refused}")],
        &sound.dsn(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("asking the service"));
}
