//! The demo's data, its simulated scraper, and the oracle that all other tests trust.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod common;
#[path = "../src/demo/dataset.rs"]
#[allow(dead_code, unreachable_pub)]
mod dataset;
#[path = "../src/demo/scraper.rs"]
#[allow(dead_code, unreachable_pub)]
mod scraper;

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use common::Database;
use dataset::Scale;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use scraper::{Control, Kind, Pace, Scraper};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls};

const ORACLE: &str = include_str!("../src/demo/oracle.sql");

async fn connect(db: &Database) -> Client {
    let (client, connection) = tokio_postgres::connect(&db.dsn(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn small(seed: u64) -> Scale {
    Scale {
        events: 80,
        markets: 30,
        history: 4,
        history_with_markets: 2,
        seed,
    }
}

async fn loaded(seed: u64) -> (Database, Client) {
    let db = Database::empty();
    let client = connect(&db).await;
    dataset::create(&client).await.unwrap();
    dataset::load(&client, &small(seed), |_, _, _| {})
        .await
        .unwrap();
    (db, client)
}

fn window_start() -> SystemTime {
    SystemTime::now() - Duration::from_secs(2 * 3600)
}

/// The oracle's events, parsed; fails unless they are in event id order.
async fn oracle(client: &Client, start: SystemTime) -> Vec<Value> {
    let rows = client.query(ORACLE, &[&start]).await.unwrap();
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    let lines = rows
        .iter()
        .map(|row| serde_json::from_str(row.get(1)).unwrap());
    let lines: Vec<Value> = lines.collect();
    assert!(
        ids.iter()
            .zip(&lines)
            .all(|(id, line)| line["event_id"] == *id)
    );
    lines
}

async fn count(client: &Client, sql: &str) -> i64 {
    let sql = format!("select count(*) from ({sql}) rows");
    client.query_one(&sql, &[]).await.expect(&sql).get(0)
}

// --- the data set

/// All rows of all tables, with times as distances from the last kickoff.
async fn digest(client: &Client) -> Vec<String> {
    let mut digests = Vec::new();
    for (table, times) in [
        ("events", "{kickoff,created_at}"),
        ("competitor_events", "{kickoff,deleted_at}"),
        ("odds_snapshots", "{captured_at,last_confirmed_at}"),
        (
            "competitor_odds_snapshots",
            "{captured_at,last_confirmed_at}",
        ),
        ("market_odds", "{unavailable_at}"),
        ("competitor_market_odds", "{unavailable_at}"),
    ] {
        let sql = format!(
            "select md5(string_agg((to_jsonb(t) - '{times}'::text[])::text
                 || (select string_agg(coalesce(((to_jsonb(t) ->> name)::timestamp - (select max(kickoff) from events))::text, '-'), ' ')
                     from unnest('{times}'::text[]) name), '|' order by id))
             from {table} t"
        );
        digests.push(client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    digests
}

#[tokio::test]
async fn the_data_set_depends_on_the_seed_alone() {
    let (first, second, other) = tokio::join!(loaded(7), loaded(7), loaded(8));
    let first = digest(&first.1).await;
    assert_eq!(first, digest(&second.1).await);
    let other = digest(&other.1).await;
    assert!(first.iter().zip(&other).all(|(a, b)| a != b));
}

#[tokio::test]
async fn the_data_set_has_every_special_case() {
    let (_db, client) = loaded(1).await;
    let live = "c.deleted_at is null and c.betpawa_event_id is not null";
    for (case, sql) in [
        (
            "an unlinked competitor event with snapshots",
            "select from competitor_events c join competitor_odds_snapshots s on s.competitor_event_id = c.id where c.betpawa_event_id is null".to_owned(),
        ),
        (
            "two live events of one source",
            format!("select from competitor_events c where {live} group by betpawa_event_id, source having count(*) = 2"),
        ),
        (
            "a deleted event beside a live one, and sometimes with the greater snapshot id",
            format!(
                "select from competitor_events c join competitor_events d using (betpawa_event_id, source)
                 where {live} and d.deleted_at is not null
                   and (select max(id) from competitor_odds_snapshots s where s.competitor_event_id = d.id)
                       > (select max(id) from competitor_odds_snapshots s where s.competitor_event_id = c.id)"
            ),
        ),
        (
            "a source that is wholly deleted",
            "select from competitor_events group by betpawa_event_id, source having count(*) = count(deleted_at)".to_owned(),
        ),
        (
            "a past event with snapshots that have markets",
            "select from events e join odds_snapshots s on s.event_id = e.id join market_odds m on m.snapshot_id = s.id
             where e.kickoff < now() at time zone 'UTC' - interval '2 hours'".to_owned(),
        ),
        (
            "competitors only",
            format!(
                "select from events e where not exists (select from odds_snapshots s where s.event_id = e.id)
                 and exists (select from competitor_events c join competitor_odds_snapshots s on s.competitor_event_id = c.id
                             where c.betpawa_event_id = e.id and {live})"
            ),
        ),
        (
            "no snapshot at all",
            "select from events e where kickoff > now() at time zone 'UTC' and not exists (select from odds_snapshots s where s.event_id = e.id)
             and not exists (select from competitor_events c join competitor_odds_snapshots s on s.competitor_event_id = c.id where c.betpawa_event_id = e.id)".to_owned(),
        ),
        ("a second bookmaker", "select from odds_snapshots where bookmaker_id = 2".to_owned()),
        (
            "a latest snapshot without markets",
            "select from odds_snapshots s where id = (select max(id) from odds_snapshots where event_id = s.event_id)
             and not exists (select from market_odds where snapshot_id = s.id)".to_owned(),
        ),
        ("unconfirmed", "select from odds_snapshots where last_confirmed_at is null".to_owned()),
        ("confirmed", "select from odds_snapshots where last_confirmed_at > captured_at".to_owned()),
        ("history in the default partition", "select from odds_snapshots_default".to_owned()),
        (
            "history over a month old in a daily partition",
            "select from odds_snapshots where captured_at < now() - interval '31 days' and tableoid <> 'odds_snapshots_default'::regclass".to_owned(),
        ),
        ("no groups", "select from market_odds where market_groups is null".to_owned()),
        ("groups", "select from market_odds where jsonb_array_length(market_groups) > 1".to_owned()),
        ("unavailable", "select from market_odds where unavailable_at is not null".to_owned()),
        ("the goals line that is shown inline", "select from market_odds where betpawa_market_id = '5000' and line = 2.5".to_owned()),
        ("other goals lines", "select from competitor_market_odds where betpawa_market_id = '5000' and line = 5.5".to_owned()),
        ("asian handicap", "select from market_odds where handicap_type = 'asian' and handicap_home = -0.5 and handicap_away = 0.5".to_owned()),
        ("european handicap", "select from market_odds where handicap_type = 'european' and jsonb_array_length(outcomes) = 3".to_owned()),
        ("players", "select from market_odds where outcomes -> 0 ->> 'name' like '_. %'".to_owned()),
        ("an inactive outcome", "select from market_odds where outcomes @> '[{\"is_active\":false}]'".to_owned()),
        ("an unknown key", "select from market_odds where outcomes -> 0 ? 'specifier'".to_owned()),
        ("odds with three decimals", "select from market_odds where (outcomes #>> '{0,odds}') ~ '\\.[0-9]{2}[1-9]$'".to_owned()),
    ] {
        assert!(count(&client, &sql).await > 0, "{case}");
    }
    for (id, in_all) in [
        ("3743", true),
        ("3795", true),
        ("4693", true),
        ("none", false),
    ] {
        let with = format!(
            "select distinct snapshot_id from market_odds where betpawa_market_id = '{id}'"
        );
        let all = "select distinct snapshot_id from market_odds";
        assert_eq!(
            count(&client, &with).await == count(&client, all).await,
            in_all,
            "{id}"
        );
    }
    // Ids grow with time, on both sides.
    for table in ["odds_snapshots", "competitor_odds_snapshots"] {
        let backwards = format!(
            "select from (select captured_at, lag(captured_at) over (order by id) as before from {table}) t where captured_at < before"
        );
        assert_eq!(count(&client, &backwards).await, 0, "{table}");
    }
}

#[tokio::test]
async fn the_oracle_tells_of_the_data_set_what_a_count_tells() {
    let (_db, client) = loaded(3).await;
    let events = oracle(&client, window_start()).await;
    assert!(events.len() > 70);
    let mut markets = 0;
    let time =
        |value: &Value| chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    for event in &events {
        assert!(time(&event["kickoff"]) > chrono::DateTime::<chrono::Utc>::from(window_start()));
        let sides = [&event["betpawa"], &event["competitors"]];
        assert!(
            sides
                .iter()
                .any(|side| !side.as_object().unwrap().is_empty())
        );
        for snapshot in sides
            .iter()
            .flat_map(|side| side.as_object().unwrap().values())
        {
            assert!(time(&snapshot["last_confirmed_at"]) >= time(&snapshot["captured_at"]));
            markets += snapshot["markets"].as_array().unwrap().len() as i64;
        }
    }
    let expected = count(
        &client,
        "select from market_odds where snapshot_id in (
             select max(s.id) from odds_snapshots s join events e on e.id = s.event_id
             where e.kickoff > now() at time zone 'UTC' - interval '2 hours' group by event_id, bookmaker_id)
         union all
         select from competitor_market_odds where snapshot_id in (
             select max(s.id) from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id
             join events e on e.id = c.betpawa_event_id
             where deleted_at is null and e.kickoff > now() at time zone 'UTC' - interval '2 hours'
             group by betpawa_event_id, source)",
    )
    .await;
    assert_eq!(markets, expected);
}

#[tokio::test]
#[ignore = "half a minute of work; --ignored --nocapture shows time and size"]
async fn the_real_scale_loads_in_well_under_a_minute() {
    let db = Database::empty();
    let client = connect(&db).await;
    dataset::create(&client).await.unwrap();
    let mut seen = (0, 0);
    let loaded = dataset::load(&client, &Scale::default(), |done, total, _| {
        assert!(done <= total);
        seen = (done, total);
    })
    .await
    .unwrap();
    assert_eq!(seen.0, seen.1);
    println!("{loaded:?}");
    assert!(loaded.elapsed.as_secs() < 60);
    let started = Instant::now();
    let events = oracle(&client, window_start()).await;
    println!(
        "oracle, parsed: {} events in {:?}",
        events.len(),
        started.elapsed()
    );
    assert!(events.len() > 1000);
}

// --- the scraper

fn pool(db: &Database) -> Pool {
    let method = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let manager = Manager::from_config(db.dsn().parse().unwrap(), NoTls, method);
    Pool::builder(manager).max_size(6).build().unwrap()
}

fn hurry() -> Pace {
    Pace {
        cycle: Duration::from_millis(300),
        long: Duration::ZERO,
        mishaps: 2.0,
        ..Pace::default()
    }
}

/// Carries out a kind of change until it found rows to change.
async fn do_once(scraper: &Scraper, kind: Kind) {
    for _ in 0..30 {
        if scraper.once(kind).await.unwrap() {
            return;
        }
    }
    panic!("{kind:?} never found anything to change");
}

#[tokio::test]
async fn every_kind_of_change_works_again_and_again() {
    let (db, client) = loaded(1).await;
    let scraper = Scraper::new(pool(&db), 1, hurry());
    for (place, (kind, _)) in Kind::RATES.into_iter().enumerate() {
        assert_eq!(kind.index(), place);
    }
    for _ in 0..12 {
        for (kind, _) in Kind::RATES {
            // Retention has nothing to do until others have left something behind.
            if kind == Kind::Retention {
                scraper.once(kind).await.unwrap();
            } else {
                do_once(&scraper, kind).await;
            }
        }
    }
    do_once(&scraper, Kind::Retention).await;
    let counts = scraper.counters().read();
    assert_eq!(counts.failed, 0);
    assert!(
        counts
            .kinds
            .iter()
            .all(|(kind, times)| *times >= 12 || *kind == Kind::Retention)
    );
    assert!(counts.snapshots > 0 && counts.markets > 0 && counts.confirmations > 0);
    assert!(oracle(&client, window_start()).await.len() > 60);
}

#[tokio::test]
async fn changes_that_are_nobodys_business_leave_the_latest_alone() {
    let (db, client) = loaded(2).await;
    let scraper = Scraper::new(pool(&db), 2, hurry());
    let start = window_start();
    for kind in [
        Kind::Scrape,
        Kind::CompetitorScrape,
        Kind::Scrape,
        Kind::CompetitorScrape,
    ] {
        do_once(&scraper, kind).await;
    }
    let before = oracle(&client, start).await;
    // More often than there are old partitions, so that every path of theirs is taken.
    for _ in 0..15 {
        for kind in [
            Kind::RolledBack,
            Kind::LeafTruncated,
            Kind::PartitionDropped,
            Kind::PartitionAttached,
            Kind::Retention,
        ] {
            scraper.once(kind).await.unwrap();
        }
    }
    assert!(oracle(&client, start).await == before);
    let counts = scraper.counters().read().kinds;
    let times = |kind: Kind| counts[kind.index()].1;
    assert!(
        times(Kind::LeafTruncated) > 0
            && times(Kind::PartitionDropped) > 0
            && times(Kind::Retention) > 0
    );
}

#[tokio::test]
async fn the_changes_show_in_the_oracle() {
    let (db, client) = loaded(4).await;
    let scraper = Scraper::new(pool(&db), 4, hurry());
    let start = window_start();
    for kind in [
        Kind::Scrape,
        Kind::CompetitorScrape,
        Kind::Confirm,
        Kind::CompetitorConfirm,
        Kind::KickoffMoved,
        Kind::KickoffLeftWindow,
        Kind::KickoffReturned,
        Kind::EventAdded,
        Kind::CompetitorRelinked,
        Kind::CompetitorDeleted,
        Kind::CompetitorRestored,
        Kind::NewestDeleted,
        Kind::CompetitorNewestDeleted,
        Kind::LateMarket,
        Kind::MarketsUnavailable,
        Kind::MarketsAvailable,
        Kind::OutcomesUpdated,
        Kind::LeafWritten,
        Kind::Savepoint,
        Kind::LongTransaction,
    ] {
        let before = oracle(&client, start).await;
        // A single change may hit what does not show: an event without snapshots, say.
        let mut shown = false;
        for _ in 0..30 {
            scraper.once(kind).await.unwrap();
            shown = oracle(&client, start).await != before;
            if shown {
                break;
            }
        }
        assert!(shown, "{kind:?}");
    }
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pause_leaves_no_transaction_in_flight() {
    let (db, client) = loaded(5).await;
    // A long transaction would outlive the test, if a pause did not end it.
    let pace = Pace {
        long: Duration::from_secs(3600),
        workers: 5,
        ..hurry()
    };
    let scraper = Scraper::new(pool(&db), 5, pace);
    let (control, counters) = (Control::new(), scraper.counters());
    let running = tokio::spawn({
        let control = control.clone();
        async move { scraper.run(control).await }
    });
    for _ in 0..5 {
        let before = counters.read().transactions;
        wait_until("transactions", || {
            counters.read().transactions > before + 20
        })
        .await;
        timeout(Duration::from_secs(20), control.pause())
            .await
            .unwrap();
        let in_flight = "select from pg_stat_activity
            where datname = current_database() and backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid()";
        assert_eq!(count(&client, in_flight).await, 0);
        let (done, events) = (
            counters.read().transactions,
            oracle(&client, window_start()).await,
        );
        for _ in 0..10 {
            assert_eq!(count(&client, in_flight).await, 0);
        }
        assert!(oracle(&client, window_start()).await == events);
        assert_eq!(counters.read().transactions, done);
        control.resume();
    }
    timeout(Duration::from_secs(20), control.stop())
        .await
        .unwrap();
    timeout(Duration::from_secs(20), running)
        .await
        .unwrap()
        .unwrap();
    let counts = counters.read();
    println!("{counts:?}");
    assert!(counts.failed * 20 < counts.transactions, "{counts:?}");
}

#[tokio::test]
async fn a_lost_server_is_survived() {
    let (db, client) = loaded(6).await;
    drop(client);
    let scraper = Scraper::new(pool(&db), 6, hurry());
    let (control, counters) = (Control::new(), scraper.counters());
    let running = tokio::spawn({
        let control = control.clone();
        async move { scraper.run(control).await }
    });
    wait_until("transactions", || counters.read().transactions > 10).await;
    let admin = |sql: &str| common::psql("postgres", &["-qAtc", sql]);
    admin(&format!(
        "alter database {} allow_connections false",
        db.name
    ));
    admin(&format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'",
        db.name
    ));
    let failed = counters.read().failed;
    wait_until("failures", || counters.read().failed > failed + 2).await;
    admin(&format!(
        "alter database {} allow_connections true",
        db.name
    ));
    let before = counters.read().transactions;
    wait_until("transactions after the loss", || {
        counters.read().transactions > before + 10
    })
    .await;
    timeout(Duration::from_secs(20), control.stop())
        .await
        .unwrap();
    timeout(Duration::from_secs(20), running)
        .await
        .unwrap()
        .unwrap();
}

// --- the oracle, rule by rule

const NOON: &str = "2026-01-01T12:00:00Z";

/// Tables with two bookmakers and three events: 1 at the start of the window, 2 just after, 3 a day later.
async fn by_hand() -> Client {
    let db = Database::empty();
    let client = connect(&db).await;
    client.batch_execute(dataset::SCHEMA).await.unwrap();
    client
        .batch_execute(
            "insert into bookmakers (name, slug) values ('a', 'a'), ('b', 'b');
             insert into events (sportradar_id, name, home_team, away_team, kickoff) values
                 ('1', '', '', '', '2026-01-01 12:00:00'), ('2', '', '', '', '2026-01-01 12:00:00.000001'), ('3', '', '', '', '2026-01-02 12:00');
             insert into competitor_events (source, betpawa_event_id, kickoff, external_id, sportradar_id, deleted_at) values
                 ('bet9ja', 2, 'today', 'a', '2', null), ('bet9ja', 2, 'today', 'b', '2', null), ('sportybet', 2, 'today', 'a', '2', null),
                 ('bet9ja', 2, 'today', 'gone', '2', 'today'), ('bet9ja', null, 'today', 'loose', '9', null);",
        )
        .await
        .unwrap();
    client
}

async fn says(client: &Client, sql: &str) -> Vec<Value> {
    client.batch_execute(sql).await.unwrap();
    let noon = chrono::DateTime::parse_from_rfc3339(NOON).unwrap();
    oracle(client, noon.into()).await
}

fn own(event: &Value, bookmaker: &str) -> i64 {
    event["betpawa"][bookmaker]["snapshot_id"]
        .as_i64()
        .unwrap_or(0)
}

fn competitor(event: &Value, source: &str) -> i64 {
    event["competitors"][source]["snapshot_id"]
        .as_i64()
        .unwrap_or(0)
}

#[tokio::test]
async fn oracle_prints_an_event_in_full() {
    let client = by_hand().await;
    let events = says(
        &client,
        r#"insert into odds_snapshots (event_id, bookmaker_id, captured_at, raw_response, last_confirmed_at)
               values (2, 1, '2026-01-01 10:00:00.25', '{}', '2026-01-01 11:00');
           insert into competitor_odds_snapshots (competitor_event_id, captured_at) values (3, '2026-01-01 09:00');
           insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, handicap_away, outcomes, market_groups, unavailable_at)
               values (1, '5000', 'Over "Under"', 2.5, 'asian', -0.5, 0.1, '[{"name":"Over","odds":1.850,"is_active":true,"x":{"y":[1]}},{"name":"Under","odds":2,"is_active":false}]', '["Main"]', '2026-01-01 10:30');
           insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (1, '3743', '1X2', '[]');"#,
    )
    .await;
    let expected = json!([{
        "event_id": 2,
        "kickoff": "2026-01-01T12:00:00.000001Z",
        "betpawa": {"1": {
            "snapshot_id": 1, "event_id": 2, "bookmaker_id": 1,
            "captured_at": "2026-01-01T10:00:00.25Z", "last_confirmed_at": "2026-01-01T11:00:00Z",
            "markets": [{
                "betpawa_market_id": "5000", "betpawa_market_name": "Over \"Under\"", "line": 2.5,
                "handicap_type": "asian", "handicap_home": -0.5, "handicap_away": 0.1,
                "outcomes": [{"name": "Over", "odds": 1.85, "is_active": true, "x": {"y": [1]}}, {"name": "Under", "odds": 2, "is_active": false}],
                "market_groups": ["Main"], "unavailable_at": "2026-01-01T10:30:00Z",
            }],
        }},
        "competitors": {"sportybet": {
            "snapshot_id": 1, "event_id": 2, "bookmaker_id": 0,
            "captured_at": "2026-01-01T09:00:00Z", "last_confirmed_at": "2026-01-01T09:00:00Z",
            "markets": [{
                "betpawa_market_id": "3743", "betpawa_market_name": "1X2", "line": null,
                "handicap_type": null, "handicap_home": null, "handicap_away": null,
                "outcomes": [], "market_groups": [], "unavailable_at": null,
            }],
        }},
    }]);
    assert_eq!(json!(events), expected);
}

#[tokio::test]
async fn oracle_takes_the_greatest_id_per_event_and_bookmaker() {
    let client = by_hand().await;
    let events = says(
        &client,
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values
             (5, 2, 1, '2026-01-01 08:00'), (4, 2, 1, '2026-01-01 09:00'), (3, 2, 2, '2026-01-01 10:00'), (9, 3, 2, '2026-01-01 07:00')",
    )
    .await;
    assert_eq!(events.len(), 2);
    assert_eq!(
        [
            own(&events[0], "1"),
            own(&events[0], "2"),
            own(&events[1], "1"),
            own(&events[1], "2")
        ],
        [5, 3, 0, 9]
    );
}

#[tokio::test]
async fn oracle_opens_the_window_after_its_start() {
    let client = by_hand().await;
    let events = says(
        &client,
        "insert into odds_snapshots (event_id, bookmaker_id) values (1, 1), (2, 1), (3, 1)",
    )
    .await;
    let ids: Vec<&Value> = events.iter().map(|event| &event["event_id"]).collect();
    assert_eq!(ids, [2, 3]);
}

#[tokio::test]
async fn oracle_takes_live_linked_competitor_events_only() {
    let client = by_hand().await;
    // 1 and 2 are live, 4 is deleted, 5 is not linked; each has a greater snapshot id than the one before.
    let snapshots = "insert into competitor_odds_snapshots (id, competitor_event_id) values (12, 1), (11, 2), (10, 3), (14, 4), (15, 5)";
    let events = says(&client, snapshots).await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (
            competitor(&events[0], "bet9ja"),
            competitor(&events[0], "sportybet")
        ),
        (12, 10)
    );
    assert_eq!(events[0]["betpawa"], json!({}));
    for (change, left, of_event_3) in [
        (
            "update competitor_events set deleted_at = 'today' where id = 1",
            11,
            0,
        ),
        (
            "update competitor_events set deleted_at = null where id = 4",
            14,
            0,
        ),
        (
            "update competitor_events set betpawa_event_id = 2 where id = 5",
            15,
            0,
        ),
        (
            "update competitor_events set betpawa_event_id = 3 where id = 5",
            14,
            15,
        ),
        (
            "delete from competitor_odds_snapshots where id = 14",
            11,
            15,
        ),
    ] {
        let events = says(&client, change).await;
        assert_eq!(competitor(&events[0], "bet9ja"), left, "{change}");
        let third = events.get(1).map_or(0, |event| competitor(event, "bet9ja"));
        assert_eq!(third, of_event_3, "{change}");
    }
}

