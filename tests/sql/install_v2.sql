-- install.sql: installs the change feed that keeps oddscache equal to these tables.
--
-- What      A schema with the change log, six functions, and AFTER ... FOR EACH STATEMENT triggers on six tables and
--           on every partition of theirs. Everything is named in README.md; check.sql reports on it.
-- Who       The owner of the six tables, with CREATE on the database. A superuser can, but then the trigger function
--           runs as that superuser: prefer the owner.
-- Locks     SHARE ROW EXCLUSIVE on the tables that lack a trigger: their writers wait for the few milliseconds until
--           COMMIT, readers do not. While it waits for a writer that is already there, new writers queue behind it, for
--           `lock_timeout` at most; then it fails with 55P03, undoes everything, and can be run again.
-- Again     Changes nothing and locks nothing where everything is in place; repairs what is not. New partitions get
--           their triggers, an older feed version is upgraded (its followers then want their new version, too), a
--           newer one is left alone.
-- Undo      uninstall.sql
--
-- Run       psql -X -f install.sql [-v app_schema=public] [-v cache_schema=oddscache] [-v channel=oddscache]
--                                  [-v lock_timeout=2s]
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
\if :{?channel}
\else
  \set channel oddscache
\endif
\if :{?lock_timeout}
\else
  \set lock_timeout 2s
\endif

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = notice;
SET LOCAL oddscache.app_schema = :'app_schema';
SET LOCAL oddscache.cache_schema = :'cache_schema';
SET LOCAL oddscache.channel = :'channel';
SET LOCAL oddscache.done = '0';
SET LOCAL oddscache.version = '2';
-- The tables, and the column of each that says what changed.
SET LOCAL oddscache.keys = '{"events": "id", "competitor_events": "betpawa_event_id", "odds_snapshots": "event_id",
    "competitor_odds_snapshots": "competitor_event_id", "market_odds": "snapshot_id",
    "competitor_market_odds": "snapshot_id"}';

-- Concurrent runs queue here, before lock_timeout can make the last of them fail.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0)); END $$;
SET LOCAL lock_timeout = :'lock_timeout';

-- 1. Are the tables what the feed needs?
DO $check$
DECLARE
    app     constant text := current_setting('oddscache.app_schema');
    cache   constant text := current_setting('oddscache.cache_schema');
    channel constant text := current_setting('oddscache.channel');
    problem text;
BEGIN
    IF octet_length(cache) NOT BETWEEN 1 AND 63 OR cache LIKE 'pg\_%' OR cache = app THEN
        RAISE EXCEPTION 'cache_schema % cannot be used', quote_literal(cache)
            USING HINT = 'It must be a schema of the feed''s own: 1 to 63 bytes, not the application''s, not pg_....';
    END IF;
    IF octet_length(channel) NOT BETWEEN 1 AND 63 THEN
        RAISE EXCEPTION 'channel % cannot be used', quote_literal(channel)
            USING HINT = 'The name of a notification channel has 1 to 63 bytes.';
    END IF;
    IF to_regnamespace(quote_ident(app)) IS NULL THEN
        RAISE EXCEPTION 'schema % does not exist', quote_ident(app)
            USING ERRCODE = 'invalid_schema_name', HINT = 'Name the application''s schema: -v app_schema=...';
    END IF;
    SELECT string_agg(format('%I.%I %s', app, k.tab,
               CASE WHEN c.oid IS NULL THEN 'is missing'
                    WHEN c.relkind NOT IN ('r', 'p') THEN 'is not a table'
                    WHEN a.attname IS NULL THEN format('has no column %I', k.col)
                    ELSE format('has column %I of type %s, not an integer', k.col, format_type(a.atttypid, a.atttypmod))
               END), '; ')
      INTO problem
      FROM json_each_text(current_setting('oddscache.keys')::json) AS k (tab, col)
      LEFT JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app, k.tab))
      LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = k.col AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.oid IS NULL OR c.relkind NOT IN ('r', 'p') OR a.attname IS NULL
        OR a.atttypid NOT IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem
            USING ERRCODE = 'undefined_object', HINT = 'If the tables are in another schema, name it: -v app_schema=...';
    END IF;
