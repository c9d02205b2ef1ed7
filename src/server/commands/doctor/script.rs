//! Runs `sql/check.sql` as `oddscache sql check` does. Each line of its report becomes a finding with a reason and a
//! fix.

use oddscache::sql::Script;

use super::{context::Context, finding::Finding};
use crate::server::session::Trouble;

/// A row of the report.
struct Line {
    kind: String,
    object: String,
    item: String,
    status: Status,
    detail: String,
    fix: Option<Fix>,
}

/// The values of the report's column `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Fail,
    Warn,
    /// The role lacks the right to look.
    Unknown,
    Info,
    Ok,
}

impl Status {
    fn of_name(name: &str) -> Option<Status> {
        Some(match name {
            "FAIL" => Status::Fail,
            "warn" => Status::Warn,
            "unknown" => Status::Unknown,
            "info" => Status::Info,
            "ok" => Status::Ok,
            _ => return None,
        })
    }
}

/// What repairs a line: one of the scripts, or anything else.
#[derive(Debug, PartialEq, Eq)]
enum Fix {
    Script(Script),
    Text(String),
}

impl Fix {
    fn of_cell(cell: String) -> Fix {
        let named = |script: &Script| script.file_name() == cell;
        match Script::ALL.into_iter().find(named) {
            Some(script) => Fix::Script(script),
            None => Fix::Text(cell),
        }
    }

    fn text(&self) -> String {
        match self {
            Fix::Script(script) => run(*script),
            Fix::Text(text) => text.clone(),
        }
    }
}

/// The command that runs a script.
pub(super) fn run(script: Script) -> String {
    let file = script.file_name();
    let role = match script {
        Script::Grants => "; --role names the role",
        _ => "",
    };
    format!("oddscache sql {script} --apply (sql/{file}), as the owner of the tables{role}")
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

/// `None` for a row of another statement, which has other columns.
fn line(row: Vec<Option<String>>) -> Option<Line> {
    let [kind, object, item, status, detail, fix] = <[Option<String>; 6]>::try_from(row).ok()?;
    Some(Line {
        kind: kind?,
        object: object.unwrap_or_default(),
        item: item.unwrap_or_default(),
        status: Status::of_name(&status?)?,
        detail: detail.unwrap_or_default(),
        fix: fix.map(Fix::of_cell),
    })
}

/// One finding for each line that is not `ok`, and one for all `ok` lines of a kind.
fn findings(lines: &[Line]) -> Vec<Finding> {
    let bad = lines.iter().filter(|line| line.status != Status::Ok);
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
            .filter(|line| line.kind == kind && line.status == Status::Ok);
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
            "a change that no trigger sees is not logged. Until the triggers are repaired, the cache is degraded, and \
             reads everything again and again",
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

fn finding(line: &Line) -> Finding {
    let (id, why) = about(&line.kind);
    let what = format!("{}: {}", line.item, line.detail);
    let mut finding = match line.status {
        Status::Fail => Finding::fail(id, what),
        Status::Warn => Finding::warn(id, what),
        // If the role may not look, nothing is known to be wrong.
        Status::Unknown | Status::Info => Finding::info(id, what),
        Status::Ok => Finding::ok(id, what),
    };
    finding.checked = line.status != Status::Unknown;
    finding.fix = line.fix.as_ref().map(Fix::text);
    finding.object(line.object.clone()).why(why)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    fn given(cells: [&str; 5], fix: Option<&str>) -> Line {
        let mut row: Vec<Option<String>> = cells.map(|cell| Some(cell.to_owned())).to_vec();
        row.push(fix.map(str::to_owned));
        line(row).unwrap()
    }

    #[test]
    fn lines_become_findings() {
        let revoke = "REVOKE INSERT ON public.events FROM cache";
        let found = findings(&[
            given(
                [
                    "trigger",
                    "public.events",
                    "INSERT",
                    "FAIL",
                    "missing: changes are missed",
                ],
                Some("install.sql"),
            ),
            given(
                [
                    "right",
                    "public.events",
                    "INSERT",
                    "info",
                    "cache does not need it",
                ],
                Some(revoke),
            ),
            given(
                [
                    "log",
                    "oddscache.change_log",
                    "rows",
                    "unknown",
                    "not readable by nosy",
                ],
                None,
            ),
            given(
                [
                    "trigger",
                    "public.market_odds",
                    "INSERT",
                    "ok",
                    "always enabled",
                ],
                None,
            ),
            given(
                [
                    "trigger",
                    "public.odds_snapshots",
                    "INSERT",
                    "ok",
                    "always enabled",
                ],
                None,
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
        let fixes: Vec<_> = found.iter().map(|f| f.fix.as_deref()).collect();
        let install = "oddscache sql install --apply (sql/install.sql), as the owner of the tables";
        assert_eq!(fixes, [Some(install), Some(revoke), None, None]);
        assert_eq!(found[0].what, "INSERT: missing: changes are missed");
        assert_eq!(found[3].what, "public.market_odds; public.odds_snapshots");
    }

    /// Each status of the report is known, and each script that it names is one.
    #[test]
    fn the_report_has_only_known_values() {
        let text = Script::Check.text();
        for name in ["FAIL", "warn", "unknown", "info", "ok"] {
            assert!(text.contains(&format!("'{name}'")), "{name}");
            assert!(Status::of_name(name).is_some(), "{name}");
        }
        for script in [Script::Install, Script::Grants, Script::Indexes] {
            let cell = script.file_name();
            assert!(text.contains(&format!("'{cell}'")), "{cell}");
            assert_eq!(Fix::of_cell(cell.to_owned()), Fix::Script(script));
        }
        let cell = "run install.sql".to_owned();
        assert_eq!(Fix::of_cell(cell.clone()), Fix::Text(cell));
    }
}
