//! Errors name what is missing or wrong, and the way out. A malformed row affects only itself.

use std::time::Duration;

use oddscache::{Config, Error, OddsCache, Status, warm_up};
use oddscache_testkit::{
    Database, TABLES, cluster,
    cluster::Cluster,
    connect, eventually,
    followed::{Followed, SEED},
    log::Log,
    server_version,
};
use tracing::Level;

fn config(dsn: &str) -> Config {
    let often = Duration::from_millis(50);
    let config = Config::new(dsn).expect("dsn").poll_interval(often);
    config.retry_unreachable(false)
}

/// The error with which the follower ends. `run`, `ready` and the status must all report it.
async fn refusal(config: Config) -> Error {
    let (cache, follower) = OddsCache::connect(config);
    let follower = tokio::spawn(follower.run());
    let error = cache.ready().await.expect_err("must not get warm");
    let returned = follower.await.expect("no panic");
    let returned = returned.expect_err("ends with an error");
    assert_eq!(error.to_string(), returned.to_string());
    let error = Some(returned);
    assert_eq!(cache.status(), Status::Ended { error });
    assert!(!cache.is_warm() && cache.view().is_empty());
    cache.ready().await.expect_err("the same error again")
}

async fn refused_by(database: &Database) -> Error {
    let config = config(&database.dsn());
    let error = refusal(config.clone()).await;
    // Reading once makes the same checks.
    let once = warm_up(config).await.expect_err("must not read");
    assert_eq!(once.to_string(), error.to_string());
    error
}

/// The error for a database that has the change feed and on which `sql` has run.
async fn after(sql: &str) -> Error {
    let database = Database::with_feed();
    database.psql(sql);
    refused_by(&database).await
}

fn assert_names(error: &Error, names: &[&str]) {
    let text = error.to_string();
    for name in names {
        assert!(text.contains(name), "{name} is not named: {text}");
    }
}

/// The error has the address that was tried.
#[tokio::test]
async fn the_error_names_an_unreachable_database() {
    for (place, name) in [
        ("host=127.0.0.1 port=1", "127.0.0.1:1/d"),
        ("host=/nonexistent", "/nonexistent/.s.PGSQL.5432/d"),
    ] {
        let error = refusal(config(&format!("{place} user=u dbname=d"))).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.is_transient());
        assert_names(&error, &[name]);
    }
}

/// The limit of a role is not a limit of the server, and waiting may help.
#[tokio::test]
async fn the_error_names_the_limits_of_connections() {
    let cluster = Cluster::with_feed(SEED);
    cluster.psql_ok(
        "postgres",
        &["-qc", "create role few login connection limit 0"],
    );
    let error = refusal(config(&cluster.dsn_as("few", "postgres"))).await;
    assert!(
        matches!(error, Error::TooManyConnections { .. }),
        "{error:?}"
    );
    assert!(error.is_transient());
    let statements = [
        "ALTER ROLE \"few\" CONNECTION LIMIT",
        "ALTER DATABASE \"postgres\" CONNECTION LIMIT",
        "(SQLSTATE 53300)",
    ];
    assert_names(&error, &statements);
}

/// With `retry_unreachable` a cache may start before its database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_waits_for_an_unreachable_database() {
    let cluster = Cluster::with_feed(SEED);
    let dsn = cluster.dsn("postgres");
    cluster.stop("fast").expect("stops");
    let (cache, follower) = OddsCache::connect(config(&dsn).retry_unreachable(true));
    let follower = tokio::spawn(follower.run());
    eventually("tries", async || cache.counters().failures >= 3).await;
    match cache.status() {
        Status::Disconnected { error, .. } => {
            assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        }
        status => panic!("{status}"),
    }
    assert!(!cache.is_warm());
    cluster.boot().expect("starts");
    cache.ready().await.expect("warm");
    assert_eq!(cache.view().len(), 3);
    assert_eq!(cache.view().epoch(), 1);
    follower.abort();
}

