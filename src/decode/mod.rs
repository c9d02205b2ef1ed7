//! Reads the `outcomes` column: the text of a JSON value that should be a list of `{"name", "odds", "is_active"}`.
//!
//! Total: whatever the text, it gives outcomes to serve and says whether something was wrong with it.
//! - no list at all, or no JSON that can be read: no outcomes;
//! - an element that is no object: left out;
//! - a missing or wrong `name`: empty; wrong `odds`: none; wrong `is_active`: inactive, for nobody should bet on a guess.
//!
//! A missing or null `odds` or `is_active` is not wrong: it means "none", and "active".
//!
//! Most of a cache's work is reading this column, so there are three readers. [`expected`] takes only what it was told to
//! expect. Else [`outcomes`] tries the form that nearly all rows have, and leaves the others to `serde_json`, which
//! decides what everything means: the two before it may only agree or give up.

mod fast;
mod full;
mod malformed;
pub(crate) mod packer;

use crate::model::{MarketTemplate, NamesBuffer, OddsBuffer};

pub(crate) use malformed::Malformed;

/// Adds the odds of `text` if it has just the outcomes of `market_template` and nothing unusual; otherwise does nothing.
pub(crate) fn expected(
    text: Option<&str>,
    market_template: &MarketTemplate,
    odds: &mut OddsBuffer,
) -> bool {
    text.is_some_and(|text| fast::expected(text, market_template.names(), odds))
}

/// Adds the odds of `text` to those in `odds`, and puts the names into `names`. Says what was wrong with them first, if
/// anything.
pub(crate) fn outcomes(
    text: Option<&str>,
    names: &mut NamesBuffer,
    odds: &mut OddsBuffer,
) -> Option<Malformed> {
    names.clear();
    let Some(text) = text else {
        return Some(Malformed::Null);
    };
    if fast::usual(text, names, odds) {
        return None;
    }
    full::outcomes(text, names, odds)
}

#[cfg(test)]
mod tests;
