//! The library's client, against the running service.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use oddscache::{
    View,
    client::{Answer, Change, Client, Config, Error, Event, ListedEvent, Query, Update},
};
use oddscache_testkit::{
    connect, eventually,
    followed::{Followed, run as write},
    proxy::{Proxy, Way},
    service::Service,
    xid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::{access::certificate, served, with_odds};

/// A deadline for what happens soon, on a machine that is busy with other work.
const LONG: Duration = Duration::from_secs(30);

fn client(base: &str) -> Client {
    Client::new(Config::new(base).unwrap().timeout(LONG)).unwrap()
}

type List = Answer<Option<Vec<ListedEvent>>>;

fn every() -> Query {
    Query::default()
}

/// All events, in pages of two. Also the tags of the pages.
async fn all(client: &Client, query: Query) -> Result<(Vec<Event>, Vec<String>), Error> {
    let mut pages = client.events(query).of(2);
    let (mut events, mut tags) = (Vec::new(), Vec::new());
    while let Some(page) = pages.next().await? {
        assert!(page.value.len() <= 2);
        events.extend(page.value);
        tags.push(page.tag);
    }
    Ok((events, tags))
}

/// What a handle shows, as JSON.
fn shown(view: &View) -> Vec<Value> {
    let mut events: Vec<_> = view.events().collect();
    events.sort_by_key(|event| (event.kickoff(), event.event_id()));
    events.into_iter().map(|event| json!(event)).collect()
}

/// A copy of what the service holds, kept by its changes.
#[derive(Default)]
struct Replica {
    events: BTreeMap<i64, Event>,
    listed: BTreeMap<i64, ListedEvent>,
    /// How often everything was read.
    whole: usize,
    changes: usize,
}

/// Keeps a copy up to date until it is aborted.
fn keep(client: Client, copy: Arc<Mutex<Replica>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut changes = client.changes(true);
        let mut list = None;
        loop {
            let update = changes
                .next()
                .await
                .expect("nothing that waiting does not help against");
            let id = changes.last_id().expect("an id").to_owned();
            match update {
                Update::ReadAll(_) => list = Some(read_all(&client, &copy).await),
                Update::Change(change) => apply(&client, &copy, &change, &id, list.as_ref()).await,
                other => panic!("{other:?}"),
            }
        }
    })
}

