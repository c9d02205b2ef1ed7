//! Deployments differ: types, missing columns, schemas. The cache equals the oracle in all of them.

use oddscache::{Config, Error, OddsCache, Status, sql::Script};
use oddscache_testkit::{
    Database, dump, eventually,
    followed::{Followed, SEED, run},
    psql, run_script,
};

const SCHEMA: &str = include_str!("../src/demo/schema.sql");

/// A database whose tables are made by `schema`, with the seed, then changed by `alter`, then with the feed.
fn deployment(schema: &str, alter: &str) -> Database {
    let database = Database::empty();
    // In the session's time zone nothing may depend on.
    psql(
        "postgres",
        &[
            "-qc",
            &format!(
                "alter database {} set timezone = 'Asia/Tokyo'",
                database.name
            ),
        ],
    );
    for sql in [schema, SEED, alter] {
        database.psql(&format!("set timezone = 'UTC'; {sql}"));
    }
    psql(&database.name, &["-qf", "sql/install.sql"]);
    database
}

/// One change of each table that is read.
const CHANGES: [&str; 8] = [
    "update events set kickoff = kickoff + interval '1 hour' where id = 1",
    "insert into odds_snapshots (id, event_id, bookmaker_id) values (900, 1, 1);
     insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
     values (900, '1', 'one', '[{\"odds\": 1.10, \"name\": \"1\"}, {\"name\": \"2\", \"odds\": null, \"is_active\": false, \"x\": \"y\"}]')",
    "update odds_snapshots set captured_at = captured_at + interval '1.000001 s' where id = 900",
    "update market_odds set outcomes = '{}' where id = 2122",
    "update competitor_events set betpawa_event_id = 2 where id = 1",
    "insert into competitor_odds_snapshots (id, competitor_event_id) values (900, 1)",
    "update competitor_market_odds set betpawa_market_name = 'renamed' where id = 1122",
    "delete from odds_snapshots where id in (900, 212)",
];

async fn follows(database: &Database, followed: Followed) {
    let mut before = followed.check("the seed").await;
    assert_eq!(before.len(), 3);
    for sql in CHANGES {
        followed.run(sql).await;
        let after = followed.check(sql).await;
        assert_ne!(before, after, "{sql}");
        before = after;
    }
    assert_eq!(followed.cache.counters().reloads, 1, "{}", database.name);
    assert_eq!(followed.cache.view().epoch(), 1);
}

async fn tolerates(schema: &str, alter: &str) {
    let database = deployment(schema, alter);
    follows(&database, Followed::new(&database).await).await;
}

fn replaced(changes: &[(&str, &str)]) -> String {
    let mut schema = SCHEMA.to_owned();
    for (from, to) in changes {
        assert!(schema.contains(from), "{from}");
        schema = schema.replace(from, to);
    }
    schema
}

#[tokio::test]
async fn the_schema_as_it_is() {
    tolerates(SCHEMA, "").await;
}

#[tokio::test]
async fn timestamptz() {
    tolerates(
        &replaced(&[
            ("timestamp", "timestamptz"),
            ("(now() at time zone 'UTC')", "now()"),
        ]),
        "",
    )
    .await;
}

/// Some columns with, some without.
#[tokio::test]
async fn timestamptz_here_and_there() {
    tolerates(
        SCHEMA,
        "alter table events alter kickoff type timestamptz; alter table competitor_odds_snapshots alter captured_at type timestamptz;
         alter table market_odds alter unavailable_at type timestamptz;
         alter table odds_snapshots alter last_confirmed_at type timestamptz",
    )
    .await;
}

#[tokio::test]
async fn json() {
    tolerates(&replaced(&[("jsonb", "json")]), "").await;
}

#[tokio::test]
async fn bigint_ids_everywhere() {
    tolerates(
        &replaced(&[
            (" serial", " bigserial"),
            (" int ", " bigint "),
            (" int,", " bigint,"),
        ]),
        "",
    )
    .await;
}

