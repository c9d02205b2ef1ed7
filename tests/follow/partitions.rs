//! `odds_snapshots` is partitioned. Statements write directly into partitions, and partitions come and go.

use std::collections::HashSet;

use oddscache_testkit::{Database, cluster::Cluster, followed::Followed, psql};

use crate::{By, changes, step};

changes! { By::Keys;
    rows_written_directly_into_a_partition: [
        "insert into odds_snapshots_default (id, event_id, bookmaker_id) values (900, 1, 1)",
        "update odds_snapshots_default set event_id = 2 where id = 900",
        "update odds_snapshots_default set last_confirmed_at = '2031-01-01' where id = 900",
        "delete from odds_snapshots_default where id = 900",
        "copy odds_snapshots_default (id, event_id, bookmaker_id) from program 'printf \"900,1,1\"' with (format csv)",
    ];
}

changes! { By::Wide;
    a_partition_is_truncated: ["truncate odds_snapshots_default"];
}

const PARTITION: &str = "create table odds_snapshots_2020 partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01')";

/// A new partition has no triggers of its own. The follower still sees writes through its parent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_partition_is_followed_before_and_after_it_gets_triggers() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    let insert = |table: &str, id: i64| {
        format!(
            "insert into {table} (id, event_id, bookmaker_id, captured_at) values ({id}, 1, 1, '2020-02-03')"
        )
    };
    followed.step(PARTITION).await;
    // The parent's triggers see rows that are written through the parent. But writes may name the partition, so its
    // events are looked up again and again until it has its own.
    followed.changes(&insert("odds_snapshots", 900)).await;
    let parent = "update odds_snapshots set last_confirmed_at = '2031-01-01' where id = 900";
    followed.changes(parent).await;

    psql(&database.name, &["-qf", "sql/install.sql"]);
    followed.check("installed again").await;
    followed.live().await;
    assert_eq!(followed.reloads(), 1);
    step(&followed, By::Keys, &insert("odds_snapshots_2020", 901)).await;
    step(&followed, By::Keys, &insert("odds_snapshots", 902)).await;
    let delete = "delete from odds_snapshots_2020 where id = 902";
    step(&followed, By::Keys, delete).await;
    step(&followed, By::Wide, "truncate odds_snapshots_2020").await;
}

/// A table that inherits from one of the six, without being a partition, is covered in the same way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_a_child_table_are_followed_once_install_has_run_again() {
    let database = Database::seeded();
    database.psql(
        "create table child (more text) inherits (market_odds); create table grandchild () inherits (child);
         insert into child select m.*, 'x' from only market_odds m where snapshot_id / 100 = 1;
         insert into grandchild select m.*, 'x' from only market_odds m where snapshot_id / 100 = 2;
         delete from only market_odds where snapshot_id / 100 < 3",
    );
    psql(&database.name, &["-qf", "sql/install.sql"]);
    let followed = Followed::new(&database).await;
    for sql in [
        "update child set line = line + 1 where line is not null",
        "update grandchild set line = line + 1 where line is not null",
        "update market_odds set line = line + 1 where line is not null",
        "delete from only child where line is not null",
    ] {
        step(&followed, By::Keys, sql).await;
    }
    step(&followed, By::Wide, "truncate grandchild").await;
}

/// An UPDATE that moves a row to another partition is a DELETE and an INSERT inside the server.
#[tokio::test]
async fn an_update_moves_rows_between_partitions() {
    let database = Database::seeded();
    database.psql(PARTITION);
    psql(&database.name, &["-qf", "sql/install.sql"]);
    let followed = Followed::new(&database).await;
    for sql in [
        "update odds_snapshots set captured_at = '2020-05-05' where id = 112",
        "update odds_snapshots set captured_at = now() at time zone 'UTC', event_id = 2, id = 900 where id = 112",
        "update odds_snapshots set captured_at = case when id % 2 = 0 then timestamp '2020-05-05' else now() end",
    ] {
        step(&followed, By::Keys, sql).await;
    }
}

