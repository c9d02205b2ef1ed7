//! Checks settings of the server and of the role that connects. The cache cannot change these for itself.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    context::{Context, tables},
    finding::{Finding, Findings, Level, or_ok},
    server::Server,
};
use crate::server::session::{Session, Trouble, identifier, literal};

/// Fewer free connections than this are a finding. A cache takes one, and others for a moment: to read everything, to
/// check for a pooler, and to prune.
const CONNECTIONS: i64 = 5;

/// A shorter `statement_timeout` is a finding. The role's own applies to the cache's first checks, which take
/// milliseconds.
const STATEMENT_MILLIS: i64 = 1_000;

/// How long a cache waits for a lock. It must give way before the server looks for a deadlock.
const LOCK_MILLIS: i64 = 300;

pub(super) async fn check(context: &Context<'_>, server: &Server) -> Result<Vec<Finding>, Trouble> {
    let session = context.session().await?;
    let settings = settings(&session).await?;
    let mut findings = Findings::default();
    let mut judged = judge(&settings, server);
    match temporary_files(&session).await {
        Ok(limited) => judged.extend(limited),
        Err(trouble) => judged.push(Finding::unchecked("setting", &trouble)),
    }
    if judged.iter().all(|finding| finding.level == Level::Info) {
        findings.push(Finding::ok("setting", "no setting disturbs the cache"));
    }
    findings.0.extend(judged);
    findings.take("connections", connections(&session, &settings).await);
    findings.take("locks", locks(context, &session, &settings).await);
    if server.standby {
        findings.take("standby", standby(&session).await);
    }
    Ok(findings.0)
}

/// Values by name; times in milliseconds.
type Settings = BTreeMap<String, String>;

async fn settings(session: &Session) -> Result<Settings, Trouble> {
    #[derive(Deserialize)]
    struct Setting {
        name: String,
        value: String,
    }
    // Reset values, because this transaction has changed some settings for itself.
    let sql = "SELECT s.name, s.reset_val AS value FROM pg_settings AS s WHERE s.reset_val IS NOT NULL AND s.name IN \
        ('default_transaction_isolation', 'default_transaction_read_only', 'idle_session_timeout', 'transaction_timeout', \
        'statement_timeout', 'session_replication_role', 'deadlock_timeout', 'max_connections', \
        'superuser_reserved_connections', 'reserved_connections', 'max_locks_per_transaction', 'max_prepared_transactions', \
        'hot_standby_feedback', 'max_standby_streaming_delay', 'old_snapshot_threshold')";
    let settings: Vec<Setting> = session.rows(sql).await?;
    let pair = |setting: Setting| (setting.name, setting.value);
    Ok(settings.into_iter().map(pair).collect())
}

/// The setting as a number; 0 if the server does not have it.
fn number(settings: &Settings, name: &str) -> i64 {
    settings
        .get(name)
        .and_then(|value| value.parse().ok())
        .unwrap_or_default()
}

