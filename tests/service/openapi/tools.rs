//! Programs that other people wrote read `/openapi.json`: Schemathesis, and a generator of clients. `.ci/openapi`
//! installs them.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use oddscache_testkit::{
    programs::{missing, optional},
    service::isolate,
};

use crate::served;

const HERE: &str = "tests/service/openapi";

/// The Python that has the programs. `None` without Python, which skips the test.
fn python() -> Option<String> {
    optional(&["python3"], "python3-venv")?;
    let installed = Command::new("bash").arg(".ci/openapi").output();
    let installed = installed.expect("bash");
    if !installed.status.success() {
        let errors = String::from_utf8_lossy(&installed.stderr);
        missing("the programs of .ci/openapi", errors.trim());
        return None;
    }
    Some(text(&installed).trim().to_owned())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program to its end on a thread of its own, because the test reads the service's log meanwhile.
async fn run(mut command: Command) -> Output {
    isolate(&mut command);
    let run = move || command.output().expect("the program runs");
    tokio::task::spawn_blocking(run).await.expect("it ends")
}

fn assert_succeeds(output: &Output) {
    let (said, errors) = (text(output), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
}

/// A generator of clients believes the document. Each value that it allows must be accepted, any other one refused, and
/// each answer be as it says.
#[tokio::test]
async fn schemathesis_finds_nothing() {
    let Some(python) = python() else { return };
    let (database, served) = served(&["--poll-interval", "100ms"]).await;
    let next = database.psql("select pg_snapshot_xmax(pg_current_snapshot())");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(python);
    command
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("{}/openapi.json", served.base))
        // Its answer has no end. `responses_and_the_document_agree` reads its beginning.
        .args(["--exclude-path", "/v1/changes"])
        // The document has no links between operations, so there are no states to explore.
        .args(["--phases", "examples,coverage,fuzzing"])
        // `rules.py` has a check in its place, and says why.
        .args(["--exclude-checks", "not_a_server_error"])
        .args(["--max-examples", "40", "--workers", "4"])
        .args(["--continue-on-failure", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", "rules")
        .env("NEXT_XID", next.trim())
        .env("PYTHONPATH", fs::canonicalize(HERE).expect("a folder"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(&folder);
    let output = run(command).await;
    assert_succeeds(&output);
    // It must have looked at something.
    let said = text(&output);
    for word in ["Selected: 9/10", "Tested: 9", "No issues found"] {
        assert!(said.contains(word), "no {word:?}: {said}");
    }
}

/// A client that somebody generates in another language reads events, pages, the list and errors as typed values.
#[tokio::test]
async fn a_generated_client_reads_all_answers() {
    let Some(python) = python() else { return };
    let token = "a-token-of-the-generated-client";
    let (_database, served) = served(&["--token", token]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let bearer = format!("Bearer {token}");
    let document = served
        .ask("/openapi.json", &[("authorization", &bearer)])
        .await;
    let document = document.text().await.expect("a body");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("openapi.json"), document).expect("a file");
    // The generator knows few media types, and these two are text for it. It does not run a formatter.
    let config = "content_type_overrides: {application/x-ndjson: text/plain, text/event-stream: text/plain}\n\
                  post_hooks: []\n";
    fs::write(path("config.yml"), config).expect("a file");

    let mut generate = Command::new(&python);
    generate
        .args([
            "-m",
            "openapi_python_client",
            "generate",
            "--fail-on-warning",
        ])
        .args(["--meta", "none", "--path", "openapi.json"])
        .args(["--config", "config.yml", "--output-path", "generated"])
        .current_dir(&folder);
    assert_succeeds(&run(generate).await);

    let mut command = Command::new(&python);
    command
        .arg(Path::new(HERE).join("use_client.py"))
        .args([&served.base, token])
        .env("PYTHONPATH", folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = run(command).await;
    assert_succeeds(&output);
    assert_eq!(text(&output).trim(), "9 events, 9 in the list: too_stale");
}
