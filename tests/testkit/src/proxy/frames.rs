//! Cuts what a server sends into the messages of its protocol: a type byte, a length, a body.

/// A whole NotificationResponse, or any number of other bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) notification: bool,
    pub(super) bytes: Vec<u8>,
}

/// Holds back notifications until they are complete. Passes all other bytes on at once.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The bytes of an incomplete head, or of an incomplete notification.
    held: Vec<u8>,
    /// The number of bytes still to come of a message that is no notification.
    rest: usize,
}

const HEAD: usize = 5;

impl Frames {
    pub(super) fn cut(&mut self, mut bytes: &[u8]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut plain = Vec::new();
        while !bytes.is_empty() {
            if self.rest > 0 {
                let (now, later) = bytes.split_at(self.rest.min(bytes.len()));
                plain.extend_from_slice(now);
                self.rest -= now.len();
                bytes = later;
                continue;
            }
            let needed = match self.held.as_slice() {
                [b'A', a, b, c, d, ..] => 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                _ => HEAD,
            };
            let (now, later) = bytes.split_at((needed - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            match self.held.as_slice() {
                [b'A', a, b, c, d, ..] => {
                    let whole = 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                    if self.held.len() == whole {
                        if !plain.is_empty() {
                            pieces.push(Piece {
                                notification: false,
                                bytes: std::mem::take(&mut plain),
                            });
                        }
                        pieces.push(Piece {
                            notification: true,
                            bytes: std::mem::take(&mut self.held),
                        });
                    }
                }
                [_, a, b, c, d] => {
                    self.rest = (u32::from_be_bytes([*a, *b, *c, *d]) as usize).saturating_sub(4);
                    plain.append(&mut self.held);
                }
                _ => {}
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece {
                notification: false,
                bytes: plain,
            });
        }
        pieces
    }
}

/// A NotificationResponse.
pub(super) fn notification(channel: &str, payload: &str) -> Vec<u8> {
    let length = (4 + 4 + channel.len() + 1 + payload.len() + 1) as u32;
    let mut message = vec![b'A'];
    message.extend(length.to_be_bytes());
    message.extend(7u32.to_be_bytes());
    message.extend(channel.bytes().chain([0]));
    message.extend(payload.bytes().chain([0]));
    message
}

/// For any sizes of pieces, all bytes pass in order and every notification is whole.
#[test]
fn messages_are_cut_wherever_the_pieces_end() {
    let message = |kind: u8, body: &[u8]| {
        let mut message = vec![kind];
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        message
    };
    let notice = notification("oddscache", "");
    let all = [
        message(b'D', b"row"),
        notice.clone(),
        notice.clone(),
        message(b'Z', b"I"),
    ]
    .concat();
    for size in 1..=all.len() {
        let mut frames = Frames::default();
        let (mut passed, mut notices) = (Vec::new(), 0);
        for bytes in all.chunks(size) {
            for piece in frames.cut(bytes) {
                notices += usize::from(piece.notification);
                assert!(!piece.notification || piece.bytes == notice);
                passed.extend(piece.bytes);
            }
        }
        assert_eq!((passed, notices), (all.clone(), 2), "pieces of {size}");
    }
}
