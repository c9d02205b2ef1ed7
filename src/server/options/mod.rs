//! Flags that several commands share.

pub(crate) mod database;
pub(crate) mod follow;
pub(crate) mod log;
pub(crate) mod relay;
pub(crate) mod secret;
