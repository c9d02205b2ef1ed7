//! HTTP/2 over TLS: the same answers and the same bounds as over HTTP/1.1, on one connection.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    Ping, Reason, RecvStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, Method, Request, Response};
use oddscache_testkit::{
    Database,
    service::{Service, command, ended},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

use super::{
    access::{certificate, put, shake_hands_for},
    eventually,
    lifecycle::with_large_odds,
    limits::CUTS,
    with_odds,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A service with TLS.
struct Served {
    service: Service,
    ca: String,
    _files: TempDir,
}

impl Served {
    /// Starts it, and waits until it is warm.
    async fn start(database: &Database, more: &[&str]) -> Served {
        let files = tempfile::tempdir().unwrap();
        let [certificate, key, ca] = certificate();
        let cert = put(files.path(), "cert.pem", &certificate);
        let key = put(files.path(), "key.pem", &key);
        let tls = ["--tls-cert", &cert, "--tls-key", &key];
        let service = Service::start(&database.dsn(), &[&tls, more].concat()).await;
        let url = service.base.replace("http:", "https:");
        eventually("ready", async || {
            ended(&mut command(&["ready", "--url", &url])).code == Some(0)
        })
        .await;
        Served {
            service,
            ca,
            _files: files,
        }
    }

    async fn connect(&self) -> Client {
        self.connect_with(&Builder::new()).await
    }

    async fn connect_with(&self, builder: &Builder) -> Client {
        let stream = shake_hands_for(self.service.address(), &self.ca, &["h2", "http/1.1"]);
        let stream = stream.await.expect("TLS");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
        Client {
            sender,
            connection: tokio::spawn(connection),
        }
    }

    /// The value of a sample of `/metrics`, read over HTTP/2.
    async fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.connect().await.get("/metrics").await;
        assert_eq!(status, 200);
        let text = String::from_utf8(text).unwrap();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect(name).parse().expect("a number")
    }
}

/// A connection.
struct Client {
    sender: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("https://127.0.0.1{path}");
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

impl Client {
    /// Sends a request without a body, and waits for the head of its answer.
    async fn send(&self, request: Request<()>) -> Result<Response<RecvStream>, h2::Error> {
        let mut sender = timeout(PATIENCE, self.sender.clone().ready())
            .await
            .expect("room")?;
        let (answer, _) = sender.send_request(request, true)?;
        timeout(PATIENCE, answer).await.expect("an answer")
    }

    /// Status and body.
    async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let answer = self
            .send(request(Method::GET, path))
            .await
            .expect("an answer");
        let status = answer.status().as_u16();
        (status, body(answer.into_body()).await.expect("a body"))
    }

    /// Waits until the connection has ended.
    async fn ended(self) -> Result<(), h2::Error> {
        timeout(PATIENCE, self.connection)
            .await
            .expect("it ends")
            .expect("a task")
    }
}

async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = timeout(PATIENCE, body.data()).await.expect("in time")?;
    if let Ok(piece) = &piece {
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
    Some(piece)
}

async fn body(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = piece(&mut body).await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

/// Reads a stream of changes until this text has come.
async fn reads(body: &mut RecvStream, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let piece = piece(body).await.expect("no end").expect("no error");
        all.push_str(std::str::from_utf8(&piece).unwrap());
    }
    all
}

/// Answers are those of HTTP/1.1, many at a time, beside a stream of changes. Wrong requests get their status.
#[tokio::test]
async fn many_answers_and_a_stream_share_a_connection() {
    let database = with_odds();
    let more = ["--most-head-bytes", "8192", "--most-target-bytes", "300"];
    let served = Served::start(&database, &more).await;
    let plain = Service::warm(&database.dsn(), &[]).await;
    let client = served.connect().await;
    let stream = client
        .send(request(Method::GET, "/v1/changes?odds=true"))
        .await
        .unwrap();
    assert_eq!(stream.status(), 200);
    let mut stream = stream.into_body();
    reads(&mut stream, "event: start").await;
    let paths = [
        "/v1/events/3",
        "/v1/list",
        "/v1/dump",
        "/v1/events?limit=2",
        "/page/board.js",
    ];
    let answers = paths.map(|path| client.get(path));
    for (path, (status, body)) in paths
        .iter()
        .zip(futures_util::future::join_all(answers).await)
    {
        assert_eq!(status, 200, "{path}");
        let expected = plain.get(path).await.1;
        assert_eq!(String::from_utf8(body).unwrap(), expected, "{path}");
    }
    database.psql("insert into odds_snapshots (event_id, bookmaker_id) values (3, 1)");
    let change = reads(&mut stream, "event: change").await;
    assert!(
        change.contains("\"betpawa\":[3]") || change.contains("data:"),
        "{change}"
    );

    let head = client
        .send(request(Method::HEAD, "/v1/list"))
        .await
        .unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(body(head.into_body()).await.unwrap(), b"");
    let mut many = request(Method::GET, "/v1/stats");
    many.headers_mut().extend(headers(100, "1"));
    let mut long = request(Method::GET, "/v1/stats");
    long.headers_mut().extend(headers(1, &"x".repeat(9000)));
    for (request, status) in [
        (request(Method::POST, "/v1/events"), 405),
        (request(Method::GET, "/nowhere"), 404),
        (
            request(Method::GET, &format!("/v1/events?ids={}", "1,".repeat(200))),
            414,
        ),
        (many, 431),
        (long, 431),
    ] {
        let uri = request.uri().to_string();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status(), status, "{uri}");
    }
    // A request with a body ends the connection, but not the answers under way on it.
    let other = served.connect().await;
    let mut sender = other.sender.clone().ready().await.unwrap();
    let (answer, mut sending) = sender
        .send_request(request(Method::GET, "/v1/list"), false)
        .unwrap();
    sending.send_data(Bytes::from_static(b"x"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 413);
    drop((sender, sending));
    let _ = other.ended().await;
    // The first connection still works.
    assert_eq!(client.get("/v1/events/3").await.0, 200);
}

fn headers(count: usize, value: &str) -> HeaderMap {
    let header = |n| {
        let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
        (name, value.parse().unwrap())
    };
    (0..count).map(header).collect()
}

/// A client that takes nothing of one answer loses that answer, and no other. Its window is what stops it: the socket
/// would take more.
#[tokio::test]
async fn a_stream_that_is_not_taken_is_reset() {
    let database = with_large_odds();
    let more = [&["--stall-timeout", "500ms"][..], &CUTS].concat();
    let served = Served::start(&database, &more).await;
    // The connection has room for more than one stream, as those of browsers have.
    let mut builder = Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let client = served.connect_with(&builder).await;
    let stalled = client.send(request(Method::GET, "/v1/dump")).await.unwrap();
    let changes = client
        .send(request(Method::GET, "/v1/changes"))
        .await
        .unwrap();
    let mut stalled = stalled.into_body();
    let mut error = None;
    // It takes what comes, but gives the service no room for more.
    while error.is_none() {
        let piece = timeout(PATIENCE, stalled.data()).await.expect("in time");
        error = piece.expect("the dump is larger").err();
    }
    assert_eq!(error.unwrap().reason(), Some(Reason::CANCEL));
    let mut changes = changes.into_body();
    reads(&mut changes, "event: start").await;
    assert_eq!(client.get("/v1/events/3").await.0, 200);
    assert_eq!(served.metric("oddscache_http_stalled_total").await, 1.0);
    // A client that takes it slowly, but takes it, gets all.
    let (status, dump) = served.connect().await.get("/v1/dump").await;
    assert_eq!(status, 200);
    assert!(dump.len() > 10_000_000, "{}", dump.len());
}

/// The last bytes of an answer count as well: many small answers that nobody takes must not wait for ever.
#[tokio::test]
async fn small_answers_that_are_not_taken_are_reset_too() {
    let database = with_odds();
    let served = Served::start(&database, &["--stall-timeout", "500ms"]).await;
    let mut builder = Builder::new();
    builder.initial_window_size(10);
    let client = served.connect_with(&builder).await;
    let answer = client
        .send(request(Method::GET, "/v1/events/3"))
        .await
        .unwrap();
    let mut taken = answer.into_body();
    let first = timeout(PATIENCE, taken.data())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(first.len(), 10);
    let error = timeout(PATIENCE, taken.data())
        .await
        .expect("in time")
        .expect("no end");
    assert_eq!(error.unwrap_err().reason(), Some(Reason::CANCEL));
}

/// "Rapid reset" (CVE-2023-44487): a client that requests and cancels without end makes the service work for nothing.
#[tokio::test]
async fn a_client_that_cancels_without_end_is_cut_off() {
    let database = with_odds();
    let served = Served::start(&database, &[]).await;
    let client = served.connect().await;
    let mut sent = 0;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let Ok(mut sender) = client.sender.clone().ready().await else {
            break;
        };
        let Ok((answer, mut stream)) = sender.send_request(request(Method::GET, "/v1/dump"), true)
        else {
            break;
        };
        // Otherwise the request would not even be sent.
        tokio::task::yield_now().await;
        stream.send_reset(Reason::CANCEL);
        drop(answer);
        sent += 1;
    }
    assert!(sent < 100_000, "{sent} requests were taken");
    let _ = client.ended().await;
    // Either bound may be the first: that of the streams which the service has not seen, or its own.
    assert_eq!(served.connect().await.get("/v1/events/3").await.0, 200);

    // These are seen before they are cancelled.
    let client = served.connect().await;
    for _ in 0..1000 {
        let Ok(answer) = client.send(request(Method::GET, "/v1/changes")).await else {
            break;
        };
        let mut stream = answer.into_body();
        let _ = timeout(PATIENCE, stream.data()).await;
        drop(stream);
    }
    let _ = client.ended().await;
    assert!(served.metric("oddscache_http_flooding_total").await >= 1.0);
}

