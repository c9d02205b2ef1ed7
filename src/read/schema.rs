//! The statements that read the application's tables, built for the columns that these tables have in this database.
//!
//! Deployments differ: `timestamp` or `timestamptz`, `json` or `jsonb`, `int` or `bigint`, columns that a later
//! migration adds, another schema. This module hides the differences, so that all other code sees one form of row.

use std::{cell::RefCell, fmt::Write, time::Duration};

use hashbrown::{HashMap, HashSet};
use tokio_postgres::{Client, types::Type};

use crate::{
    config::Config,
    error::Error,
    model::MOST_CHARACTERS,
    postgres::{
        connection::millis,
        quote::{literal, quote},
        statement::{Prepared, Statement},
    },
    sql::Table,
};

/// The names of schemas and tables, and the statements that need nothing but these.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) app_schema: String,
    pub(crate) cache_schema: String,
    pub(crate) need_feed: bool,
    /// The tables that a read locks, qualified and quoted.
    pub(crate) locked: Vec<String>,
    /// Begins the transaction of a read and takes all its locks (ACCESS SHARE) before its snapshot, because TRUNCATE
    /// and DETACH are not MVCC-safe.
    ///
    /// A migration can deadlock with these locks. Their time-out is shorter than the server's `deadlock_timeout` (1 s):
    /// the read gives way before the server could cancel the migration.
    ///
    /// TRUNCATE, ALTER and DETACH wait for these locks, and writers wait behind those. So the server must end the
    /// transaction of a follower that hangs. It does so if the next statement does not come (see [`IDLE_BOUND`]), or if
    /// the follower does not take an answer (`tcp_user_timeout`). Over a Unix socket, PostgreSQL lacks the second of
    /// these time-outs.
    pub(crate) begin: String,
    /// Begins the transaction of a helper of a read of everything. `{}` stands for the snapshot to import.
    pub(crate) import: String,
    /// Sets the time-outs that a read of everything needs, in place of the short ones of `begin`.
    pub(crate) warmup_bounds: String,
    /// The same as `begin`, for a read that runs prepared statements: the server plans each once, for any parameters.
    /// By default it would plan again in each read. For a few keys that takes five times as long as reading their rows
    /// from two dozen partitions.
    pub(crate) begin_prepared: String,
    /// After `begin_prepared`: lets the server plan for the actual keys, because there are many.
    pub(crate) replan: &'static str,
    /// `()` -> snapshot, clock, whether in recovery, server, WAL position, `pruned_below`.
    pub(crate) cut: Statement,
    /// The same without `pruned_below`.
    pub(crate) peek: String,
    /// Begins a transaction for `peek` alone. Takes no locks.
    pub(crate) begin_peek: String,
}

/// The server ends the transaction of a read of changes if the next statement does not come within this time. Normally
/// it comes within milliseconds.
const IDLE_BOUND: Duration = Duration::from_secs(5);

