-- grants.sql: makes a role for the cache, and grants it the rights that the cache needs and no others.
--
-- What     LOGIN without a password; USAGE on the two schemas; SELECT on the six tables, change_log and log_state,
--          and on bookmakers, tournaments and sports where they exist; EXECUTE on heartbeat(). With `prune` also
--          EXECUTE on prune(interval), so that the cache keeps the log short.
--          SELECT is on whole tables, because the cache runs LOCK TABLE ... IN ACCESS SHARE MODE. Rights on columns are
--          not enough for that. Partitions need no rights of their own.
--          Caches of older versions call heartbeat(). It takes no argument. It writes a log row without keys, at most
--          one a second for each session, and notifies, which any role can do by NOTIFY. A session that calls it
--          without pause adds a few thousand log rows an hour, and prune() deletes them.
--          This script never grants resync(), which makes every cache read everything again.
--          The role keeps what PUBLIC has: temporary tables, and before PostgreSQL 15 tables in schema public. The
--          report of check.sql names these rights, with the statements that revoke them.
-- Who      A role that may grant on the tables and on the feed: their owner or a superuser. CREATEROLE if the role is
--          new.
-- Run      psql -X -v ON_ERROR_STOP=1 -f grants.sql
--          Any other client will do: this file is one statement. It has no BEGIN or COMMIT, so it can be part of a
--          transaction or of a migration. The transaction must be READ COMMITTED.
-- Names    Edit the settings below, or let the program fill them in: oddscache sql grants --role x --prune
-- Locks    None that a reader or writer would notice.
-- Again    Grants only what is missing. A role that exists is used as it is.
-- Undo     uninstall.sql drops the role if this script made it. Otherwise it prints the REVOKEs.
DO $grants$
DECLARE
    app_schema constant pg_catalog.text := 'public';  -- the schema of the six tables
    cache_schema constant pg_catalog.text := 'oddscache';  -- the schema of the feed
    role constant pg_catalog.text := 'oddscache';  -- the role of the cache
    prune constant boolean := 'off';  -- 'on': it may call prune()

    tables constant pg_catalog.text[] := '{events, competitor_events, odds_snapshots, market_odds, '
        'competitor_odds_snapshots, competitor_market_odds}';
    -- The names of bookmakers and tournaments. A database may lack these tables.
    lookup_tables constant pg_catalog.text[] := '{bookmakers, tournaments, sports}';
    -- The caller's settings. The last statement restores them.
    settings constant pg_catalog.jsonb := pg_catalog.jsonb_build_object(
        'search_path', pg_catalog.current_setting('search_path'),
        'lock_timeout', pg_catalog.current_setting('lock_timeout'),
        'client_min_messages', pg_catalog.current_setting('client_min_messages'),
        'exit_on_error', pg_catalog.current_setting('exit_on_error'),
        'quote_all_identifiers', pg_catalog.current_setting('quote_all_identifiers'));
    done     integer := 0;  -- changes made
    problem  pg_catalog.text;
    g        pg_catalog.record;
