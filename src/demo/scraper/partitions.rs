//! Changes of the partitions of `odds_snapshots`: direct writes, ATTACH, DROP, TRUNCATE.
//!
//! It truncates only partitions whose days ended over a month ago and whose events all kicked off long ago. It drops
//! only these, and empty ones. So it never touches current data.

use fastrand::Rng;
use oddscache::sql::Script;
use tokio_postgres::{Error, Transaction};

use super::effect::Effect;

/// The daily partitions, named `odds_snapshots_YYYYMMDD`, with their days.
const LEAVES: &str = "
    (select c.oid, c.relname, to_date(right(c.relname, 8), 'YYYYMMDD') as day
     from pg_inherits i
     join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'odds_snapshots'::regclass and c.relname ~ '^odds_snapshots_[0-9]{8}$')";

/// No partition is attached while a session holds this advisory lock. An incident holds it: install.sql, which follows
/// each new partition, would enable the trigger that the incident has disabled.
pub(crate) const NO_NEW_PARTITIONS: i64 = 7_979;

/// Which of them ended over a month ago.
const OLD: &str = "day < (now() at time zone 'UTC')::date - 30";

/// Inserts a snapshot with a few markets straight into today's partition, and now and then confirms it there.
pub(crate) async fn write_leaf(tx: &Transaction<'_>, rng: &mut Rng) -> Result<Effect, Error> {
    // The partition of the transaction's time, because that is the time of the row.
    let leaf: String = tx
        .query_one(
            "select coalesce(
                 to_regclass('odds_snapshots_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')),
                 'odds_snapshots_default'::regclass)::text",
            &[],
        )
        .await?
        .get(0);
    let inserted = tx
        .query_opt(
            &format!(
                "insert into {leaf} (id, event_id, bookmaker_id, captured_at)
                 select nextval(pg_get_serial_sequence('odds_snapshots', 'id')), id, 1, now() at time zone 'UTC'
                 from events
                 where kickoff > now() at time zone 'UTC' - interval '2 hours'
                 order by random() limit 1
                 returning id"
            ),
            &[],
        )
        .await?;
    let Some(snapshot) = inserted.map(|row| row.get::<_, i64>(0)) else {
        return Ok(Effect::default());
    };
    let markets = tx
        .execute(
            "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups)
             select $1::bigint, betpawa_market_id, betpawa_market_name, line, outcomes, market_groups
             from (select * from market_odds order by id desc limit 10) newest
             order by id",
            &[&snapshot],
        )
        .await?;
    let mut confirmations = 0;
    if rng.bool() {
        confirmations = tx
            .execute(
                &format!(
                    "update {leaf} set last_confirmed_at = now() at time zone 'UTC' where id = $1"
                ),
                &[&snapshot],
            )
            .await?;
    }
    Ok(Effect {
        rows: 1 + markets + confirmations,
        snapshots: 1,
        markets,
        confirmations,
        unchanged: Vec::new(),
    })
}