fn judge(settings: &Settings, server: &Server) -> Vec<Finding> {
    let role = identifier(&server.role);
    let value = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
    let mut findings = Vec::new();
    let mut warn = |name: &str, what: String, why: &str, fix: String| {
        findings.push(
            Finding::warn("setting", what)
                .object(name)
                .why(why)
                .fix(fix),
        );
    };
    // PostgreSQL 17 no longer has this setting.
    let snapshots = value("old_snapshot_threshold");
    if !snapshots.is_empty() && snapshots != "-1" {
        warn(
            "old_snapshot_threshold",
            format!("lets VACUUM remove what a snapshot older than {snapshots} min still needs"),
            "a read of the cache that takes longer fails with \"snapshot too old\" and starts again; PostgreSQL 17 has no such setting",
            "ALTER SYSTEM SET old_snapshot_threshold = -1 (and a restart)".to_owned(),
        );
    }
    let statement = number(settings, "statement_timeout");
    if statement > 0 && statement < STATEMENT_MILLIS {
        warn(
            "statement_timeout",
            format!("ends statements after {statement} ms"),
            "the cache sets its own time-out for its reads, but not for its checks before the first read",
            format!("ALTER ROLE {role} SET statement_timeout = 0"),
        );
    }
    let deadlock = number(settings, "deadlock_timeout");
    if deadlock > 0 && deadlock <= LOCK_MILLIS {
        warn(
            "deadlock_timeout",
            format!("is {deadlock} ms"),
            "a cache waits up to 300 ms for a lock and then gives way; a server that looks for deadlocks sooner may cancel a \
             migration instead",
            "ALTER SYSTEM SET deadlock_timeout = '1s'; SELECT pg_reload_conf()".to_owned(),
        );
    }
    if value("session_replication_role") == "replica" {
        warn(
            "session_replication_role",
            "is replica for the role that connects".to_owned(),
            "if the application's role has it too, only ENABLE ALWAYS triggers fire for it: the feed's triggers do, the \
             application's foreign keys do not",
            format!("ALTER ROLE {role} RESET session_replication_role"),
        );
    }
    let delay = number(settings, "max_standby_streaming_delay");
    if server.standby && value("hot_standby_feedback") == "off" && (0..60_000).contains(&delay) {
        warn(
            "max_standby_streaming_delay",
            format!("is {delay} ms, and hot_standby_feedback is off"),
            "when the standby replays a VACUUM, it may cancel a read of the cache; the cache reads again, but may never finish",
            "on the standby: ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf()"
                .to_owned(),
        );
    }
    findings.extend(harmless(settings));
    findings
}

/// Settings that do not disturb the cache, but are good to know.
fn harmless(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |name: &str, what: String, why: &str, fix: Option<&str>| {
        let mut finding = Finding::info("setting", what).object(name).why(why);
        finding.fix = fix.map(str::to_owned);
        findings.push(finding);
    };
    let idle = number(settings, "idle_session_timeout");
    if idle > 0 {
        note(
            "idle_session_timeout",
            format!("ends sessions that were idle for {idle} ms"),
            "the cache's connections are often idle; the cache sets its own time-out for them, so this one ends none of them",
            None,
        );
    }
    let transaction = number(settings, "transaction_timeout");
    if transaction > 0 {
        note(
            "transaction_timeout",
            format!("ends sessions whose transaction takes {transaction} ms"),
            "the cache sets its own bounds (--warmup-timeout, --read-timeout), so this one ends none of its sessions",
            None,
        );
    }
    // The cache sets the next two itself in each of its transactions.
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|is| is == value);
    if is("default_transaction_isolation", "serializable") {
        note(
            "default_transaction_isolation",
            "is serializable".to_owned(),
            "prune() refuses to run in a serializable transaction, because it could make a serializable writer fail. The service \
             sets the isolation level of its own transactions",
            Some(
                "if something else calls prune() as this role: BEGIN ISOLATION LEVEL READ COMMITTED",
            ),
        );
    }
    if is("default_transaction_read_only", "on") {
        note(
            "default_transaction_read_only",
            "is on".to_owned(),
            "prune() writes. The cache begins its transaction as READ WRITE",
            Some("if something else calls prune() as this role: BEGIN READ WRITE"),
        );
    }
    let prepared = number(settings, "max_prepared_transactions");
    if prepared > 0 {
        note(
            "max_prepared_transactions",
            format!("is {prepared}: transactions may end with PREPARE TRANSACTION"),
            "PostgreSQL refuses to prepare a transaction that has notified, and the feed's triggers notify",
            Some(
                "in each such transaction, before its first change: SET LOCAL oddscache.notify = off",
            ),
        );
    }
    findings
}

