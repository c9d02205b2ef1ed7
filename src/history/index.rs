//! Checks that the rows of a history can be found by an index (HI2).

use tokio_postgres::{Client, types::Type};

use super::error::HistoryError;
use crate::{error::Error, sql::Table};

const DOING: &str = "looking for the indexes of a history";

/// Each table with the column by which a history looks its rows up.
const TABLES: [Table; 5] = [
    Table::OddsSnapshots,
    Table::MarketOdds,
    Table::CompetitorEvents,
    Table::CompetitorOddsSnapshots,
    Table::CompetitorMarketOdds,
];

/// Fails if a table, or one of its partitions, has no B-tree index that begins with its column.
///
/// # Errors
/// [`HistoryError::NoIndex`] names the first, and the statement that makes an index.
pub(super) async fn check(client: &Client, schema: &str) -> Result<(), HistoryError> {
    // An index on the parent alone does not count, because it is not valid before each partition has its part.
    let sql = "WITH RECURSIVE tree AS ( \
           SELECT c.oid, c.relkind, t.name AS of_table, t.key \
             FROM unnest($2, $3) WITH ORDINALITY AS t (name, key, place) \
             JOIN pg_class AS c ON c.relname = t.name AND c.relkind IN ('r', 'p') \
             JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1 \
           UNION ALL \
           SELECT c.oid, c.relkind, tree.of_table, tree.key \
             FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid JOIN pg_class AS c ON c.oid = i.inhrelid) \
         SELECT format('%I.%I', n.nspname, c.relname), tree.key \
           FROM tree JOIN pg_class AS c ON c.oid = tree.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
          WHERE tree.relkind <> 'p' AND NOT EXISTS ( \
             SELECT FROM pg_index AS x JOIN pg_class AS ix ON ix.oid = x.indexrelid \
               JOIN pg_am AS am ON am.oid = ix.relam AND am.amname = 'btree' \
               JOIN pg_attribute AS a ON a.attrelid = tree.oid AND a.attnum = x.indkey[0] AND a.attname = tree.key \
              WHERE x.indrelid = tree.oid AND x.indisvalid AND x.indpred IS NULL) \
          ORDER BY n.nspname, c.relname LIMIT 1";
    let (names, keys) = (TABLES.map(Table::name), TABLES.map(Table::key));
    let row = client
        .query_typed(
            sql,
            &[
                (&schema, Type::TEXT),
                (&names.as_slice(), Type::TEXT_ARRAY),
                (&keys.as_slice(), Type::TEXT_ARRAY),
            ],
        )
        .await
        .map_err(Error::database(DOING))?;
    let Some(row) = row.first() else {
        return Ok(());
    };
    let get = |index| {
        row.try_get::<_, String>(index)
            .map_err(Error::database(DOING))
    };
    // The column needs no quotes.
    let (table, column) = (get(0)?, get(1)?);
    Err(HistoryError::NoIndex {
        create: format!("CREATE INDEX CONCURRENTLY ON {table} ({column})"),
        table,
        column,
    })
}
