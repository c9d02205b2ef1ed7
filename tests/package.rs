//! What a user of the library gets: crates, features and files. The README counts them.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;

/// Runs cargo and returns its output. This builds nothing.
fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).arg("--locked");
    let output = command.output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn manifest() -> Value {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let this = |package: &&Value| package["name"] == "oddscache";
    packages.iter().find(this).expect("this package").clone()
}

fn readme() -> String {
    std::fs::read_to_string("README.md").unwrap()
}

/// The crates that cargo builds with these features, as `name version`, without this package.
fn tree(features: &str, more: &[&str]) -> BTreeSet<String> {
    let fixed = [
        "tree",
        "--no-default-features",
        "-e",
        "no-dev",
        "--target",
        "x86_64-unknown-linux-gnu",
        "--prefix",
        "none",
        "--no-dedupe",
        "--features",
        features,
    ];
    cargo(&[&fixed, more].concat())
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, version) = (words.next().unwrap(), words.next().unwrap_or_default());
            format!("{name} {version}")
        })
        .filter(|name| !name.starts_with("oddscache "))
        .collect()
}

fn names(crates: &BTreeSet<String>) -> BTreeSet<&str> {
    crates
        .iter()
        .filter_map(|found| found.split(' ').next())
        .collect()
}

/// The crates that each feature enables, with those of the features it contains.
fn brought_by(manifest: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let features = manifest["features"].as_object().expect("features");
    let own = |list: &Value, found: &mut BTreeSet<String>| {
        let items = list.as_array().expect("a list").iter();
        let crates = items.filter_map(|item| item.as_str()?.strip_prefix("dep:"));
        found.extend(crates.map(str::to_owned));
    };
    features
        .iter()
        .map(|(name, list)| {
            let mut found = BTreeSet::new();
            own(list, &mut found);
            for item in list.as_array().expect("a list") {
                if let Some(contained) = features.get(item.as_str().expect("a name")) {
                    own(contained, &mut found);
                }
            }
            (name.clone(), found)
        })
        .collect()
}

/// A program that embeds the library compiles only what it uses.
#[test]
fn the_library_without_features_has_none_of_their_crates() {
    let manifest = manifest();
    let brought = brought_by(&manifest);
    let direct = |features| tree(features, &["--depth", "1"]);
    let (bare, direct_tls) = (tree("", &[]), direct("tls"));
    for name in &brought["service"] {
        let of_tls = brought["tls"].contains(name);
        assert_eq!(names(&direct_tls).contains(name.as_str()), of_tls, "{name}");
        // tokio and tokio-postgres depend on these.
        let beneath = ["socket2", "tokio-util"].contains(&name.as_str());
        assert_eq!(names(&bare).contains(name.as_str()), beneath, "{name}");
        assert!(!names(&direct("")).contains(name.as_str()), "{name}");
    }
    // If a feature enabled nothing, this test would prove nothing.
    assert!(brought["service"].len() > brought["tls"].len());
    assert!(!brought["tls"].is_empty());
    // No dependency adds a second runtime, another TLS library, or C code.
    for name in [
        "async-std",
        "smol",
        "openssl-sys",
        "native-tls",
        "cc",
        "cmake",
    ] {
        assert!(!names(&bare).contains(name), "{name}");
    }
}

/// A build without the demo lacks all crates that only the demo needs.
#[test]
fn the_service_without_the_demo_has_none_of_its_crates() {
    let brought = brought_by(&manifest());
    let only_of_demo = || brought["demo"].difference(&brought["service"]);
    assert!(only_of_demo().count() > 0);
    let (service, demo) = (tree("service", &[]), tree("demo", &[]));
    for name in only_of_demo() {
        assert!(!names(&service).contains(name.as_str()), "{name}");
        assert!(names(&demo).contains(name.as_str()), "{name}");
    }
}

