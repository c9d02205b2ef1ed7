//! Paths from flags and variables.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Parses any text as a path. An empty one counts as none, so that `NAME=` is the same as no variable: see [`given`].
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path, if there is one.
pub(crate) fn given(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}
