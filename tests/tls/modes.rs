//! `sslmode` and the parameters around it, compared with libpq.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use oddscache::{Config, Error, OddsCache, SslMode, Tls};
use oddscache_testkit::{
    certificates::{Authority, self_signed},
    eventually,
    followed::Followed,
    programs::optional,
    server_version,
    service::ended,
};
use rcgen::PKCS_ED25519;

use crate::{PASSWORD, Secured, assert_says, open, open_dsn, opened, refusal, secured};

const YEARS: (i32, i32) = (2020, 2120);
const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// Tries every kind of server certificate in every mode. The library accepts what libpq accepts and refuses what libpq
/// refuses. Its error names the reason. The role may log in with TLS only.
#[tokio::test(flavor = "multi_thread")]
async fn every_mode_judges_every_certificate_as_libpq_does() {
    let secured = Secured::start();
    let authority = &secured.authority;
    let below = authority.below("below");
    let mut chained = below.issue("server", &["localhost"]);
    chained.certificate.push_str(&below.certificate);
    let stranger = Authority::new("stranger");
    let valid = |names: &[&str]| authority.issue("server", names);
    let within = |years| authority.issue_within("server", &["localhost"], years);
    let itself = |name: &str, is_authority, years| self_signed(&[name], is_authority, years);
    let old = (2020, 2021);
    // The name of a case, the certificate of the server, whether the client trusts that one instead of the authority,
    // and a word of the error.
    let cases = [
        ("good", valid(&["localhost"]), false, ""),
        ("by an authority between", chained, false, ""),
        (
            "of another host",
            valid(&["db.example.com", "10.0.0.1"]),
            false,
            "db.example.com",
        ),
        ("expired", within(old), false, "expired"),
        (
            "of the future",
            within((2119, 2120)),
            false,
            "not valid yet",
        ),
        (
            "by a stranger",
            stranger.issue("server", &["localhost"]),
            false,
            "sslrootcert",
        ),
        (
            "self-signed, unknown",
            itself("localhost", false, YEARS),
            false,
            "sslrootcert",
        ),
        (
            "self-signed, known",
            itself("localhost", false, YEARS),
            true,
            "",
        ),
        (
            "self-signed as openssl does it, known",
            itself("localhost", true, YEARS),
            true,
            "",
        ),
        (
            "self-signed, known, expired",
            itself("localhost", true, old),
            true,
            "expired",
        ),
        (
            "self-signed, known, of another host",
            itself("elsewhere", true, YEARS),
            true,
            "elsewhere",
        ),
    ];
    let mut refused = 0;
    for (name, server, is_root, told) in cases {
        secured.serve(&server);
        let shown = &server.certificate;
        let roots = if is_root {
            shown
        } else {
            &authority.certificate
        };
        let file = secured.put("trusted.crt", roots);
        for mode in MODES {
            // With a file, `require` means `verify-ca`.
            for root in ["", &format!("sslrootcert={}", file.display())] {
                if mode.starts_with("verify") && root.is_empty()
                    || !root.is_empty() && ["allow", "prefer"].contains(&mode)
                {
                    // Without a file libpq looks in the home directory. With a file it also checks certificates in the
                    // weak modes.
                    continue;
                }
                let dsn = secured.dsn("secure", &format!("sslmode={mode} {root}"));
                let (libpq, ours) = (secured.libpq(&dsn), open_dsn(&dsn).await);
                let what = format!("{name}, {mode} {root}: libpq {libpq:?}, ours {ours:?}");
                assert_eq!(libpq.is_ok(), ours.is_ok(), "{what}");
                match ours {
                    Ok(by_tls) => assert!(by_tls, "{what}"),
                    Err(Error::Refused { .. }) => assert_eq!(mode, "disable", "{what}"),
                    Err(error @ Error::Tls { .. }) => {
                        assert!(
                            !told.is_empty() && error.to_string().contains(told),
                            "{what}"
                        );
                        assert!(!error.is_transient(), "{what}");
                        refused += 1;
                    }
                    Err(_) => panic!("{what}"),
                }
            }
        }
    }
    assert!(refused >= 15, "{refused}");
}

