//! What is missing or wrong gets its name and the way out; bad rows cost nobody but themselves.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use oddscache::{Config, Error, OddsCache, Status, sql::Script, warm_up};
use oddscache_testkit::{
    Database, cluster,
    cluster::Cluster,
    connect, eventually,
    followed::{Followed, SEED, run},
    psql, run_script, server_version,
};

fn config(dsn: &str) -> Config {
    let config = Config::new(dsn).expect("dsn");
    config
        .poll_interval(Duration::from_millis(50))
        .retry_unreachable(false)
}

/// The error that following ends with; everybody who asks hears the same.
async fn refusal(config: Config) -> Error {
    let (cache, follower) = OddsCache::connect(config);
    let follower = tokio::spawn(follower.run());
    let error = cache.ready().await.expect_err("must not get warm");
    let returned = follower
        .await
        .expect("no panic")
        .expect_err("ends with an error");
    assert_eq!(error.to_string(), returned.to_string());
    assert_eq!(
        cache.status(),
        Status::Ended {
            error: Some(returned)
        }
    );
    assert!(!cache.is_warm() && cache.view().is_empty());
    cache.ready().await.expect_err("and says so again")
}

async fn refused_by(database: &Database) -> Error {
    let config = config(&database.dsn());
    let error = refusal(config.clone()).await;
    // Reading once checks the same.
    let once = warm_up(config).await.expect_err("must not read");
    assert_eq!(once.to_string(), error.to_string());
    error
}

/// The error of a database with the feed after `sql`.
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

#[tokio::test]
async fn an_unreachable_database_is_named() {
    let nowhere = [
        "host=127.0.0.1 port=1 user=u dbname=d",
        "host=/nonexistent user=u dbname=d",
    ];
    for (dsn, names) in nowhere
        .into_iter()
        .zip([["127.0.0.1:1/d"], ["/nonexistent/.s.PGSQL.5432/d"]])
    {
        let error = refusal(config(dsn)).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.is_transient());
        assert_names(&error, &names);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_database_is_waited_for() {
    let cluster = Cluster::start(&["fsync = off"]).expect("a cluster");
    let dsn = cluster.dsn("postgres");
    for args in [
        ["-qf", "src/demo/schema.sql"],
        ["-qf", "sql/install.sql"],
        ["-qc", SEED],
    ] {
        assert!(
            cluster
                .psql("postgres", &args)
                .expect("psql")
                .status
                .success()
        );
    }
    cluster.stop("fast").expect("stops");
    let (cache, follower) = OddsCache::connect(config(&dsn).retry_unreachable(true));
    let follower = tokio::spawn(follower.run());
    eventually("tries", async || cache.counters().failures >= 3).await;
    let status = cache.status();
    assert!(
        matches!(
            &status,
            Status::Disconnected {
                error: Error::Unreachable { .. },
                ..
            }
        ),
        "{status}"
    );
    assert!(!cache.is_warm());
    cluster.boot().expect("starts");
    cache.ready().await.expect("warm");
    assert_eq!(cache.view().len(), 3);
    assert_eq!(cache.view().epoch(), 1);
    follower.abort();
}

#[tokio::test]
async fn a_refused_login_is_named_and_not_waited_for() {
    let database = Database::with_feed();
    let role = format!("login_{}", database.name);
    psql(
        &database.name,
        &[
            "-qc",
            &format!("create role {role} login password 's3cret-right'"),
        ],
    );
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
    assert_names(
        &error,
        &[
            &format!("127.0.0.1:{port}/{}", database.name),
            &role,
            "28P01",
        ],
    );
    let shown = format!(
        "{error} {error:?} {wrong:?} {:?}",
        OddsCache::connect(wrong.clone())
    );
    assert!(!shown.contains("s3cret"), "{shown}");
    // Let in, it lacks the rights.
    let error = refusal(config(&tcp("s3cret-right"))).await;
    assert!(matches!(error, Error::MissingRight { .. }), "{error:?}");

    let error = refusal(config(&cluster().dsn("nowhere"))).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_names(&error, &["/nowhere", "3D000"]);
}

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
        // The name of a parameter is no secret.
        assert!(
            !shown.replace("`s3cret`", "").contains("s3cret"),
            "{string}: {shown}"
        );
    }
    assert!(refused >= 3);
}

const TABLES: [&str; 6] = [
    "events",
    "competitor_events",
    "odds_snapshots",
    "competitor_odds_snapshots",
    "market_odds",
    "competitor_market_odds",
];