/// Waiting does not fix a wrong password, and no message contains it.
#[tokio::test]
async fn the_error_names_a_refused_login_and_the_follower_ends() {
    let database = Database::with_feed();
    let role = format!("login_{}", database.name);
    database.psql(&format!("create role {role} login password 's3cret-right'"));
    let port = cluster().port();
    let tcp = |password: &str| {
        format!(
            "host=127.0.0.1 port={port} user={role} dbname={} password={password}",
            database.name
        )
    };
    let wrong = config(&tcp("s3cret-wrong")).retry_unreachable(true);
    let error = refusal(wrong.clone()).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(!error.is_transient());
    let address = format!("127.0.0.1:{port}/{}", database.name);
    assert_names(&error, &[&address, &role, "28P01"]);
    let handles = OddsCache::connect(wrong.clone());
    let shown = format!("{error} {error:?} {wrong:?} {handles:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    // With the right password it still lacks the rights.
    let error = refusal(config(&tcp("s3cret-right"))).await;
    assert!(matches!(error, Error::MissingRight { .. }), "{error:?}");

    let error = refusal(config(&cluster().dsn("nowhere"))).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_names(&error, &["/nowhere", "3D000"]);
}

/// No error about a malformed connection string contains its password.
#[test]
fn no_secret_in_a_connection_string_is_shown() {
    let strings = [
        "postgres://user:s3cret@localhost/db",
        "postgres://user:s3cret@localhost:port/db",
        "postgres://user:s3cret@localhost/db?sslmode=s3cret",
        "host=a password=s3cret",
        "host=a password='s3cret port=1",
        "host=a port=x password=s3cret",
        "s3cret",
        "host=a s3cret=1 password=s3cret",
    ];
    let mut refused = 0;
    for string in strings {
        let shown = match Config::new(string) {
            Ok(config) => format!("{config:?} {:?}", OddsCache::connect(config.clone()).1),
            Err(error) => {
                refused += 1;
                assert!(matches!(error, Error::Config(_)), "{error:?}");
                format!("{error} {error:?}")
            }
        };
        // A message may contain the name of a parameter.
        let rest = shown.replace("`s3cret`", "");
        assert!(!rest.contains("s3cret"), "{string}: {shown}");
    }
    assert!(refused >= 3);
}

fn quoted(table: &str) -> String {
    format!("\"public\".\"{table}\"")
}

/// Each table that the cache reads is checked before the first read.
#[tokio::test]
async fn the_error_names_a_missing_table() {
    for table in TABLES {
        let error = after(&format!("drop table {table} cascade")).await;
        assert!(matches!(error, Error::MissingTable { .. }), "{error:?}");
        assert_names(&error, &[&quoted(table), "app_schema"]);
    }
    let database = Database::with_feed();
    let error = refusal(config(&database.dsn()).app_schema("elsewhere")).await;
    assert_names(&error, &["\"elsewhere\".\"events\"", "app_schema"]);
}

/// Each column that the cache needs is checked before the first read.
#[tokio::test]
async fn the_error_names_a_missing_column() {
    for (table, column) in [
        ("events", "kickoff"),
        ("competitor_events", "source"),
        ("competitor_events", "betpawa_event_id"),
        ("odds_snapshots", "bookmaker_id"),
        ("odds_snapshots", "event_id"),
        ("competitor_odds_snapshots", "captured_at"),
        ("competitor_odds_snapshots", "competitor_event_id"),
        ("market_odds", "outcomes"),
        ("market_odds", "snapshot_id"),
        ("competitor_market_odds", "betpawa_market_id"),
        ("competitor_market_odds", "betpawa_market_name"),
    ] {
        let error = after(&format!("alter table {table} drop column {column}")).await;
        let is_it = matches!(&error, Error::MissingColumn { table: at, column: named }
            if *at == quoted(table) && named == column);
        assert!(is_it, "{error:?}");
        assert_names(&error, &[table, column]);
    }
}

/// A column is refused if the cache cannot read its type without a loss.
#[tokio::test]
async fn the_error_names_a_column_with_an_unknown_type() {
    for (table, column, to) in [
        ("events", "kickoff", "text"),
        ("events", "kickoff", "date using kickoff::date"),
        ("odds_snapshots", "bookmaker_id", "text"),
        ("market_odds", "line", "text"),
        ("market_odds", "outcomes", "bytea using null"),
        ("market_odds", "unavailable_at", "text"),
        ("odds_snapshots", "last_confirmed_at", "int8 using null"),
    ] {
        let sql =
            format!("alter table {table} alter {column} drop not null, alter {column} type {to}");
        let error = after(&sql).await;
        let Error::WrongType {
            table: at,
            column: named,
            found,
            expected,
        } = &error
        else {
            panic!("{error:?}");
        };
        let to = to.split(' ').next().expect("a type");
        let expected_names = (&quoted(table), column, to);
        assert_eq!((at, named.as_str(), found.as_str()), expected_names);
        assert_names(&error, &[table, column, to, expected]);
    }
}

/// The error for a missing or incomplete change feed says how to install it.
#[tokio::test]
async fn the_error_names_a_feed_that_is_not_installed() {
    let application = Database::application();
    let error = refused_by(&application).await;
    assert!(matches!(error, Error::FeedMissing { .. }), "{error:?}");
    assert_names(&error, &["oddscache", "does not exist", "install.sql"]);
    // Without a change feed the tables can be read once, but not followed.
    let without = config(&application.dsn()).need_feed(false);
    let view = warm_up(without.clone()).await.expect("read");
    assert_eq!(view.epoch(), 1);
    let error = refusal(without).await;
    assert!(matches!(error, Error::Config(_)), "{error:?}");

    for (sql, name) in [
        ("drop table oddscache.change_log", "change_log"),
        ("drop table oddscache.log_state", "log_state"),
        ("drop function oddscache.feed_version()", "feed_version()"),
        ("delete from oddscache.log_state", "row in log_state"),
    ] {
        let error = after(sql).await;
        assert!(matches!(error, Error::FeedMissing { .. }), "{error:?}");
        assert_names(&error, &[name, "install.sql"]);
    }
    let database = Database::with_feed();
    let error = refusal(config(&database.dsn()).cache_schema("other")).await;
    assert_names(&error, &["schema other"]);
}

/// A follower must not follow a change feed that it does not understand, or one that logs other tables.
#[tokio::test]
async fn the_error_names_a_feed_of_another_version_or_for_other_tables() {
    for (version, way_out) in [
        (1, "oddscache sql install --apply"),
        (4, "upgrade oddscache"),
        (99, "upgrade oddscache"),
    ] {
        let sql = format!(
            "create or replace function oddscache.feed_version() returns integer language sql as 'select {version}'"
        );
        let error = after(&sql).await;
        assert!(
            matches!(error, Error::FeedVersion { found, oldest: 2, newest: 3, .. } if found == version),
            "{error:?}"
        );
        let found = format!("version {version},");
        assert_names(&error, &[&found, "versions 2 to 3", way_out]);
    }
    let error = after("update oddscache.log_state set app_schema = 'elsewhere'").await;
    assert!(matches!(error, Error::FeedElsewhere { .. }), "{error:?}");
    assert_names(&error, &["elsewhere", "public"]);
}

/// The role of the cache can follow every change, and can write to nothing.
#[tokio::test]
async fn the_rights_of_grants_sql_suffice_and_allow_no_write() {
    let database = Database::seeded();
    let dsn = cluster().dsn_as(&database.reader(), &database.name);
    let followed = Followed::beside(&dsn, &database.dsn(), |config| config).await;
    let own = connect(&dsn).await;
    followed.live().await;
    for sql in [
        "delete from odds_snapshots where id = 112",
        "truncate competitor_odds_snapshots cascade",
        "create table odds_snapshots_2020 partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01')",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-02-03')",
    ] {
        followed.step(sql).await;
    }
    assert_eq!(followed.epoch(), 1);
    for sql in [
        "insert into bookmakers (id, name, slug) values (9, '', '')",
        "update events set kickoff = now()",
        "delete from oddscache.change_log",
        "update oddscache.log_state set channel = ''",
        "select oddscache.prune()",
        "update bookmakers set name = ''",
        "create table t ()",
    ] {
        // Before PostgreSQL 15 every role may create tables in the schema public.
        if server_version() < 15 && sql == "create table t ()" {
            continue;
        }
        let error = own.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{sql}");
    }
}

/// Without any one of its rights, the follower ends with an error that names the right and the object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_names_each_missing_right() {
    let database = Database::seeded();
    let role = database.reader();
    let dsn = cluster().dsn_as(&role, &database.name);
    // Revoke the rights that every role has, so that each right is granted explicitly.
    database.psql(&format!(
        "revoke usage on schema public from public; grant usage on schema public to {role};
         revoke execute on function oddscache.feed_version() from public;
         grant execute on function oddscache.feed_version() to {role}"
    ));
    let of_the_feed = [
        ("USAGE", "schema public", "schema \"public\""),
        ("USAGE", "schema oddscache", "schema \"oddscache\""),
        (
            "SELECT",
            "oddscache.change_log",
            "table \"oddscache\".change_log",
        ),
        (
            "SELECT",
            "oddscache.log_state",
            "table \"oddscache\".log_state",
        ),
        (
            "EXECUTE",
            "function oddscache.feed_version()",
            "function \"oddscache\".feed_version()",
        ),
    ];
    let of_the_feed = of_the_feed.map(|(right, object, named)| (right, object, named.to_owned()));
    let of_tables = TABLES.map(|table| ("SELECT", table, format!("table {}", quoted(table))));
    for (right, object, named) in of_the_feed.into_iter().chain(of_tables) {
        database.psql(&format!("revoke {right} on {object} from {role}"));
        let error = refusal(config(&dsn)).await;
        let is_it = matches!(&error, Error::MissingRight { role: of, privilege, object }
            if *of == role && *privilege == right && *object == named);
        assert!(is_it, "{right} on {object}: {error:?}");
        assert_names(&error, &[&role, right, &named, "grants.sql"]);
        database.psql(&format!("grant {right} on {object} to {role}"));
    }
    // A right on columns alone is not enough to lock the table.
    database.psql(&format!(
        "revoke select on events from {role}; grant select (id, kickoff) on events to {role}"
    ));
    let error = refusal(config(&dsn)).await;
    assert!(matches!(error, Error::MissingRight { .. }), "{error:?}");
    database.psql(&format!("grant select on events to {role}"));
    // All rights are back. If the role loses one while the cache follows, the error names it and the view stays
    // readable.
    let followed = Followed::with(&dsn, |config| config).await;
    database.psql(&format!("revoke select on market_odds from {role}"));
    let is_it = |error: &Error| matches!(error, Error::MissingRight { .. });
    followed.disconnected_by(is_it).await;
    assert_eq!(followed.cache.view().len(), 3);
    database.psql(&format!("grant select on market_odds to {role}"));
    eventually("follows again", async || {
        followed.cache.counters().resumed == 1
    })
    .await;
}

