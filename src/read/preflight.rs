//! Checks that everything the follower relies on is there. An error names what is missing and the way out.

use tokio_postgres::{Client, Row};

use crate::{
    config::Config,
    error::Error,
    metrics::status::Fault,
    postgres::{
        connection::{Access, Connection},
        quote::{literal, quote},
        server_version::Major,
        statement::{Prepared, Statement},
    },
    sql::{FEED_VERSION, FEED_VERSIONS, Table},
};

const DOING: &str = "checking tables, rights and triggers";

/// What the installed feed says of itself.
#[derive(Debug)]
pub(crate) struct Feed {
    /// One of [`FEED_VERSIONS`].
    pub(crate) version: i32,
    pub(crate) channel: String,
    /// Which database of which cluster it is in, standbys included.
    pub(crate) database: String,
    /// Why some changes are not logged. If this is empty, the feed is *whole*: it logs every change.
    pub(crate) faults: Vec<Fault>,
    /// The ids of the tables and partitions to which all faults belong. `None` if there are others.
    pub(crate) gaps: Option<Vec<u32>>,
}

/// The query for [`Feed::database`]. It does not depend on the search path.
pub(crate) const DATABASE: &str = "SELECT pg_catalog.concat_ws(' ', s.system_identifier, pg_catalog.current_database()) \
     FROM pg_catalog.pg_control_system() s";

/// Checks tables and rights and, if the feed is needed, its version and whether its triggers log every change. Reads
/// only catalogs, in the current transaction, whose search path must be pinned. `None` if the feed is not needed.
pub(crate) async fn check(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
    need_feed: bool,
) -> Result<Option<Feed>, Error> {
    check_tables(client, prepared, config).await?;
    if !need_feed {
        return Ok(None);
    }
    let mut feed = check_feed(client, prepared, config).await?;
    (feed.faults, feed.gaps) = check_triggers(client, prepared, config).await?;
    Ok(Some(feed))
}

/// What [`check`] runs, but what the feed says of itself.
pub(crate) fn statements(config: &Config) -> [Statement; 4] {
    [
        tables_statement(config),
        feed_statement(config),
        gaps_statement(config),
        outside_statement(config),
    ]
}

/// The same in a transaction of its own, which pins the search path. So neither the role's path nor objects that others
/// created in it change the meaning of the names and operators below.
pub(crate) async fn check_first(
    connection: &Connection,
    config: &Config,
    need_feed: bool,
) -> Result<Option<Feed>, Error> {
    let client = &connection.client;
    client
        .batch_execute(&connection.begin(Access::Read, config.read_timeout))
        .await
        .map_err(Error::database(DOING))?;
    check_version(client).await?;
    let feed = check(client, None, config, need_feed).await?;
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::database(DOING))?;
    Ok(feed)
}

async fn check_version(client: &Client) -> Result<(), Error> {
    let sql = "SELECT current_setting('server_version_num')::int";
    let rows = client.query_typed(sql, &[]).await;
    let rows = rows.map_err(Error::database(DOING))?;
    let number = rows.first().map(|row| column::<i32>(row, 0)).transpose()?;
    let number = number.and_then(|number| u32::try_from(number).ok());
    Major::of_number(
        number.ok_or_else(|| Error::unexpected(DOING, "server_version_num is no number"))?,
    )
    .check()
}

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r Row,
    index: usize,
) -> Result<T, Error> {
    row.try_get(index).map_err(Error::database(DOING))
}

fn tables_statement(config: &Config) -> Statement {
    let sql = format!(
        "SELECT t.name, c.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE'), false), \
         coalesce(has_table_privilege(c.oid, 'SELECT'), false), coalesce(row_security_active(c.oid), false), current_user::text \
         FROM unnest(ARRAY[{}]) WITH ORDINALITY AS t(name, position) LEFT JOIN pg_namespace n ON n.nspname = {} \
         LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name AND c.relkind IN ('r', 'p') \
         ORDER BY t.position",
        Table::literals(),
        literal(&config.app_schema),
    );
    Statement::lasting("tables", sql)
}

