//! The heart: from where an execution stands and one fact to the one message that answers it.
//!
//! Invariants:
//! - Pure: the same state, fact, time and rules give the same decision.
//! - A fact that changes nothing is a named [`Nothing`], and stays one whatever happens later: so no
//!   message has to record it, and acknowledging it is safe.
//! - A fact that cannot be is an [`Illegal`], never a panic.

mod cancel;
mod dead;
mod done;
mod instead;
mod start;
#[cfg(test)]
mod tests;
mod timer;

use std::time::Duration;

pub use instead::instead_of;
use protocol::{
    Append, Cause, End, EndStatus, Fact, LaneAction, StepName, StepRecord, Subject, Task, TimerId, Timestamp,
};

use crate::{
    fixgate::Gate,
    state::{Phase, State},
};

/// A fact, as the log holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The fact.
    pub fact: Fact,
    /// Its subject.
    pub subject: String,
    /// Its sequence in the log.
    pub seq: u64,
}

/// What configuration decides.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long after a step's deadline the scheduler ends it, if its runner did not: a runner that
    /// lives reports the better error, with the output so far.
    pub timer_grace: Duration,
    /// What a gated command may do.
    pub gate: Gate,
    /// Namespaces in which gated commands are only ever proposed; `*` for all.
    pub propose_namespaces: Vec<String>,
}

/// What to do about a fact.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Arm the timers, then append the message.
    Append(Box<Planned>),
    /// Nothing, for this reason; acknowledge the fact.
    Nothing(Nothing),
}

/// A message for the lane, and what must be armed before it is appended.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Where it goes.
    pub subject: Subject,
    /// The message.
    pub append: Append,
    /// Timers that watch over the tasks in it.
    pub timers: Vec<(TimerId, Timestamp)>,
}

/// Why a fact changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// The lane names it already: it was delivered twice.
    Answered,
    /// The execution is over.
    Ended,
    /// The step is over: a late result, or the other of two.
    StepOver,
    /// The timer was for a task that is over, or that another scheduler handed out with its own.
    StaleTimer,
    /// It is for runners to read, not for the scheduler.
    RunnersOwn,
}

/// Why a fact cannot be. Either the state is older than the fact, and reading the log again helps; or
/// the fact is wrong, and belongs to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// A result for a step that the workflow has not.
    #[error("the workflow has no step `{0}`")]
    UnknownStep(StepName),
    /// A result, or what became of one, for an attempt that was not handed out.
    #[error("attempt {attempt} of step `{step}` was never handed out")]
    NotDispatched {
        /// The step.
        step: StepName,
        /// The attempt.
        attempt: protocol::Attempt,
    },
    /// A timer that is none of ours.
    #[error("the timer `{0}` is of no known kind")]
    UnknownTimer(TimerId),
}

/// What happens because of `observed`.
///
/// # Errors
/// [`Illegal`] where the fact cannot follow on `state`.
pub fn decide(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    rules: &Rules,
) -> Result<Decision, Illegal> {
    if state.has_answered(observed.seq) {
        return Ok(Decision::Nothing(Nothing::Answered));
    }
    if let Phase::Ended(_) = state.phase {
        return Ok(Decision::Nothing(Nothing::Ended));
    }
    let cause = Cause {
        subject: observed.subject.clone(),
        seq: observed.seq,
    };
    match &observed.fact {
        Fact::Start(_) => Ok(start::decide(state, cause, now, rules)),
        Fact::Done(done) => done::decide(state, done, cause, now, rules),
        Fact::Timer(fired) => timer::decide(state, fired, cause, now),
        Fact::Cancel(cancel) => Ok(cancel::decide(state, cancel, cause, now)),
        Fact::Dead(dead) => dead::decide(state, dead, cause, now),
        Fact::Begun(_) => Ok(Decision::Nothing(Nothing::RunnersOwn)),
    }
}

/// Hands out `task`.
pub(crate) fn hand_out(
    state: &State,
    cause: Cause,
    records: Vec<StepRecord>,
    task: Box<Task>,
    rules: &Rules,
) -> Decision {
    let timer = TimerId::step_deadline(&task.step, task.attempt, task.deadline);
    let fires_at = task.deadline.after(rules.timer_grace);
    Decision::Append(Box::new(Planned {
        subject: state.command_subject(&task),
        timers: vec![(timer, fires_at)],
        append: Append {
            cause,
            records,
            action: LaneAction::Task(task),
        },
    }))
}

/// Ends the execution.
pub(crate) fn end(state: &State, cause: Cause, records: Vec<StepRecord>, end: End) -> Decision {
    Decision::Append(Box::new(the_end(state, cause, records, end)))
}

/// The last message. Where a runner may be at work it is told by the same one.
fn the_end(state: &State, cause: Cause, records: Vec<StepRecord>, end: End) -> Planned {
    let (namespace, execution) = (state.start.namespace.clone(), state.start.execution);
    // A runner that has reported is at no work; its result is the cause.
    let is_result = cause.subject.ends_with(".done");
    let subject = if state.has_running_step() && !is_result {
        Subject::Cancel(namespace, execution)
    } else {
        Subject::Note(namespace, execution)
    };
    Planned {
        subject,
        timers: Vec::new(),
        append: Append {
            cause,
            records,
            action: LaneAction::End(end),
        },
    }
}

/// The end of an execution whose step failed.
pub(crate) fn failed(step: &StepName, message: &str, at: Timestamp) -> End {
    End {
        status: EndStatus::Failed,
        error: Some(format!("step `{step}` failed: {message}")),
        failed_step: Some(step.clone()),
        at,
    }
}
