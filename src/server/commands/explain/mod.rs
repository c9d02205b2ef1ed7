//! `oddscache explain`: where the odds of one event come from, what changed it lately, and whether a running service and the
//! database agree about it.
//!
//! The database is asked in SQL that has nothing in common with how the cache reads it. A service is compared as a
//! reader of a moving thing must be: the database is read before and after the service answered, and the service differs only
//! if both readings are the same, it says that its cut lies between them, and its answer is another.

mod arguments;
pub(crate) mod compare;
mod database;
mod explanation;
mod http;
pub(crate) mod oracle;
mod print;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::time::sleep;

use crate::server::session::Session;
pub(crate) use arguments::ExplainArguments;
use compare::{Difference, differences};
use database::{Reading, Standing};
use explanation::{Explanation, Verdict};
use http::{PAUSE, Service};

/// Where `oddscache serve` listens unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7979";

/// How often the database and the service are read anew while the event changes under our eyes.
const ROUNDS: usize = 5;

/// Ends with 0 if the service agrees, or none was asked for and none answers; 1 if it differs.
pub(crate) async fn run(arguments: ExplainArguments) -> anyhow::Result<ExitCode> {
    let session = Session::open(&arguments.follow.config()?, arguments.timeout)
        .await
        .context("connecting to the database")?;
    let database = database::Database::new(&session, &arguments.follow, arguments.event);
    let explanation = explain(&arguments, &database).await?;
    let mut out = io::stdout().lock();
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

/// What one round of reading says.
enum Round {
    Done(Verdict, String, Vec<Difference>),
    /// The event changed meanwhile: once more.
    Moving(String, Vec<Difference>),
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
    let url = match (&arguments.url, arguments.no_service) {
        (_, true) => {
            return conclude(
                Verdict::DatabaseOnly,
                "no service was asked".to_owned(),
                Vec::new(),
                None,
            )
            .await;
        }
        (Some(url), _) => url.clone(),
        (None, _) => DEFAULT_URL.parse().map_err(anyhow::Error::msg)?,
    };
    let mut moving = None;
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
            Round::Moving(reason, differences) => moving = Some((reason, differences, service)),
        }
        sleep(PAUSE).await;
    }
    let (reason, differences, service) = moving.context("nothing was read")?;
    conclude(Verdict::Differs, reason, differences, Some(service)).await
}

async fn judge(
    arguments: &ExplainArguments,
    database: &database::Database<'_>,
    before: &Reading,
    service: &Service,
    after: &Reading,
) -> anyhow::Result<Round> {
    let nothing = Value::Null;
    let held = service.event.as_ref().unwrap_or(&nothing);
    for reading in [after, before] {
        if differences(held, &reading.event).is_empty() {
            let reason = match &reading.event {
                Value::Null => "neither the service nor the database has it".to_owned(),
                _ => "the service holds what the database says, field by field".to_owned(),
            };
            return Ok(Round::Done(Verdict::Agrees, reason, Vec::new()));
        }
    }
    let found = differences(held, &after.event);
    let Some(as_of) = service.stats.as_of else {
        let reason = format!("the service is not warm: {}", service.stats.status);
        return Ok(Round::Done(Verdict::Differs, reason, found));
    };
    if as_of < before.at {
        let status = &service.stats.status;
        let newer = database.changed_since(as_of).await?;
        let reason = match newer {
            0 => format!(
                "the service's cut is older than this reading ({status}), but no log row since names the event"
            ),
            n => format!(
                "a newer change explains it: {n} log rows since the service's cut name the event or a whole table; the \
                 service is behind ({status})"
            ),
        };
        return Ok(Round::Done(Verdict::Differs, reason, found));
    }
    if !differences(&before.event, &after.event).is_empty() {
        let reason = "the event changes faster than it can be compared; a newer change explains it"
            .to_owned();
        return Ok(Round::Moving(reason, found));
    }
    if before.standing != Standing::Held || after.standing != Standing::Held {
        // Whether it is within the window hangs on the lookback, which is the service's own affair.
        if before.is_window_only() && service.event.is_some() {
            let reason = format!(
                "the service holds an event that is not within the window here: has it another lookback than {}?",
                humantime::format_duration(arguments.follow.lookback)
            );
            return Ok(Round::Done(Verdict::Differs, reason, found));
        }
    }
    // Rows that do not read as they should are served as far as they go: only the library knows how far that is.
    let config = arguments.follow.config()?.need_feed(false);
    let view = tokio::time::timeout(arguments.follow.warmup_timeout, oddscache::warm_up(config))
        .await
        .context("reading everything by the library took too long")?
        .context("reading everything by the library")?;
    let read = match view.event(arguments.event) {
        Some(event) => serde_json::to_value(event)?,
        None => Value::Null,
    };
    Ok(if differences(held, &read).is_empty() {
        let reason = "the service holds what the library reads; some rows do not read as they should, and are served as far \
             as they go (malformed_rows)";
        Round::Done(Verdict::Agrees, reason.to_owned(), Vec::new())
    } else {
        let reason = match service.event.is_none() && before.has_begun {
            true => {
                "the service does not hold an event that is within the window here: has it a shorter lookback?"
            }
            false => {
                "the service's cut is later than the reading before, and nothing changed since: this is a fault"
            }
        };
        Round::Done(Verdict::Differs, reason.to_owned(), found)
    })
}
