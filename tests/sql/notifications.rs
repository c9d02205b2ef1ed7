//! Writers notify if and only if a listener waits. Looking for one never harms them.

use super::*;

/// Whether the statement notifies the listener. A second notification, sent afterwards, bounds the wait.
async fn notifies(listener: &mut Session, writer: &Session, sql: &str) -> bool {
    writer.run(sql).await;
    writer.run("notify oddscache, 'after'").await;
    let mut came = false;
    loop {
        match listener.notifications.recv().await.unwrap().as_str() {
            "oddscache:after" => return came,
            "oddscache:" => came = true,
            other => panic!("{other}"),
        }
    }
}

const CHANGE: &str = "update events set name = 'x' where id = 1";
const WAIT: &str =
    "select pg_advisory_lock_shared(hashtextextended('oddscache listener oddscache', 0))";
const CEASE: &str =
    "select pg_advisory_unlock_shared(hashtextextended('oddscache listener oddscache', 0))";

async fn sessions(db: &Database) -> (Session, Session) {
    let (listener, writer) = open_two(db).await;
    listener.run("listen oddscache").await;
    (listener, writer)
}

#[tokio::test]
async fn writers_are_silent_while_nobody_waits() {
    let db = installed();
    let (mut listener, writer) = sessions(&db).await;
    assert!(!notifies(&mut listener, &writer, CHANGE).await);
    listener.run(WAIT).await;
    assert!(notifies(&mut listener, &writer, CHANGE).await);
    // One listener of several is enough. A listener whose connection was lost does not count.
    let other = open(&db).await;
    other.run(WAIT).await;
    listener.run(CEASE).await;
    assert!(notifies(&mut listener, &writer, CHANGE).await);
    drop(other);
    until(
        &db,
        "select count(*) = 0 from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
    )
    .await;
    assert!(!notifies(&mut listener, &writer, CHANGE).await);
    // heartbeat() and resync() always notify.
    for call in ["heartbeat()", "resync()"] {
        let sql = format!("select oddscache.{call}");
        assert!(notifies(&mut listener, &writer, &sql).await, "{call}");
    }
    // The heartbeat wrote no row, because the newest one was young enough.
    assert_eq!(log(&db).len(), 4 + 1);
}

/// The look for a listener leaves no lock: neither until the end of the transaction nor of the session.
#[tokio::test]
async fn a_writer_keeps_no_lock() {
    let db = installed();
    let (listener, writer) = sessions(&db).await;
    let held = "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    writer.run(&format!("begin; {CHANGE}; {CHANGE}")).await;
    assert_eq!(listener.value(held).await, "0");
    writer.run("commit").await;
    listener.run(WAIT).await;
    writer.run(&format!("begin; {CHANGE}; {CHANGE}")).await;
    assert_eq!(listener.value(held).await, "1");
    // The writer does not wait for a session that holds the lock, in either mode.
    listener
        .run(&format!(
            "{CEASE}; select pg_advisory_lock(hashtextextended('oddscache listener oddscache', 0))"
        ))
        .await;
    writer
        .run("commit; set statement_timeout = '10s'; begin; update events set name = 'y'; commit")
        .await;
}

/// The follower relies on this: if it takes the lock after a writer has looked, and then takes a transaction id, its id
/// is greater than the writer's.
#[tokio::test]
async fn the_look_comes_after_the_transaction_id() {
    let db = installed();
    // look() records the look. The function finds `pg_catalog` first, so the call must be put into its text.
    db.psql(
        "create table looks (xid xid8);
         create function public.look() returns boolean language plpgsql as $$
             begin insert into public.looks values (pg_current_xact_id_if_assigned()); return true; end $$;
         do $$ declare def text := pg_get_functiondef('oddscache.log_change()'::regprocedure);
         begin
             assert position('pg_try_advisory_lock(' in def) > 0;
             execute replace(def, 'pg_try_advisory_lock(', 'public.look() and pg_try_advisory_lock(');
         end $$",
    );
    let writer = open(&db).await;
    writer.run(&format!("begin; {CHANGE}")).await;
    let xid = writer.value("select pg_current_xact_id()").await;
    // Later changes of the transaction do not look again.
    for _ in 0..6 {
        writer.run(CHANGE).await;
    }
    writer.run("commit").await;
    assert_eq!(
        db.psql("select coalesce(xid::text, 'none') from looks"),
        xid
    );
}

/// If the server's lock table has no room for the look, it may have none for the lock that COMMIT takes after a
/// notification. The application's COMMIT would fail. So the writer does not notify.
#[tokio::test]
async fn a_writer_that_cannot_look_notifies_unless_that_would_fail() {
    for [fault, notified] in cases(
        "raise 'denied' using errcode = 'insufficient_privilege' => true
         return 1 / 0 = 1 => true
         raise 'out of shared memory' using errcode = 'out_of_memory' => false",
    ) {
        let db = installed();
        db.psql(&format!(
            "create function public.look() returns boolean language plpgsql as $$ begin {fault}; end $$;
             do $$ declare def text := pg_get_functiondef('oddscache.log_change()'::regprocedure);
             begin execute replace(def, 'pg_try_advisory_lock(', 'public.look() and pg_try_advisory_lock('); end $$"
        ));
        let (mut listener, writer) = sessions(&db).await;
        let came = notifies(&mut listener, &writer, CHANGE).await;
        assert_eq!(came.to_string(), notified, "{fault}");
        assert_eq!(log(&db), ["events UPDATE 1"]);
        let off = "begin; set local oddscache.notify = off; update events set name = 'y' where id = 1; commit";
        assert!(!notifies(&mut listener, &writer, off).await, "{fault}");
    }
}

#[test]
fn check_says_who_waits() {
    let db = installed();
    let report = check(&db);
    let line = "waiting|oddscache|who waits for notifications|ok|";
    report.says(format!("{line}nobody: writers do not notify"));
    let check = |lock: &str| {
        let sql = format!("select {lock}(hashtextextended('oddscache listener oddscache', 0))");
        let args = ["-qAt", "-c", &sql, "-f", "sql/check.sql"];
        text(&cluster().psql(&db.name, &args).unwrap())
    };
    check("pg_advisory_lock_shared").says(format!("{line}writers notify process "));
    let report = check("pg_advisory_lock");
    let warning = report.line("waiting|oddscache|process ");
    assert!(
        warning.contains("|warn|of postgres holds the listeners' advisory lock exclusively"),
        "{warning}"
    );
}