/// `ready` must not wait for ever for a follower that was dropped or aborted.
#[tokio::test]
async fn ready_fails_once_the_follower_is_gone() {
    let (cache, follower) = OddsCache::connect(config("host=127.0.0.1 port=1 user=u"));
    drop(follower);
    let error = cache.ready().await.expect_err("nobody warms it");
    assert!(matches!(error, Error::FollowerStopped), "{error:?}");
    assert_eq!(cache.status(), Status::Ended { error: None });

    let unreachable = config("host=127.0.0.1 port=1 user=u").retry_unreachable(true);
    let (cache, follower) = OddsCache::connect(unreachable);
    let follower = tokio::spawn(follower.run());
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.ready().await }
    });
    eventually("tries", async || cache.counters().failures >= 1).await;
    follower.abort();
    let waited = waiting.await.expect("no panic");
    let error = waited.expect_err("nobody warms it");
    assert!(matches!(error, Error::FollowerStopped), "{error:?}");
}

/// The view stays readable. The status and its age say that nothing updates it.
#[tokio::test]
async fn a_warm_cache_stays_ready_after_its_follower_has_ended() {
    let followed = Followed::seeded().await;
    followed.cache.ready().await.expect("still");
    followed.follower.abort();
    let ended = Status::Ended { error: None };
    eventually("ended", async || followed.cache.status() == ended).await;
    followed.cache.ready().await.expect("still");
    assert!(followed.cache.is_warm());
    let view = followed.cache.view();
    assert_eq!(view.len(), 3);
    eventually("ages", async || view.age() > Duration::from_millis(200)).await;
}

