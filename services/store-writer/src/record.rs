//! The record of one execution: a fold of what its messages say.
//!
//! Invariants:
//! - The fold is a join: any order of the messages, and any repetition, gives the same record. Replicas
//!   share one consumer, so messages of one execution are applied out of order and more than once.
//! - Parts are kept as they came; status, counts, outputs and errors are derived from them when they are
//!   read, and nothing derived is ever folded.
//! - The scheduler's verdict on an attempt stands over the runner's: a runner that reports after its
//!   time-out changes what is shown of its output, never the outcome.
//! - An execution's end is the first end in the log, and no later message changes it.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    Attempt, Body, EndStatus, Namespace, Outcome, StepError, StepName, StepStatus, Timestamp, WorkflowName,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reading::Change;

mod view;

/// What is known of one execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// From the start fact; absent while only later messages were applied.
    pub start: Option<StartPart>,
    /// By step and attempt.
    pub attempts: BTreeMap<(StepName, Attempt), AttemptParts>,
    /// From the first end in the log.
    pub end: Option<EndPart>,
    /// The highest sequence among the messages applied.
    pub last_seq: u64,
}

/// What the start fact says.
#[derive(Clone, Debug, PartialEq)]
pub struct StartPart {
    /// The fact's sequence.
    pub seq: u64,
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// The workflow's name.
    pub name: WorkflowName,
    /// What started it.
    pub trigger_source: String,
    /// The workflow's steps, in order.
    pub steps: Vec<DeclaredStep>,
    /// The input as templates see it.
    pub input_context: Value,
    /// When the log took the fact.
    pub created_at: Timestamp,
}

/// A step as the definition declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredStep {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub step_type: String,
}

/// What is known of one attempt at a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttemptParts {
    /// When it was handed out, the first time.
    pub dispatched: Option<DispatchedPart>,
    /// What the scheduler found out, the last time.
    pub recorded: Option<RecordedPart>,
    /// What its runner reported.
    pub done: Option<DonePart>,
}

/// An attempt was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DispatchedPart {
    /// The command's sequence.
    pub seq: u64,
    /// When it was handed out.
    pub at: Timestamp,
}

/// The scheduler found something out about an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedPart {
    /// Sequence of the message that says so.
    pub seq: u64,
    /// Place among the records of that message.
    pub place: u32,
    /// How the step stands.
    pub status: StepStatus,
    /// Why it failed.
    pub error: Option<StepError>,
    /// Why it was skipped, or how a condition came out.
    pub message: Option<String>,
    /// When the scheduler decided it.
    pub at: Timestamp,
    /// What the step left, where the scheduler itself knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
}

/// A runner reported the end of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DonePart {
    /// The fact's sequence.
    pub seq: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// When the runner began.
    pub started_at: Timestamp,
    /// When the runner had the outcome.
    pub completed_at: Timestamp,
    /// What it left, as readers see it; the store keeps it in a column of its own.
    #[serde(skip)]
    pub output: Option<Value>,
}

/// The execution is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndPart {
    /// Sequence of the message that says so.
    pub seq: u64,
    /// How it ended.
    pub status: EndStatus,
    /// Why.
    pub error: Option<String>,
    /// The step that failed.
    pub failed_step: Option<StepName>,
    /// When.
    pub at: Timestamp,
}

/// A piece of a record, from one message.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Named like the fields they fill.
pub enum Part {
    Start(StartPart),
    Dispatched(StepName, Attempt, DispatchedPart),
    Recorded(StepName, Attempt, RecordedPart),
    Done(StepName, Attempt, DonePart),
    End(EndPart),
}

/// Which rows of a record a change touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The execution's own row.
    pub execution: bool,
    /// What the start fact gives to that row.
    pub start: bool,
    /// Rows of attempts.
    pub attempts: BTreeSet<(StepName, Attempt)>,
}

/// `body` as readers see it: the value, or the reference to it with its preview.
pub fn shown_body(body: Body) -> Value {
    match body {
        Body::Inline(value) => value,
        Body::Blob { blob, preview } => json!({ "blob": blob, "preview": preview }),
    }
}

/// Text that every database takes: PostgreSQL refuses NUL in text.
pub fn shown_text(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// Puts `new` where nothing is, or where what is there came later in the log.
fn keep_first<T>(slot: &mut Option<T>, new: T, seq: impl Fn(&T) -> u64) -> bool {
    let wins = slot.as_ref().is_none_or(|old| seq(&new) < seq(old));
    if wins {
        *slot = Some(new);
    }
    wins
}

impl Record {
    /// Joins what one message says into the record, and notes in `touched` which rows that changes.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        if change.seq > self.last_seq {
            self.last_seq = change.seq;
            touched.execution = true;
        }
        for part in change.parts {
            self.join(part, touched);
        }
    }

    fn join(&mut self, part: Part, touched: &mut Touched) {
        match part {
            Part::Start(start) => {
                if keep_first(&mut self.start, start, |part| part.seq) {
                    // Type and place of every attempt come from the declaration.
                    touched.attempts.extend(self.attempts.keys().cloned());
                    touched.execution = true;
                    touched.start = true;
                }
            }
            Part::End(end) => {
                if keep_first(&mut self.end, end, |part| part.seq) {
                    // An attempt without a verdict is over with its execution.
                    let open = self.attempts.iter().filter(|(_, parts)| !parts.has_verdict());
                    touched.attempts.extend(open.map(|(key, _)| key.clone()));
                    touched.execution = true;
                }
            }
            Part::Dispatched(step, attempt, part) => {
                let key = (step, attempt);
                let slot = &mut self.attempts.entry(key.clone()).or_default().dispatched;
                if keep_first(slot, part, |part| part.seq) {
                    touched.attempt(key);
                }
            }
            Part::Recorded(step, attempt, part) => {
                let key = (step, attempt);
                let slot = &mut self.attempts.entry(key.clone()).or_default().recorded;
                // The scheduler may say more than once how a step stands; the last word counts.
                if slot
                    .as_ref()
                    .is_none_or(|old| (part.seq, part.place) > (old.seq, old.place))
                {
                    *slot = Some(part);
                    touched.attempt(key);
                }
            }
            Part::Done(step, attempt, part) => {
                let key = (step, attempt);
                let slot = &mut self.attempts.entry(key.clone()).or_default().done;
                if keep_first(slot, part, |part| part.seq) {
                    touched.attempt(key);
                }
            }
        }
    }
}

impl Touched {
    fn attempt(&mut self, key: (StepName, Attempt)) {
        self.attempts.insert(key);
        // Status and counts of the execution are derived from its attempts.
        self.execution = true;
    }

    /// Whether nothing has to be written.
    pub fn is_empty(&self) -> bool {
        !self.execution && self.attempts.is_empty()
    }
}

#[cfg(test)]
mod tests;
