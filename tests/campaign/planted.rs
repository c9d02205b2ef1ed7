//! The campaign is itself tested: by bugs planted into a copy of the sources, one at a time, each of which it must find.
//! Each is a patch in `plants`, whose head says what it breaks and which check is to find it.
//!
//! `cargo test --test campaign -- --ignored --nocapture planted` builds and judges them all, and fails if one survives;
//! `CAMPAIGN_PLANT=text,...` only those whose name contains one of the texts. The table it prints is kept in planted.md.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// A bug.
struct Plant {
    patch: PathBuf,
    name: String,
    /// The check that is to find it. Now and then another comes first, for when things meet is the machine's.
    check: String,
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
        Plant { patch, name, check }
    };
    patches.into_iter().map(plant).collect()
}

/// Applies a patch to the sources in `tree`, or (`--dry-run`) only says whether it could be. Lines around it may have moved,
/// and some of them may have changed.
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
        "plant `{}` does not find its place; adapt {} to the sources:\n{said}",
        plant.name,
        plant.patch.display()
    );
}

#[test]
fn every_plant_still_finds_its_place() {
    let plants = plants();
    assert!(plants.len() >= 36);
    for plant in &plants {
        patch(plant, root(), &["--dry-run"]);
    }
}

/// Seeds that are tried, one after the other, until a plant is found.
const SEEDS: [u64; 3] = [1, 2, 3];

#[test]
#[ignore = "builds the campaign once for each plant: takes twenty minutes"]
fn planted() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("planted");
    let tree = place.join("tree");
    let wanted = std::env::var("CAMPAIGN_PLANT").unwrap_or_default();
    let mut table = String::from("| plant | seed | found by | after |\n|---|---|---|---|\n");
    let mut survivors = Vec::new();
    let is_wanted = |plant: &Plant| wanted.split(',').any(|text| plant.name.contains(text));
    for plant in plants().into_iter().filter(is_wanted) {
        // And what was planted before is gone.
        copy_sources(&tree);
        patch(&plant, &tree, &[]);
        let found = SEEDS.iter().find_map(|seed| {
            let began = Instant::now();
            let check = hunt(&tree, &place.join("target"), *seed)?;
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

/// Runs the short campaign of a seed; names the check that found something.
fn hunt(tree: &Path, target: &Path, seed: u64) -> Option<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "test",
            "--locked",
            "--test",
            "campaign",
            "--",
            "--nocapture",
            "--exact",
            "short",
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

/// All that a build may need. Files that are the same stay as they are, so that the next build is short.
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
