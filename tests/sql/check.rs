//! check.sql: each fault has its line, and a sound feed has none.

use super::*;

fn sound() -> (Database, String) {
    let db = installed();
    let role = cache_role(&db);
    run(&db, Script::Indexes, &[]);
    (db, role)
}

#[tokio::test]
async fn a_sound_feed_has_no_warning() {
    let (db, role) = sound();
    let before = db.psql("select pg_current_xact_id_if_assigned() is null");
    for report in [
        check_role(&db, &role),
        apply(&db, Script::Check, &[("role", &role)]).await,
    ] {
        report.is_sound();
        assert_eq!(report.matches("trigger|").count(), 9, "{report}");
    }
    assert_eq!(before, "t");
    // The cache's role can run it, too.
    let report = run_by(true, &role, &db, Script::Check, &[("role", &role)]).await;
    for line in report.lines() {
        let row: Vec<&str> = line.split('|').collect();
        // Before PostgreSQL 15, PUBLIC can create tables in schema public by default.
        let is_default = row[1] == "schema public" && row[3] == "info";
        assert!(row[3] == "ok" || is_default, "{row:?}");
    }
}

/// The repair that a line of the report names.
#[track_caller]
fn fix_of(line: &str) -> &str {
    line.rsplit_once('|').unwrap().1
}

/// Does what the report says: runs the script that it names, or the statement.
fn repair(db: &Database, role: &str, fix: &str) {
    match Script::ALL.iter().find(|script| script.file_name() == fix) {
        Some(script) => {
            run(db, *script, &settings_of(*script, &[("role", role)]));
        }
        None => drop(db.psql(fix)),
    }
}

