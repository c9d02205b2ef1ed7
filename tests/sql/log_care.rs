//! Care of the log. A longer log does not make reads slower. A pruner that hangs, waits or is killed harms nothing.

use std::path::PathBuf;

use oddscache_testkit::followed::Followed;
use serde_json::Value;

use super::*;

/// A database in which the server logs the plan and the buffers of each statement that a follower runs.
fn explained(rows: u32, analyzed: bool) -> Database {
    let db = Database::seeded();
    // Take past transaction ids for the rows. Each subtransaction that is rolled back gives one.
    db.psql(
        "create temp table t (n int);
         do $$ begin for i in 1 .. 5000 loop
             begin insert into t values (i); raise exception 'no'; exception when raise_exception then null; end;
         end loop; end $$",
    );
    db.psql(&format!(
        "alter table oddscache.change_log set (autovacuum_enabled = off);
         insert into oddscache.change_log (xid, table_name, op, keys)
         select (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 - g % 5000)::text::xid8, 'odds_snapshots', 'UPDATE', '{{1,2,3}}'
           from generate_series(1, {rows}) g"
    ));
    if analyzed {
        db.psql("vacuum analyze oddscache.change_log");
    }
    for setting in [
        "session_preload_libraries = auto_explain",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_buffers = on",
        "auto_explain.log_timing = off",
        "auto_explain.log_format = json",
    ] {
        db.psql(&format!("alter database {} set {setting}", db.name));
    }
    db
}

fn server_log() -> PathBuf {
    cluster().socket_dir().join("log")
}

/// The plans of the statements that have read the change log since the server's own log had this length.
fn plans_since(length: u64) -> Vec<Value> {
    let log = std::fs::read(server_log()).unwrap();
    let text = String::from_utf8_lossy(&log[usize::try_from(length).unwrap()..]).into_owned();
    let plan = |text: &str| {
        let end = text.find("\n\t}\n")? + 3;
        serde_json::from_str::<Value>(&text[..end]).ok()
    };
    let reads_log = |plan: &Value| {
        let nodes = nodes(&plan["Plan"]);
        let mut of_log = nodes
            .iter()
            .filter(|node| node["Relation Name"] == "change_log");
        // Leave out the triggers' INSERTs.
        of_log.next().is_some() && nodes.iter().all(|node| node["Node Type"] != "ModifyTable")
    };
    let plans = text.split("plan:\n").skip(1).filter_map(plan);
    plans.filter(reads_log).collect()
}

/// A node of a plan, and all nodes below it.
fn nodes(node: &Value) -> Vec<&Value> {
    let below = node["Plans"].as_array().into_iter().flatten();
    std::iter::once(node).chain(below.flat_map(nodes)).collect()
}

fn buffers(plan: &Value) -> u64 {
    let node = &plan["Plan"];
    let names = ["Shared Hit Blocks", "Shared Read Blocks"];
    names.map(|name| node[name].as_u64().unwrap()).iter().sum()
}

/// Runs a follower while rows change, many writers stay open and commit late, and a pruner hangs. Returns the most
/// buffers that one read of the log took.
async fn most_buffers(rows: u32, analyzed: bool) -> u64 {
    const WRITERS: usize = 40;
    let db = explained(rows, analyzed);
    let followed = Followed::new(&db).await;
    followed.check("the seed").await;
    let begun = std::fs::metadata(server_log()).unwrap().len();
    let change = async |n: usize| {
        let sql = format!("update market_odds set line = {n} where snapshot_id = 112");
        followed.run(&sql).await;
        followed.check(&sql).await;
    };
    change(1).await;

    let mut writers = Vec::new();
    for n in 0..WRITERS {
        let writer = open(&db).await;
        writer
            .run(&format!(
                "begin; insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
                 values (112, 'late {n}', 'late', '[]')"
            ))
            .await;
        writers.push(writer);
    }
    let pruner = open(&db).await;
    pruner
        .run("delete from oddscache.log_horizon; begin; select oddscache.prune('0')")
        .await;
    for n in 2..6 {
        change(n).await;
    }
    for writer in writers {
        writer.run("commit").await;
    }
    followed.check("the late commits").await;
    pruner.run("commit").await;
    change(7).await;
    assert_eq!(followed.cache.counters().reloads, 1, "read by keys");

    // The read must look up each writer in progress. Otherwise this test did not measure that cost.
    let plans = plans_since(begun);
    let late = |plan: &&Value| {
        let mut nodes = nodes(&plan["Plan"]).into_iter();
        nodes.any(|node| {
            node["Alias"] == "writer" && node["Actual Rows"].as_f64() >= Some(WRITERS as f64)
        })
    };
    assert!(plans.iter().filter(late).count() >= 2, "{}", plans.len());
    for plan in &plans {
        let mut nodes = nodes(&plan["Plan"]).into_iter();
        let whole =
            |node: &Value| node["Node Type"] == "Seq Scan" && node["Relation Name"] == "change_log";
        assert!(!nodes.any(whole), "{plan:#}");
    }
    plans.iter().map(buffers).max().unwrap()
}

