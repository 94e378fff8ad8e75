//! What is derived from a record's parts: status, counts, outputs, and the views that readers get.
//!
//! Invariant: everything here is a function of the record, so that no order of messages shows.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    Attempt, EndStatus, ExecutionId, Outcome, StepName, StepStatus, Timestamp,
    views::{ExecutionStatus, ExecutionSummary, ExecutionView, StepView},
};
use serde_json::{Map, Value, json};

use super::{AttemptParts, DeclaredStep, DonePart, Record, shown_text};

impl Record {
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
    /// Whether it is known how the attempt ended.
    pub(super) fn has_verdict(&self) -> bool {
        self.verdict().is_some()
    }

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
