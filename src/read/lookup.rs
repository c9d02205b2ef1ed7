//! Reads the lookup tables `bookmakers`, `tournaments` and `sports`: the names of bookmakers and tournaments.
//!
//! The feed has no triggers on these tables, because a database may lack them, or their owner may be somebody else. They
//! have tens to thousands of rows, so a read of changes reads them again when [`LookupState::is_due`] says so. That takes
//! 1.5 ms for 60 tournaments and 30 bookmakers, and 4 ms for 1,000 tournaments: too long for each read of changes.
//!
//! # Invariants
//! - LU1: While changes are read, each name was read at most [`INTERVAL`] before the view that shows it, or after the
//!   last commit. A tournament that no event has named before is read with its event, and a bookmaker with its first
//!   snapshot, if it has a row by then and the table can be read.
//! - LU2: If anything is wrong with these tables, the read goes on, and keeps most of its time. The draft then keeps the
//!   names that it has.
//! - LU3: The rows are those that the read's snapshot shows. A table that got a new file since, by TRUNCATE for instance,
//!   is not read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet};
use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};

use crate::{
    config::Config,
    error::Error,
    model::{Bookmaker, Bookmakers, MOST_CHARACTERS, Tournament},
    postgres::{connection::millis, quote::quote},
    read::{schema::Names, source::Source},
    sql::LOOKUP_TABLES,
    store::draft::Draft,
};

/// How old the names may get before they are read again, if no shorter time of the audit asks for more.
const INTERVAL: Duration = Duration::from_secs(30);

/// Each statement may take this part of the time limit of a read.
const PART_OF_TIMEOUT: u32 = 20;

/// The most rows of `bookmakers` that are read.
const MOST_BOOKMAKERS: usize = 10_000;

const DOING: &str = "reading bookmakers, tournaments and sports";

/// When the lookup tables were read, and what was wrong.
#[derive(Debug, Clone)]
pub(crate) struct LookupState {
    read_at: Instant,
    /// The bookmakers of snapshots that had no row, so that not each of their snapshots asks for one.
    nameless: Arc<HashSet<i64>>,
    /// Why names are missing. The log has it once.
    trouble: Option<String>,
}

/// The rows that were read.
pub(crate) struct Rows {
    bookmakers: Bookmakers,
    tournaments: Vec<Tournament>,
}

impl Rows {
    /// Gives the names to the events. Call it before the plan is applied, so that new events get their tournament.
    pub(crate) fn apply(self, draft: &mut Draft) {
        draft.set_lookup(self.bookmakers, self.tournaments);
    }
}

impl LookupState {
    /// Whether it is time to read the tables again, or an event names a tournament, or a snapshot a bookmaker, that was
    /// never read.
    pub(crate) fn is_due(
        &self,
        config: &Config,
        draft: &Draft,
        mut tournament_ids: impl Iterator<Item = i64>,
        mut bookmaker_ids: impl Iterator<Item = i64>,
    ) -> bool {
        let lookup = &draft.packer.lookup;
        let is_new = |id: &i64| {
            lookup
                .bookmakers()
                .is_none_or(|known| !known.contains_key(id))
                && !self.nameless.contains(id)
        };
        self.read_at.elapsed() >= INTERVAL.min(config.audit_cycle / 4)
            || tournament_ids.any(|id| lookup.held(id).is_none())
            || (self.nameless.len() < MOST_BOOKMAKERS && bookmaker_ids.any(|id| is_new(&id)))
    }

