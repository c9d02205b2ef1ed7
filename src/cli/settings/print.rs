//! `oddscache config`: the settings in force and where each comes from, as a file that `--config` reads.

use std::{env, fmt::Write as _, io::Write as _, process::ExitCode};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, parser::ValueSource};

use super::{KEYED, Origins, given_by, hide, settings};
use crate::{cli::args::Arguments, server::stdout::stdout};

/// Prints the settings.
pub(crate) fn run(origins: &Origins) -> anyhow::Result<ExitCode> {
    let text = text(origins)?;
    stdout().write_all(text.as_bytes()).context("printing")?;
    Ok(ExitCode::SUCCESS)
}

fn text(origins: &Origins) -> anyhow::Result<String> {
    let mut command = Arguments::command();
    command.build();
    let command = command
        .find_subcommand(KEYED)
        .context("there is no command serve")?;
    let given = origins
        .given
        .subcommand()
        .context("no command was given")?
        .1;
    let all = origins.all.subcommand().context("no command was given")?.1;
    let mut lines = Vec::new();
    for flag in settings(command) {
        let key = flag.get_long().unwrap_or_default();
        let from = origin(origins, given, flag);
        lines.push(match value(all, flag) {
            None => (format!("# {key} ="), "not set".to_owned()),
            Some(value) => match hide::hidden(key, &value) {
                Some(shown) => (
                    format!("# {key} = {}", quoted(&shown)),
                    format!("{from}; hidden in part"),
                ),
                None => (format!("{key} = {}", literal(&value)), from),
            },
        });
    }
    if env::var_os("PGPASSWORD").is_some() {
        lines.push((
            "# the password of the role".to_owned(),
            "environment PGPASSWORD".to_owned(),
        ));
    }
    // A long setting does not move the comments of all others to the right.
    let width = lines
        .iter()
        .map(|(setting, _)| setting.chars().count())
        .filter(|width| *width <= 48)
        .max();
    let width = width.unwrap_or(0);
    let mut text = String::from("# Settings of `oddscache serve`, and where they come from");
    // Writing into a String does not fail.
    match &origins.file {
        Some((path, _)) => writeln!(text, "; file: {}", path.display()).unwrap_or_default(),
        None => text.push_str("; no file (--config)\n"),
    }
    for (setting, from) in lines {
        writeln!(text, "{setting:width$}  # {from}").unwrap_or_default();
    }
    Ok(text)
}

fn origin(origins: &Origins, given: &ArgMatches, flag: &Arg) -> String {
    let key = flag.get_long().unwrap_or_default();
    match given_by(given, flag) {
        Some(ValueSource::CommandLine) => "flag".to_owned(),
        Some(ValueSource::EnvVariable) => {
            let name = flag.get_env().unwrap_or_default();
            format!("environment {}", name.to_string_lossy())
        }
        _ if origins
            .file
            .as_ref()
            .is_some_and(|(_, entries)| entries.contains_key(key)) =>
        {
            "file".to_owned()
        }
        _ => "default".to_owned(),
    }
}

/// The value as it was written; `None` without one.
fn value(matches: &ArgMatches, flag: &Arg) -> Option<String> {
    let id = flag.get_id().as_str();
    if matches!(flag.get_action(), ArgAction::SetTrue) {
        return Some(matches.get_flag(id).to_string());
    }
    let values: Vec<String> = matches
        .get_raw(id)?
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    Some(values.join(","))
}

/// The value in TOML. A number, true or false stays as it is; all else is quoted.
fn literal(value: &str) -> String {
    let is_number = value
        .parse::<i64>()
        .is_ok_and(|number| number.to_string() == value)
        || value
            .parse::<f64>()
            .is_ok_and(|number| number.to_string() == value && value.contains('.'));
    match is_number || matches!(value, "true" | "false") {
        true => value.to_owned(),
        false => quoted(value),
    }
}

/// Text as TOML and JSON both write it. TOML wants one more control character escaped.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value)
        .to_string()
        .replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_toml_reads_them() {
        for (value, text) in [
            ("1s", "\"1s\""),
            ("7", "7"),
            ("0.01", "0.01"),
            ("007", "\"007\""),
            ("true", "true"),
            ("a\"b\\c\nd\u{7f}", "\"a\\\"b\\\\c\\nd\\u007F\""),
            ("127.0.0.1:1", "\"127.0.0.1:1\""),
            ("inf", "\"inf\""),
        ] {
            assert_eq!(literal(value), text);
            let table: toml::Table = format!("x = {text}").parse().unwrap();
            let read = match &table["x"] {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                other => panic!("{other:?}"),
            };
            assert_eq!(read, value);
        }
    }
}
