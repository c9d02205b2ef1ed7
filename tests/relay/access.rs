//! Logins and permissions.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use oddscache::Relay;
use oddscache_testkit::{Database, eventually, nats::Nats};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Publisher, Subscriber, assert_follows, assert_says, refusal};

/// The permissions that `src/relay/README.md` names.
pub(super) fn users() -> String {
    let readme = include_str!("../../src/relay/README.md");
    let row = |who: &str| {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| {who} | `")));
        let row = row.expect("a row of the table");
        let cells: Vec<&str> = row.split(" | ").collect();
        let subjects = |cell: &str| -> String {
            let subjects = cell.split('`').skip(1).step_by(2);
            let subjects = subjects.filter(|subject| *subject != "allow_responses");
            let subjects: Vec<String> = subjects.map(|subject| format!("\"{subject}\"")).collect();
            subjects.join(", ")
        };
        let responses = match row.contains("allow_responses") {
            true => "allow_responses: true",
            false => "",
        };
        format!(
            "{{ user: {who}, password: \"pass of {who}\", permissions: {{ publish: [{}], subscribe: [{}], {responses} }} }}",
            subjects(cells[1]),
            subjects(cells[2])
        )
    };
    format!(
        "authorization {{ users: [ {}, {} ] }}",
        row("publisher"),
        row("subscriber")
    )
}

fn relay_as(nats: &Nats, user: &str) -> Relay {
    let relay = Relay::new(&nats.url()).expect("a URL");
    relay.user_and_password(user, &format!("pass of {user}"))
}

#[tokio::test]
async fn the_documented_permissions_suffice() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay_as(&nats, "publisher")).await;
    let subscriber = Subscriber::ready(relay_as(&nats, "subscriber")).await;
    for line in 1..4 {
        subscriber
            .follows(&publisher.followed, line, "a change")
            .await;
    }
    subscriber.fresh().await;
    assert_eq!(subscriber.cache.counters().relay_gaps, 0);
    // A second publisher asks for the lease that the first one has.
    let second = Publisher::start(&database, relay_as(&nats, "publisher")).await;
    drop(publisher);
    subscriber.follows(&second.followed, 9, "the second").await;
}

#[tokio::test]
async fn a_subscriber_may_not_publish() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let database = Database::seeded();
    // It follows the database, but may not publish: nothing comes of it.
    let _publisher = Publisher::start(&database, relay_as(&nats, "subscriber")).await;
    let subscriber = Subscriber::start(relay_as(&nats, "subscriber"));
    eventually("the subscriber says what it misses", async || {
        subscriber
            .cache
            .status()
            .to_string()
            .contains("stream not found")
    })
    .await;
    assert!(!subscriber.cache.is_warm());
}

