//! A role that may write to the application's tables, NOTIFY, or read for the cache can do that and nothing else.

use std::time::Duration;

use oddscache_testkit::{
    eventually,
    followed::{Followed, run as run_on},
};

use super::*;

/// Creates a role with an application's rights on its tables and no others. The superuser then runs `more`.
fn writer(db: &Database, more: &str) -> String {
    let role = format!("writer_{}", db.name);
    db.psql(&format!(
        "create role {role} login; grant select, insert, update, delete, truncate on all tables in schema public to {role};
         grant usage on all sequences in schema public to {role}; {}",
        more.replace("{writer}", &role)
    ));
    role
}

/// Statements of every kind, and what they log.
const WORK: &str = "
    insert into odds_snapshots (event_id, bookmaker_id) values (1, 1), (3, 1) => odds_snapshots INSERT 1,3
    update market_odds set outcomes = '[]' where snapshot_id = 2 => market_odds UPDATE 2
    delete from competitor_market_odds where snapshot_id = 3 => competitor_market_odds DELETE 3
    truncate competitor_market_odds => competitor_market_odds TRUNCATE *
";

/// The statements.
fn work() -> Vec<&'static str> {
    cases(WORK).iter().map(|[sql, _]| *sql).collect()
}

/// What they log.
fn expected() -> Vec<&'static str> {
    cases(WORK).iter().map(|[_, row]| *row).collect()
}

/// Fails the test unless the session can do this work and it is logged.
async fn works(db: &Database, session: &Session) {
    for sql in work() {
        session.run(sql).await;
    }
    assert_eq!(log(db), expected());
}

#[tokio::test]
async fn a_writer_needs_no_right_on_the_feed_and_has_none() {
    let db = installed();
    let role = writer(&db, "");
    let session = open_as(&db, &role).await;
    works(&db, &session).await;
    for sql in [
        "select * from oddscache.change_log",
        "insert into oddscache.change_log (xid, table_name, op) values ('1', 'events', 'TRUNCATE')",
        "delete from oddscache.change_log",
        "truncate oddscache.change_log",
        "do $$ begin lock table oddscache.change_log in access share mode; end $$",
        "select * from oddscache.log_state",
        "update oddscache.log_state set pruned_below = '9999999999'",
        "insert into oddscache.log_horizon values ('9999999999', now())",
        "select oddscache.prune('0')",
        "select oddscache.heartbeat()",
        "select oddscache.resync('please')",
        "select oddscache.log_change()",
        "create table oddscache.mine ()",
        "create trigger mine after insert on events for each statement execute function oddscache.log_change('odds_snapshots')",
        "alter table events disable trigger oddscache_insert",
        "set session_replication_role = replica",
        "alter function oddscache.log_change() set search_path = public",
    ] {
        assert_eq!(session.code(sql).await, "42501", "{sql}");
    }
    // An administrator may grant USAGE on the schema, to let a role read the version. That opens nothing else.
    db.psql(&format!("grant usage on schema oddscache to {role}"));
    session.run("select oddscache.feed_version()").await;
    for sql in [
        "select * from oddscache.change_log",
        "select * from oddscache.log_state",
        "select oddscache.prune('0')",
        "select oddscache.heartbeat()",
        "select oddscache.resync()",
        "create temp table t (id int); create trigger mine after insert on t for each statement execute function oddscache.log_change('events')",
    ] {
        assert_eq!(session.code(sql).await, "42501", "{sql}");
        session.run("drop table if exists t").await;
    }
    assert_eq!(log(&db), expected());
}

