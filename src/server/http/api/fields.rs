//! `fields=event_id,betpawa.markets.line`: some fields of an answer, cut out of its JSON.
//!
//! The JSON is our own: compact, well-formed, with each key once. So one pass over its bytes is enough. It copies the
//! wanted fields as they are: a field reads the same with or without others beside it.

/// A field that an answer may have.
#[derive(Debug)]
pub(crate) struct Field {
    name: &'static str,
    /// Whether the field maps ids to objects. Then `of` has the fields of each object.
    by_id: bool,
    /// The fields in it, or in each of its elements. Empty if the field is always written whole.
    of: &'static [Field],
}

const fn value(name: &'static str) -> Field {
    object(name, &[])
}

const fn object(name: &'static str, of: &'static [Field]) -> Field {
    Field {
        name,
        by_id: false,
        of,
    }
}

const fn by_id(name: &'static str, of: &'static [Field]) -> Field {
    Field {
        name,
        by_id: true,
        of,
    }
}

const OUTCOME: &[Field] = &[value("name"), value("odds"), value("is_active")];

const MARKET: &[Field] = &[
    value("betpawa_market_id"),
    value("betpawa_market_name"),
    value("line"),
    value("handicap_type"),
    value("handicap_home"),
    value("handicap_away"),
    object("outcomes", OUTCOME),
    value("market_groups"),
    value("unavailable_at"),
];

const SNAPSHOT: &[Field] = &[
    value("snapshot_id"),
    value("event_id"),
    value("bookmaker_id"),
    value("captured_at"),
    value("last_confirmed_at"),
    object("markets", MARKET),
];

const TOURNAMENT: &[Field] = &[value("id"), value("name"), value("country"), value("sport")];

const BOOKMAKER: &[Field] = &[value("slug"), value("name")];

/// The fields of an event with all its markets.
pub(crate) const EVENT: &[Field] = &[
    value("event_id"),
    value("kickoff"),
    value("name"),
    value("home_team"),
    value("away_team"),
    value("sportradar_id"),
    object("tournament", TOURNAMENT),
    by_id("bookmakers", BOOKMAKER),
    by_id("betpawa", SNAPSHOT),
    by_id("competitors", SNAPSHOT),
];

const INLINE_MARKET: &[Field] = &[
    value("betpawa_market_id"),
    value("betpawa_market_name"),
    value("line"),
    value("margin"),
    object("outcomes", OUTCOME),
    value("available"),
    value("unavailable_since"),
];

const OFFER: &[Field] = &[
    value("bookmaker"),
    value("bookmaker_id"),
    value("bookmaker_slug"),
    value("bookmaker_name"),
    value("last_confirmed_at"),
    object("markets", INLINE_MARKET),
];

/// The fields of an event in the event list.
pub(crate) const ENTRY: &[Field] = &[
    value("event_id"),
    value("kickoff"),
    value("name"),
    value("home_team"),
    value("away_team"),
    value("sportradar_id"),
    object("tournament", TOURNAMENT),
    object("odds", OFFER),
];

/// The wanted fields of an object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    by_id: bool,
    /// In no order. `None` for a field that is wanted whole.
    wanted: Vec<(&'static str, Option<Fields>)>,
}

impl Fields {
    /// Reads `a,b.c`, the names of fields that `shape` has. The error is a sentence.
    pub(crate) fn read(text: &str, shape: &'static [Field]) -> Result<Fields, String> {
        let mut fields = Fields::default();
        for path in text.split(',') {
            fields.add(path, shape)?;
        }
        Ok(fields)
    }

