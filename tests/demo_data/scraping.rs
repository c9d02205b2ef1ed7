//! The simulated scraper: every kind of change, pauses, and a lost server.

use std::{sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use oddscache_testkit::{Database, eventually};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, NoTls};

use crate::{
    count,
    dataset::Scale,
    loaded, oracle,
    scraper::{Control, Counters, Pace, Scraper, changes::Kind},
    small, window_start,
};

fn pool(db: &Database) -> Pool {
    let method = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(db.dsn().parse().unwrap(), NoTls, method);
    Pool::builder(manager).max_size(6).build().unwrap()
}

async fn few_markets(seed: u64) -> (Database, Client) {
    let (markets, small) = (8, small(seed));
    loaded(Scale { markets, ..small }).await
}

/// A fast scraper with many unusual changes and no long transactions.
fn fast_pace() -> Pace {
    Pace {
        cycle: Duration::from_millis(300),
        long: Duration::ZERO,
        mishaps: 2.0,
        ..Pace::default()
    }
}

/// Carries out a kind of change. Tries again until it finds rows to change.
async fn do_once(scraper: &Scraper, kind: Kind) {
    for _ in 0..30 {
        if scraper.once(kind).await.unwrap() {
            return;
        }
    }
    panic!("{kind:?} never found anything to change");
}

/// Each kind of change can be repeated, because the others leave rows for it.
#[tokio::test]
async fn every_kind_of_change_works_again_and_again() {
    let (db, client) = few_markets(1).await;
    let scraper = Scraper::new(pool(&db), 1, fast_pace());
    for (place, (kind, _)) in Kind::RATES.into_iter().enumerate() {
        assert_eq!(kind.index(), place);
    }
    for _ in 0..12 {
        for (kind, _) in Kind::RATES {
            // Retention finds nothing to delete until the other kinds have left old rows.
            if kind == Kind::Retention {
                scraper.once(kind).await.unwrap();
            } else {
                do_once(&scraper, kind).await;
            }
        }
    }
    do_once(&scraper, Kind::Retention).await;
    let counts = scraper.counters().read();
    assert_eq!(counts.failed, 0);
    for (kind, times) in &counts.kinds {
        assert!(*times >= 12 || *kind == Kind::Retention, "{kind:?}");
    }
    assert!(counts.snapshots > 0 && counts.markets > 0 && counts.confirmations > 0);
    assert!(oracle(&client, window_start()).await.len() > 60);
}

/// Rolled back transactions, changes to old partitions and retention do not change the latest odds.
#[tokio::test]
async fn changes_to_history_leave_the_latest_alone() {
    let (db, client) = few_markets(2).await;
    let scraper = Scraper::new(pool(&db), 2, fast_pace());
    let start = window_start();
    for kind in [
        Kind::Scrape,
        Kind::CompetitorScrape,
        Kind::Scrape,
        Kind::CompetitorScrape,
    ] {
        do_once(&scraper, kind).await;
    }
    let before = oracle(&client, start).await;
    // More rounds than there are old partitions, so that each kind also runs when none is left.
    for _ in 0..15 {
        for kind in [
            Kind::RolledBack,
            Kind::LeafTruncated,
            Kind::PartitionDropped,
            Kind::PartitionAttached,
            Kind::Retention,
        ] {
            scraper.once(kind).await.unwrap();
        }
    }
    assert!(oracle(&client, start).await == before);
    let counts = scraper.counters().read().kinds;
    for kind in [Kind::LeafTruncated, Kind::PartitionDropped, Kind::Retention] {
        assert!(counts[kind.index()].1 > 0, "{kind:?}");
    }
}

