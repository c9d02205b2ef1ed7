//! Whatever is wrong with the feed, the application's statement succeeds. If a log row can be written, it says RESYNC.

use super::*;

/// The server's log.
fn server_log() -> String {
    std::fs::read_to_string(cluster().socket_dir().join("log")).unwrap()
}

/// The row that asks for everything after a lost one.
const EARLIER: &str = "RESYNC * an earlier change of this transaction could not be logged";

#[test]
fn a_renamed_column_asks_for_a_resync() {
    let db = installed();
    db.psql("alter table market_odds rename snapshot_id to snap");
    for sql in [
        "insert into market_odds (snap) values (1)",
        "update market_odds set snap = 2 where id = 1",
        "delete from market_odds where id = 1",
    ] {
        let rows = logs(&db, sql);
        let named = ["n", "o"].map(|start| format!("market_odds RESYNC * 42703 column {start}"));
        let is_named = named.iter().any(|start| rows[0].starts_with(start));
        assert!(rows.len() == 1 && is_named, "{rows:?}");
    }
    // The same holds in a session that had already planned the statement.
    let db = installed();
    let rows = db.psql(
        "update odds_snapshots set bookmaker_id = 1; alter table odds_snapshots rename event_id to event; update odds_snapshots set bookmaker_id = 2;
         alter table odds_snapshots rename event to event_id; update odds_snapshots set bookmaker_id = 1; select op from oddscache.change_log order by id",
    );
    assert_eq!(rows, "UPDATE\nRESYNC\nUPDATE");
}

#[test]
fn a_column_dropped_or_of_another_type_asks_for_a_resync() {
    let db = installed();
    db.psql("alter table competitor_events drop betpawa_event_id; alter table market_odds alter snapshot_id type text using 'x' || snapshot_id");
    for [sql, row] in cases(
        "update competitor_events set source = 'bet9ja' => competitor_events RESYNC * 42703
         insert into market_odds (snapshot_id) values ('nine') => market_odds RESYNC * 22P02",
    ) {
        let rows = logs(&db, sql);
        assert!(rows[0].starts_with(row), "{sql}: {rows:?}");
    }
    // Wider and narrower integers work, too.
    db.psql("alter table competitor_market_odds alter snapshot_id type bigint; alter table competitor_odds_snapshots alter competitor_event_id type smallint");
    db.logs(
        "
        update competitor_market_odds set snapshot_id = 1 where id = 2 => competitor_market_odds UPDATE 1,2
        update competitor_odds_snapshots set captured_at = now() where id = 1 => competitor_odds_snapshots UPDATE 11
        ",
    );
}

