//! Reads one event from the database, in SQL that shares nothing with the cache's.

use chrono::{DateTime, Utc};
use oddscache::sql::Table;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::oracle::{self, OPTIONAL};
use crate::server::{
    options::follow::FollowArguments,
    session::{Session, Trouble, identifier, literal},
};

/// How many older snapshots are printed with each latest one.
const OLDER: u32 = 3;

/// Why an event is held, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It is to be held.
    Held,
    /// `events` has no such row.
    NoSuchEvent,
    /// Its kickoff is too long ago.
    OutsideWindow,
    /// No bookmaker and no live, linked competitor event has a snapshot of it.
    NoSnapshot,
}

/// The event at one committed state.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The database's clock, after its snapshot was taken.
    pub(crate) at: DateTime<Utc>,
    pub(crate) standing: Standing,
    /// Its kickoff has passed, so the lookback decides whether it is held.
    pub(crate) has_begun: bool,
    /// As the service should print it; null if the service should not hold it.
    pub(crate) event: Value,
}

impl Reading {
    /// Whether it is not held because of its kickoff.
    pub(crate) fn is_window_only(&self) -> bool {
        self.standing == Standing::OutsideWindow
    }
}

/// Where the odds of the event come from. The names of the fields are those of `--json`, and stay.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) standing: Standing,
    /// The database's clock.
    pub(crate) at: DateTime<Utc>,
    /// Only events with a later kickoff are held.
    pub(crate) window_start: DateTime<Utc>,
    pub(crate) kickoff: Option<String>,
    /// The snapshots that are the latest, of bookmakers and of competitors.
    pub(crate) latest: Vec<Latest>,
    /// All competitor events linked to the event, also those that do not count.
    pub(crate) competitor_events: Vec<CompetitorEvent>,
    /// The newest log rows that name the event, newest first.
    pub(crate) log: Vec<LogRow>,
    /// Why the log could not be read; null if it could.
    pub(crate) log_trouble: Option<String>,
}

