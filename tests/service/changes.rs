//! `GET /v1/changes`, and the headers that say which view a response was made from.

use std::{collections::BTreeMap, time::Duration};

use oddscache_testkit::{
    connect, eventually,
    followed::run as write,
    load::events::{Event, Events},
    nginx::Nginx,
    service::Service,
};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::served;

/// A stream of changes.
struct Stream(Events);

impl Stream {
    async fn open(served: &Service, last: Option<&str>) -> Stream {
        Stream::of(served, "/v1/changes", last).await
    }

    /// Tries until there is room, because the service notices a little later that a client has closed its stream.
    async fn of(served: &Service, path: &str, last: Option<&str>) -> Stream {
        let header = last.map(|id| ("Last-Event-ID", id));
        let mut answer = None;
        eventually("a place", async || {
            let asked = served.ask(path, header.as_slice()).await;
            asked.status() != 503 && answer.insert(asked).status() == 200
        })
        .await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Stream(Events::of(answer))
    }

    /// The next event. `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        let next = timeout(Duration::from_secs(30), self.0.next()).await;
        next.expect("in time").unwrap_or_default()
    }

    /// The id and the data of the next event. Fails the test if it has another name.
    async fn expect(&mut self, name: &str) -> (String, Value) {
        let event = self.next().await.expect("an event");
        assert_eq!(event.name, name, "{event:?}");
        let data = event.data().expect("JSON");
        (event.id, data)
    }
}

/// A client that comes back misses nothing, or is told that it lagged.
#[tokio::test]
async fn a_stream_of_changes_is_resumed_without_a_gap() {
    let (database, served) = served(&["--most-streams", "3"]).await;
    let app = connect(&database.dsn()).await;

    let mut stream = Stream::open(&served, None).await;
    let (start, data) = stream.expect("start").await;
    assert_eq!(data["epoch"], 1);
    let insert = "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1), (5, 1)";
    write(&app, insert).await;
    let (first, data) = stream.expect("change").await;
    assert_eq!(data["betpawa"], json!([3, 5]), "{data}");
    assert_eq!(data["competitors"], json!({}));
    assert!(data["as_of"].is_string() && data["epoch"] == 1, "{data}");
    drop(stream);

    // A client that comes back with its last id gets the changes that it missed.
    let delete = "update competitor_events set deleted_at = now() where id = 7";
    write(&app, delete).await;
    let mut back = Stream::open(&served, Some(&first)).await;
    let (second, data) = back.expect("change").await;
    assert_eq!(data["competitors"], json!({ "sportybet": [7] }));
    let mut again = Stream::open(&served, Some(&start)).await;
    assert_eq!(again.expect("change").await.0, first);
    assert_eq!(again.expect("change").await.0, second);

    // The first id is of another process, the second is from the future, and the third is no id at all.
    for id in ["00000000-1", &format!("{second}9"), "x"] {
        let mut lost = Stream::open(&served, Some(id)).await;
        assert_eq!(lost.expect("lagged").await.0, second);
    }

    // At most three streams are open. A closed stream makes room, once the service has noticed that.
    let third = Stream::open(&served, None).await;
    let (status, sentence) = served.get("/v1/changes").await;
    assert_eq!(status, 503, "{sentence}");
    drop(third);
    Stream::open(&served, None).await;

    // When the service ends, its streams end at once.
    served.signal("-TERM");
    assert!(back.next().await.is_none());
}

fn event_id(event: &Value) -> i64 {
    event["event_id"].as_i64().expect("an id")
}

/// A client that reads a list once, and then applies the changes with their odds in order, always has the current list.
#[tokio::test]
async fn changes_come_with_their_odds() {
    let (database, served) = served(&[]).await;
    let app = connect(&database.dsn()).await;
    let mut stream = Stream::of(&served, "/v1/changes?odds=true", None).await;
    let (start, _) = stream.expect("start").await;
    let list = async || -> Vec<Value> {
        let list = served.json("/v1/list").await;
        list.as_array().expect("a list").clone()
    };
    let by_id = |event: Value| (event_id(&event), event);
    let mut held: BTreeMap<i64, Value> = list().await.into_iter().map(by_id).collect();
    for sql in [
        "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1), (5, 1)",
        "update market_odds set unavailable_at = now() at time zone 'UTC' where betpawa_market_id = '5000'",
        "update competitor_events set deleted_at = now() where id = 7",
        "delete from odds_snapshots where event_id in (2, 3)",
        "update events set kickoff = kickoff + interval '1 hour' where id = 4",
        "insert into odds_snapshots (event_id, bookmaker_id) values (2, 1)",
    ] {
        write(&app, sql).await;
        // Wait for the change. It may arrive as two changes.
        eventually("the list by changes", async || {
            let (_, change) = stream.expect("change").await;
            let lists = ["betpawa", "kickoffs"].map(|name| &change[name]);
            let sources = change["competitors"].as_object().expect("an object");
            let ids = lists.into_iter().chain(sources.values());
            for id in ids.flat_map(|ids| ids.as_array().expect("ids")) {
                held.remove(&id.as_i64().expect("an id"));
            }
            let odds = change["odds"].as_array().expect("odds");
            held.extend(odds.iter().cloned().map(by_id));
            let mut all: Vec<Value> = held.values().cloned().collect();
            all.sort_by_key(|event| event["kickoff"].as_str().map(str::to_owned));
            list().await == all
        })
        .await;
    }
    // A client that comes back loses nothing, with or without odds. It gets only the odds that it requested.
    let mut back = Stream::of(&served, "/v1/changes?odds=true", Some(&start)).await;
    let (id, change) = back.expect("change").await;
    assert_eq!(change["betpawa"], json!([3, 5]));
    // The odds are those of the newest view. There, event 3 has only odds of its competitor.
    assert_eq!(change["odds"][0], held[&3]);
    let mut plain = Stream::of(&served, "/v1/changes?odds=false", Some(&start)).await;
    let (plain, change) = plain.expect("change").await;
    assert_eq!((plain, change.get("odds")), (id, None));
    let (status, sentence) = served.get("/v1/changes?odds=maybe").await;
    assert_eq!(status, 400, "{sentence}");
}