async fn check_tables(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
) -> Result<(), Error> {
    let rows = tables_statement(config)
        .all(DOING, client, prepared)
        .await?;
    for row in &rows {
        let table = format!("{}.{}", quote(&config.app_schema), quote(column(row, 0)?));
        // In this order, because the role has no right on a table that does not exist.
        if !column::<bool>(row, 1)? {
            return Err(Error::MissingTable { table });
        }
        let role = || column::<String>(row, 5);
        if !column::<bool>(row, 2)? {
            let object = format!("schema {}", quote(&config.app_schema));
            return Err(Error::MissingRight {
                role: role()?,
                privilege: "USAGE",
                object,
            });
        }
        if !column::<bool>(row, 3)? {
            return Err(Error::MissingRight {
                role: role()?,
                privilege: "SELECT",
                object: format!("table {table}"),
            });
        }
        if column::<bool>(row, 4)? && !config.allow_row_security {
            return Err(Error::RowSecurity {
                table,
                role: role()?,
            });
        }
    }
    Ok(())
}

fn feed_statement(config: &Config) -> Statement {
    let sql = format!(
        "SELECT coalesce(has_schema_privilege(n.oid, 'USAGE'), false), \
         l.oid IS NOT NULL, coalesce(has_table_privilege(l.oid, 'SELECT'), false), \
         s.oid IS NOT NULL, coalesce(has_table_privilege(s.oid, 'SELECT'), false), \
         f.oid IS NOT NULL, coalesce(has_function_privilege(f.oid, 'EXECUTE'), false), current_user::text, \
         coalesce(row_security_active(l.oid), false), coalesce(row_security_active(s.oid), false) \
         FROM pg_namespace n \
         LEFT JOIN pg_class l ON l.relnamespace = n.oid AND l.relname = 'change_log' \
         LEFT JOIN pg_class s ON s.relnamespace = n.oid AND s.relname = 'log_state' \
         LEFT JOIN pg_proc f ON f.pronamespace = n.oid AND f.proname = 'feed_version' AND f.pronargs = 0 \
         WHERE n.nspname = {}",
        literal(&config.cache_schema),
    );
    Statement::lasting("feed_objects", sql)
}

/// Checks that the feed's objects exist and that the role may use them. Returns what [`feed_state`] says.
async fn check_feed(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
) -> Result<Feed, Error> {
    let schema = &config.cache_schema;
    let missing = |object| Error::FeedMissing {
        schema: schema.clone(),
        object,
    };
    let rows = feed_statement(config).all(DOING, client, prepared).await?;
    let row = rows
        .first()
        .ok_or_else(|| missing("objects, for it does not exist itself"))?;
    let role: String = column(row, 7)?;
    let right = |privilege, object: String| Error::MissingRight {
        role: role.clone(),
        privilege,
        object,
    };
    if !column::<bool>(row, 0)? {
        return Err(right("USAGE", format!("schema {}", quote(schema))));
    }
    for (index, row_security, name) in [(1, 8, "change_log"), (3, 9, "log_state")] {
        if !column::<bool>(row, index)? {
            return Err(missing(name));
        }
        let table = format!("{}.{name}", quote(schema));
        if !column::<bool>(row, index + 1)? {
            return Err(right("SELECT", format!("table {table}")));
        }
        // A policy of row level security would hide log rows.
        if column::<bool>(row, row_security)? {
            return Err(Error::RowSecurity {
                table,
                role: role.clone(),
            });
        }
    }
    if !column::<bool>(row, 5)? {
        return Err(missing("feed_version()"));
    }
    if !column::<bool>(row, 6)? {
        return Err(right(
            "EXECUTE",
            format!("function {}.feed_version()", quote(schema)),
        ));
    }
    feed_state(client, config).await
}

/// Reads what the feed says of itself. Fails unless it is for this library and these tables.
async fn feed_state(client: &Client, config: &Config) -> Result<Feed, Error> {
    let schema = &config.cache_schema;
    let version = format!(
        "SELECT {0}.feed_version(), app_schema, channel, ({DATABASE}) FROM {0}.log_state",
        quote(schema)
    );
    let rows = client
        .query_typed(&version, &[])
        .await
        .map_err(Error::database(DOING))?;
    let row = rows.first().ok_or_else(|| Error::FeedMissing {
        schema: schema.clone(),
        object: "row in log_state",
    })?;
    // The version comes first: in another version the rest may mean something else.
    let version: i32 = column(row, 0)?;
    if !FEED_VERSIONS.contains(&version) {
        return Err(Error::FeedVersion {
            schema: schema.clone(),
            found: version,
            oldest: *FEED_VERSIONS.start(),
            newest: FEED_VERSION,
        });
    }
    let app_schema: String = column(row, 1)?;
    if app_schema != config.app_schema {
        let expected = config.app_schema.clone();
        return Err(Error::FeedElsewhere {
            schema: schema.clone(),
            found: app_schema,
            expected,
        });
    }
    Ok(Feed {
        version,
        channel: column(row, 2)?,
        database: column(row, 3)?,
        faults: Vec::new(),
        gaps: None,
    })
}

