//! The statements on groups of events. They keep the invariants of `workload.rs`.

use std::time::Duration;

use fastrand::Rng;

use crate::{
    kinds::Kind,
    world::{FREE, members},
};

/// A step of a transaction.
#[derive(Debug)]
pub(crate) enum Part {
    Sql(String),
    Sleep(Duration),
    /// Runs the query `rows` and sends its lines to the COPY statement `target`.
    Copy {
        target: String,
        rows: String,
    },
}

const NOW: &str = "now() at time zone 'UTC'";

/// Selects the ids of a group's latest snapshots of bookmaker 1.
fn own(group: usize) -> String {
    let (first, last) = members(group);
    format!(
        "(select max(id) from odds_snapshots where event_id between {first} and {last} and bookmaker_id = 1 group by event_id)"
    )
}

/// Selects the ids of a group's latest snapshots of sportybet.
fn theirs(group: usize) -> String {
    let (first, last) = members(group);
    format!(
        "(select max(s.id) from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id \
         where c.source = 'sportybet' and c.deleted_at is null and c.betpawa_event_id between {first} and {last} \
         group by c.betpawa_event_id)"
    )
}

fn own_in_place(group: usize, generation: &str) -> String {
    format!(
        "update market_odds set line = {generation}, outcomes = jsonb_build_array(jsonb_build_object('name', '1', 'odds', {generation})) \
         where betpawa_market_id = 'gen' and snapshot_id in {}",
        own(group)
    )
}

fn their_in_place(group: usize, generation: &str) -> String {
    format!(
        "update competitor_market_odds set line = {generation} where betpawa_market_id = 'gen' and snapshot_id in {}",
        theirs(group)
    )
}

fn in_place(group: usize, generation: &str) -> Vec<Part> {
    vec![
        Part::Sql(own_in_place(group, generation)),
        Part::Sql(their_in_place(group, generation)),
    ]
}

fn market_rows(table: &str, snapshots: &str, generation: &str) -> String {
    format!(
        "insert into {table} (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups) \
         select s.id, m, 'Market ' || m, case m when 'gen' then {generation} end, \
             '[{{\"name\": \"1\", \"odds\": 2.5}}, {{\"name\": \"2\", \"odds\": null, \"is_active\": false}}]', '[\"main\"]' \
         from (select unnest(array{snapshots}) as id) s, unnest(array['3743', 'gen', '5000']) m"
    )
}

fn own_snapshots(group: usize, table: &str) -> String {
    let (first, last) = members(group);
    format!(
        "insert into {table} (event_id, bookmaker_id, captured_at, raw_response) \
         select e, 1, {NOW}, '{{\"raw\": 1}}' from generate_series({first}, {last}) e"
    )
}

/// Inserts snapshots of the live competitor events. If `live` is false, inserts snapshots of the deleted or unlinked
/// ones. No reader may see those.
fn their_snapshots(group: usize, live: bool) -> String {
    let (first, last) = members(group);
    let not = if live { "" } else { "not" };
    format!(
        "insert into competitor_odds_snapshots (competitor_event_id) select id from competitor_events \
         where source = 'sportybet' and id % 10000 between {first} and {last} \
         and {not} (betpawa_event_id is not null and deleted_at is null)"
    )
}

fn batch(group: usize, generation: &str, table: &str, rng: &mut Rng) -> Vec<Part> {
    let own_side = [
        own_snapshots(group, table),
        market_rows("market_odds", &own(group), generation),
    ];
    let their_side = [
        their_snapshots(group, true),
        market_rows("competitor_market_odds", &theirs(group), generation),
    ];
    let sides = if rng.bool() {
        [own_side, their_side]
    } else {
        [their_side, own_side]
    };
    sides.into_iter().flatten().map(Part::Sql).collect()
}

fn copied(group: usize, generation: u64) -> Vec<Part> {
    let rows = format!(
        "select concat_ws(E'\\t', s.id, m, 'Market', case m when 'gen' then '{generation}' else '\\N' end, '[]') \
         from (select unnest(array{}) as id) s, unnest(array['3743', 'gen']) m",
        own(group)
    );
    let columns = "snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes";
    vec![
        Part::Sql(own_snapshots(group, "odds_snapshots")),
        Part::Copy {
            target: format!("copy market_odds ({columns}) from stdin"),
            rows,
        },
        Part::Sql(their_in_place(group, &generation.to_string())),
    ]
}

fn on_conflict(group: usize, generation: &str) -> Vec<Part> {
    let upsert = |table: &str, snapshots: &str| {
        Part::Sql(format!(
            "insert into {table} (id, snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) \
             select id, snapshot_id, betpawa_market_id, betpawa_market_name, {generation}, outcomes from {table} \
             where betpawa_market_id = 'gen' and snapshot_id in {snapshots} on conflict (id) do update set line = excluded.line"
        ))
    };
    vec![
        upsert("market_odds", &own(group)),
        upsert("competitor_market_odds", &theirs(group)),
    ]
}

