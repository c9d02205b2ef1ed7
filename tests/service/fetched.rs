//! The server that is fetched where none is installed.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use oddscache_testkit::packages::Packages;

use super::{demo, ended_demo};

/// A demo runs on packages that are fetched from this machine's own sources. It needs all libraries, because no package
/// counts as installed.
#[tokio::test]
#[ignore = "it downloads 100 MB; .ci/run runs it"]
async fn a_demo_runs_on_the_packages_of_the_system() {
    if !std::path::Path::new("/usr/bin/apt-get").exists() {
        println!("SKIPPED: this system has no apt-get");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    // The server's user must enter it.
    fs::set_permissions(cache.path(), Permissions::from_mode(0o755)).unwrap();
    let installed = cache.path().join("status");
    fs::write(&installed, "").unwrap();
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let packages = Packages {
        folder: cache.path().join("it's a folder"),
        installed,
        ..Packages::of_the_environment(is_root).unwrap()
    };
    let bin = packages.bin().unwrap();

    let mut demo = demo(&["--for", "6s", "--verify-every", "2s"]);
    demo.env("ODDSCACHE_PG_BIN", &bin);
    let equal = "events equal the database";
    ended_demo(demo).await.with(0, &[equal]);
    let versions: Vec<_> = fs::read_dir(packages.folder).unwrap().collect();
    assert_eq!(versions.len(), 2, "the system's and the lock: {versions:?}");
}
