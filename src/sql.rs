//! The SQL scripts.

/// The version of the change feed this library speaks.
pub const FEED_VERSION: i32 = 1;
