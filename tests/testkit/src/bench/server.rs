//! A private server with the real amount of data, the change feed and the recommended indexes.

use oddscache::sql::Script;
use tokio_postgres::Client;

use crate::{
    cluster::Cluster,
    connect,
    demo::{self, Size},
};

/// A running server. Dropping it stops the server and deletes its files.
pub struct Server {
    pub cluster: Cluster,
    /// Connection string of the superuser.
    pub dsn: String,
    /// One connection to it.
    pub client: Client,
}

/// 1,100 upcoming events x 3 bookmakers x 50 markets, vacuumed and analyzed. Takes half a minute.
pub async fn start(settings: &[&str]) -> Server {
    let settings = [&["shared_buffers = 1GB", "max_wal_size = 4GB"], settings].concat();
    of_size(&settings, &Size::default()).await
}

/// Does the same with this amount of data, and with no settings but these.
pub async fn of_size(settings: &[&str], size: &Size) -> Server {
    let cluster = Cluster::start(settings).expect("a cluster");
    let dsn = cluster.dsn("postgres");
    let client = connect(&dsn).await;
    demo::fill(&client, size).await;
    for script in [Script::Install, Script::Indexes] {
        crate::run_script_on(&cluster, "postgres", script, &[]);
    }
    client
        .batch_execute("vacuum analyze")
        .await
        .expect("analyzed");
    Server {
        cluster,
        dsn,
        client,
    }
}
