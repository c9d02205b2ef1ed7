//! What a change of the catalog means for the rows: which rows may have changed without a trigger.
//!
//! Partitions of `odds_snapshots` come and go every day, and nothing else changes with them. So then the follower looks
//! up only the latest snapshots of the events that have rows in them. If another table was truncated or rewritten, it
//! reads that side. A column that nobody reads changes nothing. If a trigger changed, any row may have changed without a
//! log row, and the follower asks which rows were written since ([`crate::read::versions`]). After any other change it
//! reads everything, also if the function of the triggers or the log itself changed.
//!
//! # Invariants
//! - KP1: Each fact of the fingerprint that differs belongs to one table or partition, to a column, or to a trigger. The
//!   rows that may have changed with any of these are read again; otherwise everything is.
//! - KP2: A row of a partition lies within the partition's bounds. So the rows that came with a partition are those
//!   within its bounds now, and the rows that went with one are among those that are held and lie within its bounds.
//! - KP3: The markets of a snapshot depend on its id alone, not on the partition of its row.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;
use tokio_postgres::{Client, Row};

use crate::{
    error::Error,
    model::Micros,
    postgres::{
        quote::literal,
        statement::{Prepared, Statement},
    },
    read::{change_log::ChangeSet, fingerprint::Watched, rows::optional_time, schema::Names},
    sql::Table,
    store::draft::Draft,
};

const DOING: &str = "reading the partitions";

/// The tables that are read, with their partitions, and the facts of the fingerprint.
#[derive(Debug)]
pub(crate) struct Partitions {
    /// What [`Watched::fingerprint`] says of these facts.
    pub(crate) fingerprint: String,
    facts: BTreeSet<String>,
    nodes: HashMap<u32, Node>,
}

/// One of the six tables, a partition or a child table of one.
#[derive(Debug, Clone, Copy)]
struct Node {
    table: Table,
    /// The bounds of a partition of `odds_snapshots` by `captured_at` that has no partitions itself.
    bounds: Option<Bounds>,
    /// Whether its rows, if it has any of its own, lie in a heap, which names the transaction that wrote each row.
    is_heap: bool,
}

/// From the first time to before the second. `None` is unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bounds {
    from: Option<Micros>,
    to: Option<Micros>,
}

impl Bounds {
    fn contains(self, time: Micros) -> bool {
        self.from.is_none_or(|from| from <= time) && self.to.is_none_or(|to| time < to)
    }

    /// The condition that `captured_at` of `s` is within the bounds.
    fn condition(self) -> String {
        let bound = |operator: &str, time: Option<Micros>| {
            time.map(|time| format!("s.captured_at {operator} '{}'", text(time)))
        };
        let bounds = [bound(">=", self.from), bound("<", self.to)];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        match bounds.is_empty() {
            true => "s.captured_at IS NOT NULL".to_owned(),
            false => bounds.join(" AND "),
        }
    }
}

/// Which rows may have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Tables of which any row may have changed.
    tables: BTreeSet<Table>,
    /// Bounds of changed partitions, and whether there is such a partition now.
    bounds: BTreeMap<Bounds, bool>,
    /// Whether a trigger changed, so that somebody may also have written any other row without a log row.
    is_unlogged: bool,
}

impl Partitions {
    /// What [`Partitions::read`] runs, beside the facts.
    pub(crate) fn statement(names: &Names) -> Statement {
        Statement::lasting("partitions", nodes(names))
    }

    /// Reads them in the current transaction.
    pub(crate) async fn read(
        client: &Client,
        prepared: Option<&Prepared>,
        names: &Names,
        watched: &Watched,
    ) -> Result<Partitions, Error> {
        let rows = watched.facts.all(DOING, client, None).await?;
        let (mut facts, mut sum) = (BTreeSet::new(), 0);
        for row in &rows {
            let get = || Ok((row.try_get(0)?, row.try_get::<_, i64>(1)?));
            let (fact, hash) = get().map_err(Error::database(DOING))?;
            facts.insert(fact);
            sum += i128::from(hash);
        }
        let nodes = Partitions::statement(names);
        let nodes = nodes.all(DOING, client, prepared).await?;
        let nodes: Result<Vec<_>, _> = nodes.iter().map(node).collect();
        let nodes = nodes.map_err(Error::database(DOING))?;
        Ok(Partitions {
            fingerprint: format!("{} {sum}", rows.len()),
            facts,
            nodes: nodes.into_iter().flatten().collect(),
        })
    }

