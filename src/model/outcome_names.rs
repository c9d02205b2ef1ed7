//! Packs the names of a market's outcomes into one text. Snapshots share it, one comparison covers all names, and
//! reading needs no pointer per name.
//!
//! For each outcome the text holds a length and the name. If the outcome has an `extra`, a second length and the text
//! of the `extra` follow. The lowest bit of the first length says whether they do. The last character says whether the
//! whole text is [`plain`](Names::plain).
//!
//! A length is written as characters below 0x80, so the whole is valid UTF-8 and its parts can be borrowed as `str`.
//! Each character holds six bits, the lowest first; all but the last one have 0x40 set.

/// Packs the names of one market at a time. Reuses its buffer.
#[derive(Debug, Default)]
pub(crate) struct NamesBuffer {
    text: String,
    odd: bool,
    complete: bool,
}

/// Ends a text without any `extra` and without a name that JSON escapes.
const PLAIN: char = 'p';
const ODD: char = 'o';

impl NamesBuffer {
    /// Forgets all names.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.odd = false;
        self.complete = false;
    }

    /// Adds a name that the caller knows to need no escapes in JSON.
    pub(crate) fn push_plain(&mut self, name: &str) {
        self.push_length(name.len() << 1);
        self.text.push_str(name);
    }

    /// Adds an outcome's name and the JSON text of its other keys.
    pub(crate) fn push(&mut self, name: &str, extra: Option<&str>) {
        let escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        self.odd |= extra.is_some() || name.bytes().any(escaped);
        self.push_length(name.len() << 1 | usize::from(extra.is_some()));
        self.text.push_str(name);
        if let Some(extra) = extra {
            self.push_length(extra.len());
            self.text.push_str(extra);
        }
    }

    /// Bytes requested from the allocator.
    pub(super) fn heap_bytes(&self) -> usize {
        self.text.capacity()
    }

    fn push_length(&mut self, mut length: usize) {
        while length >= 0x40 {
            self.push_bits(length & 0x3f | 0x40);
            length >>= 6;
        }
        self.push_bits(length);
    }

    fn push_bits(&mut self, bits: usize) {
        // Every caller passes less than 0x80.
        self.text.push(char::from(bits as u8 & 0x7f));
    }

    /// The packed text of all names added. Further names need a [`NamesBuffer::clear`] first.
    pub(crate) fn text(&mut self) -> &str {
        if !self.complete {
            self.complete = true;
            self.text.push(if self.odd { ODD } else { PLAIN });
        }
        &self.text
    }
}

