//! What can be wrong with a market row.

/// What is wrong with a market row's outcomes. Never the data itself: it goes into logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("outcomes is null")]
    Null,
    #[error("outcomes is no JSON that can be read")]
    Unreadable,
    #[error("outcomes is not a list")]
    NotAList,
    #[error("an outcome is not an object")]
    NotAnObject,
    #[error("an outcome has no name, or one that is no string")]
    Name,
    #[error("an outcome's odds are no number")]
    Odds,
    #[error("an outcome's is_active is no boolean")]
    IsActive,
    #[error("market_groups is not a list")]
    MarketGroups,
    #[error("betpawa_market_id or betpawa_market_name is null")]
    NullMarket,
}
