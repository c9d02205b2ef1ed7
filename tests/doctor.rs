//! `oddscache doctor` and `oddscache explain`, run as a DBA runs them, on sound databases and on broken ones.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use common::{Database, cluster, connect, eventually, psql};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_oddscache");

/// A command with nothing of our own environment that it reads.
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

/// Exit code and what was printed as JSON.
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
    // The worst first, and counted.
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

fn levels_of(findings: &[Value], id: &str) -> Vec<String> {
    let of = findings.iter().filter(|finding| finding["id"] == id);
    of.map(|finding| finding["level"].as_str().unwrap().to_owned())
        .collect()
}

/// Feed, odds, indexes, and the least-privilege role of `grants.sql`, which may prune.
struct Sound {
    database: Database,
    role: String,
}

impl Sound {
    fn new() -> Sound {
        let database = Database::seeded();
        let role = format!("cache_{}", database.name);
        psql(
            &database.name,
            &[
                "-q",
                "-v",
                &format!("role={role}"),
                "-v",
                "prune=on",
                "-f",
                "sql/grants.sql",
            ],
        );
        psql(&database.name, &["-qf", "sql/indexes.sql"]);
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
    assert_eq!(code, 0, "{findings:#?}");
    for finding in &findings {
        // The cluster's superuser owns what the tests install.
        let is_known = finding["id"] == "feed.owner" && finding["level"] == "info";
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
        "queue",
        "index",
        "bell",
        "log.vacuum",
        "log.transactions",
        "log.prepared",
        "setting",
        "connections",
        "locks",
        "warmup",
    ] {
        assert_eq!(with(&findings, id, "ok").len(), 1, "{id}: {findings:#?}");
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
    assert!(last.starts_with("0 fail, 0 warn,"), "{last}");
}

/// The expected functions are computed from the script's text; here they are compared with what it really makes, with names
/// that must be quoted.
#[test]
fn the_expected_functions_are_those_that_install_makes() {
    let database = Database::application();
    let (cache, channel) = (r#"We"ird \ sch'ema"#, "b'ell \\");
    let (cache_variable, channel_variable) = (
        format!("cache_schema={cache}"),
        format!("channel={channel}"),
    );
    psql(
        &database.name,
        &[
            "-q",
            "-v",
            &cache_variable,
            "-v",
            &channel_variable,
            "-f",
            "sql/install.sql",
        ],
    );
    let (_, findings) = doctor(&database.dsn(), &["--quick", "--cache-schema", cache]);
    let ok = with(&findings, "feed.function", "ok");
    assert_eq!(ok.len(), 1, "{findings:#?}");
    let installed = "select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname like 'We%'";
    let installed = database.psql(installed);
    assert_eq!(
        ok[0]["what"],
        format!("all {installed} functions are as this binary installs them")
    );
    assert_eq!(levels_of(&findings, "bell"), ["ok"], "{findings:#?}");
}

#[test]
fn a_changed_function_is_found() {
    for (change, what) in [
        (
            "do $$ begin execute replace(pg_get_functiondef('oddscache.log_change()'::regprocedure), '20000', '20001'); end $$",
            "body",
        ),
        (
            "do $$ begin execute replace(pg_get_functiondef('oddscache.prune(interval)'::regprocedure), 'LIMIT 1', 'LIMIT 2'); end $$",
            "body",
        ),
        (
            "alter function oddscache.log_change() security invoker",
            "SECURITY DEFINER",
        ),
        (
            "alter function oddscache.log_change() reset search_path",
            "search_path",
        ),
        (
            "alter function oddscache.prune(interval) set search_path = public",
            "search_path",
        ),
        ("drop function oddscache.prune(interval)", "is missing"),
    ] {
        let sound = Sound::new();
        sound.database.psql(change);
        let (code, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert_eq!(code, 1, "{change}");
        let found = with(&findings, "feed.function", "fail");
        assert_eq!(found.len(), 1, "{change}: {findings:#?}");
        assert!(
            found[0]["what"].as_str().unwrap().contains(what),
            "{change}: {found:?}"
        );
        assert!(
            found[0]["mend"]
                .as_str()
                .unwrap()
                .contains("sql install --apply")
        );
        // What it tells to run mends it.
        psql(&sound.database.name, &["-qf", "sql/install.sql"]);
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert_eq!(levels_of(&findings, "feed.function"), ["ok"], "{change}");
    }
}

/// A fault, the id and level it is found under, and a part of what is said of it.
const FAULTS: [(&str, &str, &str, &str); 19] = [
    (
        "drop trigger oddscache_insert on events",
        "trigger",
        "fail",
        "missing",
    ),
    (
        "drop trigger oddscache_insert on odds_snapshots_default",
        "trigger",
        "warn",
        "missing",
    ),
    (
        "alter table odds_snapshots disable trigger oddscache_update",
        "trigger",
        "fail",
        "disabled",
    ),
    (
        "alter table events enable trigger oddscache_delete",
        "trigger",
        "warn",
        "not always",
    ),
    (
        "create table child () inherits (market_odds)",
        "trigger.child",
        "warn",
        "has 0 of the four",
    ),
    (
        "create function oddscache.now() returns int language sql as 'select 1'",
        "feed.stranger",
        "warn",
        "no function of the feed's",
    ),
    (
        "create or replace function oddscache.feed_version() returns int language sql immutable as 'select 99'",
        "feed",
        "fail",
        "99",
    ),
    (
        "revoke select on market_odds from {role}",
        "right",
        "fail",
        "lacks it",
    ),
    (
        "grant insert on events to {role}",
        "right",
        "info",
        "does not need it",
    ),
    (
        "alter role {role} createdb",
        "right",
        "info",
        "does not need it",
    ),
    (
        "alter table events enable row level security",
        "warmup",
        "fail",
        "row level security",
    ),
    (
        "alter table oddscache.change_log set (autovacuum_enabled = off)",
        "log.vacuum",
        "warn",
        "autovacuum is off",
    ),
    (
        "drop index odds_snapshots_oddscache_latest",
        "index",
        "warn",
        "missing",
    ),
    (
        "alter role {role} set idle_session_timeout = '10min'",
        "setting",
        "warn",
        "idle",
    ),
    (
        "alter role {role} set statement_timeout = '500ms'",
        "setting",
        "warn",
        "500 ms",
    ),
    (
        "alter role {role} set default_transaction_isolation = serializable",
        "setting",
        "warn",
        "serializable",
    ),
    (
        "alter role {role} connection limit 4",
        "connections",
        "warn",
        "of the 4 of the role",
    ),
    (
        "alter table market_odds drop column outcomes",
        "warmup",
        "fail",
        "has no column outcomes",
    ),
    (
        "alter table odds_snapshots alter column last_confirmed_at type text",
        "warmup",
        "fail",
        "is of type text",
    ),
];

#[test]
fn each_fault_is_found_with_its_reason_and_its_way_out() {
    for (fault, id, level, what) in FAULTS {
        let sound = Sound::new();
        let fault = fault.replace("{role}", &sound.role);
        sound.database.psql(&fault);
        let (code, findings) = doctor(&sound.dsn(), &[]);
        let expected = i32::from(findings.iter().any(|finding| finding["level"] == "fail"));
        assert_eq!(code, expected, "{fault}");
        let said = |finding: &&&Value| finding["what"].as_str().unwrap().contains(what);
        let found = with(&findings, id, level);
        let Some(found) = found.iter().find(said) else {
            panic!("{fault}: no {level} of {id} says {what}: {findings:#?}")
        };
        assert!(
            found["why"].is_string() && found["mend"].is_string(),
            "{fault}: {found:#}"
        );
        if level == "fail" {
            assert_eq!(code, 1, "{fault}");
        }
        if level == "warn" {
            assert_eq!(
                doctor(&sound.dsn(), &["--strict"]).0,
                if code == 1 { 1 } else { 3 },
                "{fault}"
            );
        }
    }
}

/// Where the way out is a statement it is run, and the finding must be gone.
#[test]
fn what_it_tells_to_run_mends_it() {
    for (fault, id) in [
        (
            "create table child () inherits (odds_snapshots_plain)",
            "trigger.child",
        ),
        (
            "create function oddscache.now() returns int language sql as 'select 1'",
            "feed.stranger",
        ),
        ("grant insert on events to {role}", "right"),
        ("alter role {role} createdb", "right"),
        (
            "alter role {role} set idle_session_timeout = '10min'",
            "setting",
        ),
        (
            "alter role {role} set default_transaction_read_only = on",
            "setting",
        ),
    ] {
        let sound = Sound::new();
        // A plain table has no partitions, so it may have children.
        let fault = fault
            .replace("{role}", &sound.role)
            .replace("odds_snapshots_plain", "competitor_market_odds");
        sound.database.psql(&fault);
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        let found = findings
            .iter()
            .find(|finding| finding["id"] == id && finding["level"] != "ok");
        let found = found.unwrap_or_else(|| panic!("{fault}: {findings:#?}"));
        let mend = found["mend"].as_str().unwrap();
        sound.database.psql(mend.split(", unless").next().unwrap());
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert!(
            findings
                .iter()
                .all(|finding| finding["id"] != id || finding["level"] == "ok"),
            "{fault}: {mend}: {findings:#?}"
        );
    }
}

#[tokio::test]
async fn transactions_that_hold_the_log_back_are_named() {
    let sound = Sound::new();
    let app = connect(&sound.database.dsn()).await;
    app.batch_execute("begin; update events set name = name where id = 1")
        .await
        .unwrap();
    let pid: i32 = app
        .query_one("select pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    // The oldest of all that have written is this one, once nobody else's is: what other tests do ends soon.
    let other = connect(&sound.database.dsn()).await;
    other
        .batch_execute("update events set name = name where id = 2")
        .await
        .unwrap();
    for dsn in [sound.database.dsn(), sound.dsn()] {
        let mut seen = Vec::new();
        eventually("the transaction is named", async || {
            let (_, findings) = doctor(&dsn, &["--quick", "--long-transaction", "0s"]);
            seen = with(&findings, "log.transactions", "warn")
                .into_iter()
                .cloned()
                .collect();
            seen.iter().any(|found| {
                found["mend"] == format!("SELECT pg_terminate_backend({pid}), if it was forgotten")
            })
        })
        .await;
    }
    app.batch_execute("rollback").await.unwrap();
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(levels_of(&findings, "log.transactions"), ["ok"]);

    let gid = format!("old_{}", sound.database.name);
    app.batch_execute(&format!(
        "begin; set local oddscache.notify = off; update events set name = name where id = 1; prepare transaction '{gid}'"
    ))
    .await
    .unwrap();
    let (_, findings) = doctor(&sound.dsn(), &["--quick", "--long-transaction", "0s"]);
    let prepared = with(&findings, "log.prepared", "warn");
    let named = prepared
        .iter()
        .find(|found| found["object"].as_str().unwrap().starts_with(&gid));
    assert!(
        named.is_some_and(|found| found["mend"]
            .as_str()
            .unwrap()
            .contains("ROLLBACK PREPARED")),
        "{findings:#?}"
    );
    app.batch_execute(&format!("rollback prepared '{gid}'"))
        .await
        .unwrap();
}

#[test]
fn what_the_role_may_not_look_at_is_said() {
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
fn no_feed_is_a_report_too() {
    let database = Database::application();
    let (code, findings) = doctor(&database.dsn(), &[]);
    assert_eq!(code, 1);
    let missing = with(&findings, "feed", "fail");
    assert!(
        missing.iter().all(|found| found["mend"]
            .as_str()
            .unwrap()
            .contains("sql install --apply")),
        "{missing:#?}"
    );
    assert!(!missing.is_empty());
    // LISTEN and NOTIFY work all the same.
    assert_eq!(levels_of(&findings, "bell"), ["ok"]);
}

#[test]
fn a_server_that_is_not_there_is_said_in_its_own_words() {
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dsn = format!("postgres://nobody:sesame@127.0.0.1:{refused}/odds");
    let (code, findings) = doctor(&dsn, &[]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["what"].as_str().unwrap().contains("refused"),
        "{findings:?}"
    );
    assert!(!format!("{findings:?}").contains("sesame"));

    let database = Database::application();
    let dsn = format!(
        "postgres://postgres:sesame@127.0.0.1:{}/{}",
        cluster().port(),
        database.name
    );
    let (code, findings) = doctor(&dsn, &[]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["mend"]
            .as_str()
            .unwrap()
            .contains("pg_hba.conf"),
        "{findings:?}"
    );
    assert!(!format!("{findings:?}").contains("sesame"));

    // Accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!(
        "postgres://nobody@127.0.0.1:{}/odds",
        silent.local_addr().unwrap().port()
    );
    let (code, findings) = doctor(&dsn, &["--check-timeout", "300ms"]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["what"]
            .as_str()
            .unwrap()
            .contains("no answer within 0.3 s"),
        "{findings:?}"
    );
}

/// A private PgBouncer in front of the cluster.
struct PgBouncer {
    child: Child,
    port: u16,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PgBouncer {
    async fn start(pool_mode: &str, pool_size: u16) -> PgBouncer {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists());
        let program = program.expect("PgBouncer is missing (Debian: apt-get install pgbouncer)");
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let server = cluster();
        let socket = server.socket_dir().display();
        let base = server.socket_dir().join(format!("pgbouncer-{port}"));
        let (ini, users) = (base.with_extension("ini"), base.with_extension("users"));
        std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let text = format!(
            "[databases]\n* = host={socket} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n",
            server.port(),
            users.display()
        );
        std::fs::write(&ini, text).unwrap();
        let child = server
            .command(program)
            .arg(&ini)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("PgBouncer starts");
        eventually("PgBouncer listens", async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        PgBouncer { child, port }
    }

    fn dsn(&self, database: &Database) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname={}",
            self.port, database.name
        )
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_told_from_one_in_session_mode() {
    let database = Database::seeded();
    for size in [1, 20] {
        let pooler = PgBouncer::start("transaction", size).await;
        let (code, findings) = doctor(&pooler.dsn(&database), &[]);
        let found = with(&findings, "bell.pooler", "warn");
        assert_eq!((code, found.len()), (0, 1), "pool of {size}: {findings:#?}");
        assert!(
            found[0]["mend"]
                .as_str()
                .unwrap()
                .contains("pool_mode = session")
        );
        assert_eq!(with(&findings, "warmup", "ok").len(), 1, "{findings:#?}");
        // No LISTEN stays behind in the pooler's sessions, nor a setting.
        let left = connect(&pooler.dsn(&database)).await;
        let left = left.simple_query("select count(*), current_setting('statement_timeout') from pg_listening_channels()").await;
        let left = format!("{:?}", left.unwrap());
        assert!(left.contains("\"0\"") || !left.contains("5s"), "{left}");
    }
    let pooler = PgBouncer::start("session", 20).await;
    let (_, findings) = doctor(&pooler.dsn(&database), &[]);
    assert_eq!(levels_of(&findings, "bell.pooler"), Vec::<String>::new());
    assert_eq!(levels_of(&findings, "bell"), ["ok"], "{findings:#?}");

    let pooler = PgBouncer::start("statement", 20).await;
    let (code, findings) = doctor(&pooler.dsn(&database), &[]);
    assert_eq!(code, 1);
    assert!(
        findings[0]["mend"].as_str().unwrap().contains("pool_mode"),
        "{findings:#?}"
    );
}

// explain

fn explain(dsn: &str, event: &str, more: &[&str]) -> (i32, Value) {
    json_of(&[&["explain", event], more].concat(), dsn)
}

/// Answers `GET` with what it is told, as a service would.
struct Answering {
    url: String,
}

impl Answering {
    fn new(stats: Value, event: Option<Value>) -> Answering {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut buffer = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    let read = stream.read(&mut buffer).unwrap();
                    request.extend_from_slice(&buffer[..read]);
                }
                let is_stats = request.starts_with(b"GET /v1/stats ");
                let (status, body) = match (&event, is_stats) {
                    (_, true) => ("200 OK", stats.to_string()),
                    (Some(event), _) => ("200 OK", event.to_string()),
                    (None, _) => ("404 Not Found", "{}".to_owned()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        });
        Answering { url }
    }
}

/// `oddscache serve` on a free port.
struct Served {
    child: Child,
    url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    async fn start(dsn: &str) -> Served {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let child = command(&["serve", "--listen", &address], dsn)
            .spawn()
            .expect("the binary runs");
        let served = Served {
            child,
            url: format!("http://{address}"),
        };
        let ready = format!("{}/readyz", served.url);
        eventually("it is warm", async || {
            reqwest::get(&ready)
                .await
                .is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        served
    }
}

fn hours_ago(hours: i64) -> DateTime<Utc> {
    DateTime::<Utc>::from(std::time::SystemTime::now()) - chrono::Duration::hours(hours)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_agrees_and_the_origin_is_told() {
    let sound = Sound::new();
    let served = Served::start(&sound.dsn()).await;
    sound.database.psql(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-01-01');
         update competitor_events set deleted_at = now() where id = 11;
         update market_odds set outcomes = '[{\"name\": \"1\", \"odds\": 7.25}]' where id = 1221",
    );
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &served.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");
    assert_eq!(told["differences"], json!([]));
    assert_eq!(told["database"]["standing"], "held");
    assert!(told["service"]["stats"]["as_of"].is_string());
    let latest = told["database"]["latest"].as_array().unwrap();
    let ids: Vec<(&Value, &Value, &Value)> = latest
        .iter()
        .map(|latest| {
            (
                &latest["snapshot_id"],
                &latest["beaten"],
                &latest["markets"],
            )
        })
        .collect();
    // The greatest id wins, whenever it was captured; the deleted competitor event does not count.
    assert_eq!(
        ids,
        [
            (&json!(900), &json!(2), &json!(0)),
            (&json!(122), &json!(1), &json!(2)),
            (&json!(12), &json!(1), &json!(2))
        ]
    );
    assert_eq!(latest[0]["captured_at"], "2020-01-01T00:00:00Z");
    assert_eq!(latest[0]["older"][0]["snapshot_id"], 112);
    assert_eq!(latest[2]["source"], "sportybet");
    let deleted: Vec<&Value> = told["database"]["competitor_events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| !event["deleted_at"].is_null())
        .collect();
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0]["id"], 11);
    let log = told["database"]["log"].as_array().unwrap();
    let newest: Vec<&Value> = log.iter().take(3).map(|row| &row["table_name"]).collect();
    assert_eq!(
        newest,
        ["market_odds", "competitor_events", "odds_snapshots"]
    );

    // For people.
    let output = run(&["explain", "1", "--url", &served.url], &sound.dsn());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "bookmaker 1: snapshot 900, captured 2020-01-01T00:00:00Z",
        "it beat 2: 112 of ",
        "competitor event 11 (bet9ja x11) does not count: deleted at",
        "UPDATE market_odds",
        "agrees: ",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }

    // Rows that do not read as they should are served as far as they go, which is no difference.
    sound.database.psql("update market_odds set outcomes = '[7, {\"name\": \"1\", \"odds\": \"2.5\"}]' where id = 1222");
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &served.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");

    // Absent on both sides.
    let (code, told) = explain(&sound.dsn(), "4", &["--url", &served.url]);
    assert_eq!(
        (code, &told["verdict"], &told["database"]["standing"]),
        (0, &json!("agrees"), &json!("outside_window"))
    );
}

#[test]
fn an_absent_event_has_its_reason() {
    let sound = Sound::new();
    sound.database.psql(
        "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
         values (7, 'sr7', 'x', 'x', 'x', now() at time zone 'UTC' + interval '1 hour'); \
         insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id, deleted_at) \
         values (7, 'sportybet', 7, now(), 'x7', 'sr7', now()); insert into competitor_odds_snapshots (competitor_event_id) values (7)",
    );
    for (event, standing) in [
        ("99", "no_such_event"),
        ("4", "outside_window"),
        ("7", "no_snapshot"),
        ("3", "held"),
    ] {
        let (code, told) = explain(&sound.dsn(), event, &["--no-service"]);
        assert_eq!((code, &told["verdict"]), (0, &json!("database_only")));
        assert_eq!(told["database"]["standing"], standing, "{told:#}");
    }
    // The same event within a longer window.
    let (_, told) = explain(&sound.dsn(), "4", &["--no-service", "--lookback", "3h"]);
    assert_eq!(told["database"]["standing"], "held");
}

/// What a service would hold now, from the database by way of the binary.
fn held(dsn: &str, event: i64) -> Value {
    let output = run(&["dump"], dsn);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .find(|value| value["event_id"] == event)
        .expect("held")
}

#[test]
fn a_difference_is_named_and_a_fault_where_no_newer_change_explains_it() {
    let sound = Sound::new();
    let stats =
        |as_of: DateTime<Utc>| json!({"as_of": as_of, "age_ms": 7, "epoch": 3, "status": "live"});
    // Ahead of the database's clock at any reading.
    let current = stats(hours_ago(-1));
    let right = held(&sound.dsn(), 1);

    let service = Answering::new(current.clone(), Some(right.clone()));
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &service.url]);
    assert_eq!((code, &told["verdict"]), (0, &json!("agrees")), "{told:#}");

    let mut wrong = right.clone();
    wrong["betpawa"]["1"]["markets"][0]["outcomes"][1]["odds"] = json!(9.5);
    wrong["competitors"]["sportybet"]["snapshot_id"] = json!(11);
    let service = Answering::new(current.clone(), Some(wrong));
    let (code, told) = explain(&sound.dsn(), "1", &["--url", &service.url]);
    assert_eq!((code, &told["verdict"]), (1, &json!("differs")), "{told:#}");
    let fields: Vec<&Value> = told["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["field"])
        .collect();
    assert_eq!(
        fields,
        [
            "betpawa.1.markets.0.outcomes.1.odds",
            "competitors.sportybet.snapshot_id"
        ]
    );
    assert_eq!(told["differences"][0]["service"], 9.5);
    assert!(
        told["reason"].as_str().unwrap().contains("this is a fault"),
        "{told:#}"
    );

    // Held by one side only.
    let service = Answering::new(current.clone(), None);
    assert_eq!(explain(&sound.dsn(), "1", &["--url", &service.url]).0, 1);
    let service = Answering::new(current, Some(right.clone()));
    assert_eq!(explain(&sound.dsn(), "99", &["--url", &service.url]).0, 1);

    // Behind: what is newer than its cut explains it.
    let before = Utc::now();
    sound
        .database
        .psql("update events set kickoff = kickoff + interval '1 minute' where id = 1");
    let service = Answering::new(stats(before), Some(right));
    let began = Instant::now();
    let (code, told) = explain(
        &sound.dsn(),
        "1",
        &["--url", &service.url, "--wait", "200ms"],
    );
    assert_eq!((code, &told["verdict"]), (1, &json!("differs")), "{told:#}");
    assert!(
        told["reason"]
            .as_str()
            .unwrap()
            .contains("a newer change explains it"),
        "{told:#}"
    );
    let after_cut = told["database"]["log"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["after_cut"] == true);
    assert_eq!(after_cut.count(), 1, "{told:#}");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn explain_says_what_it_may_not_read_and_how_it_is_used() {
    let sound = Sound::new();
    let reader = format!("reader_{}", sound.database.name);
    sound.database.psql(&format!(
        "create role {reader} login; grant select on all tables in schema public to {reader}"
    ));
    let (code, told) = explain(
        &cluster().dsn_as(&reader, &sound.database.name),
        "1",
        &["--no-service"],
    );
    assert_eq!(code, 0);
    assert!(
        told["database"]["log_trouble"]
            .as_str()
            .unwrap()
            .contains("permission denied"),
        "{told:#}"
    );
    for wrong in [
        &["explain"][..],
        &["explain", "x"],
        &["explain", "1", "--url", "https://cache"],
        &["doctor", "--bogus"],
    ] {
        assert_eq!(run(wrong, &sound.dsn()).status.code(), Some(2), "{wrong:?}");
    }
    // A service that was named must answer.
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = run(
        &["explain", "1", "--url", &format!("http://{refused}")],
        &sound.dsn(),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("asking the service"));
}
