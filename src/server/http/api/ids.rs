//! The ids in a request: of its path, and a list in its query.

use axum::extract::{Path, rejection::PathRejection};

use crate::server::http::problem::Refusal;

/// The id of an event in a path.
///
/// # Errors
/// It is no whole number.
pub(crate) fn event(id: Result<Path<i64>, PathRejection>) -> Result<i64, Refusal> {
    let refusal = |_| Refusal("an event id is a whole number".to_owned());
    id.map(|Path(id)| id).map_err(refusal)
}

/// More ids than this are refused; ask for all instead.
pub(crate) const MOST_IDS: usize = 5_000;

/// An id of more digits is none.
const MOST_DIGITS: usize = 19;

/// The ids in `1,2,3`, each once, in order; or what is wrong with it. An empty text is an empty list: a program joins
/// the ids that it has. An id that does not fit into 64 bits is left out, because no event has it.
pub(crate) fn parse(list: &str) -> Result<Vec<i64>, String> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids = Vec::new();
    for (index, id) in list.split(',').enumerate() {
        if index == MOST_IDS {
            return Err(format!(
                "more than {MOST_IDS} ids; leave ids out to get all"
            ));
        }
        if !is_number(id) {
            return Err("ids is a list of whole numbers: ids=1,2,3".to_owned());
        }
        ids.extend(id.parse::<i64>());
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Whether a text has the form of an id: up to 19 digits, perhaps after a minus.
pub(crate) fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (1..=MOST_DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Checks that exactly the ids of `list` are found, in order, each once, and never more than the bound. Returns
    /// whether the list was accepted.
    fn gives_what_is_asked_for(list: &str) -> bool {
        let asked = || list.split(',').filter(|_| !list.is_empty());
        let found = parse(list);
        match &found {
            Ok(found) => {
                let expected: BTreeSet<i64> = asked().filter_map(|id| id.parse().ok()).collect();
                assert!(found.iter().eq(&expected), "{list}");
                assert!(asked().count() <= MOST_IDS);
            }
            Err(problem) => {
                let refused = asked().count() > MOST_IDS || asked().any(|id| !is_number(id));
                assert!(refused, "{list}");
                assert!(problem.contains("ids"), "{problem}");
            }
        }
        found.is_ok()
    }

    #[test]
    fn lists_are_read_up_to_the_bound() {
        assert!(gives_what_is_asked_for(""));
        assert!(gives_what_is_asked_for("1,2,3,-4,9223372036854775807"));
        assert!(gives_what_is_asked_for(&vec!["7"; MOST_IDS].join(",")));
        assert!(!gives_what_is_asked_for(&vec!["7"; MOST_IDS + 1].join(",")));
        // No event has such an id.
        assert_eq!(parse("1,9223372036854775808"), Ok(vec![1]));
        for wrong in ["1,", ",1", "1, 2", "+1", "-", "12345678901234567890"] {
            assert!(!gives_what_is_asked_for(wrong), "{wrong}");
        }
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
            prop_assert!(gives_what_is_asked_for(&list.join(",")));
        }
    }
}
