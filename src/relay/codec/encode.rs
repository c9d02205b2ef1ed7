use std::{collections::HashMap, sync::Arc};

use crate::{
    model::{
        Bookmaker, Bookmakers, CachedEvent, CachedSnapshot, MarketKey, MarketTemplate, Micros,
        PackedMarkets, Tournament,
    },
    store::state::State,
};

use super::{
    BOOKMAKER, BOOKMAKER_GONE, COMPETITOR, DIFFERENCES, EVENT, EVENT_WITH_KICKOFF,
    EVENT_WITHOUT_KICKOFF, GONE, Last, MOST_COST, NAMES, NEW_TEMPLATE, RAW, REMOVED, SAME_MARKETS,
    SAME_TEMPLATE, TIMES, VERSION, base, cost, micros, starts, turned, zigzag,
};

/// A snapshot that no part can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the snapshot {snapshot_id} of event {event_id} takes more than the {limit} bytes of a message; raise the server's \
     max_payload"
)]
pub(crate) struct TooLarge {
    pub(crate) event_id: i64,
    /// 0 if the event's id, kickoff and names alone take more.
    pub(crate) snapshot_id: i64,
    pub(crate) limit: usize,
}

/// Writes the difference between two states as parts of limited size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    limit: usize,
}

/// Which snapshot of an event.
#[derive(Debug, Clone, Copy)]
enum Key<'a> {
    Betpawa(i64),
    Competitor(&'a str),
}

impl Encoder {
    /// `limit` is the most bytes of a part.
    pub(crate) fn new(limit: usize) -> Encoder {
        Encoder { limit }
    }

    /// The parts that bring `before` to `after`, if the two differ only in these events. Both states must use the same
    /// interner. No part if nothing differs.
    ///
    /// # Errors
    /// A snapshot that alone is larger than a part.
    pub(crate) fn encode_changes(
        &self,
        before: &State,
        after: &State,
        event_ids: &[i64],
    ) -> Result<Vec<Vec<u8>>, TooLarge> {
        let mut parts = Parts {
            limit: self.limit,
            done: Vec::new(),
            part: Part::new(),
        };
        parts.bookmakers(before.bookmakers.as_deref(), after.bookmakers.as_deref())?;
        for event_id in event_ids {
            parts.event(before.event(*event_id), after.event(*event_id))?;
        }
        Ok(parts.finish())
    }

    /// The parts that bring an empty state to `after`.
    ///
    /// # Errors
    /// As [`Encoder::encode_changes`].
    pub(crate) fn encode_state(&self, after: &State) -> Result<Vec<Vec<u8>>, TooLarge> {
        self.encode_changes(&State::empty(), after, &after.event_ids())
    }
}

struct Parts {
    limit: usize,
    done: Vec<Vec<u8>>,
    part: Part,
}

impl Parts {
    fn bookmakers(
        &mut self,
        before: Option<&Bookmakers>,
        after: Option<&Bookmakers>,
    ) -> Result<(), TooLarge> {
        let none = Bookmakers::new();
        let (before, after) = (before.unwrap_or(&none), after.unwrap_or(&none));
        for id in before.keys().filter(|id| !after.contains_key(id)) {
            self.record(0, 0, |part| part.bookmaker(*id, None))?;
        }
        for (id, bookmaker) in after {
            if before.get(id) != Some(bookmaker) {
                self.record(0, 0, |part| part.bookmaker(*id, Some(bookmaker)))?;
            }
        }
        Ok(())
    }

