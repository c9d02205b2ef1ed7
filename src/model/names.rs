//! The names by which people know an event: its own, those of its teams and tournament, and those of its bookmakers.
//!
//! The texts of an event stand in one allocation. A team's name that is part of the event's name is not held a second
//! time. Events share their tournament, and all events of a state share the bookmakers.

use std::{collections::BTreeMap, mem::size_of, sync::Arc};

use hashbrown::HashMap;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{market::ARC_HEADER, time::Micros};

/// Of a longer text only so many characters are held. The application's columns have at most as many.
pub(crate) const MOST_CHARACTERS: usize = 255;

/// The first characters of a text, at most [`MOST_CHARACTERS`].
fn cut(text: &str) -> &str {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => text.get(..end).unwrap_or_default(),
        None => text,
    }
}

/// The columns `name`, `home_team`, `away_team` and `sportradar_id` of a row of `events`, packed into one text.
///
/// The text begins with the length of the name, and the place and length of each other column. Each of these seven
/// numbers is one character: 0 stands for null, and a length for one less. The columns follow. One that is part of
/// those before is not repeated. Equal columns give equal texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EventNames(Option<Arc<str>>);

/// The columns in the order in which they are packed.
pub(crate) type NameColumns<'a> = [Option<&'a str>; 4];

impl EventNames {
    /// Packs the columns. Allocates nothing if all are null.
    pub(crate) fn new(columns: NameColumns<'_>) -> EventNames {
        if columns.iter().all(Option::is_none) {
            return EventNames::default();
        }
        let (mut head, mut body) = (String::new(), String::new());
        for (index, column) in columns.into_iter().enumerate() {
            let (place, length) = match column.map(cut) {
                None => (0, 0),
                Some(column) => {
                    let place = body.find(column).unwrap_or_else(|| {
                        body.push_str(column);
                        body.len() - column.len()
                    });
                    (place, column.len() + 1)
                }
            };
            if index > 0 {
                head.push(digit(place));
            }
            head.push(digit(length));
        }
        head.push_str(&body);
        EventNames(Some(head.into()))
    }

    /// The columns. Allocates nothing.
    pub(crate) fn columns(&self) -> NameColumns<'_> {
        let mut rest = self.0.as_deref().unwrap_or_default().chars();
        let mut next = || rest.next().map_or(0, |number| number as usize);
        let places = [
            (0, next()),
            (next(), next()),
            (next(), next()),
            (next(), next()),
        ];
        let body = rest.as_str();
        places.map(|(place, length)| body.get(place..place + length.checked_sub(1)?))
    }

    /// Bytes requested from the allocator.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |text| ARC_HEADER + text.len())
    }
}

/// The character that stands for a number.
fn digit(number: usize) -> char {
    // Four columns of 255 characters have at most 4,080 bytes, and each number below 0xd800 is a character.
    u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or_default()
}

/// The tournament of an event: a row of `tournaments`, with the name of its sport.
///
/// Its names may be up to a minute older than the event: see [`CachedEvent::tournament`](super::CachedEvent::tournament).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tournament {
    id: i64,
    name: Option<Box<str>>,
    country: Option<Box<str>>,
    sport: Option<Box<str>>,
}

impl Tournament {
    /// `columns` are the name, the country, and the name of the sport.
    pub(crate) fn new(id: i64, columns: [Option<&str>; 3]) -> Tournament {
        let [name, country, sport] = columns.map(|column| column.map(cut));
        Tournament {
            id,
            name: name.map(Box::from),
            country: country.map(Box::from),
            sport: sport.map(Box::from),
        }
    }

    /// `tournaments.id`, as `events.tournament_id` names it.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// `tournaments.name`, at most 255 characters; `None` if it is null or cannot be read.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// `tournaments.country`, at most 255 characters; `None` if it is null or cannot be read.
    pub fn country(&self) -> Option<&str> {
        self.country.as_deref()
    }

    /// `sports.name` of the row that `tournaments.sport_id` names, at most 255 characters; `None` if it is null or
    /// cannot be read.
    pub fn sport(&self) -> Option<&str> {
        self.sport.as_deref()
    }

    /// The name, the country, and the name of the sport.
    pub(crate) fn columns(&self) -> [Option<&str>; 3] {
        [self.name(), self.country(), self.sport()]
    }

    fn heap_bytes(&self) -> usize {
        let texts = self.columns().into_iter().flatten().map(str::len);
        ARC_HEADER + size_of::<Tournament>() + texts.sum::<usize>()
    }
}

/// `{"id":1,"name":"...","country":"...","sport":"..."}`
impl Serialize for Tournament {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Tournament", 4)?;
        fields.serialize_field("id", &self.id)?;
        fields.serialize_field("name", &self.name())?;
        fields.serialize_field("country", &self.country())?;
        fields.serialize_field("sport", &self.sport())?;
        fields.end()
    }
}

/// A row of `bookmakers`.
///
/// It may be up to a minute older than the event: see [`CachedEvent::bookmaker`](super::CachedEvent::bookmaker).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bookmaker {
    slug: Option<Box<str>>,
    name: Option<Box<str>>,
}

impl Bookmaker {
    pub(crate) fn new(slug: Option<&str>, name: Option<&str>) -> Bookmaker {
        Bookmaker {
            slug: slug.map(cut).map(Box::from),
            name: name.map(cut).map(Box::from),
        }
    }

    /// `bookmakers.slug`, at most 255 characters; `None` if it is null.
    pub fn slug(&self) -> Option<&str> {
        self.slug.as_deref()
    }

