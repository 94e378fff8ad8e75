//! The wall clock, read in one place, and put right by NATS' own.
//!
//! Invariant: services compare times that others wrote (a task's deadline, a message's age). So all of them go by the
//! clock of the NATS server they share, wherever their own machine's is off by more than [`TOLERANCE`].

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use protocol::Timestamp;

/// Clocks nearer than this to NATS' are taken for right: a measurement is not more exact on a busy machine.
pub const TOLERANCE: Duration = Duration::from_secs(2);

/// Milliseconds to add to the machine's clock.
static CORRECTION_MS: AtomicI64 = AtomicI64::new(0);

/// Now, in whole milliseconds. Code that has a log asks that instead, whose clock a simulation turns.
pub fn now() -> Timestamp {
    let correction_ms = CORRECTION_MS.load(Ordering::Relaxed);
    Timestamp::from_millis(machine().as_millis() + correction_ms)
}

/// What this machine's own clock says.
pub fn machine() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// What has to be added to a machine's clock, in milliseconds: the server said `server` to a question asked and
/// answered at these times of the machine. 0 within [`TOLERANCE`], and within what the answer took.
pub fn correction_ms(asked: Timestamp, server: Timestamp, answered: Timestamp) -> i64 {
    let took_ms = answered.as_millis() - asked.as_millis();
    let middle_ms = asked.as_millis() + took_ms / 2;
    let off_ms = server.as_millis() - middle_ms;
    let tolerance_ms = i64::try_from(TOLERANCE.as_millis())
        .unwrap_or(i64::MAX)
        .max(took_ms);
    if off_ms.abs() <= tolerance_ms { 0 } else { off_ms }
}

/// Has [`now`] add so many milliseconds from here on. Returns whether that is news: a change of more than
/// [`TOLERANCE`].
pub fn correct_by(correction_ms: i64) -> bool {
    let former_ms = CORRECTION_MS.swap(correction_ms, Ordering::Relaxed);
    (correction_ms - former_ms).unsigned_abs() > TOLERANCE.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_put_right_and_one_that_is_near_is_left() {
        const HOUR_MS: i64 = 3_600_000;
        for (machine_ms, took_ms, expected_ms) in [
            (0, 10, 0),
            (1_900, 10, 0),
            (-1_900, 10, 0),
            (HOUR_MS, 10, -HOUR_MS),
            (-HOUR_MS, 10, HOUR_MS),
            // Neither is a slow answer taken for a clock that is off.
            (4_000, 5_000, 0),
            (-HOUR_MS, 5_000, HOUR_MS),
        ] {
            let server_ms = 1_767_225_600_000;
            let asked_ms = server_ms + machine_ms - took_ms / 2;
            let at = Timestamp::from_millis;
            let correction = correction_ms(at(asked_ms), at(server_ms), at(asked_ms + took_ms));
            assert_eq!(correction, expected_ms, "{machine_ms} ms off, {took_ms} ms");
        }
    }
}
