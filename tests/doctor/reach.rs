//! Servers that cannot be reached, that hang, that are standbys, or that are behind a pooler.

use std::net::TcpListener;

use oddscache_testkit::{
    cluster::Cluster, connect, eventually, pgbouncer::PgBouncer, servers::replayed,
};
use tokio_postgres::NoTls;

use super::*;

/// The only finding of a report that ends with exit code 1.
#[track_caller]
fn only(report: &Report) -> &Value {
    report.ends(1);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    &report.findings[0]
}

#[test]
fn doctor_repeats_the_error_of_a_server_that_it_cannot_reach() {
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let refused = port(&TcpListener::bind("127.0.0.1:0").unwrap());
    let dsn = format!("postgres://nobody:sesame@127.0.0.1:{refused}/odds");
    let report = doctor(&dsn, &[]);
    says(only(&report), "what", "refused");
    assert!(!format!("{report:?}").contains("sesame"));

    let name = Database::application().name;
    let port_of_cluster = cluster().port();
    let dsn = format!("postgres://postgres:sesame@127.0.0.1:{port_of_cluster}/{name}");
    let report = doctor(&dsn, &[]);
    says(only(&report), "fix", "pg_hba.conf");
    assert!(!format!("{report:?}").contains("sesame"));

    // This server accepts the connection and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("postgres://nobody@127.0.0.1:{}/odds", port(&silent));
    let report = doctor(&dsn, &["--check-timeout", "300ms"]);
    says(only(&report), "what", "no answer within 1.8 s");
}

/// The server reports the same SQLSTATE for each of three limits. Doctor cannot connect to find out which one is
/// reached, so it names all.
#[test]
fn doctor_names_the_limits_of_connections_that_keep_it_out() {
    let sound = Sound::new();
    for limited in ["role {role}", "database {database}"] {
        sound.psql(&format!("alter {limited} connection limit 0"));
        let report = sound.quick();
        let found = only(&report);
        says(found, "what", "too many connections for");
        for statement in [
            format!("ALTER ROLE \"{}\" CONNECTION LIMIT", sound.role),
            format!(
                "ALTER DATABASE \"{}\" CONNECTION LIMIT",
                sound.database.name
            ),
            "max_connections".to_owned(),
        ] {
            says(found, "fix", &statement);
        }
        // The limits do not apply to a superuser, who sees no finding.
        quick(&sound.database.dsn()).has(&["connections"], &["ok"]);
        sound.psql(&format!("alter {limited} connection limit -1"));
    }
}

/// On a server of its own, which other tests do not fill.
#[tokio::test]
async fn doctor_says_which_connections_are_reserved() {
    let server = Cluster::seeded(&["max_connections = 10", "superuser_reserved_connections = 5"]);
    server.psql_ok("postgres", &["-qc", "create role reader login"]);
    let dsn = server.dsn_as("reader", "postgres");
    let report = quick(&dsn);
    let full = report.one("connections", "warn");
    says(
        full,
        "what",
        "of the 5 of the server, besides 5 reserved ones, are taken",
    );
    says(full, "fix", "ALTER SYSTEM SET max_connections = ");
    // Doctor's own connections end some time after doctor.
    let mut held = Vec::new();
    eventually("all are taken", async || {
        if let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await {
            held.push((client, tokio::spawn(connection)));
        }
        held.len() == 5
    })
    .await;
    says(
        only(&quick(&dsn)),
        "fix",
        "max_connections, of which some are reserved",
    );
}

/// Starts a PgBouncer with this pool.
async fn pooled(mode: &str, size: u16) -> Option<PgBouncer> {
    let (mode, size) = (
        format!("pool_mode = {mode}"),
        format!("default_pool_size = {size}"),
    );
    PgBouncer::start(cluster(), &[&mode, &size]).await
}

fn through(pooler: &PgBouncer, database: &Database) -> String {
    pooler
        .dsn()
        .replace("dbname=postgres", &format!("dbname={}", database.name))
}

