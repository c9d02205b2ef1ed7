//! What was done, how often, and how long it took.

pub(crate) mod histogram;
pub(crate) mod progress;
pub(crate) mod reload;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod timing;