/// Reads a packed text, outcome by outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Names<'a> {
    pub(crate) fn of(text: &'a str) -> Names<'a> {
        Names { text, at: 0 }
    }

    /// Whether JSON needs no escapes for any name, and no outcome has an `extra`.
    pub(crate) fn plain(&self) -> bool {
        self.text.ends_with(PLAIN)
    }

    /// The next name. Only for a text that is [plain](Names::plain).
    pub(crate) fn next_plain(&mut self) -> Option<&'a [u8]> {
        if self.at + 1 >= self.text.len() {
            return None;
        }
        let length = self.length()? >> 1;
        let name = self.text.as_bytes().get(self.at..self.at + length)?;
        self.at += length;
        Some(name)
    }

    /// Skips one outcome without reading its name: most readers of odds never want it.
    #[inline]
    pub(crate) fn skip_one(&mut self) {
        // One character with an even length: a short name without `extra`, as nearly all are.
        match self.text.as_bytes().get(self.at) {
            Some(length) if length & 0x41 == 0 => self.at += 1 + usize::from(length >> 1),
            _ => {
                self.next();
            }
        }
    }

    #[inline]
    fn length(&mut self) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let first = usize::from(*bytes.get(self.at)?);
        self.at += 1;
        if first < 0x40 {
            return Some(first);
        }
        let mut length = first & 0x3f;
        let mut shift = 6;
        loop {
            let bits = usize::from(*bytes.get(self.at)?);
            self.at += 1;
            length |= (bits & 0x3f).checked_shl(shift)?;
            shift += 6;
            if bits < 0x40 {
                return Some(length);
            }
        }
    }

    fn part(&mut self, length: usize) -> Option<&'a str> {
        let part = self.text.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(part)
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = (&'a str, Option<&'a str>);

    fn next(&mut self) -> Option<Self::Item> {
        // The last character is the mark of the whole text, not part of an outcome.
        if self.at + 1 >= self.text.len() {
            return None;
        }
        let length = self.length()?;
        let name = self.part(length >> 1)?;
        if length & 1 == 0 {
            return Some((name, None));
        }
        let length = self.length()?;
        Some((name, Some(self.part(length)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn packed(outcomes: &[(String, Option<String>)]) -> String {
        let mut names = NamesBuffer::default();
        // Earlier content must leave no trace.
        names.push("before\"", Some("{}"));
        names.text();
        names.clear();
        for (name, extra) in outcomes {
            names.push(name, extra.as_deref());
        }
        assert_eq!(names.text().to_owned(), names.text());
        names.text().to_owned()
    }

    #[test]
    fn lengths_around_every_limit_read_back() {
        for length in (0..200).chain([2046, 2047, 2048, 4095, 4096, 100_000, 300_000]) {
            let name = "n".repeat(length);
            for extra in [None, Some("e".repeat(length))] {
                let outcomes = [(name.clone(), extra), ("next".to_owned(), None)];
                let text = packed(&outcomes);
                let mut names = Names::of(&text);
                assert_eq!(names.plain(), outcomes[0].1.is_none());
                assert_eq!(
                    names.next(),
                    Some((&*outcomes[0].0, outcomes[0].1.as_deref()))
                );
                assert_eq!(names.next(), Some(("next", None)));
                assert_eq!(names.next(), None);
            }
        }
    }

    #[test]
    fn a_text_is_plain_if_no_name_needs_escapes() {
        let plain = |name: &str| Names::of(&packed(&[(name.to_owned(), None)])).plain();
        assert!(plain("") && plain("1") && plain("Ö'Brién \u{7f} / {[,]}"));
        for odd in ["\"", "a\\b", "\n", "\u{1f}", "\0"] {
            assert!(!plain(odd), "{odd:?}");
        }
        assert!(Names::of(&packed(&[])).plain());
    }

    proptest! {
        #[test]
        fn packed_names_read_back_unchanged(outcomes in vec((".{0,40}", option::weighted(0.2, ".{0,40}")), 0..6)) {
            let text = packed(&outcomes);
            if Names::of(&text).plain() {
                let mut names = Names::of(&text);
                for (name, _) in &outcomes {
                    prop_assert_eq!(names.next_plain(), Some(name.as_bytes()));
                }
                prop_assert_eq!(names.next_plain(), None);
            }
            for skipped in 0..=outcomes.len() {
                let mut names = Names::of(&text);
                (0..skipped).for_each(|_| names.skip_one());
                let expected = outcomes.get(skipped);
                let expected = expected.map(|(name, extra)| (&**name, extra.as_deref()));
                prop_assert_eq!(names.next(), expected);
            }
            let found: Vec<_> = Names::of(&text)
                .map(|(name, extra)| (name.to_owned(), extra.map(str::to_owned)))
                .collect();
            prop_assert_eq!(found, outcomes);
        }

        /// Only equal lists give equal texts, so comparing texts compares lists.
        #[test]
        fn no_two_lists_share_a_text(
            a in vec(("[a\\x01-\\x0A]{0,3}", option::of("[a\\x01-\\x0A]{0,3}")), 0..4),
            b in vec(("[a\\x01-\\x0A]{0,3}", option::of("[a\\x01-\\x0A]{0,3}")), 0..4),
        ) {
            prop_assert_eq!(packed(&a) == packed(&b), a == b);
        }
    }
}
