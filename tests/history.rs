//! The history of a market: what an independent query finds, by index alone, on few connections, within its time.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use oddscache::{Config, History, HistoryError, HistoryQuery, PastSnapshot};
use oddscache_testkit::{Database, connect, eventually, followed::run, normal};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::Client;

const WITHIN: Duration = Duration::from_secs(20);

fn history(dsn: &str) -> History {
    History::new(Config::new(dsn).expect("a DSN"), 2, WITHIN).expect("a database")
}

/// The snapshots of an event with the rows of a market, as a query that shares nothing with the library finds them.
/// `which` chooses snapshots `s`, and `rows` rows `m`.
async fn oracle(client: &Client, event: i64, market: &str, which: &str, rows: &str) -> Vec<Value> {
    let utc = |column: &str| format!("to_char({column}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    let markets = |table: &str| {
        format!(
            "(select coalesce(jsonb_agg(jsonb_build_object('betpawa_market_id', m.betpawa_market_id,
                'betpawa_market_name', m.betpawa_market_name, 'line', m.line, 'handicap_type', m.handicap_type,
                'handicap_home', m.handicap_home, 'handicap_away', m.handicap_away,
                'market_groups', coalesce(m.market_groups, '[]'), 'unavailable_at', {},
                'outcomes', (select jsonb_agg('{{\"odds\": null, \"is_active\": true}}' || o.o order by o.n)
                    from jsonb_array_elements(m.outcomes) with ordinality as o (o, n))) order by m.id), '[]')
              from {table} m where m.snapshot_id = s.id and m.betpawa_market_id = '{market}' and {rows})",
            utc("m.unavailable_at")
        )
    };
    let sql = format!(
        "select jsonb_build_object('source', s.source, 'snapshot', jsonb_build_object('snapshot_id', s.id,
            'event_id', {event}, 'bookmaker_id', s.bookmaker_id, 'captured_at', {}, 'last_confirmed_at', {},
            'markets', case s.source when 'betpawa' then {} else {} end))::text
        from (select 'betpawa' as source, id, bookmaker_id, captured_at, coalesce(last_confirmed_at, captured_at) as confirmed
                from odds_snapshots where event_id = {event}
              union all
              select c.source, t.id, 0, t.captured_at, coalesce(t.last_confirmed_at, t.captured_at)
                from competitor_odds_snapshots t join competitor_events c on c.id = t.competitor_event_id
               where c.betpawa_event_id = {event} and c.deleted_at is null) s
        where {which} order by s.captured_at, s.id, s.source",
        utc("s.captured_at"),
        utc("s.confirmed"),
        markets("market_odds"),
        markets("competitor_market_odds"),
    );
    let found = client.query(&sql, &[]).await.expect("the oracle");
    let found = found.iter().map(|row| row.get::<_, &str>(0));
    found
        .map(|text| normal(serde_json::from_str(text).expect("JSON")))
        .collect()
}

/// The snapshots of the answer, in the form of the oracle.
async fn snapshots(history: &History, query: &HistoryQuery) -> (Vec<Value>, Option<DateTime<Utc>>) {
    let answer = history.read(query).await.expect("an answer");
    let json = serde_json::to_value(&answer).expect("JSON");
    let Value::Array(found) = normal(json["snapshots"].clone()) else {
        panic!("{json}");
    };
    (found, answer.next_to)
}

/// A database with a few hundred snapshots more: with and without the market, and with many lines.
fn moved() -> Database {
    let database = Database::seeded();
    database.psql(
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
         select 1000 + n, 1 + n % 2, 1 + n % 3, now() at time zone 'UTC' - n * interval '47 minutes'
           from generate_series(1, 200) n;
         insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
         select 100000 + n * 10 + l, 1000 + n, '5000', 'Over/Under', l + 0.5,
                jsonb_build_array(jsonb_build_object('name', 'Over', 'odds', 1 + n / 100.0, 'is_active', n % 5 > 0))
           from generate_series(1, 200) n, generate_series(0, n % 4) l where n % 7 > 0;
         insert into competitor_odds_snapshots (id, competitor_event_id, captured_at)
         select 1000 + n, case n % 3 when 0 then 1 when 1 then 2 else 11 end,
                now() at time zone 'UTC' - n * interval '31 minutes' from generate_series(1, 200) n;
         insert into competitor_market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
         select 100000 + n, 1000 + n, '5000', 'Over/Under', 2.5, '[{\"name\": \"Over\", \"odds\": 1.5, \"bonus\": {\"x\": 1}}]'
           from generate_series(1, 200) n where n % 6 > 0;
         -- Many at one time
         insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
         select 2000 + n, 1, n, now() at time zone 'UTC' - interval '6 days' from generate_series(1, 9) n;
         analyze",
    );
    database
}

