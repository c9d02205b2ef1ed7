//! Random writes of the application to a few rows. They include everything that it does to its tables.

use std::fmt::Write;

use proptest::{collection::vec, prelude::*, sample::select};
use tokio_postgres::Client;

use super::followed::run;

/// Creates a second partition, with the triggers that `install.sql` would create.
pub const PREPARE: &str = "
create table odds_snapshots_old partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01');
do $$ begin
    execute (select string_agg(replace(pg_get_triggerdef(oid), 'odds_snapshots_default', 'odds_snapshots_old'), ';')
             from pg_trigger where tgrelid = 'odds_snapshots_default'::regclass);
    execute (select string_agg('alter table odds_snapshots_old enable always trigger ' || tgname, ';')
             from pg_trigger where tgrelid = 'odds_snapshots_old'::regclass);
end $$";

/// Creates the rows with which each case begins.
const RESET: &str = "
truncate events, competitor_events, odds_snapshots, odds_snapshots_old, competitor_odds_snapshots, market_odds,
    competitor_market_odds;
do $$ begin if not exists (select from pg_inherits where inhrelid = 'odds_snapshots_old'::regclass) then
    alter table odds_snapshots attach partition odds_snapshots_old for values from ('2020-01-01') to ('2021-01-01');
end if; end $$;
insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
select e, e, '', '', '', now() at time zone 'UTC' + case e when 4 then interval '-3 hours' else interval '1 day' end
from generate_series(1, 4) e;
insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id)
select c, (array['a', 'b'])[1 + c % 2], case when c < 5 then c end, now(), c, '' from generate_series(1, 6) c;
insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
select 990 + e * 2 + b, e, b, '2020-01-01' from generate_series(1, 4) e, generate_series(1, 2) b;
insert into competitor_odds_snapshots (id, competitor_event_id) select 990 + c, c from generate_series(1, 6) c;
insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
select id, '1', 'one', '[{\"name\": \"1\", \"odds\": 1.5}]' from odds_snapshots;
insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, outcomes)
select id, '1', 'one', '[{\"name\": \"1\", \"odds\": 1.5}]' from competitor_odds_snapshots";

/// A sequence of steps. `true` beside a step means that the cache is compared with the oracle after it. It is always
/// compared at the end.
#[derive(Debug, Clone)]
pub struct Case(pub Vec<(Step, bool)>);

#[derive(Debug, Clone)]
pub enum Step {
    Alone(Transaction),
    /// The first transaction stays open, half done, while the others run from begin to end.
    Beside(Transaction, Vec<Transaction>),
}

#[derive(Debug, Clone)]
pub struct Transaction {
    parts: Vec<Part>,
    end: End,
    notifies: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
}

#[derive(Debug, Clone)]
enum Part {
    Change(Change),
    Savepoint(Vec<Change>, End),
}

/// Statements in which [`BELOW`] and [`ABOVE`] stand for a new id.
#[derive(Debug, Clone)]
struct Change(String);

/// Stands for an id that is less than all others.
const BELOW: &str = "{below}";
/// Stands for an id that is greater than all others.
const ABOVE: &str = "{above}";

/// Makes the new ids of a case.
#[derive(Debug, Default)]
pub struct Ids {
    taken: u32,
}

impl Change {
    fn sql(&self, ids: &mut Ids) -> String {
        ids.taken += 1;
        let sql = self.0.replace(BELOW, &(899 - ids.taken).to_string());
        sql.replace(ABOVE, &(1101 + ids.taken).to_string())
    }
}

/// The tables of betPawa's snapshots, or those of the competitors'.
#[derive(Debug, Clone, Copy)]
struct Side {
    snapshots: &'static str,
    owner: &'static str,
    markets: &'static str,
}

const OWN: Side = Side {
    snapshots: "odds_snapshots",
    owner: "event_id",
    markets: "market_odds",
};
const COMPETITORS: Side = Side {
    snapshots: "competitor_odds_snapshots",
    owner: "competitor_event_id",
    markets: "competitor_market_odds",
};

const OUTCOMES: &str =
    r#"[{"name": "1", "odds": 1.5}, {"name": "x", "odds": null, "is_active": false, "more": [1]}]"#;

