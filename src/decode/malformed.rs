//! What can be wrong with a market row.

/// What is wrong with a market row. Names the column, never a value, because it goes into logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("outcomes is null")]
    Null,
    #[error("outcomes is not valid JSON")]
    Unreadable,
    #[error("outcomes is not a list")]
    NotAList,
    #[error("an outcome is not an object")]
    NotAnObject,
    #[error("an outcome has no name, or its name is not a string")]
    Name,
    #[error("an outcome's odds are not a number")]
    Odds,
    #[error("an outcome's is_active is not a boolean")]
    IsActive,
    #[error("market_groups is not a list")]
    MarketGroups,
    #[error("betpawa_market_id or betpawa_market_name is null")]
    NullMarket,
}
