//! The history of one market over seven days, compared with psql that runs the same join as a prepared statement.
//!
//! ```sh
//! cargo bench --bench history
//! ```
//!
//! The benchmark starts a private server with 1,100 upcoming events of 50 markets a snapshot. It gives five of them a
//! snapshot of each bookmaker every five minutes for seven days, with 30 markets each. `ROUNDS` (20) is how often it asks
//! for each event. Both sides read the rows of one market of all bookmakers, connect before they are timed, and take
//! turns.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use oddscache::{Config, History, HistoryQuery};
use oddscache_testkit::bench::{
    figures::{median, milliseconds},
    server::{self, Server},
};

const EVENTS: usize = 5;

/// Snapshots of seven days for the first events.
const WEEK: &str = "
    create temp table chosen as select id from events where kickoff > now() at time zone 'UTC' order by id limit $events;
    create temp table at as select n, now() at time zone 'UTC' - n * interval '5 minutes' as at
        from generate_series(1, 2016) n;
    insert into odds_snapshots (id, event_id, bookmaker_id, captured_at)
        select -row_number() over (order by n, e.id), e.id, (select min(id) from bookmakers), at from at, chosen e;
    insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select s.id, m::text, 'Market ' || m, null, jsonb_build_array(
            jsonb_build_object('name', '1', 'odds', 1.5 + (s.id % 97) / 100.0, 'is_active', true),
            jsonb_build_object('name', 'X', 'odds', 2.5, 'is_active', true),
            jsonb_build_object('name', '2', 'odds', 3.5, 'is_active', true))
        from odds_snapshots s, generate_series(1, 30) m where s.id < 0;
    insert into competitor_odds_snapshots (id, competitor_event_id, captured_at)
        select -row_number() over (order by n, c.id), c.id, at
        from at, competitor_events c where betpawa_event_id in (select id from chosen);
    insert into competitor_market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes)
        select s.id, m::text, 'Market ' || m, null, jsonb_build_array(
            jsonb_build_object('name', '1', 'odds', 1.5 + (s.id % 97) / 100.0, 'is_active', true),
            jsonb_build_object('name', 'X', 'odds', 2.5, 'is_active', true),
            jsonb_build_object('name', '2', 'odds', 3.5, 'is_active', true))
        from competitor_odds_snapshots s, generate_series(1, 30) m where s.id < 0";

/// What a developer would write.
const JOIN: &str = "
    prepare own(int, text, timestamp) as
        select s.id, s.bookmaker_id, s.captured_at, s.last_confirmed_at, m.line, m.handicap_type, m.handicap_home,
               m.handicap_away, m.outcomes, m.market_groups, m.unavailable_at
          from odds_snapshots s left join market_odds m on m.snapshot_id = s.id and m.betpawa_market_id = $2
         where s.event_id = $1 and s.captured_at >= $3 order by s.captured_at;
    prepare theirs(int, text, timestamp) as
        select s.id, c.source, s.captured_at, s.last_confirmed_at, m.line, m.handicap_type, m.handicap_home,
               m.handicap_away, m.outcomes, m.market_groups, m.unavailable_at
          from competitor_events c join competitor_odds_snapshots s on s.competitor_event_id = c.id
          left join competitor_market_odds m on m.snapshot_id = s.id and m.betpawa_market_id = $2
         where c.betpawa_event_id = $1 and c.deleted_at is null and s.captured_at >= $3 order by s.captured_at;";

/// The times of psql: it executes both statements for each event, `rounds` times.
fn psql(server: &Server, events: &[i64], rounds: usize) -> Vec<Duration> {
    let mut command: Command = server.cluster.client("psql").expect("psql");
    command.args([
        "-Xq",
        "-d",
        &server.dsn,
        "-c",
        JOIN,
        "-c",
        "\\o /dev/null",
        "-c",
        "\\timing on",
    ]);
    for _ in 0..rounds {
        for event in events {
            for name in ["own", "theirs"] {
                let sql = format!(
                    "execute {name}({event}, '7', now() at time zone 'UTC' - interval '7 days')"
                );
                command.args(["-c", &sql]);
            }
        }
    }
    let output = command.stdin(Stdio::null()).output().expect("psql");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("text");
    let times = said.lines().filter_map(|line| line.strip_prefix("Time: "));
    let times: Vec<f64> = times
        .map(|rest| {
            rest.split(' ')
                .next()
                .expect("a number")
                .parse()
                .expect("a number")
        })
        .collect();
    let both = times
        .chunks_exact(2)
        .map(|both| both.iter().sum::<f64>() / 1e3);
    both.map(Duration::from_secs_f64).collect()
}

#[tokio::main]
async fn main() {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let rounds: usize = rounds.unwrap_or(20);
    let server = server::start(&[]).await;
    let fill = WEEK.replace("$events", &EVENTS.to_string());
    server
        .client
        .batch_execute(&fill)
        .await
        .expect("seven days");
    server
        .client
        .batch_execute("vacuum analyze")
        .await
        .expect("analyzed");
    let rows = server
        .client
        .query("select id::int8 from chosen order by id", &[])
        .await;
    let events: Vec<i64> = rows.expect("events").iter().map(|row| row.get(0)).collect();

    let config = Config::new(&server.dsn).expect("a DSN");
    let history = History::new(config, 1, Duration::from_secs(60)).expect("a database");
    let (mut ours, mut theirs, mut snapshots) = (Vec::new(), Vec::new(), 0);
    // The first question connects and looks the columns up.
    let warm = HistoryQuery::new(events[0], "7");
    history.read(&warm).await.expect("an answer");
    for _ in 0..4 {
        theirs.extend(psql(&server, &events, rounds.div_ceil(4)));
        for _ in 0..rounds.div_ceil(4) {
            for event in &events {
                let mut query = HistoryQuery::new(*event, "7");
                query.from = Some(chrono::Utc::now() - chrono::TimeDelta::days(7));
                query.limit = 100_000;
                let begun = Instant::now();
                let answer = history.read(&query).await.expect("an answer");
                ours.push(begun.elapsed());
                snapshots = answer.snapshots.len();
            }
        }
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("{snapshots} snapshots of one market and event, of 30 markets each");
    println!("psql, prepared: {}", milliseconds(theirs));
    println!("history:        {}", milliseconds(ours));
    println!(
        "x{:.2} (reach: x1.50)",
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}