/// SQL that adds `count` markets to a snapshot. `snapshot` is an SQL expression.
fn add_markets(side: Side, snapshot: &str, count: u8) -> String {
    format!(
        "insert into {} (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups) \
         select s, n, 'name', n + 0.5, '{OUTCOMES}', '[\"g\"]' from (values ({snapshot})) v (s), generate_series(1, {count}) n \
         where s is not null",
        side.markets
    )
}

impl Transaction {
    pub fn commits(&self) -> bool {
        self.end == End::Commit
    }

    /// The statements in two parts, so that others can run in between.
    pub fn halves(&self, ids: &mut Ids) -> (Vec<String>, Vec<String>) {
        let mut first = self.sql(ids);
        let rest = first.split_off(first.len() / 2);
        (first, rest)
    }

    /// The statements, from begin to end.
    pub fn sql(&self, ids: &mut Ids) -> Vec<String> {
        let mut statements = vec!["begin".to_owned()];
        if !self.notifies {
            statements.push("set local oddscache.notify = off".to_owned());
        }
        for part in &self.parts {
            match part {
                Part::Change(write) => statements.push(write.sql(ids)),
                Part::Savepoint(writes, end) => {
                    statements.push("savepoint s".to_owned());
                    statements.extend(writes.iter().map(|write| write.sql(ids)));
                    statements.push(match end {
                        End::Commit => "release s".to_owned(),
                        End::Rollback => "rollback to s".to_owned(),
                    });
                }
            }
        }
        statements.push(match self.end {
            End::Commit => "commit".to_owned(),
            End::Rollback => "rollback".to_owned(),
        });
        statements
    }
}

/// The codes with which the server may refuse a statement: for a lock, for a key, or for a partition that exists
/// already, does not exist, or does not fit the rows. Any other code is a mistake in this file.
const REFUSALS: [&str; 9] = [
    "55P03", "40P01", "40001", "23503", "23505", "23514", "42P01", "42809", "42P16",
];

/// Runs statements one by one. Rolls back at the first that the server refuses. Returns whether it accepted all.
pub async fn execute(client: &Client, statements: &[String]) -> bool {
    for sql in statements {
        if let Err(error) = client.batch_execute(sql).await {
            let code = error.code().map(|code| code.code());
            let is_known = code.is_some_and(|code| REFUSALS.contains(&code));
            assert!(is_known, "{sql}: {error:?}");
            run(client, "rollback").await;
            return false;
        }
    }
    true
}

/// A statement that waits for a lock of another transaction fails, which ends its own transaction.
pub const PATIENCE: &str = "set lock_timeout = '100 ms'";

/// Restores the rows with which each case begins.
pub async fn reset(client: &Client) {
    let sql = format!("rollback; set lock_timeout = 0; {RESET}; {PATIENCE}");
    run(client, &sql).await;
}

impl Case {
    /// The case as SQL, for people to read.
    pub fn script(&self) -> String {
        let mut ids = Ids::default();
        let mut script = String::new();
        let mut lines = |prefix: &str, statements: &[String]| {
            for sql in statements {
                writeln!(script, "{prefix}{sql};").expect("into a string");
            }
        };
        for (step, pause) in &self.0 {
            match step {
                Step::Alone(transaction) => lines("", &transaction.sql(&mut ids)),
                Step::Beside(late, others) => {
                    let (first, rest) = late.halves(&mut ids);
                    lines("/* beside */ ", &first);
                    for transaction in others {
                        lines("", &transaction.sql(&mut ids));
                    }
                    lines("/* beside */ ", &rest);
                }
            }
            if *pause {
                lines("", &["-- compare".to_owned()]);
            }
        }
        script
    }
}

fn event() -> impl Strategy<Value = u8> + Clone {
    1..=4u8
}

fn competitor_event() -> impl Strategy<Value = u8> + Clone {
    1..=6u8
}

/// The id of an event, or null.
fn link() -> impl Strategy<Value = String> {
    let event = proptest::option::weighted(0.8, event());
    event.prop_map(|event| event.map_or("null".to_owned(), |event| event.to_string()))
}

fn side() -> impl Strategy<Value = Side> + Clone {
    select(vec![OWN, COMPETITORS])
}

