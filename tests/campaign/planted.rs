//! The campaign is itself tested: by bugs planted into a copy of the sources, one at a time, each of which it must find.
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

use crate::plants::{PLANTS, Plant};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_plant_still_finds_its_place() {
    assert!(PLANTS.len() >= 20);
    for Plant { name, edits } in PLANTS {
        for (file, find, replace) in *edits {
            let text = fs::read_to_string(root().join(file)).expect(file);
            let found = text.matches(find).count();
            assert_eq!(
                found, 1,
                "plant `{name}`: its text occurs {found} times in {file}; adapt it to the source:\n{find}"
            );
            assert_ne!(find, replace, "{name}");
        }
    }
}

/// Seeds that are tried, one after the other, until a plant is found.
const SEEDS: [u64; 3] = [1, 2, 3];

#[test]
#[ignore = "builds the campaign once for each plant: takes an hour"]
fn planted() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("planted");
    let tree = place.join("tree");
    copy_sources(&tree);
    let wanted = std::env::var("CAMPAIGN_PLANT").unwrap_or_default();
    let mut table = String::from("| plant | seed | found by | after |\n|---|---|---|---|\n");
    let mut survivors = Vec::new();
    let is_wanted = |plant: &&Plant| wanted.split(',').any(|text| plant.name.contains(text));
    for plant in PLANTS.iter().filter(is_wanted) {
        sow(plant, &tree);
        let (seed, check, seconds) = SEEDS
            .iter()
            .find_map(|seed| {
                let began = Instant::now();
                let check = hunt(&tree, &place.join("target"), *seed)?;
                Some((seed.to_string(), check, began.elapsed().as_secs()))
            })
            .unwrap_or_else(|| {
                survivors.push(plant.name);
                ("-".to_owned(), "**not found**".to_owned(), 0)
            });
        let line = format!("| {} | {seed} | {check} | {seconds} s |", plant.name);
        println!("{line}");
        writeln!(table, "{line}").expect("into a string");
        for (file, ..) in plant.edits {
            fs::copy(root().join(file), tree.join(file)).expect("copied back");
        }
        fs::write(place.join("planted.md"), &table).expect("the table is written");
    }
    assert!(
        survivors.is_empty(),
        "the campaign does not find: {survivors:?}"
    );
}

fn sow(plant: &Plant, tree: &Path) {
    for (file, find, replace) in plant.edits {
        let path = tree.join(file);
        let text = fs::read_to_string(&path).expect(file);
        assert_eq!(text.matches(find).count(), 1, "{}: {file}", plant.name);
        fs::write(&path, text.replace(find, replace)).expect("written");
    }
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

/// What a build needs. Files that are the same stay as they are, so that a second run builds little.
fn copy_sources(tree: &Path) {
    let mut left: Vec<PathBuf> = [
        "src",
        "tests",
        "sql",
        "benches",
        "examples",
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
    ]
    .map(PathBuf::from)
    .into();
    while let Some(path) = left.pop() {
        let (from, to) = (root().join(&path), tree.join(&path));
        if from.is_dir() {
            fs::create_dir_all(&to).expect("a directory");
            let entries = fs::read_dir(&from).expect("a directory").flatten();
            left.extend(entries.map(|entry| path.join(entry.file_name())));
        } else if fs::read(&to).ok() != fs::read(&from).ok() {
            fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
            fs::copy(&from, &to).expect("copied");
        }
    }
}