#[tokio::test]
async fn ids_beyond_32_bits() {
    let schema = replaced(&[
        (" serial", " bigserial"),
        (" int ", " bigint "),
        (" int,", " bigint,"),
    ]);
    let database = deployment(&schema, "");
    let followed = Followed::new(&database).await;
    followed
        .run(
            "insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
             values (5000000000, 'big', '', '', '', now() + interval '1 day');
             insert into odds_snapshots (id, event_id, bookmaker_id) values (6000000000, 5000000000, 7000000000);
             insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             values (8000000000, 6000000000, '1', 'one', '[]'), (-8000000000, 6000000000, '2', 'two', '[]');
             insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
             values (9000000000, 'sportybet', 5000000000, now(), 'big', '');
             insert into competitor_odds_snapshots (id, competitor_event_id) values (9100000000, 9000000000)",
        )
        .await;
    followed.check("big ids").await;
    let view = followed.cache.view();
    assert_eq!(
        view.get_betpawa_snapshot(5_000_000_000)
            .map(|held| held.len()),
        Some(1)
    );
}

#[tokio::test]
async fn numbers_of_other_types() {
    tolerates(
        SCHEMA,
        "alter table market_odds alter line type numeric(5, 2), alter handicap_home type real;
         alter table competitor_market_odds alter handicap_home type numeric, alter handicap_away type real;
         alter table odds_snapshots alter bookmaker_id type smallint",
    )
    .await;
}

#[tokio::test]
async fn times_in_domains() {
    tolerates(
        SCHEMA,
        "create domain moment as timestamp; create domain instant as timestamptz;
         set timezone = 'UTC';
         alter table events alter kickoff type instant;
         alter table odds_snapshots alter last_confirmed_at type moment;
         alter table competitor_odds_snapshots alter captured_at type instant, alter last_confirmed_at type moment",
    )
    .await;
}

#[tokio::test]
async fn text_in_other_types() {
    tolerates(
        SCHEMA,
        "create domain source as varchar(20); create domain name_of_market as varchar(255);
         alter table competitor_events alter source type source;
         alter table market_odds alter betpawa_market_id type text, alter betpawa_market_name type name_of_market",
    )
    .await;
}

#[tokio::test]
async fn columns_of_later_migrations_may_be_missing() {
    let columns = [
        ("market_odds", "market_groups"),
        ("market_odds", "unavailable_at"),
        ("market_odds", "line"),
        ("market_odds", "handicap_type"),
        ("market_odds", "handicap_home"),
        ("market_odds", "handicap_away"),
        ("competitor_market_odds", "market_groups"),
        ("competitor_market_odds", "unavailable_at"),
        ("competitor_market_odds", "line"),
        ("competitor_market_odds", "handicap_type"),
        ("competitor_market_odds", "handicap_home"),
        ("competitor_market_odds", "handicap_away"),
        ("odds_snapshots", "last_confirmed_at"),
        ("odds_snapshots", "scrape_run_id"),
        ("odds_snapshots", "raw_response"),
        ("competitor_odds_snapshots", "last_confirmed_at"),
        ("competitor_odds_snapshots", "raw_response"),
    ];
    let drop = columns
        .map(|(table, column)| format!("alter table {table} drop column {column}"))
        .join(";");
    tolerates(SCHEMA, &drop).await;
    // The other half of them.
    let drop: Vec<String> = columns
        .iter()
        .step_by(2)
        .map(|(table, column)| format!("alter table {table} drop column {column}"))
        .collect();
    tolerates(SCHEMA, &drop.join(";")).await;
}

/// The oracle names `deleted_at`, so this one is compared by hand.
#[tokio::test]
async fn without_deleted_at_all_competitor_events_are_live() {
    let database = deployment(
        SCHEMA,
        "alter table competitor_events drop column deleted_at",
    );
    let followed = Followed::new(&database).await;
    let held = |id| {
        followed
            .cache
            .get_competitor_snapshot(id)
            .map_or(0, |held| held.len())
    };
    assert_eq!([held(1), held(2), held(3), held(4)], [2, 2, 2, 0]);
    followed
        .run("update competitor_events set betpawa_event_id = 2 where id = 11")
        .await;
    followed.caught_up("a re-link").await;
    assert_eq!([held(1), held(2)], [1, 2]);
    let view = followed.cache.view();
    let bet9ja = view
        .get_competitor_snapshot(2)
        .and_then(|held| held.get("bet9ja"));
    assert_eq!(bet9ja.map(|held| held.snapshot_id()), Some(122));
}

