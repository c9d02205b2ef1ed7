//! Quotes names and texts for SQL.

/// Quotes an identifier for SQL. Allocates.
///
/// ```
/// assert_eq!(oddscache::sql::quote("my \"odds\""), "\"my \"\"odds\"\"\"");
/// ```
#[must_use]
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Quotes a text as an SQL string constant. The result is right whatever `standard_conforming_strings` is. Allocates.
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
