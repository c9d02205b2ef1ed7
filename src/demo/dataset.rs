//! Synthetic data of the application: deterministic for a seed, shaped like the real data, made on the server.
//!
//! Events get ids from 1 on: first those long past, then those of the last days, then `Scale::events` upcoming ones.
//! An event's id decides which rare case it is. So every case exists at every scale of 40 events or more:
//!
//! | id mod 20 | case |
//! |---|---|
//! | 1 | its `sportybet` event is not linked |
//! | 2 | its `bet9ja` event is soft-deleted |
//! | 3 | two live `sportybet` events are linked to it |
//! | 4 | no `bet9ja` event |
//! | 5 | no snapshot of our own |
//! | 6 | a soft-deleted `sportybet` event beside the live one |
//! | 7 | no snapshot at all (every second of these) |
//! | 8 | a second bookmaker of our own |
//! | 9 | the newest snapshots have no markets |

use std::time::{Duration, Instant};

use oddscache::sql::Table;
use tokio_postgres::Client;

/// The application's tables.
pub(crate) const SCHEMA: &str = include_str!("schema.sql");
const MATERIAL: &str = include_str!("dataset.sql");

/// How much data. The cache must handle the scale of `default()` with ease.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    /// Upcoming events. About a tenth as many past events are added.
    pub(crate) events: u32,
    /// Markets of a snapshot.
    pub(crate) markets: u32,
    /// Snapshots of each event and bookmaker, the newest minutes old, the oldest a week.
    pub(crate) history: u32,
    /// How many of these, newest first, have markets. The markets of the others are most of the work, and nobody reads
    /// them.
    pub(crate) history_with_markets: u32,
    /// Another seed gives other teams, odds and times. The current time is the only other input.
    pub(crate) seed: u64,
}

impl Default for Scale {
    fn default() -> Scale {
        Scale {
            events: 1100,
            markets: 50,
            history: 52,
            history_with_markets: 3,
            seed: 1,
        }
    }
}

/// A step of making the data failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "making the synthetic data: {step} failed; it needs an empty database and the right to create tables in it"
)]
pub(crate) struct DatasetError {
    step: &'static str,
    source: tokio_postgres::Error,
}

fn step(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> DatasetError {
    move |source| DatasetError { step, source }
}

/// What [`load`] made.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// Events, past ones included.
    pub(crate) events: u64,
    /// Snapshots of all sides.
    pub(crate) snapshots: u64,
    /// Markets of all sides.
    pub(crate) markets: u64,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// `pg_database_size` afterwards.
    pub(crate) database_bytes: u64,
}

/// Creates the application's tables in the search path's schema. Days around today have partitions, and so have some
/// days over a month ago, which retention may drop. All other days go to the default partition.
pub(crate) async fn create(client: &Client) -> Result<(), DatasetError> {
    client
        .batch_execute(SCHEMA)
        .await
        .map_err(step("creating the application's tables"))?;
    client
        .batch_execute(
            "do $$
             declare
                 today date := now() at time zone 'UTC';
                 day   date;
             begin
                 for day in select today + n from (select generate_series(-40, -32) union all select generate_series(-9, 3)) days (n) loop
                     execute format('create table %I partition of odds_snapshots for values from (%L) to (%L)',
                                    'odds_snapshots_' || to_char(day, 'YYYYMMDD'), day, day + 1);
                 end loop;
             end
             $$",
        )
        .await
        .map_err(step("creating the daily partitions"))
}

/// How many past events go with `events` upcoming ones.
fn past_events(events: u32) -> u32 {
    (events / 11).max(10)
}

/// Fills the tables that [`create`] made. Calls `progress` with the rows done, the rows in all, and what is being made.
pub(crate) async fn load(
    client: &Client,
    scale: &Scale,
    mut progress: impl FnMut(u64, u64, &str),
) -> Result<Loaded, DatasetError> {
    let started = Instant::now();
    // An estimate, until the rows are counted: one bookmaker of our own and two competitors for each event.
    let of_each = |rows: u32| u64::from(scale.events) * 3 * u64::from(rows);
    let newest = scale.history_with_markets.min(scale.history);
    let expected = of_each(scale.history) + of_each(newest) * u64::from(scale.markets);
    progress(0, expected, "events");
    prepare(client, scale).await?;
    let events = load_events(client, scale).await?;
    let snapshots = load_snapshots(client, scale, |done| {
        progress(done.min(expected), expected, "snapshots");
    })
    .await?;
    let targets = client
        .execute(MARKET_TARGETS, &[&int(scale.history_with_markets)])
        .await
        .map_err(step("choosing snapshots that get markets"))?;
    let expected = snapshots + targets * u64::from(scale.markets);
    let markets = load_markets(client, scale, targets, |done| {
        progress(snapshots + done, expected, "markets");
    })
    .await?;
    progress(snapshots + markets, expected, "statistics");
    client
        .batch_execute("reset jit; drop table pg_temp.clock, pg_temp.market_target, pg_temp.market_kind; analyze")
        .await
        .map_err(step("collecting statistics"))?;
    let size = client
        .query_one("select pg_database_size(current_database())", &[])
        .await
        .map_err(step("reading the database's size"))?;
    progress(expected, expected, "done");
    Ok(Loaded {
        events,
        snapshots,
        markets,
        elapsed: started.elapsed(),
        database_bytes: size.get::<_, i64>(0).unsigned_abs(),
    })
}

