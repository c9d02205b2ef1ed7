//! The feed's SQL scripts, and the part of psql's language they are written in.
//!
//! The scripts are for `psql -f`: a DBA reads and runs them without this crate. [`Script::steps`] understands exactly
//! what they use of psql, so that a program without psql can run the same text.

use std::{collections::BTreeMap, fmt, str::FromStr};

use interpreter::Interpreter;

mod interpreter;

/// What `feed_version()` must return for this crate to follow the feed.
pub const FEED_VERSION: i32 = 3;

/// Values for a script's psql variables, as `psql -v name=value` gives them.
pub type Variables = BTreeMap<String, String>;

/// One of the scripts in `sql/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// Installs the feed, or repairs it, or changes nothing.
    Install,
    /// Removes what the other scripts made.
    Uninstall,
    /// Reports on the feed; changes nothing.
    Check,
    /// Makes the least-privilege role for the cache.
    Grants,
    /// Makes the recommended indexes without locking out writers.
    Indexes,
}

impl Script {
    /// All of them.
    pub const ALL: [Script; 5] = [
        Script::Install,
        Script::Uninstall,
        Script::Check,
        Script::Grants,
        Script::Indexes,
    ];

    /// The script as psql reads it.
    pub fn text(self) -> &'static str {
        match self {
            Script::Install => include_str!("../../sql/install.sql"),
            Script::Uninstall => include_str!("../../sql/uninstall.sql"),
            Script::Check => include_str!("../../sql/check.sql"),
            Script::Grants => include_str!("../../sql/grants.sql"),
            Script::Indexes => include_str!("../../sql/indexes.sql"),
        }
    }

    /// Its name in `sql/`.
    pub fn file_name(self) -> &'static str {
        match self {
            Script::Install => "install.sql",
            Script::Uninstall => "uninstall.sql",
            Script::Check => "check.sql",
            Script::Grants => "grants.sql",
            Script::Indexes => "indexes.sql",
        }
    }

    /// The psql variables it understands; all are optional.
    pub fn variables(self) -> &'static [&'static str] {
        match self {
            Script::Install => &[
                "app_schema",
                "cache_schema",
                "channel",
                "lock_timeout",
                "subscribers",
            ],
            Script::Uninstall => &[
                "app_schema",
                "cache_schema",
                "role",
                "keep_indexes",
                "lock_timeout",
            ],
            Script::Check => &["app_schema", "cache_schema", "role"],
            Script::Grants => &["app_schema", "cache_schema", "role", "prune"],
            Script::Indexes => &["app_schema", "lock_timeout"],
        }
    }

    /// The script with these variables set in its first lines, to be piped into psql.
    ///
    /// # Errors
    /// [`ScriptError::UnknownVariable`] for one that the script would ignore.
    pub fn with_variables(self, variables: &Variables) -> Result<String, ScriptError> {
        self.check(variables)?;
        let mut text = String::new();
        for (name, value) in variables {
            let value = value
                .replace('\\', r"\\")
                .replace('\'', "''")
                .replace('\n', r"\n");
            text.push_str(&format!("\\set {name} '{value}'\n"));
        }
        text.push_str(self.text());
        Ok(text)
    }

    /// What psql would do with the script and these variables, in order. Runs nothing.
    ///
    /// # Errors
    /// [`ScriptError`] for a variable or a value that the script does not take.
    pub fn steps(self, variables: &Variables) -> Result<Vec<Step>, ScriptError> {
        self.check(variables)?;
        Interpreter::new(self.text(), variables.clone()).run()
    }

    fn check(self, variables: &Variables) -> Result<(), ScriptError> {
        match variables
            .keys()
            .find(|name| !self.variables().contains(&name.as_str()))
        {
            Some(name) => Err(ScriptError::UnknownVariable {
                name: name.clone(),
                script: self,
                known: self.variables().join(", "),
            }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name().trim_end_matches(".sql"))
    }
}

impl FromStr for Script {
    type Err = ScriptError;

    fn from_str(name: &str) -> Result<Script, ScriptError> {
        Script::ALL
            .into_iter()
            .find(|script| script.to_string() == name)
            .ok_or_else(|| ScriptError::UnknownScript {
                name: name.to_owned(),
            })
    }
}

/// One thing to do on a connection. Stop at the first that fails, as `ON_ERROR_STOP` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Run this statement, alone: some refuse to share a message with others.
    Statement(String),
    /// Run this query, then each value of its result as a statement, row by row (`\gexec`).
    ForEach(String),
    /// Print this line.
    Echo(String),
}

/// Why a script cannot be used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// No such script.
    #[error("there is no script {name:?}: install, uninstall, check, grants, indexes")]
    UnknownScript {
        /// As given.
        name: String,
    },
    /// The script would ignore this variable.
    #[error("{script} has no variable {name:?}; it has {known}")]
    UnknownVariable {
        /// As given.
        name: String,
        /// The script it was given for.
        script: Script,
        /// What it has.
        known: String,
    },
    /// A value that psql would not take for a boolean.
    #[error("{value:?} is neither on nor off (line {line})")]
    NotBoolean {
        /// As given.
        value: String,
        /// Line of the `\if`.
        line: usize,
    },
    /// A backslash command that the scripts do not use.
    #[error("line {line}: {command} is not understood; run the script with psql")]
    UnknownCommand {
        /// With its arguments.
        command: String,
        /// Line in the script.
        line: usize,
    },
    /// The script ends, or a branch does, within something.
    #[error("line {line}: {what}")]
    Unbalanced {
        /// What is open, or closed without having been opened.
        what: &'static str,
        /// Line in the script.
        line: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_read_and_name_their_variables() {
        for script in Script::ALL {
            script.steps(&Variables::new()).unwrap();
            let mut asked: Vec<&str> = script
                .text()
                .split(":{?")
                .skip(1)
                .map(|rest| &rest[..rest.find('}').unwrap()])
                .collect();
            let mut named = script.variables().to_vec();
            asked.sort_unstable();
            named.sort_unstable();
            assert_eq!(asked, named, "{script}");
            assert_eq!(script.to_string().parse(), Ok(script));
            let error = script
                .steps(&Variables::from([("colour".into(), "red".into())]))
                .unwrap_err();
            assert!(error.to_string().contains(script.variables()[0]), "{error}");
        }
    }

    #[test]
    fn printed_variables_read_back() {
        let odd = Variables::from([("app_schema".into(), "We\"ird \\ sch'ema\n".into())]);
        let printed = Script::Install.with_variables(&odd).unwrap();
        let read = Interpreter::new(&printed, Variables::new()).run().unwrap();
        assert_eq!(read, Script::Install.steps(&odd).unwrap());
    }
}