END $check$;

-- 2. The schema, the log and its functions
DO $objects$
DECLARE
    app     constant text := current_setting('oddscache.app_schema');
    cache   constant text := current_setting('oddscache.cache_schema');
    channel constant text := current_setting('oddscache.channel');
    version constant text := current_setting('oddscache.version');
    log     constant text := format('%I.change_log', cache);
    done    integer := 0;
    found   text;
    n       bigint;
    m       bigint;
    w       record;
BEGIN
    -- What is there already runs with our rights from here on: a trigger of log_state, a function. Whoever planted it could
    -- be anybody with CREATE on the database.
    SELECT string_agg(format('%s belongs to %s', o.name, o.owner::regrole), ', ') INTO found
      FROM (SELECT 'schema ' || quote_ident(cache) AS name, n.nspowner AS owner
              FROM pg_namespace AS n WHERE n.nspname = cache
             UNION ALL
            SELECT c.oid::regclass::text, c.relowner FROM pg_class AS c
             WHERE c.relnamespace = to_regnamespace(quote_ident(cache)) AND c.relname IN ('change_log', 'log_state', 'log_horizon')
             UNION ALL
            SELECT p.oid::regprocedure::text, p.proowner FROM pg_proc AS p
             WHERE p.pronamespace = to_regnamespace(quote_ident(cache))
               AND p.proname IN ('feed_version', 'prune', 'heartbeat', 'resync', 'log_change')) AS o
     WHERE o.owner NOT IN (SELECT x.oid FROM pg_roles AS x WHERE x.rolsuper OR x.rolname = current_user)
       AND o.owner NOT IN (SELECT c.relowner FROM json_object_keys(current_setting('oddscache.keys')::json) AS k (tab)
                             JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app, k.tab)))
       AND (current_setting('is_superuser')::boolean OR NOT pg_has_role(o.owner, 'MEMBER'));
    IF found IS NOT NULL THEN
        RAISE EXCEPTION '%', found USING ERRCODE = 'insufficient_privilege',
            HINT = 'It belongs neither to you nor to the owner of the tables. See who made it and drop it, or choose another '
                'schema: -v cache_schema=...';
    END IF;
    IF to_regprocedure(format('%I.feed_version()', cache)) IS NOT NULL THEN
        EXECUTE format('SELECT %I.feed_version()', cache) INTO found;
        IF found::integer > version::integer THEN
            RAISE EXCEPTION 'the feed in schema % has version %, and this script has version %', quote_ident(cache), found, version
                USING HINT = 'Use the install.sql of that version; to go back, run its uninstall.sql first.';
        END IF;
    END IF;

    IF to_regnamespace(quote_ident(cache)) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', cache);
        EXECUTE format('COMMENT ON SCHEMA %I IS %L', cache,
            'oddscache: the change feed of the odds tables. Made by install.sql, removed by uninstall.sql.');
        RAISE NOTICE 'created schema %', quote_ident(cache);
        done := done + 1;
    ELSIF has_schema_privilege('public', quote_ident(cache)::regnamespace, 'CREATE') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', cache);
        RAISE NOTICE 'revoked CREATE on schema % from PUBLIC', quote_ident(cache);
        done := done + 1;
    END IF;

    IF to_regclass(log) IS NULL THEN
        -- No vacuum_truncate: cutting off the log's empty end would lock it exclusively, against every writer.
        EXECUTE format($sql$
            CREATE TABLE %s (
                xid xid8 NOT NULL,
                id bigint GENERATED ALWAYS AS IDENTITY,
                table_name text NOT NULL,
                op text NOT NULL,
                keys bigint[],
                note text,
                at timestamptz NOT NULL DEFAULT clock_timestamp(),
                PRIMARY KEY (xid, id)
            ) WITH (vacuum_truncate = off, toast.vacuum_truncate = off)$sql$, log);
        -- Compressing 8 kB of keys costs three times what writing them does.
        EXECUTE format('ALTER TABLE %s ALTER COLUMN keys SET STORAGE EXTERNAL', log);
        RAISE NOTICE 'created table %', log;
        done := done + 1;
    ELSE
        SELECT string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
          INTO found FROM pg_attribute AS a WHERE a.attrelid = log::regclass AND a.attnum > 0 AND NOT a.attisdropped;
        IF found <> 'xid xid8, id bigint, table_name text, op text, keys bigint[], note text, at timestamp with time zone'
        THEN
            RAISE EXCEPTION '% exists and is not the change log of feed version % (it has %)', log, version, found
                USING HINT = 'Run uninstall.sql first, or choose another schema: -v cache_schema=...';
        END IF;
    END IF;

    IF to_regclass(format('%I.log_state', cache)) IS NULL THEN
        EXECUTE format($sql$
            CREATE TABLE %I.log_state (
                one boolean PRIMARY KEY DEFAULT true CHECK (one),
                pruned_below xid8 NOT NULL,
                app_schema text NOT NULL,
                channel text NOT NULL,
                pruned_at timestamptz
            )$sql$, cache);
        RAISE NOTICE 'created table %.log_state', quote_ident(cache);
        done := done + 1;
    ELSIF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass(format('%I.log_state', cache))
                         AND a.attname = 'pruned_at' AND NOT a.attisdropped) THEN
        -- Of version 1.
        EXECUTE format('ALTER TABLE %I.log_state ADD COLUMN pruned_at timestamptz', cache);
        RAISE NOTICE 'added column %.log_state.pruned_at', quote_ident(cache);
        done := done + 1;
    END IF;
    EXECUTE format('INSERT INTO %I.log_state (pruned_below, app_schema, channel)
                    SELECT pg_snapshot_xmin(pg_current_snapshot()), %L, %L
                     WHERE NOT EXISTS (SELECT FROM %1$I.log_state)', cache, app, channel);
    EXECUTE format('SELECT s.app_schema FROM %I.log_state AS s', cache) INTO found;
    IF found <> app THEN
        RAISE EXCEPTION 'the feed in schema % serves the tables in %, not in %',
            quote_ident(cache), quote_ident(found), quote_ident(app)
            USING HINT = 'Run uninstall.sql first, or install a second feed: -v cache_schema=...';
    END IF;
    EXECUTE format('UPDATE %I.log_state AS s SET channel = %L WHERE s.channel <> %2$L', cache, channel);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        RAISE NOTICE 'changed the channel to %', quote_ident(channel);
        done := done + 1;
    END IF;

    IF to_regclass(format('%I.log_horizon', cache)) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.log_horizon (horizon xid8 NOT NULL, at timestamptz NOT NULL)', cache);
        RAISE NOTICE 'created table %.log_horizon', quote_ident(cache);
        done := done + 1;
    END IF;

    FOR w IN
        SELECT CASE WHEN v.col IS NULL THEN format('TABLE %I.%I', cache, v.tab)
                    ELSE format('COLUMN %I.%I.%I', cache, v.tab, v.col) END AS object, v.comment
          FROM (VALUES
            ('change_log', NULL,
             'One row per statement that changed an odds table: which table, which keys. Pruned by prune().'),
            ('change_log', 'xid', 'Top-level transaction that made the change.'),
            ('change_log', 'op',
             'INSERT, UPDATE, DELETE, TRUNCATE; RESYNC: read everything again, for the reason in note (trouble that the '
             'trigger met, or ASKED by resync()); HEARTBEAT: nothing changed, heartbeat() was called.'),
            ('change_log', 'keys',
             'events: id; competitor_events: betpawa_event_id; odds_snapshots: event_id; competitor_odds_snapshots: '
             'competitor_event_id; market_odds, competitor_market_odds: snapshot_id. Null: the whole table. Empty: nothing.'),
            ('log_state', NULL, 'The state of the feed: exactly one row.'),
            ('log_state', 'pruned_below',
             'Low-water mark: rows of older transactions may be gone; a cursor with an older xmin must start again.'),
            ('log_state', 'pruned_at', 'When prune() last did its work, even if there was nothing to delete.'),
            ('log_horizon', NULL,
             'Below which transaction all had ended, and when: noted by prune() for its later calls.')
          ) AS v (tab, col, comment)
         WHERE col_description(format('%I.%I', cache, v.tab)::regclass,
                   coalesce((SELECT a.attnum FROM pg_attribute AS a WHERE a.attname = v.col
                                AND a.attrelid = format('%I.%I', cache, v.tab)::regclass), 0)) IS DISTINCT FROM v.comment
    LOOP
        EXECUTE format('COMMENT ON %s IS %L', w.object, w.comment);
        done := done + 1;
    END LOOP;

    -- A log restored from a dump speaks of another cluster's transactions: to this one they lie in the future.
    EXECUTE format('DELETE FROM %s AS l WHERE l.xid >= pg_snapshot_xmax(pg_current_snapshot())', log);
    GET DIAGNOSTICS n = ROW_COUNT;
    EXECUTE format('DELETE FROM %I.log_horizon AS h WHERE h.horizon > pg_snapshot_xmax(pg_current_snapshot())', cache);
    EXECUTE format('UPDATE %I.log_state AS s SET pruned_below = pg_snapshot_xmin(pg_current_snapshot())
                     WHERE s.pruned_below > pg_snapshot_xmax(pg_current_snapshot())', cache);
    GET DIAGNOSTICS m = ROW_COUNT;
    IF n + m > 0 THEN
        RAISE NOTICE 'discarded the log of another cluster (% rows)', n;
        done := done + 1;
    END IF;

    SELECT string_agg(c.oid::regclass::text, ', ') INTO found
      FROM pg_class AS c
     WHERE c.oid IN (log::regclass, format('%I.log_state', cache)::regclass, format('%I.log_horizon', cache)::regclass)
       AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');
    IF found IS NOT NULL THEN
        EXECUTE format('REVOKE ALL ON TABLE %s FROM PUBLIC', found);
        RAISE NOTICE 'revoked all on % from PUBLIC', found;
        done := done + 1;
    END IF;
    PERFORM set_config('oddscache.done', done::text, true);
END $objects$;

-- 3. The functions
DO $functions$
DECLARE
    cache    constant text := current_setting('oddscache.cache_schema');
    done     integer := current_setting('oddscache.done');
    branches text;
    name     text;
    f        record;
BEGIN
    -- How log_change() finds the keys of one table: static SQL, which plpgsql plans only when it is reached.
    SELECT string_agg(format($branch$
        ELSIF logical = %1$L AND TG_OP = 'INSERT' THEN
            SELECT array_agg(d.k) INTO changed FROM (
                SELECT DISTINCT n.%2$I::bigint AS k FROM new_rows AS n WHERE n.%2$I IS NOT NULL
                LIMIT max_keys + 1) AS d;
        ELSIF logical = %1$L AND TG_OP = 'UPDATE' THEN
            SELECT array_agg(d.k) INTO changed FROM (
                SELECT n.%2$I::bigint AS k FROM new_rows AS n WHERE n.%2$I IS NOT NULL
                UNION SELECT o.%2$I::bigint FROM old_rows AS o WHERE o.%2$I IS NOT NULL
                LIMIT max_keys + 1) AS d;
        ELSIF logical = %1$L AND TG_OP = 'DELETE' THEN
            SELECT array_agg(d.k) INTO changed FROM (
                SELECT DISTINCT o.%2$I::bigint AS k FROM old_rows AS o WHERE o.%2$I IS NOT NULL
                LIMIT max_keys + 1) AS d;$branch$, k.tab, k.col), '' ORDER BY k.tab DESC)
      INTO branches
      FROM json_each_text(current_setting('oddscache.keys')::json) AS k (tab, col);

    FOR f IN
        SELECT v.name, v.args, v.types, v.returns, v.attributes, v.config, v.public, v.comment,
               replace(replace(replace(replace(replace(v.body, '{branches}', branches),
                   '{state}', quote_literal('oddscache.log_' || left(md5(cache), 8))),
                   '{channel}', quote_literal(current_setting('oddscache.channel'))),
                   '{log}', quote_literal(format('%I.change_log', cache))),
                   '{schema}', quote_ident(cache)) AS body
          FROM (VALUES
    ('feed_version', '', '', 'integer', 'LANGUAGE sql IMMUTABLE PARALLEL SAFE', NULL::text[], true,
     'Version of the feed: its objects, and the meaning of the change log.',
     'SELECT ' || current_setting('oddscache.version')),

    ('prune', 'keep interval DEFAULT ''1 hour''', 'interval', 'bigint',
     'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = ''500ms''',
     ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=500ms'], false,
     'Deletes log rows that no reader who has read within keep can need, at most 50000 a call; returns how many.',
     $body$
DECLARE
    bound   constant interval := coalesce(nullif(current_setting('oddscache.prune_timeout', true), ''), '60 s');
    begun   constant timestamptz := clock_timestamp();
    setting text;
    reached xid8;
    n       bigint;
    deleted bigint := 0;
BEGIN
    IF keep IS NULL OR keep < interval '0' THEN
        RAISE EXCEPTION 'keep must not be negative or null' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Reading the log under SERIALIZABLE could make a serializable writer fail.
    IF current_setting('transaction_isolation') = 'serializable' THEN
        RAISE EXCEPTION 'prune must not run in a serializable transaction'
            USING ERRCODE = 'invalid_transaction_state', HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED';
    END IF;
    -- One at a time: whoever finds the row taken leaves the work to its owner. An advisory lock would not do: any role may
    -- hold any of those, for ever, while locking this row takes rights on it.
    PERFORM FROM {schema}.log_state FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- Whoever stays in the transaction keeps the row, and nobody prunes: the server ends that session. Both settings go
    -- back at the end of the transaction, not of this function. The second cannot bound the statement that runs us.
    FOREACH setting IN ARRAY ARRAY['idle_in_transaction_session_timeout', 'statement_timeout'] LOOP
        IF current_setting(setting)::interval NOT BETWEEN interval '1 ms' AND bound THEN
            PERFORM set_config(setting, greatest(1, ceil(1000 * extract(epoch FROM bound)))::text, true);
        END IF;
    END LOOP;
    -- All transactions below the horizon have ended. Time alone proves nothing: a long transaction commits old rows late.
    INSERT INTO {schema}.log_horizon (horizon, at)
    SELECT pg_snapshot_xmin(pg_current_snapshot()), clock_timestamp()
     WHERE NOT EXISTS (SELECT FROM {schema}.log_horizon AS h
                        WHERE h.horizon >= pg_snapshot_xmin(pg_current_snapshot()));
    SELECT h.horizon INTO reached
      FROM {schema}.log_horizon AS h WHERE h.at <= clock_timestamp() - keep ORDER BY h.horizon DESC LIMIT 1;
    -- The mark may claim more than this call deletes, never less.
    UPDATE {schema}.log_state AS s SET pruned_at = begun, pruned_below = greatest(s.pruned_below, reached);
    IF reached IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM {schema}.log_horizon AS h WHERE h.horizon < reached;
    FOR portion IN 1 .. 10 LOOP
        DELETE FROM {schema}.change_log AS l
         WHERE l.ctid = ANY (ARRAY(SELECT o.ctid FROM {schema}.change_log AS o
                                    WHERE o.xid < reached ORDER BY o.xid, o.id LIMIT 5000));
        GET DIAGNOSTICS n = ROW_COUNT;
        deleted := deleted + n;
        EXIT WHEN n < 5000 OR clock_timestamp() > begun + bound / 6;
    END LOOP;
    RETURN deleted;
END $body$),

    ('heartbeat', '', '', 'void',
     'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = ''500ms''',
     ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=500ms'], false,
     'Tries the way a change takes: a log row that says nothing, unless the newest is younger than a second, and the bell.',
     $body$
BEGIN
    -- A transaction's own rows need not be the newest by xid: without the second look it could write any number. A row
    -- from the future says that the clock went back.
    IF NOT EXISTS (
        SELECT FROM ((SELECT l.at FROM {schema}.change_log AS l ORDER BY l.xid DESC, l.id DESC LIMIT 1)
                      UNION ALL
                     (SELECT l.at FROM {schema}.change_log AS l WHERE l.xid = pg_current_xact_id_if_assigned()
                       ORDER BY l.xid DESC, l.id DESC LIMIT 1)) AS newest
         WHERE newest.at BETWEEN clock_timestamp() - interval '1 s' AND clock_timestamp())
    THEN
        INSERT INTO {schema}.change_log (xid, table_name, op, keys) VALUES (pg_current_xact_id(), 'heartbeat', 'HEARTBEAT', '{}');
    END IF;
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify({channel}, '');
    ELSE
        RAISE WARNING 'no bell: the notification queue is % %% full', round((100 * pg_notification_queue_usage())::numeric)
            USING HINT = 'Some listener sits in a transaction.';
    END IF;
END $body$),

    ('resync', 'reason text DEFAULT NULL', 'text', 'void',
     'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = ''500ms''',
     ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=500ms'], false,
     'Makes every cache read everything again; the reason is for people.',
     $body$
BEGIN
    INSERT INTO {schema}.change_log (xid, table_name, op, note)
    VALUES (pg_current_xact_id(), 'resync', 'RESYNC', concat_ws(' ', 'ASKED', left(reason, 200)));
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify({channel}, '');
    ELSE
        RAISE WARNING 'no bell: the notification queue is % %% full', round((100 * pg_notification_queue_usage())::numeric)
            USING HINT = 'Some listener sits in a transaction.';
    END IF;
END $body$),

    ('log_change', '', '', 'trigger',
     'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = 0',
     ARRAY['search_path=pg_catalog, pg_temp', 'lock_timeout=0'], false,
     'Trigger: writes one row to the change log for a statement that changed the table named by its argument.',
     $body$
-- Must never make the application's statement fail: whatever can go wrong is caught, except the statement's own
-- cancelling. A block with EXCEPTION is a subtransaction. One that writes gets an xid, and more than 64 xids in one
-- transaction slow down every snapshot of the server; so only a transaction's first log row is written in a block.
DECLARE
    max_keys constant integer := 20000;
    logical  constant text := coalesce(TG_ARGV[0], TG_TABLE_NAME);
    what     text := TG_OP;
    changed  bigint[];
    trouble  text;
    me       text;      -- this transaction
    past     text;      -- how its log rows fared: unknown, '<xid> logged', '<xid> plain' or '<xid> lost'
    plain    boolean := false;
BEGIN
    -- 1. What changed? This block writes nothing, so it has no xid.
    BEGIN
        past := current_setting({state}, true);
        me := pg_current_xact_id_if_assigned()::text;
        IF past = me || ' plain' THEN
            plain := true;
        ELSIF past = me || ' logged' THEN
            -- The second row. Since the first we hold ROW EXCLUSIVE on the log, which keeps DDL away: what could make
            -- one insert fail and not another stays as we find it now.
            SELECT NOT (c.relhastriggers OR c.relhasrules OR c.relrowsecurity) AND c.relchecks = 0 AND c.relnatts = 7
                   AND (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = c.oid) = 1
              INTO plain
              FROM pg_class AS c WHERE c.oid = to_regclass({log});
            IF plain THEN
                PERFORM set_config({state}, me || ' plain', true);
            END IF;
        END IF;
        -- REVOKE and ALTER SCHEMA ... RENAME take no lock on the log.
        plain := coalesce(plain AND has_table_privilege(to_regclass({log}), 'INSERT'), false);

        IF TG_OP = 'TRUNCATE' THEN
            NULL;{branches}
        ELSE
            RAISE EXCEPTION 'no keys are known for % on %', TG_OP, logical;
        END IF;
        IF changed IS NULL AND TG_OP <> 'TRUNCATE' THEN
            RETURN NULL;
        END IF;
        IF cardinality(changed) > max_keys THEN
            changed := NULL;
        END IF;
        IF past = me || ' lost' THEN
            what := 'RESYNC';
            changed := NULL;
            trouble := 'an earlier change of this transaction could not be logged';
        END IF;
    EXCEPTION WHEN OTHERS THEN
        what := 'RESYNC';
        changed := NULL;
        trouble := left(SQLSTATE || ' ' || SQLERRM, 500);
    END;

    -- 2. The log row
    IF plain THEN
        INSERT INTO {schema}.change_log (xid, table_name, op, keys, note)
        VALUES (pg_current_xact_id(), logical, what, changed, trouble);
        RETURN NULL;
    END IF;
    BEGIN
        -- Only DDL on the log can make this wait. Once a row is lost, the transaction's later ones do not wait again.
        PERFORM set_config('lock_timeout', CASE WHEN past = me || ' lost' THEN '1ms' ELSE '500ms' END, true);
        INSERT INTO {schema}.change_log (xid, table_name, op, keys, note)
        VALUES (pg_current_xact_id(), logical, what, changed, trouble);
        PERFORM set_config({state}, pg_current_xact_id()::text || ' logged', true);
    EXCEPTION WHEN OTHERS THEN
        PERFORM set_config({state}, pg_current_xact_id()::text || ' lost', true);
        RAISE LOG 'oddscache: % on % could not be logged: % %', TG_OP, TG_RELID::regclass, SQLSTATE, SQLERRM;
        RETURN NULL;
    END;

    -- 3. The bell: constant, so a transaction rings once. A full notification queue would make COMMIT fail.
    BEGIN
        IF lower(coalesce(current_setting('oddscache.notify', true), '')) NOT IN ('off', 'false', 'no', '0')
           AND pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify({channel}, '');
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE LOG 'oddscache: no bell for %: % %', TG_RELID::regclass, SQLSTATE, SQLERRM;
    END;
    RETURN NULL;
END $body$)
               ) AS v (name, args, types, returns, attributes, config, public, comment, body)
    LOOP
        name := format('%I.%I(%s)', cache, f.name, f.types);
        IF NOT EXISTS (
            SELECT FROM pg_proc AS p
             WHERE p.oid = to_regprocedure(name) AND p.prosrc = f.body AND p.prorettype = f.returns::regtype
               AND p.prosecdef = (f.config IS NOT NULL) AND p.proconfig IS NOT DISTINCT FROM f.config)
        THEN
            EXECUTE format('CREATE OR REPLACE FUNCTION %I.%I(%s) RETURNS %s %s AS %L',
                cache, f.name, f.args, f.returns, f.attributes, f.body);
            EXECUTE format('COMMENT ON FUNCTION %s IS %L', name, f.comment);
            RAISE NOTICE 'created function %', name;
            done := done + 1;
        END IF;
        IF NOT f.public AND has_function_privilege('public', name, 'EXECUTE') THEN
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
        END IF;
    END LOOP;
    PERFORM set_config('oddscache.done', done::text, true);
END $functions$;

-- 4. The triggers
DO $triggers$
DECLARE
    app      constant text := current_setting('oddscache.app_schema');
    cache    constant text := current_setting('oddscache.cache_schema');
    patience constant interval := current_setting('lock_timeout')::interval;
    deadline timestamptz := clock_timestamp() + patience;
    held     timestamptz;
    done     integer := current_setting('oddscache.done');
    prefix   text;
    work     jsonb;
    nodes    regclass[];
    node     regclass;
    w        record;
BEGIN
    -- Names have at most 63 bytes.
    SELECT left(cache, n) INTO prefix FROM generate_series(length(cache), 1, -1) AS n
     WHERE octet_length(left(cache, n)) <= 54 LIMIT 1;

    FOR w IN
        SELECT k.tab, c.oid::regclass AS node
          FROM json_object_keys(current_setting('oddscache.keys')::json) AS k (tab),
               pg_partition_tree(format('%I.%I', app, k.tab)::regclass) AS t, pg_class AS c
         WHERE c.oid = t.relid AND c.relkind = 'f'
    LOOP
        RAISE WARNING 'partition % is a foreign table: it gets no triggers', w.node
            USING HINT = format('Writes that name it, or made on its own server, are missed. Try a write to it through %s: '
                'some servers refuse that while %1$s has transition tables.', w.tab);
    END LOOP;

    -- What is missing or not as it should be. A partition needs triggers of its own for statements that name it.
    SELECT jsonb_agg(to_jsonb(q) ORDER BY q.tab, q.level, q.node::text, q.op), array_agg(DISTINCT q.node)
      INTO work, nodes
      FROM (
        SELECT k.tab, t.level, c.oid::regclass AS node, o.op, o.transition, g.oid IS NOT NULL AS there,
               coalesce(g.tgenabled = 'A', false) AS always,
               coalesce(g.tgfoid = format('%I.log_change()', cache)::regprocedure AND g.tgtype = o.tgtype
                        AND g.tgargs = convert_to(k.tab, 'UTF8') || '\x00' AND g.tgqual IS NULL AND g.tgattr = ''
                        AND g.tgoldtable IS NOT DISTINCT FROM o.old_table
                        AND g.tgnewtable IS NOT DISTINCT FROM o.new_table, false) AS same,
               left(prefix || '_' || lower(o.op), 63) AS name
          FROM json_object_keys(current_setting('oddscache.keys')::json) AS k (tab)
         CROSS JOIN LATERAL (
                SELECT format('%I.%I', app, k.tab)::regclass AS relid, 0 AS level
                 UNION SELECT p.relid, p.level FROM pg_partition_tree(format('%I.%I', app, k.tab)::regclass) AS p) AS t
          JOIN pg_class AS c ON c.oid = t.relid AND c.relkind IN ('r', 'p')
         CROSS JOIN (VALUES
                ('INSERT', 4, NULL, 'new_rows', 'REFERENCING NEW TABLE AS new_rows'),
                ('UPDATE', 16, 'old_rows', 'new_rows', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
                ('DELETE', 8, 'old_rows', NULL, 'REFERENCING OLD TABLE AS old_rows'),
                ('TRUNCATE', 32, NULL, NULL, '')) AS o (op, tgtype, old_table, new_table, transition)
          LEFT JOIN pg_trigger AS g ON g.tgrelid = c.oid AND g.tgname = prefix || '_' || lower(o.op)
      ) AS q
     WHERE NOT (q.same AND q.always);

    -- All locks before the first change. The first may take its time; while some are held the others get 0.7 s together,
    -- and then all are given back: a writer that wants them in another order is let through before the server, after
    -- deadlock_timeout (1 s), would have to choose between it and us.
    WHILE work IS NOT NULL LOOP
        BEGIN
            held := NULL;
            FOREACH node IN ARRAY nodes LOOP
                IF patience > interval '0' THEN
                    PERFORM set_config('lock_timeout', ceil(greatest(1, 1000 * extract(epoch FROM
                        least(deadline, held + interval '0.7 s') - clock_timestamp())))::text, true);
                END IF;
                EXECUTE format('LOCK TABLE ONLY %s IN SHARE ROW EXCLUSIVE MODE', node);
                held := coalesce(held, clock_timestamp());
            END LOOP;
            EXIT;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF clock_timestamp() >= deadline THEN
                RAISE EXCEPTION 'could not lock % within %', node, patience USING ERRCODE = 'lock_not_available',
                    HINT = 'An open transaction is writing to it. Nothing was changed; try again, or wait longer: -v lock_timeout=10s';
            END IF;
        END;
    END LOOP;

    FOR w IN SELECT * FROM jsonb_to_recordset(work) AS q (tab text, node text, op text, transition text, there boolean,
                                                          same boolean, name text)
    LOOP
        IF NOT w.same THEN
            IF w.there THEN
                EXECUTE format('DROP TRIGGER %I ON %s', w.name, w.node);
            END IF;
            EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %I.log_change(%L)',
                w.name, w.op, w.node, w.transition, cache, w.tab);
            EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', w.name, w.node, 'oddscache: writes to the change log.');
        END IF;
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I', w.node, w.name);
        done := done + 1;
    END LOOP;
    FOR w IN SELECT q.node, count(*) AS n FROM jsonb_to_recordset(work) AS q (node text) GROUP BY q.node ORDER BY q.node
    LOOP
        RAISE NOTICE 'put % triggers on %', w.n, w.node;
    END LOOP;
    PERFORM set_config('oddscache.done', done::text, true);
END $triggers$;

SELECT CASE current_setting('oddscache.done') WHEN '0' THEN 'already in place' ELSE 'installed' END AS result,
       current_setting('oddscache.version')::integer AS feed_version, :'app_schema' AS app_schema, :'cache_schema' AS cache_schema, :'channel' AS channel,
       (SELECT count(*) FROM pg_trigger AS g WHERE g.tgfoid = format('%I.log_change()', :'cache_schema')::regprocedure)
           AS triggers;
COMMIT;
