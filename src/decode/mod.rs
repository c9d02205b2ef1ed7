//! Reads the `outcomes` column: the text of a JSON value that should be a list of `{"name", "odds", "is_active"}`.
//!
//! Every text yields outcomes to serve, however malformed it is. The caller learns what is wrong with it:
//! - If the text is not a list or not valid JSON, there are no outcomes.
//! - An element that is not an object is left out.
//! - A missing or wrong `name` reads as empty, wrong `odds` as no odds.
//! - A wrong `is_active` reads as inactive: nobody should bet on a guess.
//!
//! Missing or null `odds` are not wrong and mean no odds. A missing or null `is_active` is not wrong and means active.
//!
//! A cache spends most of its work on this column, so there are three readers. [`expected`] accepts only the outcomes
//! that it was told to expect. [`outcomes`] first tries the form that nearly all rows have. All other texts go to
//! `serde_json`, which alone defines what a text means: the two fast readers agree with it or refuse.

mod fast;
mod full;
mod malformed;
pub(crate) mod packer;

use crate::model::{MarketTemplate, NamesBuffer, OddsBuffer};

pub(crate) use malformed::Malformed;

/// Adds the odds of `text` to `odds` if the text has exactly the outcomes of `market_template`, in the usual form.
/// Otherwise returns `false` and changes nothing.
pub(crate) fn expected(
    text: Option<&str>,
    market_template: &MarketTemplate,
    odds: &mut OddsBuffer,
) -> bool {
    text.is_some_and(|text| fast::expected(text, market_template.names(), odds))
}

/// Adds the odds of `text` to `odds` and replaces `names` by its names. Returns the first problem found, if any.
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
