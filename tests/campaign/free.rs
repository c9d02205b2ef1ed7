//! Writes to free events. These events keep no invariant, so a transaction may do anything to them. Only the comparison
//! with the oracle checks them.

use fastrand::Rng;

use crate::world::FREE;

/// Ids that no other client uses. They are negative, so no sequence returns them.
#[derive(Debug)]
pub(crate) struct Ids(i64);

impl Ids {
    pub(crate) fn new(client: usize) -> Ids {
        Ids(-(client as i64 + 1) * 10_000_000)
    }

    fn take(&mut self) -> i64 {
        self.0 -= 1;
        self.0
    }
}

/// A few statements, some within a savepoint that is released or rolled back. `ddl` allows statements that lock whole
/// tables.
pub(crate) fn transaction(rng: &mut Rng, ids: &mut Ids, ddl: bool) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..rng.u8(1..5) {
        let statement = statement(rng, ids);
        if !ddl && (statement.contains("truncate") || statement.contains("alter table")) {
            continue;
        }
        match rng.u8(..6) {
            0 => all.extend(["savepoint f".into(), statement, "rollback to f".into()]),
            1 => all.extend(["savepoint f".into(), statement, "release f".into()]),
            _ => all.push(statement),
        }
    }
    all
}

const NOW: &str = "now() at time zone 'UTC'";

/// Every form of `outcomes` that a row may contain.
const OUTCOMES: &[&str] = &[
    r#"'[{"name": "1", "odds": 1.85, "is_active": true}, {"name": "X", "odds": 3.4}, {"name": "2", "odds": 4.1, "is_active": false}]'"#,
    r#"'[{"name": "Over", "odds": null, "extra": {"a": [1, 2]}}, {"name": "Under", "odds": 1e3, "is_active": null}]'"#,
    r#"'[]'"#,
    r#"'{"no": "list"}'"#,
    r#"'[{"name": "Åse \"Q\" \\ 東京", "odds": 0.1}]'"#,
];

