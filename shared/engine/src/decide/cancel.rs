//! Cancel: the execution ends where it stands, and its runner is told.

use protocol::{Cancel, Cause, End, EndStatus, Timestamp};

use super::{Decision, end};
use crate::state::State;

pub(super) fn decide(state: &State, cancel: &Cancel, cause: Cause, now: Timestamp) -> Decision {
    let error = Some(format!("cancelled: {}", cancel.reason));
    end(
        state,
        cause,
        Vec::new(),
        End {
            status: EndStatus::Cancelled,
            error,
            failed_step: None,
            at: now,
        },
    )
}
