//! The page at `/` in a real browser: what it shows of a real database, and what it says when it cannot be current.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod axe;
mod board;
mod browser;
mod detail;
mod history;
mod lacking;
mod links;
mod names;
mod proxy;
mod reflow;
mod relay;
mod served;
mod show;
mod signs;
mod slow;
mod speed;
mod stale;
mod times;
mod token;

use browser::Browser;
use oddscache_testkit::{Database, connect, service::Service};
use tokio_postgres::Client;

/// Upcoming events 1 to $events, one each hour. They have odds of one bookmaker and of two competitors, but every third
/// event lacks sportybet. Odds differ by event and bookmaker, so that each event has a best one.
const ODDS: &str = r#"
    insert into bookmakers (id, name, slug) values (1, 'betPawa', 'betpawa');
    insert into sports (id, name) values (1, 'Football');
    insert into tournaments (id, sport_id, name, country) values (1, 1, 'Premier League', 'England'), (2, 1, 'Serie A', 'Italy');
    insert into events (id, tournament_id, sportradar_id, name, home_team, away_team, kickoff)
        select n, case when n % 10 <> 0 then 1 + n % 2 end, 'sr' || n, 'Home - Away', 'Home', 'Away', date_trunc('minute', now() at time zone 'UTC') + n * interval '1 hour'
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

/// A service with this many events, its page in a browser, and a connection that plays the application.
struct Page {
    database: Database,
    app: Client,
    served: Service,
    browser: Browser,
}

impl Page {
    /// The browser has not opened the page yet.
    async fn closed(events: usize) -> Option<Page> {
        let browser = Browser::start().await?;
        let database = with_odds(events);
        Some(Page {
            app: connect(&database.dsn()).await,
            served: Service::warm(&database.dsn(), &[]).await,
            browser,
            database,
        })
    }

    async fn of(events: usize) -> Option<Page> {
        let page = Page::closed(events).await?;
        page.browser.open(&page.served.base).await;
        page.browser.until("the list", &loaded(events)).await;
        Some(page)
    }
}

/// JavaScript that is true once the page is current and shows this many events.
fn loaded(events: usize) -> String {
    format!(
        "document.body.dataset.state === 'current' && document.getElementById('count').textContent === '{events} events'"
    )
}
