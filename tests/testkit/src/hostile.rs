//! Settings of a role or a database that disturb a session if it relies on the defaults.

use super::Database;

/// What an administrator may set for a role, however unwise. Names and values as in SQL.
const SETTINGS: &str = "
    standard_conforming_strings = off
    quote_all_identifiers = on
    backslash_quote = on
    escape_string_warning = on
    transform_null_equals = on
    array_nulls = off
    extra_float_digits = -15
    DateStyle = 'SQL, DMY'
    IntervalStyle = 'sql_standard'
    TimeZone = 'Asia/Kathmandu'
    bytea_output = 'escape'
    xmlbinary = 'hex'
    xmloption = 'document'
    client_encoding = 'LATIN1'
    client_min_messages = 'debug5'
    lc_messages = 'C'
    application_name = 'hostile'
    search_path = trap, public, pg_catalog
    row_security = off
    session_replication_role = 'replica'
    exit_on_error = on
    statement_timeout = '15ms'
    lock_timeout = '1ms'
    idle_in_transaction_session_timeout = '15ms'
    idle_session_timeout = '200ms'
    transaction_timeout = '50ms'
    default_transaction_isolation = 'serializable'
    default_transaction_read_only = on
    default_transaction_deferrable = on
    synchronous_commit = off
    commit_delay = 1000
    jit_above_cost = 0
    jit_inline_above_cost = 0
    jit_optimize_above_cost = 0
    plan_cache_mode = 'force_custom_plan'
    enable_seqscan = off
    enable_indexscan = off
    enable_indexonlyscan = off
    enable_bitmapscan = off
    enable_tidscan = off
    enable_nestloop = off
    enable_hashjoin = off
    enable_mergejoin = off
    enable_hashagg = off
    enable_sort = off
    enable_incremental_sort = off
    enable_material = off
    enable_partition_pruning = off
    constraint_exclusion = off
    from_collapse_limit = 1
    join_collapse_limit = 1
    geqo_threshold = 2
    gin_fuzzy_search_limit = 1
    work_mem = '64kB'
    max_parallel_workers_per_gather = 8
    min_parallel_table_scan_size = 0
    parallel_setup_cost = 0
    parallel_tuple_cost = 0
    force_parallel_mode = on
    debug_parallel_query = on
    track_activities = off
    check_function_bodies = off
    default_toast_compression = 'pglz'
    default_tablespace = 'nowhere'
    temp_tablespaces = 'nowhere'
    log_statement = 'all'
    log_duration = on
    log_min_messages = 'debug1'
    vacuum_freeze_min_age = 0";

/// Lists the settings that a server has, for [`settings`].
pub const NAMES: &str = "select string_agg(lower(name), ' ') from pg_settings";

/// The hostile settings among those that the server `has`.
pub fn settings(has: &str) -> impl Iterator<Item = &'static str> + use<> {
    let has: Vec<String> = has.split(' ').map(str::to_owned).collect();
    let settings = SETTINGS.lines().map(str::trim);
    settings.filter(move |setting| {
        let name = setting.split(' ').next().unwrap_or_default();
        has.contains(&name.to_lowercase())
    })
}

impl Database {
    /// Gives a role all hostile settings that this version of the server has: half of them for this database only.
    pub fn make_hostile(&self, role: &str) {
        let alter: Vec<String> = settings(&self.psql(NAMES))
            .zip(
                [String::new(), format!("in database {}", self.name)]
                    .iter()
                    .cycle(),
            )
            .map(|(setting, place)| format!("alter role {role} {place} set {setting}"))
            .collect();
        // The search path finds these functions before those of the system.
        self.psql(&format!(
            "create schema trap; grant all on schema trap to {role};
             create function trap.now() returns timestamptz language sql as 'select timestamptz ''2000-01-01''';
             create function trap.pg_current_snapshot() returns pg_snapshot language sql as 'select ''3:3:''::pg_snapshot';
             {}",
            alter.join("; ")
        ));
    }
}
