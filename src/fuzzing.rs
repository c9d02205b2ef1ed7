//! What `tests/fuzz` gets to see of the inside. Not part of the library: built under `--cfg fuzzing` alone.
#![allow(missing_docs)]

use crate::{
    Error,
    dsn::Parameters,
    feed::Snapshot,
    model::{CachedSnapshot, Micros},
    pack::{Bodies, MarketRow, Packer},
    passfile::{self, Login},
    target,
};

/// Market rows with these `outcomes` and `market_groups`, each of a snapshot of its own, read one after the other by one
/// reader: each as a program that embeds the cache serialises the market, and what is said to be wrong with it.
pub fn markets(rows: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    let mut packer = Packer::default();
    let mut bodies = Bodies::new(&mut packer);
    let problems: Vec<Option<String>> = (1i64..)
        .zip(rows)
        .map(|(id, (outcomes, market_groups))| {
            let row = MarketRow {
                row_id: id,
                betpawa_market_id: Some("1"),
                betpawa_market_name: Some("1"),
                line: None,
                handicap_type: None,
                handicap_home: None,
                handicap_away: None,
                outcomes: Some(outcomes),
                market_groups: Some(market_groups),
                unavailable_at: None,
            };
            bodies.push(id, row).map(|problem| problem.to_string())
        })
        .collect();
    let now = Micros::from_utc(chrono::DateTime::UNIX_EPOCH);
    let bodies = bodies.finish();
    let json = |id: i64| {
        let snapshot = CachedSnapshot {
            snapshot_id: 1,
            event_id: 1,
            bookmaker_id: 1,
            captured_at: now,
            last_confirmed_at: now,
            body: bodies.get(&id)?.clone(),
        };
        serde_json::to_string(&snapshot).ok()
    };
    (1i64..)
        .zip(problems)
        .map(|(id, problem)| (json(id).unwrap_or_default(), problem))
        .collect()
}

/// The driver's configuration, the hosts, and all the rest as `Debug` has it.
pub fn connection_string(
    text: &str,
) -> Result<(tokio_postgres::Config, Vec<String>, String), Error> {
    let parsed = Parameters::parse(text)?.build()?;
    let rest = format!(
        "{:?} {:?} {:?}",
        parsed.tls, parsed.session, parsed.passfile
    );
    let config = crate::Config::from_postgres(parsed.postgres.clone());
    let targets = target::targets(&config)?;
    let targets = targets.iter().map(target::Target::name).collect();
    Ok((parsed.postgres, targets, rest))
}

pub fn password(text: &[u8], host: &str, port: u16, database: &str, user: &str) -> Option<Vec<u8>> {
    let login = Login {
        host,
        port,
        database,
        user,
    };
    passfile::find(text, &login)
}

/// The numbers of a `pg_snapshot`, in their order.
pub fn snapshot(text: &str) -> Option<Vec<u64>> {
    let shown = format!("{:?}", Snapshot::parse(text)?);
    let numbers = shown.split(|character: char| !character.is_ascii_digit());
    Some(numbers.flat_map(str::parse).collect())
}
