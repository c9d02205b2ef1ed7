//! Scraping itself: new snapshots with all their markets, confirmations, new events, and retention.

use fastrand::Rng;
use oddscache::sql::Table;
use tokio_postgres::{Error, Transaction};

use super::effect::{Effect, Target};

/// Whose odds are scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Ours: `odds_snapshots`, by event and bookmaker.
    Own,
    /// `competitor_odds_snapshots`, by competitor event.
    Competitor,
}

impl Side {
    fn snapshots(self) -> &'static str {
        match self {
            Side::Own => Table::OddsSnapshots.name(),
            Side::Competitor => Table::CompetitorOddsSnapshots.name(),
        }
    }

    fn markets(self) -> &'static str {
        match self {
            Side::Own => Table::MarketOdds.name(),
            Side::Competitor => Table::CompetitorMarketOdds.name(),
        }
    }

    /// The column by which snapshots are grouped.
    fn owner(self) -> &'static str {
        match self {
            Side::Own => Table::OddsSnapshots.key(),
            Side::Competitor => Table::CompetitorOddsSnapshots.key(),
        }
    }

    /// A query for the ids of at most $1 events or competitor events, at random.
    fn some_owners(self) -> &'static str {
        match self {
            Side::Own => {
                "select id::bigint from events where kickoff > now() at time zone 'UTC' - interval '2 hours'
                 order by random() limit $1::bigint"
            }
            Side::Competitor => {
                "select id::bigint from competitor_events
                 where kickoff > now() at time zone 'UTC' - interval '2 hours' and deleted_at is null
                 order by random() limit $1::bigint"
            }
        }
    }
}

/// How many events a transaction scrapes.
pub(crate) const BATCH: usize = 50;

/// How many snapshots one confirmation names.
pub(crate) const CONFIRMED_AT_ONCE: usize = 1000;

/// Scrapes the events, or [`BATCH`] of them at random: inserts a snapshot with all markets where odds changed, and
/// reports the snapshots that stay as they are.
pub(crate) async fn scrape(
    tx: &Transaction<'_>,
    side: Side,
    target: Target,
    rng: &mut Rng,
) -> Result<Effect, Error> {
    let owners = owners(tx, side, target.ids, BATCH).await?;
    let latest = tx.query(&latest(side), &[&owners]).await?;
    let (mut owner, mut bookmaker, mut before) = (Vec::new(), Vec::new(), Vec::new());
    let mut unchanged = Vec::new();
    for row in &latest {
        let newest: Option<i64> = row.get(2);
        match newest {
            Some(newest) if rng.f64() >= target.changed => unchanged.push(newest),
            _ => {
                owner.push(row.get::<_, i64>(0));
                bookmaker.push(row.get::<_, i64>(1));
                before.push(newest);
            }
        }
    }
    let done = insert(tx, side, &owner, &bookmaker, &before).await?;
    Ok(Effect { unchanged, ..done })
}

