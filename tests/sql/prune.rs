//! prune() deletes the rows that no reader can need, and no others.

use super::*;

#[tokio::test]
async fn a_long_writers_row_is_never_pruned() {
    let db = installed();
    let old = open(&db).await;
    old.run("begin; update events set name = 'old' where id = 1")
        .await;
    let xid = old.value("select pg_current_xact_id()").await;
    for n in 0..5 {
        db.psql(&format!("update events set name = '{n}' where id = 2"));
    }
    assert_eq!(db.psql("select oddscache.prune('0')"), "0");
    db.answers(&format!(
        "select pruned_below <= '{xid}' from oddscache.log_state => t"
    ));
    assert_eq!(log(&db).len(), 5);
    old.run("update events set name = 'old' where id = 1; commit")
        .await;
    assert_eq!(log(&db).len(), 7);
    let newest = db.psql("select xid from oddscache.change_log order by xid desc limit 1");
    // Transactions of other tests on this server can hold the horizon back for a moment.
    let pruned = format!("oddscache.prune('0') >= 0 and pruned_below > '{newest}'");
    until(&db, &format!("select {pruned} from oddscache.log_state")).await;
    assert_eq!(log(&db), [""; 0]);
}

/// A cursor is compared with pruned_below. So the transaction of every deleted row must lie below it.
#[tokio::test]
async fn pruned_below_covers_every_deleted_row() {
    let db = installed();
    let session = open(&db).await;
    for round in 0..20 {
        session.run(&format!("insert into market_odds (snapshot_id) values ({round}); create temp table if not exists before (xid xid8);
            truncate before; insert into before select xid from oddscache.change_log; select oddscache.prune('0')")).await;
        assert_eq!(
            session.value("select count(*) from before b where not exists (select from oddscache.change_log l where l.xid = b.xid)
                and b.xid >= (select pruned_below from oddscache.log_state)").await,
            "0"
        );
    }
}

#[tokio::test]
async fn prune_keeps_young_rows_and_deletes_a_bounded_number() {
    let db = installed();
    db.psql("insert into oddscache.change_log (xid, table_name, op) select '10', 'events', 'TRUNCATE' from generate_series(1, 60000)");
    // No horizon is an hour old yet, so every row stays.
    assert_eq!(db.psql("select oddscache.prune()"), "0");
    db.answers("select count(*) from oddscache.change_log => 60000");
    // The horizon is old. prune() may delete everything below it, in portions.
    db.psql("delete from oddscache.log_horizon; insert into oddscache.log_horizon values ('11', now() - interval '2 hours'), ('12', now() - interval '30 minutes')");
    assert_eq!(db.psql("select oddscache.prune()"), "50000");
    assert_eq!(db.psql("select oddscache.prune()"), "10000");
    assert_eq!(db.psql("select oddscache.prune()"), "0");
    db.answers(
        "select string_agg(h.horizon::text, ',' order by h.horizon) from oddscache.log_horizon h where h.horizon < '13'
         => 11,12",
    );
    let session = open(&db).await;
    for age in ["'-1 s'", "null"] {
        let sql = format!("select oddscache.prune({age}) => 22023");
        session.fails(&sql).await;
    }
}

#[tokio::test]
async fn one_session_prunes_at_a_time_and_nobody_waits() {
    let db = installed();
    db.psql("update events set name = 'x'");
    let (first, second) = open_two(&db).await;
    first.run("begin; select oddscache.prune('0')").await;
    second
        .answers("set lock_timeout = '1s'; select oddscache.prune('0') => 0")
        .await;
    // A writer does not wait, either.
    second.run("update events set name = 'y'").await;
    first.run("commit").await;
}
