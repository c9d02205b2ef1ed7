//! Runs the binary as its users do: `serve`, `dump`, `sql`, `demo`.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod access;
mod access_log;
mod addresses;
mod changes;
mod client;
mod config;
mod cors;
mod cut;
mod deploy;
mod descriptors;
mod fair;
mod fetched;
mod generated;
mod history;
mod http2;
mod incidents;
mod lifecycle;
mod limits;
mod list;
mod logging;
mod metrics;
mod openapi;
mod prometheus;
mod promtool;
mod streams;
#[cfg(feature = "otlp")]
mod traces;

use std::{path::Path, process::Stdio, time::Duration};

use oddscache_testkit::{
    Database, assert_same,
    cluster::Cluster,
    connect, eventually,
    followed::run as write,
    normal, oracle,
    programs::optional,
    service::{Ended, Service, command, ended, kill, run},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::Command,
    time::timeout,
};

/// A few events of every kind.
const ODDS: &str = r#"
    insert into bookmakers (id, name, slug) values (1, 'betPawa', 'betpawa');
    insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
        select n, 'sr' || n, 'Home - Away', 'Home', 'Away', now() at time zone 'UTC' + n * interval '1 hour'
        from generate_series(1, 9) n;
    insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1, 8) n;
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups)
        select s.id, m, 'Market ' || m, case m when '5000' then 2.5 end,
               '[{"name": "1", "odds": 2.125, "is_active": true}, {"name": "2", "odds": 1.75, "is_active": false, "id": 7}]',
               case m when '3743' then '["main"]'::jsonb end
        from odds_snapshots s, unnest(array['3743', '5000']) m;
    insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
        select n, 'sportybet', n, now(), 'x' || n, 'sr' || n from generate_series(1, 9, 2) n;
    insert into competitor_odds_snapshots (competitor_event_id) select id from competitor_events;
"#;

fn with_odds() -> Database {
    let database = Database::with_feed();
    database.psql(ODDS);
    database
}

/// A private cluster with [`ODDS`], which the test can stop.
fn own_cluster() -> Cluster {
    Cluster::with_feed(ODDS)
}

/// Starts the service on a database with [`ODDS`], and waits until it is warm.
async fn served(more: &[&str]) -> (Database, Service) {
    let database = with_odds();
    let service = Service::warm(&database.dsn(), more).await;
    (database, service)
}

fn lines(dump: &str) -> Vec<Value> {
    dump.lines()
        .map(|line| normal(serde_json::from_str(line).expect("a line is JSON")))
        .collect()
}

fn two_hours_ago() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) - chrono::Duration::hours(2)
}

/// The responses equal an independent query of the database, and change with it.
#[tokio::test]
async fn serve_answers_with_the_odds_of_the_database() {
    let (database, served) = served(&[]).await;
    let app = connect(&database.dsn()).await;
    let expected = oracle(&app, two_hours_ago()).await;
    assert_eq!(expected.len(), 9);

    let (status, dump) = served.get("/v1/dump").await;
    assert_eq!((status, dump.lines().count()), (200, 9));
    assert_same(&lines(&dump), &expected, "/v1/dump");
    for (path, answer) in [
        ("/v1/events", json!(expected)),
        ("/v1/events?ids=3,1,3,77", json!([expected[0], expected[2]])),
        ("/v1/events?ids=", json!([])),
        ("/v1/events/3", json!(expected[2])),
    ] {
        assert_eq!(normal(served.json(path).await), answer, "{path}");
    }

    let stats = served.json("/v1/stats").await;
    for (field, value) in [
        ("betpawa_events", 8),
        ("competitor_events", 5),
        ("total_snapshots", 13),
        ("total_markets", 16),
    ] {
        assert_eq!(stats[field], value, "{field}: {stats}");
    }
    assert!(stats["memory_bytes"].as_u64() > Some(1000), "{stats}");
    assert!(stats["age_ms"].is_u64(), "{stats}");
    assert!(stats["last_warmup"]["seconds"].is_f64(), "{stats}");

    let link = "update competitor_events set betpawa_event_id = 2 where id = 9";
    write(&app, link).await;
    let expected = oracle(&app, two_hours_ago()).await;
    eventually("a change arrives", async || {
        lines(&served.get("/v1/dump").await.1) == expected
    })
    .await;
    assert_eq!(served.get("/v1/events/9").await.0, 404);

    let names = "select distinct application_name from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' and application_name <> ''";
    assert_eq!(database.psql(names), "oddscache follow");
}