/// ATTACH, DETACH and DROP change rows without firing a trigger. The fingerprint of the catalog shows that.
#[tokio::test]
async fn partitions_are_attached_with_rows_detached_and_dropped() {
    let followed = Followed::seeded().await;
    for (by, sql) in [
        (By::Keys, "create table old (like odds_snapshots including defaults);
         insert into old (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-02-03'), (901, 2, 7, '2020-02-03');
         alter table old add primary key (id, captured_at);
         alter table odds_snapshots attach partition old for values from ('2020-01-01') to ('2021-01-01')"),
        (By::Keys, "alter table odds_snapshots detach partition old"),
        (By::Keys, "alter table odds_snapshots attach partition old for values from (minvalue) to ('2021-01-01')"),
        (By::Keys, "drop table old"),
        // Nobody knows what a default partition holds.
        (By::Wide, "alter table odds_snapshots detach partition odds_snapshots_default"),
        (By::Wide, "alter table odds_snapshots attach partition odds_snapshots_default default"),
        (By::Wide, "drop table odds_snapshots_default"),
    ] {
        step(&followed, by, sql).await;
    }
    assert_eq!(followed.epoch(), 1);
}

/// Writes to a detached partition are logged, but its rows belong to no table that the cache reads.
#[tokio::test]
async fn a_detached_partition_that_keeps_its_triggers_changes_nothing() {
    let followed = Followed::seeded().await;
    for sql in [
        "alter table odds_snapshots detach partition odds_snapshots_default",
        "insert into odds_snapshots_default (id, event_id, bookmaker_id) values (900, 1, 1)",
        "truncate odds_snapshots_default",
    ] {
        followed.step(sql).await;
    }
}

/// A partition may itself be partitioned, and changes at each level are seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_partitions() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed
        .step(
            "create table odds_snapshots_2019 partition of odds_snapshots for values from ('2019-01-01') to ('2020-01-01')
                 partition by range (captured_at);
             create table odds_snapshots_2019_a partition of odds_snapshots_2019 for values from ('2019-01-01') to ('2019-06-01')",
        )
        .await;
    psql(&database.name, &["-qf", "sql/install.sql"]);
    followed.check("installed again").await;
    for table in [
        "odds_snapshots_2019_a",
        "odds_snapshots_2019",
        "odds_snapshots",
    ] {
        let sql = format!(
            "insert into {table} (id, event_id, bookmaker_id, captured_at)
             select coalesce(max(id), 0) + 900, 1, 1, '2019-02-03' from odds_snapshots"
        );
        step(&followed, By::Keys, &sql).await;
    }
    step(&followed, By::Wide, "drop table odds_snapshots_2019_a").await;
}

/// Partitions come and go every day. Then what they hold is looked up, and no markets are read.
#[tokio::test]
async fn a_partition_that_comes_or_goes_costs_what_it_holds() {
    let followed = Followed::seeded().await;
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    let attach = "alter table odds_snapshots attach partition odds_snapshots_2020 for values from ('2020-01-01') to ('2021-01-01')";
    let detach = "alter table odds_snapshots detach partition odds_snapshots_2020";
    let before = followed.cache.counters();
    // In one transaction with its triggers, as a careful job does.
    followed.step(&format!("{PARTITION}; {install}")).await;
    followed.live().await;
    followed.step(detach).await;
    followed.step(attach).await;
    let now = followed.cache.counters();
    assert_eq!(
        now.rows_read, before.rows_read,
        "an empty partition was read"
    );
    // Snapshot 112 is the latest of event 1 and bookmaker 2. Its markets stay with its id, whichever table has its row.
    step(
        &followed,
        By::Keys,
        "update odds_snapshots set captured_at = '2020-05-05', last_confirmed_at = null where id = 112",
    )
    .await;
    let before = followed.cache.counters();
    step(&followed, By::Keys, detach).await;
    followed
        .step("update odds_snapshots_2020 set last_confirmed_at = '2031-01-01'")
        .await;
    step(&followed, By::Keys, attach).await;
    let now = followed.cache.counters();
    // Detached, the snapshot before it is the latest, and its markets are read. Attached again, its own are.
    assert_eq!(now.snapshots_read, before.snapshots_read + 2);
    assert_eq!(now.reloads, 1);
}

/// PS1, PS2: to plan the statements that look at the catalog takes several times as long as to run them. They stay
/// prepared, and all others are prepared anew.
#[tokio::test]
async fn what_reads_the_catalog_stays_prepared() {
    const LASTING: [&str; 7] = [
        "tables",
        "feed_objects",
        "gaps",
        "parents_outside",
        "columns",
        "watched",
        "partitions",
    ];
    let server = Cluster::seeded(&["log_statement = all"]);
    let log = server.data().with_file_name("log");
    let prepared = || -> Vec<String> {
        let text = std::fs::read_to_string(&log).expect("the server's log");
        let names = text.split("statement: PREPARE oddscache_").skip(1);
        // What follows is the follower's number, the name, and the types of its parameters.
        let name = |rest: &str| {
            let name = rest.split_once('_')?.1.split([' ', '(']).next()?;
            Some(name.to_owned())
        };
        names.filter_map(name).collect()
    };
    let followed = Followed::with(&server.dsn("postgres"), |config| config).await;
    followed.live().await;
    let first: HashSet<String> = prepared().into_iter().collect();
    let install = std::fs::read_to_string("sql/install.sql").expect("a script");
    for sql in [
        &format!("{PARTITION}; {install}"),
        "alter table odds_snapshots detach partition odds_snapshots_2020",
    ] {
        let before = prepared().len();
        followed.step(sql).await;
        let new: HashSet<String> = prepared().split_off(before).into_iter().collect();
        let kept: HashSet<&str> = first.difference(&new).map(String::as_str).collect();
        assert_eq!(kept, HashSet::from(LASTING));
        assert!(new.is_subset(&first));
    }
    assert_eq!(followed.reloads(), 1);
}

/// What a partition brings may be newer than anything that is held, and may have the id of a held snapshot.
#[tokio::test]
async fn a_partition_that_comes_with_newer_snapshots() {
    let followed = Followed::seeded().await;
    let attach = |rows: &str| {
        format!(
            "create table came (like odds_snapshots including defaults);
             insert into came (id, event_id, bookmaker_id, captured_at) values {rows};
             alter table odds_snapshots attach partition came for values from ('2020-01-01') to ('2021-01-01')"
        )
    };
    for rows in [
        "(5000, 1, 1, '2020-02-03')",
        "(222, 2, 1, '2020-02-03')",
        "(122, 1, 1, '2020-12-31 23:59:59.999999')",
        "(1, 1, 99, '2020-01-01')",
    ] {
        step(&followed, By::Keys, &attach(rows)).await;
        step(&followed, By::Keys, "drop table came").await;
    }
    // Outside of the window, or older than what is held.
    followed
        .step(&attach(
            "(5000, 999, 1, '2020-02-03'), (1, 1, 1, '2020-02-03')",
        ))
        .await;
    assert_eq!(followed.reloads(), 1);
}
