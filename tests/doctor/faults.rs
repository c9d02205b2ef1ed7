//! Doctor finds each mistake that a DBA can make, with a reason and a fix.

use oddscache_testkit::{cluster::Cluster, connect, eventually};

use super::*;

/// A fault, the id and level of its finding, and a part of the finding's text.
///
/// A setting is one of this database or of its role, because other tests would see one of all databases.
const FAULTS: &str = "
    drop trigger oddscache_insert on events => trigger => fail => missing
    drop trigger oddscache_insert on odds_snapshots_default => trigger => fail => missing
    alter table odds_snapshots disable trigger oddscache_update => trigger => fail => disabled
    alter table events enable trigger oddscache_delete => trigger => fail => not always
    create table child () inherits (market_odds) => trigger => fail => statements that name this table
    create function oddscache.now() returns int language sql as 'select 1'
        => feed.stranger => warn => not a function of the feed
    create or replace function oddscache.feed_version() returns int language sql immutable as 'select 99'
        => feed => fail => 99
    revoke select on market_odds from {role} => right => fail => lacks it
    grant insert on events to {role} => right => info => does not need it
    alter role {role} createdb => right => info => does not need it
    alter table events enable row level security => warmup => fail => row level security
    alter table oddscache.change_log set (autovacuum_enabled = off) => log.vacuum => warn => autovacuum is off
    drop index odds_snapshots_oddscache_latest => index => warn => missing
    grant create on schema public to public => right => info => PUBLIC was granted it, so every role has it
    create role group_{role}; grant group_{role} to {role}; grant update on events to group_{role}
        => right => info => it is a member of group_cache_
    alter role {role} in database {database} set temp_file_limit = '1GB' => setting => warn => is 1GB for role cache_
    alter database {database} set temp_file_limit = 100 => setting => warn => is 100 for database test_
    create publication p for all tables => publication => info => a native subscription stops for good
    {server s} create foreign table f () inherits (market_odds) server s
        => trigger => warn => is a foreign table below market_odds
    {server s} drop table odds_snapshots_default; alter table odds_snapshots drop constraint odds_snapshots_pkey cascade; create foreign table f partition of odds_snapshots default server s
        => trigger => warn => is a foreign table below odds_snapshots
    create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not today'; end $$; create trigger refuse before update on oddscache.log_state execute function refuse()
        => log.prune => fail => not today (SQLSTATE P0001)
    alter table oddscache.log_state replica identity nothing; create publication p for all tables
        => log.prune => fail => replica identity
    alter role {role} set statement_timeout = '500ms' => setting => warn => 500 ms
    alter role {role} set default_transaction_isolation = serializable => setting => info => serializable
    alter role {role} connection limit 4 => connections => warn => of the 4 of role \"cache_
    alter database {database} connection limit 4 => connections => warn => of the 4 of database \"test_
    alter table market_odds drop column outcomes => warmup => fail => has no column outcomes
    alter table odds_snapshots alter column last_confirmed_at type text => warmup => fail => is of type text
";

/// A database with a fault.
fn faulty(fault: &str) -> Sound {
    println!("{fault}");
    let sound = Sound::new();
    let server = "create foreign data wrapper w; create server s foreign data wrapper w;";
    sound.psql(&fault.replace("{server s}", server));
    sound
}

#[test]
fn each_fault_is_found_with_its_reason_and_its_fix() {
    for [fault, id, level, what] in cases(FAULTS) {
        let sound = faulty(fault);
        let report = match id {
            "warmup" => doctor(&sound.dsn(), &[]),
            _ => sound.quick(),
        };
        let fails = report
            .findings
            .iter()
            .any(|finding| finding["level"] == "fail");
        report.ends(i32::from(fails));
        let found = report.with(id, level);
        let found = found
            .iter()
            .find(|finding| text(finding, "what").contains(what));
        let found = found.unwrap_or_else(|| panic!("no {level} of {id} says {what}: {report:#?}"));
        assert!(
            found["why"].is_string() && found["fix"].is_string(),
            "{found:#}"
        );
        if level == "warn" {
            let strict = if report.code == 1 { 1 } else { 3 };
            doctor(&sound.dsn(), &["--quick", "--strict"]).ends(strict);
        }
    }
}

