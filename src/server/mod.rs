//! The service and its tools. Uses only the library's public names.
//!
//! | folder | |
//! |---|---|
//! | `options` | flags that several commands share |
//! | `http` | the HTTP server of `serve` |
//! | `traces` | what is sent to an OpenTelemetry collector (feature `otlp`) |
//! | `commands` | one file or folder for each command of the command line, except the demo |

pub(crate) mod client;
pub(crate) mod commands;
mod descriptors;
pub(crate) mod http;
pub(crate) mod logging;
pub(crate) mod options;
mod prune;
mod session;
pub(crate) mod signals;
pub(crate) mod stderr;
pub(crate) mod stdout;
mod systemd;
#[cfg(feature = "otlp")]
pub(crate) mod traces;
pub(crate) mod version;
