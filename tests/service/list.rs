//! `GET /v1/list`, and the parameters that it shares with `/v1/events`: windows, pages, one bookmaker, some fields,
//! encodings.

use std::io::Read;

use oddscache_testkit::{
    Database, connect, eventually,
    followed::run as write,
    service::{Service, run},
};
use reqwest::Response;
use serde_json::{Value, json};

use super::{served, with_odds};

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    let value = answer.headers().get(name)?;
    Some(value.to_str().expect("text"))
}

/// The event list, made by an SQL query.
const LIST: &str = r#"
    with offers as (
        select event_id, 'betpawa' as bookmaker, bookmaker_id, coalesce(last_confirmed_at, captured_at) as seen, id, 'own' as side
        from odds_snapshots s
        where id = (select max(id) from odds_snapshots l where l.event_id = s.event_id and l.bookmaker_id = s.bookmaker_id)
        union all
        select betpawa_event_id, source, 0, coalesce(last_confirmed_at, captured_at), s.id, 'competitor'
        from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id
        where deleted_at is null
    ), markets as (
        select 'own' as side, id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, unavailable_at
        from market_odds
        union all
        select 'competitor', id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, unavailable_at
        from competitor_market_odds
    )
    select coalesce(json_agg(event order by kickoff, event_id), '[]') from (
        select e.id as event_id, e.kickoff, json_build_object(
            'event_id', e.id,
            'kickoff', to_char(e.kickoff, 'YYYY-MM-DD"T"HH24:MI:SS.USZ'),
            'name', e.name, 'home_team', e.home_team, 'away_team', e.away_team, 'sportradar_id', e.sportradar_id,
            'tournament', (select json_build_object('id', t.id, 'name', t.name, 'country', t.country, 'sport', s.name)
                           from tournaments t left join sports s on s.id = t.sport_id where t.id = e.tournament_id),
            'odds', json_agg(json_build_object(
                'bookmaker', o.bookmaker,
                'bookmaker_id', o.bookmaker_id,
                'bookmaker_slug', (select slug from bookmakers b where b.id = o.bookmaker_id),
                'bookmaker_name', (select name from bookmakers b where b.id = o.bookmaker_id),
                'last_confirmed_at', to_char(o.seen, 'YYYY-MM-DD"T"HH24:MI:SS.USZ'),
                'markets', (select coalesce(json_agg(json_build_object(
                    'betpawa_market_id', m.betpawa_market_id,
                    'betpawa_market_name', m.betpawa_market_name,
                    'line', m.line,
                    'margin', (select round(((sum(1 / (x->>'odds')::numeric) - 1) * 100), 2)::float8
                               from jsonb_array_elements(m.outcomes::jsonb) x),
                    'outcomes', (select json_agg(json_build_object('name', x->'name', 'odds', x->'odds', 'is_active', x->'is_active'))
                                 from jsonb_array_elements(m.outcomes::jsonb) x),
                    'available', m.unavailable_at is null,
                    'unavailable_since', to_char(m.unavailable_at, 'YYYY-MM-DD"T"HH24:MI:SS.USZ')
                ) order by m.id), '[]')
                    from markets m where m.side = o.side and m.snapshot_id = o.id
                        and (m.betpawa_market_id in ('3743', '3795', '4693') or m.betpawa_market_id = '5000' and m.line = 2.5))
            ) order by o.side desc, o.bookmaker_id, o.bookmaker)
        ) as event
        from events e join offers o on o.event_id = e.id
        group by e.id, e.kickoff
    ) all_events"#;

