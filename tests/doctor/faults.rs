//! Doctor finds each mistake that a DBA can make, with a reason and a fix.

use oddscache_testkit::{connect, eventually};

use super::*;

/// A fault, the id and level of its finding, and a part of the finding's text.
const FAULTS: [(&str, &str, &str, &str); 27] = [
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
        "trigger",
        "warn",
        "statements that name this table",
    ),
    (
        "create function oddscache.now() returns int language sql as 'select 1'",
        "feed.stranger",
        "warn",
        "not a function of the feed",
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
        "grant create on schema public to public",
        "right",
        "info",
        "PUBLIC was granted it, so every role has it",
    ),
    (
        "create role group_{role}; grant group_{role} to {role}; grant update on events to group_{role}",
        "right",
        "info",
        "it is a member of group_cache_",
    ),
    (
        // In this database only, because other tests would see a setting for all databases.
        "alter role {role} in database {database} set temp_file_limit = '1GB'",
        "setting",
        "warn",
        "is 1GB for role cache_",
    ),
    (
        "alter database {database} set temp_file_limit = 100",
        "setting",
        "warn",
        "is 100 for database test_",
    ),
    (
        "create publication p for all tables",
        "publication",
        "info",
        "a native subscription stops for good",
    ),
    (
        "create foreign data wrapper w; create server s foreign data wrapper w; create foreign table f () inherits (market_odds) server s",
        "trigger.foreign",
        "warn",
        "is a foreign table below market_odds",
    ),
    (
        "create foreign data wrapper w; create server s foreign data wrapper w; drop table odds_snapshots_default; alter table odds_snapshots drop constraint odds_snapshots_pkey cascade; \
         create foreign table f partition of odds_snapshots default server s",
        "trigger.foreign",
        "warn",
        "is a foreign table below odds_snapshots",
    ),
    (
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not today'; end $$; \
         create trigger refuse before update on oddscache.log_state execute function refuse()",
        "log.prune",
        "fail",
        "not today (SQLSTATE P0001)",
    ),
    (
        "alter table oddscache.log_state replica identity nothing; create publication p for all tables",
        "log.prune",
        "fail",
        "replica identity",
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
        "info",
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
fn each_fault_is_found_with_its_reason_and_its_fix() {
    for (fault, id, level, what) in FAULTS {
        let sound = Sound::new();
        let fault = fault
            .replace("{role}", &sound.role)
            .replace("{database}", &sound.database.name);
        sound.database.psql(&fault);
        let more: &[&str] = if id == "warmup" { &[] } else { &["--quick"] };
        let (code, findings) = doctor(&sound.dsn(), more);
        let expected = i32::from(findings.iter().any(|finding| finding["level"] == "fail"));
        assert_eq!(code, expected, "{fault}");
        let said = |finding: &&&Value| finding["what"].as_str().unwrap().contains(what);
        let found = with(&findings, id, level);
        let Some(found) = found.iter().find(said) else {
            panic!("{fault}: no {level} of {id} says {what}: {findings:#?}")
        };
        assert!(
            found["why"].is_string() && found["fix"].is_string(),
            "{fault}: {found:#}"
        );
        if level == "fail" {
            assert_eq!(code, 1, "{fault}");
        }
        if level == "warn" {
            assert_eq!(
                doctor(&sound.dsn(), &["--quick", "--strict"]).0,
                if code == 1 { 1 } else { 3 },
                "{fault}"
            );
        }
    }
}

/// If the fix is a statement, running it removes the finding.
#[test]
fn the_statement_that_doctor_names_fixes_the_fault() {
    for (fault, id) in [
        (
            "create function oddscache.now() returns int language sql as 'select 1'",
            "feed.stranger",
        ),
        ("grant insert on events to {role}", "right"),
        ("alter role {role} createdb", "right"),
        (
            "create role group_{role}; grant group_{role} to {role}; grant update on events to group_{role}",
            "right",
        ),
        (
            "alter role {role} in database {database} set temp_file_limit = 1",
            "setting",
        ),
        (
            "alter database {database} set temp_file_limit = 1",
            "setting",
        ),
        (
            "alter database {database} set oddscache.notify = off",
            "feed",
        ),
        (
            "alter table oddscache.log_state replica identity nothing; create publication p for all tables",
            "log.prune",
        ),
        (
            "create foreign data wrapper w; create server s foreign data wrapper w; create foreign table f () inherits (market_odds) server s",
            "trigger.foreign",
        ),
        (
            "create foreign data wrapper w; create server s foreign data wrapper w; drop table odds_snapshots_default; alter table odds_snapshots drop constraint odds_snapshots_pkey cascade; \
             create foreign table f partition of odds_snapshots default server s",
            "trigger.foreign",
        ),
    ] {
        let sound = Sound::new();
        let fault = fault
            .replace("{role}", &sound.role)
            .replace("{database}", &sound.database.name);
        sound.database.psql(&fault);
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        // Findings about defaults of the test's server stay.
        let is_fault = |finding: &&Value| {
            let usual = ["schema public", "max_prepared_transactions"];
            finding["id"] == id
                && finding["level"] != "ok"
                && !usual.iter().any(|object| finding["object"] == *object)
        };
        let found = findings.iter().find(is_fault);
        let found = found.unwrap_or_else(|| panic!("{fault}: {findings:#?}"));
        let fix = found["fix"].as_str().unwrap();
        let statement = fix.split(", unless").next().unwrap();
        let statement = statement.split(", or leave").next().unwrap();
        sound.database.psql(statement);
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert!(
            !findings.iter().any(|finding| is_fault(&finding)),
            "{fault}: {fix}: {findings:#?}"
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
    // Transactions of other tests may be older, but they end soon. Then this one is the oldest that has written.
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
                found["fix"] == format!("SELECT pg_terminate_backend({pid}), if it was forgotten")
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
        named.is_some_and(|found| found["fix"].as_str().unwrap().contains("ROLLBACK PREPARED")),
        "{findings:#?}"
    );
    app.batch_execute(&format!("rollback prepared '{gid}'"))
        .await
        .unwrap();
}

/// The statement revokes the right from PUBLIC, which was granted it.
#[test]
fn the_statement_that_doctor_names_revokes_a_right_of_public() {
    let sound = Sound::new();
    sound
        .database
        .psql("grant create on schema public to public");
    let public = |findings: &[Value]| {
        let of = with(findings, "right", "info");
        let mut of = of.iter().filter(|found| found["object"] == "schema public");
        of.next()
            .map(|found| found["fix"].as_str().unwrap().to_owned())
    };
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    let fix = public(&findings).expect("told");
    assert_eq!(fix, "REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    sound.database.psql(&fix);
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(public(&findings), None, "{findings:#?}");
}

/// The cache sets its own time-outs on its connections, so those of the role do no harm.
#[test]
fn time_outs_that_the_cache_sets_itself_are_only_good_to_know() {
    let sound = Sound::new();
    for set in [
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
    ] {
        sound
            .database
            .psql(&format!("alter role {} set {set}", sound.role));
    }
    let mut settings = vec!["idle_session_timeout"];
    let server: i64 = sound
        .database
        .psql("show server_version_num")
        .parse()
        .unwrap();
    if server >= 170_000 {
        settings.push("transaction_timeout");
    }
    for name in &settings {
        sound
            .database
            .psql(&format!("alter role {} set {name} = '10min'", sound.role));
    }
    let (code, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(
        (
            code,
            levels_of(&findings, "setting").contains(&"warn".to_owned())
        ),
        (0, false),
        "{findings:#?}"
    );
    assert_eq!(levels_of(&findings, "log.prune"), ["ok"]);
    for name in [
        "default_transaction_isolation",
        "default_transaction_read_only",
    ] {
        let of = with(&findings, "setting", "info");
        assert!(of.iter().any(|found| found["object"] == name), "{name}");
    }
    for name in settings {
        let of = with(&findings, "setting", "info");
        assert!(
            of.iter().any(|found| found["object"] == name),
            "{name}: {findings:#?}"
        );
    }
    let prepared = with(&findings, "setting", "info");
    let prepared = prepared
        .iter()
        .find(|found| found["object"] == "max_prepared_transactions");
    let fix = prepared.expect("told")["fix"].as_str().unwrap();
    assert!(fix.contains("SET LOCAL oddscache.notify = off"), "{fix}");
}

#[test]
fn doctor_says_who_must_prune_if_the_role_may_not() {
    let sound = Sound::new();
    sound.database.psql(&format!(
        "revoke execute on function oddscache.prune(interval) from {}",
        sound.role
    ));
    let (code, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_eq!(levels_of(&findings, "log.prune"), ["info"]);
}

/// Doctor and another session that prunes do not disturb each other.
#[tokio::test]
async fn pruning_is_tried_and_rolled_back() {
    let sound = Sound::new();
    sound.database.psql(
        "insert into oddscache.log_horizon values ('11', now() - interval '2 hours');
         insert into oddscache.change_log (xid, table_name, op, keys) select '10', 'events', 'UPDATE', '{1}' from generate_series(1, 100)",
    );
    let state = "select count(*), (select concat_ws(' ', pruned_below, pruned_at) from oddscache.log_state) from oddscache.change_log";
    let before = sound.database.psql(state);
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    let told = with(&findings, "log.prune", "ok")[0]["what"]
        .as_str()
        .unwrap();
    assert!(told.starts_with("works: 1"), "{told}");
    assert_eq!(sound.database.psql(state), before);
    let other = connect(&sound.database.dsn()).await;
    other
        .batch_execute("begin; select oddscache.prune()")
        .await
        .unwrap();
    let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
    assert_eq!(levels_of(&findings, "log.prune"), ["ok"], "{findings:#?}");
}

/// On its own server, because other tests would see these settings.
#[test]
fn doctor_names_settings_of_the_whole_server() {
    let server = oddscache_testkit::cluster::Cluster::seeded(&[]);
    let dsn = server.dsn("postgres");
    let version = server
        .psql("postgres", &["-qAtc", "show server_version_num"])
        .unwrap();
    let version: i64 = String::from_utf8(version.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let run = |sql: &str| {
        let output = server.psql("postgres", &["-qc", sql]).unwrap();
        assert!(output.status.success(), "{sql}: {output:?}");
    };
    for (set, what, fix) in [
        (
            "alter system set temp_file_limit = '1GB'",
            "is 1048576kB for the server",
            "ALTER SYSTEM SET temp_file_limit = -1",
        ),
        (
            "create role app; alter role app set temp_file_limit = '1GB'",
            "is 1GB for role app",
            "ALTER ROLE app SET temp_file_limit = -1",
        ),
        (
            "alter role all set temp_file_limit = '2GB'",
            "is 2GB for all roles",
            "ALTER ROLE ALL SET temp_file_limit = -1",
        ),
    ] {
        run(set);
        run("select pg_reload_conf()");
        // The server reloads its configuration some time later.
        let found = std::iter::repeat_with(|| doctor(&dsn, &["--quick"]).1)
            .take(30)
            .find_map(|findings| {
                let of = with(&findings, "setting", "warn");
                let found = of.into_iter().find(|found| found["what"] == what);
                found.cloned()
            });
        let found = found.unwrap_or_else(|| panic!("{set}: {what} was not told"));
        assert!(found["fix"].as_str().unwrap().starts_with(fix), "{found}");
        run(fix);
    }
    // PostgreSQL 17 no longer has this setting.
    if version >= 170_000 {
        return;
    }
    run("alter system set old_snapshot_threshold = '5min'");
    server.stop("fast").unwrap();
    server.boot().unwrap();
    let (_, findings) = doctor(&dsn, &["--quick"]);
    let of = with(&findings, "setting", "warn");
    let found = of
        .iter()
        .find(|found| found["object"] == "old_snapshot_threshold");
    let found = found.unwrap_or_else(|| panic!("{findings:#?}"));
    assert!(
        found["why"].as_str().unwrap().contains("snapshot too old"),
        "{found}"
    );
}
