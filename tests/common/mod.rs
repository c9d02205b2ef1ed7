//! What all test binaries share: one private cluster a process, one database a test.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used
)]

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

#[path = "../../src/demo/cluster.rs"]
pub mod cluster;

use cluster::Cluster;

/// The cluster of this test process. Its watchdog deletes it when the process ends.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Cluster::start(&[
            "fsync = off",
            "max_connections = 200",
            "max_prepared_transactions = 10",
        ])
        .expect("a private PostgreSQL cluster (Debian: apt-get install postgresql)")
    })
}

/// A database of one test, dropped with the cluster.
#[derive(Debug, Clone)]
pub struct Database {
    pub name: String,
}

impl Database {
    /// An empty database.
    pub fn empty() -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        psql("postgres", &["-qc", &format!("create database {name}")]);
        Database { name }
    }

    pub fn dsn(&self) -> String {
        cluster().dsn(&self.name)
    }

    /// Runs statements through psql and returns the rows, unaligned; fails the test on an error.
    pub fn psql(&self, sql: &str) -> String {
        psql(&self.name, &["-qAtc", sql])
    }
}

/// Runs psql as the superuser; fails the test unless it succeeds.
pub fn psql(database: &str, args: &[&str]) -> String {
    let output = cluster().psql(database, args).expect("psql starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "psql {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}