/// One malformed row must not hide an event, and the log must not contain its data.
#[tokio::test]
async fn malformed_rows_are_counted_and_logged_and_the_event_is_served() {
    let log = Log::capture(Level::TRACE);
    let database = Database::seeded();
    database.psql(
        "alter table market_odds alter outcomes drop not null, alter betpawa_market_id drop not null,
         alter betpawa_market_name drop not null",
    );
    let followed = Followed::new(&database).await;
    assert_eq!(followed.cache.stats().malformed_rows, 0);
    let good = r#"'[{"name": "SECRET", "odds": 1.5}]'"#;
    let no_key = "betpawa_market_id or betpawa_market_name is null";
    for (change, problem, outcomes) in [
        ("outcomes = null", "outcomes is null", 0),
        (
            r#"outcomes = '[{"name": "SECRET", "odds": 1e999}]'"#,
            "not valid JSON",
            0,
        ),
        (r#"outcomes = '{"SECRET": 1}'"#, "outcomes is not a list", 0),
        (r#"outcomes = '"SECRET"'"#, "outcomes is not a list", 0),
        (
            r#"outcomes = '["SECRET", {"name": "1"}]'"#,
            "an outcome is not an object",
            1,
        ),
        (
            r#"outcomes = '[{"name": ["SECRET"]}, {"name": "1"}]'"#,
            "no name",
            2,
        ),
        (
            r#"outcomes = '[{"name": "1", "odds": "SECRET"}]'"#,
            "odds are not a number",
            1,
        ),
        (
            r#"outcomes = '[{"name": "1", "is_active": "SECRET"}]'"#,
            "is_active is not a boolean",
            1,
        ),
        (
            r#"outcomes = GOOD, market_groups = '"SECRET"'"#,
            "market_groups is not a list",
            1,
        ),
        ("outcomes = GOOD, betpawa_market_id = null", no_key, 1),
        ("outcomes = GOOD, betpawa_market_name = null", no_key, 1),
    ] {
        let change = change.replace("GOOD", good);
        log.take();
        let sql = format!("update market_odds set {change} where id = 1122");
        followed.run(&sql).await;
        let view = followed.caught_up(&change).await;
        assert_eq!(view.stats().malformed_rows, 1, "{change}");
        let snapshots = view.get_betpawa_snapshot(1).expect("served");
        let snapshot = snapshots.get(1).expect("served");
        assert_eq!(snapshot.snapshot_id(), 112);
        let counts = snapshot.markets().map(|market| market.outcomes().len());
        assert_eq!(counts.collect::<Vec<_>>(), [2, outcomes], "{change}");
        let logged = log.take();
        let line = logged.lines().find(|line| line.contains("malformed"));
        let line = line.unwrap_or_else(|| panic!("{change}: {logged}"));
        for name in ["market_odds", "row_id=1122", "snapshot_id=112", problem] {
            assert!(line.contains(name), "{name} is not named: {line}");
        }
        assert!(!logged.contains("SECRET"), "{logged}");
        let sql = format!(
            "update market_odds set outcomes = {good}, market_groups = null, betpawa_market_id = '1', betpawa_market_name = 'one'
             where id = 1122"
        );
        followed.run(&sql).await;
        let view = followed.caught_up("repaired").await;
        assert_eq!(view.stats().malformed_rows, 0);
    }
    // A warmup counts and names malformed rows, too. If there are many, it does not name each. Outcomes that are not a
    // list read as empty.
    let sql =
        "update market_odds set outcomes = '1'; update competitor_market_odds set outcomes = '2'";
    followed.step(sql).await;
    log.take();
    let other = Followed::new(&database).await;
    let stats = other.cache.stats();
    assert_eq!(stats.malformed_rows, stats.total_markets);
    let logged = log.take();
    for name in ["competitor_market_odds", "outcomes is not a list"] {
        assert!(logged.contains(name), "{logged}");
    }
    other.check("after a warmup").await;
}