/// Deletes the newest snapshots, so that the snapshots before them become the latest. Gives these the generation.
fn delete_newest(group: usize, generation: &str, rng: &mut Rng) -> Vec<Part> {
    // Only events with at least two snapshots lose one.
    let several = |list: String| {
        let end = list.len() - 1;
        format!("{} having count(*) > 1)", &list[..end])
    };
    let mut parts = vec![Part::Sql(format!(
        "delete from odds_snapshots where id in {}",
        several(own(group))
    ))];
    if rng.bool() {
        parts.push(Part::Sql(format!(
            "delete from competitor_odds_snapshots where id in {}",
            several(theirs(group))
        )));
    }
    parts.extend(in_place(group, generation));
    parts
}

/// Deletes all but the three newest snapshots of each event and bookmaker, and of each competitor event.
fn retention(group: usize, generation: &str) -> Vec<Part> {
    let (first, last) = members(group);
    let old = format!(
        "(select id from (select id, row_number() over (partition by event_id, bookmaker_id order by id desc) as place \
         from odds_snapshots where event_id between {first} and {last} or event_id <= {FREE}) r where place > 3)"
    );
    let mut parts = vec![
        Part::Sql(format!(
            "delete from market_odds where snapshot_id in {old}"
        )),
        Part::Sql(format!("delete from odds_snapshots where id in {old}")),
        Part::Sql(format!(
            "delete from competitor_odds_snapshots where id in (select id from (select id, row_number() over \
             (partition by competitor_event_id order by id desc) as place from competitor_odds_snapshots \
             where competitor_event_id % 10000 between {first} and {last} or competitor_event_id % 10000 <= {FREE}) r where place > 3)"
        )),
    ];
    parts.extend(in_place(group, generation));
    parts
}

/// Writes a negative generation within a savepoint that is rolled back. No reader may ever see it.
fn savepoint(group: usize, generation: &str, rng: &mut Rng) -> Vec<Part> {
    let mut parts = vec![Part::Sql("savepoint s".into())];
    parts.extend(in_place(group, "-1"));
    if rng.bool() {
        parts.extend(batch(group, "-2", "odds_snapshots", rng));
    }
    parts.push(Part::Sql("rollback to s".into()));
    let kept = rng.bool();
    if kept {
        parts.push(Part::Sql("savepoint t".into()));
    }
    parts.extend(in_place(group, generation));
    if kept {
        parts.push(Part::Sql("release t".into()));
    }
    parts
}

/// Replaces the live competitor event of each member by the other one. Sometimes the old one gets more snapshots, which
/// no reader may see.
fn relink(group: usize, generation: &str, rng: &mut Rng) -> Vec<Part> {
    let (first, last) = members(group);
    let live = "betpawa_event_id is not null and deleted_at is null";
    let (link, deleted) = if rng.bool() {
        ("betpawa_event_id", NOW)
    } else {
        ("null::int", "null::timestamp")
    };
    let mut parts = vec![Part::Sql(format!(
        "update competitor_events set betpawa_event_id = case when {live} then {link} else id % 10000 end, \
             deleted_at = case when {live} then {deleted} end \
         where source = 'sportybet' and id % 10000 between {first} and {last}"
    ))];
    parts.extend(batch(group, generation, "odds_snapshots", rng));
    if rng.bool() {
        parts.push(Part::Sql(their_snapshots(group, false)));
        parts.push(Part::Sql(format!(
            "insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) \
             select s.id, 'gen', '', -3, '[]' from (select max(s.id) as id from competitor_odds_snapshots s \
             join competitor_events c on c.id = s.competitor_event_id where c.source = 'sportybet' \
             and c.id % 10000 between {first} and {last} and not ({live}) group by c.id) s"
        )));
    }
    parts
}

/// Truncates tables and inserts the rows of the groups again. It does not insert the rows of free events again.
fn truncate(group: usize, generation: &str, rng: &mut Rng) -> Vec<Part> {
    let mut parts = Vec::new();
    if group == 0 {
        let keep = "snapshot_id in (select id from odds_snapshots where event_id >= 1000)";
        let keep_theirs = "snapshot_id in (select id from competitor_odds_snapshots where competitor_event_id % 10000 >= 1000)";
        let tables: &[(&str, &str)] = match rng.u8(..6) {
            0 => &[("market_odds", keep)],
            1 | 2 => &[("competitor_market_odds", keep_theirs)],
            3 => &[("odds_snapshots", "event_id >= 1000")],
            // The markets refer to the snapshots. TRUNCATE needs both tables, and the snapshots must come back first.
            4 => &[
                ("competitor_odds_snapshots", "true"),
                ("competitor_market_odds", keep_theirs),
            ],
            _ => &[("competitor_market_odds", "true")],
        };
        let names: Vec<&str> = tables.iter().map(|(table, _)| *table).collect();
        parts.push(format!(
            "lock table {} in access exclusive mode",
            names.join(", ")
        ));
        for (table, keep) in tables {
            parts.push(format!(
                "create temp table kept_{table} on commit drop as select * from {table} where {keep}"
            ));
        }
        parts.push(format!("truncate {}", names.join(", ")));
        for (table, _) in tables {
            parts.push(format!("insert into {table} select * from kept_{table}"));
        }
    }
    let mut parts: Vec<Part> = parts.into_iter().map(Part::Sql).collect();
    parts.extend(in_place(group, generation));
    parts
}

