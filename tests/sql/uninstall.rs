//! uninstall.sql

use super::*;

#[tokio::test]
async fn uninstall_leaves_the_database_as_it_was() {
    for one_query in [false, true] {
        let db = app();
        db.psql(ROWS);
        let before = dump(&db);
        let role = format!("cache_{}", db.name);
        let settings = [("role", &*role)];
        for round in 0..2 {
            run(&db, Script::Install, &[]);
            run(&db, Script::Grants, &[("role", &role), ("prune", "on")]);
            run(&db, Script::Indexes, &[]);
            db.psql("update events set name = 'x'; select oddscache.prune('0')");
            assert_ne!(dump(&db), before);
            run_by(one_query, "postgres", &db, Script::Uninstall, &settings)
                .await
                .says("uninstalled: the feed in schema oddscache");
            assert_eq!(dump(&db), before, "round {round}");
            has_no_role(&db, &role);
            db.answers(
                "select count(*) from pg_shdepend where dbid = (select oid from pg_database where datname = current_database()) and deptype = 'a'
                 => 0",
            );
        }
        run(&db, Script::Uninstall, &[("role", &role)]).says("nothing to remove: ");
        // A session that wrote before can still write.
        db.psql("update events set name = 'y'");
    }
}

#[test]
fn half_an_installation_is_removed_too() {
    for fault in [
        "drop function oddscache.log_change() cascade",
        "drop table oddscache.change_log; drop table oddscache.log_state",
        "drop trigger oddscache_insert on events; alter table odds_snapshots detach partition odds_snapshots_d2; drop table odds_snapshots_d2;
         create table odds_snapshots_d2 partition of odds_snapshots for values from ('2025-01-02') to ('2025-01-03')",
        "drop function oddscache.prune(interval), oddscache.feed_version(); drop table oddscache.log_horizon",
        "drop schema oddscache cascade",
    ] {
        let db = app();
        let before = dump(&db);
        run(&db, Script::Install, &[]);
        db.psql(fault);
        run(&db, Script::Uninstall, &[]);
        assert_eq!(dump(&db), before, "{fault}");
    }
}

#[test]
fn a_detached_partition_loses_its_triggers_too() {
    let db = installed();
    db.psql("alter table odds_snapshots detach partition odds_snapshots_d1");
    run(&db, Script::Uninstall, &[]);
    db.answers("select count(*) from pg_trigger where not tgisinternal => 0");
}

#[test]
fn uninstall_keeps_and_names_what_is_not_the_feeds() {
    let db = installed();
    let role = format!("mine_{}", db.name);
    db.psql(&format!("create role {role}; create table oddscache.mine (); create index mine_idx on competitor_odds_snapshots (captured_at)"));
    run(&db, Script::Grants, &[("role", &role)]);
    run(&db, Script::Indexes, &[]);
    let settings = [("role", &*role), ("keep_indexes", "on")];
    run(&db, Script::Uninstall, &settings)
        .says("kept schema oddscache: it holds table oddscache.mine")
        .says(format!("kept role {role} with its rights"))
        .says(format!("REVOKE SELECT ON public.events FROM {role}"));
    db.answers(&format!(
        "select has_table_privilege('{role}', 'events', 'select'), has_table_privilege('{role}', 'events', 'update')
         => t|f",
    ));
    db.answers("select count(*) from pg_class where relname like '%oddscache_latest' => 5");
    run(&db, Script::Uninstall, &[("role", &role)])
        .says("dropped index public.odds_snapshots_oddscache_latest");
    assert_eq!(db.psql("select count(*) from pg_class where relname like '%oddscache_latest' union all select count(*) from pg_class where relname = 'mine_idx'"), "0\n1");
}

#[test]
fn a_role_still_used_elsewhere_is_kept_without_its_rights_here() {
    let (here, elsewhere) = (installed(), installed());
    let role = format!("cache_{}", here.name);
    for db in [&here, &elsewhere] {
        run(db, Script::Grants, &[("role", &role)]);
    }
    run(&here, Script::Uninstall, &[("role", &role)])
        .says(format!("kept role {role}, without the rights"))
        .says("DROP OWNED BY");
    let may_read = format!("select has_table_privilege('{role}', 'events', 'select')");
    here.answers(&format!("{may_read} => f"));
    elsewhere.answers(&format!("{may_read} => t"));
    run(&elsewhere, Script::Uninstall, &[("role", &role)]).says(format!("dropped role {role}"));
}

#[tokio::test]
async fn an_open_writer_makes_the_script_give_up_and_remove_nothing() {
    let db = installed();
    let before = dump(&db);
    let writer = open(&db).await;
    writer
        .run("begin; update odds_snapshots_d1 set bookmaker_id = 3")
        .await;
    fails(&db, Script::Uninstall, &[("lock_timeout", "300ms")]).says("55P03");
    assert_eq!(dump(&db), before);
}