impl Names {
    /// `settings` are the statements that each transaction must run first, see
    /// [`Connection::settings_after_begin`](crate::postgres::connection::Connection::settings_after_begin).
    pub(crate) fn new(config: &Config, need_feed: bool, settings: &str) -> Names {
        let (app, cache) = (quote(&config.app_schema), quote(&config.cache_schema));
        let qualified = |table: Table| format!("{app}.{}", quote(table.name()));
        let mut locked: Vec<String> = Table::ALL.into_iter().map(qualified).collect();
        if need_feed {
            locked.extend(["change_log", "log_state"].map(|table| format!("{cache}.{table}")));
        }
        // The lock time-out bounds each lock, the statement time-out all of them together. Reading then may take
        // longer.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {settings}\
             SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '700ms'; \
             SET LOCAL idle_in_transaction_session_timeout = {idle}; SET LOCAL tcp_user_timeout = {timeout}; \
             SET LOCAL search_path = pg_catalog, pg_temp; \
             LOCK TABLE {} IN ACCESS SHARE MODE; SET LOCAL statement_timeout = {timeout}",
            locked.join(", "),
            timeout = millis(config.read_timeout),
            idle = millis(config.read_timeout.min(IDLE_BOUND)),
        );
        let warmup_bounds = format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}; \
             SET LOCAL plan_cache_mode = auto",
            millis(config.warmup_timeout),
            millis(config.read_timeout),
        );
        // A helper reads market rows only, so it locks no other table.
        let markets = [Table::MarketOdds, Table::CompetitorMarketOdds].map(qualified);
        let import = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {settings}SET TRANSACTION SNAPSHOT {{}}; \
             SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {idle}; SET LOCAL tcp_user_timeout = {idle}; \
             SET LOCAL search_path = pg_catalog, pg_temp; \
             LOCK TABLE {} IN ACCESS SHARE MODE",
            millis(config.warmup_timeout),
            markets.join(", "),
            idle = millis(config.read_timeout),
        );
        let pruned_below = match need_feed {
            true => format!("(SELECT pruned_below::text FROM {cache}.log_state)"),
            false => "'0'".to_owned(),
        };
        let cut = format!("SELECT {CUT}, {pruned_below} {SERVER}");
        let (app_schema, cache_schema) = (config.app_schema.clone(), config.cache_schema.clone());
        Names {
            app_schema,
            cache_schema,
            need_feed,
            locked,
            begin_prepared: format!("{begin}; SET LOCAL plan_cache_mode = force_generic_plan"),
            begin,
            import,
            warmup_bounds,
            replan: "SET LOCAL plan_cache_mode = auto",
            cut: Statement::new("cut", cut, []),
            peek: format!("SELECT {CUT} {SERVER}"),
            begin_peek: format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {settings}SET LOCAL statement_timeout = {}",
                millis(config.read_timeout)
            ),
        }
    }

    pub(crate) fn table(&self, table: Table) -> String {
        format!("{}.{}", quote(&self.app_schema), quote(table.name()))
    }

    pub(crate) fn log_table(&self) -> String {
        format!("{}.change_log", quote(&self.cache_schema))
    }
}

/// The columns of the first query of a read: snapshot, clock, whether in recovery, the three texts of
/// [`Server`](crate::model::Server), and the position in the write-ahead log up to which it is written, or replayed on a
/// standby.
///
/// Another server, or the same one after a restart, a crash or a promotion, may have taken back commits that were read.
/// The connection is then lost, but not behind a pooler, and a lost connection alone says nothing. So the first text
/// contains:
/// - the start time of the postmaster and the system identifier;
/// - the timeline. On a primary it comes from the name of the WAL file, because the control file has it only after a
///   checkpoint.
///
/// A crash that the postmaster survives changes neither. It resets all statistics, and its recovery ends with a
/// checkpoint. The second text is the time of the oldest reset among several kinds of statistics.
/// `pg_stat_reset_shared` resets one kind, so it leaves this text as it is. The third text is the WAL location of the
/// last checkpoint. It is null on a standby, which may restart without a checkpoint.
const CUT: &str = "pg_catalog.pg_current_snapshot()::pg_catalog.text, pg_catalog.now(), pg_catalog.pg_is_in_recovery(), \
     pg_catalog.concat_ws(' ', extract(epoch FROM pg_catalog.pg_postmaster_start_time()), s.system_identifier, \
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.concat('standby ', c.timeline_id) \
         ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END), \
     extract(epoch FROM least(b.stats_reset, a.stats_reset, w.stats_reset, \
       (SELECT pg_catalog.min(slru.stats_reset) FROM pg_catalog.pg_stat_slru slru)))::pg_catalog.text, \
     CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN c.checkpoint_lsn::pg_catalog.text END, \
     pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
       ELSE pg_catalog.pg_current_wal_lsn() END, '0/0')::pg_catalog.int8";
const SERVER: &str = "FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c, \
     pg_catalog.pg_stat_bgwriter b, pg_catalog.pg_stat_archiver a, pg_catalog.pg_stat_wal w";

