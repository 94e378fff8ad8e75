//! The wall clock, read in one place.

use protocol::Timestamp;

/// Now, in whole milliseconds. Code that has a log asks that instead, whose clock a simulation turns.
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}
