//! A private, throw-away PostgreSQL cluster: started on a free port, stopped and deleted with its owner.
//!
//! `oddscache demo` uses it. The package `tests/testkit` includes this file for the tests and the benchmarks.
//! No crate does what is needed: the known ones download server binaries that no distribution signed, or call `sudo` as
//! root. This must work offline with an installed server, and as root without `sudo`.

use std::{
    ffi::OsString,
    fs, io,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::packages::{FetchError, Packages, SERVER};

/// What went wrong while finding or starting the private cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No directory holds `initdb`, `postgres` and `pg_ctl`, and they could not be fetched.
    #[error(
        "PostgreSQL's server binaries (initdb, postgres, pg_ctl) were not found in PATH, `pg_config --bindir` or \
         /usr/lib/postgresql/*/bin, and could not be fetched ({0}); install them (Debian, Ubuntu: `apt-get install \
         postgresql`; Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql`), or name their folder \
         in ODDSCACHE_PG_BIN"
    )]
    NotInstalled(FetchError),
    /// The directory that the environment names is not that of a server.
    #[error(
        "ODDSCACHE_PG_BIN is `{}`, where there is no {missing}; it must name the folder that holds a PostgreSQL \
         server's initdb, postgres and pg_ctl; unset it to use the installed server", .folder.display()
    )]
    Incomplete {
        /// What the variable says.
        folder: PathBuf,
        /// The programs that are not there.
        missing: String,
    },
    /// A program of PostgreSQL's clients is missing. The demo needs none.
    #[error(
        "PostgreSQL's {program} was not found in {}, PATH or /usr/lib/postgresql/*/bin; install it (Debian, Ubuntu: \
         `apt-get install postgresql-client`), and for a server of another version take `.ci/postgres VERSION`, \
         which brings it along", .server.display()
    )]
    NoClient {
        /// The program.
        program: String,
        /// The directory of the server's programs.
        server: PathBuf,
    },
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

