//! Names and constants in SQL.

/// A name, quoted for SQL.
///
/// ```
/// assert_eq!(oddscache::sql::quote("my \"odds\""), "\"my \"\"odds\"\"\"");
/// ```
#[must_use]
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A string constant for SQL, whatever `standard_conforming_strings` is.
///
/// ```
/// assert_eq!(oddscache::sql::literal("it's"), "'it''s'");
/// ```
#[must_use]
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
