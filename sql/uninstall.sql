-- uninstall.sql: removes everything that install.sql, grants.sql and indexes.sql made. Works on half an installation too.
--
-- Who       The owner of the tables and of the feed, or a superuser. To drop the cache's role takes a superuser, the role that
--           made it (PostgreSQL 16 and later), or CREATEROLE (before): others keep it, and read who can drop it how.
-- Locks     ACCESS EXCLUSIVE on the tables, until COMMIT a few milliseconds later: readers and writers wait. While it
--           waits itself, others queue behind it, for `lock_timeout` at most; then it fails with 55P03 and has changed
--           nothing.
-- Keeps     The application's tables and data. Anything in the feed's schema that is not the feed's, with the schema. A
--           role that grants.sql did not make, with its rights. An index of the server's naming on a partition that was
--           made after indexes.sql and is detached now: nothing tells it from one of yours. What else is kept is said.
-- Undo      install.sql
--
-- Run       psql -X -f uninstall.sql [-v app_schema=public] [-v cache_schema=oddscache] [-v role=oddscache]
--                                    [-v keep_indexes=on] [-v lock_timeout=2s]
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
\if :{?keep_indexes}
\else
  \set keep_indexes off
\endif
\if :{?lock_timeout}
\else
  \set lock_timeout 2s
\endif

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL client_min_messages = notice;
SET LOCAL oddscache.app_schema = :'app_schema';
SET LOCAL oddscache.cache_schema = :'cache_schema';
SET LOCAL oddscache.role = :'role';
SET LOCAL oddscache.keep_indexes = :'keep_indexes';
SET LOCAL oddscache.done = '0';

-- The same queue as install.sql.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0)); END $$;
SET LOCAL lock_timeout = :'lock_timeout';

-- 1. Triggers, functions, tables, indexes, schema
DO $remove$
DECLARE
    app      constant text := current_setting('oddscache.app_schema');
    cache    constant text := current_setting('oddscache.cache_schema');
    patience constant interval := current_setting('lock_timeout')::interval;
    deadline timestamptz := clock_timestamp() + patience;
    held     timestamptz;
    done     integer := 0;
    indexes  regclass[] := '{}';
    kept     regclass[] := '{}';
    nodes    regclass[];
    node     regclass;
    rest     text;
    w        record;
BEGIN
    IF NOT current_setting('oddscache.keep_indexes')::boolean THEN
        -- Those of the partitions go with the index they are attached to; a failed run may have left single ones.
        SELECT coalesce(array_agg(x.indexrelid::regclass), '{}') INTO indexes
          FROM pg_index AS x
          JOIN pg_class AS i ON i.oid = x.indexrelid AND NOT i.relispartition
          JOIN (SELECT to_regclass(format('%I.%I', app, v.tab)) AS oid
                  FROM (VALUES ('odds_snapshots'), ('competitor_odds_snapshots')) AS v (tab)
                 UNION SELECT p.relid
                  FROM pg_partition_tree(to_regclass(format('%I.odds_snapshots', app))) AS p) AS t ON t.oid = x.indrelid
         WHERE i.relname ~ '_oddscache_latest$|^oddscache_latest_[0-9]+$';
        -- A partition that was detached keeps its index, whatever it is called or wherever it lies now. Name and columns say
        -- that it is ours. Not in another schema that has such tables itself: its indexes belong to another feed.
        SELECT coalesce(array_agg(q.index) FILTER (WHERE q.may), '{}'), coalesce(array_agg(q.index) FILTER (WHERE NOT q.may), '{}')
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
                       IN ((ARRAY['event_id', 'bookmaker_id', 'id'], '0 0 3'), (ARRAY['competitor_event_id', 'id'], '0 3'))
                   AND x.indexrelid <> ALL (indexes)
                   AND (n.nspname = app
                        OR pg_has_role(c.relowner, 'USAGE')
                           AND NOT EXISTS (SELECT FROM pg_class AS o WHERE o.relnamespace = n.oid
                                              AND o.relname IN ('odds_snapshots', 'competitor_odds_snapshots')))) AS q;
        indexes := indexes || nodes;
    END IF;
    SELECT array_agg(DISTINCT u.node) INTO nodes
      FROM (SELECT g.tgrelid::regclass AS node FROM pg_trigger AS g
             WHERE g.tgfoid = to_regprocedure(format('%I.log_change()', cache))
             UNION SELECT x.indrelid::regclass FROM pg_index AS x WHERE x.indexrelid = ANY (indexes)) AS u;

    -- As in install.sql: every lock before the first change, and never one held for long while waiting for another.
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
                    HINT = 'An open transaction uses it. Nothing was changed; try again, or wait longer: -v lock_timeout=10s';
            END IF;
        END;
    END LOOP;

    FOR w IN
        SELECT g.tgrelid::regclass AS node, array_agg(g.tgname) AS names
          FROM pg_trigger AS g WHERE g.tgfoid = to_regprocedure(format('%I.log_change()', cache))
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
         WHERE p.oid IN (SELECT to_regprocedure(format('%I.%s', cache, f.name))
                           FROM unnest(ARRAY['log_change()', 'feed_version()', 'prune(interval)', 'heartbeat()', 'resync(text)'])
                                AS f (name))
    LOOP
        EXECUTE format('DROP FUNCTION %s', w.name);
        RAISE NOTICE 'dropped function %', w.name;
        done := done + 1;
    END LOOP;

    -- By now nobody writes to the log: its writers were waited for above.
    FOR w IN
        SELECT c.oid::regclass::text AS name
          FROM pg_class AS c
         WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace(quote_ident(cache))
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

    IF obj_description(to_regnamespace(quote_ident(cache)), 'pg_namespace') LIKE 'oddscache: %' THEN
        SELECT string_agg(pg_describe_object(d.classid, d.objid, 0), ', ') INTO rest
          FROM pg_depend AS d
         WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace(quote_ident(cache));
        IF rest IS NULL THEN
            EXECUTE format('DROP SCHEMA %I', cache);
            RAISE NOTICE 'dropped schema %', quote_ident(cache);
            done := done + 1;
        ELSE
            EXECUTE format('COMMENT ON SCHEMA %I IS NULL', cache);
            RAISE NOTICE 'kept schema %: it holds %', quote_ident(cache), rest;
        END IF;
    ELSIF to_regnamespace(quote_ident(cache)) IS NOT NULL THEN
        RAISE NOTICE 'kept schema %: install.sql did not make it', quote_ident(cache);
    END IF;
    PERFORM set_config('oddscache.done', done::text, true);
