//! `/v1/events/{id}/history`: what the library reads, on connections of its own, with a reason where there is no answer.

use std::time::Duration;

use oddscache::{
    Config, History, HistoryQuery,
    client::{self, Client, Error, Query},
};
use oddscache_testkit::{
    connect, eventually,
    followed::run as write,
    normal,
    service::{SERVE, Service, command},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{own_cluster, served, with_odds};

const ASKED: &str = "/v1/events/3/history?market=5000";

fn client(served: &Service) -> Client {
    Client::new(client::Config::new(&served.base).unwrap()).unwrap()
}

/// How many connections read histories.
async fn connections(app: &tokio_postgres::Client) -> i64 {
    let sql = "select count(*) from pg_stat_activity
               where datname = current_database() and application_name = 'oddscache history'";
    app.query_one(sql, &[]).await.expect("the activity").get(0)
}

#[tokio::test]
async fn the_answer_is_what_the_library_reads() {
    let (database, served) = served(&[]).await;
    database.psql(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
         select 100 + n, 3, 1, now() at time zone 'UTC' - n * interval '1 minute' from generate_series(1, 20) n;
         insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
         select 100 + n, '5000', 'Over/Under', l, jsonb_build_array(jsonb_build_object('name', 'Over', 'odds', 1 + n / 10.0))
           from generate_series(1, 20) n, unnest(array[1.5, 2.5]) l",
    );
    let app = connect(&database.dsn()).await;
    assert_eq!(connections(&app).await, 0, "nobody has asked yet");
    let library = History::new(
        Config::new(&database.dsn()).unwrap(),
        1,
        Duration::from_secs(30),
    );
    let library = library.unwrap();
    for (asked, query, change) in [
        (ASKED, Query::default(), (|_| ()) as fn(&mut HistoryQuery)),
        (
            "/v1/events/3/history?market=5000&line=2.5&source=betpawa",
            Query::default().line(2.5).source("betpawa"),
            |query| {
                query.line = Some(2.5);
                query.source = Some("betpawa".to_owned());
            },
        ),
        (
            "/v1/events/3/history?market=5000&bookmaker=7",
            Query::default().bookmaker(7),
            |query| query.bookmaker_id = Some(7),
        ),
        (
            "/v1/events/3/history?market=5000&source=sportybet",
            Query::default().source("sportybet"),
            |query| query.source = Some("sportybet".to_owned()),
        ),
    ] {
        let mut wanted = HistoryQuery::new(3, "5000");
        change(&mut wanted);
        let expected = json!(library.read(&wanted).await.unwrap().snapshots);
        let found = served.json(asked).await;
        assert_eq!(
            normal(found["snapshots"].clone()),
            normal(expected.clone()),
            "{asked}"
        );
        let typed = client(&served).history(3, "5000", &query).await.unwrap();
        assert_eq!(normal(json!(typed.snapshots)), normal(expected), "{asked}");
    }
    drop(library);
    // Pages from the latest to the oldest.
    let first = served.json(&format!("{ASKED}&limit=5")).await;
    let next = first["next_to"]
        .as_str()
        .expect("there are more")
        .to_owned();
    let second = served.json(&format!("{ASKED}&limit=5&to={next}")).await;
    let ids = |page: &Value| -> Vec<i64> {
        let all = page["snapshots"].as_array().unwrap().iter();
        all.map(|past| past["snapshot"]["snapshot_id"].as_i64().unwrap())
            .collect()
    };
    assert!(ids(&second).iter().all(|id| !ids(&first).contains(id)));
    let both = connections(&app).await;
    assert!((1..=2).contains(&both), "{both}");
}

#[tokio::test]
async fn where_there_is_no_history_the_answer_says_why() {
    let database = with_odds();
    let dsn = format!("{} user={}", database.dsn(), database.reader());
    let more = [
        "--history-connections",
        "1",
        "--history-timeout",
        "30s",
        "--allow-row-security",
    ];
    let served = Service::warm(&dsn, &more).await;
    for (path, word) in [
        ("/v1/events/3/history", "?market=3743"),
        ("/v1/events/x/history?market=1", "whole number"),
        ("/v1/events/3/history?market=1&line=high", "such as 2.5"),
        ("/v1/events/3/history?market=1&max_age=1s", "no parameter"),
    ] {
        let (status, text) = served.get(path).await;
        assert_eq!(status, 400, "{path}");
        assert!(text.contains(word), "{path}: {text}");
    }
    // No text of PostgreSQL has this character.
    let none = served
        .json("/v1/events/3/history?market=%00&source=%00")
        .await;
    assert_eq!(none["snapshots"], json!([]));

    // The only connection is busy for a minute, and the cache is not.
    let app = connect(&database.dsn()).await;
    let slow = "alter table market_odds enable row level security;
        create policy slow on market_odds using
            (current_setting('application_name') <> 'oddscache history' or pg_sleep(60) is null)";
    write(&app, slow).await;
    let mut asking = JoinSet::new();
    for _ in 0..9 {
        let url = format!("{}{ASKED}", served.base);
        asking.spawn(async move { reqwest::get(url).await.expect("an answer") });
    }
    // One is too many. The others wait.
    let busy = asking.join_next().await.unwrap().unwrap();
    assert_eq!(busy.status(), 503);
    assert_eq!(busy.headers()["retry-after"], "1");
    let busy: Value = busy.json().await.unwrap();
    assert_eq!(busy["reason"], "overloaded");
    let said = busy["error"].as_str().unwrap();
    assert!(said.contains("8 questions"), "{said}");
    // The cache does not wait with them.
    assert_eq!(served.get("/v1/events/3").await.0, 200);
    asking.abort_all();
    // Sent at once. Otherwise the next question that waits could take its turn in between, and hold the table.
    let stop = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'oddscache history';
        alter table market_odds disable row level security";
    write(&app, stop).await;

    write(&app, "drop index idx_competitor_market_odds_snapshot").await;
    let fresh = Service::warm(&database.dsn(), &[]).await;
    let (status, text) = fresh.get(ASKED).await;
    assert_eq!(status, 501);
    let create = "CREATE INDEX CONCURRENTLY ON public.competitor_market_odds (snapshot_id)";
    assert!(text.contains(create), "{text}");
    let refused = client(&fresh).history(3, "5000", &Query::default()).await;
    assert!(
        matches!(refused, Err(Error::Refused { status: 501, .. })),
        "{refused:?}"
    );
    write(&app, create).await;
    assert_eq!(fresh.get(ASKED).await.0, 200);

    let none = Service::warm(&database.dsn(), &["--history-connections", "0"]).await;
    let (status, text) = none.get(ASKED).await;
    assert_eq!(status, 501);
    assert!(text.contains("--history-connections"), "{text}");
}

/// While the database is away, only its history is. The public address names no server.
#[tokio::test]
async fn the_database_may_be_away() {
    let cluster = own_cluster();
    let dsn = cluster.dsn("postgres");
    let served = Service::warm(&dsn, &["--history-timeout", "30s"]).await;
    assert_eq!(served.get(ASKED).await.0, 200);
    cluster.stop("immediate").expect("stops");
    let away = async |served: &Service| {
        let answer = served.ask(ASKED, &[]).await;
        assert_eq!(answer.status(), 503);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["reason"], "database", "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    };
    let said = away(&served).await;
    assert!(
        said.contains("check that it runs") || said.contains("connection"),
        "{said}"
    );
    assert_eq!(served.get("/v1/events/3").await.0, 200);
    cluster.boot().expect("starts");
    eventually("it is back", async || served.get(ASKED).await.0 == 200).await;

    let database = with_odds();
    database.psql("drop index idx_market_odds_snapshot");
    let mut serve = command(&[&SERVE[..], &["--admin-listen", "127.0.0.1:0"]].concat());
    serve.env("DATABASE_URL", database.dsn());
    let (public, operators) = Service::spawn_with_admin(serve).await;
    operators.ready().await;
    let (status, text) = public.get(ASKED).await;
    assert_eq!(status, 501);
    assert!(
        !text.contains("market_odds") && text.contains("log"),
        "{text}"
    );
}
