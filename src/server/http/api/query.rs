//! The query of a request. An unknown parameter, one given twice or a wrong value gets 400, with a sentence that says
//! what to do.

use std::time::Duration;

use axum::{extract::Query, http::Uri};
use chrono::{DateTime, Utc};
use oddscache::{CachedEvent, View};

use super::{
    fields::{Field, Fields},
    ids,
};
use crate::server::http::problem::Refusal;

/// The default of `timeout`, and its maximum.
const WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The maximum of `limit`, for events and for snapshots.
const MOST: usize = 1_000;

/// How many characters of a wrong name or value an error quotes.
const MOST_QUOTED: usize = 40;

/// The parameters that a path knows.
pub(crate) type Names = &'static [&'static str];

/// The parameters of the dump.
pub(crate) const DUMP: Names = &["max_age", "wait_for", "timeout"];
/// The parameters of one event.
pub(crate) const EVENT: Names = &[
    "max_age",
    "wait_for",
    "timeout",
    "bookmaker",
    "source",
    "fields",
];
/// The parameters of a list of events.
pub(crate) const EVENTS: Names = &[
    "ids",
    "from",
    "to",
    "limit",
    "after",
    "bookmaker",
    "source",
    "fields",
    "max_age",
    "wait_for",
    "timeout",
];
/// The parameters of the history of a market.
pub(crate) const HISTORY: Names = &[
    "market",
    "line",
    "bookmaker",
    "source",
    "from",
    "to",
    "limit",
];
/// The parameters of a stream of changes.
pub(crate) const CHANGES: Names = &["odds"];

/// What a request wants.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) freshness: Freshness,
    pub(crate) range: Range,
    /// The bookmaker or source, if not all.
    pub(crate) only: Option<Only>,
    /// The fields of each event, if not all.
    pub(crate) fields: Option<Fields>,
    /// Whether changes come with the new odds.
    pub(crate) odds: bool,
    /// The `betpawa_market_id` of a history.
    pub(crate) market: Option<String>,
    /// The line of a history.
    pub(crate) line: Option<f64>,
}

/// How fresh the view of an answer must be.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    /// A transaction that the view must contain: read-your-writes.
    pub(crate) wait_for: Option<u64>,
    /// How long to wait for it.
    timeout: Option<Duration>,
    /// The greatest age that the view may have.
    pub(crate) max_age: Option<Duration>,
}

impl Freshness {
    /// How long to wait, at most.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(WAIT)
    }

    /// Whether a view is young enough.
    pub(crate) fn allows(&self, view: &View) -> bool {
        self.max_age.is_none_or(|max_age| view.age() <= max_age)
    }
}

/// Which events are wanted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Range {
    /// Ascending, each once.
    pub(crate) ids: Option<Vec<i64>>,
    /// Kickoffs at or after this.
    pub(crate) from: Option<DateTime<Utc>>,
    /// Kickoffs before this.
    pub(crate) to: Option<DateTime<Utc>>,
    /// Events after this place in the list.
    pub(crate) after: Option<Place>,
    /// At most so many events.
    pub(crate) limit: Option<usize>,
}

/// The place of an event in a list: by kickoff, then id. Other events that come and go do not change it.
pub(crate) type Place = (Option<DateTime<Utc>>, i64);

/// A place as text, for clients to send back.
pub(crate) fn cursor((kickoff, event_id): Place) -> String {
    match kickoff {
        Some(kickoff) => format!("{}.{event_id}", kickoff.timestamp_micros()),
        None => format!("none.{event_id}"),
    }
}

fn place(cursor: &str) -> Option<Place> {
    let (kickoff, event_id) = cursor.split_once('.')?;
    // A place beyond all events is a place, too.
    let number = |text: &str| {
        let beyond = if text.starts_with('-') {
            i64::MIN
        } else {
            i64::MAX
        };
        ids::is_number(text).then(|| text.parse().unwrap_or(beyond))
    };
    let kickoff = match kickoff {
        "none" => None,
        micros => Some(number(micros).map(|micros| {
            let (earliest, latest) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
            let beyond = if micros < 0 { earliest } else { latest };
            DateTime::from_timestamp_micros(micros).unwrap_or(beyond)
        })?),
    };
    Some((kickoff, number(event_id)?))
}

/// Whose snapshots are wanted: those that both fields allow.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Only {
    /// One bookmaker of `odds_snapshots`.
    bookmaker: Option<i64>,
    /// `betpawa` for all of those, or a competitor.
    source: Option<String>,
}

/// The source that stands for the snapshots of `odds_snapshots`.
const OWN: &str = "betpawa";

