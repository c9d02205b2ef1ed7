//! Redis: a private server on a Unix socket, one connection, and JSON parsed into typed structs.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data;

/// A private server without persistence. Dropping it stops the server and deletes its files.
pub struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts the server. Fails with a message if there is no `redis-server`.
    pub fn start() -> Result<Server, String> {
        let builder = tempfile::Builder::new()
            .prefix("oddscache-redis-")
            .tempdir_in("/tmp");
        let directory = builder.map_err(|error| error.to_string())?;
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(directory.path().join("socket"))
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let child = child.map_err(|error| {
            format!("redis-server did not start ({error}); Debian: apt-get install redis-server")
        })?;
        Ok(Server { child, directory })
    }

    pub fn connect(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(self.directory.path().join("socket")) {
                Ok(stream) => return Client(BufReader::with_capacity(1 << 18, stream)),
                Err(error) if Instant::now() > deadline => {
                    panic!("redis-server does not answer: {error}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with the part of RESP that the benchmark needs.
pub struct Client(BufReader<UnixStream>);

pub fn version() -> String {
    let output = Command::new("redis-server").arg("--version").output();
    let bytes = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let version = text.split(' ').find_map(|word| word.strip_prefix("v="));
    version.unwrap_or("?").to_owned()
}

impl Client {
    fn send(&mut self, command: &[&[u8]]) {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            request.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            request.extend_from_slice(part);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        assert!(!line.starts_with('-'), "{line}");
        line.truncate(line.trim_end().len());
        line
    }

    /// Reads a bulk string. Empty if there is none.
    fn bulk(&mut self) -> Vec<u8> {
        let line = self.line();
        let length = line.strip_prefix('$').map(str::parse::<usize>);
        let Some(Ok(length)) = length else {
            return Vec::new();
        };
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).expect("a reply");
        bytes.truncate(length);
        bytes
    }

    fn get(&mut self, key: &str) -> Vec<u8> {
        self.send(&[b"GET", key.as_bytes()]);
        self.bulk()
    }

    fn mget(&mut self, keys: &[String]) -> Vec<Vec<u8>> {
        let mut command: Vec<&[u8]> = vec![b"MGET"];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        self.send(&command);
        let count = self.line()[1..].parse().expect("a count");
        (0..count).map(|_| self.bulk()).collect()
    }

    fn mset(&mut self, pairs: &[(String, Vec<u8>)]) {
        let mut command: Vec<&[u8]> = vec![b"MSET"];
        let parts = pairs
            .iter()
            .flat_map(|(key, value)| [key.as_bytes(), value]);
        command.extend(parts);
        self.send(&command);
        self.line();
    }

    fn used_memory(&mut self) -> f64 {
        self.send(&[b"INFO", b"memory"]);
        let text = String::from_utf8(self.bulk()).expect("text");
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix("used_memory:"));
        number.expect("used_memory").parse().expect("a number")
    }
}

#[derive(Serialize, Deserialize)]
struct Event {
    event_id: i64,
    kickoff: DateTime<Utc>,
    snapshots: Vec<Snapshot>,
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    snapshot_id: i64,
    bookmaker: String,
    captured_at: DateTime<Utc>,
    last_confirmed_at: DateTime<Utc>,
    markets: Vec<Market>,
}

#[derive(Serialize, Deserialize)]
struct Market {
    betpawa_market_id: String,
    betpawa_market_name: String,
    line: Option<f64>,
    handicap_type: Option<String>,
    handicap_home: Option<f64>,
    handicap_away: Option<f64>,
    outcomes: Vec<Outcome>,
    market_groups: Vec<Value>,
    unavailable_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, Deserialize)]
pub struct Outcome {
    pub name: String,
    pub odds: Option<f64>,
    pub is_active: bool,
}

impl Event {
    fn new(event_id: i64, generation: i64, inline_only: bool) -> Event {
        let snapshot = |offer: i64| {
            let made = data::snapshot(event_id, offer, generation);
            let markets = made.markets.into_iter();
            let shown = markets.filter(|market| {
                !inline_only || data::is_inline(&market.betpawa_market_id, market.line)
            });
            Snapshot {
                snapshot_id: made.snapshot_id,
                bookmaker: ["betpawa", "bet9ja", "sportybet"][offer as usize - 1].to_owned(),
                captured_at: made.captured_at,
                last_confirmed_at: made.captured_at,
                markets: shown.map(Market::new).collect(),
            }
        };
        Event {
            event_id,
            kickoff: data::kickoff(event_id),
            snapshots: (1..=3).map(snapshot).collect(),
        }
    }
}

impl Market {
    fn new(made: oddscache::MarketInput) -> Market {
        let outcome = |outcome: oddscache::OutcomeInput| Outcome {
            name: outcome.name,
            odds: outcome.odds,
            is_active: outcome.is_active,
        };
        Market {
            betpawa_market_id: made.betpawa_market_id,
            betpawa_market_name: made.betpawa_market_name,
            line: made.line,
            handicap_type: made.handicap_type,
            handicap_home: made.handicap_home,
            handicap_away: made.handicap_away,
            outcomes: made.outcomes.into_iter().map(outcome).collect(),
            market_groups: made.market_groups,
            unavailable_at: made.unavailable_at,
        }
    }
}

/// The two keys of an event: the whole event, and its entry in the list. So reading the list does not read whole
/// events.
fn pairs(event_id: i64, generation: i64) -> [(String, Vec<u8>); 2] {
    let json = |inline_only| {
        let event = Event::new(event_id, generation, inline_only);
        serde_json::to_vec(&event).expect("JSON")
    };
    [
        (format!("event:{event_id}"), json(false)),
        (format!("inline:{event_id}"), json(true)),
    ]
}

/// Fills the server. Returns the bytes per market that it uses.
pub fn fill(client: &mut Client) -> f64 {
    let before = client.used_memory();
    for event_id in 1..=data::EVENTS {
        client.mset(&pairs(event_id, 0));
    }
    (client.used_memory() - before) / data::ALL_MARKETS
}

fn parse(json: &[u8]) -> Event {
    serde_json::from_slice(json).expect("an event")
}

pub fn one(client: &mut Client, event_id: i64) -> usize {
    parse(&client.get(&format!("event:{event_id}")))
        .snapshots
        .len()
}

pub fn many(client: &mut Client, event_ids: &[i64]) -> usize {
    let keys: Vec<String> = event_ids.iter().map(|id| format!("event:{id}")).collect();
    let events = client.mget(&keys).into_iter();
    events.map(|json| parse(&json).snapshots.len()).sum()
}

/// The keys of one kind, for all events.
fn keys(kind: &str) -> Vec<String> {
    (1..=data::EVENTS)
        .map(|id| format!("{kind}:{id}"))
        .collect()
}

pub fn inline(client: &mut Client) -> f64 {
    let keys = keys("inline");
    let odds = |json: Vec<u8>| -> f64 {
        let snapshots = parse(&json).snapshots.into_iter();
        let markets = snapshots.flat_map(|snapshot| snapshot.markets);
        let outcomes = markets.flat_map(|market| market.outcomes);
        outcomes.filter_map(|outcome| outcome.odds).sum()
    };
    client.mget(&keys).into_iter().map(odds).sum()
}

/// Updates events with one MSET, so that no reader sees half of it. Returns when the JSON was ready to be sent.
pub fn update(client: &mut Client, round: i64) -> Instant {
    let pairs: Vec<(String, Vec<u8>)> = data::updated(round)
        .flat_map(|id| pairs(id, round))
        .collect();
    let begun = Instant::now();
    client.mset(&pairs);
    begun
}

/// Reads all events by one MGET while a writer sets them all by one MSET, again and again. Returns how many views
/// showed two generations, and how many views there were.
pub fn torn(server: &Server, span: Duration) -> (u64, u64) {
    let keys = keys("generation");
    let set = |client: &mut Client, generation: u64| {
        let value = generation.to_string().into_bytes();
        let pair = |key: &String| (key.clone(), value.clone());
        client.mset(&keys.iter().map(pair).collect::<Vec<_>>());
    };
    let mut reader = server.connect();
    set(&mut reader, 0);
    crate::measure::while_another(
        |generation| {
            thread_local!(static WRITER: std::cell::RefCell<Option<Client>> = const { std::cell::RefCell::new(None) });
            WRITER.with_borrow_mut(|writer| {
                set(writer.get_or_insert_with(|| server.connect()), generation)
            });
        },
        || {
            let begun = Instant::now();
            let (mut torn, mut views) = (0, 0);
            while begun.elapsed() < span {
                let mut found = reader.mget(&keys);
                found.dedup();
                views += 1;
                torn += u64::from(found.len() > 1);
            }
            (torn, views)
        },
    )
}