#[tokio::test]
async fn a_missing_table_is_named() {
    for table in TABLES {
        let error = after(&format!("drop table {table} cascade")).await;
        assert!(matches!(error, Error::MissingTable { .. }), "{error:?}");
        assert_names(&error, &[&format!("\"public\".\"{table}\""), "app_schema"]);
    }
    let database = Database::with_feed();
    let error = refusal(config(&database.dsn()).app_schema("elsewhere")).await;
    assert_names(&error, &["\"elsewhere\".\"events\"", "app_schema"]);
}

#[tokio::test]
async fn a_missing_column_is_named() {
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
        let Error::MissingColumn {
            table: found,
            column: named,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (found.as_str(), named.as_str()),
            (format!("\"public\".\"{table}\"").as_str(), column)
        );
        assert_names(&error, &[table, column]);
    }
}

#[tokio::test]
async fn a_column_of_a_type_that_cannot_be_read_is_named() {
    for (table, column, to) in [
        ("events", "kickoff", "text"),
        ("events", "kickoff", "date using kickoff::date"),
        ("odds_snapshots", "bookmaker_id", "text"),
        ("market_odds", "line", "text"),
        ("market_odds", "outcomes", "bytea using null"),
        ("market_odds", "unavailable_at", "text"),
        (
            "competitor_odds_snapshots",
            "last_confirmed_at",
            "bigint using null",
        ),
    ] {
        let error = after(&format!(
            "alter table {table} alter {column} drop not null, alter {column} type {to}"
        ))
        .await;
        let Error::WrongType {
            table: found,
            column: named,
            found: ty,
            expected,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (found.as_str(), named.as_str()),
            (format!("\"public\".\"{table}\"").as_str(), column)
        );
        let to = to
            .split(' ')
            .next()
            .expect("a type")
            .replace("bigint", "int8");
        assert_eq!(*ty, to);
        assert_names(&error, &[table, column, &to, expected]);
    }
}

