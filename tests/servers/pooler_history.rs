//! The server behind a pooler changes, and the pooler keeps the follower's connection. Only what the server reports
//! about itself shows the change.

use oddscache::Counters;
use oddscache_testkit::{
    cluster::Cluster, connect, eventually, followed::Followed, hostile, pgbouncer::PgBouncer,
    servers::timeless,
};
use tokio_postgres::Client;

use crate::{FORGETFUL, set_line, use_again, without_notifications};

/// A follower behind a pooler in transaction mode. The application connects without it.
struct Pooled {
    pooler: PgBouncer,
    followed: Followed,
}

impl Pooled {
    async fn new(cluster: &Cluster) -> Option<Pooled> {
        let pooler = PgBouncer::start(cluster, &["pool_mode = transaction"]).await?;
        let followed = Followed::beside(&pooler.dsn(), &cluster.dsn("postgres"), |c| c).await;
        Some(Pooled { pooler, followed })
    }

    /// Changes the server between two reads. The application goes on with `server`.
    async fn meanwhile(&mut self, what: &str, server: &Cluster, change: impl AsyncFnOnce(&Client)) {
        let (failures, epoch) = (self.failures(), self.followed.epoch());
        self.pooler.command("PAUSE").await;
        change(&self.followed.app).await;
        self.pooler.switch_to(server).await;
        self.followed.app = connect(&server.dsn("postgres")).await;
        // Write before the follower reads from this server.
        set_line(&self.followed.app, 222, epoch as i32).await;
        self.pooler.command("RESUME").await;
        self.followed.check_epoch(epoch + 1, what).await;
        let now = self.failures();
        assert_eq!(now, failures, "{what}: the follower lost no connection");
    }

    fn failures(&self) -> u64 {
        self.followed.cache.counters().failures
    }
}

/// The follower notices the restart although it keeps its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_behind_a_pooler_begins_one_epoch() {
    let cluster = Cluster::seeded(&[]);
    let Some(mut pooled) = Pooled::new(&cluster).await else {
        return;
    };
    pooled.followed.check("the seed").await;
    for way in ["fast", "immediate", "kill"] {
        let restart = async |_: &Client| {
            match way {
                "kill" => cluster.kill(),
                mode => cluster.stop(mode).expect("stops"),
            }
            cluster.boot().expect("starts");
        };
        pooled.meanwhile(way, &cluster, restart).await;
    }
}

/// A view must not keep commits that the server has lost, although the follower keeps its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_loses_the_commits_that_a_server_behind_a_pooler_lost() {
    for kill in [true, false] {
        let cluster = Cluster::seeded(&FORGETFUL);
        let _silent = without_notifications(&cluster).await;
        let Some(mut pooled) = Pooled::new(&cluster).await else {
            return;
        };
        let seed = pooled.followed.check("the seed").await;
        cluster.stop_writing_ahead();
        let mut lost = Vec::new();
        for line in 1..10 {
            lost.push(set_line(&pooled.followed.app, 112, line).await);
        }
        assert_ne!(seed, pooled.followed.check("before the crash").await);
        let identity =
            "select pg_postmaster_start_time(), system_identifier from pg_control_system()";
        let before = cluster.sql(identity);
        let what = if kill { "killed" } else { "crashed" };
        pooled
            .meanwhile(what, &cluster, async |_| {
                if kill {
                    cluster.kill();
                    cluster.boot().expect("starts");
                } else {
                    cluster.crash(&cluster.process("walwriter")).await;
                }
                // The lost transaction's id is assigned to another change before the follower reads again.
                let app = connect(&cluster.dsn("postgres")).await;
                use_again(&app, &lost).await;
                // More ids, so that the server does not seem to have gone back.
                for line in 1..30 {
                    set_line(&app, 112, line).await;
                }
            })
            .await;
        // After a crash of one process the postmaster is the same.
        assert_eq!(cluster.sql(identity) == before, !kill);
    }
}

/// The pooler sends the follower to another server without ending its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_behind_a_pooler_begins_one_epoch() {
    // An older backup, started on another machine. It has the same system identifier.
    let (cluster, backup) = (Cluster::seeded(&[]), Cluster::seeded(&[]));
    let Some(mut pooled) = Pooled::new(&cluster).await else {
        return;
    };
    set_line(&pooled.followed.app, 112, 7).await;
    let before = pooled.followed.check("the first server").await;
    pooled.meanwhile("the backup", &backup, async |_| {}).await;
    assert_ne!(pooled.followed.check("the backup").await, before);
}

/// If even the times of the server are the same, its transaction ids show that it went back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_back_unnoticed_begins_one_epoch() {
    let cluster = Cluster::seeded(&[]);
    timeless(&cluster);
    cluster.stop("fast").expect("stops");
    let backup = cluster.backup("backup");
    cluster.boot().expect("starts");
    let Some(mut pooled) = Pooled::new(&cluster).await else {
        return;
    };
    for line in 1..20 {
        set_line(&pooled.followed.app, 112, line).await;
    }
    let before = pooled.followed.check("before").await;
    let went_back = async |_: &Client| {
        cluster.kill();
        cluster.replace_data(&backup);
        cluster.boot().expect("starts");
    };
    pooled.meanwhile("put back", &cluster, went_back).await;
    assert_ne!(pooled.followed.check("put back").await, before);
}

