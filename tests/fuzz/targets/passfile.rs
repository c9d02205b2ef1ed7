//! Password files: whatever stands in the lines before, a line written as it should be gives its password to whom it is for,
//! unless an earlier line fits; and to nobody else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oddscache::fuzzing::password;

fn escaped(value: &str) -> String {
    value
        .chars()
        .flat_map(|character| ['\\', character])
        .collect()
}

fuzz_target!(|text: &str| {
    let (junk, values) = text.rsplit_once("\n\n").unwrap_or(("", text));
    let values: Vec<&str> = values.split('\n').collect();
    let [host, database, user, secret, ..] = values[..] else {
        password(text.as_bytes(), "localhost", 5432, "odds", "oddscache");
        return;
    };
    if secret.ends_with('\r') {
        // The end of a line in some files: as in libpq, no password can end so.
        return;
    }
    let find = |text: &str, user: &str| password(text.as_bytes(), host, 5433, database, user);
    let line = format!(
        "{}:5433:{}:{}:{}",
        escaped(host),
        escaped(database),
        escaped(user),
        escaped(secret)
    );
    let expected = (!secret.is_empty()).then(|| secret.as_bytes().to_vec());
    assert_eq!(find(&line, user), expected);
    assert_eq!(find(&line, &format!("{user}x")), None);
    assert_eq!(find(&format!("#{line}"), user), None);
    assert_eq!(password(line.as_bytes(), host, 5434, database, user), None);
    // Only a line that begins with the host's name or a star can come first.
    let fits =
        |line: &str| line.starts_with('*') || line.starts_with('\\') || line.starts_with(host);
    if !junk.lines().chain([junk]).any(fits) {
        assert_eq!(
            find(&format!("{junk}\n{line}\n*:*:*:*:late"), user),
            expected
        );
    }
});
