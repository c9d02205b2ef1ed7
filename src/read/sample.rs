//! The rows that a step of the audit reads, and their comparison with the draft.

use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::Duration};

use hashbrown::{HashMap, HashSet};

use crate::{
    decode::packer::MarketCollector,
    error::Error,
    model::{CachedEvent, CachedSnapshot, Micros, PackedMarkets, Source as SourceName},
    postgres::{connection::millis, pipeline::all_three},
    read::{
        audit::{self, Audited, Mismatch, Next, Pass, Slice, Step},
        changed::{Newest, PlanMarkets},
        plan::Plan,
        rows::{
            CompetitorRow, EventRow, NewSnapshot, Reader, Side, SnapshotHeader, SnapshotHeaders,
        },
        schema::NEW_SNAPSHOTS,
        source::Source,
        transaction::ReadStart,
        unreadable::Search,
    },
    store::draft::Draft,
};

/// The rows of a step of the audit.
pub(super) enum Sample {
    /// What begins a pass.
    Began(Pass, Began),
    Headers(Box<Headers>),
    New(New),
    Markets(Box<Markets>),
    /// The ids of some events, and all their rows. Nothing is taken over from the draft.
    Full(Pass, Vec<i64>, Box<Plan>, PlanMarkets),
}

pub(super) struct Began {
    /// All events in the window. Empty if the pass is over events of the draft.
    kickoffs: HashMap<i64, EventRow>,
    greatest: Newest,
    most: usize,
    now: Micros,
}

/// What a step over headers reads.
pub(super) struct Headers {
    /// The events to compare, ascending.
    ids: Vec<i64>,
    /// The ids of the snapshots that were looked up, and for `odds_snapshots` the times, which belong to the key there.
    betpawa_ids: HashSet<(i64, Micros)>,
    competitor_ids: HashSet<i64>,
    /// Their rows by id. A table without a primary key may have several for one id.
    betpawa: HashMap<i64, Vec<SnapshotHeader<i64>>>,
    competitors: HashMap<i64, Vec<SnapshotHeader<SourceName>>>,
    /// The events of which all headers were read, and these.
    whole: BTreeSet<i64>,
    headers: SnapshotHeaders,
}

/// Snapshots with the next greater ids.
pub(super) enum New {
    Betpawa(Vec<NewSnapshot<i64>>),
    Competitors(Vec<NewSnapshot<SourceName>>),
}

/// The markets of the snapshots that some events held.
pub(super) struct Markets {
    ids: Vec<i64>,
    /// The ids of the snapshots whose markets were read, ascending.
    betpawa_ids: Vec<i64>,
    competitor_ids: Vec<i64>,
    betpawa: HashMap<i64, Arc<PackedMarkets>>,
    competitors: HashMap<i64, Arc<PackedMarkets>>,
}

pub(super) const AUDIT: &str = "auditing";

