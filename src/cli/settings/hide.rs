//! Settings without their secrets.

/// What stands in place of one.
pub(crate) const HIDDEN: &str = "***";

/// Settings that are a secret as a whole.
const SECRETS: [&str; 1] = ["token"];

pub(crate) fn holds_secret(key: &str, value: &str) -> bool {
    hidden(key, value).is_some()
}

/// The value with its secret hidden; `None` if it holds none. Rather too much is hidden than too little.
pub(crate) fn hidden(key: &str, value: &str) -> Option<String> {
    if value.is_empty() {
        return None;
    }
    if SECRETS.contains(&key) {
        return Some(HIDDEN.to_owned());
    }
    if !key.ends_with("-url") {
        return None;
    }
    let shown = match value.split_once("://") {
        Some((scheme @ ("postgres" | "postgresql" | "http" | "https"), rest)) => {
            format!("{scheme}://{}", url(rest))
        }
        _ => pairs(value).unwrap_or_else(|| HIDDEN.to_owned()),
    };
    (shown != value).then_some(shown)
}

/// What follows the scheme. Up to the last @ all may be a password.
fn url(rest: &str) -> String {
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    let user = user.map(|user| match user.split_once(':') {
        Some((user, _)) => format!("{user}:{HIDDEN}@"),
        None => format!("{user}@"),
    });
    let place = match place.split_once('?') {
        Some((place, query)) => {
            let shown: Vec<String> = query.split('&').map(parameter).collect();
            format!("{place}?{}", shown.join("&"))
        }
        None => place.to_owned(),
    };
    format!("{}{place}", user.unwrap_or_default())
}

fn parameter(text: &str) -> String {
    match text.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
        _ => text.to_owned(),
    }
}

/// Also a name that is written in another way than it need be.
fn is_secret(name: &str) -> bool {
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    !plain || name.contains("password")
}

/// `name=value` pairs as libpq has them; `None` if they are not.
fn pairs(text: &str) -> Option<String> {
    let (mut shown, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim();
        let value = after.trim_start();
        let end = match value.strip_prefix('\'') {
            Some(quoted) => 2 + end(quoted, |byte| byte == b'\'')?,
            None => end(value, |byte| byte.is_ascii_whitespace()).unwrap_or(value.len()),
        };
        let (value, more) = value.split_at_checked(end)?;
        shown.push(if is_secret(name) {
            format!("{name}={HIDDEN}")
        } else {
            format!("{name}={value}")
        });
        rest = more.trim_start();
    }
    let shown = shown.join(" ");
    // Where nothing is hidden it is shown as it was written.
    Some(if shown.contains(HIDDEN) {
        shown
    } else {
        text.to_owned()
    })
}

/// Where the value ends; a backslash takes the next byte with it.
fn end(value: &str, ends: impl Fn(u8) -> bool) -> Option<usize> {
    let bytes = value.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if ends(byte) => return Some(at),
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_and_nothing_else() {
        for (value, shown) in [
            (
                "postgres://u:secret@h:5432/d?sslmode=require",
                "postgres://u:***@h:5432/d?sslmode=require",
            ),
            ("postgresql://u:se@cret:@h/d", "postgresql://u:***@h/d"),
            ("postgres://u:secret/?@h", "postgres://u:***@h"),
            (
                "postgres://h/d?user=u&password=secret",
                "postgres://h/d?user=u&password=***",
            ),
            (
                "postgres://h/d?pass%77ord=secret",
                "postgres://h/d?pass%77ord=***",
            ),
            (
                "host=h password=secret user=u",
                "host=h password=*** user=u",
            ),
            (
                "host=h password = 'se cr\\'et' user=u",
                "host=h password=*** user=u",
            ),
            ("password=se\\ cret", "password=***"),
            ("password='secret", "***"),
            ("secret", "***"),
            ("ftp://u:secret@h", "***"),
        ] {
            assert_eq!(
                hidden("database-url", value).as_deref(),
                Some(shown),
                "{value}"
            );
        }
        for plain in [
            "postgres://u@h/d",
            "postgres://h/d?sslmode=require",
            "host=/run/postgresql  user=u dbname='a b'",
            "",
        ] {
            assert_eq!(hidden("bell-url", plain), None, "{plain}");
        }
        assert_eq!(hidden("token", "x").as_deref(), Some("***"));
        assert_eq!(hidden("listen", "password=x"), None);
    }
}
