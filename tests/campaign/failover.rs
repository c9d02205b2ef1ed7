//! A failover: a streaming standby takes over from a primary that is killed. Both followers go over to it. Commits that
//! were lost with the old primary must not stay visible.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache_testkit::connect;
use tokio::time::sleep;

use crate::{faults::Scene, pause::CATCH_UP, world::SETTINGS};

impl Scene {
    /// Makes a standby, kills the primary and promotes the standby. In half of all cases replication stops before, so
    /// that many commits are lost.
    pub(crate) async fn failover(&self, rng: &mut Rng, lasts: Duration) {
        let world = &self.world;
        let standby = self
            .world
            .blocking(|world| world.cluster().standby(SETTINGS))
            .await;
        let nth = world.failovers.fetch_add(1, Ordering::Relaxed) + 1;
        self.network.add_standby(nth, &standby);
        sleep(lasts / 2).await;
        world.change_durability();
        // What was answered before is on the standby. The row makes the primary flush, and so send, all before it.
        let primary = connect(&world.dsn()).await;
        let replica = connect(&standby.dsn("postgres")).await;
        let flush = "insert into campaign.flushed values (now())";
        primary.batch_execute(flush).await.expect("a primary");
        let lsn = "select pg_current_wal_flush_lsn()::text";
        let lsn: String = primary.query_one(lsn, &[]).await.expect("a primary").get(0);
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
        let began = Instant::now();
        while !replica
            .query_one(&replayed, &[])
            .await
            .expect("a standby")
            .get::<_, bool>(0)
        {
            assert!(
                began.elapsed() < CATCH_UP,
                "the standby does not replay {lsn}"
            );
            sleep(Duration::from_millis(5)).await;
        }
        if rng.bool() {
            let part = "alter system set primary_conninfo = ''";
            replica.batch_execute(part).await.expect("a standby");
            let reload = "select pg_reload_conf()";
            replica.batch_execute(reload).await.expect("a standby");
        }
        sleep(lasts).await;
        let after = lasts / 4;
        let former = self
            .world
            .blocking(move |world| {
                world.cluster().kill();
                std::thread::sleep(after);
                standby.promote();
                world.replace_cluster(standby)
            })
            .await;
        world.change_durability();
        // Deletes its files.
        self.world.blocking(|_| drop(former)).await;
    }

    /// Runs statements as the superuser, each line on its own. Runs them again if a failover may have undone them.
    pub(crate) async fn admin_for_good(&self, sql: &str) {
        loop {
            while !self.world.durability().is_multiple_of(2) && !self.world.is_over() {
                sleep(Duration::from_millis(20)).await;
            }
            let began = self.world.durability();
            self.world.admin(sql).await;
            if self.world.is_durable(began) || self.world.is_over() {
                return;
            }
        }
    }
}
