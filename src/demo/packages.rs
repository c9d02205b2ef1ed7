//! Fetches PostgreSQL's server for a machine that has none: downloads the packages of its own distribution, and unpacks
//! them into a cache folder.
//!
//! `cluster` calls this if it finds no installed server. It needs `apt-get`, `dpkg-deb` and the network, but not root.
//! apt checks the signatures with the system's own keys. Nothing is installed: dpkg's database stays as it is, and no
//! script of a package runs.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Why no server could be fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Not Debian, Ubuntu or a system like them.
    #[error("there is no {0}, so this is not Debian, Ubuntu or a system like them")]
    NoApt(PathBuf),
    /// There is no cache folder.
    #[error("neither XDG_CACHE_HOME nor HOME names a cache folder")]
    NoFolder,
    /// `apt-get` failed.
    #[error("{step}: {detail}")]
    Apt {
        /// What it was to do.
        step: &'static str,
        /// The first problem that it reported.
        detail: String,
    },
    /// A program took too long, and was killed.
    #[error("{step}: it took more than {} s", .limit.as_secs())]
    TimedOut {
        /// What it was to do.
        step: &'static str,
        /// Its time limit.
        limit: Duration,
    },
    /// The packages hold no server, or one that does not run.
    #[error("the fetched packages hold no server that runs: {0}")]
    Unusable(String),
    /// A file operation failed.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        error: String,
    },
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |error| FetchError::File {
        path,
        error: error.to_string(),
    }
}

/// The programs of a server. Clients may be missing: those that are installed are not fetched.
pub const SERVER: [&str; 3] = ["initdb", "postgres", "pg_ctl"];

/// The package whose dependencies are the server and the clients of the distribution's version.
const PACKAGE: &str = "postgresql";

/// Options of apt beside the paths.
///
/// - Without locks, apt needs no root and does not wait for another apt. None is needed, because each fetch has folders
///   of its own.
/// - The system may configure commands that run after an update (`APT::Update`). They concern its own lists, so they
///   are cleared.
const APT_OPTIONS: &str = r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Get::Assume-Yes "true";
APT::Get::Download-Only "true";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
Debug::NoLocking "true";
"#;

/// Where packages come from, and where they go.
#[derive(Debug, Clone)]
pub struct Packages {
    /// Has a folder for each system whose packages were fetched, and a lock.
    pub folder: PathBuf,
    /// The folder of this system, for instance `debian-12-x86_64`. A home may be shared with other systems.
    pub system: String,
    /// The program `apt-get`.
    pub apt_get: PathBuf,
    /// dpkg's list of installed packages. Packages that it names are not fetched.
    pub installed: PathBuf,
    /// A time limit for each program. A download that stalls ends earlier, by apt's own time-outs.
    pub limit: Duration,
    /// Says what happens, a line at a time.
    pub say: fn(fmt::Arguments<'_>),
}

impl Packages {
    /// The packages of this machine, in `$XDG_CACHE_HOME/oddscache` or `~/.cache/oddscache`. If root calls this, they
    /// are in `/var/cache/oddscache`: root runs the server as another user, who cannot enter root's home.
    pub fn of_the_environment(is_root: bool) -> Result<Packages, FetchError> {
        let named = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = match is_root {
            true => Some(PathBuf::from("/var/cache")),
            // The specification of XDG says to ignore relative paths.
            false => named("XDG_CACHE_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| Some(named("HOME")?.join(".cache"))),
        };
        Ok(Packages {
            folder: cache
                .ok_or(FetchError::NoFolder)?
                .join("oddscache/postgresql"),
            system: system(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            apt_get: PathBuf::from("apt-get"),
            installed: PathBuf::from("/var/lib/dpkg/status"),
            limit: Duration::from_secs(900),
            say: |line| {
                // Not by `eprintln`, which the test harness captures: users should see why their tests wait.
                let _ = writeln!(io::stderr(), "oddscache: {line}");
            },
        })
    }

    /// The folder of the server's programs, and of those client programs that are not installed. If the cache folder
    /// has no programs that run, fetches them. Blocks: 10 ms to check the cache folder, and as long as a download of 70
    /// MB to fetch. If several processes call this at once, one fetches and the others wait.
    pub fn bin(&self) -> Result<PathBuf, FetchError> {
        let bin = self.folder.join(&self.system).join("bin");
        if self.runs(&bin).is_ok() {
            return Ok(bin);
        }
        for program in [&self.apt_get, Path::new("dpkg-deb")] {
            if !version(program).is_ok_and(|output| output.status.success()) {
                return Err(FetchError::NoApt(program.to_owned()));
            }
        }
        create_folder(&self.folder)?;
        let _lock = self.lock()?;
        // Another process may have fetched it meanwhile.
        if self.runs(&bin).is_err() {
            self.fetch()?;
        }
        Ok(bin)
    }

    /// Waits until no other process fetches. The lock ends with the file, also if this process dies.
    fn lock(&self) -> Result<File, FetchError> {
        let path = self.folder.join("lock");
        let lock = File::create(&path).map_err(file(&path))?;
        let begun = Instant::now();
        let mut waits = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(fs::TryLockError::Error(error)) => return Err(file(&path)(error)),
                Err(fs::TryLockError::WouldBlock) => {
                    if !waits {
                        (self.say)(format_args!(
                            "another process fetches PostgreSQL; waiting ..."
                        ));
                        waits = true;
                    }
                    // The other process runs apt-get twice.
                    pause("waiting for another fetch", begun, 2 * self.limit)?;
                }
            }
        }
    }