#[tokio::test]
async fn not_partitioned() {
    let schema = replaced(&[
        (" partition by range (captured_at)", ""),
        (
            "create table odds_snapshots_default partition of odds_snapshots default;",
            "",
        ),
    ]);
    tolerates(&schema, "").await;
}

#[tokio::test]
async fn columns_of_the_applications_own() {
    tolerates(
        SCHEMA,
        r#"alter table events add "ord""er" text default 'x', add kickoff_tz timestamptz;
           alter table odds_snapshots add hash bytea, add column "select" int default 1;
           alter table market_odds add column position point;
           alter table competitor_events add league int, add generated int generated always as (id * 2) stored"#,
    )
    .await;
}

/// Names that want quoting, a feed of its own beside another one, and another channel.
#[tokio::test]
async fn other_schemas_and_another_channel() {
    let (app, cache, channel) = (
        r#"We"ird sch'ema"#,
        r#"Ca"che \ 's"#,
        r#"Odd "bell" o'clock"#,
    );
    let quoted = r#""We""ird sch'ema""#;
    let database = Database::with_feed();
    let path = format!("set search_path = {quoted}");
    psql(&database.name, &["-qc", &format!("create schema {quoted}")]);
    psql(
        &database.name,
        &["-q", "-c", &path, "-f", "src/demo/schema.sql", "-c", SEED],
    );
    run_script(
        &database.name,
        Script::Install,
        &[
            ("app_schema", app),
            ("cache_schema", cache),
            ("channel", channel),
        ],
    );

    let followed = Followed::with(&database.dsn(), |config| {
        config.app_schema(app).cache_schema(cache)
    })
    .await;
    run(&followed.app, &path).await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    // The one at the start may come after the status, which the first reading of everything can set.
    eventually("a bell", async || {
        followed.cache.counters().notifications > 0
    })
    .await;
    follows(&database, followed).await;

    // And the bell rings on that channel: with an hour between polls nothing else brings a change.
    let config = |config: Config| {
        config
            .app_schema(app)
            .cache_schema(cache)
            .poll_interval(std::time::Duration::from_secs(3600))
    };
    let followed = Followed::with(&database.dsn(), config).await;
    run(&followed.app, &path).await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    followed
        .run("delete from odds_snapshots where id = 312")
        .await;
    eventually("the bell", async || {
        let view = followed.cache.view();
        dump(&view) == followed.oracle(view.cut().window_start).await
            && view.cut().snapshot != String::new()
    })
    .await;
    assert!(followed.cache.counters().notifications > 0);
}

#[tokio::test]
async fn times_without_an_end() {
    let database = deployment(
        SCHEMA,
        "update events set kickoff = 'infinity' where id = 1; update events set kickoff = '-infinity' where id = 2;
         update odds_snapshots set last_confirmed_at = 'infinity' where id = 312",
    );
    let followed = Followed::new(&database).await;
    let seed = followed.check("the seed").await;
    assert_eq!(seed.len(), 2);
    followed
        .run("update events set kickoff = 'infinity' where id = 2")
        .await;
    assert_eq!(followed.check("for ever").await.len(), 3);
    followed
        .run("update events set kickoff = '-infinity' where id = 1")
        .await;
    assert_eq!(followed.check("never").await.len(), 2);
}

/// JSON has no word for them, so the accessors are asked.
#[tokio::test]
async fn numbers_that_json_does_not_know() {
    let database = deployment(
        SCHEMA,
        "update market_odds set line = 'NaN', handicap_home = 'infinity' where id = 1122",
    );
    let followed = Followed::new(&database).await;
    let look = |what: &str| {
        let held = followed.cache.get_betpawa_snapshot(1).expect(what);
        let market = held
            .get(1)
            .and_then(|held| held.markets().nth(1))
            .expect(what);
        (
            market.line().map(f64::to_bits),
            market.handicap_home(),
            market.handicap_away(),
        )
    };
    let nan = Some(f64::NAN.to_bits());
    assert_eq!(look("warmup"), (nan, Some(f64::INFINITY), None));
    followed.run("update market_odds set handicap_away = '-infinity', handicap_home = '-0' where id = 1122").await;
    followed.caught_up("a change").await;
    let (line, home, away) = look("a change");
    assert_eq!((line, away), (nan, Some(f64::NEG_INFINITY)));
    assert_eq!(home.map(f64::to_bits), Some((-0.0f64).to_bits()));
}

