//! Connection strings: an error tells nothing of the text; what the driver understands too means the same to it; and values
//! written as they should be come back, in either form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oddscache::{fuzzing::connection_string, tokio_postgres::Config};

/// No message of ours has it.
const SECRET: &str = "\u{1F511}";

fn same(ours: &Config, theirs: &Config, what: &str) {
    let set = |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_owned);
    assert_eq!(set(ours.get_user()), set(theirs.get_user()), "user: {what}");
    assert_eq!(
        set(ours.get_dbname()),
        set(theirs.get_dbname()),
        "dbname: {what}"
    );
    assert_eq!(
        set(ours.get_options()),
        set(theirs.get_options()),
        "options: {what}"
    );
    let password = |config: &Config| {
        config
            .get_password()
            .filter(|it| !it.is_empty())
            .map(<[u8]>::to_vec)
    };
    assert_eq!(password(ours), password(theirs), "password: {what}");
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

fn escaped(value: &str) -> String {
    value.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fuzz_target!(|text: &str| {
    let read = connection_string(text);
    if let (Ok((ours, ..)), Ok(theirs)) = (&read, text.parse::<Config>()) {
        // The driver takes an @ anywhere in a URL for the end of the password, libpq only one before the first /.
        let at_ease = match text.split_once("://") {
            Some((_, rest)) => rest
                .split_once('/')
                .is_none_or(|(_, path)| !path.contains('@')),
            None => true,
        };
        if at_ease {
            same(ours, &theirs, text);
        }
    }
    let secret: String = text
        .chars()
        .map(|character| {
            if character.is_ascii_uppercase() {
                SECRET.chars().next().unwrap()
            } else {
                character
            }
        })
        .collect();
    if let Err(error) = connection_string(&secret) {
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }

    let values: Vec<&str> = text.split('\n').collect();
    if let [user, password, name, ..] = values[..]
        && [user, password, name]
            .iter()
            .all(|value| !value.is_empty() && !value.contains('\0'))
    {
        let pairs = format!(
            "user={} password = {} dbname={} host=h",
            quoted(user),
            quoted(password),
            quoted(name)
        );
        let url = format!(
            "postgres://{}:{}@h/{}",
            escaped(user),
            escaped(password),
            escaped(name)
        );
        for text in [pairs, url] {
            let (config, hosts, rest) =
                connection_string(&text).expect("what is written as it should be is read");
            assert_eq!(config.get_user(), Some(user));
            assert_eq!(config.get_password(), Some(password.as_bytes()));
            assert_eq!(config.get_dbname(), Some(name));
            assert_eq!(hosts, ["h:5432"]);
            assert!(rest.contains("Prefer"));
        }
    }
});