    /// Whether the programs in a folder run, and find their libraries.
    fn runs(&self, bin: &Path) -> Result<(), FetchError> {
        for program in SERVER {
            let path = bin.join(program);
            let output = version(&path).map_err(file(&path))?;
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Err(FetchError::Unusable(errors.trim().to_owned()));
            }
        }
        Ok(())
    }

    /// Creates the folder of this system. The last step is a rename, so the folder is complete or absent.
    fn fetch(&self) -> Result<(), FetchError> {
        // This process holds the lock, so such a folder is left over from an interrupted fetch. If that fetch's apt-get
        // still writes, the removal may fail, and the next fetch removes the folder.
        for entry in fs::read_dir(&self.folder).map_err(file(&self.folder))? {
            let entry = entry.map_err(file(&self.folder))?;
            if entry.file_name().as_encoded_bytes().starts_with(b"new-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let place = self.folder.join(&self.system);
        (self.say)(format_args!(
            "found no PostgreSQL server; fetching the packages of this system (about 70 MB) into {}",
            place.display()
        ));
        let work = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&self.folder);
        let work = work.map_err(file(&self.folder))?;
        // If root runs apt, apt downloads as another user, who must be able to enter the folder.
        let open = Permissions::from_mode(0o755);
        fs::set_permissions(work.path(), open).map_err(file(work.path()))?;

        let archives = self.download(work.path())?;
        let server = work.path().join("server");
        self.unpack(&archives, &server)?;
        wrap(&server, &place)?;
        if place.exists() {
            fs::remove_dir_all(&place).map_err(file(&place))?;
        }
        fs::rename(&server, &place).map_err(file(&place))?;
        // The scripts contain absolute paths, so the programs run only from their final place.
        if let Err(error) = self.runs(&place.join("bin")) {
            fs::remove_dir_all(&place).map_err(file(&place))?;
            return Err(match error {
                missing @ FetchError::File { .. } => FetchError::Unusable(missing.to_string()),
                other => other,
            });
        }
        (self.say)(format_args!(
            "PostgreSQL is in {}",
            place.join("bin").display()
        ));
        Ok(())
    }

    /// Downloads the packages that the system lacks for a server; returns their folder.
    fn download(&self, work: &Path) -> Result<PathBuf, FetchError> {
        let options = work.join("apt.conf");
        fs::write(&options, APT_OPTIONS).map_err(file(&options))?;
        let (state, cache) = (work.join("state"), work.join("cache"));
        for folder in [&state, &cache] {
            create_folder(folder)?;
        }
        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new(&self.apt_get);
            command.arg("-qq").arg("-c").arg(&options);
            for (name, path) in [
                ("Dir::State=", &state),
                ("Dir::State::status=", &self.installed),
                ("Dir::Cache=", &cache),
            ] {
                let mut option = std::ffi::OsString::from(name);
                option.push(path);
                command.arg("-o").arg(option);
            }
            // `Ran::problem` reads the messages, so they must be in English.
            command.args(arguments).env("LC_ALL", "C");
            command
        };
        (self.say)(format_args!("reading the lists of packages ..."));
        // The package list of another vendor may be unreachable. So an error matters only if no server is found.
        let (lists, archives) = (state.join("lists"), cache.join("archives"));
        let update = self.run(
            "apt-get update",
            &mut apt_get(&["update"]),
            work,
            Some(&lists),
        )?;
        (self.say)(format_args!("downloading ..."));
        let mut install = apt_get(&["install", PACKAGE]);
        let install = self.run("apt-get install", &mut install, work, Some(&archives))?;
        if !install.succeeded {
            let (step, detail) = match update.problem() {
                Some(problem) => ("apt-get update", problem),
                None => ("apt-get install", install.problem().unwrap_or_default()),
            };
            return Err(FetchError::Apt { step, detail });
        }
        Ok(archives)
    }

