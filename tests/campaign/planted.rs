//! Tests the campaign itself. It plants one bug at a time into a copy of the sources, and the campaign must find each.
//! A bug is a patch in `plants`. Its head says what it breaks and which check should find it.
//!
//! `cargo test --test campaign -- --ignored --nocapture planted` tries all bugs and fails if the campaign misses one.
//! `CAMPAIGN_PLANT=text,...` selects the bugs whose names contain one of the texts. planted.md has the resulting table.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use oddscache_testkit::programs::optional;

/// A planted bug.
struct Plant {
    patch: PathBuf,
    name: String,
    /// The check that should find the bug. Timing differs from run to run, so sometimes another check finds it first.
    check: String,
    /// The test that should find it.
    test: &'static str,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn plants() -> Vec<Plant> {
    let folder = fs::read_dir(root().join("tests/campaign/plants")).expect("plants");
    let mut patches: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    patches.sort();
    let plant = |patch: PathBuf| {
        let text = fs::read_to_string(&patch).expect("a patch");
        let said = |what: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(what));
            let line = line.unwrap_or_else(|| panic!("{}: no line `{what}`", patch.display()));
            line.to_owned()
        };
        let (name, check) = (said("Bug: "), said("Found by: "));
        let test = match text.lines().any(|line| line == "Campaign: relay") {
            true => "relay::short",
            false => "short",
        };
        Plant {
            patch,
            name,
            check,
            test,
        }
    };
    patches.into_iter().map(plant).collect()
}

/// Applies a patch to the sources in `tree`. With `--dry-run` in `more`, only checks that it applies. Lines may have
/// moved, and the outer lines of the context may have changed.
fn patch(plant: &Plant, tree: &Path, more: &[&str]) {
    let output = Command::new("patch")
        .args(["-p1", "--fuzz=2", "--batch", "--forward"])
        .args(["--no-backup-if-mismatch", "--reject-file=-", "--input"])
        .arg(&plant.patch)
        .args(more)
        .current_dir(tree)
        .output()
        .expect("the program `patch` runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "the bug `{}` no longer applies; adapt {} to the sources:\n{said}",
        plant.name,
        plant.patch.display()
    );
}

/// A patch that no longer applies would silently remove a bug from the test of the campaign.
#[test]
fn every_planted_patch_still_applies() {
    let plants = plants();
    assert!(plants.len() >= 56);
    if optional(&["patch"], "patch").is_none() {
        return;
    }
    for plant in &plants {
        patch(plant, root(), &["--dry-run"]);
    }
}

/// The seeds to try, one after the other, until the campaign finds the bug.
const SEEDS: [u64; 3] = [1, 2, 3];

/// The campaign finds every planted bug. Prints which check found it, with which seed, and after how many seconds.
#[test]
#[ignore = "builds the campaign once for each bug and takes twenty minutes"]
fn planted() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("planted");
    let tree = place.join("tree");
    let wanted = std::env::var("CAMPAIGN_PLANT").unwrap_or_default();
    let mut table = String::from("| plant | seed | found by | after |\n|---|---|---|---|\n");
    let mut survivors = Vec::new();
    let is_wanted = |plant: &Plant| wanted.split(',').any(|text| plant.name.contains(text));
    for plant in plants().into_iter().filter(is_wanted) {
        // This also removes the bug planted before.
        copy_sources(&tree);
        patch(&plant, &tree, &[]);
        let found = SEEDS.iter().find_map(|seed| {
            let began = Instant::now();
            let check = hunt(&tree, &place.join("target"), plant.test, *seed)?;
            Some((seed.to_string(), check, began.elapsed().as_secs()))
        });
        let Plant { name, check, .. } = plant;
        let (seed, by, seconds) = match found {
            Some((seed, by, seconds)) if by == check => (seed, by, seconds),
            Some((seed, by, seconds)) => (seed, format!("{by} (not {check})"), seconds),
            None => ("-".to_owned(), "**not found**".to_owned(), 0),
        };
        let line = format!("| {name} | {seed} | {by} | {seconds} s |");
        println!("{line}");
        writeln!(table, "{line}").expect("into a string");
        fs::write(place.join("planted.md"), &table).expect("the table is written");
        if seed == "-" {
            survivors.push(name);
        }
    }
    assert!(
        survivors.is_empty(),
        "the campaign does not find: {survivors:?}"
    );
}

/// Runs a short campaign with a seed. Returns the check that failed, or `None` if none did.
fn hunt(tree: &Path, target: &Path, test: &str, seed: u64) -> Option<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "test",
            "--locked",
            "--test",
            "campaign",
            "--",
            "--nocapture",
            "--exact",
            test,
        ])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .env("CAMPAIGN_SEED", seed.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    if output.status.success() {
        return None;
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("campaign of seed"), "does not build:\n{text}");
    let check = text.split("VIOLATION with seed").nth(1);
    let check = check.and_then(|rest| rest.split('`').nth(1));
    let other = || text.lines().find(|line| line.contains("panicked at"));
    Some(check.or_else(other).unwrap_or("the test's end").to_owned())
}

/// Copies everything that a build may need. Leaves equal files alone, so that the next build is short.
fn copy_sources(tree: &Path) {
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let (from, to) = (root().join(&path), tree.join(&path));
        if from.is_dir() {
            fs::create_dir_all(&to).expect("a directory");
            let entries = fs::read_dir(&from).expect("a directory").flatten();
            let names = entries.map(|entry| entry.file_name());
            let sources =
                names.filter(|name| name != "target" && !name.as_encoded_bytes().starts_with(b"."));
            left.extend(sources.map(|name| path.join(name)));
        } else if fs::read(&to).ok() != fs::read(&from).ok() {
            fs::copy(&from, &to).expect("copied");
        }
    }
}