async fn load_events(client: &Client, scale: &Scale) -> Result<u64, DatasetError> {
    let past = past_events(scale.events);
    client
        .batch_execute(BOOKMAKERS)
        .await
        .map_err(step("inserting bookmakers"))?;
    let events = client
        .execute(EVENTS, &[&int(past), &int(past + scale.events)])
        .await
        .map_err(step("inserting events"))?;
    let more = format!("{COMPETITOR_EVENTS}; analyze events; analyze competitor_events");
    client
        .batch_execute(&more)
        .await
        .map_err(step("inserting competitor events"))?;
    Ok(events)
}

async fn load_snapshots(
    client: &Client,
    scale: &Scale,
    mut progress: impl FnMut(u64),
) -> Result<u64, DatasetError> {
    let mut snapshots = 0;
    for statement in [OLD_SNAPSHOTS, OLD_COMPETITOR_SNAPSHOTS] {
        let inserted = client.execute(statement, &[]).await;
        snapshots += inserted.map_err(step("inserting old snapshots"))?;
    }
    let events = past_events(scale.events) + scale.events;
    for round in 1..=scale.history {
        progress(snapshots);
        for statement in [SNAPSHOTS, COMPETITOR_SNAPSHOTS] {
            let inserted = client
                .execute(statement, &[&int(round), &int(scale.history), &int(events)])
                .await;
            snapshots += inserted.map_err(step("inserting snapshots"))?;
        }
    }
    Ok(snapshots)
}

/// Inserts the markets of the snapshots that `market_target` lists. There are `targets` of them.
async fn load_markets(
    client: &Client,
    scale: &Scale,
    targets: u64,
    mut progress: impl FnMut(u64),
) -> Result<u64, DatasetError> {
    const CHUNK: i64 = 200;
    let mut markets = 0;
    for from in (1..=targets as i64).step_by(CHUNK as usize) {
        progress(markets);
        for (table, competitor) in [
            (Table::MarketOdds, false),
            (Table::CompetitorMarketOdds, true),
        ] {
            let inserted = client
                .execute(
                    &markets_of(table.name()),
                    &[&competitor, &from, &(from + CHUNK), &int(scale.markets)],
                )
                .await;
            markets += inserted.map_err(step("inserting markets"))?;
        }
    }
    Ok(markets)
}

