-- install.sql: installs the change feed, through which oddscache learns of every change to six tables.
--
-- What     A schema with the change log, five functions, and AFTER ... FOR EACH STATEMENT triggers on six tables, on
--          their partitions, and on the tables that inherit from them. README.md explains each. check.sql reports on
--          them.
-- Who      The owner of the six tables, with CREATE on the database. A superuser can run it, too, but then the trigger
--          function runs with the superuser's rights.
-- Run      psql -X -v ON_ERROR_STOP=1 -f install.sql
--          Any other client will do: this file is one statement. It has no BEGIN or COMMIT, so it can be part of a
--          transaction or of a migration. The transaction must be READ COMMITTED.
-- Names    Edit the settings below, or let the program fill them in:
--          oddscache sql install --app-schema x --cache-schema y --channel z
-- Locks    SHARE ROW EXCLUSIVE on each table that lacks a trigger, until the transaction ends. Writers of the table
--          wait meanwhile, readers do not. While this script waits for a writer, later writers wait behind it, for at
--          most `lock_timeout`. After that the script fails with 55P03 and has changed nothing. Run it again.
-- Again    If everything is in place, the script changes nothing and locks no table. Otherwise it repairs the feed,
--          gives new partitions their triggers, and upgrades an older feed. It refuses to touch a newer one.
-- Undo     uninstall.sql
-- Refuses  PostgreSQL 13 and older; tables without the columns it needs; a database with a logical replication
--          subscriber that would stop at the feed's tables, unless `subscribers` is 'ready'.
DO $install$
<<install>>
DECLARE
    app_schema constant pg_catalog.text := 'public';  -- the schema of the six tables
    lock_timeout constant pg_catalog.text := '2s';  -- how long to wait for locks; 0 waits for ever
    subscribers constant pg_catalog.text := 'unknown';  -- 'ready': every logical subscriber has the feed's tables
    -- The functions below contain these two names, too. So do not edit them here: let the program fill in every place.
    cache_schema constant pg_catalog.text := 'oddscache';  -- the schema of the feed
    channel constant pg_catalog.text := 'oddscache';  -- the channel of its notifications

    version constant integer := 3;
    -- The six tables, and of each the column whose values the change log records.
    tables constant pg_catalog.json := '{"events": "id", "competitor_events": "betpawa_event_id",
        "odds_snapshots": "event_id", "competitor_odds_snapshots": "competitor_event_id",
        "market_odds": "snapshot_id", "competitor_market_odds": "snapshot_id"}';
    server constant integer := pg_catalog.current_setting('server_version_num');
    -- The caller's settings. The last statement restores them.
    settings constant pg_catalog.jsonb := pg_catalog.jsonb_build_object(
        'search_path', pg_catalog.current_setting('search_path'),
        'lock_timeout', pg_catalog.current_setting('lock_timeout'),
        'client_min_messages', pg_catalog.current_setting('client_min_messages'),
        'default_table_access_method', pg_catalog.current_setting('default_table_access_method'),
        'exit_on_error', pg_catalog.current_setting('exit_on_error'),
        'quote_all_identifiers', pg_catalog.current_setting('quote_all_identifiers'));
    done     integer := 0;  -- changes made
    problem  pg_catalog.text;
    hint     pg_catalog.text;
    prefix   pg_catalog.text;
    present  integer;  -- the version that is installed
    gone     bigint;
    marks    bigint;
    family   pg_catalog.jsonb;  -- the six tables with everything below them
    before   pg_catalog.jsonb;
    work     pg_catalog.jsonb;
    outside  pg_catalog.jsonb;
    nodes    pg_catalog.regclass[];
    node     pg_catalog.regclass;
    patience interval;
    deadline timestamp with time zone;
    held     timestamp with time zone;
    w        pg_catalog.record;