#[tokio::test]
async fn doctor_distinguishes_poolers_in_transaction_and_session_mode() {
    let database = Database::seeded();
    for size in [1, 20] {
        let Some(pooler) = pooled("transaction", size).await else {
            return;
        };
        let dsn = through(&pooler, &database);
        let report = doctor(&dsn, &[]);
        report.ends(0).one("warmup", "ok");
        says(
            report.one("notifications.pooler", "warn"),
            "fix",
            "--listen-url",
        );
        // No LISTEN and no setting stays behind in the pooler's sessions.
        let sql = "select (select count(*) from pg_listening_channels()), current_setting('statement_timeout'), \
                   current_setting('search_path')";
        let left = connect(&dsn).await.simple_query(sql).await.unwrap();
        let left = left.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some([0, 1, 2].map(|at| row.get(at).unwrap().to_owned()))
            }
            _ => None,
        });
        assert_eq!(left.unwrap(), ["0", "0", "\"$user\", public"]);

        // Past the pooler, notifications arrive.
        doctor(&dsn, &["--listen-url", &database.dsn()])
            .ends(0)
            .has(&["notifications"], &["ok"]);
    }
    let Some(pooler) = pooled("session", 20).await else {
        return;
    };
    doctor(&through(&pooler, &database), &[])
        .has(&["notifications.pooler"], &[])
        .has(&["notifications"], &["ok"]);

    let Some(pooler) = pooled("statement", 20).await else {
        return;
    };
    let report = doctor(&through(&pooler, &database), &[]);
    says(only(&report), "fix", "pool_mode");
}

#[tokio::test]
async fn doctor_checks_a_standby_as_a_standby() {
    let primary = Cluster::seeded(&[]);
    let standby = primary.standby(&[]);
    let (on_primary, on_standby) = (
        connect(&primary.dsn("postgres")).await,
        connect(&standby.dsn("postgres")).await,
    );
    replayed(&on_primary, &on_standby).await;
    let dsn = standby.dsn("postgres");
    let report = doctor(&dsn, &[]);
    report
        .ends(0)
        .has(&["notifications", "standby"], &["info"])
        .has(
            &["feed", "feed.function", "trigger", "log", "warmup"],
            &["ok"],
        );
    // The standby has max_standby_streaming_delay = 5s and no hot_standby_feedback.
    let cancelled = report.one("setting", "warn");
    assert_eq!(cancelled["object"], "max_standby_streaming_delay");
    assert!(report.unchecked().is_empty(), "{report:#?}");

    doctor(&dsn, &["--quick", "--listen-url", &primary.dsn("postgres")])
        .has(&["notifications"], &["ok"]);
    let pause = on_standby.batch_execute("select pg_wal_replay_pause()");
    pause.await.unwrap();
    let report = quick(&dsn);
    let paused = report.with("standby", "warn")[0];
    assert_eq!(paused["fix"], "SELECT pg_wal_replay_resume()");

    // `explain` works on a standby, too.
    let (code, told) = json_of(&["explain", "1", "--no-service"], &dsn);
    assert_eq!(
        (code, &told["database"]["standing"]),
        (0, &Value::from("held")),
        "{told:#}"
    );
}

/// While the log is locked, each check waits no longer than its time-out.
#[tokio::test]
async fn doctor_waits_for_a_lock_only_until_the_time_out() {
    let sound = Sound::new();
    let app = connect(&sound.database.dsn()).await;
    let lock = "begin; lock table oddscache.change_log in access exclusive mode";
    app.batch_execute(lock).await.unwrap();
    let report = doctor(&sound.dsn(), &["--check-timeout", "300ms"]);
    report
        .ends(0)
        // A lock that ends by itself is no fault of the database.
        .has(&["warmup"], &["warn"])
        .has(&["server.reachable"], &["ok"]);
    let unchecked = report.unchecked();
    assert!(
        unchecked.iter().any(|finding| finding["id"] == "script"),
        "{report:#?}"
    );
    for finding in unchecked {
        assert_eq!(finding["level"], "warn");
        says(finding, "what", "timeout");
    }
    app.batch_execute("rollback").await.unwrap();
    let report = doctor(&sound.dsn(), &["--strict"]);
    report.ends(strict_code(&report));
}