    /// Unpacks the programs and libraries into a folder, without running scripts of the packages.
    fn unpack(&self, archives: &Path, server: &Path) -> Result<(), FetchError> {
        create_folder(server)?;
        let files = fs::read_dir(archives).map_err(file(archives))?;
        let files: Vec<PathBuf> = files
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(is_needed))
            .collect();
        (self.say)(format_args!("unpacking {} packages ...", files.len()));
        for package in files {
            let mut command = Command::new("dpkg-deb");
            command
                .arg("--extract")
                .arg(&package)
                .arg(server.join("root"));
            let unpacked = self.run("dpkg-deb --extract", &mut command, server, None)?;
            if !unpacked.succeeded {
                return Err(FetchError::Unusable(format!(
                    "{}: {}",
                    package.display(),
                    unpacked.errors.trim()
                )));
            }
        }
        Ok(())
    }

    /// Runs a program to its end, or to the time limit. Says now and then how large the folder `grows` is.
    fn run(
        &self,
        step: &'static str,
        command: &mut Command,
        work: &Path,
        grows: Option<&Path>,
    ) -> Result<Ran, FetchError> {
        let path = work.join("errors");
        let errors = File::create(&path).map_err(file(&path))?;
        let program = PathBuf::from(command.get_program());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn();
        let mut child = child.map_err(file(&program))?;
        let begun = Instant::now();
        let mut said = begun;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(file(&program))? {
                break status;
            }
            if let Some(folder) = grows.filter(|_| said.elapsed() > Duration::from_secs(3)) {
                said = Instant::now();
                (self.say)(format_args!(
                    "{step}: {} MB so far",
                    size(folder) / 1_000_000
                ));
            }
            if let Err(error) = pause(step, begun, self.limit) {
                // If it has ended by itself meanwhile, there is nothing to kill.
                let _ = child.kill();
                child.wait().map_err(file(&program))?;
                return Err(error);
            }
        };
        let errors = fs::read(&path).map_err(file(&path))?;
        Ok(Ran {
            succeeded: status.success(),
            errors: String::from_utf8_lossy(&errors).into_owned(),
        })
    }
}

