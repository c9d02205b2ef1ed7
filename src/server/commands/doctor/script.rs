//! Runs `sql/check.sql` as `oddscache sql check` does. Each line of its report becomes a finding with a reason and a
//! fix.

use oddscache::sql::Script;

use super::{
    context::Context,
    finding::{Finding, Level},
};
use crate::server::session::Trouble;

/// A row of the report.
struct Line {
    kind: String,
    object: String,
    item: String,
    status: String,
    detail: String,
}

pub(super) async fn check(context: &Context<'_>, role: &str) -> Result<Vec<Finding>, Trouble> {
    let text = Script::Check
        .fill(&[
            ("app_schema", context.app_schema),
            ("cache_schema", context.cache_schema),
            ("role", role),
        ])
        .map_err(|error| Trouble::new(error.to_string()))?;
    let rows = context.session().await?.script(&text).await?;
    let lines: Vec<Line> = rows.into_iter().filter_map(line).collect();
    if lines.is_empty() {
        return Err(Trouble::new("check.sql reported nothing"));
    }
    Ok(findings(&lines))
}

fn line(row: Vec<Option<String>>) -> Option<Line> {
    // Results of other statements have other columns.
    let [kind, object, item, status, detail] = <[Option<String>; 5]>::try_from(row).ok()?;
    Some(Line {
        kind: kind?,
        object: object.unwrap_or_default(),
        item: item.unwrap_or_default(),
        status: status?,
        detail: detail.unwrap_or_default(),
    })
}

/// One finding for each line that is not `ok`, and one for all `ok` lines of a kind.
fn findings(lines: &[Line]) -> Vec<Finding> {
    // `tables.rs` has its own finding for foreign tables, with more detail.
    let told_there = |line: &&Line| line.kind == "trigger" && line.item == "foreign table";
    let bad = lines
        .iter()
        .filter(|line| line.status != "ok" && !told_there(line));
    let mut findings: Vec<Finding> = bad.map(finding).collect();
    let mut kinds: Vec<&str> = Vec::new();
    for line in lines {
        if !kinds.contains(&line.kind.as_str()) {
            kinds.push(&line.kind);
        }
    }
    for kind in kinds {
        let good = lines
            .iter()
            .filter(|line| line.kind == kind && line.status == "ok");
        let good: Vec<String> = good.map(|line| told(kind, line)).collect();
        if !good.is_empty() {
            findings.push(Finding::ok(about(kind).0, good.join("; ")));
        }
    }
    findings
}

fn told(kind: &str, line: &Line) -> String {
    match kind {
        // The detail is the same for each.
        "trigger" => line.object.clone(),
        "right" if is_superfluous(line) => {
            format!("{} on {}, as every role has", line.item, line.object)
        }
        "right" => format!("{} on {}", line.item, line.object),
        _ => format!("{} {} {}", line.object, line.item, line.detail),
    }
}

/// A finding's id for a kind of line, and why such lines matter.
fn about(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "feed" => (
            "feed",
            "the cache learns of changes from the feed, and follows only the versions that it understands",
        ),
        "trigger" => (
            "trigger",
            "a change that no trigger sees is not logged: the cache shows it late, or not at all",
        ),
        "right" => (
            "right",
            "the cache's role needs certain rights, and is safest without any others",
        ),
        "publication" => (
            "publication",
            "if a subscription stops, the server keeps its WAL for it; and a subscriber has no use for the feed's tables",
        ),
        "log" => (
            "log",
            "the cache reads the change log, which must have this server's transactions, and stay short",
        ),
        "session" => (
            "session",
            "a cache that was stopped during a read keeps its locks until the server ends its session",
        ),
        "waiting" => (
            "waiting",
            "a waiting cache holds an advisory lock in share mode; while another session holds it exclusively, caches only poll",
        ),
        "queue" => (
            "queue",
            "writers do not notify while the queue is half full; a full queue makes every COMMIT with a notification fail",
        ),
        "index" => (
            "index",
            "without the index, finding the latest snapshots reads their whole history",
        ),
        _ => ("script", "reported by check.sql"),
    }
}

fn is_superfluous(line: &Line) -> bool {
    line.detail.contains("and does not need it")
}

/// The offset of the `; ` before the statement that fixes the line.
fn statement_at(line: &Line) -> Option<usize> {
    let keywords = ["; SELECT ", "; REVOKE ", "; ALTER ", "; SET ROLE "];
    let begins = keywords
        .iter()
        .filter_map(|keyword| line.detail.find(keyword));
    begins.min()
}

