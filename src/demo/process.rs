//! A program that the demo starts, and that ends with the demo.

use std::{
    env,
    ffi::OsStr,
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context;

/// A running program. Dropping it kills the program with SIGKILL. The same happens if this process dies: a shell waits
/// for the end of a pipe that only this process holds.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    /// Starts a program whose output is appended to `log`. It gets no variable of ours that `oddscache` or PostgreSQL
    /// would read, except `variables`. The folder `owned` is deleted when the program has ended.
    pub(super) fn start(
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
        owned: Option<&Path>,
    ) -> anyhow::Result<Process> {
        let doing = || format!("starting {}", program.display());
        let out = OpenOptions::new().create(true).append(true).open(log);
        let out = out.with_context(doing)?;
        let script = r#"owned=$1; shift; "$@" & cat >/dev/null; kill -9 $!; wait $!; [ -z "$owned" ] || rm -rf "$owned""#;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script, "oddscache-demo"])
            .arg(owned.map_or(OsStr::new(""), Path::as_os_str))
            .arg(program)
            .args(arguments)
            .current_dir("/");
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PG") || text.starts_with("ODDSCACHE") || text == "DATABASE_URL" {
                shell.env_remove(name);
            }
        }
        shell
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(out.try_clone().with_context(doing)?)
            .stderr(out)
            // So that Ctrl-C in the terminal does not reach it.
            .process_group(0);
        Ok(Process(shell.spawn().with_context(doing)?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
