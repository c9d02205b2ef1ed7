//! The limits of a client: sizes, times and connections. The last test runs the service at full speed while the
//! application writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache_testkit::{
    connect,
    followed::run as write,
    load::{client, subscriber},
    process::memory,
    service::Service,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    eventually,
    lifecycle::{under_way, with_large_odds},
    served, with_odds,
};

/// Sends these bytes and reads to the end of the connection.
pub(super) async fn say(served: &Service, bytes: &str) -> String {
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    // The service may close the connection before it has read everything.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request whose connection ends with the response. `more` contains further headers and a body.
fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n")
}

/// Settings for a log that says which connections are cut off, and why.
pub(super) const CUTS: [&str; 2] = [
    "--log",
    "oddscache::server::commands::serve=info,oddscache::server::http::io_timeout=debug",
];

pub(super) const NOT_TAKEN: [&str; 2] = ["cut off", "the client does not take its answer"];

/// A client learns which limit it exceeded, and the service reads no more of the request.
#[tokio::test]
async fn requests_that_are_too_large_or_malformed_get_a_status() {
    let more = ["--most-target-bytes", "300", "--most-head-bytes", "8192"];
    let (_database, served) = served(&more).await;
    let get = |more: &str| request("GET", "/v1/stats", more);
    let (long, ids) = ("x".repeat(9000), "1,".repeat(200));
    let huge = "Content-Length: 1000000000\r\n";
    for (request, status) in [
        (get(""), 200),
        (get(&format!("X-Long: {long}\r\n")), 431),
        (get(&"X-Many: 1\r\n".repeat(100)), 431),
        (request("GET", &format!("/v1/events?ids={ids}"), ""), 414),
        (request("GET", &format!("/{long}"), ""), 431),
        (get("Content-Length: 5\r\n\r\nhello"), 413),
        (get(huge), 413),
        (get("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), 413),
        (request("POST", "/v1/stats", huge), 405),
        (request("DELETE", "/livez", ""), 405),
        ("no http at all\r\n\r\n".to_owned(), 400),
    ] {
        let answer = say(&served, &request).await;
        let begins: String = request.chars().take(150).collect();
        let is_expected = answer.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(is_expected, "{begins}: {answer}");
        if matches!(status, 405 | 413 | 414) {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
            let error = body["error"].as_str().expect("a sentence");
            assert!(error.len() > 10, "{body}");
            let allows = head.to_lowercase().contains("allow: get,head");
            assert!(status != 405 || allows, "{head}");
        }
    }
}

/// A client that sends or reads nothing does not keep its connection for ever.
#[tokio::test]
async fn silent_and_slow_clients_are_cut_off() {
    let database = with_large_odds();
    let times = [
        "--head-timeout=200ms",
        "--idle-timeout=300ms",
        "--stall-timeout=400ms",
    ];
    let more = [&times[..], &CUTS].concat();
    let mut served = Service::warm(&database.dsn(), &more).await;
    // These clients send half a head, or nothing at all, or nothing after a response.
    for (request, answered) in [
        ("GET /livez HTTP/1.1\r\nHo", false),
        ("", false),
        ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", true),
    ] {
        let answer = say(&served, request).await;
        let is_answered = answer.starts_with("HTTP/1.1 200");
        assert_eq!(is_answered, answered, "{request:?}: {answer}");
        let cut = ["cut off", "the client asks for nothing"];
        served.logs(&cut).await;
    }
    let mut slow = under_way(&served, "/v1/dump").await;
    served.logs(&NOT_TAKEN).await;
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(30), slow.read_to_end(&mut rest)).await;
    let _ = read.expect("the connection ends");
    let is_whole = rest.ends_with(b"\r\n0\r\n\r\n");
    assert!(!is_whole && rest.len() < 10_000_000, "{}", rest.len());
    // A client that reads its response is served.
    assert_eq!(served.get("/v1/dump").await.0, 200);
}

/// A client that reads steadily but too slowly is cut off.
#[tokio::test]
async fn a_response_must_be_read_within_the_answer_timeout() {
    let database = with_large_odds();
    let times = ["--answer-timeout=500ms", "--stall-timeout=1h"];
    let mut served = Service::warm(&database.dsn(), &[times, CUTS].concat()).await;
    let mut slow = under_way(&served, "/v1/dump").await;
    let taking = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let mut some = [0; 512];
        while slow.read(&mut some).await.is_ok_and(|count| count > 0) {
            ticks.tick().await;
        }
    });
    served.logs(&NOT_TAKEN).await;
    taking.abort();
}

