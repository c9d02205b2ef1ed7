use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use crate::{
    model::{
        BetpawaSnapshots, Bookmaker, CachedEvent, CachedSnapshot, CompetitorSnapshots, EventNames,
        MarketKey, MarketTemplate, Micros, PackedMarkets, Source, Tournament,
        digest::Content,
        relayed::{PackedParts, outcomes_in, wide_odds},
    },
    store::draft::Draft,
};

use super::{
    BOOKMAKER, BOOKMAKER_GONE, COMPETITOR, DIFFERENCES, EVENT, EVENT_WITH_KICKOFF,
    EVENT_WITHOUT_KICKOFF, GONE, Last, MOST_COST, NAMES, NEW_TEMPLATE, RAW, REMOVED, SAME_MARKETS,
    SAME_TEMPLATE, TIMES, VERSION, base, cost, starts, turned, turned_back, unzigzag,
};

/// A part that no encoder wrote, or that does not fit what the draft holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed part at byte {offset}: {what}")]
pub(crate) struct MalformedPart {
    /// How many bytes of the part were read.
    pub(crate) offset: usize,
    pub(crate) what: &'static str,
}

/// Collects the events of the parts of one message, to apply all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    events: BTreeMap<i64, Decoded>,
    /// `None`: gone.
    bookmakers: BTreeMap<i64, Option<Bookmaker>>,
    content: Content,
}

/// What the parts say of an event.
#[derive(Debug)]
enum Decoded {
    Removed,
    Changed(Changes),
}

/// Of snapshots with the same key the last one counts. `None`: gone.
#[derive(Debug, Default)]
struct Changes {
    kickoff: Option<Option<Micros>>,
    names: Option<(EventNames, Option<Arc<Tournament>>)>,
    betpawa: BTreeMap<i64, Option<CachedSnapshot>>,
    competitors: BTreeMap<Source, Option<CachedSnapshot>>,
}

impl Decoder {
    pub(crate) fn new() -> Decoder {
        Decoder::default()
    }

    /// Reads a part against what the draft holds. Changes nothing of that; it only interns names, which the draft frees
    /// again if nothing uses them. The draft must not change between the parts of a message.
    ///
    /// # Errors
    /// A malformed part. Drop the decoder then: it may hold some of the part's events.
    pub(crate) fn decode_part(
        &mut self,
        body: &[u8],
        draft: &mut Draft,
    ) -> Result<(), MalformedPart> {
        let mut part = Part {
            rest: body,
            cost: 0,
            last: Last::default(),
            event: None,
            sources: Vec::new(),
            tournaments: Vec::new(),
            kinds: Vec::new(),
            markets: Vec::new(),
            content: &mut self.content,
            draft,
        };
        let read = part.read(&mut self.events, &mut self.bookmakers);
        let offset = body.len() - part.rest.len();
        read.map_err(|what| MalformedPart { offset, what })
    }

    /// Sets what the parts say, all at once.
    pub(crate) fn apply(self, draft: &mut Draft) {
        if !self.bookmakers.is_empty() {
            let mut bookmakers = draft.packer.lookup.bookmakers().map(|all| (**all).clone());
            let all = bookmakers.get_or_insert_default();
            for (id, bookmaker) in self.bookmakers {
                match bookmaker {
                    Some(bookmaker) => drop(all.insert(id, bookmaker)),
                    None => drop(all.remove(&id)),
                }
            }
            draft.set_lookup(bookmakers.unwrap_or_default(), []);
        }
        for (event_id, decoded) in self.events {
            let changes = match decoded {
                Decoded::Changed(changes) => changes,
                Decoded::Removed => {
                    draft.remove(event_id);
                    continue;
                }
            };
            let held = draft.event(event_id).cloned();
            let held = held.as_deref();
            let mut betpawa = changes.betpawa;
            let mut competitors = changes.competitors;
            for (bookmaker_id, snapshot) in held.iter().flat_map(|held| held.betpawa.iter()) {
                betpawa
                    .entry(bookmaker_id)
                    .or_insert_with(|| Some(snapshot.clone()));
            }
            for (source, snapshot) in held.iter().flat_map(|held| held.competitors.iter()) {
                if !competitors.contains_key(source.as_str()) {
                    competitors.insert(source.clone(), Some(snapshot.clone()));
                }
            }
            let mut header = held.map(CachedEvent::header).unwrap_or_default();
            header.kickoff = changes.kickoff.unwrap_or(header.kickoff);
            if let Some((names, tournament)) = changes.names {
                header.names = names;
                header.tournament = tournament;
            }
            let others = competitors.into_iter();
            let others = others.filter_map(|(source, snapshot)| Some((source, snapshot?)));
            draft.set(
                event_id,
                header,
                BetpawaSnapshots::new(betpawa.into_values().flatten().collect()),
                CompetitorSnapshots::new(others.collect()),
            );
        }
    }
}