#[test]
fn trouble_in_a_transaction_costs_no_more_xids() {
    let db = installed();
    let rows = db.psql(
        "alter table market_odds rename snapshot_id to snap; begin; update events set name = 'x'; update events set name = 'y';
         do $$ begin for i in 1 .. 100 loop insert into market_odds (snap) values (i); end loop; end $$; commit;
         select op, count(*), count(distinct xmin::text) from oddscache.change_log group by op order by op",
    );
    assert_eq!(rows, "RESYNC|100|3\nUPDATE|2|2");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_harms_nobody() {
    for (trouble, code) in [
        ("drop table oddscache.change_log", "42P01"),
        ("alter schema oddscache rename to elsewhere", "42P01"),
        ("alter table oddscache.change_log add check (false) not valid", "23514"),
        ("alter table oddscache.change_log add needed int not null", "23502"),
        ("alter table oddscache.change_log rename keys to key", "42703"),
        ("alter table oddscache.change_log enable row level security, force row level security", "42501"),
        ("revoke insert on oddscache.change_log from {owner}", "42501"),
        ("revoke usage on schema oddscache from {owner}", "42501"),
        (
            "create function bad() returns trigger language plpgsql as $$ begin raise 'not today'; end $$;
             create trigger bad before insert on oddscache.change_log for each row execute function bad()",
            "P0001",
        ),
        ("create rule r as on insert to oddscache.change_log do also select 1 / 0", "22012"),
        ("create unique index on oddscache.change_log ((1 / (id - id)))", "22012"),
    ] {
        let (db, owner, session) = owned().await;
        let trouble = trouble.replace("{owner}", &owner);
        // Once before this session has written a log row, and once after.
        db.psql(&trouble);
        for _ in 0..2 {
            session.run("update events set name = 'y'; insert into odds_snapshots_d1 (event_id, bookmaker_id) values (1, 1)").await;
            session.run("begin; delete from market_odds where id = 1; truncate competitor_market_odds; update events set name = 'z' where id = 1; commit").await;
        }
        assert_eq!(session.value("select count(*) from events where name = 'z'").await, "1", "{trouble}");
        let log = server_log();
        let said = format!("oddscache: TRUNCATE on public.competitor_market_odds could not be logged: {code} ");
        assert!(log.contains(&said), "{trouble}: {said} is not in the log");
    }
}

/// A fault may spare a transaction's first log row and fail a later one. So the later row must be in a block, too.
#[test]
fn a_log_that_fails_only_sometimes_harms_nobody() {
    for fault in [
        "alter table oddscache.change_log add check (op <> 'DELETE')",
        "create unique index on oddscache.change_log (op)",
        "create function bad() returns trigger language plpgsql as $$ begin if new.op = 'DELETE' then raise 'not today'; end if; return new; end $$;
         create trigger bad before insert on oddscache.change_log for each row execute function bad()",
        "create rule r as on insert to oddscache.change_log where new.op = 'DELETE' do instead insert into oddscache.log_horizon values (null, null)",
        "alter table oddscache.change_log add odd int generated always as (1 / (length('TRUNCATE') - length(op))) stored",
    ] {
        let db = installed();
        db.psql(fault);
        db.psql(
            "begin; update events set name = 'a' where id = 1; update events set name = 'b' where id = 1; delete from events where id = 2;
             update events set name = 'c' where id = 1; delete from events where id = 3; truncate market_odds; insert into events values (4); commit",
        );
        assert_eq!(db.psql("select string_agg(id || coalesce(name, ''), ',' order by id) from events"), "1c,4", "{fault}");
        let rows = log(&db);
        assert_eq!(rows[0], "events UPDATE 1", "{fault}");
        if fault.contains("check") {
            // The next row after a lost one asks for everything.
            assert!(rows.iter().any(|row| *row == format!("odds_snapshots {EARLIER}")), "{fault}: {rows:?}");
        }
    }
}

/// After a transaction's first rows, the right to write more is revoked. No lock prevents that.
#[tokio::test]
async fn rights_lost_in_the_middle_of_a_transaction() {
    for [take, give] in cases(
        "revoke insert on oddscache.change_log from {owner} => grant insert on oddscache.change_log to {owner}
         alter schema oddscache rename to elsewhere => alter schema elsewhere rename to oddscache",
    ) {
        let (db, owner, session) = owned().await;
        session.run("begin; update events set name = 'a'; update events set name = 'b'; update events set name = 'c'").await;
        db.psql(&take.replace("{owner}", &owner));
        session
            .run("update events set name = 'd'; truncate market_odds")
            .await;
        db.psql(&give.replace("{owner}", &owner));
        session.run("update events set name = 'e'; commit").await;
        assert_eq!(db.psql("select distinct name from events"), "e");
        let rows = log(&db);
        assert_eq!(rows[..3], ["events UPDATE 1,2,3"; 3]);
        assert_eq!(rows[3..], [format!("events {EARLIER}")]);
    }
}

/// DDL on the log makes a transaction wait for half a second once: not for ever, and not for each statement.
#[tokio::test]
async fn a_locked_log_delays_a_writer_once() {
    let db = installed();
    let (admin, writer) = open_two(&db).await;
    admin
        .run("begin; lock table oddscache.change_log in access exclusive mode")
        .await;
    let start = Instant::now();
    writer.run("begin").await;
    for n in 0..20 {
        writer
            .run(&format!("update events set name = '{n}' where id = 1"))
            .await;
    }
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(450) && waited < Duration::from_secs(5),
        "{waited:?}"
    );
    // The writer's own setting is unchanged.
    assert_eq!(writer.value("show lock_timeout").await, "0");
    admin.run("rollback").await;
    writer
        .run("update events set name = 'x' where id = 1; commit")
        .await;
    assert_eq!(log(&db), [format!("events {EARLIER}")]);
}

#[tokio::test]
async fn an_error_in_the_notification_does_not_fail_the_writer() {
    let db = installed();
    let listener = open(&db).await;
    listener.wait_for_notifications("oddscache").await;
    db.psql("revoke execute on function pg_notify(text, text) from public; alter function oddscache.log_change() owner to current_user");
    let owner = format!("owner_{}", db.name);
    db.psql(&format!("create role {owner}; grant usage on schema oddscache to {owner}; grant insert on oddscache.change_log to {owner};
        grant create on schema oddscache to {owner}; alter function oddscache.log_change() owner to {owner}"));
    db.logs(
        "begin; update events set name = 'x'; update events set name = 'y'; commit
         => events UPDATE 1,2,3; events UPDATE 1,2,3",
    );
    assert!(server_log().contains("oddscache: no notification for public.events: 42501"));
}

#[tokio::test]
async fn only_cancelling_ends_the_statement() {
    let db = installed();
    let (admin, writer) = open_two(&db).await;
    admin
        .run("begin; lock table oddscache.change_log in access exclusive mode")
        .await;
    writer
        .fails("set statement_timeout = '100ms'; update events set name = 'x' => 57014")
        .await;
    admin.run("rollback").await;
    writer.run("update events set name = 'x'").await;
    assert_eq!(log(&db), ["events UPDATE 1,2,3"]);
}

/// After an error in the keys, a row outside of a block kept the lock_timeout of half a second. A longer wait then
/// failed the statement.
#[test]
fn rows_outside_of_a_block_wait_for_the_disk_also_after_trouble() {
    let db = installed();
    db.psql(
        "do $$ begin execute replace(pg_get_functiondef('oddscache.log_change()'::regprocedure), 'INSERT INTO oddscache.change_log',
             'perform set_config(''test.seen'', concat_ws('' '', current_setting(''test.seen'', true), current_setting(''lock_timeout''),
                  left(trouble, 5)), false); INSERT INTO oddscache.change_log'); end $$",
    );
    let update = "update events set kickoff = kickoff; ";
    let seen = db.psql(&format!(
        "begin; {} alter table market_odds rename column snapshot_id to sid; update market_odds set id = id; {update} commit;
         select current_setting('test.seen')",
        update.repeat(5),
    ));
    assert_eq!(seen, "500ms 500ms 500ms 500ms 0 0 42703 0");
}
