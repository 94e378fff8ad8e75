//! Done: a runner's result moves the execution on, or ends it.

use protocol::{Cause, Done, Outcome, StepStatus, Timestamp};

use super::{Decision, Illegal, Nothing, Rules, end, failed};
use crate::{advance::advance, state::State};

pub(super) fn decide(
    state: &State,
    done: &Done,
    cause: Cause,
    now: Timestamp,
    rules: &Rules,
) -> Result<Decision, Illegal> {
    let unknown = || Illegal::UnknownStep(done.step.clone());
    let definition = state.definition.as_ref().map_err(|_| unknown())?;
    let index = state.index_of(&done.step).ok_or_else(unknown)?;
    let step = state.steps.get(index).ok_or_else(unknown)?;
    match step.status {
        StepStatus::Running if step.attempt == Some(done.attempt) => {}
        StepStatus::Pending | StepStatus::Running => {
            let (step, attempt) = (done.step.clone(), done.attempt);
            return Err(Illegal::NotDispatched { step, attempt });
        }
        StepStatus::Succeeded | StepStatus::Failed | StepStatus::Skipped => {
            return Ok(Decision::Nothing(Nothing::StepOver));
        }
    }
    Ok(match &done.outcome {
        Outcome::Succeeded | Outcome::Skipped { .. } => {
            let output = done.output.as_ref().map(|body| body.preview());
            advance(
                state,
                definition,
                index + 1,
                Some((index, output)),
                cause,
                now,
                rules,
            )
        }
        Outcome::Failed(error) => end(state, cause, Vec::new(), failed(&done.step, &error.message, now)),
    })
}
