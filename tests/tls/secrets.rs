//! No secret is shown. The tests put a password into every place that may contain one. They read the log of the binary
//! at its most verbose level, and every `Debug` output.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use oddscache::{Config, OddsCache, SslMode, Tls};
use oddscache_testkit::service::command;

use crate::{PASSWORD, put, secured};

/// The password as the server knows it, and as it is written in a URL.
const SECRETS: [&str; 5] = [PASSWORD, "hunter2", "hunter%32", "hunter3", "PRIVATE KEY"];

/// Runs the binary until it ends, or for a while. Returns its exit code, and all its output together with its visible
/// arguments.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let (out, errors) = (
        directory.path().join("out"),
        directory.path().join("errors"),
    );
    let mut command = command(arguments);
    command
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&errors).unwrap());
    command
        .env("ODDSCACHE_LOG", "trace")
        .envs(variables.iter().copied());
    let mut child = command.spawn().unwrap();
    let seen = fs::read(format!("/proc/{}/cmdline", child.id())).expect("/proc (Linux)");
    let text = || {
        [&out, &errors]
            .map(|path: &PathBuf| fs::read_to_string(path).unwrap())
            .concat()
    };
    // After a few tries, a service that waits for its database has logged everything that it will log.
    let deadline = Instant::now() + Duration::from_secs(60);
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if text().matches("trying again").count() >= 2 => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => {
                let text = text();
                assert!(
                    Instant::now() < deadline,
                    "neither ends nor says why: {text}"
                );
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (code, text() + &String::from_utf8_lossy(&seen))
}

/// No output of the binary, and no argument that others can see, contains a password.
#[test]
fn the_binary_shows_no_secret_at_any_log_level() {
    let secured = secured();
    secured.psql("create database told");
    secured.cluster.install("told");
    let (port, files) = (secured.cluster.port(), secured.files.path());
    let client = secured.authority.issue("certified", &[]);
    let put = |name: &str, text: &str| put(files, name, text).display().to_string();
    let certificate = put("told.crt", &client.certificate);
    let key = put("told.key", &client.key);
    let passfile = put("told.pgpass", &format!("*:{port}:*:*:{PASSWORD}\n"));
    let wrong_file = put("wrong.pgpass", "*:*:*:*:hunter2\n");
    let at = format!("127.0.0.1:{port}/told?sslmode=require");
    let url = |login: &str| format!("postgres://{login}@{at}");
    let pairs = |password: &str| {
        format!("host=127.0.0.1 port={port} user=scram dbname=told password={password}")
    };
    let bare = url("scram");
    let nowhere = |rest: &str| format!("postgres://scram:{rest}");
    let port = port.to_string();
    let parts = [
        ("PGUSER", "scram"),
        ("PGDATABASE", "told"),
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
    ];
    let in_url = |url: &str| vec![("DATABASE_URL", url.to_owned())];
    let beside =
        |url: &str, name, value: &str| [in_url(url), vec![(name, value.to_owned())]].concat();
    let in_parts = |more: &[(&'static str, &str)]| {
        let all = parts.iter().chain(more);
        all.map(|(name, value)| (*name, (*value).to_owned()))
            .collect::<Vec<_>>()
    };
    let certified = url("certified");
    let certificates =
        |certificate: &str, key: &str| format!("{certified}&sslcert={certificate}&sslkey={key}");
    let right = [
        in_url(&url(&format!("scram:{PASSWORD}"))),
        in_url(&pairs(PASSWORD)),
        beside(&bare, "PGPASSWORD", PASSWORD),
        beside(&bare, "PGPASSFILE", &passfile),
        in_parts(&[("PGPASSWORD", PASSWORD), ("PGSSLMODE", "require")]),
        in_parts(&[("PGPASSFILE", &passfile)]),
    ];
    let wrong = [
        in_url(&certificates(&certificate, &key)),
        in_url(&url("scram:hunter%32")),
        in_url(&pairs("hunter2")),
        beside(&bare, "PGPASSWORD", "hunter2"),
        beside(&bare, "PGPASSFILE", &wrong_file),
        in_parts(&[("PGPASSWORD", "hunter2")]),
        beside(&url("scram:hunter2"), "PGSSLROOTCERT", "system"),
        in_url(&nowhere("hunter2@127.0.0.1:1/told")),
        in_url(&nowhere("hunter2@no-such-host.invalid/told")),
        // Mistakes: text in the wrong place must not be shown either.
        in_url(&nowhere("hunter2/x@127.0.0.1/told")),
        in_url(&nowhere("hunter2")),
        in_url(&nowhere("x@hunter2@127.0.0.1/told")),
        in_url(&pairs("hunter2 hunter3")),
        in_url(&pairs("'hunter2")),
        beside(&bare, "PGSSLMODE", "hunter2"),
        beside(&bare, "PGPORT", "hunter2"),
        in_url(&certificates(&key, &certificate)),
    ];
    let right = right.iter().map(|variables| (true, variables));
    for (works, variables) in right.chain(wrong.iter().map(|variables| (false, variables))) {
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        for arguments in [
            &["dump"][..],
            &["sql", "check", "--apply"],
            &["serve", "--listen", "127.0.0.1:0"],
        ] {
            if works && arguments[0] == "serve" {
                // This would run for ever. `tests/service` and the dump use the same connection.
                continue;
            }
            let (code, said) = run(arguments, &variables);
            let what = format!("{arguments:?} {variables:?}: {said}");
            assert_eq!(code == Some(0), works, "{what}");
            for secret in SECRETS {
                assert!(!said.contains(secret), "{what}");
            }
        }
    }
}

/// The test above proves something only if the log is as verbose as it can be.
#[test]
fn the_log_at_trace_contains_messages() {
    let secured = secured();
    let url = secured.dsn("scram", &format!("password={PASSWORD}"));
    let (_, said) = run(&["dump"], &[("DATABASE_URL", &url)]);
    assert!(
        said.contains("tokio_postgres") || said.contains("TRACE") || said.contains("DEBUG"),
        "{said}"
    );
}

/// The `Debug` output of a public type contains no password and no private key.
#[test]
fn nothing_public_shows_a_secret_when_debugged() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nhunter3\n";
    let tls = Tls::new(SslMode::Require)
        .client_certificate_pem("hunter3", key)
        .root_certificates_pem("hunter3");
    let config = Config::new("postgres://u:hunter2@127.0.0.1:1/d?connect_timeout=1")
        .unwrap()
        .tls(tls.clone());
    let (cache, follower) = OddsCache::connect(config.clone());
    let mut said = format!(
        "{config:?} {config:#?} {tls:?} {follower:?} {cache:?} {:?} {:?}",
        cache.view(),
        cache.status()
    );
    let error = runtime.block_on(config.open()).map(drop).unwrap_err();
    said += &format!("{error} {error:?}");
    let config = config.tls(Tls::default());
    let error = runtime.block_on(oddscache::warm_up(config)).unwrap_err();
    said += &format!("{error} {error:?}");
    assert!(!said.contains("hunter"), "{said}");
    let secured = secured();
    runtime.block_on(async {
        let config = Config::new(&secured.dsn("scram", &format!("password={PASSWORD}"))).unwrap();
        let (client, connection) = config.open().await.unwrap();
        let said = format!("{client:?} {connection:?} {config:?}");
        assert!(!said.contains(PASSWORD), "{said}");
    });
}
