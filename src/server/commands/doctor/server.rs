//! Checks the server: whether it can be reached, its version, its clock, its passwords, and whether the connection is
//! encrypted.

use std::time::SystemTime;

use chrono::{DateTime, NaiveDate, Utc};
use oddscache::SERVER_VERSIONS;
use serde::Deserialize;

use super::{
    context::Context,
    finding::{Finding, Findings, Level, or_ok},
};
use crate::server::session::{Session, Trouble};

/// The oldest major version that the library follows. PostgreSQL 13 gets no more releases.
const OLDEST: i32 = *SERVER_VERSIONS.start() as i32;

/// The newest major version that the tests run on.
const NEWEST: i32 = *SERVER_VERSIONS.end() as i32;

/// Each major version with its last day of support, and its first minor release without a bug in LISTEN: VACUUM removed
/// the part of the commit log that unread notifications need. The releases of 12 February 2026 have the fix. It was
/// committed on 12 November 2025, one day too late for the releases of that month.
const RELEASES: [(i32, (i32, u32, u32), i32); 5] = [
    (14, (2026, 11, 12), 21),
    (15, (2027, 11, 11), 16),
    (16, (2028, 11, 9), 12),
    (17, (2029, 11, 8), 8),
    (18, (2030, 11, 14), 2),
];

/// A greater difference between the server's clock and ours is a finding.
const CLOCK_SECONDS: f64 = 2.0;

/// What the server says of itself and of our session.
#[derive(Debug, Deserialize)]
pub(super) struct Server {
    version_num: i32,
    version: String,
    pub(super) standby: bool,
    pub(super) role: String,
    pub(super) superuser: bool,
    /// The role may see what other sessions do.
    pub(super) sees_all: bool,
    now: f64,
    tls: Option<bool>,
    /// The connection comes from another machine.
    remote: bool,
}

const SERVER: &str = "SELECT current_setting('server_version_num')::int AS version_num, \
    current_setting('server_version') AS version, pg_is_in_recovery() AS standby, current_user::text AS role, \
    current_setting('is_superuser')::boolean AS superuser, pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all, \
    extract(epoch FROM clock_timestamp())::float8 AS now, \
    (SELECT s.ssl FROM pg_stat_ssl AS s WHERE s.pid = pg_backend_pid()) AS tls, \
    coalesce(inet_server_addr() <> inet_client_addr() \
        AND NOT inet_client_addr() <<= ANY ('{127.0.0.0/8,::1/128}'::inet[]), false) AS remote";

pub(super) async fn reach(
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Server, Trouble> {
    let session = context.session().await?;
    // A transaction over several messages, which a pooler in statement mode refuses.
    // The role's own time-outs must not end it between two of them.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {}",
        session.limits()
    );
    for part in [&*begin, "SELECT 1", "ROLLBACK"] {
        session.run(part).await?;
    }
    let before = SystemTime::now();
    let server: Server = session.row(SERVER).await?;
    let after = SystemTime::now();
    findings.push(Finding::ok(
        "server.reachable",
        format!("PostgreSQL {}, as role {}", server.version, server.role),
    ));
    for finding in version(server.version_num, &server.version, Utc::now().date_naive()) {
        findings.push(finding);
    }
    findings.push(clock(server.now, seconds(before), seconds(after)));
    findings.push(encryption(&server, leads_away(&context.config.target())));
    findings.take("server.password", password(&session, &server).await);
    Ok(server)
}

fn seconds(time: SystemTime) -> f64 {
    DateTime::<Utc>::from(time).timestamp_micros() as f64 / 1e6
}

pub(super) fn unreachable(trouble: &Trouble) -> Finding {
    let text = &trouble.text;
    let (why, fix) = if text.contains("unsupported startup parameter") {
        (
            "the connection goes through a PgBouncer, which refuses a setting of the session",
            "in pgbouncer.ini: ignore_startup_parameters = extra_float_digits, options; or leave PGOPTIONS empty",
        )
    } else if text.contains("statement pooling mode") {
        (
            "the connection goes through a PgBouncer in statement mode, which allows no transaction; every read is one",
            "in pgbouncer.ini, for this database: pool_mode = session (or transaction: the cache then polls)",
        )
    } else if [
        "pgbouncer cannot",
        "query_wait_timeout",
        "server login has been failing",
    ]
    .iter()
    .any(|said| text.contains(said))
    {
        (
            "the connection goes through a PgBouncer, which cannot reach the server itself",
            "read PgBouncer's log; SHOW POOLS and SHOW SERVERS on its admin console",
        )
    } else {
        let finding = Finding::of_error("server.reachable", Level::Fail, text);
        let finding = finding.why(match trouble.is("53300") {
            true => {
                "the cache takes one connection, a second for a moment while it connects, and a third to prune; doctor takes two. Nothing else can be checked"
            }
            false => "nothing else can be checked",
        });
        return match finding.fix {
            Some(_) => finding,
            None => finding.fix("see whether psql \"$DATABASE_URL\" gets through"),
        };
    };
    Finding::fail("server.reachable", text.clone())
        .why(why)
        .fix(fix)
}

