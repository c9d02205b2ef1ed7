//! The relay: where the NATS server is, and how to log in.

use std::path::PathBuf;

use clap::Args;
use oddscache::{Error, Relay};

use super::secret::Secret;

#[derive(Debug, Args)]
#[command(next_help_heading = "Relay")]
pub(crate) struct RelayArguments {
    /// Publish what this service holds to a relay: nats://host:4222, or several with commas between. tls:// requires TLS
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_TO",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "relay_from"
    )]
    relay_to: Option<Secret>,
    /// Follow a relay in place of a database
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_FROM",
        hide_env_values = true,
        value_name = "URL"
    )]
    relay_from: Option<Secret>,
    /// The relay's name, which its streams and subjects contain
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_NAME",
        default_value = "odds",
        value_name = "NAME"
    )]
    relay_name: String,
    /// User to log in to NATS as, with the password in ODDSCACHE_RELAY_PASSWORD
    #[arg(long, env = "ODDSCACHE_RELAY_USER", value_name = "NAME")]
    relay_user: Option<String>,
    /// The user's password. Give it by the environment, because other users can see arguments
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        requires = "relay_user"
    )]
    relay_password: Option<Secret>,
    /// Token to log in to NATS with
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    relay_token: Option<Secret>,
    /// Seed of the nkey to log in to NATS with
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_NKEY",
        hide_env_values = true,
        value_name = "SEED"
    )]
    relay_nkey: Option<Secret>,
    /// Credentials file to log in to NATS with
    #[arg(long, env = "ODDSCACHE_RELAY_CREDS", value_name = "FILE")]
    relay_creds: Option<PathBuf>,
    /// Root certificates to trust in place of those of the system, in a PEM file. Requires TLS
    #[arg(long, env = "ODDSCACHE_RELAY_CA", value_name = "FILE")]
    relay_ca: Option<PathBuf>,
    /// Client certificate for NATS, in a PEM file. Requires TLS
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_CERT",
        value_name = "FILE",
        requires = "relay_key"
    )]
    relay_cert: Option<PathBuf>,
    /// The client certificate's key, in a PEM file
    #[arg(
        long,
        env = "ODDSCACHE_RELAY_KEY",
        value_name = "FILE",
        requires = "relay_cert"
    )]
    relay_key: Option<PathBuf>,
}

impl RelayArguments {
    /// The relay to publish to.
    pub(crate) fn to(&self) -> Result<Option<Relay>, Error> {
        self.relay_to.as_ref().map(|url| self.at(url)).transpose()
    }

    /// The relay to follow.
    pub(crate) fn from(&self) -> Result<Option<Relay>, Error> {
        self.relay_from.as_ref().map(|url| self.at(url)).transpose()
    }

    fn at(&self, Secret(url): &Secret) -> Result<Relay, Error> {
        let mut relay = Relay::new(url)?.name(&self.relay_name)?;
        let ways = [
            self.relay_user.is_some(),
            self.relay_token.is_some(),
            self.relay_nkey.is_some(),
            self.relay_creds.is_some(),
        ];
        if ways.into_iter().filter(|given| *given).count() > 1 {
            return Err(Error::Config(
                "give one of --relay-user, --relay-token, --relay-nkey and --relay-creds"
                    .to_owned(),
            ));
        }
        if let Some(user) = &self.relay_user {
            let password = self.relay_password.as_ref();
            relay = relay.user_and_password(user, password.map_or("", |Secret(text)| text));
        }
        if let Some(Secret(token)) = &self.relay_token {
            relay = relay.token(token);
        }
        if let Some(Secret(seed)) = &self.relay_nkey {
            relay = relay.nkey(seed);
        }
        if let Some(path) = &self.relay_creds {
            relay = relay.credentials_file(path);
        }
        if let Some(path) = &self.relay_ca {
            relay = relay.root_certificates(path);
        }
        if let (Some(certificate), Some(key)) = (&self.relay_cert, &self.relay_key) {
            relay = relay.client_certificate(certificate, key);
        }
        Ok(relay)
    }
}
