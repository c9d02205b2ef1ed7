//! A cache that hangs or dies does not harm the application's statements. The tests stop or kill the process in the
//! middle of a read, over TCP and over the Unix socket. INSERT, UPDATE and DELETE never wait for it. TRUNCATE, ALTER
//! and DETACH wait no longer than sql/README.md says.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::time::Duration;

use oddscache::sql::Script;
use oddscache_testkit::{
    Database, cluster, connect, eventually, followed::run, run_script, service::Service,
};
use tokio_postgres::Client;

/// How the process connects to the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Tcp,
    Socket,
}

/// Where in a read the test stops the process.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    /// Between two statements: the server waits for the next one.
    Between,
    /// Within the rows of a statement: the server waits for the process to receive them.
    Rows,
}

/// The bounds that sql/README.md promises. The slack is for a machine that is busy with other work.
const BETWEEN: Duration = Duration::from_secs(5);
const ROWS_OVER_TCP: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(15);

/// Statements that need a stronger lock than writers do. They lock different tables, and none changes the cached odds.
const HEAVY: [&str; 4] = [
    "truncate bookmakers, competitor_market_odds",
    "alter table events add column more int",
    "alter table odds_snapshots detach partition odds_snapshots_default",
    "lock table market_odds in access exclusive mode",
];

/// Selects state and wait event of the follower's reading session, if it holds the locks of a read.
const READING: &str = "select a.state, coalesce(a.wait_event, '') from pg_stat_activity a
    where a.datname = current_database() and a.application_name = 'oddscache follow'
      and exists (select from pg_locks l where l.pid = a.pid and l.relation = 'events'::regclass and l.granted)";

/// A database, a client of the application, and a process that follows.
struct Scene {
    database: Database,
    app: Client,
    service: Service,
}

impl Scene {
    async fn new(by: By) -> Scene {
        let database = Database::seeded();
        // Together these rows are larger than any socket buffer, so the server has to wait for a stopped process.
        database.psql(
            "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
             select 1000000 + g, 112, 'big', 'big', jsonb_build_array(jsonb_build_object('name', repeat('x', 16000), 'odds', 2))
               from generate_series(1, 3000) g",
        );
        let role = database.reader();
        database.psql(&format!("alter role {role} password 'secret'"));
        let dsn = match by {
            By::Socket => cluster().dsn_as(&role, &database.name),
            By::Tcp => format!(
                "host=127.0.0.1 port={} user={role} password=secret dbname={}",
                cluster().port(),
                database.name
            ),
        };
        Scene {
            app: connect(&database.dsn()).await,
            service: Service::warm(&dsn, &[]).await,
            database,
        }
    }

    async fn run(&self, sql: &str) {
        run(&self.app, sql).await;
    }

    /// State and wait event of the current read, if there is one.
    async fn reading(&self) -> Option<(String, String)> {
        let row = self.app.query_opt(READING, &[]).await.expect("activity");
        row.map(|row| (row.get(0), row.get(1)))
    }

    /// Stops the process in the middle of a read. If that was the wrong point of the read, lets it go on and tries
    /// again.
    async fn stop(&self, at: At) {
        let mut tries = 0;
        eventually("stopped in the middle of a read", async || {
            tries += 1;
            // Makes the process read the big snapshot again.
            let sql = format!("update market_odds set line = {tries} where id = 1121");
            self.run(&sql).await;
            eventually("reads", async || self.reading().await.is_some()).await;
            self.service.signal("-STOP");
            // The server first finishes the statement, or fills the socket.
            let mut found = None;
            eventually("settled", async || {
                found = self.reading().await;
                found
                    .as_ref()
                    .is_none_or(|(state, wait)| state != "active" || wait == "ClientWrite")
            })
            .await;
            let found = found.map(|(state, wait)| match (state.as_str(), wait.as_str()) {
                ("idle in transaction", _) => At::Between,
                ("active", "ClientWrite") => At::Rows,
                other => panic!("{other:?}"),
            });
            if found == Some(at) {
                return true;
            }
            self.service.signal("-CONT");
            false
        })
        .await;
    }

