//! The wall clock, read in one place.

use protocol::Timestamp;

/// Now.
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}
