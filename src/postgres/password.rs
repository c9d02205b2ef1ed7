//! A password that a function returns for each new connection.

use std::{error::Error as StdError, fmt, sync::Arc};

use futures_util::future::BoxFuture;

use crate::error::with_causes;

/// The login that a password is for. See [`Config::password_with`](crate::config::Config::password_with).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Login {
    /// The host's name as the configuration has it; the directory of a Unix socket, `localhost` for the default ones.
    pub host: String,
    /// The port; of a Unix socket, the number in its name.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
}

type Asked = BoxFuture<'static, Result<String, Box<dyn StdError + Send + Sync>>>;

/// The user's function. Cheap to clone; its `Debug` shows nothing of it.
#[derive(Clone)]
pub(crate) struct PasswordSource(Arc<dyn Fn(Login) -> Asked + Send + Sync>);

impl PasswordSource {
    pub(crate) fn new<F, Fut, E>(ask: F) -> PasswordSource
    where
        F: Fn(Login) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        PasswordSource(Arc::new(move |login| {
            let asked = ask(login);
            Box::pin(async move { asked.await.map_err(Into::into) })
        }))
    }

    /// The password, or why there is none, with all causes.
    pub(crate) async fn ask(&self, login: Login) -> Result<String, String> {
        let asked = (self.0)(login).await;
        asked.map_err(|error| with_causes(&*error))
    }
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSource")
    }
}
