//! Dead letters: messages that a consumer could not process, on `fist.dead.<consumer>`.
//!
//! Invariant: a dead letter names its message by stream and sequence, so that writing it twice is seen.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A dead letter keeps at most this many bytes of its message as text.
pub const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// A message that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The stream it was in.
    pub stream: String,
    /// Its sequence there.
    pub seq: u64,
    /// Its subject.
    pub subject: String,
    /// When it was written there.
    pub written_at: Timestamp,
    /// The durable consumer that could not process it.
    pub consumer: String,
    /// Why.
    pub reason: String,
    /// How often it was delivered.
    pub deliveries: u64,
    /// The message as text, what is not UTF-8 replaced, at most [`PAYLOAD_BYTES_MAX`] bytes of it.
    pub payload: String,
    /// How long the message was in bytes; more than `payload` holds where it was cut.
    pub payload_bytes: u64,
}

impl DeadLetter {
    /// `bytes` as [`DeadLetter::payload`] keeps them.
    pub fn payload_text(bytes: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(PAYLOAD_BYTES_MAX)]).into_owned();
        let mut end = text.len().min(PAYLOAD_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_cut_at_a_character() {
        assert_eq!(DeadLetter::payload_text(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(DeadLetter::payload_text(&[0x61, 0xff]), "a\u{fffd}");
        let long = "ä".repeat(PAYLOAD_BYTES_MAX);
        let cut = DeadLetter::payload_text(long.as_bytes());
        assert_eq!(cut.len(), PAYLOAD_BYTES_MAX);
        assert!(long.starts_with(&cut));
        // Replacement characters are longer than the bytes they stand for.
        assert!(DeadLetter::payload_text(&vec![0xff; PAYLOAD_BYTES_MAX]).len() <= PAYLOAD_BYTES_MAX);
    }
}
