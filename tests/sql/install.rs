//! install.sql

use super::*;

const CATALOG: &str = "select md5(string_agg(x, ',' order by x)) from (
    select 'trigger ' || oid || ' ' || xmin from pg_trigger
    union all select 'proc ' || oid || ' ' || xmin from pg_proc where pronamespace = 'oddscache'::regnamespace
    union all select 'class ' || c.oid || ' ' || c.xmin from pg_class c where relnamespace in ('oddscache'::regnamespace, 'public'::regnamespace)
    union all select 'schema ' || oid || ' ' || xmin from pg_namespace
    union all select 'state ' || xmin || ' ' || s::text from oddscache.log_state s
    union all select 'comment ' || xmin from pg_description where objoid > 16000) as q (x)";

#[test]
fn the_crate_and_the_script_have_the_same_version() {
    let db = installed();
    let version = oddscache::sql::FEED_VERSION;
    db.answers(&format!("select oddscache.feed_version() => {version}"));
    check(&db).says("feed|oddscache|feed_version()|ok|3|");
}

#[test]
fn install_creates_what_the_follower_expects() {
    let db = installed();
    assert_eq!(
        db.psql(
            "select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then ' not null' else '' end
                    || case a.attstorage when 'e' then ' external' else '' end, ', ' order by a.attnum)
               from pg_attribute a where a.attrelid = 'oddscache.change_log'::regclass and a.attnum > 0"
        ),
        "xid xid8 not null, id bigint not null, table_name text not null, op text not null, keys bigint[] external, note text, \
         at timestamp with time zone not null"
    );
    db.answers(
        "select app_schema, channel, pruned_below <= pg_snapshot_xmin(pg_current_snapshot()) from oddscache.log_state
         => public|oddscache|t",
    );
    // Exactly one row.
    let error = cluster()
        .psql(&db.name, &["-c", "insert into oddscache.log_state (pruned_below, app_schema, channel) values ('1', 'a', 'b')"])
        .unwrap();
    assert!(!error.status.success());
    db.answers(
        "
        select count(*), count(distinct tgrelid), bool_and(tgenabled = 'A'), bool_and(tgtype & 3 = 0) from pg_trigger where tgname like 'oddscache\\_%'
            => 36|9|t|t
        select count(*) from pg_proc where pronamespace = 'oddscache'::regnamespace and has_function_privilege('public', oid, 'execute')
            => 1
        ",
    );
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_locks_nothing() {
    let db = installed();
    let before = db.psql(CATALOG);
    // If the script locked any table, it would wait for this writer.
    let writer = open(&db).await;
    writer.run(&format!("begin; {ROWS_AGAIN}")).await;
    let text = run(&db, Script::Install, &[("lock_timeout", "100ms")]);
    text.says("already in place: feed version 3 in schema oddscache for the tables in schema public, channel oddscache, 36 triggers");
    assert_eq!(text.matches("NOTICE").count(), 1, "{text}");
    let text = apply(&db, Script::Install, &[("lock_timeout", "100ms")]).await;
    assert!(text.starts_with("NOTICE:  already in place"), "{text}");
    assert_eq!(text.matches("NOTICE").count(), 1, "{text}");
    assert_eq!(db.psql(CATALOG), before);
}

const ROWS_AGAIN: &str = "update events set name = 'x'; update odds_snapshots set bookmaker_id = 2; update market_odds set outcomes = '[]';
    update competitor_events set source = 'bet9ja'; update competitor_odds_snapshots set captured_at = now();
    update competitor_market_odds set outcomes = '[]'; update odds_snapshots_d2 set bookmaker_id = 2";

#[tokio::test]
async fn one_query_installs_the_same() {
    let (by_psql, by_query) = (app(), app());
    run(&by_psql, Script::Install, &[("channel", "it's")]);
    apply(&by_query, Script::Install, &[("channel", "it's")]).await;
    assert_eq!(dump(&by_psql), dump(&by_query));
}

#[test]
fn concurrent_runs_all_succeed() {
    let db = app();
    let texts: Vec<Said> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| run(&db, Script::Install, &[])))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let say = |words: &str| texts.iter().filter(|text| text.contains(words)).count();
    assert_eq!(say("installed: feed version 3"), 1);
    assert_eq!(say("already in place: feed version 3"), 7);
    db.answers("select count(*) from pg_trigger where tgname like 'oddscache\\_%' => 36");
}

