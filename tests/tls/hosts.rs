//! Several hosts in one connection string, most of them of no use.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
};

use oddscache::{Config, Error, tokio_postgres::config::Host};
use oddscache_testkit::cluster::Cluster;

use crate::{PASSWORD, assert_says, opened, refusal, secured};

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
        // A client that has closed it already gets nothing.
        let _ = stream.write_all(answer);
    })
}

/// Nobody is there.
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

/// A connection string of two servers by their sockets, with one more parameter.
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

/// The port of the server that is connected to.
async fn port(config: Config) -> Result<u16, Error> {
    let (client, wire) = config.open().await?;
    tokio::spawn(wire);
    let port = "select current_setting('port')::int";
    let row = client.query_one(port, &[]).await.expect("a setting");
    Ok(row.get::<_, i32>(0) as u16)
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
        assert!(opened(&dsn).await);
    }
    // The name of a server's socket, and a host without an address, are no obstacle either.
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

#[tokio::test(flavor = "multi_thread")]
async fn each_host_is_named_with_what_it_said() {
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
    // Where nothing comes of waiting, nobody waits.
    let error = refused(&[good, good], "require").await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let error = refused(&[http, http], "require").await;
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_stand_in_for_names() {
    let port = secured().cluster.port();
    let login = format!("user=scram password={PASSWORD} dbname=postgres port={port}");
    assert!(opened(&format!("hostaddr=127.0.0.1 {login}")).await);
    let root = secured().files.path().join("root.crt");
    let verified = format!("{login} sslmode=verify-full sslrootcert={}", root.display());
    assert!(opened(&format!("hostaddr=127.0.0.1 {verified}")).await);
    // The name is what the certificate must bear, and is not looked up.
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

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_of_the_wanted_kind_will_do() {
    let read_only = Cluster::start(&["fsync = off", "default_transaction_read_only = on"]).unwrap();
    let writable = oddscache_testkit::cluster();
    let dsn = |wanted: &str| of_two(&read_only, writable, "target_session_attrs", wanted);
    let port_of = async |wanted: &str| port(Config::new(&dsn(wanted)).unwrap()).await;
    for (wanted, found) in [
        ("any", read_only.port()),
        ("read-only", read_only.port()),
        ("read-write", writable.port()),
        // Both are.
        ("primary", read_only.port()),
        // None is.
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

#[tokio::test(flavor = "multi_thread")]
async fn load_is_spread_if_asked_for() {
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

/// What the driver's own configuration says is kept.
#[tokio::test(flavor = "multi_thread")]
async fn the_drivers_configuration_is_taken_as_it_is() {
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
    let (client, wire) = Config::from_postgres(driver).open().await.unwrap();
    tokio::spawn(wire);
    let sql = "select current_setting('work_mem'), current_setting('application_name'), ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("77MB", "mine", true));
}
