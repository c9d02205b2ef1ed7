//! Who may ask, and how: tokens, TLS, and addresses beyond this machine.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use reqwest::Client;
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

use super::{
    Served, command, eventually, lifecycle::with_large_odds, limits::say, text, with_odds,
};

#[tokio::test]
async fn a_token_is_asked_for_everywhere_but_where_health_is_asked() {
    let database = with_odds();
    let (one, two) = ("one-token-0123456789abcdef", "two-token-0123456789abcdef");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(file.path(), one).unwrap();
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--log",
        "debug,tokio_postgres=warn",
    ];
    let variables = [("ODDSCACHE_TOKEN_FILE", file.path().to_str().unwrap())];
    let mut served = Served::start_with(&database.dsn(), &arguments, &variables).await;
    served.warm().await;
    let ask = async |path: &str, token: Option<&str>| {
        let mut request = Client::new().get(format!("{}{path}", served.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.expect("an answer")
    };
    for path in [
        "/v1/events",
        "/v1/changes",
        "/v1/dump",
        "/metrics",
        "/v1/stats",
        "/nowhere",
    ] {
        for token in [None, Some(two), Some("")] {
            let answer = ask(path, token).await;
            assert_eq!(answer.status(), 401, "{path}");
            assert_eq!(
                answer.headers()["www-authenticate"],
                "Bearer realm=\"oddscache\""
            );
            assert!(
                answer
                    .text()
                    .await
                    .unwrap()
                    .contains("Authorization: Bearer")
            );
        }
    }
    assert_eq!(ask("/v1/events", Some(one)).await.status(), 200);
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(path, None).await.status(), 200, "{path}");
    }

    let metrics = ask("/metrics", Some(one)).await.text().await.unwrap();
    assert!(
        metrics.contains("\noddscache_http_unauthorized_total 18\n"),
        "{metrics}"
    );

    // Renewed while it runs; where the file is no good, the old one stays.
    std::fs::write(file.path(), two).unwrap();
    served.signal("-HUP");
    eventually("the new token", async || {
        let answer = Client::new()
            .get(format!("{}/v1/stats", served.base))
            .bearer_auth(two)
            .send()
            .await;
        answer.unwrap().status() == 200
    })
    .await;
    std::fs::write(file.path(), "").unwrap();
    served.signal("-HUP");
    served.logs(&["SIGHUP", "no token"]).await;
    let stats = async |token: &str| {
        let request = Client::new()
            .get(format!("{}/v1/stats", served.base))
            .bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((stats(one).await, stats(two).await), (401, 200));

    // The tools send it, and no log has it.
    let explain = |token: &str| {
        let mut explain = command(&["explain", "1", "--url", &served.base]);
        explain
            .env("DATABASE_URL", database.dsn())
            .env("ODDSCACHE_TOKEN", token)
            .output()
            .unwrap()
    };
    assert!(explain(two).status.success());
    let refused = explain(one);
    assert!(
        text(&refused.stderr).contains("requires a token"),
        "{}",
        text(&refused.stderr)
    );
    served.signal("-TERM");
    while let Some(line) = served.log.next_line().await.unwrap() {
        assert!(!line.contains("token-0123"), "{line}");
    }
    let output = command(&["serve", "--token", "short"])
        .env("DATABASE_URL", database.dsn())
        .output()
        .unwrap();
    let errors = text(&output.stderr);
    assert!(
        output.status.code() == Some(2) && errors.contains("16") && !errors.contains("short"),
        "{errors}"
    );
}

/// A certificate for 127.0.0.1, its key, and who issued it, in PEM.
fn certificate() -> [String; 3] {
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

/// Shakes hands, trusting `ca` alone. Takes little at a time.
async fn shake_hands(address: SocketAddr, ca: &str) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(address.ip().into(), stream).await;
    stream.map_err(|error| error.to_string())
}