#[tokio::test]
async fn each_question_has_the_answer_of_the_oracle() {
    let database = moved();
    let (history, client) = (history(&database.dsn()), connect(&database.dsn()).await);
    for event in [1, 2, 4, 99] {
        for market in ["3743", "5000", "4693", "x' or true", "50\0"] {
            let all = HistoryQuery::new(event, market);
            let mut of_line = all.clone();
            of_line.line = Some(2.5);
            let mut of_bookmaker = all.clone();
            of_bookmaker.bookmaker_id = Some(2);
            let mut own = all.clone();
            own.source = Some("betpawa".to_owned());
            let mut theirs = all.clone();
            theirs.source = Some("bet9ja".to_owned());
            let mut nobody = theirs.clone();
            nobody.bookmaker_id = Some(1);
            for (query, which, rows) in [
                (all, "true", "true"),
                (of_line, "true", "m.line = 2.5"),
                (
                    of_bookmaker,
                    "s.source = 'betpawa' and s.bookmaker_id = 2",
                    "true",
                ),
                (own, "s.source = 'betpawa'", "true"),
                (theirs, "s.source = 'bet9ja'", "true"),
                (nobody, "false", "true"),
            ] {
                let market = market.replace('\'', "''").replace('\0', "?");
                let expected = oracle(&client, event, &market, which, rows).await;
                let (found, next_to) = snapshots(&history, &query).await;
                assert_eq!(found, expected, "{query:?}");
                assert_eq!(next_to, None);
            }
        }
    }
    let (all, _) = snapshots(&history, &HistoryQuery::new(1, "5000")).await;
    assert!(all.len() > 150, "{}", all.len());
}