/// Gives times six digits, as the database prints them.
fn normal(value: Value) -> Value {
    let time = |text: &str| {
        chrono::DateTime::parse_from_rfc3339(text)
            .expect("a time")
            .to_utc()
    };
    match value {
        Value::Object(object) => {
            let field = |(key, value): (String, Value)| match (key.as_str(), value.as_str()) {
                ("kickoff" | "last_confirmed_at" | "unavailable_since", Some(text)) => {
                    let micros = chrono::SecondsFormat::Micros;
                    let text = time(text).to_rfc3339_opts(micros, true);
                    (key, json!(text))
                }
                _ => (key, normal(value)),
            };
            Value::Object(object.into_iter().map(field).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(normal).collect()),
        other => other,
    }
}

/// The entries of a list.
fn entries(list: &Value) -> &[Value] {
    list.as_array().expect("a list")
}

fn ids(list: &Value) -> Vec<i64> {
    let id = |event: &Value| event["event_id"].as_i64().expect("an id");
    entries(list).iter().map(id).collect()
}

fn from_database(database: &Database) -> Value {
    serde_json::from_str(&database.psql(LIST)).expect("JSON")
}

/// The list must equal an independent SQL query.
#[tokio::test]
async fn the_list_equals_an_sql_query_of_the_database() {
    let database = with_odds();
    database.psql(
        "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, unavailable_at)
             select s.id, m.id, m.id, m.line, '[{\"name\": \"X\", \"odds\": 3.5, \"is_active\": true}]', m.gone
             from odds_snapshots s, (values ('3795', null, now() at time zone 'UTC'), ('5000', 3.5, null), ('1', null, null)) m (id, line, gone)
             where s.event_id in (2, 3);
         update events set kickoff = kickoff + interval '1 day' where id = 2;",
    );
    let served = Service::warm(&database.dsn(), &[]).await;
    let expected = from_database(&database);
    assert_eq!(entries(&expected).len(), 9);
    assert_eq!(expected[8]["event_id"], 2);
    assert_eq!(expected[8]["odds"][0]["markets"][2]["available"], false);
    assert_eq!(normal(served.json("/v1/list").await), expected);

    // An event alone has the same JSON as in the list.
    for at in 0..9 {
        let id = &expected[at]["event_id"];
        let alone = served.json(&format!("/v1/list?ids={id}")).await;
        assert_eq!(normal(alone), json!([expected[at]]));
    }

    // The list changes with the database.
    database.psql("update market_odds set unavailable_at = null; insert into odds_snapshots (event_id, bookmaker_id) values (9, 1)");
    let expected = from_database(&database);
    super::eventually("the list follows", async || {
        normal(served.json("/v1/list").await) == expected
    })
    .await;
}

/// `--inline-markets` chooses the markets of the list. A malformed value ends the service.
#[tokio::test]
async fn the_markets_of_the_list_can_be_chosen() {
    let (database, served) = served(&["--inline-markets", "5000:2.5, 77"]).await;
    for path in ["/v1/list", "/v1/list?ids=1,2"] {
        let list = served.json(path).await;
        let markets = entries(&list[1]["odds"][0]["markets"]).iter();
        let ids: Vec<_> = markets.map(|market| &market["betpawa_market_id"]).collect();
        assert_eq!(ids, ["5000"], "{path}");
    }
    for wrong in ["", "5000:", "5000:x", "5000:NaN", ":2", "1,,2"] {
        run(&["serve", "--inline-markets", wrong], &database.dsn()).with(2, &[]);
    }
}

/// A client can read windows and pages. It gets each event once, even if events move between two pages.
#[tokio::test]
async fn events_come_by_kickoff_and_page_by_page() {
    let database = with_odds();
    // Gives greater ids an earlier kickoff, roughly.
    database.psql("update events set kickoff = date_trunc('hour', now() at time zone 'UTC') + (20 - id / 3) * interval '1 hour'");
    let app = connect(&database.dsn()).await;
    let served = Service::warm(&database.dsn(), &[]).await;
    for path in ["/v1/events", "/v1/list"] {
        let all = served.json(path).await;
        assert_eq!(ids(&all), [9, 6, 7, 8, 3, 4, 5, 1, 2], "{path}");

        // A window includes its start and excludes its end.
        let kickoff = |at: usize| all[at]["kickoff"].as_str().expect("a time").to_owned();
        let window = format!("{path}?from={}&to={}", kickoff(1), kickoff(7));
        assert_eq!(ids(&served.json(&window).await), [6, 7, 8, 3, 4, 5]);
        let two = format!("{window}&ids=1,3,8,77");
        assert_eq!(ids(&served.json(&two).await), [8, 3]);

        // The header of each page leads to the next. Together the pages are the list.
        let (mut next, mut paged) = (Some(format!("{path}?limit=4")), Vec::new());
        let mut sizes = Vec::new();
        while let Some(page) = next {
            let answer = served.ask(&page, &[]).await;
            assert_eq!(answer.status(), 200, "{page}");
            next = header(&answer, "link").map(|link| {
                let link = link.strip_prefix('<').expect("a link");
                let link = link.strip_suffix(">; rel=\"next\"");
                link.expect("a link to the next").to_owned()
            });
            let cursor = header(&answer, "oddscache-next").map(str::to_owned);
            assert_eq!(next.is_some(), cursor.is_some());
            if let (Some(next), Some(cursor)) = (&next, cursor) {
                assert_eq!(*next, format!("{path}?limit=4&after={cursor}"));
            }
            let events: Vec<Value> = answer.json().await.expect("JSON");
            sizes.push(events.len());
            paged.extend(events);
        }
        assert_eq!((Value::from(paged), sizes), (all, vec![4, 4, 1]), "{path}");
    }

    // A page begins at the same place, even if events come, go or move before it.
    let answer = served.ask("/v1/list?limit=2&bookmaker=1", &[]).await;
    let next = header(&answer, "oddscache-next").map(str::to_owned);
    let next = next.expect("there are more");
    assert_eq!(ids(&answer.json().await.expect("JSON")), [6, 7]);
    write(&app, "insert into odds_snapshots (event_id, bookmaker_id) values (9, 1); update competitor_events set deleted_at = now() where betpawa_event_id = 7; delete from odds_snapshots where event_id = 7; update events set kickoff = kickoff + interval '1 day' where id = 8").await;
    eventually("an event comes and another goes", async || {
        ids(&served.json("/v1/list?bookmaker=1").await) == [9, 6, 3, 4, 5, 1, 2, 8]
    })
    .await;
    let rest = format!("/v1/list?bookmaker=1&after={next}");
    assert_eq!(ids(&served.json(&rest).await), [3, 4, 5, 1, 2, 8]);
}

/// A client can request one bookmaker, one source, and single fields.
#[tokio::test]
async fn one_bookmaker_one_source_and_some_fields() {
    let database = with_odds();
    database.psql("insert into bookmakers (id, name, slug) values (2, 'Two', 'two'); insert into odds_snapshots (event_id, bookmaker_id) values (1, 2), (9, 2)");
    let served = Service::warm(&database.dsn(), &[]).await;
    let all = served.json("/v1/events").await;

    let own = served.json("/v1/events?bookmaker=2").await;
    assert_eq!(entries(&own).len(), 2);
    assert_eq!(own[0]["betpawa"], json!({ "2": all[0]["betpawa"]["2"] }));
    assert_eq!(own[0]["competitors"], json!({}));
    let competitor = served.json("/v1/events?source=sportybet").await;
    assert_eq!(entries(&competitor).len(), 5);
    assert_eq!(competitor[1]["betpawa"], json!({}));
    assert_eq!(competitor[1]["competitors"], all[2]["competitors"]);
    let every_own = served.json("/v1/events?source=betpawa&ids=1,2").await;
    let own = every_own[0]["betpawa"].as_object().expect("an object");
    assert!(own.keys().eq(["1", "2"]));
    assert_eq!(served.json("/v1/events?source=nobody").await, json!([]));
    let one = served.json("/v1/events/1?source=sportybet").await;
    assert_eq!(one["betpawa"], json!({}));
    assert_eq!(one["competitors"], all[0]["competitors"]);
    let (status, sentence) = served.get("/v1/events/2?source=sportybet").await;
    assert_eq!(status, 404, "{sentence}");

    let listed = served.json("/v1/list?bookmaker=2").await;
    assert_eq!(entries(&listed).len(), 2);
    assert_eq!(listed[0]["odds"][0]["bookmaker_id"], 2);
    assert_eq!(entries(&listed[0]["odds"]).len(), 1);
    let listed = served.json("/v1/list?source=sportybet").await;
    let is_theirs = |event: &Value| event["odds"][0]["bookmaker"] == "sportybet";
    assert!(entries(&listed).iter().all(is_theirs));

    // All fields together give the whole response, byte for byte.
    for (path, fields) in [
        (
            "/v1/events",
            "event_id,kickoff,name,home_team,away_team,sportradar_id,tournament,bookmakers,betpawa,competitors",
        ),
        (
            "/v1/events/1",
            "event_id,kickoff,name,home_team,away_team,sportradar_id,tournament.id,tournament.name,tournament.country,\
             tournament.sport,bookmakers.slug,bookmakers.name,betpawa.snapshot_id,betpawa.event_id,betpawa.bookmaker_id,betpawa.captured_at,\
             betpawa.last_confirmed_at,betpawa.markets,competitors",
        ),
        (
            "/v1/list",
            "event_id,kickoff,name,home_team,away_team,sportradar_id,tournament,odds.bookmaker,odds.bookmaker_id,\
             odds.bookmaker_slug,odds.bookmaker_name,odds.last_confirmed_at,odds.markets.betpawa_market_id,\
             odds.markets.betpawa_market_name,odds.markets.line,odds.markets.margin,odds.markets.outcomes.name,\
             odds.markets.outcomes.odds,odds.markets.outcomes.is_active,odds.markets.available,odds.markets.unavailable_since",
        ),
    ] {
        let whole = served.get(path).await;
        assert_eq!(served.get(&format!("{path}?fields={fields}")).await, whole);
    }
    let few = "/v1/events/1?fields=kickoff,betpawa.markets.outcomes.odds,betpawa.bookmaker_id";
    let market = json!({ "outcomes": [{ "odds": 2.125 }, { "odds": 1.75 }] });
    let expected = json!({
        "kickoff": all[0]["kickoff"],
        "betpawa": {
            "1": { "bookmaker_id": 1, "markets": [market, market] },
            "2": { "bookmaker_id": 2, "markets": [] },
        },
    });
    assert_eq!(served.json(few).await, expected);
    let ids = served.json("/v1/list?fields=event_id&limit=2").await;
    assert_eq!(ids, json!([{ "event_id": 1 }, { "event_id": 2 }]));
}

fn decoded(encoding: Option<&str>, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match encoding {
        None => out.extend_from_slice(bytes),
        Some("gzip") => {
            let mut decoder = flate2::read::MultiGzDecoder::new(bytes);
            decoder.read_to_end(&mut out).expect("gzip");
        }
        #[cfg(feature = "zstd")]
        Some("zstd") => out = zstd::decode_all(bytes).expect("zstd"),
        Some(other) => panic!("{other}: no client requested that"),
    }
    out
}

/// The compressed body equals the plain one, and its `ETag` gets 304 in each encoding.
#[tokio::test]
async fn responses_are_compressed_as_the_client_requests() {
    let (_database, served) = served(&[]).await;
    for path in [
        "/v1/list",
        "/v1/list?limit=9",
        "/v1/events",
        "/v1/dump",
        "/metrics",
    ] {
        let plain = served.ask(path, &[]).await;
        assert_eq!(header(&plain, "content-encoding"), None, "{path}");
        let plain = plain.bytes().await.expect("a body");
        for (wanted, expected) in [
            ("gzip", Some("gzip")),
            ("zstd", cfg!(feature = "zstd").then_some("zstd")),
            ("gzip, zstd;q=0.5", Some("gzip")),
            ("identity", None),
            ("br", None),
        ] {
            let what = format!("{path} {wanted}");
            let answer = served.ask(path, &[("accept-encoding", wanted)]).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(header(&answer, "content-encoding"), expected, "{what}");
            assert_eq!(header(&answer, "vary"), Some("accept-encoding"), "{what}");
            let tag = header(&answer, "etag").map(str::to_owned);
            let body = answer.bytes().await.expect("a body");
            let is_small = body.len() < plain.len() / 2;
            assert!(expected.is_none() || is_small, "{what}");
            if path != "/metrics" {
                assert_eq!(decoded(expected, &body), plain, "{what}");
                let tag = tag.expect("a tag");
                let known = [("accept-encoding", wanted), ("if-none-match", &tag)];
                let answer = served.ask(path, &known).await;
                assert_eq!(answer.status(), 304, "{what}");
                assert_eq!(header(&answer, "content-encoding"), None);
                assert_eq!(header(&answer, "vary"), Some("accept-encoding"));
            }
        }
    }
    // Small responses are not compressed, and streams are not held up.
    for path in [
        "/readyz",
        "/v1/events/77",
        "/v1/changes",
        "/v1/list?limit=1&fields=event_id",
    ] {
        let answer = served.ask(path, &[("accept-encoding", "gzip, zstd")]).await;
        assert_eq!(header(&answer, "content-encoding"), None, "{path}");
    }
}
