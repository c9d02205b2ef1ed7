//! The life of the service: liveness, readiness, messages to the service manager, and draining.

use std::{
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use oddscache_testkit::{
    connect,
    programs::skipped,
    psql,
    service::{Service, command, ended, isolate},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Database, eventually, own_cluster, served, with_odds};

/// Odds so large that no buffer on the way holds the whole of `/v1/dump`.
pub(super) const LARGE: &str = r#"
    insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
        select n, 'sr' || n, 'Home - Away', 'Home', 'Away', now() at time zone 'UTC' + interval '1 day'
        from generate_series(1001, 1800) n;
    insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1001, 1800) n;
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
    select s.id, 'm' || m, 'Market',
           (select jsonb_agg(jsonb_build_object('name', 'outcome ' || o, 'odds', 1.5 + o, 'is_active', true)) from generate_series(1, 30) o)
    from odds_snapshots s, generate_series(1, 10) m where s.event_id > 1000
"#;

pub(super) fn with_large_odds() -> Database {
    let database = with_odds();
    database.psql(LARGE);
    database
}

/// Connects with a small buffer, so that a large response stays under way.
pub(super) async fn open(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address).await.unwrap()
}

/// Sends a request, and reads only the head of the response.
pub(super) async fn head(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(30), stream.read_u8()).await;
        head.push(byte.expect("in time").unwrap());
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A response of which only the head is read.
pub(super) async fn under_way(served: &Service, path: &str) -> TcpStream {
    let mut stream = open(served.address()).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = head(&mut stream, &request).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
}

async fn is_not_ready(served: &Service) {
    eventually("not ready any more", async || {
        served.get("/readyz").await.0 == 503
    })
    .await;
}

/// A load balancer takes an old view out of use, and nothing restarts a process that only lacks its database.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_its_view_is_young_and_alive_all_the_time() {
    let cluster = own_cluster();
    cluster.stop("fast").unwrap();
    let served = Service::start(&cluster.dsn("postgres"), &["--ready-max-age", "1s"]).await;
    let probe = |name: &str| ended(&mut command(&[name, "--url", &served.base]));
    probe("health").ok();
    probe("ready").with(1, &["not warm yet"]);
    cluster.boot().unwrap();
    served.ready().await;
    probe("ready").with(0, &["ready"]);

    // Without the server the service stays ready while the view is young. Afterwards it is alive, but not ready.
    cluster.stop("fast").unwrap();
    is_not_ready(&served).await;
    let (_, body) = served.get("/readyz").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    let says = |field: &str, word: &str| body[field].as_str().unwrap().contains(word);
    assert!(says("status", "disconnected"), "{body}");
    assert!(says("error", "--ready-max-age"), "{body}");
    assert!(body["age_ms"].as_u64() > Some(1000), "{body}");
    assert_eq!(body["ready"], false, "{body}");
    probe("ready").with(1, &["503"]);
    probe("health").ok();
    assert_eq!(served.get("/v1/events/1").await.0, 200);
    cluster.boot().unwrap();
    served.ready().await;

    // A probe finds the address in the same variables as the service.
    let listen = format!("0.0.0.0:{}", served.address().port());
    ended(command(&["health"]).env("ODDSCACHE_LISTEN", &listen)).ok();
    drop(served);
    let gone = ended(&mut command(&["health", "--listen", &listen]));
    gone.with(1, &["asking http://127.0.0.1:"]);
}

/// A load balancer keeps a service that follows all but what a trigger does not log. It says what is not whole.
#[tokio::test]
async fn it_is_ready_while_it_is_degraded() {
    let (database, served) = served(&[]).await;
    database.psql("alter table market_odds disable trigger oddscache_update");
    let mut body = Value::Null;
    eventually("degraded", async || {
        body = served.json("/readyz").await;
        body["degraded"].is_object()
    })
    .await;
    assert_eq!(body["ready"], true, "{body}");
    let fault = &body["degraded"]["faults"][0];
    assert!(body["degraded"]["bound_ms"].as_u64() > Some(1000), "{body}");
    let metrics = served.get("/metrics").await.1;
    assert!(
        metrics.contains("\noddscache_status{status=\"degraded\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\noddscache_faults 1\n"), "{metrics}");
    database.psql(fault["repair"].as_str().unwrap());
    eventually("whole again", async || {
        served.json("/v1/stats").await["degraded"].is_null()
    })
    .await;
}

