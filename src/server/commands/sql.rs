//! `oddscache sql`: prints a script of the feed with its settings filled in, or runs it.

use std::{
    future::poll_fn,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use oddscache::{
    Config,
    sql::{Script, ScriptError},
};
use tokio_postgres::{
    AsyncMessage, Client, SimpleQueryMessage,
    error::{DbError, Severity},
};

use crate::server::{stderr, stdout::stdout};

/// Which script, and its settings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The script: install or repair the feed, remove everything, report, create the cache's role, create the
    /// recommended indexes
    #[arg(value_parser = scripts())]
    script: Script,
    /// Run it on the database instead of printing it
    #[arg(long)]
    apply: bool,
    /// The schema of the application's tables [default: public]
    #[arg(long, env = "ODDSCACHE_APP_SCHEMA")]
    app_schema: Option<String>,
    /// The schema of the feed [default: oddscache]
    #[arg(long, env = "ODDSCACHE_CACHE_SCHEMA")]
    cache_schema: Option<String>,
    /// The notification channel of the feed [default: oddscache]
    #[arg(long, env = "ODDSCACHE_CHANNEL")]
    channel: Option<String>,
    /// grants, uninstall, check: the role of the cache [default: oddscache]
    #[arg(long, env = "ODDSCACHE_ROLE", value_name = "NAME")]
    role: Option<String>,
    /// install, uninstall, indexes: how long to wait for locks, such as 10s; 0 waits for ever [default: 2s]
    #[arg(long, value_name = "TIME")]
    lock_timeout: Option<String>,
    /// install: confirm that every subscriber of a publication FOR ALL TABLES has the feed's tables
    #[arg(long)]
    subscribers_ready: bool,
    /// grants: the role may also prune the change log
    #[arg(long)]
    prune: bool,
    /// uninstall: keep the indexes
    #[arg(long)]
    keep_indexes: bool,
}

fn scripts() -> impl TypedValueParser<Value = Script> {
    PossibleValuesParser::new(["install", "uninstall", "check", "grants", "indexes"])
        .try_map(|name| name.parse::<Script>())
}

impl Args {
    /// Whether to run the script, not only print it.
    pub(crate) fn needs_database(&self) -> bool {
        self.apply
    }

    /// The script, filled in from the flags. Some flags also come from environment variables, which may be set for all
    /// commands. So such a flag is ignored if the script has no such setting.
    fn text(&self) -> Result<String, ScriptError> {
        let known = self.script.settings();
        let shared = [
            ("app_schema", &self.app_schema),
            ("cache_schema", &self.cache_schema),
            ("channel", &self.channel),
            ("role", &self.role),
        ];
        let mut settings: Vec<(&str, &str)> = shared
            .into_iter()
            .filter(|(name, _)| known.contains(name))
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect();
        settings.extend(
            self.lock_timeout
                .as_deref()
                .map(|time| ("lock_timeout", time)),
        );
        for (flag, setting) in [
            (self.subscribers_ready, ("subscribers", "ready")),
            (self.prune, ("prune", "on")),
            (self.keep_indexes, ("keep_indexes", "on")),
        ] {
            settings.extend(flag.then_some(setting));
        }
        self.script.fill(&settings)
    }
}

/// Prints the script, or with `--apply` runs it. Exit code 1 when `check` finds a FAIL.
pub(crate) async fn run(args: Args, config: Option<Config>) -> anyhow::Result<ExitCode> {
    let text = args.text()?;
    if !args.apply {
        let mut out = stdout();
        let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        return printed
            .context("printing the script")
            .map(|()| ExitCode::SUCCESS);
    }
    let Some(config) = config else {
        bail!(
            "--apply needs a database: set DATABASE_URL or PGHOST and its like, or print the script for another client"
        );
    };
    apply(args.script, &text, &config, Output::All).await
}

/// What [`apply`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    All,
    Nothing,
}

/// Overrides defaults of the role and the database. With other values the scripts refuse to run.
const SESSION: &str =
    "SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off";

