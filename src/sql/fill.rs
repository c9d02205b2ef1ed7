//! Replaces the defaults in a script's text.

use super::{literal, quote};

/// The schema and the channel of the feed in the scripts of `sql/`.
const DEFAULT: &str = "oddscache";

/// A setting, its type and its default. Scripts declare them at their head.
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

/// The objects that scripts name in plain SQL.
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

/// The schema as the scripts name it. The default stays as it stands, so that it makes the same functions as the files do.
/// So does it for no name at all, which `install.sql` refuses.
pub(super) fn schema_name(name: &str) -> String {
    match name {
        DEFAULT | "" => DEFAULT.to_owned(),
        other => quote(other),
    }
}

/// The places where a script names the feed's schema, and what stands there for another schema.
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

/// The setting in which `log_change()` of this schema keeps what it knows of a transaction. The server takes only letters,
/// digits and underscores, and ignores case.
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

/// The text with dollar quotes that no value ends.
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

/// Replaces from left to right, the longest first. What was filled in is not looked at again.
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

    /// Every place that names the schema or the channel is one that is known here.
    #[test]
    fn nothing_of_the_default_names_is_left() {
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
                // Settings of our own, the names of advisory locks, the program, and prose.
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
    fn values_are_quoted_where_they_stand() {
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