/// Who may ask can name any subject for the answer, and any term. Neither lets it write to a stream, end the leader's
/// term, or keep answers from others.
#[tokio::test]
async fn a_question_harms_nobody() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay_as(&nats, "publisher")).await;
    let subscriber = Subscriber::ready(relay_as(&nats, "subscriber")).await;
    subscriber.equals(&publisher.followed.cache, "before").await;
    let login = async_nats::ConnectOptions::with_user_and_password(
        "subscriber".to_owned(),
        "pass of subscriber".to_owned(),
    );
    let hostile = login.connect(nats.url()).await.expect("connected");
    // As `Question` in `relay/message.rs`.
    let question = |term: u64| {
        let begins = b"oc\x01".to_vec();
        let question = postcard::to_extend(&(false, false, term), begins).expect("a question");
        bytes::Bytes::from(question)
    };
    let replies = [
        "oddscache.odds.delta",
        "oddscache.odds.state.head",
        "oddscache.odds.state.a.0",
        "$KV.oddscache_odds.leader",
    ];
    let refused = publisher.followed.cache.counters().relay_refused;
    for reply in replies {
        let ask = hostile.publish_with_reply("oddscache.odds.ask", reply, question(0));
        ask.await.expect("sent");
    }
    for term in [u64::MAX, 1 << 62, (1 << 62) - 1] {
        let ask = hostile.request("oddscache.odds.ask", question(term));
        drop(tokio::time::timeout(Duration::from_secs(1), ask).await);
    }
    eventually("the publisher refused them", async || {
        publisher.followed.cache.counters().relay_refused >= refused + 6
    })
    .await;
    // One term was taken over. All go on with it.
    subscriber.follows(&publisher.followed, 5, "after").await;
    let asked = subscriber.cache.counters().relay_answers;
    eventually("questions are answered", async || {
        subscriber.cache.counters().relay_answers > asked + 2
    })
    .await;
    subscriber.fresh().await;
    let late = Subscriber::ready(relay_as(&nats, "subscriber")).await;
    late.equals(&publisher.followed.cache, "a late one").await;
    assert_eq!(subscriber.cache.view().epoch(), publisher.followed.epoch());
    assert_eq!(subscriber.cache.counters().relay_mismatches, 0);
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_printed() {
    let Some(nats) = Nats::start(&users()).await else {
        return;
    };
    let relay = Relay::new(&nats.url()).expect("a URL");
    let relay = relay.user_and_password("subscriber", "not-the-password");
    let printed = format!("{relay:?}");
    let subscriber = Subscriber::start(relay);
    oddscache_testkit::eventually("the login is refused", async || {
        subscriber.cache.status().name() == "disconnected"
    })
    .await;
    let status = subscriber.cache.status().to_string();
    assert!(status.contains("authorization"), "{status}");
    assert!(!status.contains("not-the") && !printed.contains("not-the"));
}

#[tokio::test]
async fn a_token_logs_in() {
    let Some(nats) = Nats::start("authorization { token: \"a-token\" }").await else {
        return;
    };
    let relay = Relay::new(&nats.url()).expect("a URL").token("a-token");
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay.clone()).await;
    let subscriber = Subscriber::ready(relay).await;
    subscriber
        .equals(&publisher.followed.cache, "by a token")
        .await;
}

#[tokio::test]
async fn the_url_may_hold_the_login() {
    let settings = "authorization { user: \"me@here\", password: \"p:w/d\" }";
    let Some(nats) = Nats::start(settings).await else {
        return;
    };
    let url = nats.url().replace("nats://", "nats://me%40here:p%3Aw%2Fd@");
    let relay = Relay::new(&url).expect("a URL");
    assert!(!format!("{relay:?}").contains("p:w"), "{relay:?}");
    let database = Database::seeded();
    let publisher = Publisher::start(&database, relay.clone()).await;
    let subscriber = Subscriber::ready(relay).await;
    subscriber
        .equals(&publisher.followed.cache, "by the URL")
        .await;
    for wrong in ["", "nats://", "http://[", "nats://%zz@localhost"] {
        assert!(Relay::new(wrong).is_err(), "{wrong}");
    }
}

/// A key pair as `nsc` makes it, from a seed that the test chooses.
pub(crate) fn key(kind: KeyPairType, seed: u8) -> KeyPair {
    KeyPair::new_from_raw(kind, [seed; 32]).expect("a key pair")
}

/// The configuration of a server that knows one nkey by its public key.
pub(crate) fn nkey_user(user: &KeyPair) -> String {
    let user = user.public_key();
    format!("authorization {{ users: [ {{ nkey: {user} }} ] }}")
}

#[tokio::test]
async fn an_nkey_logs_in() {
    let user = key(KeyPairType::User, 1);
    let Some(nats) = Nats::start(&nkey_user(&user)).await else {
        return;
    };
    let as_key = |seed: &str| Relay::new(&nats.url()).expect("a URL").nkey(seed);
    let seed = user.seed().expect("a seed");
    // As in the file: a line of text.
    let relay = as_key(&format!("{seed}\n"));
    assert!(!format!("{relay:?}").contains(&seed));
    assert_follows(relay.clone(), relay).await;
    let other = key(KeyPairType::User, 2).seed().expect("a seed");
    let said = refusal(as_key(&other)).await;
    assert_says(
        &said,
        &["authorization violation", "does not know the nkey"],
    );
    assert!(!said.contains(&other), "{said}");
    let said = refusal(as_key("SUHUNTER2")).await;
    assert_says(&said, &["seed is malformed", "SU"]);
    assert!(!said.contains("HUNTER2"), "{said}");
}