/// The statements that read rows, with the column types of this database.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// `(window start)` -> event id, kickoff, name, home_team, away_team, sportradar_id, tournament id.
    pub(crate) all_kickoffs: Statement,
    /// `(window start, event ids)` -> the same.
    pub(crate) some_kickoffs: Statement,
    /// `(window start, first and last event id)` -> the same.
    pub(crate) kickoffs_between: Statement,
    /// `(window start)` -> event id, bookmaker id, snapshot id, captured_at, last_confirmed_at.
    pub(crate) all_betpawa_headers: Statement,
    /// `(event ids)` -> the same.
    pub(crate) some_betpawa_headers: Statement,
    /// `(window start)` -> event id, source, snapshot id, captured_at, last_confirmed_at.
    pub(crate) all_competitor_headers: Statement,
    /// `(event ids, competitor event ids)` -> the same, of these events and of those to which the competitor events are
    /// linked.
    pub(crate) some_competitor_headers: Statement,
    /// `(window start, competitor event ids)` -> the same of the events to which they are linked; null but for the id
    /// outside the window.
    pub(crate) linked_events: Statement,
    /// `()` -> the greatest id in `odds_snapshots` and in `competitor_odds_snapshots`.
    pub(crate) greatest_ids: Statement,
    /// `(snapshot ids, captured_at of each)` -> columns as of `some_betpawa_headers`.
    pub(crate) betpawa_snapshots: Statement,
    /// `(snapshot ids)` -> snapshot id, competitor event id, captured_at, last_confirmed_at.
    pub(crate) competitor_snapshots: Statement,
    /// `(event ids)` -> id, event id and source of each competitor event that is linked to one of them.
    pub(crate) links: Statement,
    /// `([snapshot id])` -> snapshot id, event id, bookmaker id of the snapshots with the next greater ids.
    pub(crate) new_betpawa: Statement,
    /// `([snapshot id])` -> snapshot id, event id, source; the last two are null if the snapshot belongs to no event.
    pub(crate) new_competitors: Statement,
    /// `(snapshot ids)` -> market rows of `market_odds`.
    pub(crate) betpawa_markets: Statement,
    /// `(snapshot ids)` -> market rows of `competitor_market_odds`.
    pub(crate) competitor_markets: Statement,
    /// `(snapshot ids)` -> ids of their market rows.
    pub(crate) betpawa_market_ids: Statement,
    pub(crate) competitor_market_ids: Statement,
    /// `(snapshot ids, ids of market rows)` -> these market rows.
    pub(crate) some_betpawa_markets: Statement,
    pub(crate) some_competitor_markets: Statement,
    /// `(snapshot ids, [transaction id])` -> snapshot id, how many market rows it has, whether one of them was written by
    /// this transaction or a later one. Snapshots without market rows are absent.
    pub(crate) betpawa_versions: Statement,
    pub(crate) competitor_versions: Statement,
    /// The columns that the statements read, if the tables have them.
    columns: HashSet<(Table, String)>,
}

/// The most new snapshots that one step of the audit compares. This bounds its time to about 20 ms.
pub(crate) const NEW_SNAPSHOTS: usize = 10_000;

/// How a column is read.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Id,
    Time,
    Number,
    Text,
    Json,
}

impl Kind {
    fn cast(self) -> &'static str {
        match self {
            Kind::Id => "::int8",
            Kind::Time => "",
            Kind::Number => "::float8",
            Kind::Text | Kind::Json => "::text",
        }
    }

    fn null(self) -> &'static str {
        match self {
            Kind::Id => "NULL::int8",
            Kind::Time => "NULL::timestamp",
            Kind::Number => "NULL::float8",
            Kind::Text | Kind::Json => "NULL::text",
        }
    }

    fn accepts(self, type_name: &str) -> bool {
        match self {
            Kind::Id => matches!(type_name, "int2" | "int4" | "int8"),
            Kind::Time => matches!(type_name, "timestamp" | "timestamptz"),
            Kind::Number => matches!(
                type_name,
                "float4" | "float8" | "numeric" | "int2" | "int4" | "int8"
            ),
            // Every type has a text form.
            Kind::Text => true,
            Kind::Json => matches!(type_name, "json" | "jsonb" | "text" | "varchar"),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Kind::Id => "smallint, integer or bigint",
            Kind::Time => "timestamp (in UTC) or timestamptz",
            Kind::Number => "a number",
            Kind::Text => "text",
            Kind::Json => "json or jsonb",
        }
    }
}

/// The types of the columns that the database has, by table and column.
pub(crate) struct Columns<'n> {
    names: &'n Names,
    types: HashMap<(Table, String), String>,
    /// The columns that were looked up, found or not.
    looked_up: RefCell<HashSet<(Table, String)>>,
}

