//! Doctor compares the feed's functions with those that the binary would install.

use super::*;

/// The list of functions and the script's text equal what the script creates, also with names that must be quoted.
#[test]
fn the_expected_functions_are_those_that_install_creates() {
    let database = Database::application();
    let (cache, channel) = (r#"We"ird \ sch'ema"#, "ch'annel \\");
    let settings = [("cache_schema", cache), ("channel", channel)];
    run_script(&database.name, Script::Install, &settings);
    let (_, findings) = doctor(&database.dsn(), &["--quick", "--cache-schema", cache]);
    let ok = with(&findings, "feed.function", "ok");
    assert_eq!(ok.len(), 1, "{findings:#?}");
    let installed = "select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname like 'We%'";
    let installed = database.psql(installed);
    assert_eq!(
        ok[0]["what"],
        format!("all {installed} functions are as this binary installs them")
    );
    assert_eq!(
        levels_of(&findings, "notifications"),
        ["ok"],
        "{findings:#?}"
    );
}

/// A cache still follows a feed of the version before. So that is a reason to upgrade, but no fault.
#[test]
fn a_feed_of_the_version_before_is_warned_of() {
    let database = Database::application();
    psql(&database.name, &["-qf", "tests/sql/install_v2.sql"]);
    let (code, findings) = doctor(&database.dsn(), &[]);
    let old = with(&findings, "feed.version", "warn");
    assert_eq!(old.len(), 1, "{findings:#?}");
    let fix = old[0]["fix"].as_str().expect("a way out");
    assert!(fix.contains("sql install --apply"), "{fix}");
    let fails: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["level"] == "fail")
        .collect();
    assert_eq!((code, fails.as_slice()), (0, [].as_slice()));
    psql(&database.name, &["-qf", "sql/install.sql"]);
    let (_, findings) = doctor(&database.dsn(), &["--quick"]);
    assert!(with(&findings, "feed.version", "warn").is_empty());
    assert_eq!(
        with(&findings, "feed.function", "ok").len(),
        1,
        "{findings:#?}"
    );
}

#[test]
fn a_changed_function_is_found() {
    for (change, what) in [
        (
            "do $$ begin execute replace(pg_get_functiondef('oddscache.log_change()'::regprocedure), '20000', '20001'); end $$",
            "body",
        ),
        (
            "do $$ begin execute replace(pg_get_functiondef('oddscache.prune(interval)'::regprocedure), 'LIMIT 1', 'LIMIT 2'); end $$",
            "body",
        ),
        (
            "alter function oddscache.log_change() security invoker",
            "SECURITY DEFINER",
        ),
        (
            "alter function oddscache.log_change() reset search_path",
            "search_path",
        ),
        (
            "alter function oddscache.prune(interval) set search_path = public",
            "search_path",
        ),
        ("drop function oddscache.prune(interval)", "is missing"),
    ] {
        let sound = Sound::new();
        sound.database.psql(change);
        let (code, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert_eq!(code, 1, "{change}");
        let found = with(&findings, "feed.function", "fail");
        assert_eq!(found.len(), 1, "{change}: {findings:#?}");
        assert!(
            found[0]["what"].as_str().unwrap().contains(what),
            "{change}: {found:?}"
        );
        assert!(
            found[0]["fix"]
                .as_str()
                .unwrap()
                .contains("sql install --apply")
        );
        // The script that doctor names repairs it.
        psql(&sound.database.name, &["-qf", "sql/install.sql"]);
        let (_, findings) = doctor(&sound.dsn(), &["--quick"]);
        assert_eq!(levels_of(&findings, "feed.function"), ["ok"], "{change}");
    }
}
