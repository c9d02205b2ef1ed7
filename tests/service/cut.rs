//! An answer that is cut never looks whole, to any client.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use oddscache_testkit::{
    nginx::Nginx,
    service::{Service, command, ended},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{interval, timeout},
};

use super::{
    access::{certificate, put, shake_hands},
    eventually,
    lifecycle::{LARGE, with_large_odds},
    limits::{CUTS, NOT_TAKEN},
};

/// Connects with a small buffer.
async fn open(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address).await.unwrap()
}

/// Sends a request and reads only the head of its answer.
async fn begin(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(30), stream.read_u8()).await;
        head.push(byte.expect("in time").unwrap());
    }
    let head = String::from_utf8_lossy(&head);
    assert!(head.contains(" 200 OK\r\n"), "{head}");
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
    async fn wait(self, served: &mut Service, slow: &mut (impl AsyncRead + Unpin)) {
        match self {
            Cut::Drain => {
                served.signal("-TERM");
                served.ended().await;
            }
            Cut::Stall => drop(served.logs(&NOT_TAKEN).await),
            Cut::Slow => {
                let reading = async {
                    let mut ticks = interval(Duration::from_millis(10));
                    while slow.read(&mut [0; 512]).await.is_ok_and(|count| count > 0) {
                        ticks.tick().await;
                    }
                };
                tokio::select! {
                    _ = served.logs(&NOT_TAKEN) => {}
                    () = reading => panic!("the client noticed before the service"),
                }
            }
            Cut::Kill => {
                served.signal("-KILL");
                served.ended().await;
            }
        }
    }
}

const DUMP_1_0: &str = "GET /v1/dump HTTP/1.0\r\n\r\n";

/// An answer to HTTP/1.0 ends with its connection. One that was cut once ended in the same way, so 3 of 15 MB looked
/// like a whole answer.
#[tokio::test]
async fn row_8_an_answer_that_is_cut_ends_with_a_reset() {
    let database = with_large_odds();
    for cut in [Cut::Drain, Cut::Stall, Cut::Slow, Cut::Kill] {
        let more = [cut.flags(), &CUTS].concat();
        for request in [
            DUMP_1_0,
            "GET /v1/events HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET /v1/dump HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ] {
            let mut served = Service::warm(&database.dsn(), &more).await;
            let mut slow = open(served.address()).await;
            begin(&mut slow, request).await;
            cut.wait(&mut served, &mut slow).await;
            let (bytes, end) = end(&mut slow).await;
            let shown = format!("{cut:?}, {request:?}: {bytes} bytes");
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "{shown}");
            assert!(bytes < 10_000_000, "{shown}");
        }
    }
}

/// A connection whose answers are whole ends in the ordinary way, and loses nothing that is under way.
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

/// Over TLS a cut answer ends without the message that says that all was sent.
#[tokio::test]
async fn row_8_over_tls_too() {
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
        cut.wait(&mut served, &mut slow).await;
        let (bytes, end) = end(&mut slow).await;
        assert!(
            end.is_err() && bytes < 10_000_000,
            "{cut:?}: {bytes} bytes, {end:?}"
        );
    }
}

/// nginx asks in HTTP/1.0 with its defaults, and its own answer has a proper last chunk if it believes that it got all.
#[tokio::test]
async fn row_8_behind_nginx_too() {
    let database = with_large_odds();
    let more = LARGE
        .replace("1001", "2001")
        .replace("1800", "3200")
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
        for (request, is_cut) in [
            (
                "GET /v1/dump HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                false,
            ),
            (
                "GET /v1/dump HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                true,
            ),
        ] {
            let mut slow = open(nginx.address()).await;
            begin(&mut slow, request).await;
            if is_cut {
                cut.wait(&mut served, &mut slow).await;
            }
            let mut all = Vec::new();
            let read = timeout(Duration::from_secs(60), slow.read_to_end(&mut all)).await;
            let _ = read.expect("it ends");
            let is_whole = all.ends_with(b"\r\n0\r\n\r\n");
            assert_eq!(is_whole, !is_cut, "{cut:?}: {} bytes", all.len());
        }
    }
}
