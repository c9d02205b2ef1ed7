//! Reads the form that nearly every `outcomes` has, without `serde`: a list of flat objects with the three known keys.
//!
//! A text with anything unusual is refused and left to [`full`](super::full).
//!
//! # Invariants
//! - S1: An accepted text is valid JSON that `full` would read the same, odds bit for bit, with no problem.
//! - S2: A refused text changes nothing.

use crate::model::{MOST_THOUSANDTHS, Names, NamesBuffer, OddsBuffer, same_bytes};

/// Reads a text with exactly these names, spaced as `jsonb` and Python write it. It knows how long each name is, so it
/// searches for no quote. This is the usual case when odds change, so a cache spends most of its time here.
pub(super) fn expected(text: &str, names: Names<'_>, odds: &mut OddsBuffer) -> bool {
    let mark = odds.mark();
    let accepted = names.plain() && read_expected(text.as_bytes(), names, odds).is_some();
    if !accepted {
        odds.truncate(mark);
    }
    accepted
}

fn read_expected(text: &[u8], mut names: Names<'_>, odds: &mut OddsBuffer) -> Option<()> {
    let mut rest = text.strip_prefix(b"[")?;
    let mut first = true;
    while let Some(name) = names.next_plain() {
        if !first {
            rest = rest.strip_prefix(b", ")?;
        }
        first = false;
        rest = rest.strip_prefix(b"{\"name\": \"")?;
        // Comparing raw bytes suffices: a plain name contains neither quotes nor escapes (S1).
        let (found, after) = rest.split_at_checked(name.len())?;
        if !same_bytes(found, name) {
            return None;
        }
        rest = after.strip_prefix(b"\", \"odds\": ")?;
        let (number, after) = number(rest)?;
        rest = after.strip_prefix(b", \"is_active\": ")?;
        let is_active = match rest.strip_prefix(b"true}") {
            Some(after) => {
                rest = after;
                true
            }
            None => {
                rest = rest.strip_prefix(b"false}")?;
                false
            }
        };
        number.push(odds, is_active);
    }
    (rest == b"]").then_some(())
}

/// Reads a text with the known keys in any order and with any white space.
pub(super) fn usual(text: &str, names: &mut NamesBuffer, odds: &mut OddsBuffer) -> bool {
    let mark = odds.mark();
    let accepted = read_usual(text, names, odds).is_some();
    if !accepted {
        odds.truncate(mark);
        names.clear();
    }
    accepted
}

fn read_usual(text: &str, names: &mut NamesBuffer, odds: &mut OddsBuffer) -> Option<()> {
    let mut rest = trimmed(text.as_bytes()).strip_prefix(b"[")?;
    rest = trimmed(rest);
    if let Some(after) = rest.strip_prefix(b"]") {
        return trimmed(after).is_empty().then_some(());
    }
    loop {
        rest = outcome(text, rest, names, odds)?;
        rest = trimmed(rest);
        match rest.split_first()? {
            (b',', after) => rest = trimmed(after),
            (b']', after) => return trimmed(after).is_empty().then_some(()),
            _ => return None,
        }
    }
}

/// Reads one object at the beginning of `rest`, which is the tail of `text`. Returns what follows the object.
fn outcome<'a>(
    text: &'a str,
    rest: &'a [u8],
    names: &mut NamesBuffer,
    odds: &mut OddsBuffer,
) -> Option<&'a [u8]> {
    let mut rest = trimmed(rest.strip_prefix(b"{")?);
    let (mut name, mut number_read, mut is_active) = (None, None, None);
    loop {
        if let Some(after) = rest.strip_prefix(b"\"name\"") {
            let value = value(after)?.strip_prefix(b"\"")?;
            // Both are tails of the same text, so their lengths give the position.
            let length = plain_length(value)?;
            let start = text.len() - value.len();
            rest = value.get(length + 1..)?;
            // A repeated key is unusual.
            if name.replace(text.get(start..start + length)?).is_some() {
                return None;
            }
        } else if let Some(after) = rest.strip_prefix(b"\"odds\"") {
            let value = value(after)?;
            let read;
            (read, rest) = match value.strip_prefix(b"null") {
                Some(after) => (Number::None, after),
                None => number(value)?,
            };
            if number_read.replace(read).is_some() {
                return None;
            }
        } else {
            let value = value(rest.strip_prefix(b"\"is_active\"")?)?;
            let read;
            (read, rest) = if let Some(after) = value.strip_prefix(b"true") {
                (true, after)
            } else if let Some(after) = value.strip_prefix(b"false") {
                (false, after)
            } else {
                // Null means the same as a missing key.
                (true, value.strip_prefix(b"null")?)
            };
            if is_active.replace(read).is_some() {
                return None;
            }
        }
        rest = trimmed(rest);
        match rest.split_first()? {
            (b',', after) => rest = trimmed(after),
            (b'}', after) => {
                names.push_plain(name?);
                let number = number_read.unwrap_or(Number::None);
                number.push(odds, is_active.unwrap_or(true));
                return Some(after);
            }
            _ => return None,
        }
    }
}