impl Sample {
    pub(super) async fn read(
        source: Source<'_>,
        reader: Reader<'_>,
        step: Step,
        start: &ReadStart,
        draft: &mut Draft,
    ) -> Result<Sample, Error> {
        // About five statements follow. Each may take a fifth of the read time-out. So the server cancels a slow audit
        // before the follower takes the connection for dead. Without `jit = off` it would compile each statement, because
        // it overestimates the lookups by key. That takes three times as long as running them.
        let bound = format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL jit = off",
            millis(source.config.read_timeout / 5)
        );
        source
            .client
            .batch_execute(&bound)
            .await
            .map_err(Error::database(AUDIT))?;
        // The log has named the malformed rows already, when they were read for the first time.
        let reader = Reader {
            names_malformed: false,
            ..reader
        };
        let window_start = start.window_start;
        let pass = step.pass();
        match step {
            Step::Begin(pass, most) => {
                let kickoffs = match pass {
                    Pass::Likely => HashMap::new(),
                    _ => reader.all_kickoffs(window_start).await?,
                };
                let (betpawa, competitors) = match pass {
                    Pass::Headers => reader.greatest_ids().await?,
                    _ => (0, 0),
                };
                let began = Began {
                    kickoffs,
                    greatest: Newest {
                        betpawa,
                        competitors,
                    },
                    most,
                    now: start.server_now,
                };
                Ok(Sample::Began(pass, began))
            }
            Step::Headers(slice) => {
                let ids = events_of(slice, draft, reader.search);
                let headers = Headers::read(reader, ids, window_start, draft).await?;
                Ok(Sample::Headers(Box::new(headers)))
            }
            // A statement over all new snapshots cannot be halved around an unreadable row.
            Step::New(..) if reader.search.is_some() => Ok(Sample::New(New::Betpawa(Vec::new()))),
            Step::New(Side::Betpawa, after) => {
                let new = reader.new_betpawa(after).await?;
                Ok(Sample::New(New::Betpawa(new)))
            }
            Step::New(Side::Competitors, after) => {
                let new = reader.new_competitors(after).await?;
                Ok(Sample::New(New::Competitors(new)))
            }
            Step::Markets(ids) => {
                let markets = Markets::read(reader, ids, draft).await?;
                Ok(Sample::Markets(Box::new(markets)))
            }
            Step::Full(slice) | Step::Resync(slice) => {
                let ids = events_of(slice, draft, reader.search);
                let headers = SnapshotHeaders {
                    kickoffs: reader.kickoffs(window_start, &ids).await?,
                    betpawa: reader.betpawa_headers(&ids).await?,
                    competitors: reader.competitor_headers(&ids, &[]).await?,
                };
                let kept = reader.search.map(Search::kept).unwrap_or_default();
                let plan = Plan::whole([], headers, kept);
                let packed_markets = PlanMarkets::read(reader, &plan, draft).await?;
                Ok(Sample::Full(pass, ids, Box::new(plan), packed_markets))
            }
        }
    }

    /// Compares the rows with a draft that was brought to the same snapshot (U5 of [`audit`]).
    pub(super) fn compare(self, draft: &mut Draft, search: Option<&Search>) -> Audited {
        // The audit does not apply what it reads. So it leaves events with unreadable rows to the reads that try them
        // again.
        let unreadable = search
            .map(|search| search.events(draft))
            .unwrap_or_default();
        let is_readable = |id: &i64| !unreadable.contains(id);
        match self {
            Sample::Began(pass, began) => began.compare(pass, draft, is_readable),
            Sample::Headers(mut headers) => {
                headers.ids.retain(is_readable);
                let compared = headers.ids.iter();
                let mismatches = compared
                    .filter_map(|id| headers.compare(*id, draft))
                    .collect();
                Audited {
                    pass: Pass::Headers,
                    count: headers.ids.len(),
                    mismatches,
                    next: Next::Slice,
                }
            }
            Sample::New(new) => new.compare(draft, is_readable),
            Sample::Markets(mut markets) => {
                markets.ids.retain(is_readable);
                let mismatches = markets.compare(draft);
                Audited {
                    pass: Pass::Likely,
                    count: markets.ids.len(),
                    mismatches,
                    next: Next::Slice,
                }
            }
            Sample::Full(pass, mut ids, plan, packed_markets) => {
                // A second draft that shares the interned names, so that equal snapshots compare as equal.
                let mut read = draft.successor();
                plan.keep(draft, &mut read);
                packed_markets.apply(*plan, &mut read);
                ids.retain(is_readable);
                let mismatches = audit::compare(draft, &read, &ids);
                draft.packer = std::mem::take(&mut read.packer);
                if pass == Pass::Resync {
                    for mismatch in &mismatches {
                        take_over(mismatch.event_id, &read, draft);
                    }
                }
                Audited {
                    pass,
                    count: ids.len(),
                    mismatches,
                    next: Next::Slice,
                }
            }
        }
    }
}

/// Sets an event to what was read of it.
fn take_over(event_id: i64, read: &Draft, draft: &mut Draft) {
    match read.event(event_id) {
        Some(event) => {
            let (betpawa, competitors) = (event.betpawa.clone(), event.competitors.clone());
            draft.set(event_id, event.header(), betpawa, competitors);
        }
        None => drop(draft.remove(event_id)),
    }
}

/// The events of a slice, ascending: those that it lists and those that the draft holds. The database may have lost some
/// of these. Leaves out events with unreadable rows.
fn events_of(slice: Slice, draft: &Draft, search: Option<&Search>) -> Vec<i64> {
    let Slice { range, ids } = slice;
    let mut ids: Vec<i64> = draft.ids_in(range).chain(ids).collect();
    ids.sort_unstable();
    ids.dedup();
    if let Some(search) = search {
        let unreadable = search.events(draft);
        ids.retain(|id| !unreadable.contains(id));
    }
    ids
}