    /// Runs INSERT, UPDATE and DELETE on every table, with a lock time-out so that waiting fails the test.
    async fn writers_pass(&self) {
        self.run("set lock_timeout = '300ms'").await;
        for sql in [
            "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) values (9, 's', 'n', 'h', 'a', now())",
            "update events set kickoff = kickoff where id = 9",
            "delete from events where id = 9",
            "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values (9, 1, 1, now())",
            "update odds_snapshots set last_confirmed_at = now() where event_id = 1",
            "delete from odds_snapshots where id = 9",
            "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (9, 111, 'm', 'm', '[]')",
            "update market_odds set line = 3 where snapshot_id in (111, 112) and id < 1000000",
            "delete from market_odds where id = 9",
            "update competitor_events set deleted_at = now() where id = 21",
            "insert into competitor_odds_snapshots (id, competitor_event_id) values (9, 21)",
            "update competitor_odds_snapshots set last_confirmed_at = now() where id = 9",
            "delete from competitor_odds_snapshots where id = 9",
            "update competitor_market_odds set line = 3",
            "delete from competitor_market_odds where snapshot_id = 211",
        ] {
            self.run(sql).await;
        }
        self.run("reset lock_timeout").await;
    }

    /// Runs the heavy statements. Each must get its lock within this time. Once the first has it, the read is over and
    /// the others do not wait.
    async fn heavy_statements_pass(&self, within: Duration) {
        self.run(&format!("set lock_timeout = {}", within.as_millis()))
            .await;
        for sql in HEAVY {
            self.run(&format!("begin; {sql}; rollback")).await;
        }
        assert_eq!(self.reading().await, None, "the read is not over");
        self.run("reset lock_timeout").await;
    }
}

/// The server ends the transaction of a stopped process within the bound. When the process goes on, it follows again.
async fn stopped(by: By, at: At, bound: Duration) {
    let scene = Scene::new(by).await;
    scene.stop(at).await;
    scene.writers_pass().await;
    let before = scene.reading().await;
    assert!(
        before.is_some(),
        "the read ended before the writers were done"
    );
    scene.heavy_statements_pass(bound + SLACK).await;
    scene.service.signal("-CONT");
    let change = "update market_odds set line = 77 where id = 1121";
    scene.run(change).await;
    eventually("follows again", async || {
        let event = scene.service.json("/v1/events/1").await;
        event["betpawa"]["1"]["markets"][0]["line"] == 77.0
    })
    .await;
}

/// A process that hangs between two statements holds its locks no longer than `BETWEEN`, over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_between_two_statements_over_tcp() {
    stopped(By::Tcp, At::Between, BETWEEN).await;
}

/// The same over the Unix socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_between_two_statements_over_the_socket() {
    stopped(By::Socket, At::Between, BETWEEN).await;
}

/// A process that hangs while it receives rows holds its locks no longer than `ROWS_OVER_TCP`, over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_among_rows_over_tcp() {
    stopped(By::Tcp, At::Rows, ROWS_OVER_TCP).await;
}

/// Over the Unix socket PostgreSQL has no timeout for a client that does not receive its rows. Writers pass
/// nevertheless. check.sql names the session and the statement that ends it. Running that statement releases the locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_among_rows_over_the_socket() {
    let scene = Scene::new(By::Socket).await;
    scene.stop(At::Rows).await;
    scene.writers_pass().await;
    let role = format!("reader_of_{}", scene.database.name);
    let way_out = "SELECT pg_terminate_backend(";
    let mut report = String::new();
    // check.sql names a session only after half a minute, because a slow reader is not a stopped one.
    eventually("reported", async || {
        report = run_script(&scene.database.name, Script::Check, &[("role", &role)]);
        report.contains(way_out)
    })
    .await;
    let line = report.lines().find(|line| line.contains(way_out)).unwrap();
    assert!(line.starts_with("session|process "), "{line}");
    assert!(line.contains("|ClientWrite|warn|"), "{line}");
    scene.run(&line[line.find(way_out).unwrap()..]).await;
    scene.heavy_statements_pass(SLACK).await;
    scene.service.signal("-CONT");
}

/// The locks of a killed process are released at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_read() {
    for by in [By::Tcp, By::Socket] {
        for at in [At::Between, At::Rows] {
            let scene = Scene::new(by).await;
            scene.stop(at).await;
            scene.service.signal("-KILL");
            scene.heavy_statements_pass(SLACK).await;
            scene.writers_pass().await;
        }
    }
}
