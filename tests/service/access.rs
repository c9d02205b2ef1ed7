//! Access to the service: tokens, TLS, and listening beyond this machine.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use oddscache_testkit::service::{Ended, Service, command, ended, run};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{eventually, lifecycle::with_large_odds, limits::say, with_odds};

/// Writes a file that only its owner may read. Returns its path.
pub(super) fn put(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Only `/livez` and `/readyz` answer without the token. It can be renewed, and no log contains it.
#[tokio::test]
async fn every_path_but_health_requires_the_token() {
    let database = with_odds();
    let (one, two) = ("one-token-0123456789abcdef", "two-token-0123456789abcdef");
    let directory = tempfile::tempdir().unwrap();
    let file = put(directory.path(), "token", one);
    let log = ["--log", "debug,tokio_postgres=warn"];
    let variables = [("ODDSCACHE_TOKEN_FILE", &*file)];
    let mut served = Service::start_with(&database.dsn(), &log, &variables).await;
    served.ready().await;
    let ask = async |path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        served.ask(path, &[("authorization", &bearer)]).await
    };
    for path in [
        "/v1/events",
        "/v1/changes",
        "/v1/dump",
        "/metrics",
        "/v1/stats",
        "/nowhere",
    ] {
        let answers = [
            served.ask(path, &[]).await,
            ask(path, two).await,
            ask(path, "").await,
        ];
        for answer in answers {
            assert_eq!(answer.status(), 401, "{path}");
            let wanted = &answer.headers()["www-authenticate"];
            assert_eq!(wanted, "Bearer realm=\"oddscache\"");
            let text = answer.text().await.unwrap();
            assert!(text.contains("Authorization: Bearer"), "{text}");
        }
    }
    assert_eq!(ask("/v1/events", one).await.status(), 200);
    for path in ["/livez", "/readyz"] {
        assert_eq!(served.get(path).await.0, 200, "{path}");
    }
    let metrics = ask("/metrics", one).await.text().await.unwrap();
    let counted = "\noddscache_http_unauthorized_total 18\n";
    assert!(metrics.contains(counted), "{metrics}");

    // SIGHUP reads the token file again. If that fails, the old token stays valid.
    put(directory.path(), "token", two);
    served.signal("-HUP");
    eventually("the new token", async || {
        ask("/v1/stats", two).await.status() == 200
    })
    .await;
    put(directory.path(), "token", "");
    served.signal("-HUP");
    served.logs(&["SIGHUP", "no token"]).await;
    for (token, status) in [(one, 401), (two, 200)] {
        let bearer = format!("Bearer {token}");
        let answer = served.ask("/v1/stats", &[("authorization", &bearer)]).await;
        assert_eq!(answer.status(), status, "{token}");
    }

    // The commands send the token, and no log contains it.
    let explain = |token: &str| {
        let mut explain = command(&["explain", "1", "--url", &served.base]);
        explain.env("DATABASE_URL", database.dsn());
        ended(explain.env("ODDSCACHE_TOKEN", token))
    };
    explain(two).ok();
    let refused = explain(one);
    assert!(refused.errors.contains("requires a token"), "{refused:?}");
    served.signal("-TERM");
    let log = served.rest_of_log().await.concat();
    assert!(!log.contains("token-0123"), "{log}");
    let mut short = command(&["serve", "--token", "short"]);
    let Ended { errors, .. } = ended(short.env("DATABASE_URL", database.dsn())).with(2, &["16"]);
    assert!(!errors.contains("short"), "{errors}");
}

/// A certificate for 127.0.0.1, its key, and the certificate of its authority, in PEM.
pub(super) fn certificate() -> [String; 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = parameters.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(parameters, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    [certificate.pem(), key.serialize_pem(), ca]
}

/// Opens a TLS connection that trusts `ca` alone. Its receive buffer is small.
pub(super) async fn shake_hands(
    address: SocketAddr,
    ca: &str,
) -> Result<TlsStream<TcpStream>, String> {
    shake_hands_for(address, ca, &[]).await
}

/// The same, for one of these protocols.
pub(super) async fn shake_hands_for(
    address: SocketAddr,
    ca: &str,
    protocols: &[&str],
) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(address.ip().into(), stream).await;
    stream.map_err(|error| error.to_string())
}

