//! The service: everything the binary does above the library.

pub(crate) mod sql;