BEGIN
    -- Every name above this line is qualified, because the caller's search_path may find another role's objects first.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('client_min_messages', 'notice', true), set_config('exit_on_error', 'off', true),
        set_config('quote_all_identifiers', 'off', true);

    -- In a stricter isolation level this transaction would not see what a concurrent run has committed.
    IF current_setting('transaction_isolation') <> 'read committed'
       OR current_setting('transaction_read_only') = 'on' THEN
        RAISE EXCEPTION 'grants.sql needs a READ COMMITTED, READ WRITE transaction; this one is %, READ %',
                upper(current_setting('transaction_isolation')),
                CASE current_setting('transaction_read_only') WHEN 'on' THEN 'ONLY' ELSE 'WRITE' END
            USING ERRCODE = 'invalid_transaction_state', HINT = CASE WHEN pg_is_in_recovery()
                THEN 'This server is a standby. Run the script on its primary.'
                ELSE 'BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE, or before it: SET default_transaction_read_only '
                    '= off; SET default_transaction_isolation = ''read committed'';' END;
    END IF;
    -- One run of install.sql, grants.sql or uninstall.sql at a time
    PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0));
    PERFORM set_config('lock_timeout', '2s', true);

    SELECT string_agg(format('%s belongs to %s', o.name, o.owner::regrole), ', ') INTO problem
      FROM (SELECT 'schema ' || quote_ident(n.nspname) AS name, n.nspowner AS owner,
                   has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION') AS may
              FROM pg_namespace AS n WHERE n.nspname = cache_schema
             UNION ALL
            SELECT c.oid::regclass::text, c.relowner, has_table_privilege(c.oid, 'SELECT WITH GRANT OPTION')
              FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE n.nspname = app_schema AND c.relname = ANY (tables)) AS o
     WHERE NOT o.may;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'insufficient_privilege',
            HINT = 'Run this script as the owner or as a superuser.';
    END IF;
    SELECT string_agg(v.name, ', ') INTO problem
      FROM (SELECT format('%I.%I', app_schema, t.tab) AS name
              FROM unnest(tables) AS t (tab)
             UNION ALL VALUES (format('%I.change_log', cache_schema)), (format('%I.log_state', cache_schema))) AS v
     WHERE to_regclass(v.name) IS NULL;
    IF problem IS NULL AND to_regprocedure(format('%I.heartbeat()', cache_schema)) IS NULL THEN
        problem := format('%I.heartbeat()', cache_schema);
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'missing: %', problem USING ERRCODE = 'undefined_table',
            HINT = 'Run install.sql first. Other schemas: oddscache sql grants --app-schema ... --cache-schema ..., or '
                'the settings in the script.';
    END IF;

    IF to_regrole(quote_ident(role)) IS NULL THEN
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
            EXECUTE format('COMMENT ON ROLE %I IS %L', role,
                'oddscache: reads the odds tables and their change log. Made by grants.sql, removed by uninstall.sql.');
            RAISE NOTICE 'created role %', quote_ident(role)
                USING HINT = format('It has no password. Give it one by ALTER ROLE %I PASSWORD ... or by the password '
                    'command of psql, which does not show it.', role);
            done := done + 1;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- A run in another database of this server has just made it.
        END;
    END IF;

    FOR g IN
        SELECT v.rights, v.object
          FROM (
            SELECT 1 AS n, 'CONNECT' AS rights, format('DATABASE %I', current_database()) AS object,
                   has_database_privilege(role, current_database(), 'CONNECT') AS had
             UNION ALL
            SELECT 2, 'USAGE', format('SCHEMA %I', s.name), has_schema_privilege(role, s.name, 'USAGE')
              FROM (VALUES (app_schema), (cache_schema)) AS s (name)
             UNION ALL
            SELECT 3, 'SELECT', format('%I.%I', app_schema, t.tab),
                   has_table_privilege(role, format('%I.%I', app_schema, t.tab), 'SELECT')
              FROM unnest(tables) AS t (tab)
             UNION ALL
            SELECT 4, 'SELECT', format('%I.%I', cache_schema, t.tab),
                   has_table_privilege(role, format('%I.%I', cache_schema, t.tab), 'SELECT')
              FROM unnest(ARRAY['change_log', 'log_state']) AS t (tab)
             UNION ALL
            -- Who may not grant on one of these tables leaves it: the cache works without its names.
            SELECT 4, 'SELECT', format('%I.%I', app_schema, t.tab), has_table_privilege(role, c.oid, 'SELECT')
              FROM unnest(lookup_tables) AS t (tab)
              JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app_schema, t.tab))
             WHERE has_table_privilege(c.oid, 'SELECT WITH GRANT OPTION')
             UNION ALL
            SELECT 5, 'EXECUTE', format('FUNCTION %I.heartbeat()', cache_schema),
                   has_function_privilege(role, format('%I.heartbeat()', cache_schema), 'EXECUTE')
             UNION ALL
            SELECT 6, 'EXECUTE', format('FUNCTION %I.prune(interval)', cache_schema),
                   has_function_privilege(role, format('%I.prune(interval)', cache_schema), 'EXECUTE')
             WHERE prune
          ) AS v
         WHERE NOT v.had ORDER BY v.n
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', g.rights, g.object, role);
        RAISE NOTICE 'granted % on % to %', g.rights, g.object, quote_ident(role);
        done := done + 1;
    END LOOP;

    SELECT string_agg(format('%I.%I', app_schema, t.tab), ', ') INTO problem
      FROM unnest(tables) AS t (tab)
      JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app_schema, t.tab)) AND c.relrowsecurity;
    IF problem IS NOT NULL THEN
        RAISE WARNING 'row-level security is on: %', problem
            USING HINT = 'The cache must see every row: give the role a SELECT policy that is always true, or '
                'BYPASSRLS.';
    END IF;

    RAISE NOTICE '%: role % reads schema % through the feed in schema %',
        CASE done WHEN 0 THEN 'already in place' ELSE 'granted' END,
        quote_ident(role), quote_ident(app_schema), quote_ident(cache_schema);
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END $grants$;