/// A mistyped or unknown parameter must not be ignored.
#[tokio::test]
async fn wrong_requests_get_an_error_that_explains_them() {
    let (_database, served) = served(&[]).await;
    let many = format!("/v1/events?ids={}", vec!["1"; 5001].join(","));
    for (path, status) in [
        ("/v1/events/x", 400),
        ("/v1/events/99999999999999999999", 400),
        ("/v1/events/77", 404),
        ("/v1/events?ids=1,x", 400),
        ("/v1/events?id=1", 400),
        ("/v1/events?wait_for=x", 400),
        ("/v1/events?max_age=5", 400),
        ("/v1/events/3?ids=1", 400),
        ("/v1/dump?wait_for=1&timeout=1h", 400),
        (&many, 400),
        ("/v1", 404),
    ] {
        let (found, body) = served.get(path).await;
        assert_eq!(found, status, "{path}: {body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let error = body["error"].as_str().expect("a sentence");
        assert!(error.len() > 10, "{path}: {body}");
    }
}

/// A service that starts before its database answers health requests, and is ready once the database is there.
#[tokio::test]
async fn serve_listens_first_and_then_waits_for_the_database() {
    let cluster = own_cluster();
    cluster.stop("fast").unwrap();
    let served = Service::start(&cluster.dsn("postgres"), &[]).await;
    assert_eq!(served.get("/livez").await.0, 200);
    for path in ["/v1/events/1", "/v1/events", "/v1/dump"] {
        let (status, body) = served.get(path).await;
        assert_eq!(status, 503, "{path}");
        assert!(body.contains("not warm yet"), "{body}");
    }
    eventually("/readyz says why", async || {
        let (status, body) = served.get("/readyz").await;
        status == 503 && body.contains("cannot reach the database")
    })
    .await;
    cluster.boot().unwrap();
    served.ready().await;
    assert_eq!(served.get("/v1/events/1").await.0, 200);

    // The server is killed and started again. The old state stays readable until the new one comes.
    cluster.stop("immediate").unwrap();
    assert_eq!(served.get("/v1/events/1").await.0, 200);
    eventually("it says so", async || {
        let stats = served.json("/v1/stats").await;
        stats["status"].as_str().unwrap().contains("disconnected")
    })
    .await;
    cluster.boot().unwrap();
    eventually("it is back", async || {
        served.json("/v1/stats").await["epoch"].as_u64() > Some(1)
    })
    .await;
}

/// A process manager ends the service with a signal, and expects exit code 0.
#[tokio::test]
async fn sigterm_and_sigint_end_the_service_with_success() {
    let database = with_odds();
    for signal in ["-TERM", "-INT"] {
        let mut served = Service::warm(&database.dsn(), &[]).await;
        served.signal(signal);
        let status = served.ended().await;
        assert!(status.success(), "{signal}: {status}");
    }
}

/// A missing change feed ends the service with the command that installs it.
#[tokio::test]
async fn serve_exits_on_an_error_that_waiting_does_not_fix() {
    let database = Database::application();
    let mut served = Service::start(&database.dsn(), &[]).await;
    assert_eq!(served.ended().await.code(), Some(1));
    let log = served.rest_of_log().await.concat();
    assert!(log.contains("oddscache sql install --apply"), "{log}");
}

/// `dump` equals an independent query of the database. It needs `--without-feed` if no change feed is installed.
#[tokio::test]
async fn dump_prints_the_odds_of_the_database() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let dump = run(&["dump"], &database.dsn()).ok();
    let expected = oracle(&app, two_hours_ago()).await;
    assert_same(&lines(&dump.out), &expected, "dump");

    write(&app, "drop schema oddscache cascade").await;
    run(&["dump"], &database.dsn()).with(1, &["the change feed is not installed"]);
    let without_feed = ["dump", "--without-feed", "--log", "error"];
    let dump = run(&without_feed, &database.dsn()).ok();
    assert_eq!((dump.out.lines().count(), &*dump.errors), (9, ""));
}

