//! The page at `/`, in a real browser: what it shows of a real database, and what it says when it cannot know.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod board;
mod browser;
mod detail;
mod lacking;
mod proxy;
mod served;
mod show;
mod stale;
mod token;

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use oddscache_testkit::Database;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as AsyncCommand},
    time::timeout,
};

/// Upcoming events 1 to $events, one an hour, of a bookmaker of our own and two competitors; every third lacks one of them.
/// Odds differ by event and bookmaker, so that each has a best one.
const ODDS: &str = r#"
    insert into bookmakers (id, name, slug) values (1, 'betPawa', 'betpawa');
    insert into events (id, sportradar_id, name, home_team, away_team, kickoff)
        select n, 'sr' || n, 'Home - Away', 'Home', 'Away', date_trunc('minute', now() at time zone 'UTC') + n * interval '1 hour'
        from generate_series(1, $events) n;
    insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1, $events) n;
    insert into competitor_events (source, betpawa_event_id, kickoff, external_id, sportradar_id)
        select source, n, now(), 'x' || n, 'sr' || n
        from generate_series(1, $events) n, unnest(array['bet9ja', 'sportybet']) source
        where n % 3 <> 0 or source = 'bet9ja';
    insert into competitor_odds_snapshots (competitor_event_id) select id from competitor_events order by id;
    create function pg_temp.outcomes(event int, salt int, names text[]) returns jsonb language sql as $$
        select jsonb_agg(jsonb_build_object('name', name, 'odds', 1.05 + ((event * 37 + salt * 11 + at::int * 53) % 700) / 100.0,
                                            'is_active', true) order by at)
        from unnest(names) with ordinality n (name, at) $$;
    create temp table kind (id text, name text, line float8, names text[]);
    insert into kind values ('3743', '1X2 - Full Time', null, '{1,X,2}'), ('5000', 'Over/Under - Full Time', 2.5, '{Over,Under}'),
        ('5000', 'Over/Under - Full Time', 3.5, '{Over,Under}'), ('3795', 'Both Teams To Score - Full Time', null, '{Yes,No}'),
        ('4703', 'Draw No Bet - Full Time', null, '{1,2}');
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select s.id, kind.id, kind.name, kind.line, pg_temp.outcomes(s.event_id::int, 1, names)
        from odds_snapshots s, kind;
    insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select s.id, kind.id, kind.name, kind.line, pg_temp.outcomes(c.betpawa_event_id::int, length(c.source), names)
        from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id, kind;
"#;

fn odds(events: usize) -> String {
    ODDS.replace("$events", &events.to_string())
}

fn with_odds(events: usize) -> Database {
    let database = Database::with_feed();
    database.psql(&odds(events));
    database
}

/// `oddscache serve`.
struct Served {
    child: Child,
    base: String,
}

impl Served {
    /// On a free port, until it is warm.
    async fn start(dsn: &str) -> Served {
        Served::at(dsn, "127.0.0.1:0").await
    }

    async fn at(dsn: &str, listen: &str) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oddscache"));
        for (name, _) in std::env::vars() {
            if name.starts_with("PG") || name.starts_with("ODDSCACHE") {
                command.env_remove(name);
            }
        }
        command
            .args(["serve", "--listen", listen, "--log-format", "json"])
            .env("DATABASE_URL", dsn)
            .stdin(Stdio::null());
        let mut command = AsyncCommand::from(command);
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = loop {
            let line = timeout(Duration::from_secs(60), log.next_line()).await;
            let line = line.expect("it logs").unwrap();
            let line: Value =
                serde_json::from_str(&line.expect("it says where it listens")).expect("JSON");
            if let Some(address) = line["fields"]["address"].as_str() {
                break address.to_owned();
            }
        };
        // Read on, or it could not log.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let served = Served {
            child,
            base: format!("http://{address}"),
        };
        oddscache_testkit::eventually("warm", async || {
            let ready = reqwest::get(format!("{}/readyz", served.base)).await;
            ready.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        served
    }
}

/// An expression that is true once the page is current and shows this many events.
fn loaded(events: usize) -> String {
    format!(
        "document.body.dataset.state === 'current' && document.getElementById('count').textContent === '{events} events'"
    )
}
