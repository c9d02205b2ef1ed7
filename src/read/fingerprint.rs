//! A fingerprint of the catalog. DDL can change rows, or hide them, without firing a trigger. Each read of changes
//! compares the fingerprint with that of the last look at the catalog. If they differ, the rows that may have changed are
//! read ([`crate::read::partitions`]), or everything is.
//!
//! The fingerprint changes when somebody
//! - attaches, detaches, drops or rewrites a partition;
//! - renames a table, puts another in its place, or alters a column, also its collation or the expression of a virtual
//!   generated column;
//! - renames a label of an enum, or alters a composite type, if a column is of that type. Domains, arrays and ranges of
//!   such types count as well;
//! - replaces or disables a trigger or its function. A trigger that is enabled again at once has another `xmin`;
//! - changes row security;
//! - truncates, rebuilds or reinstalls the log.
//!
//! # Invariants
//! - K1: The fingerprint covers every object that a read can reach. [`Watched::find`] lists their ids, because a lookup
//!   by id is cheap. A new object is noticed too: it is linked to a listed one, or it has taken over the name of one.

use tokio_postgres::Client;

use crate::{
    error::Error,
    postgres::{
        quote::literal,
        statement::{Prepared, Statement},
    },
    read::schema::Names,
    sql::Table,
};

/// The watched objects, and the statements that compare them.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Ids of the tables and their partitions, ascending and separated by commas, and the labels of enums, at the
    /// snapshot that found them.
    pub(crate) tables: String,
    /// `()` -> fingerprint.
    pub(crate) fingerprint: Statement,
    /// `()` -> the facts of which the fingerprint is the sum, each with its hash. [`crate::read::partitions`] reads their
    /// first words.
    pub(crate) facts: Statement,
    /// `()` -> `tables`, but as they are now, not as the snapshot shows them. A query on a partitioned table also reads
    /// a partition that was attached after the snapshot, and it prints an enum's value with its latest label.
    pub(crate) tables_now: Statement,
}

const DOING: &str = "reading the catalog";

/// Objects that users create have ids from this on.
const FIRST_OF_USERS: u32 = 16_384;

impl Watched {
    /// What [`Watched::find`] runs.
    pub(crate) fn statement(names: &Names) -> Statement {
        Statement::lasting("watched", find(names))
    }

    /// Finds the objects in the current transaction. Reads catalogs only.
    pub(crate) async fn find(
        client: &Client,
        prepared: Option<&Prepared>,
        names: &Names,
    ) -> Result<Watched, Error> {
        let rows = Watched::statement(names)
            .all(DOING, client, prepared)
            .await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::unexpected(DOING, "no answer"))?;
        let column = |index| -> Result<String, Error> {
            let ids: Option<String> = row.try_get(index).map_err(Error::database(DOING))?;
            Ok(ids.unwrap_or_default())
        };
        let found = Found {
            roots: column(0)?,
            nodes: column(1)?,
            log: column(2)?,
            indexes: column(3)?,
            functions: column(4)?,
            enums: column(7)?,
            composites: column(8)?,
            expressions: column(9)?,
            nameable_enums: column(10)?,
        };
        let facts = found.facts(names);
        let sum = format!(
            "SELECT concat_ws(' ', count(*), sum(hashtextextended(item, 0))) FROM ({facts}) AS items"
        );
        Ok(Watched {
            tables: column(5)?,
            fingerprint: Statement::new("fingerprint", sum, []),
            facts: Statement::new(
                "facts",
                format!("SELECT item, hashtextextended(item, 0) FROM ({facts}) AS items"),
                [],
            ),
            tables_now: Statement::new("tables_now", found.tables_now(&column(6)?), []),
        })
    }
}

/// Ids of the watched objects, each list separated by commas.
struct Found {
    /// The application's tables.
    roots: String,
    /// The tables with all their partitions and child tables.
    nodes: String,
    /// The tables of the change log.
    log: String,
    /// The indexes of these.
    indexes: String,
    /// The functions of the feed that the triggers and the follower call.
    functions: String,
    /// The enums that a column's type is or contains. This list and the next two are usually empty.
    enums: String,
    /// The same for composite types: the relations that have their attributes.
    composites: String,
    /// The expressions of virtual generated columns.
    expressions: String,
    /// Not ids but quoted names: of the enums whose schema the role may use.
    nameable_enums: String,
}

