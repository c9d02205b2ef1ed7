//! `/openapi.json` compared with real responses. The test requests everything that it documents, and every response
//! must be documented.

mod tools;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jsonschema::{Draft, JSONSchema};
use oddscache_testkit::{
    connect,
    followed::run as write,
    load::{client, events::Events},
    service::Service,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{served, with_odds};

/// The schemas that name all keys of their objects.
const CLOSED: [&str; 15] = [
    "History",
    "PastSnapshot",
    "Problem",
    "Unavailable",
    "Market",
    "Snapshot",
    "Event",
    "EventPart",
    "ListedOutcome",
    "ListedMarket",
    "Offer",
    "ListedEvent",
    "ListedEventPart",
    "StreamState",
    "StreamChange",
];

pub(super) struct Document(Value);

impl Document {
    pub(super) async fn of(served: &Service) -> Document {
        Document(served.json("/openapi.json").await)
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let place = reference.trim_start_matches('#');
                let found = self.0.pointer(place);
                found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
            }
            None => value,
        }
    }

    /// A validator for a schema, which may refer to others of the document. A client must ignore keys that it does not
    /// know. But here each key must be documented, so the schemas are closed.
    fn validator(&self, schema: &Value) -> JSONSchema {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        for name in CLOSED {
            let closed = &mut schema["components"]["schemas"][name];
            assert!(closed["properties"].is_object(), "{name}");
            closed["additionalProperties"] = false.into();
        }
        let mut options = JSONSchema::options();
        options
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true);
        options.compile(&schema).expect("a schema")
    }

    fn assert_is(&self, value: &Value, schema: &Value, what: &str) {
        if let Err(errors) = self.validator(schema).validate(value) {
            let errors = errors.map(|error| format!("{error} at {}", error.instance_path));
            panic!("{what}: {}", errors.collect::<Vec<_>>().join("; "));
        }
    }

    pub(super) fn assert_is_a(&self, value: &Value, schema: &str, what: &str) {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        self.assert_is(value, &schema, what);
    }

    fn response(&self, path: &str, status: u16) -> &Value {
        let responses = &self.0["paths"][path]["get"]["responses"];
        let response = &responses[status.to_string()];
        assert!(response.is_object(), "{path}: {status} is not documented");
        self.resolve(response)
    }

    /// Compares status and headers with the document. Returns the body, as JSON if the document says so.
    async fn check(&self, path: &str, asked: &str, answer: Response) -> Value {
        let documented = self.response(path, answer.status().as_u16());
        let object = |name: &str| documented[name].as_object().cloned().unwrap_or_default();
        let (headers, content) = (object("headers"), object("content"));
        for (name, header) in &headers {
            let header = self.resolve(header);
            let found = answer.headers().get(name);
            match found.map(|found| found.to_str().expect("text")) {
                None => assert!(header["required"] != true, "{asked}: no {name}"),
                Some(text) => {
                    // A header is text, but its schema may describe a number.
                    let number = text.parse::<u64>().ok().map(Value::from);
                    let is_number = header["schema"]["type"] == "integer";
                    let value = number.filter(|_| is_number).unwrap_or_else(|| text.into());
                    self.assert_is(&value, &header["schema"], &format!("{asked}: {name}"));
                }
            }
        }
        let common = [
            "content-type",
            "content-length",
            "transfer-encoding",
            "date",
            "vary",
            "cache-control",
            "connection",
            "accept-ranges",
        ];
        for name in answer.headers().keys() {
            let known = headers.contains_key(name.as_str()) || common.contains(&name.as_str());
            assert!(known, "{asked}: the header {name} is not documented");
        }
        let found = answer.headers().get("content-type").cloned();
        let found = found.map(|found| found.to_str().expect("text").to_owned());
        let found = found.map(|found| found.split(';').next().expect("a part").to_owned());
        let documented: Vec<&String> = content.keys().collect();
        assert_eq!(documented, found.iter().collect::<Vec<_>>(), "{asked}");
        match found.as_deref() {
            None => Value::Null,
            Some("text/event-stream") => beginning(answer).await,
            Some("application/json") => {
                let body = answer.json().await.expect("JSON");
                let schema = &content["application/json"]["schema"];
                self.assert_is(&body, schema, asked);
                body
            }
            Some(_) => Value::from(answer.text().await.expect("a body")),
        }
    }
}