/// Schemas to put before pg_catalog in the search path. Their objects have the names that the trigger function uses.
/// Each would make its writer a superuser if it ran as the function's owner.
const TRAPS: &str = r#"
    create schema {writer}_trap authorization {writer};
    set role {writer};
    set search_path = {writer}_trap;
    create function sprung(how text) returns void language plpgsql as $$
    begin
        -- Running as the writer itself is harmless. With another role's rights the trap has sprung.
        if current_user <> '{writer}' then
            execute 'alter role {writer} superuser';
            insert into {writer}_trap.caught values (how, current_user);
        end if;
    end $$;
    create table caught (how text, who text);
    grant all on caught to public; grant usage on schema {writer}_trap to public;
    create table change_log (xid xid8, id bigint, table_name text, op text, keys bigint[], note text, at timestamptz);
    create table log_state (one boolean, pruned_below xid8, app_schema text, channel text, pruned_at timestamptz);
    grant all on change_log, log_state to public;
    create table pg_class (oid oid, relhastriggers bool, relhasrules bool, relrowsecurity bool, relchecks int, relnatts int);
    create table pg_index (indrelid oid);
    grant all on pg_class, pg_index to public;
    create function current_setting(text, boolean) returns text language plpgsql as $$ begin perform {writer}_trap.sprung('current_setting'); return ''; end $$;
    create function pg_current_xact_id() returns xid8 language plpgsql as $$ begin perform {writer}_trap.sprung('xact'); return '3'; end $$;
    create function pg_current_xact_id_if_assigned() returns xid8 language plpgsql as $$ begin perform {writer}_trap.sprung('xact'); return '3'; end $$;
    create function pg_notify(text, text) returns void language plpgsql as $$ begin perform {writer}_trap.sprung('notify'); end $$;
    create function pg_notification_queue_usage() returns float8 language plpgsql as $$ begin perform {writer}_trap.sprung('queue'); return 0; end $$;
    create function set_config(text, text, boolean) returns text language plpgsql as $$ begin perform {writer}_trap.sprung('set_config'); return ''; end $$;
    create function has_table_privilege(oid, text) returns bool language plpgsql as $$ begin perform {writer}_trap.sprung('privilege'); return true; end $$;
    create function clock_timestamp() returns timestamptz language plpgsql as $$ begin perform {writer}_trap.sprung('clock'); return pg_catalog.now(); end $$;
    create function cardinality(bigint[]) returns int language plpgsql as $$ begin perform {writer}_trap.sprung('cardinality'); return 1; end $$;
    create function lower(text) returns text language plpgsql as $$ begin perform {writer}_trap.sprung('lower'); return $1; end $$;
    create function text_eq(text, text) returns bool language plpgsql as $$ begin perform {writer}_trap.sprung('text ='); return $1 operator(pg_catalog.=) $2; end $$;
    create operator = (leftarg = text, rightarg = text, function = text_eq);
    create function text_cat(text, text) returns text language plpgsql as $$ begin perform {writer}_trap.sprung('text ||'); return $1 operator(pg_catalog.||) $2; end $$;
    create operator || (leftarg = text, rightarg = text, function = text_cat);
    create function int_gt(int, int) returns bool language plpgsql as $$ begin perform {writer}_trap.sprung('int >'); return $1 operator(pg_catalog.>) $2; end $$;
    create operator > (leftarg = int, rightarg = int, function = int_gt);
    create function float_lt(float8, float8) returns bool language plpgsql as $$ begin perform {writer}_trap.sprung('float <'); return $1 operator(pg_catalog.<) $2; end $$;
    create operator < (leftarg = float8, rightarg = float8, function = float_lt);
    create type bigint as (x int); create domain text as pg_catalog.text;
    create function array_agg_one(pg_catalog.int8[], pg_catalog.int8) returns pg_catalog.int8[] language sql as
        'select array[666::pg_catalog.int8]';
    create aggregate array_agg(pg_catalog.int8) (sfunc = array_agg_one, stype = pg_catalog.int8[]);
    reset role;
"#;

/// A session's means to change what names mean: its search path, temporary objects, and the feed's own settings.
/// Temporary objects come first unless the search path names pg_temp.
const SESSION: &str = "set search_path = {writer}_trap, pg_temp, public, pg_catalog;
    create temp table new_rows (id int, event_id int, snapshot_id bigint, betpawa_event_id int, competitor_event_id int);
    create temp table old_rows (like new_rows); insert into new_rows values (666, 666, 666, 666, 666);
    insert into old_rows select * from new_rows; grant all on new_rows, old_rows to public;
    create temp table change_log (xid xid8, id bigint, table_name pg_catalog.text, op pg_catalog.text, keys pg_catalog.int8[], note pg_catalog.text, at timestamptz);
    create temp table log_state (like {writer}_trap.log_state); create temp table pg_class (oid oid);
    grant all on change_log, log_state, pg_class to public";