/// Selects one row of lists: roots, nodes, log, its indexes, functions, tables, partitioned tables, and the last four
/// lists of [`Found`].
///
/// "Tables" leaves out plain child tables and partitions that are being detached, as `pg_partition_tree` in
/// [`Found::tables_now`] does. Both lists must agree while nothing changes.
///
/// OFFSET 0 keeps each look into a catalog apart, so that the server makes it by an index. A database may have very many
/// tables. A type that comes with PostgreSQL contains none that somebody created, so `used` leaves those out.
fn find(names: &Names) -> String {
    // `leaving` marks a partition that DETACH CONCURRENTLY is still removing, and all partitions below it.
    format!(
        "WITH RECURSIVE node AS (\
           SELECT c.oid, 0::oid AS parent, c.relkind, false AS leaving FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {app} AND c.relname IN ({tables}) AND c.relkind IN ('r', 'p') \
           UNION ALL SELECT i.inhrelid, i.inhparent, ' ', \
             node.leaving OR coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false) \
             FROM pg_inherits i JOIN node ON node.oid = i.inhparent), \
         log AS (\
           SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {cache} AND c.relname IN ('change_log', 'log_state')), \
         used AS (\
           SELECT a.atttypid AS oid FROM node JOIN pg_attribute a ON a.attrelid = node.oid \
           WHERE node.parent = 0 AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= {FIRST_OF_USERS} \
           UNION SELECT part FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (\
             VALUES (t.typbasetype), (t.typelem) \
             UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid) \
             UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped\
           ) AS parts (part) WHERE part >= {FIRST_OF_USERS}), \
         enum AS (\
           SELECT t.oid, has_schema_privilege(t.typnamespace, 'USAGE') AS nameable FROM used JOIN pg_type t USING (oid) \
           WHERE t.typtype = 'e') \
         SELECT (SELECT string_agg(oid::text, ',') FROM node WHERE parent = 0), \
           (SELECT string_agg(oid::text, ',') FROM node), \
           (SELECT string_agg(oid::text, ',') FROM log), \
           (SELECT string_agg(i.indexrelid::text, ',') FROM log CROSS JOIN LATERAL (\
             SELECT indexrelid FROM pg_index WHERE indrelid = log.oid OFFSET 0) i), \
           (SELECT string_agg(p.oid::text, ',') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = {cache} AND p.proname IN ('log_change', 'feed_version')), \
           concat_ws(' ', (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM node CROSS JOIN LATERAL (\
             SELECT relispartition FROM pg_class WHERE oid = node.oid OFFSET 0) c \
             WHERE parent = 0 OR relispartition AND NOT leaving), \
             (SELECT string_agg((SELECT coalesce(string_agg(l.enumlabel, ',' ORDER BY l.enumsortorder), '') \
               FROM pg_enum l WHERE l.enumtypid = enum.oid), ' ' ORDER BY oid) FROM enum WHERE nameable)), \
           (SELECT string_agg(oid::text, ',') FROM node WHERE relkind = 'p'), \
           (SELECT string_agg(oid::text, ',') FROM enum), \
           (SELECT string_agg(t.typrelid::text, ',') FROM used JOIN pg_type t USING (oid) WHERE t.typrelid <> 0), \
           (SELECT string_agg(d.oid::text, ',') FROM node CROSS JOIN LATERAL (\
             SELECT attrelid, attnum FROM pg_attribute WHERE attrelid = node.oid AND attgenerated = 'v' OFFSET 0) a \
             JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum), \
           (SELECT string_agg(format('enum_range(NULL::%s)', format_type(oid, NULL)), chr(10) ORDER BY oid) FROM enum WHERE nameable)",
        app = literal(&names.app_schema),
        cache = literal(&names.cache_schema),
        tables = Table::literals(),
    )
}

