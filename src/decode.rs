//! Reads the `outcomes` column: the text of a JSON value that should be a list of `{"name", "odds", "is_active"}`.
//!
//! Total: whatever the text, it gives outcomes to serve and says whether something was wrong with it.
//! - no list at all, or no JSON that can be read: no outcomes;
//! - an element that is no object: left out;
//! - a missing or wrong `name`: empty; wrong `odds`: none; wrong `is_active`: inactive, for nobody should bet on a guess.
//!
//! A missing or null `odds` or `is_active` is not wrong: it means "none", and "active".

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::model::{OutcomeKey, OutcomeValue};

/// An outcome borrowed from the row, where it has no escapes.
#[derive(Debug, PartialEq)]
pub(crate) struct OutcomeRow<'a> {
    name: Cow<'a, str>,
    odds: Option<f64>,
    is_active: bool,
    extra: Option<String>,
}

impl OutcomeKey for OutcomeRow<'_> {
    fn name(&self) -> &str {
        &self.name
    }
    fn extra(&self) -> Option<&str> {
        self.extra.as_deref()
    }
}

impl OutcomeValue for OutcomeRow<'_> {
    fn odds(&self) -> Option<f64> {
        self.odds
    }
    fn is_active(&self) -> bool {
        self.is_active
    }
}

/// What is wrong with a market row's outcomes. Never the data itself: it goes into logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("outcomes is null")]
    Null,
    #[error("outcomes is no JSON that can be read")]
    Unreadable,
    #[error("outcomes is not a list")]
    NotAList,
    #[error("an outcome is not an object")]
    NotAnObject,
    #[error("an outcome has no name, or one that is no string")]
    Name,
    #[error("an outcome's odds are no number")]
    Odds,
    #[error("an outcome's is_active is no boolean")]
    IsActive,
    #[error("market_groups is not a list")]
    MarketGroups,
    #[error("betpawa_market_id or betpawa_market_name is null")]
    NullMarket,
}

/// Appends the outcomes of `text` to `outcomes`, and says what was wrong with them first, if anything.
pub(crate) fn outcomes<'a>(
    text: Option<&'a str>,
    outcomes: &mut Vec<OutcomeRow<'a>>,
) -> Option<Malformed> {
    let Some(text) = text else {
        return Some(Malformed::Null);
    };
    let start = outcomes.len();
    let mut problem = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let list = List {
        outcomes,
        problem: &mut problem,
    };
    let read = deserializer
        .deserialize_any(list)
        .and_then(|()| deserializer.end());
    if read.is_err() {
        outcomes.truncate(start);
        return Some(Malformed::Unreadable);
    }
    problem
}

struct List<'o, 'a> {
    outcomes: &'o mut Vec<OutcomeRow<'a>>,
    problem: &'o mut Option<Malformed>,
}

/// Visits a value of the wrong type as a problem instead of an error, so that the rest of the row is read.
macro_rules! wrong_types {
    ($problem:expr; $($visit:ident($type:ty))*) => {
        $(fn $visit<E: Error>(self, _: $type) -> Result<Self::Value, E> {
            Ok($problem(self))
        })*
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok($problem(self))
        }
    };
}

impl<'a> Visitor<'a> for List<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outcomes")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(found) = list.next_element_seed(Element)? {
            let (outcome, problem) = found;
            self.outcomes.extend(outcome);
            *self.problem = self.problem.or(problem);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        *self.problem = Some(Malformed::NotAList);
        Ok(())
    }

    wrong_types! { |list: Self| *list.problem = Some(Malformed::NotAList);
    visit_bool(bool) visit_i64(i64) visit_u64(u64) visit_f64(f64) visit_str(&str) }
}

struct Element;