/// The follower compared values of the server as text, in the format of the session's settings. So two sessions of one
/// pooler looked like two servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_with_other_formats_are_of_the_same_server() {
    let cluster = Cluster::seeded(&[]);
    let Some(pooled) = Pooled::new(&cluster).await else {
        return;
    };
    pooled.followed.check("the seed").await;
    for settings in [
        ["extra_float_digits = -15", "DateStyle = 'SQL, DMY'"],
        ["TimeZone = '<+0545>-5:45'", "IntervalStyle = 'iso_8601'"],
        [
            "quote_all_identifiers = on",
            "standard_conforming_strings = off",
        ],
        ["bytea_output = 'escape'", "extra_float_digits = 3"],
    ] {
        for setting in settings {
            cluster.sql(&format!("alter database postgres set {setting}"));
        }
        // The pooler replaces its sessions once nobody uses them.
        pooled.pooler.command("RECONNECT").await;
        pooled.pooler.command("WAIT_CLOSE").await;
        set_line(&pooled.followed.app, 222, settings[0].len() as i32).await;
        pooled.followed.check(settings[0]).await;
    }
    let reloads = pooled.followed.reloads();
    assert_eq!((reloads, pooled.followed.epoch()), (1, 1));
}

/// Behind a pooler nothing may be set for a session. Each transaction sets what it relies on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_settings_of_the_database_change_nothing() {
    let cluster = Cluster::seeded(&[]);
    let Some(pooled) = Pooled::new(&cluster).await else {
        return;
    };
    pooled.followed.check("the seed").await;
    // The application's session keeps the settings that it began with.
    let settings = hostile::settings(&cluster.sql(hostile::NAMES));
    // Leave out four settings that no transaction can override. Under the first, the server ends sessions that the
    // pooler keeps for later. A failed transaction brings the others back, for instance in a session without the
    // prepared statements. They can then end the session before ROLLBACK arrives.
    let beyond = [
        "idle_session_timeout",
        "exit_on_error",
        "idle_in_transaction_session_timeout",
        "transaction_timeout",
    ];
    let settings = settings.filter(|setting| !beyond.iter().any(|name| setting.starts_with(name)));
    let alter: Vec<String> = settings
        .map(|setting| format!("alter database postgres set {setting}"))
        .collect();
    cluster.sql(&alter.join("; "));
    pooled.pooler.command("RECONNECT").await;
    pooled.pooler.command("WAIT_CLOSE").await;
    for line in 1..5 {
        set_line(&pooled.followed.app, 112, line).await;
        pooled.followed.check("a change").await;
    }
    // While nobody writes, polls read only the snapshot.
    let polls = pooled.followed.cache.counters().polls;
    let several = |now: &Counters| now.polls > polls + 5;
    pooled.followed.counted("polls", several).await;
    assert_eq!(pooled.followed.cache.counters().reconnects, 0);
    assert_eq!((pooled.followed.reloads(), pooled.followed.epoch()), (1, 1));
    let anew = Followed::with(&pooled.pooler.dsn(), |config| config).await;
    let events = |followed: &Followed| followed.cache.view().len();
    assert_eq!(events(&anew), events(&pooled.followed));
}

/// A reset of statistics by hand looked like a crash, and began a new epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_statistics_is_no_crash() {
    let cluster = Cluster::seeded(&["checkpoint_timeout = '1h'", "autovacuum = off"]);
    let followed = Followed::with(&cluster.dsn("postgres"), |config| config).await;
    followed.check("the seed").await;
    let mut resets = vec![
        "select pg_stat_reset()",
        "select pg_stat_reset_shared('bgwriter')",
        "select pg_stat_reset_shared('archiver')",
        "select pg_stat_reset_shared('wal')",
        "select pg_stat_reset_slru(null)",
    ];
    let all = resets.join("; ");
    resets.push(&all);
    if cluster.sql("show server_version_num").as_str() >= "170000" {
        resets.push("select pg_stat_reset_shared(null)");
    }
    let times = "select concat_ws(' ', b.stats_reset, a.stats_reset, w.stats_reset, d.stats_reset,
        (select string_agg(stats_reset::text, ' ') from pg_stat_slru)) from pg_stat_bgwriter b, pg_stat_archiver a, pg_stat_wal w,
        pg_stat_database d where d.datname = current_database()";
    // Waits for a read that begins later.
    let read_again = async || {
        let clock = followed.app.query_one("select clock_timestamp()", &[]);
        let now: std::time::SystemTime = clock.await.expect("a clock").get(0);
        let now = chrono::DateTime::<chrono::Utc>::from(now);
        let view = &followed.cache;
        eventually("a read", async || view.view().cut().as_of > now).await;
    };
    for (line, reset) in (1..).zip(resets) {
        let before = cluster.sql(times);
        followed.run(reset).await;
        // PostgreSQL 14 resets them a little later.
        eventually("reset", async || cluster.sql(times) != before).await;
        read_again().await;
        set_line(&followed.app, 112, line).await;
        followed.check(reset).await;
        // The next reset is compared with this checkpoint.
        followed.run("checkpoint").await;
        read_again().await;
    }
    assert_eq!((followed.reloads(), followed.epoch()), (1, 1));
}
