//! Fills settings into a script's text.

use super::{literal, quote};

/// The default name of the feed's schema and of its channel in the scripts of `sql/`.
const DEFAULT: &str = "oddscache";

/// Each setting with its type and its default. A script declares its settings at its head.
const SETTINGS: [(&str, &str, &str); 8] = [
    ("app_schema", "pg_catalog.text", "public"),
    ("cache_schema", "pg_catalog.text", DEFAULT),
    ("channel", "pg_catalog.text", DEFAULT),
    ("role", "pg_catalog.text", "oddscache"),
    ("subscribers", "pg_catalog.text", "unknown"),
    ("lock_timeout", "pg_catalog.text", "2s"),
    ("prune", "boolean", "off"),
    ("keep_indexes", "boolean", "off"),
];

/// The declaration of a setting with this value.
fn declaration((name, kind, _): (&str, &str, &str), value: &str) -> String {
    format!("{name} constant {kind} := {};", literal(value))
}

/// The objects of the feed's schema that scripts name in plain SQL.
const OBJECTS: [&str; 8] = [
    "change_log",
    "log_state",
    "log_horizon",
    "feed_version(",
    "prune(",
    "heartbeat(",
    "resync(",
    "log_change(",
];

/// The names of the settings that a text declares.
pub(super) fn settings(text: &str) -> Vec<&'static str> {
    let declared =
        |setting: &&(&str, &str, &str)| text.contains(&declaration(**setting, setting.2));
    let found = SETTINGS.iter().filter(declared);
    found.map(|(name, _, _)| *name).collect()
}

/// The text with these values.
pub(super) fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut changes = Vec::new();
    for (name, value) in values {
        for setting in SETTINGS.into_iter().filter(|setting| setting.0 == *name) {
            changes.push((declaration(setting, setting.2), declaration(setting, value)));
        }
        match *name {
            "cache_schema" => changes.extend(schema(value)),
            "channel" => changes.push((
                format!("pg_notify('{DEFAULT}', "),
                format!("pg_notify({}, ", literal(value)),
            )),
            _ => {}
        }
    }
    replace(&dollar_quoted(text, values), &changes)
}

/// The schema's name, quoted for SQL. The default stays unquoted, as in the files, so that the functions are the same.
/// An empty name becomes the default here; `install.sql` then refuses the empty setting.
pub(super) fn schema_name(name: &str) -> String {
    match name {
        DEFAULT | "" => DEFAULT.to_owned(),
        other => quote(other),
    }
}

/// What to replace where a script names the feed's schema, and with what.
fn schema(name: &str) -> impl Iterator<Item = (String, String)> {
    let (quoted, state) = (schema_name(name), state(name));
    let objects =
        OBJECTS.map(|object| (format!("{DEFAULT}.{object}"), format!("{quoted}.{object}")));
    let others = [
        (format!("SCHEMA {DEFAULT}"), format!("SCHEMA {quoted}")),
        (
            format!("'{DEFAULT}.change_log'"),
            literal(&format!("{quoted}.change_log")),
        ),
        (
            format!("'oddscache listener {DEFAULT}'"),
            literal(&format!("oddscache listener {name}")),
        ),
        (format!("'oddscache.log_{DEFAULT}'"), literal(&state)),
    ];
    objects.into_iter().chain(others)
}

/// The setting in which `log_change()` of this schema keeps its state of a transaction. Names of settings may have only
/// letters, digits and underscores, and the server ignores their case.
fn state(schema: &str) -> String {
    let mut name = "oddscache.log_".to_owned();
    for byte in schema.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => name.push(char::from(byte)),
            _ => name.push_str(&format!("_{byte:02x}")),
        }
    }
    name
}

/// The text with dollar-quote tags that no value contains. A value with the tag would end the quoted text.
fn dollar_quoted(text: &str, values: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for tag in [
        "install",
        "function",
        "uninstall",
        "check",
        "grants",
        "indexes",
    ] {
        let mut free = tag.to_owned();
        while values
            .iter()
            .any(|(_, value)| value.contains(&format!("${free}$")))
        {
            free.push('_');
        }
        text = text.replace(&format!("${tag}$"), &format!("${free}$"));
    }
    text
}

/// Replaces from left to right, at each place the longest match. Replaced text is not searched again.
fn replace(text: &str, changes: &[(String, String)]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    let next = |rest: &str| {
        let found = changes
            .iter()
            .filter_map(|(from, to)| rest.find(from).map(|at| (at, from.clone(), to)));
        found.min_by_key(|(at, from, _)| (*at, std::cmp::Reverse(from.len())))
    };
    while let Some((at, from, to)) = next(rest) {
        filled.push_str(&rest[..at]);
        filled.push_str(to);
        rest = &rest[at + from.len()..];
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Script;

    #[test]
    fn each_setting_is_declared_once() {
        for script in Script::ALL {
            for name in script.settings() {
                let setting = SETTINGS.into_iter().find(|setting| setting.0 == name);
                let line = declaration(setting.unwrap(), setting.unwrap().2);
                assert_eq!(script.text().matches(&line).count(), 1, "{script}: {line}");
            }
        }
    }

    /// A script that names the schema or the channel in a form that `fill` does not know would keep the default there.
    #[test]
    fn no_default_name_is_left() {
        for script in Script::ALL {
            let names = [
                ("cache_schema", "elsewhere"),
                ("channel", "signal"),
                ("role", "reader"),
            ];
            let known: Vec<(&str, &str)> = names
                .into_iter()
                .filter(|(name, _)| script.settings().contains(name))
                .collect();
            let text = script.fill(&known).unwrap();
            for line in text.lines() {
                let code = line.split("--").next().unwrap_or_default();
                // Names that stay: custom settings, advisory locks, indexes, the program, and prose.
                let ours = [
                    "oddscache.notify",
                    "oddscache[.]notify",
                    "oddscache.prune_timeout",
                    "oddscache.report",
                    "oddscache.log_",
                    "oddscache ",
                    "oddscache: ",
                    "_oddscache_latest",
                    "oddscache_latest_",
                ];
                let code = ours
                    .iter()
                    .fold(code.to_owned(), |code, ours| code.replace(ours, ""));
                assert!(!code.contains(DEFAULT), "{script}: {line}");
            }
        }
    }

    #[test]
    fn each_value_is_quoted_for_its_place() {
        let text = "cache_schema constant pg_catalog.text := 'oddscache';\n$install$ CREATE SCHEMA oddscache; oddscache.prune(), \
                    'oddscache.change_log' 'oddscache listener oddscache' 'oddscache.log_oddscache' $install$";
        let name = "a\"b'c\\ $install$ oddscache.prune(";
        let filled = fill(text, &[("cache_schema", name)]);
        let quoted = "\"a\"\"b'c\\ $install$ oddscache.prune(\"";
        assert_eq!(
            filled,
            format!(
                "cache_schema constant pg_catalog.text :=  E'a\"b''c\\\\ $install$ oddscache.prune(';\n$install_$ CREATE SCHEMA {quoted}; \
                 {quoted}.prune(), {} {} 'oddscache.log_a_22b_27c_5c_20_24install_24_20oddscache_2eprune_28' $install_$",
                literal(&format!("{quoted}.change_log")),
                literal(&format!("oddscache listener {name}")),
            )
        );
        assert_eq!(state("oddscache"), "oddscache.log_oddscache");
    }
}