/// As many answers may be under way over HTTP/2 as connections over HTTP/1.1. Health checks get theirs all the same.
#[tokio::test]
async fn streams_are_bounded_over_all_connections() {
    let database = with_odds();
    let served = Served::start(&database, &["--most-connections", "4"]).await;
    let (one, two) = (served.connect().await, served.connect().await);
    let mut held = Vec::new();
    for client in [&one, &two, &one, &two] {
        let stream = client
            .send(request(Method::GET, "/v1/changes"))
            .await
            .unwrap();
        assert_eq!(stream.status(), 200);
        held.push(stream);
    }
    let (status, refusal) = two.get("/v1/events/3").await;
    let refusal: Value = serde_json::from_slice(&refusal).unwrap();
    assert_eq!(status, 503);
    assert!(
        refusal["error"]
            .as_str()
            .unwrap()
            .contains("--most-connections")
    );
    assert_eq!(two.get("/readyz").await.0, 200);
    held.pop();
    eventually("there is room again", async || {
        two.get("/v1/events/3").await.0 == 200
    })
    .await;
    let refused = served.metric("oddscache_http_refused_total").await;
    assert!(refused >= 1.0, "{refused}");
}

/// Pings do not keep a connection open on which nobody asks.
#[tokio::test]
async fn a_connection_without_requests_ends() {
    let database = with_odds();
    let served = Served::start(&database, &["--idle-timeout", "400ms"]).await;
    let stream = shake_hands_for(served.service.address(), &served.ca, &["h2"]);
    let (sender, mut connection) = h2::client::handshake(stream.await.unwrap()).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let connection = tokio::spawn(connection);
    let sender: SendRequest<Bytes> = sender;
    // Until the service ends the connection, each ping gets its pong.
    let pinging = async { while pings.ping(Ping::opaque()).await.is_ok() {} };
    timeout(PATIENCE, pinging).await.expect("it ends");
    let _ = timeout(PATIENCE, connection).await.expect("it ends");
    drop(sender);
}