/// A new id, mostly above the others.
fn id() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(ABOVE), 1 => Just(BELOW)]
}

/// Selects an id of a table by its place from the end. Mostly it is one of the newest, so that most writes find a row.
fn nth_of(table: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![3 => 0..3u8, 1 => 0..12u8].prop_map(move |nth| {
        format!("(select id from {table} order by id desc offset {nth} limit 1)")
    })
}

/// A side, and one of its snapshots.
fn snapshot() -> impl Strategy<Value = (Side, String)> {
    side().prop_flat_map(|side| (Just(side), nth_of(side.snapshots)))
}

/// The table of a side's markets, and one of its rows.
fn market() -> impl Strategy<Value = (&'static str, String)> {
    side().prop_flat_map(|side| (Just(side.markets), nth_of(side.markets)))
}

/// A kickoff in the window, or before it.
fn kickoff() -> impl Strategy<Value = String> {
    prop_oneof![3 => 1..48i8, 1 => -48..-2i8]
        .prop_map(|hours| format!("now() at time zone 'UTC' + interval '{hours} hours'"))
}

fn source() -> impl Strategy<Value = &'static str> + Clone {
    select(vec!["a", "b", "c"])
}

/// The value, or null.
fn or_null(value: &'static str) -> impl Strategy<Value = &'static str> {
    any::<bool>().prop_map(move |some| if some { value } else { "null" })
}

fn change_of_events() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => (event(), kickoff()).prop_map(|(id, at)| format!(
            "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
             values ({id}, {id}, '', '', '', {at}) on conflict (id) do update set kickoff = {at}"
        )),
        3 => (event(), kickoff()).prop_map(|(id, at)| format!("update events set kickoff = {at} where id = {id}")),
        1 => event().prop_map(|id| format!("delete from events where id = {id}")),
    ]
}

fn change_of_competitor_events() -> impl Strategy<Value = String> {
    let set = |id, what| format!("update competitor_events set {what} where id = {id}");
    prop_oneof![
        5 => (competitor_event(), link()).prop_map(move |(id, event)| set(id, format!("betpawa_event_id = {event}"))),
        3 => (competitor_event(), or_null("now()")).prop_map(move |(id, at)| set(id, format!("deleted_at = {at}"))),
        2 => (competitor_event(), source()).prop_map(move |(id, source)| set(id, format!("source = '{source}'"))),
        1 => competitor_event().prop_map(|id| format!("delete from competitor_events where id = {id}")),
        3 => (competitor_event(), source(), link()).prop_map(|(id, source, event)| format!(
            "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id) \
             values ({id}, '{source}', {event}, now(), {id}, '') \
             on conflict (id) do update set betpawa_event_id = {event}, deleted_at = null"
        )),
    ]
}

fn change_of_snapshots() -> impl Strategy<Value = String> {
    let table = select(vec![
        ("odds_snapshots", "now() at time zone 'UTC'"),
        ("odds_snapshots", "now() at time zone 'UTC'"),
        ("odds_snapshots_default", "now() at time zone 'UTC'"),
        ("odds_snapshots_old", "'2020-06-01'"),
    ]);
    prop_oneof![
        6 => (event(), 1..=2u8, table, id(), 0..4u8).prop_map(|(event, bookmaker, (table, at), id, count)| format!(
            "insert into {table} (id, event_id, bookmaker_id, captured_at) values ({id}, {event}, {bookmaker}, {at}); {}",
            add_markets(OWN, id, count)
        )),
        5 => (competitor_event(), id(), 0..4u8).prop_map(|(event, id, count)| format!(
            "insert into competitor_odds_snapshots (id, competitor_event_id) values ({id}, {event}); {}",
            add_markets(COMPETITORS, id, count)
        )),
        3 => snapshot().prop_map(|(side, id)| format!("delete from {} where id = {id}", side.snapshots)),
        2 => (snapshot(), event()).prop_map(|((side, id), owner)| format!(
            "update {} set {} = {owner} where id = {id}",
            side.snapshots, side.owner
        )),
        1 => (nth_of("odds_snapshots"), 1..=3u8)
            .prop_map(|(id, bookmaker)| format!("update odds_snapshots set bookmaker_id = {bookmaker} where id = {id}")),
        3 => (side(), vec(event(), 1..4)).prop_map(|(side, owners)| format!(
            "update {0} set last_confirmed_at = clock_timestamp() at time zone 'UTC' where id in \
             (select max(id) from {0} where {1} = any(array{owners:?}) group by {1})",
            side.snapshots, side.owner
        )),
        2 => nth_of("odds_snapshots").prop_map(|id| format!(
            "update odds_snapshots set captured_at = case when captured_at < '2021-01-01' then timestamp '2025-01-01' \
             else timestamp '2020-05-05' end where id = {id}"
        )),
    ]
}

