//! What a script asks a client to do, and why it may not be usable.

use std::collections::BTreeMap;

/// Values for a script's psql variables, as `psql -v name=value` gives them.
pub type Variables = BTreeMap<String, String>;

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
        script: String,
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