#[tokio::test]
async fn oracle_leaves_out_events_without_snapshots() {
    let client = by_hand().await;
    assert!(says(&client, "").await.is_empty());
    // Nor does a snapshot of an unknown event make one.
    assert!(
        says(
            &client,
            "insert into odds_snapshots (event_id, bookmaker_id) values (77, 1)"
        )
        .await
        .is_empty()
    );
}

#[tokio::test]
async fn oracle_keeps_row_id_order_and_sides_apart() {
    let client = by_hand().await;
    // Snapshot 1 exists on both sides.
    let events = says(
        &client,
        "insert into odds_snapshots (event_id, bookmaker_id) values (2, 1), (3, 1);
         insert into competitor_odds_snapshots (competitor_event_id) values (1);
         insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values
             (10, 1, 'b', '', '[]'), (2, 1, 'a', '', '[]'), (11, 1, 'a', '', '[]'), (12, 99, 'x', '', '[]');
         insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (1, 'c', '', '[]')",
    )
    .await;
    let names = |snapshot: &Value| -> Vec<String> {
        let markets = snapshot["markets"].as_array().unwrap();
        markets
            .iter()
            .map(|market| market["betpawa_market_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&events[0]["betpawa"]["1"]), ["a", "b", "a"]);
    assert_eq!(names(&events[0]["competitors"]["bet9ja"]), ["c"]);
    assert_eq!(events[1]["betpawa"]["1"]["markets"], json!([]));
}

#[tokio::test]
async fn oracle_reads_what_is_no_list_as_empty() {
    let client = by_hand().await;
    let events = says(
        &client,
        r#"insert into odds_snapshots (event_id, bookmaker_id) values (2, 1);
           insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes, market_groups) values
               (1, '', '', '{"name":"1"}', null), (1, '', '', 'null', 'null'), (1, '', '', '"[]"', '["a",null]')"#,
    )
    .await;
    let markets = events[0]["betpawa"]["1"]["markets"].as_array().unwrap();
    assert!(markets.iter().all(|market| market["outcomes"] == json!([])));
    let groups: Vec<&Value> = markets
        .iter()
        .map(|market| &market["market_groups"])
        .collect();
    assert_eq!(groups, [&json!([]), &json!([]), &json!(["a", null])]);
}

#[tokio::test]
async fn oracle_reads_other_deployments_alike() {
    let client = by_hand().await;
    let events = says(
        &client,
        r#"insert into odds_snapshots (event_id, bookmaker_id, captured_at) values (2, 1, '2026-01-01 10:00');
           insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
               values (1, 'a', 'b', '[{"name":"1","odds":1.50,"is_active":true}]');
           insert into competitor_odds_snapshots (competitor_event_id, captured_at) values (1, '2026-01-01 10:00');"#,
    )
    .await;
    let other = says(
        &client,
        "set timezone = 'Africa/Lagos';
         alter table events alter kickoff type timestamptz using kickoff at time zone 'UTC', alter id type bigint;
         alter table market_odds alter outcomes type json, drop market_groups, drop unavailable_at, alter betpawa_market_id type text;
         alter table odds_snapshots drop last_confirmed_at;
         alter table competitor_odds_snapshots alter captured_at type timestamptz using captured_at at time zone 'UTC', drop raw_response;",
    )
    .await;
    let times: BTreeSet<&str> = ["kickoff", "captured_at", "last_confirmed_at"].into();
    fn normal(value: &Value, times: &BTreeSet<&str>) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| match value {
                    Value::String(text) if times.contains(key.as_str()) => {
                        let time = chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc();
                        (key.clone(), json!(time.to_rfc3339()))
                    }
                    other => (key.clone(), normal(other, times)),
                })
                .collect(),
            Value::Array(list) => list.iter().map(|value| normal(value, times)).collect(),
            other => other.clone(),
        }
    }
    assert_eq!(
        normal(&json!(other), &times),
        normal(&json!(events), &times)
    );
}
