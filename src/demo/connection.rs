//! The demo's own connections: one to look at the database, a pool for the simulated application.

use anyhow::Context;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use oddscache::Config;
use tokio_postgres::{Client, NoTls};

pub(super) async fn connect(dsn: &str) -> anyhow::Result<Client> {
    let (client, connection) = Config::new(dsn)?.open().await?;
    // The task ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// The connections of the simulated application.
pub(super) fn pool(dsn: &str) -> anyhow::Result<Pool> {
    let manager = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(dsn.parse()?, NoTls, manager);
    Pool::builder(manager)
        .max_size(8)
        .build()
        .context("making the application's connections")
}
