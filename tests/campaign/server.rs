//! Faults of the database server, for both followers and publishers.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{followers::kill, plan::Kind, world::World};

impl World {
    /// Carries out a fault of the server. Does nothing for any other kind.
    pub(crate) async fn fail_server(self: &Arc<World>, kind: Kind, lasts: Duration) {
        match kind {
            Kind::TerminateReader => self.terminate("not").await,
            Kind::TerminateListener => self.terminate("").await,
            Kind::RestartFast => self.restart("fast").await,
            Kind::RestartImmediate => self.restart("immediate").await,
            Kind::KillPostmaster => self.crash(lasts).await,
            Kind::AsyncCrash => {
                self.change_durability();
                sleep(lasts + Duration::from_millis(300)).await;
                self.crash(Duration::ZERO).await;
                self.change_durability();
            }
            _ => {}
        }
    }

    /// Runs statements as the superuser, each line on its own. Tries again if a lock was not available.
    pub(crate) async fn admin(&self, sql: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let client = self.connect().await;
            let mut done = client.batch_execute("set lock_timeout = '1s'").await;
            for line in sql.lines() {
                if done.is_ok() {
                    done = client.batch_execute(line).await;
                }
            }
            let Err(error) = done else { return };
            let code = error.code().map(|code| code.code().to_owned());
            // Locks, and a server that shuts down or starts.
            let again = [
                "55P03", "40P01", "55006", "57014", "57P01", "57P02", "57P03",
            ];
            if !code.is_none_or(|code| again.contains(&code.as_str())) || Instant::now() > deadline
            {
                self.violate("the campaign itself", format!("{sql}: {error:?}"));
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Terminates the followers' sessions that listen. With `not` = "not", terminates their other sessions.
    pub(crate) async fn terminate(&self, not: &str) {
        self.admin(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'oddscache' and {not} (query ~ 'LISTEN|advisory')"
        ))
        .await;
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<World>,
        what: impl FnOnce(&World) -> T + Send + 'static,
    ) -> T {
        let world = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || what(&world)).await;
        done.expect("does not panic")
    }

    async fn restart(self: &Arc<World>, mode: &'static str) {
        self.blocking(move |world| {
            let cluster = world.cluster();
            let done = cluster.stop(mode).and_then(|()| cluster.boot());
            if let Err(error) = done {
                world.violate("the campaign itself", format!("restart {mode}: {error}"));
            }
        })
        .await;
    }

    async fn crash(self: &Arc<World>, lasts: Duration) {
        let path = self.cluster().data().join("postmaster.pid");
        let pid = fs::read_to_string(path).ok();
        let pid: Option<u32> = pid.and_then(|text| text.lines().next()?.parse().ok());
        kill("-9", pid.expect("the server runs"));
        sleep(lasts).await;
        self.blocking(|world| {
            // The server cannot start until the killed server's child processes have ended.
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(error) = world.cluster().boot() {
                if Instant::now() > deadline {
                    world.violate("the campaign itself", format!("after kill -9: {error}"));
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        })
        .await;
    }
}
