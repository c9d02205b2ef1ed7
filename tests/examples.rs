//! Runs the examples as their users do, on a real database.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    collections::HashMap,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use oddscache_testkit::{
    Database, eventually,
    service::{Service, ended, isolate},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command as AsyncCommand},
    time::timeout,
};

/// The path of each example. Cargo builds the examples for `cargo test`, but not for `cargo test --test examples`. Only
/// cargo knows where they are. If they are up to date, this takes half a second.
fn examples() -> &'static HashMap<String, PathBuf> {
    static EXAMPLES: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    EXAMPLES.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--examples", "--message-format=json"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        // Cargo sets these variables for the test. The build scripts of other packages would run again, because they
        // would see a change.
        for (name, _) in std::env::vars() {
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name);
            }
        }
        let built = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let target = &message["target"];
            let is_example = target["kind"][0] == "example";
            let name = target["name"].as_str().filter(|_| is_example)?.to_owned();
            Some((name, message["executable"].as_str()?.into()))
        };
        let messages = ended(&mut build).ok().out;
        messages.lines().filter_map(built).collect()
    })
}

/// An example, without the variables of our own environment that it reads.
fn example(name: &str) -> Command {
    let path = examples().get(name);
    let path = path.unwrap_or_else(|| panic!("no example {name} was built"));
    let mut command = Command::new(path);
    command.env_remove("LISTEN");
    isolate(&mut command);
    command
}

/// An example that runs until it is killed.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: Command) -> Running {
        let mut command = AsyncCommand::from(command);
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Running { child, lines }
    }

    /// Reads lines up to the first one that begins with `start`. Returns the rest of that line.
    async fn line(&mut self, start: &str) -> String {
        let mut before = String::new();
        let found = timeout(Duration::from_secs(60), async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.to_owned();
                }
                before.push_str(&line);
                before.push('\n');
            }
            panic!("it ended");
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("no line begins with {start:?}: {before}"))
    }
}

/// Two upcoming events. One also has odds of a competitor.
fn with_odds() -> Database {
    let database = Database::with_feed();
    database.psql(
        r#"
        insert into bookmakers (id, name, slug) values (1, 'betPawa', 'betpawa');
        insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
            select n, 'sr' || n, 'Home - Away', 'Home', 'Away', now() at time zone 'UTC' + n * interval '1 hour'
            from generate_series(1, 2) n;
        insert into odds_snapshots (event_id, bookmaker_id) values (1, 1), (2, 1);
        insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
            select id, '3743', '1X2', '[{"name": "1", "odds": 2.5}, {"name": "2", "odds": 1.6}]' from odds_snapshots;
        insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
            values (5, 'sportybet', 2, now(), 'x', 'sr2');
        insert into competitor_odds_snapshots (id, competitor_event_id) values (1, 5);
        insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
            values (1, '3743', '1X2', '[{"name": "1", "odds": 2.4}, {"name": "2", "odds": 1.7}]');
        "#,
    );
    database
}

/// Inserts a new snapshot of event 1, as the application does. `odds` are its odds for the outcome "1".
fn odds_move(database: &Database, odds: f64) {
    database.psql(&format!(
        r#"
        begin;
        with snapshot as (insert into odds_snapshots (event_id, bookmaker_id) values (1, 1) returning id)
        insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
            select id, '3743', '1X2', '[{{"name": "1", "odds": {odds}}}, {{"name": "2", "odds": 1.6}}]' from snapshot;
        commit;
        "#
    ));
}

/// Inserts two markets that differ only in their handicap.
const INSERT_HANDICAPS: &str = r#"
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, handicap_type, handicap_home,
        handicap_away, outcomes)
    select s.id, '3774', 'Handicap', 'asian', m.handicap, -m.handicap,
        jsonb_build_array(jsonb_build_object('name', '1', 'odds', m.odds))
    from odds_snapshots s, (values (-1.5, 3.5), (1.5, 1.9)) m (handicap, odds)
    where s.event_id = 2
