//! The `oddscache` binary: the service, its tools, and the demo.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
// They panic if the output cannot be written, and they block. `server::stdout` and `server::stderr` are in their place.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cli;
#[cfg(feature = "demo")]
mod demo;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