    /// Which rows may have changed between `self` and `now` (KP1). `None` if any may have, and nothing tells which.
    /// `reads` says whether a column is read.
    pub(crate) fn touched(
        &self,
        now: &Partitions,
        reads: impl Fn(Table, &str) -> bool,
    ) -> Option<Touched> {
        let mut touched = Touched::default();
        let mut differences = self.facts.symmetric_difference(&now.facts).peekable();
        // The fingerprints differ, so this cannot be all.
        differences.peek()?;
        for fact in differences {
            let mut words = fact.split(' ');
            let kind = words.next()?;
            let of = |word: Option<&str>| word?.parse::<u32>().ok();
            let id = match kind {
                // A trigger's own id comes first.
                "trigger" => of(words.nth(1))?,
                "table" | "link" | "column" => of(words.next())?,
                _ => return None,
            };
            let (before, after) = (self.nodes.get(&id), now.nodes.get(&id));
            let node = after.or(before)?;
            if kind == "column" {
                if reads(node.table, column(fact)?) {
                    touched.tables.insert(node.table);
                }
                continue;
            }
            // While a table had no trigger, it may have missed any change of the tables below it, too.
            let is_bounded = |node: &Node| node.bounds.is_some();
            if kind == "trigger"
                && let (Some(before), Some(after)) = (before, after)
                && !(is_bounded(before) && is_bounded(after))
            {
                touched.is_unlogged = true;
                continue;
            }
            // A partition may have come back with other bounds. Then the rows within the old ones may be gone.
            before.inspect(|node| touched.add(node, false));
            after.inspect(|node| touched.add(node, true));
        }
        Some(touched)
    }

    /// Whether each market row names the transaction that wrote it.
    pub(crate) fn have_versions(&self) -> bool {
        let mut markets = self.nodes.values().filter(|node| node.table.has_markets());
        markets.all(|node| node.is_heap)
    }

    /// The rows of these partitions. `None` if one of them is no partition of `odds_snapshots` with known bounds.
    pub(crate) fn all_of(&self, ids: &[u32]) -> Option<Touched> {
        let mut touched = Touched::default();
        for id in ids {
            let node = self.nodes.get(id).filter(|node| node.bounds.is_some())?;
            touched.add(node, true);
        }
        Some(touched)
    }
}

impl Touched {
    /// Adds the rows of a node.
    fn add(&mut self, node: &Node, is_there: bool) {
        match node.bounds {
            Some(bounds) => *self.bounds.entry(bounds).or_default() |= is_there,
            None => drop(self.tables.insert(node.table)),
        }
    }

    /// The names of the tables, for the log.
    pub(crate) fn tables(&self) -> String {
        let partitions = (!self.bounds.is_empty()).then_some(Table::OddsSnapshots);
        let tables: BTreeSet<Table> = self.tables.iter().copied().chain(partitions).collect();
        let names: Vec<&str> = tables.into_iter().map(Table::name).collect();
        names.join(", ")
    }

    /// Whether any other row may have changed, too.
    pub(crate) fn is_unlogged(&self) -> bool {
        self.is_unlogged
    }

    /// Whether no row may have changed.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Touched::default()
    }

    pub(crate) fn append(&mut self, other: Touched) {
        self.tables.extend(other.tables);
        self.is_unlogged |= other.is_unlogged;
        for (bounds, is_there) in other.bounds {
            *self.bounds.entry(bounds).or_default() |= is_there;
        }
    }

    /// Adds the keys of these rows to a change set (KP2). Reads no markets (KP3).
    pub(crate) async fn add_to(
        &self,
        change_set: &mut ChangeSet,
        (client, names): (&Client, &Names),
        draft: &Draft,
        window_start: Micros,
    ) -> Result<(), Error> {
        for table in &self.tables {
            change_set.of(*table).add_all();
        }
        // Almost always. To look at each event would make every read cost as much as there are events.
        if self.bounds.is_empty() {
            return Ok(());
        }
        let events = &mut change_set.betpawa;
        let is_touched = |time| self.bounds.keys().any(|bounds| bounds.contains(time));
        for event in draft.events() {
            let mut held = event.betpawa.iter();
            if held.any(|(_, held)| is_touched(held.captured_at)) {
                events.insert(event.event_id);
            }
        }
        for (bounds, _) in self.bounds.iter().filter(|(_, is_there)| **is_there) {
            let sql = events_within(names, *bounds, window_start);
            let rows = client.query_typed(&sql, &[]).await;
            for row in rows.map_err(Error::database(DOING))? {
                events.insert(row.try_get(0).map_err(Error::database(DOING))?);
            }
        }
        Ok(())
    }
}

