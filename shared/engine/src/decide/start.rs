//! Start: the first step is handed out, or the execution ends at once where nothing can run.

use protocol::{Cause, End, EndStatus, Timestamp};

use super::{Decision, Rules, end};
use crate::{advance::advance, state::State};

pub(super) fn decide(state: &State, cause: Cause, now: Timestamp, rules: &Rules) -> Decision {
    match &state.definition {
        Ok(definition) => advance(state, definition, 0, None, cause, now, rules),
        // Admission lets no such workflow in; a start fact written by other means ends here, visibly.
        Err(problems) => end(
            state,
            cause,
            Vec::new(),
            End {
                status: EndStatus::Failed,
                error: Some(format!("the workflow is not valid: {problems}")),
                failed_step: None,
                at: now,
            },
        ),
    }
}