/// A response under way is not held in memory as a whole.
#[tokio::test]
async fn slow_readers_take_little_memory() {
    let database = with_large_odds();
    let served = Service::warm(&database.dsn(), &[]).await;
    let mut slow = vec![under_way(&served, "/v1/dump").await];
    let before = memory(served.pid());
    for _ in 0..40 {
        slow.push(under_way(&served, "/v1/dump").await);
    }
    let after = memory(served.pid());
    let each = (after.resident.saturating_sub(before.resident)) as f64 / 40.0;
    println!("{each:.0} KiB for each reader of over 10 MB; {before} before, {after} after");
    assert!(each < 600.0, "{each} KiB each: {before}; {after}");
}

/// Opens so many connections, and sends these bytes on each.
async fn crowd(served: &Service, count: usize, bytes: &str) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(served.address()).await.unwrap();
        // The service may have closed it.
        let _ = stream.write_all(bytes.as_bytes()).await;
        crowd.push(stream);
    }
    crowd
}

/// Health checks get their answers within seconds, ten times in a row.
async fn assert_probed(served: &Service, crowd: &str) {
    for path in ["/livez", "/readyz"].repeat(10) {
        let asked = request("GET", path, "");
        let answer = timeout(Duration::from_secs(3), say(served, &asked)).await;
        let answer = answer.unwrap_or_default();
        assert!(
            answer.starts_with("HTTP/1.1 200"),
            "{crowd}: {path}: {answer:?}"
        );
    }
}

const WHOLE: &str = "GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n";

/// 160 silent connections once took all that may be open, and health checks were reset for 75 s. An orchestrator would
/// have restarted a healthy service.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_whatever_clients_do() {
    let database = with_large_odds();
    let more = ["--most-connections", "50", "--stall-timeout", "1h"];
    let mut served = Service::warm(&database.dsn(), &more).await;
    for (name, bytes) in [
        ("silent", ""),
        ("half a head", "GET /livez HTTP/1.1\r\nHo"),
        ("silent after an answer", WHOLE),
        ("half a head after an answer", &format!("{WHOLE}GET /livez")),
    ] {
        let crowd = crowd(&served, 160, bytes).await;
        assert_probed(&served, name).await;
        // Others are served, too.
        eventually("a place", async || {
            say(&served, &request("GET", "/v1/stats", ""))
                .await
                .starts_with("HTTP/1.1 200")
        })
        .await;
        drop(crowd);
    }
    assert!(
        served
            .metric("oddscache_http_connections_evicted_total")
            .await
            > 100.0
    );
    served
        .logs(&["as many connections are open as may be"])
        .await;

    // Clients that do not take their answers keep their connections. Silent clients take all those beyond the limit.
    let mut readers = Vec::new();
    for _ in 0..50 {
        readers.push(under_way(&served, "/v1/dump").await);
    }
    let silent = crowd(&served, 400, "").await;
    assert_probed(&served, "not reading").await;
    let answer = say(&served, &request("GET", "/v1/stats", "")).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("--most-connections"), "{answer}");
    // Clients may also keep coming, and send their heads byte by byte.
    let (ended, address) = (Arc::new(AtomicBool::new(false)), served.address());
    let coming = tokio::spawn({
        let ended = Arc::clone(&ended);
        async move {
            let mut open = std::collections::VecDeque::new();
            // 500 a second.
            let mut ticks = tokio::time::interval(Duration::from_millis(2));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !ended.load(Ordering::Relaxed) {
                if let Ok(stream) = TcpStream::connect(address).await {
                    open.push_back(stream);
                }
                for stream in &mut open {
                    let _ = stream.try_write(b"G");
                }
                ticks.tick().await;
                if open.len() > 500 {
                    open.pop_front();
                }
            }
        }
    });
    assert_probed(&served, "coming").await;
    ended.store(true, Ordering::Relaxed);
    coming.await.unwrap();
    drop((readers, silent));
    eventually("a place again", async || {
        let answer = say(&served, &request("GET", "/v1/stats", "")).await;
        answer.starts_with("HTTP/1.1 200")
    })
    .await;

    // The same with the default limits.
    let served = Service::warm(&database.dsn(), &[]).await;
    let crowd = crowd(&served, 2000, "").await;
    assert_probed(&served, "2,000 silent").await;
    drop(crowd);
}

/// Where few files may be open, clients get fewer connections, and probes are answered.
#[tokio::test]
async fn probes_are_answered_where_few_files_may_be_open() {
    let database = with_odds();
    let served = super::descriptors::with_open_files("-n 160", &database.dsn()).await;
    served.ready().await;
    let crowd = crowd(&served, 400, "").await;
    assert_probed(&served, "few files").await;
    assert_eq!(served.json("/v1/stats").await["epoch"], 1);
    drop(crowd);
}

