//! What every step of a read needs: the connection, the configuration and the names of the tables.

use tokio_postgres::Client;

use crate::{config::Config, postgres::connection::Connection, read::schema::Names};

/// The connection of a read, with the configuration and the names of the tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) config: &'a Config,
    pub(crate) names: &'a Names,
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        config: &'a Config,
        names: &'a Names,
    ) -> Source<'a> {
        Source {
            client: &connection.client,
            config,
            names,
        }
    }
}
