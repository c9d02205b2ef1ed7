//! Password files, compared with libpq.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use oddscache::{Config, Error};
use oddscache_testkit::cluster::Cluster;

use crate::{PASSWORD, assert_says, open, open_dsn, opened, put, refusal, secured};

/// A password of the file goes only to the host, port, database and role of its line.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_gives_the_password_of_the_right_host_only() {
    let (secured, directory) = (secured(), tempfile::tempdir().unwrap());
    let port = secured.cluster.port();
    let file = |lines: &str| put(directory.path(), "pgpass", lines);
    let login = format!("host=localhost port={port} user=scram dbname=postgres");
    let path = file(&format!(
        "#localhost:*:*:*:x\nother:{port}:*:*:x\nlocalhost:{port}:postgres:scram:{PASSWORD}\n"
    ));
    let dsn = format!("{login} passfile={}", path.display());
    assert!(opened(&dsn).await);
    secured.libpq(&dsn).unwrap();
    let config = Config::new(&login).unwrap().passfile(&path);
    assert!(open(config).await.unwrap());
    // A password file is used only if it is named, and only if there is no other password.
    for dsn in [&login, &format!("{dsn} password=x")] {
        let error = refusal(dsn).await;
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    }
    // Each host gets its own password. The first host refuses it or has none.
    let both = dsn.replace("host=localhost", "host=127.0.0.1,localhost");
    assert!(opened(&both).await);
    // The error says that the password of the file is wrong, and does not show it.
    file(&format!("*:{port}:*:*:hunter2\n"));
    let error = refusal(&dsn).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_says(&error, &["password file"]);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    // The file is read again for each connection. A file that others may read is ignored.
    file(&format!("*:*:*:*:{PASSWORD}\n"));
    assert!(opened(&dsn).await);
    let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o604);
    assert!(open_dsn(&dsn).await.is_err());
    assert!(secured.libpq(&dsn).is_err());
    // The group may read a file of root, because systemd stores credentials like that. It may not read a file of
    // another owner, and not write to any.
    allow(0o440);
    let is_roots = fs::metadata(&path).unwrap().uid() == 0;
    assert_eq!(open_dsn(&dsn).await.is_ok(), is_roots);
    allow(0o660);
    assert!(open_dsn(&dsn).await.is_err());
    if is_roots {
        chown(&path, Some(65534), None).unwrap();
        allow(0o440);
        assert!(open_dsn(&dsn).await.is_err());
        allow(0o400);
        assert!(opened(&dsn).await);
    }
    fs::remove_file(&path).unwrap();
    assert!(open_dsn(&dsn).await.is_err());
}

/// A socket is found by its directory. The default directory also counts as localhost.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_names_a_socket_by_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&["fsync = off"]).unwrap();
    let sql = format!("create role scram login password '{PASSWORD}'");
    cluster.sql(&sql);
    cluster.set_hba(&["local all scram scram-sha-256"]).unwrap();
    cluster.stop("fast").unwrap();
    cluster.boot().unwrap();
    let socket = cluster.socket_dir().display().to_string();
    for (host, opens) in [(socket.as_str(), true), ("*", true), ("localhost", false)] {
        let line = format!("{host}:*:*:*:{PASSWORD}\n");
        let path = put(directory.path(), "pgpass", &line);
        let dsn = cluster.dsn_as("scram", "postgres");
        let dsn = format!("{dsn} passfile={}", path.display());
        assert_eq!(open_dsn(&dsn).await.is_ok(), opens, "{host}");
        assert_eq!(secured().libpq(&dsn).is_ok(), opens, "{host}");
    }
}
