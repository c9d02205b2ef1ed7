//! Where `cluster` looks for PostgreSQL's programs, among folders of fake ones.
// Not in `cluster.rs`: the tests and benchmarks include that file, and each would run these.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    cluster::{Binaries, ClusterError},
    packages::FetchError,
};

const SERVER: [&str; 3] = ["initdb", "postgres", "pg_ctl"];

/// Makes a folder that holds these programs.
fn folder(path: &Path, programs: &[&str]) -> PathBuf {
    fs::create_dir_all(path).unwrap();
    for program in programs {
        let file = path.join(program);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path.to_owned()
}

/// A machine with two installed versions, of which the newer lacks a program, and with empty folders in its PATH.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        for (version, programs) in [("9", &SERVER[..]), ("15", &SERVER), ("16", &SERVER[..2])] {
            folder(&root.path().join("lib").join(version).join("bin"), programs);
        }
        folder(&root.path().join("lib/15/bin"), &["psql"]);
        Machine { root }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn binaries(&self) -> Binaries {
        Binaries {
            named: None,
            path: vec![PathBuf::new(), folder(&self.at("empty"), &[])],
            configured: || None,
            versions: self.at("lib"),
            fetched: || Err(ClusterError::NotInstalled(FetchError::NoFolder)),
        }
    }
}

#[test]
fn the_named_folder_is_the_only_one() {
    let machine = Machine::new();
    let named = |folder: PathBuf| Binaries {
        named: Some(folder.into()),
        ..machine.binaries()
    };
    let whole = folder(&machine.at("whole"), &SERVER);
    assert_eq!(named(whole.clone()).server().unwrap(), whole);

    let part = folder(&machine.at("part"), &["initdb", "psql"]);
    // A file that nobody may run is no program.
    fs::write(part.join("pg_ctl"), "").unwrap();
    for (folder, missing) in [
        (part, "postgres, pg_ctl"),
        (machine.at("empty"), "initdb, postgres, pg_ctl"),
        (machine.at("nowhere"), "initdb, postgres, pg_ctl"),
        (PathBuf::new(), "initdb, postgres, pg_ctl"),
    ] {
        let error = named(folder.clone()).server().unwrap_err().to_string();
        let told = format!(
            "ODDSCACHE_PG_BIN is `{}`, where there is no {missing}; ",
            folder.display()
        );
        assert!(error.starts_with(&told), "{error}");
    }
}

#[test]
fn without_a_name_the_path_comes_first_and_the_newest_whole_version_last() {
    let machine = Machine::new();
    let mut binaries = machine.binaries();
    assert_eq!(binaries.server().unwrap(), machine.at("lib/15/bin"));

    // Without psql, as a server's folder may be.
    let first = folder(&machine.at("first"), &SERVER);
    binaries.path.push(first.clone());
    assert_eq!(binaries.server().unwrap(), first);

    binaries.path.clear();
    binaries.versions = machine.at("nowhere");
    let error = binaries.server().unwrap_err().to_string();
    let reason = FetchError::NoFolder.to_string();
    for told in [
        "in PATH",
        &reason,
        "apt-get install postgresql",
        "ODDSCACHE_PG_BIN",
    ] {
        assert!(error.contains(told), "{error}");
    }

    binaries.fetched = || Ok(PathBuf::from("/fetched/bin"));
    assert_eq!(binaries.server().unwrap(), Path::new("/fetched/bin"));
}

#[test]
fn a_client_program_may_be_of_another_version() {
    let machine = Machine::new();
    let server = folder(&machine.at("server"), &SERVER);
    let mut binaries = machine.binaries();
    let found = |binaries: &Binaries| binaries.client("psql", &server);
    assert_eq!(found(&binaries).unwrap(), machine.at("lib/15/bin/psql"));

    let first = folder(&machine.at("first"), &["psql"]);
    binaries.path.push(first.clone());
    assert_eq!(found(&binaries).unwrap(), first.join("psql"));

    folder(&server, &["psql"]);
    assert_eq!(found(&binaries).unwrap(), server.join("psql"));

    let error = binaries.client("pg_dump", &server).unwrap_err().to_string();
    let told = format!("PostgreSQL's pg_dump was not found in {}", server.display());
    assert!(
        error.starts_with(&told) && error.contains("apt-get install postgresql-client"),
        "{error}"
    );
}