#[tokio::test]
async fn a_refused_login_names_what_was_refused() {
    let Some(nats) = Nats::start("authorization { token: \"a-token\" }").await else {
        return;
    };
    let relay = || Relay::new(&nats.url()).expect("a URL");
    let said = refusal(relay().token("hunter2")).await;
    assert_says(&said, &["refuses the token"]);
    assert!(!said.contains("hunter2"), "{said}");
    let said = refusal(relay().user_and_password("me", "hunter2")).await;
    assert_says(&said, &["refuses the user or the password"]);
    assert!(!said.contains("hunter2"), "{said}");
    assert_says(&refusal(relay()).await, &["requires a login"]);
}

/// Writes a JWT as `nsc` does.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, mut nats: Value) -> String {
    nats["version"] = 2.into();
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(),
        "nats": nats
    });
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = [header, claims]
        .map(|part| encode(part.to_string().as_bytes()))
        .join(".");
    let signature = issuer.sign(signed.as_bytes()).expect("signed");
    format!("{signed}.{}", encode(&signature))
}

/// Users, accounts and an operator, as `nsc` makes them.
pub(crate) struct Operated {
    pub(crate) nats: Nats,
    pub(crate) account: KeyPair,
    files: TempDir,
}

impl Operated {
    /// Starts a server that knows one account, which may use JetStream.
    pub(crate) async fn start() -> Option<Operated> {
        let operator = key(KeyPairType::Operator, 3);
        let (account, system) = (key(KeyPairType::Account, 4), key(KeyPairType::Account, 7));
        let account_jwt = |of: &KeyPair, name: &str, stored: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "mem_storage": stored, "disk_storage": stored, "streams": -1, "consumer": -1
            });
            let jwt = jwt(
                &operator,
                of,
                name,
                json!({ "type": "account", "limits": limits }),
            );
            format!("{}: {jwt:?}", of.public_key())
        };
        let of_operator = json!({ "type": "operator", "system_account": system.public_key() });
        let settings = format!(
            "operator: {:?}\nresolver: MEMORY\nsystem_account: {}\nresolver_preload: {{ {}, {} }}",
            jwt(&operator, &operator, "operator", of_operator),
            system.public_key(),
            account_jwt(&account, "account", -1),
            account_jwt(&system, "system", 0),
        );
        Some(Operated {
            nats: Nats::start(&settings).await?,
            account,
            files: tempfile::tempdir().expect("a folder"),
        })
    }

    /// The credentials file of a new user, and its seed.
    pub(crate) fn credentials(&self, name: &str, issuer: &KeyPair) -> (PathBuf, String) {
        let user = key(KeyPairType::User, 5);
        let limits = json!({ "type": "user", "subs": -1, "data": -1, "payload": -1 });
        let (jwt, seed) = (
            jwt(issuer, &user, name, limits),
            user.seed().expect("a seed"),
        );
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        (self.put(name, &text), seed)
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(format!("{name}.creds"));
        std::fs::write(&path, text).expect("written");
        path
    }
}

#[tokio::test]
async fn a_credentials_file_logs_in() {
    let Some(operated) = Operated::start().await else {
        return;
    };
    let by = |file: &Path| {
        let relay = Relay::new(&operated.nats.url()).expect("a URL");
        relay.credentials_file(file)
    };
    let (file, seed) = operated.credentials("user", &operated.account);
    assert_follows(by(&file), by(&file)).await;
    let (stranger, _) = operated.credentials("stranger", &key(KeyPairType::Account, 6));
    let said = refusal(by(&stranger)).await;
    assert_says(
        &said,
        &["authorization violation", "refuses the credentials file"],
    );
    assert!(!said.contains(&seed), "{said}");
    let said = refusal(by(&operated.put("half", &format!("{seed}\n")))).await;
    assert_says(&said, &["half.creds", "nsc generate creds"]);
    assert!(!said.contains(&seed), "{said}");
    let said = refusal(by(&operated.files.path().join("none.creds"))).await;
    assert_says(&said, &["none.creds", "No such file"]);
}
