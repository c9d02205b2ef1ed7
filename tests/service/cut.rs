//! An answer that is cut never looks whole, to any client.

use std::{io::ErrorKind, time::Duration};

use oddscache_testkit::{
    nginx::Nginx,
    service::{Service, command, ended},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::timeout,
};

use super::{
    access::{certificate, put, shake_hands},
    eventually,
    lifecycle::{LARGE, head, open, with_large_odds},
    limits::{CUTS, NOT_TAKEN, say},
};

/// Sends a request and reads only the head of its answer. Returns the length that it says, if any.
async fn begin(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> Option<usize> {
    let head = head(stream, request).await;
    assert!(head.contains(" 200 OK\r\n"), "{head}");
    let head = head.to_lowercase();
    let length = head
        .split("\r\n")
        .find_map(|line| line.strip_prefix("content-length: "));
    length.map(|length| length.parse().unwrap())
}

/// Reads to the end. Returns how much came, and how it ended.
async fn end(stream: &mut (impl AsyncRead + Unpin)) -> (usize, Result<(), ErrorKind>) {
    let mut all = Vec::new();
    let read = timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
    let result = read.expect("it ends");
    (all.len(), result.map(drop).map_err(|error| error.kind()))
}

/// How an answer is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    Drain,
    Stall,
    Slow,
    Kill,
}

impl Cut {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Cut::Drain => &["--drain", "300ms"],
            Cut::Stall => &["--stall-timeout", "300ms"],
            Cut::Slow => &["--answer-timeout", "500ms"],
            Cut::Kill => &[],
        }
    }

    /// Returns when the service has cut the answer.
    async fn wait(self, served: &mut Service) {
        match self {
            Cut::Drain => {
                served.signal("-TERM");
                served.ended().await;
            }
            Cut::Stall | Cut::Slow => {
                served.logs(&NOT_TAKEN).await;
            }
            Cut::Kill => {
                served.signal("-KILL");
                served.ended().await;
            }
        }
    }
}

const DUMP_1_0: &str = "GET /v1/dump HTTP/1.0\r\n\r\n";
const DUMP_1_1: &str = "GET /v1/dump HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// An answer to HTTP/1.0 ends with its connection. One that was cut once ended in the same way, so 3 of 15 MB looked
/// like a whole answer.
#[tokio::test]
async fn an_answer_that_is_cut_ends_with_a_reset() {
    let database = with_large_odds();
    let events = "GET /v1/events HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    for (cut, request) in [
        (Cut::Drain, DUMP_1_0),
        (Cut::Drain, DUMP_1_1),
        (Cut::Drain, events),
        (Cut::Stall, DUMP_1_0),
        (Cut::Slow, DUMP_1_0),
        (Cut::Kill, DUMP_1_0),
    ] {
        let more = [cut.flags(), &CUTS].concat();
        let mut served = Service::warm(&database.dsn(), &more).await;
        let mut slow = open(served.address()).await;
        begin(&mut slow, request).await;
        cut.wait(&mut served).await;
        let (bytes, end) = end(&mut slow).await;
        let shown = format!("{cut:?}, {request:?}: {bytes} bytes");
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{shown}");
        assert!(bytes < 10_000_000, "{shown}");
    }
}

