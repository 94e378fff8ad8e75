//! Instead: what was decided is too large for a message of the log, so the execution ends and says so.
//!
//! Invariant: the end is small whatever it stands for. Of the records it keeps how each step stands, not what it
//! left.

use protocol::{
    Attempt, End, EndStatus, LaneAction, StepError, StepFailure, StepName, StepRecord, StepStatus, Timestamp,
};

use super::{Planned, failed, the_end};
use crate::state::State;

/// Longest reason that is repeated.
const WHY_CHARS_MAX: usize = 1000;

/// The end that takes the place of `planned`, which the log refused because of `why`.
pub fn instead_of(state: &State, planned: &Planned, why: &str, now: Timestamp) -> Planned {
    let why: String = why.chars().take(WHY_CHARS_MAX).collect();
    let mut records: Vec<StepRecord> = planned.append.records.iter().map(bare).collect();
    let over = match &planned.append.action {
        LaneAction::Task(task) => {
            let message = format!(
                "its task cannot be handed out: {why}; write less into its {}, and let the step fetch what is large",
                match task.task_type.as_str() {
                    "cli" => "command and env",
                    _ => "goal",
                }
            );
            let (step, index, attempt) = (task.step.clone(), task.index, task.attempt);
            records.push(failure(step, index, attempt, &message, now));
            failed(&task.step, &message, now)
        }
        LaneAction::End(decided) => not_recorded(&why, decided.failed_step.clone(), now),
        LaneAction::Plan(_) => not_recorded(&why, None, now),
    };
    the_end(state, planned.append.cause.clone(), records, over)
}

fn not_recorded(why: &str, failed_step: Option<StepName>, at: Timestamp) -> End {
    End {
        status: EndStatus::Failed,
        error: Some(format!("what its steps came to cannot be recorded: {why}")),
        failed_step,
        at,
    }
}

/// How a step stands, without what it left.
fn bare(record: &StepRecord) -> StepRecord {
    StepRecord {
        output: None,
        message: None,
        error: record.error.as_ref().map(|error| StepError {
            reason: error.reason,
            message: error.message.chars().take(WHY_CHARS_MAX).collect(),
        }),
        step: record.step.clone(),
        ..*record
    }
}

fn failure(step: StepName, index: u32, attempt: Attempt, message: &str, at: Timestamp) -> StepRecord {
    StepRecord {
        step,
        index,
        attempt,
        status: StepStatus::Failed,
        output: None,
        error: Some(StepError {
            reason: StepFailure::Template,
            message: message.to_owned(),
        }),
        message: None,
        at,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use protocol::{
        Append, Cause, ExecutionId, Input, Json, Namespace, Start, Subject, WorkflowName, lane::StepStatus,
    };
    use serde_json::json;

    use super::*;
    use crate::Definition;

    #[test]
    fn the_end_is_small_and_says_how_each_step_stands() {
        let spec =
            json!({ "steps": [{ "name": "c", "type": "conditional", "condition": "source.data.x == 1" }] });
        let start = Start {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["instead"]),
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&spec).unwrap(),
            input: Json::of(&Input::default()).unwrap(),
            delivery: None,
            uid: None,
        };
        let definition = Definition::compile(serde_json::from_value(spec).unwrap()).unwrap();
        let state = State::new(&start, Ok(Arc::new(definition)));
        let at = Timestamp::from_millis(1_000);
        let planned = Planned {
            subject: Subject::Note(Namespace::default(), ExecutionId::derive(&["instead"])),
            timers: Vec::new(),
            append: Append {
                cause: Cause {
                    subject: "fist.fact.default.x.start".into(),
                    seq: 7,
                },
                records: vec![StepRecord {
                    step: StepName::new("c").unwrap(),
                    index: 0,
                    attempt: Attempt::FIRST,
                    status: StepStatus::Succeeded,
                    output: Some(json!("o".repeat(2_000_000))),
                    error: None,
                    message: Some("m".repeat(2_000_000)),
                    at,
                }],
                action: LaneAction::End(End {
                    status: EndStatus::Succeeded,
                    error: None,
                    failed_step: None,
                    at,
                }),
            },
        };
        let end = instead_of(&state, &planned, "it is too large", at);
        assert_eq!(end.append.cause, planned.append.cause);
        assert_eq!(end.append.records[0].status, StepStatus::Succeeded);
        assert!(serde_json::to_string(&end.append).unwrap().len() < 1_000);
        let LaneAction::End(over) = &end.append.action else {
            panic!("{:?}", end.append.action);
        };
        assert_eq!(over.status, EndStatus::Failed);
        assert!(
            over.error
                .as_deref()
                .is_some_and(|error| error.contains("it is too large"))
        );
    }
}
