//! Reaches a server and talks to it. Knows nothing of odds.

pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod connector;
pub(crate) mod conninfo;
pub(crate) mod hosts;
pub(crate) mod passfile;
pub(crate) mod password;
pub(crate) mod pipeline;
pub(crate) mod quote;
#[cfg(feature = "tls")]
pub(crate) mod rustls;
pub(crate) mod server_version;
pub(crate) mod statement;
pub(crate) mod tls;