/// Begins a query on `node`: the application's tables (`root`), and all below them but temporary ones, which belong to
/// one session. `name` is that of the application's table.
fn nodes(config: &Config) -> String {
    format!(
        "WITH RECURSIVE node AS (\
           SELECT c.oid, true AS root, c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {} AND c.relname IN ({}) AND c.relkind IN ('r', 'p') \
           UNION SELECT i.inhrelid, false, node.name FROM pg_inherits i JOIN node ON node.oid = i.inhparent \
           JOIN pg_class c ON c.oid = i.inhrelid AND c.relpersistence <> 't')",
        literal(&config.app_schema),
        Table::literals(),
    )
}

/// What keeps the triggers of a table or partition from logging every change.
#[derive(Debug, Default)]
struct Gap {
    id: u32,
    table: String,
    /// The kinds of change that have no trigger.
    missing: Vec<String>,
    /// The names of triggers that are disabled, quoted.
    disabled: Vec<String>,
    /// The names of triggers that do not fire for a session with `session_replication_role = replica`, quoted.
    not_always: Vec<String>,
    /// Whether a subscription fills the table. Logical replication fires no statement triggers.
    subscribed: bool,
}

impl Gap {
    fn faults(&self) -> impl Iterator<Item = Fault> {
        let table = &self.table;
        let enable = |triggers: &[String]| {
            let each = triggers
                .iter()
                .map(|name| format!("ENABLE ALWAYS TRIGGER {name}"));
            format!(
                "ALTER TABLE {table} {}",
                each.collect::<Vec<_>>().join(", ")
            )
        };
        let fault = |names: &[String], what: String, repair: String| {
            (!names.is_empty()).then_some(Fault { what, repair })
        };
        let (missing, disabled) = (self.missing.join(", "), self.disabled.join(", "));
        let not_always = self.not_always.join(", ");
        let subscribed = self.subscribed.then(|| Fault {
            what: format!(
                "{table} is filled by logical replication, which fires no statement trigger"
            ),
            repair: "follow the publisher instead".to_owned(),
        });
        [
            fault(
                &self.missing,
                format!("{table} has no trigger for {missing}"),
                "oddscache sql install --apply (sql/install.sql), as the owner of the tables"
                    .to_owned(),
            ),
            fault(
                &self.disabled,
                format!("on {table}, {disabled} is disabled"),
                enable(&self.disabled),
            ),
            fault(
                &self.not_always,
                format!("on {table}, {not_always} is not ENABLE ALWAYS"),
                enable(&self.not_always),
            ),
            subscribed,
        ]
        .into_iter()
        .flatten()
    }
}

/// Selects the tables and partitions with their triggers, by kind of change. Leaves out foreign tables, whose changes no
/// trigger can log.
fn gaps_statement(config: &Config) -> Statement {
    // Bits of `tgtype`: 1 marks a row trigger, which the feed does not have; 4 to 32 are the kinds of change. One
    // trigger that always fires is enough, hence `bool_or`. One with a condition, a list of columns or the name of
    // another table does not. Its argument is the table's name, after `*` if a foreign table is below.
    let sql = format!(
        "{} \
         SELECT node.oid::regclass::text, op.name, bool_or(t.tgenabled = 'A'), bool_or(t.tgenabled <> 'D'), \
           coalesce(array_agg(quote_ident(t.tgname)) FILTER (WHERE t.oid IS NOT NULL), '{{}}'), \
           EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = node.oid), node.oid \
         FROM node JOIN pg_class c ON c.oid = node.oid AND c.relkind <> 'f' \
         CROSS JOIN (VALUES ('insert', 4), ('delete', 8), ('update', 16), ('truncate', 32)) AS op(name, bit) \
         LEFT JOIN (pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.proname = 'log_change' \
           JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = {}) \
           ON t.tgrelid = node.oid AND t.tgtype & op.bit <> 0 AND t.tgtype & 1 = 0 AND t.tgqual IS NULL AND t.tgattr = '' \
             AND t.tgargs IN (convert_to(node.name, 'UTF8') || '\\x00', '\\x2a00' || convert_to(node.name, 'UTF8') || '\\x00') \
         GROUP BY node.oid, node.root, op.name ORDER BY node.root DESC, 1, op.name",
        nodes(config),
        literal(&config.cache_schema),
    );
    Statement::lasting("gaps", sql)
}

