//! Dead: a message of the execution was set aside, so the execution cannot go on; it fails and says why.

use protocol::{Cause, Dead, End, EndStatus, StepError, StepFailure, StepRecord, StepStatus, Timestamp};

use super::{Decision, Illegal, Nothing, end, failed};
use crate::state::State;

pub(super) fn decide(state: &State, dead: &Dead, cause: Cause, now: Timestamp) -> Result<Decision, Illegal> {
    let message = format!("{} (message {} is among the dead letters)", dead.reason, dead.seq);
    let Some((step, attempt)) = &dead.task else {
        let end_of_all = End {
            status: EndStatus::Failed,
            error: Some(message),
            failed_step: None,
            at: now,
        };
        return Ok(end(state, cause, Vec::new(), end_of_all));
    };
    let standing = state
        .index_of(step)
        .and_then(|index| Some((index, state.steps.get(index)?)));
    let index = match standing {
        Some((index, standing))
            if standing.status == StepStatus::Running && standing.attempt == Some(*attempt) =>
        {
            index
        }
        // Not at work as far as this state knows: another scheduler may have handed it out.
        Some((_, standing)) if matches!(standing.status, StepStatus::Pending | StepStatus::Running) => {
            let (step, attempt) = (step.clone(), *attempt);
            return Err(Illegal::NotDispatched { step, attempt });
        }
        Some(_) | None => return Ok(Decision::Nothing(Nothing::StepOver)),
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
    Ok(end(state, cause, vec![record], failed(step, &message, now)))
}
