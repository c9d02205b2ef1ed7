//! TLS: whom each side trusts, and what an error says.

use std::path::PathBuf;

use oddscache::Relay;
use oddscache_testkit::{
    Database,
    certificates::{Authority, Certified},
    nats::Nats,
};
use tempfile::TempDir;

use crate::{Publisher, Subscriber, assert_follows, assert_says, refusal};

/// A server with TLS, its authority, and files for its clients.
pub(crate) struct Secured {
    pub(crate) nats: Nats,
    authority: Authority,
    files: TempDir,
}

impl Secured {
    /// Starts it with a certificate for this host. `tls` are lines of the section `tls`, `settings` those beside it.
    pub(crate) async fn start(host: &str, tls: &str, settings: &str) -> Option<Secured> {
        let files = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("root");
        let (root, server) = (
            put(&files, "root.crt", &authority.certificate),
            put_pair(&files, "server", &authority.issue("server", &[host])),
        );
        let settings = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {root:?}\n{tls} }}\n{settings}",
            server.0, server.1
        );
        let nats = Nats::start(&settings).await?;
        Some(Secured {
            nats,
            authority,
            files,
        })
    }

    pub(crate) fn url(&self) -> String {
        self.nats.url().replace("nats://", "tls://")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.files.path().join("root.crt")
    }

    /// A relay whose client trusts the server.
    fn relay(&self) -> Relay {
        let relay = Relay::new(&self.url()).expect("a URL");
        relay.root_certificates(self.root())
    }

    /// A client certificate of this authority, and its key.
    pub(crate) fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        put_pair(&self.files, name, &self.authority.issue(name, &[]))
    }
}

fn put(files: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = files.path().join(name);
    std::fs::write(&path, text).expect("written");
    path
}

fn put_pair(files: &TempDir, name: &str, pair: &Certified) -> (PathBuf, PathBuf) {
    (
        put(files, &format!("{name}.crt"), &pair.certificate),
        put(files, &format!("{name}.key"), &pair.key),
    )
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted() {
    let Some(secured) = Secured::start("127.0.0.1", "", "").await else {
        return;
    };
    // Certificates require TLS even if the URL does not.
    let plain = Relay::new(&secured.nats.url()).expect("a URL");
    assert_follows(secured.relay(), plain.root_certificates(secured.root())).await;
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_is_refused() {
    let Some(secured) = Secured::start("127.0.0.1", "", "").await else {
        return;
    };
    let relay = || Relay::new(&secured.url()).expect("a URL");
    let put = |name: &str, text: &str| put(&secured.files, name, text);
    let other = put("other.crt", &Authority::new("root").certificate);
    let said = refusal(relay().root_certificates(other)).await;
    assert_says(&said, &["not of a trusted authority", "--relay-ca"]);
    // The authorities of the system do not know it.
    assert_says(&refusal(relay()).await, &["not of a trusted authority"]);
    let plain = Relay::new(&secured.nats.url()).expect("a URL");
    assert_says(&refusal(plain).await, &["write tls:// in place of nats://"]);
    let nowhere = secured.files.path().join("nowhere.crt");
    let said = refusal(relay().root_certificates(nowhere)).await;
    assert_says(&said, &["root certificates", "nowhere.crt", "No such file"]);
    let said = refusal(relay().root_certificates(put("empty.crt", "no PEM"))).await;
    assert_says(&said, &["empty.crt", "no certificates in PEM"]);
    let Some(elsewhere) = Secured::start("elsewhere.test", "", "").await else {
        return;
    };
    assert_says(
        &refusal(elsewhere.relay()).await,
        &["for another host", "elsewhere.test"],
    );
}

#[tokio::test]
async fn a_server_without_tls_gets_no_login() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let url = nats.url();
    let relay = Relay::new(&url.replace("nats://", "tls://")).expect("a URL");
    let said = refusal(relay.token("hunter2")).await;
    assert_says(&said, &["does not offer TLS", "nats://"]);
    assert!(!said.contains("hunter2"), "{said}");
    // With certificates, the login never goes out in the clear.
    let files = tempfile::tempdir().expect("a folder");
    let root = put(&files, "root.crt", &Authority::new("root").certificate);
    let relay = Relay::new(&url).expect("a URL").root_certificates(root);
    assert_says(&refusal(relay).await, &["does not offer TLS"]);
}

#[tokio::test]
async fn a_server_may_require_a_client_certificate() {
    let Some(secured) = Secured::start("127.0.0.1", "verify: true", "").await else {
        return;
    };
    let (certificate, key) = secured.client("client");
    let certified = secured.relay().client_certificate(&certificate, &key);
    assert_follows(certified.clone(), certified).await;
    let said = refusal(secured.relay()).await;
    assert_says(&said, &["client certificate", "--relay-cert"]);
    let stranger = Authority::new("other").issue("client", &[]);
    let (other, other_key) = put_pair(&secured.files, "stranger", &stranger);
    let said = refusal(secured.relay().client_certificate(other, &other_key)).await;
    assert_says(&said, &["refuses the client certificate"]);
    let said = refusal(secured.relay().client_certificate(&certificate, other_key)).await;
    assert_says(&said, &["stranger.key"]);
    let said = refusal(
        secured
            .relay()
            .client_certificate(&certificate, &certificate),
    )
    .await;
    assert_says(&said, &["key", "client.crt", "no private key"]);
    assert!(!said.contains("BEGIN"), "{said}");
    let nowhere = secured.files.path().join("nowhere.key");
    let said = refusal(secured.relay().client_certificate(&certificate, nowhere)).await;
    assert_says(&said, &["nowhere.key", "No such file"]);
}

/// The server takes the user from the certificate.
#[tokio::test]
async fn a_certificate_logs_in() {
    let users = "authorization { users: [ { user: \"CN=known\" } ] }";
    let Some(secured) = Secured::start("127.0.0.1", "verify_and_map: true", users).await else {
        return;
    };
    let as_client = |name: &str| {
        let (certificate, key) = secured.client(name);
        secured.relay().client_certificate(certificate, key)
    };
    assert_follows(as_client("known"), as_client("known")).await;
    let said = refusal(as_client("unknown")).await;
    assert_says(&said, &["authorization violation", "client certificate"]);
}

/// A new session reads the files again.
#[tokio::test]
async fn new_certificates_need_no_restart() {
    let Some(mut secured) = Secured::start("127.0.0.1", "verify: true", "").await else {
        return;
    };
    let (certificate, key) = secured.client("client");
    let relay = secured.relay().client_certificate(certificate, key);
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay.clone()).await;
    let subscriber = Subscriber::ready(relay).await;
    secured.nats.kill();
    secured.authority = Authority::new("new root");
    put(&secured.files, "root.crt", &secured.authority.certificate);
    let server = secured.authority.issue("server", &["127.0.0.1"]);
    put_pair(&secured.files, "server", &server);
    secured.client("client");
    secured.nats.boot().await;
    subscriber
        .follows(&publisher.followed, 8, "by the new certificates")
        .await;
    subscriber.fresh().await;
}