/// A client that missed too many changes must read the list. All clients share the compressed list. The odds of all
/// missed changes would be larger, and the service would make them for one client alone.
#[tokio::test]
async fn a_client_that_missed_more_than_the_list_is_told_to_read_the_list() {
    let (database, served) = served(&[]).await;
    let app = connect(&database.dsn()).await;
    let mut stream = Stream::open(&served, None).await;
    let mut seen = vec![stream.expect("start").await.0];
    for _ in 0..12 {
        write(&app, "insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1, 9) n").await;
        // Wait for each write. Otherwise several would arrive as one change.
        seen.push(stream.expect("change").await.0);
    }
    let with_odds = "/v1/changes?odds=true";
    let mut back = Stream::of(&served, with_odds, Some(&seen[0])).await;
    assert_ne!(back.expect("lagged").await.0, seen[0]);
    // The stream goes on from there.
    let insert = "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)";
    write(&app, insert).await;
    assert_eq!(back.expect("change").await.1["betpawa"], json!([3]));
    // A client that missed fewer changes gets them. So does one without odds, because ids are small.
    let mut near = Stream::of(&served, with_odds, Some(&seen[8])).await;
    assert_eq!(near.expect("change").await.0, seen[9]);
    let mut plain = Stream::of(&served, "/v1/changes", Some(&seen[0])).await;
    assert_eq!(plain.expect("change").await.0, seen[1]);
}

/// Every response has the epoch, the age and the time of its view, and an `ETag` that changes with the view.
#[tokio::test]
async fn responses_name_their_view_and_an_unchanged_one_gets_304() {
    let (database, served) = served(&[]).await;
    let app = connect(&database.dsn()).await;
    let header =
        |answer: &Response, name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    for path in [
        "/v1/events/3",
        "/v1/events",
        "/v1/events?ids=3",
        "/v1/events?fields=event_id&limit=2",
        "/v1/list",
        "/v1/list?from=2026-01-01T00:00:00Z&source=betpawa",
        "/v1/dump",
    ] {
        let answer = served.ask(path, &[]).await;
        assert_eq!(answer.status(), 200);
        let tag = header(&answer, "etag");
        assert_eq!(header(&answer, "oddscache-epoch"), "1");
        assert!(header(&answer, "oddscache-age-ms").parse::<u64>().unwrap() < 60_000);
        let as_of = header(&answer, "oddscache-as-of");
        assert!(chrono::DateTime::parse_from_rfc3339(&as_of).is_ok());
        let (list, strong) = (format!("\"x\", {tag}"), tag.trim_start_matches("W/"));
        for known in [&*tag, &list, strong, "*"] {
            let answer = served.ask(path, &[("if-none-match", known)]).await;
            assert_eq!(answer.status(), 304, "{known}");
            assert_eq!(header(&answer, "etag"), tag);
            assert!(answer.bytes().await.unwrap().is_empty());
        }
        let insert = "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)";
        write(&app, insert).await;
        eventually("another answer", async || {
            let answer = served.ask(path, &[("if-none-match", &tag)]).await;
            answer.status() == 200 && header(&answer, "etag") != tag
        })
        .await;
    }
}

/// nginx buffers an answer by default. With only `proxy_pass`, not a byte of a stream once came within 25 s.
#[tokio::test]
async fn changes_come_at_once_behind_a_proxy() {
    let (database, served) = served(&[]).await;
    let app = connect(&database.dsn()).await;
    for location in [
        "proxy_pass http://oddscache;",
        "proxy_pass http://oddscache; proxy_http_version 1.1; proxy_set_header Connection '';",
    ] {
        let Some(nginx) = Nginx::start(served.address(), location).await else {
            return;
        };
        let url = |path: &str| format!("http://{}{path}", nginx.address());
        let answer = reqwest::get(url("/v1/changes?odds=true"));
        let answer = timeout(Duration::from_secs(10), answer).await;
        let answer = answer.expect("it begins at once").unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut stream = Stream(Events::of(answer));
        let next = timeout(Duration::from_secs(10), stream.expect("start")).await;
        next.expect("it comes at once");
        let insert = "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)";
        write(&app, insert).await;
        let next = timeout(Duration::from_secs(10), stream.expect("change")).await;
        assert_eq!(next.expect("it comes at once").1["betpawa"], json!([3]));
        // Other answers are whole.
        let dump = reqwest::get(url("/v1/dump")).await.unwrap();
        assert_eq!(dump.text().await.unwrap().lines().count(), 9);
    }
}
