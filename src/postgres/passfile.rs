//! The password file of libpq, `.pgpass`: lines of `host:port:database:user:password`. The first line that matches
//! counts.

use std::{fs, io, path::Path};

use crate::postgres::password::Login;

/// The password in the file, if the file has one. Blocks.
///
/// A missing file gives no password. A file that others than its owner may read is ignored with a warning. The group
/// may read a file of root, because systemd and Kubernetes hand over secrets in such files. (libpq allows that only for
/// keys.)
pub(crate) fn read(path: &Path, login: &Login) -> Option<Vec<u8>> {
    match text(path) {
        Ok(text) => find(&text?, login),
        Err(problem) => {
            tracing::warn!(path = %path.display(), problem, "the password file is not used");
            None
        }
    }
}

/// The content of the file, if it exists; otherwise the reason to ignore it.
fn text(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_file() {
        return Err("it is not a plain file".to_owned());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let wider = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        if metadata.mode() & wider != 0 {
            return Err(
                "others than its owner may read or change it; run chmod 0600 on it".to_owned(),
            );
        }
    }
    fs::read(path).map(Some).map_err(|error| error.to_string())
}

/// The password of the first line that matches. `None` if that password is empty.
pub(crate) fn find(text: &[u8], login: &Login) -> Option<Vec<u8>> {
    let port = login.port.to_string();
    let wanted = [&login.host, &port, &login.database, &login.user];
    let mut lines = text.split(|byte| *byte == b'\n');
    let found = lines.find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") {
            return None;
        }
        let mut rest = line;
        for wanted in wanted {
            let (field, after) = field(rest)?;
            if field.raw != b"*" && field.value != wanted.as_bytes() {
                return None;
            }
            rest = after;
        }
        // As in libpq, the password too ends at an unescaped colon.
        Some(unescape(rest).0)
    });
    found.filter(|password| !password.is_empty())
}

struct Field<'a> {
    raw: &'a [u8],
    value: Vec<u8>,
}

/// The field before the next unescaped colon, and what follows the colon. `None` without a colon.
fn field(text: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let (value, length) = unescape(text);
    let after = text.get(length + 1..)?;
    let raw = text.get(..length)?;
    Some((Field { raw, value }, after))
}

/// The field up to the next unescaped colon, and its length in the file.
fn unescape(text: &[u8]) -> (Vec<u8>, usize) {
    let mut value = Vec::with_capacity(text.len());
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b':' => return (value, at),
            b'\\' => value.push(bytes.next().map_or(b'\\', |(_, escaped)| *escaped)),
            byte => value.push(*byte),
        }
    }
    (value, text.len())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    fn found(text: &str) -> Option<String> {
        let login = Login {
            host: "db:1".to_owned(),
            port: 5433,
            database: "odds".to_owned(),
            user: r"o\d".to_owned(),
        };
        find(text.as_bytes(), &login).map(|password| String::from_utf8(password).unwrap())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        for (text, password) in [
            ("", None),
            (r"db\:1:5433:odds:o\\d:secret", Some("secret")),
            ("*:*:*:*:se\\:cr\\\\et\r\n", Some(r"se:cr\et")),
            ("*:*:*:*:secret:comment", Some("secret")),
            (
                "*:5432:*:*:no\n#*:*:*:*:no\n\n*:5433:*:*:yes\n*:*:*:*:late",
                Some("yes"),
            ),
            ("db:1:5433:odds:secret", None),
            ("*:*:odd:*:no\n*:*:*:o*:no\n\\*:*:*:*:no", None),
            ("*:*:*:*", None),
            ("*:*:*:*:", None),
            ("*:*:*:*:\n*:*:*:*:next", None),
            ("\\", None),
        ] {
            assert_eq!(found(text).as_deref(), password, "{text}");
        }
    }

    fn escaped(value: &str) -> String {
        value
            .chars()
            .flat_map(|character| ['\\', character])
            .collect()
    }

    /// A properly escaped line gives its password to its own login and to no other. Earlier lines make no difference,
    /// unless one of them matches.
    fn gives_its_password_to_its_login_only(
        before: &str,
        [host, database, user, secret]: [&str; 4],
    ) {
        let find = |text: &str, port, user: &str| {
            let login = Login {
                host: host.to_owned(),
                port,
                database: database.to_owned(),
                user: user.to_owned(),
            };
            find(text.as_bytes(), &login)
        };
        let line = format!(
            "{}:5433:{}:{}:{}",
            escaped(host),
            escaped(database),
            escaped(user),
            escaped(secret)
        );
        let expected = (!secret.is_empty()).then(|| secret.as_bytes().to_vec());
        assert_eq!(find(&line, 5433, user), expected, "{line}");
        assert_eq!(find(&line, 5433, &format!("{user}x")), None, "{line}");
        assert_eq!(find(&format!("#{line}"), 5433, user), None, "{line}");
        assert_eq!(find(&line, 5434, user), None, "{line}");
        // Earlier lines may match only if they begin with the host's name, a backslash or a star.
        let fits =
            |line: &str| line.starts_with('*') || line.starts_with('\\') || line.starts_with(host);
        if !before.lines().chain([before]).any(fits) {
            let text = format!("{before}\n{line}\n*:*:*:*:late");
            assert_eq!(find(&text, 5433, user), expected, "{text}");
        }
    }

    #[test]
    fn a_line_after_others_gives_its_password() {
        let before = "#x\nother:*:a\\:b:*:p";
        gives_its_password_to_its_login_only(before, ["host", "odds", "user", r"se:cr\et"]);
    }

    proptest! {
        #[test]
        fn any_line_gives_its_password_to_its_login_only(
            before in vec(prop_oneof![
                "[a-z:*#\\\\\r]{0,12}",
                ".{0,12}",
                select(vec!["other:*:*:*:p", "other", "#host:*:*:*:p", ":5433:::", ""]).prop_map(str::to_owned),
            ], 0..4),
            [host, database, user] in prop::array::uniform3(prop_oneof!["[*]", "[a-z0-9.:*#\\\\]{1,8}", "[^\n]{0,8}"]),
            // As in libpq, a carriage return at the end of a line is not part of the password.
            secret in prop_oneof!["[a-z:*#\\\\]{0,8}", "([^\n]{0,8}[^\n\r])?"],
        ) {
            gives_its_password_to_its_login_only(&before.join("\n"), [&host, &database, &user, &secret]);
        }

        #[test]
        fn any_bytes_can_be_searched(text in vec(any::<u8>(), 0..60)) {
            find(&text, &Login::default());
        }
    }
}