/// The database accepts connections again, but a lock holds up the read after the outage.
#[tokio::test]
async fn it_is_not_ready_before_the_read_after_an_outage() {
    let (database, served) = served(&["--ready-max-age", "1s"]).await;
    let mut app = connect(&database.dsn()).await;
    let door = |open: bool| {
        let sql = format!("alter database {} allow_connections {open}", database.name);
        psql("postgres", &["-qc", &sql]);
    };
    let cut = || {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = '{}' and application_name like 'oddscache %'";
        psql("postgres", &["-qc", &sql.replace("{}", &database.name)]);
    };
    door(false);
    cut();
    is_not_ready(&served).await;
    let held = app.transaction().await.unwrap();
    held.batch_execute("lock table events in access exclusive mode")
        .await
        .unwrap();
    door(true);
    eventually("it tries to read", async || {
        let mut tries = false;
        for _ in 0..200 {
            let (status, body) = served.get("/readyz").await;
            assert_eq!(status, 503, "{body}");
            assert_eq!(served.metric("oddscache_connected").await, 0.0);
            tries |= body.contains("lock timeout");
        }
        tries
    })
    .await;
    held.rollback().await.unwrap();
    served.ready().await;
    // A reload on a working connection does not end readiness.
    served.signal("-USR1");
    eventually("it is read again", async || {
        let (status, body) = served.get("/readyz").await;
        assert_eq!(status, 200, "{body}");
        let stats = served.json("/v1/stats").await;
        stats["counters"]["reloads_by_reason"]["requested"] == 1
    })
    .await;
}

/// A deployment loses no response: the service first stops being ready, then accepts no connections, then ends.
#[tokio::test]
async fn sigterm_lets_responses_under_way_finish() {
    let database = with_large_odds();
    // This level leaves out the messages at the end.
    let log = "warn,oddscache::server::commands::serve=info";
    let more = ["--drain-delay", "3s", "--drain", "60s", "--log", log];
    let mut served = Service::warm(&database.dsn(), &more).await;
    let mut answer = under_way(&served, "/v1/dump").await;
    let mut idle = TcpStream::connect(served.address()).await.unwrap();
    served.signal("-TERM");
    eventually("it says that it ends", async || {
        let (status, body) = served.get("/readyz").await;
        status == 503 && body.contains("the service is ending")
    })
    .await;
    // The service still answers requests meanwhile.
    assert_eq!(served.get("/v1/events/1").await.0, 200);
    eventually("no new connection is accepted", async || {
        TcpStream::connect(served.address()).await.is_err()
    })
    .await;
    let end = timeout(Duration::from_secs(30), idle.read(&mut [0])).await;
    let count = end.expect("a connection without a request is closed");
    assert_eq!(count.unwrap_or(0), 0);
    // The service does not end in the middle of a response.
    served.assert_runs();

    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(60), answer.read_to_end(&mut rest)).await;
    read.expect("in time").unwrap();
    let is_whole = rest.ends_with(b"\r\n0\r\n\r\n");
    assert!(is_whole && rest.len() > 10_000_000, "{}", rest.len());
    let status = served.ended().await;
    assert!(status.success(), "{status}");
}

/// A client that never reads its response must not keep the service from ending.
#[tokio::test]
async fn sigterm_waits_no_longer_than_the_drain_time() {
    let database = with_large_odds();
    let mut served = Service::warm(&database.dsn(), &["--drain", "300ms"]).await;
    let _never_taken = under_way(&served, "/v1/dump").await;
    let begun = Instant::now();
    served.signal("-TERM");
    let status = timeout(Duration::from_secs(14), served.ended()).await;
    assert!(status.expect("before any other bound").success());
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let log = served.rest_of_log().await.concat();
    assert!(log.contains("cut off"), "{log}");
}

/// Plays the service manager: receives messages line by line.
struct Manager(UnixDatagram);

