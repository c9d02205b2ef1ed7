//! The binary, run as its users run it: `serve`, `dump`, `sql`, `demo`.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod access;
mod changes;
mod config;
mod descriptors;
mod fair;
mod incidents;
mod lifecycle;
mod limits;
mod list;
mod logging;
mod metrics;
mod openapi;
mod promtool;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use oddscache_testkit::{
    Database, assert_same, cluster::Cluster, connect, eventually, normal, oracle,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command as AsyncCommand},
    time::timeout,
};

const BINARY: &str = env!("CARGO_BIN_EXE_oddscache");

/// A command with nothing of our own environment that it reads.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name.starts_with("ODDSCACHE") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command
}

fn run(arguments: &[&str], dsn: &str) -> Output {
    command(arguments)
        .env("DATABASE_URL", dsn)
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

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

/// `oddscache serve` on a free port.
struct Served {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    base: String,
}

impl Served {
    async fn start(dsn: &str, more: &[&str]) -> Served {
        let arguments = [
            &["serve", "--listen", "127.0.0.1:0", "--log-format", "json"],
            more,
        ]
        .concat();
        Served::start_with(dsn, &arguments, &[]).await
    }

    /// With all its arguments, and with variables.
    async fn start_with(dsn: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Served {
        let mut command = AsyncCommand::from(command(arguments));
        command
            .env("DATABASE_URL", dsn)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Served::of(command).await
    }

    async fn of(mut command: AsyncCommand) -> Served {
        let mut child = command.spawn().expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = loop {
            let line = timeout(Duration::from_secs(60), log.next_line())
                .await
                .expect("it logs")
                .unwrap();
            let line: Value =
                serde_json::from_str(&line.expect("it says where it listens")).expect("JSON");
            if let Some(address) = line["fields"]["address"].as_str() {
                break address.to_owned();
            }
        };
        Served {
            child,
            log,
            base: format!("http://{address}"),
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("{}{path}", self.base))
            .await
            .expect("an answer");
        (
            answer.status().as_u16(),
            answer.text().await.expect("a body"),
        )
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    async fn warm(&self) {
        eventually("warm", async || self.get("/readyz").await.0 == 200).await;
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().expect("running").to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

fn lines(dump: &str) -> Vec<Value> {
    dump.lines()
        .map(|line| normal(serde_json::from_str(line).expect("a line is JSON")))
        .collect()
}

fn two_hours_ago() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()) - chrono::Duration::hours(2)
}

#[tokio::test]
async fn serve_answers_what_the_database_says() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let expected = oracle(&app, two_hours_ago()).await;
    assert_eq!(expected.len(), 9);

    let (status, dump) = served.get("/v1/dump").await;
    assert_eq!((status, dump.lines().count()), (200, 9));
    assert_same(&lines(&dump), &expected, "/v1/dump");
    assert_eq!(
        normal(served.json("/v1/events").await),
        Value::from(expected.clone())
    );
    assert_eq!(
        normal(served.json("/v1/events?ids=3,1,3,77").await),
        Value::from(vec![expected[0].clone(), expected[2].clone()])
    );
    assert_eq!(
        served.json("/v1/events?ids=").await,
        Value::from(Vec::<Value>::new())
    );
    assert_eq!(normal(served.json("/v1/events/3").await), expected[2]);

    let stats = served.json("/v1/stats").await;
    for (field, value) in [
        ("betpawa_events", 8),
        ("competitor_events", 5),
        ("total_snapshots", 13),
        ("total_markets", 16),
    ] {
        assert_eq!(stats[field], value, "{field}: {stats}");
    }
    assert!(
        stats["memory_bytes"].as_u64() > Some(1000)
            && stats["age_ms"].is_u64()
            && stats["last_warmup"]["seconds"].is_f64()
    );

    app.batch_execute("update competitor_events set betpawa_event_id = 2 where id = 9")
        .await
        .unwrap();
    let expected = oracle(&app, two_hours_ago()).await;
    eventually("a change arrives", async || {
        lines(&served.get("/v1/dump").await.1) == expected
    })
    .await;
    assert_eq!(served.get("/v1/events/9").await.0, 404);

    let names = "select distinct application_name from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' and application_name <> ''";
    assert_eq!(database.psql(names), "oddscache");
}

#[tokio::test]
async fn wrong_requests_get_a_sentence() {
    let database = with_odds();
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
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
        assert!(
            body["error"].as_str().is_some_and(|error| error.len() > 10),
            "{path}: {body}"
        );
    }
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/events", served.base))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn it_binds_first_and_waits_for_the_database() {
    let cluster = Cluster::start(&["fsync = off"]).expect("a cluster");
    for arguments in [
        ["-qf", "src/demo/schema.sql"],
        ["-qf", "sql/install.sql"],
        ["-qc", ODDS],
    ] {
        assert!(
            cluster
                .psql("postgres", &arguments)
                .unwrap()
                .status
                .success()
        );
    }
    cluster.stop("fast").unwrap();
    let served = Served::start(&cluster.dsn("postgres"), &[]).await;
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
    served.warm().await;
    assert_eq!(served.get("/v1/events/1").await.0, 200);

    // Killed without a word, then back: the old state stays readable, and the new one comes.
    cluster.stop("immediate").unwrap();
    assert_eq!(served.get("/v1/events/1").await.0, 200);
    eventually("it says so", async || {
        served.json("/v1/stats").await["status"]
            .as_str()
            .unwrap()
            .contains("disconnected")
    })
    .await;
    cluster.boot().unwrap();
    eventually("it is back", async || {
        served.json("/v1/stats").await["epoch"].as_u64() > Some(1)
    })
    .await;
}

#[tokio::test]
async fn sigterm_ends_it_cleanly() {
    let database = with_odds();
    for signal in ["-TERM", "-INT"] {
        let mut served = Served::start(&database.dsn(), &[]).await;
        served.warm().await;
        served.signal(signal);
        let status = timeout(Duration::from_secs(20), served.child.wait())
            .await
            .expect("it ends")
            .unwrap();
        assert!(status.success(), "{signal}: {status}");
    }
}

#[tokio::test]
async fn serve_ends_where_waiting_does_not_help() {
    let database = Database::application();
    let mut served = Served::start(&database.dsn(), &[]).await;
    let status = timeout(Duration::from_secs(20), served.child.wait())
        .await
        .expect("it ends")
        .unwrap();
    let mut log = String::new();
    while let Some(line) = served.log.next_line().await.unwrap() {
        log.push_str(&line);
    }
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("oddscache sql install --apply"), "{log}");
}

