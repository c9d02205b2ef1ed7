-- check.sql: reports on the feed. Changes nothing.
--
-- What     Rows (kind, object, item, status, detail, fix), the worst first.
--          status   FAIL: changes can be missed, or the cache cannot work. warn: it works, but worse than it could.
--                   unknown: the caller lacks the right to look. info: good to know, such as a right that the
--                   cache's role has and does not need. ok: as it should be.
--          fix      What repairs it: a statement, or the name of a script to run, such as install.sql. Null if nothing
--                   needs to be done, or if only you can decide what to do.
-- Who      Any role that may SELECT from change_log. The report says what the caller may not read.
-- Run      psql -X -f check.sql
--          Any other client will do. This file is two statements. The first one leaves the report in the session's
--          setting oddscache.report, the second one lists it. Send both as one text, or one after the other on the
--          same connection.
-- Names    Edit the settings below, or let the program fill them in:
--          oddscache sql check --app-schema x --cache-schema y --role z
-- Locks    ACCESS SHARE, as any SELECT. Works on a standby, in any transaction, and where nothing is installed.
DO $check$
DECLARE
    app_schema constant pg_catalog.text := 'public';  -- the schema of the six tables
    cache_schema constant pg_catalog.text := 'oddscache';  -- the schema of the feed
    role constant pg_catalog.text := 'oddscache';  -- the role of the cache

    expected constant integer := 3;  -- the version of the feed
    keys     constant pg_catalog.json := '{"events": "id", "competitor_events": "betpawa_event_id",
        "odds_snapshots": "event_id", "competitor_odds_snapshots": "competitor_event_id",
        "market_odds": "snapshot_id", "competitor_market_odds": "snapshot_id"}';
    -- The names of bookmakers and tournaments. A database may lack these tables.
    lookup_tables constant pg_catalog.text[] := '{bookmakers, tournaments, sports}';
    server   constant integer := pg_catalog.current_setting('server_version_num');
    -- The caller's settings. The last statement restores them.
    settings constant pg_catalog.jsonb := pg_catalog.jsonb_build_object(
        'search_path', pg_catalog.current_setting('search_path'),
        'exit_on_error', pg_catalog.current_setting('exit_on_error'),
        'quote_all_identifiers', pg_catalog.current_setting('quote_all_identifiers'));
    tables   pg_catalog.text[];
    log      pg_catalog.text;
    func     pg_catalog.text;
    functions pg_catalog.text[];
    report   pg_catalog.jsonb := '[]';
    part     pg_catalog.jsonb;
    version  integer;
    prefix   pg_catalog.text;
    r        pg_catalog.record;
