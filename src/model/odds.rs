//! Packs odds into one 32-bit word each.

/// Packed odds of many markets, one word per outcome.
#[derive(Debug, Default)]
pub(crate) struct OddsBuffer {
    pub(super) words: Vec<u32>,
    /// Odds that do not fit a word; such a word holds an index into this list.
    wide: Vec<f64>,
}

// A word has two flags in its top bits: whether the outcome is active, and whether the payload is an index into the
// wide odds. Otherwise the payload is the odds in thousandths.
const ACTIVE: u32 = 1 << 31;
const WIDE: u32 = 1 << 30;
const PAYLOAD: u32 = WIDE - 1;
/// The payload of a wide word for an outcome without odds.
const NO_ODDS: u32 = PAYLOAD;

/// The greatest number of thousandths that fits a word.
pub(crate) const MOST_THOUSANDTHS: u32 = PAYLOAD;

/// The odds in thousandths; `None` unless dividing by 1000 gives back exactly the same bits (M2).
fn thousandths(odds: f64) -> Option<u32> {
    let scaled = (odds * 1000.0).round();
    if !(0.0..=f64::from(PAYLOAD)).contains(&scaled) {
        return None;
    }
    // The value is a whole number in range, so the cast is exact.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let word = scaled as u32;
    ((f64::from(word) / 1000.0).to_bits() == odds.to_bits()).then_some(word)
}

/// A length of the buffer, for [`OddsBuffer::truncate`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    words: usize,
    wide: usize,
}

impl OddsBuffer {
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            words: self.words.len(),
            wide: self.wide.len(),
        }
    }

    /// Drops everything added since `mark`.
    pub(crate) fn truncate(&mut self, mark: Mark) {
        self.words.truncate(mark.words);
        self.wide.truncate(mark.wide);
    }

    /// Adds the odds of one outcome. Any value is kept bit for bit, NaN included.
    pub(crate) fn push(&mut self, odds: Option<f64>, is_active: bool) {
        let payload = match odds {
            None => WIDE | NO_ODDS,
            Some(odds) => thousandths(odds).unwrap_or_else(|| {
                let payload = WIDE | wide_index(self.wide.len());
                self.wide.push(odds);
                payload
            }),
        };
        self.push_word(payload, is_active);
    }

    /// Adds odds given in thousandths, at most [`MOST_THOUSANDTHS`]. Makes the same word as [`OddsBuffer::push`] of the
    /// decimal number: dividing by 1000 rounds just as parsing the decimal does.
    pub(crate) fn push_thousandths(&mut self, thousandths: u32, is_active: bool) {
        self.push_word(thousandths, is_active);
    }

    fn push_word(&mut self, payload: u32, is_active: bool) {
        self.words
            .push(payload | if is_active { ACTIVE } else { 0 });
    }

    /// Collects the wide odds that the words of one snapshot use, in the order of the words, and points the words into
    /// the new list.
    pub(super) fn own_wide(&self, words: &mut [u32]) -> Vec<f64> {
        let mut own = Vec::new();
        if self.wide.is_empty() {
            return own;
        }
        for word in words {
            if *word & WIDE != 0
                && let Some(odds) = self.wide.get((*word & PAYLOAD) as usize)
            {
                *word = *word & ACTIVE | WIDE | wide_index(own.len());
                own.push(*odds);
            }
        }
        own
    }

    pub(super) fn clear(&mut self) {
        self.words.clear();
        self.wide.clear();
    }

    #[cfg(test)]
    pub(crate) fn all(&self) -> Vec<(Option<f64>, bool)> {
        let unpack = |word: &u32| unpack(*word, &self.wide);
        self.words.iter().map(unpack).collect()
    }

    /// Bytes requested from the allocator.
    pub(super) fn heap_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u32>() + self.wide.capacity() * size_of::<f64>()
    }
}

/// A read holds far fewer than 2^30 outcomes. Beyond that, odds would become "none".
fn wide_index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NO_ODDS).min(NO_ODDS)
}

/// How many wide odds these words use, if each of them points to its own, in their order, as
/// [`OddsBuffer::own_wide`] leaves them. Otherwise `None`.
#[cfg(feature = "nats")]
pub(super) fn wide_odds_in(words: &[u32]) -> Option<usize> {
    let mut wide = 0;
    for word in words {
        if word & WIDE != 0 && word & PAYLOAD != NO_ODDS {
            if word & PAYLOAD != wide_index(wide) {
                return None;
            }
            wide += 1;
        }
    }
    Some(wide)
}

/// The odds in a word, and whether the outcome is active.
pub(super) fn unpack(word: u32, wide: &[f64]) -> (Option<f64>, bool) {
    let payload = word & PAYLOAD;
    let odds = if word & WIDE == 0 {
        Some(f64::from(payload) / 1000.0)
    } else {
        // The payload `NO_ODDS` lies beyond every list.
        wide.get(payload as usize).copied()
    };
    (odds, word & ACTIVE != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packs odds and unpacks them again. The buffer holds the wide odds of another snapshot before.
    fn packed_and_unpacked(odds: Option<f64>, is_active: bool) -> (Option<u64>, bool) {
        let mut buffer = OddsBuffer::default();
        buffer.push(Some(0.000_1), true);
        let mark = buffer.mark();
        buffer.push(Some(f64::NAN), true);
        buffer.truncate(mark);
        buffer.push(odds, is_active);
        let mut words = buffer.words[1..].to_vec();
        let wide = buffer.own_wide(&mut words);
        let (odds, is_active) = unpack(words[0], &wide);
        (odds.map(f64::to_bits), is_active)
    }

    proptest! {
        /// M2: odds survive packing bit for bit.
        #[test]
        fn every_number_comes_back_bit_for_bit(
            bits in any::<u64>(),
            thousandths in 0..=MOST_THOUSANDTHS + 2,
            is_active in any::<bool>(),
        ) {
            prop_assert_eq!(packed_and_unpacked(Some(f64::from_bits(bits)), is_active), (Some(bits), is_active));
            let odds = f64::from(thousandths) / 1000.0;
            prop_assert_eq!(packed_and_unpacked(Some(odds), is_active), (Some(odds.to_bits()), is_active));
            prop_assert_eq!(packed_and_unpacked(None, is_active), (None, is_active));
        }

        #[test]
        fn thousandths_make_the_same_word_as_their_number(
            thousandths in 0..=MOST_THOUSANDTHS,
            is_active in any::<bool>(),
        ) {
            let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            let (mut a, mut b) = (OddsBuffer::default(), OddsBuffer::default());
            a.push_thousandths(thousandths, is_active);
            b.push(text.parse().ok(), is_active);
            prop_assert_eq!(a.words, b.words);
        }
    }

    #[test]
    fn odds_at_the_limits_come_back_bit_for_bit() {
        for odds in [
            0.0,
            -0.0,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::INFINITY,
            1.0005,
            1_073_741.823,
            1_073_741.824,
        ] {
            assert_eq!(
                packed_and_unpacked(Some(odds), true),
                (Some(odds.to_bits()), true)
            );
        }
    }
}
