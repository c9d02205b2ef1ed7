//! Writes one event of the list, byte by byte.

use std::ops::Range;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::Serialize;

use crate::model::{Bookmaker, CachedEvent, CachedMarket, CachedSnapshot, Tournament};

/// Which markets the list shows.
#[derive(Debug)]
pub(super) struct Inline {
    pub(super) betpawa_market_id: Box<str>,
    /// The line a market must have; `None` accepts any line.
    pub(super) line: Option<f64>,
}

/// The markets of one snapshot, as written in the list.
#[derive(Clone)]
pub(super) struct Fragment {
    /// The address of the packed markets, which identifies them (L1).
    markets: usize,
    /// The bytes of the markets, counted from the beginning of the event.
    at: Range<usize>,
}

/// An event as the last list wrote it.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub(super) json: &'a [u8],
    pub(super) fragments: &'a [Fragment],
}

impl Before<'_> {
    /// The bytes that the last list wrote for these markets, if it did.
    fn written(&self, markets: usize) -> Option<&[u8]> {
        let mut fragments = self.fragments.iter();
        let fragment = fragments.find(|fragment| fragment.markets == markets)?;
        self.json.get(fragment.at.clone())
    }
}

impl Inline {
    pub(super) fn heap_bytes(&self) -> usize {
        self.betpawa_market_id.len()
    }

    fn shows(&self, market: CachedMarket<'_>) -> bool {
        // Ids are short: a call of `memcmp` would take longer than this comparison.
        let id = market.betpawa_market_id();
        id.len() == self.betpawa_market_id.len()
            && id.bytes().eq(self.betpawa_market_id.bytes())
            && (self.line.is_none() || market.line() == self.line)
    }
}

/// Appends an event to `out`. Takes the snapshots for which `wanted` accepts the bookmaker and its id. `markets`
/// appends the markets of a snapshot.
pub(super) fn write_event(
    out: &mut Vec<u8>,
    event: &CachedEvent,
    wanted: impl Fn(&str, i64) -> bool,
    mut markets: impl FnMut(&mut Vec<u8>, &CachedSnapshot),
) {
    out.extend_from_slice(b"{\"event_id\":");
    json(out, &event.event_id());
    out.extend_from_slice(b",\"kickoff\":");
    write_time(out, event.kickoff());
    for (key, name) in [
        (&b",\"name\":"[..], event.name()),
        (b",\"home_team\":", event.home_team()),
        (b",\"away_team\":", event.away_team()),
        (b",\"sportradar_id\":", event.sportradar_id()),
    ] {
        out.extend_from_slice(key);
        optional(out, name);
    }
    out.extend_from_slice(b",\"tournament\":");
    match event.tournament() {
        Some(tournament) => write_tournament(out, tournament),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"odds\":[");
    let own = event
        .betpawa()
        .iter()
        .map(|(_, snapshot)| ("betpawa", snapshot));
    let competitors = event
        .competitors()
        .iter()
        .map(|(source, snapshot)| (source.as_str(), snapshot));
    let wanted = own
        .chain(competitors)
        .filter(|(bookmaker, snapshot)| wanted(bookmaker, snapshot.bookmaker_id()));
    for (index, (bookmaker, snapshot)) in wanted.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"bookmaker\":");
        text(out, bookmaker);
        out.extend_from_slice(b",\"bookmaker_id\":");
        json(out, &snapshot.bookmaker_id());
        let known = event.bookmaker(snapshot.bookmaker_id());
        out.extend_from_slice(b",\"bookmaker_slug\":");
        optional(out, known.and_then(Bookmaker::slug));
        out.extend_from_slice(b",\"bookmaker_name\":");
        optional(out, known.and_then(Bookmaker::name));
        // Times stand outside of `markets`, whose bytes are copied as long as only times change (L3).
        out.extend_from_slice(b",\"last_confirmed_at\":");
        write_time(out, Some(snapshot.last_confirmed_at()));
        out.extend_from_slice(b",\"markets\":");
        markets(out, snapshot);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn write_tournament(out: &mut Vec<u8>, tournament: &Tournament) {
    out.extend_from_slice(b"{\"id\":");
    json(out, &tournament.id());
    for (key, name) in [
        (&b",\"name\":"[..], tournament.name()),
        (b",\"country\":", tournament.country()),
        (b",\"sport\":", tournament.sport()),
    ] {
        out.extend_from_slice(key);
        optional(out, name);
    }
    out.push(b'}');
}