    fn event(
        &mut self,
        before: Option<&CachedEvent>,
        after: Option<&CachedEvent>,
    ) -> Result<(), TooLarge> {
        let Some(after) = after else {
            return match before {
                Some(before) => self.record(before.event_id, 0, |part| {
                    part.event_tag(REMOVED, before.event_id);
                    part.event = None;
                }),
                None => Ok(()),
            };
        };
        let header = Header {
            event_id: after.event_id,
            // Each part tells the kickoff again, so that none refers to another part.
            kickoff: (before.is_none_or(|before| before.kickoff != after.kickoff))
                .then_some(after.kickoff),
        };
        if header.kickoff.is_some() {
            self.record(after.event_id, 0, |part| part.header(&header))?;
        }
        let has_new_names = before.is_none_or(|before| {
            before.names != after.names || before.tournament != after.tournament
        });
        if has_new_names {
            self.record(after.event_id, 0, |part| {
                part.header(&header);
                part.names(after);
            })?;
        }
        let held = |key: Key<'_>| match (key, before?) {
            (Key::Betpawa(bookmaker_id), event) => event.betpawa.get(bookmaker_id),
            (Key::Competitor(source), event) => event.competitors.get(source),
        };
        for (key, snapshot) in snapshots(after) {
            let held = held(key);
            if held.is_some_and(|held| held.difference(snapshot).is_none()) {
                continue;
            }
            self.record(after.event_id, snapshot.snapshot_id, |part| {
                part.header(&header);
                part.snapshot(key, held, snapshot);
            })?;
        }
        for (key, snapshot) in before.into_iter().flat_map(snapshots) {
            let stays = match key {
                Key::Betpawa(bookmaker_id) => after.betpawa.get(bookmaker_id),
                Key::Competitor(source) => after.competitors.get(source),
            };
            if stays.is_none() {
                self.record(after.event_id, snapshot.snapshot_id, |part| {
                    part.header(&header);
                    part.key(GONE, key);
                })?;
            }
        }
        Ok(())
    }

    /// Writes a record into this part, or into the next one if this one has no room.
    fn record(
        &mut self,
        event_id: i64,
        snapshot_id: i64,
        write: impl Fn(&mut Part),
    ) -> Result<(), TooLarge> {
        let fits = |part: &Part| part.bytes.len() <= self.limit && part.cost <= MOST_COST;
        let mark = self.part.bytes.len();
        write(&mut self.part);
        if fits(&self.part) {
            return Ok(());
        }
        // The dictionaries of the full part go with it, so only its bytes need to be taken back.
        self.part.bytes.truncate(mark);
        let mut full = std::mem::replace(&mut self.part, Part::new());
        if !full.is_empty() {
            self.done.push(std::mem::take(&mut full.bytes));
        }
        write(&mut self.part);
        if fits(&self.part) {
            return Ok(());
        }
        Err(TooLarge {
            event_id,
            snapshot_id,
            limit: self.limit,
        })
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.part.is_empty() {
            self.done.push(self.part.bytes);
        }
        self.done
    }
}

fn snapshots(event: &CachedEvent) -> impl Iterator<Item = (Key<'_>, &CachedSnapshot)> {
    let own = event.betpawa.iter();
    let own = own.map(|(bookmaker_id, snapshot)| (Key::Betpawa(bookmaker_id), snapshot));
    let others = event.competitors.iter();
    own.chain(others.map(|(source, snapshot)| (Key::Competitor(source.as_str()), snapshot)))
}

struct Header {
    event_id: i64,
    /// The new kickoff, if it differs.
    kickoff: Option<Option<Micros>>,
}