/// The data of the first two events of a stream, by name.
async fn beginning(answer: Response) -> Value {
    let (mut events, mut found) = (Events::of(answer), json!({}));
    for _ in 0..2 {
        let event = timeout(Duration::from_secs(30), events.next()).await;
        let event = event.expect("in time").expect("a piece").expect("no end");
        found[&event.name] = event.data().expect("JSON");
    }
    found
}

/// A client generated from the document understands every response.
#[tokio::test]
async fn responses_and_the_document_agree() {
    let database = with_odds();
    // The database has markets of every kind.
    database.psql(
        "update market_odds set unavailable_at = now() at time zone 'UTC' where snapshot_id = 2;
         update market_odds set outcomes = '[{\"name\": \"1\", \"odds\": null}]', handicap_type = 'european', handicap_home = -1.5
             where snapshot_id = 3;
         insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
             select id, '5000', 'Market', 2.5, '[]' from competitor_odds_snapshots",
    );
    let served = Service::warm(&database.dsn(), &["--most-streams", "1"]).await;
    let document = Document::of(&served).await;
    let mut seen: BTreeSet<(String, u16)> = BTreeSet::new();
    let mut bodies: BTreeMap<&str, Value> = BTreeMap::new();
    let some = "from=2026-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&limit=3&after=none.1&max_age=1h";
    let events =
        format!("/v1/events?{some}&ids=1,2,3,4,5&bookmaker=1&fields=event_id,betpawa.markets");
    let listed = format!("/v1/list?{some}&source=betpawa&fields=kickoff,odds.markets.line");
    let parts = "/v1/events/3?fields=kickoff,competitors&source=sportybet&timeout=500ms";
    // A transaction that stays open until the end of the test.
    let open = connect(&database.dsn()).await;
    write(&open, "begin").await;
    let xid = open
        .query_one("select pg_current_xact_id()::text", &[])
        .await;
    let xid: String = xid.expect("a row").get(0);
    let late = format!("/v1/events?wait_for={xid}&timeout=1ms");
    let moved = "/v1/events/3/history?market=5000&line=2.5&bookmaker=1&source=betpawa&from=2026-01-01T00:00:00Z\
                 &to=2100-01-01T00:00:00Z&limit=5";
    let young = "/v1/events/3?max_age=1m30s&timeout=30s";
    for (path, asked, status) in [
        ("/v1/events/{id}", "/v1/events/3", 200),
        ("/v1/events/{id}", parts, 200),
        ("/v1/events/{id}", young, 200),
        ("/v1/events/{id}", "/v1/events/3?timeout=31s", 400),
        ("/v1/events/{id}", "/v1/events/x", 400),
        ("/v1/events/{id}", "/v1/events/3?ids=3", 400),
        ("/v1/events/{id}", "/v1/events/77", 404),
        ("/v1/events/{id}", "/v1/events/3?bookmaker=7", 404),
        ("/v1/events/{id}", "/v1/events/3?max_age=0s", 503),
        ("/v1/events/{id}/history", "/v1/events/3/history", 400),
        ("/v1/events/{id}/history", moved, 200),
        ("/v1/events", "/v1/events", 200),
        ("/v1/events", &events, 200),
        ("/v1/events", "/v1/events?limit=0", 400),
        ("/v1/events", &late, 503),
        ("/v1/events", "/v1/events?wait_for=9223372036854775807", 409),
        (
            "/v1/events/{id}",
            "/v1/events/3?wait_for=9223372036854775807",
            409,
        ),
        ("/v1/list", "/v1/list?wait_for=9223372036854775807", 409),
        ("/v1/dump", "/v1/dump?wait_for=9223372036854775807", 409),
        ("/v1/list", "/v1/list", 200),
        ("/v1/list", "/v1/list?limit=2", 200),
        ("/v1/list", &listed, 200),
        ("/v1/list", "/v1/list?fields=betpawa", 400),
        ("/v1/list", "/v1/list?max_age=0s", 503),
        ("/v1/dump", "/v1/dump", 200),
        ("/v1/dump", "/v1/dump?limit=1", 400),
        ("/v1/dump", "/v1/dump?max_age=0s", 503),
        ("/v1/changes", "/v1/changes?odds=1", 400),
        ("/v1/stats", "/v1/stats", 200),
        ("/metrics", "/metrics", 200),
        ("/openapi.json", "/openapi.json", 200),
        ("/livez", "/livez", 200),
        ("/readyz", "/readyz", 200),
    ] {
        let answer = served.ask(asked, &[]).await;
        assert_eq!(answer.status(), status, "{asked}");
        seen.insert((path.to_owned(), status));
        let tag = answer.headers().get("etag").cloned();
        let body = document.check(path, asked, answer).await;
        if status == 503 {
            let reason = if asked == late {
                "not_shown"
            } else {
                "too_stale"
            };
            assert_eq!(body["reason"], reason, "{asked}");
        }
        if asked == path || asked == "/v1/events/3" {
            bodies.insert(path, body);
        }
        if let Some(tag) = tag.filter(|_| status == 200) {
            let known = [("if-none-match", tag.to_str().expect("text"))];
            let answer = served.ask(asked, &known).await;
            assert_eq!(answer.status(), 304, "{asked}");
            seen.insert((path.to_owned(), 304));
            document.check(path, asked, answer).await;
        }
    }
    // Without `fields` the response must be a whole event, not just a part of one.
    document.assert_is_a(&bodies["/v1/events/{id}"], "Event", "/v1/events/3");
    for (path, schema) in [("/v1/events", "Event"), ("/v1/list", "ListedEvent")] {
        let all = bodies[path].as_array().expect("a list");
        assert_eq!(all.len(), 9);
        for event in all {
            document.assert_is_a(event, schema, path);
        }
    }
    let dump = bodies["/v1/dump"].as_str().expect("text");
    for line in dump.lines() {
        let event = serde_json::from_str(line).expect("JSON");
        document.assert_is_a(&event, "Event", "/v1/dump");
    }

    // One stream is open, and the limit is one. So a second one gets 503.
    let stream = served.ask("/v1/changes?odds=true", &[]).await;
    let full = served.ask("/v1/changes", &[("last-event-id", "x")]).await;
    seen.insert(("/v1/changes".to_owned(), full.status().as_u16()));
    document.check("/v1/changes", "/v1/changes", full).await;
    database.psql("insert into odds_snapshots (event_id, bookmaker_id) values (3, 1), (4, 1)");
    seen.insert(("/v1/changes".to_owned(), stream.status().as_u16()));
    let events = document.check("/v1/changes", "/v1/changes", stream).await;
    document.assert_is_a(&events["start"], "StreamState", "start");
    document.assert_is_a(&events["change"], "StreamChange", "change");
    assert_eq!(events["change"]["odds"].as_array().map(Vec::len), Some(2));

    // Paths only take GET and HEAD.
    for (path, asked) in [
        ("/v1/events/{id}", "/v1/events/3"),
        ("/v1/list", "/v1/list"),
        ("/metrics", "/metrics"),
    ] {
        let url = format!("{}{asked}", served.base);
        let answer = Client::new().post(&url).send().await.expect("an answer");
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.headers()["allow"], "GET,HEAD");
        document.assert_is_a(&answer.json().await.expect("JSON"), "Problem", path);
        let head = Client::new().head(&url).send().await.expect("an answer");
        assert_eq!(head.status(), 200);
        assert_eq!(head.text().await.expect("no body"), "");
    }
    // The service refuses a request with a body, and one whose path is too long.
    let long = format!("?{}", "x".repeat(60_000));
    for path in document.0["paths"].as_object().expect("paths").keys() {
        let asked = path.replace("{id}", "3");
        let url = format!("{}{asked}", served.base);
        let with_body = Client::new().get(&url).body("x").send().await;
        let too_long = served.ask(&format!("{asked}{long}"), &[]).await;
        for (answer, status) in [(with_body.expect("an answer"), 413), (too_long, 414)] {
            assert_eq!(answer.status(), status, "{asked}");
            document.check(path, &asked, answer).await;
            seen.insert((path.clone(), status));
        }
    }
    let (status, body) = served.get("/v1/nowhere").await;
    assert_eq!(status, 404);
    let body = serde_json::from_str(&body).expect("JSON");
    document.assert_is_a(&body, "Problem", "/v1/nowhere");

    // This service is not warm yet.
    let cold = Service::start("host=/nowhere user=u dbname=d", &[]).await;
    let history = "/v1/events/{id}/history";
    for (path, asked, status) in [
        (history, moved, 503),
        ("/readyz", "/readyz", 503),
        ("/v1/stats", "/v1/stats", 200),
        ("/v1/list", "/v1/list", 503),
        ("/v1/events", "/v1/events", 503),
        ("/livez", "/livez", 200),
    ] {
        let answer = cold.ask(asked, &[]).await;
        assert_eq!(answer.status(), status, "{asked}");
        seen.insert((path.to_owned(), status));
        let body = document.check(path, asked, answer).await;
        if asked == "/v1/list" {
            assert_eq!(body["reason"], "warming");
        }
        if asked == moved {
            assert_eq!(body["reason"], "database");
        }
    }
    let nowhere = "host=/nowhere user=u dbname=d";
    let without = Service::start(nowhere, &["--history-connections", "0"]).await;
    let answer = without.ask(moved, &[]).await;
    assert_eq!(answer.status(), 501);
    seen.insert((history.to_owned(), 501));
    document.check(history, moved, answer).await;

    // This client is beyond `--most-connections`.
    let full = Service::start(&database.dsn(), &["--most-connections", "1"]).await;
    let held = client::Client::new(full.address());
    held.text("/v1/stats").await.expect("a place");
    for path in ["/v1/stats", "/metrics", "/openapi.json"] {
        let answer = full.ask(path, &[]).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1");
        seen.insert((path.to_owned(), 503));
        let body = document.check(path, path, answer).await;
        assert_eq!(body["reason"], "overloaded");
    }
    drop(held);

    // The test has seen all documented responses but three. Other tests cover 401, and 503 of a follower that hangs.
    // 500 of the list has no known cause.
    seen.insert(("/livez".to_owned(), 503));
    seen.insert(("/v1/list".to_owned(), 500));
    let paths = document.0["paths"].as_object().expect("paths");
    let documented = paths.iter().flat_map(|(path, operations)| {
        let responses = operations["get"]["responses"].as_object();
        let codes = responses.expect("responses").keys();
        codes.map(|code| (path.clone(), code.parse::<u16>().expect("a code")))
    });
    let documented: BTreeSet<_> = documented.filter(|(_, code)| *code != 401).collect();
    assert_eq!(documented, seen);
}

