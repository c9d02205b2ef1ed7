//! What the triggers log for each statement.

use super::*;

#[test]
fn every_operation_on_every_table_is_logged() {
    let db = installed();
    db.logs(
        "
        insert into events values (4), (5) => events INSERT 4,5
        update events set kickoff = now() where id > 3 => events UPDATE 4,5
        update events set id = 6 where id = 5 => events UPDATE 5,6
        delete from events where id = 6 => events DELETE 6
        insert into competitor_events values (14, 'bet9ja', 2), (15, 'bet9ja', null), (16, 'bet9ja', 2)
            => competitor_events INSERT 2
        update competitor_events set deleted_at = now() where id = 14 => competitor_events UPDATE 2
        update competitor_events set betpawa_event_id = 3 where id = 14 => competitor_events UPDATE 2,3
        update competitor_events set betpawa_event_id = 4 where id = 15 => competitor_events UPDATE 4
        update competitor_events set betpawa_event_id = null where id = 15 => competitor_events UPDATE 4
        delete from competitor_events where id = 14 => competitor_events DELETE 3
        insert into odds_snapshots (event_id, bookmaker_id) values (1, 1), (2, 1), (1, 2) => odds_snapshots INSERT 1,2
        update odds_snapshots set last_confirmed_at = now() where event_id < 3 => odds_snapshots UPDATE 1,2
        update odds_snapshots set event_id = 3 where event_id = 1 => odds_snapshots UPDATE 1,3
        delete from odds_snapshots where event_id = 2 => odds_snapshots DELETE 2
        insert into competitor_odds_snapshots (competitor_event_id) values (11), (12), (11)
            => competitor_odds_snapshots INSERT 11,12
        update competitor_odds_snapshots set competitor_event_id = 13 where competitor_event_id = 12
            => competitor_odds_snapshots UPDATE 12,13
        insert into market_odds (snapshot_id) values (1), (1), (7) => market_odds INSERT 1,7
        update market_odds set snapshot_id = 8 where snapshot_id = 7 => market_odds UPDATE 7,8
        delete from market_odds where snapshot_id = 8 => market_odds DELETE 8
        insert into competitor_market_odds (snapshot_id) values (2), (2) => competitor_market_odds INSERT 2
        update competitor_market_odds set outcomes = '[1]' where snapshot_id = 2 => competitor_market_odds UPDATE 2
        delete from competitor_market_odds where snapshot_id = 2 => competitor_market_odds DELETE 2
        delete from competitor_odds_snapshots where competitor_event_id = 13
            => competitor_odds_snapshots DELETE 13; competitor_market_odds DELETE 3
        truncate market_odds => market_odds TRUNCATE *
        truncate competitor_market_odds => competitor_market_odds TRUNCATE *
        ",
    );
}

#[test]
fn statements_that_touch_several_tables_or_none() {
    let db = installed();
    db.logs(
        "
        update events set name = 'x' where false =>
        delete from odds_snapshots where id < 0 =>
        insert into market_odds (snapshot_id) select 1 where false =>
        insert into events values (1) on conflict do nothing =>
        insert into competitor_events values (20) =>
        update competitor_events set deleted_at = now() where id = 20 =>
        begin; insert into events values (99); rollback =>
        ",
    );
    db.logs(
        "insert into events values (1), (4) on conflict (id) do update set name = 'x'
         => events UPDATE 1; events INSERT 4",
    );
    if server_has("MERGE", 15) {
        db.logs(
            "merge into events e using (values (4), (5)) as v (id) on e.id = v.id when matched then delete when not matched then insert values (v.id)
             => events DELETE 4; events INSERT 5",
        );
    }
    let mut rows = logs(
        &db,
        "with a as (update events set name = 'a' where id = 1 returning id), b as (delete from market_odds where snapshot_id = 3) \
         insert into odds_snapshots (event_id, bookmaker_id) select 2, 1",
    );
    rows.sort();
    let sorted = "events UPDATE 1; market_odds DELETE 3; odds_snapshots INSERT 2";
    assert_eq!(rows.join("; "), sorted);
    db.logs("copy market_odds (snapshot_id) from program 'printf \"1\\n2\\n2\\n\"' => market_odds INSERT 1,2");
    // Cascades: to the snapshots of an event, partitioned or not, and to the links of competitor events.
    db.logs(
        "delete from events where id = 1; delete from competitor_events where id = 12
         => events DELETE 1; odds_snapshots DELETE 1; competitor_events UPDATE 1; competitor_events DELETE 2; competitor_odds_snapshots DELETE 12; competitor_market_odds DELETE 2",
    );
    let mut all = logs(&db, "truncate events cascade");
    all.sort();
    all.dedup();
    let emptied =
        "competitor_events competitor_market_odds competitor_odds_snapshots events odds_snapshots";
    assert_eq!(all.join(" ").replace(" TRUNCATE *", ""), emptied);
}