    fn add(&mut self, path: &str, shape: &'static [Field]) -> Result<(), String> {
        let (name, rest) = match path.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        let Some(field) = shape.iter().find(|field| field.name == name) else {
            let known: Vec<&str> = shape.iter().map(|field| field.name).collect();
            return Err(match known.is_empty() {
                true => "fields names a part of a field that has none".to_owned(),
                false => format!(
                    "fields names a field that does not exist; there are {}, and parts as in a.b",
                    known.join(", ")
                ),
            });
        };
        let index = self.wanted.iter().position(|(known, _)| *known == name);
        let index = index.unwrap_or_else(|| {
            let none = Fields {
                by_id: field.by_id,
                wanted: Vec::new(),
            };
            self.wanted.push((field.name, Some(none)));
            self.wanted.len() - 1
        });
        let wanted = &mut self.wanted[index].1;
        match rest {
            None => *wanted = None,
            Some(rest) => match wanted {
                Some(fields) => fields.add(rest, field.of)?,
                // The whole is wanted already. The part must exist all the same.
                None => Fields::default().add(rest, field.of)?,
            },
        }
        Ok(())
    }

    /// Whether anything of a field is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|(wanted, _)| *wanted == name)
    }

    /// Appends the wanted fields of an object. `None` if it is not JSON of ours.
    pub(crate) fn cut(&self, json: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let mut scan = Scan { json, at: 0 };
        scan.wanted(self, self.by_id, out)?;
        (scan.at == json.len()).then_some(())
    }
}