/// A snapshot that is the latest of its bookmaker or source: the greatest id wins.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Latest {
    /// Null for a competitor's.
    pub(crate) bookmaker_id: Option<i64>,
    /// Null for a bookmaker's.
    pub(crate) source: Option<String>,
    pub(crate) competitor_event_id: Option<i64>,
    pub(crate) snapshot_id: i64,
    pub(crate) captured_at: String,
    /// Null where it was never confirmed; `captured_at` is served then.
    pub(crate) last_confirmed_at: Option<String>,
    pub(crate) markets: i64,
    /// How many older snapshots it replaced.
    pub(crate) beaten: i64,
    /// The newest of these.
    pub(crate) older: Vec<Older>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Older {
    pub(crate) snapshot_id: i64,
    pub(crate) captured_at: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CompetitorEvent {
    pub(crate) id: i64,
    pub(crate) source: String,
    pub(crate) external_id: Option<String>,
    /// If not null, the competitor event does not count.
    pub(crate) deleted_at: Option<String>,
    pub(crate) snapshots: i64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LogRow {
    pub(crate) xid: String,
    pub(crate) at: DateTime<Utc>,
    pub(crate) table_name: String,
    pub(crate) op: String,
    /// It names no keys: the cache reads the whole table again.
    pub(crate) whole_table: bool,
    /// The SQLSTATE of an error in a trigger. The error's text is left out, because it may quote data.
    pub(crate) sqlstate: Option<String>,
    /// Whether it was written after the service's cut; null without a service.
    pub(crate) after_cut: Option<bool>,
}

/// Asks the database about one event.
pub(crate) struct Database<'a> {
    session: &'a Session,
    app: String,
    cache: String,
    lookback: f64,
    event: i64,
}

/// SQL that turns the text of a column into a time in UTC. If the column has no zone, the text gets a `Z`.
fn utc(value: &str) -> String {
    format!("regexp_replace({value}, '(T[0-9:.]+)$', '\\1Z')")
}

#[derive(Deserialize)]
struct Row {
    at: DateTime<Utc>,
    exists: bool,
    within: bool,
    begun: bool,
    line: Option<String>,
}

#[derive(Deserialize)]
struct FactsRow {
    at: DateTime<Utc>,
    window_start: DateTime<Utc>,
    exists: bool,
    within: bool,
    kickoff: Option<String>,
    own: Option<Vec<Latest>>,
    theirs: Option<Vec<Latest>>,
    links: Option<Vec<CompetitorEvent>>,
}

impl<'a> Database<'a> {
    pub(crate) fn new(session: &'a Session, follow: &FollowArguments, event: i64) -> Database<'a> {
        Database {
            session,
            app: identifier(&follow.app_schema),
            cache: identifier(&follow.cache_schema),
            lookback: follow.lookback.as_secs_f64(),
            event,
        }
    }

    fn begin(&self) -> String {
        // The oracle's names are unqualified, so search_path must say which schema.
        format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = {}, pg_temp",
            self.app
        )
    }

    fn window_start(&self) -> String {
        format!("(now() - {} * interval '1 second')", self.lookback)
    }

    /// The event as it is committed now.
    pub(crate) async fn read(&self) -> Result<Reading, Trouble> {
        let head = "with upcoming as (";
        let oracle = oracle::without(&self.missing().await?);
        let Some((comments, rest)) = oracle.split_once(head) else {
            return Err(Trouble::new("oracle.sql does not begin as expected"));
        };
        // A CTE hides the table `events`, so the oracle sees this event alone.
        let one = format!(
            "{comments}with events as (select * from {}.events where id = {}), upcoming as ({rest}",
            self.app, self.event
        );
        let one = one.replace("$1", &self.window_start());
        let one = one.trim_end().trim_end_matches(';');
        let sql = format!(
            "SELECT clock_timestamp() AS at, e.id IS NOT NULL AS exists, {within} AS within, \
             coalesce({kickoff}::timestamptz <= now(), false) AS begun, (SELECT o.line FROM (\n{one}\n) AS o) AS line \
             FROM (SELECT) AS always LEFT JOIN {app}.events AS e ON e.id = {event}",
            within = self.within(),
            kickoff = utc("to_jsonb(e) ->> 'kickoff'"),
            app = self.app,
            event = self.event,
        );
        let row: Row = self.session.row_after(&self.begin(), &sql).await?;
        let event = match &row.line {
            Some(line) => serde_json::from_str(line)
                .map_err(|error| Trouble::new(format!("the event is no JSON: {error}")))?,
            None => Value::Null,
        };
        Ok(Reading {
            at: row.at,
            has_begun: row.begun,
            standing: standing(row.exists, row.within, row.line.is_some()),
            event,
        })
    }

    /// The optional tables that are missing, or that the role may not read.
    async fn missing(&self) -> Result<Vec<String>, Trouble> {
        #[derive(Deserialize)]
        struct Missing {
            name: String,
        }
        let sql = format!(
            "SELECT t.name FROM unnest({OPTIONAL}) AS t (name) WHERE NOT coalesce(\
             has_table_privilege(to_regclass({} || '.' || t.name), 'SELECT'), false)",
            literal(&self.app)
        );
        let rows = self.session.rows::<Missing>(&sql).await?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    }

    /// Whether the kickoff of `e` is within the window.
    fn within(&self) -> String {
        let kickoff = utc("to_jsonb(e) ->> 'kickoff'");
        format!(
            "coalesce({kickoff}::timestamptz > {}, false)",
            self.window_start()
        )
    }

    /// Where the odds come from, and which log rows name the event. Marks log rows newer than the service's `cut`.
    pub(crate) async fn facts(
        &self,
        log_rows: u16,
        cut: Option<DateTime<Utc>>,
    ) -> Result<Facts, Trouble> {
        let (begin, query) = (self.begin(), self.facts_query());
        let row: FactsRow = self.session.row_after(&begin, &query).await?;
        let mut latest = row.own.unwrap_or_default();
        latest.extend(row.theirs.unwrap_or_default());
        let (log, log_trouble) = match self.log(log_rows, cut).await {
            Ok(log) => (log, None),
            Err(trouble) => (Vec::new(), Some(trouble.text)),
        };
        Ok(Facts {
            standing: standing(row.exists, row.within, !latest.is_empty()),
            at: row.at,
            window_start: row.window_start,
            kickoff: row.kickoff,
            latest,
            competitor_events: row.links.unwrap_or_default(),
            log,
            log_trouble,
        })
    }

    fn facts_query(&self) -> String {
        let (app, event) = (&self.app, self.event);
        let captured = utc("to_jsonb(r.s) ->> 'captured_at'");
        let confirmed = utc("to_jsonb(r.s) ->> 'last_confirmed_at'");
        // A partitioned table may have an id twice. This order is the oracle's.
        let latest_first = "s.id DESC, s.captured_at DESC NULLS LAST";
        // `ranked` numbers the snapshots of one bookmaker or source, the greatest id first. to_jsonb() reads the large
        // raw_response, so it is called only for the few rows that are printed.
        let latest = |ranked: &str, keys: &str, rivals: &str, markets: &str| {
            format!(
                "SELECT jsonb_agg(to_jsonb(x)) FROM (\
                   WITH ranked AS ({ranked}) \
                   SELECT {keys}, (r.s).id AS snapshot_id, {captured} AS captured_at, {confirmed} AS last_confirmed_at, \
                     (SELECT count(*) FROM {app}.{markets} AS m WHERE m.snapshot_id = (r.s).id) AS markets, \
                     r.rivals - 1 AS beaten, \
                     (SELECT coalesce(jsonb_agg(jsonb_build_object('snapshot_id', (o.s).id, 'captured_at', {older}) \
                        ORDER BY o.rank), '[]') FROM ranked AS o WHERE {rivals} AND o.rank BETWEEN 2 AND {OLDER} + 1) AS older \
                   FROM ranked AS r WHERE r.rank = 1 ORDER BY 1, 2) AS x",
                older = utc("to_jsonb(o.s) ->> 'captured_at'"),
            )
        };
        let own = latest(
            &format!(
                "SELECT s, row_number() OVER w AS rank, count(*) OVER (PARTITION BY s.bookmaker_id) AS rivals \
                 FROM {app}.odds_snapshots AS s WHERE s.event_id = {event} WINDOW w AS (PARTITION BY s.bookmaker_id ORDER BY {latest_first})"
            ),
            "(r.s).bookmaker_id AS bookmaker_id",
            "(o.s).bookmaker_id = (r.s).bookmaker_id",
            Table::MarketOdds.name(),
        );
        let theirs = latest(
            &format!(
                "SELECT c.source, c.id AS competitor_event_id, s, row_number() OVER w AS rank, \
                   count(*) OVER (PARTITION BY c.source) AS rivals \
                 FROM {app}.competitor_events AS c JOIN {app}.competitor_odds_snapshots AS s ON s.competitor_event_id = c.id \
                 WHERE c.betpawa_event_id = {event} AND c.deleted_at IS NULL \
                 WINDOW w AS (PARTITION BY c.source ORDER BY {latest_first})"
            ),
            "r.source, r.competitor_event_id",
            "o.source = r.source",
            Table::CompetitorMarketOdds.name(),
        );
        let deleted = utc("to_jsonb(c) ->> 'deleted_at'");
        format!(
            "SELECT clock_timestamp() AS at, {window_start} AS window_start, e.id IS NOT NULL AS exists, {within} AS within, \
               {kickoff} AS kickoff, ({own}) AS own, ({theirs}) AS theirs, \
               (SELECT jsonb_agg(to_jsonb(x)) FROM (SELECT c.id, c.source, to_jsonb(c) ->> 'external_id' AS external_id, \
                  {deleted} AS deleted_at, (SELECT count(*) FROM {app}.competitor_odds_snapshots AS s \
                    WHERE s.competitor_event_id = c.id) AS snapshots \
                  FROM {app}.competitor_events AS c WHERE c.betpawa_event_id = {event} ORDER BY c.source, c.id) AS x) AS links \
             FROM (SELECT) AS always LEFT JOIN {app}.events AS e ON e.id = {event}",
            window_start = self.window_start(),
            within = self.within(),
            kickoff = utc("to_jsonb(e) ->> 'kickoff'"),
        )
    }

    /// The log rows that name the event, one of its snapshots, or a whole table.
    fn named(&self) -> String {
        let (app, event) = (&self.app, self.event);
        let linked = format!(
            "SELECT c.id FROM {app}.competitor_events AS c WHERE c.betpawa_event_id = {event}"
        );
        let snapshot = "SELECT CASE WHEN l.note = 'BLOCKS' THEN s.id >> 10 ELSE s.id END";
        format!(
            "(l.keys IS NULL \
              OR l.table_name IN ('events', 'odds_snapshots', 'competitor_events') AND l.keys @> ARRAY[{event}]::bigint[] \
              OR l.table_name = 'competitor_odds_snapshots' AND l.keys && ARRAY({linked})::bigint[] \
              OR l.table_name = 'market_odds' AND l.keys && ARRAY(\
                   {snapshot} FROM {app}.odds_snapshots AS s WHERE s.event_id = {event})::bigint[] \
              OR l.table_name = 'competitor_market_odds' AND l.keys && ARRAY(\
                   {snapshot} FROM {app}.competitor_odds_snapshots AS s WHERE s.competitor_event_id IN ({linked}))::bigint[])"
        )
    }

    async fn log(&self, rows: u16, cut: Option<DateTime<Utc>>) -> Result<Vec<LogRow>, Trouble> {
        let after = match cut {
            Some(cut) => format!("l.at > {}::timestamptz", literal(&cut.to_rfc3339())),
            None => "NULL::boolean".to_owned(),
        };
        let sql = format!(
            "SELECT l.xid::text AS xid, l.at, l.table_name, l.op, l.keys IS NULL AS whole_table, \
               substring(l.note FROM '^[0-9A-Z]{{5}}(?= |$)') AS sqlstate, {after} AS after_cut \
             FROM {}.change_log AS l WHERE {} ORDER BY l.xid DESC, l.id DESC LIMIT {rows}",
            self.cache,
            self.named(),
        );
        self.session.rows(&sql).await
    }

    /// How many log rows that name the event were written after `cut`; 0 if the log cannot be read.
    pub(crate) async fn changed_since(&self, cut: DateTime<Utc>) -> Result<usize, Trouble> {
        #[derive(Deserialize)]
        struct Count {
            n: usize,
        }
        let sql = format!(
            "SELECT count(*) AS n FROM {}.change_log AS l WHERE l.at > {}::timestamptz AND {}",
            self.cache,
            literal(&cut.to_rfc3339()),
            self.named(),
        );
        let count = self.session.row::<Count>(&sql).await;
        Ok(count.map_or(0, |count| count.n))
    }
}

fn standing(exists: bool, within: bool, has_snapshot: bool) -> Standing {
    match (exists, within, has_snapshot) {
        (false, ..) => Standing::NoSuchEvent,
        (_, false, _) => Standing::OutsideWindow,
        (_, _, false) => Standing::NoSnapshot,
        _ => Standing::Held,
    }
}