/// A proxy of connections, such as Docker's, passes a reset on as an ordinary end. So each answer to HTTP/1.0 states
/// its length. A compressed one need not, because it marks its own end.
#[tokio::test]
async fn answers_to_http_1_0_have_their_length() {
    let database = with_large_odds();
    let served = Service::warm(&database.dsn(), &[]).await;
    for (path, least) in [
        ("/v1/dump", 10_000_000),
        ("/v1/events", 10_000_000),
        ("/v1/events?fields=event_id,betpawa.captured_at", 50_000),
        ("/v1/events?limit=500", 5_000_000),
        ("/v1/list", 70_000),
        ("/v1/list?limit=700", 70_000),
        ("/v1/events/1", 100),
        ("/metrics", 1000),
    ] {
        let answer = say(&served, &format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = format!("\r\ncontent-length: {}\r\n", body.len());
        assert!(
            format!("{head}\r\n").contains(&length),
            "{path}: {} bytes: {head}",
            body.len()
        );
        assert!(body.len() >= least, "{path}: {} bytes", body.len());
        if path != "/metrics" {
            assert_eq!(body, served.get(path).await.1, "{path}");
        }
    }
    let compressed = "GET /v1/dump HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n";
    let answer = say(&served, compressed).await;
    assert!(!answer.contains("content-length"));
}

/// A connection whose answers are whole ends without a reset, and loses nothing that is still on its way.
#[tokio::test]
async fn a_whole_answer_ends_without_a_reset() {
    let database = with_large_odds();
    let more = ["--idle-timeout", "300ms", "--drain", "60s"];
    let mut served = Service::warm(&database.dsn(), &more).await;
    for request in [
        DUMP_1_0,
        "GET /v1/dump HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v1/dump HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n",
        "HEAD /v1/dump HTTP/1.0\r\n\r\n",
        "GET /v1/stats HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ] {
        let mut stream = open(served.address()).await;
        begin(&mut stream, request).await;
        let (bytes, end) = end(&mut stream).await;
        assert_eq!(end, Ok(()), "{request:?}: {bytes} bytes");
        let is_whole =
            request.contains("dump") && !request.contains("gzip") && !request.contains("HEAD");
        assert_eq!(is_whole, bytes > 10_000_000, "{request:?}: {bytes} bytes");
    }
    // The client has not read its answer, but the kernel has all of it when the service ends.
    let mut stream = open(served.address()).await;
    begin(&mut stream, "GET /v1/events/1 HTTP/1.0\r\n\r\n").await;
    served.signal("-TERM");
    served.ended().await;
    let (bytes, end) = end(&mut stream).await;
    assert!(bytes > 100 && end == Ok(()), "{bytes}, {end:?}");
}

/// Over TLS a cut answer ends without TLS's own closing message (`close_notify`).
#[tokio::test]
async fn a_cut_answer_over_tls_never_looks_whole() {
    let database = with_large_odds();
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key, ca] = certificate();
    let cert = put(directory.path(), "cert.pem", &certificate);
    let key = put(directory.path(), "key.pem", &key);
    for cut in [Cut::Drain, Cut::Stall, Cut::Slow, Cut::Kill] {
        let more = [
            cut.flags(),
            &CUTS,
            &["--tls-cert", &cert, "--tls-key", &key],
        ]
        .concat();
        let mut served = Service::start(&database.dsn(), &more).await;
        let url = served.base.replace("http:", "https:");
        eventually("ready", async || {
            ended(&mut command(&["ready", "--url", &url])).code == Some(0)
        })
        .await;
        let mut slow = shake_hands(served.address(), &ca).await.unwrap();
        begin(&mut slow, DUMP_1_0).await;
        cut.wait(&mut served).await;
        let (bytes, end) = end(&mut slow).await;
        assert!(
            end.is_err() && bytes < 10_000_000,
            "{cut:?}: {bytes} bytes, {end:?}"
        );
    }
}

/// With its defaults nginx asks in HTTP/1.0. It once took a cut answer for a whole one, and ended its own answer
/// properly.
#[tokio::test]
async fn a_cut_answer_behind_nginx_never_looks_whole() {
    let database = with_large_odds();
    let more = LARGE
        .replace("1001", "2001")
        .replace("1800", "2600")
        .replace("> 1000", "> 2000");
    database.psql(&more);
    for cut in [Cut::Drain, Cut::Kill] {
        let more = [cut.flags(), &CUTS].concat();
        let mut served = Service::warm(&database.dsn(), &more).await;
        // Without a temporary file, nginx reads no faster than its client.
        let location = "proxy_pass http://oddscache; proxy_max_temp_file_size 0;";
        let Some(nginx) = Nginx::start(served.address(), location).await else {
            return;
        };
        let url = format!("http://{}/v1/dump", nginx.address());
        let whole = reqwest::get(url).await.unwrap().bytes().await.unwrap();
        assert!(whole.ends_with(b"}\n") && whole.len() > 15_000_000);
        let mut slow = open(nginx.address()).await;
        let length = begin(&mut slow, DUMP_1_1).await;
        cut.wait(&mut served).await;
        let mut all = Vec::new();
        let read = timeout(Duration::from_secs(60), slow.read_to_end(&mut all)).await;
        let _ = read.expect("it ends");
        let is_whole = match length {
            Some(length) => all.len() == length,
            None => all.ends_with(b"\r\n0\r\n\r\n"),
        };
        assert!(!is_whole, "{cut:?}: {} bytes", all.len());
    }
}
