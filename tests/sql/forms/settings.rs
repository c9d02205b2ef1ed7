//! Settings of the writing session that could keep a statement from being logged.

use super::*;

/// Objects that a session may find before the system's by its search path. They harm only a function that uses the
/// session's search path.
const TRAPS: &str = "
    create schema traps; grant usage on schema traps to public;
    create table traps.new_rows (id int, event_id int, snapshot_id int, betpawa_event_id int, competitor_event_id int);
    create table traps.old_rows (like traps.new_rows); create table traps.change_log (xid xid8);
    create table traps.pg_class (oid oid); create table traps.pg_index (indrelid oid);
    insert into traps.new_rows values (666, 666, 666, 666, 666); insert into traps.old_rows table traps.new_rows;
    grant select on all tables in schema traps to public;
    create function traps.set_config(text, text, boolean) returns text language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.current_setting(text, boolean) returns text language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.split_part(text, text, int) returns text language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.cardinality(bigint[]) returns int language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.pg_current_xact_id() returns xid8 language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.to_regclass(text) returns regclass language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.pg_notify(text, text) returns void language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.pg_try_advisory_lock(bigint) returns boolean language plpgsql as $$ begin raise 'trap'; end $$;
    create function traps.same(bigint[], bigint[]) returns boolean language plpgsql as $$ begin raise 'trap'; end $$;
    create operator traps.= (function = traps.same, leftarg = bigint[], rightarg = bigint[]);";

/// A name, and settings that are tried together.
const SETTINGS: &str = "
    texts
        => standard_conforming_strings = off; backslash_quote = off; escape_string_warning = on; \
        quote_all_identifiers = on; array_nulls = off; transform_null_equals = on; bytea_output = escape; \
        extra_float_digits = -15; datestyle = 'SQL, DMY'; intervalstyle = sql_standard; timezone = '<+0545>-5:45'; \
        check_function_bodies = off; xmloption = document
    plpgsql, strict
        => plpgsql.extra_errors = 'all'; plpgsql.extra_warnings = 'all'; plpgsql.variable_conflict = 'use_variable'; \
        plpgsql.print_strict_params = on
    plpgsql, columns first => plpgsql.variable_conflict = 'use_column'; plan_cache_mode = force_generic_plan
    parallel plans
        => force_parallel_mode = on; debug_parallel_query = on; parallel_setup_cost = 0; parallel_tuple_cost = 0; \
        min_parallel_table_scan_size = 0; parallel_leader_participation = off
    compiled queries => jit = on; jit_above_cost = 0; jit_inline_above_cost = 0; jit_optimize_above_cost = 0
    other plans
        => enable_hashagg = off; enable_sort = off; enable_seqscan = off; enable_partition_pruning = off; \
        constraint_exclusion = on; enable_tidscan = off; jit = off; from_collapse_limit = 1; geqo_threshold = 2
    limits
        => work_mem = 64; hash_mem_multiplier = 1; temp_file_limit = 64; statement_timeout = 20000; lock_timeout = 1; \
        deadlock_timeout = 10000; transaction_timeout = 20000; idle_in_transaction_session_timeout = 20000; \
        idle_session_timeout = 20000; temp_buffers = 100
    a shallow stack => max_stack_depth = 100
    replica => session_replication_role = replica
    read only => default_transaction_read_only = on
    serializable => default_transaction_isolation = serializable; default_transaction_deferrable = on
    repeatable read => default_transaction_isolation = 'repeatable read'
    traps in the path => search_path = traps, public, pg_catalog
    row security off => row_security = off
    no views and no foreign tables => restrict_nonsystem_relation_kind = 'view, foreign-table'
    all messages of the log
        => client_min_messages = log; log_min_messages = log; log_min_error_statement = log; track_functions = 'all'; \
        synchronous_commit = off; default_toast_compression = pglz
    errors only => client_min_messages = error; oddscache.notify = '?'
    notify off => oddscache.notify = off
";

/// The forms that run under each setting.
const CHOSEN: [&str; 12] = [
    "UPDATE of the key",
    "TRUNCATE ... CASCADE",
    "INSERT ... RETURNING",
    "INSERT ... ON CONFLICT DO UPDATE",
    "UPDATE of no rows",
    "DELETE",
    "MERGE",
    "COPY",
    "foreign key: delete cascades",
    "CTEs that write",
    "many blocks with EXCEPTION",
    "ROW_COUNT, FOUND and a loop over RETURNING",
];

async fn no_setting_harms(kind: Kind, wanted: impl Fn(&str) -> bool) {
    let mut pair = Pair::open(kind).await;
    for side in [&pair.without, &pair.with] {
        side.run(TRAPS).await;
        side.run("load 'plpgsql'").await;
    }
    let known = pair.with.query("select lower(name) from pg_settings").await;
    let known: BTreeSet<String> = known.into_iter().flatten().flatten().collect();
    let mut wrong = Vec::new();
    for [name, settings] in cases(SETTINGS) {
        if !wanted(name) {
            continue;
        }
        let exists = |setting: &&str| {
            let (name, _) = setting.split_once(" = ").unwrap();
            known.contains(name) || name.starts_with("oddscache.")
        };
        let settings = settings.split("; ").filter(exists);
        let before: Vec<String> = settings.map(|setting| format!("set {setting}")).collect();
        let around = Around {
            before: &before.iter().map(String::as_str).collect::<Vec<_>>(),
            begin: match name {
                "read only" => "begin read write",
                _ => "",
            },
        };
        // Compiling every query takes long.
        let chosen = match name {
            "compiled queries" => &CHOSEN[..3],
            _ => &CHOSEN,
        };
        for form in FORMS.iter().filter(|form| chosen.contains(&form.name)) {
            for fault in pair.faults(form, WRITER, &around).await {
                wrong.push(format!("{name} | {fault}"));
            }
        }
    }
    assert_none(&wrong);
}

#[tokio::test]
async fn no_setting_of_the_session_harms_a_writer_to_partitions() {
    no_setting_harms(Kind::range(), |_| true).await;
}

#[tokio::test]
async fn no_setting_of_the_session_harms_a_writer_to_children() {
    no_setting_harms(Kind::inherited(), |_| true).await;
}

#[tokio::test]
async fn no_setting_of_the_session_harms_a_writer_under_row_security() {
    no_setting_harms(Kind::row_security(), |name| {
        matches!(name, "row security off" | "replica" | "traps in the path")
    })
    .await;
}