/// A migration while the cache follows.
#[tokio::test]
async fn columns_change_while_live() {
    let database = deployment(
        SCHEMA,
        "alter table market_odds drop column market_groups, drop column unavailable_at;
         alter table odds_snapshots drop column last_confirmed_at",
    );
    let followed = Followed::new(&database).await;
    followed.check("the seed").await;
    for sql in [
        "alter table market_odds add column note text default 'n'",
        "alter table market_odds add column market_groups jsonb default '[\"new\"]'",
        "alter table market_odds add column unavailable_at timestamptz",
        "update market_odds set unavailable_at = now() where id = 1122",
        "alter table odds_snapshots add column last_confirmed_at timestamp",
        "update odds_snapshots set last_confirmed_at = now() at time zone 'UTC'",
        "alter table market_odds alter line type numeric",
        "alter table market_odds alter outcomes type json",
        "update market_odds set outcomes = '[{\"name\": \"json\"}]' where id = 1122",
        "alter table competitor_market_odds alter snapshot_id type bigint, alter id type bigint",
        "alter table competitor_odds_snapshots alter id type bigint, alter captured_at type timestamptz using captured_at at time zone 'UTC'",
        "alter table events alter kickoff type timestamptz using kickoff at time zone 'UTC'",
        "update events set kickoff = kickoff + interval '1 hour'",
        "alter table market_odds drop column market_groups",
        "alter table market_odds alter betpawa_market_name type text",
        "update market_odds set betpawa_market_name = betpawa_market_name || '!'",
        "alter table competitor_market_odds drop column line",
        "vacuum full market_odds",
        "reindex table odds_snapshots",
        "cluster events using events_pkey",
    ] {
        followed.run(sql).await;
        followed.check(sql).await;
    }
    assert_eq!(followed.cache.view().epoch(), 1);
}

#[tokio::test]
async fn a_column_that_is_renamed_away_is_named_until_it_is_back() {
    let database = deployment(SCHEMA, "");
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    followed
        .run("alter table events rename column kickoff to starts_at")
        .await;
    eventually("named", async || {
        matches!(
            followed.cache.status(),
            Status::Disconnected {
                error: Error::MissingColumn { .. },
                ..
            }
        )
    })
    .await;
    // The application goes on writing; its triggers must not mind.
    followed.run("update events set starts_at = starts_at + interval '1 hour'; delete from odds_snapshots where id = 112").await;
    assert_eq!(dump(&followed.cache.view()), before);
    followed
        .run("alter table events rename column starts_at to kickoff")
        .await;
    assert_ne!(followed.check("back").await, before);
}

/// The key column of a trigger goes: the write must not fail, and everything is read again once it is back.
#[tokio::test]
async fn a_key_column_that_is_renamed_fails_no_writer() {
    let database = deployment(SCHEMA, "");
    let followed = Followed::new(&database).await;
    followed.check("the seed").await;
    followed
        .run(
            "begin; alter table market_odds rename column snapshot_id to parent_id;
             update market_odds set line = 9 where parent_id = 112;
             alter table market_odds rename column parent_id to snapshot_id; commit",
        )
        .await;
    followed.check("renamed and back").await;
    let view = followed.cache.view();
    let market = view
        .get_betpawa_snapshot(1)
        .and_then(|held| held.get(1)?.markets().next());
    assert_eq!(market.and_then(|market| market.line()), Some(9.0));
}

#[tokio::test]
async fn an_application_schema_that_is_not_there_is_said() {
    let database = deployment(SCHEMA, "");
    let config = Config::new(&database.dsn())
        .expect("dsn")
        .app_schema("nowhere");
    let (cache, follower) = OddsCache::connect(config);
    tokio::spawn(follower.run());
    let error = cache.ready().await.expect_err("no such schema");
    assert!(matches!(error, Error::MissingTable { .. }), "{error:?}");
}