fn statement(rng: &mut Rng, ids: &mut Ids) -> String {
    let event = rng.i64(1..=FREE);
    let bookmaker = rng.i64(1..=3);
    let competitor = (rng.i64(1..=3)) * 10_000 + rng.i64(1..=FREE);
    let own = rng.bool();
    let (snapshots, markets, owner, key) = if own {
        ("odds_snapshots", "market_odds", event, "event_id")
    } else {
        (
            "competitor_odds_snapshots",
            "competitor_market_odds",
            competitor,
            "competitor_event_id",
        )
    };
    let of_free = format!("{key} % 10000 between 1 and {FREE}");
    let newest = format!("(select max(id) from {snapshots} where {key} = {owner})");
    let market = format!("(select max(id) from {markets} where snapshot_id = {newest})");
    let outcomes = OUTCOMES[rng.usize(..OUTCOMES.len())];
    let insert_markets = |snapshot: &str, count: i64| {
        format!(
            "insert into {markets} (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home, outcomes, market_groups) \
             select s, n, 'Märket ' || n, n + 0.25, case n when 2 then 'asian' end, -n / 3.0, {outcomes}, case n when 1 then '[\"g\", 7]'::jsonb end \
             from (values ({snapshot})) v(s), generate_series(1, {count}) n where s is not null"
        )
    };
    let kickoff = match rng.u8(..4) {
        0 => format!(
            "{NOW} - interval '2 hours' + interval '{} ms'",
            rng.i64(-300..3_000)
        ),
        1 => format!("{NOW} - interval '{} hours'", rng.i64(3..50)),
        _ => format!("{NOW} + interval '{} hours'", rng.i64(1..50)),
    };
    let link = if rng.u8(..4) == 0 {
        "null".to_owned()
    } else {
        event.to_string()
    };
    match rng.u8(..26) {
        0..=3 if own => {
            let (table, at) = match rng.u8(..6) {
                0 => ("odds_snapshots_old", "'2020-06-01'".to_owned()),
                1 => ("odds_snapshots", "'2020-07-01'".to_owned()),
                2 => ("odds_snapshots_default", NOW.to_owned()),
                _ => (
                    "odds_snapshots",
                    format!("{NOW} - interval '{} minutes'", rng.i64(0..600)),
                ),
            };
            if rng.u8(..4) == 0 {
                let id = ids.take();
                return format!(
                    "insert into {table} (id, event_id, bookmaker_id, captured_at) values ({id}, {event}, {bookmaker}, {at}); {}",
                    insert_markets(&id.to_string(), rng.i64(0..4))
                );
            }
            format!(
                "insert into {table} (event_id, bookmaker_id, captured_at) values ({event}, {bookmaker}, {at}); {}",
                insert_markets(&newest, rng.i64(0..4))
            )
        }
        0..=3 => format!(
            "insert into {snapshots} (competitor_event_id) values ({competitor}); {}",
            insert_markets(&newest, rng.i64(0..4))
        ),
        4 => insert_markets(&newest, rng.i64(1..3)),
        5 => format!("delete from {snapshots} where id = {newest}"),
        6 => format!(
            "update {snapshots} set {key} = {} where id = {newest}",
            if own { event % FREE + 1 } else { competitor % 10_000 + 20_000 }
        ),
        7 => format!("update odds_snapshots set bookmaker_id = {bookmaker} where event_id = {event} and id = (select max(id) from odds_snapshots where event_id = {event})"),
        8 => format!(
            "update {snapshots} set last_confirmed_at = case when {} then null else clock_timestamp() at time zone 'UTC' end where id in \
             (select max(id) from {snapshots} where {of_free} group by {key})",
            rng.u8(..5) == 0
        ),
        9 => format!("update {markets} set unavailable_at = case when unavailable_at is null then {NOW} end where id = {market}"),
        10 => format!("update {markets} set outcomes = {outcomes} where id = {market}"),
        11 => format!("update {markets} set market_groups = {} where id = {market}", ["null", "'{\"no\": \"list\"}'", "'[\"x\"]'"][rng.usize(..3)]),
        12 => format!("delete from {markets} where snapshot_id = {newest}"),
        13 => format!("update {markets} set snapshot_id = (select min(id) from {snapshots} where {key} = {owner}) where id = {market}"),
        14 => format!("update {markets} set id = {} where id = {market}", ids.take()),
        15 | 16 => format!("update competitor_events set betpawa_event_id = {link} where id = {competitor}"),
        17 => format!("update competitor_events set deleted_at = case when deleted_at is null then {NOW} end where id = {competitor}"),
        18 => format!("update competitor_events set source = '{}' where id = {competitor}", ["sportybet", "bet9ja", "third"][rng.usize(..3)]),
        19 => format!("delete from competitor_events where id = {competitor}"),
        20 => format!(
            "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id) \
             values ({competitor}, 'sportybet', {link}, now(), 'n{competitor}', '') on conflict (id) do update set \
             betpawa_event_id = excluded.betpawa_event_id, deleted_at = null"
        ),
        21 | 22 => format!("update events set kickoff = {kickoff} where id = {event}"),
        23 => format!("delete from events where id = {event}"),
        24 => format!(
            "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) values ({event}, 'sr{event}', '', '', '', {kickoff}) \
             on conflict (id) do update set kickoff = excluded.kickoff"
        ),
        _ => match rng.u8(..12) {
            0 => "truncate odds_snapshots_old".to_owned(),
            1 => "alter table odds_snapshots detach partition odds_snapshots_old".to_owned(),
            2 | 3 => "alter table odds_snapshots attach partition odds_snapshots_old for values from ('2020-01-01') to ('2021-01-01')".to_owned(),
            4 => format!("delete from odds_snapshots_old where event_id = {event}"),
            _ => format!("update odds_snapshots set captured_at = case when captured_at < '2021-01-01' then {NOW} else timestamp '2020-05-05' end where event_id = {event} and id = (select max(id) from odds_snapshots where event_id = {event})"),
        },
    }
}
