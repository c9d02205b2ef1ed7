//! The application's writes: a small world, and everything that can happen to it.

use std::fmt::Write;

use proptest::{collection::vec, prelude::*, sample::select};

/// A second partition, and its triggers: what `install.sql` would do.
pub const PREPARE: &str = "
create table odds_snapshots_old partition of odds_snapshots for values from ('2020-01-01') to ('2021-01-01');
do $$ begin
    execute (select string_agg(replace(pg_get_triggerdef(oid), 'odds_snapshots_default', 'odds_snapshots_old'), ';')
             from pg_trigger where tgrelid = 'odds_snapshots_default'::regclass);
    execute (select string_agg('alter table odds_snapshots_old enable always trigger ' || tgname, ';')
             from pg_trigger where tgrelid = 'odds_snapshots_old'::regclass);
end $$";

/// The world at the beginning of a case.
pub const RESET: &str = "
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

/// A sequence of steps; after some of them the cache is compared with the oracle, and always at the end.
#[derive(Debug, Clone)]
pub struct Case(pub Vec<(Step, bool)>);

#[derive(Debug, Clone)]
pub enum Step {
    Alone(Transaction),
    /// The first is open, half done, while the others run from begin to end.
    Beside(Transaction, Vec<Transaction>),
}

#[derive(Debug, Clone)]
pub struct Transaction {
    parts: Vec<Part>,
    end: End,
    bell: bool,
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

/// Which of the two sides: the platform's own snapshots, or those of its competitors.
#[derive(Debug, Clone, Copy)]
enum Side {
    Own,
    Competitors,
}

impl Side {
    fn snapshots(self) -> &'static str {
        match self {
            Side::Own => "odds_snapshots",
            Side::Competitors => "competitor_odds_snapshots",
        }
    }

    fn markets(self) -> &'static str {
        match self {
            Side::Own => "market_odds",
            Side::Competitors => "competitor_market_odds",
        }
    }
}

/// Rows that exist are named by their place from the end, so that most writes hit one.
type Nth = u8;

#[derive(Debug, Clone)]
enum Change {
    Event {
        id: u8,
        hours: i8,
    },
    Kickoff {
        id: u8,
        hours: i8,
    },
    DeleteEvent {
        id: u8,
    },
    Link {
        id: u8,
        event: Option<u8>,
    },
    SoftDelete {
        id: u8,
        deleted: bool,
    },
    Rename {
        id: u8,
        source: &'static str,
    },
    DeleteCompetitorEvent {
        id: u8,
    },
    CompetitorEvent {
        id: u8,
        source: &'static str,
        event: Option<u8>,
    },
    Snapshot {
        owner: u8,
        bookmaker: u8,
        table: &'static str,
        first: bool,
        markets: u8,
    },
    CompetitorSnapshot {
        owner: u8,
        first: bool,
        markets: u8,
    },
    DeleteSnapshot {
        side: Side,
        nth: Nth,
    },
    MoveSnapshot {
        side: Side,
        nth: Nth,
        owner: u8,
    },
    Bookmaker {
        nth: Nth,
        bookmaker: u8,
    },
    Confirm {
        side: Side,
        owners: Vec<u8>,
    },
    OtherPartition {
        nth: Nth,
    },
    Markets {
        side: Side,
        nth: Nth,
        count: u8,
    },
    Outcomes {
        side: Side,
        nth: Nth,
        odds: u16,
    },
    Unavailable {
        side: Side,
        nth: Nth,
        set: bool,
    },
    MoveMarket {
        side: Side,
        nth: Nth,
        to: Nth,
    },
    DeleteMarkets {
        side: Side,
        nth: Nth,
        all: bool,
    },
    ReorderMarket {
        side: Side,
        nth: Nth,
    },
    Leaf {
        table: &'static str,
        what: u8,
        nth: Nth,
    },
    Truncate {
        what: &'static str,
    },
    Detach,
    Attach,
}

/// New ids, for a case.
#[derive(Debug)]
pub struct Ids {
    next: u32,
}

impl Default for Ids {
    fn default() -> Ids {
        Ids { next: 1 }
    }
}

impl Ids {
    /// Above or below all others.
    fn take(&mut self, first: bool) -> u32 {
        self.next += 1;
        if first {
            900 - self.next
        } else {
            1100 + self.next
        }
    }
}

