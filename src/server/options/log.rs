//! What to log, and how.

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    // rustls is off because any client can make it warn. The listener logs each failed handshake, at debug.
    /// What to log to standard error: a level (error, warn, info, debug, trace) or a filter such as oddscache=debug
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG",
        default_value = "info,tokio_postgres=warn,async_nats=warn,opentelemetry=error,rustls=off",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
    /// The form of the log
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG_FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// How often one place in the program may log within 10 s. A message says how many more there were. 0: no limit
    #[arg(
        long,
        global = true,
        env = "ODDSCACHE_LOG_REPEATS",
        default_value_t = 20,
        value_name = "COUNT"
    )]
    pub(crate) log_repeats: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}