async fn owners(
    tx: &Transaction<'_>,
    side: Side,
    chosen: Vec<i64>,
    at_most: usize,
) -> Result<Vec<i64>, Error> {
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let rows = tx.query(side.some_owners(), &[&(at_most as i64)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// $1: ids of events or competitor events. One row for each of their latest snapshots, and one for those without.
/// A bookmaker's id is 0 on the competitors' side.
fn latest(side: Side) -> String {
    let bookmaker = match side {
        Side::Own => "coalesce(s.bookmaker_id, 1)::bigint",
        Side::Competitor => "0::bigint",
    };
    format!(
        "select o.id, {bookmaker}, max(s.id)::bigint
         from unnest($1::bigint[]) o (id)
         left join {} s on s.{} = o.id
         group by 1, 2
         order by 1, 2",
        side.snapshots(),
        side.owner()
    )
}

/// Inserts snapshots, and their markets in a second statement. The markets are those of the snapshot before, with other
/// odds. If there is none before, they are those of another event, with other players.
async fn insert(
    tx: &Transaction<'_>,
    side: Side,
    owner: &[i64],
    bookmaker: &[i64],
    before: &[Option<i64>],
) -> Result<Effect, Error> {
    if owner.is_empty() {
        return Ok(Effect::default());
    }
    let bookmaker_column = match side {
        Side::Own => ("bookmaker_id,", "n.bookmaker_id,"),
        Side::Competitor => ("", ""),
    };
    // Draw the ids before inserting the rows. So the query can return each new id with the id of the snapshot before.
    let heads = format!(
        "with made as materialized (
             select nextval(pg_get_serial_sequence('{snapshots}', 'id')) as id, n.owner, n.bookmaker_id, n.before
             from unnest($1::bigint[], $2::bigint[], $3::bigint[]) n (owner, bookmaker_id, before)
         ), inserted as (
             insert into {snapshots} (id, {}, {} captured_at, scrape_run_id, raw_response, last_confirmed_at)
             select n.id, n.owner, {} clock_timestamp() at time zone 'UTC', 1,
                    jsonb_build_object('status', 'ok', 'etag', md5(n.id::text), 'body', repeat(md5(random()::text), 8)),
                    case when random() < 0.5 then clock_timestamp() at time zone 'UTC' end
             from made n
         )
         select id, before from made order by id",
        side.owner(),
        bookmaker_column.0,
        bookmaker_column.1,
        snapshots = side.snapshots(),
    );
    let rows = tx.query(&heads, &[&owner, &bookmaker, &before]).await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let templates: Vec<Option<i64>> = rows.iter().map(|row| row.get(1)).collect();
    let markets = tx.execute(&markets(side), &[&ids, &templates]).await?;
    let snapshots = ids.len() as u64;
    Ok(Effect {
        rows: snapshots + markets,
        snapshots,
        markets,
        ..Effect::default()
    })
}

/// $1: new snapshots, $2: the snapshots before them, null where there is none. About half of the odds move a little.
fn markets(side: Side) -> String {
    format!(
        "insert into {markets} (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home,
                                handicap_away, outcomes, market_groups, unavailable_at)
         select n.id, m.betpawa_market_id, m.betpawa_market_name, m.line, m.handicap_type, m.handicap_home, m.handicap_away,
                case jsonb_typeof(m.outcomes) when 'array' then coalesce(moved.outcomes, m.outcomes) else m.outcomes end,
                m.market_groups,
                case when random() < 0.01 then now() at time zone 'UTC' when random() < 0.9 then m.unavailable_at end
         from unnest($1::bigint[], $2::bigint[]) n (id, before)
         join {markets} m on m.snapshot_id = coalesce(n.before, (select snapshot_id from {markets} order by id desc limit 1))
         cross join lateral (
             select jsonb_agg(
                        o.outcome
                        || case when jsonb_typeof(o.outcome -> 'odds') = 'number' and random() < 0.5
                                then jsonb_build_object('odds', greatest(1.01,
                                         round((o.outcome ->> 'odds')::numeric * (0.97 + 0.06 * random())::numeric,
                                               case when random() < 0.2 then 3 else 2 end)))
                                else '{{}}' end
                        || case when n.before is null and m.betpawa_market_id like '28%'
                                then jsonb_build_object('name', chr(65 + floor(random() * 26)::int) || '. ' ||
                                         (array['Mensah', 'Okafor', 'Silva', 'Diallo', 'Banda', 'Phiri', 'Otieno', 'Keita', 'Osei', 'Eze'])
                                         [1 + floor(random() * 10)::int] || ' ' || n.id)
                                else '{{}}' end
                        order by o.n) as outcomes
             from jsonb_array_elements(case jsonb_typeof(m.outcomes) when 'array' then m.outcomes else '[]' end)
                  with ordinality o (outcome, n)
         ) moved
         order by n.id, m.id",
        markets = side.markets()
    )
}

/// Moves `last_confirmed_at` of the given snapshots, or of the latest of events chosen at random.
pub(crate) async fn confirm(
    tx: &Transaction<'_>,
    side: Side,
    target: Target,
) -> Result<Effect, Error> {
    let mut ids = target.ids;
    if ids.is_empty() {
        let owners = owners(tx, side, ids, CONFIRMED_AT_ONCE).await?;
        let rows = tx.query(&latest(side), &[&owners]).await?;
        ids = rows
            .iter()
            .filter_map(|row| row.get::<_, Option<i64>>(2))
            .collect();
    }
    let rows = tx
        .execute(
            &format!(
                "update {} set last_confirmed_at = now() at time zone 'UTC' where id = any($1::bigint[])",
                side.snapshots()
            ),
            &[&ids],
        )
        .await?;
    Ok(Effect {
        rows,
        confirmations: rows,
        ..Effect::default()
    })
}

/// Deletes the markets of all but the three newest snapshots of some events, and all but sixty of their snapshots, on
/// both sides. Without it a demo would fill the disk.
pub(crate) async fn retention(tx: &Transaction<'_>) -> Result<Effect, Error> {
    let mut rows = 0;
    for side in [Side::Own, Side::Competitor] {
        let some = owners(tx, side, Vec::new(), 100).await?;
        let group = match side {
            Side::Own => "event_id, bookmaker_id",
            Side::Competitor => "competitor_event_id",
        };
        let ranked = format!(
            "with ranked as materialized (
                 select id, captured_at, row_number() over (partition by {group} order by id desc) as age
                 from {} where {} = any($1::bigint[]))",
            side.snapshots(),
            side.owner()
        );
        let markets = format!(
            "{ranked} delete from {} where snapshot_id in (select id from ranked where age > 3)",
            side.markets()
        );
        let snapshots = format!(
            "{ranked} delete from {} s using ranked r where r.age > 60 and s.id = r.id and s.captured_at = r.captured_at",
            side.snapshots()
        );
        rows += tx.execute(&markets, &[&some]).await?;
        rows += tx.execute(&snapshots, &[&some]).await?;
    }
    Ok(Effect::rows(rows))
}

/// An event appears, with the competitors' events and everybody's first snapshots.
pub(crate) async fn add_event(tx: &Transaction<'_>, rng: &mut Rng) -> Result<Effect, Error> {
    let number = rng.u32(..);
    let row = tx
        .query_one(
            "insert into events (sportradar_id, name, home_team, away_team, tournament_id, kickoff)
             values ('sr:match:new-' || $1::text, 'Home ' || $1 || ' - Away ' || $1, 'Home ' || $1, 'Away ' || $1,
                     (select min(id) from tournaments),
                     date_trunc('minute', now() at time zone 'UTC') + interval '1 hour' + interval '6 days' * random())
             returning id::bigint",
            &[&number.to_string()],
        )
        .await?;
    let event: i64 = row.get(0);
    let rows = tx
        .query(
            "insert into competitor_events (source, betpawa_event_id, name, kickoff, external_id, sportradar_id)
             select source, e.id, e.name, e.kickoff, source || '-' || e.id, e.sportradar_id
             from events e, unnest('{sportybet,bet9ja}'::text[]) source
             where e.id = $1::bigint
             returning id::bigint",
            &[&event],
        )
        .await?;
    let competitors: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let own = insert(tx, Side::Own, &[event], &[1], &[None]).await?;
    let none = vec![0; competitors.len()];
    let theirs = insert(
        tx,
        Side::Competitor,
        &competitors,
        &none,
        &vec![None; competitors.len()],
    )
    .await?;
    Ok(Effect::rows(1 + competitors.len() as u64)
        .and(own)
        .and(theirs))
}
