//! The oracle: a query for what the cache must hold. It shares nothing with how the cache reads. `explain` and the demo
//! compare the cache with its answer.

use chrono::DateTime;
use serde_json::Value;

/// What the cache must hold, in SQL. Its head explains it.
pub(crate) const ORACLE: &str = include_str!("oracle.sql");

/// The tables that the oracle can do without.
pub(crate) const OPTIONAL: &str = "'{bookmakers,tournaments,sports}'::text[]";

/// The oracle for a database where these tables are missing, or cannot be read.
pub(crate) fn without(missing: &[String]) -> String {
    let empty = |oracle: String, table: &String| {
        oracle.replace(&format!("from {table} t"), "from (select where false) t")
    };
    missing.iter().fold(ORACLE.to_owned(), empty)
}

/// The value in a form that all equal values have. 2 and 2.0 are equal, and so is a time with and without fraction
/// digits.
pub(crate) fn normal(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(values) => values.into_iter().map(normal).collect(),
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| {
                let is_time = key.ends_with("_at") || key == "kickoff";
                let time = value
                    .as_str()
                    .filter(|_| is_time)
                    .and_then(|text| DateTime::parse_from_rfc3339(text).ok());
                let value =
                    time.map_or_else(|| normal(value), |time| time.timestamp_micros().into());
                (key, value)
            };
            Value::Object(map.into_iter().map(entry).collect())
        }
        other => other,
    }
}