impl<'n> Columns<'n> {
    /// Reads the column types in the current transaction.
    pub(crate) async fn read(
        client: &Client,
        prepared: Option<&Prepared>,
        names: &'n Names,
    ) -> Result<Columns<'n>, Error> {
        let statement = Columns::statement(names);
        let rows = statement
            .all("reading the catalog", client, prepared)
            .await?;
        let mut types = HashMap::new();
        for row in rows {
            let get = |index| {
                row.try_get::<_, String>(index)
                    .map_err(Error::database("reading the catalog"))
            };
            if let Some(table) = Table::of_name(&get(0)?) {
                types.insert((table, get(1)?), get(2)?);
            }
        }
        Ok(Columns {
            names,
            types,
            looked_up: RefCell::default(),
        })
    }

    /// What [`Columns::read`] runs.
    pub(crate) fn statement(names: &Names) -> Statement {
        // A column of a domain counts as one of its base type, which may be a domain, too.
        let sql = format!(
            "SELECT c.relname::text, a.attname::text, CASE WHEN t.typtype <> 'd' THEN t.typname::text ELSE (\
               WITH RECURSIVE base AS (SELECT t.typname, t.typbasetype \
               UNION ALL SELECT b.typname, b.typbasetype FROM base JOIN pg_type b ON b.oid = base.typbasetype) \
               SELECT typname::text FROM base WHERE typbasetype = 0) END \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
             JOIN pg_type t ON t.oid = a.atttypid \
             WHERE n.nspname = {} AND c.relname IN ({}) AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped",
            literal(&names.app_schema),
            Table::literals(),
        );
        Statement::lasting("columns", sql)
    }

    pub(crate) fn get(&self, table: Table, column: &str) -> Option<&str> {
        let column = (table, column.to_owned());
        let found = self.types.get(&column).map(String::as_str);
        self.looked_up.borrow_mut().insert(column);
        found
    }

    /// The expression that reads a column. `alias` is the name of the table within the query.
    pub(crate) fn required(
        &self,
        alias: &str,
        table: Table,
        column: &str,
        kind: Kind,
    ) -> Result<String, Error> {
        let table_name = || self.names.table(table);
        let found = self.get(table, column);
        let found = found.ok_or_else(|| Error::MissingColumn {
            table: table_name(),
            column: column.to_owned(),
        })?;
        if !kind.accepts(found) {
            let (table, column, expected) = (table_name(), column.to_owned(), kind.expected());
            return Err(Error::WrongType {
                table,
                column,
                found: found.to_owned(),
                expected,
            });
        }
        let cast = match kind {
            // Both types are read, and the client must know which. The cast turns a domain into its base type, because
            // a domain does not show its type inside an array.
            Kind::Time => format!("::{found}"),
            // A cast to text would let the server copy each text once more.
            Kind::Json if matches!(found, "json" | "jsonb") => format!("::{found}"),
            kind => kind.cast().to_owned(),
        };
        Ok(format!("{alias}.{}{cast}", quote(column)))
    }

    /// The same for a column that older deployments lack. A missing column reads as null.
    pub(crate) fn optional(
        &self,
        alias: &str,
        table: Table,
        column: &str,
        kind: Kind,
    ) -> Result<String, Error> {
        match self.get(table, column) {
            Some(_) => self.required(alias, table, column, kind),
            None => Ok(kind.null().to_owned()),
        }
    }

    /// The same for a column that may also be of another type, which reads as null, too. A text is cut after the
    /// characters that the cache holds, so that the server sends no more.
    fn tolerated(&self, alias: &str, table: Table, column: &str, kind: Kind) -> String {
        let is_usable = self
            .get(table, column)
            .is_some_and(|found| kind.accepts(found));
        let column = format!("{alias}.{}{}", quote(column), kind.cast());
        match (is_usable, kind) {
            (false, _) => kind.null().to_owned(),
            (true, Kind::Text) => format!("left({column}, {MOST_CHARACTERS})"),
            (true, _) => column,
        }
    }

    /// An ORDER BY list for snapshots of one id. The first one counts. A partitioned table may have an id twice, even
    /// for one event, because its key includes `captured_at`. The list names all columns that are read. So every read
    /// chooses the same values under any plan of its query.
    fn latest_first(&self, table: Table, alias: &str) -> String {
        let confirmed = match self.get(table, "last_confirmed_at") {
            Some(_) => format!(", {alias}.last_confirmed_at DESC NULLS LAST"),
            None => String::new(),
        };
        format!("{alias}.captured_at DESC NULLS LAST{confirmed}")
    }

    /// The query for market rows.
    fn markets(&self, table: Table) -> Result<String, Error> {
        Ok(format!(
            "SELECT {} FROM {} m WHERE m.snapshot_id = ANY($1)",
            self.market_columns(table)?,
            self.names.table(table)
        ))
    }

    /// The columns of market rows, where `m` is the table. Their order is that of [`crate::read::rows`].
    pub(crate) fn market_columns(&self, table: Table) -> Result<String, Error> {
        let mut sql = String::new();
        let columns = [
            ("id", Kind::Id, true),
            ("snapshot_id", Kind::Id, true),
            ("betpawa_market_id", Kind::Text, true),
            ("betpawa_market_name", Kind::Text, true),
            ("line", Kind::Number, false),
            ("handicap_type", Kind::Text, false),
            ("handicap_home", Kind::Number, false),
            ("handicap_away", Kind::Number, false),
            ("outcomes", Kind::Json, true),
            ("market_groups", Kind::Json, false),
            ("unavailable_at", Kind::Time, false),
        ];
        for (index, (column, kind, required)) in columns.into_iter().enumerate() {
            let expression = match required {
                true => self.required("m", table, column, kind)?,
                false => self.optional("m", table, column, kind)?,
            };
            let comma = if index == 0 { "" } else { ", " };
            // Writing into a String cannot fail.
            let _ = write!(sql, "{comma}{expression}");
        }
        Ok(sql)
    }
}

