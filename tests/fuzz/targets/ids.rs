//! The ids of a request: in order, each once, none that was not asked for, none left out, and never more than the bound.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;

#[path = "../../../src/server/http/api/ids.rs"]
mod ids;

fuzz_target!(|text: &str| {
    let asked = || text.split(',').map(str::trim).filter(|id| !id.is_empty());
    match ids::parse(text) {
        Ok(found) => {
            let expected: BTreeSet<i64> = asked().map(|id| id.parse().unwrap()).collect();
            assert!(found.iter().eq(&expected));
            assert!(asked().count() <= ids::MOST_IDS);
        }
        Err(problem) => {
            assert!(
                asked().count() > ids::MOST_IDS || asked().any(|id| id.parse::<i64>().is_err())
            );
            assert!(problem.contains("ids"));
        }
    }
});
