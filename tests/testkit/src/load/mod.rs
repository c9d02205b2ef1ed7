//! Clients of the service that measure it.

pub mod client;
pub mod events;
pub mod latency;
pub mod subscriber;
