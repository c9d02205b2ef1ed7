//! The log on standard error: its filter, its form, and a bound for messages that repeat.
//!
//! # Invariants
//! - N1: a call site writes at most `--log-repeats` messages within [`INTERVAL`].
//! - N2: memory is one entry for each call site that has logged. A program has a fixed number of call sites.
//! - N3: all debug and trace messages are written, and all lines of the access log.
//!
//! For each call site, a further message says how many of its messages were held back. It comes 10 to 20 s later, or at
//! the end of the process.

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

use super::{
    options::log::{LogArguments, LogFormat},
    stderr,
};

/// The time over which repeats are counted.
const INTERVAL: Duration = Duration::from_secs(10);

/// The target of messages that say how often another one was repeated. They are never held back.
const REPEATS: &str = "oddscache::repeats";

/// The target of the access log. Its lines do not repeat a message, so they are never held back.
pub(crate) const ACCESS: &str = "oddscache::access";

/// SIGUSR2 adds this to the filter.
const MORE: &str = "oddscache=debug";

static LOGGING: OnceLock<Logging> = OnceLock::new();

/// The process's log.
#[derive(Debug)]
struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The filter of `--log`.
    usual: String,
    more: AtomicBool,
    repeats: Repeats,
}

/// Lets a warning through once a minute at most, for what goes wrong again and again.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(60);

    /// Whether to warn now. If so, the next minute begins.
    pub(crate) fn is_due(&self) -> bool {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = warned.is_none_or(|warned| warned.elapsed() >= Seldom::PAUSE);
        if is_due {
            *warned = Some(Instant::now());
        }
        is_due
    }
}

/// Dropped at the end of the process. It then logs how many messages were held back.
#[derive(Debug)]
pub(crate) struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(logging) = LOGGING.get() {
            logging.repeats.report(Duration::ZERO);
        }
    }
}

/// Starts the log, and what else takes spans and messages. Call it once.
pub(crate) fn start(
    arguments: &LogArguments,
    others: Vec<Box<dyn Layer<Registry> + Send + Sync>>,
) -> anyhow::Result<Flush> {
    let (filter, handle) = reload::Layer::new(filter(&arguments.log)?);
    let (wake, woken) = sync_channel(1);
    let logging = Logging {
        filter: handle,
        usual: arguments.log.clone(),
        more: AtomicBool::new(false),
        repeats: Repeats::new(arguments.log_repeats, wake),
    };
    if LOGGING.set(logging).is_err() {
        return Err(anyhow!("logging was started twice"));
    }
    let written = tracing_subscriber::fmt::layer()
        .with_writer(|| stderr::Messages)
        .with_ansi(io::stderr().is_terminal());
    let written: Box<dyn Layer<Registry> + Send + Sync> = match arguments.log_format {
        LogFormat::Text => written.boxed(),
        LogFormat::Json => written.json().boxed(),
    };
    let mut layers = others;
    layers.push(written.with_filter(filter.and(OfProcess)).boxed());
    tracing_subscriber::registry().with(layers).try_init()?;
    thread::Builder::new()
        .name("log-repeats".to_owned())
        .spawn(move || report_repeats(&woken))
        .context("starting the thread that reports repeats in the log")?;
    Ok(Flush)
}

fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| format!("--log {text}: not a log filter"))
}

/// Reports repeats. Sleeps while nothing is held back.
fn report_repeats(woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        thread::sleep(INTERVAL);
        if let Some(logging) = LOGGING.get() {
            logging.repeats.report(INTERVAL);
        }
    }
}

/// From now on SIGUSR2 turns detailed logging on, and the next SIGUSR2 turns it off. Needs a runtime. Before this call
/// the signal ends the process.
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
        true => filter(&format!("{},{MORE}", logging.usual))?,
        false => filter(&logging.usual)?,
    };
    logging.filter.reload(filter)?;
    logging.more.store(more, Ordering::Relaxed);
    match more {
        true => tracing::info!("SIGUSR2: logging {MORE} too, until the next SIGUSR2"),
        false => tracing::info!(filter = logging.usual, "SIGUSR2: logging as before"),
    }
    Ok(())
}

/// How many messages the filter let through since the process began, by level.
pub(crate) fn messages() -> impl Iterator<Item = (String, u64)> {
    let counts = LOGGING.get().map(|logging| &logging.repeats.counts);
    LEVELS.into_iter().map(move |level| {
        let count = counts.map_or(0, |counts| counts[index(level)].load(Ordering::Relaxed));
        (level.as_str().to_ascii_lowercase(), count)
    })
}

/// How many messages were held back since the process began.
pub(crate) fn held_back() -> u64 {
    let logging = LOGGING.get();
    logging.map_or(0, |logging| {
        logging.repeats.held_back.load(Ordering::Relaxed)
    })
}

/// In the order of [`index`].
const LEVELS: [Level; 5] = [
    Level::ERROR,
    Level::WARN,
    Level::INFO,
    Level::DEBUG,
    Level::TRACE,
];

fn index(level: Level) -> usize {
    LEVELS.iter().position(|known| *known == level).unwrap_or(0)
}

/// Asks the process's [`Repeats`] about each message.
#[derive(Debug)]
struct OfProcess;

impl<S: Subscriber> layer::Filter<S> for OfProcess {
    fn enabled(&self, _: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        // Not `always`, because tracing would then not ask about each message.
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
    /// The most messages of a call site within an interval. 0 means no limit.
    most: u32,
    /// Each message locks it for a moment.
    sites: Mutex<HashMap<Identifier, Site>>,
    wake: SyncSender<()>,
    counts: [AtomicU64; LEVELS.len()],
    held_back: AtomicU64,
}

/// One place in a program that logs.
#[derive(Debug)]
struct Site {
    level: Level,
    /// When the current interval began.
    begun: Instant,
    /// Messages in the current interval.
    count: u32,
    /// How many messages are held back and not reported yet, and when the first of them came.
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
        if self.most == 0 || level > Level::INFO || matches!(metadata.target(), REPEATS | ACCESS) {
            return true;
        }
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
            // A full channel means that the thread is awake already.
            let _ = self.wake.try_send(());
        }
        !repeats
    }

    /// Logs how many messages each site held back, if the first of them came at least this long ago.
    fn report(&self, ago: Duration) {
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
        // Log after unlocking the sites, because each of these messages locks them.
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
    /// Counts a message. Returns whether to hold it back.
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