/// `()` -> the ids of the events in the window that have a snapshot within the bounds.
///
/// It names the table, not the partition, on which the role has no right. The server then visits only that partition.
/// An empty one costs one look: the first condition does not depend on the event.
fn events_within(names: &Names, bounds: Bounds, window_start: Micros) -> String {
    let (events, snapshots) = (
        names.table(Table::Events),
        names.table(Table::OddsSnapshots),
    );
    let (within, start) = (bounds.condition(), text(window_start));
    format!(
        "SELECT e.id::int8 FROM {events} e WHERE EXISTS (SELECT FROM {snapshots} s WHERE {within}) \
         AND e.kickoff > '{start}' AND EXISTS (SELECT FROM {snapshots} s WHERE s.event_id = e.id AND {within})"
    )
}

/// A constant for a column of either type of time. Without time zone, the server ignores `+00`.
fn text(time: Micros) -> impl std::fmt::Display {
    time.to_utc().format("%Y-%m-%d %H:%M:%S%.6f+00")
}

/// The name in the fact of a column. It may contain spaces.
fn column(fact: &str) -> Option<&str> {
    let name = fact.splitn(4, ' ').nth(3)?;
    name.rsplitn(3, ' ').nth(2)
}

/// `()` -> id, table, whether the bounds are known, from, to, and whether the rows lie in a heap.
///
/// Bounds are known if both are missing or are common times, printed and read by the same session. Without
/// MATERIALIZED the server would print and match those of each partition five times.
fn nodes(names: &Names) -> String {
    let time = |group: &str| {
        format!(
            "CASE WHEN bounds IS NULL THEN NULL WHEN type = 'timestamptz'::regtype THEN (bounds[{group}])::timestamptz \
             ELSE (bounds[{group}])::timestamp AT TIME ZONE 'UTC' END"
        )
    };
    format!(
        "WITH RECURSIVE node AS (\
           SELECT c.oid, c.oid AS root, c.relname, 0 AS level FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {app} AND c.relname IN ({tables}) AND c.relkind IN ('r', 'p') \
           UNION ALL SELECT i.inhrelid, node.root, node.relname, node.level + 1 \
           FROM pg_inherits i JOIN node ON node.oid = i.inhparent), \
         bounded AS MATERIALIZED (\
           SELECT node.oid, node.relname, c.relkind = 'p' OR c.relkind = 'r' AND c.relam = {HEAP} AS is_heap, \
             a.atttypid AS type, CASE WHEN level = 1 AND c.relkind = 'r' AND a.attname IS NOT NULL \
             THEN regexp_match(pg_get_expr(c.relpartbound, c.oid), \
               '^FOR VALUES FROM \\((?:''(\\d{{4}}-[-+:. \\d]*)''|MINVALUE)\\) TO \\((?:''(\\d{{4}}-[-+:. \\d]*)''|MAXVALUE)\\)$') END AS bounds \
           FROM node JOIN pg_class c USING (oid) \
           LEFT JOIN pg_partitioned_table p ON p.partrelid = node.root AND p.partstrat = 'r' AND p.partnatts = 1 \
             AND node.relname = {snapshots} \
           LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0] AND a.attname = 'captured_at' \
             AND a.atttypid IN ('timestamp'::regtype, 'timestamptz'::regtype)) \
         SELECT oid, relname::text, bounds IS NOT NULL, {}, {}, is_heap FROM bounded",
        time("1"),
        time("2"),
        app = literal(&names.app_schema),
        tables = Table::literals(),
        snapshots = literal(Table::OddsSnapshots.name()),
    )
}

/// The id of the access method `heap`, which is the same in every database.
const HEAP: u32 = 2;