/// The traps work: they catch a function that does not pin its search path.
#[tokio::test]
async fn the_traps_catch_a_careless_function() {
    let db = installed();
    let role = writer(&db, TRAPS);
    db.psql(&format!(
        "create function public.careless() returns pg_catalog.text language plpgsql security definer as
             $$ begin return pg_catalog.concat(lower('X'), cardinality(array[1, 2]::pg_catalog.int8[])); end $$;
         grant execute on function public.careless() to {role}"
    ));
    let session = open_as(&db, &role).await;
    session.run(&SESSION.replace("{writer}", &role)).await;
    session.run("select public.careless()").await;
    assert_ne!(
        db.psql(&format!("select count(*) from {role}_trap.caught")),
        "0"
    );
    db.answers(&format!(
        "select rolsuper from pg_roles where rolname = '{role}' => t"
    ));
    db.psql(&format!("alter role {role} nosuperuser"));
}

#[tokio::test]
async fn a_search_path_changes_nothing() {
    let db = installed();
    let role = writer(&db, TRAPS);
    let session = open_as(&db, &role).await;
    session.run(&SESSION.replace("{writer}", &role)).await;
    // Once each statement alone, and once all in one transaction. There the later rows take another path in the
    // function.
    works(&db, &session).await;
    let all = work().join("; ");
    session.run(&format!("begin; {all}; commit")).await;
    let mut rows = expected();
    // The second time there are no rows left to delete.
    rows.extend(expected().into_iter().filter(|row| !row.contains("DELETE")));
    assert_eq!(log(&db), rows);
    // The same holds for the functions that a role may call by name.
    db.psql(&format!(
        "grant usage on schema oddscache to {role}; grant execute on all functions in schema oddscache to {role}"
    ));
    session
        .run("select oddscache.heartbeat(); select oddscache.resync('why'); select oddscache.prune('1 hour'); select oddscache.prune('0')")
        .await;
    assert_nothing_caught(&db, &role, &session).await;
}

async fn assert_nothing_caught(db: &Database, role: &str, session: &Session) {
    let caught = db.psql(&format!(
        "select count(*), (select rolsuper from pg_roles where rolname = '{role}') from {role}_trap.caught"
    ));
    assert_eq!(caught, "0|f");
    let own = "select (select pg_catalog.count(*) from pg_temp.change_log), (select pg_catalog.count(*) from {writer}_trap.change_log),
        (select pg_catalog.count(*) from pg_temp.log_state)";
    let own = session.rows(&own.replace("{writer}", role)).await.unwrap();
    assert_eq!(own, [["0", "0", "0"]]);
}

/// In `public`, which is in the default search path of every role.
#[tokio::test]
async fn objects_in_public_change_nothing() {
    let db = installed();
    let role = writer(
        &db,
        "grant create on schema public to {writer}; create table caught (who text); grant all on caught to public;",
    );
    let session = open_as(&db, &role).await;
    // These signatures are more specific than those of pg_catalog, so an unpinned search path would prefer them.
    session
        .run(&format!(
            "create function public.trap(int, bigint) returns bool language plpgsql as $$ begin
                 if current_user <> '{role}' then insert into public.caught values (current_user); end if; return true; end $$;
             create operator public.= (leftarg = int, rightarg = bigint, function = public.trap);
             create operator public.> (leftarg = int, rightarg = bigint, function = public.trap);
             create function public.left(varchar, int) returns text language plpgsql as $$ begin
                 insert into public.caught values (current_user); return 'x'; end $$;
             create function public.pg_notify(varchar, varchar) returns void language plpgsql as $$ begin
                 insert into public.caught values (current_user); end $$;
             create type public.kind as enum ('one'); create function public.to_kind(text) returns public.kind
                 language plpgsql as $$ begin insert into public.caught values (current_user); return 'one'; end $$"
        ))
        .await;
    works(&db, &session).await;
    // The administrator and the cache call these with the default search path.
    let cache = format!("cache_{}", db.name);
    run(&db, Script::Grants, &[("role", &cache), ("prune", "on")]);
    let reader = open_as(&db, &cache).await;
    reader
        .run("select oddscache.heartbeat(); select oddscache.prune('0'); select oddscache.prune()")
        .await;
    db.psql("select oddscache.resync('x')");
    check(&db);
    run(&db, Script::Install, &[]);
    assert_eq!(db.psql("select count(*) from public.caught"), "0");
}

