//! PostgreSQL itself: the application's queries on a private server, with rows read into typed structs.

use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use oddscache::sql::Script;
use oddscache_testkit::{cluster::Cluster, connect, demo, followed::run};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use crate::{
    data::{self, EVENTS},
    measure,
    redis::Outcome,
};

/// The number of snapshots of each event and bookmaker. Only the newest have markets.
const HISTORY: i32 = 52;

/// Selects the latest snapshots by GROUP BY and a join, for betPawa and for the competitors.
const HEADS: [&str; 2] = [
    "select s.event_id, s.id, s.bookmaker_id::text, s.captured_at, s.last_confirmed_at, s.scrape_run_id
     from odds_snapshots s
     join (select event_id, bookmaker_id, max(id) as id from odds_snapshots
           where event_id = any($1) group by event_id, bookmaker_id) latest on latest.id = s.id",
    "select c.betpawa_event_id, s.id::bigint, c.source, s.captured_at, s.last_confirmed_at, s.scrape_run_id
     from competitor_odds_snapshots s
     join (select competitor_event_id, max(id) as id from competitor_odds_snapshots
           where competitor_event_id in (select id from competitor_events where betpawa_event_id = any($1) and deleted_at is null)
           group by competitor_event_id) latest on latest.id = s.id
     join competitor_events c on c.id = s.competitor_event_id",
];

const TABLES: [&str; 2] = ["market_odds", "competitor_market_odds"];
const IDS: [&str; 2] = ["bigint[]", "int[]"];

struct Market {
    _betpawa_market_id: String,
    _betpawa_market_name: String,
    _line: Option<f64>,
    _handicap: (Option<String>, Option<f64>, Option<f64>),
    outcomes: Vec<Outcome>,
    _unavailable_at: Option<SystemTime>,
}

impl Market {
    fn new(row: &Row) -> Market {
        Market {
            _betpawa_market_id: row.get(1),
            _betpawa_market_name: row.get(2),
            _line: row.get(3),
            _handicap: (row.get(4), row.get(5), row.get(6)),
            outcomes: serde_json::from_str(row.get(7)).expect("outcomes"),
            _unavailable_at: row.get(8),
        }
    }
}

/// A connection with all statements prepared.
struct Session {
    client: Client,
    heads: [Statement; 2],
    markets: [Statement; 2],
    inline: [Statement; 2],
}

impl Session {
    async fn new(dsn: &str) -> Session {
        let client = connect(dsn).await;
        let sql = |side: usize, and: &str| {
            format!(
                "select snapshot_id::bigint, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home,
                        handicap_away, outcomes::text, unavailable_at
                 from {} where snapshot_id = any($1::bigint[]::{}) {and} order by snapshot_id, id",
                TABLES[side], IDS[side]
            )
        };
        let ids = data::INLINE.map(|(id, _)| format!("'{id}'")).join(",");
        let shown = format!(
            "and betpawa_market_id in ({ids}) and (betpawa_market_id <> '5000' or line = 2.5)"
        );
        let prepare = async |sql: &str| client.prepare(sql).await.expect("prepared");
        Session {
            heads: [prepare(HEADS[0]).await, prepare(HEADS[1]).await],
            markets: [prepare(&sql(0, "")).await, prepare(&sql(1, "")).await],
            inline: [
                prepare(&sql(0, &shown)).await,
                prepare(&sql(1, &shown)).await,
            ],
            client,
        }
    }

    /// Reads events with all their markets, or only with those of the list. Returns the number of snapshots and the sum
    /// of the odds.
    async fn read(&self, event_ids: &[i32], inline_only: bool) -> (usize, f64) {
        let (mut snapshots, mut sum) = (0, 0.0);
        let statements = match inline_only {
            true => &self.inline,
            false => &self.markets,
        };
        let mut events: HashMap<i32, Vec<(String, Vec<Market>)>> = HashMap::new();
        for (heads, markets) in self.heads.iter().zip(statements) {
            let heads = self.client.query(heads, &[&event_ids]).await;
            let heads = heads.expect("heads");
            let ids: Vec<i64> = heads.iter().map(|row| row.get(1)).collect();
            let rows = self.client.query(markets, &[&ids]).await.expect("markets");
            let mut by_snapshot: HashMap<i64, Vec<Market>> = HashMap::with_capacity(ids.len());
            for row in &rows {
                let markets = by_snapshot.entry(row.get(0)).or_default();
                markets.push(Market::new(row));
            }
            for head in &heads {
                let id: i64 = head.get(1);
                let markets = by_snapshot.remove(&id).unwrap_or_default();
                let outcomes = markets.iter().flat_map(|market| &market.outcomes);
                sum += outcomes.filter_map(|outcome| outcome.odds).sum::<f64>();
                snapshots += 1;
                let event = events.entry(head.get(0)).or_default();
                event.push((head.get(2), markets));
            }
        }
        (snapshots, sum)
    }