BEGIN
    -- Every name above this line is qualified, because the caller's search_path may find another role's objects first.
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('client_min_messages', 'notice', true), set_config('exit_on_error', 'off', true),
        set_config('quote_all_identifiers', 'off', true), set_config('default_table_access_method', 'heap', true);

    -- In a stricter isolation level this transaction would not see what a concurrent run has committed.
    IF current_setting('transaction_isolation') <> 'read committed'
       OR current_setting('transaction_read_only') = 'on' THEN
        RAISE EXCEPTION 'install.sql needs a READ COMMITTED, READ WRITE transaction; this one is %, READ %',
                upper(current_setting('transaction_isolation')),
                CASE current_setting('transaction_read_only') WHEN 'on' THEN 'ONLY' ELSE 'WRITE' END
            USING ERRCODE = 'invalid_transaction_state', HINT = CASE WHEN pg_is_in_recovery()
                THEN 'This server is a standby. Run the script on its primary.'
                ELSE 'BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE, or before it: SET default_transaction_read_only '
                    '= off; SET default_transaction_isolation = ''read committed'';' END;
    END IF;
    -- Concurrent runs wait here for each other, before lock_timeout applies.
    PERFORM pg_advisory_xact_lock(hashtextextended('oddscache install', 0));
    PERFORM set_config('lock_timeout', lock_timeout, true);
    patience := current_setting('lock_timeout');
    deadline := clock_timestamp() + patience;

    -- 1. The server and the tables
    IF server < 140000 THEN
        RAISE EXCEPTION 'the server is PostgreSQL %; the feed needs PostgreSQL 14 or newer',
            current_setting('server_version')
            USING ERRCODE = 'feature_not_supported', HINT = 'Upgrade the server.';
    ELSIF server >= 190000 THEN
        RAISE WARNING 'the server is PostgreSQL %; this script was tested with PostgreSQL 14 to 18',
            current_setting('server_version')
            USING HINT = 'Look for a newer version of this script. Run check.sql after this script.';
    END IF;
    IF octet_length(cache_schema) NOT BETWEEN 1 AND 63 OR left(cache_schema, 3) = 'pg_'
       OR cache_schema = app_schema THEN
        RAISE EXCEPTION 'cache_schema % cannot be used', quote_literal(cache_schema)
            USING ERRCODE = 'invalid_schema_name',
            HINT = 'Choose a schema for the feed alone. Its name has 1 to 63 bytes and does not begin with pg_. It is '
                'not the application''s schema.';
    END IF;
    IF octet_length(channel) NOT BETWEEN 1 AND 63 THEN
        RAISE EXCEPTION 'channel % cannot be used', quote_literal(channel) USING ERRCODE = 'invalid_name',
            HINT = 'The name of a notification channel has 1 to 63 bytes.';
    END IF;
    IF (parse_ident('oddscache.change_log'))[1] <> cache_schema
       OR strpos($function$pg_notify('oddscache', $function$, quote_literal(channel)) = 0 THEN
        RAISE EXCEPTION 'the functions in this script name another schema or channel than % and %',
                quote_ident(cache_schema), quote_ident(channel) USING ERRCODE = 'invalid_name',
            HINT = 'Let the program fill in both names: oddscache sql install --cache-schema ... --channel ...';
    END IF;
    IF to_regnamespace(quote_ident(app_schema)) IS NULL THEN
        RAISE EXCEPTION 'schema % does not exist', quote_ident(app_schema) USING ERRCODE = 'invalid_schema_name',
            HINT = 'Name the application''s schema: oddscache sql install --app-schema ..., or the setting app_schema '
                'in the script.';
    END IF;
    SELECT string_agg(format('%I.%I %s', app_schema, k.tab,
               CASE WHEN c.oid IS NULL THEN 'is missing'
                    WHEN c.relkind NOT IN ('r', 'p') THEN 'is not a table'
                    WHEN a.attname IS NULL THEN format('has no column %I', k.col)
                    WHEN a.attgenerated = 'v' THEN format('has the virtual generated column %I, which triggers cannot '
                        'see: make it a stored one', k.col)
                    ELSE format('has column %I of type %s, not an integer', k.col, format_type(a.atttypid, a.atttypmod))
               END), '; ')
      INTO problem
      FROM json_each_text(tables) AS k (tab, col)
      LEFT JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app_schema, k.tab))
      LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = k.col AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.oid IS NULL OR c.relkind NOT IN ('r', 'p') OR a.attname IS NULL OR a.attgenerated = 'v'
        OR a.atttypid NOT IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'undefined_object',
            HINT = 'If the tables are in another schema, name it: oddscache sql install --app-schema ..., or the '
                'setting app_schema in the script.';
    END IF;
    -- A temporary child belongs to one session, and no other session can read its rows.
    WITH RECURSIVE node AS (
        SELECT k.tab, to_regclass(format('%I.%I', app_schema, k.tab))::oid AS oid, 0 AS level
          FROM json_object_keys(tables) AS k (tab)
         UNION SELECT n.tab, i.inhrelid, n.level + 1
          FROM node AS n JOIN pg_inherits AS i ON i.inhparent = n.oid JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE c.relpersistence <> 't'
    )
    SELECT jsonb_agg(to_jsonb(q)) INTO family
      FROM (SELECT n.tab, n.oid, max(n.level) AS level, c.relkind
              FROM node AS n JOIN pg_class AS c ON c.oid = n.oid GROUP BY n.tab, n.oid, c.relkind) AS q;
    SELECT string_agg(format('%s inherits from %s', q.node, q.tabs), '; ') INTO problem
      FROM (SELECT n.oid::regclass AS node, string_agg(n.tab, ' and ' ORDER BY n.tab) AS tabs
              FROM jsonb_to_recordset(family) AS n (tab text, oid oid) GROUP BY n.oid HAVING count(*) > 1) AS q;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'feature_not_supported',
            HINT = 'A trigger can log a change of one table only. Let each table inherit from only one of the six.';
    END IF;
    SELECT string_agg(format('%s belongs to %s', c.oid::regclass, c.relowner::regrole), ', ' ORDER BY c.relname)
        INTO problem
      FROM jsonb_to_recordset(family) AS n (oid oid) JOIN pg_class AS c ON c.oid = n.oid
     WHERE c.relkind IN ('r', 'p') AND NOT pg_has_role(c.relowner, 'USAGE');
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'insufficient_privilege',
            HINT = 'Only its owner may put triggers on a table. Run this script as a member of the owner''s role or as '
                'a superuser, or give the table to the owner of the others: ALTER TABLE ... OWNER TO ...';
    END IF;

    -- A publication FOR ALL TABLES publishes the feed's tables. A subscriber that lacks them stops at the first change.
    SELECT string_agg(quote_ident(p.pubname), ', ' ORDER BY p.pubname) INTO problem
      FROM pg_publication AS p
     WHERE p.puballtables AND to_regclass(format('%I.change_log', cache_schema)) IS NULL;
    IF problem IS NOT NULL AND subscribers <> 'ready' THEN
        hint := format('Before you run this script, run on each subscriber: CREATE SCHEMA %1$I; CREATE TABLE '
            '%1$I.change_log (xid xid8, id bigint, table_name text, op text, keys bigint[], note text, at timestamptz, '
            'PRIMARY KEY (xid, id)); CREATE TABLE %1$I.log_state (one boolean PRIMARY KEY, pruned_below xid8, '
            'app_schema text, channel text, pruned_at timestamptz); then oddscache sql install --subscribers-ready, '
            'or this script with the setting subscribers. Or replace the publication by one that names tables or, '
            'since PostgreSQL 15, schemas, and let the subscribers use it. Other consumers, such as Debezium, see two '
            'more tables.', cache_schema);
        -- The server shows a slot's consumer only while it is connected. Debezium ignores tables that it does not know.
        IF EXISTS (SELECT FROM pg_replication_slots AS s LEFT JOIN pg_stat_activity AS a ON a.pid = s.active_pid
                    WHERE s.database = current_database() AND s.plugin = 'pgoutput'
                      AND coalesce(a.application_name, '') NOT ILIKE 'debezium%') THEN
            RAISE EXCEPTION 'publication % is FOR ALL TABLES, and this database has a replication slot: a subscriber '
                'that lacks the feed''s tables would stop for good', problem
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = hint;
        END IF;
        RAISE WARNING 'publication % is FOR ALL TABLES: it publishes change_log and log_state, too. A native '
            'subscriber that lacks them stops at the first change', problem USING HINT = hint;
    END IF;

    SELECT string_agg(q.text, ', ') INTO problem
      FROM (SELECT format('%s for this session', current_setting('temp_file_limit')) AS text
             WHERE current_setting('temp_file_limit') <> '-1'
             UNION ALL
            SELECT format('%s for %s', split_part(c.setting, '=', 2),
                          CASE s.setrole WHEN 0 THEN 'all roles' ELSE s.setrole::regrole::text END)
              FROM pg_db_role_setting AS s
             CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
             WHERE split_part(c.setting, '=', 1) = 'temp_file_limit' AND c.setting <> 'temp_file_limit=-1'
               AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database AS d
                   WHERE d.datname = current_database()))) AS q;
    IF problem IS NOT NULL THEN
        RAISE WARNING 'temp_file_limit is %: a statement that changes many rows of these tables can fail (53400)',
            problem
            USING HINT = 'The server keeps the changed rows for the triggers, of an UPDATE both the old and the new '
                'ones. Beyond work_mem it writes them to temporary files, which this limit counts. Raise the limit or '
                'work_mem for the roles that change many rows at once.';
    END IF;

    -- 2. The schema and the log

    -- The rest of this script runs code of existing objects with the caller's rights: feed_version(), and triggers of
    -- log_state. Any role with CREATE on the database could have made them. So refuse objects of other roles.
    SELECT string_agg(format('%s belongs to %s', o.name, o.owner::regrole), ', ') INTO problem
      FROM (SELECT 'schema ' || quote_ident(cache_schema) AS name, n.nspowner AS owner
              FROM pg_namespace AS n WHERE n.nspname = cache_schema
             UNION ALL
            SELECT c.oid::regclass::text, c.relowner FROM pg_class AS c
             WHERE c.relnamespace = to_regnamespace(quote_ident(cache_schema))
               AND c.relname IN ('change_log', 'log_state', 'log_horizon')
             UNION ALL
            SELECT p.oid::regprocedure::text, p.proowner FROM pg_proc AS p
             WHERE p.pronamespace = to_regnamespace(quote_ident(cache_schema))
               AND p.proname IN ('feed_version', 'prune', 'heartbeat', 'resync', 'log_change')) AS o
     WHERE o.owner NOT IN (SELECT x.oid FROM pg_roles AS x WHERE x.rolsuper OR x.rolname = current_user)
       AND o.owner NOT IN (SELECT c.relowner FROM json_object_keys(tables) AS k (tab)
                             JOIN pg_class AS c ON c.oid = to_regclass(format('%I.%I', app_schema, k.tab)))
       AND (current_setting('is_superuser')::boolean OR NOT pg_has_role(o.owner, 'MEMBER'));
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'insufficient_privilege',
            HINT = 'That role is neither you nor the owner of the tables. Find out who made the object and drop it, or '
                'choose another schema: oddscache sql install --cache-schema ...';
    END IF;
    IF to_regprocedure(format('%I.feed_version()', cache_schema)) IS NOT NULL THEN
        present := oddscache.feed_version();
        IF present > version THEN
            RAISE EXCEPTION 'the feed in schema % has version %, and this script has version %',
                quote_ident(cache_schema), present, version
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'Use the install.sql of that version; to go back, run its uninstall.sql first.';
        END IF;
    END IF;

    IF to_regnamespace(quote_ident(cache_schema)) IS NULL THEN
        CREATE SCHEMA oddscache;
        COMMENT ON SCHEMA oddscache IS
            'oddscache: the change feed of the odds tables. Made by install.sql, removed by uninstall.sql.';
        RAISE NOTICE 'created schema %', quote_ident(cache_schema);
        done := done + 1;
    ELSIF has_schema_privilege('public', quote_ident(cache_schema)::regnamespace, 'CREATE') THEN
        REVOKE CREATE ON SCHEMA oddscache FROM PUBLIC;
        RAISE NOTICE 'revoked CREATE on schema % from PUBLIC', quote_ident(cache_schema);
        done := done + 1;
    END IF;

    IF to_regclass(format('%I.change_log', cache_schema)) IS NULL THEN
        -- vacuum_truncate is off, because a truncation locks the log exclusively and so stops every writer.
        -- The id is a position in the write-ahead log, which no two rows of one transaction share. A sequence would
        -- change lastval() in the application's session.
        CREATE TABLE oddscache.change_log (
            xid xid8 NOT NULL,
            id bigint NOT NULL DEFAULT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn),
            table_name text NOT NULL,
            op text NOT NULL,
            keys bigint[],
            note text,
            at timestamptz NOT NULL DEFAULT clock_timestamp(),
            PRIMARY KEY (xid, id)
        ) WITH (vacuum_truncate = off, toast.vacuum_truncate = off);
        -- Compressing 8 kB of keys costs three times as much as writing them.
        ALTER TABLE oddscache.change_log ALTER COLUMN keys SET STORAGE EXTERNAL;
        RAISE NOTICE 'created table %.change_log', quote_ident(cache_schema);
        done := done + 1;
    ELSE
        SELECT string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
            INTO problem
          FROM pg_attribute AS a
         WHERE a.attrelid = to_regclass(format('%I.change_log', cache_schema)) AND a.attnum > 0 AND NOT a.attisdropped;
        IF problem <> 'xid xid8, id bigint, table_name text, op text, keys bigint[], note text, '
                'at timestamp with time zone' THEN
            RAISE EXCEPTION '%.change_log exists and is not the change log of feed version % (it has %)',
                    quote_ident(cache_schema), version, problem
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'Run uninstall.sql first, or choose another schema: oddscache sql install --cache-schema '
                        '...';
        END IF;
    END IF;

    IF to_regclass(format('%I.log_state', cache_schema)) IS NULL THEN
        CREATE TABLE oddscache.log_state (
            one boolean PRIMARY KEY DEFAULT true CHECK (one),
            pruned_below xid8 NOT NULL,
            app_schema text NOT NULL,
            channel text NOT NULL,
            pruned_at timestamptz
        );
        RAISE NOTICE 'created table %.log_state', quote_ident(cache_schema);
        done := done + 1;
    ELSIF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass(format('%I.log_state', cache_schema))
                         AND a.attname = 'pruned_at' AND NOT a.attisdropped) THEN
        -- Version 1 had no such column.
        ALTER TABLE oddscache.log_state ADD COLUMN pruned_at timestamptz;
        RAISE NOTICE 'added column %.log_state.pruned_at', quote_ident(cache_schema);
        done := done + 1;
    END IF;
    INSERT INTO oddscache.log_state (pruned_below, app_schema, channel)
    SELECT pg_snapshot_xmin(pg_current_snapshot()), install.app_schema, install.channel
     WHERE NOT EXISTS (SELECT FROM oddscache.log_state);
    SELECT s.app_schema INTO problem FROM oddscache.log_state AS s;
    IF problem <> install.app_schema THEN
        RAISE EXCEPTION 'the feed in schema % serves the tables in %, not in %',
                quote_ident(cache_schema), quote_ident(problem), quote_ident(install.app_schema)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Run uninstall.sql first, or install a second feed: oddscache sql install --cache-schema ...';
    END IF;
    UPDATE oddscache.log_state AS s SET channel = install.channel WHERE s.channel <> install.channel;
    IF FOUND THEN
        RAISE NOTICE 'changed the channel to %', quote_ident(install.channel);
        done := done + 1;
    END IF;

    -- The table is UNLOGGED, because a publication FOR ALL TABLES leaves unlogged tables out. A logged table without a
    -- key would refuse DELETE in such a publication. After a crash the table is empty, and prune() fills it again.
    IF to_regclass(format('%I.log_horizon', cache_schema)) IS NULL THEN
        CREATE UNLOGGED TABLE oddscache.log_horizon (horizon xid8 NOT NULL, at timestamptz NOT NULL);
        -- prune() runs as the owner of the other tables. Another role may be running this script.
        EXECUTE format('ALTER TABLE %I.log_horizon OWNER TO %s', cache_schema, (SELECT c.relowner::regrole
              FROM pg_class AS c WHERE c.oid = to_regclass(format('%I.change_log', cache_schema))));
        RAISE NOTICE 'created table %.log_horizon', quote_ident(cache_schema);
        done := done + 1;
    ELSIF (SELECT c.relpersistence <> 'u' FROM pg_class AS c
            WHERE c.oid = to_regclass(format('%I.log_horizon', cache_schema))) THEN
        ALTER TABLE oddscache.log_horizon SET UNLOGGED;
        RAISE NOTICE 'made table %.log_horizon UNLOGGED', quote_ident(cache_schema);
        done := done + 1;
    END IF;

    -- A log restored from a dump has another cluster's transaction ids. In this cluster they lie in the future.
    DELETE FROM oddscache.change_log AS l WHERE l.xid >= pg_snapshot_xmax(pg_current_snapshot());
    GET DIAGNOSTICS gone = ROW_COUNT;
    DELETE FROM oddscache.log_horizon AS h WHERE h.horizon > pg_snapshot_xmax(pg_current_snapshot());
    UPDATE oddscache.log_state AS s SET pruned_below = pg_snapshot_xmin(pg_current_snapshot())
     WHERE s.pruned_below > pg_snapshot_xmax(pg_current_snapshot());
    GET DIAGNOSTICS marks = ROW_COUNT;
    IF gone + marks > 0 THEN
        RAISE NOTICE 'discarded the log of another cluster (% rows)', gone;
        done := done + 1;
    END IF;

    SELECT string_agg(c.oid::regclass::text, ', ') INTO problem
      FROM pg_class AS c
     WHERE c.relnamespace = to_regnamespace(quote_ident(cache_schema))
         AND c.relname IN ('change_log', 'log_state', 'log_horizon')
       AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');
    IF problem IS NOT NULL THEN
        REVOKE ALL ON TABLE oddscache.change_log, oddscache.log_state, oddscache.log_horizon FROM PUBLIC;
        RAISE NOTICE 'revoked all on % from PUBLIC', problem;
        done := done + 1;
    END IF;

    -- 3. The functions, and the comments on everything
    SELECT coalesce(jsonb_object_agg(p.oid::regprocedure, to_jsonb(p)), '{}') INTO before
      FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace(quote_ident(cache_schema));
    BEGIN
        CREATE OR REPLACE FUNCTION oddscache.feed_version() RETURNS integer
            LANGUAGE sql IMMUTABLE PARALLEL SAFE
            AS $function$SELECT 3$function$;

        CREATE OR REPLACE FUNCTION oddscache.prune(keep interval DEFAULT '1 hour') RETURNS bigint
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms'
            AS $function$
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
    -- One session prunes at a time. A second one finds the row locked and leaves the work to the first. An advisory
    -- lock would not do, because any role can hold one for ever. Locking this row needs a right on the table.
    PERFORM FROM oddscache.log_state FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- While the calling session stays in its transaction, it keeps the row locked, and nobody else can prune. These
    -- settings make the server end such a session. They last until the end of the transaction, not of this function.
    -- statement_timeout bounds later statements, not the one that is calling this function.
    FOREACH setting IN ARRAY ARRAY['idle_in_transaction_session_timeout', 'statement_timeout'] LOOP
        IF current_setting(setting)::interval NOT BETWEEN interval '1 ms' AND bound THEN
            PERFORM set_config(setting, greatest(1, ceil(1000 * extract(epoch FROM bound)))::text, true);
        END IF;
    END LOOP;
    -- All transactions below the horizon have ended. The time of a row proves nothing, because a long transaction
    -- commits old rows late.
    INSERT INTO oddscache.log_horizon (horizon, at)
    SELECT pg_snapshot_xmin(pg_current_snapshot()), clock_timestamp()
     WHERE NOT EXISTS (SELECT FROM oddscache.log_horizon AS h
                        WHERE h.horizon >= pg_snapshot_xmin(pg_current_snapshot()));
    SELECT h.horizon INTO reached
      FROM oddscache.log_horizon AS h WHERE h.at <= clock_timestamp() - keep ORDER BY h.horizon DESC LIMIT 1;
    -- Rows above pruned_below must never be deleted. Rows below it may stay until a later call.
    UPDATE oddscache.log_state AS s SET pruned_at = begun, pruned_below = greatest(s.pruned_below, reached);
    IF reached IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM oddscache.log_horizon AS h WHERE h.horizon < reached;
    FOR portion IN 1 .. 10 LOOP
        DELETE FROM oddscache.change_log AS l
         WHERE l.ctid = ANY (ARRAY(SELECT o.ctid FROM oddscache.change_log AS o
                                    WHERE o.xid < reached ORDER BY o.xid, o.id LIMIT 5000));
        GET DIAGNOSTICS n = ROW_COUNT;
        deleted := deleted + n;
        EXIT WHEN n < 5000 OR clock_timestamp() > begun + bound / 6;
    END LOOP;
    RETURN deleted;
