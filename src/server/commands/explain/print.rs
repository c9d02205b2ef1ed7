//! Prints an explanation for people.

use std::io::{self, Write};

use super::{
    database::{CompetitorEvent, Facts, Latest, Standing},
    explanation::{Explanation, Verdict},
    http::Service,
};

pub(crate) fn print(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let facts = &explanation.database;
    writeln!(out, "event {}: {}", explanation.event_id, standing(facts))?;
    for latest in &facts.latest {
        writeln!(out, "  {}", origin(latest))?;
    }
    for event in &facts.competitor_events {
        if let Some(reason) = why_it_does_not_count(event) {
            let id = event.external_id.as_deref();
            let id = id.map(|id| format!(" {id}")).unwrap_or_default();
            let (number, source) = (event.id, &event.source);
            writeln!(
                out,
                "  competitor event {number} ({source}{id}) does not count: {reason}"
            )?;
        }
    }
    if facts.competitor_events.is_empty() && facts.standing != Standing::NoSuchEvent {
        writeln!(out, "  no competitor event is linked to it")?;
    }
    print_log(facts, out)?;
    if let Some(service) = &explanation.service {
        writeln!(out, "{}", answer(service))?;
    }
    for difference in &explanation.differences {
        writeln!(out, "  {difference}")?;
    }
    let verdict = match explanation.verdict {
        Verdict::Agrees => "agrees",
        Verdict::Differs => "differs",
        Verdict::DatabaseOnly => "not compared",
    };
    writeln!(out, "{verdict}: {}", explanation.reason)
}

fn answer(service: &Service) -> String {
    let stats = &service.stats;
    let held = match service.event {
        Some(_) => "holds it",
        None => "does not hold it",
    };
    let cut = stats.as_of.map(|as_of| format!("cut of {as_of}"));
    let age = stats.age_ms.map(|age| format!("{age} ms old"));
    let status = match &*stats.status {
        "" => String::new(),
        status => format!(", {status}"),
    };
    format!(
        "service {}: {held}; {}, {}, epoch {}{status}",
        service.url,
        cut.as_deref().unwrap_or("no cut"),
        age.as_deref().unwrap_or("no age"),
        stats.epoch
    )
}

fn standing(facts: &Facts) -> String {
    let kickoff = facts.kickoff.as_deref().unwrap_or("unknown");
    let start = facts.window_start;
    match facts.standing {
        Standing::Held => {
            format!(
                "to be held: its kickoff {kickoff} is within the window, which begins at {start}"
            )
        }
        Standing::NoSuchEvent => "not to be held: events has no such row".to_owned(),
        Standing::OutsideWindow => {
            format!(
                "not to be held: its kickoff {kickoff} is not after {start} (now less the lookback)"
            )
        }
        Standing::NoSnapshot => format!(
            "not to be held: its kickoff {kickoff} is within the window, but no bookmaker and no live, linked competitor event \
             has a snapshot"
        ),
    }
}

fn origin(latest: &Latest) -> String {
    let whose = match (&latest.source, latest.bookmaker_id) {
        (Some(source), _) => format!("source {source}"),
        (None, Some(id)) => format!("bookmaker {id}"),
        (None, None) => "?".to_owned(),
    };
    let of = latest
        .competitor_event_id
        .map(|id| format!(" of competitor event {id}"));
    let confirmed = match &latest.last_confirmed_at {
        Some(at) => format!("last confirmed {at}"),
        None => "never confirmed, so this time is served as last_confirmed_at".to_owned(),
    };
    let older: Vec<String> = latest
        .older
        .iter()
        .map(|older| format!("{} of {}", older.snapshot_id, older.captured_at))
        .collect();
    let beat = match latest.beaten {
        0 => "the only one".to_owned(),
        n => format!(
            "its id is the greatest; it replaced {n}: {}{}",
            older.join(", "),
            if n as usize > older.len() {
                ", ..."
            } else {
                ""
            }
        ),
    };
    format!(
        "{whose}: snapshot {}{}, captured {}, {confirmed}, {} markets; {beat}",
        latest.snapshot_id,
        of.unwrap_or_default(),
        latest.captured_at,
        latest.markets
    )
}

fn why_it_does_not_count(event: &CompetitorEvent) -> Option<String> {
    match (&event.deleted_at, event.snapshots) {
        (Some(at), _) => Some(format!("deleted at {at}")),
        (None, 0) => Some("it has no snapshot".to_owned()),
        _ => None,
    }
}

fn print_log(facts: &Facts, out: &mut impl Write) -> io::Result<()> {
    match &facts.log_trouble {
        Some(trouble) => return writeln!(out, "the change log cannot be read: {trouble}"),
        None if facts.log.is_empty() => return writeln!(out, "no row of the change log names it"),
        None => writeln!(
            out,
            "rows of the change log that name it, the newest first:"
        )?,
    }
    for row in &facts.log {
        let more = [
            row.whole_table.then(|| "the whole table".to_owned()),
            row.sqlstate
                .as_ref()
                .map(|code| format!("because of error {code}")),
            (row.after_cut == Some(true)).then(|| "after the service's cut".to_owned()),
        ];
        let more: String = more
            .into_iter()
            .flatten()
            .map(|more| format!(", {more}"))
            .collect();
        writeln!(
            out,
            "  {} transaction {}: {} {}{more}",
            row.at, row.xid, row.op, row.table_name
        )?;
    }
    Ok(())
}