/// The document follows OpenAPI 3.1 in all that generators of clients need.
#[tokio::test]
async fn the_document_holds_together() {
    let (_database, served) = served(&[]).await;
    let document = Document::of(&served).await;
    assert_eq!(document.0["openapi"], "3.1.0");
    let mut references = Vec::new();
    let mut waiting = vec![&document.0];
    while let Some(value) = waiting.pop() {
        if let Some(reference) = value.get("$ref") {
            references.push(reference.as_str().expect("text"));
            document.resolve(value);
        }
        match value {
            Value::Object(object) => waiting.extend(object.values()),
            Value::Array(list) => waiting.extend(list),
            _ => {}
        }
    }
    // A component without a reference would never be compared with a response.
    let components = document.0["components"].as_object().expect("components");
    for kind in ["parameters", "headers", "responses", "schemas"] {
        for name in components[kind].as_object().expect("an object").keys() {
            let reference = format!("#/components/{kind}/{name}");
            let named_in_text = ["StreamState", "StreamChange"].contains(&name.as_str());
            let is_named = references.contains(&&*reference) || named_in_text;
            assert!(is_named, "{reference}");
        }
    }
    // The schema of a parameter allows every value that the service accepts.
    for (name, taken) in [
        ("timeout", "30s"),
        ("timeout", "500ms"),
        ("max_age", "1m30s"),
    ] {
        let schema = &components["parameters"][name]["schema"];
        document.assert_is(&taken.into(), schema, name);
    }
    // The schema of a parameter allows its example and its default.
    let parameters = components["parameters"].as_object().expect("parameters");
    for (name, parameter) in parameters {
        if let Some(example) = parameter.get("example") {
            document.assert_is(example, &parameter["schema"], name);
        }
    }
}