fn change_of_markets() -> impl Strategy<Value = String> {
    let unavailable = or_null("clock_timestamp() at time zone 'UTC'");
    let move_to = |side: Side| (Just(side), nth_of(side.markets), nth_of(side.snapshots));
    prop_oneof![
        3 => (snapshot(), 0..4u8).prop_map(|((side, id), count)| add_markets(side, &id, count)),
        3 => (market(), 1000..9999u16).prop_map(|((table, id), odds)| format!(
            "update {table} set outcomes = jsonb_build_array(jsonb_build_object('name', 'n', 'odds', {odds} / 1000.0)) \
             where id = {id}"
        )),
        2 => (market(), unavailable)
            .prop_map(|((table, id), at)| format!("update {table} set unavailable_at = {at} where id = {id}")),
        2 => side().prop_flat_map(move_to).prop_map(|(side, id, to)| format!(
            "update {0} set snapshot_id = s.id from {to} as s (id) where {0}.id = {id} and s.id is not null",
            side.markets
        )),
        1 => market().prop_map(|(table, id)| format!("delete from {table} where id = {id}")),
        1 => market().prop_map(|(table, id)| format!(
            "delete from {table} where snapshot_id = (select snapshot_id from {table} where id = {id})"
        )),
        1 => market().prop_map(|(table, id)| format!("update {table} set id = -{ABOVE} where id = {id}")),
    ]
}

fn rare_change() -> impl Strategy<Value = String> {
    let leaf = || select(vec!["odds_snapshots_default", "odds_snapshots_old"]);
    let row = move || leaf().prop_flat_map(|table| (Just(table), nth_of(table)));
    let truncated = select(vec![
        "events cascade",
        "competitor_events",
        "odds_snapshots",
        "competitor_odds_snapshots cascade",
        "market_odds",
        "competitor_market_odds",
    ]);
    let alter = |what: &str| Just(format!("alter table odds_snapshots {what}"));
    prop_oneof![
        4 => row().prop_map(|(table, id)| format!("update {table} set bookmaker_id = 3 - bookmaker_id where id = {id}")),
        4 => row().prop_map(|(table, id)| format!("delete from {table} where id = {id}")),
        4 => leaf().prop_map(|table| format!("truncate {table}")),
        6 => truncated.prop_map(|what| format!("truncate {what}")),
        3 => alter("detach partition odds_snapshots_old"),
        3 => alter("attach partition odds_snapshots_old for values from ('2020-01-01') to ('2021-01-01')"),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => change_of_events(),
        7 => change_of_competitor_events(),
        10 => change_of_snapshots(),
        9 => change_of_markets(),
        2 => rare_change(),
    ]
    .prop_map(Change)
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![5 => Just(End::Commit), 1 => Just(End::Rollback)]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let savepoint_end = prop_oneof![Just(End::Commit), Just(End::Rollback)];
    let part = prop_oneof![
        5 => change().prop_map(Part::Change),
        1 => (vec(change(), 1..4), savepoint_end).prop_map(|(writes, end)| Part::Savepoint(writes, end)),
    ];
    (vec(part, 1..5), end(), prop::bool::weighted(0.8)).prop_map(|(parts, end, notifies)| {
        Transaction {
            parts,
            end,
            notifies,
        }
    })
}

pub fn case() -> impl Strategy<Value = Case> {
    let step = prop_oneof![
        3 => transaction().prop_map(Step::Alone),
        1 => (transaction(), vec(transaction(), 1..3)).prop_map(|(late, others)| Step::Beside(late, others)),
    ];
    vec((step, prop::bool::weighted(0.4)), 1..12).prop_map(Case)
}