/// Doctor waited for a minute, and did not say why no cache became warm.
#[test]
fn a_row_that_the_server_cannot_send_is_named() {
    let sound = faulty(
        "alter table market_odds alter column line type numeric;
         update market_odds set line = '1e400' where snapshot_id = 112",
    );
    let report = doctor(&sound.dsn(), &[]);
    let found = report.ends(0).one("warmup", "warn");
    says(found, "what", "a cache would start within");
    says(
        found,
        "what",
        "cannot read market_odds id 1121, 1122 of snapshot 112, left out",
    );
}

/// If the fix is a statement, running it removes the finding.
#[test]
fn the_statement_that_doctor_names_fixes_the_fault() {
    for [fault, id] in cases(
        "
        create function oddscache.now() returns int language sql as 'select 1' => feed.stranger
        grant insert on events to {role} => right
        alter role {role} createdb => right
        create role group_{role}; grant group_{role} to {role}; grant update on events to group_{role} => right
        alter role {role} in database {database} set temp_file_limit = 1 => setting
        alter database {database} set temp_file_limit = 1 => setting
        alter database {database} set oddscache.notify = off => feed
        alter table oddscache.log_state replica identity nothing; create publication p for all tables => log.prune
        alter role {role} connection limit 4 => connections
        alter database {database} connection limit 4 => connections
        alter table market_odds disable trigger all; alter table market_odds enable trigger all => trigger
        alter table odds_snapshots_default disable trigger user => trigger
        {server s} create foreign table f () inherits (market_odds) server s => trigger
        {server s} drop table odds_snapshots_default; alter table odds_snapshots drop constraint odds_snapshots_pkey cascade; create foreign table f partition of odds_snapshots default server s
            => trigger
        ",
    ) {
        let sound = faulty(fault);
        // Findings about defaults of the test's server stay.
        let is_fault = |finding: &&Value| {
            let usual = ["schema public", "max_prepared_transactions"];
            let is_usual = usual.iter().any(|object| finding["object"] == *object);
            finding["id"] == id && finding["level"] != "ok" && !is_usual
        };
        let report = sound.quick();
        // A foreign table below also makes the triggers above it wrong. Doctor reports that first. The same repair ends
        // both.
        let found = report.findings.iter().rfind(is_fault);
        let fix = text(found.unwrap_or_else(|| panic!("{report:#?}")), "fix");
        let statement = fix.split(", unless").next().unwrap();
        sound.psql(statement.split(", or leave").next().unwrap());
        let left = sound.quick();
        assert!(!left.findings.iter().any(|finding| is_fault(&finding)), "{fix}: {left:#?}");
    }
}

#[tokio::test]
async fn transactions_that_hold_the_log_back_are_named() {
    let long = ["--quick", "--long-transaction", "0s"];
    let sound = Sound::new();
    let app = connect(&sound.database.dsn()).await;
    let run = async |sql: &str| app.batch_execute(sql).await.unwrap();
    run("begin; update events set name = name where id = 1").await;
    let pid = app.query_one("select pg_backend_pid()", &[]).await.unwrap();
    let pid: i32 = pid.get(0);
    // Transactions of other tests may be older, but they end soon. Then this one is the oldest that has written.
    sound.psql("update events set name = name where id = 2");
    for dsn in [sound.database.dsn(), sound.dsn()] {
        let fix = format!("SELECT pg_terminate_backend({pid}), if it was forgotten");
        eventually("the transaction is named", async || {
            let report = doctor(&dsn, &long);
            let named = report.with("log.transactions", "warn");
            named.iter().any(|found| found["fix"] == fix)
        })
        .await;
    }
    run("rollback").await;
    sound.quick().has(&["log.transactions"], &["ok"]);

    let gid = format!("old_{}", sound.database.name);
    run(&format!(
        "begin; set local oddscache.notify = off; update events set name = name where id = 1; prepare transaction '{gid}'"
    ))
    .await;
    let report = doctor(&sound.dsn(), &long);
    let prepared = report.with("log.prepared", "warn");
    let named = prepared
        .iter()
        .find(|found| text(found, "object").starts_with(&gid));
    says(named.expect("named"), "fix", "ROLLBACK PREPARED");
    run(&format!("rollback prepared '{gid}'")).await;
}

