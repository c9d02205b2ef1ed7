//! Each rule of the oracle, tested on rows written by hand.

use oddscache_testkit::{Database, connect, followed::run, normal};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{dataset, oracle};

const NOON: &str = "2026-01-01T12:00:00Z";

/// A database with two bookmakers and three events. The kickoff of event 1 is the start of the window, that of event 2
/// a microsecond later, that of event 3 a day later.
async fn hand_made() -> Client {
    let client = connect(&Database::empty().dsn()).await;
    run(&client, dataset::SCHEMA).await;
    let rows = "insert into bookmakers (name, slug) values ('a', 'a'), ('b', 'b');
             insert into events (sportradar_id, name, home_team, away_team, kickoff) values
                 ('1', '', '', '', '2026-01-01 12:00:00'), ('2', '', '', '', '2026-01-01 12:00:00.000001'), ('3', '', '', '', '2026-01-02 12:00');
             insert into competitor_events (source, betpawa_event_id, kickoff, external_id, sportradar_id, deleted_at) values
                 ('bet9ja', 2, 'today', 'a', '2', null), ('bet9ja', 2, 'today', 'b', '2', null), ('sportybet', 2, 'today', 'a', '2', null),
                 ('bet9ja', 2, 'today', 'gone', '2', 'today'), ('bet9ja', null, 'today', 'loose', '9', null);";
    run(&client, rows).await;
    client
}

/// Runs statements, then returns the oracle's events for a window that starts at noon.
async fn oracle_after(client: &Client, sql: &str) -> Vec<Value> {
    run(client, sql).await;
    let noon = chrono::DateTime::parse_from_rfc3339(NOON).unwrap();
    oracle(client, noon.into()).await
}

/// The id of an event's snapshot of this bookmaker, 0 if there is none.
fn own(event: &Value, bookmaker: &str) -> i64 {
    event["betpawa"][bookmaker]["snapshot_id"]
        .as_i64()
        .unwrap_or(0)
}

/// The id of an event's snapshot of this source, 0 if there is none.
fn competitor(event: &Value, source: &str) -> i64 {
    event["competitors"][source]["snapshot_id"]
        .as_i64()
        .unwrap_or(0)
}