/// A fault, the beginning of its line, and what repairs it: `-` if the report names nothing that could be run.
#[test]
fn each_fault_has_its_line_and_its_repair() {
    for [fault, line, fix] in cases(
        "
        drop trigger oddscache_insert on events => trigger|public.events|INSERT|FAIL|missing => install.sql
        drop trigger oddscache_insert on odds_snapshots_d1
            => trigger|public.odds_snapshots_d1|INSERT|FAIL|missing: statements that name this table => install.sql
        alter table odds_snapshots disable trigger oddscache_update
            => trigger|public.odds_snapshots|UPDATE|FAIL|disabled
            => ALTER TABLE public.odds_snapshots ENABLE ALWAYS TRIGGER oddscache_update
        alter table odds_snapshots_d2 disable trigger all
            => trigger|public.odds_snapshots_d2|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|disabled
            => ALTER TABLE public.odds_snapshots_d2 ENABLE ALWAYS TRIGGER oddscache_insert, ENABLE ALWAYS TRIGGER
        alter table market_odds disable trigger all; alter table market_odds enable trigger all
            => trigger|public.market_odds|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|not always enabled
            => ALTER TABLE public.market_odds ENABLE ALWAYS TRIGGER oddscache_insert, ENABLE ALWAYS TRIGGER
        alter table odds_snapshots_d1 disable trigger all; alter table odds_snapshots_d1 enable trigger all
            => trigger|public.odds_snapshots_d1|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|not always enabled
            => ALTER TABLE public.odds_snapshots_d1 ENABLE ALWAYS
        alter table events enable replica trigger oddscache_delete
            => trigger|public.events|DELETE|FAIL|enabled for replicas only
            => ALTER TABLE public.events ENABLE ALWAYS TRIGGER oddscache_delete
        drop trigger oddscache_truncate on market_odds; create trigger oddscache_truncate after truncate on market_odds execute function oddscache.log_change('events'); alter table market_odds enable always trigger oddscache_truncate
            => trigger|public.market_odds|TRUNCATE|FAIL|not as installed => install.sql
        create table odds_snapshots_d3 partition of odds_snapshots for values from ('2025-01-03') to ('2025-01-04')
            => trigger|public.odds_snapshots_d3|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|missing => install.sql
        create table child () inherits (market_odds); create table grandchild () inherits (child)
            => trigger|public.grandchild|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|missing => install.sql
        create table other (note text); create table child () inherits (market_odds, other)
            => trigger|public.child|parent|FAIL|inherits from public.other, too
            => ALTER TABLE public.child NO INHERIT public.other
        create table other (id int not null); alter table events inherit other
            => trigger|public.events|parent|FAIL|inherits from public.other, too
            => ALTER TABLE public.events NO INHERIT public.other
        create table both_kinds () inherits (events, competitor_events)
            => trigger|public.both_kinds|parents|FAIL|inherits from competitor_events and events => -
        alter table market_odds rename snapshot_id to snap
            => trigger|public.market_odds|column snapshot_id|FAIL|does not exist => -
        alter table market_odds rename to markets => trigger|public.market_odds|table|FAIL|does not exist => -
        create or replace function oddscache.feed_version() returns int language sql immutable as 'select 2'
            => feed|oddscache|feed_version()|warn|2, not 3: caches of this version still follow it => install.sql
        create or replace function oddscache.feed_version() returns int language sql immutable as 'select 1'
            => feed|oddscache|feed_version()|FAIL|1, not 3 => install.sql
        create or replace function oddscache.feed_version() returns int language sql immutable as 'select 4'
            => feed|oddscache|feed_version()|FAIL|4, not 3 => -
        drop function oddscache.feed_version() => feed|oddscache|feed_version()|FAIL| => install.sql
        drop table oddscache.change_log => feed|oddscache.change_log|table|FAIL|is missing => install.sql
        alter table oddscache.change_log set unlogged
            => feed|oddscache.change_log|table|FAIL|is UNLOGGED => ALTER TABLE oddscache.change_log SET LOGGED
        drop function oddscache.log_change() cascade
            => feed|oddscache.log_change()|function|FAIL|is missing => install.sql
        alter table oddscache.change_log add check (true) => feed|oddscache.change_log|as installed|warn| => -
        grant execute on function oddscache.prune(interval) to public
            => feed|oddscache.prune(interval)|EXECUTE|warn|is granted to PUBLIC
            => REVOKE EXECUTE ON FUNCTION oddscache.prune(interval) FROM PUBLIC
        create role silent_1; do $$ begin execute format('alter role silent_1 in database %I set oddscache.notify = off', current_database()); end $$
            => feed|silent_1|notifications|warn| => ALTER ROLE silent_1 IN DATABASE
        delete from oddscache.log_state => log|oddscache.log_state|state|FAIL|0 rows => install.sql
        update oddscache.log_state set app_schema = 'other'
            => log|oddscache.log_state|state|FAIL|serves schema other, not public => -
        insert into oddscache.change_log (xid, table_name, op, at) values ('3', 'events', 'UPDATE', now() - interval '2 days')
            => log|oddscache.change_log|backlog|warn|1 rows => -
        insert into oddscache.change_log (xid, table_name, op, note) values ('3', 'events', 'RESYNC', '42703 no such column')
            => log|events|RESYNC|warn|1 times => -
        drop index odds_snapshots_oddscache_latest
            => index|public.odds_snapshots|event_id, bookmaker_id, id DESC|warn|missing => indexes.sql
        create role low; grant create on schema oddscache to low; alter function oddscache.log_change() owner to low
            => feed|oddscache.log_change()|writes to the log|FAIL| => GRANT USAGE ON SCHEMA oddscache TO low; GRANT INSERT
        revoke select on events from {role}
            => right|public.events|SELECT|FAIL|{role} lacks it => GRANT SELECT ON public.events TO {role}
        revoke usage on schema oddscache from {role}
            => right|schema oddscache|USAGE|FAIL|{role} lacks it => GRANT USAGE ON schema oddscache TO {role}
        revoke execute on function oddscache.heartbeat() from {role}
            => right|oddscache.heartbeat()|EXECUTE|warn|{role} may not => GRANT EXECUTE ON FUNCTION oddscache.heartbeat()
        alter table events enable row level security
            => right|public.events|row-level security|warn|{role} must see => ALTER ROLE {role} BYPASSRLS
        ",
    ) {
        let (db, role) = sound();
        let named = |text: &str| text.replace("{role}", &role);
        let line = named(line);
        db.psql(&named(fault));
        let report = check_role(&db, &role);
        let found = report.line(&line);
        // The worst comes first.
        if line.contains("|FAIL|") {
            assert!(report.lines().next().unwrap().contains("|FAIL|"), "{report}");
        }
        if fix == "-" {
            continue;
        }
        let told = fix_of(found);
        assert!(told.starts_with(&named(fix)), "{fault}: {told}");
        repair(&db, &role, told);
        let report = check_role(&db, &role);
        assert!(!report.contains(&line), "{fault}: {told}: {report}");
    }
}