    /// Inserts 150 snapshots with their markets in one transaction. Returns when the rows were ready to be sent.
    async fn insert(&mut self, event_ids: &[i32], round: i64) -> Instant {
        let made = |event_id: i32, offer| data::snapshot(i64::from(event_id), offer, round).markets;
        let own: Vec<_> = event_ids.iter().map(|id| made(*id, 1)).collect();
        let both = |id: &i32| [made(*id, 2), made(*id, 3)];
        let competitors: Vec<_> = event_ids.iter().flat_map(both).collect();
        let both = |id: &i32| [id * 2 - 1, id * 2];
        let competitor_ids: Vec<i32> = event_ids.iter().flat_map(both).collect();
        let columns = [Columns::new(&own), Columns::new(&competitors)];
        let begun = Instant::now();
        let transaction = self.client.transaction().await.expect("begins");
        for (side, ids) in [event_ids, &competitor_ids].into_iter().enumerate() {
            let sql = [
                "insert into odds_snapshots (event_id, bookmaker_id, scrape_run_id) select id, 1, 0 from unnest($1::int[]) id
                 returning id",
                "insert into competitor_odds_snapshots (competitor_event_id, scrape_run_id) select id, 0 from unnest($1::int[]) id
                 returning id::bigint",
            ][side];
            let rows = transaction.query(sql, &[&ids]).await.expect("snapshots");
            let Columns {
                counts,
                ids,
                names,
                lines,
                outcomes,
                groups,
            } = &columns[side];
            let rows = rows.iter().zip(counts);
            let repeated = rows.flat_map(|(row, count)| std::iter::repeat_n(row.get(0), *count));
            let snapshot_ids: Vec<i64> = repeated.collect();
            let sql = format!(
                "insert into {} (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups)
                 select s, i, n, l, o::jsonb, g::jsonb
                 from unnest($1::bigint[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::text[]) u (s, i, n, l, o, g)",
                TABLES[side]
            );
            let values: [&(dyn ToSql + Sync); 6] =
                [&snapshot_ids, ids, names, lines, outcomes, groups];
            let inserted = transaction.execute(&sql, &values).await;
            inserted.expect("markets");
        }
        transaction.commit().await.expect("commits");
        begun
    }
}

/// The columns of market rows.
#[derive(Default)]
struct Columns {
    counts: Vec<usize>,
    ids: Vec<String>,
    names: Vec<String>,
    lines: Vec<Option<f64>>,
    outcomes: Vec<String>,
    groups: Vec<String>,
}

impl Columns {
    fn new(snapshots: &[Vec<oddscache::MarketInput>]) -> Columns {
        let mut columns = Columns::default();
        for markets in snapshots {
            columns.counts.push(markets.len());
            for market in markets {
                columns.ids.push(market.betpawa_market_id.clone());
                columns.names.push(market.betpawa_market_name.clone());
                columns.lines.push(market.line);
                let outcomes = serde_json::to_string(&market.outcomes);
                columns.outcomes.push(outcomes.expect("JSON"));
                let groups = serde_json::to_string(&market.market_groups);
                columns.groups.push(groups.expect("JSON"));
            }
        }
        columns
    }
}

pub struct Server {
    cluster: Cluster,
    runtime: Runtime,
    session: Session,
    dsn: String,
    pub version: String,
    pub bytes_each: f64,
}

impl Server {
    /// Starts a server with the application's tables, indexes and rows. Fails with a message if there are no server
    /// binaries.
    pub fn start() -> Result<Server, String> {
        let settings = ["shared_buffers = 1GB", "max_wal_size = 4GB"];
        let cluster = Cluster::start(&settings).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let dsn = cluster.dsn("postgres");
        let (session, version, bytes_each) = runtime.block_on(async {
            let client = connect(&dsn).await;
            demo::create(&client).await;
            let history = format!(
                "insert into bookmakers (name, slug) values ('betPawa', 'betpawa');
                 insert into events (sportradar_id, name, home_team, away_team, kickoff)
                 select n::text, 'A - B', 'A', 'B', now() at time zone 'UTC' + n * interval '5 minutes' from generate_series(1, {EVENTS}) n;
                 insert into competitor_events (source, betpawa_event_id, kickoff, external_id, sportradar_id)
                 select source, e.id, e.kickoff, e.id, e.sportradar_id
                 from events e, unnest('{{bet9ja,sportybet}}'::text[]) source order by e.id, source;
                 insert into odds_snapshots (event_id, bookmaker_id, captured_at, scrape_run_id, raw_response)
                 select e.id, 1, now() at time zone 'UTC' - round * interval '3 hours', 0, jsonb_build_object('body', repeat(md5(e.id::text), 8))
                 from generate_series({HISTORY} - 1, 1, -1) round, events e;
                 insert into competitor_odds_snapshots (competitor_event_id, captured_at, scrape_run_id, raw_response)
                 select c.id, now() at time zone 'UTC' - round * interval '3 hours', 0, jsonb_build_object('body', repeat(md5(c.id::text), 8))
                 from generate_series({HISTORY} - 1, 1, -1) round, competitor_events c"
            );
            run(&client, &history).await;
            let mut session = Session::new(&dsn).await;
            let all: Vec<i32> = event_ids(1..=EVENTS);
            for ids in all.chunks(50) {
                session.insert(ids, 0).await;
            }
            run(&client, "vacuum analyze").await;
            let row = client.query_one(
                "select current_setting('server_version'), pg_total_relation_size('market_odds') + pg_total_relation_size('competitor_market_odds')",
                &[],
            ).await.expect("sizes");
            // Prepare again, now that statistics exist.
            (Session::new(&dsn).await, row.get::<_, String>(0), row.get::<_, i64>(1) as f64 / data::ALL_MARKETS)
        });
        Ok(Server {
            cluster,
            runtime,
            session,
            dsn,
            version,
            bytes_each,
        })
    }