fn version(number: i32, name: &str, today: NaiveDate) -> Vec<Finding> {
    let (major, minor) = (number / 10_000, number % 10_000);
    if major < OLDEST {
        return vec![
            Finding::fail("server.version", format!("PostgreSQL {name} is too old"))
                .why(format!(
                    "the cache follows PostgreSQL {OLDEST} or later, and refuses this server"
                ))
                .fix("upgrade to a supported version (pg_upgrade)"),
        ];
    }
    if major > NEWEST {
        return vec![
            Finding::warn("server.version", format!("PostgreSQL {name} is newer than any that this version was tested with"))
                .why(format!("its tests run on PostgreSQL {OLDEST} to {NEWEST}; a newer server may behave in another way"))
                .fix("see whether there is a newer version of oddscache"),
        ];
    }
    let mut findings = Vec::new();
    let release = RELEASES.iter().find(|(known, ..)| *known == major);
    if let Some((.., fixed)) = release.filter(|(.., fixed)| minor < *fixed) {
        findings.push(
            Finding::warn("server.version", format!("PostgreSQL {name} has a known bug in LISTEN/NOTIFY"))
                .why(
                    "VACUUM can remove what the server needs to read old notifications; listeners then fail with \"could \
                     not access status of transaction\". The cache polls on and misses nothing, but it gets no notifications",
                )
                .fix(format!("install the minor release {major}.{fixed} or a later one")),
        );
    }
    let end =
        release.and_then(|(_, (year, month, day), _)| NaiveDate::from_ymd_opt(*year, *month, *day));
    if let Some(end) = end.filter(|end| today > *end) {
        findings.push(
            Finding::warn(
                "server.version",
                format!("PostgreSQL {major} has had no support since {end}"),
            )
            .why("bugs found since then are not fixed")
            .fix("upgrade to a supported version (pg_upgrade)"),
        );
    }
    or_ok(findings, "server.version", || {
        format!("{name} has no known bug that matters here")
    })
}

/// The server read its clock between `before` and `after`, by our clock. So a time between these two is no difference.
fn clock(server: f64, before: f64, after: f64) -> Finding {
    let off = if server < before {
        server - before
    } else {
        (server - after).max(0.0)
    };
    if off.abs() <= CLOCK_SECONDS {
        return Finding::ok(
            "server.clock",
            format!("agrees with ours within {CLOCK_SECONDS} s"),
        );
    }
    Finding::warn(
        "server.clock",
        format!("is {:.1} s {} ours", off.abs(), if off > 0.0 { "ahead of" } else { "behind" }),
    )
    .why("the server's clock decides which events are held; readers compare kickoffs and times with their own clock")
    .fix("run a time service (chrony, systemd-timesyncd) on both machines")
}

/// Whether one of the hosts is another machine. Behind a pooler the server cannot tell, because it sees only the
/// connection from the pooler.
fn leads_away(target: &str) -> bool {
    let is_here = |host: &str| {
        let local = ["/", "localhost:", "127.", "::1:", "[::1]:"];
        local.iter().any(|local| host.starts_with(local))
    };
    !target.split(',').all(is_here)
}

fn encryption(server: &Server, leads_away: bool) -> Finding {
    match (server.tls, server.remote || leads_away) {
        (Some(true), _) => Finding::ok("server.tls", "the connection is encrypted"),
        (_, false) => Finding::ok("server.tls", "the connection does not leave this machine"),
        _ => Finding::warn("server.tls", "the connection is not encrypted, and goes over a network")
            .why("anybody on the way can read the odds, and change them")
            .fix("sslmode=verify-full with sslrootcert, or a tunnel; on the server: ssl = on, and hostssl in pg_hba.conf"),
    }
}