#[test]
fn changes_of_partitions_are_logged() {
    let db = installed();
    db.logs(
        "
        insert into odds_snapshots_d2 (event_id, bookmaker_id, captured_at) values (3, 1, '2025-01-02')
            => odds_snapshots INSERT 3
        insert into odds_snapshots (event_id, bookmaker_id, captured_at) values (1, 1, '2025-01-01'), (2, 1, '2025-01-02'), (3, 1, '2026-01-01')
            => odds_snapshots INSERT 1,2,3
        update odds_snapshots set captured_at = captured_at + interval '1 day' where captured_at < '2025-01-02'
            => odds_snapshots UPDATE 1,2,3
        update odds_snapshots_d2 set bookmaker_id = 2 where event_id = 3 => odds_snapshots UPDATE 3
        delete from only odds_snapshots_default => odds_snapshots DELETE 3
        truncate odds_snapshots_d1 => odds_snapshots TRUNCATE *
        ",
    );
    let logged = logs(&db, "truncate odds_snapshots");
    assert_eq!(logged, ["odds_snapshots TRUNCATE *"; 4]);
}

#[test]
fn savepoints_and_subtransactions() {
    let db = installed();
    db.logs(
        "
        begin; insert into events values (7); savepoint s; insert into events values (8); rollback to s; insert into events values (9); commit
            => events INSERT 7; events INSERT 9
        begin; savepoint s; insert into events values (10); rollback to s; insert into events values (11); update events set name = 'x' where id = 11; commit
            => events INSERT 11; events UPDATE 11
        ",
    );
    db.psql("delete from oddscache.change_log");
    let xid = db.psql(
        "begin; savepoint a; savepoint b; insert into events values (12); release b; release a;
         do $$ begin begin insert into events values (13); exception when others then null; end; end $$;
         select pg_current_xact_id(); commit",
    );
    db.answers(&format!(
        "select distinct xid from oddscache.change_log => {xid}"
    ));
    assert_eq!(log(&db), ["events INSERT 12", "events INSERT 13"]);
}

/// More than 64 subtransaction xids in one transaction slow down every snapshot of the server. The trigger adds four at
/// most.
#[tokio::test]
async fn a_transaction_costs_four_subtransaction_xids() {
    let db = installed();
    let session = open(&db).await;
    for own_savepoints in [false, true] {
        session.run("begin").await;
        let xid = session.value("select pg_current_xact_id()").await;
        if own_savepoints {
            session.run("savepoint own").await;
        }
        for n in 0..100 {
            session.run(&format!("update events set name = '{n}' where id = 1; insert into market_odds (snapshot_id) values ({n})")).await;
        }
        let logged = session.value(&format!("select count(*), count(distinct xmin::text) from oddscache.change_log where xid = '{xid}'")).await;
        assert_eq!(logged, "200");
        let subxids = session.value(&format!("select count(distinct xmin::text) from oddscache.change_log where xid = '{xid}' and xmin::text <> '{xid}'")).await;
        // Within the application's savepoint, the other rows have the savepoint's xid.
        assert_eq!(subxids, if own_savepoints { "5" } else { "4" });
        session.run("commit").await;
    }
}

#[test]
fn replication_role_does_not_silence_it() {
    let db = installed();
    db.logs(
        "set session_replication_role = replica; insert into events values (30); insert into odds_snapshots_d1 (event_id, bookmaker_id) values (30, 1); truncate market_odds
         => events INSERT 30; odds_snapshots INSERT 30; market_odds TRUNCATE *",
    );
}

#[test]
fn many_keys_become_blocks_or_the_whole_table() {
    let db = installed();
    db.logs(
        "
        insert into events select g from generate_series(100, 20100) g => events INSERT *
        delete from events where id >= 100 => events DELETE *
        insert into market_odds (snapshot_id) select g << 10 from generate_series(1, 20001) g => market_odds INSERT *
        update market_odds set outcomes = '[]' => market_odds UPDATE *
        ",
    );
    db.psql("truncate oddscache.change_log, market_odds; insert into market_odds (snapshot_id) select g from generate_series(1, 20001) g");
    db.psql("update market_odds set snapshot_id = -snapshot_id");
    db.answers(
        "
        select note, (select array_agg(k order by k) from unnest(keys) k) from oddscache.change_log where op = 'INSERT'
         => BLOCKS|{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19}
        select note, cardinality(keys), (select min(k) from unnest(keys) k) from oddscache.change_log where op = 'UPDATE'
         => BLOCKS|40|-20
        ",
    );
    db.psql("truncate oddscache.change_log");
    db.psql("delete from oddscache.change_log; delete from market_odds where snapshot_id = -1");
    db.answers(
        "delete from oddscache.change_log; delete from market_odds; select op, cardinality(keys), pg_column_size(keys) from oddscache.change_log
         => DELETE|20000|160020",
    );
}