END $remove$;

-- 2. The role and its rights
DO $role$
DECLARE
    app   constant text := current_setting('oddscache.app_schema');
    cache constant text := current_setting('oddscache.cache_schema');
    role  constant text := current_setting('oddscache.role');
    done  integer := current_setting('oddscache.done');
    ours  boolean;
    w     record;
    revokes text;
    makers  text;
    others  text;
    owned   boolean;
    state   text;
    message text;
BEGIN
    IF to_regrole(quote_ident(role)) IS NULL THEN
        RETURN;
    END IF;
    ours := coalesce(shobj_description(to_regrole(quote_ident(role)), 'pg_authid') LIKE 'oddscache: %', false);
    FOR w IN
        SELECT format('REVOKE %s ON %s FROM %I', r.rights, r.object, role) AS sql
          FROM (
            SELECT 'SELECT' AS rights, c.oid::regclass::text AS object, c.relacl AS acl
              FROM pg_class AS c
             WHERE c.oid IN (SELECT to_regclass(format('%I.%I', app, v.tab))
                               FROM unnest(ARRAY['events', 'competitor_events', 'odds_snapshots', 'market_odds',
                                   'competitor_odds_snapshots', 'competitor_market_odds']) AS v (tab))
             UNION ALL
            SELECT 'USAGE', format('SCHEMA %I', n.nspname), n.nspacl
              FROM pg_namespace AS n WHERE n.oid IN (to_regnamespace(quote_ident(app)), to_regnamespace(quote_ident(cache)))
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
                NULL;  -- The role stays, and what is said below takes this right, too.
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
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
            -- Who can drop it: the members with ADMIN on it, of which the role that made it is one since 16.
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
                              AND (p.dbid = d.oid OR (p.dbid = 0 AND p.classid = 'pg_database'::regclass AND p.objid = d.oid)));
            SELECT count(*) > 0 INTO owned
              FROM pg_shdepend AS p JOIN pg_database AS d ON d.datname = current_database()
             WHERE p.refclassid = 'pg_authid'::regclass AND p.refobjid = to_regrole(quote_ident(role))
               AND (p.dbid = d.oid OR (p.dbid = 0 AND p.classid = 'pg_database'::regclass AND p.objid = d.oid));
            RAISE NOTICE 'kept role %, without the rights that % could take from it here: %', quote_ident(role),
                    quote_ident(current_user), message
                USING HINT = CASE WHEN others IS NULL THEN '' ELSE format('First in database %s: run uninstall.sql there, or as a '
                        'superuser DROP OWNED BY %I; ', others, role) END
                    || CASE WHEN owned THEN format('As a superuser, in this database: DROP OWNED BY %1$I; DROP ROLE %1$I;', role)
                            ELSE format('As a superuser%s: DROP ROLE %I;', coalesce(' or ' || makers, ''), role) END;
        END;
    ELSIF revokes IS NOT NULL THEN
        RAISE NOTICE 'kept role % with its rights: grants.sql did not make it', quote_ident(role)
            USING HINT = revokes || ';';
    END IF;
    PERFORM set_config('oddscache.done', done::text, true);
END $role$;

SELECT CASE current_setting('oddscache.done') WHEN '0' THEN 'nothing to remove' ELSE 'uninstalled' END AS result,
       :'app_schema' AS app_schema, :'cache_schema' AS cache_schema;
COMMIT;