#[test]
fn check_reports_where_nothing_is_installed() {
    let db = app();
    run(&db, Script::Check, &[("role", "nobody_here")])
        .says("feed|oddscache|feed_version()|FAIL|")
        .says("feed|oddscache.change_log|table|FAIL|is missing")
        .says("trigger|public.events|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|missing")
        .says("right|nobody_here|role|warn|does not exist");
    run(&Database::empty(), Script::Check, &[])
        .says("trigger|public.events|table|FAIL|does not exist");
}

#[tokio::test]
async fn check_names_what_the_caller_may_not_read() {
    let (db, role) = sound();
    let nosy = format!("nosy_{}", db.name);
    db.psql(&format!(
        "create role {nosy} login; grant usage on schema oddscache to {nosy}"
    ));
    let report = run_by(true, &nosy, &db, Script::Check, &[("role", &role)]).await;
    let not_readable = format!("not readable by {nosy}");
    assert!(report.lines().any(|line| {
        let row: Vec<&str> = line.split('|').collect();
        row[0] == "log" && row[3] == "unknown" && row[4].starts_with(&not_readable)
    }));
}

/// A native subscription stops at a change of a table that its database lacks.
#[test]
fn check_names_publications_of_the_feed_with_a_way_out() {
    let (db, role) = sound();
    let check = || check_role(&db, &role);
    let line = |status: &str| format!("publication|p|publishes the feed|{status}|");
    db.psql("create publication p for table events");
    check().lacks("publication|");
    for [since, tables, way] in cases(
        "14 => table events, oddscache.change_log => ALTER PUBLICATION p DROP TABLE oddscache.change_log
         15 => tables in schema public, oddscache => ALTER PUBLICATION p DROP TABLES IN SCHEMA oddscache",
    ) {
        if server_version() < since.parse().unwrap() {
            continue;
        }
        db.psql(&format!(
            "drop publication p; create publication p for {tables}"
        ));
        check()
            .says(line("info"))
            .says(format!("; or here: {way}\n"));
        db.psql(way);
        assert!(!check().contains("publication|"), "{tables}");
    }
    db.psql("drop publication p; create publication p for all tables");
    let report = check();
    let told = report.line(line("info"));
    assert!(told.contains("No replication slot"), "{told}");
    // The statements for the subscriber create tables with the same columns.
    let (_, rest) = told.split_once("before anything else: ").unwrap();
    let (statements, _) = rest.split_once(" or here: ").unwrap();
    let subscriber = Database::empty();
    subscriber.psql(statements);
    let columns = "select string_agg(concat_ws(' ', c.relname, a.attname, a.atttypid::regtype, a.attnotnull), ', ' order by c.relname, a.attnum)
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'oddscache'::regnamespace and c.relkind = 'r'";
    assert_eq!(subscriber.psql(columns), db.psql(columns));
}

/// A server of its own: only `wal_level = logical` allows such a slot.
#[test]
fn a_slot_makes_a_publication_of_the_feed_a_warning() {
    let server = oddscache_testkit::cluster::Cluster::seeded(&["wal_level = logical"]);
    let psql = |args: &[&str]| server.psql_ok("postgres", args);
    psql(&["-c", "create publication p for all tables"]);
    psql(&[
        "-c",
        "select pg_create_logical_replication_slot('sub', 'pgoutput')",
    ]);
    Said(psql(&["-At", "-f", "sql/check.sql"]))
        .says("publication|p|publishes the feed|warn|")
        .says("may serve one: sub (not active)");
}

/// Triggers see null in a virtual column (PostgreSQL 18).
#[test]
fn a_virtual_key_column_is_a_failure() {
    let (db, role) = sound();
    if !server_has("a virtual column", 18) {
        return;
    }
    db.psql(
        "alter table market_odds add column snap bigint; update market_odds set snap = snapshot_id;
         alter table market_odds drop column snapshot_id;
         alter table market_odds add column snapshot_id bigint generated always as (snap) virtual",
    );
    let logged = logs(&db, "update market_odds set outcomes = '[1]'");
    assert!(logged[0].starts_with("market_odds RESYNC *"), "{logged:?}");
    let report = check_role(&db, &role);
    let line = "trigger|public.market_odds|column snapshot_id|FAIL|is a virtual generated column";
    db.psql(fix_of(report.line(line)));
    check_role(&db, &role).lacks("|column snapshot_id|FAIL|");
    db.logs("update market_odds set outcomes = '[1]' => market_odds UPDATE 1,2,3");
}
