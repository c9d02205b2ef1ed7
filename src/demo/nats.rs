//! A private, throw-away nats-server with JetStream.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::time::sleep;

use super::process::Process;

/// How long the server may take to start.
const START: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(20);

/// A running server. Dropping it kills the server and deletes its folder. The same happens if this process dies.
#[derive(Debug)]
pub(super) struct Nats {
    url: String,
    folder: PathBuf,
    _process: Process,
}

/// What the server writes into its ports file.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

impl Nats {
    /// Where nats-server is.
    ///
    /// # Errors
    /// Says how to get it, if it is not installed.
    pub(super) fn program() -> anyhow::Result<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
        Nats::program_in(env::split_paths(&path).chain(usual))
    }

    fn program_in(folders: impl IntoIterator<Item = PathBuf>) -> anyhow::Result<PathBuf> {
        let is_program = |file: &PathBuf| {
            let file = fs::metadata(file);
            file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let found = folders
            .into_iter()
            .map(|folder| folder.join("nats-server"))
            .find(is_program);
        found.context(
            "nats-server was not found in PATH, /usr/sbin or /usr/local/bin; install version 2.9 or newer (Debian, Ubuntu: \
             `apt-get install nats-server`; macOS: `brew install nats-server`; others: \
             https://github.com/nats-io/nats-server/releases)",
        )
    }

    /// Starts a server on a free port of 127.0.0.1.
    pub(super) async fn start(program: &Path) -> anyhow::Result<Nats> {
        const DOING: &str = "making a folder for nats-server";
        let folder = tempfile::Builder::new().prefix("oddscache-nats-").tempdir();
        // The process deletes it, so that it also goes if this process is killed.
        let folder = folder.context(DOING)?.keep();
        let [store, ports] = ["store", "ports"].map(|name| folder.join(name));
        fs::create_dir(&ports).context(DOING)?;
        let (store, ports_folder) = (store.to_string_lossy(), ports.to_string_lossy());
        let arguments = ["-a", "127.0.0.1", "-p", "-1", "-js", "-sd", &store];
        let arguments = [&arguments[..], &["--ports_file_dir", &ports_folder]].concat();
        let log = folder.join("nats-server.log");
        let process = Process::start(program, &arguments, &[], &log, Some(&folder))?;
        let begun = Instant::now();
        let url = loop {
            if let Some(url) = read_url(&ports) {
                break url;
            }
            if begun.elapsed() > START {
                bail!("nats-server did not start: {}", last_lines(&log));
            }
            sleep(PAUSE).await;
        };
        Ok(Nats {
            url,
            folder,
            _process: process,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// A folder that goes with the server.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The URL in the ports file. `None` as long as the file is not there, or not whole.
fn read_url(ports: &Path) -> Option<String> {
    let file = fs::read_dir(ports).ok()?.flatten().next()?;
    let text = fs::read_to_string(file.path()).ok()?;
    let ports: Ports = serde_json::from_str(&text).ok()?;
    ports.nats.into_iter().next()
}

/// The end of a log, in one line.
pub(super) fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_server_the_error_says_how_to_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("nats-server");
        // A file that nobody may execute is no program.
        fs::write(&program, "").unwrap();
        let error = Nats::program_in([folder.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("apt-get install nats-server"));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let found = Nats::program_in([folder.path().to_owned()]).unwrap();
        assert_eq!(found, program);
    }
}