END $function$;

        CREATE OR REPLACE FUNCTION oddscache.heartbeat() RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms'
            AS $function$
BEGIN
    -- The second query looks for rows of this transaction, which need not have the greatest xid. Without it one
    -- transaction could write any number of rows. A row from the future does not count: the clock went back.
    IF NOT EXISTS (
        SELECT FROM ((SELECT l.at FROM oddscache.change_log AS l ORDER BY l.xid DESC, l.id DESC LIMIT 1)
                      UNION ALL
                     (SELECT l.at FROM oddscache.change_log AS l WHERE l.xid = pg_current_xact_id_if_assigned()
                       ORDER BY l.xid DESC, l.id DESC LIMIT 1)) AS newest
         WHERE newest.at BETWEEN clock_timestamp() - interval '1 s' AND clock_timestamp())
    THEN
        INSERT INTO oddscache.change_log (xid, table_name, op, keys)
        VALUES (pg_current_xact_id(), 'heartbeat', 'HEARTBEAT', '{}');
    END IF;
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('oddscache', '');
    ELSE
        RAISE WARNING 'no notification: the notification queue is % %% full',
            round((100 * pg_notification_queue_usage())::numeric)
            USING HINT = 'Some listener sits in a transaction.';
    END IF;
END $function$;

        CREATE OR REPLACE FUNCTION oddscache.resync(reason text DEFAULT NULL) RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms'
            AS $function$
