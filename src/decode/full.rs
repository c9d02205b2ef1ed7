//! Reads any text with `serde_json`: the outcomes to serve, and what is wrong with the text.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::malformed::Malformed;
use crate::model::{NamesBuffer, OddsBuffer};

/// Adds the outcomes of a text. Returns the first problem found, if any.
pub(super) fn outcomes(
    text: &str,
    names: &mut NamesBuffer,
    odds: &mut OddsBuffer,
) -> Option<Malformed> {
    let mark = odds.mark();
    let mut problem = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let list = List {
        names,
        odds,
        problem: &mut problem,
    };
    let read = deserializer
        .deserialize_any(list)
        .and_then(|()| deserializer.end());
    if read.is_err() {
        names.clear();
        // Invalid JSON may have yielded some outcomes before the error. Take them back.
        odds.truncate(mark);
        return Some(Malformed::Unreadable);
    }
    problem
}

struct List<'o> {
    names: &'o mut NamesBuffer,
    odds: &'o mut OddsBuffer,
    problem: &'o mut Option<Malformed>,
}

/// One outcome. Its name borrows from the row if it contains no escapes.
struct Outcome<'a> {
    name: Cow<'a, str>,
    odds: Option<f64>,
    is_active: bool,
    extra: Option<String>,
}

/// Implements the visits of wrong types. They note a problem and return no error, so that reading goes on.
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

impl<'a> Visitor<'a> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outcomes")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(found) = list.next_element_seed(Element)? {
            let (outcome, problem) = found;
            if let Some(outcome) = outcome {
                self.names.push(&outcome.name, outcome.extra.as_deref());
                self.odds.push(outcome.odds, outcome.is_active);
            }
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
    type Value = (Option<Outcome<'a>>, Option<Malformed>);

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Element {
    type Value = (Option<Outcome<'a>>, Option<Malformed>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an outcome")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // The last of repeated keys counts, as in jsonb and serde_json.
        let (mut name, mut odds, mut is_active) = (None, Scalar::Null, Scalar::Null);
        let mut extra = Map::new();
        while let Some(key) = map.next_key_seed(Text)? {
            // A bare number among the elements, as the feature arbitrary_precision presents it: not an object.
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
            Some(Outcome {
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

/// Reads a string; borrows it if it contains no escapes.
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

/// Parses a number. Fails wherever serde_json would fail if it parsed the number itself.
fn number<E: Error>(digits: &str) -> Result<f64, E> {
    let number: f64 = digits.parse().map_err(E::custom)?;
    if number.is_finite() {
        Ok(number)
    } else {
        Err(E::custom("number out of range"))
    }
}

/// The key of the object by which serde_json passes on a number if any crate of the program enables its feature
/// `arbitrary_precision`.
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

    // An integer becomes the nearest double, as in `Value::as_f64`.
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
