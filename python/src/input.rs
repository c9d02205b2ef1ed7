//! A snapshot that a program puts into a cache, from Python objects. Any object with the attributes will do.

use oddscache::{MarketInput, OutcomeInput, SnapshotInput};
use pyo3::{
    exceptions::{PyOverflowError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyString},
};
use serde_json::Value;

use crate::{errors, json, times};

/// An id of 64 bits.
pub(crate) fn id(what: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    value.extract::<i64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            PyOverflowError::new_err(format!("{what} does not fit 64 bits"))
        } else {
            errors::wrong_type(what, "an int", value)
        }
    })
}

fn text(what: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = value
        .cast::<PyString>()
        .map_err(|_| errors::wrong_type(what, "a str", value))?;
    text.extract::<String>()
        .map_err(|_| PyValueError::new_err(format!("{what} is not valid Unicode")))
}

fn number(what: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if value.is_none() {
        return Ok(None);
    }
    let number = value.extract::<f64>();
    number
        .map(Some)
        .map_err(|_| errors::wrong_type(what, "a number or None", value))
}

/// The snapshot of an event. `bookmaker_id` takes the place of the attribute.
pub(crate) fn snapshot(
    event_id: i64,
    bookmaker_id: i64,
    object: &Bound<'_, PyAny>,
) -> PyResult<SnapshotInput> {
    let py = object.py();
    let confirmed = object.getattr(intern!(py, "last_confirmed_at"))?;
    let mut markets = Vec::new();
    for market in object.getattr(intern!(py, "markets"))?.try_iter()? {
        markets.push(self::market(&market?)?);
    }
    Ok(SnapshotInput {
        snapshot_id: id("snapshot_id", &object.getattr(intern!(py, "snapshot_id"))?)?,
        event_id,
        bookmaker_id,
        captured_at: times::from_python(
            "captured_at",
            &object.getattr(intern!(py, "captured_at"))?,
        )?,
        last_confirmed_at: (!confirmed.is_none())
            .then(|| times::from_python("last_confirmed_at", &confirmed))
            .transpose()?,
        markets,
    })
}

fn market(object: &Bound<'_, PyAny>) -> PyResult<MarketInput> {
    let py = object.py();
    let get = |name: &str| object.getattr(name);
    let handicap_type = get("handicap_type")?;
    let unavailable_at = get("unavailable_at")?;
    let groups = get("market_groups")?;
    let groups = match json::from_python("market_groups", &groups)? {
        Value::Null => Vec::new(),
        Value::Array(groups) => groups,
        _ => {
            return Err(errors::wrong_type(
                "market_groups",
                "a list or None",
                &groups,
            ));
        }
    };
    let listed = object.getattr(intern!(py, "outcomes"))?;
    let mut outcomes = Vec::new();
    for outcome in listed
        .try_iter()
        .map_err(|_| errors::wrong_type("outcomes", "a list of dicts", &listed))?
    {
        outcomes.push(self::outcome(&outcome?)?);
    }
    Ok(MarketInput {
        betpawa_market_id: text("betpawa_market_id", &get("betpawa_market_id")?)?,
        betpawa_market_name: text("betpawa_market_name", &get("betpawa_market_name")?)?,
        line: number("line", &get("line")?)?,
        handicap_type: (!handicap_type.is_none())
            .then(|| text("handicap_type", &handicap_type))
            .transpose()?,
        handicap_home: number("handicap_home", &get("handicap_home")?)?,
        handicap_away: number("handicap_away", &get("handicap_away")?)?,
        outcomes,
        market_groups: groups,
        unavailable_at: (!unavailable_at.is_none())
            .then(|| times::from_python("unavailable_at", &unavailable_at))
            .transpose()?,
    })
}

fn outcome(object: &Bound<'_, PyAny>) -> PyResult<OutcomeInput> {
    let dict = object
        .cast::<PyDict>()
        .map_err(|_| errors::wrong_type("an outcome", "a dict", object))?;
    let mut outcome = OutcomeInput::new("", None);
    // A copy of the items: converting a value may run code that changes the dict.
    for item in dict.items() {
        let (key, value) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        let key = text("a key of an outcome", &key)?;
        match key.as_str() {
            "name" => outcome.name = text("the name of an outcome", &value)?,
            "odds" => outcome.odds = number("the odds of an outcome", &value)?,
            // None means what it means in the column: true.
            "is_active" => outcome.is_active = value.is_none() || value.is_truthy()?,
            _ => {
                let value = json::from_python("a value of an outcome", &value)?;
                outcome.extra.insert(key, value);
            }
        }
    }
    Ok(outcome)
}
