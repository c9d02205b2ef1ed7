//! indexes.sql

use super::*;

const STATE: &str = "select string_agg(c.relname || case when x.indisvalid then '' else ' INVALID' end, ' ' order by c.relname)
    from pg_index x join pg_class c on c.oid = x.indexrelid where pg_get_indexdef(c.oid) ~ 'id DESC\\)$'";

const ALL: &str = "competitor_odds_snapshots_oddscache_latest odds_snapshots_d1_oddscache_latest odds_snapshots_d2_oddscache_latest \
    odds_snapshots_default_oddscache_latest odds_snapshots_oddscache_latest";

#[tokio::test]
async fn indexes_are_created_on_every_partition() {
    for one_query in [false, true] {
        let db = app();
        run_by(one_query, "postgres", &db, Script::Indexes, &[]).await;
        assert_eq!(db.psql(STATE), ALL);
        db.answers(
            "select pg_get_indexdef('odds_snapshots_oddscache_latest'::regclass)
             => CREATE INDEX odds_snapshots_oddscache_latest ON ONLY public.odds_snapshots USING btree (event_id, bookmaker_id, id DESC)",
        );
        let before = dump(&db);
        run(&db, Script::Indexes, &[]);
        assert_eq!(dump(&db), before);
        // A later partition gets its index when it is created.
        db.psql("create table odds_snapshots_d3 partition of odds_snapshots for values from ('2025-01-03') to ('2025-01-04')");
        db.answers(
            "select count(*) from pg_inherits where inhparent = 'odds_snapshots_oddscache_latest'::regclass
             => 4",
        );
        run(&db, Script::Uninstall, &[]);
        assert_eq!(db.psql(STATE), "");
    }
}

#[test]
fn indexes_are_created_without_partitions_and_in_two_levels() {
    let db = Database::empty();
    let plain = APP.replace(") partition by range (captured_at);", ");");
    let lines = plain.lines().filter(|line| !line.contains("partition of"));
    db.psql(&lines.collect::<Vec<_>>().join("\n"));
    run(&db, Script::Indexes, &[]);
    assert_eq!(
        db.psql(STATE),
        "competitor_odds_snapshots_oddscache_latest odds_snapshots_oddscache_latest"
    );

    let db = app();
    let long = "odds_snapshots_with_a_name_that_is_as_long_as_names_can_get_123";
    db.psql(&format!(
        "create table odds_snapshots_d3 partition of odds_snapshots for values from ('2025-01-03') to ('2025-01-04') partition by range (id);
         create table {long} partition of odds_snapshots_d3 for values from (1) to (100)"
    ));
    run(&db, Script::Indexes, &[]);
    assert_eq!(db.psql(STATE).matches(' ').count() + 1, 7);
    assert!(!db.psql(STATE).contains("INVALID"));
    let oid = db.psql(&format!("select '{long}'::regclass::oid"));
    assert!(db.psql(STATE).contains(&format!("oddscache_latest_{oid}")));
}

#[tokio::test]
async fn a_run_finishes_what_an_interrupted_run_left() {
    let db = app();
    db.psql(ROWS);
    db.psql("create index odds_snapshots_oddscache_latest on only odds_snapshots (event_id, bookmaker_id, id desc);
             create index free on odds_snapshots_d2 (event_id, bookmaker_id, id desc)");
    // A cancelled CREATE INDEX CONCURRENTLY leaves an INVALID index.
    let (old, creator) = open_two(&db).await;
    old.run("begin; update odds_snapshots_d1 set bookmaker_id = 2; update competitor_odds_snapshots set captured_at = now()").await;
    for sql in [
        "odds_snapshots_d1_oddscache_latest on odds_snapshots_d1 (event_id, bookmaker_id, id desc)",
        "competitor_odds_snapshots_oddscache_latest on competitor_odds_snapshots (competitor_event_id, id desc)",
    ] {
        creator.run("set statement_timeout = '200ms'").await;
        creator
            .fails(&format!("create index concurrently {sql} => 57014"))
            .await;
    }
    old.run("rollback").await;
    assert_eq!(
        db.psql(STATE),
        "competitor_odds_snapshots_oddscache_latest INVALID free odds_snapshots_d1_oddscache_latest INVALID odds_snapshots_oddscache_latest INVALID"
    );
    check(&db).says("index|public.odds_snapshots|event_id, bookmaker_id, id DESC|warn|is INVALID");
    run(&db, Script::Indexes, &[]);
    assert_eq!(
        db.psql(STATE),
        "competitor_odds_snapshots_oddscache_latest free odds_snapshots_d1_oddscache_latest odds_snapshots_default_oddscache_latest odds_snapshots_oddscache_latest"
    );
    check(&db).says("index|public.odds_snapshots|event_id, bookmaker_id, id DESC|ok|");
}

#[test]
fn an_equal_index_of_another_name_is_used() {
    let db = app();
    db.psql("create index theirs on odds_snapshots (event_id, bookmaker_id, id desc); create index theirs2 on competitor_odds_snapshots (competitor_event_id, id desc);
             create index close on odds_snapshots (event_id, bookmaker_id, id)");
    let before = dump(&db);
    let text = run(&db, Script::Indexes, &[]);
    let equal = "has an equal index of another name: public.theirs";
    assert_eq!(text.matches(equal).count(), 2, "{text}");
    assert_eq!(dump(&db), before);
    run(&db, Script::Uninstall, &[]);
    assert_eq!(dump(&db), before);
}

/// A long transaction makes the run wait. Meanwhile neither this run nor a second one hinders writers.
#[tokio::test]
async fn writers_go_on_while_indexes_are_created() {
    let db = app();
    db.psql(ROWS);
    let (old, writer) = open_two(&db).await;
    old.run("begin; update odds_snapshots_d1 set bookmaker_id = 2")
        .await;
    let path = db.clone();
    let making = tokio::task::spawn_blocking(move || {
        run(&path, Script::Indexes, &[("lock_timeout", "200ms")])
    });
    until(&db, "select exists (select from pg_stat_activity where query like 'CREATE INDEX CONCURRENTLY%_d1%' and wait_event_type = 'Lock' and datname = current_database()
            and clock_timestamp() - query_start > '500 ms')").await;
    writer.run("set lock_timeout = '1s'; update odds_snapshots set bookmaker_id = 3 where event_id = 2 and captured_at > '2025-01-02'; insert into odds_snapshots (event_id, bookmaker_id) values (1, 1)").await;
    fails(&db, Script::Indexes, &[]).says("another run of indexes.sql");
    old.run("commit").await;
    making.await.unwrap();
    assert_eq!(db.psql(STATE), ALL);
    fails(&db, Script::Indexes, &[("app_schema", "nowhere")])
        .says("missing in schema nowhere: odds_snapshots");
}
