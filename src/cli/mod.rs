//! Reads the command line and the settings, and runs the command.

mod args;
mod generate;
mod settings;

use std::process::ExitCode;

use oddscache::{Error, sql::ScriptError};
use tokio::runtime::Runtime;

#[cfg(feature = "demo")]
use crate::demo;
#[cfg(feature = "otlp")]
use crate::server::traces::Traces;
use crate::server::{
    commands::{doctor, dump, explain, probe, serve, sql},
    http::metrics,
    logging, stderr,
};
use args::{Arguments, Command};
use settings::{Origins, Settings};

/// Parses the command line and runs the command. Exit codes: 0 done, 1 failed, 2 wrong usage.
pub(crate) fn main() -> ExitCode {
    metrics::process::begin();
    // Declared first, so that it is dropped last and also flushes the messages of the end.
    let _written = match stderr::start() {
        Ok(flush) => flush,
        Err(error) => {
            stderr::say(&format!("oddscache: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let Settings { arguments, origins } = match settings::read(std::env::args_os().collect()) {
        Ok(settings) => settings,
        Err(unusable) => return unusable.report(),
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            stderr::say(&format!("oddscache: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let log = match Log::start(&arguments, &runtime) {
        Ok(log) => log,
        Err(error) => {
            stderr::say(&format!("oddscache: {error:#}"));
            return ExitCode::from(2);
        }
    };
    let result = runtime.block_on(run(arguments.command, &origins));
    log.end();
    // Do not wait for blocked tasks, such as a write to a pipe that nobody reads.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            stderr::say(&format!("oddscache: {error:#}"));
            let usage =
                matches!(error.downcast_ref(), Some(Error::Config(_))) || error.is::<ScriptError>();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The log, and the traces if they are sent.
struct Log {
    _flush: logging::Flush,
    #[cfg(feature = "otlp")]
    traces: Option<Traces>,
}

impl Log {
    #[cfg(feature = "otlp")]
    fn start(arguments: &Arguments, runtime: &Runtime) -> anyhow::Result<Log> {
        let traces = match &arguments.command {
            Command::Serve(serve) => Traces::start(&serve.traces, runtime.handle().clone())?,
            _ => None,
        };
        let layers = traces.iter().map(Traces::layer).collect();
        let _flush = logging::start(&arguments.log, layers)?;
        Ok(Log { _flush, traces })
    }

    #[cfg(not(feature = "otlp"))]
    fn start(arguments: &Arguments, _: &Runtime) -> anyhow::Result<Log> {
        let _flush = logging::start(&arguments.log, Vec::new())?;
        Ok(Log { _flush })
    }

    /// Sends the last traces. The runtime must still work.
    fn end(&self) {
        #[cfg(feature = "otlp")]
        self.traces.iter().for_each(Traces::flush);
    }
}

async fn run(command: Command, origins: &Origins) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(arguments) => serve::run(*arguments).await,
        Command::Config(_) => settings::run(origins),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { folder } => generate::man(&folder),
        Command::Dump(arguments) => dump::run(arguments).await,
        Command::Sql { database, script } => {
            let config = if script.needs_database() {
                Some(database.config()?)
            } else {
                None
            };
            sql::run(script, config).await
        }
        Command::Doctor(arguments) => doctor::run(*arguments).await,
        Command::Explain(arguments) => explain::run(arguments).await,
        Command::Health(arguments) => probe::run(arguments, "/livez").await,
        Command::Ready(arguments) => probe::run(arguments, "/readyz").await,
        #[cfg(feature = "demo")]
        Command::Demo(arguments) => demo::run(arguments).await,
    }
}