/// Limits of temporary files: of the server, and of each role and database. They matter to the roles that write, which
/// are not ours.
async fn temporary_files(session: &Session) -> Result<Vec<Finding>, Trouble> {
    #[derive(Deserialize)]
    struct Limited {
        whose: String,
        value: String,
        fix: String,
    }
    // pg_settings has the value of this session. If that comes from its role or database, the second part has it, too.
    let sql = "SELECT 'the server' AS whose, s.reset_val || 'kB' AS value, \
           'ALTER SYSTEM SET temp_file_limit = -1; SELECT pg_reload_conf()' AS fix FROM pg_settings AS s \
         WHERE s.name = 'temp_file_limit' AND s.reset_val <> '-1' AND s.source NOT IN ('database', 'user', 'database user') \
         UNION ALL \
         SELECT concat_ws(' in ', CASE WHEN r.oid IS NOT NULL THEN format('role %I', r.rolname) WHEN d.oid IS NULL THEN 'all roles' END, \
             CASE WHEN d.oid IS NOT NULL THEN format('database %I', d.datname) END), \
           split_part(o.option, '=', 2), \
           'ALTER ' || CASE WHEN r.oid IS NULL AND d.oid IS NOT NULL THEN format('DATABASE %I', d.datname) \
             ELSE 'ROLE ' || coalesce(quote_ident(r.rolname), 'ALL') || coalesce(' IN DATABASE ' || quote_ident(d.datname), '') END \
           || ' SET temp_file_limit = -1' \
         FROM pg_db_role_setting AS s CROSS JOIN unnest(s.setconfig) AS o (option) \
         LEFT JOIN pg_database AS d ON d.oid = s.setdatabase LEFT JOIN pg_roles AS r ON r.oid = s.setrole \
         WHERE o.option LIKE 'temp\\_file\\_limit=%' AND o.option <> 'temp_file_limit=-1' \
           AND (s.setdatabase = 0 OR d.datname = current_database()) ORDER BY 1";
    let limited: Vec<Limited> = session.rows(sql).await?;
    let finding = |limited: Limited| {
        Finding::warn("setting", format!("is {} for {}", limited.value, limited.whose))
            .object("temp_file_limit")
            .why(
                "for the feed's triggers the server keeps the rows that a statement changes, each in about the size that it has in \
                 the table, and twice for UPDATE. Rows beyond work_mem go into temporary files. A statement fails if its \
                 temporary files exceed the limit",
            )
            .fix(limited.fix)
    };
    Ok(limited.into_iter().map(finding).collect())
}

#[derive(Deserialize)]
struct Connections {
    used: i64,
    /// How many of the server's connections are reserved for other roles.
    reserved: i64,
    role: String,
    role_limit: i64,
    role_used: i64,
    database: String,
    database_limit: i64,
    database_used: i64,
}

/// Compares the three limits of connections with what is in use. A server reports SQLSTATE 53300 for each of them. The
/// limits of a role and of a database do not apply to superusers. The server reserves connections for superusers, and
/// since PostgreSQL 16 also for members of `pg_use_reserved_connections`.
async fn connections(session: &Session, settings: &Settings) -> Result<Vec<Finding>, Trouble> {
    let reserved = number(settings, "superuser_reserved_connections");
    let reserved_for_members = number(settings, "reserved_connections");
    let sql = format!(
        "SELECT (SELECT sum(d.numbackends) FROM pg_stat_database AS d)::int8 AS used, \
         CASE WHEN r.rolsuper THEN 0 ELSE {reserved} + CASE WHEN EXISTS (SELECT FROM pg_roles AS g \
             WHERE g.rolname = 'pg_use_reserved_connections' AND pg_has_role(r.oid, g.oid, 'USAGE')) THEN 0 \
             ELSE {reserved_for_members} END END AS reserved, \
         r.rolname AS role, CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END AS role_limit, \
         (SELECT count(*) FROM pg_stat_activity AS a WHERE a.usename = session_user) AS role_used, \
         d.datname AS database, CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END AS database_limit, \
         (SELECT s.numbackends FROM pg_stat_database AS s WHERE s.datid = d.oid)::int8 AS database_used \
         FROM pg_roles AS r, pg_database AS d WHERE r.rolname = session_user AND d.datname = current_database()"
    );
    let found: Connections = session.row(&sql).await?;
    let server = number(settings, "max_connections") - found.reserved;
    let (role, database) = (identifier(&found.role), identifier(&found.database));
    let of_server = match found.reserved {
        0 => "the server".to_owned(),
        reserved => format!("the server, besides {reserved} reserved ones,"),
    };
    // Leave room for the cache and for others.
    let more = 2 * CONNECTIONS;
    let limits = [
        (
            of_server,
            server,
            found.used,
            format!(
                "ALTER SYSTEM SET max_connections = {} (and a restart), or a pool in session mode",
                found.used + more + found.reserved
            ),
        ),
        (
            format!("role {role}"),
            found.role_limit,
            found.role_used,
            format!(
                "ALTER ROLE {role} CONNECTION LIMIT {}",
                found.role_used + more
            ),
        ),
        (
            format!("database {database}"),
            found.database_limit,
            found.database_used,
            format!(
                "ALTER DATABASE {database} CONNECTION LIMIT {}",
                found.database_used + more
            ),
        ),
    ];
    let mut findings = Vec::new();
    for (whose, limit, used, fix) in limits {
        // -1 means no limit.
        if limit >= 0 && limit - used < CONNECTIONS {
            findings.push(
                Finding::warn("connections", format!("{used} of the {limit} of {whose} are taken"))
                    .why("a cache takes one connection, a second for a moment while it connects, and a third to prune; without the first \
                          it cannot start or reconnect")
                    .fix(fix),
            );
        }
    }
    Ok(or_ok(findings, "connections", || {
        format!("{} of {server} are taken", found.used)
    }))
}

