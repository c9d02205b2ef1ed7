//! `CachedMarket`.

use std::sync::Mutex;

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyList, PyString, PyTuple, PyType},
};

use crate::{
    json,
    loan::{Lend, Loan},
    names,
    snapshot::{CachedSnapshot, Held},
    times,
};

/// Holds what makes `CachedMarket` look like a dataclass, which the Python part adds.
///
/// It is a class of its own because orjson takes an object for a dataclass whose own class says so, and then reads the
/// values of fields after they are freed. Such values as ours, which are made when they are asked for, crash it.
#[pyclass(frozen, subclass, module = "oddscache._native", name = "_MarketFields")]
pub(crate) struct Fields;

/// A row of `market_odds` or `competitor_market_odds`. It behaves as a frozen dataclass of the nine fields does.
///
/// The two fields that callers compare for every market are plain members, which the interpreter reads without a call.
/// All others are made when they are asked for.
#[pyclass(frozen, extends = Fields, module = "oddscache")]
pub(crate) struct CachedMarket {
    #[pyo3(get)]
    betpawa_market_id: Py<PyAny>,
    #[pyo3(get)]
    line: Py<PyAny>,
    rest: Rest,
}

enum Rest {
    /// A market of a cache: the snapshot, and the index of the market in it.
    Held {
        held: Py<Held>,
        index: u32,
        outcomes: Mutex<Lent>,
    },
    /// A market that a program constructed.
    Given(Box<Given>),
}

/// The list of outcomes that was made last.
enum Lent {
    Never,
    /// Asked for once. Most markets are not asked for again, so nothing is kept.
    Once,
    Kept(Box<Loan>),
}

struct Given {
    betpawa_market_name: Py<PyAny>,
    handicap_type: Py<PyAny>,
    handicap_home: Py<PyAny>,
    handicap_away: Py<PyAny>,
    outcomes: Py<PyAny>,
    market_groups: Py<PyAny>,
    unavailable_at: Py<PyAny>,
}

const FIELDS: [&str; 9] = [
    "betpawa_market_id",
    "betpawa_market_name",
    "line",
    "handicap_type",
    "handicap_home",
    "handicap_away",
    "outcomes",
    "market_groups",
    "unavailable_at",
];

/// All markets of a snapshot.
pub(crate) fn markets<'py>(
    py: Python<'py>,
    held: &Bound<'py, Held>,
) -> PyResult<Bound<'py, PyTuple>> {
    let markets = held.get().snapshot.markets();
    let mut objects = Vec::with_capacity(markets.len());
    let mut names = names::lend();
    for (index, market) in (0u32..).zip(markets) {
        let line = match market.line() {
            Some(line) => line.into_pyobject(py)?.into_any().unbind(),
            None => py.None(),
        };
        let market = CachedMarket {
            betpawa_market_id: names
                .text(py, market.betpawa_market_id())
                .into_any()
                .unbind(),
            line,
            rest: Rest::Held {
                held: held.clone().unbind(),
                index,
                outcomes: Mutex::new(Lent::Never),
            },
        };
        let market = PyClassInitializer::from(Fields).add_subclass(market);
        objects.push(Bound::new(py, market)?);
    }
    drop(names);
    PyTuple::new(py, objects)
}

impl CachedMarket {
    /// A field, from the snapshot or as given.
    fn field<'py>(
        &self,
        py: Python<'py>,
        held: impl FnOnce(&Held, oddscache::CachedMarket<'_>) -> PyResult<Py<PyAny>>,
        given: impl FnOnce(&Given) -> &Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let field = match &self.rest {
            Rest::Held {
                held: from, index, ..
            } => {
                let from = from.get();
                // The index was counted in this snapshot, which never changes.
                match from.snapshot.markets().nth(*index as usize) {
                    Some(market) => held(from, market)?,
                    None => py.None(),
                }
            }
            Rest::Given(from) => given(from).clone_ref(py),
        };
        Ok(field.into_bound(py))
    }

    fn fields<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(
            py,
            [
                self.betpawa_market_id.bind(py).clone(),
                self.betpawa_market_name(py)?,
                self.line.bind(py).clone(),
                self.handicap_type(py)?,
                self.handicap_home(py)?,
                self.handicap_away(py)?,
                self.outcomes(py)?,
                self.market_groups(py)?,
                self.unavailable_at(py)?,
            ],
        )
    }
}

fn number(py: Python<'_>, number: Option<f64>) -> PyResult<Py<PyAny>> {
    Ok(number.into_pyobject(py)?.unbind())
}

