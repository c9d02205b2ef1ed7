//! Other clients run the filled text of each script. `bash .ci/clients` fetches these clients.

use std::process::Command;

use oddscache_testkit::programs::missing;

use super::*;

/// The Python that has the clients.
fn python() -> Option<String> {
    let usual = "/var/tmp/oddscache-clients/bin/python";
    let found = std::env::var("ODDSCACHE_CLIENTS").ok();
    let found = found.or_else(|| std::fs::exists(usual).ok()?.then(|| usual.to_owned()));
    if found.is_none() {
        missing("other clients", "bash .ci/clients");
    }
    found
}

fn run_by(python: &str, client: &str, db: &Database, text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sql");
    std::fs::write(&file, text).unwrap();
    let (host, port) = (cluster().socket_dir(), cluster().port().to_string());
    Command::new(python)
        .arg("tests/sql/clients.py")
        .args([client, host.to_str().unwrap(), &port, &db.name])
        .arg(&file)
        .output()
        .unwrap()
}

#[test]
fn every_client_runs_every_script() {
    let Some(python) = python() else { return };
    let names = [
        ("cache_schema", "odd \"feed's\" \\ 100% $1 é"),
        ("channel", "a %s 'channel' \\"),
    ];
    let fill = |script: Script, db: &Database| {
        let role = format!("role's of {}", db.name);
        let all = [&names[..], &[("role", &*role)]].concat();
        let known = script.settings();
        let of_it: Vec<_> = all
            .into_iter()
            .filter(|(name, _)| known.contains(name))
            .collect();
        script.fill(&of_it).unwrap()
    };
    let by_psql = app();
    psql_text("postgres", &by_psql, &fill(Script::Install, &by_psql));
    for client in ["psycopg", "asyncpg", "prepared", "alembic"] {
        let db = app();
        let was = dump(&db);
        for script in [
            Script::Install,
            Script::Install,
            Script::Grants,
            Script::Check,
            Script::Indexes,
            Script::Uninstall,
        ] {
            let output = run_by(&python, client, &db, &fill(script, &db));
            let said = text(&output);
            assert!(output.status.success(), "{client}, {script}: {said}");
            match script {
                Script::Install => assert_eq!(dump(&db), dump(&by_psql), "{client}"),
                // A migration has no use for rows.
                Script::Check | Script::Indexes if client == "alembic" => {}
                Script::Check => {
                    said.says("feed_version()|ok|3");
                    said.lacks("|FAIL|");
                }
                Script::Indexes => {
                    assert!(said.starts_with("SET lock_timeout"), "{client}: {said}");
                }
                _ => {}
            }
        }
        assert_eq!(dump(&db), was, "{client}");
    }
}

#[test]
fn a_migration_that_fails_leaves_nothing_behind() {
    let Some(python) = python() else { return };
    let db = app();
    let was = dump(&db);
    let output = run_by(&python, "alembic-fails", &db, Script::Install.text());
    text(&output).says("division by zero");
    assert_eq!(dump(&db), was);
}
