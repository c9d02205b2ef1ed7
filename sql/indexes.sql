-- indexes.sql: makes the two indexes with which the latest snapshots are found without reading their history.
--
-- What      odds_snapshots (event_id, bookmaker_id, id desc); competitor_odds_snapshots (competitor_event_id, id desc).
--           Where odds_snapshots is partitioned: on the parent alone, then on each partition, then attached, as there is no
--           CREATE INDEX CONCURRENTLY for a whole partitioned table. Later partitions get theirs by themselves.
--           An equal index of another name is used instead.
-- Who       The owner of the tables, or a superuser. Not within a transaction.
-- Locks     CREATE INDEX CONCURRENTLY lets readers and writers go on; it waits for transactions older than itself. On the
--           partitioned parent SHARE, and to attach ACCESS EXCLUSIVE on the new index alone: both for a moment, waited for
--           `lock_timeout` at most.
-- Again     Does what is missing, and replaces what an interrupted run left INVALID.
-- Undo      uninstall.sql, or DROP INDEX odds_snapshots_oddscache_latest, competitor_odds_snapshots_oddscache_latest
--
-- Run       psql -X -f indexes.sql [-v app_schema=public] [-v lock_timeout=2s]
\set ON_ERROR_STOP on
\set QUIET on
\if :{?app_schema}
\else
  \set app_schema public
\endif
\if :{?lock_timeout}
\else
  \set lock_timeout 2s
\endif

SET search_path = pg_catalog, pg_temp;
SET standard_conforming_strings = on;
SET quote_all_identifiers = off;
SET client_min_messages = notice;
SET oddscache.app_schema = :'app_schema';

-- Not a lock one waits for: a waiting session would keep CREATE INDEX CONCURRENTLY waiting in turn.
DO $alone$
DECLARE
    problem text;
BEGIN
    SELECT string_agg(t.tab, ', ') INTO problem FROM unnest(ARRAY['odds_snapshots', 'competitor_odds_snapshots']) AS t (tab)
     WHERE to_regclass(format('%I.%I', current_setting('oddscache.app_schema'), t.tab)) IS NULL;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'missing in schema %: %', quote_ident(current_setting('oddscache.app_schema')), problem
            USING ERRCODE = 'undefined_table', HINT = 'Name the application''s schema: -v app_schema=...';
    END IF;
    IF NOT pg_try_advisory_lock(hashtextextended('oddscache indexes', 0)) THEN
        RAISE EXCEPTION 'another run of indexes.sql is at work in this database' USING ERRCODE = 'lock_not_available';
    END IF;
END $alone$;

-- Every table and partition that should have one of the indexes, with the index of exactly these columns that it has: one
-- attached to the parent's before a free one, a valid one before an invalid. `complete` is true of all of a table's rows.
CREATE TEMPORARY VIEW oddscache_indexes AS
SELECT r.root::regclass AS root, t.level, c.relkind, c.oid::regclass AS node, p.inhparent::regclass AS parent, r.columns,
       CASE WHEN octet_length(c.relname) <= 46 THEN c.relname || '_oddscache_latest' ELSE 'oddscache_latest_' || c.oid END
           AS name,
       same.index, same.valid, same.attached, same.ours,
       bool_or(t.level = 0 AND coalesce(same.valid, false)) OVER (PARTITION BY r.root) AS complete
  FROM (SELECT to_regclass(format('%I.%I', current_setting('oddscache.app_schema'), v.tab)) AS root, v.columns, v.keys,
               v.options
          FROM (VALUES ('odds_snapshots', 'event_id, bookmaker_id, id DESC', ARRAY['event_id', 'bookmaker_id', 'id'], '0 0 3'),
                       ('competitor_odds_snapshots', 'competitor_event_id, id DESC', ARRAY['competitor_event_id', 'id'], '0 3'))
               AS v (tab, columns, keys, options)) AS r
 CROSS JOIN LATERAL (SELECT r.root AS relid, 0 AS level UNION SELECT f.relid, f.level FROM pg_partition_tree(r.root) AS f) AS t
  JOIN pg_class AS c ON c.oid = t.relid AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_inherits AS p ON p.inhrelid = c.oid AND t.level > 0
  LEFT JOIN LATERAL (
        SELECT i.oid::regclass AS index, x.indisvalid AS valid, i.relispartition AS attached,
               i.relname ~ '_oddscache_latest$|^oddscache_latest_[0-9]+$' AS ours
          FROM pg_index AS x
          JOIN pg_class AS i ON i.oid = x.indexrelid
          JOIN pg_am AS m ON m.oid = i.relam AND m.amname = 'btree'
         WHERE x.indrelid = c.oid AND x.indpred IS NULL AND x.indexprs IS NULL
           AND x.indnkeyatts = cardinality(r.keys) AND x.indoption::text = r.options
           AND (SELECT array_agg(a.attname::text ORDER BY k.n)
                  FROM unnest(x.indkey) WITH ORDINALITY AS k (attnum, n)
                  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                 WHERE k.n <= x.indnkeyatts) = r.keys
         ORDER BY i.relispartition DESC, x.indisvalid DESC, i.oid LIMIT 1) AS same ON true;

-- 1. What an interrupted run left behind
SELECT format('DROP INDEX CONCURRENTLY %s', v.index)
  FROM oddscache_indexes AS v
 WHERE NOT v.complete AND v.relkind = 'r' AND v.ours AND NOT v.valid AND NOT v.attached \gexec

-- 2. The partitioned tables themselves: no data, so this is instant.
SET lock_timeout = :'lock_timeout';
SELECT format('CREATE INDEX %I ON ONLY %s (%s)', v.name, v.node, v.columns)
  FROM oddscache_indexes AS v
 WHERE NOT v.complete AND v.relkind = 'p' AND v.index IS NULL ORDER BY v.root::text, v.level \gexec

-- 3. The tables and partitions with data. A lock_timeout here would leave an INVALID index behind any long transaction.
SET lock_timeout = 0;
SELECT format('CREATE INDEX CONCURRENTLY %I ON %s (%s)', v.name, v.node, v.columns)
  FROM oddscache_indexes AS v
 WHERE NOT v.complete AND v.relkind = 'r' AND NOT coalesce(v.valid, false) ORDER BY v.node::text \gexec

-- 4. Partition by partition, lowest level first; the last one makes the parent's index valid.
SET lock_timeout = :'lock_timeout';
SELECT format('ALTER INDEX %s ATTACH PARTITION %s', u.index, v.index)
  FROM oddscache_indexes AS v
  JOIN oddscache_indexes AS u ON u.root = v.root AND u.node = v.parent
 WHERE NOT v.complete AND NOT v.attached ORDER BY v.level DESC, v.node::text \gexec
RESET lock_timeout;

SELECT v.root AS "table", v.columns, v.index, CASE WHEN v.valid THEN 'valid' ELSE 'INVALID' END AS state,
       CASE WHEN v.ours THEN 'ours' ELSE 'found: an equal index of another name' END AS origin
  FROM oddscache_indexes AS v WHERE v.level = 0 ORDER BY v.root::text DESC;

DROP VIEW pg_temp.oddscache_indexes;
DO $$ BEGIN PERFORM pg_advisory_unlock(hashtextextended('oddscache indexes', 0)); END $$;
RESET client_min_messages;
RESET quote_all_identifiers;
RESET standard_conforming_strings;
RESET search_path;
