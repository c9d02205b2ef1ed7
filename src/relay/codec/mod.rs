//! The packed form of changes and of whole states, in parts of limited size.
//!
//! A part begins with [`VERSION`]. Records follow until its end. A record begins with a tag:
//!
//! | record | after the tag |
//! |---|---|
//! | [`REMOVED`] | event |
//! | [`EVENT`], [`EVENT_WITHOUT_KICKOFF`], [`EVENT_WITH_KICKOFF`] | event; the kickoff. Snapshot records of the event follow |
//! | [`NAMES`] | the names of the event that was told last, and its tournament |
//! | [`BOOKMAKER`], [`BOOKMAKER_GONE`] | bookmaker; its slug and name. Stands before all events |
//! | [`GONE`] | key |
//! | [`TIMES`] | key, times: the snapshot was only confirmed |
//! | [`SAME_MARKETS`] | key, head: another row with the same markets |
//! | [`SAME_TEMPLATE`] | key, head, odds: the markets of the held snapshot with other odds |
//! | [`NEW_TEMPLATE`] | key, head, markets, odds |
//!
//! - Numbers are LEB128; signed ones are zigzag differences to the record before, which are 0 at the start of a part.
//!   Differences wrap around, so that every number can be told.
//! - A key is a bookmaker's id, or with [`COMPETITOR`] in the tag an index into the part's sources. The index after the
//!   last one defines a source.
//! - Names are four texts. A text that may be missing is 0, or 1 more than its length and the text. A tournament is 0 for
//!   none, else 1 more than an index into the part's tournaments. The index after the last one defines a tournament: its
//!   id and three texts.
//! - "Held" is the snapshot of the same event and key in the state before, never one of another record. So an event may
//!   be split over parts.
//! - Markets are runs, until a run of none: `length << 1 | 1` and the difference of its start copy a run of the held
//!   snapshot's markets; `length << 1` lists markets of the part's dictionary, which holds names and an index into the
//!   part's kinds. A market is 0 for a definition, else 1 more than the difference of its index.
//! - Odds are differences to those of the held markets (to 0 for other markets), with the flag for active outcomes as
//!   the lowest bit. A 0 is followed by how many more are 0. If that is longer than the words, the words follow as they
//!   are.
//!
//! Nothing in a part is trusted. What its records make beside the bytes they bring is limited by [`MOST_COST`].

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;

use crate::model::{Micros, PackedMarkets};

/// The first byte of each part. It changes with the form, and with the form of digests.
const VERSION: u8 = 2;

const REMOVED: u8 = 0x40;
const EVENT: u8 = 0x41;
const EVENT_WITHOUT_KICKOFF: u8 = 0x42;
const EVENT_WITH_KICKOFF: u8 = 0x43;
const NAMES: u8 = 0x44;
const BOOKMAKER: u8 = 0x45;
const BOOKMAKER_GONE: u8 = 0x46;

const GONE: u8 = 0;
const TIMES: u8 = 1;
const SAME_MARKETS: u8 = 2;
const SAME_TEMPLATE: u8 = 3;
const NEW_TEMPLATE: u8 = 4;
/// Added to the tag of a snapshot record.
const COMPETITOR: u8 = 8;

const RAW: u8 = 0;
const DIFFERENCES: u8 = 1;

/// The most that the records of one part may make: 1 for each odds word, and [`MARKET_COST`] for each market. That
/// is about 16 MB. An encoder begins another part before.
const MOST_COST: usize = 1 << 22;
/// What a market takes in a snapshot template, in words.
const MARKET_COST: usize = 4;

/// The numbers that differences refer to.
#[derive(Debug, Default)]
struct Last {
    event_id: i64,
    kickoff: i64,
    snapshot_id: i64,
    captured_at: i64,
    confirmed_at: i64,
    market: i64,
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Turns a word so that its flag for active outcomes becomes the lowest bit.
fn turned(word: u32) -> u32 {
    word.rotate_left(1)
}

fn turned_back(word: u32) -> u32 {
    word.rotate_right(1)
}

/// Where the odds words of each market begin, and at the end where the last ones end.
fn starts(packed: &PackedMarkets) -> Vec<usize> {
    let mut start = 0;
    let mut starts = vec![0];
    for (_, outcomes) in packed.template().markets() {
        start += outcomes as usize;
        starts.push(start);
    }
    starts
}

/// What making packed markets costs, in the units of [`MOST_COST`].
fn cost(markets: usize, words: usize) -> usize {
    markets.saturating_mul(MARKET_COST).saturating_add(words)
}

/// The odds that differences refer to, if a snapshot has the template of the held one.
fn base(held: Option<&PackedMarkets>) -> &[u32] {
    held.map_or(&[], PackedMarkets::odds_words)
}

fn micros(time: Option<Micros>) -> i64 {
    time.map_or(0, |Micros(time)| time)
}