/// A market, and how many outcomes it has.
type CountedMarket = (Arc<MarketTemplate>, u32);

type Read<T> = Result<T, &'static str>;

enum Key {
    Betpawa(i64),
    Competitor(Source),
}

/// A snapshot without its markets.
struct Head {
    snapshot_id: i64,
    event_id: i64,
    bookmaker_id: i64,
    captured_at: Micros,
    last_confirmed_at: Micros,
}

impl Head {
    fn with(self, packed: Arc<PackedMarkets>) -> CachedSnapshot {
        CachedSnapshot {
            snapshot_id: self.snapshot_id,
            event_id: self.event_id,
            bookmaker_id: self.bookmaker_id,
            captured_at: self.captured_at,
            last_confirmed_at: self.last_confirmed_at,
            packed,
        }
    }
}

/// A part that is being read.
struct Part<'b, 'd> {
    rest: &'b [u8],
    cost: usize,
    last: Last,
    /// The event that snapshot records belong to.
    event: Option<i64>,
    sources: Vec<Source>,
    tournaments: Vec<Arc<Tournament>>,
    /// Their texts borrow from the part.
    kinds: Vec<MarketKey<'b>>,
    markets: Vec<CountedMarket>,
    content: &'d mut Content,
    draft: &'d mut Draft,
}

const ENDS: &str = "it ends too early";

