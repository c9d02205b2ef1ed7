//! A private, throw-away PostgreSQL cluster: started on free ports, stopped and deleted with its owner.
//!
//! Used by `oddscache demo`, and by the tests and benchmarks through `#[path]`.
//! The crates that do this either download server binaries or call `sudo` when run as root;
//! this must work offline, and as root without `sudo`.

use std::{
    fs, io,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// What went wrong while finding or starting the private cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No directory holds `initdb`, `postgres` and `pg_ctl`.
    #[error(
        "PostgreSQL's server binaries (initdb, postgres, pg_ctl) were not found in PATH, `pg_config --bindir` or \
         /usr/lib/postgresql/*/bin; install them (Debian, Ubuntu: `apt-get install postgresql`; Fedora: \
         `dnf install postgresql-server`; macOS: `brew install postgresql`)"
    )]
    NotInstalled,
    /// Run as root, and there is no unprivileged user to start the server as.
    #[error(
        "the PostgreSQL server refuses to run as root, and neither the user `postgres` nor `nobody` exists to run it as; \
         create one (`useradd --system postgres`) or run this as another user"
    )]
    NoUser,
    /// A step failed.
    #[error("{step} failed: {detail}")]
    Step {
        /// The program or file operation.
        step: String,
        /// What it printed, or the operating system's error.
        detail: String,
    },
}

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let step = step.into();
    move |error| ClusterError::Step {
        step,
        detail: error.to_string(),
    }
}

/// A running private cluster. Dropping it stops the server and deletes its files; so does the death of this process,
/// however it dies, because a watchdog process waits for the end of a pipe that only this process holds.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    /// `None` when the server runs as ourselves.
    user: Option<(u32, u32)>,
    dir: tempfile::TempDir,
    port: u16,
    watchdog: Option<Child>,
}

impl Cluster {
    /// Creates and starts a cluster whose superuser is `postgres`: trusted on the socket (in a directory only its owner
    /// can enter), by password on 127.0.0.1. `settings` are lines of `postgresql.conf`. Blocks for about two seconds.
    pub fn start(settings: &[&str]) -> Result<Cluster, ClusterError> {
        let mut cluster = Cluster::create()?;
        cluster.init(&cluster.data())?;
        cluster.configure(settings)?;
        cluster.start_on_free_port()?;
        Ok(cluster)
    }