/// Attaches the partition of the next future day, or one of an old day, filled with history of long past events.
pub(crate) async fn attach(tx: &Transaction<'_>, rng: &mut Rng) -> Result<Effect, Error> {
    let row = tx
        .query_one(
            &format!("select pg_try_advisory_xact_lock({NO_NEW_PARTITIONS})"),
            &[],
        )
        .await?;
    if !row.get::<_, bool>(0) {
        return Ok(Effect::default());
    }
    let old_leaves: i64 = tx
        .query_one(
            &format!("select count(*) from {LEAVES} leaves where {OLD}"),
            &[],
        )
        .await?
        .get(0);
    // Keeps a few old partitions for retention to drop.
    let old = old_leaves < 3 || rng.bool();
    let bound = if old {
        "least(min(day) - 1, (now() at time zone 'UTC')::date - 45)"
    } else {
        "greatest(max(day) + 1, (now() at time zone 'UTC')::date + 2)"
    };
    let row = tx
        .query_one(
            &format!("select ({bound})::text, to_char({bound}, 'YYYYMMDD'), ({bound} + 1)::text from {LEAVES} leaves"),
            &[],
        )
        .await?;
    let (Some(from), Some(name), Some(to)): (Option<String>, Option<String>, Option<String>) =
        (row.get(0), row.get(1), row.get(2))
    else {
        return Ok(Effect::default());
    };
    let leaf = format!("odds_snapshots_{name}");
    tx.batch_execute(&format!(
        "create table {leaf} (like odds_snapshots including defaults)"
    ))
    .await?;
    let mut snapshots = 0;
    if old {
        snapshots = tx
            .execute(
                &format!(
                    "insert into {leaf} (id, event_id, bookmaker_id, captured_at)
                     select nextval(pg_get_serial_sequence('odds_snapshots', 'id')), id, 1, '{from}'::timestamp + interval '12 hours'
                     from events
                     where kickoff < now() at time zone 'UTC' - interval '30 days'
                     order by id limit 20"
                ),
                &[],
            )
            .await?;
    }
    tx.batch_execute(&format!(
        "alter table odds_snapshots attach partition {leaf} for values from ('{from}') to ('{to}')"
    ))
    .await?;
    // Who creates a partition must give it triggers: see sql/README.md, "New partitions".
    tx.batch_execute(Script::Install.text()).await?;
    Ok(Effect {
        rows: 1 + snapshots,
        snapshots,
        ..Effect::default()
    })
}

/// Detaches and drops the oldest partition, as retention does. If none is older than a month, drops the last future
/// partition, provided it is empty.
pub(crate) async fn drop_old(tx: &Transaction<'_>) -> Result<Effect, Error> {
    // Lock the parent before the leaf, because all others lock in this order.
    tx.batch_execute("lock table only odds_snapshots in access exclusive mode")
        .await?;
    let leaf = match old_leaf(tx).await? {
        Some(leaf) => leaf,
        None => match spare_leaf(tx).await? {
            Some(leaf) => leaf,
            None => return Ok(Effect::default()),
        },
    };
    tx.batch_execute(&format!(
        "alter table odds_snapshots detach partition {leaf}; drop table {leaf}"
    ))
    .await?;
    Ok(Effect::rows(1))
}

/// Truncates the oldest partition, directly.
pub(crate) async fn truncate_old(tx: &Transaction<'_>) -> Result<Effect, Error> {
    let Some(leaf) = old_leaf(tx).await? else {
        return Ok(Effect::default());
    };
    tx.batch_execute(&format!("truncate {leaf}")).await?;
    Ok(Effect::rows(1))
}

/// Locks the oldest partition that ended over a month ago. `None` if it has snapshots of events that are not long past.
async fn old_leaf(tx: &Transaction<'_>) -> Result<Option<String>, Error> {
    let candidates =
        format!("select oid::regclass::text from {LEAVES} leaves where {OLD} order by day limit 1");
    let current = "event_id in (select id from events where kickoff > now() at time zone 'UTC' - interval '25 days')";
    lock_unless(tx, &candidates, current).await
}

/// Locks the last future partition. `None` if it is not empty.
async fn spare_leaf(tx: &Transaction<'_>) -> Result<Option<String>, Error> {
    let candidates = format!(
        "select oid::regclass::text from {LEAVES} leaves where day > (now() at time zone 'UTC')::date + 4 order by day desc limit 1"
    );
    lock_unless(tx, &candidates, "true").await
}

/// Locks the candidate and returns it, unless it has a row that matches `forbidden`.
async fn lock_unless(
    tx: &Transaction<'_>,
    candidates: &str,
    forbidden: &str,
) -> Result<Option<String>, Error> {
    let Some(row) = tx.query_opt(candidates, &[]).await? else {
        return Ok(None);
    };
    let leaf: String = row.get(0);
    // From here on nobody can add a row.
    tx.batch_execute(&format!("lock table {leaf} in access exclusive mode"))
        .await?;
    let refused: bool = tx
        .query_one(
            &format!("select exists (select from {leaf} where {forbidden})"),
            &[],
        )
        .await?
        .get(0);
    Ok((!refused).then_some(leaf))
}
