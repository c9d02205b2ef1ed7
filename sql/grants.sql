-- grants.sql: makes a role for the cache, and grants it what the cache does and nothing else.
--
-- What      LOGIN without a password; USAGE on the two schemas; SELECT on the six tables, change_log and log_state; EXECUTE
--           on heartbeat(). SELECT is on whole tables: LOCK TABLE ... IN ACCESS SHARE MODE, which the cache needs, refuses
--           rights on columns. Partitions need none of their own. heartbeat() takes no argument and writes a fixed row of
--           nothing, at most one a second for each session that calls it, and rings the bell, which any role can by NOTIFY:
--           whoever calls it all day adds a few thousand log rows an hour, and prune() deletes them. Never granted here is
--           resync(): it makes every cache read everything. With `-v prune=on` also EXECUTE on prune(interval), so that
--           the cache keeps the log short. What PUBLIC was granted, the role can do as every role can: use temporary tables,
--           and before PostgreSQL 15 make tables in schema public. check.sql names it, with the statement that takes it.
-- Who       Someone who may grant on the tables and on the feed: their owner or a superuser; CREATEROLE if the role is new.
-- Locks     None that a reader or writer would notice.
-- Again     Grants only what is missing. A role that exists is used as it is.
-- Undo      uninstall.sql drops the role if it was made here; otherwise it prints the REVOKEs.
--
-- Run       psql -X -f grants.sql [-v app_schema=public] [-v cache_schema=oddscache] [-v role=oddscache] [-v prune=on]
\set ON_ERROR_STOP on
\set QUIET on
\if :{?app_schema}
\else
  \set app_schema public
\endif
\if :{?cache_schema}
\else
  \set cache_schema oddscache
\endif
\if :{?role}
\else
  \set role oddscache
\endif
\if :{?prune}
\else
  \set prune off
\endif

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL client_min_messages = notice;
SET LOCAL lock_timeout = '2s';
SET LOCAL oddscache.app_schema = :'app_schema';
SET LOCAL oddscache.cache_schema = :'cache_schema';
SET LOCAL oddscache.role = :'role';
SET LOCAL oddscache.prune = :'prune';
SET LOCAL oddscache.done = '0';
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0)); END $$;

DO $grants$
DECLARE
    app     constant text := current_setting('oddscache.app_schema');
    cache   constant text := current_setting('oddscache.cache_schema');
    role    constant text := current_setting('oddscache.role');
    done    integer := 0;
    problem text;
    g       record;
BEGIN
    SELECT string_agg(v.name, ', ') INTO problem
      FROM (SELECT format('%I.%I', app, t.tab) AS name
              FROM unnest(ARRAY['events', 'competitor_events', 'odds_snapshots', 'market_odds',
                  'competitor_odds_snapshots', 'competitor_market_odds']) AS t (tab)
             UNION ALL VALUES (format('%I.change_log', cache)), (format('%I.log_state', cache))) AS v
     WHERE to_regclass(v.name) IS NULL;
    IF problem IS NULL AND to_regprocedure(format('%I.heartbeat()', cache)) IS NULL THEN
        problem := format('%I.heartbeat()', cache);
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'missing: %', problem USING ERRCODE = 'undefined_table',
            HINT = 'Run install.sql first; name other schemas with -v app_schema=... -v cache_schema=...';
    END IF;

    IF to_regrole(quote_ident(role)) IS NULL THEN
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
            EXECUTE format('COMMENT ON ROLE %I IS %L', role,
                'oddscache: reads the odds tables and their change log. Made by grants.sql, removed by uninstall.sql.');
            RAISE NOTICE 'created role %', quote_ident(role)
                USING HINT = format('It has no password. Give it one in psql: \password %I', role);
            done := done + 1;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- by a run in another database of this server
        END;
    END IF;

    FOR g IN
        SELECT v.rights, v.object
          FROM (
            SELECT 1 AS n, 'CONNECT' AS rights, format('DATABASE %I', current_database()) AS object,
                   has_database_privilege(role, current_database(), 'CONNECT') AS had
             UNION ALL
            SELECT 2, 'USAGE', format('SCHEMA %I', s.name), has_schema_privilege(role, s.name, 'USAGE')
              FROM (VALUES (app), (cache)) AS s (name)
             UNION ALL
            SELECT 3, 'SELECT', format('%I.%I', app, t.tab), has_table_privilege(role, format('%I.%I', app, t.tab), 'SELECT')
              FROM unnest(ARRAY['events', 'competitor_events', 'odds_snapshots', 'market_odds',
                  'competitor_odds_snapshots', 'competitor_market_odds']) AS t (tab)
             UNION ALL
            SELECT 4, 'SELECT', format('%I.%I', cache, t.tab),
                   has_table_privilege(role, format('%I.%I', cache, t.tab), 'SELECT')
              FROM unnest(ARRAY['change_log', 'log_state']) AS t (tab)
             UNION ALL
            SELECT 5, 'EXECUTE', format('FUNCTION %I.heartbeat()', cache),
                   has_function_privilege(role, format('%I.heartbeat()', cache), 'EXECUTE')
             UNION ALL
            SELECT 6, 'EXECUTE', format('FUNCTION %I.prune(interval)', cache),
                   has_function_privilege(role, format('%I.prune(interval)', cache), 'EXECUTE')
             WHERE current_setting('oddscache.prune')::boolean
          ) AS v
         WHERE NOT v.had ORDER BY v.n
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', g.rights, g.object, role);
        RAISE NOTICE 'granted % on % to %', g.rights, g.object, quote_ident(role);
        done := done + 1;
    END LOOP;

    SELECT string_agg(format('%I.%I', app, t.tab), ', ') INTO problem
      FROM unnest(ARRAY['events', 'competitor_events', 'odds_snapshots', 'market_odds',
               'competitor_odds_snapshots', 'competitor_market_odds']) AS t (tab)
      JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app, t.tab)) AND c.relrowsecurity;
    IF problem IS NOT NULL THEN
        RAISE WARNING 'row-level security is on: %', problem
            USING HINT = 'The cache must see every row: give the role a policy for SELECT that is true, or BYPASSRLS.';
    END IF;
    PERFORM set_config('oddscache.done', done::text, true);
END $grants$;

SELECT CASE current_setting('oddscache.done') WHEN '0' THEN 'already in place' ELSE 'granted' END AS result, :'role' AS role,
       :'app_schema' AS app_schema, :'cache_schema' AS cache_schema;
COMMIT;
