//! What is around every message: a version, and when and by whom it was written.
//!
//! Invariant: a reader refuses a version it does not know, by name, instead of guessing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::time::Timestamp;

/// The version this build writes, and the newest it reads.
pub const VERSION: u16 = 1;

#[derive(Serialize)]
struct Outgoing<'a, T> {
    v: u16,
    at: Timestamp,
    body: &'a T,
}

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Envelope<T> {
    /// Version of the body's format.
    pub v: u16,
    /// When the writer made it, by the writer's clock. The log's own timestamp is the one to compare with.
    pub at: Timestamp,
    /// The message.
    pub body: T,
}

/// Why bytes are not a message this build can read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer build.
    #[error(
        "the message has format version {found}, and this build reads up to {VERSION}: upgrade this service"
    )]
    NewerVersion {
        /// The version found.
        found: u16,
    },
    /// Not JSON of the expected shape.
    #[error("the message cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// `body` as bytes for the wire, in the current version.
pub fn encode<T: Serialize>(at: Timestamp, body: &T) -> Vec<u8> {
    // Bodies are our own types with string keys and finite numbers, for which serialisation cannot fail.
    serde_json::to_vec(&Outgoing { v: VERSION, at, body }).expect("message types always serialise")
}

/// Reads a message of any version up to the current one.
///
/// # Errors
/// [`DecodeError`] when the version is newer than this build, or the body is not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Envelope<T>, DecodeError> {
    match serde_json::from_slice::<Envelope<T>>(bytes) {
        Ok(envelope) if envelope.v <= VERSION => Ok(envelope),
        Ok(envelope) => Err(DecodeError::NewerVersion { found: envelope.v }),
        Err(error) => Err(match serde_json::from_slice::<VersionOnly>(bytes) {
            Ok(VersionOnly { v }) if v > VERSION => DecodeError::NewerVersion { found: v },
            _ => DecodeError::Malformed(error),
        }),
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_version_is_named_even_when_its_body_is_unknown() {
        let bytes = br#"{"v":9,"at":"2026-01-01T00:00:00Z","body":{"shape":"of the future"}}"#;
        let error = decode::<u32>(bytes).expect_err("a newer version");
        assert_eq!(
            error.to_string(),
            "the message has format version 9, and this build reads up to 1: upgrade this service"
        );
    }

    #[test]
    fn malformed_bytes_say_where() {
        let error = decode::<u32>(b"{").expect_err("malformed");
        assert!(
            error
                .to_string()
                .starts_with("the message cannot be read: EOF while parsing"),
            "{error}"
        );
    }
}