/// Runs a script's filled text as one query, and for `indexes` also each statement that it lists. Exit code 1 when
/// `check` finds a FAIL.
pub(crate) async fn apply(
    script: Script,
    text: &str,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut out: Box<dyn Write> = match output {
        Output::All => Box::new(stdout()),
        Output::Nothing => Box::new(io::sink()),
    };
    let (client, mut connection) = config.open_for("sql").await?;
    // Print notices as they arrive, because the script may wait long for a lock after one.
    let messages = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notice(_)) if output == Output::Nothing => {}
                Ok(AsyncMessage::Notice(notice)) => stderr::say(&describe(&notice)),
                Ok(_) => {}
                // The running query reports the same error.
                Err(_) => return,
            }
        }
    });
    let failed = on(&client, script, text, &mut out).await;
    drop(client);
    messages.await.context("reading the server's messages")?;
    Ok(match failed? {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Runs the script and prints what it returns. Returns whether the report has a FAIL.
async fn on(
    client: &Client,
    script: Script,
    text: &str,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    execute(client, SESSION, SESSION).await?;
    let mut failed = false;
    for table in tables(&execute(client, text, script.file_name()).await?) {
        if script == Script::Indexes {
            for statement in table.rows.iter().flatten().flatten() {
                writeln!(out, "{statement}")?;
                execute(client, statement, statement).await?;
            }
        } else {
            failed |= table.has_fail();
            table.print(out)?;
        }
    }
    Ok(failed)
}

async fn execute(
    client: &Client,
    sql: &str,
    name: &str,
) -> anyhow::Result<Vec<SimpleQueryMessage>> {
    client
        .simple_query(sql)
        .await
        .map_err(|error| match error.as_db_error() {
            Some(error) => anyhow::anyhow!("{}\nin {name}", describe(error)),
            None => anyhow::Error::new(error).context(format!("in {name}")),
        })
}

/// A notice or an error as text, with its detail and hint.
fn describe(message: &DbError) -> String {
    let mut text = match message.parsed_severity() {
        Some(
            Severity::Notice | Severity::Info | Severity::Log | Severity::Debug | Severity::Warning,
        ) => {
            format!("{}: {}", message.severity(), message.message())
        }
        _ => format!(
            "{} {}: {}",
            message.severity(),
            message.code().code(),
            message.message()
        ),
    };
    for (name, more) in [("DETAIL", message.detail()), ("HINT", message.hint())] {
        if let Some(more) = more {
            text.push_str(&format!("\n{name}: {more}"));
        }
    }
    text
}

/// A result set.
#[derive(Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

fn tables(messages: &[SimpleQueryMessage]) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => tables.push(Table {
                columns: columns
                    .iter()
                    .map(|column| column.name().to_owned())
                    .collect(),
                rows: Vec::new(),
            }),
            SimpleQueryMessage::Row(row) => {
                if let Some(table) = tables.last_mut() {
                    table.rows.push(
                        (0..row.len())
                            .map(|at| row.get(at).map(str::to_owned))
                            .collect(),
                    );
                }
            }
            _ => {}
        }
    }
    tables
}

impl Table {
    fn has_fail(&self) -> bool {
        let status = self.columns.iter().position(|column| column == "status");
        status.is_some_and(|at| {
            self.rows.iter().any(|row| {
                row.get(at)
                    .is_some_and(|cell| cell.as_deref() == Some("FAIL"))
            })
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let cell = |cell: &Option<String>| cell.clone().unwrap_or_default();
        let rows: Vec<Vec<String>> = std::iter::once(self.columns.clone())
            .chain(self.rows.iter().map(|row| row.iter().map(cell).collect()))
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                rows.iter()
                    .filter_map(|row| row.get(at))
                    .map(|text| text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for (number, row) in rows.iter().enumerate() {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(text, width)| format!("{text:width$}"))
                .collect();
            writeln!(out, "{}", line.join(" | ").trim_end())?;
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(out, "{}", rule.join("-+-"))?;
            }
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_fails_are_seen() {
        let mut table = Table {
            columns: vec!["object".into(), "status".into()],
            rows: vec![vec![Some("é".into()), Some("ok".into())], vec![None, None]],
        };
        let mut text = Vec::new();
        table.print(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "object | status\n-------+-------\né      | ok\n       |\n\n"
        );
        assert!(!table.has_fail());
        table
            .rows
            .push(vec![Some("FAIL".into()), Some("FAIL".into())]);
        assert!(table.has_fail());
    }

    #[test]
    fn flags_reach_only_scripts_with_such_a_setting() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let parse = |line: &str| {
            <Command as clap::Parser>::try_parse_from(line.split_whitespace())
                .map(|command| command.args.text())
        };
        // An environment may set the channel for all commands.
        let filled = parse("sql check --channel odds --app-schema a").unwrap();
        assert_eq!(filled, Script::Check.fill(&[("app_schema", "a")]));
        let filled = parse("sql grants --role r --prune").unwrap();
        assert_eq!(
            filled,
            Script::Grants.fill(&[("role", "r"), ("prune", "on")])
        );
        assert_eq!(
            parse("sql indexes").unwrap().unwrap(),
            Script::Indexes.text()
        );
        for line in [
            "sql grants --lock-timeout 1s",
            "sql check --prune",
            "sql install --keep-indexes",
            "sql uninstall --subscribers-ready",
        ] {
            assert!(parse(line).unwrap().is_err(), "{line}");
        }
        assert!(parse("sql bake").is_err());
    }
}
