//! `oddscache explain`: where the odds of one event come from, what changed it lately, and whether a running service
//! and the database agree about it.
//!
//! It asks the database in SQL that shares nothing with how the cache reads. Because odds change meanwhile, it reads
//! the database before and after the service answers. The service agrees if its answer equals one of the two readings.
//! A difference is a fault only if both readings are the same and the service's cut is not older than the first.
//! Otherwise the reason says what explains the difference.

mod arguments;
pub(crate) mod compare;
mod database;
mod explanation;
mod http;
pub(crate) mod oracle;
mod print;

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::server::{session::Session, stdout::stdout};
pub(crate) use arguments::ExplainArguments;
use compare::{Difference, differences};
use database::Reading;
use explanation::{Explanation, Verdict};
use http::{PAUSE, Service};

/// Where `oddscache serve` listens unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7979";

/// How often to read the database and the service again while the event keeps changing.
const ROUNDS: usize = 5;

/// The exit code is 1 if the service differs. It is 0 if the service agrees, or if none is named and none answers.
pub(crate) async fn run(arguments: ExplainArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.follow.config().context(
        "explain compares a service with the database, so run it where the database can be reached; --url may name a \
         subscriber of a relay",
    )?;
    let session = Session::open(&config, "explain", arguments.timeout)
        .await
        .context("connecting to the database")?;
    let database = database::Database::new(&session, &arguments.follow, arguments.event);
    let explanation = explain(&arguments, &database).await?;
    let mut out = stdout();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &explanation)?;
        writeln!(out).context("printing")?;
    } else {
        print::print(&explanation, &mut out).context("printing")?;
    }
    Ok(match explanation.verdict {
        Verdict::Differs => ExitCode::FAILURE,
        Verdict::Agrees | Verdict::DatabaseOnly => ExitCode::SUCCESS,
    })
}

/// The outcome of one round of reading.
enum Round {
    Done(Verdict, String, Vec<Difference>),
    /// The event changed meanwhile, so another round is needed.
    Changing(String, Vec<Difference>),
}

async fn explain(
    arguments: &ExplainArguments,
    database: &database::Database<'_>,
) -> anyhow::Result<Explanation> {
    let log_rows = arguments.log_rows;
    let conclude = async |verdict, reason: String, differences, service: Option<Service>| {
        let cut = service.as_ref().and_then(|service| service.stats.as_of);
        anyhow::Ok(Explanation {
            event_id: arguments.event,
            verdict,
            reason,
            differences,
            database: database.facts(log_rows, cut).await?,
            service,
        })
    };
    if arguments.no_service {
        let reason = "no service was asked".to_owned();
        return conclude(Verdict::DatabaseOnly, reason, Vec::new(), None).await;
    }
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => DEFAULT_URL.parse().map_err(anyhow::Error::msg)?,
    };
    let mut changing = None;
    for _ in 0..ROUNDS {
        let before = database.read().await?;
        let service = match http::caught_up(&url, before.at, arguments).await {
            Ok(service) => service,
            Err(error) if arguments.url.is_none() => {
                let reason =
                    format!("no service answers at {DEFAULT_URL} ({error:#}); --url names another");
                return conclude(Verdict::DatabaseOnly, reason, Vec::new(), None).await;
            }
            Err(error) => return Err(error.context(format!("asking the service at {url}"))),
        };
        let after = database.read().await?;
        match judge(arguments, database, &before, &service, &after).await? {
            Round::Done(verdict, reason, differences) => {
                return conclude(verdict, reason, differences, Some(service)).await;
            }
            Round::Changing(reason, differences) => changing = Some((reason, differences, service)),
        }
        sleep(PAUSE).await;
    }
    // The event changed in every round.
    let (reason, differences, service) = changing.context("nothing was read")?;
    conclude(Verdict::Differs, reason, differences, Some(service)).await
}

/// Compares what the service holds with two readings of the database, before and after its answer.
async fn judge(
    arguments: &ExplainArguments,
    database: &database::Database<'_>,
    before: &Reading,
    service: &Service,
    after: &Reading,
) -> anyhow::Result<Round> {
    let held = service.event.as_ref().unwrap_or(&Value::Null);
    // The service answered between the two readings, so it agrees if it holds what either of them says.
    let matches = |reading: &&Reading| differences(held, &reading.event).is_empty();
    if let Some(reading) = [after, before].into_iter().find(matches) {
        let reason = match &reading.event {
            Value::Null => "neither the service nor the database has it",
            _ => "the service holds what the database says, field by field",
        };
        return Ok(Round::Done(Verdict::Agrees, reason.to_owned(), Vec::new()));
    }
    let found = differences(held, &after.event);
    let status = &service.stats.status;
    let reason = match service.stats.as_of {
        None => format!("the service is not warm: {status}"),
        Some(as_of) if as_of < before.at => match database.changed_since(as_of).await? {
            0 => format!(
                "the service's cut is older than this reading ({status}), but no log row since that cut names the event"
            ),
            rows => format!(
                "a newer change explains it: {rows} log rows since the service's cut name the event or a whole table; the \
                 service is behind ({status})"
            ),
        },
        Some(_) if !differences(&before.event, &after.event).is_empty() => {
            let reason = "the event changes faster than it can be compared; a newer change explains it";
            return Ok(Round::Changing(reason.to_owned(), found));
        }
        // The service decides by its own lookback whether the event is within the window.
        Some(_) if before.is_window_only() && service.event.is_some() => format!(
            "the service holds an event that is not within the window here: is its lookback not {}?",
            humantime::format_duration(arguments.follow.lookback)
        ),
        Some(_) if found.iter().all(is_of_lookup_table) => {
            "only names differ that the service reads again twice a minute, if its role may read them: see doctor"
                .to_owned()
        }
        Some(_) if differences(held, &read_by_the_library(arguments).await?).is_empty() => {
            let reason = "the service holds what the library reads; some rows are malformed, and only what could be read of \
                          them is served (malformed_rows)";
            return Ok(Round::Done(Verdict::Agrees, reason.to_owned(), Vec::new()));
        }
        Some(_) if service.event.is_none() && before.has_begun => {
            "the service does not hold an event that is within the window here: is its lookback shorter?".to_owned()
        }
        Some(_) => {
            "the service's cut is not older than the first reading, and nothing changed since: this is a fault".to_owned()
        }
    };
    Ok(Round::Done(Verdict::Differs, reason, found))
}

/// Whether a difference is in a name for which there is no trigger.
fn is_of_lookup_table(difference: &Difference) -> bool {
    let field = difference.field.as_str();
    let is_name = field.starts_with("tournament.") && field != "tournament.id";
    is_name || field.starts_with("bookmakers.")
}

/// The event as the library reads it. Only the library knows which parts of a malformed row it can read.
async fn read_by_the_library(arguments: &ExplainArguments) -> anyhow::Result<Value> {
    let config = arguments.follow.config()?.need_feed(false);
    let reading = timeout(arguments.follow.warmup_timeout, oddscache::warm_up(config)).await;
    let view = reading
        .context("reading everything by the library took too long")?
        .context("reading everything by the library")?;
    Ok(match view.event(arguments.event) {
        Some(event) => serde_json::to_value(event)?,
        None => Value::Null,
    })
}
