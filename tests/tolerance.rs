//! Deployments differ in types, schemas and missing columns. The cache equals the oracle in all of them.

use std::time::Duration;

use oddscache::{Config, Error, sql::Script};
use oddscache_testkit::{
    Database, assert_same, dump, eventually,
    followed::{Followed, SEED, rarely},
    psql, run_script,
};

const SCHEMA: &str = include_str!("../src/demo/schema.sql");

/// A database with the tables of `schema` and the seed, changed by `alter`, and with the change feed.
fn deployment(schema: &str, alter: &str) -> Database {
    let database = Database::empty();
    // Nothing may depend on the time zone of a session.
    let name = &database.name;
    database.psql(&format!("alter database {name} set timezone = '<+09>-9'"));
    for sql in [schema, SEED, alter] {
        database.psql(&format!("set timezone = '<+00>0'; {sql}"));
    }
    psql(&database.name, &["-qf", "sql/install.sql"]);
    database
}

/// At least one change of each table that the cache reads.
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
    assert_eq!(followed.check("the seed").await.len(), 3);
    for sql in CHANGES {
        followed.changes(sql).await;
    }
    assert_eq!(followed.reloads(), 1, "{}", database.name);
    assert_eq!(followed.epoch(), 1);
}

fn replaced(changes: &[(&str, &str)]) -> String {
    let mut schema = SCHEMA.to_owned();
    for (from, to) in changes {
        assert!(schema.contains(from), "{from}");
        schema = schema.replace(from, to);
    }
    schema
}

