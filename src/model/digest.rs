//! Digests of content: equal content has the same digest in every process and on every machine.

use twox_hash::XxHash3_128;

/// Collects content in one defined form, then computes its digest. Numbers are little endian. A text and a list come
/// after their length, so that different contents never collect the same bytes.
#[derive(Debug, Default)]
pub(crate) struct Content(Vec<u8>);

impl Content {
    pub(super) fn with_capacity(bytes: usize) -> Content {
        Content(Vec::with_capacity(bytes))
    }

    /// Forgets what was collected.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn word(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// Several numbers at once, which costs less than one after the other.
    pub(super) fn numbers<const COUNT: usize>(&mut self, numbers: [u64; COUNT]) {
        let bytes = numbers.map(u64::to_le_bytes);
        self.0.extend_from_slice(bytes.as_flattened());
    }

    pub(super) fn length(&mut self, length: usize) {
        // `usize` has at most 64 bits on every machine that Rust supports.
        self.number(length as u64);
    }

    pub(super) fn optional(&mut self, number: Option<u64>) {
        self.0.push(u8::from(number.is_some()));
        self.number(number.unwrap_or_default());
    }

    /// A text. A missing one differs from an empty one.
    pub(super) fn text(&mut self, text: Option<&str>) {
        match text {
            None => self.number(u64::MAX),
            Some(text) => {
                self.length(text.len());
                self.0.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Words, without their number.
    pub(super) fn words(&mut self, words: &[u32]) {
        let start = self.0.len();
        self.0.resize(start + size_of_val(words), 0);
        // Writing into place compiles to one copy. Adding word by word would check the capacity for each.
        if let Some(bytes) = self.0.get_mut(start..) {
            for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    pub(super) fn digest(&self) -> u128 {
        XxHash3_128::oneshot(&self.0)
    }

    /// Bytes requested from the allocator.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }
}

/// The two halves of a part's digest, the lower one first.
pub(super) fn halves(digest: u128) -> [u64; 2] {
    // The casts keep the lowest 64 bits, which are meant.
    [digest as u64, (digest >> 64) as u64]
}
