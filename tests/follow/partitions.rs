//! `odds_snapshots` is partitioned. Statements write directly into partitions, and partitions come and go.

use oddscache_testkit::{Database, followed::Followed, psql};

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

changes! { By::Reload;
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
    assert_eq!(followed.reloads(), 2);
    // The parent's triggers see rows that are written through the parent. But writes may name the partition, so everything
    // is read again and again until it has its own.
    followed.changes(&insert("odds_snapshots", 900)).await;
    let parent = "update odds_snapshots set last_confirmed_at = '2031-01-01' where id = 900";
    followed.changes(parent).await;

    psql(&database.name, &["-qf", "sql/install.sql"]);
    followed.check("installed again").await;
    step(&followed, By::Keys, &insert("odds_snapshots_2020", 901)).await;
    step(&followed, By::Keys, &insert("odds_snapshots", 902)).await;
    let delete = "delete from odds_snapshots_2020 where id = 902";
    step(&followed, By::Keys, delete).await;
    step(&followed, By::Reload, "truncate odds_snapshots_2020").await;
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
    step(&followed, By::Reload, "truncate grandchild").await;
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
    for sql in [
        "create table old (like odds_snapshots including defaults);
         insert into old (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-02-03'), (901, 2, 7, '2020-02-03');
         alter table old add primary key (id, captured_at);
         alter table odds_snapshots attach partition old for values from ('2020-01-01') to ('2021-01-01')",
        "alter table odds_snapshots detach partition old",
        "alter table odds_snapshots attach partition old for values from ('2020-01-01') to ('2021-01-01')",
        "drop table old",
        "alter table odds_snapshots detach partition odds_snapshots_default",
        "alter table odds_snapshots attach partition odds_snapshots_default default",
        "drop table odds_snapshots_default",
    ] {
        step(&followed, By::Reload, sql).await;
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
    step(&followed, By::Reload, "drop table odds_snapshots_2019_a").await;
}