/// Appends an event with all its snapshots to `out`, and the place of each snapshot's markets to `fragments`. Copies
/// markets from `before` if they have not changed. Returns for how many snapshots it had to write them.
pub(super) fn write_entry(
    out: &mut Vec<u8>,
    fragments: &mut Vec<Fragment>,
    inline: &[Inline],
    event: &CachedEvent,
    before: Option<Before<'_>>,
) -> u64 {
    let start = out.len();
    let mut written = 0;
    write_event(
        out,
        event,
        |_, _| true,
        |out, snapshot| {
            let (from, markets) = (out.len(), snapshot.markets_address());
            match before.as_ref().and_then(|before| before.written(markets)) {
                Some(bytes) => out.extend_from_slice(bytes),
                // Only new packed markets are written: equal ones give equal bytes (L3).
                None => {
                    write_markets(out, inline, snapshot);
                    written += 1;
                }
            }
            fragments.push(Fragment {
                markets,
                at: from - start..out.len() - start,
            });
        },
    );
    written
}

/// Appends the list of those markets of a snapshot that `inline` selects.
pub(super) fn write_markets(out: &mut Vec<u8>, inline: &[Inline], snapshot: &CachedSnapshot) {
    out.push(b'[');
    let shown = |market: &CachedMarket<'_>| inline.iter().any(|inline| inline.shows(*market));
    for (index, market) in snapshot.markets().filter(shown).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_market(out, market);
    }
    out.push(b']');
}

fn write_market(out: &mut Vec<u8>, market: CachedMarket<'_>) {
    // All markets have the same keys, so the text around the values is constant.
    out.extend_from_slice(b"{\"betpawa_market_id\":");
    text(out, market.betpawa_market_id());
    out.extend_from_slice(b",\"betpawa_market_name\":");
    text(out, market.betpawa_market_name());
    out.extend_from_slice(b",\"line\":");
    number(out, market.line());
    out.extend_from_slice(b",\"margin\":");
    number(out, margin(market));
    out.extend_from_slice(b",\"outcomes\":[");
    for (index, outcome) in market.outcomes().enumerate() {
        out.extend_from_slice(if index > 0 {
            b",{\"name\":"
        } else {
            b"{\"name\":"
        });
        text(out, outcome.name());
        out.extend_from_slice(b",\"odds\":");
        number(out, outcome.odds());
        out.extend_from_slice(if outcome.is_active() {
            b",\"is_active\":true}"
        } else {
            b",\"is_active\":false}"
        });
    }
    let unavailable_since = market.unavailable_at();
    out.extend_from_slice(match unavailable_since {
        None => b"],\"available\":true,\"unavailable_since\":",
        Some(_) => b"],\"available\":false,\"unavailable_since\":",
    });
    write_time(out, unavailable_since);
    out.push(b'}');
}

/// The bookmaker's margin in per cent, rounded to two digits. `None` if there is no outcome, or one without odds above
/// 0.
fn margin(market: CachedMarket<'_>) -> Option<f64> {
    let mut shares = 0.0;
    for outcome in market.outcomes() {
        shares += 1.0 / outcome.odds().filter(|odds| *odds > 0.0)?;
    }
    (market.outcomes().len() > 0).then(|| ((shares - 1.0) * 10_000.0).round() / 100.0)
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Cannot fail: writing to memory never does, and numbers and texts are always valid JSON.
    let _ = serde_json::to_writer(out, value);
}

/// Writes a text as serde_json does. Nearly all texts are short and need no escape, so that case has a fast path.
fn text(out: &mut Vec<u8>, text: &str) {
    let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    // No early exit from this fold: the compiler then checks many bytes with one instruction.
    if text.bytes().fold(true, |all, byte| all & plain(byte)) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        json(out, text);
    }
}

fn optional(out: &mut Vec<u8>, name: Option<&str>) {
    match name {
        Some(name) => text(out, name),
        None => out.extend_from_slice(b"null"),
    }
}

/// Writes a number as serde_json does: with the fewest digits that read back as the same bits.
fn number(out: &mut Vec<u8>, number: Option<f64>) {
    let Some(number) = number else {
        out.extend_from_slice(b"null");
        return;
    };
    match thousandths(number) {
        Some(thousandths) => {
            // Seven digits hold the greatest possible number. Cut off leading and trailing zeros, but keep one digit on
            // either side of the point.
            let mut text = *b"0000000.000";
            digits(&mut text[..7], thousandths / 1000);
            digits(&mut text[8..], thousandths % 1000);
            let first = text[..6].iter().take_while(|digit| **digit == b'0').count();
            let zeros = text[9..]
                .iter()
                .rev()
                .take_while(|digit| **digit == b'0')
                .count();
            out.extend_from_slice(&text[first..text.len() - zeros]);
        }
        None => json(out, &number),
    }
}

