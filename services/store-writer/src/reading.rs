//! What one message of the log means to the records: nothing, parts of an execution, or an alert.
//!
//! Invariant: reading looks at this one message only, so the same bytes always give the same reading.

use protocol::{
    Append, Attempt, DecodeError, Disposition, Done, Fact, LaneAction, Start, StepName, Subject, Timestamp,
    decode, ids::ExecutionId, subjects::SubjectError, views::ExecutionView,
};
use serde_json::Value;

use crate::record::{
    DeclaredStep, DispatchedPart, DonePart, EndPart, Part, RecordedPart, StartPart, shown_body, shown_text,
};

/// A message of the log, wherever it was read.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its sequence in the log.
    pub seq: u64,
    /// When the log took it.
    pub at: Timestamp,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// What a message means to the records.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// It changes the record of an execution.
    Change(Change),
    /// It is the disposition of an alert.
    Alert(Box<AlertEntry>),
    /// It is for others (an agent's turn).
    Nothing,
}

/// What one message says about one execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which execution.
    pub execution: ExecutionId,
    /// The message's sequence in the log.
    pub seq: u64,
    /// What it says; empty where it only moves the record's `last_seq`.
    pub parts: Vec<Part>,
}

/// A disposition and where it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertEntry {
    /// The message's sequence in the log.
    pub seq: u64,
    /// What became of the alert.
    pub disposition: Disposition,
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Not a subject of ours.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Not a body this build can read.
    #[error(transparent)]
    Body(#[from] DecodeError),
    /// The body speaks of something else than the subject.
    #[error("the body speaks of {body}, the subject of {subject}")]
    Contradiction {
        /// What the body names.
        body: String,
        /// What the subject names.
        subject: String,
    },
}

impl Unreadable {
    /// Whether a newer build could read it.
    pub fn is_from_a_newer_build(&self) -> bool {
        matches!(self, Self::Body(DecodeError::NewerVersion { .. }))
    }
}

/// Reads `message`.
///
/// # Errors
/// [`Unreadable`] where the subject or the body is none of ours.
pub fn read(message: Message<'_>) -> Result<Reading, Unreadable> {
    let change = |execution, parts| {
        Ok(Reading::Change(Change {
            execution,
            seq: message.seq,
            parts,
        }))
    };
    match Subject::parse(message.subject)? {
        Subject::Start(_, execution) => match fact(message)? {
            Fact::Start(start) if start.execution == execution => {
                change(execution, vec![Part::Start(start_part(*start, message))])
            }
            other => Err(contradiction(&other, message)),
        },
        Subject::Done(_, execution, step, attempt) => match fact(message)? {
            Fact::Done(done) if done.step == step && done.attempt == attempt => {
                change(execution, vec![done_part(step, attempt, done, message.seq)])
            }
            other => Err(contradiction(&other, message)),
        },
        Subject::Begun(_, execution, ..)
        | Subject::CancelRequest(_, execution, _)
        | Subject::Dead(_, execution, _)
        | Subject::Timer(_, execution, _) => {
            fact(message)?;
            change(execution, Vec::new())
        }
        Subject::Command(_, _, execution) | Subject::Note(_, execution) | Subject::Cancel(_, execution) => {
            let append = decode::<Append>(message.payload)?.body;
            change(execution, lane_parts(append, message.seq))
        }
        Subject::Disposition(..) => Ok(Reading::Alert(Box::new(AlertEntry {
            seq: message.seq,
            disposition: decode::<Disposition>(message.payload)?.body,
        }))),
        Subject::Turn(..)
        | Subject::Intake(_)
        | Subject::TimerSet(..)
        | Subject::TimerFire(..)
        | Subject::Live(..)
        | Subject::DeadLetter(_) => Ok(Reading::Nothing),
    }
}

fn fact(message: Message<'_>) -> Result<Fact, DecodeError> {
    Ok(decode::<Fact>(message.payload)?.body)
}

fn contradiction(fact: &Fact, message: Message<'_>) -> Unreadable {
    let body = match fact {
        Fact::Start(start) => format!("the start of {}", start.execution),
        Fact::Begun(begun) => format!("the beginning of {} attempt {}", begun.step, begun.attempt),
        Fact::Done(done) => format!("the end of {} attempt {}", done.step, done.attempt),
        Fact::Cancel(_) => "a request to cancel".to_owned(),
        Fact::Dead(_) => "a dead letter".to_owned(),
        Fact::Timer(_) => "a timer".to_owned(),
    };
    Unreadable::Contradiction {
        body,
        subject: message.subject.to_owned(),
    }
}

fn start_part(start: Start, message: Message<'_>) -> StartPart {
    let spec = start.spec.read();
    let declared = spec.get("steps").and_then(Value::as_array);
    let text = |step: &Value, key: &str| {
        step.get(key)
            .and_then(Value::as_str)
            .map(shown_text)
            .unwrap_or_default()
    };
    StartPart {
        seq: message.seq,
        namespace: start.namespace,
        name: start.workflow,
        trigger_source: shown_text(&start.trigger_source),
        steps: declared
            .into_iter()
            .flatten()
            .map(|step| DeclaredStep {
                name: text(step, "name"),
                step_type: text(step, "type"),
            })
            .collect(),
        input_context: ExecutionView::input_context(start.input.read()),
        created_at: message.at,
    }
}

fn done_part(step: StepName, attempt: Attempt, done: Done, seq: u64) -> Part {
    Part::Done(
        step,
        attempt,
        DonePart {
            seq,
            outcome: done.outcome,
            started_at: done.started_at,
            completed_at: done.completed_at,
            output: done.output.map(shown_body),
        },
    )
}

fn lane_parts(append: Append, seq: u64) -> Vec<Part> {
    let mut parts: Vec<Part> = (0..)
        .zip(append.records)
        .map(|(place, record)| {
            Part::Recorded(
                record.step,
                record.attempt,
                RecordedPart {
                    seq,
                    place,
                    status: record.status,
                    error: record.error,
                    message: record.message,
                    at: record.at,
                    output: record.output,
                },
            )
        })
        .collect();
    match append.action {
        LaneAction::Task(task) => parts.push(Part::Dispatched(
            task.step,
            task.attempt,
            DispatchedPart {
                seq,
                at: task.dispatched_at,
            },
        )),
        // Each planned task follows in a message of its own.
        LaneAction::Plan(_) => {}
        LaneAction::End(end) => parts.push(Part::End(EndPart {
            seq,
            status: end.status,
            error: end.error.as_deref().map(shown_text),
            failed_step: end.failed_step,
            at: end.at,
        })),
    }
    parts
}