fn finding(line: &Line) -> Finding {
    let (id, why) = about(&line.kind);
    let superfluous = is_superfluous(line);
    let unreadable = line.detail.starts_with("not readable by");
    let level = match line.status.as_str() {
        "FAIL" => Level::Fail,
        // A missing right to look is no fault.
        "info" => Level::Info,
        _ if superfluous || unreadable => Level::Info,
        _ => Level::Warn,
    };
    let way = line.detail.find(ON_THE_SUBSCRIBER);
    let said = &line.detail[..way.or(statement_at(line)).unwrap_or(line.detail.len())];
    let what = format!("{}: {said}", line.item);
    let mut finding = match level {
        Level::Fail => Finding::fail(id, what),
        Level::Warn => Finding::warn(id, what),
        _ => Finding::info(id, what),
    };
    finding.checked = !unreadable;
    let finding = finding.object(line.object.clone()).why(why);
    match fix(line) {
        Some(fix) => finding.fix(fix),
        None => finding,
    }
}

/// A publication has two fixes. They begin with this text.
const ON_THE_SUBSCRIBER: &str = "; on the subscriber, ";

/// The command that fixes the line.
fn fix(line: &Line) -> Option<String> {
    let role = line.detail.split(' ').next().unwrap_or_default();
    let does = |text: &str| line.detail.contains(text);
    if let Some((_, ways)) = line.detail.split_once(ON_THE_SUBSCRIBER) {
        return Some(format!(
            "on the subscriber, {}",
            ways.replace(" or here: ", "\nor here: ")
        ));
    }
    // Some lines end with the statement that fixes them.
    if let Some(at) = statement_at(line) {
        return Some(line.detail[at + 2..].to_owned());
    }
    Some(if does("install.sql") {
        "oddscache sql install --apply (sql/install.sql), as the owner of the tables".to_owned()
    } else if does("prune") {
        "oddscache sql grants --apply --prune, or a scheduled job for the owner: SELECT oddscache.prune()".to_owned()
    } else if does("grants.sql") {
        "oddscache sql grants --apply (sql/grants.sql), as the owner of the tables; --role names the role".to_owned()
    } else if does("indexes.sql") {
        "oddscache sql indexes --apply (sql/indexes.sql), as the owner of the tables".to_owned()
    } else if does("subscription") {
        "set DATABASE_URL to the publisher".to_owned()
    } else if does("BYPASSRLS") {
        format!("ALTER ROLE {role} BYPASSRLS")
    } else if line.kind == "queue" {
        "SELECT pid, usename, xact_start FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' ORDER BY xact_start"
            .to_owned()
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(kind: &str, object: &str, item: &str, status: &str, detail: &str) -> Line {
        let [kind, object, item, status, detail] =
            [kind, object, item, status, detail].map(str::to_owned);
        Line {
            kind,
            object,
            item,
            status,
            detail,
        }
    }

    #[test]
    fn lines_become_findings() {
        let found = findings(&[
            given(
                "trigger",
                "public.events",
                "INSERT",
                "FAIL",
                "missing: changes are missed; run install.sql",
            ),
            given(
                "right",
                "public.events",
                "INSERT",
                "warn",
                "cache has it and does not need it; REVOKE INSERT ON public.events FROM cache",
            ),
            given(
                "log",
                "oddscache.change_log",
                "rows",
                "warn",
                "not readable by nosy: permission denied",
            ),
            given(
                "trigger",
                "public.market_odds",
                "INSERT, UPDATE",
                "ok",
                "always enabled",
            ),
            given(
                "trigger",
                "public.odds_snapshots",
                "INSERT, UPDATE",
                "ok",
                "always enabled",
            ),
        ]);
        let told: Vec<_> = found.iter().map(|f| (f.id, f.level, f.checked)).collect();
        assert_eq!(
            told,
            [
                ("trigger", Level::Fail, true),
                ("right", Level::Info, true),
                ("log", Level::Info, false),
                ("trigger", Level::Ok, true)
            ]
        );
        assert!(
            found[0]
                .fix
                .as_deref()
                .unwrap()
                .contains("sql install --apply")
        );
        assert_eq!(
            found[1].fix.as_deref(),
            Some("REVOKE INSERT ON public.events FROM cache")
        );
        assert_eq!(found[1].what, "INSERT: cache has it and does not need it");
        assert_eq!(found[3].what, "public.market_odds; public.odds_snapshots");
        let stuck = given(
            "session",
            "process 7",
            "ClientWrite",
            "warn",
            "takes nothing; SELECT pg_terminate_backend(7)",
        );
        assert_eq!(
            fix(&stuck).as_deref(),
            Some("SELECT pg_terminate_backend(7)")
        );
        let published = given(
            "publication",
            "p",
            "publishes the feed",
            "info",
            "log: stops. No slot; on the subscriber, before: CREATE SCHEMA s; or here: ALTER PUBLICATION p DROP TABLE log",
        );
        let published = finding(&published);
        assert_eq!(published.level, Level::Info);
        assert_eq!(published.what, "publishes the feed: log: stops. No slot");
        assert_eq!(
            published.fix.as_deref(),
            Some(
                "on the subscriber, before: CREATE SCHEMA s;\nor here: ALTER PUBLICATION p DROP TABLE log"
            )
        );
    }
}
