//! A fingerprint of the catalog. DDL can change rows, or hide them, without firing a trigger. Each read of changes
//! compares the fingerprint with that of the last read of everything. If they differ, everything is read again.
//!
//! The fingerprint changes when somebody
//! - attaches, detaches, drops or rewrites a partition;
//! - renames a table, puts another in its place, or alters a column;
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
    postgres::{quote::literal, statement::Statement},
    read::schema::Names,
    sql::Table,
};

/// The watched objects, and the statements that compare them.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Ids of the tables and their partitions, ascending and separated by commas, at the snapshot that found them.
    pub(crate) tables: String,
    /// `()` -> fingerprint.
    pub(crate) fingerprint: Statement,
    /// `()` -> `tables`, but as they are now, not as the snapshot shows them. A query on a partitioned table also reads
    /// a partition that was attached after the snapshot.
    pub(crate) tables_now: Statement,
}

const DOING: &str = "reading the catalog";

impl Watched {
    /// Finds the objects in the current transaction. Reads catalogs only.
    pub(crate) async fn find(client: &Client, names: &Names) -> Result<Watched, Error> {
        let rows = client.query_typed(&find(names), &[]).await;
        let rows = rows.map_err(Error::database(DOING))?;
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
        };
        Ok(Watched {
            tables: column(5)?,
            fingerprint: Statement::new("fingerprint", found.fingerprint(names), []),
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
    /// The functions of the feed.
    functions: String,
}

/// Selects one row of lists: roots, nodes, log, its indexes, functions, tables, partitioned tables.
///
/// "Tables" leaves out plain child tables and partitions that are being detached, as `pg_partition_tree` in
/// [`Found::tables_now`] does. Both lists must agree while nothing changes.
fn find(names: &Names) -> String {
    // `leaving` marks a partition that DETACH CONCURRENTLY is still removing, and all partitions below it.
    let tables = Table::ALL.map(|table| literal(table.name()));
    format!(
        "WITH RECURSIVE node AS (\
           SELECT c.oid, 0::oid AS parent, c.relkind, false AS leaving FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {app} AND c.relname IN ({tables}) AND c.relkind IN ('r', 'p') \
           UNION ALL SELECT i.inhrelid, i.inhparent, ' ', \
             node.leaving OR coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false) \
             FROM pg_inherits i JOIN node ON node.oid = i.inhparent), \
         log AS (\
           SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = {cache} AND c.relname IN ('change_log', 'log_state')) \
         SELECT (SELECT string_agg(oid::text, ',') FROM node WHERE parent = 0), \
           (SELECT string_agg(oid::text, ',') FROM node), \
           (SELECT string_agg(oid::text, ',') FROM log), \
           (SELECT string_agg(i.indexrelid::text, ',') FROM log JOIN pg_index i ON i.indrelid = log.oid), \
           (SELECT string_agg(p.oid::text, ',') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = {cache}), \
           (SELECT string_agg(oid::text, ',' ORDER BY oid) FROM node JOIN pg_class c USING (oid) \
             WHERE parent = 0 OR c.relispartition AND NOT leaving), \
           (SELECT string_agg(oid::text, ',') FROM node WHERE relkind = 'p')",
        app = literal(&names.app_schema),
        cache = literal(&names.cache_schema),
        tables = tables.join(", "),
    )
}

impl Found {
    /// One text for each fact, and the sum of their hashes. A sum does not depend on the order, so nothing is sorted.
    fn fingerprint(&self, names: &Names) -> String {
        let Found {
            roots,
            nodes,
            log,
            indexes,
            functions,
        } = self;
        let locked: Vec<String> = names.locked.iter().map(|name| literal(name)).collect();
        format!(
            "SELECT concat_ws(' ', count(*), sum(hashtextextended(item, 0))) FROM (\
               SELECT format('name %s %s', name, to_regclass(name)::oid) FROM unnest(ARRAY[{locked}]) AS name \
               UNION ALL SELECT format('table %s %s %s', oid, relfilenode, relkind) FROM pg_class \
                 WHERE oid = ANY('{{{nodes}}}'::oid[] || '{{{log}}}'::oid[] || '{{{indexes}}}'::oid[]) \
               UNION ALL SELECT format('log %s %s', oid, xmin) FROM pg_class WHERE oid = ANY('{{{log}}}'::oid[]) \
               UNION ALL SELECT format('link %s %s %s', inhrelid, inhparent, xmin) FROM pg_inherits \
                 WHERE inhparent = ANY('{{{nodes}}}'::oid[]) \
               UNION ALL SELECT format('rows %s %s', id, row_security_active(id)) \
                 FROM unnest('{{{roots}}}'::oid[] || '{{{log}}}'::oid[]) AS id \
               UNION ALL SELECT format('policy %s %s', polrelid, xmin) FROM pg_policy \
                 WHERE polrelid = ANY('{{{nodes}}}'::oid[] || '{{{log}}}'::oid[]) \
               UNION ALL SELECT format('column %s %s %s %s', attrelid, attnum, attname, atttypid) FROM pg_attribute \
                 WHERE attrelid = ANY('{{{roots}}}'::oid[]) AND attnum > 0 AND NOT attisdropped \
               UNION ALL SELECT format('trigger %s %s %s %s', oid, xmin, tgenabled, tgfoid) FROM pg_trigger \
                 WHERE tgrelid = ANY('{{{nodes}}}'::oid[]) AND tgfoid = ANY('{{{functions}}}'::oid[]) \
               UNION ALL SELECT format('function %s %s', oid, xmin) FROM pg_proc \
                 WHERE oid = ANY('{{{functions}}}'::oid[]) AND proname IN ('log_change', 'feed_version') \
               UNION ALL SELECT format('index %s %s', indrelid, indexrelid) FROM pg_index \
                 WHERE indrelid = ANY('{{{log}}}'::oid[])) AS items (item)",
            locked = locked.join(", "),
        )
    }

    /// The roots as found, and the current partitions of those that are partitioned. A locked table cannot change
    /// whether it is partitioned.
    fn tables_now(&self, partitioned: &str) -> String {
        format!(
            "SELECT string_agg(id::text, ',' ORDER BY id) FROM (\
               SELECT id FROM unnest('{{{}}}'::oid[]) AS id UNION \
               SELECT tree.relid::oid FROM unnest('{{{partitioned}}}'::oid[]) AS root, pg_partition_tree(root) AS tree) AS tables",
            self.roots
        )
    }
}