"#;

/// An example that no test runs would stop working unnoticed.
#[test]
fn every_example_has_a_test_and_a_place_in_the_readme() {
    let entries = std::fs::read_dir("examples").unwrap();
    let files = entries.map(|entry| entry.unwrap().file_name());
    let name = |file: std::ffi::OsString| Some(file.to_str()?.strip_suffix(".rs")?.to_owned());
    let mut files: Vec<String> = files.filter_map(name).collect();
    files.sort_unstable();
    let tried = [
        "embed_in_axum",
        "follow_changes",
        "read_your_writes",
        "use_the_service",
        "without_postgres",
    ];
    assert_eq!(files, tried);
    let readme = std::fs::read_to_string("README.md").unwrap();
    for name in tried {
        assert!(readme.contains(&format!("(examples/{name}.rs)")), "{name}");
        let text = std::fs::read_to_string(format!("examples/{name}.rs")).unwrap();
        let says_how = text.contains(&format!("--example {name}\n"));
        assert!(says_how, "{name} does not say how to run it");
    }
}

/// The example prints exactly what it should.
#[test]
fn without_postgres() {
    let printed = ended(&mut example("without_postgres")).ok().out;
    let first = r#"[("1", 2.1, 1), ("X", 3.5, 2), ("2", 3.7, 2)]"#;
    let later = r#"[("1", 2.25, 1), ("X", 3.5, 2), ("2", 3.7, 2)]"#;
    let expected = format!(
        "put, but not published: 0 events\n\
         published: 1 event\n\
         best: {first}\n\
         held: {first}\n\
         latest: {later}\n\
         evicted: 1 event, 0 left\n"
    );
    assert_eq!(printed, expected);
}

/// The API answers from the cache, follows changes, and refuses odds that are too old.
#[tokio::test(flavor = "multi_thread")]
async fn embed_in_axum() {
    let database = with_odds();
    let mut command = example("embed_in_axum");
    command
        .env("DATABASE_URL", database.dsn())
        .env("LISTEN", "127.0.0.1:0");
    let mut api = Running::start(command);
    let base = api.line("listening on ").await;
    assert_eq!(api.line("warm: ").await, "2 events");
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{base}{path}")).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };

    assert_eq!(get("/readyz").await, (200, "ready\n".to_owned()));
    let list: Value = serde_json::from_str(&get("/api/events").await.1).unwrap();
    assert_eq!(list[0]["event_id"], 1);
    let of_two = list[1]["odds"].as_array().expect("a list");
    assert_eq!(of_two[0]["bookmaker"], "betpawa");
    assert_eq!(of_two[1]["bookmaker"], "sportybet");
    assert_eq!(of_two[1]["markets"][0]["margin"], 0.49);
    let (status, event) = get("/api/events/2").await;
    assert_eq!(status, 200, "{event}");
    let event: Value = serde_json::from_str(&event).unwrap();
    let market = &event["competitors"]["sportybet"]["markets"][0];
    assert_eq!(market["outcomes"][0]["odds"], 2.4);
    assert_eq!(get("/api/events/3").await, (404, "no event 3\n".to_owned()));

    odds_move(&database, 2.75);
    eventually("the list has the new odds", async || {
        get("/api/events").await.1.contains("2.75")
    })
    .await;

    // The database refuses all connections. The odds grow old, and the API refuses to serve them.
    let name = &database.name;
    for sql in [
        format!("alter database {name} allow_connections false"),
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
    ] {
        oddscache_testkit::psql("postgres", &["-qAtc", &sql]);
    }
    eventually("old events are refused", async || {
        let (status, text) = get("/api/events/1").await;
        assert!(status == 200 || text.contains("more than the 2000 ms allowed"));
        status == 503
    })
    .await;
    assert_eq!(get("/api/events").await.0, 200);
    assert!(api.child.try_wait().unwrap().is_none());
}