#[pymethods]
impl CachedMarket {
    #[new]
    #[pyo3(signature = (
        betpawa_market_id, betpawa_market_name, line = None, handicap_type = None, handicap_home = None,
        handicap_away = None, outcomes = None, market_groups = None, unavailable_at = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the fields of the class")]
    fn new(
        py: Python<'_>,
        betpawa_market_id: Py<PyAny>,
        betpawa_market_name: Py<PyAny>,
        line: Option<Py<PyAny>>,
        handicap_type: Option<Py<PyAny>>,
        handicap_home: Option<Py<PyAny>>,
        handicap_away: Option<Py<PyAny>>,
        outcomes: Option<Py<PyAny>>,
        market_groups: Option<Py<PyAny>>,
        unavailable_at: Option<Py<PyAny>>,
    ) -> PyResult<PyClassInitializer<CachedMarket>> {
        let scalars = [
            Some(&betpawa_market_id),
            Some(&betpawa_market_name),
            line.as_ref(),
            handicap_type.as_ref(),
            handicap_home.as_ref(),
            handicap_away.as_ref(),
            unavailable_at.as_ref(),
        ];
        refuse_own(py, scalars)?;
        let or_none = |value: Option<Py<PyAny>>| value.unwrap_or_else(|| py.None());
        let or_empty = |value: Option<Py<PyAny>>| {
            value.unwrap_or_else(|| PyList::empty(py).into_any().unbind())
        };
        let market = CachedMarket {
            betpawa_market_id,
            line: or_none(line),
            rest: Rest::Given(Box::new(Given {
                betpawa_market_name,
                handicap_type: or_none(handicap_type),
                handicap_home: or_none(handicap_home),
                handicap_away: or_none(handicap_away),
                outcomes: or_empty(outcomes),
                market_groups: or_empty(market_groups),
                unavailable_at: or_none(unavailable_at),
            })),
        };
        Ok(PyClassInitializer::from(Fields).add_subclass(market))
    }

    #[getter]
    fn betpawa_market_name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |_, market| {
                Ok(PyString::new(py, market.betpawa_market_name())
                    .into_any()
                    .unbind())
            },
            |given| &given.betpawa_market_name,
        )
    }

    #[getter]
    fn handicap_type<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |_, market| Ok(market.handicap_type().into_pyobject(py)?.unbind()),
            |given| &given.handicap_type,
        )
    }

    #[getter]
    fn handicap_home<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |_, market| number(py, market.handicap_home()),
            |given| &given.handicap_home,
        )
    }

    #[getter]
    fn handicap_away<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |_, market| number(py, market.handicap_away()),
            |given| &given.handicap_away,
        )
    }

    #[getter]
    fn outcomes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (held, index, lent) = match &self.rest {
            Rest::Held {
                held,
                index,
                outcomes,
            } => (held.get(), *index, outcomes),
            Rest::Given(given) => return Ok(given.outcomes.bind(py).clone()),
        };
        let Some(market) = held.snapshot.markets().nth(index as usize) else {
            return Ok(PyList::empty(py).into_any());
        };
        // Making a list may run Python code, which may come here again: no lock is held meanwhile (J3).
        let before = match lent.try_lock() {
            Ok(mut lent) => match &*lent {
                Lent::Never => Some(std::mem::replace(&mut *lent, Lent::Once)),
                Lent::Once => Some(Lent::Once),
                Lent::Kept(loan) => match loan.lend(py, market.outcomes()) {
                    Lend::List(list) => return Ok(list.into_any()),
                    Lend::Held => None,
                    Lend::Changed => Some(std::mem::replace(&mut *lent, Lent::Once)),
                },
            },
            Err(_) => None,
        };
        let list = names::lend().outcomes(py, market.outcomes())?;
        if matches!(before, Some(Lent::Once | Lent::Kept(_)))
            && let Some(loan) = Loan::new(&list, market.outcomes())?
            && let Ok(mut lent) = lent.try_lock()
        {
            held.count(loan.bytes());
            *lent = Lent::Kept(Box::new(loan));
        }
        Ok(list.into_any())
    }

    #[getter]
    fn market_groups<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |_, market| {
                let groups = PyList::empty(py);
                for group in market.market_groups() {
                    groups.append(json::to_python(py, group)?)?;
                }
                Ok(groups.into_any().unbind())
            },
            |given| &given.market_groups,
        )
    }

    #[getter]
    fn unavailable_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(
            py,
            |held, market| match market.unavailable_at() {
                Some(time) => times::to_python(py, time, held.naive_times),
                None => Ok(py.None()),
            },
            |given| &given.unavailable_at,
        )
    }

    fn __eq__(&self, py: Python<'_>, other: &CachedMarket) -> PyResult<bool> {
        if std::ptr::eq(self, other) {
            return Ok(true);
        }
        self.fields(py)?.eq(other.fields(py)?)
    }

    /// As for a frozen dataclass: raises `TypeError`, because a list has no hash.
    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.fields(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        repr("CachedMarket", &FIELDS, &self.fields(py)?)
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyType>, Bound<'py, PyTuple>)> {
        Ok((py.get_type::<CachedMarket>(), self.fields(py)?))
    }
}

/// Refuses a market or a snapshot as the value of a field that holds no list. A long chain of them could not be freed:
/// each frees the next, and the stack has an end.
pub(crate) fn refuse_own<'a>(
    py: Python<'_>,
    values: impl IntoIterator<Item = Option<&'a Py<PyAny>>>,
) -> PyResult<()> {
    for value in values.into_iter().flatten() {
        let value = value.bind(py);
        if value.is_instance_of::<CachedMarket>() || value.is_instance_of::<CachedSnapshot>() {
            let class = value.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a {class} cannot be the value of this field"
            )));
        }
    }
    Ok(())
}

/// What a dataclass of these fields prints.
pub(crate) fn repr(class: &str, names: &[&str], values: &Bound<'_, PyTuple>) -> PyResult<String> {
    let mut fields = Vec::with_capacity(names.len());
    for (name, value) in names.iter().zip(values) {
        fields.push(format!("{name}={}", value.repr()?));
    }
    Ok(format!("{class}({})", fields.join(", ")))
}
