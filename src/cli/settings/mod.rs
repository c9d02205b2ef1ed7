//! Where settings come from: a flag, else the environment, else a TOML file, else the default.
//!
//! The keys of the file are the long names of `oddscache serve`'s flags. The entries of the file are appended to the
//! command line, for flags that neither the command line nor the environment gives. So there is one parser and one set
//! of errors, and the file serves every command that has the flag.
//!
//! An empty value is an error, in a flag, a variable or the file. Its cause is usually a shell variable that somebody
//! forgot to set. Only an absent setting gets its default: `--token ''` must not open the service to all.

mod file;
mod hide;
mod print;

use std::{ffi::OsString, io, path::PathBuf, process::ExitCode};

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, parser::ValueSource};

use crate::{cli::args::Arguments, server::stderr};
use file::Entries;
pub(crate) use print::run;

/// The parsed command line, and where it all came from.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) arguments: Arguments,
    pub(crate) origins: Origins,
}

/// Where the values came from.
#[derive(Debug)]
pub(crate) struct Origins {
    /// From the flags and the environment alone.
    given: ArgMatches,
    /// From the flags, the environment and the file.
    all: ArgMatches,
    /// The file's path and entries.
    file: Option<(PathBuf, Entries)>,
}

/// Why the settings cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// Wrong usage, or a call for help.
    Usage(clap::Error),
    /// A value is empty, the file cannot be read, or an entry in it is wrong. Holds the message.
    Refused(String),
}

impl Unusable {
    /// Prints it, and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Unusable::Usage(error) => {
                let code = u8::try_from(error.exit_code()).unwrap_or(2);
                match error.print() {
                    Err(failed) if code == 0 && failed.kind() != io::ErrorKind::BrokenPipe => {
                        stderr::say(&format!("oddscache: printing: {failed}"));
                        ExitCode::FAILURE
                    }
                    _ => ExitCode::from(code),
                }
            }
            Unusable::Refused(error) => {
                stderr::say(&format!("oddscache: {error}"));
                ExitCode::from(2)
            }
        }
    }
}

/// The command whose flags are the keys of the file.
const KEYED: &str = "serve";

/// The flag that names the file, which cannot stand in it.
const CONFIG: &str = "config";

/// Reads the command line, the environment and the file that they name, if they name one.
pub(crate) fn read(words: Vec<OsString>) -> Result<Settings, Unusable> {
    let mut command = Arguments::command();
    // Without this, a subcommand does not know the global flags.
    command.build();
    let given = command
        .clone()
        .try_get_matches_from(&words)
        .map_err(Unusable::Usage)?;
    refuse_empty(&command, &given)?;
    let (all, file) = match given.get_one::<PathBuf>(CONFIG).cloned() {
        None => (given.clone(), None),
        Some(path) => {
            let entries = file::read(&path, &keys(&command)).map_err(Unusable::Refused)?;
            let words = add_entries(words, &command, &given, &entries);
            let all = command.try_get_matches_from(words);
            let all = all.map_err(|error| {
                // The command line alone was parsed without an error, so the error is in the file.
                let error = error.render().to_string();
                let error = error.trim_start_matches("error: ").trim();
                Unusable::Refused(format!("in {}: {error}", path.display()))
            })?;
            (all, Some((path, entries)))
        }
    };
    let arguments = Arguments::from_arg_matches(&all).map_err(Unusable::Usage)?;
    let origins = Origins { given, all, file };
    Ok(Settings { arguments, origins })
}

/// Refuses a flag or a variable that has an empty value.
fn refuse_empty(command: &clap::Command, matches: &ArgMatches) -> Result<(), Unusable> {
    for argument in command.get_arguments() {
        let given = given_by(matches, argument);
        let values = matches.try_get_raw(argument.get_id().as_str());
        let mut values = values.ok().flatten().into_iter().flatten();
        if given.is_some() && values.any(|value| value.is_empty()) {
            let name = match (given, argument.get_env()) {
                (Some(ValueSource::EnvVariable), Some(name)) => name.display().to_string(),
                _ => argument.to_string(),
            };
            return Err(Unusable::Refused(format!(
                "{name} is given and empty: give it a value, or leave it out (a variable: unset it)"
            )));
        }
    }
    let subcommand = matches.subcommand();
    let subcommand =
        subcommand.and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    subcommand.map_or(Ok(()), |(command, matches)| refuse_empty(command, matches))
}

/// The keys that a file may have.
fn keys(command: &clap::Command) -> Vec<String> {
    let Some(command) = command.find_subcommand(KEYED) else {
        return Vec::new();
    };
    settings(command)
        .filter_map(|flag| flag.get_long())
        .map(str::to_owned)
        .collect()
}

