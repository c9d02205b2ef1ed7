//! `oddscache doctor` and `oddscache explain`, run as a DBA runs them, on sound databases and on broken ones.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod explain;
mod faults;
mod functions;
mod reach;

use oddscache::sql::Script;
use oddscache_testkit::{
    Database, cases, cluster, psql, run_script, server_version,
    service::{self, Ended},
};
use serde_json::Value;

/// The exit code, and the JSON that was printed.
fn json_of(arguments: &[&str], dsn: &str) -> (i32, Value) {
    let Ended { code, out, errors } = service::run(&[arguments, &["--json"]].concat(), dsn);
    let value = serde_json::from_str(&out);
    let value = value.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {errors}"));
    (code.expect("it ends by itself"), value)
}

/// What doctor found.
#[derive(Debug)]
struct Report {
    code: i32,
    findings: Vec<Value>,
}

/// Runs doctor with these options.
#[track_caller]
fn doctor(dsn: &str, options: &[&str]) -> Report {
    let (code, report) = json_of(&[&["doctor"], options].concat(), dsn);
    let findings = report["findings"].as_array().expect("findings").clone();
    // The worst comes first, and the summary counts them.
    let rank = |finding: &Value| {
        let levels = ["fail", "warn", "info", "ok"];
        levels.iter().position(|level| finding["level"] == *level)
    };
    assert!(findings.is_sorted_by_key(|finding| rank(finding).expect("a level")));
    let fails = findings.iter().filter(|finding| finding["level"] == "fail");
    assert_eq!(report["summary"]["fail"], fails.count());
    Report { code, findings }
}

/// Runs doctor without reading the application's rows.
#[track_caller]
fn quick(dsn: &str) -> Report {
    doctor(dsn, &["--quick"])
}

impl Report {
    /// Fails the test unless doctor ended with this exit code.
    #[track_caller]
    fn ends(&self, code: i32) -> &Report {
        assert_eq!(self.code, code, "{:#?}", self.findings);
        self
    }

    /// Fails the test unless the findings of each of these ids have these levels.
    #[track_caller]
    fn has(&self, ids: &[&str], levels: &[&str]) -> &Report {
        for id in ids {
            assert_eq!(self.levels(id), levels, "{id}: {:#?}", self.findings);
        }
        self
    }

    fn levels(&self, id: &str) -> Vec<&str> {
        let of = self.findings.iter().filter(|finding| finding["id"] == id);
        of.map(|finding| text(finding, "level")).collect()
    }

    fn with(&self, id: &str, level: &str) -> Vec<&Value> {
        let is = |finding: &&Value| finding["id"] == id && finding["level"] == level;
        self.findings.iter().filter(is).collect()
    }

    /// The only finding with this id and level. Fails the test unless there is exactly one.
    #[track_caller]
    fn one(&self, id: &str, level: &str) -> &Value {
        match self.with(id, level)[..] {
            [one] => one,
            _ => panic!("not one {level} of {id}: {:#?}", self.findings),
        }
    }

    /// The findings that doctor could not check.
    fn unchecked(&self) -> Vec<&Value> {
        let unchecked = self
            .findings
            .iter()
            .filter(|finding| finding["checked"] == false);
        unchecked.collect()
    }
}

/// A text of a finding.
#[track_caller]
fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name}: {value:#}"))
}

/// Fails the test unless a text of a finding contains these words.
#[track_caller]
fn says(value: &Value, name: &str, words: &str) {
    assert!(text(value, name).contains(words), "no {words:?}: {value:#}");
}

/// The tests also run on a version that is no longer supported. That is the only finding about it.
fn is_of_age(finding: &Value) -> bool {
    let what = text(finding, "what");
    finding["id"] == "server.version" && what.contains("has had no support since")
}

/// The exit code of `doctor --strict` if there is no other finding.
fn strict_code(report: &Report) -> i32 {
    if report.findings.iter().any(is_of_age) {
        3
    } else {
        0
    }
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

    /// Runs SQL as the superuser, with `{role}` and `{database}` filled in.
    fn psql(&self, sql: &str) -> String {
        let sql = sql.replace("{role}", &self.role);
        let name = &self.database.name;
        self.database.psql(&sql.replace("{database}", name))
    }

    fn quick(&self) -> Report {
        quick(&self.dsn())
    }
}