fn node(row: &Row) -> Result<Option<(u32, Node)>, tokio_postgres::Error> {
    let Some(table) = Table::of_name(row.try_get(1)?) else {
        return Ok(None);
    };
    let bounds = match row.try_get(2)? {
        true => Some(Bounds {
            from: optional_time(row, 3)?,
            to: optional_time(row, 4)?,
        }),
        false => None,
    };
    let is_heap = row.try_get(5)?;
    let node = Node {
        table,
        bounds,
        is_heap,
    };
    Ok(Some((row.try_get(0)?, node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Bounds = Bounds {
        from: Some(Micros(10)),
        to: Some(Micros(20)),
    };

    /// `odds_snapshots` (1) with a partition (2) and the default one (3), `market_odds` (4), and these facts beside.
    fn partitions(has_day: bool, facts: &[&str]) -> Partitions {
        let node = |table, bounds| Node {
            table,
            bounds,
            is_heap: true,
        };
        let mut nodes = HashMap::from([
            (1, node(Table::OddsSnapshots, None)),
            (3, node(Table::OddsSnapshots, None)),
            (4, node(Table::MarketOdds, None)),
        ]);
        if has_day {
            nodes.insert(2, node(Table::OddsSnapshots, Some(DAY)));
        }
        let facts = facts.iter().map(|fact| (*fact).to_owned());
        Partitions {
            fingerprint: String::new(),
            facts: facts.chain(["rows 1 f".to_owned()]).collect(),
            nodes,
        }
    }

    /// KP1: what differs is covered by the answer, or there is none.
    #[test]
    fn each_difference_is_explained_or_any_row_may_have_changed() {
        let day = |is_there| Touched {
            bounds: BTreeMap::from([(DAY, is_there)]),
            ..Touched::default()
        };
        let all = |table| Touched {
            tables: BTreeSet::from([table]),
            ..Touched::default()
        };
        let of_day = ["table 2 7 r", "link 2 1 100", "trigger 9 2 100 A 8"];
        let unlogged = Touched {
            is_unlogged: true,
            ..Touched::default()
        };
        let cases: [(_, &[&str], _, &[&str], _); 13] = [
            (false, &[], true, &of_day, Some(day(true))),
            (true, &of_day, false, &[], Some(day(false))),
            (true, &of_day, true, &of_day[..2], Some(day(true))),
            (true, &of_day, true, &of_day, None),
            (
                true,
                &["table 4 7 r"],
                true,
                &["table 4 8 r"],
                Some(all(Table::MarketOdds)),
            ),
            (
                true,
                &["link 3 1 100"],
                true,
                &[],
                Some(all(Table::OddsSnapshots)),
            ),
            // A trigger of a table or of its default partition was replaced.
            (
                true,
                &["trigger 9 3 100 A 8"],
                true,
                &["trigger 9 3 101 A 8"],
                Some(unlogged),
            ),
            (
                true,
                &["trigger 9 3 100 A 8", "function 8 100"],
                true,
                &["trigger 9 3 101 A 8", "function 8 101"],
                None,
            ),
            (
                true,
                &["function 8 100", "link 3 1 100"],
                true,
                &["function 8 101"],
                None,
            ),
            (
                true,
                &["name odds.events 5"],
                true,
                &["name odds.events 6"],
                None,
            ),
            (
                true,
                &["column 1 2 id 20 0"],
                true,
                &[],
                Some(all(Table::OddsSnapshots)),
            ),
            (
                true,
                &[],
                true,
                &["column 1 2 a note 20 0"],
                Some(Touched::default()),
            ),
            // Of a table that nobody knows.
            (true, &[], true, &["table 77 7 r"], None),
        ];
        for (had, before, has, now, expected) in cases {
            let reads = |table, column: &str| (table, column) == (Table::OddsSnapshots, "id");
            let touched = partitions(had, before).touched(&partitions(has, now), reads);
            assert_eq!(touched, expected, "{before:?} {now:?}");
        }
    }

    #[test]
    fn a_bound_is_the_first_time_inside_or_the_first_outside() {
        let contains = [9, 10, 19, 20].map(|time| DAY.contains(Micros(time)));
        assert_eq!(contains, [false, true, true, false]);
        let unbounded = Bounds {
            from: None,
            to: None,
        };
        assert!(unbounded.contains(Micros(i64::MIN)));
        assert_eq!(unbounded.condition(), "s.captured_at IS NOT NULL");
        assert_eq!(
            DAY.condition(),
            "s.captured_at >= '1970-01-01 00:00:00.000010+00' AND s.captured_at < '1970-01-01 00:00:00.000020+00'"
        );
    }
}