BEGIN
    INSERT INTO oddscache.change_log (xid, table_name, op, note)
    VALUES (pg_current_xact_id(), 'resync', 'RESYNC', concat_ws(' ', 'ASKED', left(reason, 200)));
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('oddscache', '');
    ELSE
        RAISE WARNING 'no notification: the notification queue is % %% full',
            round((100 * pg_notification_queue_usage())::numeric)
            USING HINT = 'Some listener sits in a transaction.';
    END IF;
END $function$;

        CREATE OR REPLACE FUNCTION oddscache.log_change() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' SET exit_on_error = off
            AS $function$
-- This function must never make the application's statement fail. It catches every error except the cancelling of the
-- statement. A block with EXCEPTION is a subtransaction. A subtransaction that writes gets an xid. More than 64 xids in
-- one transaction slow down every snapshot of the server. So only the first four log rows of a transaction are written
-- in such a block. Each expression costs about a microsecond, so there are few of them.
DECLARE
    changed bigint[];   -- the keys; null: the whole table
    blocks  text;       -- if set: 'changed' lists blocks of keys
    trouble text;       -- if set: everything must be read again, for this reason
    past    text;       -- earlier log rows of the transaction: null (none), '1' to '4' (in blocks), 'plain' or 'lost'
    plain   boolean;    -- write without a block
