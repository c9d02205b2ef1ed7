//! The relay: one process follows the database and publishes what it holds; others hold the same without the database.

#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod codec;