impl Began {
    fn compare(self, pass: Pass, draft: &Draft, is_readable: impl Fn(&i64) -> bool) -> Audited {
        let Began {
            kickoffs,
            greatest,
            most,
            now,
        } = self;
        if pass == Pass::Likely {
            return Audited {
                pass,
                count: 0,
                mismatches: Vec::new(),
                next: Next::Began(audit::likeliest(draft, now, most), greatest),
            };
        }
        // Events that are held, whether the window has them or not (U1 of `audit`).
        let all = (Bound::Unbounded, Bound::<i64>::Unbounded);
        let mut ids: Vec<i64> = draft.ids_in(all).chain(kickoffs.keys().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        let differs = |event: &&Arc<CachedEvent>| {
            EventRow::held(event).as_ref() != kickoffs.get(&event.event_id)
                && is_readable(&event.event_id)
        };
        let mismatch = |event: &Arc<CachedEvent>| {
            let event_id = event.event_id;
            let what = match kickoffs.get(&event_id) {
                Some(row) if event.kickoff == Some(row.kickoff) => audit::NAMES,
                Some(_) => audit::KICKOFF,
                None => audit::GONE,
            };
            Mismatch::new(event_id, what)
        };
        let mismatches = match pass {
            Pass::Headers => draft.events().filter(differs).map(mismatch).collect(),
            _ => Vec::new(),
        };
        Audited {
            pass,
            count: 0,
            mismatches,
            next: Next::Began(ids, greatest),
        }
    }
}

impl Headers {
    async fn read(
        reader: Reader<'_>,
        ids: Vec<i64>,
        window_start: Micros,
        draft: &Draft,
    ) -> Result<Headers, Error> {
        let held = || ids.iter().filter_map(|id| draft.event(*id));
        let (mut own, mut others) = (Vec::new(), Vec::new());
        // While a search is on, all headers are read, because only those statements can be halved.
        if reader.search.is_none() {
            for event in held() {
                let snapshots = event.betpawa.iter().map(|(_, snapshot)| snapshot);
                // One whose time PostgreSQL would not find is left to the full pass.
                own.extend(snapshots.filter(|snapshot| snapshot.captured_at.is_exact()));
                others.extend(event.competitors.iter().map(|(_, held)| held.snapshot_id));
            }
        }
        let own_ids: Vec<i64> = own.iter().map(|snapshot| snapshot.snapshot_id).collect();
        let captured: Vec<Micros> = own.iter().map(|snapshot| snapshot.captured_at).collect();
        let whole: BTreeSet<i64>;
        let (betpawa, competitors) = match reader.search {
            Some(_) => {
                whole = ids.iter().copied().collect();
                (Vec::new(), Vec::new())
            }
            None => {
                let (betpawa, competitors, links) = all_three(
                    reader.betpawa_snapshots(&own_ids, &captured),
                    reader.competitor_snapshots(&others),
                    reader.links(&ids),
                )
                .await?;
                // The links of all events are read, so a row that is of none of them belongs elsewhere.
                let header = |row: CompetitorRow| {
                    let (event_id, source) = links.get(&row.competitor_event_id)?;
                    Some(row.header(*event_id, source.clone()))
                };
                let competitors = competitors.into_iter().filter_map(header).collect();
                let is_new = |(event_id, source): &&(i64, SourceName)| {
                    let event = draft.event(*event_id);
                    event.is_some_and(|event| event.competitors.get(source.as_str()).is_none())
                };
                let linked = links.values().filter(is_new).map(|(event_id, _)| *event_id);
                let not_held = ids.iter().copied().filter(|id| draft.event(*id).is_none());
                whole = linked.chain(not_held).collect();
                (betpawa, competitors)
            }
        };
        let asked: Vec<i64> = whole.iter().copied().collect();
        let headers = SnapshotHeaders {
            kickoffs: reader.kickoffs(window_start, &asked).await?,
            betpawa: reader.betpawa_headers(&asked).await?,
            competitors: reader.competitor_headers(&asked, &[]).await?,
        };
        Ok(Headers {
            ids,
            betpawa_ids: own_ids.into_iter().zip(captured).collect(),
            competitor_ids: others.into_iter().collect(),
            betpawa: by_id(betpawa),
            competitors: by_id(competitors),
            whole,
            headers,
        })
    }

