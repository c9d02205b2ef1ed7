//! Publications of all tables, and their subscribers.

use oddscache_testkit::cluster::Cluster;

use super::*;

const ALL_TABLES: &str = "create publication everything for all tables";

/// Debezium creates such a publication by default. A table without a key then refuses UPDATE and DELETE, so install,
/// upgrade and prune() failed.
#[test]
fn a_publication_of_all_tables_hinders_neither_install_nor_prune() {
    let prune = "select oddscache.prune('0')";
    let before = app();
    before.psql(ALL_TABLES);
    run(&before, Script::Install, &[])
        .says("WARNING")
        .says("publication everything")
        .says("CREATE TABLE oddscache.change_log");

    let after = installed();
    after.psql(ALL_TABLES);
    run(&after, Script::Install, &[]).says("already in place");
    for db in [before, after] {
        db.psql("insert into events select generate_series(101, 103)");
        // Transactions of other tests can keep the rows for a while.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !log(&db).is_empty() {
            assert!(Instant::now() < deadline, "prune deletes nothing");
            db.psql(prune);
        }
        run(&db, Script::Install, &[]).says("already in place");
        run(&db, Script::Uninstall, &[]);
    }
}

/// An earlier script created a table that such a publication makes unusable.
#[test]
fn a_log_horizon_that_a_publication_makes_unusable_is_replaced() {
    let db = installed();
    db.psql(
        "drop table oddscache.log_horizon; create table oddscache.log_horizon (horizon xid8 not null, at timestamptz not null)",
    );
    db.psql(ALL_TABLES);
    run(&db, Script::Install, &[]);
    db.psql("select oddscache.prune('0')");
}

/// A native subscriber that lacks the feed's tables stops for good at the first change. Then the publisher's disk
/// fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn install_does_not_stop_a_subscriber() {
    let cluster = Cluster::start(&["fsync = off", "wal_level = logical"]).unwrap();
    let run = |database: &str, sql: &str| cluster.psql_ok(database, &["-qAtc", sql]);
    for database in ["publisher", "subscriber"] {
        run("postgres", &format!("create database {database}"));
        run(database, APP);
    }
    let publisher = |sql: &str| run("publisher", sql);
    let subscriber = |sql: &str| run("subscriber", sql);
    publisher(ALL_TABLES);
    // Within one cluster CREATE SUBSCRIPTION would wait for itself, so create the slot first.
    publisher("select pg_create_logical_replication_slot('follows', 'pgoutput')");
    let subscribe = format!(
        "create subscription follows connection '{}' publication everything with (create_slot = false)",
        cluster.dsn("publisher")
    );
    subscriber(&subscribe);
    let client = oddscache_testkit::connect(&cluster.dsn("publisher")).await;
    let active = "select count(*) = 1 from pg_replication_slots s join pg_stat_activity a on a.pid = s.active_pid
        where s.slot_name = 'follows' and a.application_name = 'follows'";
    oddscache_testkit::eventually("the subscriber follows", async || {
        client.query_one(active, &[]).await.unwrap().get(0)
    })
    .await;

    let refused = cluster
        .psql("publisher", &["-f", "sql/install.sql"])
        .unwrap();
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    said.says("publication everything is FOR ALL TABLES");
    let none = publisher("select to_regnamespace('oddscache') is null");
    assert_eq!(none, "t");

    // Do what the hint says.
    let (_, ddl) = said.split_once("run on each subscriber: ").unwrap();
    let end = "; then oddscache sql install --subscribers-ready";
    subscriber(ddl.split_once(end).unwrap().0);
    publisher(&Script::Install.fill(&[("subscribers", "ready")]).unwrap());
    subscriber("alter subscription follows refresh publication with (copy_data = false)");
    publisher("insert into events select generate_series(1, 3)");
    publisher("select oddscache.prune('0')");
    publisher("insert into events values (4)");
    let client = oddscache_testkit::connect(&cluster.dsn("subscriber")).await;
    oddscache_testkit::eventually("the subscriber goes on", async || {
        let sql = "select (select count(*) from events) = 4 and (select count(*) from oddscache.change_log) > 0";
        client.query_one(sql, &[]).await.unwrap().get(0)
    })
    .await;
    subscriber(
        "alter subscription follows disable; alter subscription follows set (slot_name = none); drop subscription follows",
    );
}