/// The oracle returns every field, in the form that the cache serves.
#[tokio::test]
async fn oracle_prints_an_event_in_full() {
    let client = hand_made().await;
    let events = oracle_after(
        &client,
        r#"insert into sports (name) values ('Football'); insert into tournaments (sport_id, name) values (1, 'Cup');
           update events set tournament_id = 1;
           insert into odds_snapshots (event_id, bookmaker_id, captured_at, raw_response, last_confirmed_at)
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
        "name": "", "home_team": "", "away_team": "", "sportradar_id": "2",
        "tournament": {"id": 1, "name": "Cup", "country": null, "sport": "Football"},
        "bookmakers": {"1": {"slug": "a", "name": "a"}},
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

/// The latest snapshot is the one with the greatest id, even if it was captured earlier.
#[tokio::test]
async fn oracle_takes_the_greatest_id_per_event_and_bookmaker() {
    let client = hand_made().await;
    let events = oracle_after(
        &client,
        "insert into odds_snapshots (id, event_id, bookmaker_id, captured_at) values
             (5, 2, 1, '2026-01-01 08:00'), (4, 2, 1, '2026-01-01 09:00'), (3, 2, 2, '2026-01-01 10:00'), (9, 3, 2, '2026-01-01 07:00')",
    )
    .await;
    assert_eq!(events.len(), 2);
    let of = |event: &Value| ["1", "2"].map(|bookmaker| own(event, bookmaker));
    assert_eq!([of(&events[0]), of(&events[1])], [[5, 3], [0, 9]]);
}

/// An event whose kickoff is the very start of the window is outside.
#[tokio::test]
async fn oracle_opens_the_window_after_its_start() {
    let client = hand_made().await;
    let insert =
        "insert into odds_snapshots (event_id, bookmaker_id) values (1, 1), (2, 1), (3, 1)";
    let events = oracle_after(&client, insert).await;
    let ids: Vec<&Value> = events.iter().map(|event| &event["event_id"]).collect();
    assert_eq!(ids, [2, 3]);
}

/// Competitor events that are deleted or not linked contribute nothing. Of several live ones, the greatest snapshot id
/// counts.
#[tokio::test]
async fn oracle_takes_live_linked_competitor_events_only() {
    let client = hand_made().await;
    // 1, 2 and 3 are live and linked to event 2. 4 is deleted and 5 is not linked, and both have greater snapshot ids.
    let snapshots = "insert into competitor_odds_snapshots (id, competitor_event_id) values (12, 1), (11, 2), (10, 3), (14, 4), (15, 5)";
    let events = oracle_after(&client, snapshots).await;
    assert_eq!(events.len(), 1);
    let of = |source| competitor(&events[0], source);
    assert_eq!(["bet9ja", "sportybet"].map(of), [12, 10]);
    assert_eq!(events[0]["betpawa"], json!({}));
    let set = |what: &str, id: i64| format!("update competitor_events set {what} where id = {id}");
    let delete = "delete from competitor_odds_snapshots where id = 14".to_owned();
    for (change, left, of_event_3) in [
        (set("deleted_at = 'today'", 1), 11, 0),
        (set("deleted_at = null", 4), 14, 0),
        (set("betpawa_event_id = 2", 5), 15, 0),
        (set("betpawa_event_id = 3", 5), 14, 15),
        (delete, 11, 15),
    ] {
        let events = oracle_after(&client, &change).await;
        assert_eq!(competitor(&events[0], "bet9ja"), left, "{change}");
        let third = events.get(1).map_or(0, |event| competitor(event, "bet9ja"));
        assert_eq!(third, of_event_3, "{change}");
    }
}

/// The oracle returns no event without snapshots, and no snapshot without an event.
#[tokio::test]
async fn oracle_leaves_out_events_without_snapshots() {
    let client = hand_made().await;
    assert!(oracle_after(&client, "").await.is_empty());
    // This snapshot belongs to an event that does not exist.
    let insert = "insert into odds_snapshots (event_id, bookmaker_id) values (77, 1)";
    assert!(oracle_after(&client, insert).await.is_empty());
}

/// Markets come in the order of their row ids. A betPawa snapshot does not get the markets of a competitor's with the
/// same id.
#[tokio::test]
async fn oracle_keeps_row_id_order_and_sides_apart() {
    let client = hand_made().await;
    // The id 1 exists in both tables of snapshots.
    let events = oracle_after(
        &client,
        "insert into odds_snapshots (event_id, bookmaker_id) values (2, 1), (3, 1);
         insert into competitor_odds_snapshots (competitor_event_id) values (1);
         insert into market_odds (id, snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values
             (10, 1, 'b', '', '[]'), (2, 1, 'a', '', '[]'), (11, 1, 'c', '', '[]'), (12, 99, 'x', '', '[]');
         insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes) values (1, 'c', '', '[]')",
    )
    .await;
    let names = |snapshot: &Value| -> Vec<String> {
        let markets = snapshot["markets"].as_array().unwrap().iter();
        let id = |market: &Value| market["betpawa_market_id"].as_str().unwrap().to_owned();
        markets.map(id).collect()
    };
    assert_eq!(names(&events[0]["betpawa"]["1"]), ["a", "b", "c"]);
    assert_eq!(names(&events[0]["competitors"]["bet9ja"]), ["c"]);
    assert_eq!(events[1]["betpawa"]["1"]["markets"], json!([]));
}

/// `outcomes` or `market_groups` that are not a JSON list read as an empty list.
#[tokio::test]
async fn oracle_reads_a_non_list_as_empty() {
    let client = hand_made().await;
    let events = oracle_after(
        &client,
        r#"insert into odds_snapshots (event_id, bookmaker_id) values (2, 1);
           insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes, market_groups) values
               (1, '', '', '{"name":"1"}', null), (1, '', '', 'null', 'null'), (1, '', '', '"[]"', '["a",null]')"#,
    )
    .await;
    let markets = events[0]["betpawa"]["1"]["markets"].as_array().unwrap();
    assert!(markets.iter().all(|market| market["outcomes"] == json!([])));
    let groups = markets.iter().map(|market| &market["market_groups"]);
    assert!(groups.eq(&[json!([]), json!([]), json!(["a", null])]));
}

/// Deployments with other column types, without the optional columns and in another time zone give the same result.
#[tokio::test]
async fn oracle_reads_other_deployments_alike() {
    let client = hand_made().await;
    let events = oracle_after(
        &client,
        r#"insert into odds_snapshots (event_id, bookmaker_id, captured_at) values (2, 1, '2026-01-01 10:00');
           insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
               values (1, 'a', 'b', '[{"name":"1","odds":1.50,"is_active":true}]');
           insert into competitor_odds_snapshots (competitor_event_id, captured_at) values (1, '2026-01-01 10:00');"#,
    )
    .await;
    let other = oracle_after(
        &client,
        "set timezone = '<+01>-1';
         alter table events alter kickoff type timestamptz using kickoff at time zone 'UTC', alter id type bigint;
         alter table market_odds alter outcomes type json, drop market_groups, drop unavailable_at, alter betpawa_market_id type text;
         alter table odds_snapshots drop last_confirmed_at;
         alter table competitor_odds_snapshots alter captured_at type timestamptz using captured_at at time zone 'UTC', drop raw_response;",
    )
    .await;
    assert_eq!(normal(json!(other)), normal(json!(events)));
}
