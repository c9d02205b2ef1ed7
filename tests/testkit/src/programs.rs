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

/// Says that this test is skipped, what it lacks, and what installs that. If `ODDSCACHE_SKIP_NOTHING` is set, as in
/// `.ci/run`, fails the test instead.
pub fn missing(what: &str, way: &str) {
    let may_skip = std::env::var_os("ODDSCACHE_SKIP_NOTHING").is_none();
    assert!(may_skip, "it needs {what} ({way})");
    skipped(what, way);
}

/// Says that this test is skipped, what it lacks, and what installs that.
pub fn skipped(what: &str, way: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("SKIPPED {test}: it needs {what} ({way})");
    // Not by `println`, because the test harness shows that only for failed tests.
    let _ = writeln!(io::stderr(), "{line}");
}
