//! Dead: a message of the execution was set aside, so the execution cannot go on; it fails and says why.

use protocol::{Cause, Dead, End, EndStatus, StepError, StepFailure, StepRecord, StepStatus, Timestamp};

use super::{Decision, Nothing, end, failed};
use crate::state::State;

pub(super) fn decide(state: &State, dead: &Dead, cause: Cause, now: Timestamp) -> Decision {
    let message = format!("{} (message {} is among the dead letters)", dead.reason, dead.seq);
    let Some((step, attempt)) = &dead.task else {
        let end_of_all = End {
            status: EndStatus::Failed,
            error: Some(message),
            failed_step: None,
            at: now,
        };
        return end(state, cause, Vec::new(), end_of_all);
    };
    let running = state.index_of(step).filter(|index| {
        state
            .steps
            .get(*index)
            .is_some_and(|s| s.status == StepStatus::Running && s.attempt == Some(*attempt))
    });
    let Some(index) = running else {
        return Decision::Nothing(Nothing::StepOver);
    };
    let record = StepRecord {
        step: step.clone(),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        attempt: *attempt,
        status: StepStatus::Failed,
        output: None,
        error: Some(StepError {
            reason: StepFailure::DeadLetter,
            message: message.clone(),
        }),
        message: None,
        at: now,
    };
    end(state, cause, vec![record], failed(step, &message, now))
}
