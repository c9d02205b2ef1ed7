//! What every step of a read needs: the connection, the configuration and the names of the tables.

use tokio_postgres::Client;

use crate::{config::Config, read::schema::Names};

/// The connection of a read, with the configuration and the names of the tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) config: &'a Config,
    pub(crate) names: &'a Names,
}