/// Defines a test for each deployment: replacements in the usual schema, and statements that alter it afterwards.
macro_rules! deployments {
    ($($(#[$doc:meta])? $name:ident: [$($replaced:expr),*], $alter:expr;)+) => {
        $($(#[$doc])?
        #[tokio::test]
        async fn $name() {
            let database = deployment(&replaced(&[$($replaced),*]), $alter);
            follows(&database, Followed::new(&database).await).await;
        })+
    };
}

const BIGINT_IDS: [(&str, &str); 3] = [
    (" serial", " bigserial"),
    (" int ", " bigint "),
    (" int,", " bigint,"),
];

deployments! {
    the_schema_as_it_is: [], "";
    timestamptz: [("timestamp", "timestamptz"), ("(now() at time zone 'UTC')", "now()")], "";
    /// Some columns with a time zone, some without.
    timestamptz_here_and_there: [],
        "alter table events alter kickoff type timestamptz; alter table competitor_odds_snapshots alter captured_at type timestamptz;
         alter table market_odds alter unavailable_at type timestamptz;
         alter table odds_snapshots alter last_confirmed_at type timestamptz";
    json: [("jsonb", "json")], "";
    bigint_ids_everywhere: [BIGINT_IDS[0], BIGINT_IDS[1], BIGINT_IDS[2]], "";
    numbers_of_other_types: [],
        "alter table market_odds alter line type numeric(5, 2), alter handicap_home type real;
         alter table competitor_market_odds alter handicap_home type numeric, alter handicap_away type real;
         alter table odds_snapshots alter bookmaker_id type smallint";
    times_in_domains: [],
        "create domain moment as timestamp; create domain instant as timestamptz;
         set timezone = '<+00>0';
         alter table events alter kickoff type instant;
         alter table odds_snapshots alter last_confirmed_at type moment;
         alter table competitor_odds_snapshots alter captured_at type instant, alter last_confirmed_at type moment";
    text_in_other_types: [],
        "create domain source as varchar(20); create domain name_of_market as varchar(255);
         alter table competitor_events alter source type source;
         alter table market_odds alter betpawa_market_id type text, alter betpawa_market_name type name_of_market";
    columns_of_later_migrations_may_be_missing: [],
        "alter table market_odds drop market_groups, drop unavailable_at, drop line, drop handicap_type, drop handicap_home,
             drop handicap_away;
         alter table competitor_market_odds drop market_groups, drop unavailable_at, drop line, drop handicap_type,
             drop handicap_home, drop handicap_away;
         alter table odds_snapshots drop last_confirmed_at, drop scrape_run_id, drop raw_response;
         alter table competitor_odds_snapshots drop last_confirmed_at, drop raw_response";
    half_of_those_columns_may_be_missing: [],
        "alter table market_odds drop market_groups, drop line, drop handicap_home;
         alter table competitor_market_odds drop market_groups, drop line, drop handicap_home;
         alter table odds_snapshots drop last_confirmed_at, drop raw_response;
         alter table competitor_odds_snapshots drop raw_response";
    names_may_be_missing: [],
        "alter table events drop name, drop home_team, drop away_team, drop sportradar_id, drop tournament_id;
         drop table tournaments, sports, bookmakers";
    some_names_may_be_missing: [],
        "alter table events drop away_team; drop table sports cascade; alter table tournaments drop country;
         alter table bookmakers drop slug";
    names_of_other_types: [],
        "create domain name_of_team as varchar(100);
         alter table events drop sportradar_id, add sportradar_id bigint default 7, alter home_team type name_of_team,
             drop tournament_id, add tournament_id bigint default 1;
         alter table tournaments alter id type bigint, alter name type text; alter table bookmakers alter id type smallint";
    not_partitioned: [
            (" partition by range (captured_at)", ""),
            ("create table odds_snapshots_default partition of odds_snapshots default;", "")
        ], "";
    columns_of_the_applications_own: [],
        r#"alter table events add "ord""er" text default 'x', add kickoff_tz timestamptz;
           alter table odds_snapshots add hash bytea, add column "select" int default 1;
           alter table market_odds add column position point;
           alter table competitor_events add league int, add generated int generated always as (id * 2) stored"#;
}

/// A partitioned table has ids that are unique only together with the partition key. A read of everything took the
/// times of another row with that id, each audit found it, and no reload repaired it.
#[tokio::test]
async fn ids_that_a_partitioned_table_has_twice() {
    let schema = replaced(&[
        (
            "id                  serial primary key,\n    competitor_event_id int       not null,",
            "id                  serial,\n    competitor_event_id int       not null,",
        ),
        (
            "last_confirmed_at   timestamp\n);",
            "last_confirmed_at   timestamp,\n    primary key (id, captured_at)\n) partition by range (captured_at);
             create table of_2029 partition of competitor_odds_snapshots for values from ('2029-01-01') to ('2030-01-01');
             create table competitor_default partition of competitor_odds_snapshots default;",
        ),
        (" references competitor_odds_snapshots (id) on delete cascade", ""),
        (" references events (id) on delete set null", ""),
        (
            "id            serial primary key,\n    sportradar_id varchar(50)  not null unique,",
            "id            serial,\n    sportradar_id varchar(50)  not null,",
        ),
        (
            "created_at    timestamp    not null default (now() at time zone 'UTC')\n);",
            "created_at    timestamp    not null default (now() at time zone 'UTC'),\n    primary key (id, kickoff)\n)
             partition by range (kickoff); create table events_default partition of events default;",
        ),
    ]);
    let twice = "
        insert into competitor_odds_snapshots (id, competitor_event_id, captured_at, last_confirmed_at) values
            (9000, 1, '2029-02-01', '2029-02-02'), (9000, 11, '2029-03-01', null), (9000, 2, '2028-04-01', '2028-04-02'),
            (9001, 3, '2028-01-01', null), (9001, 3, '2029-01-01', '2029-01-02');
        insert into odds_snapshots (id, event_id, bookmaker_id, captured_at, last_confirmed_at) values
            (9000, 1, 1, '2029-02-01', null), (9000, 1, 2, '2029-02-02', null), (9000, 2, 1, '2029-02-03', null),
            (9000, 2, 1, '2029-02-04', '2029-02-05'), (9000, 2, 1, '2029-02-06', null);
        insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
            select 9000, m::text, 'x', '[]' from generate_series(1, 3) m;
        insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
            select 9000, m::text, 'x', '[]' from generate_series(1, 3) m;
        insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
            select id, '', '', '', '', '2040-01-01' from events where id = 2";
    let database = deployment(&schema, twice);
    let followed = Followed::with(&database.dsn(), |config| {
        config
            .warmup_connections(2)
            .audit_cycle(Duration::from_millis(1))
            .audit_budget(1.0)
    })
    .await;
    followed.check("the seed").await;
    for sql in CHANGES.into_iter().chain([
        "update competitor_odds_snapshots set last_confirmed_at = '2031-01-01' where id = 9000 and competitor_event_id = 2",
        "update competitor_odds_snapshots set last_confirmed_at = '2031-01-01' where id = 9001 and captured_at = '2028-01-01'",
        "update competitor_odds_snapshots set captured_at = '2031-01-01' where id = 9001 and captured_at = '2028-01-01'",
        "update competitor_market_odds set line = 7 where snapshot_id = 9000",
        "update market_odds set line = 7 where snapshot_id = 9000",
        "update events set kickoff = '2041-01-01' where id = 2 and kickoff <> '2040-01-01'",
        "delete from events where id = 2 and kickoff = '2041-01-01'",
        "insert into competitor_odds_snapshots (id, competitor_event_id, captured_at) values (9000, 12, '2029-05-01')",
        "update competitor_events set betpawa_event_id = 3 where id = 12",
    ]) {
        followed.step(sql).await;
    }
    // A full pass of the audit finds nothing, so all reads agree.
    let counters = followed.audited().await;
    assert_eq!(counters.audit_mismatches, 0);
    assert_eq!(counters.reloads, 1);
}

/// The two snapshots of a read share an id, and each of two connections reads the markets of one of them. Each market
/// was there twice.
#[tokio::test]
async fn helpers_read_the_markets_of_an_id_once() {
    let database = deployment(
        SCHEMA,
        "delete from market_odds; delete from odds_snapshots;
         insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
         values (9000, 1, 1, '2029-02-01'), (9000, 2, 1, '2029-02-02');
         insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
         select 9000, m::text, 'x', '[]' from generate_series(1, 3) m",
    );
    let followed = Followed::with(&database.dsn(), |config| config.warmup_connections(2)).await;
    followed.check("the seed").await;
}

/// Ids of type bigint are read in full.
#[tokio::test]
async fn ids_beyond_32_bits() {
    let database = deployment(&replaced(&BIGINT_IDS), "");
    let followed = Followed::new(&database).await;
    followed
        .step(
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
    let held = followed.cache.get_betpawa_snapshot(5_000_000_000);
    assert_eq!(held.map(|held| held.len()), Some(1));
}

/// The oracle needs `deleted_at`, so this test compares by hand.
#[tokio::test]
async fn without_deleted_at_all_competitor_events_are_live() {
    let drop = "alter table competitor_events drop column deleted_at";
    let database = deployment(SCHEMA, drop);
    let followed = Followed::new(&database).await;
    let held = |id| {
        let held = followed.cache.get_competitor_snapshot(id);
        held.map_or(0, |held| held.len())
    };
    assert_eq!([1, 2, 3, 4].map(held), [2, 2, 2, 0]);
    let link = "update competitor_events set betpawa_event_id = 2 where id = 11";
    followed.run(link).await;
    followed.caught_up("a re-link").await;
    assert_eq!([1, 2].map(held), [1, 2]);
    let held = followed.cache.get_competitor_snapshot(2).expect("held");
    let bet9ja = held.get("bet9ja").expect("held");
    assert_eq!(bet9ja.snapshot_id(), 122);
}

/// Schemas with names that need quotes, a second change feed in the same database, and another channel.
#[tokio::test]
async fn other_schemas_and_another_channel() {
    let app = r#"We"ird sch'ema"#;
    let cache = r#"Ca"che \ 's"#;
    let channel = r#"Odd "channel" o'clock"#;
    let quoted = r#""We""ird sch'ema""#;
    let database = Database::with_feed();
    let path = format!("set search_path = {quoted}");
    database.psql(&format!("create schema {quoted}"));
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

    let config = |config: Config| config.app_schema(app).cache_schema(cache);
    let followed = Followed::with(&database.dsn(), config).await;
    followed.run(&path).await;
    followed.live().await;
    follows(&database, followed).await;

    // Notifications arrive on this channel. With an hour between polls, nothing else brings a change.
    let config = |config: Config| rarely(config.app_schema(app).cache_schema(cache));
    let followed = Followed::with(&database.dsn(), config).await;
    followed.run(&path).await;
    followed.live().await;
    let before = dump(&followed.cache.view());
    followed.delete(312).await;
    // Not `check`, which waits for the transactions of other tests too. What would make the follower read those is a
    // notification on the usual channel.
    eventually("by notification", async || {
        dump(&followed.cache.view()) != before
    })
    .await;
    let view = followed.cache.view();
    let expected = followed.oracle(view.cut().window_start).await;
    assert_same(&dump(&view), &expected, "by notification");
    assert!(followed.cache.counters().notifications > 0);
}

/// `infinity` and `-infinity` are times like any other.
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
    for (sql, events) in [
        ("update events set kickoff = 'infinity' where id = 2", 3),
        ("update events set kickoff = '-infinity' where id = 1", 2),
    ] {
        assert_eq!(followed.step(sql).await.len(), events, "{sql}");
    }
}

/// JSON cannot express these numbers, so the test uses the accessors.
#[tokio::test]
async fn numbers_that_json_does_not_know() {
    let database = deployment(
        SCHEMA,
        "update market_odds set line = 'NaN', handicap_home = 'infinity' where id = 1122",
    );
    let followed = Followed::new(&database).await;
    let look = |what: &str| {
        let held = followed.cache.get_betpawa_snapshot(1).expect(what);
        let mut markets = held.get(1).expect(what).markets();
        let market = markets.nth(1).expect(what);
        let line = market.line().map(f64::to_bits);
        (line, market.handicap_home(), market.handicap_away())
    };
    let nan = Some(f64::NAN.to_bits());
    assert_eq!(look("warmup"), (nan, Some(f64::INFINITY), None));
    followed.run("update market_odds set handicap_away = '-infinity', handicap_home = '-0' where id = 1122").await;
    followed.caught_up("a change").await;
    let (line, home, away) = look("a change");
    assert_eq!((line, away), (nan, Some(f64::NEG_INFINITY)));
    assert_eq!(home.map(f64::to_bits), Some((-0.0f64).to_bits()));
}

/// Migrations change columns while the cache follows.
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
        followed.step(sql).await;
    }
    assert_eq!(followed.epoch(), 1);
}

/// The cache stops reading without a column that it needs, and its view stays.
#[tokio::test]
async fn the_status_names_a_renamed_column_until_it_is_back() {
    let database = deployment(SCHEMA, "");
    let followed = Followed::new(&database).await;
    let before = followed.check("the seed").await;
    let rename = "alter table events rename column kickoff to starts_at";
    followed.run(rename).await;
    let is_it = |error: &Error| matches!(error, Error::MissingColumn { .. });
    followed.disconnected_by(is_it).await;
    // The triggers must not fail the writes of the application meanwhile.
    followed.run("update events set starts_at = starts_at + interval '1 hour'; delete from odds_snapshots where id = 112").await;
    assert_eq!(dump(&followed.cache.view()), before);
    let rename = "alter table events rename column starts_at to kickoff";
    followed.run(rename).await;
    assert_ne!(followed.check("back").await, before);
}

/// A trigger cannot find its key column. The write must not fail, and the follower reads everything once the column is
/// back.
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
    let held = view.get_betpawa_snapshot(1).expect("held");
    let mut markets = held.get(1).expect("held").markets();
    assert_eq!(markets.next().expect("held").line(), Some(9.0));
}
