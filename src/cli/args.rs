//! The command line. Most flags have an environment variable. The long flags of `serve` are the keys of the settings
//! file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[cfg(feature = "demo")]
use crate::demo::DemoArguments;
use crate::server::{
    commands::{
        doctor::DoctorArguments, dump::DumpArguments, explain::ExplainArguments,
        probe::ProbeArguments, serve::ServeArguments, sql,
    },
    options::{database::DatabaseArguments, log::LogArguments},
    version::VERSION,
};

/// Keeps the latest betting odds of every upcoming event in memory, equal to PostgreSQL, and serves them.
///
/// It reads the application's tables once, then follows the change log that triggers write (install them with
/// `oddscache sql install --apply`). What it serves is always exactly one committed state of the database, and it says
/// how old that is.
#[cfg_attr(
    feature = "demo",
    doc = "\nFirst look, with nothing but PostgreSQL's server binaries installed: oddscache demo"
)]
#[derive(Debug, Parser)]
#[command(version = VERSION, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: LogArguments,
    /// A TOML file of settings: `listen = "127.0.0.1:7979"`, named as the long flags of serve. Flags and the
    /// environment override it
    #[arg(long, global = true, env = "ODDSCACHE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Warm up, follow the database or a relay, and serve the odds over HTTP
    ///
    /// It listens before it warms up; /readyz answers 503 until it is warm. It waits for a database that cannot be
    /// reached. Before the first warmup it ends with code 1 if waiting does not help: a wrong password, missing tables,
    /// triggers or rights. SIGTERM and Ctrl-C end it within --drain. SIGUSR1 makes it read everything again. SIGHUP
    /// makes it read the tokens and the certificate again. SIGUSR2 turns detailed logging on, and the next one off.
    Serve(Box<ServeArguments>),
    /// Print the settings of serve that are in force, and where each comes from: flag, environment, file or default
    ///
    /// Takes the flags of serve. What it prints is a file for --config, without secrets. Connects to nothing.
    Config(Box<ServeArguments>),
    /// Warm up once, print every event as a line of JSON, in event id order, and exit
    Dump(DumpArguments),
    /// Print one of the SQL scripts, or run it with --apply
    ///
    /// install, check and uninstall the change feed; grants: make a least-privilege role for the cache; indexes: make
    /// the recommended indexes. The owner of the tables runs them.
    Sql {
        #[command(flatten)]
        database: DatabaseArguments,
        #[command(flatten)]
        script: sql::Args,
    },
    /// Look for everything that can be wrong with the database, the feed, the rights, the notifications and the log
    ///
    /// Prints what it finds, the worst first: what is wrong, why it matters, and the statement or command that fixes
    /// it. Changes nothing. Run it as the role that the cache logs in as. It reports what that role may not see. Ends
    /// with code 0 if nothing fails, 1 if something does, 3 with --strict if there are only warnings. With --relay-to or
    /// --relay-from it also looks at that relay; if no database is named, at the relay alone.
    Doctor(Box<DoctorArguments>),
    /// Tell where the odds of an event come from, and whether a running service and the database agree about it
    ///
    /// It prints the latest snapshot of each bookmaker and source, with those that it replaced. If the event is not
    /// held, it prints why. It also prints the rows of the change log that name the event. Ends with code 0 if the
    /// service agrees or none was asked, 1 if it differs.
    Explain(ExplainArguments),
    /// Tell whether a running service is alive (/livez): ends with code 0 if so, else with 1
    ///
    /// For the health check of a container. A service without its database is alive; one with a stuck follower is not.
    Health(ProbeArguments),
    /// Tell whether a running service is ready (/readyz): ends with code 0 if so, else with 1
    Ready(ProbeArguments),
    /// Print the completions of a shell: oddscache completions bash > /etc/bash_completion.d/oddscache
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual, a page for each command, into a folder such as /usr/local/share/man/man1
    Man {
        /// The folder, which must exist
        folder: PathBuf,
    },
    /// Show it all on a private throw-away PostgreSQL with simulated bookmakers
    ///
    /// Needs PostgreSQL's server binaries, but no running server and no configuration. Ctrl-C ends all that it started
    /// and removes its files. With --relay it also needs nats-server, and shows how many processes follow one.
    #[cfg(feature = "demo")]
    Demo(DemoArguments),
}
