//! What is logged, to standard error: from which level on, in which form, and how often the same.
//!
//! | invariant | |
//! |---|---|
//! | N1 | of a call site at most so many messages are written within [`INTERVAL`]; how many more there were is written 10 to 20 s later, or at the end of the process |
//! | N2 | what is kept is one entry for each call site that has logged, of which a program has a fixed number |
//! | N3 | debug and trace messages are written all: whoever asks for them wants each |

use std::{
    collections::HashMap,
    fmt,
    io::{self, IsTerminal},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    level_filters::LevelFilter,
    subscriber::Interest,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::FilterExt,
    layer::{self, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};

use super::options::log::{LogArguments, LogFormat};

/// Repeats are counted over this.
const INTERVAL: Duration = Duration::from_secs(10);

/// Under which target it is said how often something was repeated. That is never held back.
const REPEATS: &str = "oddscache::repeats";

/// Added to the filter while SIGUSR2 asks for more.
const MORE: &str = "oddscache=debug";

static LOGGING: OnceLock<Logging> = OnceLock::new();

/// Of this process.
#[derive(Debug)]
struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The filter that was asked for.
    asked: String,
    more: AtomicBool,
    repeats: Repeats,
}

/// Writes what was held back when dropped: at the end of the process.
#[derive(Debug)]
pub(crate) struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(logging) = LOGGING.get() {
            logging.repeats.tell(Duration::ZERO);
        }
    }
}

/// Begins to log. Once a process.
pub(crate) fn start(arguments: &LogArguments) -> anyhow::Result<Flush> {
    let (filter, handle) = reload::Layer::new(filter(&arguments.log)?);
    let (wake, woken) = sync_channel(1);
    let logging = Logging {
        filter: handle,
        asked: arguments.log.clone(),
        more: AtomicBool::new(false),
        repeats: Repeats::new(arguments.log_repeats, wake),
    };
    if LOGGING.set(logging).is_err() {
        return Err(anyhow!("logging was started twice"));
    }
    let written = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let written: Box<dyn Layer<Registry> + Send + Sync> = match arguments.log_format {
        LogFormat::Text => written.boxed(),
        LogFormat::Json => written.json().boxed(),
    };
    let layer = written.with_filter(filter.and(OfProcess));
    tracing_subscriber::registry().with(layer).try_init()?;
    thread::Builder::new()
        .name("log-repeats".to_owned())
        .spawn(move || tell_of_repeats(&woken))
        .context("starting the thread that tells of repeats in the log")?;
    Ok(Flush)
}

fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| format!("--log {text}: not a log filter"))
}

/// Sleeps unless something was held back.
fn tell_of_repeats(woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        thread::sleep(INTERVAL);
        if let Some(logging) = LOGGING.get() {
            logging.repeats.tell(INTERVAL);
        }
    }
}

/// From now on SIGUSR2 makes the service log what it does in detail, and the next one as before. Must be called within a
/// runtime; before it, the signal ends the process.
pub(crate) fn change_on_signal() -> anyhow::Result<()> {
    let mut asked = signal(SignalKind::user_defined2()).context("waiting for SIGUSR2")?;
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            if let Err(error) = toggle() {
                tracing::error!(
                    error = format!("{error:#}"),
                    "SIGUSR2: the log level stays as it is"
                );
            }
        }
    });
    Ok(())
}

fn toggle() -> anyhow::Result<()> {
    let logging = LOGGING.get().context("logging was not started")?;
    let more = !logging.more.load(Ordering::Relaxed);
    let filter = match more {
        true => filter(&format!("{},{MORE}", logging.asked))?,
        false => filter(&logging.asked)?,
    };
    logging.filter.reload(filter)?;
    logging.more.store(more, Ordering::Relaxed);
    match more {
        true => tracing::info!("SIGUSR2: logging {MORE} too, until the next SIGUSR2"),
        false => tracing::info!(filter = logging.asked, "SIGUSR2: logging as before"),
    }
    Ok(())
}

