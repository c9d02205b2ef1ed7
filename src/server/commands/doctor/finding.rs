//! What was found, and how it is printed.

use std::io::{self, Write};

use serde::Serialize;

use crate::server::session::Trouble;

/// How bad it is. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// The cache cannot work, or can miss changes.
    Fail,
    /// It works, but worse than it could, or not for long.
    Warn,
    /// Good to know.
    Info,
    /// As it should be.
    Ok,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Fail => "FAIL",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Ok => "ok",
        }
    }
}

/// The result of one check. The names of the fields are those of `--json`, and stay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// Names the check, such as `server.version`. It is the same for every object.
    pub(crate) id: &'static str,
    pub(crate) level: Level,
    /// False if the check could not be made; then `what` says why.
    pub(crate) checked: bool,
    /// The table, role or setting that it is about.
    pub(crate) object: Option<String>,
    pub(crate) what: String,
    /// Why it matters.
    pub(crate) why: Option<String>,
    /// The statement or command that fixes it.
    pub(crate) fix: Option<String>,
}

impl Finding {
    fn new(id: &'static str, level: Level, what: impl Into<String>) -> Finding {
        Finding {
            id,
            level,
            checked: true,
            object: None,
            what: what.into(),
            why: None,
            fix: None,
        }
    }

    pub(crate) fn fail(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Level::Fail, what)
    }

    pub(crate) fn warn(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Level::Warn, what)
    }

    pub(crate) fn info(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Level::Info, what)
    }

    pub(crate) fn ok(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Level::Ok, what)
    }

    /// An error of the library. Its text ends with the fix, after a semicolon.
    pub(crate) fn of_error(id: &'static str, level: Level, text: &str) -> Finding {
        let (what, fix) = match text.rsplit_once("; ") {
            Some((what, fix)) => (what, Some(fix.to_owned())),
            None => (text, None),
        };
        Finding {
            fix,
            ..Finding::new(id, level, what)
        }
    }

    /// A check that could not be made. A missing right is no fault, because the role should have few rights.
    pub(crate) fn unchecked(id: &'static str, trouble: &Trouble) -> Finding {
        let level = if trouble.is_lack_of_rights() {
            Level::Info
        } else {
            Level::Warn
        };
        let mut finding = Finding::new(id, level, format!("could not be checked: {trouble}"));
        finding.checked = false;
        finding
    }

    pub(crate) fn object(mut self, object: impl Into<String>) -> Finding {
        self.object = Some(object.into());
        self
    }

    pub(crate) fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = Some(why.into());
        self
    }

    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix = Some(fix.into());
        self
    }
}

/// The findings; if there are none, one that says that all is well.
pub(super) fn or_ok(
    findings: Vec<Finding>,
    id: &'static str,
    what: impl FnOnce() -> String,
) -> Vec<Finding> {
    match findings.is_empty() {
        true => vec![Finding::ok(id, what())],
        false => findings,
    }
}

/// Collects findings, in the order of the checks.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// Adds what a check found, or that it could not be made.
    pub(crate) fn take(&mut self, id: &'static str, found: Result<Vec<Finding>, Trouble>) {
        match found {
            Ok(found) => self.0.extend(found),
            Err(trouble) => self.0.push(Finding::unchecked(id, &trouble)),
        }
    }
}

/// All findings, the worst first.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this program.
    pub(crate) oddscache: &'static str,
    /// Hosts and name of the database, if one was checked.
    pub(crate) database: Option<String>,
    /// Servers and name of the relay, if one was checked.
    pub(crate) relay: Option<String>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) summary: Summary,
}

/// How many findings of each level.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) fail: usize,
    pub(crate) warn: usize,
    pub(crate) info: usize,
    pub(crate) ok: usize,
    /// How many of them could not be checked.
    pub(crate) unchecked: usize,
}

impl Report {
    pub(crate) fn new(
        database: Option<String>,
        relay: Option<String>,
        findings: Findings,
    ) -> Report {
        let mut findings = findings.0;
        // The sort is stable: within a level the findings keep the order of the checks.
        findings.sort_by_key(|finding| finding.level);
        let count = |level| findings.iter().filter(|found| found.level == level).count();
        let summary = Summary {
            fail: count(Level::Fail),
            warn: count(Level::Warn),
            info: count(Level::Info),
            ok: count(Level::Ok),
            unchecked: findings.iter().filter(|found| !found.checked).count(),
        };
        Report {
            oddscache: env!("CARGO_PKG_VERSION"),
            database,
            relay,
            findings,
            summary,
        }
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for finding in &self.findings {
            let object = finding.object.as_deref().map(|object| format!(" {object}"));
            writeln!(
                out,
                "{:4}  {}{}: {}",
                finding.level.name(),
                finding.id,
                object.unwrap_or_default(),
                finding.what
            )?;
            for (name, text) in [("why", &finding.why), ("fix", &finding.fix)] {
                for (line, text) in text.iter().flat_map(|text| text.lines().enumerate()) {
                    let name = if line == 0 { name } else { "" };
                    writeln!(out, "      {name:4}  {text}")?;
                }
            }
        }
        let Summary {
            fail,
            warn,
            info,
            ok,
            unchecked,
        } = &self.summary;
        let unchecked = match unchecked {
            0 => String::new(),
            n => format!(", {n} of them not checked"),
        };
        let relay = self.relay.as_ref().map(|relay| format!("relay {relay}"));
        let places = self.database.iter().cloned().chain(relay);
        writeln!(
            out,
            "{fail} fail, {warn} warn, {info} info, {ok} ok{unchecked}; oddscache {} at {}",
            self.oddscache,
            places.collect::<Vec<_>>().join(" and ")
        )
    }
}
