//! Faults of the change feed: triggers in a state in which they do not log every change, and a feed that is
//! uninstalled. The cache must say so, stay true about its age, and come back by itself after the repair.

use std::time::{Duration, Instant};

use fastrand::Rng;
use oddscache::{Fault, Status, sql::Script};
use oddscache_testkit::TABLES;
use tokio::time::sleep;

use crate::{faults::Scene, kinds, pause::CATCH_UP};

/// How the status names a feed that is not there.
pub(crate) const NO_FEED: &str = "no change is logged";

impl Scene {
    /// The faults that the embedded follower names. `None` while it is not degraded.
    pub(crate) fn named(&self) -> Option<Vec<Fault>> {
        match self.embedded.cache.status() {
            Status::Degraded { faults, .. } => Some(faults),
            _ => None,
        }
    }

    /// Waits until the status names a fault for which `is_it` is true.
    pub(crate) async fn noticed(
        &self,
        what: &str,
        is_it: impl Fn(&Fault) -> bool,
    ) -> Option<Fault> {
        let began = Instant::now();
        while !self.world.is_over() {
            let faults = self.named().unwrap_or_default();
            if let Some(fault) = faults.into_iter().find(&is_it) {
                return Some(fault);
            }
            if began.elapsed() > CATCH_UP {
                let status = self.embedded.cache.status();
                let what = format!("{what} for {CATCH_UP:?}, but the status is: {status}");
                self.world
                    .violate("the status names what is not whole", what);
            }
            sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Runs a script until it gets its locks.
    pub(crate) async fn script(&self, script: Script, settings: &'static [(&str, &str)]) {
        let text = script.fill(settings).expect("settings of the script");
        let began = Instant::now();
        while !self.world.is_over() {
            let text = text.clone();
            let output = self
                .world
                .blocking(move |world| {
                    let args = ["-v", "ON_ERROR_STOP=1", "-qc", &text];
                    world.cluster().psql("postgres", &args)
                })
                .await
                .expect("psql starts");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                return;
            }
            // Only locks and a server that is away may prevent it.
            let is_lock = ["lock", "deadlock", "connection", "starting up", "shut"]
                .iter()
                .any(|word| said.contains(word));
            if !is_lock || began.elapsed() > CATCH_UP {
                self.world
                    .violate("a script runs under a running application", said);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts triggers of random tables into states in which they do not log every change. Repairs each as the status
    /// says.
    pub(crate) async fn trigger_states(&self, rng: &mut Rng, lasts: Duration) {
        for _ in 0..2 {
            let table = TABLES[rng.usize(..TABLES.len())];
            let operation = ["insert", "update", "delete", "truncate"][rng.usize(..4)];
            let trigger = format!("trigger oddscache_{operation}");
            let is_ours = |fault: &Fault| {
                let what = &fault.what;
                what.starts_with(&format!("public.{table} has no trigger"))
                    || what.starts_with(&format!("on public.{table}, "))
            };
            let alter = format!("alter table only {table}");
            let sql = match rng.u8(..7) {
                0 | 1 => format!("{alter} disable {trigger}"),
                2 => format!("{alter} enable {trigger}"),
                3 => format!("{alter} enable replica {trigger}"),
                4 => format!("drop {trigger} on {table}"),
                5 => format!("alter table {table} disable trigger all"),
                _ => format!(
                    "alter table {table} disable trigger all; alter table {table} enable trigger all"
                ),
            };
            self.world.admin(&sql).await;
            if self.noticed(&sql, is_ours).await.is_none() {
                return;
            }
            // Triggers that are only enabled miss what these sessions write.
            match rng.bool() {
                true => self.bias(kinds::Kind::Replica, lasts).await,
                false => self.bias(kinds::Kind::InPlace, lasts).await,
            }
            self.repair(&sql, is_ours).await;
            // `trigger all` includes those of foreign keys, which are not the feed's.
            if sql.contains("disable trigger all") {
                self.world
                    .admin(&format!("alter table {table} enable trigger all"))
                    .await;
                self.repair(&sql, is_ours).await;
            }
        }
    }

    /// Runs what the status says until it names no such fault any more.
    async fn repair(&self, what: &str, is_ours: impl Fn(&Fault) -> bool) {
        let began = Instant::now();
        while !self.world.is_over() {
            // Only a view that was read after the repair tells whether it helped.
            let Some(proven) = self.next_read().await else {
                return;
            };
            let faults = match self.embedded.cache.status() {
                Status::Degraded { faults, .. } => faults,
                Status::Live | Status::PollingOnly { .. } => Vec::new(),
                _ => continue,
            };
            let Some(fault) = faults.into_iter().find(&is_ours) else {
                return;
            };
            if proven - began > CATCH_UP {
                let what = format!("{what}: {fault} still");
                self.world.violate("a repair repairs", what);
            }
            if fault.repair.starts_with("ALTER TABLE") {
                self.world.admin(&fault.repair).await;
            } else {
                self.script(Script::Install, &[]).await;
            }
        }
    }

    /// Waits for a view that is proven current later than now. Returns that moment.
    async fn next_read(&self) -> Option<Instant> {
        let began = Instant::now();
        while !self.world.is_over() {
            let asked = Instant::now();
            let proven = asked.checked_sub(self.embedded.cache.view().age());
            if let Some(proven) = proven.filter(|proven| *proven > began) {
                // The status follows the view.
                sleep(Duration::from_millis(20)).await;
                return Some(proven);
            }
            if began.elapsed() > CATCH_UP {
                let status = self.embedded.cache.status();
                let what = format!("no view was proven current within {CATCH_UP:?}: {status}");
                self.world.violate("degraded within its bound", what);
            }
            sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Uninstalls the feed and installs it again. The role of the cache stays.
    pub(crate) async fn reinstall(&self, lasts: Duration) {
        self.script(Script::Uninstall, &[("role", "stranger")])
            .await;
        let is_it = |fault: &Fault| fault.what.starts_with(NO_FEED);
        self.noticed("the feed was uninstalled", is_it).await;
        sleep(lasts).await;
        self.script(Script::Install, &[]).await;
        self.script(Script::Grants, &[("prune", "on")]).await;
    }
}
