//! `oddscache doctor`: looks for everything that a DBA or an operator can get wrong, and says how to fix it.
//!
//! Each file makes one group of checks. `sql/check.sql`, which [`script`] runs, makes those that SQL alone can make.
//! The other files make those that need a client: a second connection, a clock, the texts that this binary would
//! install. Doctor changes nothing: it rolls back what it writes.

mod context;
mod feed;
mod finding;
mod log;
mod notifications;
mod relay;
mod script;
mod server;
mod settings;
mod warmup;

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;

use crate::server::stdout::stdout;
use context::Context;
pub(crate) use context::DoctorArguments;
use finding::{Finding, Findings, Report};
use relay::Side;

/// Ends with 0 if nothing fails, 1 if something does, 3 with `--strict` where there are warnings.
pub(crate) async fn run(arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let relay = match (arguments.relay.to()?, arguments.relay.from()?) {
        (Some(relay), _) => Some((relay, Side::Publisher)),
        (None, from) => from.map(|relay| (relay, Side::Subscriber)),
    };
    let mut findings = Findings::default();
    let mut database = None;
    // A relay without a database is checked alone.
    if relay.is_none() || arguments.follow.names_database() {
        let context = Context {
            config: arguments.follow.config()?,
            listen: arguments.follow.listen()?,
            app_schema: &arguments.follow.app_schema,
            cache_schema: &arguments.follow.cache_schema,
            arguments: &arguments,
        };
        database = Some(context.config.target());
        findings = look(&context).await;
    }
    if let Some((relay, side)) = &relay {
        let (bound, quick) = (arguments.check_timeout, arguments.quick);
        for finding in relay::check(relay, *side, bound, quick).await {
            findings.push(finding);
        }
    }
    let relay = relay.map(|(relay, _)| relay.target());
    let report = Report::new(database, relay, findings);
    let mut out = stdout();
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
    findings.push(notifications::check(context, &server).await);
    findings.take("log", log::check(context, &server).await);
    findings.take("settings", settings::check(context, &server).await);
    if context.arguments.quick {
        findings.push(Finding::info("warmup", "left out by --quick"));
    } else {
        findings.push(warmup::check(context).await);
    }
    findings
}
