//! The JSON columns of a market row, `outcomes` and (after a line feed) `market_groups`: what a reader is shown is what
//! `serde_json` makes of them, odds bit for bit, and whatever is not as it should be is said. And the same whatever was
//! read before, by which the cache knows what to expect: nothing, the `outcomes` of the third line, the very same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

/// What is to be shown of an outcome's fields, and whether something is wrong.
fn outcome(mut map: Map<String, Value>, wrong: &mut bool) -> Value {
    let name = match map.remove("name") {
        Some(Value::String(name)) => name,
        _ => {
            *wrong = true;
            String::new()
        }
    };
    let odds = match map.remove("odds") {
        None | Some(Value::Null) => None,
        Some(Value::Number(odds)) => odds.as_f64(),
        Some(_) => {
            *wrong = true;
            None
        }
    };
    let is_active = match map.remove("is_active") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(is_active)) => is_active,
        Some(_) => {
            *wrong = true;
            false
        }
    };
    let mut shown = json!({"name": name, "odds": odds, "is_active": is_active});
    shown.as_object_mut().unwrap().extend(map);
    shown
}

fuzz_target!(|text: &str| {
    let (outcomes, rest) = text.split_once('\n').unwrap_or((text, "null"));
    let (groups, other) = rest.split_once('\n').unwrap_or((rest, "[]"));
    let row = (outcomes, groups);
    let (shown, problem) = oddscache::fuzzing::markets(&[row]).remove(0);
    let after_others = oddscache::fuzzing::markets(&[(other, groups), row, row]);
    for later in &after_others[1..] {
        assert_eq!(later, &(shown.clone(), problem.clone()));
    }
    let shown: Value = serde_json::from_str(&shown).expect("what is shown is JSON");
    let market = &shown["markets"][0];

    let mut wrong = false;
    let groups = match serde_json::from_str(groups) {
        Ok(Value::Null) => json!([]),
        Ok(list @ Value::Array(_)) => list,
        _ => {
            wrong = true;
            json!([])
        }
    };
    assert_eq!(market["market_groups"], groups);

    let list = match serde_json::from_str(outcomes) {
        Ok(Value::Array(list)) => list,
        _ => {
            wrong = true;
            Vec::new()
        }
    };
    let mut expected = Vec::new();
    for element in list {
        match element {
            Value::Object(map) => expected.push(outcome(map, &mut wrong)),
            _ => wrong = true,
        }
    }
    assert_eq!(market["outcomes"].as_array(), Some(&expected));
    for (shown, expected) in market["outcomes"].as_array().unwrap().iter().zip(&expected) {
        let bits = |value: &Value| value["odds"].as_f64().map(f64::to_bits);
        assert_eq!(bits(shown), bits(expected));
    }
    assert_eq!(problem.is_some(), wrong, "{problem:?}");
});
