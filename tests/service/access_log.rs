//! `--access-log`: a line for each request, and ids that follow a request through proxies.

use oddscache_testkit::service::Service;
use serde_json::Value;

use super::{eventually, limits::say, served, with_odds};

/// The next line of the access log.
async fn line(served: &mut Service) -> Value {
    loop {
        let message = served.message().await.expect("it runs");
        if message["target"] == "oddscache::access" {
            return message["fields"].clone();
        }
    }
}

/// A line says what was asked and answered, and has neither query nor token. More lines than `--log-repeats` come.
#[tokio::test]
async fn each_request_has_a_line_with_its_id() {
    let database = with_odds();
    let more = ["--access-log", "--log-repeats", "1"];
    let mut served = Service::start(&database.dsn(), &more).await;
    served.ready().await;
    while line(&mut served).await["status"] != 200 {}
    let given = ("x-request-id", "4bf92f3577b34da6-1");
    let secret = ("authorization", "Bearer secret-0123456789abcdef");
    let answer = served
        .ask("/v1/events/3?max_age=1h&fields=event_id", &[given, secret])
        .await;
    assert_eq!(answer.headers()["x-request-id"], given.1);
    let bytes = answer.bytes().await.unwrap().len();
    let found = line(&mut served).await;
    let local = |found: &Value| found["peer"].as_str().unwrap().starts_with("127.0.0.1:");
    assert!(local(&found), "{found}");
    for (field, value) in [
        ("request_id", Value::from(given.1)),
        ("method", "GET".into()),
        ("path", "/v1/events/3".into()),
        ("status", 200.into()),
        ("bytes", bytes.into()),
        ("whole", true.into()),
        ("version", "HTTP/1.1".into()),
    ] {
        assert_eq!(found[field], value, "{field}: {found}");
    }
    assert!(
        found["began_ms"].as_f64() <= found["ended_ms"].as_f64(),
        "{found}"
    );
    assert!(!found.to_string().contains("max_age"), "{found}");
    assert!(!found.to_string().contains("secret"), "{found}");

    // An id that is too long, or that has other characters, is replaced.
    let long = "x".repeat(129);
    for wrong in ["a b", "x\"y", &long] {
        let answer = served.ask("/nowhere", &[("x-request-id", wrong)]).await;
        let made = answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(made.len() == 32 && made != wrong, "{made}");
        let found = line(&mut served).await;
        assert_eq!(
            (&found["request_id"], &found["status"]),
            (&Value::from(made), &Value::from(404))
        );
    }
    let refused = say(
        &served,
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(refused.await.contains("405"));
    assert_eq!(line(&mut served).await["status"], 405);

    // The line of a stream comes at its end, and says that the client left.
    let stream = served.ask("/v1/changes", &[]).await;
    drop(stream);
    let found = line(&mut served).await;
    assert_eq!(
        (&found["path"], &found["whole"]),
        (&"/v1/changes".into(), &false.into())
    );
}

/// It is off by default, and then answers have no id.
#[tokio::test]
async fn it_is_off_by_default() {
    let (_database, mut served) = served(&[]).await;
    let answer = served.ask("/v1/events", &[("x-request-id", "7")]).await;
    assert!(!answer.headers().contains_key("x-request-id"));
    eventually("an answer", async || served.get("/livez").await.0 == 200).await;
    served.signal("-TERM");
    let log = served.rest_of_log().await.concat();
    assert!(!log.contains("oddscache::access"), "{log}");
}
