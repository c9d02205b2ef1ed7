//! Finds the commit that the binary is built from, for `--version` and `oddscache_build_info`.
//!
//! It asks no git: a checkout need not have one, and a build must give the same bytes wherever it runs. It writes
//! nothing, and runs again only if one of its two sources changes.

use std::{env, fs, path::Path};

/// A build from a checkout may name its commit in this variable.
const VARIABLE: &str = "ODDSCACHE_COMMIT";

/// Cargo puts this file into each package that it makes from a repository.
const OF_PACKAGE: &str = ".cargo_vcs_info.json";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let file = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(OF_PACKAGE);
    // Cargo would run this again at each build if it had to watch a file that does not exist.
    if file.exists() {
        println!("cargo::rerun-if-changed={OF_PACKAGE}");
    }
    let given = env::var(VARIABLE).ok().filter(|commit| !commit.is_empty());
    if given.as_deref().is_some_and(|commit| !is_plain(commit)) {
        println!(
            "cargo::error={VARIABLE} is no commit: at most 64 letters, digits and the characters . _ -"
        );
        return;
    }
    let packaged = || {
        fs::read_to_string(file)
            .ok()
            .and_then(|text| of_package(&text))
    };
    let commit = given
        .or_else(packaged)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=ODDSCACHE_BUILT_FROM={commit}");
}

/// The commit in the file that cargo writes. A package with changes that were not committed is of no commit.
fn of_package(text: &str) -> Option<String> {
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("\"{key}\":"))?;
        let end = rest.find([',', '}', '\n']).unwrap_or(rest.len());
        Some(rest[..end].trim().trim_matches('"').to_owned())
    };
    let commit = value("sha1").filter(|commit| is_plain(commit))?;
    (value("dirty").as_deref() != Some("true")).then_some(commit)
}

/// Whether the text needs no escape in a label of a metric, and no check before it is printed.
fn is_plain(commit: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&commit.len()) && commit.bytes().all(fits)
}