/// The README says what each feature costs to compile, and the numbers must be true.
#[test]
fn the_readme_counts_the_crates() {
    let readme = readme();
    for (feature, features) in [
        ("none", ""),
        ("`tls`", "tls"),
        ("`nats`", "nats"),
        ("`client`", "client"),
        ("`history`", "history"),
        ("`service`", "service"),
        ("`demo`", "demo"),
        ("`otlp`", "otlp"),
    ] {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| {feature} | ")));
        let row = row.unwrap_or_else(|| panic!("no row for {feature}"));
        let count = row.trim_end_matches(" |").rsplit(' ').next();
        let found = tree(features, &[]).len().to_string();
        assert_eq!(count, Some(found.as_str()), "crates with {feature}: {row}");
    }
    let direct = tree("", &["--depth", "1"]);
    let (_, list) = readme
        .split_once("depends on thirteen crates directly: ")
        .unwrap();
    let (list, _) = list.split_once(". ").unwrap();
    let listed: BTreeSet<&str> = list
        .split([',', '\n', ' '])
        .map(|name| name.trim_matches('`'))
        .filter(|name| !name.is_empty())
        .collect();
    assert_eq!(listed, names(&direct));
    assert_eq!(direct.len(), 13);
}

/// A user looks for features in the README or in the documentation of the crate.
#[test]
fn the_readme_and_the_crate_documentation_explain_every_feature() {
    let manifest = manifest();
    let (readme, docs) = (readme(), std::fs::read_to_string("src/lib.rs").unwrap());
    let features = manifest["features"].as_object().expect("features");
    for name in features.keys().filter(|name| *name != "default") {
        assert!(readme.contains(&format!("| `{name}` | ")), "README: {name}");
        assert!(
            docs.contains(&format!("//! | `{name}` | ")),
            "src/lib.rs: {name}"
        );
    }
    assert_eq!(features["default"], serde_json::json!(["service", "demo"]));
}

/// The README, the changelog, the Python package and what a release runs name the versions of the manifest.
#[test]
fn versions_agree() {
    let read = |path: &str| std::fs::read_to_string(path).expect(path);
    let manifest = manifest();
    let rust = manifest["rust_version"].as_str().expect("rust-version");
    assert!(readme().contains(&format!("It needs Rust {rust} (`rust-version`)")));
    for file in ["ci", "release"] {
        let text = read(&format!(".github/workflows/{file}.yml"));
        assert_eq!(
            text.matches("rust:").count(),
            text.matches(&format!("rust:{rust}-")).count(),
            "{file}"
        );
        let toolchains = text.matches("rustup toolchain install ").count();
        let right =
            format!("rustup toolchain install {rust} --profile minimal && rustup default {rust}\n");
        assert_eq!(toolchains, text.matches(&right).count(), "{file}");
    }
    let image = format!("FROM docker.io/library/rust:{rust}-slim-");
    assert!(read("examples/deploy/Containerfile").contains(&image));

    let version = manifest["version"].as_str().expect("a version");
    let (minor, _) = version.rsplit_once('.').unwrap();
    assert!(readme().contains(&format!("oddscache = {{ version = \"{minor}\", ")));
    let changes = read("CHANGELOG.md");
    assert!(changes.contains("\n## Unreleased\n") || changes.contains(&format!("\n## {version} ")));
    // The wheel's version is that of its crate.
    assert!(read("python/Cargo.toml").contains(&format!("\nversion = \"{version}\"\n")));
    assert!(read("python/pyproject.toml").contains("\ndynamic = [\"version\"]\n"));
    let compose = read("examples/deploy/compose.yml");
    assert!(compose.contains(&format!("\n  image: oddscache:{version}\n")));
}

/// A release says what its section of the changelog says, and fails if a file has another version.
#[test]
fn the_changelog_gives_the_text_of_a_release() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        ".ci/changelog",
        &std::fs::read_to_string(".ci/changelog").unwrap(),
    );
    write("Cargo.toml", "[package]\nversion = \"1.2.3\"\n");
    write("python/Cargo.toml", "[package]\nversion = \"1.2.3\"\n");
    let said = |version: &str| {
        let mut command = Command::new("bash");
        command.arg(folder.path().join(".ci/changelog"));
        let output = command.arg(version).output().expect("bash runs");
        let [out, errors] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        output.status.success().then_some(out).ok_or(errors)
    };
    let changes = "# Changelog\n\n## 1.2.30\nno\n\n## 1.2.3 - 2026-01-31\n\n### Fixed\n- It.\n\n## 1.2.2\n- no\n";
    write("CHANGELOG.md", changes);
    assert_eq!(said("1.2.3").unwrap().trim(), "### Fixed\n- It.");
    assert!(
        said("1.2.2")
            .unwrap_err()
            .contains("Cargo.toml has another version")
    );
    write("python/Cargo.toml", "[package]\nversion = \"1.2.2\"\n");
    assert!(said("1.2.3").unwrap_err().contains("python/Cargo.toml has"));
    write("python/Cargo.toml", "[package]\nversion = \"1.2.3\"\n");
    write(
        "CHANGELOG.md",
        "## Unreleased\n- It.\n## 1.2.3\n\n## 1.2.2\n- no\n",
    );
    assert!(said("1.2.3").unwrap_err().contains("no section"));
}