/// Asks over TLS, trusting `ca` alone.
async fn ask_tls(address: SocketAddr, ca: &str) -> Result<String, String> {
    let mut stream = shake_hands(address, ca).await?;
    stream
        .write_all(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(|error| error.to_string())?;
    Ok(text(&answer))
}

/// Whether it is in the middle of a flush then is for the network to say: that is tested with `Patient`.
#[tokio::test]
async fn over_tls_too_silence_after_a_large_answer_is_cut_off() {
    let database = with_large_odds();
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key, ca] = certificate();
    let put = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (put("cert.pem", &certificate), put("key.pem", &key));
    let more = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--idle-timeout",
        "500ms",
        "--log",
        "oddscache::server::commands::serve=info,oddscache::server::http::io_timeout=debug",
    ];
    let mut served = Served::start(&database.dsn(), &more).await;
    let url = served.base.replace("http:", "https:");
    eventually("ready", async || {
        let output = command(&["ready", "--url", &url]).output().unwrap();
        output.status.success()
    })
    .await;
    let mut stream = shake_hands(served.address(), &ca).await.unwrap();
    stream
        .write_all(b"GET /v1/dump HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "it ended after {} bytes", answer.len());
        answer.extend_from_slice(&buffer[..count]);
    }
    assert!(answer.len() > 10_000_000, "{}", answer.len());
    let end = timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
    assert_eq!(end.expect("it is cut off").unwrap_or(0), 0);
    served
        .logs(&["cut off", "the client asks for nothing"])
        .await;
}

#[tokio::test]
async fn tls_is_served_and_its_certificate_renewed() {
    let database = with_odds();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let put = |[certificate, key, ca]: &[String; 3]| {
        for (name, text) in [("cert.pem", certificate), ("key.pem", key), ("ca.pem", ca)] {
            std::fs::write(path(name), text).unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    };
    let (first, second) = (certificate(), certificate());
    put(&first);
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let more = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--head-timeout",
        "500ms",
    ];
    let served = Served::start(&database.dsn(), &more).await;
    let address = served.address();
    let probe = |arguments: &[&str]| {
        let mut probe = command(arguments);
        probe
            .env("ODDSCACHE_LISTEN", address.to_string())
            .env("ODDSCACHE_TLS_CERT", &cert);
        probe.output().unwrap().status.code()
    };
    eventually("ready over TLS", async || probe(&["ready"]) == Some(0)).await;
    let answer = ask_tls(address, &first[2]).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask_tls(address, &second[2]).await.is_err());
    // Whoever speaks plainly, or says nothing, is not waited for.
    for words in ["GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", ""] {
        assert!(!say(&served, words).await.contains("HTTP/1.1 200"));
    }
    let url = format!("https://{address}");
    let explain = command(&["explain", "1", "--url", &url, "--ca", &path("ca.pem")])
        .env("DATABASE_URL", database.dsn())
        .output()
        .unwrap();
    assert!(explain.status.success(), "{}", text(&explain.stderr));

    put(&second);
    served.signal("-HUP");
    eventually("the new certificate", async || {
        ask_tls(address, &second[2]).await.is_ok()
    })
    .await;
    assert_eq!(probe(&["health"]), Some(0));

    for (arguments, word) in [
        (&["serve", "--tls-cert", &cert][..], "--tls-key"),
        (
            &["serve", "--tls-cert", &cert, "--tls-key", "/nowhere"],
            "/nowhere",
        ),
        (
            &["serve", "--tls-cert", &key, "--tls-key", &key],
            "--tls-cert",
        ),
    ] {
        let output = command(arguments)
            .env("DATABASE_URL", database.dsn())
            .output()
            .unwrap();
        let errors = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && errors.contains(word),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn who_listens_beyond_this_machine_is_warned() {
    let database = with_odds();
    let arguments = ["serve", "--listen", "0.0.0.0:0", "--log-format", "json"];
    let mut served = Served::start_with(&database.dsn(), &arguments, &[]).await;
    served
        .logs(&[
            "listening beyond this machine",
            "--token-file",
            "--tls-cert",
        ])
        .await;
}
