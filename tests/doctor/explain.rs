//! `oddscache explain`: which rows an event comes from, and whether a service agrees.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use oddscache_testkit::service::Service;
use serde_json::json;

use super::*;

fn explain(dsn: &str, event: &str, more: &[&str]) -> (i32, Value) {
    json_of(&[&["explain", event], more].concat(), dsn)
}

/// Runs `explain`, which must end with this exit code and this verdict.
#[track_caller]
fn judged(code: i32, verdict: &str, dsn: &str, event: &str, more: &[&str]) -> Value {
    let (ended, told) = explain(dsn, event, more);
    assert_eq!((ended, text(&told, "verdict")), (code, verdict), "{told:#}");
    told
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

fn hours_ago(hours: i64) -> DateTime<Utc> {
    DateTime::<Utc>::from(std::time::SystemTime::now()) - chrono::Duration::hours(hours)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_agrees_and_the_origin_is_told() {
    let sound = Sound::new();
    let service = Service::warm(&sound.dsn(), &[]).await;
    let url = ["--url", &service.base];
    sound.database.psql(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-01-01');
         update competitor_events set deleted_at = now() where id = 11;
         update market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 7.25}]' where id = 1221",
    );
    let told = judged(0, "agrees", &sound.dsn(), "1", &url);
    assert_eq!(told["differences"], json!([]));
    assert_eq!(told["database"]["standing"], "held");
    assert!(told["service"]["stats"]["as_of"].is_string());
    let latest = told["database"]["latest"].as_array().unwrap();
    let ids: Vec<[&Value; 3]> = latest
        .iter()
        .map(|latest| ["snapshot_id", "beaten", "markets"].map(|name| &latest[name]))
        .collect();
    // The greatest id wins, whatever its captured_at. The deleted competitor event does not count.
    assert_eq!(json!(ids), json!([[900, 2, 0], [122, 1, 2], [12, 1, 2]]));
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
    let parts = [
        "bookmaker 1: snapshot 900, captured 2020-01-01T00:00:00Z",
        "it replaced 2: 112 of ",
        "competitor event 11 (bet9ja x11) does not count: deleted at",
        "UPDATE market_odds",
        "agrees: ",
    ];
    service::run(&["explain", "1", "--url", &service.base], &sound.dsn()).with(0, &parts);

    // The service shows what can be read of a malformed row. That is no difference.
    sound.database.psql("update market_odds set outcomes = '[7, {\"name\": \"1\", \"odds\": \"2.5\"}]' where id = 1222");
    judged(0, "agrees", &sound.dsn(), "1", &url);

    // The event is absent from the database and from the service.
    let (code, told) = explain(&sound.dsn(), "4", &url);
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
        let told = judged(0, "database_only", &sound.dsn(), event, &["--no-service"]);
        assert_eq!(told["database"]["standing"], standing, "{told:#}");
    }
    // With a longer lookback the same event is held.
    let (_, told) = explain(&sound.dsn(), "4", &["--no-service", "--lookback", "3h"]);
    assert_eq!(told["database"]["standing"], "held");
}

/// What a service would hold now. The binary reads it from the database.
fn held(dsn: &str, event: i64) -> Value {
    let dump = service::run(&["dump"], dsn).ok().out;
    let mut events = dump
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
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
    judged(0, "agrees", &sound.dsn(), "1", &["--url", &service.url]);

    let mut wrong = right.clone();
    wrong["betpawa"]["1"]["markets"][0]["outcomes"][1]["odds"] = json!(9.5);
    wrong["competitors"]["sportybet"]["snapshot_id"] = json!(11);
    let service = Answering::new(current.clone(), Some(wrong));
    let told = judged(1, "differs", &sound.dsn(), "1", &["--url", &service.url]);
    let [odds, snapshot] = [0, 1].map(|at| &told["differences"][at]);
    assert_eq!(odds["field"], "betpawa.1.markets.0.outcomes.1.odds");
    assert_eq!(odds["service"], 9.5);
    assert_eq!(snapshot["field"], "competitors.sportybet.snapshot_id");
    assert_eq!(told["differences"][2], Value::Null);
    says(&told, "reason", "this is a fault");

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
    let told = judged(
        1,
        "differs",
        &sound.dsn(),
        "1",
        &["--url", &service.url, "--wait", "200ms"],
    );
    says(&told, "reason", "a newer change explains it");
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
    says(&told["database"], "log_trouble", "permission denied");
    for wrong in [
        &["explain"][..],
        &["explain", "x"],
        &["explain", "1", "--url", "ftp://cache"],
        &["doctor", "--bogus"],
    ] {
        service::run(wrong, &sound.dsn()).with(2, &[]);
    }
    // A service that the caller names must answer.
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{refused}");
    service::run(&["explain", "1", "--url", &url], &sound.dsn()).with(1, &["asking the service"]);
}