/// Sends a request over TLS, trusting `ca` alone.
async fn ask_tls(address: SocketAddr, ca: &str) -> Result<String, String> {
    let mut stream = shake_hands(address, ca).await?;
    let request = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    read.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `--idle-timeout` also works over TLS. Unit tests of `io_timeout` cover a connection that is in the middle of a
/// flush.
#[tokio::test]
async fn a_silent_client_is_cut_off_after_a_large_response_over_tls() {
    let database = with_large_odds();
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key, ca] = certificate();
    let cert = put(directory.path(), "cert.pem", &certificate);
    let key = put(directory.path(), "key.pem", &key);
    let mut more = vec!["--tls-cert", &cert, "--tls-key", &key];
    more.extend(["--idle-timeout", "500ms"]);
    more.extend(super::limits::CUTS);
    let mut served = Service::start(&database.dsn(), &more).await;
    let url = served.base.replace("http:", "https:");
    eventually("ready", async || {
        ended(&mut command(&["ready", "--url", &url])).code == Some(0)
    })
    .await;
    let mut stream = shake_hands(served.address(), &ca).await.unwrap();
    let request = b"GET /v1/dump HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "it ended after {} bytes", answer.len());
        answer.extend_from_slice(&buffer[..count]);
    }
    assert!(answer.len() > 10_000_000, "{}", answer.len());
    let end = timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
    assert_eq!(end.expect("it is cut off").unwrap_or(0), 0);
    let cut = ["cut off", "the client asks for nothing"];
    served.logs(&cut).await;
}

/// SIGHUP reads the certificate again, so a new one needs no restart.
#[tokio::test]
async fn tls_is_served_and_its_certificate_renewed() {
    let database = with_odds();
    let directory = tempfile::tempdir().unwrap();
    let put = |pem: &[String; 3]| {
        let names = ["cert.pem", "key.pem", "ca.pem"];
        let file = |at: usize| put(directory.path(), names[at], &pem[at]);
        [file(0), file(1), file(2)]
    };
    let (first, second) = (certificate(), certificate());
    let [cert, key, ca] = put(&first);
    let files = ["--tls-cert", &cert, "--tls-key", &key];
    let more = [&files[..], &["--head-timeout", "500ms"]].concat();
    let served = Service::start(&database.dsn(), &more).await;
    let address = served.address();
    let probe = |name: &str| {
        let mut probe = command(&[name]);
        probe.env("ODDSCACHE_LISTEN", address.to_string());
        ended(probe.env("ODDSCACHE_TLS_CERT", &cert)).code
    };
    eventually("ready over TLS", async || probe("ready") == Some(0)).await;
    let answer = ask_tls(address, &first[2]).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask_tls(address, &second[2]).await.is_err());
    // Clients that do not speak TLS, or send nothing, do not hold up the others.
    for words in ["GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", ""] {
        assert!(!say(&served, words).await.contains("HTTP/1.1 200"));
    }
    let url = format!("https://{address}");
    let mut explain = command(&["explain", "1", "--url", &url, "--ca", &ca]);
    ended(explain.env("DATABASE_URL", database.dsn())).ok();

    put(&second);
    served.signal("-HUP");
    eventually("the new certificate", async || {
        ask_tls(address, &second[2]).await.is_ok()
    })
    .await;
    assert_eq!(probe("health"), Some(0));

    for (files, word) in [
        (&["--tls-cert", &cert][..], "--tls-key"),
        (&["--tls-cert", &cert, "--tls-key", "/nowhere"], "/nowhere"),
        (&["--tls-cert", &key, "--tls-key", &key], "--tls-cert"),
    ] {
        run(&[&["serve"], files].concat(), &database.dsn()).with(1, &[word]);
    }
}

/// Without token and TLS, anybody who reaches the address can read everything.
#[tokio::test]
async fn the_service_warns_when_it_listens_beyond_this_machine() {
    let database = with_odds();
    let mut serve = command(&["serve", "--listen", "0.0.0.0:0", "--log-format", "json"]);
    serve.env("DATABASE_URL", database.dsn());
    let mut served = Service::spawn(serve).await;
    let warning = "listening beyond this machine";
    served.logs(&[warning, "--token-file", "--tls-cert"]).await;
}