/// Asks again until the service answers.
macro_rules! answered {
    ($ask:expr) => {
        loop {
            match $ask.await {
                Ok(answer) => break answer,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
}

async fn read_all(client: &Client, copy: &Mutex<Replica>) -> List {
    let (events, _) = answered!(all(client, every()));
    let mut list = answered!(client.list(&every(), None));
    let mut copy = copy.lock().unwrap();
    copy.events = events
        .into_iter()
        .map(|event| (event.event_id, event))
        .collect();
    let listed = list.value.take().expect("a list").into_iter();
    copy.listed = listed.map(|event| (event.event_id, event)).collect();
    copy.whole += 1;
    list
}

async fn apply(
    client: &Client,
    copy: &Mutex<Replica>,
    change: &Change,
    id: &str,
    list: Option<&List>,
) {
    let differ = change.event_ids();
    let query = every().ids(differ.iter().copied());
    let (now, _) = answered!(all(client, query.clone()));
    let mut copy = copy.lock().unwrap();
    copy.changes += 1;
    for id in &differ {
        copy.events.remove(id);
    }
    copy.events
        .extend(now.into_iter().map(|event| (event.event_id, event)));
    if !list.is_some_and(|list| list.contains(id)) {
        for id in &differ {
            copy.listed.remove(id);
        }
        let odds = change.odds.iter().cloned();
        copy.listed
            .extend(odds.map(|event| (event.event_id, event)));
    }
}

/// Events, pages, list and changes are what a handle shows, while the database changes and connections break. A stream
/// that goes on where it was cut does not read everything again; one of a new process does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_shows_what_the_service_holds_while_it_changes() {
    let (database, served) = served(&["--poll-interval", "200ms"]).await;
    let followed = Followed::new(&database).await;
    let proxy = Proxy::before_address(served.address()).await;
    let asked = client(&format!("http://{}", proxy.address));
    let copy = Arc::new(Mutex::new(Replica::default()));
    let keeping = keep(asked.clone(), Arc::clone(&copy));
    eventually("a first copy", async || copy.lock().unwrap().whole == 1).await;

    let app = connect(&database.dsn()).await;
    let mut last = 0;
    for turn in 1..=30 {
        write(&app, "begin").await;
        let event = turn % 9 + 1;
        write(&app, &match turn % 5 {
            0 => format!("update events set kickoff = kickoff + interval '1 minute' where id = {event}"),
            1 => format!("delete from market_odds where snapshot_id in (select max(id) from odds_snapshots where event_id = {event})"),
            2 => format!("update competitor_events set deleted_at = case when deleted_at is null then now() end where betpawa_event_id = {event}"),
            _ => format!(
                "with s as (insert into odds_snapshots (event_id, bookmaker_id) values ({event}, 1) returning id)
                 insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
                 select id, '3743', '1X2', '[{{\"name\": \"1\", \"odds\": 1.{turn}, \"is_active\": true}}]' from s"
            ),
        }).await;
        last = xid(&app).await;
        write(&app, "commit").await;
        // What was written before the request is in its answer.
        if turn % 3 == 0 {
            let waits = every().wait_for(last, LONG);
            let (events, tags) = all(&client(&served.base), waits).await.unwrap();
            let view = followed.cache.wait_for(last, LONG).await.unwrap();
            if tags.iter().all(|tag| *tag == tags[0]) {
                let events: Vec<Value> = events.iter().map(|event| json!(event)).collect();
                assert_eq!(events, shown(&view), "turn {turn}");
            }
        }
        match turn {
            10 | 20 => proxy.set(|setting| setting.resets += 1),
            // In the middle of an answer or an event.
            15 => proxy.set(|setting| setting.down = Way::Cut(700)),
            16 => proxy.heal(),
            _ => {}
        }
    }
    let view = followed.cache.wait_for(last, LONG).await.unwrap();
    let waits = every().wait_for(last, LONG);
    let whole = answered!(asked.list(&waits, None)).value;
    let same = async || {
        let copy = copy.lock().unwrap();
        let mut events: Vec<&Event> = copy.events.values().collect();
        events.sort_by_key(|event| (event.kickoff, event.event_id));
        let mut listed: Vec<&ListedEvent> = copy.listed.values().collect();
        listed.sort_by_key(|event| (event.kickoff, event.event_id));
        let listed: Vec<ListedEvent> = listed.into_iter().cloned().collect();
        json!(events) == json!(shown(&view)) && Some(&listed) == whole.as_ref()
    };
    eventually("the copy is the state", same).await;
    {
        let copy = copy.lock().unwrap();
        assert_eq!(copy.whole, 1, "everything was read again after a cut");
        assert!(copy.changes >= 10, "{}", copy.changes);
    }

    // Another process knows nothing of the changes before it.
    let next = Service::warm(&database.dsn(), &[]).await;
    proxy.lead_to(next.address());
    drop(served);
    proxy.set(|setting| setting.resets += 1);
    eventually("a second copy", async || copy.lock().unwrap().whole == 2).await;
    keeping.abort();

    // A program that comes back goes on where it was.
    write(
        &app,
        "update events set kickoff = kickoff + interval '1 minute' where id = 3",
    )
    .await;
    let here = client(&next.base);
    let mut first = here.changes(false);
    let begin = first.next().await.unwrap();
    assert!(matches!(begin, Update::ReadAll(_)), "{begin:?}");
    let id = first.last_id().unwrap().to_owned();
    drop(first);
    write(
        &app,
        "update events set kickoff = kickoff + interval '1 minute' where id = 5",
    )
    .await;
    let mut second = here.changes_after(&id, false);
    let seen = async {
        loop {
            match second.next().await.unwrap() {
                Update::Change(change) if change.kickoffs.contains(&5) => break,
                Update::Change(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, seen).await.expect("the change");
}

/// Each refusal is an error of its own, which says what a program can do about it.
#[tokio::test]
async fn refusals_are_typed() {
    let (database, served) = served(&[]).await;
    let here = client(&served.base);
    let event = here.event(3, &every()).await.unwrap().expect("held");
    assert_eq!((event.value.event_id, event.epoch), (3, 1));
    assert!(here.event(77, &every()).await.unwrap().is_none());
    assert!(
        here.event(9, &every().bookmaker(1))
            .await
            .unwrap()
            .is_none()
    );

    let stale = here.event(3, &every().max_age(Duration::ZERO)).await;
    let Err(Error::TooStale { age: Some(age), .. }) = stale else {
        panic!("{stale:?}");
    };
    assert!(age < LONG, "{age:?}");
    here.event(3, &every().max_age(LONG))
        .await
        .unwrap()
        .expect("young enough");

    let app = connect(&database.dsn()).await;
    write(&app, "begin").await;
    let open = xid(&app).await;
    let waits = |xid| every().wait_for(xid, Duration::from_millis(100));
    let error = here.list(&waits(open), None).await.unwrap_err();
    assert!(matches!(error, Error::NotShown { .. }), "{error:?}");
    let error = here
        .list(&every().wait_for(1 << 50, LONG), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error:?}");
    write(&app, "commit").await;
    here.list(&every().wait_for(open, LONG), None)
        .await
        .expect("shown");

    // Nothing has changed, and the age is that of now.
    let list = here.list(&every(), None).await.unwrap();
    let again = here.list(&every(), Some(&list.tag)).await.unwrap();
    assert_eq!(
        (list.value.map(|all| all.len()), again.value),
        (Some(9), None)
    );
    assert_eq!((again.tag, again.epoch), (list.tag, 1));

    let error = here.list(&every().ids(0..5001), None).await.unwrap_err();
    let Error::Refused {
        status: 400,
        message,
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(message.contains("5000"), "{message}");
    let few = Config::new(&served.base).unwrap().most_bytes(100);
    let error = Client::new(few).unwrap().list(&every(), None).await;
    assert!(
        matches!(error, Err(Error::TooLarge { most: 100, .. })),
        "{error:?}"
    );

    let cold = Service::start("host=/nowhere user=u dbname=d", &[]).await;
    let error = client(&cold.base).list(&every(), None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { reason, .. } if reason == "warming"),
        "{error:?}"
    );
    let nobody = cold.base.clone();
    drop(cold);
    eventually("nobody listens", async || {
        let error = client(&nobody).list(&every(), None).await;
        matches!(error, Err(Error::Unreachable { .. }))
    })
    .await;
}

/// The token reaches only a service whose certificate is that of the given authority.
#[tokio::test]
async fn a_client_trusts_the_given_authority_and_sends_its_token() {
    let database = with_odds();
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let [cert, key, ca] = certificate();
    let (cert, key, ca) = (put("cert", &cert), put("key", &key), put("ca", &ca));
    let other = put("other", &certificate()[2]);
    let token = "a-token-of-0123456789";
    let more = ["--tls-cert", &cert, "--tls-key", &key, "--token", token];
    let served = Service::start(&database.dsn(), &more).await;
    let base = served.base.replace("http:", "https:");
    let config = |ca: &str| Config::new(&base).unwrap().timeout(LONG).ca(ca);
    let right = Client::new(config(&ca).token(token).unwrap()).unwrap();
    eventually("warm", async || right.event(3, &every()).await.is_ok()).await;
    let update = right.changes(false).next().await;
    assert!(matches!(update, Ok(Update::ReadAll(_))), "{update:?}");

    let stranger = Client::new(config(&other).token(token).unwrap()).unwrap();
    let error = stranger.event(3, &every()).await.unwrap_err();
    assert!(
        matches!(error, Error::Tls { .. }) && !error.is_transient(),
        "{error:?}"
    );
    let tokenless = Client::new(config(&ca)).unwrap();
    let error = tokenless.event(3, &every()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error:?}");
    let error = tokenless.changes(false).next().await.unwrap_err();
    assert!(matches!(error, Error::Unauthorised { .. }), "{error:?}");
    let any = config(&ca)
        .token(token)
        .unwrap()
        .danger_accept_any_certificate();
    let error = Client::new(any).unwrap_err();
    assert!(matches!(error, Error::Config(_)) && !error.to_string().contains(token));
    let error = Client::new(config("/nowhere")).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

/// A server that gives each of these answers to one request after the other, and then no more.
async fn answers(answers: Vec<String>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            // Nothing more comes, but the connection stays open.
            open.push(stream);
        }
        std::future::pending::<()>().await;
    });
    format!("http://{address}")
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    let view = "oddscache-as-of: 2026-01-31T18:00:00.000000Z\r\noddscache-age-ms: 7\r\noddscache-epoch: 1\r\netag: W/\"a-5\"";
    format!(
        "HTTP/1.1 {status}\r\n{view}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// A later version of the service may add keys and reasons.
#[tokio::test]
async fn an_old_client_ignores_new_keys() {
    let outcome = json!({ "name": "1", "odds": 2.1, "is_active": true, "later": [1] });
    let market = json!({
        "betpawa_market_id": "3743", "betpawa_market_name": "1X2", "line": null, "handicap_type": null,
        "handicap_home": null, "handicap_away": null, "outcomes": [outcome], "market_groups": [],
        "unavailable_at": null, "later": 1,
    });
    let snapshot = json!({
        "snapshot_id": 1, "event_id": 7, "bookmaker_id": 1, "captured_at": "2026-01-31T18:00:00Z",
        "last_confirmed_at": "2026-01-31T18:00:00Z", "markets": [market], "later": {},
    });
    let event = json!({
        "event_id": 7, "kickoff": null, "betpawa": { "1": snapshot }, "competitors": {}, "name": "Home - Away",
    });
    let later = json!({ "error": "a sentence", "reason": "later", "later": 1 });
    let base = answers(vec![
        answer("200 OK", &event.to_string()),
        answer("503 Service Unavailable", &later.to_string()),
    ])
    .await;
    let asked = client(&base);
    let found = asked.event(7, &every()).await.unwrap().unwrap();
    assert_eq!(
        (found.age, &*found.tag),
        (Duration::from_millis(7), "W/\"a-5\"")
    );
    assert!(found.contains("a-5") && !found.contains("a-6") && !found.contains("b-5"));
    let outcome = &found.value.betpawa[&1].markets[0].outcomes[0];
    assert_eq!(
        (outcome.odds, &outcome.extra["later"]),
        (Some(2.1), &json!([1]))
    );
    let error = asked.event(7, &every()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { reason, .. } if reason == "later"),
        "{error:?}"
    );
}

/// Something else may listen there, or a proxy stand in between.
#[tokio::test]
async fn answers_of_others_are_errors_in_bounded_time() {
    let base = answers(vec![
        answer("200 OK", "<html>"),
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        answer("502 Bad Gateway", "<html>"),
        // Half of an answer.
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[".to_owned(),
    ])
    .await;
    let soon = Duration::from_millis(500);
    let asked = Client::new(Config::new(&base).unwrap().timeout(soon)).unwrap();
    let mut errors = Vec::new();
    for _ in 0..4 {
        errors.push(asked.event(7, &every()).await.unwrap_err());
    }
    assert!(matches!(errors[0], Error::Unexpected { .. }), "{errors:?}");
    assert!(matches!(errors[1], Error::Unexpected { .. }), "{errors:?}");
    assert!(matches!(errors[2], Error::Unavailable { .. }), "{errors:?}");
    assert!(matches!(errors[3], Error::TimedOut { .. }), "{errors:?}");
}

/// The client does not trust the service to say that changes are missing.
#[tokio::test]
async fn a_gap_in_the_changes_is_told() {
    let state = r#"{"as_of":"2026-01-31T18:00:00Z","epoch":1}"#;
    let change = r#"{"as_of":"2026-01-31T18:00:00Z","epoch":1,"betpawa":[7],"competitors":{},"kickoffs":[]}"#;
    let event =
        |name: &str, id: &str, data: &str| format!("event: {name}\nid: {id}\ndata: {data}\n\n");
    let stream = |events: &[String]| {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        format!("{head}{}", events.concat())
    };
    let base = answers(vec![stream(&[
        event("start", "a-5", state),
        event("change", "a-6", change),
        event("change", "a-8", change),
        event("change", "a-9", change),
        event("change", "b-10", change),
        event("later", "b-11", "{}"),
    ])])
    .await;
    let mut changes = client(&base).changes(false);
    let mut whole = Vec::new();
    for _ in 0..5 {
        let update = changes.next().await.unwrap();
        whole.push((
            matches!(update, Update::ReadAll(_)),
            changes.last_id().unwrap().to_owned(),
        ));
    }
    let found: Vec<(bool, &str)> = whole.iter().map(|(whole, id)| (*whole, &**id)).collect();
    let expected = [
        (true, "a-5"),
        (false, "a-6"),
        (true, "a-8"),
        (false, "a-9"),
        (true, "b-10"),
    ];
    assert_eq!(found, expected);
    let error = changes.next().await.unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error:?}");
}
