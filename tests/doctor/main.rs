//! `oddscache doctor` and `oddscache explain`, run as a DBA runs them, on sound databases and on broken ones.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod explain;
mod faults;
mod functions;
mod reach;

use std::process::{Command, Output, Stdio};

use oddscache::sql::Script;
use oddscache_testkit::{Database, cluster, psql, run_script, server_version};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_oddscache");

/// A command without the environment variables that it would read.
fn command(arguments: &[&str], dsn: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name.starts_with("ODDSCACHE") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.env("DATABASE_URL", dsn).env("ODDSCACHE_LOG", "off");
    command
}

fn run(arguments: &[&str], dsn: &str) -> Output {
    command(arguments, dsn).output().expect("the binary runs")
}

/// The exit code, and the JSON that was printed.
fn json_of(arguments: &[&str], dsn: &str) -> (i32, Value) {
    let output = run(&[arguments, &["--json"]].concat(), dsn);
    let errors = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().expect("it ends by itself");
    let value = serde_json::from_slice(&output.stdout);
    (
        code,
        value.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {errors}")),
    )
}

fn doctor(dsn: &str, more: &[&str]) -> (i32, Vec<Value>) {
    let (code, report) = json_of(&[&["doctor"], more].concat(), dsn);
    let findings = report["findings"].as_array().expect("findings").clone();
    // The worst comes first, and the summary counts them.
    let rank = |finding: &Value| {
        ["fail", "warn", "info", "ok"]
            .iter()
            .position(|level| finding["level"] == *level)
    };
    assert!(findings.is_sorted_by_key(|finding| rank(finding).expect("a level")));
    let fails = findings
        .iter()
        .filter(|finding| finding["level"] == "fail")
        .count();
    assert_eq!(report["summary"]["fail"], fails);
    (code, findings)
}

fn with<'f>(findings: &'f [Value], id: &str, level: &str) -> Vec<&'f Value> {
    let is = |finding: &&Value| finding["id"] == id && finding["level"] == level;
    findings.iter().filter(is).collect()
}

/// The tests also run on a version that is no longer supported. That is the only finding about it.
fn is_of_age(finding: &Value) -> bool {
    let what = finding["what"].as_str().expect("a sentence");
    finding["id"] == "server.version" && what.contains("is supported no more since")
}

/// The exit code of `doctor --strict` if there is no other finding.
fn strict_code(findings: &[Value]) -> i32 {
    if findings.iter().any(is_of_age) { 3 } else { 0 }
}

fn levels_of(findings: &[Value], id: &str) -> Vec<String> {
    let of = findings.iter().filter(|finding| finding["id"] == id);
    of.map(|finding| finding["level"].as_str().unwrap().to_owned())
        .collect()
}

/// A database with odds, feed, indexes, and the role of `grants.sql`, which may prune.
struct Sound {
    database: Database,
    role: String,
}

impl Sound {
    fn new() -> Sound {
        let database = Database::seeded();
        let role = format!("cache_{}", database.name);
        let settings = [("role", &*role), ("prune", "on")];
        run_script(&database.name, Script::Grants, &settings);
        run_script(&database.name, Script::Indexes, &[]);
        Sound { database, role }
    }

    fn dsn(&self) -> String {
        cluster().dsn_as(&self.role, &self.database.name)
    }
}

#[test]
fn a_sound_database_has_no_warning() {
    let sound = Sound::new();
    let count =
        "select count(*), (select count(*) from oddscache.log_horizon) from oddscache.change_log";
    let before = sound.database.psql(count);
    let (code, findings) = doctor(&sound.dsn(), &["--strict"]);
    assert_eq!(code, strict_code(&findings), "{findings:#?}");
    for finding in &findings {
        if is_of_age(finding) {
            assert_eq!(finding["level"], "warn");
            continue;
        }
        // In the tests, the superuser owns the feed, and the server allows prepared transactions.
        let known = [
            ("feed.owner", "schema oddscache"),
            ("setting", "max_prepared_transactions"),
        ];
        // Before PostgreSQL 15 every role can create tables there.
        let by_default = [("right", "schema public")];
        let by_default = by_default.iter().filter(|_| server_version() < 15);
        let is_known = finding["level"] == "info"
            && known
                .iter()
                .chain(by_default)
                .any(|(id, object)| finding["id"] == *id && finding["object"] == *object);
        assert!(finding["level"] == "ok" || is_known, "{finding:#}");
        assert_eq!(finding["checked"], true, "{finding:#}");
    }
    for id in [
        "server.reachable",
        "server.version",
        "server.clock",
        "server.tls",
        "server.password",
        "feed",
        "feed.function",
        "trigger",
        "right",
        "log",
        "waiting",
        "queue",
        "index",
        "notifications",
        "log.vacuum",
        "log.transactions",
        "log.prepared",
        "log.prune",
        "setting",
        "connections",
        "locks",
        "warmup",
    ] {
        let expected = usize::from(id != "server.version" || !findings.iter().any(is_of_age));
        assert_eq!(
            with(&findings, id, "ok").len(),
            expected,
            "{id}: {findings:#?}"
        );
    }
    let warmup = with(&findings, "warmup", "ok")[0]["what"].as_str().unwrap();
    assert!(
        warmup.contains("3 events, 12 snapshots, 24 markets"),
        "{warmup}"
    );
    assert_eq!(sound.database.psql(count), before, "it wrote");

    let output = run(&["doctor"], &sound.dsn());
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap();
    let over = findings.iter().filter(|finding| is_of_age(finding)).count();
    assert!(last.starts_with(&format!("0 fail, {over} warn,")), "{last}");
}

