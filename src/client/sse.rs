//! Server-sent events, out of the pieces of an answer.

/// An event of a stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) data: String,
}

/// Splits pieces of a stream into events. It holds at most one event that has not ended, of at most `most` bytes.
#[derive(Debug)]
pub(super) struct Parser {
    bytes: Vec<u8>,
    /// The bytes before this have no end of an event.
    looked: usize,
    most: usize,
}

/// An event is longer than the parser may hold.
#[derive(Debug, PartialEq)]
pub(super) struct TooLong;

impl Parser {
    pub(super) fn new(most: usize) -> Parser {
        Parser {
            bytes: Vec::new(),
            looked: 0,
            most,
        }
    }

    /// Adds a piece. Take all events before the next one.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        if self.bytes.len() + piece.len() > self.most {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole event with a name. A comment, which only keeps the stream open, is none.
    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            // The service ends each line by one line feed.
            let rest = &self.bytes[self.looked..];
            let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") else {
                self.looked = self.bytes.len().saturating_sub(1);
                return None;
            };
            let end = self.looked + end;
            let event = Event::parse(&String::from_utf8_lossy(&self.bytes[..end]));
            self.bytes.drain(..end + 2);
            self.looked = 0;
            if !event.name.is_empty() {
                return Some(event);
            }
        }
    }
}

impl Event {
    fn parse(text: &str) -> Event {
        let mut event = Event::default();
        for line in text.split('\n') {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => value.clone_into(&mut event.name),
                "id" => value.clone_into(&mut event.id),
                "data" => event.data.push_str(value),
                _ => {}
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the network cuts the stream, the events are the same.
    #[test]
    fn events_are_read_from_any_pieces() {
        let text = ":\n\nevent: start\nid: a-1\ndata: {}\n\n:\n\nevent: change\nid: a-2\nlater: x\ndata: {\"a\": \"é: \"}\n\nevent: half";
        for size in 1..text.len() {
            let mut parser = Parser::new(100);
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size.min(60)) {
                parser.push(piece).unwrap();
                while let Some(event) = parser.next() {
                    found.push((event.name, event.id, event.data));
                }
            }
            let of = |name: &str, id: &str, data: &str| (name.into(), id.into(), data.into());
            let expected = [
                of("start", "a-1", "{}"),
                of("change", "a-2", "{\"a\": \"é: \"}"),
            ];
            assert_eq!(found, expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_not_held() {
        let mut parser = Parser::new(10);
        assert_eq!(parser.push(b"0123456789"), Ok(()));
        assert_eq!(parser.next(), None);
        assert_eq!(parser.push(b"0"), Err(TooLong));
    }
}
