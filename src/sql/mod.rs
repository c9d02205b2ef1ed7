//! The feed's SQL scripts, and the part of psql's language they are written in.
//!
//! The scripts are for `psql -f`: a DBA reads and runs them without this crate. [`Script::steps`] understands exactly
//! what they use of psql, so that a program without psql can run the same text.

use std::{fmt, str::FromStr};

use interpreter::Interpreter;

mod interpreter;
mod step;
mod tables;

pub use crate::postgres::quote::{literal, quote};
pub use step::{ScriptError, Step, Variables};
pub use tables::Table;

/// What `feed_version()` returns where this crate's `install.sql` was run.
pub const FEED_VERSION: i32 = 3;

/// The feed versions that this crate follows: its own and the one before, so that the feed and the caches can be upgraded in
/// either order. Others are refused with [`Error::FeedVersion`](crate::error::Error::FeedVersion).
pub const FEED_VERSIONS: std::ops::RangeInclusive<i32> = FEED_VERSION - 1..=FEED_VERSION;

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
                script: self.to_string(),
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