    /// Reads the tables in the current transaction: all bookmakers, and the tournaments that the draft knows or that
    /// `tournament_ids` names. `before` is the last such read.
    ///
    /// No rows if the server refuses one of the statements: the transaction goes on, and the draft keeps its names.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn read(
        source: Source<'_>,
        before: Option<&LookupState>,
        draft: &Draft,
        tournament_ids: impl Iterator<Item = i64>,
        bookmaker_ids: impl Iterator<Item = i64>,
    ) -> Result<(LookupState, Option<Rows>), Error> {
        let Source {
            client,
            names,
            config,
        } = source;
        let known = draft.packer.lookup.tournament_ids();
        let mut ids: Vec<i64> = known.chain(tournament_ids).collect();
        ids.sort_unstable();
        ids.dedup();
        let run = async |sql: &str| {
            let done = client.batch_execute(sql).await;
            done.map_err(Error::database(DOING))
        };
        let bound = millis(config.read_timeout / PART_OF_TIMEOUT).max(1);
        let begin = format!("SAVEPOINT lookup; SET LOCAL statement_timeout = {bound}");
        run(&begin).await?;
        let read = read(client, names, &ids).await;
        // Also after success: this takes the time limit back. A lost connection shows here.
        run("ROLLBACK TO SAVEPOINT lookup; RELEASE SAVEPOINT lookup").await?;
        let (rows, trouble) = match read {
            Ok((rows, trouble)) => (Some(rows), trouble),
            Err(error) => (None, Some(error.to_string())),
        };
        let read_at = Instant::now();
        if let Some(reason) = &trouble
            && before.is_none_or(|before| before.trouble != trouble)
        {
            tracing::warn!(%reason, "names of bookmakers or tournaments are not read; odds are followed all the same");
        }
        let known = rows.as_ref().map(|rows| &rows.bookmakers);
        let has_row = |id: &i64| known.is_some_and(|known| known.contains_key(id));
        let mut nameless = before.map_or_else(Arc::default, |before| Arc::clone(&before.nameless));
        for id in bookmaker_ids.filter(|id| !has_row(id)) {
            if !nameless.contains(&id) && nameless.len() < MOST_BOOKMAKERS {
                Arc::make_mut(&mut nameless).insert(id);
            }
        }
        let state = LookupState {
            read_at,
            nameless,
            trouble,
        };
        Ok((state, rows))
    }
}

/// A lookup table as this database has it.
struct Found {
    id: u32,
    /// Its file as the snapshot shows it; 0 for a partitioned table.
    file: u32,
    /// Qualified and quoted.
    name: String,
    columns: Vec<String>,
    is_readable: bool,
}

impl Found {
    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|found| found == column)
    }

    /// The expression that reads a text; null if the column is missing. `alias` is the name of the table within the query.
    fn text(&self, alias: &str, column: &str) -> String {
        match self.has(column) {
            true => format!("left({alias}.{}::text, {MOST_CHARACTERS})", quote(column)),
            false => "NULL::text".to_owned(),
        }
    }
}

/// The lookup tables that exist, by name.
async fn find(client: &Client, names: &Names) -> Result<HashMap<String, Found>, Error> {
    // Somebody may have dropped the table since the snapshot. Then the right is null.
    let sql = "SELECT c.relname::text, coalesce(has_table_privilege(c.oid, 'SELECT'), false), \
         array(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), c.oid, c.relfilenode \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relname = ANY($2) AND c.relkind IN ('r', 'p')";
    let schema: &(dyn ToSql + Sync) = &names.app_schema;
    let args = [
        (schema, Type::TEXT),
        (&LOOKUP_TABLES.as_slice(), Type::TEXT_ARRAY),
    ];
    let rows = client.query_typed(sql, &args).await;
    let found = |row: &Row| {
        let name: String = row.try_get(0)?;
        let found = Found {
            name: format!("{}.{}", quote(&names.app_schema), quote(&name)),
            is_readable: row.try_get(1)?,
            columns: row.try_get(2)?,
            id: row.try_get(3)?,
            file: row.try_get(4)?,
        };
        Ok((name, found))
    };
    rows.and_then(|rows| rows.iter().map(found).collect())
        .map_err(Error::database(DOING))
}

