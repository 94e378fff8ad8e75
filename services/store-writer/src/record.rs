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
    Attempt, Body, EndStatus, ExecutionId, Namespace, Outcome, StepError, StepName, StepStatus, Timestamp,
    WorkflowName,
    views::{ExecutionStatus, ExecutionSummary, ExecutionView, StepView},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::reading::Change;

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
                    let open = self
                        .attempts
                        .iter()
                        .filter(|(_, parts)| parts.verdict().is_none());
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

    /// How the execution stands.
    pub fn status(&self) -> ExecutionStatus {
        match &self.end {
            Some(end) => match end.status {
                EndStatus::Succeeded => ExecutionStatus::Succeeded,
                EndStatus::Failed => ExecutionStatus::Failed,
                EndStatus::Cancelled => ExecutionStatus::Cancelled,
            },
            None if self.attempts.is_empty() => ExecutionStatus::Pending,
            None => ExecutionStatus::Running,
        }
    }

    /// Whether nothing is missing that this execution's readers could still expect: it succeeded, and
    /// every step has its outcome. Other ends may still be followed by the report of a stopped runner.
    pub fn is_settled(&self) -> bool {
        let succeeded = self.status() == ExecutionStatus::Succeeded;
        let Some(start) = &self.start else { return false };
        succeeded && self.steps_completed() as usize == start.steps.len()
    }

    /// Steps that are Succeeded, Failed or Skipped, by their latest attempt.
    pub fn steps_completed(&self) -> u32 {
        let latest = self.latest_attempts().into_values();
        let completed = latest.filter(|attempt| attempt.status.is_terminal());
        u32::try_from(completed.count()).unwrap_or(u32::MAX)
    }

    /// Steps in the workflow; 0 while the start is unknown.
    pub fn total_steps(&self) -> u32 {
        let steps = self.start.as_ref().map_or(0, |start| start.steps.len());
        u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// The first step, in the workflow's order, that runs.
    pub fn current_step(&self) -> Option<String> {
        let latest = self.latest_attempts();
        let running = latest
            .iter()
            .filter(|(_, attempt)| attempt.status == StepStatus::Running);
        let first = running.min_by_key(|(name, _)| self.place(name))?;
        Some(first.0.to_string())
    }

    /// When its first step was handed out or decided.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.attempts.values().filter_map(AttemptParts::started_at).min()
    }

    /// The outputs once it is over.
    pub fn outputs(&self) -> Option<Value> {
        let end = self.end.as_ref()?;
        let failed_step = match end.status {
            EndStatus::Succeeded => None,
            EndStatus::Failed => end.failed_step.clone(),
            EndStatus::Cancelled => end.failed_step.clone().or_else(|| self.step_cut_off()),
        };
        let latest = self.latest_attempts();
        let mut finished: Vec<(usize, &StepName, Value)> = Vec::new();
        for (name, attempt) in &latest {
            let output = attempt.parts.output().cloned();
            match (attempt.status, output) {
                _ if failed_step.as_ref() == Some(*name) => {}
                (StepStatus::Succeeded, output) => {
                    finished.push((self.place(name), name, output.unwrap_or(Value::Null)))
                }
                (StepStatus::Skipped, Some(output)) => finished.push((self.place(name), name, output)),
                _ => {}
            }
        }
        finished.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let finished: Map<String, Value> = finished
            .into_iter()
            .map(|(_, name, output)| (name.to_string(), output))
            .collect();
        if end.status == EndStatus::Succeeded {
            return Some(json!({ "steps": finished }));
        }
        let failed_output = failed_step
            .as_ref()
            .and_then(|name| latest.get(name)?.parts.output());
        Some(json!({
            "error": end.error,
            "failed_step": failed_step,
            "outputs": finished,
            "failed_step_output": failed_output,
        }))
    }

    /// The record as lists show it; `None` while the start is unknown.
    pub fn summary(&self, id: ExecutionId) -> Option<ExecutionSummary> {
        let start = self.start.as_ref()?;
        Some(ExecutionSummary {
            id,
            name: start.name.clone(),
            namespace: start.namespace.clone(),
            trigger_source: start.trigger_source.clone(),
            status: self.status(),
            steps_completed: self.steps_completed(),
            total_steps: self.total_steps(),
            current_step: self.current_step(),
            error: self.end.as_ref().and_then(|end| end.error.clone()),
            started_at: self.started_at(),
            completed_at: self.end.as_ref().map(|end| end.at),
            created_at: start.created_at,
        })
    }

    /// The whole record; `None` while the start is unknown.
    pub fn view(&self, id: ExecutionId) -> Option<ExecutionView> {
        let start = self.start.as_ref()?;
        Some(ExecutionView {
            summary: self.summary(id)?,
            input_context: start.input_context.clone(),
            outputs: self.outputs(),
            steps: self.step_views(),
        })
    }

    /// One attempt as readers see it.
    pub fn attempt_view(&self, step: &StepName, attempt: Attempt) -> Option<StepView> {
        let parts = self.attempts.get(&(step.clone(), attempt))?;
        let place = self.place(step);
        let declared = self.start.as_ref().and_then(|start| start.steps.get(place));
        let verdict = self.verdict(parts);
        Some(StepView {
            name: step.to_string(),
            step_type: declared.map(|step| step.step_type.clone()).unwrap_or_default(),
            status: verdict.status,
            attempt: attempt.get(),
            started_at: parts.started_at(),
            completed_at: verdict.at,
            output: parts.output().cloned(),
            error: verdict.error,
            message: verdict.message,
        })
    }

    /// Place of a step in the workflow, from 0; behind all others where it is not declared.
    pub fn place(&self, step: &StepName) -> usize {
        let start = self.start.as_ref();
        let place = start.and_then(|start| {
            start
                .steps
                .iter()
                .position(|declared| declared.name == step.as_str())
        });
        place.unwrap_or(usize::MAX)
    }

    fn step_views(&self) -> Vec<StepView> {
        let declared = self
            .start
            .as_ref()
            .map(|start| start.steps.as_slice())
            .unwrap_or_default();
        let mut views: Vec<(usize, StepView)> = self
            .attempts
            .keys()
            .filter_map(|(step, attempt)| Some((self.place(step), self.attempt_view(step, *attempt)?)))
            .collect();
        let tried: BTreeSet<&str> = self.attempts.keys().map(|(step, _)| step.as_str()).collect();
        for (place, step) in declared.iter().enumerate() {
            if !tried.contains(step.name.as_str()) {
                views.push((place, pending(step)));
            }
        }
        views.sort_by_key(|(place, view)| (*place, view.attempt));
        views.into_iter().map(|(_, view)| view).collect()
    }

    fn latest_attempts(&self) -> BTreeMap<&StepName, Latest<'_>> {
        let mut latest = BTreeMap::new();
        // Attempts come in rising order, so the last one of a step stays.
        for ((step, _), parts) in &self.attempts {
            let status = self.verdict(parts).status;
            latest.insert(step, Latest { parts, status });
        }
        latest
    }

    /// The first step that had no verdict yet when the execution ended.
    fn step_cut_off(&self) -> Option<StepName> {
        let end = self.end.as_ref()?;
        let open = self.attempts.iter().filter(|(_, parts)| {
            parts.dispatched.is_some() && parts.verdict().is_none_or(|verdict| verdict.seq >= end.seq)
        });
        let first = open.min_by_key(|((step, _), _)| self.place(step))?;
        Some(first.0.0.clone())
    }

    /// How an attempt stands, the execution's end considered.
    fn verdict(&self, parts: &AttemptParts) -> Verdict {
        if let Some(verdict) = parts.verdict() {
            return verdict;
        }
        let running = Verdict {
            seq: 0,
            status: StepStatus::Running,
            error: None,
            message: None,
            at: None,
        };
        let Some(end) = &self.end else { return running };
        let why = match end.status {
            // Its report is on the way: a success leaves no step behind.
            EndStatus::Succeeded => return running,
            EndStatus::Failed => "the execution failed while this step ran",
            EndStatus::Cancelled => "the execution was cancelled while this step ran",
        };
        Verdict {
            status: StepStatus::Failed,
            error: Some(why.to_owned()),
            at: Some(end.at),
            ..running
        }
    }
}

