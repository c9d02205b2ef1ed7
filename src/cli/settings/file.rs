//! Reads the TOML file. Each value becomes the text that would follow its flag.

use std::{collections::BTreeMap, fs, io::Read, os::unix::fs::PermissionsExt, path::Path};

use toml::Value;

use super::hide;

/// Values by key.
pub(crate) type Entries = BTreeMap<String, String>;

/// A larger file is no file of settings.
const MOST_BYTES: u64 = 1 << 20;

/// A known key is suggested for an unknown one if they are at least this similar, from 0 to 1.
const LEAST_SIMILARITY: f64 = 0.7;

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
        // Not the error's own text: it quotes the line, which may hold a password.
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
        if value.is_empty() {
            return Err(at(&format!(
                "{key} is empty: give it a value, or remove the line"
            )));
        }
        if mode & 0o004 != 0 && hide::hidden(&key, &value).is_some() {
            return Err(format!(
                "{} holds a secret ({key}), and every user of this machine can read it: run chmod o= on it, or give the secret \
                 by the environment",
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
    match nearest.filter(|known| like(known) >= LEAST_SIMILARITY) {
        Some(known) => format!("there is no setting {key}; did you mean {known}?"),
        None => format!("there is no setting {key}; `oddscache config` prints all settings"),
    }
}

/// The value as text after a flag; `None` if no flag takes such a value.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(yes) => Some(yes.to_string()),
        // On the command line, a list is separated by commas.
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
