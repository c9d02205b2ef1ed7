//! The `oddscache` binary: the service, its tools, and the demo.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod cli;
#[cfg(feature = "demo")]
mod demo;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
