//! Gives back the carriage returns that a container runtime dropped.
//!
//! containerd writes a line's `\r\n` as `\n` into the log. The wrapper counts beside the output, and tells at the end
//! which lines of it ended so.
//!
//! Invariant: memory is bounded by the greatest line number that is kept, an eighth of a byte for each.

/// Lines beyond this one keep no carriage return: more than there are in what is kept of any output by default.
const LINE_MAX: u64 = 1 << 25;

/// The lines of one stream that ended with `\r\n`; the first is 1.
#[derive(Debug, Default)]
pub struct Returns {
    bits: Vec<u64>,
    /// How many lines there are.
    count: u64,
    /// The number that is being read.
    number: u64,
}

impl Returns {
    /// Takes the next piece of a list of line numbers, one a line.
    pub fn push(&mut self, piece: &[u8]) {
        for byte in piece {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    self.number = self.number.saturating_mul(10).saturating_add(digit);
                }
                _ => self.end_number(),
            }
        }
    }

    /// How many carriage returns were dropped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// `text`, from the stream's beginning, as it was printed; `is_whole` where it goes to the stream's end.
    pub fn restored(&self, text: &[u8], is_whole: bool) -> Vec<u8> {
        let room = usize::try_from(self.count).unwrap_or(0).min(text.len());
        let mut restored = Vec::with_capacity(text.len() + room);
        // What stands after the last newline is a line too, if its end was printed: the newline after it is the
        // wrapper's own.
        let newlines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let is_last = number > newlines;
            restored.extend_from_slice(line);
            if self.has(number) && (is_whole || !is_last) {
                restored.push(b'\r');
            }
            if !is_last {
                restored.push(b'\n');
            }
        }
        restored
    }

    fn end_number(&mut self) {
        let number = std::mem::take(&mut self.number);
        if number == 0 {
            return;
        }
        self.count += 1;
        if number <= LINE_MAX {
            let (word, bit) = place(number);
            if self.bits.len() <= word {
                self.bits.resize(word + 1, 0);
            }
            self.bits[word] |= bit;
        }
    }

    fn has(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.bits.get(word).is_some_and(|found| found & bit != 0)
    }
}

/// Where a line's bit stands.
fn place(number: u64) -> (usize, u64) {
    let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
    (word, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_names_the_lines() {
        for (list, text, restored) in [
            ("", "a\nb\n", "a\nb\n"),
            ("1\n", "a\nb\n", "a\r\nb\n"),
            ("1\n2\n", "\n\n", "\r\n\r\n"),
            ("2\n9\n", "a\nb\n", "a\nb\r\n"),
            // What is kept of a longer output may end within a line.
            ("2\n", "a\nb", "a\nb"),
            ("99999999999999999999999\n1\n", "a\n", "a\r\n"),
        ] {
            let mut returns = Returns::default();
            for piece in list.as_bytes().chunks(2) {
                returns.push(piece);
            }
            let found = returns.restored(text.as_bytes(), false);
            assert_eq!(String::from_utf8_lossy(&found), restored, "{list:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_dropped_comes_back(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
        ) {
            let mut returns = Returns::default();
            let mut dropped = Vec::new();
            for (line, number) in text.split_inclusive(|byte| *byte == b'\n').zip(1..) {
                let end = if line.ends_with(b"\n") { "\n" } else { "" };
                let start = &line[..line.len() - end.len()];
                if start.ends_with(b"\r") {
                    returns.push(format!("{number}\n").as_bytes());
                }
                dropped.extend_from_slice(start.strip_suffix(b"\r").unwrap_or(start));
                dropped.extend_from_slice(end.as_bytes());
            }
            prop_assert_eq!(returns.count() as usize, text.len() - dropped.len());
            prop_assert_eq!(returns.restored(&dropped, true), text);
        }
    }
}