#[tokio::test]
async fn odd_names_are_quoted() {
    let (app_schema, cache_schema) = (
        "We\"ird sch'ema",
        "Odd \\ ca'che % \"1\" é, longer than a trigger name can be",
    );
    let role = "the \"role's\"";
    let channel = "a 'channel' \\";
    let settings = [
        ("app_schema", app_schema),
        ("cache_schema", cache_schema),
        ("channel", channel),
        ("role", role),
        ("prune", "on"),
    ];
    for one_query in [false, true] {
        let db = Database::empty();
        db.psql("create schema \"We\"\"ird sch'ema\"");
        db.psql(&format!(
            "set search_path = \"We\"\"ird sch'ema\"; {APP} {ROWS}"
        ));
        let before = dump(&db);
        for script in IN_ORDER {
            let settings = settings_of(script, &settings);
            let text = run_by(one_query, "postgres", &db, script, &settings).await;
            if script == Script::Check {
                text.is_sound();
            }
            if script == Script::Install {
                let mut listener = open(&db).await;
                listener.run("listen \"a 'channel' \\\"").await;
                listener.wait_for_notifications(cache_schema).await;
                db.psql("update \"We\"\"ird sch'ema\".events set name = 'x' where id = 2");
                let heard = listener.notifications.recv().await.unwrap();
                assert_eq!(heard, format!("{channel}:"));
                let quoted = cache_schema.replace('"', "\"\"");
                let logged = format!("select table_name, keys from \"{quoted}\".change_log");
                assert_eq!(db.psql(&logged), "events|{2}");
            }
        }
        assert_eq!(dump(&db), before);
    }
}

#[test]
fn install_repairs_what_is_wrong() {
    let db = installed();
    db.psql(
        "drop trigger oddscache_insert on events;
         alter table market_odds disable trigger oddscache_update;
         alter table market_odds enable replica trigger oddscache_insert;
         alter table odds_snapshots enable trigger oddscache_delete;
         create function other() returns trigger language plpgsql as 'begin return null; end';
         drop trigger oddscache_truncate on competitor_events;
         create trigger oddscache_truncate after truncate on competitor_events for each statement execute function other();
         drop trigger oddscache_delete on competitor_events;
         create trigger oddscache_delete after delete on competitor_events referencing old table as old_rows for each statement
            execute function oddscache.log_change('events');
         create table odds_snapshots_d3 partition of odds_snapshots for values from ('2025-01-03') to ('2025-01-04');
         create table odds_snapshots_d4 partition of odds_snapshots for values from ('2025-01-04') to ('2025-01-05') partition by list (id);
         create table odds_snapshots_d4_1 partition of odds_snapshots_d4 for values in (77);
         create or replace function oddscache.log_change() returns trigger language plpgsql as 'begin return null; end';
         grant execute on function oddscache.log_change() to public; grant insert on oddscache.change_log to public;
         delete from oddscache.log_state;",
    );
    run(&db, Script::Install, &[])
        .says("put 1 triggers on public.events")
        .says("put 2 triggers on public.market_odds")
        .says("put 1 triggers on public.odds_snapshots\n")
        .says("put 2 triggers on public.competitor_events")
        .says("put 4 triggers on public.odds_snapshots_d3")
        .says("put 4 triggers on public.odds_snapshots_d4\n")
        .says("put 4 triggers on public.odds_snapshots_d4_1")
        .says("created function oddscache.log_change()")
        .says("installed: feed version 3");
    run(&db, Script::Install, &[]).says("already in place");
    check(&db)
        .lacks("|FAIL|")
        .lacks("trigger|public.odds_snapshots_d3|INSERT|");
    db.logs(
        "insert into odds_snapshots_d4_1 (id, event_id, bookmaker_id, captured_at) values (77, 3, 1, '2025-01-04')
         => odds_snapshots INSERT 3",
    );
    assert_eq!(
        logs(&db, "truncate competitor_events cascade")[0],
        "competitor_events TRUNCATE *"
    );
    db.answers(
        "select has_function_privilege('public', 'oddscache.log_change()', 'execute'), has_table_privilege('public', 'oddscache.change_log', 'insert')
         => f|f",
    );
}

