//! The demo's data and its simulated application, for the benchmarks.
//!
//! The sources are the demo's own. Their names are visible within one crate only, so this file has a public function
//! for each thing that a benchmark needs. `tests/demo_data` includes the sources itself and tests them.

#[allow(dead_code, reason = "the demo uses the rest")]
#[path = "../../../src/demo/dataset.rs"]
mod dataset;
#[allow(dead_code, reason = "the demo uses the rest")]
#[path = "../../../src/demo/scraper/mod.rs"]
mod scraper;

use std::{sync::Arc, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use dataset::Scale;
use scraper::{Control, Counters, Pace, Scraper};

/// The amount of data. The default is the real one.
#[derive(Debug, Clone)]
pub struct Size {
    /// Upcoming events.
    pub events: u32,
    /// Markets of a snapshot.
    pub markets: u32,
    /// Snapshots of each event and bookmaker.
    pub history: u32,
    /// How many of these, newest first, have markets.
    pub history_with_markets: u32,
}

impl Default for Size {
    fn default() -> Size {
        let scale = Scale::default();
        Size {
            events: scale.events,
            markets: scale.markets,
            history: scale.history,
            history_with_markets: scale.history_with_markets,
        }
    }
}

/// Creates the application's tables in an empty database.
pub async fn create(client: &Client) {
    dataset::create(client).await.expect("tables");
}

/// Creates the application's tables and their rows in an empty database.
pub async fn fill(client: &Client, size: &Size) {
    create(client).await;
    load(client, size).await;
}

/// Creates the rows in the tables that [`create`] made.
pub async fn load(client: &Client, size: &Size) {
    let scale = Scale {
        events: size.events,
        markets: size.markets,
        history: size.history,
        history_with_markets: size.history_with_markets,
        ..Scale::default()
    };
    let loaded = dataset::load(client, &scale, |_, _, _| {}).await;
    loaded.expect("data");
}

/// The simulated application, which writes until it is stopped.
#[derive(Debug)]
pub struct Application {
    control: Control,
    counters: Arc<Counters>,
    running: JoinHandle<()>,
}

impl Application {
    /// Starts to write. It scrapes every event once in each `cycle`.
    pub fn start(dsn: &str, cycle: Duration) -> Application {
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_config(
            dsn.parse().expect("a dsn"),
            NoTls,
            ManagerConfig { recycling_method },
        );
        let pool = Pool::builder(manager).max_size(8).build().expect("a pool");
        let pace = Pace {
            cycle,
            ..Pace::default()
        };
        let scraper = Scraper::new(pool, 1, pace);
        let (control, counters) = (Control::new(), scraper.counters());
        let running = tokio::spawn({
            let control = control.clone();
            async move { scraper.run(control).await }
        });
        Application {
            control,
            counters,
            running,
        }
    }

    /// The number of transactions that ended as intended.
    pub fn transactions(&self) -> u64 {
        self.counters.read().transactions
    }

    /// The number of transactions that failed.
    pub fn failed(&self) -> u64 {
        self.counters.read().failed
    }

    /// Stops the application. Returns when it no longer writes.
    pub async fn stop(self) {
        self.control.stop().await;
        self.running.await.expect("the application");
    }
}