/// Only the owner of a type can create a cast or an operator for it, and so for a key column. The function that runs it
/// has the rights of the tables' owner, who is no superuser.
#[tokio::test]
async fn the_function_has_the_rights_of_the_tables_owner_and_no_more() {
    let (db, owner, installer) = owned().await;
    assert_eq!(
        db.psql(
            "select string_agg(distinct p.proowner::regrole::text || ' ' || r.rolsuper, ',')
               from pg_proc p join pg_roles r on r.oid = p.proowner where p.pronamespace = 'oddscache'::regnamespace"
        ),
        format!("{owner} false")
    );
    let role = writer(&db, "");
    let session = open_as(&db, &role).await;
    works(&db, &session).await;
    // SET ROLE, in either direction, changes neither the role that logs nor the log row.
    db.psql(&format!(
        "grant {role} to {owner}; alter role {role} set oddscache.notify = off"
    ));
    installer
        .run(&format!("set role {role}; {}", work()[1]))
        .await;
    assert_eq!(log(&db).last().unwrap(), expected()[1]);
    installer
        .fails("select * from oddscache.change_log => 42501")
        .await;
    installer
        .run(&format!("reset role; {}; set role none", work()[1]))
        .await;
    assert_eq!(log(&db).len(), work().len() + 2);
}

/// A transaction can forge the setting in which the trigger function keeps its state. That harms only the transaction's
/// own log rows, and never fails its statements.
#[tokio::test]
async fn a_forged_setting_harms_nobody_else() {
    let db = installed();
    let role = writer(&db, "");
    let session = open_as(&db, &role).await;
    let state = "'oddscache.log_oddscache'";
    for forged in ["plain", "logged", "lost", "", "x"] {
        session
            .run(&format!(
                "begin; select set_config({state}, pg_current_xact_id()::text || ' {forged}', false); {}; {}; commit",
                work()[0], work()[1]
            ))
            .await;
        session.run(work()[1]).await;
    }
    let rows = log(&db);
    assert_eq!(rows.len(), 15, "{rows:?}");
    let resyncs = rows.iter().filter(|row| row.contains("RESYNC"));
    assert_eq!(resyncs.count(), 1, "{rows:?}");
}