impl<'a> DeserializeSeed<'a> for Element {
    type Value = (Option<OutcomeRow<'a>>, Option<Malformed>);

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Element {
    type Value = (Option<OutcomeRow<'a>>, Option<Malformed>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an outcome")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // Of a key that comes twice the last one counts, as jsonb and serde_json have it.
        let (mut name, mut odds, mut is_active) = (None, Scalar::Null, Scalar::Null);
        let mut extra = Map::new();
        while let Some(key) = map.next_key_seed(Text)? {
            if key == ARBITRARY_PRECISION && extra.is_empty() && name.is_none() {
                number::<A::Error>(&map.next_value_seed(Text)?)?;
                return Ok((None, Some(Malformed::NotAnObject)));
            }
            match &*key {
                "name" => name = Some(map.next_value_seed(Scalars)?),
                "odds" => odds = map.next_value_seed(Scalars)?,
                "is_active" => is_active = map.next_value_seed(Scalars)?,
                _ => {
                    extra.insert(key.into_owned(), map.next_value()?);
                }
            }
        }
        let mut problem = None;
        let name = match name {
            Some(Scalar::Text(name)) => name,
            _ => {
                problem = Some(Malformed::Name);
                Cow::Borrowed("")
            }
        };
        let odds = match odds {
            Scalar::Number(odds) => Some(odds),
            Scalar::Null => None,
            _ => {
                problem = problem.or(Some(Malformed::Odds));
                None
            }
        };
        let is_active = match is_active {
            Scalar::Bool(is_active) => is_active,
            Scalar::Null => true,
            _ => {
                problem = problem.or(Some(Malformed::IsActive));
                false
            }
        };
        let extra = (!extra.is_empty()).then(|| Value::Object(extra).to_string());
        Ok((
            Some(OutcomeRow {
                name,
                odds,
                is_active,
                extra,
            }),
            problem,
        ))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok((None, Some(Malformed::NotAnObject)))
    }

    wrong_types! { |_| (None, Some(Malformed::NotAnObject));
    visit_bool(bool) visit_i64(i64) visit_u64(u64) visit_f64(f64) visit_str(&str) }
}

/// A string, borrowed where it has no escapes.
struct Text;

impl<'a> DeserializeSeed<'a> for Text {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Text {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// The number of these digits; an error where serde_json would give one if it made the number itself.
fn number<E: Error>(digits: &str) -> Result<f64, E> {
    let number: f64 = digits.parse().map_err(E::custom)?;
    if number.is_finite() {
        Ok(number)
    } else {
        Err(E::custom("number out of range"))
    }
}

/// Where any crate of the program switches on serde_json's feature of this name, numbers come as an object with this key.
const ARBITRARY_PRECISION: &str = "$serde_json::private::Number";

enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    Nested,
}

struct Scalars;

impl<'a> DeserializeSeed<'a> for Scalars {
    type Value = Scalar<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Scalars {
    type Value = Scalar<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(value))
    }

    // An integer becomes the nearest double, as `Value::as_f64` has it.
    #[expect(clippy::cast_precision_loss)]
    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(value as f64))
    }