struct Latest<'a> {
    parts: &'a AttemptParts,
    status: StepStatus,
}

/// How an attempt ended.
struct Verdict {
    seq: u64,
    status: StepStatus,
    error: Option<String>,
    message: Option<String>,
    at: Option<Timestamp>,
}

impl AttemptParts {
    /// The scheduler's verdict, else the runner's.
    fn verdict(&self) -> Option<Verdict> {
        let recorded = self.recorded.as_ref().filter(|part| part.status.is_terminal());
        let recorded = recorded.map(|part| Verdict {
            seq: part.seq,
            status: part.status,
            error: part.error.as_ref().map(|error| shown_text(&error.message)),
            message: part.message.as_deref().map(shown_text),
            at: Some(part.at),
        });
        recorded.or_else(|| self.done.as_ref().map(DonePart::verdict))
    }

    fn started_at(&self) -> Option<Timestamp> {
        let dispatched = self.dispatched.as_ref().map(|part| part.at);
        let recorded = || self.recorded.as_ref().map(|part| part.at);
        let done = || self.done.as_ref().map(|part| part.started_at);
        dispatched.or_else(done).or_else(recorded)
    }

    /// Shows `output` instead of what the attempt left. For views only: what is stored stays whole.
    pub fn replace_output(&mut self, output: Value) {
        match (&mut self.recorded, &mut self.done) {
            (Some(recorded), _) if recorded.output.is_some() => recorded.output = Some(output),
            (_, Some(done)) => done.output = Some(output),
            (_, None) => {}
        }
    }

    /// What the attempt left: what the scheduler says, else what the runner reported.
    pub fn output(&self) -> Option<&Value> {
        let recorded = self.recorded.as_ref().and_then(|part| part.output.as_ref());
        recorded.or_else(|| self.done.as_ref().and_then(|part| part.output.as_ref()))
    }
}

impl DonePart {
    fn verdict(&self) -> Verdict {
        let (status, error, message) = match &self.outcome {
            Outcome::Succeeded => (StepStatus::Succeeded, None, None),
            Outcome::Skipped { message } => (StepStatus::Skipped, None, Some(shown_text(message))),
            Outcome::Failed(error) => (StepStatus::Failed, Some(shown_text(&error.message)), None),
        };
        Verdict {
            seq: self.seq,
            status,
            error,
            message,
            at: Some(self.completed_at),
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

fn pending(step: &DeclaredStep) -> StepView {
    StepView {
        name: step.name.clone(),
        step_type: step.step_type.clone(),
        status: StepStatus::Pending,
        attempt: 0,
        started_at: None,
        completed_at: None,
        output: None,
        error: None,
        message: None,
    }
}

#[cfg(test)]
mod tests;
