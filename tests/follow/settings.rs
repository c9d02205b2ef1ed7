//! What a role, a database or an administrator can set against the follower's sessions.

use oddscache::sql::Script;
use oddscache_testkit::{Database, eventually, followed::Followed, run_script};

/// A role with the rights of `grants.sql` in a database of its own.
fn role(database: &Database) -> String {
    let role = format!("follower_{}", database.name);
    run_script(&database.name, Script::Grants, &[("role", &role)]);
    role
}

/// The listener asked for a message in the write-ahead log by a function whose arguments differ between versions (17 gave it
/// a fourth), and which an administrator can take away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_need_no_right_that_an_administrator_took_away() {
    let database = Database::seeded();
    let role = role(&database);
    database.psql(
        "do $$ declare f record; begin
           for f in select p.oid::regprocedure as name from pg_proc p where p.proname = 'pg_logical_emit_message' loop
             execute format('revoke execute on function %s from public', f.name);
           end loop; end $$",
    );
    let followed = Followed::by_notifications(&database, &role).await;
    followed.is_live().await;
}

/// Waiting for notifications must neither assign a transaction id nor write: a crash would hand the id out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_waits_for_notifications_writes_nothing() {
    let database = Database::seeded();
    let role = role(&database);
    database.psql(&format!(
        "alter role {role} set default_transaction_read_only = on"
    ));
    let followed = Followed::by_notifications(&database, &role).await;
    followed.is_live().await;
}

/// A role with `transaction_timeout = '15ms'` was never warm: the server ended every session (25P04).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_time_out_of_the_role_ends_a_session() {
    let database = Database::seeded();
    let role = role(&database);
    let version: u32 = database.psql("show server_version_num").parse().unwrap();
    let mut settings = vec![
        "idle_session_timeout = '200ms'",
        "statement_timeout = '15ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '15ms'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
    ];
    if version >= 170_000 {
        settings.push("transaction_timeout = '15ms'");
    }
    for setting in settings {
        database.psql(&format!("alter role {role} set {setting}"));
    }
    let followed = Followed::by_notifications(&database, &role).await;
    // Longer than the sessions might be idle.
    let reads = followed.cache.counters().heartbeats;
    eventually("a heartbeat after five quiet seconds", async || {
        followed.cache.counters().heartbeats > reads
    })
    .await;
    followed.is_live().await;
}
