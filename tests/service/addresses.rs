//! Where the service listens: an address for readers, another one for operators, and Unix sockets.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use oddscache_testkit::{
    nginx::Nginx,
    service::{Service, command, ended, run},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{access::put, eventually, openapi::Document, own_cluster, with_odds};

/// The answer to a request at a Unix socket, head and body.
pub(super) async fn ask_socket(socket: &Path, path: &str, more: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// With `--admin-listen` readers see no more of the state than the page shows, and no name of a server.
#[tokio::test]
async fn operators_have_an_address_of_their_own() {
    let cluster = own_cluster();
    let more = ["--admin-listen", "127.0.0.1:0", "--ready-max-age", "1h"];
    let mut serve = command(&[&oddscache_testkit::service::SERVE, &more[..]].concat());
    serve.env("DATABASE_URL", cluster.dsn("postgres"));
    let (readers, operators) = Service::spawn_with_admin(serve).await;
    operators.ready().await;
    for (path, to_readers, to_operators) in [
        ("/", 200, 404),
        ("/page/board.js", 200, 404),
        ("/v1/events", 200, 404),
        ("/v1/list", 200, 404),
        ("/openapi.json", 200, 404),
        ("/v1/stats", 200, 200),
        ("/metrics", 404, 200),
        ("/livez", 404, 200),
        ("/readyz", 404, 200),
    ] {
        let found = (readers.get(path).await.0, operators.get(path).await.0);
        assert_eq!(found, (to_readers, to_operators), "{path}");
    }
    let shared = ["version", "epoch", "as_of", "memory_bytes", "total_markets"];
    let (mut brief, mut full) = (Value::Null, Value::Null);
    // A read may come between the two answers.
    eventually("both tell of one state", async || {
        brief = readers.json("/v1/stats").await;
        full = operators.json("/v1/stats").await;
        shared.iter().all(|field| brief[field] == full[field])
    })
    .await;
    let document = Document::of(&readers).await;
    document.assert_is_a(&brief, "Stats", "at the readers' address");
    document.assert_is_a(&full, "Stats", "at the operators' address");
    for field in ["memory", "last_warmup", "audit", "pruning", "reading"] {
        assert!(brief.get(field).is_none(), "{brief}");
        assert!(full.get(field).is_some(), "{full}");
    }
    // The metrics of both addresses are at one.
    let events = "oddscache_http_requests_total{path=\"/v1/events\",code=\"2xx\"}";
    assert_eq!(operators.metric(events).await, 1.0);

    // Only operators learn which server is away.
    cluster.stop("fast").unwrap();
    let port = cluster.port().to_string();
    let status = |stats: Value| stats["status"].as_str().unwrap().to_owned();
    // The first words are of the connection that ended, the next ones of the server.
    eventually("operators learn which server", async || {
        let told = status(operators.json("/v1/stats").await);
        told.contains("cannot reach the database")
    })
    .await;
    let told = status(readers.json("/v1/stats").await);
    assert!(told.starts_with("disconnected since "), "{told}");
    assert!(!told.contains("cannot") && !told.contains(&port), "{told}");
    let (code, refusal) = readers.get("/v1/events?max_age=1ms").await;
    assert!(code == 503 && refusal.contains("disconnected"), "{refusal}");
    assert!(!refusal.contains("cannot"), "{refusal}");
}

/// The operators' address has the token and the health probes ask there.
#[tokio::test]
async fn the_operators_address_has_the_same_access() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let token = "one-token-0123456789abcdef";
    let file = put(folder.path(), "token", token);
    let socket = folder.path().join("admin.sock");
    let address = format!("unix:{}", socket.display());
    let more = ["--admin-listen", &address, "--token-file", &file];
    let served = Service::start(&database.dsn(), &more).await;
    let probe = |name: &str| {
        let mut probe = command(&[name]);
        probe.env("ODDSCACHE_ADMIN_LISTEN", &address);
        ended(&mut probe)
    };
    eventually("ready", async || probe("ready").code == Some(0)).await;
    probe("health").with(0, &[&address, "alive"]);
    let refused = ask_socket(&socket, "/metrics", "").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let metrics = ask_socket(&socket, "/metrics", &bearer).await.unwrap();
    assert!(
        metrics.contains("\noddscache_http_unauthorized_total 1\n"),
        "{metrics}"
    );
    assert_eq!(served.get("/v1/events").await.0, 401);
}

/// The socket is there while the service runs, for its owner and group. One that was left behind is replaced; one that
/// is in use is not.
#[tokio::test]
async fn the_service_listens_on_a_unix_socket() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("http.sock");
    let address = format!("unix:{}", socket.display());
    let start = async || {
        let mut serve = command(&["serve", "--listen", &address, "--log-format", "json"]);
        serve.env("DATABASE_URL", database.dsn());
        Service::spawn(serve).await
    };
    let ready = async || {
        let health = ["ready", "--listen", &address];
        eventually("ready", async || {
            ended(&mut command(&health)).code == Some(0)
        })
        .await;
    };
    let mut first = start().await;
    ready().await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    let answer = ask_socket(&socket, "/v1/events/3", "").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let second = ["serve", "--listen", &address];
    run(&second, &database.dsn()).with(1, &["another process listens", "--listen"]);
    assert!(ask_socket(&socket, "/livez", "").await.is_ok());

    // SIGKILL leaves the file behind.
    first.signal("-KILL");
    first.ended().await;
    assert!(socket.exists());
    run(&["health", "--listen", &address], "").with(1, &["refused"]);
    let mut third = start().await;
    ready().await;
    third.signal("-TERM");
    assert!(third.ended().await.success());
    assert!(!socket.exists());
}

/// A client of a Unix socket that sends nothing is cut off, as one of an address is.
#[tokio::test]
async fn the_time_outs_hold_on_a_unix_socket() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("http.sock");
    let address = format!("unix:{}", socket.display());
    let mut serve = command(&["serve", "--listen", &address, "--log-format", "json"]);
    serve
        .args(["--idle-timeout", "200ms"])
        .env("DATABASE_URL", database.dsn());
    let _served = Service::spawn(serve).await;
    let begun = Instant::now();
    let mut silent = UnixStream::connect(&socket).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut [0; 16])).await;
    assert_eq!(end.expect("it is cut off").unwrap_or(0), 0);
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

/// A proxy on the same machine reaches the service by its socket, for answers and for streams.
#[tokio::test]
async fn a_proxy_uses_the_socket() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("http.sock").display());
    let mut serve = command(&["serve", "--listen", &address, "--log-format", "json"]);
    serve.env("DATABASE_URL", database.dsn());
    let _served = Service::spawn(serve).await;
    let location = "proxy_pass http://oddscache;";
    let Some(nginx) = Nginx::start(&address, location).await else {
        return;
    };
    let ask = async |path: &str| {
        reqwest::get(format!("http://{}{path}", nginx.address()))
            .await
            .unwrap()
    };
    eventually("ready", async || ask("/readyz").await.status() == 200).await;
    assert_eq!(ask("/v1/events/3").await.status(), 200);
    let mut changes = ask("/v1/changes").await;
    let first = tokio::time::timeout(Duration::from_secs(60), changes.chunk()).await;
    let first = first.expect("in time").unwrap().expect("an event");
    assert!(first.starts_with(b"event: start"), "{first:?}");
}