/// A read locks every partition, and the indexes of those that it reads.
async fn locks(
    context: &Context<'_>,
    session: &Session,
    settings: &Settings,
) -> Result<Vec<Finding>, Trouble> {
    #[derive(Deserialize)]
    struct Relations {
        relations: i64,
    }
    let sql = format!(
        "SELECT count(*) AS relations FROM (WITH RECURSIVE node AS (\
           SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
            WHERE n.nspname = {} AND c.relname IN ({tables}) AND c.relkind IN ('r', 'p') \
           UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN node ON node.oid = i.inhparent) \
         SELECT node.oid FROM node UNION ALL \
         SELECT x.indexrelid FROM node JOIN pg_index AS x ON x.indrelid = node.oid) AS relation",
        literal(context.app_schema),
        tables = tables(),
    );
    let Relations { relations } = session.row(&sql).await?;
    let room = number(settings, "max_locks_per_transaction")
        * (number(settings, "max_connections") + number(settings, "max_prepared_transactions"));
    let what = format!("a read of everything takes up to {relations} of the server's {room} locks");
    // More than half is too much, because other transactions need locks, too.
    Ok(vec![if relations * 2 > room {
        Finding::warn("locks", what)
            .why("when all locks are taken, any transaction of the server may fail with \"out of shared memory\"")
            .fix("ALTER SYSTEM SET max_locks_per_transaction = ... (and a restart), or drop partitions that nobody needs")
    } else {
        Finding::ok("locks", what)
    }])
}

#[derive(Deserialize)]
struct Standby {
    paused: bool,
    behind_bytes: Option<f64>,
    behind_seconds: Option<f64>,
}

async fn standby(session: &Session) -> Result<Vec<Finding>, Trouble> {
    let sql = "SELECT pg_is_wal_replay_paused() AS paused, \
         (pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn())::float8 AS behind_bytes, \
         extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS behind_seconds";
    let found: Standby = session.row(sql).await?;
    let behind = found.behind_bytes.unwrap_or_default();
    let what = format!(
        "{behind:.0} bytes are received and not replayed; the last commit replayed is {}",
        found
            .behind_seconds
            .map_or("of unknown age".to_owned(), |seconds| format!(
                "{seconds:.1} s old"
            ))
    );
    Ok(vec![if found.paused {
        Finding::warn("standby", "replay is paused")
            .why("the cache follows this server, and shows no commit of the primary until replay resumes")
            .fix("SELECT pg_wal_replay_resume()")
    } else {
        Finding::info("standby", what).why(
            "a view's age is measured against this server, which may itself be behind its primary",
        )
    }])
}