    /// Compares an event with the rows read. Names the first difference.
    fn compare(&self, event_id: i64, draft: &Draft) -> Option<Mismatch> {
        let held = draft.event(event_id).map(|event| &**event);
        let what = match held {
            Some(held) => self.held(held),
            None => None,
        };
        what.or_else(|| self.missing(event_id, held))
            .map(|what| Mismatch::new(event_id, what))
    }

    /// The first held snapshot whose row is another. One that was not looked up, or under another time, came with this
    /// read (U5 of [`audit`]).
    fn held(&self, event: &CachedEvent) -> Option<String> {
        let is_gone = |held: &CachedSnapshot, side: &dyn std::fmt::Display| {
            let id = held.snapshot_id;
            format!("snapshot {id} of {side} is gone, belongs elsewhere, or has other times")
        };
        for (bookmaker_id, held) in event.betpawa.iter() {
            let is_row = |row: &SnapshotHeader<i64>| row.key == bookmaker_id && is_of(row, held);
            let rows = self.betpawa.get(&held.snapshot_id);
            let key = (held.snapshot_id, held.captured_at);
            if self.betpawa_ids.contains(&key) && !rows.is_some_and(|rows| rows.iter().any(is_row))
            {
                return Some(is_gone(
                    held,
                    &format_args!("bookmaker {bookmaker_id} in odds_snapshots"),
                ));
            }
        }
        for (source, held) in event.competitors.iter() {
            let is_row = |row: &SnapshotHeader<SourceName>| row.key == *source && is_of(row, held);
            let rows = self.competitors.get(&held.snapshot_id);
            if self.competitor_ids.contains(&held.snapshot_id)
                && !rows.is_some_and(|rows| rows.iter().any(is_row))
            {
                return Some(is_gone(
                    held,
                    &format_args!("{source} in competitor_odds_snapshots"),
                ));
            }
        }
        None
    }