#[tokio::test]
async fn a_feed_that_is_not_installed_is_named() {
    let application = Database::application();
    let error = refused_by(&application).await;
    assert!(matches!(error, Error::FeedMissing { .. }), "{error:?}");
    assert_names(&error, &["oddscache", "does not exist", "install.sql"]);
    // It can be read without one, but not followed.
    let view = warm_up(config(&application.dsn()).need_feed(false))
        .await
        .expect("read");
    assert_eq!(view.epoch(), 1);
    let error = refusal(config(&application.dsn()).need_feed(false)).await;
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

#[tokio::test]
async fn a_feed_of_another_version_or_for_other_tables_is_named() {
    let sql = "create or replace function oddscache.feed_version() returns integer language sql as 'select 99'";
    let error = after(sql).await;
    assert!(
        matches!(error, Error::FeedVersion { found: 99, .. }),
        "{error:?}"
    );
    assert_names(&error, &["99", "install"]);
    let error = after("update oddscache.log_state set app_schema = 'elsewhere'").await;
    assert!(matches!(error, Error::FeedElsewhere { .. }), "{error:?}");
    assert_names(&error, &["elsewhere", "public"]);
}

#[tokio::test]
async fn a_trigger_that_does_not_always_fire_is_named() {
    for (number, table) in TABLES.into_iter().enumerate() {
        let op = ["insert", "update", "delete", "truncate"][number % 4];
        let name = format!("oddscache_{op}");
        for (sql, expected) in [
            (format!("drop trigger {name} on {table}"), "missing"),
            (
                format!("alter table {table} disable trigger {name}"),
                "disabled",
            ),
            (
                format!("alter table {table} enable trigger {name}"),
                "not ENABLE ALWAYS",
            ),
            (
                format!("alter table {table} enable replica trigger {name}"),
                "not ENABLE ALWAYS",
            ),
        ] {
            let error = after(&sql).await;
            let Error::Trigger {
                table: found,
                trigger,
                problem,
            } = &error
            else {
                panic!("{sql}: {error:?}");
            };
            assert!(found.ends_with(table), "{found}");
            assert_eq!((trigger, *problem), (&name, expected), "{sql}");
            assert_names(&error, &[table, &name, expected, "install.sql"]);
        }
    }
}

/// Triggers of a partition see only what names the partition: the rest is followed all the same.
#[tokio::test]
async fn a_partition_without_triggers_is_no_error() {
    let database = Database::seeded();
    database.psql("drop trigger oddscache_insert on odds_snapshots_default");
    let followed = Followed::new(&database).await;
    followed
        .run("insert into odds_snapshots (id, event_id, bookmaker_id) values (900, 1, 1)")
        .await;
    followed.check("through the parent").await;
}

/// A database with the seed, and a role that may do what `sql/grants.sql` says.
fn granted() -> (Database, String) {
    let database = Database::seeded();
    let role = format!("role_{}", database.name);
    run_script(&database.name, Script::Grants, &[("role", &role)]);
    (database, role)
}

#[tokio::test]
async fn the_granted_rights_suffice() {
    let (database, role) = granted();
    let dsn = cluster().dsn_as(&role, &database.name);
    let mut followed = Followed::with(&dsn, |config| config).await;
    let own = std::mem::replace(&mut followed.app, connect(&database.dsn()).await);
    followed.check("the seed").await;
    eventually("live", async || followed.cache.status() == Status::Live).await;
    for sql in [
        "delete from odds_snapshots where id = 112",
        "truncate competitor_odds_snapshots cascade",
        "create table odds_snapshots_2020 partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01')",
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (900, 1, 1, '2020-02-03')",
    ] {
        followed.run(sql).await;
        followed.check(sql).await;
    }
    assert_eq!(followed.cache.view().epoch(), 1);
    for sql in [
        "insert into bookmakers (id, name, slug) values (9, '', '')",
        "update events set kickoff = now()",
        "delete from oddscache.change_log",
        "update oddscache.log_state set channel = ''",
        "select oddscache.prune()",
        "select * from bookmakers",
        "create table t ()",
    ] {
        // Before PostgreSQL 15 every role may make tables in schema public.
        if server_version() < 15 && sql == "create table t ()" {
            continue;
        }
        let error = own.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_missing_right_is_named() {
    let (database, role) = granted();
    let dsn = cluster().dsn_as(&role, &database.name);
    // What everybody may is taken from everybody.
    database.psql(&format!(
        "revoke usage on schema public from public; grant usage on schema public to {role};
         revoke execute on function oddscache.feed_version() from public;
         grant execute on function oddscache.feed_version() to {role}"
    ));
    let mut rights = vec![
        (
            "USAGE",
            "schema public".to_owned(),
            "schema \"public\"".to_owned(),
        ),
        (
            "USAGE",
            "schema oddscache".to_owned(),
            "schema \"oddscache\"".to_owned(),
        ),
        (
            "SELECT",
            "oddscache.change_log".to_owned(),
            "table \"oddscache\".change_log".to_owned(),
        ),
        (
            "SELECT",
            "oddscache.log_state".to_owned(),
            "table \"oddscache\".log_state".to_owned(),
        ),
        (
            "EXECUTE",
            "function oddscache.feed_version()".to_owned(),
            "function \"oddscache\".feed_version()".to_owned(),
        ),
    ];
    rights.extend(TABLES.map(|table| {
        (
            "SELECT",
            table.to_owned(),
            format!("table \"public\".\"{table}\""),
        )
    }));
    for (right, object, named) in &rights {
        database.psql(&format!("revoke {right} on {object} from {role}"));
        let error = refusal(config(&dsn)).await;
        let Error::MissingRight {
            role: found,
            privilege,
            object: missing,
        } = &error
        else {
            panic!("{right} on {object}: {error:?}");
        };
        assert_eq!((found, privilege, missing), (&role, right, named));
        assert_names(&error, &[&role, right, named, "grants.sql"]);
        database.psql(&format!("grant {right} on {object} to {role}"));
    }
    // A right on columns alone is not enough to lock the table.
    database.psql(&format!(
        "revoke select on events from {role}; grant select (id, kickoff) on events to {role}"
    ));
    let error = refusal(config(&dsn)).await;
    assert!(matches!(error, Error::MissingRight { .. }), "{error:?}");
    database.psql(&format!("grant select on events to {role}"));
    let (cache, follower) = OddsCache::connect(config(&dsn));
    let follower = tokio::spawn(follower.run());
    cache.ready().await.expect("all rights are back");
    // Lost while it follows, it is named, and the view stays readable.
    database.psql(&format!("revoke select on market_odds from {role}"));
    eventually("named", async || {
        matches!(
            cache.status(),
            Status::Disconnected {
                error: Error::MissingRight { .. },
                ..
            }
        )
    })
    .await;
    assert_eq!(cache.view().len(), 3);
    database.psql(&format!("grant select on market_odds to {role}"));
    eventually("follows again", async || cache.view().epoch() == 2).await;
    follower.abort();
}

#[tokio::test]
async fn who_waits_for_a_follower_that_is_gone_is_told() {
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
    let error = waiting
        .await
        .expect("no panic")
        .expect_err("nobody warms it");
    assert!(matches!(error, Error::FollowerStopped), "{error:?}");
}

#[tokio::test]
async fn once_warm_always_ready_but_not_always_live() {
    let database = Database::seeded();
    let followed = Followed::new(&database).await;
    followed.cache.ready().await.expect("still");
    followed.follower.abort();
    eventually("ended", async || {
        followed.cache.status() == Status::Ended { error: None }
    })
    .await;
    followed.cache.ready().await.expect("still");
    assert!(followed.cache.is_warm());
    let view = followed.cache.view();
    assert_eq!(view.len(), 3);
    eventually("ages", async || view.age() > Duration::from_millis(200)).await;
}

/// Keeps what is logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().expect("no panic"));
        String::from_utf8(bytes).expect("text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn malformed_rows_are_counted_and_named_and_the_event_is_served() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let database = Database::seeded();
    database.psql(
        "alter table market_odds alter outcomes drop not null, alter betpawa_market_id drop not null,
         alter betpawa_market_name drop not null",
    );
    let followed = Followed::new(&database).await;
    assert_eq!(followed.cache.stats().malformed_rows, 0);
    let good = r#"'[{"name": "SECRET", "odds": 1.5}]'"#;
    let kinds = [
        ("outcomes = null".to_owned(), "outcomes is null", 0),
        (
            r#"outcomes = '[{"name": "SECRET", "odds": 1e999}]'"#.to_owned(),
            "no JSON that can be read",
            0,
        ),
        (
            r#"outcomes = '{"SECRET": 1}'"#.to_owned(),
            "outcomes is not a list",
            0,
        ),
        (
            r#"outcomes = '"SECRET"'"#.to_owned(),
            "outcomes is not a list",
            0,
        ),
        (
            r#"outcomes = '["SECRET", {"name": "1"}]'"#.to_owned(),
            "an outcome is not an object",
            1,
        ),
        (
            r#"outcomes = '[{"name": ["SECRET"]}, {"name": "1"}]'"#.to_owned(),
            "no name",
            2,
        ),
        (
            r#"outcomes = '[{"name": "1", "odds": "SECRET"}]'"#.to_owned(),
            "odds are no number",
            1,
        ),
        (
            r#"outcomes = '[{"name": "1", "is_active": "SECRET"}]'"#.to_owned(),
            "is_active is no boolean",
            1,
        ),
        (
            format!(r#"outcomes = {good}, market_groups = '"SECRET"'"#),
            "market_groups is not a list",
            1,
        ),
        (
            format!("outcomes = {good}, betpawa_market_id = null"),
            "betpawa_market_id or betpawa_market_name is null",
            1,
        ),
        (
            format!("outcomes = {good}, betpawa_market_name = null"),
            "betpawa_market_id or betpawa_market_name is null",
            1,
        ),
    ];
    for (change, problem, outcomes) in &kinds {
        log.take();
        followed
            .run(&format!("update market_odds set {change} where id = 1122"))
            .await;
        let view = followed.caught_up(change).await;
        assert_eq!(view.stats().malformed_rows, 1, "{change}");
        let snapshot = view
            .get_betpawa_snapshot(1)
            .and_then(|snapshots| snapshots.get(1))
            .expect("served");
        assert_eq!(snapshot.snapshot_id(), 112);
        let counts: Vec<usize> = snapshot
            .markets()
            .map(|market| market.outcomes().len())
            .collect();
        assert_eq!(counts, [2, *outcomes], "{change}");
        let logged = log.take();
        let line = logged
            .lines()
            .find(|line| line.contains("malformed"))
            .unwrap_or_else(|| panic!("{change}: {logged}"));
        for name in ["market_odds", "row_id=1122", "snapshot_id=112", problem] {
            assert!(line.contains(name), "{name} is not named: {line}");
        }
        assert!(!logged.contains("SECRET"), "{logged}");
        followed
            .run(&format!(
                "update market_odds set outcomes = {good}, market_groups = null, betpawa_market_id = '1', betpawa_market_name = 'one'
                 where id = 1122"
            ))
            .await;
        assert_eq!(followed.caught_up("mended").await.stats().malformed_rows, 0);
    }
    // A warmup counts and names them too; many of them are not named one by one.
    run(
        &followed.app,
        "update market_odds set outcomes = '1'; update competitor_market_odds set outcomes = '2'",
    )
    .await;
    followed
        .check("outcomes that are no list read as empty")
        .await;
    log.take();
    let other = Followed::new(&database).await;
    let stats = other.cache.stats();
    assert_eq!(stats.malformed_rows, stats.total_markets);
    let logged = log.take();
    assert!(
        logged.contains("competitor_market_odds") && logged.contains("outcomes is not a list"),
        "{logged}"
    );
    other.check("after a warmup").await;
}
