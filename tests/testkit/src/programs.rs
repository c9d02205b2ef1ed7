//! Programs that only some tests need. A test whose program is missing passes, and says so.

use std::{
    io::{self, Write},
    path::PathBuf,
};

/// The path of a program: the first of these names in `PATH` or `/usr/sbin`. `None` if there is none; see [`missing`].
pub fn optional(names: &[&str], package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        missing(names[0], &format!("apt-get install {package}"));
    }
    found
}

/// Says which test is skipped for want of what, and what installs it. Fails the test if `ODDSCACHE_SKIP_NOTHING` is
/// set, as `.ci/run` does.
pub fn missing(what: &str, way: &str) {
    let may_skip = std::env::var_os("ODDSCACHE_SKIP_NOTHING").is_none();
    assert!(may_skip, "it needs {what} ({way})");
    skipped(what, way);
}

/// Says which test is skipped for want of what, and what installs it.
pub fn skipped(what: &str, way: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("SKIPPED {test}: it needs {what} ({way})");
    // Not by `println`, which the test harness shows for failed tests only.
    let _ = writeln!(io::stderr(), "{line}");
}
