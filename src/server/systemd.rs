//! Tells the service manager the service's state, by systemd's protocol: a datagram of lines to the socket that the
//! environment names. Does nothing if it names none.
//!
//! | line | when |
//! |---|---|
//! | `READY=1` | once the cache is warm |
//! | `EXTEND_TIMEOUT_USEC=` | before that, while the follower makes progress; waiting for the database is progress |
//! | `STATUS=` | what the cache is doing, when that changes |
//! | `WATCHDOG=1` | three times in the manager's interval, while the follower and all threads make progress |
//! | `STOPPING=1` | on SIGTERM or Ctrl-C |
//!
//! [`Health::alive`] says whether the follower makes progress. The crate `sd-notify` would replace only [`open`]. It
//! also blocks while the manager's socket is full, and the follower's runtime must not block.

use std::{
    convert::Infallible,
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

use oddscache::OddsCache;
use tokio::time::{MissedTickBehavior, interval};

use super::http::health::Health;

/// How often to look at the follower's progress.
const LOOK: Duration = Duration::from_secs(1);

/// Each message allows the start this much more time.
const EXTENSION: Duration = Duration::from_secs(60);

/// The manager's socket, if there is one.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// The manager must hear from us within this time.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(crate) fn from_environment() -> Notifier {
        let socket = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = socket.and_then(|path| {
            open(&path)
                .inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; the manager gets no messages"))
                .ok()
        });
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        Notifier {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// Sends lines. Returns false if that failed: the socket of a busy manager may be full.
    fn send(&self, lines: &str) -> bool {
        let Some((socket, address)) = &self.socket else {
            return true;
        };
        let sent = socket.send_to_addr(lines.as_bytes(), address);
        if let Err(error) = &sent {
            tracing::debug!(%error, "a message to the service manager could not be sent");
        }
        sent.is_ok()
    }

    /// Says that the service is ending.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=ending\n");
    }

    /// Keeps telling the manager until the future is dropped.
    pub(crate) async fn run(&self, cache: &OddsCache, health: &Health) -> Infallible {
        let feed_interval = self.feed_interval();
        let mut ticks = interval(feed_interval.map_or(LOOK, |interval| interval.min(LOOK)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut was_alive) = (Told::default(), true);
        loop {
            // The runtime's threads drive this timer. If all of them are blocked, the watchdog gets no messages.
            ticks.tick().await;
            let alive = health.alive(cache);
            if let (Err(error), true) = (&alive, was_alive) {
                tracing::error!(
                    error,
                    "the follower is stuck; the watchdog gets no more messages"
                );
            }
            was_alive = alive.is_ok();
            self.look(cache, alive, &mut told);
        }
    }

    /// How often to feed the watchdog.
    fn feed_interval(&self) -> Option<Duration> {
        self.watchdog.map(|granted| granted / 3)
    }

    /// Sends what is new or due. If that fails, the next call sends it.
    fn look(&self, cache: &OddsCache, alive: Result<(), String>, told: &mut Told) {
        let mut lines = String::new();
        let (is_alive, is_ready) = (alive.is_ok(), cache.is_warm());
        if !told.ready && is_ready {
            lines.push_str("READY=1\n");
        }
        if !is_ready && is_alive {
            lines.push_str(&format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros()));
        }
        let status = alive.err().unwrap_or_else(|| describe(cache));
        if told.status != status {
            lines.push_str(&format!("STATUS={}\n", one_line(&status)));
        }
        let due = self
            .feed_interval()
            .is_some_and(|granted| told.fed_at.is_none_or(|fed| fed.elapsed() >= granted));
        let feeds = due && is_alive;
        if feeds {
            lines.push_str("WATCHDOG=1\n");
        }
        if lines.is_empty() || !self.send(&lines) {
            return;
        }
        // Remember it only after it was sent. If sending fails, the next call tries again.
        told.ready |= is_ready;
        told.status = status;
        if feeds {
            told.fed_at = Some(Instant::now());
        }
    }
}

/// What the manager has been told.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    status: String,
    /// When the watchdog was fed last.
    fed_at: Option<Instant>,
}

fn open(path: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not block us.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

fn describe(cache: &OddsCache) -> String {
    format!("{}; {} events", cache.status(), cache.view().len())
}

/// Replaces control characters, because a line break would begin another line of the protocol.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_says_cannot_forge_a_line() {
        assert_eq!(one_line("a\nWATCHDOG=1\r\n"), "a WATCHDOG=1  ");
    }

    /// A manager's socket, and a notifier that sends to it.
    fn manager(name: &str, watchdog: Option<Duration>) -> (UnixDatagram, Notifier) {
        let name = format!("oddscache-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let socket = Some(open(OsStr::new(&format!("@{name}"))).unwrap());
        (manager, Notifier { socket, watchdog })
    }

    /// The next message; `None` if there is none within a second.
    fn hear(manager: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 1000];
        let length = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn an_abstract_socket_is_told_too() {
        let (manager, notifier) = manager("abstract", None);
        notifier.stopping();
        assert!(hear(&manager).unwrap().starts_with("STOPPING=1\n"));
    }

    #[test]
    fn what_a_busy_manager_could_not_hear_is_told_again() {
        let (manager, notifier) = manager("busy", Some(Duration::from_secs(3600)));
        let mut filling = 0;
        while notifier.send("X=1\n") {
            filling += 1;
        }
        let (cache, mut writer) = OddsCache::detached();
        writer.publish();
        let mut told = Told::default();
        notifier.look(&cache, Ok(()), &mut told);
        for _ in 0..filling {
            assert_eq!(hear(&manager).as_deref(), Some("X=1\n"));
        }
        for expected in [
            Some("READY=1\nSTATUS=detached; 0 events\nWATCHDOG=1\n"),
            None,
        ] {
            notifier.look(&cache, Ok(()), &mut told);
            assert_eq!(hear(&manager).as_deref(), expected);
        }
    }

    #[test]
    fn the_watchdog_hears_nothing_while_all_threads_are_blocked() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (manager, notifier) = manager("blocked", Some(Duration::from_millis(30)));
        let (begun, begins) = std::sync::mpsc::channel::<()>();
        let (unblock, blocked) = std::sync::mpsc::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::scope(|scope| {
            // As in the service, the notifier does not run on a worker thread.
            scope.spawn(|| {
                let (cache, mut writer) = OddsCache::detached();
                writer.publish();
                let health = Health::default();
                runtime.block_on(async {
                    tokio::select! {
                        never = notifier.run(&cache, &health) => match never {},
                        _ = ended => {}
                    }
                });
            });
            assert!(hear(&manager).unwrap().contains("WATCHDOG=1"));
            runtime.spawn(async move {
                begun.send(()).unwrap();
                // Blocks the worker thread until the sender is gone.
                let _ = blocked.recv();
            });
            begins.recv().unwrap();
            // Skip the messages from before.
            manager.set_nonblocking(true).unwrap();
            while hear(&manager).is_some() {}
            manager.set_nonblocking(false).unwrap();
            // One more tick may have been due.
            let late = hear(&manager).and_then(|_| hear(&manager));
            assert_eq!(late, None);
            drop(unblock);
            assert!(hear(&manager).unwrap().contains("WATCHDOG=1"));
            end.send(()).unwrap();
        });
    }
}