/// The flags of a command that are settings.
fn settings(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    let no_setting = [CONFIG, "help", "version"];
    command.get_arguments().filter(move |flag| {
        flag.get_long()
            .is_some_and(|long| !no_setting.contains(&long))
    })
}

/// The command line with the file's entries, for flags that the command has and that nothing else gives.
fn add_entries(
    mut words: Vec<OsString>,
    command: &clap::Command,
    given: &ArgMatches,
    entries: &Entries,
) -> Vec<OsString> {
    let Some((name, given)) = given.subcommand() else {
        return words;
    };
    let Some(command) = command.find_subcommand(name) else {
        return words;
    };
    let mut more = Vec::new();
    for flag in settings(command) {
        let long = flag.get_long().unwrap_or_default();
        let Some(value) = entries.get(long) else {
            continue;
        };
        if given_by(given, flag).is_some() {
            continue;
        }
        match flag.get_action() {
            ArgAction::SetTrue if value == "true" => more.push(format!("--{long}").into()),
            // The default, so nothing is to be added. Other values go to the parser, which refuses them.
            ArgAction::SetTrue if value == "false" => {}
            _ => more.push(format!("--{long}={value}").into()),
        }
    }
    // Insert before `--`, because nothing after it is a flag.
    let end = words.iter().position(|word| word == "--");
    let end = end.unwrap_or(words.len());
    words.splice(end..end, more);
    words
}

/// Where a flag's value comes from: the command line or the environment. `None` if it has only its default.
fn given_by(matches: &ArgMatches, flag: &clap::Arg) -> Option<ValueSource> {
    let source = matches.value_source(flag.get_id().as_str());
    source.filter(|source| *source != ValueSource::DefaultValue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;

    fn read_with(text: &str, words: &[&str]) -> Result<Settings, Unusable> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let words = [&["oddscache", "--config", path], words].concat();
        read(words.into_iter().map(OsString::from).collect())
    }

    #[test]
    fn the_file_serves_every_command_that_has_the_flag() {
        let text = "listen = \"127.0.0.1:1\"\nmost-streams = 7\nallow-row-security = true\naudit-budget = 0.5\n\
                    log = \"warn\"\ndatabase-url = \"host=h user=u\"\n";
        let settings = read_with(text, &["serve"]).unwrap();
        assert_eq!(settings.arguments.log.log, "warn");
        let Command::Serve(serve) = settings.arguments.command else {
            panic!("another command");
        };
        assert_eq!(serve.listen.to_string(), "127.0.0.1:1");
        assert_eq!(serve.limits.most_streams, 7);
        // The command line overrides the file.
        let settings = read_with(text, &["serve", "--listen", "127.0.0.1:2"]).unwrap();
        let Command::Serve(serve) = settings.arguments.command else {
            panic!("another command");
        };
        assert_eq!(serve.listen.to_string(), "127.0.0.1:2");
        assert_eq!(serve.limits.most_streams, 7);
        for words in [
            &["explain", "4711"][..],
            &["sql", "check"],
            &["dump"],
            &["health"],
            &["explain", "--", "4711"],
        ] {
            assert!(read_with(text, words).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_file_is_said_with_its_name() {
        for (text, word) in [
            ("lisen = \"127.0.0.1:1\"", "listen"),
            ("most_streams = 7", "most-streams"),
            ("most-streams = 0", "--most-streams"),
            ("listen = [1979-05-27]", "listen"),
            ("[serve]\nlisten = \"127.0.0.1:1\"", "serve"),
            ("listen = ", "line 1"),
            ("config = \"x\"", "config"),
            ("token = \"\"", "token"),
            ("inline-markets = []", "inline-markets"),
            ("allow-row-security = \"perhaps\"", "allow-row-security"),
        ] {
            match read_with(text, &["serve"]) {
                Err(Unusable::Refused(error)) => {
                    assert!(
                        error.contains(word) && error.contains("/"),
                        "{text}: {error}"
                    );
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_password_in_a_file_for_all_to_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let try_read = |text: &str, mode: u32| {
            std::fs::write(path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            let words = ["oddscache", "serve", "--config", path.to_str().unwrap()];
            read(words.into_iter().map(OsString::from).collect())
        };
        for secret in [
            "database-url = \"postgres://u:hunter22@h/d\"",
            "listen-url = \"host=h password=hunter22\"",
            "token = \"hunter22hunter22\"",
        ] {
            let Err(Unusable::Refused(error)) = try_read(secret, 0o644) else {
                panic!("{secret} was read");
            };
            assert!(
                error.contains("chmod") && !error.contains("hunter22"),
                "{error}"
            );
            assert!(try_read(secret, 0o640).is_ok(), "{secret}");
        }
        assert!(try_read("database-url = \"postgres://u@h/d\"", 0o644).is_ok());
    }
}