/// Cost is counted in pages, so that other work on the machine does not matter. A log without statistics is one that
/// was just installed, restored or emptied.
#[tokio::test]
async fn a_read_of_a_million_rows_costs_what_ten_thousand_cost() {
    for analyzed in [true, false] {
        let small = most_buffers(10_000, analyzed).await;
        let large = most_buffers(1_000_000, analyzed).await;
        println!("analyzed {analyzed}: {small} pages of 10,000 rows, {large} of 1,000,000");
        // The longer log's primary key has one more level.
        assert!(
            large <= small * 2 + 20,
            "analyzed {analyzed}: {small} and {large}"
        );
    }
}

/// A database with rows that prune() may delete at once.
fn with_old_rows(rows: u32) -> Database {
    let db = installed();
    db.psql(&format!(
        "insert into oddscache.change_log (xid, table_name, op) select '10', 'events', 'TRUNCATE' from generate_series(1, {rows});
         insert into oddscache.log_horizon values ('11', now() - interval '2 hours')"
    ));
    db
}

#[tokio::test]
async fn the_server_ends_a_pruner_that_stays_in_its_transaction() {
    let db = with_old_rows(10);
    let (stuck, other) = open_two(&db).await;
    stuck
        .run("set oddscache.prune_timeout = '200ms'; begin; select oddscache.prune()")
        .await;
    let pid = "select pid from pg_stat_activity where datname = current_database() and query like '%prune()'";
    let ended = format!("select not exists ({pid} and state like 'idle in%')");
    until(&db, &ended).await;
    // Its work is rolled back, and the next pruner does it.
    assert_eq!(other.value("select oddscache.prune()").await, "10");
    assert!(stuck.client.batch_execute("select 1").await.is_err());

    // The server also cancels a pruner's next statement if that runs for long.
    let db = with_old_rows(10);
    let stuck = open(&db).await;
    stuck
        .run("set oddscache.prune_timeout = '200ms'; begin; select oddscache.prune()")
        .await;
    assert_eq!(stuck.code("select pg_sleep(1000)").await, "57014");
    stuck.run("rollback").await;
    assert_eq!(stuck.value("select oddscache.prune()").await, "10");
}

/// prune() lowers the caller's time-outs until the transaction ends, and never raises them.
#[tokio::test]
async fn a_pruners_bounds_end_with_its_transaction() {
    let db = installed();
    let session = open(&db).await;
    let bounds = "select concat_ws(' ', current_setting('idle_in_transaction_session_timeout'), current_setting('statement_timeout'),
        current_setting('lock_timeout'))";
    session.run("set lock_timeout = '7s'").await;
    for (own, within) in [("0", "1min"), ("10min", "1min"), ("5s", "5s")] {
        session
            .run(&format!(
                "set idle_in_transaction_session_timeout = '{own}'; set statement_timeout = '{own}'"
            ))
            .await;
        for end in ["commit", "rollback"] {
            session.run("begin; select oddscache.prune()").await;
            let bound = session.value(bounds).await;
            assert_eq!(bound, format!("{within} {within} 7s"), "{own}");
            session.run(end).await;
            assert_eq!(session.value(bounds).await, format!("{own} {own} 7s"));
        }
        session.run("select oddscache.prune()").await;
        assert_eq!(session.value(bounds).await, format!("{own} {own} 7s"));
    }
}

