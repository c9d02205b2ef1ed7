//! Doctor compares the feed's functions with those that the binary would install.

use super::*;

/// The list of functions and the script's text equal what the script creates, also with names that must be quoted.
#[test]
fn the_expected_functions_are_those_that_install_creates() {
    let database = Database::application();
    let (cache, channel) = (r#"We"ird \ sch'ema"#, "ch'annel \\");
    let settings = [("cache_schema", cache), ("channel", channel)];
    run_script(&database.name, Script::Install, &settings);
    let report = doctor(&database.dsn(), &["--quick", "--cache-schema", cache]);
    let installed = "select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname like 'We%'";
    let installed = database.psql(installed);
    assert_eq!(
        report.one("feed.function", "ok")["what"],
        format!("all {installed} functions are as this binary installs them")
    );
    report.has(&["notifications"], &["ok"]);
}

/// A cache still follows a feed of the version before. So that is a reason to upgrade, but no fault.
#[test]
fn a_feed_of_the_version_before_is_warned_of() {
    let database = Database::application();
    psql(&database.name, &["-qf", "tests/sql/install_v2.sql"]);
    let report = doctor(&database.dsn(), &[]);
    report.ends(0);
    // One finding says it, not two.
    let warnings = report.with("feed", "warn");
    assert_eq!(warnings.len(), 1, "{report:#?}");
    says(warnings[0], "fix", "sql install --apply");
    report.has(&["feed.function"], &[]);
    let fails = report
        .findings
        .iter()
        .filter(|found| found["level"] == "fail");
    assert_eq!(fails.count(), 0, "{report:#?}");
    psql(&database.name, &["-qf", "sql/install.sql"]);
    let report = quick(&database.dsn());
    assert!(report.with("feed", "warn").is_empty());
    report.one("feed.function", "ok");
}

#[test]
fn a_changed_function_is_found() {
    let edit = "do $$ begin execute replace(pg_get_functiondef('oddscache.";
    for [change, what] in cases(
        "{edit}log_change()'::regprocedure), '20000', '20001'); end $$ => body
         {edit}prune(interval)'::regprocedure), 'LIMIT 1', 'LIMIT 2'); end $$ => body
         alter function oddscache.log_change() security invoker => SECURITY DEFINER
         alter function oddscache.log_change() reset search_path => search_path
         alter function oddscache.prune(interval) set search_path = public => search_path
         drop function oddscache.prune(interval) => is missing",
    ) {
        println!("{change}");
        let sound = Sound::new();
        sound.psql(&change.replace("{edit}", edit));
        let report = sound.quick();
        let found = report.ends(1).one("feed.function", "fail");
        says(found, "what", what);
        says(found, "fix", "sql install --apply");
        // The script that doctor names repairs it.
        psql(&sound.database.name, &["-qf", "sql/install.sql"]);
        sound.quick().has(&["feed.function"], &["ok"]);
    }
}