#[tokio::test]
async fn dump_prints_what_the_database_says() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let output = run(&["dump"], &database.dsn());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_same(
        &lines(&text(&output.stdout)),
        &oracle(&app, two_hours_ago()).await,
        "dump",
    );

    app.batch_execute("drop schema oddscache cascade")
        .await
        .unwrap();
    let output = run(&["dump"], &database.dsn());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("the change feed is not installed"),
        "{}",
        text(&output.stderr)
    );
    let output = run(
        &["dump", "--without-feed", "--log", "error"],
        &database.dsn(),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        (text(&output.stdout).lines().count(), text(&output.stderr)),
        (9, String::new())
    );
}

#[test]
fn failures_name_the_thing_and_the_way_out() {
    let empty = Database::empty().dsn();
    let (cluster, secret) = (oddscache_testkit::cluster(), "hunter2-the-secret");
    let wrong_password = format!(
        "postgres://postgres:{secret}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    for (arguments, dsn, code, words) in [
        (
            &["dump"][..],
            &*empty,
            1,
            &["\"public\".\"events\"", "app_schema"][..],
        ),
        (
            &["dump"],
            &wrong_password,
            1,
            &["refused the login", "password authentication failed"],
        ),
        (
            &["dump"],
            "host=/nowhere user=u dbname=d",
            1,
            &["cannot reach the database", "/nowhere"],
        ),
        (
            &["dump"],
            "postgres://u:hunter2-the-secret@h:port/d",
            2,
            &["DATABASE_URL", "port"],
        ),
        (&["dump"], "host=h user=u sslmode=secret", 2, &["sslmode"]),
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
        let output = run(arguments, dsn);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {errors}");
        for word in words {
            assert!(
                errors.contains(word),
                "{arguments:?}: no {word:?} in {errors}"
            );
        }
        assert!(!errors.contains(secret), "{errors}");
    }
    let output = command(&["dump"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("set DATABASE_URL"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_variables_of_libpq_are_understood() {
    let database = with_odds();
    let cluster = oddscache_testkit::cluster();
    let variables = |command: &mut Command| {
        command
            .env("PGHOST", cluster.socket_dir())
            .env("PGPORT", cluster.port().to_string());
        command
            .env("PGUSER", "postgres")
            .env("PGDATABASE", &database.name);
    };
    let mut dump = command(&["dump"]);
    variables(&mut dump);
    let output = dump.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 9);

    // What the URL leaves open comes from them too, and a password from the environment.
    let role = format!("{}_reader", database.name);
    database.psql(&format!(
        "create role {role} login superuser password 'opensesame'"
    ));
    let mut dump = command(&["dump"]);
    variables(&mut dump);
    dump.env("PGHOST", "127.0.0.1")
        .env(
            "DATABASE_URL",
            format!("postgres://{role}@127.0.0.1:{}", cluster.port()),
        )
        .env("PGPASSWORD", "opensesame");
    let output = dump.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 9);
}

#[test]
fn sql_prints_scripts_and_runs_them() {
    let database = Database::application();
    let printed = run(
        &["sql", "install", "--channel", "odds"],
        "host=/nowhere user=u",
    );
    assert!(printed.status.success());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("install.sql");
    std::fs::write(&file, &printed.stdout).unwrap();
    oddscache_testkit::psql(&database.name, &["-qf", file.to_str().unwrap()]);
    assert_eq!(
        database.psql("select channel from oddscache.log_state"),
        "odds"
    );

    let dsn = database.dsn();
    let output = run(&["sql", "check", "--apply"], &dsn);
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    database.psql("drop trigger oddscache_insert on events");
    let output = run(&["sql", "check", "--apply"], &dsn);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(
        text(&output.stdout).contains("FAIL"),
        "{}",
        text(&output.stdout)
    );
    for (script, code) in [
        ("install", 0),
        ("check", 0),
        ("indexes", 0),
        ("uninstall", 0),
        ("check", 1),
    ] {
        let output = run(&["sql", script, "--apply"], &dsn);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{script}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

/// A small demo, and where its cluster lies.
fn demo(more: &[&str]) -> AsyncCommand {
    let small = [
        "demo",
        "--events",
        "60",
        "--markets",
        "5",
        "--history",
        "3",
        "--listen",
        "127.0.0.1:0",
        "--cycle",
        "5s",
    ];
    let mut command = AsyncCommand::from(command(&[&small, more].concat()));
    command.stdout(Stdio::piped()).kill_on_drop(true);
    // The same server as that of the tests.
    if let Some(folder) = std::env::var_os("ODDSCACHE_PG_BIN") {
        command.env("ODDSCACHE_PG_BIN", folder);
    }
    command
}

fn socket_directory(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("psql \"host=")?;
    rest.split(' ').next().map(str::to_owned)
}

#[tokio::test]
async fn demo_shows_itself_and_leaves_nothing() {
    let output = timeout(
        Duration::from_secs(120),
        demo(&["--for", "6s", "--verify-every", "2s"]).output(),
    )
    .await;
    let output = output.expect("it ends").unwrap();
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    assert!(printed.contains("events equal the database"), "{printed}");
    let directory = printed
        .lines()
        .find_map(socket_directory)
        .expect("it prints where the database is");
    assert!(!Path::new(&directory).exists(), "{directory}");
}

#[tokio::test]
async fn a_demo_takes_the_named_server_or_none() {
    let empty = tempfile::tempdir().unwrap();
    let output = demo(&["--for", "1s"])
        .env("ODDSCACHE_PG_BIN", empty.path())
        .output()
        .await;
    let output = output.unwrap();
    let told = format!(
        "ODDSCACHE_PG_BIN is `{}`, where there is no initdb, postgres, pg_ctl; ",
        empty.path().display()
    );
    let errors = text(&output.stderr);
    assert!(
        !output.status.success() && errors.contains(&told),
        "{errors}"
    );
}

#[tokio::test]
async fn the_end_of_a_demo_leaves_nothing_however_it_comes() {
    for signal in ["-INT", "-TERM", "-KILL"] {
        let mut child = demo(&[]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let directory = loop {
            let line = timeout(Duration::from_secs(120), lines.next_line())
                .await
                .expect("it prints")
                .unwrap();
            if let Some(directory) =
                socket_directory(&line.expect("it prints where the database is"))
            {
                break directory;
            }
        };
        let pid =
            std::fs::read_to_string(Path::new(&directory).join("data/postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        assert!(
            Command::new("kill")
                .args([signal, &child.id().unwrap().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let status = timeout(Duration::from_secs(60), child.wait())
            .await
            .expect("it ends")
            .unwrap();
        assert_eq!(status.success(), signal != "-KILL");
        let gone =
            || !Path::new(&directory).exists() && !Path::new(&format!("/proc/{pid}")).exists();
        eventually("no files and no server are left", async || gone()).await;
    }
}
