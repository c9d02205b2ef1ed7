use std::fmt;

#[cfg(feature = "nats")]
use crate::relay::subscribe::Subscriber;
use crate::{config::Config, error::Error, follow::DatabaseFollower, store::publish::Publisher};

/// Keeps a cache equal to the database, or to what a relay's publisher holds. Made by
/// [`OddsCache::connect`](crate::cache::OddsCache::connect): spawn [`Follower::run`].
///
/// It warms the cache up. Then, whenever a notification comes or the poll interval has passed, it reads what changed and
/// publishes it. With `Config::relay` it reads a state of the relay, and then each change, and makes no connection to the
/// database.
pub struct Follower(Source);

enum Source {
    Database(Box<DatabaseFollower>),
    #[cfg(feature = "nats")]
    Relay {
        subscriber: Box<Subscriber>,
        retry: bool,
    },
}

impl Follower {
    pub(crate) fn new(config: Config, publisher: Publisher) -> Follower {
        #[cfg(feature = "nats")]
        if let Some(relay) = config.relay {
            let subscriber = Box::new(Subscriber::new(relay, publisher));
            let retry = config.retry_unreachable;
            return Follower(Source::Relay { subscriber, retry });
        }
        let follower = DatabaseFollower::new(config, publisher);
        Follower(Source::Database(Box::new(follower)))
    }

    /// Follows until the future is dropped, or until an error *before the first warmup* that waiting does not resolve.
    /// Such errors are a refused login, a missing table, feed or right, and another feed version. An unreachable
    /// database ends it only if [`Config::retry_unreachable`] is off. So does any error of a relay.
    ///
    /// After the first warmup no error ends it: it tries again, and the view ages meanwhile.
    ///
    /// Needs a tokio runtime with time and I/O enabled. Decodes and applies rows on the thread that polls the future,
    /// in less than 1 µs for each market. The future may be dropped at any point. That closes the connections, and
    /// published views stay readable.
    ///
    /// # Errors
    /// The error that ended it. [`OddsCache::ready`](crate::cache::OddsCache::ready) returns the same one.
    pub async fn run(self) -> Result<(), Error> {
        match self.0 {
            Source::Database(follower) => follower.run().await,
            #[cfg(feature = "nats")]
            Source::Relay { subscriber, retry } => subscriber.run(retry).await,
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Database(follower) => follower.fmt(f),
            #[cfg(feature = "nats")]
            Source::Relay { .. } => f.debug_struct("Follower").finish_non_exhaustive(),
        }
    }
}