impl Only {
    /// Only the snapshots of one bookmaker of `odds_snapshots`.
    #[cfg(test)]
    pub(crate) fn bookmaker(id: i64) -> Only {
        Only {
            bookmaker: Some(id),
            source: None,
        }
    }

    /// Only the snapshots of one source.
    #[cfg(test)]
    pub(crate) fn source(name: &str) -> Only {
        Only {
            bookmaker: None,
            source: Some(name.to_owned()),
        }
    }

    /// The bookmaker, and the source.
    pub(crate) fn names(self) -> (Option<i64>, Option<String>) {
        (self.bookmaker, self.source)
    }

    /// Whether it wants the snapshot of this bookmaker in `odds_snapshots`.
    pub(crate) fn wants_own(&self, bookmaker_id: i64) -> bool {
        self.bookmaker.is_none_or(|wanted| wanted == bookmaker_id)
            && self.source.as_ref().is_none_or(|wanted| wanted == OWN)
    }

    /// Whether it wants the snapshot of this competitor.
    pub(crate) fn wants_competitor(&self, source: &str) -> bool {
        self.bookmaker.is_none() && self.source.as_ref().is_none_or(|wanted| wanted == source)
    }

    /// Whether it wants the snapshot with these names in the event list.
    pub(crate) fn wants(&self, bookmaker: &str, bookmaker_id: i64) -> bool {
        match bookmaker {
            OWN => self.wants_own(bookmaker_id),
            source => self.wants_competitor(source),
        }
    }

    /// Whether an event has a wanted snapshot.
    pub(crate) fn is_in(&self, event: &CachedEvent) -> bool {
        event.betpawa().iter().any(|(id, _)| self.wants_own(id))
            || event
                .competitors()
                .iter()
                .any(|(source, _)| self.wants_competitor(source.as_str()))
    }
}

impl Parameters {
    /// Whether the request wants everything of all events.
    pub(crate) fn is_everything(&self) -> bool {
        self.range == Range::default() && self.only.is_none() && self.fields.is_none()
    }

    /// Reads the query of `uri`. It may have the parameters `names`. The parameter `fields` may name fields of `shape`.
    pub(crate) fn read(
        uri: &Uri,
        names: Names,
        shape: &'static [Field],
    ) -> Result<Parameters, Refusal> {
        Parameters::parse(uri, names, shape).map_err(Refusal)
    }

    fn parse(uri: &Uri, names: Names, shape: &'static [Field]) -> Result<Parameters, String> {
        let mut parameters = Parameters::default();
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in pairs(uri)? {
            let Some(name) = names.iter().find(|known| **known == name) else {
                let known = names.join(", ");
                let name = quoted(&name);
                return Err(format!(
                    "there is no parameter {name} here; there are {known}"
                ));
            };
            if seen.contains(name) {
                return Err(format!("{name} is given twice"));
            }
            seen.push(name);
            parameters.set(name, &value, shape)?;
        }
        Ok(parameters)
    }

    fn set(
        &mut self,
        name: &'static str,
        value: &str,
        shape: &'static [Field],
    ) -> Result<(), String> {
        let wrong = |how: &str| Err(format!("{name} is {how}, not {}", quoted(value)));
        match name {
            "ids" => self.range.ids = Some(ids::parse(value)?),
            "from" | "to" => match DateTime::parse_from_rfc3339(value) {
                Ok(time) if name == "from" => self.range.from = Some(time.to_utc()),
                Ok(time) => self.range.to = Some(time.to_utc()),
                Err(_) => {
                    return wrong("a time such as 2026-01-31T18:00:00Z (write a + as %2B)");
                }
            },
            "limit" => match value.parse() {
                Ok(limit @ 1..=MOST) => self.range.limit = Some(limit),
                _ => return wrong(&format!("a number from 1 to {MOST}")),
            },
            "after" => match place(value) {
                Some(place) => self.range.after = Some(place),
                None => return wrong("the header oddscache-next of the answer before"),
            },
            "bookmaker" => match value.parse() {
                Ok(id) => self.only.get_or_insert_default().bookmaker = Some(id),
                Err(_) => return wrong("a bookmaker's id, a whole number"),
            },
            "market" if value.is_empty() => return wrong("a betpawa_market_id, such as 3743"),
            "market" => self.market = Some(value.to_owned()),
            "line" => match number(value) {
                Some(line) => self.line = Some(line),
                None => return wrong("a number, such as 2.5"),
            },
            "source" if value.is_empty() => return wrong("betpawa, or a competitor's name"),
            "source" => self.only.get_or_insert_default().source = Some(value.to_owned()),
            "fields" => self.fields = Some(Fields::read(value, shape)?),
            "odds" => match value {
                "true" => self.odds = true,
                "false" => self.odds = false,
                _ => return wrong("true or false"),
            },
            "wait_for" => match value.parse() {
                Ok(xid) => self.freshness.wait_for = Some(xid),
                Err(_) => return wrong("a whole number, as pg_current_xact_id() returns it"),
            },
            "max_age" => match duration(value) {
                Some(time) => self.freshness.max_age = Some(time),
                None => return wrong("a time with its unit, such as 500ms or 1m30s"),
            },
            "timeout" => match duration(value) {
                Some(time) if time <= LONGEST_WAIT => self.freshness.timeout = Some(time),
                Some(_) => return Err(format!("timeout is at most {} s", LONGEST_WAIT.as_secs())),
                None => return wrong("a time with its unit, such as 500ms or 2s"),
            },
            name => return Err(format!("{name} means nothing here")),
        }
        Ok(())
    }
}

