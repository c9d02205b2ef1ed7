//! What keeps the change log from being pruned and vacuumed. `check.sql` reports how long the log is and who prunes it.
//! This file tries whether pruning works.

use std::time::Duration;

use serde::Deserialize;

use super::{
    context::Context,
    finding::{Finding, Findings, or_ok},
    server::Server,
};
use crate::server::{
    prune::{self, Pruned},
    session::{Session, Trouble, identifier, literal},
};

/// It is a finding if there are more dead rows than this, and also more than ten times as many as live rows. VACUUM
/// then does not do its work.
const DEAD_ROWS: i64 = 100_000;

pub(super) async fn check(context: &Context<'_>, server: &Server) -> Result<Vec<Finding>, Trouble> {
    let session = context.session().await?;
    let mut findings = Findings::default();
    findings.take("log.vacuum", vacuum(context, &session).await);
    if server.standby {
        // What holds the log back is on the primary.
        return Ok(findings.0);
    }
    findings.take(
        "log.transactions",
        transactions(context, server, &session).await,
    );
    findings.take("log.prepared", prepared(context, &session).await);
    findings.take("log.prune", pruning(context, server, &session).await);
    Ok(findings.0)
}

/// SQLSTATEs of failures that pass by themselves, such as locks and time-outs. They say nothing of the next attempt.
const PASSING: [&str; 4] = ["55P03", "57014", "40001", "40P01"];

const INSTALL: &str = "oddscache sql install --apply (sql/install.sql), as the owner of the tables";

async fn pruning(
    context: &Context<'_>,
    server: &Server,
    session: &Session,
) -> Result<Vec<Finding>, Trouble> {
    let schema = identifier(context.cache_schema);
    // There is no prune(). The feed's findings say so.
    let Some(may) = prune::is_allowed(session, context.cache_schema).await? else {
        return Ok(Vec::new());
    };
    let object = format!("{schema}.prune(interval)");
    if !may {
        return Ok(vec![
            Finding::info(
                "log.prune",
                format!("not tried: {} may not call it", server.role),
            )
            .object(object)
            .why("the change log grows with every write until another role prunes it")
            .fix("oddscache sql grants --apply --prune, or a scheduled job for the owner"),
        ]);
    }
    // The same call as the service's, but rolled back and short. prune() deletes for a sixth of this time-out.
    let before = format!(
        "{}; SET LOCAL oddscache.prune_timeout = '1 s'",
        prune::BEGIN
    );
    let call = format!("SELECT {schema}.prune() AS rows");
    let finding = match session.rows_after(&before, &call).await {
        Ok(pruned) => {
            let rows: i64 = pruned.iter().map(|Pruned { rows }| rows).sum();
            Finding::ok("log.prune", format!("works: {rows} rows were deleted within 0.2 s, and rolled back"))
        }
        Err(trouble) if PASSING.iter().any(|state| trouble.is(state)) => return Err(trouble),
        Err(trouble) => Finding::fail("log.prune", format!("fails: {trouble}"))
            .why(format!("until pruning works, {schema}.change_log grows with every write, and so does the time of a VACUUM"))
            .fix(way_out(&trouble, &schema)),
    };
    Ok(vec![finding.object(object)])
}

/// What to do so that `prune()` works again.
fn way_out(trouble: &Trouble, schema: &str) -> String {
    match trouble.sqlstate.as_deref() {
        // A publication that includes deletes must be able to name the deleted row.
        Some("55000") if trouble.text.contains("replica identity") => {
            // log_horizon is UNLOGGED, so no publication has it.
            let tables = ["change_log", "log_state"];
            match tables.iter().find(|table| trouble.text.contains(**table)) {
                Some(table) => format!(
                    "ALTER TABLE {schema}.{table} REPLICA IDENTITY FULL, or leave the feed's tables out of the publication"
                ),
                None => INSTALL.to_owned(),
            }
        }
        Some("53100") => "make room on the server's disk".to_owned(),
        // A part of the feed is missing, or its owner lacks a right.
        Some(state) if ["42501", "42P01", "42703", "42883"].contains(&state) => {
            format!(
                "{INSTALL}; the owner of prune() needs SELECT, INSERT, UPDATE and DELETE on change_log, log_state and log_horizon"
            )
        }
        _ => format!(
            "remove what raises this error, such as a trigger, rule, constraint or policy that somebody added to \
             {schema}.change_log, log_state or log_horizon; then SELECT {schema}.prune()"
        ),
    }
}

fn ago(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds.max(0.0).floor()).unwrap_or_default();
    humantime::format_duration(seconds).to_string()
}

#[derive(Deserialize)]
struct Vacuum {
    autovacuum: bool,
    dead: i64,
    live: i64,
}