impl Found {
    /// One text for each fact. The fingerprint is the sum of their hashes: a sum does not depend on the order, so nothing
    /// is sorted.
    fn facts(&self, names: &Names) -> String {
        let Found {
            roots,
            nodes,
            log,
            indexes,
            functions,
            enums,
            composites,
            expressions,
            nameable_enums: _,
        } = self;
        // Most deployments have none of these types and columns. Then they cost nothing.
        let mut types = String::new();
        let mut watch = |ids: &str, sql: &str| {
            if !ids.is_empty() {
                types.push_str(" UNION ALL ");
                types.push_str(&sql.replace("{}", ids));
            }
        };
        watch(
            enums,
            "SELECT format('label %s %s %s', enumtypid, oid, enumlabel) FROM pg_enum WHERE enumtypid = ANY('{{}}'::oid[]) \
             UNION ALL SELECT format('enum %s %s', id, format_type(id, NULL)) FROM unnest('{{}}'::oid[]) AS id",
        );
        watch(
            composites,
            "SELECT format('attribute %s %s %s', attrelid, attnum, atttypid) FROM pg_attribute \
             WHERE attrelid = ANY('{{}}'::oid[]) AND attnum > 0 AND NOT attisdropped",
        );
        watch(
            expressions,
            "SELECT format('expression %s %s', oid, xmin) FROM pg_attrdef WHERE oid = ANY('{{}}'::oid[])",
        );
        let locked: Vec<String> = names.locked.iter().map(|name| literal(name)).collect();
        format!(
            "SELECT item FROM (\
               SELECT format('name %s %s', name, to_regclass(name)::oid) FROM unnest(ARRAY[{locked}]) AS name \
               UNION ALL SELECT format('table %s %s %s', oid, relfilenode, relkind) FROM pg_class \
                 WHERE oid = ANY('{{{nodes}}}'::oid[] || '{{{log}}}'::oid[] || '{{{indexes}}}'::oid[]) \
               UNION ALL SELECT format('log %s %s', oid, xmin) FROM pg_class WHERE oid = ANY('{{{log}}}'::oid[]) \
               UNION ALL SELECT format('link %s %s %s', inhrelid, inhparent, xmin) FROM pg_inherits \
                 WHERE inhparent = ANY('{{{nodes}}}'::oid[]) OR inhrelid = ANY('{{{nodes}}}'::oid[]) \
               UNION ALL SELECT format('subscription %s %s', srsubid, srrelid) FROM pg_subscription_rel \
                 WHERE srrelid = ANY('{{{nodes}}}'::oid[]) \
               UNION ALL SELECT format('rows %s %s', id, row_security_active(id)) \
                 FROM unnest('{{{roots}}}'::oid[] || '{{{log}}}'::oid[]) AS id \
               UNION ALL SELECT format('policy %s %s', polrelid, xmin) FROM pg_policy \
                 WHERE polrelid = ANY('{{{nodes}}}'::oid[] || '{{{log}}}'::oid[]) \
               UNION ALL SELECT format('column %s %s %s %s %s', attrelid, attnum, attname, atttypid, attcollation) FROM pg_attribute \
                 WHERE attrelid = ANY('{{{roots}}}'::oid[]) AND attnum > 0 AND NOT attisdropped \
               UNION ALL SELECT format('trigger %s %s %s %s %s', oid, tgrelid, xmin, tgenabled, tgfoid) FROM pg_trigger \
                 WHERE tgrelid = ANY('{{{nodes}}}'::oid[]) AND tgfoid = ANY('{{{functions}}}'::oid[]) \
               UNION ALL SELECT format('function %s %s', oid, xmin) FROM pg_proc \
                 WHERE oid = ANY('{{{functions}}}'::oid[]) \
               UNION ALL SELECT format('index %s %s', indrelid, indexrelid) FROM pg_index \
                 WHERE indrelid = ANY('{{{log}}}'::oid[]){types}) AS items (item)",
            locked = locked.join(", "),
        )
    }

    /// The roots as found, and the current partitions of those that are partitioned. A locked table cannot change
    /// whether it is partitioned. Then the labels of the enums: unlike a query on `pg_enum`, `enum_range` gives the
    /// latest.
    fn tables_now(&self, partitioned: &str) -> String {
        let labels = self.nameable_enums.lines();
        let labels: Vec<String> = labels
            .map(|range| format!(", array_to_string({range}, ',')"))
            .collect();
        format!(
            "SELECT concat_ws(' ', (SELECT string_agg(id::text, ',' ORDER BY id) FROM (\
               SELECT id FROM unnest('{{{}}}'::oid[]) AS id UNION \
               SELECT tree.relid::oid FROM unnest('{{{partitioned}}}'::oid[]) AS root, pg_partition_tree(root) AS tree) AS tables){})",
            self.roots,
            labels.concat()
        )
    }
}
