//! Several hosts in one connection string, most of which do not work.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
};

use oddscache::{Config, Error, tokio_postgres::config::Host};
use oddscache_testkit::cluster::Cluster;

use crate::{PASSWORD, assert_says, opened, refusal, secured};

/// Starts a listener that gives its connections to `serve`, one after the other. Returns its port. It ends with the
/// process.
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

/// A host that accepts connections and never answers.
fn deaf() -> u16 {
    let mut held = Vec::new();
    listener(move |stream| held.push(stream))
}

/// A host that answers, but is no PostgreSQL server.
fn garbage(answer: &'static [u8]) -> u16 {
    listener(move |mut stream| {
        // The client may have closed the connection already.
        let _ = stream.write_all(answer);
    })
}

/// A port on which nobody listens.
fn refusing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn dsn(ports: &[u16], more: &str) -> String {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "host={hosts} port={} user=scram password={} dbname=postgres {more}",
        ports.join(","),
        PASSWORD
    )
}

/// A connection string for two servers by their sockets, with one more parameter.
fn of_two(first: &Cluster, second: &Cluster, name: &str, value: &str) -> String {
    let socket = |cluster: &Cluster| cluster.socket_dir().display().to_string();
    format!(
        "host={},{} port={},{} user=postgres dbname=postgres {name}={value}",
        socket(first),
        socket(second),
        first.port(),
        second.port()
    )
}

/// Connects. Returns the port of the server.
async fn port(config: Config) -> Result<u16, Error> {
    let (client, wire) = config.open().await?;
    tokio::spawn(wire);
    let port = "select current_setting('port')::int";
    let row = client.query_one(port, &[]).await.expect("a setting");
    Ok(row.get::<_, i32>(0) as u16)
}

/// Each host has its own time-out. Two hosts that never answer would use up a time-out that all hosts share.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_works_is_found_behind_those_that_do_not() {
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
        assert!(opened(&dsn).await);
    }
    // A missing socket directory and an unknown host name are no obstacle either.
    let more = format!(
        "connect_timeout=2 user=scram password={} dbname=postgres",
        PASSWORD
    );
    let mixed = format!("host=/nowhere,no-such-host.invalid,localhost port=1,1,{good} {more}");
    assert!(opened(&mixed).await);
    let url = format!(
        "postgres://no-such-host.invalid:1,127.0.0.1:{good}/postgres?user=scram&password={}",
        PASSWORD
    );
    assert!(opened(&url).await);
}

/// An operator sees for each host why it failed, without a password.
#[tokio::test(flavor = "multi_thread")]
async fn the_error_names_each_host_with_its_own_error() {
    let good = secured().cluster.port();
    let (deaf, refusing, http) = (
        deaf(),
        refusing(),
        garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    );
    let wrong = "connect_timeout=1 password=hunter2 sslmode=";
    let refused = async |ports: &[u16], mode: &str| {
        let dsn = dsn(ports, &format!("{wrong}{mode}"));
        refusal(&dsn).await
    };
    let error = refused(&[refusing, deaf, http, good], "prefer").await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    for (port, told) in [
        (refusing, &["error connecting", "refused"][..]),
        (deaf, &["no answer within 1 s"]),
        (http, &[]),
        (good, &["28P01"]),
    ] {
        let host = format!("127.0.0.1:{port}: ");
        let (_, rest) = text.split_once(&host).expect(&text);
        let said = rest.split("; ").next().unwrap();
        assert!(told.iter().all(|word| said.contains(word)), "{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    // If waiting does not help with any host, the error says so.
    let error = refused(&[good, good], "require").await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let error = refused(&[http, http], "require").await;
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}

/// `hostaddr` works as in libpq.
#[tokio::test(flavor = "multi_thread")]
async fn hostaddr_replaces_the_look_up_of_a_name() {
    let port = secured().cluster.port();
    let login = format!("user=scram password={PASSWORD} dbname=postgres port={port}");
    assert!(opened(&format!("hostaddr=127.0.0.1 {login}")).await);
    let root = secured().files.path().join("root.crt");
    let verified = format!("{login} sslmode=verify-full sslrootcert={}", root.display());
    assert!(opened(&format!("hostaddr=127.0.0.1 {verified}")).await);
    // With an address, the name is not looked up. The certificate must contain it.
    assert!(opened(&format!("host=localhost hostaddr=127.0.0.1 {verified}")).await);
    let error = refusal(&format!("host=db.invalid hostaddr=127.0.0.1 {verified}")).await;
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert_says(&error, &["localhost"]);
    for (more, told) in [
        ("host=a,b hostaddr=127.0.0.1", "hostaddr"),
        ("host=a,b port=1,2,3", "ports"),
    ] {
        assert_says(&Config::new(more).unwrap_err(), &[told]);
    }
}

/// All values of `target_session_attrs` work as in libpq.
#[tokio::test(flavor = "multi_thread")]
async fn target_session_attrs_chooses_the_server() {
    let read_only = Cluster::start(&["fsync = off", "default_transaction_read_only = on"]).unwrap();
    let writable = oddscache_testkit::cluster();
    let dsn = |wanted: &str| of_two(&read_only, writable, "target_session_attrs", wanted);
    let port_of = async |wanted: &str| port(Config::new(&dsn(wanted)).unwrap()).await;
    for (wanted, found) in [
        ("any", read_only.port()),
        ("read-only", read_only.port()),
        ("read-write", writable.port()),
        // Both are primaries.
        ("primary", read_only.port()),
        // Neither is a standby.
        ("prefer-standby", read_only.port()),
    ] {
        assert_eq!(port_of(wanted).await.unwrap(), found, "{wanted}");
    }
    let error = port_of("standby").await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_says(&error, &["it is not a standby"]);
    let driver: oddscache::tokio_postgres::Config = dsn("read-write").parse().unwrap();
    let found = port(Config::from_postgres(driver)).await;
    assert_eq!(found.unwrap(), writable.port());
}

/// `load_balance_hosts=random` spreads caches over servers.
#[tokio::test(flavor = "multi_thread")]
async fn load_balance_hosts_chooses_at_random() {
    let (one, other) = (oddscache_testkit::cluster(), &secured().cluster);
    let first = async |balance: &str| {
        let dsn = of_two(one, other, "load_balance_hosts", balance);
        port(Config::new(&dsn).unwrap()).await.unwrap() == one.port()
    };
    let mut seen = Vec::new();
    for _ in 0..40 {
        assert!(first("disable").await);
        seen.push(first("random").await);
    }
    assert!(seen.contains(&true) && seen.contains(&false), "{seen:?}");
}

/// A `tokio_postgres::Config` keeps all its settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_the_driver_is_kept() {
    let mut driver = oddscache::tokio_postgres::Config::new();
    driver
        .host("localhost")
        .hostaddr([127, 0, 0, 1].into())
        .port(secured().cluster.port())
        .user("scram")
        .password(PASSWORD)
        .dbname("postgres")
        .application_name("mine")
        .options("-c work_mem=77MB")
        .ssl_mode(oddscache::tokio_postgres::config::SslMode::Require);
    assert_eq!(driver.get_hosts(), [Host::Tcp("localhost".to_owned())]);
    let (client, connection) = Config::from_postgres(driver).open().await.unwrap();
    tokio::spawn(connection);
    let sql = "select current_setting('work_mem'), current_setting('application_name'), ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("77MB", "mine", true));
}
