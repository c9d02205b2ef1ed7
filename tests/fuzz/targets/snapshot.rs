//! The text of a `pg_snapshot`: what is read are its numbers, all of them, and PostgreSQL's form of them is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oddscache::fuzzing::snapshot;

fuzz_target!(|text: &str| {
    let Some(numbers) = snapshot(text) else {
        return;
    };
    let plain: Vec<u64> = text
        .split([':', ','])
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!(numbers, plain);
    let [xmin, xmax, in_progress @ ..] = &numbers[..] else {
        panic!("two numbers at the least: {numbers:?}");
    };
    let list: Vec<String> = in_progress.iter().map(u64::to_string).collect();
    assert_eq!(
        snapshot(&format!("{xmin}:{xmax}:{}", list.join(","))),
        Some(numbers)
    );
});
