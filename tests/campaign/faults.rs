//! Carries the faults out. Each fault begins, lasts for a while, and ends by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use oddscache_testkit::{
    TABLES,
    proxy::{Notices, Setting, Way, Whose},
};
use tokio::time::sleep;
use tokio_postgres::NoTls;

use crate::{
    followers::{Embedded, Network, Service},
    kinds,
    plan::{Fault, Kind},
    subscribers::Replica,
    world::{FREE, World},
};

/// Everything that a fault can act on.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) world: Arc<World>,
    pub(crate) network: Network,
    pub(crate) embedded: Embedded,
    pub(crate) service: Service,
    pub(crate) replica: Replica,
}

impl Scene {
    /// Drops all notifications from now on.
    pub(crate) fn silence(&self) {
        self.world.active.begin(Kind::NoticesDropped);
        self.world.report.inflicted(Kind::NoticesDropped);
        self.network.set(|setting| setting.notices = Notices::Drop);
    }

    /// Carries out the faults of a lane one after the other.
    pub(crate) async fn lane(self: Arc<Scene>, faults: Vec<Fault>) {
        for fault in faults {
            if self.world.is_over() {
                return;
            }
            sleep(fault.after).await;
            self.world.active.begin(fault.kind);
            self.world.report.inflicted(fault.kind);
            self.inflict(&fault).await;
            // These rows stay until the pause has compared with them.
            if fault.kind != Kind::Poisoned {
                self.world.active.end(fault.kind);
            }
        }
    }

    async fn inflict(self: &Arc<Scene>, fault: &Fault) {
        let mut rng = Rng::with_seed(fault.seed);
        let lasts = fault.lasts;
        match fault.kind {
            Kind::TerminateReader
            | Kind::TerminateListener
            | Kind::RestartFast
            | Kind::RestartImmediate
            | Kind::KillPostmaster
            | Kind::AsyncCrash => self.world.fail_server(fault.kind, lasts).await,
            Kind::Failover => self.failover(&mut rng, lasts).await,
            Kind::Reinstalled => self.reinstall(lasts).await,
            Kind::HostileSettings => self.settings(&mut rng, lasts).await,
            Kind::TriggerStates => self.trigger_states(&mut rng, lasts).await,
            Kind::Poisoned => self.poison(&mut rng, lasts).await,
            Kind::Publications => self.publications(&mut rng, lasts).await,
            Kind::OddPartitions => self.odd_partitions(&mut rng, lasts).await,
            Kind::Partitions => self.partitions(&mut rng, lasts).await,
            Kind::PrunedCursor => {
                self.embedded.block(lasts);
                for _ in 0..3 {
                    sleep(lasts / 4).await;
                    self.world.admin("select oddscache.prune('0')").await;
                }
                sleep(lasts / 4).await;
            }
            Kind::RightsRevoked => {
                let right = [
                    "select on market_odds",
                    "select on competitor_events",
                    "select on oddscache.change_log",
                    "usage on schema oddscache",
                ][rng.usize(..4)];
                self.world
                    .admin(&format!("revoke {right} from oddscache"))
                    .await;
                sleep(lasts).await;
                self.world
                    .admin(&format!("grant {right} to oddscache"))
                    .await;
            }
            Kind::LogDdl => {
                // Empty the log first, so that the DDL holds its locks briefly. A writer that waits for longer than
                // half a second gives up its log row.
                self.world.admin("select oddscache.prune('0')").await;
                let ddl = match rng.u8(..3) {
                    0 => "vacuum full oddscache.change_log".to_owned(),
                    1 => "reindex table oddscache.change_log".to_owned(),
                    _ => format!(
                        "alter table oddscache.change_log set (fillfactor = {})",
                        rng.u8(50..100)
                    ),
                };
                self.world
                    .admin(&format!(
                        "set lock_timeout = '100ms'\nset statement_timeout = '350ms'\n{ddl}"
                    ))
                    .await;
                sleep(lasts).await;
            }
            Kind::Migration => {
                let (one, other) = (rng.usize(..TABLES.len()), TABLES[4 + rng.usize(..2)]);
                let kind = ["numeric", "float8"][usize::from(other.starts_with("competitor"))];
                self.world.admin(&format!(
                    "begin; lock table {}, {other} in access exclusive mode; \
                     alter table {other} alter column line type {kind} using line + 0; select pg_sleep({}); commit",
                    TABLES[one],
                    lasts.as_secs_f64()
                ))
                .await;
            }
            Kind::Cancel => self.cancel("true", lasts).await,
            Kind::CancelReads => {
                let which = "query ~ 'DISTINCT ON|snapshot_id = ANY|kickoff >'";
                self.cancel(which, lasts + Duration::from_millis(400)).await;
            }
            Kind::Resync if rng.bool() => self.embedded.cache.resync(),
            Kind::Resync => {
                self.world
                    .admin("select oddscache.resync('campaign')")
                    .await
            }
            Kind::Spoof => self.spoof(&mut rng, lasts).await,
            Kind::Stall => {
                self.embedded.block(lasts + Duration::from_millis(600));
                sleep(lasts + Duration::from_millis(600)).await;
            }
            Kind::Truncates => self.bias(kinds::Kind::Truncate, lasts).await,
            Kind::Late => self.bias(kinds::Kind::Late, lasts).await,
            Kind::Savepoints => self.bias(kinds::Kind::Savepoint, lasts).await,
            Kind::Replica => self.bias(kinds::Kind::Replica, lasts).await,
            Kind::Leaves => self.bias(kinds::Kind::Leaf, lasts).await,
            Kind::BellOff => self.bias(kinds::Kind::BellOff, lasts).await,
            Kind::ManyKeys => self.bias(kinds::Kind::ManyKeys, lasts).await,
            Kind::Links => self.bias(kinds::Kind::Relink, lasts).await,
            Kind::Window => self.bias(kinds::Kind::Window, lasts).await,
            Kind::Stopped => {
                self.service.signal("-STOP");
                sleep(lasts).await;
                self.service.signal("-CONT");
            }
            // The clock stays wrong, so that the comparison in the pause also runs with a wrong clock.
            Kind::ClockJump => self.service.jump(rng.i64(-200_000..200_000)),
            Kind::Killed => {
                self.service.kill();
                sleep(lasts / 4).await;
                self.service.spawn();
            }
            Kind::BlackHole
            | Kind::HalfOpenUp
            | Kind::HalfOpenDown
            | Kind::Slow
            | Kind::Latency
            | Kind::Cut
            | Kind::Refuse
            | Kind::Reset
            | Kind::Freeze
            | Kind::NoticesDropped
            | Kind::NoticesDoubled
            | Kind::NoticesDelayed
            | Kind::NoticesForged => {
                self.network
                    .set(|setting| network(fault.kind, &mut rng, setting));
                sleep(lasts).await;
                self.network.heal();
            }
            // The pause carries out two of these. The others need a relay.
            _ => {}
        }
    }