    /// The first header that the event should hold and does not, if all its headers were read.
    fn missing(&self, event_id: i64, held: Option<&CachedEvent>) -> Option<String> {
        if !self.whole.contains(&event_id) || !self.headers.kickoffs.contains_key(&event_id) {
            return None;
        }
        let is_of_event = |id: i64| id == event_id;
        let own = self.headers.betpawa.iter().find(|row| {
            let held = held.and_then(|event| event.betpawa.get(row.key));
            is_of_event(row.event_id) && !held.is_some_and(|held| is_of(*row, held))
        });
        let other = self.headers.competitors.iter().find(|row| {
            let held = held.and_then(|event| event.competitors.get(row.key.as_str()));
            is_of_event(row.event_id) && !held.is_some_and(|held| is_of(*row, held))
        });
        let own = own.map(|row| {
            format!(
                "snapshot {} of bookmaker {} in odds_snapshots is new",
                row.snapshot_id, row.key
            )
        });
        own.or_else(|| {
            other.map(|row| {
                format!(
                    "snapshot {} of {} in competitor_odds_snapshots is new",
                    row.snapshot_id, row.key
                )
            })
        })
    }
}

/// Whether a held snapshot shows what its row says.
fn is_of<K>(row: &SnapshotHeader<K>, held: &CachedSnapshot) -> bool {
    row.event_id == held.event_id
        && row.snapshot_id == held.snapshot_id
        && row.captured_at == held.captured_at
        && row.last_confirmed_at.unwrap_or(row.captured_at) == held.last_confirmed_at
}

fn by_id<K>(rows: Vec<SnapshotHeader<K>>) -> HashMap<i64, Vec<SnapshotHeader<K>>> {
    let mut by_id: HashMap<i64, Vec<_>> = HashMap::with_capacity(rows.len());
    for row in rows {
        by_id.entry(row.snapshot_id).or_default().push(row);
    }
    by_id
}

impl New {
    /// Compares with the held events. Events that are not held are left to the steps over headers.
    fn compare(self, draft: &Draft, is_readable: impl Fn(&i64) -> bool) -> Audited {
        let (mismatches, last, read) = match &self {
            New::Betpawa(rows) => {
                let newest = |event: &CachedEvent, bookmaker: &i64| {
                    event.betpawa.get(*bookmaker).map(|held| held.snapshot_id)
                };
                let side = |bookmaker: &i64| format!("bookmaker {bookmaker} in odds_snapshots");
                let found = newer(rows, draft, newest, side, is_readable);
                (found, rows.last().map(|(id, _)| *id), rows.len())
            }
            New::Competitors(rows) => {
                let newest = |event: &CachedEvent, source: &SourceName| {
                    let held = event.competitors.get(source.as_str());
                    held.map(|held| held.snapshot_id)
                };
                let side = |source: &SourceName| format!("{source} in competitor_odds_snapshots");
                let found = newer(rows, draft, newest, side, is_readable);
                (found, rows.last().map(|(id, _)| *id), rows.len())
            }
        };
        Audited {
            pass: Pass::Headers,
            count: 0,
            mismatches,
            next: Next::New(last.filter(|_| read == NEW_SNAPSHOTS)),
        }
    }
}

/// The held events with a row that is newer than the snapshot that they hold. Names one row for each.
fn newer<K>(
    rows: &[NewSnapshot<K>],
    draft: &Draft,
    newest: impl Fn(&CachedEvent, &K) -> Option<i64>,
    side: impl Fn(&K) -> String,
    is_readable: impl Fn(&i64) -> bool,
) -> Vec<Mismatch> {
    let mut found = BTreeSet::new();
    let mut mismatches = Vec::new();
    for (id, of) in rows {
        let (Some(event_id), Some(key)) = of else {
            continue;
        };
        let is_newer = draft
            .event(*event_id)
            .is_some_and(|event| newest(event, key) < Some(*id));
        if is_newer && is_readable(event_id) && found.insert(*event_id) {
            let what = format!("snapshot {id} of {} is new", side(key));
            mismatches.push(Mismatch::new(*event_id, what));
        }
    }
    mismatches
}

impl Markets {
    async fn read(
        reader: Reader<'_>,
        mut ids: Vec<i64>,
        draft: &mut Draft,
    ) -> Result<Markets, Error> {
        ids.retain(|id| draft.event(*id).is_some());
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for event in ids.iter().filter_map(|id| draft.event(*id)) {
            own.extend(event.betpawa.iter().map(|(_, held)| held.snapshot_id));
            others.extend(event.competitors.iter().map(|(_, held)| held.snapshot_id));
        }
        for list in [&mut own, &mut others] {
            list.sort_unstable();
            list.dedup();
        }
        let no_helper = Duration::MAX;
        let betpawa = reader.markets(&[], no_helper, Side::Betpawa, &own, draft);
        let betpawa = betpawa.await?;
        let competitors = reader.markets(&[], no_helper, Side::Competitors, &others, draft);
        Ok(Markets {
            ids,
            competitors: competitors.await?,
            betpawa,
            betpawa_ids: own,
            competitor_ids: others,
        })
    }

    fn compare(&self, draft: &mut Draft) -> Vec<Mismatch> {
        let none = MarketCollector::empty(&mut draft.packer);
        let differs = |held: &CachedSnapshot, side: Side| {
            let (ids, read) = match side {
                Side::Betpawa => (&self.betpawa_ids, &self.betpawa),
                Side::Competitors => (&self.competitor_ids, &self.competitors),
            };
            let id = held.snapshot_id;
            let packed = read.get(&id).unwrap_or(&none);
            // The markets of one that the draft did not hold were not read (U5 of `audit`).
            ids.binary_search(&id).is_ok() && !held.packed.same(packed)
        };
        let mismatch = |id: &i64| {
            let event = draft.event(*id)?;
            let own = event.betpawa.iter().map(|(_, held)| (held, Side::Betpawa));
            let others = event.competitors.iter();
            let others = others.map(|(_, held)| (held, Side::Competitors));
            let (held, side) = own
                .chain(others)
                .find(|(held, side)| differs(held, *side))?;
            let what = format!("{} of snapshot {}", side.markets().name(), held.snapshot_id);
            Some(Mismatch::new(*id, what))
        };
        self.ids.iter().filter_map(mismatch).collect()
    }
}
