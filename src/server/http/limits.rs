//! How much of the HTTP server one client may take, and all clients together.

use std::{ops::RangeInclusive, time::Duration};

use clap::builder::RangedU64ValueParser;

/// The bounds of connections and answers. `api::query` bounds what one request may ask for (ids, waits).
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(next_help_heading = "Limits of the HTTP server")]
pub(crate) struct Limits {
    /// Connections that may be open at a time. To make room for a further one, the service closes a silent one. If
    /// there is none, the further one gets 503, except for /livez and /readyz. As many requests may be under way over
    /// HTTP/2
    #[arg(long, env = "ODDSCACHE_MOST_CONNECTIONS", default_value_t = Limits::MOST_CONNECTIONS, value_name = "COUNT", value_parser = within(1..=100_000))]
    pub(crate) most_connections: usize,
    /// Connections beyond these. Each gets one short answer. They give a health check time to send its request while
    /// other clients keep connecting
    #[arg(skip = Limits::MOST_BEYOND)]
    pub(crate) most_beyond: usize,
    /// Streams of /v1/changes that may be open at a time
    #[arg(long, env = "ODDSCACHE_MOST_STREAMS", default_value_t = Limits::MOST_STREAMS, value_name = "COUNT", value_parser = within(1..=100_000))]
    pub(crate) most_streams: usize,
    /// Bytes of a request's first line and headers; a longer one gets 431
    #[arg(long, env = "ODDSCACHE_MOST_HEAD_BYTES", default_value_t = Limits::MOST_HEAD_BYTES, value_name = "BYTES", value_parser = within(8192..=1_048_576))]
    pub(crate) most_head_bytes: usize,
    /// Bytes of a request's path and query; a longer one gets 414. 5,000 ids of ten digits take 55,000
    #[arg(long, env = "ODDSCACHE_MOST_TARGET_BYTES", default_value_t = Limits::MOST_TARGET_BYTES, value_name = "BYTES", value_parser = within(256..=65_000))]
    pub(crate) most_target_bytes: usize,
    /// How long a client may take to send a request's head, or to shake hands for TLS
    #[arg(long, env = "ODDSCACHE_HEAD_TIMEOUT", default_value = "10s", value_parser = time)]
    pub(crate) head_timeout: Duration,
    /// How long a connection without a request is kept open
    #[arg(long, env = "ODDSCACHE_IDLE_TIMEOUT", default_value = "75s", value_parser = time)]
    pub(crate) idle_timeout: Duration,
    /// How long an answer may take to begin. Later the client gets 503. Keep it above 30 s, the longest `timeout` of a
    /// request
    #[arg(long, env = "ODDSCACHE_REQUEST_TIMEOUT", default_value = "40s", value_parser = time)]
    pub(crate) request_timeout: Duration,
    /// The client is cut off if it takes nothing of a waiting answer for this long
    #[arg(long, env = "ODDSCACHE_STALL_TIMEOUT", default_value = "15s", value_parser = time)]
    pub(crate) stall_timeout: Duration,
    /// The client is cut off if it takes longer than this over one answer. A stream of changes has no such limit
    #[arg(long, env = "ODDSCACHE_ANSWER_TIMEOUT", default_value = "2m", value_parser = time)]
    pub(crate) answer_timeout: Duration,
    /// How long answers under way may take after SIGTERM or Ctrl-C
    #[arg(long, env = "ODDSCACHE_DRAIN", default_value = "5s", value_parser = time)]
    pub(crate) drain: Duration,
    /// How long to go on accepting connections after SIGTERM or Ctrl-C. /readyz answers 503 meanwhile, so that a load
    /// balancer notices
    #[arg(long, env = "ODDSCACHE_DRAIN_DELAY", default_value = "0s", value_parser = time_or_none)]
    pub(crate) drain_delay: Duration,
}

/// The permissions of a Unix socket: its owner and its group by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketMode(pub(crate) u32);

impl Default for SocketMode {
    fn default() -> SocketMode {
        SocketMode(0o660)
    }
}

impl std::str::FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<SocketMode, String> {
        let mode = u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777);
        let mode = mode.ok_or("permissions in octal, 660 for owner and group")?;
        Ok(SocketMode(mode))
    }
}

impl Limits {
    const MOST_CONNECTIONS: usize = 1024;
    pub(crate) const MOST_BEYOND: usize = 256;
    const MOST_STREAMS: usize = 256;
    const MOST_HEAD_BYTES: usize = 64 * 1024;
    const MOST_TARGET_BYTES: usize = 60_000;
    /// Connections of the operators' address. Its clients are few.
    pub(crate) const MOST_OF_OPERATORS: usize = 64;
    pub(crate) const MOST_OF_OPERATORS_BEYOND: usize = 16;

    /// The limits of the operators' address: the same, with fewer connections of its own. So readers cannot take those
    /// of a scrape.
    pub(crate) fn of_operators(&self) -> Limits {
        Limits {
            most_connections: self.most_connections.min(Limits::MOST_OF_OPERATORS),
            most_beyond: self.most_beyond.min(Limits::MOST_OF_OPERATORS_BEYOND),
            ..self.clone()
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            most_connections: Limits::MOST_CONNECTIONS,
            most_beyond: Limits::MOST_BEYOND,
            most_streams: Limits::MOST_STREAMS,
            most_head_bytes: Limits::MOST_HEAD_BYTES,
            most_target_bytes: Limits::MOST_TARGET_BYTES,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(40),
            stall_timeout: Duration::from_secs(15),
            answer_timeout: Duration::from_secs(120),
            drain: Duration::from_secs(5),
            drain_delay: Duration::ZERO,
        }
    }
}

fn within(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A day. A longer time is a mistaken unit.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn time_or_none(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= LONGEST {
        true => Ok(time),
        false => Err("at most a day".to_owned()),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match time_or_none(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        limits: Limits,
    }

    #[test]
    fn the_defaults_are_those_of_the_flags() {
        let parsed = Command::try_parse_from(["x"]).unwrap().limits;
        assert_eq!(parsed, Limits::default());
    }

    #[test]
    fn what_bounds_nothing_is_refused() {
        for wrong in [
            "--most-connections=0",
            "--most-connections=100001",
            "--most-head-bytes=100",
            "--idle-timeout=0s",
            "--drain=25h",
            "--drain=5",
        ] {
            assert!(Command::try_parse_from(["x", wrong]).is_err(), "{wrong}");
        }
        assert!(Command::try_parse_from(["x", "--drain-delay=0s"]).is_ok());
    }
}
