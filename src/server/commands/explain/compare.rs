//! Finds the fields in which two events, as JSON, differ.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;
use serde_json::Value;

use super::oracle::normal;

/// At most this many differences are reported: the first few show what is wrong.
const MOST: usize = 20;

/// Longer values are cut in the output for people, because a value may be a whole snapshot.
const MOST_CHARACTERS: usize = 120;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// Such as `betpawa.1.markets.0.outcomes.2.odds`.
    pub(crate) field: String,
    /// In the service; null where it is absent.
    pub(crate) service: Value,
    /// In the database; null where it is absent.
    pub(crate) database: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = match &*self.field {
            "" => "the event",
            field => field,
        };
        let (held, expected) = (short(&self.service), short(&self.database));
        write!(
            f,
            "{field}: {held} in the service, {expected} in the database"
        )
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => return "nothing".to_owned(),
        value => value.to_string(),
    };
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The fields that differ, in the order of their names. Two notations of the same number or time are equal.
pub(crate) fn differences(service: &Value, database: &Value) -> Vec<Difference> {
    let form = |event: &Value| with_defaults(event.clone());
    let mut found = Vec::new();
    collect("", &form(service), &form(database), &mut found);
    found
}

fn collect(field: &str, service: &Value, database: &Value, found: &mut Vec<Difference>) {
    // The normal form is only for comparing. Differences are reported as the values were written.
    if found.len() >= MOST || normal_value(field, service) == normal_value(field, database) {
        return;
    }
    let within = |key: &dyn std::fmt::Display| match field {
        "" => key.to_string(),
        field => format!("{field}.{key}"),
    };
    match (service, database) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let (one, other) = (one.get(key), other.get(key));
                match (one, other) {
                    (Some(one), Some(other)) => collect(&within(key), one, other, found),
                    _ => found.push(difference(within(key), one, other)),
                }
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            for index in 0..one.len().max(other.len()) {
                match (one.get(index), other.get(index)) {
                    (Some(one), Some(other)) => collect(&within(&index), one, other, found),
                    (one, other) => found.push(difference(within(&index), one, other)),
                }
            }
        }
        _ => found.push(difference(field.to_owned(), Some(service), Some(database))),
    }
    found.truncate(MOST);
}

/// The value in a form that all equal values have. The field's name says whether it is a time.
fn normal_value(field: &str, value: &Value) -> Value {
    let name = field.rsplit('.').next().unwrap_or_default();
    let named = Value::Object([(name.to_owned(), value.clone())].into_iter().collect());
    normal(named)
}

fn difference(field: String, service: Option<&Value>, database: Option<&Value>) -> Difference {
    let value = |value: Option<&Value>| value.cloned().unwrap_or(Value::Null);
    Difference {
        field,
        service: value(service),
        database: value(database),
    }
}

/// Fills in what stored outcomes may lack: a missing `odds` means null, a missing or null `is_active` means true.
fn with_defaults(mut event: Value) -> Value {
    for side in ["betpawa", "competitors"] {
        let snapshots = event.get_mut(side).and_then(Value::as_object_mut);
        let snapshots = snapshots.into_iter().flat_map(|map| map.values_mut());
        let markets = snapshots.filter_map(|snapshot| snapshot.get_mut("markets")?.as_array_mut());
        let outcomes = markets
            .flatten()
            .filter_map(|market| market.get_mut("outcomes")?.as_array_mut());
        for outcome in outcomes.flatten().filter_map(Value::as_object_mut) {
            outcome.entry("odds").or_insert(Value::Null);
            let is_active = outcome.entry("is_active").or_insert(Value::Null);
            if is_active.is_null() {
                *is_active = Value::Bool(true);
            }
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_values_have_many_forms() {
        let one = json!({"kickoff": "2026-01-01T00:00:00Z", "betpawa": {"1": {"markets": [{"outcomes": [{"odds": 2, "is_active": true}]}]}}});
        let other = json!({"kickoff": "2026-01-01T00:00:00.000+00:00", "betpawa": {"1": {"markets": [{"outcomes": [{"odds": 2.0}]}]}}});
        assert_eq!(differences(&one, &other), []);
    }

    #[test]
    fn each_field_that_differs_is_named() {
        let one = json!({"event_id": 1, "kickoff": "2026-01-01T00:00:00Z", "betpawa": {"1": {"snapshot_id": 7}}});
        let other = json!({"event_id": 1, "kickoff": "2026-01-01T00:00:01Z", "betpawa": {"1": {"snapshot_id": 8}, "2": {}}});
        let found = differences(&one, &other);
        let fields: Vec<&str> = found.iter().map(|found| &*found.field).collect();
        assert_eq!(fields, ["betpawa.1.snapshot_id", "betpawa.2", "kickoff"]);
        assert_eq!(found[0].service, json!(7));
        assert_eq!(found[2].database, json!("2026-01-01T00:00:01Z"));
        assert_eq!(differences(&Value::Null, &other).len(), 1);
        let many = |n| json!((0..100).map(|i| i * n).collect::<Vec<_>>());
        assert_eq!(differences(&many(1), &many(2)).len(), MOST);
    }
}