#[test]
fn doctor_names_what_the_role_may_not_read() {
    let sound = Sound::new();
    let nosy = format!("nosy_{}", sound.database.name);
    sound.database.psql(&format!("create role {nosy} login"));
    let (code, findings) = doctor(&cluster().dsn_as(&nosy, &sound.database.name), &[]);
    assert_eq!(code, 1);
    let unchecked = findings
        .iter()
        .filter(|finding| finding["checked"] == false);
    let unchecked: Vec<&Value> = unchecked.collect();
    assert!(
        unchecked.iter().any(|finding| finding["id"] == "feed"),
        "{findings:#?}"
    );
    for finding in unchecked {
        assert_eq!(finding["level"], "info", "{finding:#}");
        assert!(
            finding["what"]
                .as_str()
                .unwrap()
                .contains("permission denied"),
            "{finding:#}"
        );
    }
    assert_eq!(with(&findings, "warmup", "fail").len(), 1);
}

#[test]
fn doctor_reports_where_no_feed_is_installed() {
    let database = Database::application();
    let (code, findings) = doctor(&database.dsn(), &[]);
    assert_eq!(code, 1);
    let missing = with(&findings, "feed", "fail");
    assert!(
        missing.iter().all(|found| found["fix"]
            .as_str()
            .unwrap()
            .contains("sql install --apply")),
        "{missing:#?}"
    );
    assert!(!missing.is_empty());
    // A follower ends with an error before it listens.
    assert_eq!(levels_of(&findings, "notifications"), ["info"]);
}

/// Doctor found nothing while the follower only polled, because it tried another statement than the follower.
#[test]
fn doctor_tries_what_a_follower_does_to_be_notified_and_writes_nothing() {
    let sound = Sound::new();
    let count = "select count(*) from oddscache.change_log";
    sound.database.psql("delete from oddscache.change_log");
    let (code, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_eq!(
        levels_of(&findings, "notifications"),
        ["ok"],
        "{findings:#?}"
    );
    assert_eq!(sound.database.psql(count), "0");

    // A heartbeat that fails keeps a follower from knowing whether notifications arrive.
    sound.database.psql(
        "create or replace function oddscache.heartbeat() returns void language plpgsql security definer as
         $$ begin raise exception 'no heartbeat today'; end $$",
    );
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    let warned = with(&findings, "notifications", "warn");
    assert_eq!(warned.len(), 1, "{findings:#?}");
    assert!(
        warned[0]["what"]
            .as_str()
            .unwrap()
            .contains("no heartbeat today")
    );
}

/// A follower needs the lock by which writers know that it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_the_lock_that_keeps_a_follower_from_waiting() {
    let sound = Sound::new();
    let mallory = oddscache_testkit::connect(&sound.database.dsn()).await;
    let lock = "select pg_advisory_lock(hashtextextended('oddscache listener oddscache', 0))";
    mallory.batch_execute(lock).await.unwrap();
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    let warned = with(&findings, "notifications", "warn");
    assert_eq!(warned.len(), 1, "{findings:#?}");
    assert!(
        warned[0]["what"]
            .as_str()
            .unwrap()
            .contains("advisory lock"),
        "{warned:?}"
    );
}

/// The role's time-outs ended doctor's sessions, and the follower's.
#[test]
fn time_outs_of_the_role_keep_doctor_from_nothing() {
    let sound = Sound::new();
    let mut settings = vec![
        "statement_timeout = '15ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '15ms'",
    ];
    if server_version() >= 17 {
        settings.push("transaction_timeout = '15ms'");
    }
    for setting in settings {
        let role = &sound.role;
        sound
            .database
            .psql(&format!("alter role {role} set {setting}"));
    }
    let (code, findings) = doctor(&sound.dsn(), &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert!(
        findings.iter().all(|finding| finding["checked"] == true),
        "{findings:#?}"
    );
    for id in ["notifications", "warmup", "log.prune"] {
        assert!(
            !levels_of(&findings, id).contains(&"fail".to_owned()),
            "{findings:#?}"
        );
    }
    assert_eq!(
        levels_of(&findings, "notifications"),
        ["ok"],
        "{findings:#?}"
    );
    assert_eq!(levels_of(&findings, "warmup"), ["ok"], "{findings:#?}");
}