    /// `bookmakers.name`, at most 255 characters; `None` if it is null.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// The rows of `bookmakers`, by id.
pub(crate) type Bookmakers = BTreeMap<i64, Bookmaker>;

/// What an event is, without its snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EventHeader {
    pub(crate) kickoff: Option<Micros>,
    pub(crate) names: EventNames,
    pub(crate) tournament: Option<Arc<Tournament>>,
}

impl From<Option<Micros>> for EventHeader {
    fn from(kickoff: Option<Micros>) -> EventHeader {
        EventHeader {
            kickoff,
            ..EventHeader::default()
        }
    }
}

/// The tournaments and bookmakers that events share.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    tournaments: HashMap<i64, Arc<Tournament>>,
    bookmakers: Option<Arc<Bookmakers>>,
    /// How many tournaments the last sweep left.
    swept: usize,
}

impl Lookup {
    /// The shared tournament of this id. One that was never read has no names.
    pub(crate) fn tournament(&mut self, id: i64) -> Arc<Tournament> {
        let unknown = || Arc::new(Tournament::new(id, [None; 3]));
        Arc::clone(self.tournaments.entry(id).or_insert_with(unknown))
    }

    /// The shared copy of a tournament. Replaces one of the same id and other names.
    pub(crate) fn share(&mut self, tournament: Tournament) -> Arc<Tournament> {
        match self.tournaments.get(&tournament.id) {
            Some(held) if **held == tournament => Arc::clone(held),
            _ => {
                let (id, tournament) = (tournament.id, Arc::new(tournament));
                self.tournaments.insert(id, Arc::clone(&tournament));
                tournament
            }
        }
    }

    /// The tournament of this id, if it was read or found to be missing.
    pub(crate) fn held(&self, tournament_id: i64) -> Option<Arc<Tournament>> {
        self.tournaments.get(&tournament_id).cloned()
    }

    /// The ids of all tournaments.
    pub(crate) fn tournament_ids(&self) -> impl Iterator<Item = i64> {
        self.tournaments.keys().copied()
    }

    pub(crate) fn bookmakers(&self) -> Option<&Arc<Bookmakers>> {
        self.bookmakers.as_ref()
    }

    /// Replaces the bookmakers. Returns whether they differ.
    pub(crate) fn set_bookmakers(&mut self, bookmakers: Bookmakers) -> bool {
        let bookmakers = (!bookmakers.is_empty()).then(|| Arc::new(bookmakers));
        let differ = self.bookmakers != bookmakers;
        if differ {
            self.bookmakers = bookmakers;
        }
        differ
    }

    /// Forgets tournaments that no event names, once there may be as many of them as of others.
    pub(crate) fn sweep(&mut self) {
        if self.tournaments.len() > 2 * self.swept + 64 {
            self.tournaments
                .retain(|_, tournament| Arc::strong_count(tournament) > 1);
            self.swept = self.tournaments.len();
        }
    }

    /// Bytes requested from the allocator.
    pub(crate) fn heap_bytes(&self) -> usize {
        let tournaments = self.tournaments.values();
        let texts = |bookmaker: &Bookmaker| {
            let texts = [bookmaker.slug(), bookmaker.name()];
            texts.into_iter().flatten().map(str::len).sum::<usize>()
        };
        let bookmakers = self.bookmakers.iter().flat_map(|all| all.values());
        let bookmakers = bookmakers.map(|one| size_of::<(i64, Bookmaker)>() + texts(one));
        self.tournaments.allocation_size()
            + tournaments.map(|one| one.heap_bytes()).sum::<usize>()
            + bookmakers.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    fn column() -> impl Strategy<Value = Option<String>> {
        option::weighted(
            0.8,
            prop_oneof![
                4 => "[ab ]{0,6}",
                2 => any::<String>(),
                1 => (0..600usize).prop_map(|length| "ö\"</script>\u{202e}".chars().cycle().take(length).collect()),
                1 => (0..300usize).prop_map(|length| "\u{10ffff}".repeat(length)),
            ],
        )
    }

    proptest! {
        /// Columns come out as they went in, cut to their first characters. Equal columns are equal.
        #[test]
        fn columns_read_back(columns in [column(), column(), column(), column()], other in column()) {
            let texts = columns.each_ref().map(Option::as_deref);
            let names = EventNames::new(texts);
            let first = |text: &str| text.chars().take(MOST_CHARACTERS).collect::<String>();
            let expected = texts.map(|text| text.map(first));
            prop_assert_eq!(names.columns().map(|text| text.map(str::to_owned)), expected.clone());
            let again = EventNames::new(names.columns());
            prop_assert_eq!(&again, &names);
            let changed = EventNames::new([texts[0], other.as_deref(), texts[2], texts[3]]);
            prop_assert_eq!(changed == names, other.as_deref().map(first) == expected[1]);
        }
    }

    #[test]
    fn what_the_name_contains_is_held_once() {
        let columns = [
            Some("Arsenal - Chelsea"),
            Some("Arsenal"),
            Some("Chelsea"),
            Some("sr:match:1"),
        ];
        let names = EventNames::new(columns);
        assert_eq!(names.heap_bytes(), ARC_HEADER + 7 + 17 + 10);
        assert_eq!(EventNames::new([None; 4]).heap_bytes(), 0);
    }

    #[test]
    fn tournaments_that_no_event_names_are_forgotten() {
        let mut lookup = Lookup::default();
        let kept = lookup.tournament(7);
        for id in 100..1_000 {
            lookup.tournament(id);
            lookup.sweep();
        }
        assert!(
            lookup.tournaments.len() < 200,
            "{}",
            lookup.tournaments.len()
        );
        assert!(Arc::ptr_eq(&lookup.tournament(7), &kept));
    }
}
