//! How `packages` fetches a server, with a fake `apt-get` that has fake packages. tests/service/fetched.rs fetches real
//! ones.
// Not in `packages.rs`: the tests and benchmarks include that file, and each would run these.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::packages::{FetchError, Packages, system};

/// Names the folder of a [`Source`] for the processes that a test starts.
const FOLDER: &str = "ODDSCACHE_TEST_PACKAGES";

/// A folder with fake packages, a fake `apt-get`, and the cache folder into which it fetches.
struct Source {
    root: tempfile::TempDir,
}

impl Source {
    /// `None` on a system without `dpkg-deb`.
    fn new() -> Option<Source> {
        if Command::new("dpkg-deb").arg("--version").output().is_err() {
            println!("SKIPPED: this system has no dpkg-deb");
            return None;
        }
        let source = Source {
            root: tempfile::tempdir().unwrap(),
        };
        let programs = ["initdb", "postgres", "pg_ctl", "psql"];
        let newest = programs.map(|name| format!("usr/lib/postgresql/10/bin/{name}"));
        source.package(
            "postgresql-10_10.1_all.deb",
            &newest.each_ref().map(String::as_str),
        );
        let older = programs.map(|name| format!("usr/lib/postgresql/9/bin/{name}"));
        source.package(
            "postgresql-9_9.1_all.deb",
            &older.each_ref().map(String::as_str),
        );
        source.package(
            "libpq5_10.1_all.deb",
            &["usr/lib/fake-linux-gnu/libpq.so.5"],
        );
        source.package("libc6_1_all.deb", &["usr/lib/fake-linux-gnu/libc.so.6"]);
        source.package("perl_1_all.deb", &["usr/bin/perl"]);
        source.apt("", "");
        Some(source)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Builds a package. Its programs print the path by which they run, and where they look for libraries.
    fn package(&self, name: &str, files: &[&str]) {
        let content = self.at("content");
        let write = |name: &str, text: &str| {
            let path = content.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        };
        let control =
            "Package: fake\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: fake\n";
        write("DEBIAN/control", control);
        let mark = self.at("installed");
        write(
            "DEBIAN/postinst",
            &format!("#!/bin/sh\ntouch '{}'\n", mark.display()),
        );
        for file in files {
            write(file, "#!/bin/sh\necho \"$0 $LD_LIBRARY_PATH\"\n");
        }
        fs::create_dir_all(self.at("debs")).unwrap();
        let mut build = Command::new("dpkg-deb");
        build
            .args(["--root-owner-group", "--build"])
            .arg(&content)
            .arg(self.at("debs").join(name));
        assert!(build.output().unwrap().status.success());
        fs::remove_dir_all(content).unwrap();
    }

    /// Replaces `apt-get`. It appends its command to the file `log`. It first runs one of these lines of shell.
    fn apt(&self, on_update: &str, on_install: &str) {
        let root = self.root.path().display();
        let script = format!(
            "#!/bin/sh\nfor word; do case $word in Dir::Cache=*) cache=${{word#*=}};; esac; done\n\
             case $word in\n--version) exit;;\nupdate)\necho update >> '{root}/log'\n{on_update}\n;;\n*)\n\
             echo install >> '{root}/log'\n{on_install}\nmkdir -p \"$cache/archives\"\n\
             cp '{root}'/debs/* \"$cache/archives\"\nesac\n"
        );
        fs::write(self.at("apt-get"), script).unwrap();
        fs::set_permissions(self.at("apt-get"), Permissions::from_mode(0o755)).unwrap();
    }

    fn packages(&self) -> Packages {
        packages(self.root.path())
    }

    /// What `apt-get` was asked to do.
    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// The files in the cache folder.
    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("cache"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn packages(root: &Path) -> Packages {
    Packages {
        folder: root.join("cache"),
        system: "fake".to_owned(),
        apt_get: root.join("apt-get"),
        installed: root.join("status"),
        limit: Duration::from_secs(60),
        say: |line| println!("{line}"),
    }
}

/// The newest version's programs run, with the libraries of the packages; a second call fetches nothing.
#[test]
fn a_server_is_fetched_once() {
    let Some(source) = Source::new() else { return };
    let bin = source.packages().bin().unwrap();
    assert_eq!(bin, source.at("cache/fake/bin"));
    let printed = Command::new(bin.join("psql"))
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let root = source.at("cache/fake/root/usr/lib");
    assert_eq!(
        String::from_utf8(printed.stdout).unwrap(),
        format!(
            "{0}/postgresql/10/bin/psql {0}/fake-linux-gnu\n",
            root.display()
        )
    );
    // The C library must be the system's. Other packages are of no use here. No script of a package runs.
    assert!(root.join("fake-linux-gnu/libpq.so.5").exists());
    assert!(!root.join("fake-linux-gnu/libc.so.6").exists());
    assert!(!source.at("cache/fake/root/usr/bin").exists());
    assert!(!source.at("installed").exists());

    assert_eq!(source.packages().bin().unwrap(), bin);
    assert_eq!(source.log(), "update\ninstall\n");
    assert_eq!(source.cached(), ["fake", "lock"]);
}

/// After an interrupted fetch, and after an upgrade of the system took away a library, the server is fetched again.
#[test]
fn an_incomplete_folder_is_replaced() {
    let Some(source) = Source::new() else { return };
    fs::create_dir_all(source.at("cache/new-abcdef/state")).unwrap();
    let bin = source.packages().bin().unwrap();
    assert_eq!(source.cached(), ["fake", "lock"]);

    fs::write(bin.join("postgres"), "#!/bin/sh\nexit 127\n").unwrap();
    assert_eq!(source.packages().bin().unwrap(), bin);
    assert_eq!(source.log(), "update\ninstall\nupdate\ninstall\n");
    assert!(
        Command::new(bin.join("postgres"))
            .status()
            .unwrap()
            .success()
    );
}

/// The test below starts this twice.
#[test]
#[ignore = "another test starts it"]
fn fetch_in_a_process_of_its_own() {
    let Some(root) = std::env::var_os(FOLDER) else {
        return;
    };
    let root = PathBuf::from(root);
    fs::write(root.join(format!("begun-{}", std::process::id())), "").unwrap();
    packages(&root).bin().unwrap();
}

#[test]
fn of_two_processes_one_fetches() {
    let Some(source) = Source::new() else { return };
    // The download goes on until both processes are there.
    let both = format!(
        "while [ $(ls '{0}' | grep -c begun-) -lt 2 ]; do sleep 0.01; done",
        source.root.path().display()
    );
    source.apt("", &both);
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "demo::packages_tests::fetch_in_a_process_of_its_own",
                "--ignored",
            ])
            .env(FOLDER, source.root.path());
        command.spawn().unwrap()
    };
    for mut process in [start(), start()] {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(source.log(), "update\ninstall\n");
    assert_eq!(source.cached(), ["fake", "lock"]);
}

/// An unreachable source of another vendor is no obstacle. If no server is found, the first problem is the reason.
#[test]
fn the_error_says_what_apt_said() {
    let Some(source) = Source::new() else { return };
    let unreachable = "echo 'W: Failed to fetch http://example.test/  no such host' >&2";
    let unknown = "echo 'E: Unable to locate package postgresql' >&2; exit 100";
    source.apt(unreachable, unknown);
    let error = source.packages().bin().unwrap_err().to_string();
    assert_eq!(
        error,
        "apt-get update: Failed to fetch http://example.test/  no such host"
    );
    source.apt("", unknown);
    let error = source.packages().bin().unwrap_err().to_string();
    assert_eq!(
        error,
        "apt-get install: Unable to locate package postgresql"
    );
    assert_eq!(source.cached(), ["lock"]);

    source.apt(unreachable, "");
    source.packages().bin().unwrap();
}

#[test]
fn packages_without_a_server_that_runs_are_refused() {
    let Some(source) = Source::new() else { return };
    source.apt("", "exit 0");
    let refused =
        |error: FetchError| matches!(error, FetchError::Unusable(_) | FetchError::File { .. });
    assert!(refused(source.packages().bin().unwrap_err()));
    fs::remove_file(source.at("debs/postgresql-10_10.1_all.deb")).unwrap();
    fs::remove_file(source.at("debs/postgresql-9_9.1_all.deb")).unwrap();
    source.package(
        "postgresql-10_10.1_all.deb",
        &["usr/lib/postgresql/10/bin/initdb"],
    );
    source.apt("", "");
    let error = source.packages().bin().unwrap_err();
    assert!(error.to_string().contains("postgres"), "{error}");
    assert!(refused(error));
    assert_eq!(source.cached(), ["lock"]);
}

#[test]
fn an_apt_that_hangs_is_killed() {
    let Some(source) = Source::new() else { return };
    source.apt("exec sleep 600", "");
    let begun = Instant::now();
    let packages = Packages {
        limit: Duration::from_millis(200),
        ..source.packages()
    };
    let error = packages.bin().unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(source.cached(), ["lock"]);
}

#[test]
fn on_a_system_without_apt_the_error_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = packages(folder.path()).bin().unwrap_err();
    assert!(matches!(error, FetchError::NoApt(_)), "{error}");
    assert!(!folder.path().join("cache").exists());
}

/// Another user runs root's server, and cannot enter root's home.
#[test]
fn root_keeps_its_server_where_others_may_enter() {
    let packages = Packages::of_the_environment(true).unwrap();
    assert_eq!(
        packages.folder,
        Path::new("/var/cache/oddscache/postgresql")
    );
}

#[test]
fn each_system_has_a_folder() {
    let arch = std::env::consts::ARCH;
    for (release, name) in [
        (
            "PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n",
            format!("debian-12-{arch}"),
        ),
        (
            "ID=debian\nVERSION_CODENAME=sid\n",
            format!("debian-sid-{arch}"),
        ),
        ("", arch.to_owned()),
    ] {
        assert_eq!(system(release), name);
    }
}