/// No writer fails because the script drops the trigger's function at the same time.
#[tokio::test]
async fn writers_pass_through_install_and_uninstall() {
    let db = app();
    db.psql(ROWS);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (dsn, stop) = (db.dsn(), stop.clone());
            tokio::spawn(async move {
                let session = Session::open(&dsn).await;
                let mut done = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    session.run(&format!("begin; update odds_snapshots set last_confirmed_at = now() where event_id = {n};
                        insert into market_odds (snapshot_id) values ({n}); commit")).await;
                    done += 1;
                }
                done
            })
        })
        .collect();
    for _ in 0..5 {
        for script in [Script::Install, Script::Uninstall] {
            apply(&db, script, &[("lock_timeout", "30s")]).await;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
}

/// The hint must name a role that can drop it.
#[tokio::test]
async fn an_owner_who_did_not_create_the_role_reads_who_can_drop_it() {
    for one_query in [false, true] {
        let db = app();
        let owner = owner(&db);
        run_as(&owner, &db, Script::Install, &[]);
        let (role, maker) = (format!("cache_{}", db.name), format!("maker_{}", db.name));
        // The role's creator has no rights on the tables, so the owner runs grants.sql.
        db.psql(&format!(
            "create role {maker} login createrole; set role {maker}; create role {role} login; reset role;
             comment on role {role} is 'oddscache: made by grants.sql'"
        ));
        run_as(&owner, &db, Script::Grants, &[("role", &role)]);
        let asked = [("role", &*role)];
        let who = match server_version() {
            ..16 => "a role with CREATEROLE",
            _ => &maker,
        };
        run_by(one_query, &owner, &db, Script::Uninstall, &asked)
            .await
            .says("uninstalled: the feed in schema oddscache")
            .says(format!("HINT:  As a superuser or {who}: DROP ROLE {role};"));
        // Do what the hint says, as the role that it names.
        let maker = open_as(&db, &maker).await;
        maker.run(&format!("drop role {role}")).await;
    }
}

#[test]
fn a_right_of_another_grantor_stays_and_a_superuser_reads_how_to_take_it() {
    let db = app();
    let owner = owner(&db);
    run_as(&owner, &db, Script::Install, &[]);
    let role = format!("cache_{}", db.name);
    db.psql("revoke usage on schema public from public");
    // The superuser owns the schema, and so grants USAGE on it.
    run(&db, Script::Grants, &[("role", &role)]);
    let way = format!("As a superuser, in this database: DROP OWNED BY {role}; DROP ROLE {role};");
    run_as(&owner, &db, Script::Uninstall, &[("role", &role)]).says(way);
    db.psql(&format!("drop owned by {role}; drop role {role}"));
}

/// An index stays on a detached partition, also in another schema or under another name.
#[tokio::test]
async fn indexes_of_detached_partitions_are_dropped_too() {
    for one_query in [false, true] {
        let db = app();
        let owner = owner(&db);
        run_as(&owner, &db, Script::Install, &[]);
        run_as(&owner, &db, Script::Indexes, &[]);
        db.psql(&format!(
            "create schema archive authorization {owner}; create schema other; grant all on schema other to {owner}; set role {owner};
             alter table odds_snapshots detach partition odds_snapshots_d1; alter table odds_snapshots_d1 rename to old_d1;
             alter table odds_snapshots detach partition odds_snapshots_d2; alter table odds_snapshots_d2 set schema archive;
             -- Indexes of another feed, and of other applications.
             create table other.odds_snapshots (id int, event_id int, bookmaker_id int);
             create index odds_snapshots_oddscache_latest on other.odds_snapshots (event_id, bookmaker_id, id desc);
             create table other.detached (id int, event_id int, bookmaker_id int);
             create index detached_oddscache_latest on other.detached (event_id, bookmaker_id, id desc);
             create table archive.mine (id int, event_id int, bookmaker_id int);
             create index mine_latest on archive.mine (event_id, bookmaker_id, id desc);
             create index mine_oddscache_latest on archive.mine (event_id, id)"
        ));
        // Another owner's table in the application's schema.
        db.psql(
            "create table theirs (id int, event_id int, bookmaker_id int);
             create index theirs_oddscache_latest on theirs (event_id, bookmaker_id, id desc)",
        );
        let text = run_by(one_query, &owner, &db, Script::Uninstall, &[]).await;
        text.says("uninstalled: the feed in schema oddscache");
        db.answers(
            "select string_agg(oid::regclass::text, ' ' order by oid::regclass::text) from pg_class where relkind in ('i', 'I') and relname ~ 'latest'
             => archive.mine_latest archive.mine_oddscache_latest other.detached_oddscache_latest other.odds_snapshots_oddscache_latest theirs_oddscache_latest",
        );
        text.says("kept index public.theirs_oddscache_latest: public.theirs belongs to postgres")
            .says("As postgres or a superuser: DROP INDEX public.theirs_oddscache_latest;");
        run_as(&owner, &db, Script::Uninstall, &[]).says("nothing to remove: ");
    }
}

/// With keep_indexes, detached partitions keep their indexes, too.
#[test]
fn indexes_of_detached_partitions_are_kept_on_demand() {
    let db = installed();
    run(&db, Script::Indexes, &[]);
    db.psql("alter table odds_snapshots detach partition odds_snapshots_d1");
    run(&db, Script::Uninstall, &[("keep_indexes", "on")]);
    db.answers("select count(*) from pg_class where relname like '%oddscache_latest' => 5");
}
