//! `oddscache doctor`: looks at everything that a DBA or an operator can have got wrong, and says what mends it.
//!
//! Each file looks at one group of things. What can be seen in SQL alone stands in `sql/check.sql`, which [`script`] runs;
//! the others add what needs a client: a second connection, a clock, the texts that this binary would install. Nothing that is
//! written stays: what writes is tried in a transaction that is rolled back.

mod bell;
mod feed;
mod finding;
mod log;
mod script;
mod server;
pub(crate) mod session;
mod settings;
mod tables;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use oddscache::Config;

use super::args::FollowArguments;
use finding::{Finding, Findings, Report};
use session::{Session, Trouble};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    follow: FollowArguments,
    /// The role whose rights to look at [default: the one that connects]
    #[arg(long, env = "ODDSCACHE_ROLE", value_name = "NAME")]
    role: Option<String>,
    /// Leave out reading everything once, as a starting cache does: seconds of work for a large database
    #[arg(long)]
    quick: bool,
    /// Print one JSON object: oddscache, database, findings (id, level, checked, object, what, why, mend), summary
    #[arg(long)]
    json: bool,
    /// End with code 3 where nothing fails but there are warnings
    #[arg(long)]
    strict: bool,
    /// How long a transaction that has written may be open, or be prepared, before it is told
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    long_transaction: Duration,
    /// How long one question to the server may take; connecting six times as long, reading everything twelve times
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    check_timeout: Duration,
}

/// What all groups need to know.
struct Context<'a> {
    arguments: &'a DoctorArguments,
    config: Config,
    /// Where the cache would LISTEN, if elsewhere.
    bell: Option<Config>,
    app_schema: &'a str,
    cache_schema: &'a str,
}

impl Context<'_> {
    async fn session(&self) -> Result<Session, Trouble> {
        self.session_at(&self.config).await
    }

    async fn session_at(&self, config: &Config) -> Result<Session, Trouble> {
        Session::open(config, self.arguments.check_timeout).await
    }
}

/// Ends with 0 if nothing fails, 1 if something does, 3 with `--strict` where there are warnings.
pub(crate) async fn run(arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let context = Context {
        config: arguments.follow.config()?,
        bell: arguments.follow.bell()?,
        app_schema: arguments.follow.app_schema(),
        cache_schema: arguments.follow.cache_schema(),
        arguments: &arguments,
    };
    let report = Report::new(context.config.target(), look(&context).await);
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out).context("printing the report")?;
    } else {
        report.print(&mut out).context("printing the report")?;
    }
    Ok(ExitCode::from(match &report.summary {
        summary if summary.fail > 0 => 1,
        summary if summary.warn > 0 && arguments.strict => 3,
        _ => 0,
    }))
}

async fn look(context: &Context<'_>) -> Findings {
    let mut findings = Findings::default();
    let server = match server::reach(context, &mut findings).await {
        Ok(server) => server,
        Err(trouble) => {
            findings.push(server::unreachable(&trouble));
            return findings;
        }
    };
    let role = context.arguments.role.as_ref().unwrap_or(&server.role);
    findings.take("script", script::check(context, role).await);
    findings.take("feed", feed::check(context).await);
    findings.take("tables", tables::check(context).await);
    findings.push(bell::check(context, &server).await);
    findings.take("log", log::check(context, &server).await);
    findings.take("settings", settings::check(context, &server).await);
    if context.arguments.quick {
        findings.push(Finding::info("warmup", "left out by --quick"));
    } else {
        findings.push(tables::warm_up(context).await);
    }
    findings
}