/// More keys than a log row names: it names blocks of them, or the whole table.
fn many_keys(group: usize, generation: &str) -> Vec<Part> {
    let bulk = match generation.ends_with(['0', '2', '4', '6', '8']) {
        true => "bulk",
        false => "wide",
    };
    vec![
        Part::Sql(their_in_place(group, generation)),
        Part::Sql(format!(
            "update market_odds set line = {generation} where betpawa_market_id = '{bulk}' \
             or betpawa_market_id = 'gen' and snapshot_id in {}",
            own(group)
        )),
    ]
}

/// The steps by which a transaction of this kind gives a group a generation.
pub(crate) fn prices(kind: Kind, group: usize, generation: u64, rng: &mut Rng) -> Vec<Part> {
    let text = &generation.to_string();
    match kind {
        Kind::Batch => batch(group, text, "odds_snapshots", rng),
        Kind::Leaf => batch(group, text, "odds_snapshots_default", rng),
        Kind::Copy => copied(group, generation),
        Kind::OnConflict => on_conflict(group, text),
        Kind::DeleteNewest => delete_newest(group, text, rng),
        Kind::Retention => retention(group, text),
        Kind::Savepoint => savepoint(group, text, rng),
        Kind::Relink => relink(group, text, rng),
        Kind::Truncate => truncate(group, text, rng),
        Kind::ManyKeys => many_keys(group, text),
        Kind::Late => {
            let mut parts = in_place(group, text);
            parts.insert(1, Part::Sleep(Duration::from_millis(rng.u64(10..400))));
            parts
        }
        Kind::Rollback | Kind::Window | Kind::TwoPhase | Kind::BellOff if rng.bool() => {
            batch(group, text, "odds_snapshots", rng)
        }
        _ => in_place(group, text),
    }
}

/// Moves a group's events into the window or out of it.
pub(crate) fn kickoffs(group: usize, present: bool) -> String {
    let (first, last) = members(group);
    let by = if present { "1 day" } else { "-3 hours" };
    format!(
        "update events set kickoff = {NOW} + interval '{by}' where id between {first} and {last}"
    )
}

/// Moves an amount from a betPawa snapshot of one event to a competitor's snapshot of another event of the group.
pub(crate) fn transfer(group: usize, rng: &mut Rng) -> Vec<Part> {
    let (first, last) = members(group);
    let (from, to) = (rng.i64(first..=last), rng.i64(first..=last));
    let (theirs, amount) = (20_000 + to, rng.i64(-9..10));
    let own = (
        "market_odds",
        "odds_snapshots",
        format!("event_id = {from} and bookmaker_id = 2"),
        format!("(event_id, bookmaker_id, captured_at) values ({from}, 2, {NOW})"),
        -amount,
    );
    let competitors = (
        "competitor_market_odds",
        "competitor_odds_snapshots",
        format!("competitor_event_id = {theirs}"),
        format!("(competitor_event_id) values ({theirs})"),
        amount,
    );
    let mut sides = [own, competitors].map(|(markets, snapshots, which, values, amount)| {
        let newest = format!("(select max(id) from {snapshots} where {which})");
        if rng.u8(..3) != 0 {
            return vec![format!(
                "update {markets} set line = line + {amount} where betpawa_market_id = 'amount' and snapshot_id = {newest}"
            )];
        }
        // The new snapshot takes over the amount of the one before it.
        let before = format!("(select max(id) from {snapshots} where {which} and id < {newest})");
        vec![
            format!("insert into {snapshots} {values}"),
            format!(
                "insert into {markets} (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) \
                 select {newest}, 'amount', 'Amount', line + {amount}, '[]' from {markets} \
                 where betpawa_market_id = 'amount' and snapshot_id = {before}"
            ),
        ]
    });
    if rng.bool() {
        sides.reverse();
    }
    sides.into_iter().flatten().map(Part::Sql).collect()
}

/// Confirms the latest snapshots of many events, as a scraper does when it finds their odds unchanged.
pub(crate) fn confirm(rng: &mut Rng) -> String {
    let (table, owner, key) = if rng.bool() {
        ("odds_snapshots", "event_id", "event_id, bookmaker_id")
    } else {
        (
            "competitor_odds_snapshots",
            "competitor_event_id",
            "competitor_event_id",
        )
    };
    let step = rng.i64(1..4);
    format!(
        "update {table} set last_confirmed_at = clock_timestamp() at time zone 'UTC' where id = any(array(\
         select max(id) from {table} where {owner} % {step} = 0 group by {key}))"
    )
}
