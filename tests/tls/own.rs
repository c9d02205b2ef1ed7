//! What a program can provide itself: a function that returns passwords, and a TLS connector.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use oddscache::{
    Config, Error, Login, OddsCache, SslMode, Status, Tls,
    tokio_postgres::{Socket, tls::MakeTlsConnect},
};
use oddscache_testkit::{certificates::Authority, cluster::Cluster, eventually};
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{PASSWORD, open, secured};

fn psql(cluster: &Cluster, args: &[&str]) {
    let output = cluster.psql("postgres", args).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
}

/// A follower survives the expiry of a password, because it requests one for each connection. While there is none, it
/// waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_is_asked_for_with_each_connection() {
    let cluster = Cluster::start(&["fsync = off"]).unwrap();
    psql(&cluster, &["-qf", "src/demo/schema.sql"]);
    psql(&cluster, &["-qf", "sql/install.sql"]);
    let role = "create role iam login superuser password 'first'";
    psql(&cluster, &["-qc", role]);
    cluster.set_hba(&["local all iam scram-sha-256"]).unwrap();
    cluster.stop("fast").unwrap();
    cluster.boot().unwrap();

    let current = Arc::new(Mutex::new(Some("first".to_owned())));
    let asked: Arc<Mutex<Vec<Login>>> = Arc::default();
    let (token, log) = (Arc::clone(&current), Arc::clone(&asked));
    // The function replaces the password of the connection string.
    let config = Config::new(&(cluster.dsn_as("iam", "postgres") + " password=stale"))
        .unwrap()
        .password_with(move |login| {
            log.lock().unwrap().push(login);
            let token = token.lock().unwrap().clone();
            async move { token.ok_or("the token service is away") }
        });
    let (cache, follower) = OddsCache::connect(config);
    let follower = tokio::spawn(follower.run());
    cache.ready().await.unwrap();
    let login = asked.lock().unwrap()[0].clone();
    assert_eq!(
        (login.user.as_str(), login.database.as_str(), login.port),
        ("iam", "postgres", cluster.port())
    );
    assert_eq!(login.host, cluster.socket_dir().display().to_string());

    *current.lock().unwrap() = None;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'iam'";
    psql(
        &cluster,
        &["-qc", "alter role iam password 'second'", "-c", end],
    );
    eventually("the follower lacks a password", async || {
        matches!(cache.status(), Status::Disconnected { error: Error::Password { reason, .. }, .. }
            if reason == "the token service is away")
    })
    .await;
    *current.lock().unwrap() = Some("second".to_owned());
    eventually("it follows again", async || cache.counters().resumed == 1).await;
    follower.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_password_is_told_without_it() {
    let config = || Config::new(&secured().dsn("scram", "connect_timeout=1")).unwrap();
    let of = |password: &'static str| {
        config().password_with(async move |_| Ok::<_, io::Error>(password.to_owned()))
    };
    assert!(open(of(PASSWORD)).await.unwrap());
    let error = open(of("hunter2")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { reason, .. } if reason.contains("password_with")),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?} {:?}", of("hunter2")).contains("hunter2"));
    // `connect_timeout` also bounds the wait for a password.
    let begun_at = Instant::now();
    let never = config().password_with(async |_| pending::<Result<String, io::Error>>().await);
    let error = open(never).await.unwrap_err();
    assert!(
        matches!(&error, Error::Password { reason, .. } if reason == "none within 1 s"),
        "{error:?}"
    );
    assert!(error.is_transient() && begun_at.elapsed() < Duration::from_secs(20));
    let failing =
        config().password_with(async |_| Err::<String, _>(io::Error::other("no metadata")));
    let error = open(failing).await.unwrap_err();
    assert!(error.to_string().contains("no metadata"), "{error}");
}

/// Records the domain of each handshake. rustls makes the handshake, with roots that oddscache does not know.
#[derive(Clone)]
struct Counting {
    inner: MakeRustlsConnect,
    domains: Arc<Mutex<Vec<String>>>,
}

impl Counting {
    fn trusting(authority: &Authority) -> Counting {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Counting {
            inner: MakeRustlsConnect::new(config),
            domains: Arc::default(),
        }
    }
}

impl MakeTlsConnect<Socket> for Counting {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.domains.lock().unwrap().push(domain.to_owned());
        MakeTlsConnect::<Socket>::make_tls_connect(&mut self.inner, domain)
    }
}

/// A connector that always fails, and counts how often it was called.
#[derive(Clone)]
struct Locked(Arc<AtomicUsize>);

impl MakeTlsConnect<Socket> for Locked {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = &'static str;

    fn make_tls_connect(&mut self, _: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err("the card is locked")
    }
}

/// The program's own connector makes the handshake. For channel binding its stream must pass on the binding data.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_of_ones_own_makes_the_handshake() {
    let secured = secured();
    let dsn = |more: &str| {
        Config::new(&secured.dsn("scram", &format!("password={PASSWORD} {more}"))).unwrap()
    };
    let connector = Counting::trusting(&secured.authority);
    for more in [
        "sslmode=require channel_binding=require",
        "sslmode=verify-full",
        "",
    ] {
        assert!(
            open(dsn(more).tls_connector(connector.clone()))
                .await
                .unwrap(),
            "{more}"
        );
    }
    assert_eq!(*connector.domains.lock().unwrap(), ["localhost"; 3]);
    // The connector alone decides which certificates to trust.
    let stranger = Counting::trusting(&Authority::new("stranger"));
    let error = open(dsn("sslmode=require").tls_connector(stranger))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    let calls = Arc::new(AtomicUsize::new(0));
    let locked = dsn("sslmode=require").tls_connector(Locked(Arc::clone(&calls)));
    let error = open(locked).await.unwrap_err();
    assert!(
        matches!(&error, Error::Tls { reason, .. } if reason.contains("the card is locked")),
        "{error:?}"
    );
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    // Root certificates would have no effect beside a connector, so they are an error.
    let tls = Tls::new(SslMode::Require).root_certificates_pem("x");
    let error = open(dsn("").tls(tls).tls_connector(connector))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Config(problem) if problem.contains("tls_connector")),
        "{error:?}"
    );
}