/// The statement revokes the right from PUBLIC, which was granted it.
#[test]
fn the_statement_that_doctor_names_revokes_a_right_of_public() {
    let sound = Sound::new();
    sound.psql("grant create on schema public to public");
    let fix = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
    let fixes = || {
        let report = sound.quick();
        let of = report.with("right", "info").into_iter();
        let public = of.filter(|found| found["object"] == "schema public");
        public
            .map(|found| text(found, "fix").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(fixes(), [fix]);
    sound.psql(fix);
    assert_eq!(fixes(), [""; 0]);
}

/// The cache sets its own time-outs on its connections, so those of the role do no harm.
#[test]
fn time_outs_that_the_cache_sets_itself_are_only_good_to_know() {
    let sound = Sound::new();
    let mut settings = vec![
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_read_only", "on"),
        ("idle_session_timeout", "'10min'"),
    ];
    if server_version() >= 17 {
        settings.push(("transaction_timeout", "'10min'"));
    }
    for (name, value) in &settings {
        sound.psql(&format!("alter role {{role}} set {name} = {value}"));
    }
    let report = sound.quick();
    report.ends(0).has(&["log.prune"], &["ok"]);
    assert!(!report.levels("setting").contains(&"warn"), "{report:#?}");
    let told = |name: &str| {
        let told = report.with("setting", "info").into_iter();
        let mut told = told.filter(|found| found["object"] == name);
        told.next().unwrap_or_else(|| panic!("{name}: {report:#?}"))
    };
    for (name, _) in settings {
        told(name);
    }
    says(
        told("max_prepared_transactions"),
        "fix",
        "SET LOCAL oddscache.notify = off",
    );
}

#[test]
fn doctor_says_who_must_prune_if_the_role_may_not() {
    let sound = faulty("revoke execute on function oddscache.prune(interval) from {role}");
    sound.quick().ends(0).has(&["log.prune"], &["info"]);
}

/// Doctor and another session that prunes do not disturb each other.
#[tokio::test]
async fn pruning_is_tried_and_rolled_back() {
    let sound = faulty(
        "insert into oddscache.log_horizon values ('11', now() - interval '2 hours');
         insert into oddscache.change_log (xid, table_name, op, keys) select '10', 'events', 'UPDATE', '{1}' from generate_series(1, 100)",
    );
    let state = "select count(*), (select concat_ws(' ', pruned_below, pruned_at) from oddscache.log_state) from oddscache.change_log";
    let before = sound.psql(state);
    let report = sound.quick();
    let told = text(report.with("log.prune", "ok")[0], "what");
    assert!(told.starts_with("works: 1"), "{told}");
    assert_eq!(sound.psql(state), before);
    let other = connect(&sound.database.dsn()).await;
    let pruning = other.batch_execute("begin; select oddscache.prune()");
    pruning.await.unwrap();
    sound.quick().has(&["log.prune"], &["ok"]);
}

/// On its own server, because other tests would see these settings.
#[test]
fn doctor_names_settings_of_the_whole_server() {
    let server = Cluster::seeded(&[]);
    let dsn = server.dsn("postgres");
    let run = |sql: &str| server.psql_ok("postgres", &["-qc", sql]);
    for [set, what, fix] in cases(
        "alter system set temp_file_limit = '1GB'
            => is 1048576kB for the server => ALTER SYSTEM SET temp_file_limit = -1
         create role app; alter role app set temp_file_limit = '1GB'
            => is 1GB for role app => ALTER ROLE app SET temp_file_limit = -1
         alter role all set temp_file_limit = '2GB'
            => is 2GB for all roles => ALTER ROLE ALL SET temp_file_limit = -1",
    ) {
        run(set);
        run("select pg_reload_conf()");
        // The server reloads its configuration some time later.
        let mut reports = std::iter::repeat_with(|| quick(&dsn)).take(30);
        let found = reports.find_map(|report| {
            let mut found = report.with("setting", "warn").into_iter();
            found.find(|found| found["what"] == what).cloned()
        });
        let found = found.unwrap_or_else(|| panic!("{set}: {what} was not told"));
        assert!(text(&found, "fix").starts_with(fix), "{found}");
        run(fix);
    }
    // PostgreSQL 17 no longer has this setting.
    if server_version() >= 17 {
        return;
    }
    run("alter system set old_snapshot_threshold = '5min'");
    server.stop("fast").unwrap();
    server.boot().unwrap();
    let report = quick(&dsn);
    let found = report.with("setting", "warn");
    let found = found
        .iter()
        .find(|found| found["object"] == "old_snapshot_threshold");
    says(
        found.unwrap_or_else(|| panic!("{report:#?}")),
        "why",
        "snapshot too old",
    );
}
