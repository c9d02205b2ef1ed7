//! The application's six tables, which the feed logs and the cache reads.

/// The tables that have the names of bookmakers, tournaments and sports. The cache works without them, and they have no
/// triggers.
pub(crate) const LOOKUP_TABLES: [&str; 3] = ["bookmakers", "tournaments", "sports"];

/// One of the six tables of the application, all in one schema
/// ([`Config::app_schema`](crate::config::Config::app_schema)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `events`: the events, with their kickoff.
    Events,
    /// `competitor_events`: the competitors' events, each with the event that it is linked to.
    CompetitorEvents,
    /// `odds_snapshots`: the snapshots of each event and bookmaker. Usually partitioned.
    OddsSnapshots,
    /// `competitor_odds_snapshots`: the snapshots of each competitor event.
    CompetitorOddsSnapshots,
    /// `market_odds`: the markets of `odds_snapshots`.
    MarketOdds,
    /// `competitor_market_odds`: the markets of `competitor_odds_snapshots`.
    CompetitorMarketOdds,
}

impl Table {
    /// All tables, in the order in which a read locks them.
    pub const ALL: [Table; 6] = [
        Table::Events,
        Table::CompetitorEvents,
        Table::OddsSnapshots,
        Table::CompetitorOddsSnapshots,
        Table::MarketOdds,
        Table::CompetitorMarketOdds,
    ];

    /// Its name, without the schema. SQL needs no quotes around it.
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

    /// The column whose values the triggers write to the change log.
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

    /// The table of this name; `None` for other names, such as `heartbeat` in the change log.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Whether its rows are markets.
    pub(crate) fn has_markets(self) -> bool {
        matches!(self, Table::MarketOdds | Table::CompetitorMarketOdds)
    }

    /// The names of all tables, in the order of [`Table::ALL`], as SQL constants.
    pub(crate) fn literals() -> String {
        Table::ALL
            .map(|table| format!("'{}'", table.name()))
            .join(", ")
    }
}
