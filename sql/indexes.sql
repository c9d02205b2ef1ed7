-- indexes.sql: lists the statements that create two indexes. They let the cache find the latest snapshots without
-- reading the whole history.
--
-- What     odds_snapshots (event_id, bookmaker_id, id desc); competitor_odds_snapshots (competitor_event_id, id desc).
--          PostgreSQL has no CREATE INDEX CONCURRENTLY for a partitioned table. So the statements create the index on
--          the parent alone, then on each partition, and then attach these. Later partitions get theirs by themselves.
--          An equal index of another name will do. If nothing is missing, the list is empty.
-- Who      The owner of the tables, or a superuser.
-- Run      psql -XAtq -v ON_ERROR_STOP=1 -f indexes.sql odds > todo.sql
--          psql -X -v ON_ERROR_STOP=1 -f todo.sql odds
--          Any other client will do. This file is two statements for one connection. It changes nothing. Each row of
--          its result is a statement. Run these in order, in one session, outside a transaction. The command
--          `oddscache sql indexes --apply` lists them and runs them.
-- Names    Edit the settings below, or let the program fill them in: oddscache sql indexes --app-schema x
-- Locks    CREATE INDEX CONCURRENTLY lets readers and writers go on. It waits for transactions older than itself. The
--          other statements take SHARE on a partitioned parent, and ACCESS EXCLUSIVE on the new index alone, for a
--          moment. They wait for at most `lock_timeout`.
-- Again    Lists what is still missing, and replaces indexes that an interrupted run left INVALID. Fails while another
--          run is at work.
-- Undo     uninstall.sql, or DROP INDEX odds_snapshots_oddscache_latest, competitor_odds_snapshots_oddscache_latest
DO $indexes$
DECLARE
    app_schema constant pg_catalog.text := 'public';  -- the schema of the tables
    lock_timeout constant pg_catalog.text := '2s';  -- how long a statement waits for a lock; 0 waits for ever

    -- The caller's settings. The last statement restores them.
    settings constant pg_catalog.jsonb := pg_catalog.jsonb_build_object(
        'search_path', pg_catalog.current_setting('search_path'),
        'client_min_messages', pg_catalog.current_setting('client_min_messages'),
        'exit_on_error', pg_catalog.current_setting('exit_on_error'),
        'quote_all_identifiers', pg_catalog.current_setting('quote_all_identifiers'));
    statements pg_catalog.jsonb;
    problem    pg_catalog.text;
    w          pg_catalog.record;