/// The cache's sessions use only pg_catalog and the schemas that they name, whatever the search path of their role has.
#[tokio::test]
async fn the_cache_is_not_led_astray_by_its_search_path() {
    let db = Database::seeded();
    let role = format!("cache_{}", db.name);
    db.psql(&format!(
        "create schema trap; create table trap.caught (how text); create role {role} login in role pg_read_all_stats;
         grant usage on schema trap to {role}; grant insert on trap.caught to {role};
         alter role {role} set search_path = trap, public, pg_catalog;
         create table trap.pg_class as select * from pg_class limit 0; create table trap.pg_inherits as select * from pg_inherits limit 0;
         create table trap.pg_trigger as select * from pg_trigger limit 0; create table trap.events as select * from events limit 0;
         create table trap.pg_namespace as select * from pg_namespace limit 0;
         grant select on all tables in schema trap to {role};
         create function trap.now() returns timestamptz language sql as $$ select '2001-01-01'::timestamptz $$;
         create function trap.md5(text) returns text language sql as $$ select 'x' $$;
         create function trap.format(text, variadic \"any\") returns text language internal as 'text_format';
         create function trap.pg_is_in_recovery() returns bool language sql as $$ select true $$;
         create function trap.pg_current_snapshot() returns pg_snapshot language sql as $$ select '3:3:'::pg_snapshot $$;
         create function trap.eq(oid, oid) returns bool language sql as $$ select false $$;
         create operator trap.= (leftarg = oid, rightarg = oid, function = trap.eq);
         create function trap.gt(timestamp, timestamp) returns bool language sql as $$ select false $$;
         create operator trap.> (leftarg = timestamp, rightarg = timestamp, function = trap.gt);
         create function trap.eq(int8, int8) returns bool language sql as $$ select false $$;
         create operator trap.= (leftarg = int8, rightarg = int8, function = trap.eq)"
    ));
    run(&db, Script::Grants, &[("role", &role), ("prune", "on")]);
    let dsn = cluster().dsn_as(&role, &db.name);
    let mut followed = Followed::with(&dsn, |config| config).await;
    followed.app = oddscache_testkit::connect(&db.dsn()).await;
    let before = followed.check("the seed").await;
    followed
        .run("delete from odds_snapshots where id = 112")
        .await;
    assert_ne!(before, followed.check("a change").await);
    assert_eq!(followed.cache.counters().reloads, 1);
    assert_eq!(db.psql("select count(*) from trap.caught"), "0");
}

/// Any role can notify, with any payload, as often as it likes. Each time the cache may read once more and find
/// nothing. It limits how often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_can_only_notify_harms_nothing() {
    let db = Database::seeded();
    let nobody = format!("nobody_{}", db.name);
    db.psql(&format!("create role {nobody} login"));
    let session = open_as(&db, &nobody).await;
    let followed = Followed::with(&db.dsn(), |config| {
        config.poll_interval(Duration::from_secs(1))
    })
    .await;
    eventually("the listener", async || {
        followed.cache.status() == oddscache::Status::Live
    })
    .await;
    let before = followed.check("the seed").await;
    let counters = followed.cache.counters();
    let json = r#"{"table": "events", "keys": null}"#;
    for payload in [
        "",
        "events",
        json,
        "events TRUNCATE *",
        "RESYNC",
        "1",
        "\u{1}\u{7f} é 💥",
    ] {
        session
            .run(&format!("select pg_notify('oddscache', '{payload}')"))
            .await;
    }
    // The longest payload: the server refuses one with a byte more.
    session
        .run("select pg_notify('oddscache', repeat('x', 7999))")
        .await;
    session
        .fails("select pg_notify('oddscache', repeat('x', 8000)) => 22023")
        .await;
    // Many notifications at once and one after the other, while the application writes.
    let notifying = tokio::spawn(async move {
        session
            .run("select pg_notify('oddscache', g || repeat('x', 500)) from generate_series(1, 5000) g")
            .await;
        for n in 0..5000 {
            session.run(&format!("notify oddscache, 'n{n}'")).await;
        }
    });
    for line in 0..20 {
        let sql = format!("update market_odds set line = {line} where snapshot_id = 112");
        run_on(&followed.app, &sql).await;
        followed.check(&sql).await;
    }
    notifying.await.unwrap();
    assert_ne!(before, followed.check("the notifications are over").await);
    let after = followed.cache.counters();
    // The cache read the application's 20 changes and nothing else, and did not reload. A heartbeat's row has no keys.
    assert_eq!((after.reloads - counters.reloads, after.failures), (0, 0));
    let heartbeats = db.psql("select count(*) from oddscache.change_log where op = 'HEARTBEAT'");
    let rows = after.log_rows - counters.log_rows;
    let expected = 20..=20 + heartbeats.parse::<u64>().unwrap();
    assert!(
        expected.contains(&rows),
        "{rows} rows, {heartbeats} heartbeats"
    );
    assert_eq!(followed.cache.view().epoch(), 1);
    // It did not read once for each notification.
    let reads = after.reads - counters.reads;
    assert!(reads < 5000, "{reads} reads");
}