impl Manager {
    /// Reads until each of `lines` is the beginning of a received line. Returns all received lines.
    fn hear(&self, lines: &[&str]) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut heard, mut buffer) = (Vec::<String>::new(), [0; 4096]);
        while Instant::now() < deadline {
            let length = self.0.recv(&mut buffer).unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..length]);
            heard.extend(text.lines().map(str::to_owned));
            let is_heard = |line: &&str| heard.iter().any(|heard| heard.starts_with(*line));
            if lines.iter().all(is_heard) {
                return heard;
            }
        }
        heard.dedup();
        panic!("{lines:?} did not come, but {heard:?}");
    }
}

/// systemd knows when the service is ready, what its status is, and that it still runs.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_gets_ready_status_and_watchdog_messages() {
    let cluster = own_cluster();
    cluster.stop("fast").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    let patience = Some(Duration::from_secs(30));
    manager.0.set_read_timeout(patience).unwrap();
    let socket = ("NOTIFY_SOCKET", path.to_str().unwrap());
    let watchdog = ("WATCHDOG_USEC", "300000");
    let dsn = cluster.dsn("postgres");
    let mut served = Service::start_with(&dsn, &[], &[socket, watchdog]).await;

    // Without its database the service keeps starting, and gives the manager no reason to restart it.
    let heard = [
        manager.hear(&["STATUS=disconnected", "EXTEND_TIMEOUT_USEC="]),
        manager.hear(&["WATCHDOG=1"]),
        manager.hear(&["WATCHDOG=1"]),
    ];
    assert!(!heard.concat().contains(&"READY=1".to_owned()), "{heard:?}");
    cluster.boot().unwrap();
    manager.hear(&["READY=1", "STATUS=live; 9 events"]);
    assert_eq!(served.get("/readyz").await.0, 200);
    manager.hear(&["WATCHDOG=1"]);
    cluster.stop("fast").unwrap();
    manager.hear(&["STATUS=disconnected"]);
    manager.hear(&["WATCHDOG=1"]);
    served.signal("-TERM");
    manager.hear(&["STOPPING=1"]);
    let status = served.ended().await;
    assert!(status.success(), "{status}");

    // If the watchdog belongs to another process, the service sends it nothing.
    cluster.boot().unwrap();
    while manager.0.set_nonblocking(true).is_ok() && manager.0.recv(&mut [0; 4096]).is_ok() {}
    manager.0.set_nonblocking(false).unwrap();
    let variables = [socket, watchdog, ("WATCHDOG_PID", "1")];
    let _served = Service::start_with(&dsn, &[], &variables).await;
    let heard = manager.hear(&["READY=1", "STATUS=live"]);
    assert!(!heard.contains(&"WATCHDOG=1".to_owned()), "{heard:?}");
}

/// The service once waited for a signal inside the macro that logs the signal. With that log level off, it did not wait
/// and ended at once.
#[tokio::test]
async fn the_service_runs_with_its_messages_switched_off() {
    let database = with_odds();
    // Choose the port here, because the log does not contain it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut service = command(&["serve", "--listen", &address, "--log=error"]);
    service.env("DATABASE_URL", database.dsn());
    let mut service = tokio::process::Command::from(service);
    let mut service = service.kill_on_drop(true).spawn().unwrap();
    eventually("it is ready", async || {
        let answer = reqwest::get(format!("http://{address}/readyz")).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    assert_eq!(service.try_wait().unwrap(), None);
}

/// The unit in examples/deploy has no mistake that systemd-analyze finds.
#[test]
fn systemd_accepts_the_unit() {
    let program = "systemd-analyze";
    if std::process::Command::new(program)
        .arg("--version")
        .output()
        .is_err()
    {
        skipped(program, "apt-get install systemd");
        return;
    }
    let unit = std::fs::read_to_string("examples/deploy/oddscache.service").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("oddscache.service");
    // systemd-analyze fails if the program does not exist.
    let binary = command(&[]);
    let binary = binary.get_program().to_str().unwrap();
    std::fs::write(&path, unit.replace("/usr/local/bin/oddscache", binary)).unwrap();
    let mut verify = std::process::Command::new(program);
    isolate(&mut verify);
    let said = ended(verify.args(["verify", "--man=no"]).arg(&path)).ok();
    let said = said.out + &said.errors;
    assert!(!said.contains("oddscache.service"), "{said}");
}