/// Fails if the time is up. Pauses otherwise.
fn pause(step: &'static str, begun: Instant, limit: Duration) -> Result<(), FetchError> {
    if begun.elapsed() > limit {
        return Err(FetchError::TimedOut { step, limit });
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// Asks a program for its version.
fn version(program: &Path) -> io::Result<Output> {
    let begun = Instant::now();
    loop {
        match Command::new(program).arg("--version").output() {
            // ETXTBSY: a process that another thread has just forked still has this script open for writing.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && begun.elapsed() < Duration::from_secs(1) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// How a program ended, and what it wrote to standard error.
struct Ran {
    succeeded: bool,
    errors: String,
}

impl Ran {
    /// The first problem that apt reported.
    fn problem(&self) -> Option<String> {
        let problem = |line: &str| line.starts_with("E:") || line.starts_with("W: Failed");
        self.errors
            .lines()
            .find(|line| problem(line))
            .map(|line| line[2..].trim().to_owned())
    }
}

/// The name of the folder for packages of this system, from its `os-release`.
pub fn system(release: &str) -> String {
    let field = |name: &str| {
        let mut values = release
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values
            .next()
            .map(|value| value.trim_matches(['"', '\'']).replace('/', "-"))
    };
    let version = field("VERSION_ID").or_else(|| field("VERSION_CODENAME"));
    let parts = [
        field("ID"),
        version,
        Some(std::env::consts::ARCH.to_owned()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("-")
}

/// Whether a package file, by its name, holds a library or a program of the server. The C library does not count,
/// because it must match the system's loader.
fn is_needed(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let counts = ["lib", "postgresql"]
        .iter()
        .any(|start| name.starts_with(start));
    counts && name.ends_with(".deb") && !name.starts_with("libc6")
}

/// Writes the folder `bin`. It has a script for each program of the unpacked server, which runs the program with the
/// unpacked libraries. `place` is the folder to which `server` will be renamed.
fn wrap(server: &Path, place: &Path) -> Result<(), FetchError> {
    let root = server.join("root");
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    };
    let versions = folders(&root.join("usr/lib/postgresql")).into_iter();
    let versions = versions.filter_map(|path| {
        let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
        Some((version, path.join("bin")))
    });
    let (_, programs) = versions.max().ok_or_else(|| {
        FetchError::Unusable(format!("no usr/lib/postgresql in {PACKAGE}'s dependencies"))
    })?;

    // Libraries lie in a folder that is named after the machine, for instance `x86_64-linux-gnu`.
    let libraries: Vec<PathBuf> = ["usr/lib", "lib"]
        .iter()
        .flat_map(|parent| folders(&root.join(parent)))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains("-linux-"))
        })
        .collect();
    let placed = |path: &Path| -> Result<String, FetchError> {
        let path = place.join(path.strip_prefix(server).unwrap_or(path));
        let text = path.to_str().map(|text| text.replace('\'', r"'\''"));
        text.ok_or_else(|| FetchError::Unusable(format!("{} is not UTF-8", path.display())))
    };
    let libraries: Vec<String> = libraries
        .iter()
        .map(|path| placed(path))
        .collect::<Result<_, _>>()?;
    let libraries = libraries.join(":");

    let bin = server.join("bin");
    create_folder(&bin)?;
    for entry in fs::read_dir(&programs).map_err(file(&programs))? {
        let program = entry.map_err(file(&programs))?;
        let script = bin.join(program.file_name());
        let text = format!(
            "#!/bin/sh\nexport LD_LIBRARY_PATH='{libraries}'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
             exec '{}' \"$@\"\n",
            placed(&program.path())?
        );
        fs::write(&script, text).map_err(file(&script))?;
        let mode = Permissions::from_mode(0o755);
        fs::set_permissions(&script, mode).map_err(file(&script))?;
    }
    Ok(())
}

/// The size in bytes of the files in a folder of apt, and in its folder `partial`, which has unfinished downloads.
fn size(folder: &Path) -> u64 {
    let folders = [folder.to_owned(), folder.join("partial")];
    let entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// Creates a folder and its missing parents. Other users may enter them under any umask. Existing folders stay
/// as they are.
fn create_folder(path: &Path) -> Result<(), FetchError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
    }
    match fs::create_dir(path) {
        // Another process may have created it meanwhile.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(file(path)(error));
        }
        _ => {}
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(file(path))
}