/// At its end the service lets answers finish, ends streams of changes, and takes no further request.
#[tokio::test]
async fn the_end_cuts_nothing_off() {
    let database = with_large_odds();
    let mut served = Served::start(&database, &["--drain", "60s"]).await;
    let client = served.connect().await;
    let changes = client
        .send(request(Method::GET, "/v1/changes"))
        .await
        .unwrap();
    let mut changes = changes.into_body();
    reads(&mut changes, "event: start").await;
    let dump = client.send(request(Method::GET, "/v1/dump")).await.unwrap();
    let mut dump = dump.into_body();
    let mut length = piece(&mut dump).await.unwrap().unwrap().len();
    served.service.signal("-TERM");
    // Both at once, because they share the connection's window.
    let ends = async {
        while let Some(piece) = piece(&mut changes).await {
            piece.expect("the stream ends without an error");
        }
    };
    let finishes = async {
        while let Some(piece) = piece(&mut dump).await {
            length += piece.expect("all of the dump").len();
        }
    };
    tokio::join!(ends, finishes);
    assert!(length > 10_000_000, "{length}");
    let refused = poll_fn(|cx| client.sender.clone().poll_ready(cx)).await;
    assert!(refused.is_err() || client.send(request(Method::GET, "/livez")).await.is_err());
    assert!(served.service.ended().await.success());
}