/// A number of digits.
fn number(text: &str) -> Option<f64> {
    // `parse` also takes `inf`.
    let digits = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    let number = text.bytes().all(digits).then(|| text.parse().ok());
    number.flatten()
}

/// `1m30s`: up to four numbers of up to nine digits, each with a unit.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        // Nine digits fit, also in milliseconds.
        sum += Duration::from_millis(number.parse::<u64>().ok()? * millis);
        rest = after;
        if rest.is_empty() {
            return Some(sum);
        }
    }
    None
}

/// Names and values, decoded.
fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, String> {
    match Query::try_from_uri(uri) {
        Ok(Query(pairs)) => Ok(pairs),
        Err(error) => Err(error.body_text()),
    }
}

/// Path and query of the same request for the events after `cursor`, without `wait_for`: it need not wait again.
pub(crate) fn next_page(uri: &Uri, cursor: &str) -> String {
    let raw = uri.query().unwrap_or_default().split('&');
    let raw = raw.filter(|pair| !pair.is_empty());
    // The same pairs, decoded.
    let names = pairs(uri).unwrap_or_default();
    let kept = raw.zip(&names).filter(|(_, (name, _))| {
        let once = ["after", "wait_for", "timeout"];
        !once.contains(&name.as_str())
    });
    let mut next = format!("{}?", uri.path());
    for (pair, _) in kept {
        next.push_str(pair);
        next.push('&');
    }
    next.push_str("after=");
    next.push_str(cursor);
    next
}