/// `from` is in the range, `to` is not. A limit keeps the latest, and `next_to` leads to the others, each once.
#[tokio::test]
async fn a_time_and_a_limit_cut_where_they_say() {
    let database = moved();
    let history = history(&database.dsn());
    let query = HistoryQuery::new(1, "5000");
    let all = history.read(&query).await.unwrap().snapshots;
    let at = |index: usize| all[index].snapshot.captured_at();
    let mut some = query.clone();
    (some.from, some.to) = (Some(at(100)), Some(at(120)));
    // Also the last one of each before that time.
    let key = |past: &PastSnapshot| (past.source.to_string(), past.snapshot.bookmaker_id());
    let is_last = |index: usize| {
        !all[index + 1..100]
            .iter()
            .any(|later| key(later) == key(&all[index]))
    };
    let expected = (0..120).filter(|index| *index >= 100 || is_last(*index));
    let expected: Vec<Value> = expected.map(|index| normal(json!(all[index]))).collect();
    assert!(expected.len() > 20);
    assert_eq!(snapshots(&history, &some).await.0, expected);
    // Not while there are more between.
    some.limit = 7;
    let answer = history.read(&some).await.unwrap();
    assert_eq!((answer.snapshots.len(), answer.next_to), (7, Some(at(113))));

    let mut always = query.clone();
    (always.from, always.to) = (
        Some(DateTime::<Utc>::MIN_UTC),
        Some(DateTime::<Utc>::MAX_UTC),
    );
    assert_eq!(snapshots(&history, &always).await.0.len(), all.len());
    let mut never = query.clone();
    never.to = Some(DateTime::<Utc>::MIN_UTC);
    assert_eq!(snapshots(&history, &never).await.0.len(), 0);

    let id = |past: &PastSnapshot| (past.source.to_string(), past.snapshot.snapshot_id());
    let mut page = query.clone();
    for limit in [1, 50] {
        page.limit = limit;
        page.to = None;
        let mut pages = Vec::new();
        while pages.len() <= all.len() {
            let answer = history.read(&page).await.unwrap();
            pages.splice(0..0, answer.snapshots.iter().map(id));
            match answer.next_to {
                Some(to) => page.to = Some(to),
                None => break,
            }
        }
        let ids: Vec<_> = all.iter().map(id).collect();
        assert_eq!(pages, ids, "pages of {limit}");
    }
}
/// No table is read as a whole. A missing index is refused, with the statement that
/// makes it; after it was made the answer is there.
#[tokio::test]
async fn rows_are_found_by_index_or_not_at_all() {
    let database = moved();
    let client = connect(&database.dsn()).await;
    // The oracle and `analyze` read whole tables.
    run(&client, "select pg_stat_reset()").await;
    let reader = history(&database.dsn());
    for event in 1..5 {
        reader
            .read(&HistoryQuery::new(event, "5000"))
            .await
            .unwrap();
    }
    drop(reader);
    let scans = "select coalesce(sum(seq_scan), 0)::int8, coalesce(sum(idx_scan), 0)::int8
                 from pg_stat_user_tables where schemaname = 'public'";
    eventually("the server has counted", async || {
        let row = client.query_one(scans, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0);
        row.get::<_, i64>(1) > 100
    })
    .await;

    for (drops, table, column) in [
        (
            "idx_market_odds_snapshot",
            "public.market_odds",
            "snapshot_id",
        ),
        (
            "idx_competitor_market_odds_snapshot",
            "public.competitor_market_odds",
            "snapshot_id",
        ),
        (
            "idx_competitor_events_betpawa_event",
            "public.competitor_events",
            "betpawa_event_id",
        ),
        (
            "idx_competitor_snapshots_event, idx_competitor_snapshots_event_time",
            "public.competitor_odds_snapshots",
            "competitor_event_id",
        ),
        (
            "idx_snapshots_event, idx_snapshots_event_time",
            "public.odds_snapshots_default",
            "event_id",
        ),
    ] {
        run(&client, &format!("drop index {drops}")).await;
        // A connection looks again from time to time. A new one does so at once.
        let reader = History::new(Config::new(&database.dsn()).unwrap(), 1, WITHIN).unwrap();
        let refused = reader
            .read(&HistoryQuery::new(1, "5000"))
            .await
            .unwrap_err();
        let HistoryError::NoIndex {
            table: of,
            column: on,
            create,
        } = &refused
        else {
            panic!("{refused}");
        };
        assert_eq!((of.as_str(), on.as_str()), (table, column));
        assert!(refused.to_string().contains(create), "{refused}");
        run(&client, create).await;
        reader.read(&HistoryQuery::new(1, "5000")).await.unwrap();
    }
    // A partial index, one of another kind, and one with the column in second place are no help.
    for index in [
        "create index on market_odds (snapshot_id) where line is null",
        "create index on market_odds using brin (snapshot_id)",
        "create index on market_odds (line, snapshot_id)",
    ] {
        run(&client, "drop index if exists market_odds_snapshot_id_idx").await;
        run(&client, index).await;
        let reader = History::new(Config::new(&database.dsn()).unwrap(), 1, WITHIN).unwrap();
        let refused = reader.read(&HistoryQuery::new(1, "5000")).await;
        assert!(
            matches!(refused, Err(HistoryError::NoIndex { .. })),
            "{index}"
        );
        run(&client, "drop index if exists market_odds_snapshot_id_idx").await;
    }
}

/// The rights that the cache needs are enough.
#[tokio::test]
async fn the_rights_of_the_cache_are_enough() {
    let database = moved();
    let dsn = format!("{} user={}", database.dsn(), database.reader());
    let answer = history(&dsn)
        .read(&HistoryQuery::new(1, "5000"))
        .await
        .unwrap();
    assert!(answer.snapshots.len() > 100);
    let age = Utc::now() - answer.as_of;
    assert!(age < TimeDelta::minutes(1), "{age}");
}

