//! Clients of the service that measure it, and the service as a process.

pub mod client;
pub mod latency;
pub mod process;
pub mod subscriber;