/// libpq accepts a common name. The library does not, and its error says what the certificate needs.
#[tokio::test(flavor = "multi_thread")]
async fn verify_full_does_not_accept_a_common_name_alone() {
    let secured = Secured::start();
    secured.serve(&secured.authority.issue("localhost", &[]));
    let root = secured.files.path().join("root.crt");
    let dsn = |mode| {
        secured.dsn(
            "secure",
            &format!("sslmode={mode} sslrootcert={}", root.display()),
        )
    };
    assert!(opened(&dsn("verify-ca")).await);
    let error = refusal(&dsn("verify-full")).await;
    assert_says(&error, &["common name", "subjectAltName"]);
}

/// `require` and the stronger modes never send a password without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_if_the_mode_requires_tls() {
    let cluster = oddscache_testkit::cluster();
    let role = "create role without_tls login superuser password 'p'";
    oddscache_testkit::psql("postgres", &["-qc", role]);
    let root = secured().files.path().join("root.crt");
    for mode in ["require", "verify-ca", "verify-full"] {
        let dsn = format!(
            "postgres://without_tls:p@127.0.0.1:{}/postgres?sslmode={mode}&sslrootcert={}",
            cluster.port(),
            root.display()
        );
        let error = refusal(&dsn).await;
        assert!(matches!(error, Error::Tls { .. }), "{error:?}");
        assert!(!error.is_transient(), "{error:?}");
        assert_says(&error, &["does not offer TLS", mode]);
        // Waiting does not help, so the follower ends.
        let (_cache, follower) = OddsCache::connect(Config::new(&dsn).unwrap());
        assert!(matches!(follower.run().await, Err(Error::Tls { .. })));
        // A socket needs no TLS.
        let dsn = format!(
            "{} sslmode={mode} sslrootcert={}",
            cluster.dsn("postgres"),
            root.display()
        );
        assert!(!opened(&dsn).await);
    }
    for mode in ["disable", "allow", "prefer"] {
        let dsn = format!(
            "postgres://without_tls:p@127.0.0.1:{}/postgres?sslmode={mode}",
            cluster.port()
        );
        assert!(!opened(&dsn).await);
    }
}

/// `allow` and `prefer` accept a connection with or without TLS. The stronger modes never connect without it.
#[tokio::test(flavor = "multi_thread")]
async fn allow_and_prefer_connect_with_or_without_tls() {
    let secured = secured();
    for (user, mode, by_tls) in [
        ("secure", "disable", None),
        ("secure", "allow", Some(true)),
        ("secure", "prefer", Some(true)),
        ("secure", "require", Some(true)),
        ("plain", "disable", Some(false)),
        ("plain", "allow", Some(false)),
        ("plain", "prefer", Some(false)),
        ("plain", "require", None),
    ] {
        let dsn = secured.dsn(user, &format!("sslmode={mode}"));
        let opened = open_dsn(&dsn).await;
        assert_eq!(
            secured.libpq(&dsn).is_ok(),
            opened.is_ok(),
            "{user} {mode}: {opened:?}"
        );
        match (opened, by_tls) {
            (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "{user} {mode}"),
            (Err(Error::Refused { .. }), None) => {}
            (other, _) => panic!("{user} {mode}: {other:?}"),
        }
    }
}

/// A login that requires channel binding works over TLS with any common signature of the certificate, and never without
/// TLS.
#[tokio::test(flavor = "multi_thread")]
async fn scram_uses_channel_binding() {
    let secured = Secured::start();
    let login = |more: &str| secured.dsn("scram", &format!("password={PASSWORD} {more}"));
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
    ] {
        let authority = Authority::with("signs", algorithm);
        secured.serve(&authority.issue("server", &["localhost"]));
        for binding in ["disable", "prefer", "require"] {
            assert!(opened(&login(&format!("channel_binding={binding}"))).await);
        }
        let wrong = secured.dsn("scram", "password=wrong channel_binding=require");
        assert!(matches!(open_dsn(&wrong).await, Err(Error::Refused { .. })));
    }
    // No channel binding is defined for this signature. libpq refuses even `prefer`.
    let authority = Authority::with("signs", &PKCS_ED25519);
    secured.serve(&authority.issue("server", &["localhost"]));
    assert!(opened(&login("channel_binding=prefer")).await);
    let error = refusal(&login("channel_binding=require")).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_says(&error, &["channel binding"]);
    // A role that needs no password cannot prove channel binding.
    let trusted = secured.dsn("secure", "channel_binding=require");
    assert!(matches!(
        open_dsn(&trusted).await,
        Err(Error::Refused { .. })
    ));
}