/// Other types of columns, and columns that are missing.
#[tokio::test]
async fn tables_of_other_deployments_are_read() {
    let database = moved();
    let (reader, client) = (history(&database.dsn()), connect(&database.dsn()).await);
    let (before, _) = snapshots(&reader, &HistoryQuery::new(1, "5000")).await;
    drop(reader);
    database.psql(
        "set timezone = 'UTC';
         alter table competitor_odds_snapshots alter captured_at type timestamptz, alter id type bigint;
         alter table market_odds alter outcomes type json, alter line type numeric;
         alter table competitor_market_odds alter outcomes type text;
         create type source as enum ('bet9ja', 'sportybet');
         alter table competitor_events drop column deleted_at, alter source type source using source::source;
         alter table competitor_market_odds alter betpawa_market_id type int using betpawa_market_id::int",
    );
    let reader = history(&database.dsn());
    run(&client, "set timezone = 'UTC'").await;
    let (after, _) = snapshots(&reader, &HistoryQuery::new(1, "5000")).await;
    assert_eq!(before, after);
    database.psql(
        "alter table market_odds drop column line, drop column unavailable_at;
         alter table odds_snapshots drop column last_confirmed_at",
    );
    let reader = history(&database.dsn());
    let (found, _) = snapshots(&reader, &HistoryQuery::new(1, "5000")).await;
    assert_eq!(found.len(), before.len());
    database.psql("alter table market_odds drop column betpawa_market_id");
    let reader = history(&database.dsn());
    let refused = reader
        .read(&HistoryQuery::new(1, "5000"))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("betpawa_market_id"),
        "{refused}"
    );
}

/// A malformed row shows what can be read, as in the cache.
#[tokio::test]
async fn malformed_rows_are_read_as_the_cache_reads_them() {
    let database = Database::seeded();
    database.psql(
        "alter table market_odds alter outcomes drop not null;
         update market_odds set outcomes = '[{\"name\": \"1\", \"odds\": \"x\"}, 7]' where snapshot_id = 112 and line is null;
         update market_odds set outcomes = null where snapshot_id = 111 and line is null",
    );
    let (found, _) = snapshots(&history(&database.dsn()), &HistoryQuery::new(1, "3743")).await;
    let outcomes = |id: i64| {
        let of = found.iter().find(|past| {
            past["snapshot"]["snapshot_id"] == id as f64 && past["source"] == "betpawa"
        });
        of.expect("it is there")["snapshot"]["markets"][0]["outcomes"].clone()
    };
    let expected = serde_json::json!([{"name": "1", "odds": null, "is_active": true}]);
    assert_eq!(outcomes(112), expected);
    assert_eq!(outcomes(111), serde_json::json!([]));
}

/// How many connections of histories there are, and how many of them are in a transaction.
async fn connections(client: &Client) -> (i64, i64) {
    let sql =
        "select count(*), count(*) filter (where xact_start is not null) from pg_stat_activity
               where datname = current_database() and application_name = 'oddscache history'";
    let row = client.query_one(sql, &[]).await.expect("the activity");
    (row.get(0), row.get(1))
}

/// A database and the DSN of a role whose questions for market_odds take a minute.
fn slow() -> (Database, String) {
    let database = Database::seeded();
    let dsn = format!("{} user={}", database.dsn(), database.reader());
    database.psql(
        "alter table market_odds enable row level security;
         create policy slow on market_odds using (pg_sleep(60) is null)",
    );
    (database, dsn)
}

/// Questions that take long hold two connections, further ones wait for these, and the rest is refused at once. Each
/// ends within its time.
#[tokio::test]
async fn questions_are_bounded_in_number_and_time() {
    let (database, dsn) = slow();
    let other = connect(&database.dsn()).await;
    let bound = Duration::from_secs(2);
    let reader = History::new(Config::new(&dsn).unwrap(), 2, bound).unwrap();
    let begun = Instant::now();
    let mut questions = Vec::new();
    for _ in 0..16 {
        let reader = reader.clone();
        questions.push(tokio::spawn(async move {
            reader.read(&HistoryQuery::new(1, "3743")).await
        }));
    }
    eventually("both connections are busy", async || {
        connections(&other).await == (2, 2)
    })
    .await;
    let refused = reader.read(&HistoryQuery::new(1, "3743")).await;
    assert!(
        matches!(refused, Err(HistoryError::Busy { most: 16 })),
        "{refused:?}"
    );
    for question in questions {
        let error = question.await.unwrap().unwrap_err();
        assert!(matches!(error, HistoryError::TimedOut { .. }), "{error}");
    }
    assert!(begun.elapsed() >= bound);
    run(&other, "alter table market_odds disable row level security").await;
    eventually("it answers again", async || {
        reader.read(&HistoryQuery::new(1, "3743")).await.is_ok()
    })
    .await;
}

