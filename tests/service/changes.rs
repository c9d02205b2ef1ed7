//! `GET /v1/changes`, and what answers say of the view they were made from.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use oddscache_testkit::connect;
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::{Served, with_odds};

/// A stream of server-sent events.
struct Stream {
    answer: Response,
    text: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Stream {
    async fn open(served: &Served, last: Option<&str>) -> Stream {
        Stream::of(served, "/v1/changes", last).await
    }

    /// Waits for a place: the server learns of streams that were dropped a little later.
    async fn of(served: &Served, path: &str, last: Option<&str>) -> Stream {
        let deadline = Instant::now() + Duration::from_secs(30);
        let answer = loop {
            let mut request = Client::new().get(format!("{}{path}", served.base));
            if let Some(id) = last {
                request = request.header("Last-Event-ID", id);
            }
            let answer = request.send().await.expect("an answer");
            if answer.status() != 503 || Instant::now() > deadline {
                break answer;
            }
        };
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Stream {
            answer,
            text: String::new(),
        }
    }

    /// `None` at the stream's end.
    async fn next(&mut self) -> Option<Event> {
        // Of an event: a comment now and then is none.
        let next = timeout(Duration::from_secs(30), self.event()).await;
        next.expect("in time")
    }

    async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = event.lines().filter_map(|line| line.split_once(": "));
                    lines
                        .find(|(key, _)| *key == name)
                        .map(|(_, value)| value.to_owned())
                };
                let parsed = field("event").map(|name| Event {
                    name,
                    id: field("id").expect("an id"),
                    data: serde_json::from_str(&field("data").expect("data")).expect("JSON"),
                });
                self.text = rest.to_owned();
                match parsed {
                    Some(event) => return Some(event),
                    // A comment, to keep the connection alive.
                    None => continue,
                }
            }
            let piece = self.answer.chunk().await.ok()??;
            self.text
                .push_str(std::str::from_utf8(&piece).expect("UTF-8"));
        }
    }

    async fn expect(&mut self, name: &str) -> Event {
        let event = self.next().await.expect("an event");
        assert_eq!(event.name, name, "{event:?}");
        event
    }
}

#[tokio::test]
async fn a_stream_of_changes_is_resumed_without_a_gap() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &["--most-streams", "3"]).await;
    served.warm().await;

    let mut stream = Stream::open(&served, None).await;
    let start = stream.expect("start").await;
    assert_eq!(start.data["epoch"], 1);
    app.batch_execute("insert into odds_snapshots (event_id, bookmaker_id) values (3, 1), (5, 1)")
        .await
        .unwrap();
    let first = stream.expect("change").await;
    assert_eq!(
        first.data["betpawa"],
        serde_json::json!([3, 5]),
        "{first:?}"
    );
    assert_eq!(first.data["competitors"], serde_json::json!({}));
    assert!(first.data["as_of"].is_string() && first.data["epoch"] == 1);
    drop(stream);

    // What is missed meanwhile comes when the client is back.
    app.batch_execute("update competitor_events set deleted_at = now() where id = 7")
        .await
        .unwrap();
    let mut back = Stream::open(&served, Some(&first.id)).await;
    let second = back.expect("change").await;
    assert_eq!(
        second.data["competitors"],
        serde_json::json!({ "sportybet": [7] })
    );
    let mut again = Stream::open(&served, Some(&start.id)).await;
    assert_eq!(again.expect("change").await.id, first.id);
    assert_eq!(again.expect("change").await.id, second.id);

    // Of another process, from the future, and no id at all.
    for id in ["00000000-1", &format!("{}9", second.id), "x"] {
        let mut lost = Stream::open(&served, Some(id)).await;
        let lagged = lost.expect("lagged").await;
        assert_eq!(lagged.id, second.id);
    }

    // Three are open at the most; one that is closed makes room, once the server has seen that.
    let third = Stream::open(&served, None).await;
    let (status, sentence) = served.get("/v1/changes").await;
    assert_eq!(status, 503, "{sentence}");
    drop(third);
    super::eventually("there is room again", async || {
        let answer = reqwest::get(format!("{}/v1/changes", served.base)).await;
        answer.expect("an answer").status() == 200
    })
    .await;

    // The end of the service is the end of its streams, at once.
    served.signal("-TERM");
    assert!(back.next().await.is_none());
}

