//! Settings without their secrets.

/// Settings that are secrets as a whole.
const SECRETS: [&str; 4] = ["token", "relay-password", "relay-token", "relay-nkey"];

/// The value with its secret hidden; `None` if it holds none. Connection strings are read as the library reads them.
pub(crate) fn hidden(key: &str, value: &str) -> Option<String> {
    match key {
        key if SECRETS.contains(&key) => Some("***".to_owned()),
        "relay-to" | "relay-from" => value.contains('@').then(|| "***".to_owned()),
        "otlp-endpoint" => value.contains(['@', '?']).then(|| "***".to_owned()),
        key if key.ends_with("-url") => oddscache::without_password(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_and_nothing_else() {
        for (value, shown) in [
            (
                "postgres://u:secret@h:5432/d?sslmode=require",
                "dbname=d host=h password=*** port=5432 sslmode=require user=u",
            ),
            (
                "postgres://h/d?user=u&pass%77ord=secret",
                "dbname=d host=h password=*** user=u",
            ),
            (
                "host=h password = 'se cr\\'et' user=u dbname='a b'",
                "dbname='a b' host=h password=*** user=u",
            ),
            ("password=se\\ cret", "password=***"),
            // If a text cannot be parsed, any part of it may be a secret.
            ("postgresql://u:se@cret:@h/d", "***"),
            ("postgres://u:secret/?@h", "***"),
            ("postgres://u:secret/d", "***"),
            ("password='secret", "***"),
            ("secret", "***"),
            ("ftp://u:secret@h", "***"),
        ] {
            let found = hidden("database-url", value);
            assert_eq!(found.as_deref(), Some(shown), "{value}");
        }
        for plain in [
            "postgres://u@h/d",
            "postgres://h/d?sslmode=require",
            "host=/run/postgresql  user=u dbname='a b'",
        ] {
            assert_eq!(hidden("listen-url", plain), None, "{plain}");
        }
        for secret in SECRETS {
            assert_eq!(hidden(secret, "x").as_deref(), Some("***"));
        }
        for relay in ["relay-to", "relay-from", "otlp-endpoint"] {
            assert_eq!(hidden(relay, "nats://u:secret@h").as_deref(), Some("***"));
            assert_eq!(hidden(relay, "nats://h:4222"), None);
        }
        assert_eq!(hidden("listen", "password=x"), None);
    }
}
