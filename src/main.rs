//! The `oddscache` binary: the service, its tools, and the demo.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
// `println!` and `eprintln!` block, and panic if they cannot write. Use `server::stdout` and `server::stderr` instead.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cli;
#[cfg(feature = "demo")]
mod demo;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
