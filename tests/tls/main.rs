//! Connections: TLS, several hosts, password files, and that no secret is shown.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod hosts;
mod modes;
mod own;
mod passwords;
mod secrets;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use oddscache::{Config, Error};
use oddscache_testkit::{
    certificates::{Authority, Certified},
    cluster::Cluster,
    service::{Ended, ended, isolate},
};

/// A cluster with TLS, its authority, and files for its clients.
pub struct Secured {
    pub cluster: Cluster,
    pub authority: Authority,
    pub files: tempfile::TempDir,
}

/// The password of the role `scram`.
pub const PASSWORD: &str = "open-sesame";

impl Secured {
    /// Starts a cluster with a certificate for localhost. The file `root.crt` contains its authority.
    pub fn start() -> Secured {
        let authority = Authority::new("root");
        let server = authority.issue("server", &["localhost", "127.0.0.1"]);
        let cluster = Cluster::start(&["fsync = off"]).expect("a private PostgreSQL cluster");
        let secured = Secured {
            cluster,
            files: tempfile::tempdir().unwrap(),
            authority,
        };
        secured.put("root.crt", &secured.authority.certificate);
        secured.psql(&format!(
            "create role scram login superuser password '{PASSWORD}'; create role certified login; \
             create role plain login; create role secure login"
        ));
        let trust = "127.0.0.1/32 trust";
        let hba = [
            "hostssl all scram 127.0.0.1/32 scram-sha-256",
            "hostssl all certified 127.0.0.1/32 cert",
            &format!("hostssl all secure {trust}"),
            &format!("hostnossl all plain {trust}"),
        ];
        secured.cluster.set_hba(&hba).unwrap();
        secured.serve(&server);
        secured
    }

    /// Restarts the server with this certificate.
    pub fn serve(&self, server: &Certified) {
        let Certified { certificate, key } = server;
        let roots = &self.authority.certificate;
        self.cluster.stop("fast").unwrap();
        self.cluster.serve_tls(certificate, key, roots).unwrap();
        self.cluster.boot().unwrap();
    }

    /// Writes a file that only its owner may read.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        put(self.files.path(), name, text)
    }

    pub fn psql(&self, sql: &str) {
        self.cluster.sql(sql);
    }

    /// A connection string for TCP, with more parameters.
    pub fn dsn(&self, user: &str, more: &str) -> String {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=postgres {more}",
            self.cluster.port()
        )
    }

    /// Connects with psql, which uses libpq, by this connection string.
    pub fn libpq(&self, dsn: &str) -> Result<(), String> {
        let psql = self.cluster.client("psql").unwrap();
        let mut psql = std::process::Command::new(psql.get_program());
        isolate(&mut psql);
        psql.args(["-XqAtd", dsn, "-c", "select 1"])
            .env("HOME", self.files.path());
        match ended(&mut psql) {
            Ended { code: Some(0), .. } => Ok(()),
            Ended { errors, .. } => Err(errors),
        }
    }
}

/// A cluster that no test changes.
pub fn secured() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    SECURED.get_or_init(Secured::start)
}

pub fn put(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Connects. Returns whether the connection uses TLS.
pub async fn open(config: Config) -> Result<bool, Error> {
    let opening = tokio::time::timeout(Duration::from_secs(60), config.open()).await;
    let (client, connection) = opening.expect("connecting ends")?;
    tokio::spawn(connection);
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    Ok(client.query_one(sql, &[]).await.expect("an answer").get(0))
}

pub async fn open_dsn(dsn: &str) -> Result<bool, Error> {
    open(Config::new(dsn)?).await
}

/// Connects. Fails the test on an error. Returns whether the connection uses TLS.
pub async fn opened(dsn: &str) -> bool {
    let opened = open_dsn(dsn).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// The error of a connection that must fail.
pub async fn refusal(dsn: &str) -> Error {
    open_dsn(dsn).await.expect_err("must not connect")
}

/// Fails the test unless the error contains these words.
pub fn assert_says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}
