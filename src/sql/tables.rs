//! The application's tables that the feed watches and the cache reads.

/// One of the six tables of the application, all in one schema ([`Config::app_schema`](crate::config::Config::app_schema)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// `events`: when each event begins.
    Events,
    /// `competitor_events`: which event each competitor's event is linked to.
    CompetitorEvents,
    /// `odds_snapshots`: by event and bookmaker. Partitioned in most deployments.
    OddsSnapshots,
    /// `competitor_odds_snapshots`: by competitor event.
    CompetitorOddsSnapshots,
    /// `market_odds`: the markets of `odds_snapshots`.
    MarketOdds,
    /// `competitor_market_odds`: the markets of `competitor_odds_snapshots`.
    CompetitorMarketOdds,
}

impl Table {
    /// All of them, in the order in which a read locks them.
    pub const ALL: [Table; 6] = [
        Table::Events,
        Table::CompetitorEvents,
        Table::OddsSnapshots,
        Table::CompetitorOddsSnapshots,
        Table::MarketOdds,
        Table::CompetitorMarketOdds,
    ];

    /// Its name, without the schema. It needs no quotes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::CompetitorEvents => "competitor_events",
            Table::OddsSnapshots => "odds_snapshots",
            Table::CompetitorOddsSnapshots => "competitor_odds_snapshots",
            Table::MarketOdds => "market_odds",
            Table::CompetitorMarketOdds => "competitor_market_odds",
        }
    }

    /// The column whose values the triggers log as the keys of a change.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Table::Events => "id",
            Table::CompetitorEvents => "betpawa_event_id",
            Table::OddsSnapshots => "event_id",
            Table::CompetitorOddsSnapshots => "competitor_event_id",
            Table::MarketOdds | Table::CompetitorMarketOdds => "snapshot_id",
        }
    }

    /// The table that a row of the change log is about.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The names of all, as parameters and in the order of [`Table::ALL`].
    pub(crate) fn names() -> Vec<&'static str> {
        Table::ALL.map(Table::name).to_vec()
    }
}