/// A part that is being written.
struct Part {
    bytes: Vec<u8>,
    cost: usize,
    last: Last,
    /// The event that snapshot records belong to.
    event: Option<i64>,
    sources: HashMap<Box<str>, u64>,
    tournaments: HashMap<usize, u64>,
    /// By address. Both states hold what they name, so no address is used twice.
    kinds: HashMap<usize, u64>,
    markets: HashMap<usize, i64>,
    differences: Vec<u8>,
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        // The cast keeps the lowest bits, which are meant.
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

impl Part {
    fn new() -> Part {
        Part {
            bytes: vec![VERSION],
            cost: 0,
            last: Last::default(),
            event: None,
            sources: HashMap::new(),
            tournaments: HashMap::new(),
            kinds: HashMap::new(),
            markets: HashMap::new(),
            differences: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == 1
    }

    fn number(&mut self, number: u64) {
        push(&mut self.bytes, number);
    }

    fn difference(&mut self, number: i64, to: i64) {
        self.number(zigzag(number.wrapping_sub(to)));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        self.number(text.map_or(0, |text| text.len() as u64 + 1));
        self.bytes
            .extend_from_slice(text.unwrap_or_default().as_bytes());
    }

    fn bookmaker(&mut self, id: i64, bookmaker: Option<&Bookmaker>) {
        self.bytes.push(match bookmaker {
            Some(_) => BOOKMAKER,
            None => BOOKMAKER_GONE,
        });
        self.number(zigzag(id));
        if let Some(bookmaker) = bookmaker {
            self.optional(bookmaker.slug());
            self.optional(bookmaker.name());
        }
    }

    fn names(&mut self, event: &CachedEvent) {
        self.bytes.push(NAMES);
        for column in event.names.columns() {
            self.optional(column);
        }
        let Some(tournament) = &event.tournament else {
            return self.number(0);
        };
        // By address, as kinds and markets.
        let address = Arc::<Tournament>::as_ptr(tournament).addr();
        if let Some(index) = self.tournaments.get(&address).copied() {
            return self.number(index + 1);
        }
        let index = self.tournaments.len() as u64;
        self.tournaments.insert(address, index);
        self.number(index + 1);
        self.number(zigzag(tournament.id()));
        for column in tournament.columns() {
            self.optional(column);
        }
    }

    fn event_tag(&mut self, tag: u8, event_id: i64) {
        self.bytes.push(tag);
        self.difference(event_id, self.last.event_id);
        self.last.event_id = event_id;
    }

    fn header(&mut self, header: &Header) {
        if self.event == Some(header.event_id) {
            return;
        }
        self.event = Some(header.event_id);
        let tag = match header.kickoff {
            None => EVENT,
            Some(None) => EVENT_WITHOUT_KICKOFF,
            Some(Some(_)) => EVENT_WITH_KICKOFF,
        };
        self.event_tag(tag, header.event_id);
        if let Some(kickoff @ Some(_)) = header.kickoff {
            self.difference(micros(kickoff), self.last.kickoff);
            self.last.kickoff = micros(kickoff);
        }
    }

    fn key(&mut self, tag: u8, key: Key<'_>) {
        match key {
            Key::Betpawa(bookmaker_id) => {
                self.bytes.push(tag);
                self.number(zigzag(bookmaker_id));
            }
            Key::Competitor(source) => {
                self.bytes.push(tag | COMPETITOR);
                if let Some(index) = self.sources.get(source) {
                    self.number(*index);
                } else {
                    let index = self.sources.len() as u64;
                    self.sources.insert(source.into(), index);
                    self.number(index);
                    self.text(source);
                }
            }
        }
    }

    fn snapshot(&mut self, key: Key<'_>, held: Option<&CachedSnapshot>, snapshot: &CachedSnapshot) {
        let ids = |snapshot: &CachedSnapshot| {
            let CachedSnapshot {
                snapshot_id,
                event_id,
                bookmaker_id,
                ..
            } = *snapshot;
            (snapshot_id, event_id, bookmaker_id)
        };
        if let Some(held) = held.filter(|held| held.same_markets(snapshot)) {
            if ids(held) == ids(snapshot) {
                self.key(TIMES, key);
                self.difference(snapshot.captured_at.0, held.captured_at.0);
                self.difference(snapshot.last_confirmed_at.0, self.last.confirmed_at);
                self.last.confirmed_at = snapshot.last_confirmed_at.0;
            } else {
                self.key(SAME_MARKETS, key);
                self.head(key, snapshot);
            }
            return;
        }
        let (packed, held) = (&*snapshot.packed, held.map(|held| &*held.packed));
        let words = packed.odds_words();
        self.cost = self
            .cost
            .saturating_add(cost(packed.market_count(), words.len()));
        if held.is_some_and(|held| Arc::ptr_eq(held.template(), packed.template())) {
            self.key(SAME_TEMPLATE, key);
            self.head(key, snapshot);
            self.odds(packed, base(held));
        } else {
            self.key(NEW_TEMPLATE, key);
            self.head(key, snapshot);
            let base = self.markets(held, packed);
            self.odds(packed, &base);
        }
    }

    fn head(&mut self, key: Key<'_>, snapshot: &CachedSnapshot) {
        self.difference(snapshot.snapshot_id, self.last.snapshot_id);
        self.difference(snapshot.event_id, self.last.event_id);
        if let Key::Competitor(_) = key {
            self.number(zigzag(snapshot.bookmaker_id));
        }
        self.difference(snapshot.captured_at.0, self.last.captured_at);
        self.difference(snapshot.last_confirmed_at.0, snapshot.captured_at.0);
        self.last.snapshot_id = snapshot.snapshot_id;
        self.last.captured_at = snapshot.captured_at.0;
        self.last.confirmed_at = snapshot.last_confirmed_at.0;
    }

    /// Writes the list of markets. Returns the odds that differences refer to.
    fn markets(&mut self, held: Option<&PackedMarkets>, packed: &PackedMarkets) -> Vec<u32> {
        let address = |market: &Arc<MarketTemplate>| Arc::as_ptr(market).addr();
        let starts = held.map(starts).unwrap_or_default();
        let mut in_held: HashMap<usize, usize> = HashMap::new();
        for (index, (market, _)) in held
            .iter()
            .flat_map(|held| held.template().markets().enumerate())
        {
            in_held.entry(address(market)).or_insert(index);
        }
        let held_list: Vec<usize> = held
            .iter()
            .flat_map(|held| held.template().markets().map(|(market, _)| address(market)))
            .collect();
        let markets: Vec<_> = packed.template().markets().collect();
        let mut base = Vec::new();
        let (mut at, mut expected) = (0, 0);
        while at < markets.len() {
            let rest = markets.get(at..).unwrap_or_default();
            let first = rest.first().map(|(market, _)| address(market));
            // Go on where the last run ended if possible: of two equal markets the first would break the run.
            let start = match first {
                Some(first) if held_list.get(expected) == Some(&first) => Some(expected),
                Some(first) => in_held.get(&first).copied(),
                None => None,
            };
            if let Some(start) = start {
                let held_rest = held_list.get(start..).unwrap_or_default();
                let pairs = rest.iter().zip(held_rest);
                let length = pairs
                    .take_while(|((market, _), held)| address(market) == **held)
                    .count();
                self.number((length as u64) << 1 | 1);
                self.difference(start as i64, expected as i64);
                expected = start + length;
                if let (Some(from), Some(to)) = (starts.get(start), starts.get(expected)) {
                    let words = held.map_or(&[][..], PackedMarkets::odds_words);
                    base.extend_from_slice(words.get(*from..*to).unwrap_or_default());
                }
                at += length;
            } else {
                let new = rest
                    .iter()
                    .take_while(|(market, _)| !in_held.contains_key(&address(market)));
                let length = new.count();
                self.number((length as u64) << 1);
                for (market, outcomes) in rest.iter().take(length) {
                    self.market(market);
                    base.resize(base.len() + *outcomes as usize, 0);
                }
                at += length;
            }
        }
        self.number(0);
        base
    }

    fn market(&mut self, market: &Arc<MarketTemplate>) {
        let address = Arc::as_ptr(market).addr();
        if let Some(index) = self.markets.get(&address).copied() {
            // Usually the market after the one before.
            let difference = zigzag(index.wrapping_sub(self.last.market.wrapping_add(1)));
            self.number(difference + 1);
            self.last.market = index;
            return;
        }
        let index = self.markets.len() as i64;
        self.markets.insert(address, index);
        self.last.market = index;
        self.number(0);
        let kind = Arc::as_ptr(market.kind_shared()).addr();
        if let Some(index) = self.kinds.get(&kind).copied() {
            self.number(index);
        } else {
            let index = self.kinds.len() as u64;
            self.kinds.insert(kind, index);
            self.number(index);
            self.kind(&market.kind_shared().parts());
        }
        self.text(market.names_text());
    }

    fn kind(&mut self, key: &MarketKey<'_>) {
        let numbers = [key.line, key.handicap_home, key.handicap_away];
        let flags = [
            key.handicap_type.is_some(),
            key.market_groups.is_some(),
            key.line.is_some(),
            key.handicap_home.is_some(),
            key.handicap_away.is_some(),
        ];
        let flags = (0..)
            .zip(flags)
            .map(|(bit, set)| u8::from(set) << bit)
            .sum();
        self.bytes.push(flags);
        self.text(key.betpawa_market_id);
        self.text(key.betpawa_market_name);
        for text in [key.handicap_type, key.market_groups].into_iter().flatten() {
            self.text(text);
        }
        for number in numbers.into_iter().flatten() {
            self.bytes
                .extend_from_slice(&number.to_bits().to_le_bytes());
        }
    }

    fn odds(&mut self, packed: &PackedMarkets, base: &[u32]) {
        self.number(packed.malformed_rows() as u64);
        self.number(packed.unavailable_times().len() as u64);
        let mut market_before = 0;
        for (market, Micros(time)) in packed.unavailable_times() {
            self.difference(i64::from(*market), market_before);
            self.difference(*time, self.last.captured_at);
            market_before = i64::from(*market);
        }
        let words = packed.odds_words();
        self.differences.clear();
        let mut pairs = words.iter().zip(base).peekable();
        while let Some((word, base)) = pairs.next() {
            let difference = turned(*word).wrapping_sub(turned(*base));
            push(
                &mut self.differences,
                zigzag(i64::from(difference.cast_signed())),
            );
            if difference == 0 {
                let mut more = 0;
                while pairs.next_if(|(word, base)| word == base).is_some() {
                    more += 1;
                }
                push(&mut self.differences, more);
            }
        }
        if self.differences.len() <= 4 * words.len() {
            self.bytes.push(DIFFERENCES);
            self.bytes.append(&mut self.differences);
        } else {
            self.bytes.push(RAW);
            self.bytes
                .extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        for odds in packed.wide() {
            self.bytes.extend_from_slice(&odds.to_bits().to_le_bytes());
        }
    }
}
