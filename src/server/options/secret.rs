//! Text of a flag or a variable that is never printed.

use std::fmt;

/// A token, or a connection string that may hold a password. The command line accepts any text for it, because an error
/// of the parser would print the text.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