/// Only a role that may write to log_state can keep others from pruning. An advisory lock, which any role can take,
/// cannot.
#[tokio::test]
async fn no_other_role_can_keep_prune_from_working() {
    let db = with_old_rows(10);
    let role = format!("cache_{}", db.name);
    run(&db, Script::Grants, &[("role", &role), ("prune", "on")]);
    let reader = open_as(&db, &role).await;
    for strength in ["update", "no key update", "share", "key share"] {
        let sql = format!("select from oddscache.log_state for {strength}");
        assert_eq!(reader.code(&sql).await, "42501", "{sql}");
    }
    let pruner = open(&db).await;
    pruner.run("begin; select oddscache.prune()").await;
    let advisory =
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    assert_eq!(pruner.value(advisory).await, "0");
    // A second pruner leaves the work to the first.
    assert_eq!(reader.value("select oddscache.prune()").await, "0");
    pruner.run("rollback").await;
    assert_eq!(reader.value("select oddscache.prune()").await, "10");
}

/// A pruner is killed when it has deleted some rows and waits for one more. No row is gone, and pruned_below is
/// unchanged.
#[tokio::test]
async fn a_pruner_killed_in_the_middle_leaves_all_as_it_was() {
    let db = with_old_rows(12_000);
    let state = "select count(*), (select concat_ws(' ', s.pruned_below, s.pruned_at) from oddscache.log_state s),
        (select string_agg(h.horizon::text, ',' order by h.horizon) from oddscache.log_horizon h) from oddscache.change_log";
    let before = db.psql(state);
    let (holder, pruner) = open_two(&db).await;
    // Lock a row of the third portion.
    holder
        .run("begin; select from oddscache.change_log order by xid, id offset 11000 limit 1 for update")
        .await;
    let pid = pruner.value("select pg_backend_pid()").await;
    let pruning = tokio::spawn(async move { pruner.code("select oddscache.prune()").await });
    let exists = format!("exists (select from pg_stat_activity where pid = {pid}");
    until(
        &db,
        &format!("select {exists} and wait_event_type = 'Lock')"),
    )
    .await;
    db.psql(&format!("select pg_terminate_backend({pid})"));
    assert_eq!(pruning.await.unwrap(), "57P01");
    holder.run("rollback").await;
    until(&db, &format!("select not {exists})")).await;
    assert_eq!(db.psql(state), before);
    assert_eq!(db.psql("select oddscache.prune()"), "12000");
    // pruned_at says when it ran.
    db.answers("select pruned_below >= '11', pruned_at > now() - interval '1 minute' from oddscache.log_state => t|t");
}

/// A pruner gives up soon, with an error, while an administrator has the log locked.
#[tokio::test]
async fn a_pruner_does_not_wait_long() {
    let db = with_old_rows(10);
    let (admin, pruner) = open_two(&db).await;
    admin
        .run("begin; select from oddscache.change_log for update")
        .await;
    assert_eq!(pruner.code("select oddscache.prune()").await, "55P03");
    admin.run("rollback").await;
    assert_eq!(pruner.value("select oddscache.prune()").await, "10");
}

#[test]
fn the_backlog_is_reported() {
    // In the last case, prune() was called, but an open transaction keeps the row.
    for [age, pruned, backlog, last] in cases(
        "2 hours => 2 hours => ok => ok|last at
         2 days => null => warn => warn|never|a scheduled job that runs SELECT oddscache.prune(), or let the cache call it
         2 days => 2 days => warn => warn|last at
         8 days => 8 days => FAIL => FAIL|last at
         8 days => 1 minute => FAIL => ok|last at",
    ) {
        let db = installed();
        db.psql(&format!(
            "insert into oddscache.change_log (xid, table_name, op, at) values ('3', 'events', 'UPDATE', now() - interval '{age}');
             update oddscache.log_state set pruned_at = now() - nullif('{pruned}', 'null')::interval"
        ));
        check(&db)
            .says(format!(
                "log|oddscache.change_log|backlog|{backlog}|1 rows, "
            ))
            .says(format!("log|oddscache.log_state|pruned|{last}"));
    }
}
