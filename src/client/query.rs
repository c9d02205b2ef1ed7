//! What a request asks for.

use std::{fmt::Write, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};

/// Which events to ask for, and how fresh they must be. The default asks for everything, of any age.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Query {
    pairs: Vec<(&'static str, String)>,
    wait: Duration,
}

impl Query {
    /// Only a view that was proven current within this time; else [`Error::TooStale`](super::Error::TooStale). Rounded
    /// up to milliseconds.
    pub fn max_age(self, age: Duration) -> Query {
        let millis = age.as_nanos().div_ceil(1_000_000).min(999_999_999);
        self.with("max_age", format!("{millis}ms"))
    }

    /// Only a view that contains what transaction `xid` wrote: read-your-writes. `xid` is what `select
    /// pg_current_xact_id()` returned in that transaction. Waits for `timeout`, at most 30 s; then
    /// [`Error::NotShown`](super::Error::NotShown).
    pub fn wait_for(mut self, xid: u64, timeout: Duration) -> Query {
        self.wait = timeout.min(Duration::from_secs(30));
        let millis = self.wait.as_millis();
        self.with("wait_for", xid.to_string())
            .with("timeout", format!("{millis}ms"))
    }

    /// Only these events, as far as they are held; at most 5,000.
    pub fn ids(self, ids: impl IntoIterator<Item = i64>) -> Query {
        let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
        self.with("ids", ids.join(","))
    }

    /// Only events with a kickoff at or after this time.
    pub fn from(self, kickoff: DateTime<Utc>) -> Query {
        self.with("from", time(kickoff))
    }

    /// Only events with a kickoff before this time.
    pub fn to(self, kickoff: DateTime<Utc>) -> Query {
        self.with("to", time(kickoff))
    }

    /// Only this bookmaker's snapshots in `odds_snapshots`, and events that have one.
    pub fn bookmaker(self, id: i64) -> Query {
        self.with("bookmaker", id.to_string())
    }

    /// Only this competitor's snapshots, and events that have one. `betpawa` means all of `odds_snapshots`.
    pub fn source(self, name: &str) -> Query {
        self.with("source", name.to_owned())
    }

    /// Only this line of a market. For [`Client::history`](super::Client::history) alone.
    pub fn line(self, line: f64) -> Query {
        self.with("line", line.to_string())
    }

    /// The same for this market.
    pub(super) fn market(&self, betpawa_market_id: &str) -> Query {
        self.clone().with("market", betpawa_market_id.to_owned())
    }

    /// Sets a parameter anew.
    fn with(mut self, name: &'static str, value: String) -> Query {
        self.pairs.retain(|(known, _)| *known != name);
        self.pairs.push((name, value));
        self
    }

    /// The longest time that the service may wait before it answers.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// A page of the same events: at most `limit` after the place `after`, if one is given. A later page need not wait
    /// again.
    pub(super) fn page(&self, limit: usize, after: Option<&str>) -> Query {
        let mut page = self.clone().with("limit", limit.to_string());
        if let Some(after) = after {
            page.wait = Duration::ZERO;
            page.pairs
                .retain(|(name, _)| !matches!(*name, "wait_for" | "timeout"));
            page = page.with("after", after.to_owned());
        }
        page
    }

    /// The path with the query.
    pub(super) fn of(&self, path: &str) -> String {
        let mut target = path.to_owned();
        for (index, (name, value)) in self.pairs.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(name);
            target.push('=');
            for byte in value.bytes() {
                match byte {
                    b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' | b',' => {
                        target.push(char::from(byte));
                    }
                    // Writing to a text does not fail.
                    byte => drop(write!(target, "%{byte:02X}")),
                }
            }
        }
        target
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_written() {
        let query = Query::default()
            .ids([3, -1])
            .source("a&b é")
            .from(DateTime::UNIX_EPOCH)
            .max_age(Duration::from_micros(1500));
        let expected =
            "/v1/list?ids=3,-1&source=a%26b%20%C3%A9&from=1970-01-01T00%3A00%3A00Z&max_age=2ms";
        assert_eq!(query.of("/v1/list"), expected);
        assert_eq!(Query::default().of("/v1/list"), "/v1/list");
        let waiting = Query::default().wait_for(7, Duration::from_secs(60));
        assert_eq!(waiting.of("/"), "/?wait_for=7&timeout=30000ms");
        assert_eq!(waiting.wait(), Duration::from_secs(30));
        let next = waiting.page(10, Some("none.3"));
        assert_eq!(
            (next.of("/"), next.wait()),
            ("/?limit=10&after=none.3".to_owned(), Duration::ZERO)
        );
    }
}