BEGIN
    -- Every name above this line is qualified, because the caller's search_path may find another role's objects first.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('client_min_messages', 'notice', true), set_config('exit_on_error', 'off', true),
        set_config('quote_all_identifiers', 'off', true);

    SELECT string_agg(t.tab, ', ') INTO problem
        FROM unnest(ARRAY['odds_snapshots', 'competitor_odds_snapshots']) AS t (tab)
     WHERE to_regclass(format('%I.%I', app_schema, t.tab)) IS NULL;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'missing in schema %: %', quote_ident(app_schema), problem USING ERRCODE = 'undefined_table',
            HINT = 'Name the application''s schema: oddscache sql indexes --app-schema ..., or the setting app_schema '
                'in the script.';
    END IF;

    -- An index that another run is creating looks like one that an interrupted run has left. But a run that is still
    -- at work in CREATE INDEX CONCURRENTLY holds this lock.
    SELECT format('process %s is at work on %s, whose index %s is not valid yet', l.pid, x.indrelid::regclass,
        x.indexrelid::regclass)
      INTO problem
      FROM pg_index AS x
      JOIN pg_class AS i ON i.oid = x.indexrelid AND i.relname ~ '_oddscache_latest$|^oddscache_latest_[0-9]+$'
      JOIN pg_class AS c ON c.oid = x.indrelid AND c.relkind = 'r'
      JOIN pg_locks AS l ON l.relation = c.oid AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted
          AND l.pid <> pg_backend_pid()
           AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
     WHERE NOT x.indisvalid LIMIT 1;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%: another run of indexes.sql, or a VACUUM', problem USING ERRCODE = 'object_in_use',
            HINT = 'Run this again when it is done.';
    END IF;

    -- Each table and partition that should have one of the indexes, with the index that it has on exactly these
    -- columns. Of several, prefer one that is attached to the parent's, then a valid one. `complete` says that the
    -- whole table has its index.
    WITH found AS (
        SELECT r.root::regclass AS root, t.level, c.relkind, c.oid::regclass AS node, p.inhparent::regclass AS parent,
               r.columns, n.nspname,
               CASE WHEN octet_length(c.relname) <= 46 THEN c.relname || '_oddscache_latest'
                    ELSE 'oddscache_latest_' || c.oid END AS name,
               same.index, same.valid, same.attached, same.ours,
               bool_or(t.level = 0 AND coalesce(same.valid, false)) OVER (PARTITION BY r.root) AS complete
          FROM (SELECT to_regclass(format('%I.%I', app_schema, v.tab)) AS root, v.columns, v.keys, v.options
                  FROM (VALUES ('odds_snapshots', 'event_id, bookmaker_id, id DESC',
                                ARRAY['event_id', 'bookmaker_id', 'id'], '0 0 3'),
                               ('competitor_odds_snapshots', 'competitor_event_id, id DESC',
                                ARRAY['competitor_event_id', 'id'], '0 3')) AS v (tab, columns, keys, options)) AS r
         CROSS JOIN LATERAL (SELECT r.root AS relid, 0 AS level
                              UNION SELECT f.relid, f.level FROM pg_partition_tree(r.root) AS f) AS t
          JOIN pg_class AS c ON c.oid = t.relid AND c.relkind IN ('r', 'p')
          JOIN pg_namespace AS n ON n.oid = c.relnamespace
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
                 ORDER BY i.relispartition DESC, x.indisvalid DESC, i.oid LIMIT 1) AS same ON true
    ), planned AS (
        -- `future` is the index that each will have in the end.
        SELECT f.*, f.relkind = 'r' AND NOT coalesce(f.valid, false) OR f.index IS NULL AS lacks,
               CASE WHEN f.relkind = 'r' AND NOT coalesce(f.valid, false) OR f.index IS NULL
                    THEN format('%I.%I', f.nspname, f.name) ELSE f.index::text END AS future
          FROM found AS f
    ), step AS (
        -- What an interrupted run left behind
        SELECT 1 AS phase, 0 AS level, p.index::text AS name, format('DROP INDEX CONCURRENTLY %s', p.index) AS sql
          FROM planned AS p WHERE NOT p.complete AND p.relkind = 'r' AND p.ours AND NOT p.valid AND NOT p.attached
         UNION ALL
        -- A partitioned table has no data of its own, so this is instant.
        SELECT 3, p.level, p.node::text, format('CREATE INDEX %I ON ONLY %s (%s)', p.name, p.node, p.columns)
          FROM planned AS p WHERE NOT p.complete AND p.relkind = 'p' AND p.lacks
         UNION ALL
        -- With a lock_timeout, a long transaction would make this fail and leave an INVALID index.
        SELECT 5, 0, p.node::text, format('CREATE INDEX CONCURRENTLY %I ON %s (%s)', p.name, p.node, p.columns)
          FROM planned AS p WHERE NOT p.complete AND p.relkind = 'r' AND p.lacks
         UNION ALL
        -- Lowest level first. The last one makes the parent's index valid.
        SELECT 7, -p.level, p.node::text, format('ALTER INDEX %s ATTACH PARTITION %s', u.future, p.future)
          FROM planned AS p JOIN planned AS u ON u.root = p.root AND u.node = p.parent
         WHERE NOT p.complete AND (p.lacks OR NOT p.attached)
    )
    SELECT jsonb_agg(q.sql || ';' ORDER BY q.phase, q.level, q.name),
           (SELECT string_agg(format('%s has an equal index of another name: %s', f.root, f.index), '; ')
              FROM found AS f WHERE f.level = 0 AND f.complete AND NOT f.ours)
      INTO statements, problem
      FROM (SELECT s.phase, s.level, s.name, s.sql FROM step AS s
             UNION ALL
            SELECT t.phase, 0, '', t.sql
              FROM (VALUES (0, 'SET lock_timeout = 0'), (2, format('SET lock_timeout = %L', lock_timeout)),
                           (4, 'SET lock_timeout = 0'), (6, format('SET lock_timeout = %L', lock_timeout)),
                           (8, 'RESET lock_timeout')) AS t (phase, sql)
             WHERE EXISTS (SELECT FROM step)) AS q;
    IF problem IS NOT NULL THEN
        RAISE NOTICE '%', problem;
    END IF;
    PERFORM set_config('oddscache.report', coalesce(statements, '[]')::text, false);
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END $indexes$;

SELECT r.statement
  FROM pg_catalog.jsonb_array_elements_text(pg_catalog.current_setting('oddscache.report')::pg_catalog.jsonb)
       WITH ORDINALITY AS r (statement, n)
 ORDER BY r.n;
