//! What a client may take: sizes, times, connections, access; and the service under load while the application writes.

#[path = "../../benches/load/client.rs"]
mod client;
#[path = "../../benches/load/latency.rs"]
mod latency;
#[path = "../../benches/load/process.rs"]
mod process;
#[path = "../../benches/load/subscriber.rs"]
mod subscriber;

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Client;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    Served, command,
    common::connect,
    eventually,
    lifecycle::{under_way, with_large_odds},
    text, with_odds,
};

impl Served {
    fn address(&self) -> SocketAddr {
        self.base.trim_start_matches("http://").parse().unwrap()
    }

    /// Reads the log until a line contains all of these.
    async fn logs(&mut self, words: &[&str]) -> String {
        loop {
            let line = timeout(Duration::from_secs(60), self.log.next_line()).await;
            let line = line.expect("it logs").unwrap().expect("it runs");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

/// Sends these bytes and reads to the end of the connection.
async fn say(served: &Served, bytes: &str) -> String {
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    // Who has heard enough hangs up.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    text(&answer)
}

/// For what cuts connections off.
const CUTS: [&str; 2] = [
    "--log",
    "oddscache::service::serve=info,oddscache::service::patient=debug",
];

#[tokio::test]
async fn requests_of_any_size_are_refused_with_a_status() {
    let database = with_odds();
    let more = ["--most-target-bytes", "300", "--most-head-bytes", "8192"];
    let served = Served::start(&database.dsn(), &more).await;
    served.warm().await;
    let get = "GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    for (request, status) in [
        (format!("{get}\r\n"), 200),
        (format!("{get}X-Long: {}\r\n\r\n", "x".repeat(9000)), 431),
        (format!("{get}{}\r\n", "X-Many: 1\r\n".repeat(100)), 431),
        (
            format!(
                "GET /v1/events?ids={} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                "1,".repeat(200)
            ),
            414,
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(9000)),
            431,
        ),
        (format!("{get}Content-Length: 5\r\n\r\nhello"), 413),
        (format!("{get}Content-Length: 1000000000\r\n\r\n"), 413),
        (
            format!("{get}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
            413,
        ),
        (
            "POST /v1/stats HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n".to_owned(),
            405,
        ),
        (
            "DELETE /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
            405,
        ),
        ("no http at all\r\n\r\n".to_owned(), 400),
    ] {
        let answer = say(&served, &request).await;
        let begins: String = request.chars().take(150).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{begins}: {answer}"
        );
        if matches!(status, 405 | 413 | 414) {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
            assert!(
                body["error"].as_str().is_some_and(|error| error.len() > 10),
                "{body}"
            );
            assert!(
                status != 405 || head.to_lowercase().contains("allow: get,head"),
                "{head}"
            );
        }
    }
}

#[tokio::test]
async fn silent_and_slow_clients_are_cut_off() {
    let database = with_large_odds();
    let more = [
        &[
            "--head-timeout",
            "200ms",
            "--idle-timeout",
            "300ms",
            "--stall-timeout",
            "400ms",
        ][..],
        &CUTS,
    ]
    .concat();
    let mut served = Served::start(&database.dsn(), &more).await;
    served.warm().await;
    // Half a head, nothing, and nothing after an answer.
    for (request, answered) in [
        ("GET /livez HTTP/1.1\r\nHo", false),
        ("", false),
        ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", true),
    ] {
        let answer = say(&served, request).await;
        assert_eq!(
            answer.starts_with("HTTP/1.1 200"),
            answered,
            "{request:?}: {answer}"
        );
        served
            .logs(&["cut off", "the client asks for nothing"])
            .await;
    }
    let mut slow = under_way(&served, "/v1/dump").await;
    served
        .logs(&["cut off", "the client does not take its answer"])
        .await;
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(30), slow.read_to_end(&mut rest))
        .await
        .expect("the connection ends");
    assert!(
        !rest.ends_with(b"\r\n0\r\n\r\n") && rest.len() < 10_000_000,
        "{}",
        rest.len()
    );
    // Those that take what they asked for are served.
    assert_eq!(served.get("/v1/dump").await.0, 200);
}

#[tokio::test]
async fn an_answer_may_not_take_for_ever_however_steadily() {
    let database = with_large_odds();
    let more = [
        &["--answer-timeout", "500ms", "--stall-timeout", "1h"][..],
        &CUTS,
    ]
    .concat();
    let mut served = Served::start(&database.dsn(), &more).await;
    served.warm().await;
    let mut slow = under_way(&served, "/v1/dump").await;
    let taking = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let mut some = [0; 512];
        while slow.read(&mut some).await.is_ok_and(|count| count > 0) {
            ticks.tick().await;
        }
    });
    served
        .logs(&["cut off", "the client does not take its answer"])
        .await;
    taking.abort();
}