    /// Creates the indexes that are recommended for the cache.
    pub fn make_indexes(&mut self) {
        oddscache_testkit::run_script_on(&self.cluster, "postgres", Script::Indexes, &[]);
        let dsn = self.dsn.clone();
        self.session = self.runtime.block_on(async {
            let session = Session::new(&dsn).await;
            run(&session.client, "vacuum analyze").await;
            session
        });
    }

    pub fn read(&self, event_ids: &[i32], inline_only: bool) -> (usize, f64) {
        self.runtime
            .block_on(self.session.read(event_ids, inline_only))
    }

    pub fn update(&mut self, round: i64) -> Instant {
        let ids = event_ids(data::updated(round));
        self.runtime.block_on(self.session.insert(&ids, round))
    }

    /// Reads the snapshot headers of all events as the application does: two statements, READ COMMITTED. Meanwhile a
    /// writer gives all events a new generation, in one transaction after the other. Returns how many views showed two
    /// generations, and how many views there were.
    pub fn torn(&self, span: Duration) -> (u64, u64) {
        let all = event_ids(1..=EVENTS);
        let writer = self.runtime.block_on(Session::new(&self.dsn));
        let latest = "create temp table latest as select max(id) as id from odds_snapshots group by event_id, bookmaker_id;
             create temp table latest_c as select max(id) as id from competitor_odds_snapshots group by competitor_event_id;
             analyze latest; analyze latest_c";
        self.runtime.block_on(run(&writer.client, latest));
        let set = |generation: u64| {
            let sql = format!(
                "begin; update odds_snapshots set scrape_run_id = {generation} where id in (select id from latest);
                 update competitor_odds_snapshots set scrape_run_id = {generation} where id in (select id from latest_c); commit"
            );
            self.runtime.block_on(run(&writer.client, &sql));
        };
        set(0);
        measure::while_another(set, || {
            let begun = Instant::now();
            let (mut torn, mut views) = (0, 0);
            while begun.elapsed() < span {
                let mut generations: Vec<i32> = Vec::new();
                for heads in &self.session.heads {
                    let heads = async { self.session.client.query(heads, &[&all]).await };
                    let rows = self.runtime.block_on(heads).expect("heads");
                    generations.extend(rows.iter().map(|row| row.get::<_, i32>(5)));
                }
                generations.dedup();
                views += 1;
                torn += u64::from(generations.len() > 1);
            }
            (torn, views)
        })
    }
}

pub fn event_ids(ids: impl Iterator<Item = i64>) -> Vec<i32> {
    ids.map(|id| i32::try_from(id).expect("small")).collect()
}
