//! What each type of step comes to when its turn is there: one file per type.
//!
//! Invariant: nothing is run here. A step becomes a task for a runner, or is settled by its inputs alone.

pub(crate) mod agent;
mod cli;
mod conditional;

use std::time::Duration;

use protocol::{Attempt, StepFailure, Task, TaskType, Timestamp};
use serde_json::Value;

use crate::{advance::Walk, decide::Rules, program::Work};

/// What a step comes to.
pub(crate) enum Next {
    /// A task for a runner.
    Task(Box<Task>),
    /// It succeeded here and now, and the `skip` steps after it are skipped.
    Settled {
        output: Value,
        message: String,
        skip: usize,
    },
    /// It is skipped itself, on purpose.
    Skipped { output: Value, message: String },
    /// It failed here and now.
    Failed {
        reason: StepFailure,
        message: String,
        output: Option<Value>,
    },
}

/// What the step at `index` comes to.
pub(crate) fn next(walk: &Walk<'_>, index: usize, now: Timestamp, rules: &Rules) -> Next {
    match &walk.definition.step(index).work {
        Work::Cli(work) => cli::next(walk, index, work, now, rules),
        Work::Agent { goal } => agent::next(walk, index, goal, now),
        Work::Conditional { condition, on_false } => conditional::next(walk, index, condition, *on_false),
    }
}

/// The task of the step at `index`, handed out `now`.
fn task(walk: &Walk<'_>, index: usize, task_type: TaskType, work: Value, now: Timestamp) -> Next {
    let start = walk.state.start();
    let step = &walk.definition.spec().steps[index];
    Next::Task(Box::new(Task {
        namespace: start.namespace.clone(),
        execution: start.execution,
        workflow: start.workflow.clone(),
        step: walk.name(index),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        attempt: Attempt::FIRST,
        task_type,
        dispatched_at: now,
        deadline: now.after(Duration::from_millis(step.timeout_ms)),
        timeout: limit_in_words(step.timeout_ms, step.is_timeout_in_seconds),
        work,
    }))
}

/// A time limit as its author wrote it.
fn limit_in_words(timeout_ms: u64, is_in_seconds: bool) -> String {
    let seconds = timeout_ms / 1000;
    match (seconds / 60, seconds % 60) {
        _ if is_in_seconds => format!("{seconds} s (timeout_seconds: {seconds})"),
        (1, 0) => "1 minute (timeout_minutes: 1)".to_owned(),
        (minutes, 0) => format!("{minutes} minutes (timeout_minutes: {minutes})"),
        _ => format!("{seconds} s (timeout_seconds: {seconds})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_names_the_field_that_was_set() {
        for (ms, is_in_seconds, words) in [
            (600_000, false, "10 minutes (timeout_minutes: 10)"),
            (60_000, false, "1 minute (timeout_minutes: 1)"),
            (120_000, true, "120 s (timeout_seconds: 120)"),
            (90_000, true, "90 s (timeout_seconds: 90)"),
        ] {
            assert_eq!(limit_in_words(ms, is_in_seconds), words);
        }
    }
}
