//! The TOML file: its keys, and its values in the form that they have after a flag.

use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::PermissionsExt, path::Path};

use toml::Value;

use super::hide;

/// Values by key.
pub(crate) type Entries = BTreeMap<String, String>;

/// A larger file is no file of settings.
const MOST_BYTES: u64 = 1 << 20;

/// Less similar words are not taken for typing errors.
const LIKE: f64 = 0.7;

/// The file's entries for `keys`. The error is a sentence with the path and without a secret.
pub(crate) fn read(path: &Path, keys: &[String]) -> Result<Entries, String> {
    let at = |wrong: &str| format!("in {}: {wrong}", path.display());
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    let mut text = String::new();
    let bytes = file.by_ref().take(MOST_BYTES + 1).read_to_string(&mut text);
    if bytes.map_err(cannot)? as u64 > MOST_BYTES {
        return Err(at("it is larger than any file of settings"));
    }
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // Without the error's own quote of the line, which may hold a password.
        let line = error.span().map_or(1, |span| {
            1 + text[..span.start.min(text.len())].matches('\n').count()
        });
        at(&format!("line {line}: {}", error.message()))
    })?;
    let mut entries = Entries::new();
    for (key, value) in table {
        if !keys.contains(&key) {
            return Err(at(&unknown(&key, keys)));
        }
        let value = written(&value).ok_or_else(|| {
            at(&format!(
                "{key}: give it as text, a number, true or false, as after the flag --{key}"
            ))
        })?;
        if mode & 0o004 != 0 && hide::hidden(&key, &value).is_some() {
            return Err(format!(
                "{} holds a secret ({key}), and every user of this machine can read it: chmod o= it, or give the secret by \
                 the environment",
                path.display()
            ));
        }
        entries.insert(key, value);
    }
    Ok(entries)
}

fn unknown(key: &str, keys: &[String]) -> String {
    let like = |known: &&String| strsim::jaro_winkler(&key.replace('_', "-"), known);
    let nearest = keys.iter().max_by(|a, b| like(a).total_cmp(&like(b)));
    match nearest.filter(|known| like(known) >= LIKE) {
        Some(known) => format!("there is no setting {key}; did you mean {known}?"),
        None => format!("there is no setting {key}; `oddscache config` prints those there are"),
    }
}

/// The value as after a flag; `None` if it cannot stand there.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(yes) => Some(yes.to_string()),
        // As lists are written on the command line.
        Value::Array(values) => {
            let values: Option<Vec<String>> = values
                .iter()
                .map(|value| match value {
                    Value::Array(_) => None,
                    value => written(value),
                })
                .collect();
            values.map(|values| values.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}
