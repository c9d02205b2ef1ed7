//! Who may ask: anybody, or only a client that sends one of the tokens.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use arc_swap::ArcSwapOption;
use axum::http::{HeaderMap, header::AUTHORIZATION};
use oddscache::Error;
use subtle::{Choice, ConstantTimeEq};

use crate::server::options::secret::Secret;

/// A token of fewer bytes can be guessed.
const FEWEST_BYTES: usize = 16;
/// A larger file is no file of tokens.
const MOST_FILE_BYTES: u64 = 64 * 1024;

/// Paths that need no token: the health checks, and the page, which asks its user for one.
fn is_free(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/") || path.starts_with("/page/")
}

/// A bearer token.
#[derive(Debug, Clone)]
pub(crate) struct Token(Secret);

impl Token {
    /// The token that a flag or its variable gives, if one of them is there.
    ///
    /// # Errors
    /// Says what a token must look like, and does not quote this one.
    pub(crate) fn given(secret: Option<&Secret>) -> Result<Option<Token>, Error> {
        secret
            .map(|Secret(text)| text.parse())
            .transpose()
            .map_err(|wrong: String| Error::Config(format!("--token or ODDSCACHE_TOKEN: {wrong}")))
    }

    /// The token, to send it.
    pub(crate) fn into_secret(self) -> Secret {
        self.0
    }
}

impl std::str::FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        let text = text.trim();
        if text.len() < FEWEST_BYTES {
            return Err(format!("a token has at least {FEWEST_BYTES} characters"));
        }
        // The characters that RFC 6750 allows in the header.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if !text.bytes().all(fits) {
            return Err(
                "a token has letters, digits and -._~+/= only, as `openssl rand -hex 32` makes one"
                    .to_owned(),
            );
        }
        Ok(Token(Secret(text.to_owned())))
    }
}

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Access to the HTTP server")]
pub(crate) struct AccessArguments {
    /// A bearer token that every request must send, except for /livez, /readyz and the page's own files. Give it by the
    /// environment or a file, because other users can see arguments
    #[arg(
        long,
        env = "ODDSCACHE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<Secret>,
    /// A file of tokens that only its owner may read: one per line, and each is accepted. SIGHUP reads it again
    #[arg(long, env = "ODDSCACHE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Cheap to clone. All clones see tokens that are read again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    arguments: AccessArguments,
    tokens: Arc<ArcSwapOption<Vec<Token>>>,
}

impl Access {
    /// # Errors
    /// Names the file that cannot be read, or the line that is no token.
    pub(crate) fn new(arguments: AccessArguments) -> anyhow::Result<Access> {
        let access = Access {
            arguments,
            tokens: Arc::default(),
        };
        access.read_again()?;
        Ok(access)
    }

    /// Whether requests need a token.
    pub(crate) fn is_restricted(&self) -> bool {
        self.tokens.load().is_some()
    }

    /// Reads the file again. If that fails, the old tokens stay in force.
    pub(crate) fn read_again(&self) -> anyhow::Result<()> {
        let token = Token::given(self.arguments.token.as_ref())?;
        let mut tokens: Vec<Token> = token.into_iter().collect();
        if let Some(path) = &self.arguments.token_file {
            tokens.extend(read(path).with_context(|| format!("--token-file {}", path.display()))?);
        }
        self.tokens
            .store((!tokens.is_empty()).then(|| Arc::new(tokens)));
        Ok(())
    }

    /// Whether to answer a request for `path` with these headers. Wrong tokens of one length all take the same time, so
    /// the time says nothing about the right one.
    pub(crate) fn allows(&self, path: &str, headers: &HeaderMap) -> bool {
        let tokens = self.tokens.load();
        let Some(tokens) = tokens.as_ref() else {
            return true;
        };
        is_free(path) || sent(headers).is_some_and(|sent| is_one_of(tokens, sent))
    }
}

/// The token in the header, after `Bearer`.
fn sent(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token.trim_ascii())
}

fn is_one_of(tokens: &[Token], sent: &[u8]) -> bool {
    let none = Choice::from(0);
    let found = tokens.iter().fold(none, |found, token| {
        found | token.0.0.as_bytes().ct_eq(sent)
    });
    found.into()
}

fn read(path: &Path) -> anyhow::Result<Vec<Token>> {
    let size = std::fs::metadata(path)?.len();
    ensure!(
        size <= MOST_FILE_BYTES,
        "{size} bytes: that is no file of tokens"
    );
    let text = std::fs::read_to_string(path)?;
    warn_if_open(path);
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let token = line.parse().map_err(anyhow::Error::msg);
            tokens.push(token.with_context(|| format!("line {}", number + 1))?);
        }
    }
    ensure!(
        !tokens.is_empty(),
        "there is no token in it: write one per line, as `openssl rand -hex 32` makes one"
    );
    Ok(tokens)
}

/// Warns if others than the owner and the group may read a secret. It does not refuse the file: a container often gets
/// its secrets as files that all may read, but only this process runs in it.
pub(crate) fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map(|file| file.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        tracing::warn!(path = %path.display(), "every user of this machine can read this secret: run chmod o= on it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tokens: &[&str]) -> Access {
        let access = Access::default();
        let tokens = tokens.iter().map(|token| token.parse().unwrap()).collect();
        access.tokens.store(Some(Arc::new(tokens)));
        access
    }

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn only_a_known_token_is_allowed() {
        let (one, two) = ("0123456789abcdef", "fedcba9876543210-._~+/=");
        let access = access(&[one, two]);
        for token in [one, two] {
            for value in [format!("Bearer {token}"), format!("bearer  {token} ")] {
                assert!(access.allows("/v1/events", &headers(&value)), "{value}");
            }
        }
        for wrong in [
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcdeX",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            one,
        ] {
            assert!(!access.allows("/v1/events", &headers(wrong)), "{wrong}");
        }
        assert!(!access.allows("/metrics", &HeaderMap::new()));
        assert!(!access.allows("/pages", &HeaderMap::new()));
        for free in ["/livez", "/readyz", "/", "/page/board.js"] {
            assert!(access.allows(free, &HeaderMap::new()), "{free}");
        }
        assert!(Access::default().allows("/metrics", &HeaderMap::new()));
    }

    #[test]
    fn a_token_is_never_printed() {
        let token: Token = "0123456789abcdef".parse().unwrap();
        assert_eq!(format!("{token:?}"), "Token(Secret)");
        for wrong in ["short", "with a space in it, and long"] {
            let error = wrong.parse::<Token>().unwrap_err();
            assert!(!error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn files_are_read_again_and_stay_what_they_were_if_that_fails() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = ("0123456789abcdef", "fedcba9876543210");
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        write(&format!("# of the board\n{one}\n\n"));
        let arguments = AccessArguments {
            token: None,
            token_file: Some(file.path().to_owned()),
        };
        let access = Access::new(arguments).unwrap();
        let allows = |token: &str| access.allows("/metrics", &headers(&format!("Bearer {token}")));
        assert!(allows(one) && !allows(two));
        write(&format!("{two}\n"));
        access.read_again().unwrap();
        assert!(!allows(one) && allows(two));
        for (text, word) in [("", "no token"), ("good0123456789abc\nb ad\n", "line 2")] {
            write(text);
            let error = format!("{:#}", access.read_again().unwrap_err());
            assert!(
                error.contains(word) && error.contains("--token-file"),
                "{error}"
            );
            assert!(allows(two));
        }
    }
}