    #[expect(clippy::cast_precision_loss)]
    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(value as f64))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Nested)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut first = true;
        while let Some(key) = map.next_key_seed(Text)? {
            if first && key == ARBITRARY_PRECISION {
                return number(&map.next_value_seed(Text)?).map(Scalar::Number);
            }
            first = false;
            map.next_value::<IgnoredAny>()?;
        }
        Ok(Scalar::Nested)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// Name, odds' bits, is_active, extra.
    type Plain = (String, Option<u64>, bool, Option<Value>);

    fn read(text: &str) -> (Vec<Plain>, Option<Malformed>) {
        let mut found = Vec::new();
        let problem = outcomes(Some(text), &mut found);
        let plain = |outcome: OutcomeRow<'_>| {
            let extra = outcome.extra();
            let extra = extra.map(|text| serde_json::from_str(text).expect("an object's text"));
            let odds = outcome.odds().map(f64::to_bits);
            (outcome.name().to_owned(), odds, outcome.is_active(), extra)
        };
        (found.into_iter().map(plain).collect(), problem)
    }

    fn one(text: &str) -> (Plain, Option<Malformed>) {
        let (mut found, problem) = read(text);
        assert_eq!(found.len(), 1, "{text}");
        (found.remove(0), problem)
    }

    #[test]
    fn a_list_of_outcomes_is_read_in_order() {
        let text = r#"[{"name": "1", "odds": 1.85, "is_active": true}, {"is_active": false, "odds": 2, "name": "X"}]"#;
        let expected = vec![
            ("1".to_owned(), Some(1.85f64.to_bits()), true, None),
            ("X".to_owned(), Some(2f64.to_bits()), false, None),
        ];
        assert_eq!(read(text), (expected, None));
        assert_eq!(read("[]"), (vec![], None));
        assert_eq!(read(" \n[ ]\t"), (vec![], None));
    }

    #[test]
    fn outcomes_go_after_those_already_there() {
        let mut found = Vec::new();
        assert_eq!(outcomes(Some(r#"[{"name":"1"}]"#), &mut found), None);
        let unreadable = r#"[{"name":"2"},{"name":"3"}"#;
        assert_eq!(
            outcomes(Some(unreadable), &mut found),
            Some(Malformed::Unreadable)
        );
        assert_eq!(outcomes(None, &mut found), Some(Malformed::Null));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn missing_and_null_odds_mean_none_and_is_active_yes() {
        for text in [
            r#"[{"name":"1"}]"#,
            r#"[{"name":"1","odds":null,"is_active":null}]"#,
        ] {
            assert_eq!(one(text), (("1".to_owned(), None, true, None), None));
        }
    }

    #[test]
    fn every_kind_of_malformed_is_named_and_the_rest_is_read() {
        assert_eq!(outcomes(None, &mut Vec::new()), Some(Malformed::Null));
        let unreadable = [
            "",
            "[",
            "nonsense",
            "[1,]",
            "[{]",
            r#"[{"name":"1"}] x"#,
            r#"[{"name":"1","odds":1.5}"#,
            "[1e999]",
            r#"[{"name":"\ud800"}]"#,
            r#"[{"name":"1","odds":1e999}]"#,
            "\u{0}",
        ];
        // Under its feature arbitrary_precision serde_json keeps such a number as it is, among the unknown keys too.
        let too_great = r#"[{"name":"1","more":1e999}]"#;
        let kept = serde_json::from_str::<Value>("1e999").is_ok();
        for text in unreadable.into_iter().chain((!kept).then_some(too_great)) {
            assert_eq!(
                read(text),
                (vec![], Some(Malformed::Unreadable)),
                "{text:?}"
            );
        }
        for text in [
            "null",
            "true",
            "1",
            "-1",
            "1.5",
            "\"text\"",
            "\"\\n\"",
            "{}",
            r#"{"a":[1]}"#,
        ] {
            assert_eq!(read(text), (vec![], Some(Malformed::NotAList)), "{text}");
        }
        for element in [
            "null",
            "false",
            "1",
            "-2",
            "0.5",
            "\"1\"",
            "[]",
            r#"[{"name":"2"}]"#,
        ] {
            let text = format!(r#"[{element},{{"name":"1"}}]"#);
            let (found, problem) = one(&text);
            assert_eq!(
                (found.0.as_str(), problem),
                ("1", Some(Malformed::NotAnObject)),
                "{text}"
            );
        }
        let junk = [
            "1",
            "0.5",
            "true",
            "[]",
            r#"["a"]"#,
            "{}",
            r#"{"name":"1"}"#,
        ];
        for name in junk.into_iter().chain(["null"]) {
            let text = format!(r#"[{{"name":{name},"odds":1.5}}]"#);
            let expected = (String::new(), Some(1.5f64.to_bits()), true, None);
            assert_eq!(one(&text), (expected, Some(Malformed::Name)), "{text}");
        }
        assert_eq!(one(r#"[{"odds":1.5}]"#).1, Some(Malformed::Name));
        for odds in ["\"1.5\"", "true", "[1.5]", r#"{"a":1}"#] {
            let text = format!(r#"[{{"name":"1","odds":{odds},"is_active":true}}]"#);
            assert_eq!(
                one(&text),
                (("1".to_owned(), None, true, None), Some(Malformed::Odds)),
                "{text}"
            );
        }
        // Nobody should bet on a guess.
        for is_active in ["1", "\"true\"", "[]", "{}", "0.0"] {
            let text = format!(r#"[{{"name":"1","is_active":{is_active}}}]"#);
            assert_eq!(
                one(&text),
                (
                    ("1".to_owned(), None, false, None),
                    Some(Malformed::IsActive)
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn of_several_problems_the_first_is_named() {
        assert_eq!(
            read(r#"[{"name":"1","odds":"x"},{"name":1}]"#).1,
            Some(Malformed::Odds)
        );
        assert_eq!(
            read(r#"[7,{"name":"1","odds":"x"}]"#).1,
            Some(Malformed::NotAnObject)
        );
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_one_counts() {
        let text = r#"[{"name":1,"odds":1.5,"is_active":false,"a":1,"name":"2","odds":2.5,"is_active":true,"a":2}]"#;
        let extra = serde_json::json!({"a": 2});
        let expected = ("2".to_owned(), Some(2.5f64.to_bits()), true, Some(extra));
        assert_eq!(one(text), (expected, None));
        assert_eq!(
            one(r#"[{"name":"1","odds":1.5,"odds":"x"}]"#).1,
            Some(Malformed::Odds)
        );
    }

    #[test]
    fn escapes_are_read_in_names_and_keys() {
        let text = r#"[{"n\u0061me":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00","odds":1,"is\u005factive":false,"m\u006fre":"\u0041"}]"#;
        let extra = serde_json::json!({"more": "A"});
        let name = "\"\\/\u{8}\u{c}\n\r\té😀".to_owned();
        assert_eq!(
            one(text),
            ((name, Some(1f64.to_bits()), false, Some(extra)), None)
        );
    }

    #[test]
    fn numbers_in_every_notation() {
        for (text, number) in [
            ("1", 1.0),
            ("-1", -1.0),
            ("0", 0.0),
            ("-0", -0.0),
            ("1.50", 1.5),
            ("15e-1", 1.5),
            ("0.15E+1", 1.5),
            ("1e300", 1e300),
            ("5e-324", 5e-324),
            ("1.7976931348623157e308", f64::MAX),
            ("1e-400", 0.0),
            ("9007199254740993", 9_007_199_254_740_992.0),
            ("18446744073709551615", 18_446_744_073_709_551_615.0),
            ("18446744073709551616", 18_446_744_073_709_551_616.0),
            ("-9223372036854775808", -9_223_372_036_854_775_808.0),
            ("0.1", 0.1),
            ("2.2250738585072011e-308", 2.225_073_858_507_201e-308),
        ] {
            let (found, problem) = one(&format!(r#"[{{"name":"1","odds":{text}}}]"#));
            assert_eq!(
                (found.1, problem),
                (Some(f64::to_bits(number)), None),
                "{text}"
            );
        }
    }

    #[test]
    fn deeply_nested_junk_is_no_danger() {
        for depth in [100, 10_000] {
            let junk = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            read(&junk);
            read(&format!("[{junk}]"));
            for key in ["name", "odds", "is_active", "more"] {
                read(&format!(r#"[{{"{key}":{junk}}}]"#));
            }
        }
    }

    /// What this module promises, said over `serde_json::Value`.
    fn reference(value: &Value) -> (Vec<Plain>, Option<Malformed>) {
        let Value::Array(list) = value else {
            return (vec![], Some(Malformed::NotAList));
        };
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for element in list {
            let Value::Object(map) = element else {
                problems.push(Malformed::NotAnObject);
                continue;
            };
            let mut map = map.clone();
            let name = match map.remove("name") {
                Some(Value::String(name)) => name,
                _ => {
                    problems.push(Malformed::Name);
                    String::new()
                }
            };
            let odds = match map.remove("odds") {
                None | Some(Value::Null) => None,
                Some(Value::Number(odds)) => odds.as_f64().map(f64::to_bits),
                Some(_) => {
                    problems.push(Malformed::Odds);
                    None
                }
            };
            let is_active = match map.remove("is_active") {
                None | Some(Value::Null) => true,
                Some(Value::Bool(is_active)) => is_active,
                Some(_) => {
                    problems.push(Malformed::IsActive);
                    false
                }
            };
            let extra = (!map.is_empty()).then_some(Value::Object(map));
            found.push((name, odds, is_active, extra));
        }
        (found, problems.first().copied())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((".{0,4}", inner), 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    fn any_outcome() -> impl Strategy<Value = Value> {
        let key = prop_oneof![3 => select(vec!["name", "odds", "is_active", "more"]).prop_map(str::to_owned), 1 => ".{0,4}"];
        let value = prop_oneof![
            any_value(),
            any::<f64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        vec((key, value), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn reads_as_serde_json_would(value in prop_oneof![
            8 => vec(any_outcome(), 0..5).prop_map(Value::from),
            2 => vec(any_value(), 0..5).prop_map(Value::from),
            1 => any_value(),
        ], pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.expect("JSON");
            prop_assert_eq!(read(&text), reference(&value));
        }

        #[test]
        fn survives_any_text(text in "\\PC{0,40}") {
            read(&text);
        }

        #[test]
        fn survives_any_damage(value in vec(any_outcome(), 0..3).prop_map(Value::from), at in any::<prop::sample::Index>(), with in any::<char>()) {
            let text = value.to_string();
            let mut damaged: Vec<char> = text.chars().collect();
            let at = at.index(damaged.len());
            damaged[at] = with;
            let damaged: String = damaged.into_iter().collect();
            // Read as the reference has it if it still is JSON, which a parser of its own must agree on.
            match serde_json::from_str::<Value>(&damaged) {
                Ok(value) => prop_assert_eq!(read(&damaged).0, reference(&value).0),
                Err(_) => prop_assert!(read(&damaged).1.is_some()),
            }
        }
    }
}
