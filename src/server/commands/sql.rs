//! `oddscache sql`: prints a script of the feed, or runs it as psql would.

use std::{
    future::poll_fn,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use oddscache::{
    Config,
    sql::{Script, Step, Variables},
};
use tokio_postgres::{
    AsyncMessage, Client, SimpleQueryMessage,
    error::{DbError, Severity},
};

/// Which script, and with what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The script: install or repair the feed, remove everything, report, make the cache's role, make the recommended
    /// indexes
    #[arg(value_parser = scripts())]
    script: Script,
    /// Run it on the database instead of printing it for psql
    #[arg(long)]
    apply: bool,
    /// Set a variable of the script, as psql's -v does; an unknown one is refused with the list of the known
    #[arg(short = 'v', long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// The schema of the application's tables [default: public]
    #[arg(long, env = "ODDSCACHE_APP_SCHEMA")]
    app_schema: Option<String>,
    /// The schema of the feed [default: oddscache]
    #[arg(long, env = "ODDSCACHE_CACHE_SCHEMA")]
    cache_schema: Option<String>,
    /// The notification channel of the feed [default: oddscache]
    #[arg(long, env = "ODDSCACHE_CHANNEL")]
    channel: Option<String>,
}

fn scripts() -> impl TypedValueParser<Value = Script> {
    PossibleValuesParser::new(["install", "uninstall", "check", "grants", "indexes"])
        .try_map(|name| name.parse::<Script>())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give it as NAME=VALUE".to_owned()),
    }
}

impl Args {
    /// Whether it is to be run, not only printed.
    pub(crate) fn needs_database(&self) -> bool {
        self.apply
    }

    /// What `-v` says, and where it says nothing the flags, as far as the script has such a variable: they may come from
    /// an environment that serves all commands.
    fn variables(&self) -> Variables {
        let mut variables: Variables = [
            ("app_schema", &self.app_schema),
            ("cache_schema", &self.cache_schema),
            ("channel", &self.channel),
        ]
        .into_iter()
        .filter(|(name, _)| self.script.variables().contains(name))
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect();
        variables.extend(self.variables.iter().cloned());
        variables
    }
}

/// Prints the script, or with `--apply` runs it. Exit code 1 when `check` finds a FAIL.
pub(crate) async fn run(args: Args, config: Option<Config>) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    if !args.apply {
        let text = args.script.with_variables(&args.variables())?;
        return match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // `oddscache sql install | head`
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            result => result
                .context("printing the script")
                .map(|()| ExitCode::SUCCESS),
        };
    }
    let Some(config) = config else {
        bail!(
            "--apply needs a database: set DATABASE_URL or PGHOST and its like, or print the script and pipe it into psql"
        );
    };
    apply(args.script, &args.variables(), &config, Output::All).await
}

/// What [`apply`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    All,
    Nothing,
}

/// Runs a script. Exit code 1 when `check` finds a FAIL.
pub(crate) async fn apply(
    script: Script,
    variables: &Variables,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut out: Box<dyn Write> = match output {
        Output::All => Box::new(io::stdout()),
        Output::Nothing => Box::new(io::sink()),
    };
    let steps = script.steps(variables)?;
    let (client, mut connection) = config.open().await?;
    // Notices are printed as they arrive: a script may wait long for a lock after the first.
    let messages = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notice(_)) if output == Output::Nothing => {}
                Ok(AsyncMessage::Notice(notice)) => eprintln!("{}", describe(&notice)),
                Ok(_) => {}
                // The query that is waiting gets the same error.
                Err(_) => return,
            }
        }
    });
    let mut failed = false;
    for step in &steps {
        match step {
            Step::Echo(line) => writeln!(out, "{line}")?,
            Step::Statement(sql) => {
                for table in tables(&execute(&client, sql).await?) {
                    failed |= script == Script::Check && table.has_fail();
                    table.print(&mut out)?;
                }
            }
            Step::ForEach(sql) => {
                for table in tables(&execute(&client, sql).await?) {
                    for sql in table.rows.iter().flatten().flatten() {
                        eprintln!("{sql}");
                        execute(&client, sql).await?;
                    }
                }
            }
        }
    }
    drop(client);
    messages.await.context("reading the server's messages")?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn execute(client: &Client, sql: &str) -> anyhow::Result<Vec<SimpleQueryMessage>> {
    client.simple_query(sql).await.map_err(|error| {
        let line = sql.lines().next().unwrap_or_default();
        match error.as_db_error() {
            Some(error) => anyhow::anyhow!("{}\nin the statement: {line}", describe(error)),
            None => anyhow::Error::new(error).context(format!("in the statement: {line}")),
        }
    })
}

/// A notice or an error, with everything that helps.
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
    fn flags_reach_only_scripts_that_know_them() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let parse = |line: &str| {
            <Command as clap::Parser>::try_parse_from(line.split_whitespace())
                .map(|command| command.args)
        };
        let args = parse("sql check --channel bell --app-schema a -v app_schema=b").unwrap();
        assert_eq!(
            args.variables(),
            Variables::from([("app_schema".into(), "b".into())])
        );
        let args = parse("sql install --channel bell").unwrap();
        assert_eq!(
            args.variables(),
            Variables::from([("channel".into(), "bell".into())])
        );
        assert!(parse("sql bake").is_err());
        assert!(parse("sql check -v x").is_err());
    }
}
