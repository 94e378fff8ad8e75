//! Keeps what a command prints, within bounds: the beginning whole up to a limit, and the very end.
//!
//! Invariants:
//! - Memory never exceeds the limit of the whole plus one tail.
//! - Every byte that was printed is counted, kept or not.
//! - The text for the output is never longer than its limit and says what it leaves out.

use std::collections::VecDeque;

use crate::returns::Returns;

/// What one stream of a command printed.
#[derive(Clone, Debug)]
pub struct Capture {
    whole: Vec<u8>,
    whole_bytes_max: usize,
    /// The end of what came after `whole` was full.
    tail: VecDeque<u8>,
    tail_bytes_max: usize,
    bytes: u64,
}

/// Limits of a [`Capture`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one stream in a step's output.
    pub inline_bytes_max: usize,
    /// Bytes of one stream that are kept for the object store.
    pub spill_bytes_max: usize,
}

impl Capture {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            whole: Vec::new(),
            whole_bytes_max: limits.spill_bytes_max.max(limits.inline_bytes_max),
            tail: VecDeque::new(),
            tail_bytes_max: limits.inline_bytes_max,
            bytes: 0,
        }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let room = self.whole_bytes_max - self.whole.len();
        let (kept, beyond) = piece.split_at(room.min(piece.len()));
        self.whole.extend_from_slice(kept);
        let beyond = &beyond[beyond.len().saturating_sub(self.tail_bytes_max)..];
        let excess = (self.tail.len() + beyond.len()).saturating_sub(self.tail_bytes_max);
        self.tail.drain(..excess);
        self.tail.extend(beyond);
    }

    /// With the carriage returns that were dropped on the way; those after the limit of what is kept are only
    /// counted.
    pub fn with_returns(mut self, returns: &Returns) -> Self {
        if returns.count() == 0 {
            return self;
        }
        let mut whole = returns.restored(&self.whole, self.is_whole());
        let end = whole.split_off(whole.len().min(self.whole_bytes_max));
        let tail = std::mem::take(&mut self.tail);
        let bytes = self.bytes + returns.count();
        self.whole = whole;
        self.bytes = self.whole.len() as u64;
        self.push(&end);
        self.push(&Vec::from(tail));
        self.bytes = bytes;
        self
    }

    /// How many bytes were printed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was printed, from its beginning up to the limit.
    pub fn kept(&self) -> &[u8] {
        &self.whole
    }

    /// Whether `kept` is all that was printed.
    pub fn is_whole(&self) -> bool {
        self.bytes == self.whole.len() as u64
    }

    /// What was printed, where it is text and at most `bytes_max` long.
    pub fn as_text(&self, bytes_max: usize) -> Option<&str> {
        let fits = self.is_whole() && self.whole.len() <= bytes_max;
        fits.then(|| std::str::from_utf8(&self.whole).ok()).flatten()
    }

    /// At most `bytes_max` bytes of text: all of it, or head and tail with `note(bytes cut)` between. What
    /// is not UTF-8 is replaced.
    pub fn text(&self, bytes_max: usize, note: impl Fn(u64) -> String) -> String {
        if self.is_whole() && self.whole.len() <= bytes_max {
            let text = String::from_utf8_lossy(&self.whole);
            if text.len() <= bytes_max {
                return text.into_owned();
            }
        }
        // The note's own length depends on the number in it; the longest number is reserved for.
        let room = bytes_max.saturating_sub(note(u64::MAX).len());
        let (head, head_bytes) = lossy_head(&self.whole, room / 2);
        let end = self.end(room / 2);
        let overlap = (head_bytes + end.len() as u64).saturating_sub(self.bytes);
        let (tail, tail_bytes) = lossy_tail(&end[overlap as usize..], room / 2);
        format!("{head}{}{tail}", note(self.bytes - head_bytes - tail_bytes))
    }

    /// The last line that holds anything, where one does.
    pub fn last_line(&self) -> Option<String> {
        let end = self.end(4096);
        let text = String::from_utf8_lossy(&end);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
    }

    /// The last `bytes_max` bytes that were printed.
    fn end(&self, bytes_max: usize) -> Vec<u8> {
        let from_tail = self.tail.len().min(bytes_max);
        // Between `whole` and `tail` something may be missing; then only the tail is the end.
        let is_contiguous = self.bytes == (self.whole.len() + self.tail.len()) as u64;
        let from_whole = if is_contiguous {
            (bytes_max - from_tail).min(self.whole.len())
        } else {
            0
        };
        let mut end = self.whole[self.whole.len() - from_whole..].to_vec();
        end.extend(self.tail.range(self.tail.len() - from_tail..));
        end
    }
}

/// Characters of `bytes` from the front whose text is at most `text_bytes_max` long, and how many bytes
/// they stood for. A character cut off at the end of a longer stream is left out.
fn lossy_head(bytes: &[u8], text_bytes_max: usize) -> (String, u64) {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if text.len() + character.len_utf8() > text_bytes_max {
                return (text, used);
            }
            text.push(character);
            used += character.len_utf8() as u64;
        }
        let replaced = chunk.invalid().len() as u64;
        if replaced > 0 {
            if text.len() + char::REPLACEMENT_CHARACTER.len_utf8() > text_bytes_max {
                return (text, used);
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += replaced;
        }
    }
    (text, used)
}

