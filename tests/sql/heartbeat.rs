//! heartbeat() and resync(): they write log rows without a change of the application.

use super::*;

/// Every log row, with the columns that distinguish the two kinds.
const ROWS_LOGGED: &str = "select string_agg(concat_ws(' ', table_name, op, coalesce(keys::text, '*'), note), '; ' order by id) \
    from oddscache.change_log";

#[tokio::test]
async fn a_heartbeat_logs_no_keys_and_notifies() {
    let db = installed();
    let mut session = open(&db).await;
    session.run("listen oddscache").await;
    session.run("select oddscache.heartbeat()").await;
    assert_eq!(session.notifications.recv().await.unwrap(), "oddscache:");
    assert_eq!(db.psql(ROWS_LOGGED), "heartbeat HEARTBEAT {}");
    // It notifies even if it writes no row.
    session.run("select oddscache.heartbeat()").await;
    assert_eq!(session.notifications.recv().await.unwrap(), "oddscache:");
    assert_eq!(db.psql(ROWS_LOGGED), "heartbeat HEARTBEAT {}");
}

/// The newest row counts, also if a trigger wrote it. A row from the future does not count: otherwise a clock that went
/// back would stop the heartbeats.
#[test]
fn a_heartbeat_writes_at_most_one_row_a_second() {
    for (newest, due) in [
        ("clock_timestamp() - interval '2 s'", true),
        ("clock_timestamp() - interval '0.1 s'", false),
        ("clock_timestamp() + interval '1 hour'", true),
    ] {
        let db = installed();
        db.psql(&format!(
            "insert into oddscache.change_log (xid, table_name, op, keys, at) values (pg_current_xact_id(), 'events', 'UPDATE', '{{1}}', {newest});
             select oddscache.heartbeat(); select oddscache.heartbeat()"
        ));
        let rows = "select count(*) from oddscache.change_log where op = 'HEARTBEAT'";
        assert_eq!(db.psql(rows), if due { "1" } else { "0" }, "{newest}");
    }
}

/// One transaction writes at most one row a second, whatever others log meanwhile, in any isolation level.
#[tokio::test]
async fn a_transaction_cannot_flood_the_log() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let db = installed();
        let session = open(&db).await;
        session
            .run(&format!(
                "begin isolation level {isolation}; select pg_current_xact_id()"
            ))
            .await;
        // An old row of a committed transaction with a greater xid stays the newest by the primary key.
        db.psql(
            "insert into oddscache.change_log (xid, table_name, op, keys, at)
             values (pg_current_xact_id(), 'events', 'UPDATE', '{1}', now() - interval '1 minute')",
        );
        session
            .run("select oddscache.heartbeat() from generate_series(1, 500); commit")
            .await;
        let rows: u32 = db
            .psql("select count(*) from oddscache.change_log where op = 'HEARTBEAT'")
            .parse()
            .unwrap();
        // One row for each second that the loop took.
        assert!((1..10).contains(&rows), "{isolation}: {rows}");
    }
}

#[tokio::test]
async fn a_resync_names_its_reason() {
    let db = installed();
    let mut session = open(&db).await;
    session.run("listen oddscache").await;
    session.run("select oddscache.resync()").await;
    assert_eq!(session.notifications.recv().await.unwrap(), "oddscache:");
    session
        .run("select oddscache.resync('restored event 7'); select oddscache.resync(repeat('é', 1000))")
        .await;
    let (asked, cut) = ("resync RESYNC * ASKED", "é".repeat(200));
    let rows = format!("{asked}; {asked} restored event 7; {asked} {cut}");
    assert_eq!(db.psql(ROWS_LOGGED), rows);
    // check.sql does not warn of it.
    check(&db).says("log|resync|RESYNC|ok|3 times");
}

/// The caller is the cache or an administrator, not a writer. So an error must reach the caller, and soon.
#[tokio::test]
async fn an_error_reaches_the_caller_soon() {
    let db = installed();
    let (admin, session) = open_two(&db).await;
    admin
        .run("begin; lock table oddscache.change_log in access exclusive mode")
        .await;
    for call in ["heartbeat()", "resync()", "prune('0')"] {
        let sql = format!("select oddscache.{call}");
        assert_eq!(session.code(&sql).await, "55P03", "{call}");
        // The caller's lock_timeout is unchanged.
        assert_eq!(session.value("show lock_timeout").await, "0");
    }
    admin.run("rollback; drop table oddscache.change_log").await;
    for call in ["heartbeat()", "resync()"] {
        let sql = format!("select oddscache.{call}");
        assert_eq!(session.code(&sql).await, "42P01", "{call}");
    }
}

#[test]
fn the_cache_can_call_heartbeat_but_not_resync() {
    let db = installed();
    let role = cache_role(&db);
    let other = format!("other_{}", db.name);
    db.psql(&format!("create role {other}"));
    for (who, heartbeat) in [(&role, "t"), (&other, "f")] {
        let may = |function: &str| {
            format!("select has_function_privilege('{who}', 'oddscache.{function}', 'execute')")
        };
        db.answers(&format!("{} => {heartbeat}", may("heartbeat()")));
        db.answers(&format!("{} => f", may("prune(interval)")));
        db.answers(&format!("{} => f", may("resync(text)")));
    }
    db.psql(&format!(
        "revoke execute on function oddscache.heartbeat() from {role}; grant execute on function oddscache.resync(text) to {role}"
    ));
    check_role(&db, &role)
        .says(format!(
            "right|oddscache.heartbeat()|EXECUTE|warn|{role} may not"
        ))
        .says(format!(
            "right|oddscache.resync(text)|EXECUTE|info|{role} has it"
        ));
    // A feed of version 1 has no heartbeat to grant.
    db.psql("drop function oddscache.heartbeat()");
    fails(&db, Script::Grants, &[("role", &role)]).says("missing: oddscache.heartbeat()");
}