    pub(crate) async fn bias(&self, kind: kinds::Kind, lasts: Duration) {
        let set = |bias| *self.world.bias.lock().expect("not poisoned") = bias;
        set(Some(kind));
        sleep(lasts).await;
        set(None);
    }

    /// Cancels for a while every statement of the followers for which the condition `which` is true.
    async fn cancel(&self, which: &str, lasts: Duration) {
        self.world
            .admin(&format!(
                "do $$ declare stop constant timestamptz := clock_timestamp() + interval '{} ms'; \
             begin while clock_timestamp() < stop loop \
                 perform pg_stat_clear_snapshot(), pg_sleep(0.0002); \
                 perform pg_cancel_backend(pid) from pg_stat_activity \
                     where usename = 'oddscache' and state = 'active' and {which}; \
             end loop; end $$",
                lasts.as_millis()
            ))
            .await;
    }

    /// Attaches a partition that contains the newest snapshots of free events, and drops it again.
    async fn partitions(&self, rng: &mut Rng, lasts: Duration) {
        let name = "odds_snapshots_2019";
        let create = format!(
            "create table {name} (like odds_snapshots including defaults); insert into {name} (event_id, bookmaker_id, captured_at) \
             select e, 1 + e % 3, timestamp '2019-06-01' from generate_series(1, {FREE}, 2) e"
        );
        self.world.admin(&create).await;
        let attach = format!(
            "alter table odds_snapshots attach partition {name} for values from ('2019-01-01') to ('2020-01-01')"
        );
        self.world.admin(&attach).await;
        sleep(lasts).await;
        if rng.bool() {
            let detach = format!("alter table odds_snapshots detach partition {name}");
            self.world.admin(&detach).await;
            sleep(lasts / 2).await;
        }
        self.world.admin(&format!("drop table {name}")).await;
    }

    /// Sends notifications of any size on our channel and on another, as a role that may only connect.
    async fn spoof(&self, rng: &mut Rng, lasts: Duration) {
        let dsn = self.world.cluster().dsn_as("stranger", "postgres");
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await else {
            return;
        };
        let connection = tokio::spawn(connection);
        let began = Instant::now();
        while began.elapsed() < lasts {
            let channel = ["oddscache", "other"][rng.usize(..2)];
            let sql = format!(
                "select pg_notify('{channel}', repeat('x', {}))",
                rng.usize(..7_900)
            );
            if client.batch_execute(&sql).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
        connection.abort();
    }
}

/// Sets what a proxy does in a fault of this kind.
pub(crate) fn network(kind: Kind, rng: &mut Rng, setting: &mut Setting) {
    let both = |setting: &mut Setting, way| (setting.up, setting.down) = (way, way);
    setting.whose = [Whose::All, Whose::Others, Whose::Listeners][rng.usize(..3)];
    match kind {
        Kind::BlackHole => both(setting, Way::BlackHole),
        Kind::HalfOpenUp => setting.up = Way::BlackHole,
        Kind::HalfOpenDown => setting.down = Way::BlackHole,
        Kind::Slow => setting.down = Way::Slow(rng.usize(16..400), Duration::from_millis(4)),
        Kind::Latency => {
            setting.whose = Whose::All;
            both(setting, Way::Latency(Duration::from_millis(rng.u64(4..40))));
        }
        Kind::Cut => setting.down = Way::Cut(rng.usize(1..3_000)),
        Kind::Refuse => {
            setting.refuse = true;
            setting.resets += 1;
        }
        Kind::Reset => setting.resets += 1,
        Kind::Freeze => both(setting, Way::Freeze),
        Kind::NoticesDropped => setting.notices = Notices::Drop,
        Kind::NoticesDoubled => setting.notices = Notices::Double,
        Kind::NoticesDelayed => {
            setting.notices = Notices::Delay(Duration::from_millis(rng.u64(20..600)));
        }
        Kind::NoticesForged => setting.notices = Notices::Forge,
        _ => {}
    }
    if setting.notices != Notices::Pass {
        setting.whose = Whose::All;
    }
}