const OUTCOMES: &str =
    r#"[{"name": "1", "odds": 1.5}, {"name": "x", "odds": null, "is_active": false, "more": [1]}]"#;

impl Change {
    fn sql(&self, ids: &mut Ids) -> String {
        let kickoff = |hours: &i8| format!("now() at time zone 'UTC' + interval '{hours} hours'");
        let null = |id: &Option<u8>| id.map_or("null".to_owned(), |id| id.to_string());
        let nth = |table: &str, nth: &Nth| {
            format!("(select id from {table} order by id desc offset {nth} limit 1)")
        };
        let markets = |side: Side, snapshot: &str, count: u8| {
            format!(
                "insert into {} (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups) \
                 select s, n, 'name', n + 0.5, '{OUTCOMES}', '[\"g\"]' from {snapshot} as s, generate_series(1, {count}) n \
                 where s is not null",
                side.markets()
            )
        };
        match self {
            Change::Event { id, hours } => format!(
                "insert into events (id, sportradar_id, name, home_team, away_team, kickoff) \
                 values ({id}, {id}, '', '', '', {0}) on conflict (id) do update set kickoff = {0}",
                kickoff(hours)
            ),
            Change::Kickoff { id, hours } => {
                format!(
                    "update events set kickoff = {} where id = {id}",
                    kickoff(hours)
                )
            }
            Change::DeleteEvent { id } => format!("delete from events where id = {id}"),
            Change::Link { id, event } => {
                format!(
                    "update competitor_events set betpawa_event_id = {} where id = {id}",
                    null(event)
                )
            }
            Change::SoftDelete { id, deleted } => {
                let at = if *deleted { "now()" } else { "null" };
                format!("update competitor_events set deleted_at = {at} where id = {id}")
            }
            Change::Rename { id, source } => {
                format!("update competitor_events set source = '{source}' where id = {id}")
            }
            Change::DeleteCompetitorEvent { id } => {
                format!("delete from competitor_events where id = {id}")
            }
            Change::CompetitorEvent { id, source, event } => format!(
                "insert into competitor_events (id, source, betpawa_event_id, kickoff, external_id, sportradar_id) \
                 values ({id}, '{source}', {0}, now(), {id}, '') \
                 on conflict (id) do update set betpawa_event_id = {0}, deleted_at = null",
                null(event)
            ),
            Change::Snapshot {
                owner,
                bookmaker,
                table,
                first,
                markets: count,
            } => {
                let id = ids.take(*first);
                let at = if *table == "odds_snapshots_old" {
                    "'2020-06-01'"
                } else {
                    "now() at time zone 'UTC'"
                };
                let snapshot = format!(
                    "insert into {table} (id, event_id, bookmaker_id, captured_at) values ({id}, {owner}, {bookmaker}, {at})"
                );
                format!(
                    "{snapshot}; {}",
                    markets(Side::Own, &format!("(values ({id}))"), *count)
                        .replace("as s,", "as v(s),")
                )
            }
            Change::CompetitorSnapshot {
                owner,
                first,
                markets: count,
            } => {
                let id = ids.take(*first);
                let snapshot = format!(
                    "insert into competitor_odds_snapshots (id, competitor_event_id) values ({id}, {owner})"
                );
                format!(
                    "{snapshot}; {}",
                    markets(Side::Competitors, &format!("(values ({id}))"), *count)
                        .replace("as s,", "as v(s),")
                )
            }
            Change::DeleteSnapshot { side, nth: n } => {
                let table = side.snapshots();
                format!("delete from {table} where id = {}", nth(table, n))
            }
            Change::MoveSnapshot {
                side,
                nth: n,
                owner,
            } => {
                let table = side.snapshots();
                let column = match side {
                    Side::Own => "event_id",
                    Side::Competitors => "competitor_event_id",
                };
                format!(
                    "update {table} set {column} = {owner} where id = {}",
                    nth(table, n)
                )
            }
            Change::Bookmaker { nth: n, bookmaker } => {
                format!(
                    "update odds_snapshots set bookmaker_id = {bookmaker} where id = {}",
                    nth("odds_snapshots", n)
                )
            }
            Change::Confirm { side, owners } => {
                let (table, list) = (side.snapshots(), format!("{owners:?}"));
                format!(
                    "update {table} set last_confirmed_at = clock_timestamp() at time zone 'UTC' where id in \
                     (select max(id) from {table} where {} in ({}) group by {0})",
                    match side {
                        Side::Own => "event_id",
                        Side::Competitors => "competitor_event_id",
                    },
                    list.trim_matches(['[', ']'])
                )
            }
            Change::OtherPartition { nth: n } => format!(
                "update odds_snapshots set captured_at = case when captured_at < '2021-01-01' then timestamp '2025-01-01' \
                 else timestamp '2020-05-05' end where id = {}",
                nth("odds_snapshots", n)
            ),
            Change::Markets {
                side,
                nth: n,
                count,
            } => {
                let snapshot = nth(side.snapshots(), n);
                markets(*side, &snapshot, *count).replace("as s,", "as v(s),")
            }
            Change::Outcomes { side, nth: n, odds } => {
                let table = side.markets();
                format!(
                    "update {table} set outcomes = jsonb_build_array(jsonb_build_object('name', 'n', 'odds', {odds} / 1000.0)) where id = {}",
                    nth(table, n)
                )
            }
            Change::Unavailable { side, nth: n, set } => {
                let table = side.markets();
                let at = if *set {
                    "clock_timestamp() at time zone 'UTC'"
                } else {
                    "null"
                };
                format!(
                    "update {table} set unavailable_at = {at} where id = {}",
                    nth(table, n)
                )
            }
            Change::MoveMarket { side, nth: n, to } => {
                let table = side.markets();
                format!(
                    "update {table} set snapshot_id = s.id from {} as s(id) where {table}.id = {} and s.id is not null",
                    nth(side.snapshots(), to),
                    nth(table, n)
                )
            }
            Change::DeleteMarkets { side, nth: n, all } => {
                let table = side.markets();
                let id = nth(table, n);
                if *all {
                    format!(
                        "delete from {table} where snapshot_id = (select snapshot_id from {table} where id = {id})"
                    )
                } else {
                    format!("delete from {table} where id = {id}")
                }
            }
            Change::ReorderMarket { side, nth: n } => {
                let table = side.markets();
                format!(
                    "update {table} set id = -{} where id = {}",
                    ids.take(false),
                    nth(table, n)
                )
            }
            Change::Leaf {
                table,
                what,
                nth: n,
            } => match what % 3 {
                0 => format!(
                    "update {table} set bookmaker_id = 3 - bookmaker_id where id = {}",
                    nth(table, n)
                ),
                1 => format!("delete from {table} where id = {}", nth(table, n)),
                _ => format!("truncate {table}"),
            },
            Change::Truncate { what } => format!("truncate {what}"),
            Change::Detach => {
                "alter table odds_snapshots detach partition odds_snapshots_old".to_owned()
            }
            Change::Attach => "alter table odds_snapshots attach partition odds_snapshots_old \
                               for values from ('2020-01-01') to ('2021-01-01')"
                .to_owned(),
        }
    }
}