/// How many messages there were that the filter lets through, by level, since the process began.
pub(crate) fn messages() -> [(&'static str, u64); 5] {
    let count = |index: usize| {
        let counts = LOGGING.get().map(|logging| &logging.repeats.counts);
        counts.map_or(0, |counts| counts[index].load(Ordering::Relaxed))
    };
    [
        ("error", count(0)),
        ("warn", count(1)),
        ("info", count(2)),
        ("debug", count(3)),
        ("trace", count(4)),
    ]
}

/// How many of them were not written one by one.
pub(crate) fn held_back() -> u64 {
    let logging = LOGGING.get();
    logging.map_or(0, |logging| {
        logging.repeats.held_back.load(Ordering::Relaxed)
    })
}

fn index(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

/// Lets through what the process's [`Repeats`] do.
#[derive(Debug)]
struct OfProcess;

impl<S: Subscriber> layer::Filter<S> for OfProcess {
    fn enabled(&self, _: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        // To be asked each time: what was always wanted must not be refused when it comes.
        Interest::sometimes()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &layer::Context<'_, S>) -> bool {
        let repeats = LOGGING.get().map(|logging| &logging.repeats);
        repeats.is_none_or(|repeats| repeats.lets_through(event))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        None
    }
}

/// Counts messages, and holds back those that repeat.
#[derive(Debug)]
struct Repeats {
    /// Of a call site within an interval; 0: any number.
    most: u32,
    /// Held for a moment at a time, by whoever logs.
    sites: Mutex<HashMap<Identifier, Site>>,
    wake: SyncSender<()>,
    counts: [AtomicU64; 5],
    held_back: AtomicU64,
}

/// One place in a program that logs.
#[derive(Debug)]
struct Site {
    level: Level,
    begun: Instant,
    /// Since then.
    count: u32,
    /// Held back, and not told of yet; and since when.
    held: u64,
    held_since: Instant,
    /// The first message that was held back.
    message: String,
}

impl Repeats {
    fn new(most: u32, wake: SyncSender<()>) -> Repeats {
        Repeats {
            most,
            sites: Mutex::default(),
            wake,
            counts: Default::default(),
            held_back: AtomicU64::new(0),
        }
    }

    fn lets_through(&self, event: &Event<'_>) -> bool {
        let (metadata, now) = (event.metadata(), Instant::now());
        let level = *metadata.level();
        self.counts[index(level)].fetch_add(1, Ordering::Relaxed);
        if self.most == 0 || level > Level::INFO || metadata.target() == REPEATS {
            return true;
        }
        // Nothing that holds it can panic halfway.
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let site = sites.entry(metadata.callsite()).or_insert_with(|| Site {
            level,
            begun: now,
            count: 0,
            held: 0,
            held_since: now,
            message: String::new(),
        });
        let repeats = site.repeats(now, self.most);
        if repeats {
            if site.held == 1 {
                site.message = message(event);
            }
            self.held_back.fetch_add(1, Ordering::Relaxed);
            // Full: it is awake already.
            let _ = self.wake.try_send(());
        }
        !repeats
    }

    /// Says of each site what it held back, if it began to so long ago.
    fn tell(&self, ago: Duration) {
        let now = Instant::now();
        let mut held = Vec::new();
        {
            let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
            for site in sites.values_mut().filter(|site| site.held > 0) {
                if now.saturating_duration_since(site.held_since) >= ago {
                    let times = std::mem::take(&mut site.held);
                    held.push((site.level, times, std::mem::take(&mut site.message)));
                } else {
                    let _ = self.wake.try_send(());
                }
            }
        }
        // Not while the sites are locked: each line comes back here.
        for (level, times, message) in held {
            match level {
                Level::ERROR => {
                    tracing::error!(target: REPEATS, repeated = times, "{message} … repeated {times} times");
                }
                Level::WARN => {
                    tracing::warn!(target: REPEATS, repeated = times, "{message} … repeated {times} times");
                }
                _ => {
                    tracing::info!(target: REPEATS, repeated = times, "{message} … repeated {times} times")
                }
            }
        }
    }
}

impl Site {
    /// Whether one more message is to be held back.
    fn repeats(&mut self, now: Instant, most: u32) -> bool {
        if now.saturating_duration_since(self.begun) >= INTERVAL {
            (self.begun, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        let repeats = self.count > most;
        if repeats && self.held == 0 {
            self.held_since = now;
        }
        self.held += u64::from(repeats);
        repeats
    }
}

/// The text of a message, without its fields.
fn message(event: &Event<'_>) -> String {
    #[derive(Default)]
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = Message::default();
    event.record(&mut message);
    message.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_written_in_an_interval_and_all_others_counted() {
        let begun = Instant::now();
        let mut site = Site {
            level: Level::WARN,
            begun,
            count: 0,
            held: 0,
            held_since: begun,
            message: String::new(),
        };
        let mut written = |seconds: f64, messages: u32| {
            let now = begun + Duration::from_secs_f64(seconds);
            let passed = (0..messages).filter(|_| !site.repeats(now, 3)).count();
            (passed, std::mem::take(&mut site.held))
        };
        assert_eq!(written(0.0, 2), (2, 0));
        assert_eq!(written(9.0, 5), (1, 4));
        assert_eq!(written(10.0, 4), (3, 1));
        assert_eq!(written(30.0, 3), (3, 0));
    }
}