/// Users copy this example into their programs, so it must handle errors well, too.
#[tokio::test(flavor = "multi_thread")]
async fn embed_in_axum_exits_with_the_reason_if_it_cannot_start() {
    let database = Database::application();
    let mut command = example("embed_in_axum");
    command
        .env("DATABASE_URL", database.dsn())
        .env("LISTEN", "127.0.0.1:0");
    let said = tokio::task::spawn_blocking(move || ended(&mut command));
    let said = timeout(Duration::from_secs(60), said).await;
    let said = said.expect("it ends").unwrap();
    said.with(1, &["FeedMissing"]);
}

/// The example reads the list once, and then follows its changes.
#[tokio::test(flavor = "multi_thread")]
async fn use_the_service() {
    let database = with_odds();
    let token = "a-token-of-the-example";
    let served = Service::start(&database.dsn(), &["--token", token]).await;
    served.ready().await;
    let mut command = example("use_the_service");
    command.env("ODDSCACHE_URL", &served.base);
    command.env("ODDSCACHE_TOKEN", token);
    let mut copy = Running::start(command);
    let read = copy.line("read ").await;
    assert!(read.starts_with("2 events, "), "{read}");
    database.psql("delete from competitor_odds_snapshots");
    let changed = copy.line("at ").await;
    assert!(changed.ends_with(": 2 events, 2 offers"), "{changed}");
}

/// The example prints each move of odds once, and the end of an event.
#[tokio::test(flavor = "multi_thread")]
async fn follow_changes() {
    let database = with_odds();
    let mut command = example("follow_changes");
    command.env("DATABASE_URL", database.dsn());
    let mut followed = Running::start(command);
    assert_eq!(followed.line("following ").await, "2 events");
    odds_move(&database, 2.75);
    let moved = followed.line("  event 1, ").await;
    assert_eq!(moved, "bookmaker 1, 1X2, 1: 2.5 -> 2.75");
    odds_move(&database, 3.0);
    let moved = followed.line("  event 1, ").await;
    assert_eq!(moved, "bookmaker 1, 1X2, 1: 2.75 -> 3");
    database.psql(
        r#"update competitor_market_odds set outcomes = '[{"name": "1", "odds": 2.3}, {"name": "2", "odds": 1.7}]'"#,
    );
    let moved = followed.line("  event 2, ").await;
    assert_eq!(moved, "sportybet, 1X2, 1: 2.4 -> 2.3");
    // These markets share an id and have no line. The example must compare each market with its own former odds.
    database.psql(INSERT_HANDICAPS);
    database.psql(
        r#"update market_odds set outcomes = '[{"name": "1", "odds": 1.8}]' where handicap_home = 1.5"#,
    );
    let moved = followed.line("  event 2, ").await;
    assert_eq!(moved, "bookmaker 1, Handicap 1.5, 1: 1.9 -> 1.8");
    database.psql("delete from odds_snapshots where event_id = 1");
    assert_eq!(followed.line("  event 1: ").await, "gone");
}

/// The example sees its own write right after the commit.
#[test]
fn read_your_writes() {
    let database = with_odds();
    let mut example = example("read_your_writes");
    let printed = ended(example.env("DATABASE_URL", database.dsn())).ok().out;
    let lines: Vec<&str> = printed.lines().collect();
    let [before, not_yet, after, shown] = lines[..] else {
        panic!("other lines: {printed}");
    };
    let time = |line: &str| -> chrono::DateTime<chrono::Utc> {
        let (_, time) = line.split_once("confirmed ").expect("a time");
        time.parse().expect("a time")
    };
    let microsecond = chrono::TimeDelta::microseconds(1);
    assert_eq!(time(after) - time(before), microsecond);
    assert!(not_yet.contains("did not show within 50 ms"), "{not_yet}");
    assert!(shown.ends_with("after its commit"), "{shown}");
}
