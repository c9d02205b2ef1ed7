use std::{
    convert::Infallible,
    fmt,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::time::{sleep, timeout};

use crate::{
    Config, Error, Status, View,
    backoff::Backoff,
    bell::Bell,
    catalog::Names,
    connection::Connection,
    draft::Draft,
    feed::Reload,
    pace::Pace,
    preflight::{self, Feed},
    publish::{Publisher, add},
    read::{self, Begun, Done, Known, Step},
    stats::WarmupStats,
};

/// Keeps a cache equal to the database: warms it up, then reads what changed whenever the bell rings or the poll interval
/// has passed, and publishes it. The loop is [`Follower::run`].
///
/// It is in one of four states, each of which names the state that trouble leads to:
///
/// | state | does | trouble leads to |
/// |---|---|---|
/// | connecting | opens the reading connection, checks tables, rights and triggers, LISTENs | pause |
/// | warming up | reads everything in one transaction; the old view stays readable | pause |
/// | following | waits, reads what changed, publishes | a lock, a conflict: reads again from the same cursor; all else: pause |
/// | pause | waits, longer each time, with jitter | connecting |
pub struct Follower {
    config: Config,
    names: Names,
    publisher: Publisher,
    draft: Draft,
    bell: Option<Bell>,
    epoch: u64,
    pace: Pace,
    last_warmup: Option<WarmupStats>,
    troubled_since: Option<DateTime<Utc>>,
    ended: bool,
}

impl Follower {
    pub(crate) fn new(config: Config, publisher: Publisher) -> Follower {
        let names = Names::new(&config);
        let draft = Draft::default();
        Follower {
            config,
            names,
            publisher,
            draft,
            bell: None,
            epoch: 0,
            pace: Pace::default(),
            last_warmup: None,
            troubled_since: None,
            ended: false,
        }
    }

    /// Follows until it is dropped, or until an error *before the first warmup* that waiting will not mend: a refused
    /// login, a missing table, trigger or right, another feed version; also an unreachable database, if
    /// [`Config::retry_unreachable`] is off. After the first warmup it survives everything: the view ages meanwhile.
    ///
    /// Needs a tokio runtime with time and I/O enabled. Dropping the future is a clean stop at any point: it closes the
    /// connections, and published views stay readable.
    ///
    /// # Errors
    /// The error that ended it; [`OddsCache::ready`](crate::OddsCache::ready) returns the same.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::for_connections();
        loop {
            let Err(error) = self.follow(&mut backoff).await;
            add(&self.publisher.counters().failures, 1);
            if self.epoch == 0 && !(error.is_transient() && self.config.retry_unreachable) {
                tracing::error!(%error, "the cache cannot be warmed up");
                self.ended = true;
                self.publisher.set_status(Status::Ended {
                    error: Some(error.clone()),
                });
                return Err(error);
            }
            let pause = backoff.next();
            tracing::warn!(%error, pause_ms = millis(pause), "not following; trying again after a pause");
            self.troubled(error);
            sleep(pause).await;
        }
    }

    /// From connecting to the trouble that ends it.
    async fn follow(&mut self, backoff: &mut Backoff) -> Result<Infallible, Error> {
        let reader = Connection::open(&self.config).await?;
        let bound = self.config.read_timeout;
        let feed = within(
            bound,
            CHECKING,
            preflight::check_first(&reader.client, &self.config),
        )
        .await?;
        // Before the first snapshot, so that no change after it goes without a bell.
        self.hang_bell(feed.as_ref())?;
        let reason = if self.epoch == 0 {
            Reload::First
        } else {
            Reload::ConnectionLost
        };
        let mut known = self.warm_up(&reader, reason).await?;
        *backoff = Backoff::for_connections();
        let mut locks = Backoff::for_locks();
        loop {
            let belled = self.wait().await;
            match self.catch_up(&reader, &mut known, belled).await {
                Ok(()) => locks = Backoff::for_locks(),
                Err(error) => self.give_way(&reader, &mut locks, error).await?,
            }
        }
    }

    /// Listens to the channel that the feed names.
    fn hang_bell(&mut self, feed: Option<&Feed>) -> Result<(), Error> {
        let feed = feed.ok_or_else(|| {
            Error::Config("a follower needs the change feed (need_feed)".to_owned())
        })?;
        if self
            .bell
            .as_ref()
            .is_none_or(|bell| bell.channel() != feed.channel)
        {
            self.bell = Some(Bell::spawn(self.config.clone(), feed.channel.clone()));
        }
        Ok(())
    }

    /// Reads everything into the next epoch.
    async fn warm_up(&mut self, reader: &Connection, reason: Reload) -> Result<Known, Error> {
        self.announce(&reason);
        let mut backoff = Backoff::for_locks();
        loop {
            let begin = read::begin(&reader.client, &self.config, &self.names);
            let warm = match within(self.config.read_timeout, BEGINNING, begin).await {
                Ok(begun) => self.read_everything(reader, reason.clone(), begun).await,
                Err(error) => Err(error),
            };
            match warm {
                Ok(known) => return Ok(known),
                Err(error) => self.give_way(reader, &mut backoff, error).await?,
            }
        }
    }

    async fn read_everything(
        &mut self,
        reader: &Connection,
        reason: Reload,
        begun: Begun,
    ) -> Result<Known, Error> {
        let epoch = self.epoch + u64::from(reason.is_new_epoch());
        let read = read::everything(
            &reader.client,
            &self.config,
            &self.names,
            &mut self.draft,
            reason,
            begun,
        );
        let (known, done) = within(self.config.warmup_timeout, WARMING_UP, read).await?;
        self.epoch = epoch;
        self.publish(&known, done);
        Ok(known)
    }

    /// Waits for the bell, or for the poll interval to pass; says whether it was the bell.
    async fn wait(&mut self) -> bool {
        let interval = self.config.poll_interval;
        sleep(self.pace.rest(interval)).await;
        let Some(bell) = &self.bell else {
            sleep(interval).await;
            return false;
        };
        let belled = timeout(interval, bell.rung()).await.is_ok();
        add(&self.publisher.counters().bells, usize::from(belled));
        belled
    }

    /// One read of what changed since the last one.
    async fn catch_up(
        &mut self,
        reader: &Connection,
        known: &mut Known,
        belled: bool,
    ) -> Result<(), Error> {
        let changes = read::changes(
            &reader.client,
            &self.config,
            &self.names,
            &mut self.draft,
            known,
        );
        match within(self.config.read_timeout, READING, changes).await? {
            Step::Done(done) => {
                self.pace.read(belled, done.log_rows > 0);
                self.publish(known, done);
            }
            Step::Reload(reason, begun) => {
                self.announce(&reason);
                let begun_at = Instant::now();
                *known = self.read_everything(reader, reason, *begun).await?;
                self.pace.reloaded(begun_at.elapsed());
                self.hang_bell(known.feed.as_ref())?;
            }
        }
        Ok(())
    }

    /// After a failed read: where a lock or a conflict was the matter, ends the transaction, waits a little, and lets the
    /// caller read again from the same cursor, for nothing was applied. All else is the end of this connection.
    async fn give_way(
        &mut self,
        reader: &Connection,
        backoff: &mut Backoff,
        error: Error,
    ) -> Result<(), Error> {
        let again = error.is_conflict() && !reader.is_closed();
        if !again {
            return Err(error);
        }
        add(&self.publisher.counters().failures, 1);
        let pause = backoff.next();
        tracing::info!(%error, pause_ms = millis(pause), "gave way; reading again after a pause");
        let rollback = async {
            reader
                .client
                .batch_execute("ROLLBACK")
                .await
                .map_err(Error::database("ending a read"))
        };
        within(self.config.read_timeout, READING, rollback).await?;
        self.troubled(error);
        sleep(pause).await;
        Ok(())
    }

    fn announce(&mut self, reason: &Reload) {
        if self.epoch == 0 {
            tracing::info!("warming up");
            self.publisher.set_status(Status::Warming);
        } else {
            tracing::info!(%reason, "reading everything; the old view stays readable");
            self.publisher.set_status(Status::Resyncing {
                reason: reason.to_string(),
            });
        }
    }

    fn troubled(&mut self, error: Error) {
        let since = *self.troubled_since.get_or_insert_with(Utc::now);
        self.publisher
            .set_status(Status::Disconnected { since, error });
    }

    fn publish(&mut self, known: &Known, done: Done) {
        let counters = self.publisher.counters();
        add(&counters.reads, 1);
        add(&counters.log_rows, done.log_rows);
        add(&counters.snapshots_read, done.snapshots_read);
        add(&counters.evicted_events, done.evicted);
        if let Some((reason, warmup)) = done.warmup {
            add(&counters.reloads, 1);
            let WarmupStats {
                events,
                snapshots,
                markets,
                memory_bytes,
                seconds,
            } = warmup;
            tracing::info!(%reason, events, snapshots, markets, memory_bytes, seconds, epoch = self.epoch, "warm");
            self.last_warmup = Some(warmup);
        }
        if done.evicted > 0 {
            tracing::debug!(events = done.evicted, window_start = %known.cut.window_start, "evicted");
        }
        if done.changed {
            let state = self.draft.state(
                known.cut.clone(),
                self.epoch,
                done.began,
                self.last_warmup.clone(),
            );
            self.publisher.publish(state);
        } else {
            self.publisher.prove(known.cut.clone(), done.began);
        }
        self.troubled_since = None;
        let listening = self.bell.as_ref().is_some_and(Bell::is_listening);
        self.publisher.set_status(if listening {
            Status::Live
        } else {
            Status::PollingOnly
        });
    }
}

const CHECKING: &str = "checking tables, rights and triggers";
const BEGINNING: &str = "beginning to read";
const READING: &str = "reading changes";
const WARMING_UP: &str = "warming up";

async fn within<T>(
    bound: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(bound, work).await.unwrap_or(Err(Error::TimedOut {
        doing,
        seconds: bound.as_secs(),
    }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the database once, without following it, and returns the view. Needs no change feed if
/// [`Config::need_feed`](crate::Config::need_feed) is off.
///
/// # Errors
/// Whatever [`Follower::run`] would end with; an unreachable database is not waited for.
pub async fn warm_up(config: Config) -> Result<View, Error> {
    let reader = Connection::open(&config).await?;
    within(
        config.read_timeout,
        CHECKING,
        preflight::check_first(&reader.client, &config),
    )
    .await?;
    let (shared, publisher) = Publisher::new(Status::Warming);
    let mut follower = Follower::new(config, publisher);
    follower.warm_up(&reader, Reload::First).await?;
    Ok(View(shared.load_full()))
}

impl Drop for Follower {
    fn drop(&mut self) {
        if !self.ended {
            self.publisher.set_status(Status::Ended { error: None });
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("config", &self.config)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}
