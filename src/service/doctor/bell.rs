//! Does the bell ring? LISTEN here, ring there, and wait for it: what the feed's triggers do and the cache waits for.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Context,
    finding::Finding,
    server::Server,
    session::{Session, Trouble, identifier, literal},
};

/// How long the bell may take.
const BELL: Duration = Duration::from_secs(2);

const POLLS: &str =
    "the cache polls instead: changes show within its poll interval (1 s), and nothing is missed";

pub(super) async fn check(context: &Context<'_>, server: &Server) -> Result<Vec<Finding>, Trouble> {
    if server.standby && context.bell.is_none() {
        return Ok(vec![
            Finding::info("bell", "the server is a standby: it cannot LISTEN, and the cache polls it")
                .why("changes show within the poll interval (1 s), after the standby has replayed them; nothing is missed")
                .mend("for less delay listen at the primary: --bell-url (ODDSCACHE_BELL_URL)"),
        ]);
    }
    let at = context.bell.as_ref().unwrap_or(&context.config);
    let listener = context.session_at(at).await?;
    let ringer = context.session_at(at).await?;
    if is_pooled(&listener, &ringer).await? {
        // Not tried: LISTEN would stay behind in a server's session that others use.
        return Ok(vec![
            Finding::warn("bell.pooler", "a pooler in transaction mode is between: LISTEN does not work through it")
                .why(POLLS)
                .mend("listen past it: --bell-url (ODDSCACHE_BELL_URL) of the server itself, or a pool with pool_mode = session"),
        ]);
    }
    let channel = match channel(context).await {
        Ok(channel) => channel,
        // The feed has no channel that we may know: LISTEN and NOTIFY can be tried all the same.
        Err(_) => "oddscache_doctor".to_owned(),
    };
    Ok(vec![ring(context, &listener, &ringer, &channel).await?])
}

/// Whether transactions of one client run in several server sessions, or those of two clients in one.
async fn is_pooled(one: &Session, other: &Session) -> Result<bool, Trouble> {
    let (mut of_one, mut of_other) = (BTreeSet::new(), BTreeSet::new());
    let pooled = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
        one.len() > 1 || other.len() > 1 || !one.is_disjoint(other)
    };
    for _ in 0..3 {
        of_one.extend(pid(one, "").await?);
        of_other.extend(pid(other, "").await?);
    }
    if pooled(&of_one, &of_other) {
        return Ok(true);
    }
    // A pooler that gave each the same session until now must give the one another while the other keeps its own.
    of_other.extend(pid(other, "BEGIN READ ONLY; ").await?);
    let while_held = pid(one, "").await;
    other.run("ROLLBACK").await?;
    of_one.extend(while_held?);
    of_other.extend(pid(other, "").await?);
    Ok(pooled(&of_one, &of_other))
}

async fn pid(session: &Session, before: &str) -> Result<Option<String>, Trouble> {
    let rows = session
        .run(&format!("{before}SELECT pg_backend_pid()"))
        .await?;
    Ok(rows.into_iter().flatten().flatten().next())
}

async fn channel(context: &Context<'_>) -> Result<String, Trouble> {
    #[derive(Deserialize)]
    struct State {
        channel: String,
    }
    let schema = identifier(context.cache_schema);
    let sql = format!("SELECT s.channel FROM {schema}.log_state AS s");
    Ok(context.session().await?.row::<State>(&sql).await?.channel)
}

async fn ring(
    context: &Context<'_>,
    listener: &Session,
    ringer: &Session,
    channel: &str,
) -> Result<Finding, Trouble> {
    listener
        .run(&format!("LISTEN {}", identifier(channel)))
        .await?;
    // Told from the bells of others by its payload, which the cache ignores. The heartbeat's is empty.
    let payload = format!("doctor {:x}", fastrand::u64(..));
    let began = Instant::now();
    let by = if context.arguments.heartbeat {
        let schema = identifier(context.cache_schema);
        ringer.run(&format!("SELECT {schema}.heartbeat()")).await?;
        "heartbeat()"
    } else {
        let (channel, payload) = (literal(channel), literal(&payload));
        ringer
            .run(&format!(
                "SELECT pg_catalog.pg_notify({channel}, {payload})"
            ))
            .await?;
        "NOTIFY"
    };
    let heard = timeout(BELL, async {
        while let Some(heard) = listener.notified().await {
            if context.arguments.heartbeat || heard == payload {
                return true;
            }
        }
        false
    });
    let heard = heard.await;
    let took = began.elapsed();
    // Its connection ends anyway.
    let _ = listener.run("UNLISTEN *").await;
    let object = format!("channel {channel}");
    Ok(match heard {
        Ok(true) => Finding::ok(
            "bell",
            format!("{by} on one connection was heard on another after {:.1} ms", took.as_secs_f64() * 1e3),
        ),
        Ok(false) => Finding::warn("bell", "the listening connection was lost").why(POLLS),
        Err(_) => Finding::warn("bell", format!("{by} on one connection was not heard on another within {} s", BELL.as_secs()))
            .why(POLLS)
            .mend(
                "see whether a pooler is between, whether a listener sits in a transaction (SELECT \
                 pg_notification_queue_usage()), and whether oddscache.notify is off for the role that writes",
            ),
    }
    .object(object))
}