/// Goes through JSON without white space.
struct Scan<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then_some(())?;
        self.at += 1;
        Some(())
    }

    /// Passes a string and returns it with its quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek()? {
                b'"' => break,
                // An escaped quote does not end the string.
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.json.get(from..self.at)
    }

    /// Passes a value of any kind and returns it.
    fn whole(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'[' | b'{' => {
                    depth += 1;
                    self.at += 1;
                }
                b']' | b'}' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                // A number, true, false or null ends at the next separator.
                _ => {
                    let rest = self.json.get(self.at..)?;
                    let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}');
                    self.at += rest.iter().position(ends).unwrap_or(rest.len());
                }
            }
            if depth == 0 {
                return self.json.get(from..self.at);
            }
        }
    }

    /// Passes an object, or a list of objects, and appends the wanted fields.
    fn wanted(&mut self, fields: &Fields, by_id: bool, out: &mut Vec<u8>) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(fields, by_id, out),
            b'[' => {
                self.at += 1;
                out.push(b'[');
                while self.peek()? != b']' {
                    self.wanted(fields, by_id, out)?;
                    if self.peek()? == b',' {
                        self.at += 1;
                        out.push(b',');
                    }
                }
                self.at += 1;
                out.push(b']');
                Some(())
            }
            _ => {
                out.extend_from_slice(self.whole()?);
                Some(())
            }
        }
    }

    /// Passes an object and appends its wanted keys. If the keys are ids, every key is wanted.
    fn object(&mut self, fields: &Fields, by_id: bool, out: &mut Vec<u8>) -> Option<()> {
        self.expect(b'{')?;
        out.push(b'{');
        let begin = out.len();
        while self.peek()? != b'}' {
            let key = self.string()?;
            self.expect(b':')?;
            // Without the quotes; names of ours have no escapes.
            let name = key.get(1..key.len() - 1)?;
            let wanted = fields.wanted.iter();
            let mut wanted = wanted.filter(|(wanted, _)| wanted.as_bytes() == name);
            let parts = wanted.next().map(|(_, parts)| parts.as_ref());
            if by_id || parts.is_some() {
                if out.len() > begin {
                    out.push(b',');
                }
                out.extend_from_slice(key);
                out.push(b':');
            }
            match parts {
                _ if by_id => self.wanted(fields, false, out)?,
                Some(Some(parts)) => self.wanted(parts, parts.by_id, out)?,
                Some(None) => out.extend_from_slice(self.whole()?),
                None => {
                    self.whole()?;
                }
            }
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        out.push(b'}');
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A regular expression for the paths to fields of `shape`.
    fn paths(shape: &[Field]) -> String {
        let path = |field: &Field| match field.of {
            [] => field.name.to_owned(),
            of => format!("{}(\\.({}))?", field.name, paths(of)),
        };
        shape.iter().map(path).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn the_document_has_the_names_of_all_fields() {
        let document: Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        for (name, shape) in [("event_fields", EVENT), ("listed_fields", ENTRY)] {
            let schema = &document["components"]["parameters"][name]["schema"];
            let paths = paths(shape);
            assert_eq!(
                schema["pattern"],
                format!("^({paths})(,({paths}))*$"),
                "{name}"
            );
        }
    }

    /// The same in a slow and plain way.
    fn cut(value: &Value, fields: &Fields) -> Value {
        match value {
            Value::Array(all) => all.iter().map(|value| cut(value, fields)).collect(),
            Value::Object(object) if fields.by_id => {
                let parts = Fields {
                    by_id: false,
                    ..fields.clone()
                };
                let each = object
                    .iter()
                    .map(|(key, value)| (key.clone(), cut(value, &parts)));
                Value::Object(each.collect())
            }
            Value::Object(object) => {
                let wanted = fields.wanted.iter().filter_map(|(name, parts)| {
                    let value = object.get(*name)?;
                    let value = parts
                        .as_ref()
                        .map_or_else(|| value.clone(), |parts| cut(value, parts));
                    Some(((*name).to_owned(), value))
                });
                Value::Object(wanted.collect())
            }
            value => value.clone(),
        }
    }

    fn event() -> Value {
        let markets = json!([
            { "betpawa_market_id": "1", "line": null, "outcomes": [
                { "name": "a \"quoted\\ } name", "odds": 1.5, "is_active": true, "id": { "x": [1, {}] } }, {},
            ] },
            { "betpawa_market_id": "é\n", "line": -2.5, "outcomes": [], "market_groups": ["]", {"a": [[]]}] },
        ]);
        let snapshot =
            json!({ "snapshot_id": 1, "captured_at": "2026-01-31T18:00:00Z", "markets": markets });
        json!({
            "event_id": 7, "kickoff": null,
            "betpawa": { "1": snapshot, "2": { "markets": [] } },
            "competitors": { "a \"{ source": snapshot },
        })
    }

    fn names(shape: &'static [Field]) -> Vec<String> {
        let below = |field: &Field| -> Vec<String> {
            let parts = names(field.of);
            let parts = parts
                .into_iter()
                .map(|part| format!("{}.{part}", field.name));
            [field.name.to_owned()].into_iter().chain(parts).collect()
        };
        shape.iter().flat_map(below).collect()
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_cut_out(paths in proptest::collection::vec(proptest::sample::select(names(EVENT)), 1..6)) {
            let fields = Fields::read(&paths.join(","), EVENT).unwrap();
            let event = event();
            let mut out = Vec::new();
            fields.cut(event.to_string().as_bytes(), &mut out).unwrap();
            let found: Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(found, cut(&event, &fields));
        }

        /// It only ever gets our own JSON. Other text must not make it panic or loop for ever.
        #[test]
        fn other_text_is_no_trouble(text in "[\\[\\]{}\",:a\\\\1]{0,40}") {
            let fields = Fields::read("event_id,betpawa.markets", EVENT).unwrap();
            let _ = fields.cut(text.as_bytes(), &mut Vec::new());
        }
    }

    #[test]
    fn whole_events_stay_as_they_are() {
        let mut out = Vec::new();
        let fields = Fields::read(
            "event_id,kickoff,competitors,betpawa.markets,betpawa",
            EVENT,
        )
        .unwrap();
        let text = event().to_string();
        fields.cut(text.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn wrong_names_are_refused_with_the_right_ones() {
        for (text, word) in [
            ("", "event_id"),
            ("event_id,", "kickoff"),
            ("event_id.x", "has none"),
            ("betpawa.odds", "last_confirmed_at"),
            ("betpawa,betpawa.odds", "last_confirmed_at"),
            ("betpawa.markets.outcomes.id", "is_active"),
        ] {
            let sentence = Fields::read(text, EVENT).unwrap_err();
            assert!(sentence.contains(word), "{text}: {sentence}");
        }
    }
}