/// Errors go to the terminal with an exit code and without a password.
#[test]
fn errors_name_the_object_and_the_way_out() {
    let empty = Database::empty().dsn();
    let (cluster, secret) = (oddscache_testkit::cluster(), "hunter2-the-secret");
    let wrong_password = format!(
        "postgres://postgres:{secret}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    let nowhere = "host=/nowhere user=u dbname=d";
    let wrong_port = "postgres://u:hunter2-the-secret@h:port/d";
    let wrong_mode = "host=h user=u sslmode=secret";
    let tables = ["\"public\".\"events\"", "app_schema"];
    let login = ["refused the login", "password authentication failed"];
    for (arguments, dsn, code, words) in [
        (&["dump"][..], &*empty, 1, &tables[..]),
        (&["dump"], &wrong_password, 1, &login),
        (&["dump"], nowhere, 1, &["cannot reach", "/nowhere"]),
        (&["dump"], wrong_port, 2, &["DATABASE_URL", "port"]),
        (&["dump"], wrong_mode, 2, &["sslmode"]),
        (&["dump", "--lookback", "soon"], &empty, 2, &["--lookback"]),
        (&["serve", "--listen", "nowhere"], &empty, 2, &["--listen"]),
        (&["sql", "destroy"], &empty, 2, &["install", "uninstall"]),
        (
            &["sql", "install", "--keep-indexes"],
            &empty,
            2,
            &["keep_indexes", "app_schema"],
        ),
        (&[], &empty, 2, &["serve", "dump", "demo"]),
    ] {
        let Ended { errors, .. } = run(arguments, dsn).with(code, words);
        assert!(!errors.contains(secret), "{errors}");
    }
    ended(&mut command(&["dump"])).with(2, &["set DATABASE_URL"]);
}

/// `PGHOST`, `PGPORT` and so on work as they do for psql.
#[test]
fn the_environment_variables_of_libpq_are_used() {
    let database = with_odds();
    let (cluster, name) = (oddscache_testkit::cluster(), &database.name);
    let port = cluster.port().to_string();
    let dump = |host: &std::path::Path, more: &[(&str, &str)]| {
        let variables = [
            ("PGPORT", &*port),
            ("PGUSER", "postgres"),
            ("PGDATABASE", name),
        ];
        let mut dump = command(&["dump"]);
        dump.env("PGHOST", host).envs(variables);
        let dump = ended(dump.envs(more.iter().copied())).ok();
        assert_eq!(dump.out.lines().count(), 9);
    };
    dump(cluster.socket_dir(), &[]);

    // They also complete a URL, and a password may come from the environment.
    let role = format!("{name}_reader");
    database.psql(&format!(
        "create role {role} login superuser password 'opensesame'"
    ));
    let url = format!("postgres://{role}@127.0.0.1:{port}");
    dump(
        Path::new("127.0.0.1"),
        &[("DATABASE_URL", &url), ("PGPASSWORD", "opensesame")],
    );
}

/// `sql` prints a script that psql can run, and `--apply` runs it with the same result.
#[test]
fn sql_prints_scripts_and_runs_them() {
    let database = Database::application();
    let nowhere = "host=/nowhere user=u";
    let printed = run(&["sql", "install", "--channel", "odds"], nowhere).ok();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("install.sql");
    std::fs::write(&file, &printed.out).unwrap();
    oddscache_testkit::psql(&database.name, &["-qf", file.to_str().unwrap()]);
    let channel = "select channel from oddscache.log_state";
    assert_eq!(database.psql(channel), "odds");

    let apply = |script: &str| run(&["sql", script, "--apply"], &database.dsn());
    apply("check").ok();
    database.psql("drop trigger oddscache_insert on events");
    apply("check").with(1, &["FAIL"]);
    for script in ["install", "check", "indexes", "uninstall"] {
        apply(script).ok();
    }
    apply("check").with(1, &[]);
}

/// A small demo on a free port.
fn demo(more: &[&str]) -> Command {
    let mut command = command(&["demo", "--events", "60", "--markets", "5"]);
    command
        .args(["--history", "3", "--cycle", "5s", "--listen", "127.0.0.1:0"])
        .args(more)
        .stdout(Stdio::piped());
    // The demo uses the same PostgreSQL programs as the tests.
    if let Some(folder) = std::env::var_os("ODDSCACHE_PG_BIN") {
        command.env("ODDSCACHE_PG_BIN", folder);
    }
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Waits until a demo has ended.
async fn ended_demo(mut demo: Command) -> Ended {
    let output = timeout(Duration::from_secs(180), demo.output()).await;
    Ended::of(&output.expect("it ends").expect("the binary runs"))
}

fn socket_directory(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("psql \"host=")?;
    rest.split(' ').next().map(str::to_owned)
}

/// The demo compares the cache with its database, and deletes everything at its end.
#[tokio::test]
async fn a_demo_equals_its_database_and_leaves_no_files() {
    let demo = demo(&["--for", "6s", "--verify-every", "2s"]);
    let equal = "events equal the database";
    let printed = ended_demo(demo).await.with(0, &[equal]).out;
    let directory = printed.lines().find_map(socket_directory);
    let directory = directory.expect("it prints where the database is");
    assert!(!Path::new(&directory).exists(), "{directory}");
}

/// If `ODDSCACHE_PG_BIN` has no server programs, the demo fails and uses no others.
#[tokio::test]
async fn a_demo_uses_only_the_programs_that_the_user_names() {
    let empty = tempfile::tempdir().unwrap();
    let mut demo = demo(&["--for", "1s"]);
    demo.env("ODDSCACHE_PG_BIN", empty.path());
    let told = format!(
        "ODDSCACHE_PG_BIN is `{}`, where there is no initdb, postgres, pg_ctl; ",
        empty.path().display()
    );
    ended_demo(demo).await.with(1, &[&told]);
}

/// A demo's publishers, NATS server and files disappear after any signal, SIGKILL included.
#[tokio::test]
async fn a_killed_demo_of_a_relay_leaves_nothing() {
    if optional(&["nats-server"], "nats-server").is_none() {
        return;
    }
    for signal in ["-INT", "-KILL"] {
        let folder = tempfile::tempdir().unwrap();
        let mut demo = demo(&["--relay"]);
        demo.env("TMPDIR", folder.path());
        let mut child = demo.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = Vec::new();
        // The address of the relay is the last one.
        while !addresses.iter().any(|(is_nats, _)| *is_nats) {
            let line = timeout(Duration::from_secs(120), lines.next_line()).await;
            let line = line.expect("it prints").unwrap().expect("a line");
            for scheme in ["http://", "nats://"] {
                let address = line.split_once(scheme).map(|(_, rest)| rest);
                let address = address.and_then(|rest| rest.split('/').next());
                addresses.extend(address.map(|address| (scheme == "nats://", address.to_owned())));
            }
        }
        let is_there = async |address: &str| TcpStream::connect(address).await.is_ok();
        for (_, address) in &addresses {
            assert!(is_there(address).await, "{address}");
        }
        kill(signal, child.id().unwrap());
        timeout(Duration::from_secs(60), child.wait())
            .await
            .expect("it ends")
            .unwrap();
        eventually("no server and no file is left", async || {
            let mut is_left = false;
            for (_, address) in &addresses {
                is_left |= is_there(address).await;
            }
            let files = std::fs::read_dir(folder.path()).unwrap();
            !is_left && files.count() == 0
        })
        .await;
    }
}

/// The files and the server of a demo disappear after any signal, SIGKILL included.
#[tokio::test]
async fn a_killed_demo_leaves_no_files_and_no_server() {
    for signal in ["-INT", "-TERM", "-KILL"] {
        let mut child = demo(&[]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = async || {
            let line = timeout(Duration::from_secs(120), lines.next_line()).await;
            let line = line.expect("it prints").unwrap();
            line.expect("it prints where the database is")
        };
        let directory = loop {
            if let Some(directory) = socket_directory(&line().await) {
                break directory;
            }
        };
        let directory = Path::new(&directory);
        let lock = std::fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
        let server = Path::new("/proc").join(lock.lines().next().unwrap());
        kill(signal, child.id().unwrap());
        let status = timeout(Duration::from_secs(60), child.wait()).await;
        let status = status.expect("it ends").unwrap();
        assert_eq!(status.success(), signal != "-KILL");
        eventually("no files and no server are left", async || {
            !directory.exists() && !server.exists()
        })
        .await;
    }
}
