//! Settings of a database that change how the server reads, prints, plans or stores. The scripts and the feed's
//! functions must not depend on them.

use oddscache::sql::quote;

use super::*;

/// Settings that are tried together.
const SETTINGS: [&str; 3] = [
    "standard_conforming_strings = off; backslash_quote = off; escape_string_warning = on; quote_all_identifiers = on; \
     array_nulls = off; transform_null_equals = on; bytea_output = escape; xmloption = document; xmlbinary = hex; \
     extra_float_digits = -15; datestyle = 'SQL, DMY'; intervalstyle = sql_standard; timezone = 'Asia/Kathmandu'; \
     plpgsql.extra_errors = 'all'; plpgsql.extra_warnings = 'all'; plpgsql.print_strict_params = on; \
     plpgsql.variable_conflict = use_variable; default_tablespace = gone; default_toast_compression = pglz; \
     session_replication_role = replica; row_security = off; client_min_messages = error; \
     restrict_nonsystem_relation_kind = 'view, foreign-table'",
    "plpgsql.variable_conflict = use_column; check_function_bodies = off; datestyle = 'German'; \
     intervalstyle = postgres_verbose; timezone = 'America/St_Johns'; default_table_access_method = heap_2; \
     client_min_messages = debug5; search_path = ''; client_encoding = LATIN1; lock_timeout = 1; deadlock_timeout = 1; \
     parallel_setup_cost = 0; parallel_tuple_cost = 0; min_parallel_table_scan_size = 0; force_parallel_mode = on; \
     debug_parallel_query = on",
    "exit_on_error = on; intervalstyle = iso_8601; enable_hashagg = off; enable_sort = off; enable_seqscan = off; \
     enable_nestloop = off; enable_material = off; constraint_exclusion = on; from_collapse_limit = 1; \
     join_collapse_limit = 1; geqo_threshold = 2; plan_cache_mode = force_generic_plan; work_mem = 64",
];

/// Those of the settings that this server has, as statements.
fn statements(db: &Database, settings: &str) -> String {
    let known = db.psql("load 'plpgsql'; select lower(name) from pg_settings");
    let known: Vec<&str> = known.lines().collect();
    let exists = |setting: &&str| known.contains(&setting.split_once(" = ").unwrap().0);
    let alter = |setting: &str| format!("alter database {} set {setting};", db.name);
    settings.split("; ").filter(exists).map(alter).collect()
}

/// Runs a script, by psql or as one query. Returns what it said, or the error.
async fn try_script(
    one_query: bool,
    db: &Database,
    script: Script,
    settings: &[(&str, &str)],
) -> Result<Said, String> {
    if one_query {
        let said = open(db).await.script(script, settings).await;
        return said.map_err(|error| format!("{error:?}"));
    }
    let output = psql_file_as("postgres", db, script, settings);
    let said = text(&output);
    match output.status.success() {
        true => Ok(said),
        false => Err(said.0),
    }
}

/// A database with the application's tables, and with a table access method that is a copy of `heap`.
fn plain() -> Database {
    let db = app();
    db.psql(ROWS);
    db.psql("create access method heap_2 type table handler heap_tableam_handler");
    db
}

/// The schema of the feed and its channel, which settings about strings and names could break.
const NAMES: [(&str, &str); 2] = [
    ("cache_schema", "odd \"feed's\" \\ schema"),
    ("channel", "a 'channel' \\"),
];

/// What a database has, without its settings.
fn dump_without_settings(db: &Database, settings: &str) -> String {
    db.psql(&format!("alter database {} reset all", db.name));
    let dump = dump(db);
    db.psql(&statements(db, settings));
    dump
}

/// The functions of the feed run in the sessions of others, with their settings.
fn functions_work(db: &Database) -> Result<(), String> {
    let schema = quote(NAMES[0].1);
    for sql in [
        "update public.events set name = 'w'",
        "select {}.prune('0')",
        "select {}.heartbeat()",
        "update public.events set name = 'x' where id < 3",
        "select {}.resync('why')",
    ] {
        db.psql(&sql.replace("{}", &schema));
    }
    let logged = db.psql(&format!(
        "select pg_catalog.string_agg(l.op || ' ' || coalesce(l.keys::text, '*'), '; ' order by l.id) from {schema}.change_log as l"
    ));
    // A transaction of another test may keep older rows.
    match logged.ends_with("UPDATE {1,2}; RESYNC *") {
        true => Ok(()),
        false => Err(format!("logged {logged}")),
    }
}

/// Runs every script under these settings, by psql or as one query, and writes to the tables in between. Returns the
/// first thing that went wrong.
async fn first_fault(settings: &str, expected: &str) -> Result<(), String> {
    let db = plain();
    let before = dump(&db);
    let role = format!("cache_{}", db.name);
    db.psql(&statements(&db, settings));
    for (turn, script) in [Script::Install].iter().chain(&IN_ORDER).enumerate() {
        let all = [&NAMES[..], &[("role", &*role)]].concat();
        let of_it = settings_of(*script, &all);
        let said = try_script(turn % 2 == 1, &db, *script, &of_it).await;
        let said = said.map_err(|error| format!("{script} failed: {error}"))?;
        if said.contains("|FAIL|") || said.contains("|warn|") {
            return Err(format!("{script} found a fault: {said}"));
        }
        if turn == 1 {
            let is = dump_without_settings(&db, settings);
            first_difference(&is, expected).map_or(Ok(()), Err)?;
            functions_work(&db)?;
        }
    }
    first_difference(&dump_without_settings(&db, settings), &before).map_or(Ok(()), Err)
}

fn first_difference(is: &str, expected: &str) -> Option<String> {
    let differs = is.lines().zip(expected.lines()).find(|(a, b)| a != b);
    let lines = differs.map(|(is, expected)| format!("{is:?} instead of {expected:?}"));
    lines.or_else(|| (is.len() != expected.len()).then(|| "more or fewer lines".to_owned()))
}

/// With `exit_on_error`, a second run of install.sql ended the session. With another table access method than heap as
/// the default, the log was of that one.
#[tokio::test]
async fn no_setting_of_the_database_changes_what_the_scripts_and_the_feed_do() {
    let db = plain();
    run(&db, Script::Install, &NAMES);
    let expected = dump(&db);
    let mut wrong = Vec::new();
    for settings in SETTINGS {
        if let Err(fault) = first_fault(settings, &expected).await {
            wrong.push(format!("{settings}: {fault}"));
        }
    }
    let wrong = wrong.join("\n");
    assert!(wrong.is_empty(), "{wrong}");
}
