//! `oddscache explain`: where the odds of one event come from, what changed it lately, and whether a running service and the
//! database agree about it.
//!
//! The database is asked in SQL that has nothing in common with how the cache reads it. A service is compared as a
//! reader of a moving thing must be: the database is read before and after the service answered, and the service differs only
//! if both readings are the same, it says that its cut lies between them, and its answer is another.

mod compare;
mod database;
mod http;
mod print;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tokio::time::sleep;

use super::{args::FollowArguments, auth::Secret, client::Url, doctor::session::Session, paths};
use compare::{Difference, differences};
use database::{Facts, Reading, Standing};
use http::Service;

/// Where `oddscache serve` listens unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7979";

/// How often the database and the service are read anew while the event changes under our eyes.
const ROUNDS: usize = 5;

/// How often the service is asked whether it has caught up.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArguments {
    /// The id of the event
    event: i64,
    #[command(flatten)]
    follow: FollowArguments,
    /// The running service to compare with [default: http://127.0.0.1:7979, if it answers]
    #[arg(long, env = "ODDSCACHE_URL", value_name = "URL")]
    url: Option<Url>,
    /// The token that the service asks for, if it does. Better given by the environment
    #[arg(
        long,
        env = "ODDSCACHE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<Secret>,
    /// Who issues the service's certificate, in a PEM file, if https:// is asked and it is none of the system's
    #[arg(long, env = "ODDSCACHE_CA", value_name = "FILE", value_parser = paths::path())]
    ca: Option<PathBuf>,
    /// Ask the database alone, even where a service is named
    #[arg(long)]
    no_service: bool,
    /// How long to wait for the service to show what the database says
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How many of the newest log rows that name the event to show
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1000))]
    log_rows: u16,
    /// How long one question to the server or the service may take
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print one JSON object: event_id, verdict, reason, differences, database, service
    #[arg(long)]
    json: bool,
}

/// What comparing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The service holds what the database says, or both have nothing.
    Agrees,
    /// It holds something else.
    Differs,
    /// There is no service to compare with.
    DatabaseOnly,
}

/// All that is told. The names of the fields are those of `--json`, and stay.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    pub(crate) event_id: i64,
    pub(crate) verdict: Verdict,
    /// What the verdict rests on, in words.
    pub(crate) reason: String,
    /// Where they differ: the service's value and the database's.
    pub(crate) differences: Vec<Difference>,
    pub(crate) database: Facts,
    /// What the service says; null where there is none.
    pub(crate) service: Option<Service>,
}

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
                humantime::format_duration(arguments.follow.lookback())
            );
            return Ok(Round::Done(Verdict::Differs, reason, found));
        }
    }
    // Rows that do not read as they should are served as far as they go: only the library knows how far that is.
    let config = arguments.follow.config()?.need_feed(false);
    let view = tokio::time::timeout(
        arguments.follow.warmup_timeout(),
        oddscache::warm_up(config),
    )
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