/// The package contains everything that a user needs to build and review it. It contains only text, and only files that
/// somebody reads.
#[test]
fn the_package_has_all_files_it_needs_and_no_large_ones() {
    let list = cargo(&["package", "--list", "--allow-dirty"]);
    let files: BTreeSet<&str> = list.lines().collect();
    for file in [
        "Cargo.lock",
        "Cargo.toml",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "src/lib.rs",
    ] {
        assert!(files.contains(file), "{file} is missing");
    }
    for (folder, extension) in [
        ("sql", "sql"),
        ("src", "rs"),
        ("examples", "rs"),
        ("tests", "rs"),
    ] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|found| found == extension) {
                let name = path.to_str().expect("text");
                assert!(files.contains(name), "{name} is missing");
            }
        }
    }
    // The testkit is a package of its own, which is not published.
    assert!(!files.iter().any(|file| file.starts_with("tests/testkit/")));
    let mut total = 0;
    for file in &files {
        assert!(
            !file.starts_with('.') || *file == ".cargo_vcs_info.json",
            "{file}"
        );
        // Cargo generates two of the files.
        if !Path::new(file).exists() {
            continue;
        }
        let bytes = std::fs::read(file).unwrap();
        assert!(bytes.len() <= 128 * 1024, "{file}: {} bytes", bytes.len());
        assert!(std::str::from_utf8(&bytes).is_ok(), "{file} is not text");
        total += bytes.len();
    }
    assert!(total < 5 * 1024 * 1024, "{total} bytes in all");
}

/// The build script takes the commit from the variable, else from the file that cargo puts into a package. It asks no
/// git, and a build without changes does not run it again.
#[test]
fn the_build_script_finds_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile.args(["--edition=2024", "build.rs", "-o"]);
    assert!(compile.arg(&script).status().expect("rustc runs").success());
    let commit = "34b1341c0ffee34b1341c0ffee34b1341c0ffee0";
    let packaged = |dirty: &str| {
        format!(
            "{{\n  \"git\": {{\n    \"sha1\": \"{commit}\"{dirty}\n  }},\n  \"path_in_vcs\": \"\"\n}}"
        )
    };
    for (variable, file, found) in [
        (None, None, "BUILT_FROM=unknown\n"),
        (None, Some(packaged("")), commit),
        (
            None,
            Some(packaged(",\n    \"dirty\": true")),
            "BUILT_FROM=unknown\n",
        ),
        (None, Some("{}".to_owned()), "BUILT_FROM=unknown\n"),
        (Some("v1.2-7"), Some(packaged("")), "BUILT_FROM=v1.2-7\n"),
        (Some(""), Some(packaged("")), commit),
        (Some("a\"b"), None, "cargo::error=ODDSCACHE_COMMIT"),
    ] {
        let package = tempfile::tempdir().unwrap();
        if let Some(text) = &file {
            std::fs::write(package.path().join(".cargo_vcs_info.json"), text).unwrap();
        }
        let mut run = Command::new(&script);
        run.env_remove("ODDSCACHE_COMMIT")
            .env("CARGO_MANIFEST_DIR", package.path());
        let output = run
            .envs(variable.map(|value| ("ODDSCACHE_COMMIT", value)))
            .output();
        let output = String::from_utf8(output.expect("it runs").stdout).unwrap();
        assert!(output.contains(found), "{variable:?} {file:?}: {output}");
        // Cargo would build everything again each time if it had to watch a file that is not there.
        let watched = output.contains("rerun-if-changed=.cargo_vcs_info.json");
        assert_eq!(watched, file.is_some(), "{output}");
    }
}
