//! Paths from flags and variables.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Takes any text. An empty one says nothing, so that `NAME=` is as good as no variable: see [`given`].
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path, if there is one.
pub(crate) fn given(path: &Option<PathBuf>) -> Option<&PathBuf> {
    path.as_ref().filter(|path| !path.as_os_str().is_empty())
}