fn openssl(arguments: &[&str]) {
    ended(Command::new("openssl").args(arguments)).ok();
}

/// All formats of a key must work. A key file that others may read is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_works_with_every_format_of_its_key() {
    if optional(&["openssl"], "openssl").is_none() {
        return;
    }
    let secured = secured();
    let client = secured.authority.issue("certified", &[]);
    secured.put("client.crt", &client.certificate);
    let key = secured.put("client.key", &client.key);
    let path = |name: &str| secured.files.path().join(name).display().to_string();
    openssl(&["ec", "-in", &path("client.key"), "-out", &path("sec1.key")]);
    let (plain, encrypted) = (&*path("client.key"), &*path("encrypted.key"));
    openssl(&[
        "pkcs8", "-topk8", "-in", plain, "-out", encrypted, "-passout", "pass:x",
    ]);
    openssl(&["genrsa", "-traditional", "-out", &path("pkcs1.key"), "2048"]);
    for (name, head) in [
        ("sec1.key", "BEGIN EC PRIVATE KEY"),
        ("pkcs1.key", "BEGIN RSA PRIVATE KEY"),
    ] {
        let text = fs::read_to_string(path(name)).unwrap();
        assert!(text.contains(head), "{name}");
    }
    let dsn = |certificate: &str, key: &str| {
        let (certificate, key) = (path(certificate), path(key));
        let more = format!("sslmode=require sslcert={certificate} sslkey={key}");
        secured.dsn("certified", &more)
    };
    for key in ["client.key", "sec1.key"] {
        assert!(opened(&dsn("client.crt", key)).await);
    }
    let (rsa, certificate) = (&*path("pkcs1.key"), &*path("rsa.crt"));
    let request = [
        "req",
        "-new",
        "-x509",
        "-subj",
        "/CN=certified",
        "-days",
        "9",
    ];
    openssl(&[&request[..], &["-key", rsa, "-out", certificate]].concat());
    // The server does not trust this certificate, but the library could read the key.
    let error = refusal(&dsn("rsa.crt", "pkcs1.key")).await;
    assert!(!matches!(error, Error::Config(_)), "{error}");

    let settings = Tls::new(SslMode::VerifyFull)
        .root_certificates_pem(secured.authority.certificate.clone())
        .client_certificate_pem(client.certificate.clone(), client.key.clone());
    let config = Config::new(&secured.dsn("certified", "")).unwrap();
    assert!(open(config.tls(settings.clone())).await.unwrap());
    let shown = format!("{settings:?}");
    for secret in ["PRIVATE", client.key.lines().nth(1).unwrap()] {
        assert!(!shown.contains(secret), "{shown}");
    }

    let none = refusal(&secured.dsn("certified", "sslmode=require")).await;
    assert!(
        matches!(&none, Error::Refused { reason, .. } if reason.contains("certificate")),
        "{none}"
    );
    let other = secured.authority.issue("somebody", &[]);
    secured.put("other.crt", &other.certificate);
    secured.put("other.key", &other.key);
    let other = refusal(&dsn("other.crt", "other.key")).await;
    assert!(matches!(other, Error::Refused { .. }), "{other}");
    for (certificate, key, told) in [
        ("client.crt", "other.key", "sslcert and sslkey"),
        ("client.crt", "missing.key", "missing.key"),
        ("client.crt", "client.crt", "no private key"),
        ("client.crt", "encrypted.key", "encrypted"),
        ("client.key", "client.key", "no PEM certificates"),
    ] {
        let error = refusal(&dsn(certificate, key)).await;
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert_says(&error, &[told]);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let dsn = dsn("client.crt", "client.key");
    let error = refusal(&dsn).await;
    assert_says(&error, &["chmod 0600"]);
    assert!(secured.libpq(&dsn).is_err());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The error names a client certificate that the server does not trust, and the library does not try again.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_not_trusted_is_named() {
    let secured = secured();
    let stranger = Authority::new("stranger").issue("certified", &[]);
    let tls = Tls::new(SslMode::Require).client_certificate_pem(stranger.certificate, stranger.key);
    let config = Config::new(&secured.dsn("certified", "")).unwrap().tls(tls);
    // The server closes the connection at once. Its error may get lost on the way. Then the library is right to try
    // again.
    eventually("it is named", async || match open(config.clone()).await {
        Err(Error::Tls { reason, .. }) => {
            assert!(reason.contains("client certificate"), "{reason}");
            true
        }
        Err(Error::Unreachable { .. }) => false,
        other => panic!("{other:?}"),
    })
    .await;
}

/// A wrong TLS setting is an error before any connection, and the error names it.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_settings_that_do_not_fit_together() {
    let secured = secured();
    let root = secured.files.path().join("root.crt");
    for (more, told) in [
        ("sslmode=verify-ca".to_owned(), "sslrootcert"),
        (
            "sslmode=require sslrootcert=system".to_owned(),
            "verify-full",
        ),
        ("sslnegotiation=direct".to_owned(), "sslnegotiation=direct"),
        (
            "sslmode=verify-ca sslrootcert=/no/such/file".to_owned(),
            "/no/such/file",
        ),
        (
            "sslmode=require sslrootcert=/dev/null".to_owned(),
            "no PEM certificates",
        ),
        (
            format!("sslmode=sometimes sslrootcert={}", root.display()),
            "verify-full",
        ),
    ] {
        let error = refusal(&secured.dsn("secure", &more)).await;
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert_says(&error, &[told]);
    }
    // The system does not trust the authority of this certificate.
    let error = refusal(&secured.dsn("secure", "sslrootcert=system")).await;
    assert!(matches!(error, Error::Tls { .. }), "{error}");
}