BEGIN
    -- 1. What changed. This block writes nothing, so it gets no xid.
    BEGIN
        past := CASE WHEN split_part(current_setting('oddscache.log_oddscache', true), ' ', 1)
                          = pg_current_xact_id_if_assigned()::text
                     THEN split_part(current_setting('oddscache.log_oddscache', true), ' ', 2) END;
        IF past IN ('4', 'plain') THEN
            IF past = '4' THEN
                -- This is the fifth row. Since the first one the transaction holds ROW EXCLUSIVE on the log, so no DDL
                -- can change it. So what this query finds stays true for the later inserts.
                SELECT NOT (c.relhastriggers OR c.relhasrules OR c.relrowsecurity) AND c.relchecks = 0
                       AND c.relnatts = 7 AND c.relpersistence = 'p'
                       AND (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = c.oid) = 1
                  INTO plain
                  FROM pg_class AS c WHERE c.oid = to_regclass('oddscache.change_log');
                IF plain THEN
                    PERFORM set_config('oddscache.log_oddscache', pg_current_xact_id()::text || ' plain', true);
                END IF;
            END IF;
            -- REVOKE and ALTER SCHEMA ... RENAME take no lock on the log, so check their effect each time. After that
            -- a row can wait for nothing but the disk.
            plain := coalesce(coalesce(plain, past = 'plain')
                AND has_table_privilege(to_regclass('oddscache.change_log'), 'INSERT'), false);
        END IF;

        -- plpgsql plans a query only when it first reaches it. Each branch that is tested and not taken costs almost a
        -- microsecond, so the busiest tables come first.
        CASE TG_ARGV[0]
        WHEN 'market_odds' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.snapshot_id::bigint FROM new_rows AS n
                                 WHERE n.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.snapshot_id::bigint FROM new_rows AS n WHERE n.snapshot_id IS NOT NULL
                           UNION SELECT o.snapshot_id::bigint FROM old_rows AS o
                                 WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.snapshot_id::bigint FROM old_rows AS o
                                 WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN 'odds_snapshots' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.event_id::bigint FROM new_rows AS n
                                 WHERE n.event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.event_id::bigint FROM new_rows AS n WHERE n.event_id IS NOT NULL
                           UNION SELECT o.event_id::bigint FROM old_rows AS o
                                 WHERE o.event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.event_id::bigint FROM old_rows AS o
                                 WHERE o.event_id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN 'competitor_market_odds' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.snapshot_id::bigint FROM new_rows AS n
                                 WHERE n.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.snapshot_id::bigint FROM new_rows AS n WHERE n.snapshot_id IS NOT NULL
                           UNION SELECT o.snapshot_id::bigint FROM old_rows AS o
                                 WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.snapshot_id::bigint FROM old_rows AS o
                                 WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN 'competitor_odds_snapshots' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.competitor_event_id::bigint FROM new_rows AS n
                                 WHERE n.competitor_event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.competitor_event_id::bigint FROM new_rows AS n
                                  WHERE n.competitor_event_id IS NOT NULL
                           UNION SELECT o.competitor_event_id::bigint FROM old_rows AS o
                                 WHERE o.competitor_event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.competitor_event_id::bigint FROM old_rows AS o
                                 WHERE o.competitor_event_id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN 'events' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.id::bigint FROM new_rows AS n
                                 WHERE n.id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.id::bigint FROM new_rows AS n WHERE n.id IS NOT NULL
                           UNION SELECT o.id::bigint FROM old_rows AS o WHERE o.id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.id::bigint FROM old_rows AS o
                                 WHERE o.id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN 'competitor_events' THEN
            IF TG_OP = 'INSERT' THEN
                changed := ARRAY(SELECT DISTINCT n.betpawa_event_id::bigint FROM new_rows AS n
                                 WHERE n.betpawa_event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'UPDATE' THEN
                changed := ARRAY(SELECT n.betpawa_event_id::bigint FROM new_rows AS n
                                  WHERE n.betpawa_event_id IS NOT NULL
                           UNION SELECT o.betpawa_event_id::bigint FROM old_rows AS o
                                 WHERE o.betpawa_event_id IS NOT NULL LIMIT 20000 + 1);
            ELSIF TG_OP = 'DELETE' THEN
                changed := ARRAY(SELECT DISTINCT o.betpawa_event_id::bigint FROM old_rows AS o
                                 WHERE o.betpawa_event_id IS NOT NULL LIMIT 20000 + 1);
            END IF;
        WHEN '*' THEN
            -- There is a foreign table below this one, so the server collects no rows for its triggers.
            NULL;
        ELSE
            RAISE EXCEPTION 'no keys are known for % on %', TG_OP, TG_ARGV[0];
        END CASE;
        IF changed = '{}' THEN
            RETURN NULL;
        ELSIF cardinality(changed) > 20000 THEN
            -- Too many to list. Snapshots are listed by blocks of 1,024 ids, anything else counts as the whole table.
            IF TG_ARGV[0] IN ('market_odds', 'competitor_market_odds') THEN
                blocks := 'BLOCKS';
                IF TG_OP = 'INSERT' THEN
                    changed := ARRAY(SELECT DISTINCT n.snapshot_id::bigint >> 10 FROM new_rows AS n
                                     WHERE n.snapshot_id IS NOT NULL LIMIT 20000 + 1);
                ELSIF TG_OP = 'UPDATE' THEN
                    changed := ARRAY(SELECT n.snapshot_id::bigint >> 10 FROM new_rows AS n
                                      WHERE n.snapshot_id IS NOT NULL
                               UNION SELECT o.snapshot_id::bigint >> 10 FROM old_rows AS o
                                     WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
                ELSE
                    changed := ARRAY(SELECT DISTINCT o.snapshot_id::bigint >> 10 FROM old_rows AS o
                                     WHERE o.snapshot_id IS NOT NULL LIMIT 20000 + 1);
                END IF;
            END IF;
            IF cardinality(changed) > 20000 THEN
                changed := NULL;
                blocks := NULL;
            END IF;
        END IF;
        IF past = 'lost' THEN
            trouble := 'an earlier change of this transaction could not be logged';
        END IF;
    EXCEPTION WHEN OTHERS THEN
        trouble := left(SQLSTATE || ' ' || SQLERRM, 500);
    END;

    -- 2. The log row
    -- Settings are set outside of the block, because an error in a block undoes them.
    IF plain THEN
        PERFORM set_config('lock_timeout', '0', true);
        INSERT INTO oddscache.change_log (xid, table_name, op, keys, note)
        VALUES (pg_current_xact_id(), coalesce(TG_ARGV[1], TG_ARGV[0], TG_TABLE_NAME),
                CASE WHEN trouble IS NULL THEN TG_OP ELSE 'RESYNC' END,
                CASE WHEN trouble IS NULL THEN changed END, coalesce(trouble, blocks));
        RETURN NULL;
    ELSIF past = 'lost' THEN
        -- The transaction has waited for the log once already.
        PERFORM set_config('lock_timeout', '1ms', true);
    END IF;
    BEGIN
        -- Only DDL on the log can make this wait, for this function's lock_timeout at most.
        INSERT INTO oddscache.change_log (xid, table_name, op, keys, note)
        VALUES (pg_current_xact_id(), coalesce(TG_ARGV[1], TG_ARGV[0], TG_TABLE_NAME),
                CASE WHEN trouble IS NULL THEN TG_OP ELSE 'RESYNC' END,
                CASE WHEN trouble IS NULL THEN changed END, coalesce(trouble, blocks));
        PERFORM set_config('oddscache.log_oddscache', pg_current_xact_id()::text
            || CASE past WHEN '1' THEN ' 2' WHEN '2' THEN ' 3' WHEN '3' THEN ' 4' WHEN '4' THEN ' 4' ELSE ' 1' END,
            true);
    EXCEPTION WHEN OTHERS THEN
        -- This calls some of the same functions. If the right to call one of them is missing, this fails as well.
        BEGIN
            PERFORM set_config('oddscache.log_oddscache', pg_current_xact_id()::text || ' lost', true);
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
        RAISE LOG 'oddscache: % on % could not be logged: % %', TG_OP, TG_RELID::regclass, SQLSTATE, SQLERRM;
        RETURN NULL;
    END;
    IF past <> 'lost' THEN
        RETURN NULL;
    END IF;

    -- 3. The notification. A transaction sends one, with its first log row.
    -- Transactions that notify commit one at a time, in the whole cluster. So a transaction notifies only if a listener
    -- waits. A listener that waits holds the advisory lock in share mode. A transaction that can take the lock
    -- exclusively knows that nobody waits, and gives the lock back at once. Nothing can fail in between. Two writers
    -- that try at the same moment may both notify without need.
    -- The transaction looks after its log row has given it an xid. So a listener that begins to wait knows which
    -- transactions may have looked too early (src/follow/schedule/polling.rs), and each needs to look only once.
    -- COMMIT would fail if the notification queue were full. So nothing is sent when it is half full.
    BEGIN
        IF lower(coalesce(current_setting('oddscache.notify', true), '')) NOT IN ('off', 'false', 'no', '0')
           AND (CASE WHEN pg_try_advisory_lock(hashtextextended('oddscache listener oddscache', 0))
                     THEN NOT pg_advisory_unlock(hashtextextended('oddscache listener oddscache', 0)) ELSE true END)
           AND pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('oddscache', '');
        END IF;
    EXCEPTION WHEN insufficient_resources THEN
        -- The server's lock table is full. A notification needs a place in it at COMMIT, so COMMIT would fail.
        RAISE LOG 'oddscache: no notification for %: % %', TG_RELID::regclass, SQLSTATE, SQLERRM;
    WHEN OTHERS THEN
        -- The look failed for another reason. Notify, as if a listener waited.
        BEGIN
            IF pg_notification_queue_usage() < 0.5 THEN
                PERFORM pg_notify('oddscache', '');
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE LOG 'oddscache: no notification for %: % %', TG_RELID::regclass, SQLSTATE, SQLERRM;
        END;
    END;
    RETURN NULL;
END $function$;

        REVOKE ALL ON FUNCTION oddscache.prune(interval), oddscache.heartbeat(), oddscache.resync(text),
            oddscache.log_change() FROM PUBLIC;

        gone := done;
        FOR w IN
            SELECT p.oid::regprocedure AS name FROM pg_proc AS p
             WHERE p.pronamespace = to_regnamespace(quote_ident(cache_schema))
               AND to_jsonb(p) IS DISTINCT FROM before -> p.oid::regprocedure::text
        LOOP
            RAISE NOTICE 'created function %', w.name;
            done := done + 1;
        END LOOP;
        -- No function has changed. Roll this block back, so that the catalogs stay as they were.
        IF done = gone THEN
            RAISE SQLSTATE 'SAME0';
        END IF;
    EXCEPTION WHEN SQLSTATE 'SAME0' THEN
        NULL;
    END;

    IF done > 0 THEN
        COMMENT ON FUNCTION oddscache.feed_version() IS
            'Version of the feed: its objects, and the meaning of the change log.';
        COMMENT ON FUNCTION oddscache.prune(interval) IS
            'Deletes log rows that are needed only by caches whose last read is older than keep; at most 50000 a call. '
            'Returns how many.';
        COMMENT ON FUNCTION oddscache.heartbeat() IS
            'Called by caches of older versions only, to test whether notifications arrive: writes a log row without '
            'keys, unless the newest row is younger than a second, and notifies.';
        COMMENT ON FUNCTION oddscache.resync(text) IS
            'Makes every cache read everything again. The reason goes into the log row, for people to read.';
        COMMENT ON FUNCTION oddscache.log_change() IS
            'Trigger function: writes one row to the change log for each statement. Its last argument names the table.';
        COMMENT ON TABLE oddscache.change_log IS
            'One row for each statement that changed one of the six tables: the table and the keys. See prune().';
        COMMENT ON COLUMN oddscache.change_log.xid IS
            'Top-level transaction that made the change.';
        COMMENT ON COLUMN oddscache.change_log.op IS
            'INSERT, UPDATE, DELETE, TRUNCATE. RESYNC: read everything again; note has the reason (an error in the '
            'trigger, or ASKED by resync()). HEARTBEAT: nothing changed; heartbeat() was called.';
        COMMENT ON COLUMN oddscache.change_log.keys IS
            'events: id; competitor_events: betpawa_event_id; odds_snapshots: event_id; competitor_odds_snapshots: '
            'competitor_event_id; market_odds, competitor_market_odds: snapshot_id, or snapshot_id >> 10 if note says '
            'BLOCKS. Null: the whole table. Empty: nothing.';
        COMMENT ON TABLE oddscache.log_state IS 'The state of the feed: exactly one row.';
        COMMENT ON COLUMN oddscache.log_state.pruned_below IS
            'Low-water mark: rows of older transactions may be gone; a cursor with an older xmin must start again.';
        COMMENT ON COLUMN oddscache.log_state.pruned_at IS
            'When prune() last ran, even if it deleted nothing.';
        COMMENT ON TABLE oddscache.log_horizon IS
            'At this time all transactions below this horizon had ended. prune() notes both for its later calls.';
    END IF;

    -- 4. The triggers
    -- A trigger's name has at most 63 bytes, of which its ending (_truncate) takes up to 9.
    SELECT left(cache_schema, l.n) INTO prefix FROM generate_series(length(cache_schema), 1, -1) AS l (n)
     WHERE octet_length(left(cache_schema, l.n)) <= 54 LIMIT 1;

    -- Find the triggers that are missing or differ. A partition or child needs its own triggers, for statements that
    -- name it.
    WITH RECURSIVE node AS (
        SELECT n.tab, n.oid, n.level, n.relkind
          FROM jsonb_to_recordset(family) AS n (tab text, oid oid, level integer, relkind text)
    ), above_foreign AS (
        SELECT i.inhparent AS oid, n.oid AS below
          FROM node AS n JOIN pg_inherits AS i ON i.inhrelid = n.oid WHERE n.relkind = 'f'
         UNION SELECT i.inhparent, a.below FROM above_foreign AS a JOIN pg_inherits AS i ON i.inhrelid = a.oid
    ), wanted AS (
        SELECT n.tab, n.level, n.oid::regclass AS node,
               (SELECT string_agg(a.below::regclass::text, ', ') FROM above_foreign AS a
                   WHERE a.oid = n.oid) AS "foreign"
          FROM node AS n WHERE n.relkind IN ('r', 'p')
    ), compared AS (
        SELECT t.tab, t.level, t.node, t.foreign, o.op,
               g.oid IS NOT NULL AS there, coalesce(g.tgenabled = 'A', false) AS always,
               CASE WHEN t.foreign IS NULL THEN o.transition ELSE '' END AS transition,
               CASE WHEN t.foreign IS NULL THEN quote_literal(t.tab) ELSE format('%L, %L', '*', t.tab) END AS arguments,
               coalesce(g.tgfoid = format('%I.log_change()', cache_schema)::regprocedure AND g.tgtype = o.tgtype
                        AND g.tgargs = CASE WHEN t.foreign IS NULL THEN ''
                                            ELSE convert_to('*', 'UTF8') || decode('00', 'hex') END
                            || convert_to(t.tab, 'UTF8') || decode('00', 'hex')
                        AND g.tgqual IS NULL AND g.tgattr = ''
                        AND g.tgoldtable IS NOT DISTINCT FROM CASE WHEN t.foreign IS NULL THEN o.old_table END
                        AND g.tgnewtable IS NOT DISTINCT FROM CASE WHEN t.foreign IS NULL THEN o.new_table END,
                        false) AS same,
               left(prefix || '_' || lower(o.op), 63) AS name
          FROM wanted AS t
         CROSS JOIN (VALUES
                ('INSERT', 4, NULL, 'new_rows', 'REFERENCING NEW TABLE AS new_rows'),
                ('UPDATE', 16, 'old_rows', 'new_rows', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
                ('DELETE', 8, 'old_rows', NULL, 'REFERENCING OLD TABLE AS old_rows'),
                ('TRUNCATE', 32, NULL, NULL, '')) AS o (op, tgtype, old_table, new_table, transition)
          LEFT JOIN pg_trigger AS g ON g.tgrelid = t.node AND g.tgname = prefix || '_' || lower(o.op)
    )
    SELECT jsonb_agg(to_jsonb(q) ORDER BY q.tab, q.level, q.node::text, q.op) FILTER (WHERE NOT (q.same AND q.always)),
           array_agg(DISTINCT q.node) FILTER (WHERE NOT (q.same AND q.always)),
           jsonb_object_agg(q.node::text, q.foreign) FILTER (WHERE q.foreign IS NOT NULL)
      INTO work, nodes, outside
      FROM compared AS q;

    FOR w IN
        SELECT i.inhrelid::regclass AS node, i.inhparent::regclass AS parent
          FROM pg_inherits AS i
         WHERE i.inhrelid IN (SELECT n.oid FROM jsonb_to_recordset(family) AS n (oid oid))
           AND i.inhparent NOT IN (SELECT n.oid FROM jsonb_to_recordset(family) AS n (oid oid))
         ORDER BY 1
    LOOP
        RAISE WARNING 'statements that name %, of which % is a part, are not logged', w.parent, w.node
            USING HINT = format('Let statements name %s itself, or detach it.', w.node);
    END LOOP;

    FOR w IN SELECT e.key AS node, e.value AS tables FROM jsonb_each_text(outside) AS e ORDER BY e.key
    LOOP
        RAISE WARNING 'below % there are foreign tables: %. Each statement that names % makes every cache read '
            'everything again',
            w.node, w.tables, w.node
            USING HINT = 'The server cannot collect the changed rows for a trigger above a foreign table. Detach the '
                'foreign tables, or let statements name the partitions. A statement that names a foreign table, or '
                'runs on the foreign server, is not logged.';
    END LOOP;

    -- Take all locks before the first change. The first one may take until the deadline. Once it is held, the others
    -- get 0.7 s in all. If that is too short, release them all and begin again. So a writer that locks the tables in
    -- another order can go on before deadlock_timeout (1 s), after which the server would cancel one of the two.
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
                    HINT = 'An open transaction is writing to it. Nothing was changed; try again, or wait longer: '
                        'oddscache sql install --lock-timeout 10s, or the setting lock_timeout in the script.';
            END IF;
        END;
    END LOOP;

    FOR w IN SELECT * FROM jsonb_to_recordset(work) AS q (tab text, node text, op text, transition text, arguments text,
                                                          there boolean, same boolean, name text)
    LOOP
        IF NOT w.same THEN
            IF w.there THEN
                EXECUTE format('DROP TRIGGER %I ON %s', w.name, w.node);
            END IF;
            EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %I.log_change(%s)',
                w.name, w.op, w.node, w.transition, cache_schema, w.arguments);
            EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', w.name, w.node, 'oddscache: writes to the change log.');
        END IF;
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %I', w.node, w.name);
        done := done + 1;
    END LOOP;
    FOR w IN SELECT q.node, count(*) AS n FROM jsonb_to_recordset(work) AS q (node text) GROUP BY q.node ORDER BY q.node
    LOOP
        RAISE NOTICE 'put % triggers on %', w.n, w.node;
    END LOOP;

    -- 5. Changes of the log itself need an exclusive lock, so they come last. A writer waits half a second at most for
    -- the log. After that its log row is lost, and the transaction's next row is a RESYNC.
    SELECT concat_ws('; ',
               CASE WHEN a.attidentity <> '' THEN format('ALTER TABLE %s ALTER id DROP IDENTITY, '
                   'ALTER id SET DEFAULT (pg_current_wal_insert_lsn() - %L::pg_lsn)', c.oid::regclass, '0/0') END,
               CASE WHEN c.relpersistence <> 'p' THEN format('ALTER TABLE %s SET LOGGED', c.oid::regclass) END)
      INTO problem
      FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id'
     WHERE c.oid = to_regclass(format('%I.change_log', cache_schema));
    IF problem <> '' THEN
        BEGIN
            PERFORM set_config('lock_timeout', '200ms', true);
            EXECUTE problem;
            RAISE NOTICE 'changed table %.change_log: %', quote_ident(cache_schema), problem;
            done := done + 1;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'an open transaction has written to %.change_log, so this did not run: %',
                    quote_ident(cache_schema), problem
                USING HINT = 'Run this script again when that transaction has ended. Until then the log may change '
                    'lastval() in the sessions of writers.';
        END;
    END IF;

    RAISE NOTICE '%: feed version % in schema % for the tables in schema %, channel %, % triggers',
        CASE done WHEN 0 THEN 'already in place' ELSE 'installed' END,
        version, quote_ident(cache_schema), quote_ident(app_schema), quote_ident(channel),
        (SELECT count(*) FROM pg_trigger AS g
          WHERE g.tgfoid = to_regprocedure(format('%I.log_change()', cache_schema)));
    PERFORM set_config(s.key, s.value, true) FROM jsonb_each_text(settings) AS s;
END $install$;