/// As [`lossy_head`], from the back.
fn lossy_tail(bytes: &[u8], text_bytes_max: usize) -> (String, u64) {
    // `bytes` may begin within a character: its rest is left out instead of shown as garbage.
    let torn = bytes
        .iter()
        .take(3)
        .take_while(|byte| **byte & 0xC0 == 0x80)
        .count();
    let mut pieces: Vec<(char, u64)> = Vec::new();
    for chunk in bytes[torn..].utf8_chunks() {
        pieces.extend(chunk.valid().chars().map(|c| (c, c.len_utf8() as u64)));
        if !chunk.invalid().is_empty() {
            pieces.push((char::REPLACEMENT_CHARACTER, chunk.invalid().len() as u64));
        }
    }
    let mut text_bytes = 0;
    let shown = pieces
        .iter()
        .rev()
        .take_while(|(character, _)| {
            text_bytes += character.len_utf8();
            text_bytes <= text_bytes_max
        })
        .count();
    let shown = &pieces[pieces.len() - shown..];
    (
        shown.iter().map(|(c, _)| c).collect(),
        shown.iter().map(|(_, bytes)| bytes).sum(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        inline_bytes_max: 64,
        spill_bytes_max: 256,
    };

    fn captured(pieces: &[&[u8]]) -> Capture {
        let mut capture = Capture::new(LIMITS);
        for piece in pieces {
            capture.push(piece);
        }
        capture
    }

    fn shown(capture: &Capture) -> String {
        capture.text(64, |cut| format!("…[{cut} cut]…"))
    }

    #[test]
    fn short_text_is_kept_as_it_is() {
        let capture = captured(&[b"hello ", b"world\n"]);
        assert_eq!(shown(&capture), "hello world\n");
        assert_eq!(capture.as_text(64), Some("hello world\n"));
        assert_eq!(capture.last_line().as_deref(), Some("hello world"));
    }

    #[test]
    fn long_text_keeps_head_and_tail_and_counts_what_is_cut() {
        let all: String = (0..100).map(|n| format!("{n:02},")).collect();
        let capture = captured(&[all.as_bytes()]);
        let text = shown(&capture);
        let (head, rest) = text.split_once("…[").unwrap();
        let (cut, tail) = rest.split_once(" cut]…").unwrap();
        assert!(head.starts_with("00,01") && tail.ends_with("98,99,"), "{text}");
        assert_eq!(cut.parse::<usize>().unwrap(), 300 - head.len() - tail.len());
        assert!(!capture.is_whole());
        assert_eq!(capture.kept().len(), 256);
        assert_eq!(capture.bytes(), 300);
    }

    #[test]
    fn what_is_not_utf_8_is_replaced() {
        let capture = captured(&[b"a\xff\xfeb"]);
        assert_eq!(shown(&capture), "a\u{FFFD}\u{FFFD}b");
        assert_eq!(capture.as_text(64), None);
        assert_eq!(capture.kept(), b"a\xff\xfeb");
    }

    #[test]
    fn the_last_line_skips_blank_ones_and_control_characters() {
        assert_eq!(
            captured(&[b"one\n\x1b[31mtwo\x1b[0m\n\n  \n"])
                .last_line()
                .as_deref(),
            Some("[31mtwo[0m")
        );
        assert_eq!(captured(&[b"\n \n"]).last_line(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_stay_within_the_limits(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 0..12)) {
            let all = pieces.concat();
            let capture = captured(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let text = shown(&capture);
            prop_assert!(text.len() <= 64, "{}", text.len());
            prop_assert_eq!(capture.bytes(), all.len() as u64);
            prop_assert_eq!(capture.kept(), &all[..all.len().min(256)]);
            prop_assert_eq!(capture.end(64), all[all.len().saturating_sub(64)..].to_vec());
        }

        #[test]
        fn text_is_cut_between_characters(text in "[aé漢🦀]{0,120}") {
            let capture = captured(&[text.as_bytes()]);
            let shown = shown(&capture);
            prop_assert!(!shown.contains(char::REPLACEMENT_CHARACTER));
            match shown.split_once("…[") {
                None => prop_assert_eq!(shown, text),
                Some((head, rest)) => {
                    let (cut, tail) = rest.split_once(" cut]…").unwrap();
                    prop_assert!(text.starts_with(head) && text.ends_with(tail));
                    prop_assert_eq!(head.len() + tail.len() + cut.parse::<usize>().unwrap(), text.len());
                }
            }
        }
    }

    #[test]
    fn dropped_carriage_returns_come_back_within_the_limits() {
        let mut returns = Returns::default();
        returns.push(b"1\n3\n200\n");
        let short = captured(&[b"one\ntwo\nthree\n"]).with_returns(&returns);
        assert_eq!((short.kept(), short.bytes()), (&b"one\r\ntwo\nthree\r\n"[..], 17));
        let long = captured(&[&b"abc\n".repeat(500)]).with_returns(&returns);
        assert_eq!((long.kept().len(), long.bytes()), (256, 2003));
        assert!(long.kept().starts_with(b"abc\r\nabc\nabc\r\nabc\n"));
        assert!(shown(&long).ends_with("abc\nabc\n"), "{}", shown(&long));
    }
}