/// The demo's comparison would prove nothing if these kinds of change did not change the oracle's result.
#[tokio::test]
async fn the_changes_show_in_the_oracle() {
    let (db, client) = few_markets(4).await;
    let scraper = Scraper::new(pool(&db), 4, fast_pace());
    let start = window_start();
    for kind in [
        Kind::Scrape,
        Kind::CompetitorScrape,
        Kind::Confirm,
        Kind::CompetitorConfirm,
        Kind::KickoffMoved,
        Kind::KickoffLeftWindow,
        Kind::KickoffReturned,
        Kind::EventAdded,
        Kind::CompetitorRelinked,
        Kind::CompetitorDeleted,
        Kind::CompetitorRestored,
        Kind::NewestDeleted,
        Kind::CompetitorNewestDeleted,
        Kind::LateMarket,
        Kind::MarketsUnavailable,
        Kind::MarketsAvailable,
        Kind::OutcomesUpdated,
        Kind::LeafWritten,
        Kind::Savepoint,
        Kind::LongTransaction,
    ] {
        let before = oracle(&client, start).await;
        // A single change may leave the result as it is, for instance if it hits an event without snapshots. So try
        // several.
        let mut shown = false;
        for _ in 0..30 {
            scraper.once(kind).await.unwrap();
            shown = oracle(&client, start).await != before;
            if shown {
                break;
            }
        }
        assert!(shown, "{kind:?}");
    }
}

/// A scraper that runs in a task of its own.
struct Running {
    control: Control,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(scraper: Scraper) -> Running {
        let (control, counters) = (Control::new(), scraper.counters());
        let until = control.clone();
        let task = tokio::spawn(async move { scraper.run(until).await });
        Running {
            control,
            counters,
            task,
        }
    }

    async fn goes_on(&self) {
        let before = self.counters.read().transactions;
        eventually("transactions", async || {
            self.counters.read().transactions > before + 10
        })
        .await;
    }

    async fn stop(self) {
        let stopped = timeout(Duration::from_secs(20), self.control.stop()).await;
        stopped.unwrap();
        let ended = timeout(Duration::from_secs(20), self.task).await;
        ended.unwrap().unwrap();
    }
}

/// During a pause no transaction is open and nothing changes, so that the demo can compare. A pause ends long
/// transactions.
#[tokio::test]
async fn a_pause_leaves_no_transaction_in_flight() {
    let (db, client) = few_markets(5).await;
    // If a pause did not end long transactions, the test would time out.
    let pace = Pace {
        long: Duration::from_secs(3600),
        // More workers than there can be long transactions before the next pause. So some workers stay free.
        workers: 6,
        mishaps: 1.0,
        ..fast_pace()
    };
    let scraper = Scraper::new(pool(&db), 5, pace);
    let running = Running::start(scraper);
    let counters = Arc::clone(&running.counters);
    for _ in 0..5 {
        running.goes_on().await;
        let paused = timeout(Duration::from_secs(20), running.control.pause()).await;
        paused.unwrap();
        let in_flight = "select from pg_stat_activity
            where datname = current_database() and backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid()";
        assert_eq!(count(&client, in_flight).await, 0);
        let start = window_start();
        let (done, events) = (counters.read().transactions, oracle(&client, start).await);
        for _ in 0..10 {
            assert_eq!(count(&client, in_flight).await, 0);
        }
        assert!(oracle(&client, start).await == events);
        assert_eq!(counters.read().transactions, done);
        running.control.resume();
    }
    running.stop().await;
    // A long transaction blocks one that locks whole tables, and that one blocks others. So conflicts are the only
    // failures.
    let counts = counters.read();
    assert_eq!(counts.failed, counts.conflicts, "{counts:?}");
}

/// When the server refuses connections, the scraper counts failures. It goes on when connections work again.
#[tokio::test]
async fn a_lost_server_is_survived() {
    let (db, client) = few_markets(6).await;
    drop(client);
    let scraper = Scraper::new(pool(&db), 6, fast_pace());
    let running = Running::start(scraper);
    running.goes_on().await;
    let (name, counters) = (&db.name, &running.counters);
    let admin = |sql: &str| oddscache_testkit::psql("postgres", &["-qAtc", sql]);
    admin(&format!("alter database {name} allow_connections false"));
    admin(&format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    ));
    let failed = counters.read().failed;
    eventually("failures", async || counters.read().failed > failed + 2).await;
    admin(&format!("alter database {name} allow_connections true"));
    running.goes_on().await;
    running.stop().await;
}