#[derive(Deserialize)]
struct Password {
    encryption: String,
    /// Whether the role's own password is kept as md5; null if we may not see it.
    md5: Option<bool>,
}

async fn password(session: &Session, server: &Server) -> Result<Vec<Finding>, Trouble> {
    let md5 = match server.superuser {
        true => {
            "(SELECT a.rolpassword LIKE 'md5%' FROM pg_authid AS a WHERE a.rolname = session_user)"
        }
        false => "NULL::boolean",
    };
    let sql = format!("SELECT current_setting('password_encryption') AS encryption, {md5} AS md5");
    let password: Password = session.row(&sql).await?;
    let what = match password.md5 {
        Some(true) => "the role's password is kept as md5",
        _ if password.encryption == "md5" => "new passwords are kept as md5",
        _ => {
            let what = format!("passwords are kept as {}", password.encryption);
            return Ok(vec![Finding::ok("server.password", what)]);
        }
    };
    Ok(vec![
        Finding::warn("server.password", what)
            .why("md5 is weak, a stolen hash is as good as the password, and PostgreSQL will drop it")
            .fix("SET password_encryption = 'scram-sha-256', then \\password in psql; scram-sha-256 in pg_hba.conf"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(number: i32, day: (i32, u32, u32)) -> Vec<Level> {
        let today = NaiveDate::from_ymd_opt(day.0, day.1, day.2).unwrap();
        let found = version(number, "x", today);
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn versions_are_told_apart() {
        let day = (2026, 3, 1);
        assert_eq!(levels(120_022, day), [Level::Fail]);
        assert_eq!(levels(130_023, day), [Level::Fail]);
        // The releases of November 2025 do not have the fix, those of February 2026 do.
        for (broken, fixed) in [
            (140_020, 140_021),
            (150_015, 150_016),
            (160_011, 160_012),
            (170_007, 170_008),
            (180_001, 180_002),
        ] {
            assert_eq!(levels(broken, day), [Level::Warn], "{broken}");
            assert_eq!(levels(fixed, day), [Level::Ok], "{fixed}");
        }
        assert_eq!(levels(140_021, (2026, 11, 13)), [Level::Warn]);
        assert_eq!(levels(190_000, day), [Level::Warn]);
    }

    #[test]
    fn a_clock_is_wrong_only_beyond_what_the_way_takes() {
        assert_eq!(clock(100.0, 99.0, 101.0).level, Level::Ok);
        assert_eq!(clock(103.5, 99.0, 101.0).level, Level::Warn);
        assert_eq!(clock(96.5, 99.0, 101.0).level, Level::Warn);
        // A slow answer proves nothing.
        assert_eq!(clock(107.0, 99.0, 109.0).level, Level::Ok);
    }

    #[test]
    fn what_stays_on_this_machine_needs_no_encryption() {
        for here in [
            "/tmp/x/.s.PGSQL.5432/odds",
            "localhost:5432/odds",
            "127.0.0.1:5432,[::1]:5432/odds",
        ] {
            assert!(!leads_away(here), "{here}");
        }
        for away in ["db1:5432/odds", "localhost:5432,db2:5432/odds"] {
            assert!(leads_away(away), "{away}");
        }
        let server = |tls, remote| Server {
            version_num: 150_018,
            version: "15.18".to_owned(),
            standby: false,
            role: "cache".to_owned(),
            superuser: false,
            sees_all: false,
            now: 0.0,
            tls: Some(tls),
            remote,
        };
        assert_eq!(encryption(&server(false, false), false).level, Level::Ok);
        assert_eq!(encryption(&server(false, true), false).level, Level::Warn);
        assert_eq!(encryption(&server(false, false), true).level, Level::Warn);
        assert_eq!(encryption(&server(true, true), true).level, Level::Ok);
    }

    #[test]
    fn what_a_pooler_says_is_explained() {
        let said = |text: &str| unreachable(&Trouble::new(text)).why.unwrap_or_default();
        for text in [
            "unsupported startup parameter: options",
            "transaction blocks not allowed in statement pooling mode (SQLSTATE 08P01)",
            "pgbouncer cannot connect to server (SQLSTATE 08P01)",
        ] {
            assert!(said(text).contains("PgBouncer"), "{text}");
        }
        let other = unreachable(&Trouble::new("cannot reach it: refused; check the port"));
        assert_eq!(other.fix.as_deref(), Some("check the port"));
        assert_eq!(other.what, "cannot reach it: refused");
    }
}