#[test]
fn a_changed_channel_is_taken_up() {
    let db = installed();
    run(&db, Script::Install, &[("channel", "other")])
        .says("installed: feed version 3")
        .says("channel other, 36 triggers");
    assert_eq!(db.psql("select channel from oddscache.log_state"), "other");
    assert!(
        db.psql("\\sf oddscache.log_change()")
            .contains("pg_notify('other', '')")
    );
}

#[tokio::test]
async fn an_open_writer_makes_the_script_give_up_and_leave_nothing() {
    let db = app();
    db.psql(ROWS);
    let before = dump(&db);
    let writer = open(&db).await;
    writer
        .run("begin; update market_odds set outcomes = '[]'")
        .await;
    fails(&db, Script::Install, &[("lock_timeout", "300ms")])
        .says("55P03")
        .says("public.market_odds");
    let text = Script::Install.fill(&[("lock_timeout", "300ms")]).unwrap();
    assert_eq!(open(&db).await.code(&text).await, "55P03");
    assert_eq!(dump(&db), before);
    writer.run("rollback").await;
    run(&db, Script::Install, &[]);
}

/// A deadlock: the script holds a lock on `events`, which a writer waits for, and then waits for the writer's table.
/// After deadlock_timeout the server would cancel the writer, which waited first. So the script must give way before
/// that.
#[tokio::test]
async fn a_writer_in_another_order_gets_through() {
    for script in [Script::Install, Script::Uninstall] {
        let db = match script {
            Script::Install => app(),
            _ => installed(),
        };
        let (writer, other) = open_two(&db).await;
        writer.run("begin; insert into competitor_market_odds (outcomes, snapshot_id) select '[]', 1 where false").await;
        other
            .run("begin; insert into market_odds (snapshot_id) values (1)")
            .await;
        let path = db.clone();
        let running =
            tokio::task::spawn_blocking(move || run(&path, script, &[("lock_timeout", "20s")]));
        let holds = "select exists (select from pg_locks h where h.relation = 'events'::regclass and h.granted
            and h.mode in ('ShareRowExclusiveLock', 'AccessExclusiveLock')";
        until(&db, &format!("{holds} and exists (select from pg_locks w where w.pid = h.pid and w.relation = 'market_odds'::regclass and not w.granted))")).await;
        let wants_events = tokio::spawn(async move {
            writer.run("insert into events values (100)").await;
            writer.run("commit").await;
        });
        until(&db, "select exists (select from pg_locks w where w.relation = 'events'::regclass and not w.granted and w.mode = 'RowExclusiveLock') 
            or exists (select from events where id = 100)").await;
        other.run("commit").await;
        wants_events.await.unwrap();
        running.await.unwrap();
        assert_eq!(db.psql("select count(*) from events where id = 100"), "1");
    }
}

#[test]
fn install_names_what_is_missing() {
    let db = app();
    fails(&db, Script::Install, &[("app_schema", "elsewhere")])
        .says("schema elsewhere does not exist")
        .says("--app-schema");
    db.psql("create schema elsewhere");
    fails(&db, Script::Install, &[("app_schema", "elsewhere")])
        .says("elsewhere.competitor_events is missing");
    db.psql("drop schema elsewhere; alter table market_odds rename snapshot_id to snapshot; alter table events rename to games;
             create view events as select * from games; alter table competitor_odds_snapshots drop competitor_event_id, add competitor_event_id text");
    fails(&db, Script::Install, &[])
        .says("public.market_odds has no column snapshot_id")
        .says("public.events is not a table")
        .says("public.competitor_odds_snapshots has column competitor_event_id of type text");
    db.psql("alter table market_odds rename snapshot to snapshot_id; drop view events; alter table games rename to events;
             alter table competitor_odds_snapshots alter competitor_event_id type int using null");
    let before = dump(&db);
    for [name, value] in cases(
        "cache_schema => public
         cache_schema =>
         cache_schema => pg_odds
         channel =>
         lock_timeout => soon",
    ) {
        let named = if value.is_empty() { name } else { value };
        fails(&db, Script::Install, &[(name, value)]).says(named);
    }
    assert_eq!(dump(&db), before);
}

#[test]
fn a_feed_serves_one_schema_and_two_can_live_side_by_side() {
    let db = installed();
    db.psql(&format!(
        "create schema second; set search_path = second; {APP}"
    ));
    fails(&db, Script::Install, &[("app_schema", "second")])
        .says("serves the tables in public, not in second")
        .says("--cache-schema");
    let settings = [("app_schema", "second"), ("cache_schema", "second_cache")];
    run(&db, Script::Install, &settings);
    // Two feeds on the same tables.
    run(&db, Script::Install, &[("cache_schema", "blue")]);
    db.logs("update events set name = 'x' where id = 1 => events UPDATE 1");
    assert_eq!(db.psql("select count(*) from blue.change_log union all select count(*) from second_cache.change_log"), "1\n0");
    run(&db, Script::Uninstall, &[("cache_schema", "blue")]);
    db.logs("update events set name = 'x' where id = 1 => events UPDATE 1");
}

/// A statement on a child fires no trigger of its parent. So each child gets its own, at every level, in every schema,
/// and with any further columns. A temporary child gets none, because no other session can read it.
#[tokio::test]
async fn children_are_covered_as_partitions_are() {
    let db = app();
    let own = open(&db).await;
    db.psql(ROWS);
    db.psql(
        "create schema far; create table far.child (more text) inherits (market_odds);
         create table far.grandchild () inherits (far.child);
         create table joined (more int, like market_odds including defaults); alter table joined inherit market_odds;
         insert into far.child (snapshot_id) values (7); insert into far.grandchild (snapshot_id) values (8);
         insert into joined (id, snapshot_id) values (9, 9)",
    );
    let before = dump(&db);
    own.run("create temp table kept () inherits (market_odds)")
        .await;
    for child in ["far.child", "far.grandchild", "public.joined"] {
        check(&db).says(format!(
            "trigger|{child}|INSERT, UPDATE, DELETE, TRUNCATE|FAIL|missing"
        ));
    }
    run(&db, Script::Install, &[])
        .says("put 4 triggers on far.child")
        .says("put 4 triggers on far.grandchild")
        .says("put 4 triggers on public.joined")
        .lacks("kept");
    run(&db, Script::Install, &[]).says("already in place");
    check(&db).lacks("|FAIL|").lacks("kept");
    // A statement logs its keys once, whether it names the parent or a child.
    db.logs(
        "insert into far.grandchild (snapshot_id) values (80) => market_odds INSERT 80
         insert into joined (id, snapshot_id) values (90, 90) => market_odds INSERT 90
         update market_odds set outcomes = '[]' where snapshot_id > 3 => market_odds UPDATE 7,8,9,80,90
         update only market_odds set outcomes = '[]' where snapshot_id = 1 => market_odds UPDATE 1
         update far.child set snapshot_id = snapshot_id + 1 where snapshot_id < 9 => market_odds UPDATE 7,8,9
         delete from far.child where snapshot_id = 80 => market_odds DELETE 80
         truncate far.grandchild => market_odds TRUNCATE *",
    );
    own.run("insert into kept (snapshot_id) values (5)").await;
    run(&db, Script::Uninstall, &[]).says("dropped 4 triggers on far.grandchild");
    db.answers("select count(*) from pg_trigger where tgname like 'oddscache%' => 0");
    assert_eq!(dump(&db), before);
}

#[test]
fn a_log_of_another_cluster_is_discarded() {
    let db = installed();
    db.psql("insert into oddscache.change_log (xid, table_name, op) values ('999999999999', 'events', 'TRUNCATE');
             insert into oddscache.log_horizon values ('999999999999', now()); update oddscache.log_state set pruned_below = '999999999999'");
    check(&db)
        .says("log|oddscache.log_state|state|FAIL|holds transaction ids of another")
        .says("log|oddscache.change_log|transactions|FAIL|");
    run(&db, Script::Install, &[]).says("discarded the log of another cluster (1 rows)");
    check(&db).lacks("|FAIL|");
    assert_eq!(db.psql("select count(*) from oddscache.change_log"), "0");
}

/// The owner of the tables can run all scripts. The README recommends this role.
#[tokio::test]
async fn the_tables_owner_can_install_and_remove() {
    let db = Database::empty();
    let owner = format!("owner_{}", db.name);
    db.psql(&format!("create role {owner} login createrole; grant create on database {} to {owner}; grant create on schema public to {owner}; set role {owner}; {APP} {ROWS}", db.name));
    let before = dump(&db);
    let session = open_as(&db, &owner).await;
    let role = format!("cache_{}", db.name);
    for script in IN_ORDER {
        let settings = settings_of(script, &[("role", &role)]);
        session.script(script, &settings).await.unwrap().is_sound();
        if script == Script::Install {
            db.logs("update events set name = 'x' => events UPDATE 1,2,3");
        }
    }
    assert_eq!(dump(&db), before);
    has_no_role(&db, &role);
}

/// install.sql makes an older feed equal to a new one, and keeps its log and its channel.
#[tokio::test]
async fn older_versions_are_upgraded() {
    // Version 1 lacked this column and these functions.
    let to_version_1 = "alter table oddscache.log_state drop column pruned_at;
        drop function oddscache.heartbeat(), oddscache.resync(text);
        create or replace function oddscache.feed_version() returns integer language sql immutable parallel safe as 'select 1'";
    let version = "feed|oddscache|feed_version()|";
    let missing = "feed|oddscache.heartbeat()|function|FAIL|is missing|install.sql";
    let version_2 =
        format!("{version}warn|2, not 3: caches of this version still follow it|install.sql");
    let never_pruned = "log|oddscache.log_state|pruned|ok|never";
    is_upgraded("", [&version_2, never_pruned]).await;
    let version_1 = format!("{version}FAIL|1, not 3|install.sql");
    is_upgraded(to_version_1, [&version_1, missing]).await;
}

/// Upgrades a feed of version 2 that `change` made older. `lines` are in check.sql's report before.
async fn is_upgraded(change: &str, lines: [&str; 2]) {
    let (old, new) = (app(), installed());
    let script = "tests/sql/install_v2.sql";
    let version_2 = ["-v", "channel=old", "-f", script, "-c", change];
    oddscache_testkit::psql(&old.name, &version_2);
    old.psql(ROWS);
    let logged = log(&old);
    check(&old).says(lines[0]).says(lines[1]);
    // The script does not wait for a writer with an open transaction.
    let writer = open(&old).await;
    writer.run(&format!("begin; {ROWS_AGAIN}")).await;
    let settings = [("channel", "old"), ("lock_timeout", "100ms")];
    run(&old, Script::Install, &settings)
        .says("installed: feed version 3")
        .says("channel old");
    writer.run("update events set name = 'y'; commit").await;
    assert_eq!(log(&old)[..logged.len()], logged);
    assert!(log(&old).len() > logged.len());
    run(&old, Script::Install, &[]).says("changed table oddscache.change_log");
    same_dumps(&old, &new);
    run(&old, Script::Install, &[]).says("already in place");
    run(&old, Script::Uninstall, &[]);
    same_dumps(&old, &app());
}

#[test]
fn a_newer_feed_is_left_alone() {
    let db = installed();
    db.psql("create or replace function oddscache.feed_version() returns integer language sql as 'select 99'");
    let before = dump(&db);
    fails(&db, Script::Install, &[]).says("has version 99, and this script has version 3");
    assert_eq!(dump(&db), before);
    let db = installed();
    db.psql("alter table oddscache.change_log add column more int");
    fails(&db, Script::Install, &[])
        .says("is not the change log of feed version 3 (it has xid xid8,");
}

/// An object that another role planted in the feed's schema would run with the installing role's rights.
#[tokio::test]
async fn an_object_that_another_role_planted_is_refused() {
    for plant in [
        "create schema oddscache authorization {mallory}",
        "create schema oddscache; grant all on schema oddscache to {mallory}; set role {mallory};
         create function oddscache.feed_version() returns integer language plpgsql as $$
             begin alter role {mallory} superuser; return 1; end $$",
        "create schema oddscache; grant all on schema oddscache to {mallory}; set role {mallory};
         create table oddscache.log_state (one boolean, pruned_below xid8, app_schema text, channel text);
         create function oddscache.trap() returns trigger language plpgsql as $$
             begin alter role {mallory} superuser; return new; end $$;
         create trigger trap before insert on oddscache.log_state for each row execute function oddscache.trap()",
    ] {
        let db = app();
        let mallory = format!("mallory_{}", db.name);
        db.psql(&format!("create role {mallory} login"));
        db.psql(&plant.replace("{mallory}", &mallory));
        fails(&db, Script::Install, &[]).says(format!("belongs to {mallory}"));
        db.answers(&format!("select rolsuper from pg_roles where rolname = '{mallory}' => f"));
    }
}

fn same_dumps(one: &Database, other: &Database) {
    let (one, other) = (dump(one), dump(other));
    let differ = one.lines().zip(other.lines()).find(|(a, b)| a != b);
    assert_eq!(differ, None);
    assert_eq!(one.len(), other.len());
}