/// The value after a key: skips the colon and white space.
fn value(rest: &[u8]) -> Option<&[u8]> {
    Some(trimmed(trimmed(rest).strip_prefix(b":")?))
}

fn trimmed(mut rest: &[u8]) -> &[u8] {
    while let [b' ' | b'\n' | b'\r' | b'\t', after @ ..] = rest {
        rest = after;
    }
    rest
}

/// The length of a string before its closing quote. `None` if it contains an escape or a control character.
fn plain_length(string: &[u8]) -> Option<usize> {
    let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    let length = string.iter().position(|byte| special(*byte))?;
    (string[length] == b'"').then_some(length)
}

enum Number {
    None,
    Thousandths(u32),
    Other(f64),
}

impl Number {
    fn push(self, odds: &mut OddsBuffer, is_active: bool) {
        match self {
            Number::None => odds.push(None, is_active),
            Number::Thousandths(thousandths) => odds.push_thousandths(thousandths, is_active),
            Number::Other(number) => odds.push(Some(number), is_active),
        }
    }
}

/// A number of 15 decimal digits is exact in the 53 bits of a double.
const MOST_DIGITS: usize = 15;

/// The number at the beginning of `rest`, and what follows it. Accepts digits with an optional decimal part, without
/// sign and exponent. A number with an exponent fails at the caller, which finds an `e` where it expects a comma.
///
/// Accepts at most [`MOST_DIGITS`] digits. The digits and the power of ten are then exact, so one division rounds to
/// the nearest double, as a full parser would.
fn number(rest: &[u8]) -> Option<(Number, &[u8])> {
    let (mut digits, mut at) = (0u64, 0);
    while let Some(digit) = digit(rest, at) {
        digits = digits.wrapping_mul(10).wrapping_add(digit);
        at += 1;
    }
    let whole = at;
    // JSON forbids leading zeros.
    if whole == 0 || whole > 1 && rest[0] == b'0' {
        return None;
    }
    let mut decimals = 0;
    if rest.get(at) == Some(&b'.') {
        at += 1;
        while let Some(digit) = digit(rest, at) {
            digits = digits.wrapping_mul(10).wrapping_add(digit);
            at += 1;
        }
        decimals = at - whole - 1;
        if decimals == 0 {
            return None;
        }
    }
    if whole + decimals > MOST_DIGITS {
        return None;
    }
    let after = &rest[at..];
    const FACTORS: [u64; 4] = [1000, 100, 10, 1];
    // Up to three decimals are exact in thousandths: no division, and the word is ready.
    if let Some(factor) = FACTORS.get(decimals)
        && let Ok(thousandths) = u32::try_from(digits * factor)
        && thousandths <= MOST_THOUSANDTHS
    {
        return Some((Number::Thousandths(thousandths), after));
    }
    // Both are below 10^15, so both are exact.
    #[expect(clippy::cast_precision_loss)]
    let number = digits as f64 / 10u64.pow(decimals as u32) as f64;
    Some((Number::Other(number), after))
}

fn digit(bytes: &[u8], at: usize) -> Option<u64> {
    let digit = bytes.get(at)?.wrapping_sub(b'0');
    (digit < 10).then_some(u64::from(digit))
}
