use proptest::{collection::vec, prelude::*, sample::select};

use serde_json::Value;

use super::*;
use crate::model::Names;

/// Name, bits of the odds, `is_active`, `extra`.
pub(super) type Plain = (String, Option<u64>, bool, Option<Value>);

#[derive(Default)]
struct Buffers {
    names: NamesBuffer,
    odds: OddsBuffer,
}

impl Buffers {
    fn plain(&mut self) -> Vec<Plain> {
        let odds = self.odds.all();
        let names: Vec<_> = Names::of(self.names.text()).collect();
        assert_eq!(names.len(), odds.len());
        let plain =
            |((name, extra), (odds, is_active)): ((&str, Option<&str>), (Option<f64>, _))| {
                let extra = extra.map(|text| serde_json::from_str(text).expect("an object's text"));
                (name.to_owned(), odds.map(f64::to_bits), is_active, extra)
            };
        names.into_iter().zip(odds).map(plain).collect()
    }
}

fn read(text: &str) -> (Vec<Plain>, Option<Malformed>) {
    let mut buffers = Buffers::default();
    let problem = outcomes(Some(text), &mut buffers.names, &mut buffers.odds);
    (buffers.plain(), problem)
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
fn odds_are_appended_and_names_are_replaced() {
    let Buffers {
        mut names,
        mut odds,
    } = Buffers::default();
    let first = r#"[{"name":"1","odds":1.00001}]"#;
    assert_eq!(outcomes(Some(first), &mut names, &mut odds), None);
    for unreadable in [
        r#"[{"name":"2","odds":1.00001},{"name":"3"}"#,
        r#"[{"name":"\\","odds":1.00001},{"name":"3"}"#,
    ] {
        assert_eq!(
            outcomes(Some(unreadable), &mut names, &mut odds),
            Some(Malformed::Unreadable)
        );
        assert_eq!(Names::of(names.text()).count(), 0);
    }
    assert_eq!(outcomes(None, &mut names, &mut odds), Some(Malformed::Null));
    assert_eq!(odds.all(), [(Some(1.00001), true)]);
    let last = r#"[{"name":"4","odds":1.00002}]"#;
    assert_eq!(outcomes(Some(last), &mut names, &mut odds), None);
    assert_eq!(odds.all(), [(Some(1.00001), true), (Some(1.00002), true)]);
    assert_eq!(Names::of(names.text()).next(), Some(("4", None)));
}

#[test]
fn missing_or_null_odds_mean_none_and_is_active_means_active() {
    for text in [
        r#"[{"name":"1"}]"#,
        r#"[{"name":"1","odds":null,"is_active":null}]"#,
    ] {
        assert_eq!(one(text), (("1".to_owned(), None, true, None), None));
    }
}

#[test]
fn every_kind_of_malformed_is_named_and_the_rest_is_read() {
    let mut buffers = Buffers::default();
    assert_eq!(
        outcomes(None, &mut buffers.names, &mut buffers.odds),
        Some(Malformed::Null)
    );
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
    // With its feature arbitrary_precision, serde_json keeps such a number as text, even under an unknown key.
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
    // A wrong `is_active` reads as inactive: nobody should bet on a guess.
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
fn the_first_of_several_problems_is_reported() {
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
fn the_last_of_repeated_keys_counts() {
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
fn deeply_nested_junk_does_no_harm() {
    for depth in [100, 10_000] {
        let junk = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        read(&junk);
        read(&format!("[{junk}]"));
        for key in ["name", "odds", "is_active", "more"] {
            read(&format!(r#"[{{"{key}":{junk}}}]"#));
        }
    }
}

/// What this module promises, written a second time over `serde_json::Value`.
pub(super) fn reference(value: &Value) -> (Vec<Plain>, Option<Malformed>) {
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

pub(super) fn any_value() -> impl Strategy<Value = Value> {
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
    fn survives_any_damage(
        value in vec(any_outcome(), 0..3).prop_map(Value::from),
        at in any::<prop::sample::Index>(),
        with in any::<char>(),
    ) {
        let text = value.to_string();
        let mut damaged: Vec<char> = text.chars().collect();
        let at = at.index(damaged.len());
        damaged[at] = with;
        let damaged: String = damaged.into_iter().collect();
        // If the damaged text is still JSON, this module must read it as the reference does.
        match serde_json::from_str::<Value>(&damaged) {
            Ok(value) => prop_assert_eq!(read(&damaged).0, reference(&value).0),
            Err(_) => prop_assert!(read(&damaged).1.is_some()),
        }
    }
}

/// What `full` reads.
fn read_in_full(text: &str) -> (Vec<Plain>, Option<Malformed>) {
    let mut buffers = Buffers::default();
    let problem = full::outcomes(text, &mut buffers.names, &mut buffers.odds);
    (buffers.plain(), problem)
}

/// Checks S1 and S2 for both fast readers. Returns which of them accepted the text. `other` holds names that the text
/// need not have.
fn agree(text: &str, other: &str) -> (bool, bool) {
    let (found, problem) = read_in_full(text);
    let before = (Some(2.000_01), false);
    let with_odds_before = || {
        let mut buffers = Buffers::default();
        buffers.odds.push(before.0, before.1);
        buffers
    };

    let mut buffers = with_odds_before();
    let usual = fast::usual(text, &mut buffers.names, &mut buffers.odds);
    if usual {
        assert_eq!(problem, None, "{text}");
        let mut all = buffers.odds.all();
        assert_eq!(all.remove(0), before);
        let mut alone = Buffers {
            names: buffers.names,
            ..Buffers::default()
        };
        all.iter()
            .for_each(|(odds, is_active)| alone.odds.push(*odds, *is_active));
        assert_eq!(alone.plain(), found, "{text}");
    } else {
        assert_eq!(buffers.odds.all(), [before], "{text}");
        assert_eq!(Names::of(buffers.names.text()).count(), 0, "{text}");
    }

    let mut own = NamesBuffer::default();
    for (name, _, _, extra) in &found {
        own.push(name, extra.as_ref().map(Value::to_string).as_deref());
    }
    let own = own.text();
    let mut accepted = false;
    for names in [own, other] {
        let mut buffers = with_odds_before();
        let expected = fast::expected(text, Names::of(names), &mut buffers.odds);
        if expected {
            assert_eq!((names, problem), (own, None), "{text}");
            let odds: Vec<_> = found
                .iter()
                .map(|(_, odds, is_active, _)| (*odds, *is_active))
                .collect();
            let read: Vec<_> = buffers
                .odds
                .all()
                .into_iter()
                .map(|(odds, is_active)| (odds.map(f64::to_bits), is_active))
                .collect();
            assert_eq!(read[1..], odds, "{text}");
        } else {
            assert_eq!(buffers.odds.all(), [before], "{text}");
        }
        accepted |= expected;
    }
    (usual, accepted)
}

#[test]
fn the_usual_forms_are_accepted() {
    let python = r#"[{"name": "1", "odds": 1.85, "is_active": true}, {"name": "Ö'Brien (-0.5)", "odds": 12, "is_active": false}]"#;
    assert_eq!(agree(python, ""), (true, true));
    assert_eq!(agree("[]", ""), (true, true));
    for text in [
        r#"[{"name":"1","odds":1.85,"is_active":true}]"#,
        "\t[ {\n\"is_active\" : null , \"odds\":null,\r\n\"name\":\"\" } ] ",
        r#"[{"name": "1"}, {"name": "2", "odds": 999999999999999}, {"odds": 0.00000000000001, "name": "X"}]"#,
        r#"[{"name": "1", "odds": 1073741.823}, {"name": "2", "odds": 1073741.824}, {"name": "2", "odds": 0.000}]"#,
    ] {
        assert_eq!(agree(text, ""), (true, false), "{text}");
    }
}

/// The fast readers leave everything unusual to `serde_json`.
#[test]
fn unusual_texts_are_refused() {
    let element = |fields: &str| format!("[{{{fields}}}]");
    for fields in [
        "",
        r#""name": "1", "odds": -1.5"#,
        r#""name": "1", "odds": -0"#,
        r#""name": "1", "odds": 01"#,
        r#""name": "1", "odds": 1."#,
        r#""name": "1", "odds": .5"#,
        r#""name": "1", "odds": 1e0"#,
        r#""name": "1", "odds": 1.5E+1"#,
        r#""name": "1", "odds": 1234567890123456"#,
        r#""name": "1", "odds": 1.000000000000000"#,
        r#""name": "1", "odds": "1.5""#,
        r#""name": "1", "odds": 1.5, "odds": 1.5"#,
        r#""name": "1", "name": "1""#,
        r#""name": "1", "is_active": true, "is_active": true"#,
        r#""name": "1", "more": 1"#,
        r#""name": "1", "is_active": 1"#,
        r#""name": "1", "is_active": truer"#,
        r#""name": "\\n""#,
        r#""n\u0061me": "1""#,
        "\"name\": \"\n\"",
        "\"name\": \"\0\"",
        r#""name": 1"#,
        r#""name": null"#,
        r#""odds": 1.5"#,
        r#""name": "1","#,
        r#""name" "1""#,
        r#""name": "1" "odds": 1"#,
        "\"name\":\u{a0}\"1\"",
    ] {
        assert_eq!(agree(&element(fields), "p"), (false, false), "{fields}");
    }
    let outcome = r#"{"name": "1", "odds": 1.5, "is_active": true}"#;
    for text in [
        "".to_owned(),
        " ".to_owned(),
        "[".to_owned(),
        "null".to_owned(),
        outcome.to_owned(),
        format!("[{outcome}"),
        format!("[{outcome},]"),
        format!("[{outcome}]]"),
        format!("[{outcome}] x"),
        format!("[{outcome} {outcome}]"),
        format!("[[{outcome}]]"),
        format!("[1, {outcome}]"),
        format!("\u{feff}[{outcome}]"),
    ] {
        assert_eq!(agree(&text, "p"), (false, false), "{text}");
    }
    // An expected name that contains the end of the real name and all that follows it.
    let mut sly = NamesBuffer::default();
    sly.push(r#"1", "odds": 1.5, "is_active": true}, {"name": "2"#, None);
    let two = r#"[{"name": "1", "odds": 1.5, "is_active": true}, {"name": "2", "odds": 1.5, "is_active": true}]"#;
    assert_eq!(agree(two, sly.text()), (true, true));
    let mut first = NamesBuffer::default();
    first.push("1", None);
    assert_eq!(agree(two, first.text()), (true, true));
}

/// Texts that are, or nearly are, JSON lists of outcomes, in many spellings.
pub(super) fn any_text() -> impl Strategy<Value = String> {
    let space = || select(vec!["", " ", " ", "\n\t", "\r"]);
    let number = prop_oneof![
        4 => (0..100_000u32).prop_map(|hundredths| format!("{}.{:02}", hundredths / 100, hundredths % 100)),
        4 => "(0|[1-9][0-9]{0,9})(\\.[0-9]{1,8})?",
        2 => any::<f64>().prop_map(|number| Value::from(number).to_string()),
        1 => "-?[0-9]{1,25}(\\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?",
    ];
    let value = prop_oneof![
        6 => number,
        4 => "[a-zA-Z0-9 .'éß😀{}\\[\\],:-]{0,8}".prop_map(|name| format!("\"{name}\"")),
        1 => ".{0,6}".prop_map(|name| Value::from(name).to_string()),
        4 => select(vec!["true", "false", "null"]).prop_map(str::to_owned),
        1 => select(vec!["[]", "{}", "[1]", "{\"a\": 1}", "\"\\u0041\"", "\"\\ud83d\\ude00\"", "\"\\ud800\"", "1e999", "-0", "nul"]).prop_map(str::to_owned),
    ];
    let key = prop_oneof![20 => select(vec!["name", "odds", "is_active"]), 1 => select(vec!["more", "Name", "n\\u0061me", ""])];
    let entry = (key, space(), space(), value)
        .prop_map(|(key, a, b, value)| format!("\"{key}\"{a}:{b}{value}"));
    let usual = ("[a-zA-Z .é]{0,8}", 0..5000u32, any::<bool>(), 0..3usize).prop_map(
        |(name, odds, is_active, form)| {
            let odds = f64::from(odds) / 100.0;
            match form {
                0 => format!(
                    "{{\"name\": \"{name}\", \"odds\": {odds}, \"is_active\": {is_active}}}"
                ),
                1 => format!("{{\"name\":\"{name}\",\"odds\":{odds},\"is_active\":{is_active}}}"),
                _ => format!(
                    "{{ \"is_active\": {is_active}, \"odds\": {odds}, \"name\": \"{name}\" }}"
                ),
            }
        },
    );
    let junk = (vec(entry, 0..5), space())
        .prop_map(|(entries, space)| format!("{{{space}{}}}", entries.join(",")));
    let element = prop_oneof![6 => usual, 3 => junk, 1 => select(vec!["1", "null", "[]", ""]).prop_map(str::to_owned)];
    (space(), vec(element, 0..5), space(), space()).prop_map(|(a, list, b, c)| {
        format!(
            "{a}[{}{b}]{c}",
            list.join(if b.is_empty() { ", " } else { "," })
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn fast_readers_agree_with_serde(text in any_text(), other in any_text()) {
        // Names of another text, for the reader that is told what to expect.
        let mut other_names = Buffers::default();
        outcomes(Some(&other), &mut other_names.names, &mut other_names.odds);
        let other_names = other_names.names.text();
        agree(&text, other_names);
        agree(&other, other_names);
    }

    #[test]
    fn fast_readers_agree_with_serde_on_damage(
        text in any_text(),
        at in any::<prop::sample::Index>(),
        with in prop_oneof![
            any::<char>(),
            "[\"\\\\{}\\[\\],:0-9.eE -]".prop_map(|text| text.chars().next().unwrap_or(' ')),
        ],
        kind in 0..3,
    ) {
        let mut damaged: Vec<char> = text.chars().collect();
        let at = at.index(damaged.len());
        match kind {
            0 => damaged[at] = with,
            1 => damaged.insert(at, with),
            _ => { damaged.remove(at); }
        }
        let damaged: String = damaged.into_iter().collect();
        let mut names = Buffers::default();
        outcomes(Some(&text), &mut names.names, &mut names.odds);
        agree(&damaged, names.names.text());
    }

    #[test]
    fn all_short_decimals_are_read_bit_for_bit(digits in 0..1_000_000_000_000_000u64, decimals in 0..15usize) {
        let digits = format!("{digits:0width$}", width = decimals + 1);
        let (whole, rest) = digits.split_at(digits.len() - decimals);
        let point = if rest.is_empty() { "" } else { "." };
        let number = format!("{whole}{point}{rest}");
        let text = format!("[{{\"name\": \"\", \"odds\": {number}, \"is_active\": true}}]");
        let short = digits.len() <= 15 ;
        prop_assert_eq!(agree(&text, ""), (short, short));
        let odds: f64 = number.parse().expect("a number");
        prop_assert_eq!(read(&text).0[0].1, Some(odds.to_bits()));
    }
}