async fn vacuum(context: &Context<'_>, session: &Session) -> Result<Vec<Finding>, Trouble> {
    let log = format!("{}.change_log", identifier(context.cache_schema));
    // Each of f, false, of, off, n, no and 0 turns a boolean option off.
    let sql = format!(
        "SELECT current_setting('autovacuum')::boolean AND NOT EXISTS (SELECT FROM unnest(c.reloptions) AS o (option) \
           WHERE o.option ~ '^autovacuum_enabled=(f|of|n|0)') AS autovacuum, \
           coalesce(s.n_dead_tup, 0) AS dead, coalesce(s.n_live_tup, 0) AS live \
         FROM pg_class AS c LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid WHERE c.oid = to_regclass({})",
        literal(&log)
    );
    let Some(vacuum) = session.rows::<Vacuum>(&sql).await?.into_iter().next() else {
        return Err(Trouble::new(format!("there is no {log}")));
    };
    let mut findings = Vec::new();
    if !vacuum.autovacuum {
        findings.push(
            Finding::warn("log.vacuum", "autovacuum is off for it")
                .why("the rows that prune() deletes keep their space, so the table grows for ever")
                .fix(format!(
                    "ALTER TABLE {log} RESET (autovacuum_enabled); autovacuum = on for the server"
                )),
        );
    }
    if vacuum.dead > DEAD_ROWS && vacuum.dead / 10 > vacuum.live {
        findings.push(
            Finding::warn("log.vacuum", format!("{} dead rows, {} live rows", vacuum.dead, vacuum.live))
                .why("each read of the log passes over the dead rows; VACUUM does not run, or something keeps it from removing them")
                .fix(format!("VACUUM {log}; look for old transactions and abandoned replication slots")),
        );
    }
    let findings = or_ok(findings, "log.vacuum", || {
        format!("autovacuum is on, {} dead rows", vacuum.dead)
    });
    let findings = findings.into_iter();
    Ok(findings.map(|finding| finding.object(&*log)).collect())
}

/// A transaction that has written, or that is known to hold the horizon.
#[derive(Deserialize)]
struct Open {
    pid: i32,
    role: Option<String>,
    application: Option<String>,
    state: Option<String>,
    seconds: f64,
}

/// Transactions that have written and stay open. No log row of a later transaction can be pruned meanwhile.
async fn transactions(
    context: &Context<'_>,
    server: &Server,
    session: &Session,
) -> Result<Vec<Finding>, Trouble> {
    let long = context.arguments.long_transaction.as_secs_f64();
    let seen = "SELECT a.pid, a.usename::text AS role, a.application_name AS application, a.state, \
         extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds FROM pg_stat_activity AS a \
         WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()";
    // Any role may see which transaction holds the horizon, but not when it began. It has been open at least since the
    // first log row of a later transaction.
    let log = format!("{}.change_log", identifier(context.cache_schema));
    let held = format!(
        "SELECT l.pid, a.usename::text AS role, a.application_name AS application, NULL::text AS state, \
           coalesce((SELECT extract(epoch FROM clock_timestamp() - r.at)::float8 FROM {log} AS r \
             WHERE r.xid > pg_snapshot_xmin(pg_current_snapshot()) ORDER BY r.xid, r.id LIMIT 1), 0) AS seconds \
         FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid \
         WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid IS NOT NULL \
           AND l.transactionid = pg_snapshot_xmin(pg_current_snapshot())::xid"
    );
    let sql = if server.sees_all { seen } else { &held };
    let open: Vec<Open> = session
        .rows(&format!("{sql} ORDER BY seconds DESC LIMIT 20"))
        .await?;
    let findings: Vec<Finding> = open
        .iter()
        .filter(|open| open.seconds >= long)
        .map(|open| {
            let state = open.state.as_deref().map(|state| format!(", {state}"));
            Finding::warn("log.transactions", format!("has written, and has been open for {}", ago(open.seconds)))
                .object(format!(
                    "pid {} of {} ({}{})",
                    open.pid,
                    open.role.as_deref().unwrap_or("?"),
                    open.application.as_deref().filter(|name| !name.is_empty()).unwrap_or("no application name"),
                    state.unwrap_or_default()
                ))
                .why("no log row of a later transaction can be pruned while it is open, and VACUUM removes nothing newer")
                .fix(format!("SELECT pg_terminate_backend({}), if it was forgotten", open.pid))
        })
        .collect();
    Ok(or_ok(findings, "log.transactions", || {
        match server.sees_all {
            true => format!(
                "no transaction that has written has been open for more than {}",
                ago(long)
            ),
            false => format!(
                "this role knows of no transaction that has written and has been open for more than {}; as a member of \
                 pg_read_all_stats it would see all",
                ago(long)
            ),
        }
    }))
}

#[derive(Deserialize)]
struct Prepared {
    gid: String,
    database: String,
    owner: String,
    seconds: f64,
}

async fn prepared(context: &Context<'_>, session: &Session) -> Result<Vec<Finding>, Trouble> {
    let sql = "SELECT p.gid, p.database::text, p.owner::text, \
         extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS seconds FROM pg_prepared_xacts AS p \
         ORDER BY p.prepared LIMIT 20";
    let prepared: Vec<Prepared> = session.rows(sql).await?;
    let long = context.arguments.long_transaction.as_secs_f64();
    let old = prepared.iter().filter(|prepared| prepared.seconds >= long);
    let findings: Vec<Finding> = old
        .map(|old| {
            Finding::warn("log.prepared", format!("was prepared {} ago, and neither committed nor rolled back", ago(old.seconds)))
                .object(format!("{} of {} in database {}", old.gid, old.owner, old.database))
                .why("no log row of a later transaction can be pruned; what it wrote is not committed, and its locks stay")
                .fix(format!(
                    "in database {}: ROLLBACK PREPARED {id}, or COMMIT PREPARED {id}",
                    old.database,
                    id = literal(&old.gid).trim_start()
                ))
        })
        .collect();
    Ok(or_ok(findings, "log.prepared", || {
        format!("no prepared transaction is older than {}", ago(long))
    }))
}
