//! The event list as serde_json writes it from plain structs. Tests compare the rendered list with it.

use chrono::{DateTime, Utc};
use oddscache::{CachedEvent, CachedMarket, CachedSnapshot, View};
use serde::Serialize;

pub const INLINE: [(&str, Option<f64>); 4] = [
    ("3743", None),
    ("5000", Some(2.5)),
    ("3795", None),
    ("4693", None),
];

#[derive(Serialize)]
struct Event {
    event_id: i64,
    kickoff: Option<DateTime<Utc>>,
    name: Option<String>,
    home_team: Option<String>,
    away_team: Option<String>,
    sportradar_id: Option<String>,
    tournament: Option<Tournament>,
    odds: Vec<Offer>,
}

#[derive(Serialize)]
struct Tournament {
    id: i64,
    name: Option<String>,
    country: Option<String>,
    sport: Option<String>,
}

#[derive(Serialize)]
struct Offer {
    bookmaker: String,
    bookmaker_id: i64,
    bookmaker_slug: Option<String>,
    bookmaker_name: Option<String>,
    last_confirmed_at: DateTime<Utc>,
    markets: Vec<Market>,
}

#[derive(Serialize)]
struct Market {
    betpawa_market_id: String,
    betpawa_market_name: String,
    line: Option<f64>,
    margin: Option<f64>,
    outcomes: Vec<Outcome>,
    available: bool,
    unavailable_since: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct Outcome {
    name: String,
    odds: Option<f64>,
    is_active: bool,
}

pub fn list(view: &View) -> String {
    let mut events: Vec<Event> = view.events().map(event).collect();
    events.sort_by_key(|event| (event.kickoff, event.event_id));
    serde_json::to_string(&events).unwrap()
}

fn event(event: &CachedEvent) -> Event {
    let own = event
        .betpawa()
        .iter()
        .map(|(_, snapshot)| offer(event, "betpawa", snapshot));
    let competitors = event
        .competitors()
        .iter()
        .map(|(source, snapshot)| offer(event, source.as_str(), snapshot));
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Event {
        event_id: event.event_id(),
        kickoff: event.kickoff(),
        name: owned(event.name()),
        home_team: owned(event.home_team()),
        away_team: owned(event.away_team()),
        sportradar_id: owned(event.sportradar_id()),
        tournament: event.tournament().map(|tournament| Tournament {
            id: tournament.id(),
            name: owned(tournament.name()),
            country: owned(tournament.country()),
            sport: owned(tournament.sport()),
        }),
        odds: own.chain(competitors).collect(),
    }
}

fn offer(event: &CachedEvent, bookmaker: &str, snapshot: &CachedSnapshot) -> Offer {
    let shown = |market: &CachedMarket<'_>| {
        INLINE.iter().any(|(id, line)| {
            market.betpawa_market_id() == *id && (line.is_none() || market.line() == *line)
        })
    };
    let known = event.bookmaker(snapshot.bookmaker_id());
    Offer {
        bookmaker: bookmaker.to_owned(),
        bookmaker_id: snapshot.bookmaker_id(),
        bookmaker_slug: known.and_then(|known| Some(known.slug()?.to_owned())),
        bookmaker_name: known.and_then(|known| Some(known.name()?.to_owned())),
        last_confirmed_at: snapshot.last_confirmed_at(),
        markets: snapshot.markets().filter(shown).map(market).collect(),
    }
}

fn market(market: CachedMarket<'_>) -> Market {
    let outcomes: Vec<Outcome> = market
        .outcomes()
        .map(|outcome| Outcome {
            name: outcome.name().to_owned(),
            odds: outcome.odds(),
            is_active: outcome.is_active(),
        })
        .collect();
    let all_above_0 = outcomes
        .iter()
        .all(|outcome| outcome.odds.is_some_and(|odds| odds > 0.0));
    let margin = (all_above_0 && !outcomes.is_empty()).then(|| {
        let mut shares = 0.0;
        for outcome in &outcomes {
            shares += 1.0 / outcome.odds.unwrap();
        }
        ((shares - 1.0) * 10_000.0).round() / 100.0
    });
    Market {
        betpawa_market_id: market.betpawa_market_id().to_owned(),
        betpawa_market_name: market.betpawa_market_name().to_owned(),
        line: market.line(),
        margin,
        outcomes,
        available: market.unavailable_at().is_none(),
        unavailable_since: market.unavailable_at(),
    }
}