/// Finds the tables and partitions with changes that no trigger logs.
async fn gaps(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
) -> Result<Vec<Gap>, Error> {
    let rows = gaps_statement(config).all(DOING, client, prepared).await?;
    let mut gaps: Vec<Gap> = Vec::new();
    for row in &rows {
        let table: String = column(row, 0)?;
        // The rows of a table follow each other.
        if gaps.last().is_none_or(|gap| gap.table != table) {
            gaps.push(Gap {
                id: column(row, 6)?,
                table,
                ..Gap::default()
            });
        }
        let Some(gap) = gaps.last_mut() else { continue };
        let (always, enabled) = (
            column::<Option<bool>>(row, 2)?,
            column::<Option<bool>>(row, 3)?,
        );
        let triggers: Vec<String> = column(row, 4)?;
        match (always, enabled) {
            (Some(true), _) => {}
            (None, _) => gap.missing.push(column(row, 1)?),
            (_, Some(true)) => gap.not_always.extend(triggers),
            _ => gap.disabled.extend(triggers),
        }
        gap.subscribed = column(row, 5)?;
    }
    Ok(gaps)
}

/// The faults because of which some changes are not logged, and [`Feed::gaps`].
async fn check_triggers(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
) -> Result<(Vec<Fault>, Option<Vec<u32>>), Error> {
    let gaps = gaps(client, prepared, config).await?;
    let outside = parents_outside(client, prepared, config).await?;
    let has_fault = |gap: &&Gap| gap.faults().next().is_some();
    let ids = gaps.iter().filter(has_fault).map(|gap| gap.id).collect();
    let ids = outside.is_empty().then_some(ids);
    let mut faults: Vec<Fault> = gaps.iter().flat_map(Gap::faults).collect();
    faults.extend(outside);
    let others = faults.len().saturating_sub(MOST_FAULTS);
    if others > 0 {
        faults.truncate(MOST_FAULTS);
        faults.push(Fault {
            what: format!("{others} more of this kind"),
            repair: "oddscache doctor names all".to_owned(),
        });
    }
    Ok((faults, ids))
}

fn outside_statement(config: &Config) -> Statement {
    let sql = format!(
        "{} \
         SELECT i.inhparent::regclass::text, c.oid::regclass::text, c.relispartition FROM pg_inherits i \
         JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhrelid IN (SELECT oid FROM node) AND i.inhparent NOT IN (SELECT oid FROM node) ORDER BY 1, 2",
        nodes(config),
    );
    Statement::lasting("parents_outside", sql)
}

/// The tables that have one of the application's tables below them, or a table below one, and are neither themselves. A
/// statement that names such a parent changes the child's rows, and fires no trigger of the feed.
async fn parents_outside(
    client: &Client,
    prepared: Option<&Prepared>,
    config: &Config,
) -> Result<Vec<Fault>, Error> {
    let rows = outside_statement(config)
        .all(DOING, client, prepared)
        .await?;
    let fault = |row: &Row| {
        let (parent, table): (&str, &str) = (column(row, 0)?, column(row, 1)?);
        let repair = match column(row, 2)? {
            true => format!("ALTER TABLE {parent} DETACH PARTITION {table}"),
            false => format!("ALTER TABLE {table} NO INHERIT {parent}"),
        };
        let what = format!(
            "{table} also inherits from {parent}; a statement that names {parent} is not logged"
        );
        Ok(Fault { what, repair })
    };
    rows.iter().map(fault).collect()
}

/// The most faults that are named.
const MOST_FAULTS: usize = 8;