impl Transaction {
    pub fn commits(&self) -> bool {
        self.end == End::Commit
    }

    /// Its statements, from begin to end.
    pub fn sql(&self, ids: &mut Ids) -> Vec<String> {
        let mut statements = vec!["begin".to_owned()];
        if !self.bell {
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

impl Case {
    /// As SQL, for people.
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
                    let statements = late.sql(&mut ids);
                    let (first, rest) = statements.split_at(statements.len() / 2);
                    lines("/* beside */ ", first);
                    for transaction in others {
                        lines("", &transaction.sql(&mut ids));
                    }
                    lines("/* beside */ ", rest);
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

fn link() -> impl Strategy<Value = Option<u8>> {
    proptest::option::weighted(0.8, event())
}

fn side() -> impl Strategy<Value = Side> + Clone {
    select(vec![Side::Own, Side::Competitors])
}

/// Mostly among the newest.
fn nth() -> impl Strategy<Value = Nth> + Clone {
    prop_oneof![3 => 0..3u8, 1 => 0..12u8]
}

fn hours() -> impl Strategy<Value = i8> + Clone {
    prop_oneof![3 => 1..48i8, 1 => -48..-2i8]
}

fn source() -> impl Strategy<Value = &'static str> + Clone {
    select(vec!["a", "b", "c"])
}

fn write() -> impl Strategy<Value = Change> {
    let table = select(vec![
        "odds_snapshots",
        "odds_snapshots",
        "odds_snapshots_default",
        "odds_snapshots_old",
    ]);
    let leaf = select(vec!["odds_snapshots_default", "odds_snapshots_old"]);
    let truncate = select(vec![
        "events cascade",
        "competitor_events",
        "odds_snapshots",
        "competitor_odds_snapshots cascade",
        "market_odds",
        "competitor_market_odds",
    ]);
    let (first, count) = (prop::bool::weighted(0.2), 0..4u8);
    // Too many arms for one.
    let events = prop_oneof![
        2 => (event(), hours()).prop_map(|(id, hours)| Change::Event { id, hours }),
        3 => (event(), hours()).prop_map(|(id, hours)| Change::Kickoff { id, hours }),
        1 => event().prop_map(|id| Change::DeleteEvent { id }),
    ];
    let competitor_events = prop_oneof![
        5 => (competitor_event(), link()).prop_map(|(id, event)| Change::Link { id, event }),
        3 => (competitor_event(), any::<bool>()).prop_map(|(id, deleted)| Change::SoftDelete { id, deleted }),
        2 => (competitor_event(), source()).prop_map(|(id, source)| Change::Rename { id, source }),
        1 => competitor_event().prop_map(|id| Change::DeleteCompetitorEvent { id }),
        3 => (competitor_event(), source(), link())
            .prop_map(|(id, source, event)| Change::CompetitorEvent { id, source, event }),
    ];
    let snapshots = prop_oneof![
        6 => (event(), 1..=2u8, table, first, count.clone()).prop_map(
            |(owner, bookmaker, table, first, markets)| Change::Snapshot { owner, bookmaker, table, first, markets }
        ),
        5 => (competitor_event(), first, count.clone())
            .prop_map(|(owner, first, markets)| Change::CompetitorSnapshot { owner, first, markets }),
        3 => (side(), nth()).prop_map(|(side, nth)| Change::DeleteSnapshot { side, nth }),
        2 => (side(), nth(), event()).prop_map(|(side, nth, owner)| Change::MoveSnapshot { side, nth, owner }),
        1 => (nth(), 1..=3u8).prop_map(|(nth, bookmaker)| Change::Bookmaker { nth, bookmaker }),
        3 => (side(), vec(event(), 1..4)).prop_map(|(side, owners)| Change::Confirm { side, owners }),
        2 => nth().prop_map(|nth| Change::OtherPartition { nth }),
    ];
    let markets = prop_oneof![
        3 => (side(), nth(), count).prop_map(|(side, nth, count)| Change::Markets { side, nth, count }),
        3 => (side(), nth(), 1000..9999u16).prop_map(|(side, nth, odds)| Change::Outcomes { side, nth, odds }),
        2 => (side(), nth(), any::<bool>()).prop_map(|(side, nth, set)| Change::Unavailable { side, nth, set }),
        2 => (side(), nth(), nth()).prop_map(|(side, nth, to)| Change::MoveMarket { side, nth, to }),
        2 => (side(), nth(), any::<bool>()).prop_map(|(side, nth, all)| Change::DeleteMarkets { side, nth, all }),
        1 => (side(), nth()).prop_map(|(side, nth)| Change::ReorderMarket { side, nth }),
    ];
    let rare = prop_oneof![
        4 => (leaf, any::<u8>(), nth()).prop_map(|(table, what, nth)| Change::Leaf { table, what, nth }),
        2 => truncate.prop_map(|what| Change::Truncate { what }),
        1 => Just(Change::Detach),
        1 => Just(Change::Attach),
    ];
    prop_oneof![4 => events, 7 => competitor_events, 10 => snapshots, 9 => markets, 2 => rare]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![5 => Just(End::Commit), 1 => Just(End::Rollback)]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let savepoint_end = prop_oneof![Just(End::Commit), Just(End::Rollback)];
    let part = prop_oneof![
        5 => write().prop_map(Part::Change),
        1 => (vec(write(), 1..4), savepoint_end).prop_map(|(writes, end)| Part::Savepoint(writes, end)),
    ];
    (vec(part, 1..5), end(), prop::bool::weighted(0.8)).prop_map(|(parts, end, bell)| Transaction {
        parts,
        end,
        bell,
    })
}

pub fn case() -> impl Strategy<Value = Case> {
    let step = prop_oneof![
        3 => transaction().prop_map(Step::Alone),
        1 => (transaction(), vec(transaction(), 1..3)).prop_map(|(late, others)| Step::Beside(late, others)),
    ];
    vec((step, prop::bool::weighted(0.4)), 1..12).prop_map(Case)
}