BEGIN
    -- Every name above this line is qualified, because the caller's search_path may find another role's objects first.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('exit_on_error', 'off', true), set_config('quote_all_identifiers', 'off', true);
    tables := ARRAY(SELECT json_object_keys(keys));
    log := format('%I.change_log', cache_schema);
    func := format('%I.log_change()', cache_schema);
    functions := ARRAY[format('%I.prune(interval)', cache_schema), format('%I.heartbeat()', cache_schema),
        format('%I.resync(text)', cache_schema)];

    -- The feed
    -- Read the version from the function's text. Any role may have made the function, so do not call it.
    version := (SELECT substring(lower(p.prosrc) FROM '^ *select ([0-9]{1,9}) *$') FROM pg_proc AS p
                 WHERE p.oid = to_regprocedure(format('%I.feed_version()', cache_schema)));
    report := report || jsonb_build_object(
        'kind', 'feed', 'object', quote_ident(cache_schema), 'item', 'feed_version()',
        'status', CASE version WHEN expected THEN 'ok' WHEN expected - 1 THEN 'warn' ELSE 'FAIL' END, 'detail',
        CASE WHEN version IS NULL THEN 'is missing, or not the feed''s'
             WHEN version = expected THEN version::text
             WHEN version = expected - 1 THEN format('%s, not %s: caches of this version still follow it', version,
                 expected)
             ELSE format('%s, not %s', version, expected) END,
        'fix', CASE WHEN version > expected THEN 'use the scripts and the program of that version'
                    WHEN version = expected THEN NULL ELSE 'install.sql' END);
    SELECT report || coalesce(jsonb_agg(jsonb_build_object('kind', 'feed', 'object', q.object, 'item', q.item,
               'status', 'FAIL', 'detail', q.detail, 'fix', q.fix)), '[]')
      INTO report
      FROM (
        SELECT f.name AS object, 'function' AS item, 'is missing' AS detail, 'install.sql' AS fix
          FROM unnest(ARRAY[func] || functions) AS f (name) WHERE to_regprocedure(f.name) IS NULL
         UNION ALL
        SELECT format('%I.%I', cache_schema, t.tab), 'table', 'is missing', 'install.sql'
          FROM unnest(ARRAY['change_log', 'log_state', 'log_horizon']) AS t (tab)
         WHERE to_regclass(format('%I.%I', cache_schema, t.tab)) IS NULL
         UNION ALL
        SELECT func, 'EXECUTE', format('its owner %s may not call %s', p.proowner::regrole, f.name),
               format('GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %s', f.name, p.proowner::regrole)
          FROM pg_proc AS p, unnest(ARRAY['pg_current_xact_id()', 'pg_current_xact_id_if_assigned()',
               'pg_current_wal_insert_lsn()', 'clock_timestamp()', 'set_config(text, text, boolean)',
               'current_setting(text, boolean)', 'cardinality(anyarray)',
               'split_part(text, text, integer)', 'to_regclass(text)', 'has_table_privilege(oid, text)']) AS f (name)
         WHERE p.oid = to_regprocedure(func)
           AND NOT coalesce(has_function_privilege(p.proowner, to_regprocedure('pg_catalog.' || f.name), 'EXECUTE'),
               true)
         UNION ALL
        SELECT n.name, 'rights', format('its owner %s may not %s %s: it cannot prune', p.proowner::regrole, t.needs,
                   t.name), format('GRANT %s ON %s TO %s', t.needs, t.name, p.proowner::regrole)
          FROM (SELECT format('%I.prune(interval)', cache_schema)) AS n (name)
          JOIN pg_proc AS p ON p.oid = to_regprocedure(n.name)
         CROSS JOIN (VALUES (log, 'SELECT'), (log, 'DELETE'), (format('%I.log_state', cache_schema), 'UPDATE'),
                            (format('%I.log_horizon', cache_schema), 'SELECT'),
                            (format('%I.log_horizon', cache_schema), 'INSERT'),
                            (format('%I.log_horizon', cache_schema), 'DELETE')) AS t (name, needs)
         WHERE to_regclass(t.name) IS NOT NULL AND NOT has_table_privilege(p.proowner, to_regclass(t.name), t.needs)
         UNION ALL
        SELECT log, 'table', 'is UNLOGGED: a crash empties it, a standby cannot read it, and a transaction''s second '
               'row can fail', format('ALTER TABLE %s SET LOGGED', log)
          FROM pg_class AS c WHERE c.oid = to_regclass(log) AND c.relpersistence = 'u'
         UNION ALL
        SELECT func, 'writes to the log', format('its owner %s may not INSERT into %s', p.proowner::regrole, log),
               format('GRANT USAGE ON SCHEMA %I TO %s; GRANT INSERT ON %s TO %2$s', cache_schema, p.proowner::regrole,
                   log)
          FROM pg_proc AS p WHERE p.oid = to_regprocedure(func) AND to_regclass(log) IS NOT NULL
           AND NOT (has_table_privilege(p.proowner, to_regclass(log), 'INSERT')
                    AND has_schema_privilege(p.proowner, to_regnamespace(quote_ident(cache_schema)), 'USAGE'))
      ) AS q;
    SELECT report || coalesce(jsonb_agg(jsonb_build_object('kind', 'feed', 'object', q.object, 'item', q.item,
               'status', 'warn', 'detail', q.detail, 'fix', q.fix)), '[]')
      INTO report
      FROM (
        SELECT log AS object, 'as installed' AS item,
               'has triggers, rules, checks, policies, columns or indexes that are not the feed''s: each log row '
               'costs a subtransaction' AS detail, NULL AS fix
          FROM pg_class AS c
         WHERE c.oid = to_regclass(log)
           AND (c.relhastriggers OR c.relhasrules OR c.relrowsecurity OR c.relchecks > 0 OR c.relnatts <> 7
                OR (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = c.oid) <> 1)
         UNION ALL
        SELECT p.name, 'EXECUTE', 'is granted to PUBLIC', format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', p.name)
          FROM unnest(ARRAY[func] || functions) AS p (name)
         WHERE to_regprocedure(p.name) IS NOT NULL
             AND has_function_privilege('public', to_regprocedure(p.name), 'EXECUTE')
         UNION ALL
        SELECT coalesce(quote_ident(x.rolname), 'all roles'), 'notifications',
               'runs with oddscache.notify = off: the cache sees its changes only when it polls. That may be intended',
               'ALTER '
               || CASE WHEN s.setrole = 0 AND s.setdatabase <> 0 THEN format('DATABASE %I', d.datname)
                       ELSE 'ROLE ' || coalesce(quote_ident(x.rolname), 'ALL')
                            || CASE s.setdatabase WHEN 0 THEN '' ELSE format(' IN DATABASE %I', d.datname) END END
               || ' RESET oddscache.notify'
          FROM pg_db_role_setting AS s
          JOIN pg_database AS d ON d.datname = current_database() AND s.setdatabase IN (0, d.oid)
          LEFT JOIN pg_roles AS x ON x.oid = s.setrole
         CROSS JOIN LATERAL unnest(s.setconfig) AS setting
         WHERE lower(setting) ~ '^oddscache[.]notify=(off|false|no|0)$'
      ) AS q;

    -- The triggers
    SELECT left(cache_schema, n) INTO prefix FROM generate_series(length(cache_schema), 1, -1) AS n
     WHERE octet_length(left(cache_schema, n)) <= 54 LIMIT 1;
    WITH RECURSIVE node AS (
        SELECT u.tab, to_regclass(format('%I.%I', app_schema, u.tab))::oid AS oid, 0 AS level
            FROM unnest(tables) AS u (tab)
         UNION SELECT n.tab, i.inhrelid, n.level + 1
          FROM node AS n JOIN pg_inherits AS i ON i.inhparent = n.oid JOIN pg_class AS c ON c.oid = i.inhrelid
         -- A temporary child belongs to one session. No other session can read its rows.
         WHERE c.relpersistence <> 't'
    ), above_foreign AS (
        SELECT i.inhparent AS oid
          FROM node AS n JOIN pg_class AS c ON c.oid = n.oid AND c.relkind = 'f'
              JOIN pg_inherits AS i ON i.inhrelid = c.oid
         UNION SELECT i.inhparent FROM above_foreign AS a JOIN pg_inherits AS i ON i.inhrelid = a.oid
    ), below AS (
        SELECT c.oid::regclass AS node, min(n.tab) AS tab, max(n.level) = 0 AS root, c.relkind,
               string_agg(DISTINCT n.tab, ' and ' ORDER BY n.tab) AS tabs, count(DISTINCT n.tab) > 1 AS mixed,
               c.oid IN (SELECT a.oid FROM above_foreign AS a) AS above_foreign
          FROM node AS n JOIN pg_class AS c ON c.oid = n.oid GROUP BY c.oid, c.relkind
    ), parent AS (
        SELECT i.inhrelid::regclass AS node, i.inhparent::regclass AS parent, CASE WHEN c.relispartition
                   THEN format('ALTER TABLE %s DETACH PARTITION %s', i.inhparent::regclass, i.inhrelid::regclass)
                   ELSE format('ALTER TABLE %s NO INHERIT %s', i.inhrelid::regclass, i.inhparent::regclass) END AS fix
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhrelid IN (SELECT b.node FROM below AS b)
    ), trigger AS (
        SELECT t.node, t.root, t.tab, o.n, o.op, prefix || '_' || lower(o.op) AS name,
               CASE WHEN g.oid IS NULL THEN 'missing'
                    WHEN t.above_foreign AND (g.tgoldtable IS NOT NULL OR g.tgnewtable IS NOT NULL) THEN 'refused'
                    WHEN g.tgfoid <> to_regprocedure(func) OR g.tgtype <> o.tgtype
                         OR g.tgqual IS NOT NULL OR g.tgattr <> ''
                         OR g.tgargs <> CASE WHEN t.above_foreign THEN convert_to('*', 'UTF8') || decode('00', 'hex')
                             ELSE '' END
                             || convert_to(t.tab, 'UTF8') || decode('00', 'hex')
                         OR g.tgoldtable IS DISTINCT FROM CASE WHEN NOT t.above_foreign THEN o.old_table END
                         OR g.tgnewtable IS DISTINCT FROM CASE WHEN NOT t.above_foreign THEN o.new_table END
                         THEN 'not as installed'
                    WHEN g.tgenabled = 'D' THEN 'disabled'
                    WHEN g.tgenabled = 'R' THEN 'enabled for replicas only'
                    WHEN g.tgenabled = 'O' THEN 'not always'
                    ELSE 'ok' END AS state
          FROM below AS t
         CROSS JOIN (VALUES (1, 'INSERT', 4, NULL, 'new_rows'), (2, 'UPDATE', 16, 'old_rows', 'new_rows'),
                            (3, 'DELETE', 8, 'old_rows', NULL), (4, 'TRUNCATE', 32, NULL, NULL))
               AS o (n, op, tgtype, old_table, new_table)
          LEFT JOIN pg_trigger AS g ON g.tgrelid = t.node AND g.tgname = prefix || '_' || lower(o.op)
         WHERE t.relkind IN ('r', 'p') AND NOT t.mixed
    )
    SELECT report || coalesce(jsonb_agg(to_jsonb(q)), '[]') INTO report FROM (
        SELECT 'trigger' AS kind, t.node::text AS object, string_agg(t.op, ', ' ORDER BY t.n) AS item,
               CASE t.state WHEN 'ok' THEN 'ok' ELSE 'FAIL' END AS status,
               CASE WHEN t.state = 'ok' THEN 'always enabled'
                    WHEN t.state = 'refused' THEN 'has transition tables, and a foreign table is below: statements '
                        'that reach the foreign table fail'
                    WHEN t.state = 'not always' THEN 'not always enabled: does not fire under '
                        'session_replication_role = replica'
                    WHEN t.root THEN t.state || ': changes are missed'
                    ELSE format('%s: statements that name this table, not %s, are missed', t.state, t.tab) END
                   AS detail,
               CASE WHEN t.state IN ('disabled', 'enabled for replicas only', 'not always') THEN
                        format('ALTER TABLE %s %s', t.node,
                            string_agg(format('ENABLE ALWAYS TRIGGER %I', t.name), ', ' ORDER BY t.n))
                    WHEN t.state <> 'ok' THEN 'install.sql' END AS fix
          FROM trigger AS t GROUP BY t.node, t.root, t.tab, t.state HAVING t.state <> 'ok' OR count(*) = 4
         UNION ALL
        SELECT 'trigger', format('%I.%I', app_schema, u.tab), 'table', 'FAIL', 'does not exist',
               'name the schema of the six tables: oddscache sql check --app-schema ..., or the setting app_schema in '
                   'the script'
          FROM unnest(tables) AS u (tab) WHERE to_regclass(format('%I.%I', app_schema, u.tab)) IS NULL
         UNION ALL
        SELECT 'trigger', format('%I.%I', app_schema, k.tab), 'column ' || quote_ident(k.col), 'FAIL',
               'does not exist: every statement on this table makes the cache read everything again', NULL
          FROM json_each_text(keys) AS k (tab, col)
         WHERE to_regclass(format('%I.%I', app_schema, k.tab)) IS NOT NULL
           AND NOT EXISTS (SELECT FROM pg_attribute AS a
               WHERE a.attrelid = to_regclass(format('%I.%I', app_schema, k.tab))
                              AND a.attname = k.col AND a.attnum > 0 AND NOT a.attisdropped)
         UNION ALL
        SELECT 'trigger', format('%I.%I', app_schema, k.tab), 'column ' || quote_ident(k.col), 'FAIL',
               'is a virtual generated column, which triggers cannot see: every statement on this table makes the '
                   'cache read everything again',
               format('ALTER TABLE %1$I.%2$I DROP COLUMN %3$I, ADD COLUMN %3$I %4$s GENERATED ALWAYS AS (%5$s) STORED',
                   app_schema, k.tab, k.col, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid))
          FROM json_each_text(keys) AS k (tab, col)
          JOIN pg_attribute AS a ON a.attrelid = to_regclass(format('%I.%I', app_schema, k.tab)) AND a.attname = k.col
          LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attgenerated = 'v'
         UNION ALL
        SELECT 'trigger', p.node::text, 'parent', 'FAIL',
               format('inherits from %1$s, too: statements that name %1$s are missed', p.parent), p.fix
          FROM parent AS p WHERE p.parent NOT IN (SELECT b.node FROM below AS b)
         UNION ALL
        SELECT 'trigger', t.node::text, 'parents', 'FAIL',
               format('inherits from %s, and a trigger can log a change of one table only: statements that name this '
                   'table are missed', t.tabs),
               (SELECT string_agg(p.fix, ', or ' ORDER BY p.fix) FROM parent AS p WHERE p.node = t.node)
          FROM below AS t WHERE t.mixed AND t.relkind <> 'f'
         UNION ALL
        SELECT 'trigger', t.node::text, 'foreign table', 'warn',
               format('is a foreign table below %s: each statement that names a table above it makes the cache read '
                   'everything again, and statements that name it, or run on the foreign server, are missed. Keep its '
                   'rows in a local table', t.tabs), p.fix
          FROM below AS t JOIN parent AS p ON p.node = t.node WHERE t.relkind = 'f'
         UNION ALL
        SELECT 'trigger', s.srrelid::regclass::text, 'replication', 'FAIL',
               'is filled by a subscription: its apply worker fires no statement triggers',
               'follow the publisher instead'
          FROM pg_subscription_rel AS s
         WHERE s.srrelid IN (SELECT t.node FROM below AS t)
    ) AS q;

    -- The cache's role: what it needs
    SELECT x.* INTO r FROM pg_roles AS x WHERE x.rolname = role;
    IF NOT FOUND THEN
        report := report || jsonb_build_object(
            'kind', 'right', 'object', quote_ident(role), 'item', 'role', 'status', 'warn',
            'detail', 'does not exist. If the cache has another role, name it: oddscache sql check --role ..., or the '
            'setting role in the script', 'fix', 'grants.sql');
    ELSE
        SELECT report || coalesce(jsonb_agg(to_jsonb(q)), '[]') INTO report FROM (
            SELECT 'right' AS kind, n.object, n.item, CASE WHEN n.has THEN 'ok' ELSE 'FAIL' END AS status,
                   CASE WHEN n.has THEN role ELSE format('%s lacks it', role) END AS detail,
                   CASE WHEN NOT n.has THEN format('GRANT %s ON %s TO %I', n.item, n.object, role) END AS fix
              FROM (
                SELECT format('database %I', current_database()) AS object, 'CONNECT' AS item,
                       has_database_privilege(role, current_database(), 'CONNECT') AS has
                 UNION ALL
                SELECT format('schema %I', s.name), 'USAGE',
                       has_schema_privilege(role, to_regnamespace(quote_ident(s.name)), 'USAGE')
                  FROM (VALUES (app_schema), (cache_schema)) AS s (name)
                 UNION ALL
                SELECT format('%I.%I', s.schema, s.tab), 'SELECT',
                       has_table_privilege(role, to_regclass(format('%I.%I', s.schema, s.tab)), 'SELECT')
                  FROM (SELECT app_schema AS schema, u.tab FROM unnest(tables) AS u (tab)
                         UNION ALL VALUES (cache_schema, 'change_log'), (cache_schema, 'log_state')) AS s
              ) AS n WHERE n.has IS NOT NULL
             UNION ALL
            SELECT 'right', n.name, 'SELECT', CASE WHEN n.has THEN 'ok' ELSE 'warn' END,
                   role || CASE WHEN n.has THEN '' ELSE ' lacks it, so the cache shows no names from there' END,
                   CASE WHEN NOT n.has THEN format('GRANT SELECT ON %s TO %I', n.name, role) END
              FROM (SELECT format('%I.%I', app_schema, u.tab) AS name,
                           has_table_privilege(role, to_regclass(format('%I.%I', app_schema, u.tab)), 'SELECT') AS has
                      FROM unnest(lookup_tables) AS u (tab)) AS n
             WHERE n.has IS NOT NULL
             UNION ALL
            SELECT 'right', format('%I.prune(interval)', cache_schema), 'EXECUTE', 'ok',
                   CASE WHEN has_function_privilege(role, to_regprocedure(format('%I.prune(interval)', cache_schema)),
                       'EXECUTE')
                        THEN format('%s may prune the log', role)
                        ELSE format('%s may not prune the log: let a scheduled job do it, or grants.sql with prune',
                            role) END, NULL
             WHERE to_regprocedure(format('%I.prune(interval)', cache_schema)) IS NOT NULL
             UNION ALL
            SELECT 'right', h.name, 'EXECUTE', CASE WHEN h.has THEN 'ok' ELSE 'warn' END,
                   role || CASE WHEN h.has THEN '' ELSE
                       ' may not, which only caches of older versions need to see lost notifications' END,
                   CASE WHEN NOT h.has THEN format('GRANT EXECUTE ON FUNCTION %s TO %I', h.name, role) END
              FROM (SELECT format('%I.heartbeat()', cache_schema) AS name,
                           has_function_privilege(role, to_regprocedure(format('%I.heartbeat()', cache_schema)),
                               'EXECUTE') AS has) AS h
             WHERE h.has IS NOT NULL
             UNION ALL
            SELECT 'right', c.oid::regclass::text, 'row-level security', 'warn',
                   format('%s must see every row: by BYPASSRLS, or by a policy for SELECT that is always true', role),
                   format('ALTER ROLE %I BYPASSRLS', role)
              FROM unnest(tables) AS u (tab)
              JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app_schema, u.tab))
             WHERE c.relrowsecurity AND NOT (r.rolsuper OR r.rolbypassrls)
        ) AS q;

        -- The rights that the role does not need, and which role was granted each. Only REVOKE from that role takes it.
        WITH thing AS (
            SELECT 'TABLE' AS kind, c.oid, s.name, s.name AS target, c.relowner AS owner,
                   coalesce(c.relacl, acldefault('r', c.relowner)) AS acl,
                   ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
                   || CASE WHEN server >= 170000 THEN ARRAY['MAINTAIN'] ELSE '{}' END AS items
              FROM (SELECT format('%I.%I', app_schema, u.tab) AS name 
                      FROM unnest(tables || lookup_tables) AS u (tab)
                     UNION ALL SELECT format('%I.%I', cache_schema, u.tab)
                         FROM unnest(ARRAY['change_log', 'log_state', 'log_horizon']) AS u (tab)) AS s
              JOIN pg_class AS c ON c.oid = to_regclass(s.name)
             UNION ALL
            SELECT 'SCHEMA', n.oid, format('schema %I', n.nspname), format('SCHEMA %I', n.nspname), n.nspowner,
                   coalesce(n.nspacl, acldefault('n', n.nspowner)), ARRAY['CREATE']
              FROM pg_namespace AS n WHERE n.nspname IN (app_schema, cache_schema)
             UNION ALL
            SELECT 'DATABASE', d.oid, format('database %I', d.datname), format('DATABASE %I', d.datname), d.datdba,
                   coalesce(d.datacl, acldefault('d', d.datdba)), ARRAY['CREATE', 'TEMPORARY']
              FROM pg_database AS d WHERE d.datname = current_database()
             UNION ALL
            SELECT 'FUNCTION', p.oid, format('%I.resync(text)', cache_schema),
                   format('FUNCTION %I.resync(text)', cache_schema), p.proowner,
                   coalesce(p.proacl, acldefault('f', p.proowner)), ARRAY['EXECUTE']
              FROM pg_proc AS p WHERE p.oid = to_regprocedure(format('%I.resync(text)', cache_schema))
        ), superfluous AS (
            SELECT t.kind, t.oid, t.name, t.target, t.owner, t.acl, i.item, i.n
              FROM thing AS t CROSS JOIN unnest(t.items) WITH ORDINALITY AS i (item, n)
             WHERE NOT r.rolsuper
               AND CASE t.kind WHEN 'TABLE' THEN has_table_privilege(r.oid, t.oid, i.item)
                               WHEN 'SCHEMA' THEN has_schema_privilege(r.oid, t.oid, i.item)
                               WHEN 'DATABASE' THEN has_database_privilege(r.oid, t.oid, i.item)
                               ELSE has_function_privilege(r.oid, t.oid, i.item) END
        ), source AS (
            SELECT s.*, x.grantee, x.grantor
              FROM superfluous AS s CROSS JOIN aclexplode(s.acl) AS x
             WHERE x.privilege_type = s.item AND (x.grantee IN (0, r.oid) OR pg_has_role(r.oid, x.grantee, 'USAGE'))
             UNION ALL
            -- The server's predefined roles have rights that no ACL shows.
            SELECT s.*, g.oid, s.owner
              FROM superfluous AS s
              JOIN pg_roles AS g ON (g.rolname = 'pg_write_all_data' AND s.item IN ('INSERT', 'UPDATE', 'DELETE'))
                                 OR (g.rolname = 'pg_maintain' AND s.item = 'MAINTAIN')
             WHERE s.kind = 'TABLE' AND pg_has_role(r.oid, g.oid, 'USAGE')
        ), membership AS (
            -- The server records a superuser's grant as one by the bootstrap superuser (oid 10). Since PostgreSQL 16
            -- another role may have granted the same membership, too.
            SELECT m.roleid, format('REVOKE %I FROM %I', g.rolname, role)
                   || CASE WHEN server >= 160000 AND m.grantor <> 10 THEN format(' GRANTED BY %s', m.grantor::regrole)
                       ELSE '' END AS sql,
                   g.rolname, coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true) AS inherits
              FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
             WHERE m.member = r.oid
        )
        SELECT report || coalesce(jsonb_agg(to_jsonb(q)), '[]') INTO report FROM (
            SELECT 'right' AS kind, s.name AS object, s.items AS item,
                   s.status,
                   format('%s has it and does not need it', role)
                   || CASE WHEN s.grantee = 0 THEN ': PUBLIC was granted it, so every role has it. Before you revoke '
                                'it, grant it by name to the roles that need it'
                           WHEN s.grantee = r.oid THEN CASE WHEN s.owner = r.oid THEN ': it is the owner' ELSE '' END
                           WHEN s.roleid IS NULL THEN ': it owns the database'
                           WHEN s.roleid = s.grantee THEN format(': it is a member of %I', s.rolname)
                           ELSE format(': it is a member of %I, and so of %s', s.rolname, s.grantee::regrole) END
                       AS detail,
                   CASE WHEN s.grantee = r.oid AND s.owner = r.oid THEN format('ALTER %s OWNER TO another role',
                                concat_ws(' ', nullif(s.kind, split_part(s.target, ' ', 1)), s.target))
                           WHEN s.grantee IN (0, r.oid) THEN
                                CASE WHEN s.grantor = s.owner THEN '' ELSE format('SET ROLE %s; ',
                                    s.grantor::regrole) END
                                || format('REVOKE %s ON %s FROM %s', s.items, s.target,
                                          CASE s.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(role) END)
                           WHEN s.roleid IS NULL THEN format('ALTER DATABASE %I OWNER TO another role',
                               current_database())
                           ELSE s.sql END AS fix
              FROM (SELECT s.kind, s.name, s.target, s.owner, s.grantee, s.grantor, m.roleid, m.rolname, m.sql,
                           string_agg(s.item, ', ' ORDER BY s.n) AS items, d.status
                      FROM source AS s
                     -- PUBLIC has this right by default.
                     CROSS JOIN LATERAL (SELECT CASE WHEN s.grantee = 0 AND s.item = 'TEMPORARY' THEN 'ok'
                                                     ELSE 'info' END AS status) AS d
                      LEFT JOIN membership AS m ON s.grantee NOT IN (0, r.oid) AND m.inherits
                           AND (m.roleid = s.grantee OR pg_has_role(m.roleid, s.grantee, 'USAGE'))
                     GROUP BY s.kind, s.name, s.target, s.owner, s.grantee, s.grantor, m.roleid, m.rolname, m.sql,
                         d.status) AS s
             UNION ALL
            SELECT 'right', 'role ' || quote_ident(role), a.item, 'info',
                   format('%s has it and does not need it', role), format('ALTER ROLE %I NO%s', role, a.item)
              FROM (VALUES ('SUPERUSER', r.rolsuper), ('CREATEROLE', r.rolcreaterole), ('CREATEDB', r.rolcreatedb),
                           ('REPLICATION', r.rolreplication)) AS a (item, has)
             WHERE a.has
             UNION ALL
            -- A member does not inherit role attributes, but it gets them by SET ROLE.
            SELECT 'right', 'role ' || quote_ident(role), a.item, 'info',
                   format('%s has it by SET ROLE %I and does not need it: it is a member of %I', role, x.rolname,
                       m.rolname), m.sql
              FROM pg_roles AS x
             CROSS JOIN LATERAL (VALUES
                           ('SUPERUSER', x.rolsuper), ('CREATEROLE', x.rolcreaterole), ('CREATEDB', x.rolcreatedb),
                           ('REPLICATION', x.rolreplication)) AS a (item, has)
              JOIN membership AS m ON m.roleid = x.oid
                   OR pg_has_role(m.roleid, x.oid, CASE WHEN server < 160000 THEN 'MEMBER' ELSE 'SET' END)
             WHERE a.has AND NOT r.rolsuper AND x.oid <> r.oid
               AND pg_has_role(r.oid, x.oid, CASE WHEN server < 160000 THEN 'MEMBER' ELSE 'SET' END)
        ) AS q;
    END IF;

    -- Publications that also publish the feed's tables
    SELECT report || coalesce(jsonb_agg(to_jsonb(q)), '[]') INTO report FROM (
        SELECT 'publication' AS kind, quote_ident(p.pubname) AS object, 'publishes the feed' AS item,
               CASE WHEN s.names IS NULL THEN 'info' ELSE 'warn' END AS status,
               format('%s: a native subscription stops for good at the first change of a table that its database '
                   'lacks ("logical replication target relation ... does not exist"). %s', t.names,
                   coalesce('Replication slots that may serve one: ' || s.names, 'No replication slot serves one now'))
                   AS detail,
               format('on the subscriber, before anything else: CREATE SCHEMA IF NOT EXISTS %1$I; CREATE TABLE IF '
                   'NOT EXISTS %1$I.change_log (xid xid8 NOT NULL, id bigint NOT NULL, table_name text NOT NULL, op '
                   'text NOT NULL, keys bigint[], note text, at timestamptz NOT NULL, PRIMARY KEY (xid, id)); CREATE '
                   'TABLE IF NOT EXISTS %1$I.log_state (one boolean PRIMARY KEY, pruned_below xid8 NOT NULL, '
                   'app_schema text NOT NULL, channel text NOT NULL, pruned_at timestamptz); CREATE TABLE IF NOT '
                   'EXISTS %1$I.log_horizon (horizon xid8 NOT NULL, at timestamptz NOT NULL);', cache_schema)
               || ' or here: '
               || CASE WHEN p.puballtables THEN format('replace %I: CREATE PUBLICATION of the tables that are needed '
                                '(FOR TABLE ...', p.pubname)
                            || CASE WHEN server < 150000 THEN '' ELSE ', FOR TABLES IN SCHEMA ...' END
                            || '), and on the subscriber ALTER SUBSCRIPTION ... SET PUBLICATION'
                       WHEN t.named = '' THEN format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %I', p.pubname,
                           cache_schema)
                       ELSE format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, t.named) END AS fix
          FROM pg_publication AS p
          JOIN LATERAL (SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.relname) AS names,
                               coalesce(string_agg(c.oid::regclass::text, ', ' ORDER BY c.relname) FILTER (
                                   WHERE EXISTS (SELECT FROM pg_publication_rel AS n
                                                  WHERE n.prpubid = p.oid AND n.prrelid = c.oid)), '') AS named
                          FROM pg_publication_tables AS l
                          JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', l.schemaname, l.tablename))
                         WHERE l.pubname = p.pubname AND l.schemaname = cache_schema
                           AND l.tablename IN ('change_log', 'log_state', 'log_horizon')) AS t ON t.names IS NOT NULL
         CROSS JOIN (SELECT string_agg(format('%I (%s)', s.slot_name, CASE
                                WHEN a.pid IS NOT NULL THEN 'a native subscription'
                                WHEN s.active THEN 'active' ELSE 'not active' END), ', ' ORDER BY s.slot_name) AS names
                       FROM pg_replication_slots AS s
                       LEFT JOIN pg_stat_replication AS a ON a.pid = s.active_pid AND a.application_name = s.slot_name
                      WHERE s.plugin = 'pgoutput' AND s.database = current_database()) AS s
    ) AS q;

    -- The log. It may be a view that another role made, so let it write nothing. The setting ends with this block.
    BEGIN
        PERFORM set_config('transaction_read_only', 'on', true);
        IF to_regclass(log) IS NOT NULL AND to_regclass(format('%I.log_state', cache_schema)) IS NOT NULL THEN
            EXECUTE format($sql$
                SELECT jsonb_agg(to_jsonb(q)) FROM (
                    SELECT 'log' AS kind, %2$L AS object, 'state' AS item,
                           CASE WHEN count(*) = 1 AND bool_and(s.app_schema = %3$L
                                AND s.pruned_below <= pg_snapshot_xmax(pg_current_snapshot())) THEN 'ok'
                                    ELSE 'FAIL' END AS status,
                           CASE WHEN count(*) <> 1 THEN format('%%s rows instead of one', count(*))
                                WHEN NOT bool_and(s.app_schema = %3$L)
                                    THEN format('serves schema %%s, not %%s', min(s.app_schema), %3$L)
                                WHEN NOT bool_and(s.pruned_below <= pg_snapshot_xmax(pg_current_snapshot()))
                                    THEN 'holds transaction ids of another cluster'
                                ELSE format('pruned below %%s, channel %%s', min(s.pruned_below::text),
                                    min(s.channel)) END AS detail,
                           CASE WHEN count(*) = 1 AND NOT bool_and(s.app_schema = %3$L)
                                    THEN 'check that schema: oddscache sql check --app-schema ..., or the setting '
                                        'app_schema in the script'
                                WHEN count(*) <> 1
                                    OR NOT bool_and(s.pruned_below <= pg_snapshot_xmax(pg_current_snapshot()))
                                    THEN 'install.sql' END AS fix
                      FROM %2$s AS s
                     UNION ALL
                    SELECT 'log', %2$L, 'pruned',
                           CASE WHEN b.late AND b.pruned < now() - interval '7 days' THEN 'FAIL'
                                WHEN b.late THEN 'warn' ELSE 'ok' END,
                           coalesce('last at ' || b.pruned
                                    || format(' (%%s ago)', date_trunc('second', now() - b.pruned)), 'never'),
                           CASE WHEN b.late THEN %4$L END
                      FROM (SELECT p.pruned, coalesce(p.pruned < now() - interval '1 day', true)
                                   AND EXISTS (SELECT FROM %1$s AS l WHERE l.at < now() - interval '1 day'
                                            ORDER BY l.xid, l.id LIMIT 1) AS late
                              FROM (SELECT max((to_jsonb(s) ->> 'pruned_at')::timestamptz) AS pruned
                                  FROM %2$s AS s) AS p) AS b
                     UNION ALL
                    SELECT 'log', %1$L, 'backlog',
                           CASE WHEN b.oldest < now() - interval '7 days' OR b.bytes > 10 * 1024 ^ 3 THEN 'FAIL'
                                WHEN b.oldest < now() - interval '1 day' OR b.bytes > 1024 ^ 3 THEN 'warn'
                                    ELSE 'ok' END,
                           format('%%s rows, %%s', b.rows || CASE WHEN b.rows > 1000000 THEN ' or more' ELSE '' END,
                                  pg_size_pretty(b.bytes))
                           || coalesce(', the oldest from ' || b.oldest
                                       || format(' (%%s ago)', date_trunc('second', now() - b.oldest)), '')
                           || CASE WHEN b.oldest < now() - interval '1 day' OR b.bytes > 1024 ^ 3
                                   THEN '. A transaction that stays open keeps the rows and their space' ELSE '' END,
                           CASE WHEN b.oldest < now() - interval '1 day' THEN %4$L
                                WHEN b.bytes > 1024 ^ 3 THEN format('VACUUM %%s', %1$L) END
                      FROM (SELECT (SELECT count(*) FROM (SELECT FROM %1$s LIMIT 1000001) AS l) AS rows,
                                   pg_total_relation_size(%1$L::regclass) AS bytes,
                                   (SELECT l.at FROM %1$s AS l ORDER BY l.xid, l.id LIMIT 1) AS oldest) AS b
                     UNION ALL
                    SELECT 'log', %1$L, 'transactions', 'FAIL',
                        'holds transaction ids of another cluster', 'install.sql'
                     WHERE EXISTS (SELECT FROM %1$s AS l WHERE l.xid >= pg_snapshot_xmax(pg_current_snapshot()))
                     UNION ALL
                    SELECT 'log', l.table_name, 'RESYNC', CASE l.table_name WHEN 'resync' THEN 'ok' ELSE 'warn' END,
                           format('%%s times, last at %%s: %%s', count(*), max(l.at),
                           (array_agg(l.note ORDER BY l.id DESC))[1]), NULL
                      FROM %1$s AS l WHERE l.op = 'RESYNC' GROUP BY l.table_name
                ) AS q$sql$, log, format('%I.log_state', cache_schema), app_schema,
                format('a scheduled job that runs SELECT %I.prune(), or let the cache call it: oddscache sql grants '
                    '--prune, or the setting prune in grants.sql', cache_schema)) INTO part;
            report := report || coalesce(part, '[]');
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        report := report || jsonb_build_object('kind', 'log', 'object', log, 'item', 'rows', 'status', 'unknown',
            'detail', format('not readable by %I: %s', current_user, SQLERRM));
    END;

    -- The cache's sessions, the notifications, the indexes
    SELECT report || coalesce(jsonb_agg(to_jsonb(q)), '[]') INTO report FROM (
        WITH lock AS (
            SELECT l.pid, l.mode = 'ShareLock' AS waits, coalesce(s.usename::text, 'an unknown role') AS role
              FROM pg_locks AS l LEFT JOIN pg_stat_activity AS s ON s.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
               AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
               AND ((l.classid::bigint << 32) | l.objid::bigint) =
                   hashtextextended('oddscache listener ' || cache_schema, 0)
        )
        SELECT 'session' AS kind, format('process %s', s.pid) AS object, s.wait_event AS item, 'warn' AS status,
               format('of %I has been sending a result since %s that its client does not read: TRUNCATE, ALTER and '
                   'DETACH wait for it, and writers wait behind them', role, s.query_start) AS detail,
               format('SELECT pg_terminate_backend(%s)', s.pid) AS fix
          FROM pg_stat_activity AS s
         WHERE s.datname = current_database() AND s.usename = role AND s.state = 'active'
           AND s.wait_event = 'ClientWrite' AND s.query_start < clock_timestamp() - interval '30 s'
         UNION ALL
        SELECT 'waiting' AS kind, quote_ident(cache_schema) AS object, 'who waits for notifications' AS item,
            'ok' AS status,
               coalesce('writers notify ' || string_agg(format('process %s of %I', l.pid, l.role), ', ' ORDER BY l.pid),
                        'nobody: writers do not notify') AS detail, NULL
          FROM lock AS l WHERE l.waits
         UNION ALL
        SELECT 'waiting', quote_ident(cache_schema), format('process %s', l.pid), 'warn',
               format('of %I holds the listeners'' advisory lock exclusively: every writer notifies, and caches only '
                   'poll', l.role), format('SELECT pg_terminate_backend(%s)', l.pid)
          FROM lock AS l WHERE NOT l.waits
         UNION ALL
        SELECT 'queue', 'notification queue', 'usage', CASE WHEN u.usage < 0.5 THEN 'ok' ELSE 'warn' END,
               format('%s %%', round((u.usage * 100)::numeric, 1))
               || CASE WHEN u.usage < 0.5 THEN '' ELSE ': writers do not notify. A listener has an open '
                   'transaction' END,
               CASE WHEN u.usage >= 0.5 THEN 'end the oldest: SELECT pid, usename, xact_start FROM pg_stat_activity '
                   'WHERE state LIKE ''idle in transaction%'' ORDER BY xact_start' END
          FROM pg_notification_queue_usage() AS u (usage)
         UNION ALL
        SELECT 'index', t.root::text, w.columns, CASE WHEN bool_or(x.indisvalid) THEN 'ok' ELSE 'warn' END,
               CASE WHEN bool_or(x.indisvalid) THEN 'in place'
                    WHEN count(x.indexrelid) > 0 THEN 'is INVALID, not usable'
                    ELSE 'missing, so a warmup reads the whole history' END,
               CASE WHEN bool_or(x.indisvalid) THEN NULL ELSE 'indexes.sql' END
          FROM (VALUES ('odds_snapshots', 'event_id, bookmaker_id, id DESC',
                        ARRAY['event_id', 'bookmaker_id', 'id'], '0 0 3'),
                       ('competitor_odds_snapshots', 'competitor_event_id, id DESC',
                        ARRAY['competitor_event_id', 'id'], '0 3'))
               AS w (tab, columns, keys, options)
          JOIN LATERAL (SELECT to_regclass(format('%I.%I', app_schema, w.tab)) AS root) AS t ON t.root IS NOT NULL
          LEFT JOIN pg_index AS x ON x.indrelid = t.root AND x.indpred IS NULL AND x.indexprs IS NULL
               AND x.indnkeyatts = cardinality(w.keys) AND x.indoption::text = w.options
               AND (SELECT array_agg(a.attname::text ORDER BY k.n)
                      FROM unnest(x.indkey) WITH ORDINALITY AS k (attnum, n)
                      JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
                     WHERE k.n <= x.indnkeyatts) = w.keys
         GROUP BY t.root, w.columns
    ) AS q;
    SELECT jsonb_agg(to_jsonb(q) ORDER BY array_position(ARRAY['FAIL', 'warn', 'unknown', 'info', 'ok'], q.status),
               array_position(ARRAY['feed', 'trigger', 'right', 'publication', 'log', 'session', 'waiting', 'queue',
                                    'index'], q.kind),
               q.object, q.item)
      INTO report
      FROM jsonb_to_recordset(report) AS q (kind text, object text, item text, status text, detail text, fix text);
    PERFORM set_config('oddscache.report', report::text, false);
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END $check$;

SELECT r.kind, r.object, r.item, r.status, r.detail, r.fix
  FROM ROWS FROM (pg_catalog.jsonb_to_recordset(pg_catalog.current_setting('oddscache.report')::pg_catalog.jsonb)
           AS (kind pg_catalog.text, object pg_catalog.text, item pg_catalog.text, status pg_catalog.text,
               detail pg_catalog.text, fix pg_catalog.text))
       WITH ORDINALITY AS r (kind, object, item, status, detail, fix, n)
 ORDER BY r.n;
