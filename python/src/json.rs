//! Values of JSON between serde_json and Python.

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};
use serde_json::{Map, Number, Value};

/// How deep lists and dicts may be nested: as deep as serde_json reads them.
const DEEPEST: usize = 127;

/// A new Python object of the value.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into_pyobject(py)?.into_any(),
            (None, Some(number)) => number.into_pyobject(py)?.into_any(),
            // A number that is no integer of 64 bits is a float.
            (None, None) => PyFloat::new(py, number.as_f64().unwrap_or(f64::NAN)).into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(values) => {
            let list = PyList::empty(py);
            for value in values {
                list.append(to_python(py, value)?)?;
            }
            list.into_any()
        }
        Value::Object(values) => {
            let dict = PyDict::new(py);
            for (key, value) in values {
                dict.set_item(key, to_python(py, value)?)?;
            }
            dict.into_any()
        }
    })
}

/// The value of a Python object: `None`, `bool`, `int` of 64 bits, finite `float`, `str`, `list`, `tuple`, or `dict` with
/// keys of type `str`.
pub(crate) fn from_python(what: &str, object: &Bound<'_, PyAny>) -> PyResult<Value> {
    value(what, object, DEEPEST)
}

fn value(what: &str, object: &Bound<'_, PyAny>, deeper: usize) -> PyResult<Value> {
    if object.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = object.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if object.is_instance_of::<PyInt>() {
        let number = object.extract::<i64>().map(Number::from);
        let number = number.or_else(|_| object.extract::<u64>().map(Number::from));
        return number.map(Value::Number).map_err(|_| {
            PyValueError::new_err(format!("{what} holds an int of more than 64 bits"))
        });
    }
    if object.is_instance_of::<PyFloat>() {
        let number = Number::from_f64(object.extract::<f64>()?);
        return number.map(Value::Number).ok_or_else(|| {
            PyValueError::new_err(format!("{what} holds a float that is not finite"))
        });
    }
    if object.is_instance_of::<PyString>() {
        let text = object.extract::<String>();
        return text.map(Value::String).map_err(|_| {
            PyValueError::new_err(format!("{what} holds a str that is not valid Unicode"))
        });
    }
    let Some(deeper) = deeper.checked_sub(1) else {
        return Err(PyValueError::new_err(format!(
            "{what} is nested deeper than {DEEPEST} levels, or contains itself"
        )));
    };
    if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
        let values = object.try_iter()?.map(|item| value(what, &item?, deeper));
        return Ok(Value::Array(values.collect::<PyResult<_>>()?));
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        let mut values = Map::new();
        // A copy of the items: converting one may run code that changes the dict.
        for item in dict.items() {
            let (key, item) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let key = key
                .extract::<String>()
                .map_err(|_| PyTypeError::new_err(format!("{what} has a key that is not a str")))?;
            values.insert(key, value(what, &item, deeper)?);
        }
        return Ok(Value::Object(values));
    }
    Err(PyTypeError::new_err(format!(
        "{what} holds a {}, which JSON cannot hold",
        object.get_type().name()?
    )))
}