impl Catalog {
    /// Reads the column types in the current transaction, and builds the statements.
    ///
    /// # Errors
    /// [`Error::MissingColumn`], [`Error::WrongType`], an error of the server.
    pub(crate) async fn read(
        client: &Client,
        prepared: Option<&Prepared>,
        names: &Names,
    ) -> Result<Catalog, Error> {
        let columns = Columns::read(client, prepared, names).await?;
        let mut catalog = Catalog::build(&columns)?;
        catalog.columns = columns.looked_up.into_inner();
        Ok(catalog)
    }

    /// Whether a statement reads this column, or would read it if the table had it.
    pub(crate) fn reads(&self, table: Table, column: &str) -> bool {
        self.columns.contains(&(table, column.to_owned()))
    }

    /// Builds all statements that read rows. The function is long because it is a list, in which one can compare them.
    fn build(columns: &Columns<'_>) -> Result<Catalog, Error> {
        let table = |name| columns.names.table(name);
        let event_id = columns.required("e", Table::Events, "id", Kind::Id)?;
        let kickoff = columns.required("e", Table::Events, "kickoff", Kind::Time)?;
        let kickoff_type = match columns.get(Table::Events, "kickoff") {
            Some("timestamptz") => Type::TIMESTAMPTZ,
            _ => Type::TIMESTAMP,
        };
        let tolerated = |column, kind| columns.tolerated("e", Table::Events, column, kind);
        let names = [
            tolerated("name", Kind::Text),
            tolerated("home_team", Kind::Text),
            tolerated("away_team", Kind::Text),
            tolerated("sportradar_id", Kind::Text),
            tolerated("tournament_id", Kind::Id),
        ]
        .join(", ");
        let all_kickoffs = format!(
            "SELECT {event_id}, {kickoff}, {names} FROM {} e WHERE e.kickoff > $1",
            table(Table::Events)
        );
        let some_kickoffs = format!("{all_kickoffs} AND e.id = ANY($2)");
        let kickoffs_between = format!("{all_kickoffs} AND e.id BETWEEN ($2)[1] AND ($2)[2]");

        // The latest snapshot of an event and bookmaker is the one with the greatest id, not the one captured last.
        let required = |column, kind| columns.required("s", Table::OddsSnapshots, column, kind);
        let betpawa = format!(
            "SELECT DISTINCT ON (s.event_id, s.bookmaker_id) {}, {}, {}, {}, {} FROM {} s",
            required("event_id", Kind::Id)?,
            required("bookmaker_id", Kind::Id)?,
            required("id", Kind::Id)?,
            required("captured_at", Kind::Time)?,
            columns.optional("s", Table::OddsSnapshots, "last_confirmed_at", Kind::Time)?,
            table(Table::OddsSnapshots)
        );
        let latest_first = columns.latest_first(Table::OddsSnapshots, "s");
        let betpawa_order = format!(
            "s.bookmaker_id IS NOT NULL ORDER BY s.event_id, s.bookmaker_id, s.id DESC, {latest_first}"
        );

        let required =
            |column, kind| columns.required("s", Table::CompetitorOddsSnapshots, column, kind);
        let competitor_event =
            |column, kind| columns.required("c", Table::CompetitorEvents, column, kind);
        // These two occur in joins only. Reading them here checks that they exist.
        competitor_event("id", Kind::Id)?;
        let linked = competitor_event("betpawa_event_id", Kind::Id)?;
        required("competitor_event_id", Kind::Id)?;
        let competitors = format!(
            "SELECT DISTINCT ON (c.betpawa_event_id, c.source) {linked}, {}, {}, {}, {} FROM {} c",
            competitor_event("source", Kind::Text)?,
            required("id", Kind::Id)?,
            required("captured_at", Kind::Time)?,
            columns.optional(
                "s",
                Table::CompetitorOddsSnapshots,
                "last_confirmed_at",
                Kind::Time
            )?,
            table(Table::CompetitorEvents)
        );
        // For few events the planner must use the index on competitor_event_id (4 ms instead of 40). Without LATERAL it
        // would read the history of all events, because it estimates the same cost for that. Without `+ 0` it would
        // walk down the primary key until it meets a snapshot of this event.
        let last_confirmed_at =
            match columns.get(Table::CompetitorOddsSnapshots, "last_confirmed_at") {
                Some(_) => ", l.last_confirmed_at",
                None => "",
            };
        let some_competitors = format!(
            "{competitors} CROSS JOIN LATERAL (SELECT l.id, l.captured_at{last_confirmed_at} FROM {} l \
             WHERE l.competitor_event_id = c.id ORDER BY l.id + 0 DESC, {} LIMIT 1) s",
            table(Table::CompetitorOddsSnapshots),
            columns.latest_first(Table::CompetitorOddsSnapshots, "l")
        );
        let live = match columns.get(Table::CompetitorEvents, "deleted_at") {
            Some(_) => "c.deleted_at IS NULL AND ",
            None => "",
        };
        let competitor_order = format!(
            "c.source IS NOT NULL ORDER BY c.betpawa_event_id, c.source, s.id DESC, {}",
            columns.latest_first(Table::CompetitorOddsSnapshots, "s")
        );
        let statement =
            |name, sql: String, types: &[Type]| Statement::new(name, sql, types.to_vec());
        let window = std::slice::from_ref(&kickoff_type);
        let ids = &[Type::INT8_ARRAY];
        // For all events: find the greatest ids by hashing, then sort only their rows. Sorting all history takes three
        // times as long. The planner takes each equality of a join to leave few rows, so with one for each key it
        // expects a single row, and looks up all the others one by one. It assumes that CASE holds for every second row.
        let all_betpawa = format!(
            "{betpawa} JOIN (SELECT event_id, bookmaker_id, max(id) AS id FROM {} GROUP BY event_id, bookmaker_id) AS l \
             ON l.id = s.id AND CASE WHEN l.event_id = s.event_id AND l.bookmaker_id = s.bookmaker_id THEN true END JOIN {} e ON e.id = l.event_id \
             WHERE e.kickoff > $1 AND {betpawa_order}",
            table(Table::OddsSnapshots),
            table(Table::Events),
        );
        let all_competitors = format!(
            "{competitors} JOIN (SELECT competitor_event_id, max(id) AS id FROM {snapshots} GROUP BY competitor_event_id) AS l \
             ON l.competitor_event_id = c.id JOIN {snapshots} s ON s.id = l.id AND CASE WHEN s.competitor_event_id = l.competitor_event_id THEN true END \
             JOIN {} e ON e.id = c.betpawa_event_id \
             WHERE e.kickoff > $1 AND {live}{competitor_order}",
            table(Table::Events),
            snapshots = table(Table::CompetitorOddsSnapshots),
        );
        let some_betpawa = format!("{betpawa} WHERE s.event_id = ANY($1) AND {betpawa_order}");
        let some_competitors = format!(
            "{some_competitors} WHERE c.betpawa_event_id = ANY(ARRAY(SELECT unnest($1) UNION ALL \
             SELECT l.betpawa_event_id FROM {} l WHERE l.id = ANY($2))) AND {live}{competitor_order}",
            table(Table::CompetitorEvents)
        );
        let linked_events = format!(
            "SELECT DISTINCT {linked}, {kickoff}, {names} FROM {} c LEFT JOIN {} e ON e.id = c.betpawa_event_id AND e.kickoff > $1 \
             WHERE c.id = ANY($2) AND c.betpawa_event_id IS NOT NULL",
            table(Table::CompetitorEvents),
            table(Table::Events)
        );
        // The audit looks up single rows by key. OFFSET 0 keeps each lookup apart, so that the server makes it by the
        // index on that key, whatever it estimates. `captured_at` tells it which partition has the row.
        let (odds_table, captured_type) = (
            table(Table::OddsSnapshots),
            match columns.get(Table::OddsSnapshots, "captured_at") {
                Some("timestamptz") => Type::TIMESTAMPTZ_ARRAY,
                _ => Type::TIMESTAMP_ARRAY,
            },
        );
        let snapshots_table = table(Table::CompetitorOddsSnapshots);
        let confirmed = |table| match columns.get(table, "last_confirmed_at") {
            Some(_) => ", t.last_confirmed_at",
            None => "",
        };
        let own_confirmed = confirmed(Table::OddsSnapshots);
        let confirmed = confirmed(Table::CompetitorOddsSnapshots);
        let competitors_table = table(Table::CompetitorEvents);
        let required = |column, kind| columns.required("s", Table::OddsSnapshots, column, kind);
        let (own_event, own_bookmaker, own_id) = (
            required("event_id", Kind::Id)?,
            required("bookmaker_id", Kind::Id)?,
            required("id", Kind::Id)?,
        );
        let betpawa_snapshots = format!(
            "SELECT {own_event}, {own_bookmaker}, {own_id}, {}, {} FROM unnest($1, $2) AS u (id, captured_at) \
             CROSS JOIN LATERAL (SELECT t.event_id, t.bookmaker_id, t.id, t.captured_at{own_confirmed} FROM {odds_table} t WHERE t.id = u.id AND t.captured_at = u.captured_at OFFSET 0) s \
             WHERE s.event_id IS NOT NULL AND s.bookmaker_id IS NOT NULL",
            required("captured_at", Kind::Time)?,
            columns.optional("s", Table::OddsSnapshots, "last_confirmed_at", Kind::Time)?,
        );
        let required =
            |column, kind| columns.required("s", Table::CompetitorOddsSnapshots, column, kind);
        let source = competitor_event("source", Kind::Text)?;
        let competitor_snapshots = format!(
            "SELECT {}, {}, {}, {} FROM unnest($1) AS u (id) \
             CROSS JOIN LATERAL (SELECT t.id, t.competitor_event_id, t.captured_at{confirmed} FROM {snapshots_table} t \
             WHERE t.id = u.id OFFSET 0) s WHERE s.competitor_event_id IS NOT NULL",
            required("id", Kind::Id)?,
            required("competitor_event_id", Kind::Id)?,
            required("captured_at", Kind::Time)?,
            columns.optional(
                "s",
                Table::CompetitorOddsSnapshots,
                "last_confirmed_at",
                Kind::Time
            )?,
        );
        let links = format!(
            "SELECT {}, {linked}, {source} FROM unnest($1) AS u (id) \
             CROSS JOIN LATERAL (SELECT c.id, c.betpawa_event_id, c.source FROM {competitors_table} c \
             WHERE {live}c.betpawa_event_id = u.id OFFSET 0) c WHERE c.source IS NOT NULL",
            competitor_event("id", Kind::Id)?,
        );
        let new_betpawa = format!(
            "SELECT {own_id}, {own_event}, {own_bookmaker} FROM {odds_table} s \
             WHERE s.id > ($1)[1] ORDER BY s.id LIMIT {NEW_SNAPSHOTS}"
        );
        let new_competitors = format!(
            "SELECT {}, {linked}, {source} FROM (SELECT t.id, t.competitor_event_id FROM {snapshots_table} t \
             WHERE t.id > ($1)[1] ORDER BY t.id LIMIT {NEW_SNAPSHOTS}) s \
             LEFT JOIN LATERAL (SELECT c.betpawa_event_id, c.source FROM {competitors_table} c WHERE {live}c.id = s.competitor_event_id OFFSET 0) c ON true",
            required("id", Kind::Id)?,
        );
        let greatest_ids = format!(
            "SELECT (SELECT max(id)::int8 FROM {odds_table}), (SELECT max(id)::int8 FROM {snapshots_table})"
        );
        let with_times = [Type::INT8_ARRAY, captured_type];
        let (of_window, of_both) = (window, [kickoff_type.clone(), Type::INT8_ARRAY]);
        let two_lists = [Type::INT8_ARRAY, Type::INT8_ARRAY];
        let markets = |name, table| Ok::<_, Error>(statement(name, columns.markets(table)?, ids));
        let some_markets = |name, table| {
            let sql = columns.markets(table)? + " AND m.id = ANY($2)";
            Ok::<_, Error>(statement(name, sql, &two_lists))
        };
        let market_ids = |name, of| {
            let table = table(of);
            let sql = format!("SELECT m.id::int8 FROM {table} m WHERE m.snapshot_id = ANY($1)");
            statement(name, sql, ids)
        };
        // `age` counts back from the next transaction id, so the comparison holds when ids wrap around. The subquery
        // computes the second age once, not for each row.
        let versions = |name, of| {
            let table = table(of);
            let sql = format!(
                "SELECT m.snapshot_id::int8, count(*), min(age(m.xmin)) <= (SELECT age((($2)[1] % 4294967296)::text::xid)) \
                 FROM {table} m WHERE m.snapshot_id = ANY($1) GROUP BY m.snapshot_id"
            );
            statement(name, sql, &two_lists).of_columns(3)
        };
        let (betpawa, competitors) = (Table::MarketOdds, Table::CompetitorMarketOdds);
        Ok(Catalog {
            all_kickoffs: statement("all_kickoffs", all_kickoffs, of_window).of_columns(7),
            some_kickoffs: statement("kickoffs", some_kickoffs, &of_both).of_columns(7),
            kickoffs_between: statement("kickoffs_between", kickoffs_between, &of_both)
                .of_columns(7),
            all_betpawa_headers: statement("all_betpawa_headers", all_betpawa, of_window)
                .of_columns(5),
            some_betpawa_headers: statement("betpawa_headers", some_betpawa, ids).of_columns(5),
            all_competitor_headers: statement("all_competitor_headers", all_competitors, of_window)
                .of_columns(5),
            some_competitor_headers: statement("competitor_headers", some_competitors, &two_lists)
                .of_columns(5),
            linked_events: statement("linked_events", linked_events, &of_both).of_columns(7),
            greatest_ids: statement("greatest_ids", greatest_ids, &[]),
            betpawa_snapshots: statement("betpawa_snapshots", betpawa_snapshots, &with_times)
                .of_columns(5),
            competitor_snapshots: statement("competitor_snapshots", competitor_snapshots, ids)
                .of_columns(4),
            links: statement("links", links, ids).of_columns(3),
            new_betpawa: statement("new_betpawa", new_betpawa, ids).of_columns(3),
            new_competitors: statement("new_competitors", new_competitors, ids).of_columns(3),
            betpawa_markets: markets("betpawa_markets", betpawa)?,
            competitor_markets: markets("competitor_markets", competitors)?,
            betpawa_market_ids: market_ids("betpawa_market_ids", betpawa),
            competitor_market_ids: market_ids("competitor_market_ids", competitors),
            some_betpawa_markets: some_markets("some_betpawa_markets", betpawa)?,
            some_competitor_markets: some_markets("some_competitor_markets", competitors)?,
            betpawa_versions: versions("betpawa_versions", betpawa),
            competitor_versions: versions("competitor_versions", competitors),
            columns: HashSet::new(),
        })
    }

    /// The statements of a read of few changes.
    pub(crate) fn prepared(&self) -> impl Iterator<Item = &Statement> {
        [
            &self.some_kickoffs,
            &self.some_betpawa_headers,
            &self.some_competitor_headers,
            &self.linked_events,
            &self.betpawa_markets,
            &self.competitor_markets,
        ]
        .into_iter()
    }
}