/// However many questions are dropped, the server works on no more than there are connections.
#[tokio::test]
async fn dropped_questions_leave_no_more_than_the_connections_at_work() {
    let (database, dsn) = slow();
    let other = connect(&database.dsn()).await;
    let reader = History::new(Config::new(&dsn).unwrap(), 2, Duration::from_secs(3)).unwrap();
    let mut busy = 0;
    for _ in 0..40 {
        let query = HistoryQuery::new(1, "3743");
        let question = reader.read(&query);
        if let Ok(Err(refused)) = timeout(Duration::from_millis(50), question).await {
            assert!(!matches!(refused, HistoryError::Database(_)), "{refused}");
            busy += 1;
        }
        let (open, _) = connections(&other).await;
        assert!(open <= 2, "{open}");
    }
    assert!(busy > 0);
    run(&other, "alter table market_odds disable row level security").await;
    eventually("they have ended", async || connections(&other).await.1 == 0).await;
    eventually("it answers again", async || {
        reader.read(&HistoryQuery::new(1, "3743")).await.is_ok()
    })
    .await;
}

/// A question gives way to a migration, before the server would cancel one of them.
#[tokio::test]
async fn a_question_gives_way_to_locks() {
    let database = Database::seeded();
    let (client, reader) = (connect(&database.dsn()).await, history(&database.dsn()));
    reader.read(&HistoryQuery::new(1, "3743")).await.unwrap();
    run(&client, "begin; lock table competitor_market_odds").await;
    let question = tokio::spawn({
        let reader = reader.clone();
        async move { reader.read(&HistoryQuery::new(1, "3743")).await }
    });
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    eventually("it waits", async || {
        client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 || question.is_finished()
    })
    .await;
    run(
        &client,
        "alter table odds_snapshots add column more int; commit",
    )
    .await;
    let refused = question.await.unwrap();
    assert!(
        matches!(refused, Err(HistoryError::Locked) | Ok(_)),
        "{refused:?}"
    );
    run(&client, "begin; lock table market_odds").await;
    let refused = reader.read(&HistoryQuery::new(1, "3743")).await;
    assert!(matches!(refused, Err(HistoryError::Locked)), "{refused:?}");
    run(&client, "rollback").await;
    reader.read(&HistoryQuery::new(1, "3743")).await.unwrap();
}

/// A connection that was lost is replaced.
#[tokio::test]
async fn lost_connections_are_replaced() {
    let database = Database::seeded();
    let (client, reader) = (connect(&database.dsn()).await, history(&database.dsn()));
    reader.read(&HistoryQuery::new(1, "3743")).await.unwrap();
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name = 'oddscache history'";
    run(&client, kill).await;
    eventually("the connection is lost", async || {
        connections(&client).await.0 == 0
    })
    .await;
    // The loss may not have reached this process yet.
    eventually("it answers again", async || {
        reader.read(&HistoryQuery::new(1, "3743")).await.is_ok()
    })
    .await;
}

/// One snapshot with more rows of a market than an answer may have.
#[tokio::test]
async fn an_answer_has_a_bounded_size() {
    let database = Database::seeded();
    database.psql(
        "insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
         select 100000 + n, 112, '5000', 'x', n, '[]' from generate_series(1, 50000) n",
    );
    let reader = history(&database.dsn());
    let refused = reader.read(&HistoryQuery::new(1, "5000")).await;
    assert!(
        matches!(refused, Err(HistoryError::TooLarge { most: 50_000 })),
        "{refused:?}"
    );
    let mut one = HistoryQuery::new(1, "5000");
    one.line = Some(7.0);
    assert_eq!(snapshots(&reader, &one).await.0.len(), 8);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let config = Config::new("host=/nowhere user=u dbname=d").unwrap();
    for (connections, within) in [
        (0, WITHIN),
        (101, WITHIN),
        (usize::MAX, WITHIN),
        (1, Duration::ZERO),
    ] {
        let refused = History::new(config.clone(), connections, within).unwrap_err();
        assert!(refused.to_string().contains("1 to 100"), "{refused}");
    }
}

/// A relay leads to no database.
#[cfg(feature = "nats")]
#[test]
fn a_relay_has_no_history() {
    let relay = oddscache::Relay::new("nats://localhost:4222").unwrap();
    let refused = History::new(Config::relay(relay), 2, WITHIN).unwrap_err();
    assert!(refused.to_string().contains("relay"), "{refused}");
}
