//! No secret comes out: the binary with a password in every place that may hold one, logging all it can, and every `Debug`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use oddscache::{Config, OddsCache, SslMode, Tls};

use crate::{PASSWORD, put, secured};

const BINARY: &str = env!("CARGO_BIN_EXE_oddscache");

/// What the password looks like in a URL, and with which the server knows it.
const SECRETS: [&str; 5] = [PASSWORD, "hunter2", "hunter%32", "hunter3", "PRIVATE KEY"];

/// Runs until it ends, or for a while, and returns all it said and what others could see of its arguments.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let (out, errors) = (
        directory.path().join("out"),
        directory.path().join("errors"),
    );
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null());
    command
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&errors).unwrap());
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name.starts_with("ODDSCACHE") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
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
    // A service that waits for its database has said all it will say once it has tried a few times.
    let deadline = Instant::now() + Duration::from_secs(60);
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if text().matches("trying again").count() >= 2 => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => assert!(
                Instant::now() < deadline,
                "it neither ends nor says why: {}",
                text()
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (code, text() + &String::from_utf8_lossy(&seen))
}

#[test]
fn the_binary_tells_no_secret_however_much_it_logs() {
    let secured = secured();
    let install = ["src/demo/schema.sql", "sql/install.sql"];
    secured.psql("create database told");
    for file in install {
        assert!(
            secured
                .cluster
                .psql("told", &["-qf", file])
                .unwrap()
                .status
                .success()
        );
    }
    let (port, files) = (secured.cluster.port(), secured.files.path());
    let client = secured.authority.issue("certified", &[]);
    let certificate = put(files, "told.crt", &client.certificate)
        .display()
        .to_string();
    let key = put(files, "told.key", &client.key).display().to_string();
    let passfile = put(files, "told.pgpass", &format!("*:{port}:*:*:{PASSWORD}\n"))
        .display()
        .to_string();
    let wrong_file = put(files, "wrong.pgpass", "*:*:*:*:hunter2\n")
        .display()
        .to_string();
    let at = format!("127.0.0.1:{port}/told?sslmode=require");
    let url = |login: &str| format!("postgres://{login}@{at}");
    let pairs = |password: &str| {
        format!("host=127.0.0.1 port={port} user=scram dbname=told password={password}")
    };
    let bare = url("scram");
    let base = [
        ("PGUSER", "scram"),
        ("PGDATABASE", "told"),
        ("PGHOST", "127.0.0.1"),
    ];
    let port_text = port.to_string();
    let from_variables = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
        let all = base
            .iter()
            .copied()
            .chain([("PGPORT", &*port_text)])
            .chain(more.iter().copied());
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let url_variable = |url: String| vec![("DATABASE_URL".to_owned(), url)];
    let with = |url: &str, name: &str, value: &str| {
        vec![
            ("DATABASE_URL".to_owned(), url.to_owned()),
            (name.to_owned(), value.to_owned()),
        ]
    };
    let certified = format!("{}&sslcert={certificate}&sslkey={key}", url("certified"));
    // Whether it works.
    let cases = [
        (true, url_variable(url(&format!("scram:{PASSWORD}")))),
        (true, url_variable(pairs(PASSWORD))),
        (true, with(&bare, "PGPASSWORD", PASSWORD)),
        (true, with(&bare, "PGPASSFILE", &passfile)),
        (
            true,
            from_variables(&[("PGPASSWORD", PASSWORD), ("PGSSLMODE", "require")]),
        ),
        (true, from_variables(&[("PGPASSFILE", &passfile)])),
        (false, url_variable(certified)),
        (false, url_variable(url("scram:hunter%32"))),
        (false, url_variable(pairs("hunter2"))),
        (false, with(&bare, "PGPASSWORD", "hunter2")),
        (false, with(&bare, "PGPASSFILE", &wrong_file)),
        (false, from_variables(&[("PGPASSWORD", "hunter2")])),
        (
            false,
            with(&url("scram:hunter2"), "PGSSLROOTCERT", "system"),
        ),
        (
            false,
            url_variable("postgres://scram:hunter2@127.0.0.1:1/told".to_owned()),
        ),
        (
            false,
            url_variable("postgres://scram:hunter2@no-such-host.invalid/told".to_owned()),
        ),
        // Mistakes: what is not where it belongs is not told either.
        (
            false,
            url_variable("postgres://scram:hunter2/x@127.0.0.1/told".to_owned()),
        ),
        (false, url_variable("postgres://scram:hunter2".to_owned())),
        (
            false,
            url_variable("postgres://scram:x@hunter2@127.0.0.1/told".to_owned()),
        ),
        (false, url_variable(pairs("hunter2 hunter3"))),
        (false, url_variable(pairs("'hunter2"))),
        (false, with(&bare, "PGSSLMODE", "hunter2")),
        (false, with(&bare, "PGPORT", "hunter2")),
        (
            false,
            url_variable(format!("{bare}&sslcert={key}&sslkey={certificate}")),
        ),
    ];
    for (works, variables) in &cases {
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        for arguments in [
            &["dump"][..],
            &["sql", "check", "--apply"],
            &["serve", "--listen", "127.0.0.1:0"],
        ] {
            if *works && arguments[0] == "serve" {
                // Runs for ever; tests/service.rs and the dump have the same connection.
                continue;
            }
            let (code, said) = run(arguments, &variables);
            assert_eq!(
                code == Some(0),
                *works,
                "{arguments:?} {variables:?}: {said}"
            );
            for secret in SECRETS {
                assert!(
                    !said.contains(secret),
                    "{arguments:?} {variables:?}: {said}"
                );
            }
        }
    }
}

#[test]
fn a_log_at_trace_is_a_log() {
    // Else the test above would see nothing.
    let secured = secured();
    let url = secured.dsn("scram", &format!("password={PASSWORD}"));
    let (_, said) = run(&["dump"], &[("DATABASE_URL", &url)]);
    assert!(
        said.contains("tokio_postgres") || said.contains("TRACE") || said.contains("DEBUG"),
        "{said}"
    );
}

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