/// Direct TLS, without a request before. PostgreSQL 17 is the first to support it. An older server closes the
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_is_for_servers_that_understand_it() {
    let secured = secured();
    let root = secured.files.path().join("root.crt");
    for more in [
        "sslmode=require".to_owned(),
        format!("sslmode=verify-full sslrootcert={}", root.display()),
        format!(
            "sslmode=verify-full sslrootcert={} user=scram password={PASSWORD} channel_binding=require",
            root.display()
        ),
    ] {
        let dsn = secured.dsn("secure", &format!("{more} sslnegotiation=direct"));
        let opened = open_dsn(&dsn).await;
        if server_version() >= 17 {
            opened.unwrap_or_else(|error| panic!("{more}: {error}"));
        } else {
            let error = opened.unwrap_err();
            assert!(
                matches!(error, Error::Tls { .. } | Error::Unreachable { .. }),
                "{more}: {error}"
            );
        }
    }
}

/// Both connections of a follower use TLS, and the cache equals the database: one reads, and one of its own listens. With
/// one connection for both, the second would be there only for the moment of a check.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_follows_by_tls() {
    let secured = secured();
    secured.cluster.install("postgres");
    let root = secured.files.path().join("root.crt");
    let config = |name: &str| {
        let more = format!(
            "password={PASSWORD} sslmode=verify-full sslrootcert={} channel_binding=require application_name={name}",
            root.display()
        );
        Config::new(&secured.dsn("scram", &more)).unwrap()
    };
    let config = config("reads").listen_from(config("listens"));
    let followed = Followed::start(config, &secured.cluster.dsn("postgres")).await;
    followed.live().await;
    let sql = "select string_agg(application_name, ' ' order by application_name desc), bool_and(ssl)
               from pg_stat_ssl join pg_stat_activity using (pid) where application_name in ('reads', 'listens')";
    // The check of the listening connection may not have ended yet.
    eventually("it reads and listens, encrypted", async || {
        let row = followed.app.query_one(sql, &[]).await.unwrap();
        row.get::<_, Option<&str>>(0) == Some("reads listens") && row.get::<_, bool>(1)
    })
    .await;
    let odds = "insert into bookmakers (id, name, slug) values (1, 'b', 'b');
        insert into events (id, sportradar_id, name, home_team, away_team, kickoff) values (1, 'x', 'x', 'x', 'x', now() + interval '1 day');
        insert into odds_snapshots (event_id, bookmaker_id) values (1, 1)";
    followed.changes(odds).await;
}
