//! Timer: a step whose runner did not report in time is failed for it.

use protocol::{Cause, StepError, StepFailure, StepRecord, StepStatus, TimerFired, Timestamp};

use super::{Decision, Illegal, Nothing, end, failed};
use crate::state::State;

pub(super) fn decide(
    state: &State,
    fired: &TimerFired,
    cause: Cause,
    now: Timestamp,
) -> Result<Decision, Illegal> {
    let Some((step, attempt, deadline)) = fired.timer.as_step_deadline() else {
        return Err(Illegal::UnknownTimer(fired.timer.clone()));
    };
    let Some(index) = state.index_of(&step) else {
        return Err(Illegal::UnknownStep(step));
    };
    let standing = state.steps.get(index);
    if standing.is_some_and(|standing| standing.status == StepStatus::Pending) {
        // Armed, and its task not handed out yet: the fact that leads to the task is still on its way.
        return Err(Illegal::NotDispatched { step, attempt });
    }
    let Some((_, limit)) = standing
        .filter(|standing| standing.status == StepStatus::Running && standing.attempt == Some(attempt))
        .and_then(|standing| standing.limit.as_ref())
        .filter(|(running_until, _)| *running_until == deadline)
    else {
        return Ok(Decision::Nothing(Nothing::StaleTimer));
    };
    let message = format!("timed out after {limit}; its runner had not reported by then");
    let record = StepRecord {
        step: step.clone(),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        attempt,
        status: StepStatus::Failed,
        output: None,
        error: Some(StepError {
            reason: StepFailure::Timeout,
            message: message.clone(),
        }),
        message: None,
        at: now,
    };
    Ok(end(state, cause, vec![record], failed(&step, &message, now)))
}