/// A number in thousandths, if it is exactly that, from 0.001 to 4,294,967.295. No shorter text has the same bits: two
/// decimals of up to 15 digits never round to the same double.
fn thousandths(number: f64) -> Option<u32> {
    let scaled = (number * 1000.0).round();
    if !(1.0..=f64::from(u32::MAX)).contains(&scaled) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in range"
    )]
    let whole = scaled as u32;
    ((f64::from(whole) / 1000.0).to_bits() == number.to_bits()).then_some(whole)
}

/// Writes a time as chrono and serde do, in a fifth of the time.
fn write_time(out: &mut Vec<u8>, time: Option<DateTime<Utc>>) {
    let Some(time) = time else {
        out.extend_from_slice(b"null");
        return;
    };
    let naive = time.naive_utc();
    let (date, clock) = (naive.date(), naive.time());
    let nanos = clock.nanosecond();
    // Chrono writes other years with a sign, and other fractions with three or nine digits.
    let Some(year) = u32::try_from(date.year()).ok().filter(|year| *year <= 9999) else {
        return json(out, &time);
    };
    let micros = nanos / 1000;
    if nanos % 1000 != 0 || (micros != 0 && micros % 1000 == 0) || micros >= 1_000_000 {
        return json(out, &time);
    }
    let mut text = *b"\"0000-00-00T00:00:00.000000Z\"";
    digits(&mut text[1..5], year);
    digits(&mut text[6..8], date.month());
    digits(&mut text[9..11], date.day());
    digits(&mut text[12..14], clock.hour());
    digits(&mut text[15..17], clock.minute());
    digits(&mut text[18..20], clock.second());
    if micros == 0 {
        out.extend_from_slice(&text[..20]);
        out.extend_from_slice(b"Z\"");
    } else {
        digits(&mut text[21..27], micros);
        out.extend_from_slice(&text);
    }
}

fn digits(text: &mut [u8], mut number: u32) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_same_as_serde(time: DateTime<Utc>) {
        let mut out = Vec::new();
        write_time(&mut out, Some(time));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            serde_json::to_string(&time).unwrap()
        );
    }

    proptest! {
        #[test]
        fn times_are_written_as_serde_writes_them(
            micros in prop_oneof![
                any::<i32>().prop_map(|seconds| i64::from(seconds) * 1_000_000),
                any::<i32>().prop_map(|millis| i64::from(millis) * 1000),
                0..4_000_000_000_000_000i64,
                // Years with five digits, and years before year 0.
                -100_000_000_000_000_000..300_000_000_000_000_000i64,
            ],
            nanos in prop_oneof![9 => Just(0), 1 => 0..1000i64],
        ) {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            assert_same_as_serde(time + chrono::TimeDelta::nanoseconds(nanos));
        }
    }

    proptest! {
        #[test]
        fn numbers_and_text_are_written_as_serde_writes_them(
            odds in prop_oneof![
                any::<f64>(),
                any::<f32>().prop_map(f64::from),
                (-2_000_000_000..20_000_000_000i64).prop_map(|number| number as f64 / 1000.0),
                (-200..20_000i64).prop_map(|number| number as f64 / 100.0),
                (0..100i64).prop_map(|number| number as f64 / 10.0),
                // The neighbours of numbers that have a fast path.
                (1..4_000_000u32, -2..3i64).prop_map(|(number, steps)| {
                    f64::from_bits((f64::from(number) / 1000.0).to_bits().wrapping_add_signed(steps))
                }),
            ],
            name in any::<String>(),
            short in "[ -~]{0,20}",
        ) {
            let mut out = Vec::new();
            number(&mut out, Some(odds));
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&odds).unwrap());
            for name in [name, short] {
                let mut out = Vec::new();
                text(&mut out, &name);
                prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&name).unwrap());
            }
        }
    }

    #[test]
    fn numbers_at_the_limits_are_written_as_serde_writes_them() {
        for odds in [
            0.0,
            -0.0,
            0.0005,
            0.001,
            0.01,
            0.1,
            1.0,
            1.5,
            10.0,
            100.05,
            4_294_967.295,
            4_294_967.296,
            9_999_999.999,
            10_000_000.0,
            1e15,
            1e16,
            1e17,
            1e-5,
            1e-7,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::NAN,
            f64::INFINITY,
        ] {
            let mut out = Vec::new();
            number(&mut out, Some(odds));
            assert_eq!(
                String::from_utf8(out).unwrap(),
                serde_json::to_string(&odds).unwrap()
            );
        }
    }

    #[test]
    fn times_at_the_limits_are_written_as_serde_writes_them() {
        assert_same_as_serde(DateTime::<Utc>::MAX_UTC);
        assert_same_as_serde(DateTime::<Utc>::MIN_UTC);
        assert_same_as_serde(DateTime::UNIX_EPOCH);
    }
}
