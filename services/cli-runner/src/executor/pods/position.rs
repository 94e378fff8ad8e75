//! How far a log was read, so that it can be read again from its beginning without a byte lost or doubled.
//!
//! Invariant: a log whose beginning is another than it was is never taken for the continuation of what was had.

/// Bytes of the log's beginning by which it is known again.
const HEAD_BYTES: usize = 4096;

/// How far a log was read, over all readings.
#[derive(Debug, Default)]
pub struct Position {
    bytes: u64,
    head: Vec<u8>,
}

/// One reading, from the log's beginning.
#[derive(Debug, Default)]
pub struct Reading {
    /// What was read of the beginning that was had before.
    again: Vec<u8>,
    /// How much of the log this reading has passed.
    passed: u64,
}

/// What a piece of a reading brings.
#[derive(Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// The rest of what was had before.
    More(&'a [u8]),
    /// The log's beginning is gone: this is what is there now, and what lay between is lost.
    Anew(Vec<u8>),
}

impl Position {
    /// Bytes that were read of the log as it is now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next piece of a reading.
    pub fn take<'a>(&mut self, reading: &mut Reading, piece: &'a [u8]) -> News<'a> {
        let skip = usize::try_from(self.bytes.saturating_sub(reading.passed)).unwrap_or(usize::MAX);
        reading.passed += piece.len() as u64;
        let known = reading.again.len();
        let compared = self.head.len().saturating_sub(known).min(piece.len());
        if skip > 0 && piece[..compared] != self.head[known..known + compared] {
            let mut all = std::mem::take(&mut reading.again);
            all.extend_from_slice(piece);
            self.bytes = all.len() as u64;
            self.head = all[..all.len().min(HEAD_BYTES)].to_vec();
            return News::Anew(all);
        }
        if skip > 0 {
            reading.again.extend_from_slice(&piece[..compared]);
        }
        let new = &piece[skip.min(piece.len())..];
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&new[..room.min(new.len())]);
        self.bytes += new.len() as u64;
        News::More(new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes of readings of these logs one after another, in pieces of `size` bytes.
    fn read(logs: &[&[u8]], size: usize) -> Vec<u8> {
        let mut position = Position::default();
        let mut had = Vec::new();
        for log in logs {
            let mut reading = Reading::default();
            for piece in log.chunks(size) {
                match position.take(&mut reading, piece) {
                    News::More(more) => had.extend_from_slice(more),
                    News::Anew(all) => {
                        had.push(b'|');
                        had.extend(all);
                    }
                }
            }
        }
        had
    }

    #[test]
    fn a_log_that_was_rotated_begins_anew_and_is_then_followed_as_any_other() {
        for size in [1, 2, 3, 100] {
            let logs: [&[u8]; 5] = [
                b"one two",
                b"one two three",
                b"three four",
                b"three",
                b"three four five",
            ];
            assert_eq!(read(&logs, size), b"one two three|three four five", "{size}");
        }
    }

    proptest! {
        #[test]
        fn whatever_breaks_a_reading_off_nothing_is_lost_or_doubled(
            log in proptest::collection::vec(any::<u8>(), 0..6000),
            breaks in proptest::collection::vec(0..6000usize, 0..5),
            size in 1..2000usize,
        ) {
            let mut readings: Vec<&[u8]> = breaks.iter().map(|at| &log[..(*at).min(log.len())]).collect();
            readings.push(&log);
            prop_assert_eq!(read(&readings, size), log);
        }
    }
}
