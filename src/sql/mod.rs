//! The scripts of `sql/`, embedded, and how to fill in their settings.
//!
//! A script is plain SQL. Any client can run it as one text. Its settings are constants at its head. [`Script::fill`]
//! replaces their defaults.

use std::{fmt, str::FromStr};

mod fill;
mod functions;
mod tables;

pub use crate::postgres::quote::{literal, quote};
pub use functions::{FUNCTIONS, Function};
pub(crate) use tables::LOOKUP_TABLES;
pub use tables::Table;

/// The feed version that this crate's `install.sql` installs. `feed_version()` returns it.
pub const FEED_VERSION: i32 = 3;

/// The feed versions that this crate follows: [`FEED_VERSION`], and with a warning the one before. So the feed and the
/// caches can be upgraded in either order. On any other version a follower ends with
/// [`Error::FeedVersion`](crate::error::Error::FeedVersion).
pub const FEED_VERSIONS: std::ops::RangeInclusive<i32> = FEED_VERSION - 1..=FEED_VERSION;

/// One of the scripts in `sql/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// Installs the feed, or repairs or upgrades it. One statement, atomic, without a result.
    Install,
    /// Removes what the other scripts created. One statement, atomic, without a result.
    Uninstall,
    /// Reports on the feed and changes nothing. Two statements for one session; the second returns the report.
    Check,
    /// Creates a role for the cache, with only the rights that it needs. One statement, atomic, without a result.
    Grants,
    /// Lists the statements that create the recommended indexes while writers go on. Two statements for one session;
    /// the second returns the list. Run its rows in order, in one session, outside a transaction.
    Indexes,
}

impl Script {
    /// All scripts.
    pub const ALL: [Script; 5] = [
        Script::Install,
        Script::Uninstall,
        Script::Check,
        Script::Grants,
        Script::Indexes,
    ];

    /// The script's file in `sql/`, with the defaults of its settings.
    pub fn text(self) -> &'static str {
        match self {
            Script::Install => include_str!("../../sql/install.sql"),
            Script::Uninstall => include_str!("../../sql/uninstall.sql"),
            Script::Check => include_str!("../../sql/check.sql"),
            Script::Grants => include_str!("../../sql/grants.sql"),
            Script::Indexes => include_str!("../../sql/indexes.sql"),
        }
    }

    /// The name of its file in `sql/`.
    pub fn file_name(self) -> &'static str {
        match self {
            Script::Install => "install.sql",
            Script::Uninstall => "uninstall.sql",
            Script::Check => "check.sql",
            Script::Grants => "grants.sql",
            Script::Indexes => "indexes.sql",
        }
    }

    /// The names of its settings. Each has a default.
    pub fn settings(self) -> Vec<&'static str> {
        fill::settings(self.text())
    }

    /// The script with these settings, each a name and a value. A value may contain any character. Allocates the text.
    ///
    /// ```
    /// # use oddscache::sql::{Script, ScriptError};
    /// let text = Script::Grants.fill(&[("role", "odds_reader"), ("prune", "on")])?;
    /// assert!(text.contains("role constant pg_catalog.text := 'odds_reader';"));
    /// # Ok::<(), ScriptError>(())
    /// ```
    ///
    /// # Errors
    /// [`ScriptError::UnknownSetting`] for a name that the script does not have. Only the server checks the values, when
    /// the script runs.
    pub fn fill(self, settings: &[(&str, &str)]) -> Result<String, ScriptError> {
        let known = self.settings();
        match settings.iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => Err(ScriptError::UnknownSetting {
                name: (*name).to_owned(),
                script: self.to_string(),
                known: known.join(", "),
            }),
            None => Ok(fill::fill(self.text(), settings)),
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

/// Why [`Script::fill`] or parsing a [`Script`]'s name failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// There is no script of this name.
    #[error("there is no script {name:?}: install, uninstall, check, grants, indexes")]
    UnknownScript {
        /// The name that was given.
        name: String,
    },
    /// The script does not have this setting.
    #[error("{script} has no setting {name:?}; it has {known}")]
    UnknownSetting {
        /// The name that was given.
        name: String,
        /// The script.
        script: String,
        /// The names of its settings, separated by commas.
        known: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_has_its_settings() {
        for (script, settings) in [
            (
                Script::Install,
                "app_schema lock_timeout subscribers cache_schema channel",
            ),
            (
                Script::Uninstall,
                "app_schema cache_schema role keep_indexes lock_timeout",
            ),
            (Script::Check, "app_schema cache_schema role"),
            (Script::Grants, "app_schema cache_schema role prune"),
            (Script::Indexes, "app_schema lock_timeout"),
        ] {
            let mut expected: Vec<&str> = settings.split(' ').collect();
            let mut found = script.settings();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{script}");
            assert_eq!(script.to_string().parse(), Ok(script));
            assert_eq!(script.fill(&[]).unwrap(), script.text());
            let error = script.fill(&[("colour", "red")]).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(settings.split(' ').next().unwrap()),
                "{error}"
            );
        }
    }

    /// Clients take some texts for a parameter, for a command of their own, or for the end of a statement.
    #[test]
    fn the_scripts_are_plain_sql() {
        for script in Script::ALL {
            let text = script.text();
            for (number, line) in text.lines().enumerate() {
                let at = format!("{}:{}: {line}", script.file_name(), number + 1);
                assert!(
                    !line.contains('\\') && !line.contains("${") && !line.contains('?'),
                    "{at}"
                );
                assert!(line.chars().count() <= 120, "{at}");
                // SQLAlchemy takes `:name` for a parameter, but not `::name`.
                let mut parts = line.split(':');
                let mut before = parts.next().unwrap_or_default();
                for part in parts {
                    let is_parameter = part.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                        && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                        && !before.is_empty();
                    assert!(!is_parameter, "{at}");
                    before = part;
                }
                for word in ["BEGIN;", "COMMIT", "ROLLBACK;"] {
                    assert!(!line.starts_with(word), "{at}");
                }
            }
        }
    }
}
