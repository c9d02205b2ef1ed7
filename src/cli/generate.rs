//! `oddscache completions` and `oddscache man`: files for a shell and for `man`, made from the command line's own
//! description, so that they never differ from it.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Arguments;
use crate::server::stdout::stdout;

/// The name of the binary.
const NAME: &str = "oddscache";

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut text);
    stdout().write_all(&text).context("printing")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for each command into a folder that exists: `oddscache.1`, `oddscache-serve.1` and so on.
pub(crate) fn man(folder: &Path) -> anyhow::Result<ExitCode> {
    // Without `help`, whose page would only say that there is help.
    let command = Arguments::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, folder).with_context(|| {
        let folder = folder.display();
        format!("writing the manual into {folder}; it must be a folder where this user may write")
    })?;
    Ok(ExitCode::SUCCESS)
}