/// Whoever takes a list and then the changes with their odds, in order, has the list.
#[tokio::test]
async fn changes_come_with_their_odds() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let mut stream = Stream::of(&served, "/v1/changes?odds=true", None).await;
    let start = stream.expect("start").await;
    let list = served.json("/v1/list").await;
    let list = list.as_array().expect("a list").iter();
    let mut held: BTreeMap<i64, Value> = list
        .map(|event| (event["event_id"].as_i64().expect("an id"), event.clone()))
        .collect();
    for write in [
        "insert into odds_snapshots (event_id, bookmaker_id) values (3, 1), (5, 1)",
        "update market_odds set unavailable_at = now() at time zone 'UTC' where betpawa_market_id = '5000'",
        "update competitor_events set deleted_at = now() where id = 7",
        "delete from odds_snapshots where event_id in (2, 3)",
        "update events set kickoff = kickoff + interval '1 hour' where id = 4",
        "insert into odds_snapshots (event_id, bookmaker_id) values (2, 1)",
    ] {
        app.batch_execute(write).await.expect("it writes");
        // Until the change is there, which may come in two.
        let mut seen = 0;
        super::eventually("the list by changes", async || {
            let change = stream.expect("change").await;
            seen += 1;
            let lists = ["betpawa", "kickoffs"].map(|name| &change.data[name]);
            let sources = change.data["competitors"].as_object().expect("an object");
            let ids = lists.into_iter().chain(sources.values());
            let ids = ids.flat_map(|ids| ids.as_array().expect("ids"));
            for id in ids {
                held.remove(&id.as_i64().expect("an id"));
            }
            for event in change.data["odds"].as_array().expect("odds") {
                held.insert(event["event_id"].as_i64().expect("an id"), event.clone());
            }
            let list = served.json("/v1/list").await;
            let mut all: Vec<&Value> = held.values().collect();
            all.sort_by_key(|event| event["kickoff"].as_str());
            *list.as_array().expect("a list") == all.into_iter().cloned().collect::<Vec<_>>()
        })
        .await;
        assert!(seen > 0, "{write}");
    }
    // Nothing is lost by coming back, with odds or without; only what was asked for is sent.
    let mut back = Stream::of(&served, "/v1/changes?odds=true", Some(&start.id)).await;
    let change = back.expect("change").await;
    assert_eq!(change.data["betpawa"], serde_json::json!([3, 5]));
    // Of the newest view: what event 3 has now is its competitor's alone.
    assert_eq!(change.data["odds"][0], held[&3]);
    let mut plain = Stream::of(&served, "/v1/changes?odds=false", Some(&start.id)).await;
    let plain = plain.expect("change").await;
    assert_eq!((&plain.id, plain.data.get("odds")), (&change.id, None));
    let (status, sentence) = served.get("/v1/changes?odds=maybe").await;
    assert_eq!(status, 400, "{sentence}");
}

/// The list is one for all, and compressed; the odds of all that was missed are more, and each client's own.
#[tokio::test]
async fn who_missed_more_than_the_list_is_sent_to_it() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let mut stream = Stream::open(&served, None).await;
    let mut seen = vec![stream.expect("start").await.id];
    for _ in 0..12 {
        app.batch_execute("insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1, 9) n")
            .await
            .expect("it writes");
        // One by one, or they would come in one change.
        seen.push(stream.expect("change").await.id);
    }
    let with_odds = "/v1/changes?odds=true";
    let mut back = Stream::of(&served, with_odds, Some(&seen[0])).await;
    let lagged = back.expect("lagged").await;
    assert_ne!(lagged.id, seen[0]);
    // It goes on from there.
    app.batch_execute("insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)")
        .await
        .expect("it writes");
    let change = back.expect("change").await;
    assert_eq!(change.data["betpawa"], serde_json::json!([3]));
    // Fewer are told, and ids are little.
    let mut near = Stream::of(&served, with_odds, Some(&seen[8])).await;
    assert_eq!(near.expect("change").await.id, seen[9]);
    let mut plain = Stream::of(&served, "/v1/changes", Some(&seen[0])).await;
    assert_eq!(plain.expect("change").await.id, seen[1]);
}

#[tokio::test]
async fn answers_name_their_view_and_are_not_sent_twice() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let ask = async |path: &str, tag: Option<&str>| {
        let mut request = Client::new().get(format!("{}{path}", served.base));
        if let Some(tag) = tag {
            request = request.header("If-None-Match", tag);
        }
        request.send().await.expect("an answer")
    };
    for path in [
        "/v1/events/3",
        "/v1/events",
        "/v1/events?ids=3",
        "/v1/events?fields=event_id&limit=2",
        "/v1/list",
        "/v1/list?from=2026-01-01T00:00:00Z&source=betpawa",
        "/v1/dump",
    ] {
        let answer = ask(path, None).await;
        assert_eq!(answer.status(), 200);
        let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
        let header =
            |answer: &Response, name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header(&answer, "oddscache-epoch"), "1");
        assert!(header(&answer, "oddscache-age-ms").parse::<u64>().unwrap() < 60_000);
        assert!(chrono::DateTime::parse_from_rfc3339(&header(&answer, "oddscache-as-of")).is_ok());
        for known in [
            tag.as_str(),
            &format!("\"x\", {tag}"),
            tag.trim_start_matches("W/"),
            "*",
        ] {
            let answer = ask(path, Some(known)).await;
            assert_eq!(answer.status(), 304, "{known}");
            assert_eq!(header(&answer, "etag"), tag);
            assert!(answer.bytes().await.unwrap().is_empty());
        }
        app.batch_execute("insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)")
            .await
            .unwrap();
        super::eventually("another answer", async || {
            let answer = ask(path, Some(&tag)).await;
            answer.status() == 200 && header(&answer, "etag") != tag
        })
        .await;
    }
}