#[test]
fn a_sound_database_has_no_warning() {
    let sound = Sound::new();
    let count =
        "select count(*), (select count(*) from oddscache.log_horizon) from oddscache.change_log";
    let before = sound.psql(count);
    let report = doctor(&sound.dsn(), &["--strict"]);
    report.ends(strict_code(&report));
    // In the tests, the superuser owns the feed, and the server allows prepared transactions.
    let mut known = vec![
        ("feed.owner", "schema oddscache"),
        ("setting", "max_prepared_transactions"),
    ];
    if server_version() < 15 {
        // Every role can create tables there.
        known.push(("right", "schema public"));
    }
    for finding in &report.findings {
        if is_of_age(finding) {
            assert_eq!(finding["level"], "warn");
            continue;
        }
        let object = finding["object"].as_str().unwrap_or_default();
        let about = (text(finding, "id"), object);
        let is_known = finding["level"] == "info" && known.contains(&about);
        assert!(finding["level"] == "ok" || is_known, "{finding:#}");
        assert_eq!(finding["checked"], true, "{finding:#}");
    }
    for id in "server.reachable server.version server.clock server.tls server.password feed feed.function trigger right log \
        waiting queue index notifications log.vacuum log.transactions log.prepared log.prune setting connections locks warmup"
        .split_whitespace()
    {
        let is_old = id == "server.version" && report.findings.iter().any(is_of_age);
        let found = report.with(id, "ok").len();
        assert_eq!(found, usize::from(!is_old), "{id}: {report:#?}");
    }
    let warmup = report.one("warmup", "ok");
    says(warmup, "what", "3 events, 12 snapshots, 24 markets");
    assert_eq!(sound.psql(count), before, "it wrote");

    let output = service::run(&["doctor"], &sound.dsn()).out;
    let last = output.lines().last().unwrap();
    let aged = report.findings.iter().filter(|finding| is_of_age(finding));
    assert!(
        last.starts_with(&format!("0 fail, {} warn,", aged.count())),
        "{last}"
    );
}

#[test]
fn doctor_names_what_the_role_may_not_read() {
    let sound = Sound::new();
    let nosy = format!("nosy_{}", sound.database.name);
    sound.psql(&format!("create role {nosy} login"));
    let report = doctor(&cluster().dsn_as(&nosy, &sound.database.name), &[]);
    report.ends(1).one("warmup", "fail");
    let unchecked = report.unchecked();
    assert!(
        unchecked.iter().any(|finding| finding["id"] == "feed"),
        "{report:#?}"
    );
    for finding in unchecked {
        assert_eq!(finding["level"], "info", "{finding:#}");
        says(finding, "what", "permission denied");
    }
}

#[test]
fn doctor_reports_where_no_feed_is_installed() {
    let report = doctor(&Database::application().dsn(), &[]);
    let missing = report.ends(1).with("feed", "fail");
    assert!(!missing.is_empty());
    for finding in missing {
        says(finding, "fix", "sql install --apply");
    }
    // A follower ends with an error before it listens.
    report.has(&["notifications"], &["info"]);
}

/// Doctor found nothing while the follower only polled, because it tried another statement than the follower.
#[test]
fn doctor_tries_what_a_follower_does_to_be_notified_and_writes_nothing() {
    let sound = Sound::new();
    sound.psql("delete from oddscache.change_log");
    sound.quick().ends(0).has(&["notifications"], &["ok"]);
    sound
        .database
        .answers("select count(*) from oddscache.change_log => 0");
}

/// A follower needs the lock by which writers know that it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_the_lock_that_keeps_a_follower_from_waiting() {
    let sound = Sound::new();
    let mallory = oddscache_testkit::connect(&sound.database.dsn()).await;
    let lock = "select pg_advisory_lock(hashtextextended('oddscache listener oddscache', 0))";
    mallory.batch_execute(lock).await.unwrap();
    says(
        sound.quick().one("notifications", "warn"),
        "what",
        "advisory lock",
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
        sound.psql(&format!("alter role {{role}} set {setting}"));
    }
    let report = doctor(&sound.dsn(), &[]);
    report.ends(0).has(&["notifications", "warmup"], &["ok"]);
    assert!(report.unchecked().is_empty(), "{report:#?}");
    assert!(!report.levels("log.prune").contains(&"fail"), "{report:#?}");
}

/// With all hostile settings of the role, doctor makes the same checks and finds the same. In addition it reports the
/// settings.
#[test]
fn hostile_settings_of_the_role_keep_doctor_from_nothing() {
    let sound = Sound::new();
    let before = doctor(&sound.dsn(), &[]);
    sound.database.make_hostile(&sound.role);
    let report = doctor(&sound.dsn(), &[]);
    assert!(report.unchecked().is_empty(), "{report:#?}");
    let others = |report: &Report| {
        let findings = report
            .findings
            .iter()
            .filter(|finding| finding["id"] != "setting");
        let mut about: Vec<(String, String)> = findings
            .map(|finding| (finding["id"].to_string(), finding["level"].to_string()))
            .collect();
        about.sort();
        about
    };
    assert_eq!(others(&report), others(&before), "{report:#?}");
    let ended = service::run(&["explain", "1"], &sound.dsn());
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
