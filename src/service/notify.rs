//! Tells the service manager how it goes, by systemd's protocol: a datagram of lines to the socket that it names in the
//! environment. Where it names none, nobody is told.
//!
//! | line | when |
//! |---|---|
//! | `READY=1` | once the cache is warm |
//! | `EXTEND_TIMEOUT_USEC=` | before that, while the follower makes progress: a database that is away is waited for |
//! | `STATUS=` | what the cache is doing, when that changes |
//! | `WATCHDOG=1` | thrice in the time that the manager grants, while the follower makes progress (see [`Health::alive`]) |
//! | `STOPPING=1` | when the end was asked for |

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

use super::health::Health;

/// How often the follower's progress is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How much longer the start may take, told with each look.
const EXTENSION: Duration = Duration::from_secs(60);

/// The manager's socket, if there is one.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Within which time it must hear from us.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    pub(crate) fn from_environment() -> Notifier {
        let socket = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let socket = socket.and_then(|path| {
            open(&path)
                .inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; the service manager is told nothing"))
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

    fn tell(&self, lines: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(lines.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager could not be told");
        }
    }

    /// The end was asked for.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=ending\n");
    }

    /// Tells until it is dropped.
    pub(crate) async fn run(&self, cache: &OddsCache, health: &Health) -> Infallible {
        let granted = self.watchdog.map(|granted| granted / 3);
        let mut ticks = interval(granted.map_or(LOOK, |granted| granted.min(LOOK)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_ready, mut status, mut told_at) = (false, String::new(), None::<Instant>);
        let mut was_alive = true;
        loop {
            ticks.tick().await;
            let mut lines = String::new();
            let alive = health.alive(cache);
            if let (Err(error), true) = (&alive, was_alive) {
                tracing::error!(
                    error,
                    "the follower is stuck; the watchdog hears no more of it"
                );
            }
            was_alive = alive.is_ok();
            if !is_ready && cache.is_warm() {
                is_ready = true;
                lines.push_str("READY=1\n");
            }
            if !is_ready && was_alive {
                lines.push_str(&format!("EXTEND_TIMEOUT_USEC={}\n", EXTENSION.as_micros()));
            }
            let now = alive.err().unwrap_or_else(|| describe(cache));
            if now != status {
                lines.push_str(&format!("STATUS={}\n", one_line(&now)));
                status = now;
            }
            let due =
                granted.is_some_and(|granted| told_at.is_none_or(|told| told.elapsed() >= granted));
            if due && was_alive {
                lines.push_str("WATCHDOG=1\n");
                told_at = Some(Instant::now());
            }
            if !lines.is_empty() {
                self.tell(&lines);
            }
        }
    }
}

fn open(path: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold us up.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

fn describe(cache: &OddsCache) -> String {
    format!("{}; {} events", cache.status(), cache.view().len())
}

/// A line break would begin another line of the protocol.
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

    #[tokio::test]
    async fn an_abstract_socket_is_told_too() {
        let name = format!("oddscache-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier {
            socket: Some(open(OsStr::new(&format!("@{name}"))).unwrap()),
            watchdog: None,
        };
        notifier.stopping();
        let mut buffer = [0; 100];
        let length = manager.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"STOPPING=1\n"));
    }
}