#[tokio::test]
async fn slow_readers_cost_next_to_nothing() {
    let database = with_large_odds();
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let pid = served.child.id().unwrap();
    let mut slow = vec![under_way(&served, "/v1/dump").await];
    let before = process::memory(pid);
    for _ in 0..40 {
        slow.push(under_way(&served, "/v1/dump").await);
    }
    let after = process::memory(pid);
    let each = (after.resident.saturating_sub(before.resident)) as f64 / 40.0;
    println!(
        "{each:.0} KiB for each reader that does not take its answer of over 10 MB; {before} before, {after} after"
    );
    assert!(each < 600.0, "{each} KiB each: {before}; {after}");
}

#[tokio::test]
async fn connections_are_bounded_and_its_health_is_told_all_the_same() {
    let database = with_odds();
    let served = Served::start(&database.dsn(), &["--most-connections", "2"]).await;
    served.warm().await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = client::Client::new(served.address());
        eventually("a place", async || matches!(client.take("/v1/stats", None).await, Ok((status, ..)) if status == 200)).await;
        held.push(client);
    }
    let answer = say(&served, "GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("--most-connections"),
        "{answer}"
    );
    for path in ["/livez", "/readyz"] {
        let answer = say(&served, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(held.pop());
    eventually("a place again", async || {
        say(
            &served,
            "GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .await
        .starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn an_answer_begins_in_time_or_is_an_error() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &["--request-timeout", "300ms"]).await;
    served.warm().await;
    app.batch_execute("begin").await.unwrap();
    let row = app
        .query_one("select pg_current_xact_id()::text", &[])
        .await
        .unwrap();
    let path = format!(
        "/v1/events/1?wait_for={}&timeout=20s",
        row.get::<_, String>(0)
    );
    let (status, body) = served.get(&path).await;
    assert!(
        status == 503 && body.contains("no answer within 0.3 s"),
        "{body}"
    );
}

#[tokio::test]
async fn a_token_is_asked_for_everywhere_but_where_health_is_asked() {
    let database = with_odds();
    let (one, two) = ("one-token-0123456789abcdef", "two-token-0123456789abcdef");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(file.path(), one).unwrap();
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--log",
        "debug,tokio_postgres=warn",
    ];
    let variables = [("ODDSCACHE_TOKEN_FILE", file.path().to_str().unwrap())];
    let mut served = Served::start_with(&database.dsn(), &arguments, &variables).await;
    served.warm().await;
    let ask = async |path: &str, token: Option<&str>| {
        let mut request = Client::new().get(format!("{}{path}", served.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.expect("an answer")
    };
    for path in [
        "/v1/events",
        "/v1/changes",
        "/v1/dump",
        "/metrics",
        "/v1/stats",
        "/nowhere",
    ] {
        for token in [None, Some(two), Some("")] {
            let answer = ask(path, token).await;
            assert_eq!(answer.status(), 401, "{path}");
            assert_eq!(
                answer.headers()["www-authenticate"],
                "Bearer realm=\"oddscache\""
            );
            assert!(
                answer
                    .text()
                    .await
                    .unwrap()
                    .contains("Authorization: Bearer")
            );
        }
    }
    assert_eq!(ask("/v1/events", Some(one)).await.status(), 200);
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(path, None).await.status(), 200, "{path}");
    }

    // Renewed while it runs; where the file is no good, the old one stays.
    std::fs::write(file.path(), two).unwrap();
    served.signal("-HUP");
    eventually("the new token", async || {
        let answer = Client::new()
            .get(format!("{}/v1/stats", served.base))
            .bearer_auth(two)
            .send()
            .await;
        answer.unwrap().status() == 200
    })
    .await;
    std::fs::write(file.path(), "").unwrap();
    served.signal("-HUP");
    served.logs(&["SIGHUP", "no token"]).await;
    let stats = async |token: &str| {
        let request = Client::new()
            .get(format!("{}/v1/stats", served.base))
            .bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((stats(one).await, stats(two).await), (401, 200));

    // The tools send it, and no log has it.
    let explain = |token: &str| {
        let mut explain = command(&["explain", "1", "--url", &served.base]);
        explain
            .env("DATABASE_URL", database.dsn())
            .env("ODDSCACHE_TOKEN", token)
            .output()
            .unwrap()
    };
    assert!(explain(two).status.success());
    let refused = explain(one);
    assert!(
        text(&refused.stderr).contains("asks for a token"),
        "{}",
        text(&refused.stderr)
    );
    served.signal("-TERM");
    while let Some(line) = served.log.next_line().await.unwrap() {
        assert!(!line.contains("token-0123"), "{line}");
    }
    let output = command(&["serve", "--token", "short"])
        .env("DATABASE_URL", database.dsn())
        .output()
        .unwrap();
    let errors = text(&output.stderr);
    assert!(
        output.status.code() == Some(2) && errors.contains("16") && !errors.contains("short"),
        "{errors}"
    );
}

/// A certificate for 127.0.0.1, its key, and who issued it, in PEM.
fn certificate() -> [String; 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = parameters.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(parameters, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    [certificate.pem(), key.serialize_pem(), ca]
}

/// Asks over TLS, trusting `ca` alone.
async fn ask_tls(address: SocketAddr, ca: &str) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(address.ip().into(), stream).await;
    let mut stream = stream.map_err(|error| error.to_string())?;
    stream
        .write_all(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(|error| error.to_string())?;
    Ok(text(&answer))
}

#[tokio::test]
async fn tls_is_served_and_its_certificate_renewed() {
    let database = with_odds();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let put = |[certificate, key, ca]: &[String; 3]| {
        for (name, text) in [("cert.pem", certificate), ("key.pem", key), ("ca.pem", ca)] {
            std::fs::write(path(name), text).unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    };
    let (first, second) = (certificate(), certificate());
    put(&first);
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let more = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--head-timeout",
        "500ms",
    ];
    let served = Served::start(&database.dsn(), &more).await;
    let address = served.address();
    let probe = |arguments: &[&str]| {
        let mut probe = command(arguments);
        probe
            .env("ODDSCACHE_LISTEN", address.to_string())
            .env("ODDSCACHE_TLS_CERT", &cert);
        probe.output().unwrap().status.code()
    };
    eventually("ready over TLS", async || probe(&["ready"]) == Some(0)).await;
    let answer = ask_tls(address, &first[2]).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask_tls(address, &second[2]).await.is_err());
    // Whoever speaks plainly, or says nothing, is not waited for.
    for words in ["GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", ""] {
        assert!(!say(&served, words).await.contains("HTTP/1.1 200"));
    }
    let url = format!("https://{address}");
    let explain = command(&["explain", "1", "--url", &url, "--ca", &path("ca.pem")])
        .env("DATABASE_URL", database.dsn())
        .output()
        .unwrap();
    assert!(explain.status.success(), "{}", text(&explain.stderr));

    put(&second);
    served.signal("-HUP");
    eventually("the new certificate", async || {
        ask_tls(address, &second[2]).await.is_ok()
    })
    .await;
    assert_eq!(probe(&["health"]), Some(0));

    for (arguments, word) in [
        (&["serve", "--tls-cert", &cert][..], "--tls-key"),
        (
            &["serve", "--tls-cert", &cert, "--tls-key", "/nowhere"],
            "/nowhere",
        ),
        (
            &["serve", "--tls-cert", &key, "--tls-key", &key],
            "--tls-cert",
        ),
    ] {
        let output = command(arguments)
            .env("DATABASE_URL", database.dsn())
            .output()
            .unwrap();
        let errors = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && errors.contains(word),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn who_listens_beyond_this_machine_is_warned() {
    let database = with_odds();
    let arguments = ["serve", "--listen", "0.0.0.0:0", "--log-format", "json"];
    let mut served = Served::start_with(&database.dsn(), &arguments, &[]).await;
    served
        .logs(&[
            "listening beyond this machine",
            "--token-file",
            "--tls-cert",
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_full_speed_beside_a_writer_nothing_fails_and_memory_stays() {
    const REQUESTS: usize = 3000;
    let database = with_odds();
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let (address, pid) = (served.address(), served.child.id().unwrap());

    let subscribers: Vec<subscriber::Shared> =
        (0..20).map(|_| subscriber::Shared::default()).collect();
    let mut following = JoinSet::new();
    for seen in &subscribers {
        following.spawn(subscriber::run(address, Arc::clone(seen), false));
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
                app.batch_execute(&sql).await.expect("written");
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
                let (mut client, mut tally) =
                    (client::Client::new(address), client::Tally::default());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= upto {
                        return tally;
                    }
                    let path = match number % 10 {
                        0 => "/v1/events".to_owned(),
                        1 => "/v1/stats".to_owned(),
                        2 => "/metrics".to_owned(),
                        3 => "/v1/events?ids=1,2,3".to_owned(),
                        4 => "/readyz".to_owned(),
                        n => format!("/v1/events/{n}"),
                    };
                    let begun = std::time::Instant::now();
                    let result = client.take(&path, None).await;
                    tally.add(begun.elapsed(), &[200], result);
                }
            });
        }
        let mut all = client::Tally::default();
        while let Some(tally) = workers.join_next().await {
            all.merge(&tally.expect("a worker"));
        }
        all
    };
    // What is made once is made by then.
    let warm = run(REQUESTS / 3).await;
    let before = process::memory(pid);
    next.store(0, Ordering::Relaxed);
    let mut all = run(REQUESTS).await;
    let after = process::memory(pid);
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
    assert!(
        grown < 24 * 1024,
        "{grown} KiB more: {before}, then {after}"
    );

    // All were told of all that happened, to the last.
    let mut asking = client::Client::new(address);
    eventually("everybody is up to date", async || {
        let (_, tag, _) = asking.take("/v1/events/1", None).await.expect("an answer");
        let (process, version) = tag.as_deref().and_then(client::view_of).expect("a tag");
        let here = format!("{process}-{version}");
        subscribers
            .iter()
            .all(|seen| seen.lock().unwrap().last == here)
    })
    .await;
    for seen in &subscribers {
        let seen = seen.lock().unwrap();
        assert_eq!((seen.untold, seen.reconnects, &seen.wrong), (0, 0, &None));
        assert!(seen.changes > 5, "{seen:?}");
    }
}
