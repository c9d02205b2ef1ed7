//! From the start to the end: alive, ready, what the service manager hears, and how it drains.

use std::{
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use oddscache_testkit::{
    connect, psql,
    service::{Service, command, ended, isolate},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Database, eventually, own_cluster, served, with_odds};

/// So large that no buffer on the way takes `/v1/dump` whole.
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

/// A client that has asked for `path` and read the head of the answer, and nothing more: the answer is under way.
pub(super) async fn under_way(served: &Service, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(served.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(30), stream.read_u8()).await;
        head.push(byte.expect("in time").unwrap());
    }
    let head = String::from_utf8_lossy(&head);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
}

async fn is_not_ready(served: &Service) {
    eventually("not ready any more", async || {
        served.get("/readyz").await.0 == 503
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_it_follows_or_is_young_and_alive_all_the_time() {
    let cluster = own_cluster();
    cluster.stop("fast").unwrap();
    let served = Service::start(&cluster.dsn("postgres"), &["--ready-max-age", "1s"]).await;
    let probe = |name: &str| ended(&mut command(&[name, "--url", &served.base]));
    probe("health").ok();
    probe("ready").with(1, &["not warm yet"]);
    cluster.boot().unwrap();
    served.ready().await;
    probe("ready").with(0, &["ready"]);

    // The server is away: the service is ready for as long as the view is young, then not, and alive.
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

    // Where the service listens, a probe knows from what the service itself is told.
    let listen = format!("0.0.0.0:{}", served.address().port());
    ended(command(&["health"]).env("ODDSCACHE_LISTEN", &listen)).ok();
    drop(served);
    let gone = ended(&mut command(&["health", "--listen", &listen]));
    gone.with(1, &["asking http://127.0.0.1:"]);
}

/// A database that accepts connections, but never finishes the reload after an outage.
#[tokio::test]
async fn it_is_not_ready_before_an_outage_is_made_up_for() {
    let (database, served) = served(&["--ready-max-age", "1s"]).await;
    let mut app = connect(&database.dsn()).await;
    let door = |open: bool| {
        let sql = format!("alter database {} allow_connections {open}", database.name);
        psql("postgres", &["-qc", &sql]);
    };
    let cut = || {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = '{}' and application_name = 'oddscache'";
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
    eventually("it tries to read everything", async || {
        let mut tries = false;
        // Without a pause, for it gives way to the lock soon; and again, should that have been missed.
        for _ in 0..200 {
            let (status, body) = served.get("/readyz").await;
            assert_eq!(status, 503, "{body}");
            assert_eq!(served.metric("oddscache_connected").await, 0.0);
            tries |= body.contains("resyncing: connection lost");
        }
        if !tries {
            cut();
        }
        tries
    })
    .await;
    held.rollback().await.unwrap();
    served.ready().await;
    // A reload on a connection that lives takes nothing away.
    served.signal("-USR1");
    eventually("it is read again", async || {
        let (status, body) = served.get("/readyz").await;
        assert_eq!(status, 200, "{body}");
        let stats = served.json("/v1/stats").await;
        stats["counters"]["reloads_by_reason"]["asked"] == 1
    })
    .await;
}

#[tokio::test]
async fn answers_under_way_are_finished_when_the_end_is_asked_for() {
    let database = with_large_odds();
    // A level that leaves out what is said at the end.
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
    // Requests are answered meanwhile.
    assert_eq!(served.get("/v1/events/1").await.0, 200);
    eventually("nobody else is let in", async || {
        TcpStream::connect(served.address()).await.is_err()
    })
    .await;
    let end = timeout(Duration::from_secs(30), idle.read(&mut [0])).await;
    let count = end.expect("a connection without a request is closed");
    assert_eq!(count.unwrap_or(0), 0);
    // It does not end in the middle of an answer.
    served.assert_runs();

    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(60), answer.read_to_end(&mut rest)).await;
    read.expect("in time").unwrap();
    let is_whole = rest.ends_with(b"\r\n0\r\n\r\n");
    assert!(is_whole && rest.len() > 10_000_000, "{}", rest.len());
    let status = served.ended().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
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

/// The service manager: what it hears, line by line.
struct Manager(UnixDatagram);

impl Manager {
    /// Reads until each of `lines` begins one that was heard; returns all that was.
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
        panic!("{lines:?} were not heard: {heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_how_it_goes() {
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

    // A database that is away is no reason to be restarted, nor for the start to fail.
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

    // Without a watchdog, or with that of another process, there is nothing to feed.
    cluster.boot().unwrap();
    while manager.0.set_nonblocking(true).is_ok() && manager.0.recv(&mut [0; 4096]).is_ok() {}
    manager.0.set_nonblocking(false).unwrap();
    let variables = [socket, watchdog, ("WATCHDOG_PID", "1")];
    let _served = Service::start_with(&dsn, &[], &variables).await;
    let heard = manager.hear(&["READY=1", "STATUS=live"]);
    assert!(!heard.contains(&"WATCHDOG=1".to_owned()), "{heard:?}");
}

/// A signal was once waited for within the macro that logs it: with the level off, the service ended at once.
#[tokio::test]
async fn what_is_not_logged_is_done_all_the_same() {
    let database = with_odds();
    // Its port is not logged either.
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

#[test]
fn the_unit_is_understood_by_systemd() {
    let program = "systemd-analyze";
    if std::process::Command::new(program)
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: systemd-analyze is not installed (Debian: apt-get install systemd)");
        return;
    }
    let unit = std::fs::read_to_string("examples/deploy/oddscache.service").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("oddscache.service");
    // It insists that the program is there.
    let binary = command(&[]);
    let binary = binary.get_program().to_str().unwrap();
    std::fs::write(&path, unit.replace("/usr/local/bin/oddscache", binary)).unwrap();
    let mut verify = std::process::Command::new(program);
    isolate(&mut verify);
    let said = ended(verify.args(["verify", "--man=no"]).arg(&path)).ok();
    let said = said.out + &said.errors;
    assert!(!said.contains("oddscache.service"), "{said}");
}