/// Makes the temporary tables and functions of the statements below. Replaces those of an earlier load in the same
/// session. Without `jit`, because compiling these statements takes ten times longer than running them.
async fn prepare(client: &Client, scale: &Scale) -> Result<(), DatasetError> {
    let random = format!(
        "set jit = off;
         drop table if exists pg_temp.clock, pg_temp.market_target, pg_temp.market_kind;
         create or replace function pg_temp.u(key bigint, salt int) returns float8 language sql immutable as
         $$ select (hashint8extended(key, ({})::bigint # salt) & 4294967295) / 4294967296.0::float8 $$;",
        scale.seed as i64
    );
    client
        .batch_execute(&(random + MATERIAL))
        .await
        .map_err(step("preparing"))
}

fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The application's own brands in `odds_snapshots`, and sixty tournaments.
const BOOKMAKERS: &str = "
    insert into bookmakers (name, slug) values ('betPawa', 'betpawa'), ('betPawa Zambia', 'betpawa-zm');
    insert into sports (name) values ('Football');
    insert into tournaments (sport_id, name, country)
    select 1, name, country
    from unnest('{Premier League,Championship,Cup,Super League,First Division,Second Division}'::text[]) name,
         unnest('{Ghana,Nigeria,Kenya,Zambia,Uganda,England,Spain,Italy,Portugal,Sweden}'::text[]) country
    order by country, name";

/// $1: past events, $2: all. Of the past ones, the first three tenths kicked off over a month ago, the next tenth three
/// weeks ago, the others within a week. Upcoming events kick off between an hour ago and a week from now.
const EVENTS: &str = "
    insert into events (sportradar_id, name, home_team, away_team, tournament_id, kickoff, created_at)
    select 'sr:match:' || 60000000 + n, home || ' - ' || away, home, away,
           1 + floor(pg_temp.u(n, 3) * 60)::int, kickoff, kickoff - interval '10 days'
    from (
        select n, pg_temp.team(n, 1) as home, pg_temp.team(n, 2) as away,
               case
                   when n <= $1::int * 0.3 then now - interval '38 days' + interval '5 days' * pg_temp.u(n, 5)
                   when n <= $1 * 0.4 then now - interval '20 days'
                   when n <= $1 * 0.8 then now - interval '7 days' + interval '6 days 12 hours' * pg_temp.u(n, 5)
                   when n <= $1 then now - interval '12 hours' + interval '9 hours 50 minutes' * pg_temp.u(n, 5)
                   else date_bin('5 minutes', now + interval '7 days 1 hour' * pg_temp.u(n, 5), now) - interval '1 hour'
               end as kickoff
        from generate_series(1, $2::int) n, pg_temp.clock
    ) made
    order by n";

/// By event id; see the table at the top of the file. The second statement adds events that only a competitor offers.
const COMPETITOR_EVENTS: &str = "
    insert into competitor_events (source, betpawa_event_id, name, kickoff, external_id, sportradar_id, deleted_at)
    select c.source,
           case when c.kind = 'unlinked' then null else e.id end,
           e.name,
           e.kickoff + case when pg_temp.u(e.id, 7) < 0.05 then interval '5 minutes' else interval '0' end,
           c.source || '-' || e.id || case when c.kind in ('second', 'replaced') then '-b' else '' end,
           e.sportradar_id,
           case when c.kind in ('deleted', 'replaced') then clock.now - interval '1 day' end
    from events e
    cross join pg_temp.clock
    cross join lateral (
        values ('sportybet', case when e.id % 20 = 1 then 'unlinked' else 'live' end),
               ('bet9ja', case e.id % 20 when 2 then 'deleted' when 4 then 'none' else 'live' end),
               ('sportybet', case e.id % 20 when 3 then 'second' when 6 then 'replaced' else 'none' end)
    ) c (source, kind)
    where c.kind <> 'none'
    order by e.id, c.source, c.kind;
    insert into competitor_events (source, name, kickoff, external_id, sportradar_id)
    select 'sportybet', e.name, e.kickoff, 'sportybet-only-' || e.id, 'sr:match:' || 70000000 + e.id
    from events e
    where e.id % 20 = 0
    order by e.id";

/// Snapshots of the events that kicked off over a week ago: few, made before all others so that ids grow with time.
const OLD_SNAPSHOTS: &str = "
    insert into odds_snapshots (event_id, bookmaker_id, captured_at, raw_response)
    select e.id, 1, e.kickoff - round * interval '7 hours', pg_temp.raw_response(e.id)
    from events e, pg_temp.clock, generate_series(1, 5) round
    where e.kickoff < clock.now - interval '10 days'
    order by 3, 1";

/// The same for competitors.
const OLD_COMPETITOR_SNAPSHOTS: &str = "
    insert into competitor_odds_snapshots (competitor_event_id, captured_at, raw_response)
    select c.id, c.kickoff - round * interval '7 hours', pg_temp.raw_response(c.id)
    from competitor_events c, pg_temp.clock, generate_series(1, 5) round
    where c.kickoff < clock.now - interval '10 days'
    order by 2, 1";

/// $1: round, $2: rounds, $3: events. One scrape cycle of five minutes; the last one ends now.
const SNAPSHOTS: &str = "
    insert into odds_snapshots (event_id, bookmaker_id, captured_at, scrape_run_id, raw_response, last_confirmed_at)
    select e.id, b.id, t.captured_at, $1::int, pg_temp.raw_response(e.id * 1000 + $1),
           case when pg_temp.u(e.id * 1000 + $1, 8) < 0.7
                then t.captured_at + (cycle.length - t.behind) * pg_temp.u(e.id * 1000 + $1, 9) end
    from pg_temp.clock
    cross join lateral (select interval '182 hours' / $2::int as length) cycle
    cross join events e
    join bookmakers b on b.id = 1 or e.id % 20 = 8
    cross join lateral (select interval '5 minutes' * (e.id::float8 / $3::int) as late) l
    cross join lateral (
        select clock.now - ($2 - $1) * cycle.length - interval '5 minutes' + l.late as captured_at,
               case when $1 = $2 then cycle.length - interval '5 minutes' + l.late else interval '0' end as behind
    ) t
    where e.id % 20 <> 5 and e.id % 40 <> 7
      and e.kickoff > clock.now - interval '10 days'
      and (t.captured_at < e.kickoff or e.kickoff > clock.now - interval '2 hours')
    order by t.captured_at, b.id";

/// The same for competitors.
const COMPETITOR_SNAPSHOTS: &str = "
    insert into competitor_odds_snapshots (competitor_event_id, captured_at, scrape_run_id, raw_response, last_confirmed_at)
    select c.id, t.captured_at, $1::int, pg_temp.raw_response(c.id * 1000 + $1),
           case when pg_temp.u(c.id * 1000 + $1, 8) < 0.7 then least(t.captured_at + interval '3 minutes', clock.now) end
    from pg_temp.clock
    cross join competitor_events c
    cross join lateral (
        select clock.now - ($2::int - $1) * (interval '182 hours' / $2) - interval '5 minutes'
               + interval '5 minutes' * least(1, c.id / ($3::int * 2.2)) as captured_at
    ) t
    where coalesce(c.betpawa_event_id, 0) % 40 <> 7
      and c.kickoff > clock.now - interval '10 days'
      and (t.captured_at < c.kickoff or c.kickoff > clock.now - interval '2 hours')
    order by t.captured_at, c.id";

/// $1: how many per event and bookmaker, newest first. In the order of time, so that market ids grow with time too.
const MARKET_TARGETS: &str = "
    insert into pg_temp.market_target (competitor, snapshot_id, event, key, captured_at)
    select competitor, id, event, key, captured_at
    from (
        select false as competitor, s.id, s.event_id as event, s.id as key, s.captured_at,
               row_number() over (partition by s.event_id, s.bookmaker_id order by s.id desc) as age
        from odds_snapshots s
        where s.event_id % 20 <> 9
        union all
        select true, s.id, coalesce(c.betpawa_event_id, 1000000 + c.id), 1000000000 + s.id, s.captured_at,
               row_number() over (partition by s.competitor_event_id order by s.id desc)
        from competitor_odds_snapshots s
        join competitor_events c on c.id = s.competitor_event_id
    ) latest, pg_temp.clock
    where age <= $1::int and captured_at > clock.now - interval '9 days'
    order by captured_at, key";

/// $1: whether the markets are the competitors'. $2, $3: range of `market_target.n`. $4: markets of a snapshot.
/// Odds are drawn around the base of the market's kind, then scaled to the margin of the kind.
fn markets_of(table: &str) -> String {
    format!(
        "insert into {table} (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home,
                              handicap_away, outcomes, market_groups, unavailable_at)
         select t.snapshot_id, k.market_id, k.name, k.line, k.handicap_type, k.handicap_home, k.handicap_away, made.outcomes,
                case when not t.competitor or pg_temp.u(seed.seed, 60) < 0.7 then k.groups end,
                case when pg_temp.u(seed.seed, 61) < 0.02 then t.captured_at end
         from pg_temp.market_target t
         cross join pg_temp.market_kind k
         cross join lateral (select t.key * 1000 + k.position as seed) seed
         cross join lateral (
             select jsonb_agg(
                        jsonb_build_object(
                            'name', case when k.own_names then pg_temp.player(t.event * 10000 + k.position * 10 + o.n)
                                         else o.name end,
                            'odds', greatest(1.01, round((o.total / o.weight / k.overround)::numeric,
                                                         case when k.position % 4 = 0 then 3 else 2 end)),
                            'is_active', pg_temp.u(seed.seed, 40 + o.n) > 0.02)
                        || case when k.position % 10 = 8 and t.event % 10 = 3 then '{{\"specifier\":\"live\"}}' else '{{}}'::jsonb end
                        order by o.n) as outcomes
             from (
                 select name, n, weight, sum(weight) over () as total
                 from (
                     select name, n::int, (0.7 + 0.6 * pg_temp.u(seed.seed, n::int)) / base as weight
                     from unnest(k.names, k.base) with ordinality u (name, base, n)
                 ) weighed
             ) o
         ) made
         where t.competitor = $1 and t.n >= $2 and t.n < $3 and k.position <= $4
           and (k.position <= 4 or pg_temp.u(seed.seed, 62) < 0.98)
         order by t.n, k.position"
    )
}