/// A running private cluster. Dropping it stops the server and deletes its files. The same happens if this process
/// dies: a watchdog process waits for the end of a pipe that only this process holds.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
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
    /// On a machine without a server, it first downloads one, once, which takes longer.
    pub fn start(settings: &[&str]) -> Result<Cluster, ClusterError> {
        let mut cluster = Cluster::create()?;
        cluster.init(&cluster.data())?;
        cluster.configure(settings)?;
        cluster.start_on_free_port()?;
        Ok(cluster)
    }

    /// A directory for a cluster. The caller fills its [`Cluster::data`], by [`Cluster::init`] or from a backup.
    pub fn create() -> Result<Cluster, ClusterError> {
        let binaries = Binaries::of_the_environment();
        let bin = binaries.server()?;
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
            binaries,
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
        // Another process may take a free port before the server binds it, so try others.
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
        // initdb made the file as the server's user. Writing changes only the contents, so the owner stays.
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

    /// Sets who may log in, and how, from the next [`Cluster::boot`] on, by lines of `pg_hba.conf`. Adds a last line
    /// that trusts everybody on the socket.
    pub fn set_hba(&self, lines: &[&str]) -> Result<(), ClusterError> {
        self.put(
            "pg_hba.conf",
            &format!("{}\nlocal all all trust\n", lines.join("\n")),
        )
    }

    /// Starts a shell that deletes everything if this process dies without dropping. It reads a pipe that ends with us.
    /// It has a process group of its own, so that Ctrl-C in the terminal does not reach it.
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

    /// A command to run as the server's user. `program` is in the server's `bin` directory, or an absolute path.
    pub fn command(&self, program: &str) -> Command {
        self.command_of(self.bin.join(program))
    }

    /// A command for a client program of PostgreSQL, such as `psql`, to run as the server's user. The server's `bin`
    /// directory may lack the program; then another version's is used.
    pub fn client(&self, program: &str) -> Result<Command, ClusterError> {
        let path = self.binaries.client(program, &self.bin)?;
        Ok(self.command_of(path))
    }

    fn command_of(&self, path: PathBuf) -> Command {
        let mut command = Command::new(path);
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

    /// Runs a command to its end. Its output becomes the error.
    pub fn run(&self, command: &mut Command) -> Result<(), ClusterError> {
        let name = command.get_program().to_string_lossy().into_owned();
        // Output goes into a file, because a server started by pg_ctl would inherit a pipe and hold it open.
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
        let mut command = self.client("psql")?;
        command
            .args(["-X", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.dsn(database))
            .args(args);
        // Run as ourselves, because the server's user may not enter the folders of the scripts.
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

/// Where to look for PostgreSQL's programs.
#[derive(Debug)]
pub struct Binaries {
    /// `ODDSCACHE_PG_BIN`: the directory of the server's programs, and no other.
    pub named: Option<OsString>,
    /// The directories of `PATH`.
    pub path: Vec<PathBuf>,
    /// `pg_config --bindir`.
    pub configured: fn() -> Option<PathBuf>,
    /// Has a directory for each version, each with a directory `bin`.
    pub versions: PathBuf,
    /// Fetches a server, unless that was done before.
    pub fetched: fn() -> Result<PathBuf, ClusterError>,
}

impl Binaries {
    fn of_the_environment() -> Binaries {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Binaries {
            named: std::env::var_os("ODDSCACHE_PG_BIN"),
            path: std::env::split_paths(&path).collect(),
            configured: || {
                let output = Command::new("pg_config").arg("--bindir").output().ok()?;
                Some(String::from_utf8_lossy(&output.stdout).trim().into())
            },
            versions: PathBuf::from("/usr/lib/postgresql"),
            fetched: || {
                // Try once in a process. Otherwise, without a network, each test would wait for the same failure.
                static FETCHED: OnceLock<Result<PathBuf, FetchError>> = OnceLock::new();
                let is_root = is_root()?;
                let fetch = || Packages::of_the_environment(is_root)?.bin();
                FETCHED
                    .get_or_init(fetch)
                    .clone()
                    .map_err(ClusterError::NotInstalled)
            },
        }
    }

    /// The directory that holds the server's programs. If several versions are installed, the newest. If none is,
    /// fetches one.
    pub fn server(&self) -> Result<PathBuf, ClusterError> {
        // Commands run in other directories than this process.
        let absolute = |dir: &Path| std::path::absolute(dir).map_err(step("finding the programs"));
        let missing = |dir: &Path| -> Vec<&str> {
            let there = |name: &&str| is_program(&dir.join(name));
            SERVER.into_iter().filter(|name| !there(name)).collect()
        };
        // Use no folder but the named one, because nobody would notice another server in its place. An empty value is
        // an error too: a failed `$(...)` leaves one.
        if let Some(named) = &self.named {
            let folder = PathBuf::from(named);
            let missing = missing(&folder);
            if !named.is_empty() && missing.is_empty() {
                return absolute(&folder);
            }
            let missing = missing.join(", ");
            return Err(ClusterError::Incomplete { folder, missing });
        }
        let complete = |dir: &PathBuf| !dir.as_os_str().is_empty() && missing(dir).is_empty();
        let in_path = self.path.iter().find(|dir| complete(dir)).cloned();
        let found = in_path
            .or_else(|| (self.configured)().filter(complete))
            .or_else(|| self.installed().into_iter().find(complete));
        match found {
            Some(dir) => absolute(&dir),
            None => (self.fetched)(),
        }
    }

    /// A client program: the server's own, else another version's.
    pub fn client(&self, program: &str, server: &Path) -> Result<PathBuf, ClusterError> {
        let directories = [server.to_owned()].into_iter();
        let mut files = directories
            .chain(self.path.iter().cloned())
            .chain(self.installed())
            .map(|dir| dir.join(program));
        let found = files.find(|file| is_program(file));
        let found = found.ok_or_else(|| ClusterError::NoClient {
            program: program.to_owned(),
            server: server.to_owned(),
        })?;
        std::path::absolute(found).map_err(step("finding the programs"))
    }

    /// The directories of the installed versions, the newest first.
    fn installed(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.versions).into_iter().flatten().flatten();
        let mut found: Vec<(u32, PathBuf)> = entries
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
            .collect();
        found.sort();
        found.into_iter().rev().map(|(_, dir)| dir).collect()
    }
}

fn is_program(file: &Path) -> bool {
    let executable = |file: fs::Metadata| file.is_file() && file.permissions().mode() & 0o111 != 0;
    fs::metadata(file).is_ok_and(executable)
}