async fn read(
    client: &Client,
    names: &Names,
    tournament_ids: &[i64],
) -> Result<(Rows, Option<String>), Error> {
    let mut found = find(client, names).await?;
    let mut refused: Vec<String> = found
        .values()
        .filter(|table| !table.is_readable)
        .map(|table| table.name.clone())
        .collect();
    refused.sort_unstable();
    found.retain(|_, table| table.is_readable && table.has("id"));
    if !found.is_empty() {
        let tables: Vec<&str> = found.values().map(|table| table.name.as_str()).collect();
        // Somebody may be altering a table. Do not wait: the names can be read later.
        let locks = format!(
            "LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT",
            tables.join(", ")
        );
        let locked = client.batch_execute(&locks).await;
        locked.map_err(Error::database(DOING))?;
        check_files(client, found.values()).await?;
    }
    let mut bookmakers = Bookmakers::new();
    if let Some(table) = found.get("bookmakers") {
        let (slug, name) = (table.text("t", "slug"), table.text("t", "name"));
        let sql = format!(
            "SELECT t.id::int8, {slug}, {name}, NULL::text FROM {} t WHERE t.id IS NOT NULL ORDER BY t.id LIMIT {MOST_BOOKMAKERS}",
            table.name,
        );
        for (id, [slug, name, _]) in texts(client, &sql, &[]).await? {
            bookmakers.insert(id, Bookmaker::new(slug.as_deref(), name.as_deref()));
        }
    }
    let mut tournaments = HashMap::new();
    if let Some(table) = found.get("tournaments") {
        let sport = match found.get("sports").filter(|_| table.has("sport_id")) {
            Some(sports) => format!(
                "(SELECT {} FROM {} s WHERE s.id = t.sport_id LIMIT 1)",
                sports.text("s", "name"),
                sports.name
            ),
            None => "NULL::text".to_owned(),
        };
        let sql = format!(
            "SELECT t.id::int8, {}, {}, {sport} FROM {} t WHERE t.id = ANY($1)",
            table.text("t", "name"),
            table.text("t", "country"),
            table.name,
        );
        let ids: &(dyn ToSql + Sync) = &tournament_ids;
        tournaments.extend(texts(client, &sql, &[(ids, Type::INT8_ARRAY)]).await?);
    }
    // One that is gone, or whose table cannot be read, loses its names.
    let tournaments = tournament_ids.iter().map(|id| {
        let texts = tournaments.remove(id).unwrap_or_default();
        Tournament::new(*id, texts.each_ref().map(Option::as_deref))
    });
    let rows = Rows {
        tournaments: tournaments.collect(),
        bookmakers,
    };
    let trouble = (!refused.is_empty()).then(|| {
        let tables = refused.join(", ");
        format!(
            "the role has no SELECT on {tables}; let their owner run `oddscache sql grants --apply`, or GRANT it"
        )
    });
    Ok((rows, trouble))
}

/// Checks that no table got another file between the snapshot and its lock (LU3).
async fn check_files(client: &Client, found: impl Iterator<Item = &Found>) -> Result<(), Error> {
    let (ids, files): (Vec<u32>, Vec<u32>) = found.map(|table| (table.id, table.file)).unzip();
    let sql = "SELECT FROM unnest($1, $2) AS t (id, file) WHERE coalesce(pg_relation_filenode(id), 0) <> file";
    let ids: &(dyn ToSql + Sync) = &ids;
    let args = [(ids, Type::OID_ARRAY), (&files, Type::OID_ARRAY)];
    let replaced = client.query_typed(sql, &args).await;
    match replaced.map_err(Error::database(DOING))?.is_empty() {
        true => Ok(()),
        false => Err(Error::unexpected(
            DOING,
            "meanwhile one of them was truncated or rewritten",
        )),
    }
}

/// An id and three texts of each row.
async fn texts(
    client: &Client,
    sql: &str,
    args: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<(i64, [Option<String>; 3])>, Error> {
    let rows = client.query_typed(sql, args).await;
    let texts = |row: &Row| {
        Ok((
            row.try_get(0)?,
            [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?],
        ))
    };
    rows.and_then(|rows| rows.iter().map(texts).collect())
        .map_err(Error::database(DOING))
}