impl<'b> Part<'b, '_> {
    fn read(
        &mut self,
        events: &mut BTreeMap<i64, Decoded>,
        bookmakers: &mut BTreeMap<i64, Option<Bookmaker>>,
    ) -> Read<()> {
        if self.byte()? != VERSION {
            return Err("another version of the form");
        }
        while !self.rest.is_empty() {
            self.record(events, bookmakers)?;
        }
        Ok(())
    }

    fn record(
        &mut self,
        events: &mut BTreeMap<i64, Decoded>,
        bookmakers: &mut BTreeMap<i64, Option<Bookmaker>>,
    ) -> Read<()> {
        let tag = self.byte()?;
        match tag {
            REMOVED => {
                let event_id = self.event_id()?;
                self.event = None;
                match events.insert(event_id, Decoded::Removed) {
                    None => Ok(()),
                    Some(_) => Err("an event is removed and also told otherwise"),
                }
            }
            EVENT | EVENT_WITHOUT_KICKOFF | EVENT_WITH_KICKOFF => {
                let event_id = self.event_id()?;
                self.event = Some(event_id);
                let kickoff = match tag {
                    EVENT => None,
                    EVENT_WITHOUT_KICKOFF => Some(None),
                    _ => {
                        let kickoff = self.time(self.last.kickoff)?;
                        self.last.kickoff = kickoff.0;
                        Some(Some(kickoff))
                    }
                };
                if kickoff.is_none() && self.draft.event(event_id).is_none() {
                    return Err("a change of an event that is not held");
                }
                match events.entry(event_id) {
                    Entry::Vacant(entry) => {
                        entry.insert(Decoded::Changed(Changes {
                            kickoff,
                            ..Changes::default()
                        }));
                        Ok(())
                    }
                    Entry::Occupied(entry) => match entry.into_mut() {
                        Decoded::Changed(changes) => {
                            changes.kickoff = kickoff.or(changes.kickoff);
                            Ok(())
                        }
                        Decoded::Removed => Err("an event is removed and also told otherwise"),
                    },
                }
            }
            NAMES => {
                let told = self.event.and_then(|event_id| events.get_mut(&event_id));
                let Some(Decoded::Changed(changes)) = told else {
                    return Err("names without an event");
                };
                changes.names = Some(self.names()?);
                Ok(())
            }
            BOOKMAKER | BOOKMAKER_GONE => {
                let id = self.difference(0)?;
                let bookmaker = match tag {
                    BOOKMAKER => Some(Bookmaker::new(self.optional()?, self.optional()?)),
                    _ => None,
                };
                bookmakers.insert(id, bookmaker);
                Ok(())
            }
            _ => {
                let event_id = self.event.ok_or("a snapshot without an event")?;
                let key = self.key(tag & COMPETITOR != 0)?;
                let snapshot = self.snapshot(tag & !COMPETITOR, event_id, &key)?;
                let Some(Decoded::Changed(changes)) = events.get_mut(&event_id) else {
                    return Err("a snapshot without an event");
                };
                match key {
                    Key::Betpawa(bookmaker_id) => {
                        changes.betpawa.insert(bookmaker_id, snapshot);
                    }
                    Key::Competitor(source) => {
                        changes.competitors.insert(source, snapshot);
                    }
                }
                Ok(())
            }
        }
    }

    fn snapshot(&mut self, tag: u8, event_id: i64, key: &Key) -> Read<Option<CachedSnapshot>> {
        // Read numbers of the held snapshot only through a clone: it counts one reference.
        let held = self.draft.event(event_id).and_then(|event| match key {
            Key::Betpawa(bookmaker_id) => event.betpawa.get(*bookmaker_id).cloned(),
            Key::Competitor(source) => event.competitors.get(source.as_str()).cloned(),
        });
        let not_held = "it refers to a snapshot that is not held";
        match tag {
            GONE => held.map(|_| None).ok_or(not_held),
            TIMES => {
                let mut snapshot = held.ok_or(not_held)?;
                snapshot.captured_at = self.time(snapshot.captured_at.0)?;
                snapshot.last_confirmed_at = self.time(self.last.confirmed_at)?;
                self.last.confirmed_at = snapshot.last_confirmed_at.0;
                Ok(Some(snapshot))
            }
            SAME_MARKETS => {
                let held = held.ok_or(not_held)?;
                Ok(Some(self.head(event_id, key)?.with(held.packed)))
            }
            SAME_TEMPLATE | NEW_TEMPLATE => {
                let head = self.head(event_id, key)?;
                let held = held.map(|held| held.packed);
                let packed = if tag == SAME_TEMPLATE {
                    let held = held.as_deref().ok_or(not_held)?;
                    self.charge(held.market_count(), held.odds_words().len())?;
                    let parts = self.odds(held.market_count(), base(Some(held)))?;
                    PackedMarkets::from_parts(Arc::clone(held.template()), parts, self.content)?
                } else {
                    let (markets, base) = self.markets(held.as_deref())?;
                    let parts = self.odds(markets.len(), &base)?;
                    let template = self.draft.packer.interner().relayed_template(&markets);
                    PackedMarkets::from_parts(template, parts, self.content)?
                };
                Ok(Some(head.with(packed)))
            }
            _ => Err("an unknown record"),
        }
    }

    fn head(&mut self, event_id: i64, key: &Key) -> Read<Head> {
        let snapshot_id = self.difference(self.last.snapshot_id)?;
        let of_event = self.difference(event_id)?;
        let bookmaker_id = match key {
            Key::Betpawa(bookmaker_id) => *bookmaker_id,
            Key::Competitor(_) => self.difference(0)?,
        };
        let captured_at = self.time(self.last.captured_at)?;
        let last_confirmed_at = self.time(captured_at.0)?;
        self.last.snapshot_id = snapshot_id;
        self.last.captured_at = captured_at.0;
        self.last.confirmed_at = last_confirmed_at.0;
        Ok(Head {
            snapshot_id,
            event_id: of_event,
            bookmaker_id,
            captured_at,
            last_confirmed_at,
        })
    }

    /// Reads the list of markets. Returns it with the odds that differences refer to.
    fn markets(&mut self, held: Option<&PackedMarkets>) -> Read<(Vec<CountedMarket>, Vec<u32>)> {
        let beyond = "a run of markets that the held snapshot does not have";
        let starts = held.map(starts).unwrap_or_default();
        let (mut markets, mut base): (Vec<CountedMarket>, Vec<u32>) = Default::default();
        let mut expected = 0i64;
        loop {
            let run = self.number()?;
            let length = usize::try_from(run >> 1).map_err(|_| "a run is too long")?;
            if run & 1 == 1 {
                let start = usize::try_from(self.difference(expected)?).map_err(|_| beyond)?;
                let end = start.checked_add(length).ok_or(beyond)?;
                let (Some(held), Some(first), Some(after)) =
                    (held, starts.get(start), starts.get(end))
                else {
                    return Err(beyond);
                };
                self.charge(length, after - first)?;
                let copied = held.template().markets().skip(start).take(length);
                markets.extend(copied.map(|(market, outcomes)| (Arc::clone(market), outcomes)));
                let words = held.odds_words();
                base.extend_from_slice(words.get(*first..*after).ok_or(beyond)?);
                expected = i64::try_from(end).map_err(|_| beyond)?;
            } else if length == 0 {
                return Ok((markets, base));
            } else {
                // Each takes at least one byte, so the length is limited by what follows.
                for _ in 0..length {
                    let (market, outcomes) = self.market()?;
                    self.charge(1, outcomes as usize)?;
                    base.resize(base.len() + outcomes as usize, 0);
                    markets.push((market, outcomes));
                }
            }
        }
    }

    fn market(&mut self) -> Read<CountedMarket> {
        let index = match self.number()? {
            0 => {
                let kind = self.number()?;
                if kind == self.kinds.len() as u64 {
                    let kind = self.kind()?;
                    self.kinds.push(kind);
                }
                let kind = usize::try_from(kind).ok();
                let kind = kind.and_then(|kind| self.kinds.get(kind).copied());
                let kind = kind.ok_or("a kind that was not defined")?;
                let names = self.text()?;
                let outcomes = outcomes_in(names).ok_or("malformed names of outcomes")?;
                let interner = self.draft.packer.interner();
                let market = interner.relayed_market(&kind, names);
                self.markets.push((market.ok_or("no market")?, outcomes));
                self.markets.len() as i64 - 1
            }
            number => unzigzag(number - 1).wrapping_add(self.last.market.wrapping_add(1)),
        };
        let market = usize::try_from(index).ok();
        let market = market.and_then(|index| self.markets.get(index).cloned());
        let market = market.ok_or("a market that was not defined")?;
        self.last.market = index;
        Ok(market)
    }

    fn kind(&mut self) -> Read<MarketKey<'b>> {
        let flags = self.byte()?;
        if flags >= 1 << 5 {
            return Err("unknown flags of a market");
        }
        let has = |bit: u8| flags & 1 << bit != 0;
        Ok(MarketKey {
            betpawa_market_id: self.text()?,
            betpawa_market_name: self.text()?,
            handicap_type: has(0).then(|| self.text()).transpose()?,
            market_groups: has(1).then(|| self.text()).transpose()?,
            line: has(2).then(|| self.float()).transpose()?,
            handicap_home: has(3).then(|| self.float()).transpose()?,
            handicap_away: has(4).then(|| self.float()).transpose()?,
        })
    }

    fn odds(&mut self, markets: usize, base: &[u32]) -> Read<PackedParts> {
        let mut parts = PackedParts {
            malformed_rows: u32::try_from(self.number()?).map_err(|_| "too many malformed rows")?,
            ..PackedParts::default()
        };
        let unavailable = self.number()?;
        if unavailable > markets as u64 {
            return Err("more unavailable markets than markets");
        }
        let mut market = 0;
        for _ in 0..unavailable {
            market = self.difference(market)?;
            let index = u32::try_from(market).map_err(|_| "an unavailable market without index")?;
            parts
                .unavailable_at
                .push((index, self.time(self.last.captured_at)?));
        }
        // What `base` holds was charged, so the same number of words may be made.
        match self.byte()? {
            RAW => {
                let words = self.bytes(base.len().checked_mul(4).ok_or(ENDS)?)?;
                let words = words.as_chunks::<4>().0.iter();
                parts.odds = words.map(|word| u32::from_le_bytes(*word)).collect();
            }
            DIFFERENCES => {
                while let Some(rest) = base.get(parts.odds.len()..)
                    && let Some(word) = rest.first()
                {
                    let difference = u32::try_from(self.number()?).map_err(|_| "no word")?;
                    if difference == 0 {
                        let more = usize::try_from(self.number()?).ok();
                        let same = more.and_then(|more| rest.get(..more.checked_add(1)?));
                        parts
                            .odds
                            .extend_from_slice(same.ok_or("more odds than outcomes")?);
                    } else {
                        // The difference of two words fits 32 bits, so its zigzag does.
                        let difference = unzigzag(u64::from(difference)) as u32;
                        parts
                            .odds
                            .push(turned_back(turned(*word).wrapping_add(difference)));
                    }
                }
            }
            _ => return Err("odds of an unknown form"),
        }
        let wide = wide_odds(&parts.odds).ok_or("odds out of order")?;
        for _ in 0..wide {
            parts.wide_odds.push(self.float()?);
        }
        Ok(parts)
    }

    fn charge(&mut self, markets: usize, words: usize) -> Read<()> {
        self.cost = self.cost.saturating_add(cost(markets, words));
        if self.cost > MOST_COST {
            return Err("its records make more than a part may");
        }
        Ok(())
    }

    fn key(&mut self, competitor: bool) -> Read<Key> {
        if !competitor {
            return self.difference(0).map(Key::Betpawa);
        }
        let index = self.number()?;
        if index == self.sources.len() as u64 {
            let name = self.text()?;
            self.sources.push(self.draft.packer.source(name));
        }
        let source = usize::try_from(index).ok();
        let source = source.and_then(|index| self.sources.get(index).cloned());
        Ok(Key::Competitor(
            source.ok_or("a source that was not defined")?,
        ))
    }

    fn names(&mut self) -> Read<(EventNames, Option<Arc<Tournament>>)> {
        let columns = [
            self.optional()?,
            self.optional()?,
            self.optional()?,
            self.optional()?,
        ];
        let names = EventNames::new(columns);
        let Some(index) = self.number()?.checked_sub(1) else {
            return Ok((names, None));
        };
        if index == self.tournaments.len() as u64 {
            let id = self.difference(0)?;
            let columns = [self.optional()?, self.optional()?, self.optional()?];
            let shared = self.draft.packer.lookup.share(Tournament::new(id, columns));
            self.tournaments.push(shared);
        }
        let tournament = usize::try_from(index).ok();
        let tournament = tournament.and_then(|index| self.tournaments.get(index).cloned());
        Ok((
            names,
            Some(tournament.ok_or("a tournament that was not defined")?),
        ))
    }

    fn optional(&mut self) -> Read<Option<&'b str>> {
        let Some(length) = self.number()?.checked_sub(1) else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| ENDS)?;
        self.text_of(length).map(Some)
    }

    fn event_id(&mut self) -> Read<i64> {
        self.last.event_id = self.difference(self.last.event_id)?;
        Ok(self.last.event_id)
    }

    fn time(&mut self, after: i64) -> Read<Micros> {
        Micros::checked(self.difference(after)?).ok_or("a time out of range")
    }

    fn difference(&mut self, to: i64) -> Read<i64> {
        Ok(to.wrapping_add(unzigzag(self.number()?)))
    }

    fn text(&mut self) -> Read<&'b str> {
        let length = usize::try_from(self.number()?).map_err(|_| ENDS)?;
        self.text_of(length)
    }

    fn text_of(&mut self, length: usize) -> Read<&'b str> {
        std::str::from_utf8(self.bytes(length)?).map_err(|_| "a text that is not UTF-8")
    }

    fn float(&mut self) -> Read<f64> {
        let bytes = self.bytes(8)?.first_chunk::<8>().ok_or(ENDS)?;
        Ok(f64::from_bits(u64::from_le_bytes(*bytes)))
    }

    fn number(&mut self) -> Read<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number of more than 64 bits")
    }

    fn byte(&mut self) -> Read<u8> {
        let (byte, rest) = self.rest.split_first().ok_or(ENDS)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn bytes(&mut self, length: usize) -> Read<&'b [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(ENDS)?;
        self.rest = rest;
        Ok(bytes)
    }
}
