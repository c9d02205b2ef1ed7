//! Servers that cannot be reached, that hang, that are standbys, or that are behind a pooler.

use std::net::TcpListener;

use oddscache_testkit::{cluster::Cluster, connect, pgbouncer::PgBouncer, servers::replayed};

use super::*;

#[test]
fn doctor_repeats_the_error_of_a_server_that_it_cannot_reach() {
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dsn = format!("postgres://nobody:sesame@127.0.0.1:{refused}/odds");
    let (code, findings) = doctor(&dsn, &[]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["what"].as_str().unwrap().contains("refused"),
        "{findings:?}"
    );
    assert!(!format!("{findings:?}").contains("sesame"));

    let database = Database::application();
    let dsn = format!(
        "postgres://postgres:sesame@127.0.0.1:{}/{}",
        cluster().port(),
        database.name
    );
    let (code, findings) = doctor(&dsn, &[]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["fix"].as_str().unwrap().contains("pg_hba.conf"),
        "{findings:?}"
    );
    assert!(!format!("{findings:?}").contains("sesame"));

    // This server accepts the connection and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!(
        "postgres://nobody@127.0.0.1:{}/odds",
        silent.local_addr().unwrap().port()
    );
    let (code, findings) = doctor(&dsn, &["--check-timeout", "300ms"]);
    assert_eq!((code, findings.len()), (1, 1));
    assert!(
        findings[0]["what"]
            .as_str()
            .unwrap()
            .contains("no answer within 1.8 s"),
        "{findings:?}"
    );
}

/// Starts a PgBouncer with this pool.
async fn pooled(mode: &str, size: u16) -> PgBouncer {
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
        let pooler = pooled("transaction", size).await;
        let dsn = through(&pooler, &database);
        let (code, findings) = doctor(&dsn, &[]);
        let found = with(&findings, "notifications.pooler", "warn");
        assert_eq!((code, found.len()), (0, 1), "pool of {size}: {findings:#?}");
        assert!(found[0]["fix"].as_str().unwrap().contains("--listen-url"));
        assert_eq!(with(&findings, "warmup", "ok").len(), 1, "{findings:#?}");
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
        let (code, findings) = doctor(&dsn, &["--listen-url", &database.dsn()]);
        assert_eq!(
            (code, levels_of(&findings, "notifications")),
            (0, vec!["ok".to_owned()]),
            "{findings:#?}"
        );
    }
    let pooler = pooled("session", 20).await;
    let (_, findings) = doctor(&through(&pooler, &database), &[]);
    assert_eq!(
        levels_of(&findings, "notifications.pooler"),
        Vec::<String>::new()
    );
    assert_eq!(
        levels_of(&findings, "notifications"),
        ["ok"],
        "{findings:#?}"
    );

    let pooler = pooled("statement", 20).await;
    let (code, findings) = doctor(&through(&pooler, &database), &[]);
    assert_eq!((code, findings.len()), (1, 1), "{findings:#?}");
    assert!(
        findings[0]["fix"].as_str().unwrap().contains("pool_mode"),
        "{findings:#?}"
    );
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
    let (code, findings) = doctor(&dsn, &[]);
    assert_eq!(code, 0, "{findings:#?}");
    assert_eq!(levels_of(&findings, "notifications"), ["info"]);
    assert_eq!(levels_of(&findings, "standby"), ["info"]);
    for id in ["feed", "feed.function", "trigger", "log", "warmup"] {
        assert_eq!(levels_of(&findings, id), ["ok"], "{id}: {findings:#?}");
    }
    // The standby has max_standby_streaming_delay = 5s and no hot_standby_feedback.
    let cancelled = with(&findings, "setting", "warn");
    assert_eq!(cancelled.len(), 1, "{findings:#?}");
    assert_eq!(cancelled[0]["object"], "max_standby_streaming_delay");
    assert!(
        findings.iter().all(|finding| finding["checked"] == true),
        "{findings:#?}"
    );

    let (_, findings) = doctor(&dsn, &["--quick", "--listen-url", &primary.dsn("postgres")]);
    assert_eq!(
        levels_of(&findings, "notifications"),
        ["ok"],
        "{findings:#?}"
    );
    on_standby
        .batch_execute("select pg_wal_replay_pause()")
        .await
        .unwrap();
    let (_, findings) = doctor(&dsn, &["--quick"]);
    assert_eq!(
        with(&findings, "standby", "warn")[0]["fix"],
        "SELECT pg_wal_replay_resume()"
    );

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
    app.batch_execute("begin; lock table oddscache.change_log in access exclusive mode")
        .await
        .unwrap();
    let (code, findings) = doctor(&sound.dsn(), &["--check-timeout", "300ms"]);
    assert_eq!(code, 0, "{findings:#?}");
    let unchecked: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["checked"] == false)
        .collect();
    assert!(
        unchecked.iter().any(|finding| finding["id"] == "script"),
        "{findings:#?}"
    );
    for finding in unchecked {
        assert_eq!(finding["level"], "warn");
        let what = finding["what"].as_str().unwrap();
        assert!(what.contains("timeout"), "{what}");
    }
    // A lock that ends by itself is no fault of the database.
    assert_eq!(levels_of(&findings, "warmup"), ["warn"]);
    assert_eq!(levels_of(&findings, "server.reachable"), ["ok"]);
    app.batch_execute("rollback").await.unwrap();
    let (code, findings) = doctor(&sound.dsn(), &["--strict"]);
    assert_eq!(code, strict_code(&findings), "{findings:#?}");
}