    /// A directory for a cluster, whose [`Cluster::data`] the caller fills: by [`Cluster::init`], from a backup.
    pub fn create() -> Result<Cluster, ClusterError> {
        let bin = find_binaries().ok_or(ClusterError::NotInstalled)?;
        let user = if is_root()? {
            Some(unprivileged_user().ok_or(ClusterError::NoUser)?)
        } else {
            None
        };
        // Not $TMPDIR: a socket's path may have 107 bytes at most.
        let dir = tempfile::Builder::new()
            .prefix("oddscache-")
            .tempdir_in("/tmp")
            .map_err(step("mkdir in /tmp"))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))
            .map_err(step("chmod"))?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).map_err(step("chown"))?;
        }
        let mut cluster = Cluster {
            bin,
            user,
            dir,
            port: 0,
            watchdog: None,
        };
        cluster.watch()?;
        Ok(cluster)
    }

    /// Makes a new data directory.
    pub fn init(&self, data: &Path) -> Result<(), ClusterError> {
        self.run(self.command("initdb").arg("-D").arg(data).args([
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        ]))
    }

    /// Starts the server for the first time.
    pub fn start_on_free_port(&mut self) -> Result<(), ClusterError> {
        // A port that was free may be taken before the server binds it: try others.
        let mut tries = 0;
        loop {
            self.port = free_port().map_err(step("looking for a free port"))?;
            match self.boot() {
                Ok(()) => return Ok(()),
                Err(error) if tries == 3 => return Err(error),
                Err(_) => tries += 1,
            }
        }
    }

    /// Replaces the settings of `postgresql.auto.conf` by these.
    pub fn configure(&self, settings: &[&str]) -> Result<(), ClusterError> {
        let path = self.data().join("postgresql.auto.conf");
        let mut text = String::from("listen_addresses = '127.0.0.1'\nlogging_collector = off\n");
        text.push_str(&format!(
            "unix_socket_directories = '{}'\n",
            self.socket_dir().display()
        ));
        for line in settings {
            text.push_str(line);
            text.push('\n');
        }
        // Owned by the server's user already, since initdb made it; only its contents change.
        fs::write(&path, text).map_err(step("writing postgresql.auto.conf"))
    }

    /// Starts the server on the chosen port (again, after [`Cluster::stop`]).
    pub fn boot(&self) -> Result<(), ClusterError> {
        let (data, log) = (self.data(), self.dir.path().join("log"));
        let port = format!("-p {}", self.port);
        self.run(
            self.command("pg_ctl")
                .args(["start", "-w", "-t", "60", "-D"])
                .arg(&data)
                .arg("-l")
                .arg(&log)
                .args(["-o", &port]),
        )
        .map_err(|error| {
            let tail = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = tail.lines().rev().take(5).collect();
            ClusterError::Step {
                step: error.to_string(),
                detail: tail.into_iter().rev().collect::<Vec<_>>().join("; "),
            }
        })
    }

    /// Stops the server: `mode` is `smart`, `fast` or `immediate`.
    pub fn stop(&self, mode: &str) -> Result<(), ClusterError> {
        self.run(
            self.command("pg_ctl")
                .args(["stop", "-w", "-t", "60", "-m", mode, "-D"])
                .arg(self.data()),
        )
    }

    /// Writes a file that belongs to the server's user, readable by it alone, in the cluster's data directory.
    pub fn put(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.data().join(name);
        fs::write(&path, text).map_err(step(format!("writing {name}")))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(step("chmod"))?;
        if let Some((uid, gid)) = self.user {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(step("chown"))?;
        }
        Ok(())
    }

    /// Serves TLS with this certificate (and its chain) and key, in PEM, from the next [`Cluster::boot`] on; client
    /// certificates issued by `client_roots` are accepted.
    pub fn serve_tls(
        &self,
        certificate: &str,
        key: &str,
        client_roots: &str,
    ) -> Result<(), ClusterError> {
        self.put("server.crt", certificate)?;
        self.put("server.key", key)?;
        self.put("clients.crt", client_roots)?;
        let path = self.data().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&path).map_err(step("reading postgresql.auto.conf"))?;
        if !text.contains("ssl = on") {
            text.push_str("ssl = on\nssl_ca_file = 'clients.crt'\n");
            fs::write(&path, text).map_err(step("writing postgresql.auto.conf"))?;
        }
        Ok(())
    }

    /// Who may log in, and how, from the next [`Cluster::boot`] on: lines of `pg_hba.conf`, after which the superuser is
    /// trusted on the socket.
    pub fn set_hba(&self, lines: &[&str]) -> Result<(), ClusterError> {
        self.put(
            "pg_hba.conf",
            &format!("{}\nlocal all all trust\n", lines.join("\n")),
        )
    }

    /// Deletes everything if this process dies without dropping: the shell reads a pipe that ends with us, whatever
    /// signal ends us. In a process group of its own, so that Ctrl-C in the terminal does not reach it.
    fn watch(&mut self) -> Result<(), ClusterError> {
        let script =
            r#"cat >/dev/null; "$1" stop -m immediate -D "$2/data" >/dev/null 2>&1; rm -rf "$2""#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "oddscache-watchdog"])
            .arg(self.bin.join("pg_ctl"))
            .arg(self.dir.path());
        command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        self.watchdog = Some(command.spawn().map_err(step("starting the watchdog"))?);
        Ok(())
    }

    /// A command, of the server's `bin` directory unless its path is absolute, to be run as the server's user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs a command to its end; what it printed becomes the error.
    pub fn run(&self, command: &mut Command) -> Result<(), ClusterError> {
        let name = command.get_program().to_string_lossy().into_owned();
        // Into a file: a server started by pg_ctl would inherit a pipe and hold it open.
        let path = self.dir.path().join("out");
        let file = fs::File::create(&path).map_err(step(&name))?;
        let both = file.try_clone().map_err(step(&name))?;
        let status = command
            .stdout(file)
            .stderr(both)
            .status()
            .map_err(step(&name))?;
        if status.success() {
            return Ok(());
        }
        Err(ClusterError::Step {
            step: name,
            detail: fs::read_to_string(&path)
                .unwrap_or_default()
                .trim()
                .to_owned(),
        })
    }

    /// Runs `psql` as the superuser on `database` with `args`, and returns what it printed.
    pub fn psql(&self, database: &str, args: &[&str]) -> Result<Output, ClusterError> {
        let mut command = self.command("psql");
        command
            .args(["-X", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.dsn(database))
            .args(args);
        // The scripts lie in folders that the server's user may not enter: run as ourselves.
        let mut plain = Command::new(command.get_program());
        plain
            .args(command.get_args())
            .stdin(Stdio::null())
            .process_group(0);
        plain.output().map_err(step("psql"))
    }

    /// Where the server's socket lies.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the cluster's data lies.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The directory of PostgreSQL's programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The port on 127.0.0.1, and the number in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection string of the superuser over the socket, as libpq and `DATABASE_URL` understand it.
    pub fn dsn(&self, database: &str) -> String {
        self.dsn_as("postgres", database)
    }

    /// The same for another role; the socket trusts every role.
    pub fn dsn_as(&self, user: &str, database: &str) -> String {
        format!(
            "host={} port={} user={user} dbname={database}",
            self.socket_dir().display(),
            self.port
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            // The end of its input makes it stop the server and delete the files.
            drop(watchdog.stdin.take());
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && matches!(watchdog.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn is_root() -> Result<bool, ClusterError> {
    use std::os::unix::fs::MetadataExt;
    // A file we just made is owned by our effective user.
    let file = tempfile::tempfile().map_err(step("creating a temporary file"))?;
    Ok(file
        .metadata()
        .map_err(step("reading a temporary file's owner"))?
        .uid()
        == 0)
}

/// User and group id of `postgres`, else of `nobody`.
fn unprivileged_user() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let find = |name: &str| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()? == name;
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            found
                .then(|| Some((uid.parse().ok()?, gid.parse().ok()?)))
                .flatten()
        })
    };
    find("postgres").or_else(|| find("nobody"))
}

/// The directory that holds the server's programs; the newest version where several are installed.
fn find_binaries() -> Option<PathBuf> {
    let complete = |dir: &Path| {
        ["initdb", "postgres", "pg_ctl", "psql"]
            .iter()
            .all(|name| dir.join(name).is_file())
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(|dir| complete(dir)) {
        return Some(dir);
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if complete(&dir) {
            return Some(dir);
        }
    }
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, dir)| complete(dir))
        .collect();
    found.sort();
    found.pop().map(|(_, dir)| dir)
}
