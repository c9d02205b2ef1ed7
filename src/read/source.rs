//! Where a read reads.

use tokio_postgres::Client;

use crate::{config::Config, postgres::connection::Connection, read::schema::Names};

/// Where a read reads: what belongs together travels as one value.
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
