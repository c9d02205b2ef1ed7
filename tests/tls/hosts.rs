//! Several hosts in one connection string, most of them of no use.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
};

use oddscache::{Config, Error, tokio_postgres::config::Host};
use oddscache_testkit::cluster::Cluster;

use crate::{open_dsn, secured};

/// A listener on its own port, whose connections `serve` gets one after the other. Ends with the process.
fn listener(mut serve: impl FnMut(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    port
}

/// Accepts and never answers.
fn deaf() -> u16 {
    let mut held = Vec::new();
    listener(move |stream| held.push(stream))
}

/// Answers, but is no PostgreSQL.
fn garbage(answer: &'static [u8]) -> u16 {
    listener(move |mut stream| {
        // Whoever has closed it already gets nothing.
        let _ = stream.write_all(answer);
    })
}

/// Nobody is there.
fn refusing() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn dsn(ports: &[u16], more: &str) -> String {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "host={hosts} port={} user=scram password={} dbname=postgres {more}",
        ports.join(","),
        crate::PASSWORD
    )
}

/// Two deaf ones would use up any time that all hosts had in common.
#[tokio::test(flavor = "multi_thread")]
async fn the_good_host_is_found_behind_all_that_are_not() {
    let good = secured().cluster.port();
    let http = garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let ports = [
        refusing(),
        deaf(),
        http,
        garbage(b"S not TLS at all"),
        garbage(b""),
        deaf(),
        good,
    ];
    for mode in ["prefer", "require"] {
        let dsn = dsn(&ports, &format!("connect_timeout=1 sslmode={mode}"));
        assert!(open_dsn(&dsn).await.unwrap(), "{mode}");
    }
    // The name of a server's socket, and a host without an address, are no obstacle either.
    let more = format!(
        "connect_timeout=2 user=scram password={} dbname=postgres",
        crate::PASSWORD
    );
    let mixed = format!("host=/nowhere,no-such-host.invalid,localhost port=1,1,{good} {more}");
    assert!(open_dsn(&mixed).await.unwrap());
    let url = format!(
        "postgres://no-such-host.invalid:1,127.0.0.1:{good}/postgres?user=scram&password={}",
        crate::PASSWORD
    );
    assert!(open_dsn(&url).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_is_named_with_what_it_said() {
    let good = secured().cluster.port();
    let (deaf, refusing, http) = (
        deaf(),
        refusing(),
        garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    );
    let wrong = "connect_timeout=1 password=hunter2 sslmode=";
    let error = open_dsn(&dsn(
        &[refusing, deaf, http, good],
        &format!("{wrong}prefer"),
    ))
    .await
    .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    for (port, told) in [
        (refusing, "refused"),
        (deaf, "no answer within 1 s"),
        (http, ""),
        (good, "28P01"),
    ] {
        let from = text.find(&format!(
            "127.0.0.1:{port}: {}",
            if told == "refused" {
                "error connecting"
            } else {
                ""
            }
        ));
        let from = from.unwrap_or_else(|| panic!("{port}: {text}"));
        assert!(
            text[from..].split("; ").next().unwrap().contains(told),
            "{told}: {text}"
        );
    }
    assert!(!text.contains("hunter2"), "{text}");
    // Where nothing comes of waiting, nobody waits.
    let error = open_dsn(&dsn(&[good, good], &format!("{wrong}require")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let error = open_dsn(&dsn(&[http, http], &format!("{wrong}require")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_stand_in_for_names() {
    let port = secured().cluster.port();
    let login = format!(
        "user=scram password={} dbname=postgres port={port}",
        crate::PASSWORD
    );
    assert!(
        open_dsn(&format!("hostaddr=127.0.0.1 {login}"))
            .await
            .unwrap()
    );
    let root = secured().files.path().join("root.crt");
    let verified = format!("{login} sslmode=verify-full sslrootcert={}", root.display());
    assert!(
        open_dsn(&format!("hostaddr=127.0.0.1 {verified}"))
            .await
            .unwrap()
    );
    // The name is what the certificate must bear, and is not looked up.
    assert!(
        open_dsn(&format!("host=localhost hostaddr=127.0.0.1 {verified}"))
            .await
            .unwrap()
    );
    let error = open_dsn(&format!("host=db.invalid hostaddr=127.0.0.1 {verified}"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Tls { reason, .. } if reason.contains("localhost")),
        "{error}"
    );
    for (more, told) in [
        ("host=a,b hostaddr=127.0.0.1", "hostaddr"),
        ("host=a,b port=1,2,3", "ports"),
    ] {
        let error = Config::new(more).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_of_the_wanted_kind_will_do() {
    let read_only = Cluster::start(&["fsync = off", "default_transaction_read_only = on"]).unwrap();
    let writable = oddscache_testkit::cluster();
    let socket = |cluster: &Cluster| cluster.socket_dir().display().to_string();
    let dsn = |wanted: &str| {
        format!(
            "host={},{} port={},{} user=postgres dbname=postgres target_session_attrs={wanted}",
            socket(&read_only),
            socket(writable),
            read_only.port(),
            writable.port()
        )
    };
    let port = async |wanted: &str| -> Result<u16, Error> {
        let (client, connection) = Config::new(&dsn(wanted))?.open().await?;
        tokio::spawn(connection);
        let row = client
            .query_one("select current_setting('port')", &[])
            .await
            .unwrap();
        Ok(row.get::<_, String>(0).parse().unwrap())
    };
    for (wanted, found) in [
        ("any", read_only.port()),
        ("read-only", read_only.port()),
        ("read-write", writable.port()),
        // Both are.
        ("primary", read_only.port()),
        // None is.
        ("prefer-standby", read_only.port()),
    ] {
        assert_eq!(port(wanted).await.unwrap(), found, "{wanted}");
    }
    let error = port("standby").await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("it is not a standby"),
        "{error}"
    );
    let driver: oddscache::tokio_postgres::Config = dsn("read-write").parse().unwrap();
    let (client, connection) = Config::from_postgres(driver).open().await.unwrap();
    tokio::spawn(connection);
    let row = client
        .query_one("show transaction_read_only", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "off");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_spread_if_asked_for() {
    let (one, other) = (oddscache_testkit::cluster(), &secured().cluster);
    let dsn = |balance: &str| {
        let socket = |cluster: &Cluster| cluster.socket_dir().display().to_string();
        let (hosts, ports) = (
            socket(one) + "," + &socket(other),
            format!("{},{}", one.port(), other.port()),
        );
        format!(
            "host={hosts} port={ports} user=postgres dbname=postgres load_balance_hosts={balance}"
        )
    };
    let first = async |balance: &str| {
        let (client, connection) = Config::new(&dsn(balance)).unwrap().open().await.unwrap();
        tokio::spawn(connection);
        let row = client
            .query_one("select current_setting('port')", &[])
            .await
            .unwrap();
        row.get::<_, String>(0) == one.port().to_string()
    };
    let mut seen = Vec::new();
    for _ in 0..40 {
        assert!(first("disable").await);
        seen.push(first("random").await);
    }
    assert!(seen.contains(&true) && seen.contains(&false), "{seen:?}");
}

/// What the driver's own configuration says is kept.
#[tokio::test(flavor = "multi_thread")]
async fn the_drivers_configuration_is_taken_as_it_is() {
    let mut driver = oddscache::tokio_postgres::Config::new();
    driver
        .host("localhost")
        .hostaddr([127, 0, 0, 1].into())
        .port(secured().cluster.port());
    driver
        .user("scram")
        .password(crate::PASSWORD)
        .dbname("postgres")
        .application_name("mine");
    driver
        .options("-c work_mem=77MB")
        .ssl_mode(oddscache::tokio_postgres::config::SslMode::Require);
    assert_eq!(driver.get_hosts(), [Host::Tcp("localhost".to_owned())]);
    let (client, connection) = Config::from_postgres(driver).open().await.unwrap();
    tokio::spawn(connection);
    let sql = "select current_setting('work_mem'), current_setting('application_name'), ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("77MB", "mine", true));
}