#[tokio::test]
async fn a_transaction_notifies_once_and_can_be_silent() {
    let db = installed();
    let mut listener = open(&db).await;
    listener.run("listen oddscache").await;
    listener.wait_for_notifications("oddscache").await;
    let writer = open(&db).await;
    writer.run("begin; update events set name = 'a'; update market_odds set outcomes = '[]'; savepoint s; insert into events values (50); rollback to s; update events set name = 'b'; commit").await;
    for off in ["off", "FALSE", "no", "0"] {
        writer
            .run(&format!(
                "begin; set local oddscache.notify = '{off}'; update events set name = 'c'; commit"
            ))
            .await;
    }
    writer.run("begin; update events set name = 'd'; rollback; update events set name = 'd' where false").await;
    writer
        .run("begin; set local oddscache.notify = 'on'; update events set name = 'e'; commit")
        .await;
    // After SET LOCAL the setting stays defined, as an empty text.
    writer
        .run("update events set name = 'f'; notify oddscache, 'last'")
        .await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|said| said != "oddscache:last") {
        heard.push(listener.notifications.recv().await.unwrap());
    }
    assert_eq!(
        heard.join(" "),
        "oddscache: oddscache: oddscache: oddscache:last"
    );
    assert_eq!(log(&db).len(), 3 + 4 + 1 + 1);
}

#[tokio::test]
async fn prepared_transactions_do_not_notify() {
    let db = installed();
    let session = open(&db).await;
    let listener = open(&db).await;
    listener.wait_for_notifications("oddscache").await;
    session
        .fails("begin; update events set name = 'x'; prepare transaction 'p1' => 0A000")
        .await;
    session.run("rollback").await;
    session.run(&format!("begin; set local oddscache.notify = off; update events set name = 'x'; prepare transaction '{}'", db.name)).await;
    assert_eq!(log(&db), [""; 0]);
    session.run(&format!("commit prepared '{}'", db.name)).await;
    assert_eq!(log(&db), ["events UPDATE 1,2,3"]);
}

#[tokio::test]
async fn serializable_writers_do_not_fail_each_other() {
    let db = installed();
    let (a, b) = open_two(&db).await;
    a.run("begin isolation level serializable; update events set name = 'a' where id = 1; update events set name = 'a' where id = 1; update events set name = 'a' where id = 1").await;
    b.run("begin isolation level serializable; update market_odds set outcomes = '[]' where id = 1; update market_odds set outcomes = '[]' where id = 1; update market_odds set outcomes = '[]' where id = 1").await;
    a.run("commit").await;
    b.run("commit").await;
    assert_eq!(log(&db).len(), 6);
    a.fails("begin isolation level serializable; select oddscache.prune() => 25000")
        .await;
}

/// An administrator may revoke functions from PUBLIC. If the trigger cannot look for a listener, it notifies. If it
/// cannot write the row, the row is lost, and the audit finds the difference.
#[tokio::test]
async fn no_function_taken_from_public_makes_a_statement_fail() {
    let db = app();
    let session = install_as(&db, &owner(&db)).await;
    let named = "select distinct p.oid::regprocedure::text from pg_proc p,
          (select prosrc from pg_proc where oid = 'oddscache.log_change()'::regprocedure) f
        where p.pronamespace = 'pg_catalog'::regnamespace and f.prosrc ~ ('\\m' || p.proname || '\\(') and p.prokind = 'f'";
    let functions: Vec<String> = db.psql(named).lines().map(str::to_owned).collect();
    assert!(functions.len() > 10, "{functions:?}");
    for (id, function) in functions.iter().enumerate() {
        db.psql(&format!(
            "revoke execute on function {function} from public"
        ));
        // Some rows are written in subtransactions, and the later ones without.
        let mut work = String::from("begin;");
        for row in 0..8 {
            work += &format!("insert into events (id) values ({});", 1000 + id * 10 + row);
        }
        session.run(&format!("{work} commit")).await;
        db.psql(&format!("grant execute on function {function} to public"));
    }
}
