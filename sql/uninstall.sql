-- uninstall.sql: removes everything that install.sql, grants.sql and indexes.sql made. Works on half an installation,
-- too.
--
-- Who      The owner of the tables and of the feed, or a superuser. Only these can drop the cache's role: a superuser,
--          the role that made it (PostgreSQL 16 and later), or a role with CREATEROLE (before 16). For any other caller
--          the script keeps the role, and a notice says who can drop it.
-- Run      psql -X -v ON_ERROR_STOP=1 -f uninstall.sql
--          Any other client will do: this file is one statement. It has no BEGIN or COMMIT, so it can be part of a
--          transaction or of a migration. The transaction must be READ COMMITTED.
-- Names    Edit the settings below, or let the program fill them in:
--          oddscache sql uninstall --app-schema x --cache-schema y --role z
-- Locks    ACCESS EXCLUSIVE on the tables until the transaction ends: readers and writers wait. While this script waits
--          for another transaction, others wait behind it, for at most `lock_timeout`. After that the script fails
--          with 55P03 and has changed nothing.
-- Keeps    The application's tables and data. Objects in the feed's schema that are not the feed's, and with them the
--          schema. A role that grants.sql did not make, with its rights. Notices name what else the script keeps,
--          except for one case: an index on a partition that was made after indexes.sql and is now detached. The
--          server chose its name, so nothing distinguishes it from your own.
-- Undo     install.sql
DO $uninstall$
DECLARE
    app_schema constant pg_catalog.text := 'public';  -- the schema of the six tables
    cache_schema constant pg_catalog.text := 'oddscache';  -- the schema of the feed
    role constant pg_catalog.text := 'oddscache';  -- the role of the cache
    keep_indexes constant boolean := 'off';  -- 'on': the indexes of indexes.sql stay
    lock_timeout constant pg_catalog.text := '2s';  -- how long to wait for locks; 0 waits for ever

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
    patience interval;
    deadline timestamp with time zone;
    held     timestamp with time zone;
    indexes  pg_catalog.regclass[] := '{}';
    kept     pg_catalog.regclass[] := '{}';
    nodes    pg_catalog.regclass[];
    node     pg_catalog.regclass;
    rest     pg_catalog.text;
    ours     boolean;
    revokes  pg_catalog.text;
    makers   pg_catalog.text;
    others   pg_catalog.text;
    owned    boolean;
    message  pg_catalog.text;
    w        pg_catalog.record;
