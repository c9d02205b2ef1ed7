//! The events that `/v1/changes` sends.

use reqwest::Response;
use serde_json::Value;

use super::client::{Wrong, wrong};

#[derive(Debug)]
pub struct Event {
    pub name: String,
    pub id: String,
    data: String,
}

impl Event {
    /// Parses an event. `None` for a comment, which only keeps the connection alive.
    fn parse(text: &str) -> Option<Event> {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_owned())
        };
        Some(Event {
            name: field("event")?,
            id: field("id").unwrap_or_default(),
            data: field("data").unwrap_or_default(),
        })
    }

    pub fn data(&self) -> Result<Value, Wrong> {
        serde_json::from_str(&self.data).map_err(|error| wrong(&self.data, &error))
    }
}

/// Reads events from the body of a response.
#[derive(Debug)]
pub struct Events {
    answer: Response,
    text: Vec<u8>,
}

impl Events {
    pub fn of(answer: Response) -> Events {
        Events {
            answer,
            text: Vec::new(),
        }
    }

    /// The next event. `None` at the end of the stream.
    pub async fn next(&mut self) -> Result<Option<Event>, Wrong> {
        let mut looked = 0;
        loop {
            let mut pairs = self.text[looked..].windows(2);
            if let Some(end) = pairs.position(|pair| pair == b"\n\n") {
                let end = looked + end;
                let event = Event::parse(&String::from_utf8_lossy(&self.text[..end]));
                self.text.drain(..end + 2);
                looked = 0;
                if event.is_some() {
                    return Ok(event);
                }
                continue;
            }
            looked = self.text.len().saturating_sub(1);
            let piece = self.answer.chunk().await;
            match piece.map_err(|error| wrong("reading changes", &error.without_url()))? {
                Some(piece) => self.text.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}