/// A request that waits longer than `--request-timeout` gets 503, and the metrics count it.
#[tokio::test]
async fn a_response_begins_within_the_request_timeout_or_is_503() {
    let (database, served) = served(&["--request-timeout", "300ms"]).await;
    let app = connect(&database.dsn()).await;
    write(&app, "begin").await;
    let xid = "select pg_current_xact_id()::text";
    let row = app.query_one(xid, &[]).await.unwrap();
    let xid: String = row.get(0);
    let path = format!("/v1/events/1?wait_for={xid}&timeout=20s");
    let (status, body) = served.get(&path).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("no answer within 0.3 s"), "{body}");
    // The metrics count this response, and also a request that the router refuses.
    let posted = say(&served, &request("POST", "/v1/list", "")).await;
    assert!(posted.starts_with("HTTP/1.1 405"));
    for answers in [
        "{path=\"/v1/events/{id}\",code=\"5xx\"}",
        "{path=\"/v1/list\",code=\"4xx\"}",
    ] {
        let name = format!("oddscache_http_requests_total{answers}");
        assert_eq!(served.metric(&name).await, 1.0, "{name}");
    }
}

/// Sixteen clients, twenty subscribers and a writer at full speed cause no error and no growth.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_and_writes_nothing_fails_and_memory_does_not_grow() {
    const REQUESTS: usize = 3000;
    let (database, served) = served(&[]).await;
    let (address, pid) = (served.address(), served.pid());

    let subscribers: Vec<subscriber::Shared> =
        (0..20).map(|_| subscriber::Shared::default()).collect();
    let mut following = JoinSet::new();
    for seen in &subscribers {
        following.spawn(subscriber::run(address, Arc::clone(seen), false, false));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (app, ended) = (connect(&database.dsn()).await, Arc::clone(&ended));
        async move {
            let mut number = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                number += 1;
                let sql = format!(
                    "with s as (insert into odds_snapshots (event_id, bookmaker_id) values ({}, 1) returning id) \
                     insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) \
                     select id, '3743', '1X2', '[{{\"name\": \"1\", \"odds\": {number}.5, \"is_active\": true}}]' from s",
                    number % 8 + 1
                );
                write(&app, &sql).await;
            }
            number
        }
    });
    let next = Arc::new(AtomicUsize::new(0));
    let run = async |upto: usize| {
        let mut workers = JoinSet::new();
        for _ in 0..16 {
            let next = Arc::clone(&next);
            workers.spawn(async move {
                let client = client::Client::new(address);
                let mut counts = client::Counts::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= upto {
                        return counts;
                    }
                    let path = match number % 10 {
                        0 => "/v1/events".to_owned(),
                        1 => "/v1/stats".to_owned(),
                        2 => "/metrics".to_owned(),
                        3 => "/v1/events?ids=1,2,3".to_owned(),
                        4 => "/readyz".to_owned(),
                        n => format!("/v1/events/{n}"),
                    };
                    let begun = Instant::now();
                    let result = client.take(&path, None).await;
                    counts.add(begun.elapsed(), &[200], result);
                }
            });
        }
        let mut all = client::Counts::default();
        while let Some(counts) = workers.join_next().await {
            all.merge(&counts.expect("a worker"));
        }
        all
    };
    // The service allocates some memory only once. Let it do so before the first figure.
    let warm = run(REQUESTS / 3).await;
    let before = memory(pid);
    next.store(0, Ordering::Relaxed);
    let mut all = run(REQUESTS).await;
    let after = memory(pid);
    all.merge(&warm);
    ended.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    println!(
        "{} answers beside {written} transactions: {}; {before}, then {after}",
        all.latencies.count(),
        all.latencies.line()
    );
    assert_eq!(all.errors(), 0, "{:?}", all.errors);
    assert!(written > 10, "{written}");
    let grown = after.resident.saturating_sub(before.resident);
    assert!(grown < 24 * 1024, "{grown} KiB: {before}, then {after}");

    // Every subscriber gets every change, up to the last.
    let asking = client::Client::new(address);
    eventually("everybody is up to date", async || {
        let (_, tag, _) = asking.take("/v1/events/1", None).await.expect("an answer");
        let (process, version) = tag.as_deref().and_then(client::view_of).expect("a tag");
        let here = format!("{process}-{version}");
        let mut all = subscribers.iter();
        all.all(|seen| seen.lock().unwrap().last == here)
    })
    .await;
    for seen in &subscribers {
        let seen = seen.lock().unwrap();
        assert_eq!((seen.untold, seen.reconnects, &seen.wrong), (0, 0, &None));
        assert!(seen.changes > 5, "{seen:?}");
    }
}