BEGIN
    -- Every name above this line is qualified, because the caller's search_path may find another role's objects first.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('client_min_messages', 'notice', true), set_config('exit_on_error', 'off', true),
        set_config('quote_all_identifiers', 'off', true);

    -- In a stricter isolation level this transaction would not see what a concurrent run has committed.
    IF current_setting('transaction_isolation') <> 'read committed'
       OR current_setting('transaction_read_only') = 'on' THEN
        RAISE EXCEPTION 'uninstall.sql needs a READ COMMITTED, READ WRITE transaction; this one is %, READ %',
                upper(current_setting('transaction_isolation')),
                CASE current_setting('transaction_read_only') WHEN 'on' THEN 'ONLY' ELSE 'WRITE' END
            USING ERRCODE = 'invalid_transaction_state', HINT = CASE WHEN pg_is_in_recovery()
                THEN 'This server is a standby. Run the script on its primary.'
                ELSE 'BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE, or before it: SET default_transaction_read_only '
                    '= off; SET default_transaction_isolation = ''read committed'';' END;
    END IF;
    -- One run of install.sql, grants.sql or uninstall.sql at a time
    PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0));
    PERFORM set_config('lock_timeout', lock_timeout, true);
    patience := current_setting('lock_timeout');
    deadline := clock_timestamp() + patience;

    IF NOT has_schema_privilege(to_regnamespace(quote_ident(cache_schema)), 'USAGE') THEN
        RAISE EXCEPTION 'schema % belongs to %', quote_ident(cache_schema),
                (SELECT n.nspowner::regrole FROM pg_namespace AS n WHERE n.nspname = cache_schema)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run this script as the owner or as a superuser.';
    END IF;

    -- 1. Triggers, functions, tables, indexes, schema
    IF NOT keep_indexes THEN
        -- Indexes that are attached to a parent's index are dropped with it. An interrupted run of indexes.sql may have
        -- left others.
        SELECT coalesce(array_agg(x.indexrelid::regclass), '{}') INTO indexes
          FROM pg_index AS x
          JOIN pg_class AS i ON i.oid = x.indexrelid AND NOT i.relispartition
          JOIN (SELECT to_regclass(format('%I.%I', app_schema, v.tab)) AS oid
                  FROM (VALUES ('odds_snapshots'), ('competitor_odds_snapshots')) AS v (tab)
                 UNION SELECT p.relid
                  FROM pg_partition_tree(to_regclass(format('%I.odds_snapshots', app_schema))) AS p) AS t
            ON t.oid = x.indrelid
         WHERE i.relname ~ '_oddscache_latest$|^oddscache_latest_[0-9]+$';
        -- A detached partition keeps its index, also if the partition was renamed or moved to another schema. The
        -- index's name and columns show that indexes.sql made it. Leave out schemas that have such tables themselves:
        -- their indexes belong to another feed.
        SELECT coalesce(array_agg(q.index) FILTER (WHERE q.may), '{}'),
               coalesce(array_agg(q.index) FILTER (WHERE NOT q.may), '{}')
          INTO nodes, kept
          FROM (SELECT x.indexrelid::regclass AS index, pg_has_role(c.relowner, 'USAGE') AS may
                  FROM pg_index AS x
                  JOIN pg_class AS i ON i.oid = x.indexrelid AND NOT i.relispartition
                       AND i.relname ~ '_oddscache_latest$|^oddscache_latest_[0-9]+$'
                  JOIN pg_am AS m ON m.oid = i.relam AND m.amname = 'btree'
                  JOIN pg_class AS c ON c.oid = x.indrelid AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                  JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE x.indpred IS NULL AND x.indexprs IS NULL AND NOT x.indisunique AND x.indnatts = x.indnkeyatts
                   AND (ARRAY(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY AS k (attnum, n)
                                JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum ORDER BY k.n),
                        x.indoption::text)
                       IN ((ARRAY['event_id', 'bookmaker_id', 'id'], '0 0 3'),
                           (ARRAY['competitor_event_id', 'id'], '0 3'))
                   AND x.indexrelid <> ALL (indexes)
                   AND (n.nspname = app_schema
                        OR pg_has_role(c.relowner, 'USAGE')
                           AND NOT EXISTS (SELECT FROM pg_class AS o WHERE o.relnamespace = n.oid
                                              AND o.relname IN ('odds_snapshots', 'competitor_odds_snapshots')))) AS q;
        indexes := indexes || nodes;
    END IF;
    SELECT array_agg(DISTINCT u.node) INTO nodes
      FROM (SELECT g.tgrelid::regclass AS node FROM pg_trigger AS g
             WHERE g.tgfoid = to_regprocedure(format('%I.log_change()', cache_schema))
             UNION SELECT x.indrelid::regclass FROM pg_index AS x WHERE x.indexrelid = ANY (indexes)) AS u;

    -- As in install.sql: take all locks before the first change, and never hold one for long while waiting for another.
    WHILE nodes IS NOT NULL LOOP
        BEGIN
            held := NULL;
            FOREACH node IN ARRAY nodes LOOP
                IF patience > interval '0' THEN
                    PERFORM set_config('lock_timeout', ceil(greatest(1, 1000 * extract(epoch FROM
                        least(deadline, held + interval '0.7 s') - clock_timestamp())))::text, true);
                END IF;
                EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', node);
                held := coalesce(held, clock_timestamp());
            END LOOP;
            EXIT;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF clock_timestamp() >= deadline THEN
                RAISE EXCEPTION 'could not lock % within %', node, patience USING ERRCODE = 'lock_not_available',
                    HINT = 'An open transaction uses it. Nothing was changed; try again, or wait longer: '
                        'oddscache sql uninstall --lock-timeout 10s, or the setting lock_timeout in the script.';
            END IF;
        END;
    END LOOP;

    FOR w IN
        SELECT g.tgrelid::regclass AS node, array_agg(g.tgname) AS names
          FROM pg_trigger AS g WHERE g.tgfoid = to_regprocedure(format('%I.log_change()', cache_schema))
         GROUP BY g.tgrelid ORDER BY g.tgrelid::regclass::text
    LOOP
        FOR i IN 1 .. cardinality(w.names) LOOP
            EXECUTE format('DROP TRIGGER %I ON %s', w.names[i], w.node);
        END LOOP;
        RAISE NOTICE 'dropped % triggers on %', cardinality(w.names), w.node;
        done := done + 1;
    END LOOP;

    FOR w IN
        SELECT p.oid::regprocedure::text AS name
          FROM pg_proc AS p
         WHERE p.oid IN (SELECT to_regprocedure(format('%I.%s', cache_schema, f.name))
                           FROM unnest(ARRAY['log_change()', 'feed_version()', 'prune(interval)', 'heartbeat()',
                                             'resync(text)'])
                                AS f (name))
    LOOP
        EXECUTE format('DROP FUNCTION %s', w.name);
        RAISE NOTICE 'dropped function %', w.name;
        done := done + 1;
    END LOOP;

    -- Nobody writes to the log any more: the locks above have waited for its writers.
    FOR w IN
        SELECT c.oid::regclass::text AS name
          FROM pg_class AS c
         WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace(quote_ident(cache_schema))
           AND c.relname IN ('change_log', 'log_state', 'log_horizon')
    LOOP
        EXECUTE format('DROP TABLE %s', w.name);
        RAISE NOTICE 'dropped table %', w.name;
        done := done + 1;
    END LOOP;

    FOREACH node IN ARRAY indexes LOOP
        rest := node::text;
        EXECUTE format('DROP INDEX %s', node);
        RAISE NOTICE 'dropped index %', rest;
        done := done + 1;
    END LOOP;

    FOREACH node IN ARRAY kept LOOP
        SELECT c.relowner::regrole::text AS owner, c.oid::regclass::text AS tab INTO w
          FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indrelid WHERE x.indexrelid = node;
        RAISE NOTICE 'kept index %: % belongs to %', node, w.tab, w.owner
            USING HINT = format('As %s or a superuser: DROP INDEX %s;', w.owner, node);
    END LOOP;

    IF obj_description(to_regnamespace(quote_ident(cache_schema)), 'pg_namespace') LIKE 'oddscache: %' THEN
        SELECT string_agg(pg_describe_object(d.classid, d.objid, 0), ', ') INTO rest
          FROM pg_depend AS d
         WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace(quote_ident(cache_schema));
        IF rest IS NULL THEN
            EXECUTE format('DROP SCHEMA %I', cache_schema);
            RAISE NOTICE 'dropped schema %', quote_ident(cache_schema);
            done := done + 1;
        ELSE
            EXECUTE format('COMMENT ON SCHEMA %I IS NULL', cache_schema);
            RAISE NOTICE 'kept schema %: it holds %', quote_ident(cache_schema), rest;
        END IF;
    ELSIF to_regnamespace(quote_ident(cache_schema)) IS NOT NULL THEN
        RAISE NOTICE 'kept schema %: install.sql did not make it', quote_ident(cache_schema);
    END IF;

    -- 2. The role and its rights
    IF to_regrole(quote_ident(role)) IS NOT NULL THEN
        ours := coalesce(shobj_description(to_regrole(quote_ident(role)), 'pg_authid') LIKE 'oddscache: %', false);
        FOR w IN
            SELECT format('REVOKE %s ON %s FROM %I', r.rights, r.object, role) AS sql
              FROM (
                SELECT 'SELECT' AS rights, c.oid::regclass::text AS object, c.relacl AS acl
                  FROM pg_class AS c
                 WHERE c.oid IN (SELECT to_regclass(format('%I.%I', app_schema, v.tab))
                                   FROM unnest(tables || lookup_tables) AS v (tab))
                 UNION ALL
                SELECT 'USAGE', format('SCHEMA %I', n.nspname), n.nspacl
                  FROM pg_namespace AS n
                 WHERE n.oid IN (to_regnamespace(quote_ident(app_schema)), to_regnamespace(quote_ident(cache_schema)))
                 UNION ALL
                SELECT 'CONNECT', format('DATABASE %I', d.datname), d.datacl
                  FROM pg_database AS d WHERE d.datname = current_database()
              ) AS r
             WHERE EXISTS (SELECT FROM aclexplode(r.acl) AS x
                            WHERE x.grantee = to_regrole(quote_ident(role)) AND x.privilege_type = r.rights)
        LOOP
            IF ours THEN
                BEGIN
                    EXECUTE w.sql;
                    done := done + 1;
                EXCEPTION WHEN insufficient_privilege THEN
                    NULL;  -- The role is kept. The hint below has a statement that takes this right, too.
                END;
            ELSE
                revokes := concat_ws('; ', revokes, w.sql);
            END IF;
        END LOOP;
        IF ours THEN
            BEGIN
                EXECUTE format('DROP ROLE %I', role);
                RAISE NOTICE 'dropped role %', quote_ident(role);
                done := done + 1;
            EXCEPTION WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
                -- Members with ADMIN on the role can drop it. Since PostgreSQL 16 the role that made it is one.
                IF current_setting('server_version_num')::integer < 160000 THEN
                    makers := 'a role with CREATEROLE';
                ELSE
                    SELECT string_agg(quote_ident(a.rolname), ', ' ORDER BY a.rolname) INTO makers
                      FROM pg_auth_members AS m JOIN pg_roles AS a ON a.oid = m.member AND a.rolcreaterole
                     WHERE m.roleid = to_regrole(quote_ident(role)) AND m.admin_option;
                END IF;
                SELECT string_agg(quote_ident(d.datname), ', ' ORDER BY d.datname) INTO others
                  FROM pg_database AS d
                 WHERE d.datname <> current_database()
                   AND EXISTS (SELECT FROM pg_shdepend AS p WHERE p.refclassid = 'pg_authid'::regclass
                                  AND p.refobjid = to_regrole(quote_ident(role))
                                  AND (p.dbid = d.oid OR (p.dbid = 0 AND p.classid = 'pg_database'::regclass
                                      AND p.objid = d.oid)));
                SELECT count(*) > 0 INTO owned
                  FROM pg_shdepend AS p JOIN pg_database AS d ON d.datname = current_database()
                 WHERE p.refclassid = 'pg_authid'::regclass AND p.refobjid = to_regrole(quote_ident(role))
                   AND (p.dbid = d.oid OR (p.dbid = 0 AND p.classid = 'pg_database'::regclass AND p.objid = d.oid));
                RAISE NOTICE 'kept role %, without the rights that % could take from it here: %', quote_ident(role),
                        quote_ident(current_user), message
                    USING HINT = CASE WHEN others IS NULL THEN '' ELSE format('First in database %s: run uninstall.sql '
                            'there, or as a superuser DROP OWNED BY %I; ', others, role) END
                        || CASE WHEN owned THEN format('As a superuser, in this database: DROP OWNED BY %1$I; DROP '
                            'ROLE %1$I;', role)
                                ELSE format('As a superuser%s: DROP ROLE %I;', coalesce(' or ' || makers, ''), role)
                           END;
            END;
        ELSIF revokes IS NOT NULL THEN
            RAISE NOTICE 'kept role % with its rights: grants.sql did not make it', quote_ident(role)
                USING HINT = revokes || ';';
        END IF;
    END IF;

    RAISE NOTICE '%: the feed in schema % for the tables in schema %',
        CASE done WHEN 0 THEN 'nothing to remove' ELSE 'uninstalled' END,
        quote_ident(cache_schema), quote_ident(app_schema);
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END $uninstall$;
