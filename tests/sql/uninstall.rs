//! uninstall.sql

use super::*;

#[tokio::test]
async fn leaves_the_database_as_it_was() {
    for interpreter in [false, true] {
        let db = app();
        db.psql(ROWS);
        let before = dump(&db);
        let role = format!("cache_{}", db.name);
        for round in 0..2 {
            run(&db, Script::Install, &[]);
            run(&db, Script::Grants, &[("role", &role), ("prune", "on")]);
            run(&db, Script::Indexes, &[]);
            db.psql("update events set name = 'x'; select oddscache.prune('0')");
            assert_ne!(dump(&db), before);
            let text = match interpreter {
                true => apply(&db, Script::Uninstall, &[("role", &role)])
                    .await
                    .unwrap(),
                false => run(&db, Script::Uninstall, &[("role", &role)]),
            };
            assert!(text.contains("uninstalled|public|oddscache"), "{text}");
            assert_eq!(dump(&db), before, "round {round}");
            assert_eq!(
                db.psql(&format!(
                    "select count(*) from pg_roles where rolname = '{role}'"
                )),
                "0"
            );
            assert_eq!(db.psql("select count(*) from pg_shdepend where dbid = (select oid from pg_database where datname = current_database()) and deptype = 'a'"), "0");
        }
        assert!(run(&db, Script::Uninstall, &[("role", &role)]).contains("nothing to remove|"));
        // A session that wrote before goes on writing.
        db.psql("update events set name = 'y'");
    }
}

#[test]
fn half_an_installation_goes_too() {
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
fn a_detached_partition_is_cleaned_too() {
    let db = installed();
    db.psql("alter table odds_snapshots detach partition odds_snapshots_d1");
    run(&db, Script::Uninstall, &[]);
    assert_eq!(
        db.psql("select count(*) from pg_trigger where not tgisinternal"),
        "0"
    );
}

#[test]
fn keeps_what_is_not_the_feeds_and_says_so() {
    let db = installed();
    let role = format!("mine_{}", db.name);
    db.psql(&format!("create role {role}; create table oddscache.mine (); create index mine_idx on competitor_odds_snapshots (captured_at)"));
    run(&db, Script::Grants, &[("role", &role)]);
    run(&db, Script::Indexes, &[]);
    let text = run(
        &db,
        Script::Uninstall,
        &[("role", &role), ("keep_indexes", "on")],
    );
    assert!(
        text.contains("kept schema oddscache: it holds table oddscache.mine"),
        "{text}"
    );
    assert!(
        text.contains(&format!("kept role {role} with its rights"))
            && text.contains(&format!("REVOKE SELECT ON public.events FROM {role}")),
        "{text}"
    );
    assert_eq!(db.psql(&format!("select has_table_privilege('{role}', 'events', 'select'), has_table_privilege('{role}', 'events', 'update')")), "t|f");
    assert_eq!(
        db.psql("select count(*) from pg_class where relname like '%oddscache_latest'"),
        "5"
    );
    let text = run(&db, Script::Uninstall, &[("role", &role)]);
    assert!(
        text.contains("dropped index public.odds_snapshots_oddscache_latest"),
        "{text}"
    );
    assert_eq!(db.psql("select count(*) from pg_class where relname like '%oddscache_latest' union all select count(*) from pg_class where relname = 'mine_idx'"), "0\n1");
}

#[test]
fn a_role_still_used_elsewhere_is_kept_without_its_rights_here() {
    let (here, elsewhere) = (installed(), installed());
    let role = format!("cache_{}", here.name);
    for db in [&here, &elsewhere] {
        run(db, Script::Grants, &[("role", &role)]);
    }
    let text = run(&here, Script::Uninstall, &[("role", &role)]);
    assert!(
        text.contains(&format!("kept role {role}, without the rights"))
            && text.contains("DROP OWNED BY"),
        "{text}"
    );
    assert_eq!(
        here.psql(&format!(
            "select has_table_privilege('{role}', 'events', 'select')"
        )),
        "f"
    );
    assert_eq!(
        elsewhere.psql(&format!(
            "select has_table_privilege('{role}', 'events', 'select')"
        )),
        "t"
    );
    assert!(
        run(&elsewhere, Script::Uninstall, &[("role", &role)])
            .contains(&format!("dropped role {role}"))
    );
}

#[tokio::test]
async fn an_open_writer_makes_it_give_up_and_remove_nothing() {
    let db = installed();
    let before = dump(&db);
    let writer = Session::open(&db.dsn()).await;
    writer
        .run("begin; update odds_snapshots_d1 set bookmaker_id = 3")
        .await;
    let text = fails(&db, Script::Uninstall, &[("lock_timeout", "300ms")]);
    assert!(text.contains("55P03"), "{text}");
    assert_eq!(dump(&db), before);
}

/// No writer may fail because the trigger's function vanished under it.
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
            apply(&db, script, &[("lock_timeout", "30s")])
                .await
                .unwrap();
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
}
