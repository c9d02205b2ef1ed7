//! What a DBA can get wrong: each is found, with its reason and its way out.

use super::{
    common::{connect, eventually},
    *,
};

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
