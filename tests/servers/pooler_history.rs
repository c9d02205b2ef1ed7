//! The same where a pooler keeps the follower's connection while the server behind it changes: nothing but what the server
//! says of itself tells.

use crate::{
    FORGETFUL,
    common::{cluster::Cluster, connect, followed::Followed, pgbouncer::PgBouncer},
    set_line,
};

/// The follower behind a pooler in transaction mode, the application beside it.
struct Pooled {
    pooler: PgBouncer,
    followed: Followed,
}

impl Pooled {
    async fn new(cluster: &Cluster) -> Pooled {
        let pooler = PgBouncer::start(cluster, &["pool_mode = transaction"]).await;
        let followed = Followed::beside(&pooler.dsn(), &cluster.dsn("postgres"), |c| c).await;
        Pooled { pooler, followed }
    }

    /// Lets the server change between two reads; the application goes on with `server` then.
    async fn meanwhile(&mut self, what: &str, server: &Cluster, change: impl AsyncFnOnce(&Client)) {
        let (failures, epoch) = (self.failures(), self.followed.cache.view().epoch());
        self.pooler.command("PAUSE").await;
        change(&self.followed.app).await;
        self.pooler.switch_to(server).await;
        self.followed.app = connect(&server.dsn("postgres")).await;
        // Before the follower sees anything of this server.
        set_line(&self.followed.app, 222, epoch as i32).await;
        self.pooler.command("RESUME").await;
        self.followed.check_epoch(epoch + 1, what).await;
        assert_eq!(
            self.failures(),
            failures,
            "{what}: the follower lost no connection"
        );
    }

    fn failures(&self) -> u64 {
        self.followed.cache.counters().failures
    }
}

use tokio_postgres::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_behind_a_pooler_is_one_new_epoch() {
    let cluster = Cluster::seeded(&[]);
    let mut pooled = Pooled::new(&cluster).await;
    pooled.followed.check("the seed").await;
    for way in ["fast", "immediate", "kill"] {
        pooled
            .meanwhile(way, &cluster, async |_| {
                match way {
                    "kill" => cluster.kill(),
                    mode => cluster.stop(mode).expect("stops"),
                }
                cluster.boot().expect("starts");
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_a_server_behind_a_pooler_takes_back_are_taken_back() {
    for kill in [true, false] {
        let cluster = Cluster::seeded(&FORGETFUL);
        let mut pooled = Pooled::new(&cluster).await;
        let seed = pooled.followed.check("the seed").await;
        cluster.stop_writing_ahead();
        let mut lost = Vec::new();
        for line in 1..4 {
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
                // The lost transaction's id comes back, for another change; the follower has not looked yet.
                let app = connect(&cluster.dsn("postgres")).await;
                let again = set_line(&app, 221, 5).await;
                assert!(lost.contains(&again), "{again} is none of {lost:?}");
            })
            .await;
        // A crash leaves the postmaster as it was.
        assert_eq!(cluster.sql(identity) == before, !kill);
    }
}
