//! The list of ids in a request.

/// More ids than this are refused; ask for all instead.
pub(crate) const MOST_IDS: usize = 5_000;

/// The ids in `1,2,3`, each once, in order; or what is wrong with it.
pub(crate) fn parse(list: &str) -> Result<Vec<i64>, String> {
    let ids = list
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(str::parse);
    let ids: Result<Vec<i64>, _> = ids.collect();
    let mut ids = ids.map_err(|_| "ids is a list of whole numbers: ids=1,2,3".to_owned())?;
    if ids.len() > MOST_IDS {
        return Err(format!(
            "more than {MOST_IDS} ids; leave ids out to get all"
        ));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Checks that exactly the ids of `list` are found, in order, each once, and never more than the bound. Returns
    /// whether the list was accepted.
    fn gives_what_is_asked_for(list: &str) -> bool {
        let asked = || list.split(',').map(str::trim).filter(|id| !id.is_empty());
        let found = parse(list);
        match &found {
            Ok(found) => {
                let expected: BTreeSet<i64> = asked().map(|id| id.parse().unwrap()).collect();
                assert!(found.iter().eq(&expected), "{list}");
                assert!(asked().count() <= MOST_IDS);
            }
            Err(problem) => {
                let refused =
                    asked().count() > MOST_IDS || asked().any(|id| id.parse::<i64>().is_err());
                assert!(refused, "{list}");
                assert!(problem.contains("ids"), "{problem}");
            }
        }
        found.is_ok()
    }

    #[test]
    fn lists_are_read_up_to_the_bound() {
        assert!(gives_what_is_asked_for("1,2, 3,,-4,9223372036854775807"));
        assert!(gives_what_is_asked_for(&"7,".repeat(MOST_IDS)));
        assert!(!gives_what_is_asked_for(&"7,".repeat(MOST_IDS + 1)));
        assert!(!gives_what_is_asked_for("1,9223372036854775808"));
    }

    proptest! {
        #[test]
        fn any_list_gives_what_is_asked_for(ids in vec("[ +-]?[0-9]{1,3}[ ]?|[0-9]{18,20}|[a-z ]?", 0..8), text in "\\PC{0,20}") {
            gives_what_is_asked_for(&ids.join(","));
            gives_what_is_asked_for(&text);
        }

        #[test]
        fn every_list_of_numbers_is_read(ids in vec(prop_oneof![-20..20i64, any::<i64>()], 0..30)) {
            let list: Vec<String> = ids.iter().map(i64::to_string).collect();
            prop_assert!(gives_what_is_asked_for(&list.join(", ")));
        }
    }
}