/// The beginning of a client's text, quoted.
fn quoted(text: &str) -> String {
    let mut beginning: String = text.chars().take(MOST_QUOTED).collect();
    if beginning.len() < text.len() {
        beginning.push_str("...");
    }
    format!("{beginning:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::http::api::fields;

    fn read(query: &str) -> Result<Parameters, String> {
        let uri = format!("/v1/events?{query}").parse().expect("a URI");
        Parameters::parse(&uri, EVENTS, fields::EVENT)
    }

    #[test]
    fn a_query_is_read() {
        let parameters = read(
            "ids=3,1&from=2026-01-31T18:00:00Z&to=2026-01-31T20:00:00%2B01:00&limit=2&after=5.-7&source=bet9ja\
             &max_age=2s&wait_for=9&timeout=1s&fields=event_id",
        )
        .unwrap();
        let range = &parameters.range;
        assert_eq!(range.ids, Some(vec![1, 3]));
        assert_eq!(
            range.to.unwrap() - range.from.unwrap(),
            chrono::TimeDelta::hours(1)
        );
        assert_eq!(range.limit, Some(2));
        let five = DateTime::from_timestamp_micros(5).unwrap();
        assert_eq!(range.after, Some((Some(five), -7)));
        assert_eq!(parameters.only, Some(Only::source("bet9ja")));
        assert_eq!(parameters.freshness.wait_for, Some(9));
        assert_eq!(parameters.freshness.timeout(), Duration::from_secs(1));
        assert_eq!(parameters.freshness.max_age, Some(Duration::from_secs(2)));
        assert!(parameters.fields.is_some() && !parameters.odds);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (query, word) in [
            ("id=1", "no parameter \"id\""),
            ("odds=true", "no parameter"),
            ("limit=1&limit=1", "twice"),
            ("limit=0", "1 to 1000"),
            ("limit=1001", "1 to 1000"),
            ("limit=", "1 to 1000"),
            ("from=today", "a time such as"),
            ("from=2026-01-31T18:00:00+01:00", "%2B"),
            ("after=x", "oddscache-next"),
            ("after=99999999999999999999.1", "oddscache-next"),
            ("after=+1.1", "oddscache-next"),
            ("bookmaker=x", "bookmaker's id"),
            ("source=", "competitor's name"),
            ("fields=x", "event_id"),
            ("max_age=5", "unit"),
            ("timeout=0", "unit"),
            ("max_age=1%20s", "unit"),
            ("max_age=1s1s1s1s1s", "unit"),
            ("max_age=1000000000ms", "unit"),
            ("timeout=1h", "at most 30 s"),
            ("wait_for=-1", "pg_current_xact_id"),
            ("ids=1,x", "whole numbers"),
        ] {
            let sentence = read(query).unwrap_err();
            assert!(sentence.contains(word), "{query}: {sentence}");
        }
        let read = |query: &str| {
            let uri = format!("/v1/events/1/history?{query}").parse();
            Parameters::parse(&uri.expect("a URI"), HISTORY, &[])
        };
        for query in [
            "market=",
            "line=",
            "line=inf",
            "line=nan",
            "line=1x",
            "odds=true",
        ] {
            assert!(read(query).is_err(), "{query}");
        }
        assert_eq!(read("line=-0.25&market=5").unwrap().line, Some(-0.25));
    }

    /// A generator of clients knows each parameter by itself. So no two values that are fine alone are refused together.
    #[test]
    fn parameters_that_exclude_each_other_match_nothing() {
        let only = |query| read(query).unwrap().only.unwrap();
        let both = only("bookmaker=1&source=betpawa");
        assert!(both.wants_own(1) && !both.wants_own(2) && !both.wants_competitor("betpawa"));
        let neither = only("source=bet9ja&bookmaker=1");
        assert!(!neither.wants_own(1) && !neither.wants_competitor("bet9ja"));
        assert!(read("from=2026-01-31T18:00:00Z&to=2026-01-31T17:00:00Z").is_ok());
    }

    #[test]
    fn places_beyond_all_events_are_places() {
        let far = |cursor| place(cursor).unwrap();
        let latest = Some(DateTime::<Utc>::MAX_UTC);
        assert_eq!(
            far("9223372036854775807.9999999999999999999"),
            (latest, i64::MAX)
        );
        assert_eq!(far("none.-9999999999999999999"), (None, i64::MIN));
    }

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn the_next_page_asks_for_the_same() {
        let uri = "/v1/list?limit=2&&%61fter=4.4&fields=event_id%2Ckickoff&wait_for=7"
            .parse()
            .unwrap();
        assert_eq!(
            next_page(&uri, "5.6"),
            "/v1/list?limit=2&fields=event_id%2Ckickoff&after=5.6"
        );
        assert_eq!(
            next_page(&"/v1/list".parse().unwrap(), "5.6"),
            "/v1/list?after=5.6"
        );
    }

    proptest! {
        #[test]
        fn a_cursor_names_its_place(
            micros in proptest::option::of(-8_000_000_000_000_000_000..8_000_000_000_000_000_000i64),
            id: i64,
        ) {
            let kickoff = micros.map(|micros| DateTime::from_timestamp_micros(micros).unwrap());
            prop_assert_eq!(place(&cursor((kickoff, id))), Some((kickoff, id)));
        }

        /// No query makes it panic, and each refusal is a sentence of a bearable length.
        #[test]
        fn any_query_is_read_or_refused_with_a_sentence(
            pairs in proptest::collection::vec((
                prop_oneof![
                    5 => proptest::sample::select(EVENTS),
                    1 => proptest::sample::select(vec!["odds", "market", "line", "%61fter", ""]),
                ],
                prop_oneof![
                    "[0-9a-zA-Z.,:+%_-]{0,12}",
                    "[!$'()*+,./0-9:;=?@A-Z\\[\\]_a-z~|{}%\"-]{0,200}",
                    "(-?[0-9]{1,20}|none)\\.-?[0-9]{1,20}",
                    "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|%2B[0-9]{2}:00)",
                    "(event_id|kickoff|betpawa|competitors|markets|outcomes|odds|\\.|,|%2C){0,9}",
                    "[0-9]{1,20}(ms|s|m|h|y|years)?",
                ],
            ), 0..6),
            names in proptest::sample::select(vec![DUMP, EVENT, EVENTS, CHANGES, HISTORY]),
        ) {
            let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let Ok(uri) = format!("/v1/x?{}", query.join("&")).parse::<Uri>() else { return Ok(()) };
            match Parameters::parse(&uri, names, fields::EVENT) {
                Ok(_) => {
                    let next = next_page(&uri, "1.2").parse::<Uri>();
                    prop_assert!(next.is_ok(), "{next:?}");
                }
                Err(sentence) => prop_assert!((10..1000).contains(&sentence.len()), "{sentence}"),
            }
        }
    }
}
