//! Where a read reads.

use tokio_postgres::Client;

use crate::{config::Config, read::schema::Names};

/// Where a read reads: what belongs together travels as one value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) config: &'a Config,
    pub(crate) names: &'a Names,
}
