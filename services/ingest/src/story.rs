//! What happened in an execution, told from the messages of the log one by one: the events of the API.
//!
//! Invariant: an attempt completes once: what a runner says of it later is not told. The scheduler has the last
//! word: where it found out otherwise (a timeout it had seen first), that is told too.

use std::collections::HashMap;

use bus::LogMessage;
use protocol::{
    Append, Attempt, Body, End, EndStatus, Fact, LaneAction, Outcome, StepName, StepRecord, StepStatus,
    Subject, Task, Timestamp, decode,
    live::{Live, Stream},
    turns::Turn,
    views::{ExecutionStatus, ExecutionView},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One event, as the API gives it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Event {
    /// The message's sequence in the log; null for live progress and for what is told from the record.
    pub seq: Option<u64>,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which step.
    pub step: Option<String>,
    /// Which attempt.
    pub attempt: Option<u32>,
    /// How the step, or the execution, stands now.
    pub status: Option<&'static str>,
    /// What there is to say.
    pub message: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the step left, or the tool gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// What only this kind has.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Event {
    fn new(kind: &'static str, at: Timestamp) -> Self {
        Self {
            kind,
            at,
            ..Self::default()
        }
    }

    fn of_step(kind: &'static str, at: Timestamp, step: &StepName, attempt: Attempt) -> Self {
        Self {
            step: Some(step.to_string()),
            attempt: Some(attempt.get()),
            ..Self::new(kind, at)
        }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        self.kind == "execution.completed"
    }

    /// Live progress; `None` for what this build does not know.
    pub fn of_progress(message: &LogMessage, step: &StepName, attempt: Attempt) -> Option<Self> {
        let body = decode::<Live>(&message.payload).ok()?.body;
        let event = |kind| Self::of_step(kind, message.at, step, attempt);
        Some(match body {
            Live::Line { stream, text } => Self {
                message: Some(text),
                ..event("log.line")
            }
            .with(
                "stream",
                match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                },
            ),
            Live::ToolCall { tool, arguments } => event("agent.tool_call")
                .with("tool", tool)
                .with("arguments", arguments),
            Live::Says { text } => Self {
                message: Some(text),
                ..event("agent.says")
            },
        })
    }
}

/// Tells an execution's messages, read in the order of the log.
#[derive(Debug, Default)]
pub struct Story {
    completed: HashMap<(StepName, Attempt), &'static str>,
    has_ended: bool,
}

impl Story {
    /// What this message tells; nothing where it is for others, or cannot be read.
    pub fn read(&mut self, message: &LogMessage) -> Vec<Event> {
        if self.has_ended {
            return Vec::new();
        }
        let mut events = match Subject::parse(&message.subject) {
            Ok(Subject::Turn(_, _, step, attempt, _)) => turn(message, &step, attempt).into_iter().collect(),
            Ok(Subject::Command(..) | Subject::Note(..) | Subject::Cancel(..)) => self.lane(message),
            Ok(_) => self.fact(message).into_iter().collect(),
            Err(_) => Vec::new(),
        };
        for event in &mut events {
            event.seq = Some(message.seq);
        }
        events
    }

    fn fact(&mut self, message: &LogMessage) -> Option<Event> {
        match decode::<Fact>(&message.payload).ok()?.body {
            Fact::Start(start) => {
                let steps: Vec<Value> = start.spec.read()["steps"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|step| json!({ "name": step["name"], "type": step["type"] }))
                    .collect();
                let event = Event {
                    status: Some(ExecutionStatus::Pending.as_str()),
                    ..Event::new("execution.accepted", message.at)
                };
                Some(
                    event
                        .with("id", start.execution.to_string())
                        .with("name", start.workflow.as_str())
                        .with("namespace", start.namespace.as_str())
                        .with("trigger_source", start.trigger_source)
                        .with("total_steps", steps.len())
                        .with("steps", steps),
                )
            }
            Fact::Done(done) => {
                let attempt = (done.step.clone(), done.attempt);
                if self.completed.contains_key(&attempt) {
                    return None;
                }
                let mut event = Event::of_step("step.completed", message.at, &done.step, done.attempt)
                    .with("duration_ms", duration_ms(done.started_at, done.completed_at));
                event.output = done.output.as_ref().map(shown);
                let status = match done.outcome {
                    Outcome::Succeeded => StepStatus::Succeeded,
                    Outcome::Skipped { message } => {
                        event.message = Some(message);
                        StepStatus::Skipped
                    }
                    Outcome::Failed(error) => {
                        event.error = Some(error.message);
                        StepStatus::Failed
                    }
                };
                event.status = Some(status.as_str());
                self.completed.insert(attempt, status.as_str());
                Some(event)
            }
            Fact::Cancel(cancel) => Some(Event {
                message: Some(cancel.reason),
                ..Event::new("execution.cancel_requested", message.at)
            }),
            Fact::Begun(_) | Fact::Dead(_) | Fact::Timer(_) => None,
        }
    }

    fn lane(&mut self, message: &LogMessage) -> Vec<Event> {
        let Ok(envelope) = decode::<Append>(&message.payload) else {
            return Vec::new();
        };
        let Append { records, action, .. } = envelope.body;
        let mut events: Vec<Event> = records
            .iter()
            .filter_map(|record| self.record(record, message.at))
            .collect();
        match action {
            LaneAction::Task(task) => events.push(started(&task, message.at)),
            // Each of these follows in a message of its own.
            LaneAction::Plan(_) => {}
            LaneAction::End(end) => {
                self.has_ended = true;
                events.push(ended(end, message.at));
            }
        }
        events
    }

    fn record(&mut self, record: &StepRecord, at: Timestamp) -> Option<Event> {
        let is_terminal = record.status.is_terminal();
        let status = record.status.as_str();
        if is_terminal
            && self
                .completed
                .insert((record.step.clone(), record.attempt), status)
                == Some(status)
        {
            return None;
        }
        let kind = if is_terminal {
            "step.completed"
        } else {
            "step.started"
        };
        Some(Event {
            status: Some(status),
            message: record.message.clone(),
            error: record.error.as_ref().map(|error| error.message.clone()),
            output: record.output.clone(),
            ..Event::of_step(kind, at, &record.step, record.attempt)
        })
    }
}

fn started(task: &Task, at: Timestamp) -> Event {
    Event {
        status: Some(StepStatus::Running.as_str()),
        ..Event::of_step("step.started", at, &task.step, task.attempt)
    }
    .with("step_type", task.task_type.as_str())
    .with("deadline", task.deadline.to_string())
    .with("timeout", task.timeout.as_str())
}

fn ended(end: End, at: Timestamp) -> Event {
    Event {
        status: Some(status_of(end.status).as_str()),
        error: end.error,
        step: end.failed_step.map(|step| step.to_string()),
        ..Event::new("execution.completed", at)
    }
}

/// The state of an execution that ended so.
pub fn status_of(end: EndStatus) -> ExecutionStatus {
    match end {
        EndStatus::Succeeded => ExecutionStatus::Succeeded,
        EndStatus::Failed => ExecutionStatus::Failed,
        EndStatus::Cancelled => ExecutionStatus::Cancelled,
    }
}

fn turn(message: &LogMessage, step: &StepName, attempt: Attempt) -> Option<Event> {
    let event = |kind| Event::of_step(kind, message.at, step, attempt);
    Some(match decode::<Turn>(&message.payload).ok()?.body {
        Turn::Model(turn) => {
            let calls: Vec<Value> = turn.calls.iter().map(|call| json!(call)).collect();
            Event {
                message: Some(turn.text),
                ..event("agent.turn")
            }
            .with("turn", turn.turn)
            .with("calls", calls)
            .with("stop_reason", turn.stop_reason)
            .with("usage", json!(turn.usage))
        }
        Turn::Tool(tool) => {
            let result = shown(&tool.result);
            let text = || result.as_str().map_or_else(|| result.to_string(), str::to_owned);
            Event {
                error: tool.is_error.then(text),
                output: Some(result.clone()),
                ..event("agent.tool")
            }
            .with("call_id", tool.call_id)
            .with("tool", tool.tool)
            .with("arguments", tool.arguments)
            .with("is_error", tool.is_error)
            .with("duration_ms", duration_ms(tool.started_at, tool.at))
        }
    })
}

/// An execution that the log no longer holds, told from its record.
pub fn recorded(view: &ExecutionView) -> Vec<Event> {
    let summary = &view.summary;
    let steps: Vec<Value> = view
        .steps
        .iter()
        .map(|step| json!({ "name": step.name, "type": step.step_type }))
        .collect();
    let accepted = Event {
        status: Some(ExecutionStatus::Pending.as_str()),
        ..Event::new("execution.accepted", summary.created_at)
    };
    let mut events = vec![
        accepted
            .with("id", summary.id.to_string())
            .with("name", summary.name.as_str())
            .with("namespace", summary.namespace.as_str())
            .with("trigger_source", summary.trigger_source.as_str())
            .with("total_steps", summary.total_steps)
            .with("steps", steps),
    ];
    for step in view.steps.iter().filter(|step| step.attempt > 0) {
        let event = |kind, at: Option<Timestamp>| Event {
            step: Some(step.name.clone()),
            attempt: Some(step.attempt),
            ..Event::new(kind, at.unwrap_or(summary.created_at))
        };
        if step.started_at.is_some() {
            let started = event("step.started", step.started_at);
            events.push(
                Event {
                    status: Some(StepStatus::Running.as_str()),
                    ..started
                }
                .with("step_type", step.step_type.as_str()),
            );
        }
        if step.status.is_terminal() {
            events.push(Event {
                status: Some(step.status.as_str()),
                message: step.message.clone(),
                error: step.error.clone(),
                output: step.output.clone(),
                ..event("step.completed", step.completed_at)
            });
        }
    }
    if summary.status.is_terminal() {
        events.push(Event {
            status: Some(summary.status.as_str()),
            error: summary.error.clone(),
            ..Event::new(
                "execution.completed",
                summary.completed_at.unwrap_or(summary.created_at),
            )
        });
    }
    events
}

/// A body as views show it: itself, or where the whole is and a preview.
pub fn shown(body: &Body) -> Value {
    match body {
        Body::Inline(value) => value.clone(),
        Body::Blob { blob, preview } => json!({ "blob": blob, "preview": preview }),
    }
}

fn duration_ms(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protocol::{Cause, Done, ExecutionId, Namespace, StepError, StepFailure, encode};

    use super::*;

    fn message(seq: u64, subject: &Subject, payload: Vec<u8>) -> LogMessage {
        LogMessage {
            subject: subject.to_string(),
            seq,
            at: Timestamp::from_millis(1_000 * i64::try_from(seq).unwrap()),
            payload: payload.into(),
            caller: None,
        }
    }

    fn ids() -> (Namespace, ExecutionId, StepName) {
        (
            Namespace::default(),
            ExecutionId::derive(&["x"]),
            StepName::new("look").unwrap(),
        )
    }

    fn done(seq: u64) -> LogMessage {
        let (namespace, id, step) = ids();
        let at = Timestamp::default();
        let fact = Fact::Done(Done {
            step: step.clone(),
            attempt: Attempt::FIRST,
            outcome: Outcome::Succeeded,
            output: None,
            started_at: at,
            completed_at: at,
            runner: String::new(),
        });
        let subject = Subject::Done(namespace, id, step, Attempt::FIRST);
        message(seq, &subject, encode(at, &fact))
    }

    /// The scheduler ends the execution because the step's time ran out.
    fn timed_out(seq: u64) -> LogMessage {
        let (namespace, id, step) = ids();
        let at = Timestamp::default();
        let record = StepRecord {
            step: step.clone(),
            index: 0,
            attempt: Attempt::FIRST,
            status: StepStatus::Failed,
            output: None,
            error: Some(StepError {
                reason: StepFailure::Timeout,
                message: "it took longer than 1 minute".into(),
            }),
            message: None,
            at,
        };
        let append = Append {
            cause: Cause {
                subject: "x".into(),
                seq: 1,
            },
            records: vec![record],
            action: LaneAction::End(End {
                status: EndStatus::Failed,
                error: Some("step look failed".into()),
                failed_step: Some(step),
                at,
            }),
        };
        message(seq, &Subject::Note(namespace, id), encode(at, &append))
    }

    fn told(messages: &[LogMessage]) -> Vec<String> {
        let mut story = Story::default();
        let events = messages.iter().flat_map(|message| story.read(message));
        let shown = |event: Event| {
            format!(
                "{:?} {} {:?}",
                event.seq,
                event.kind,
                event.status.unwrap_or_default()
            )
        };
        events.map(shown).collect()
    }

    #[test]
    fn a_runner_that_was_too_late_is_not_told() {
        assert_eq!(
            told(&[timed_out(2), done(3)]),
            [
                r#"Some(2) step.completed "Failed""#,
                r#"Some(2) execution.completed "Failed""#
            ]
        );
        assert_eq!(
            told(&[done(2), done(3)]),
            [r#"Some(2) step.completed "Succeeded""#]
        );
    }

    #[test]
    fn the_scheduler_has_the_last_word() {
        assert_eq!(
            told(&[done(2), timed_out(3)]),
            [
                r#"Some(2) step.completed "Succeeded""#,
                r#"Some(3) step.completed "Failed""#,
                r#"Some(3) execution.completed "Failed""#,
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let (namespace, id, _) = ids();
        let messages = [
            message(1, &Subject::Note(namespace, id), b"nonsense".to_vec()),
            LogMessage {
                subject: "other".into(),
                ..done(2)
            },
        ];
        assert_eq!(told(&messages), Vec::<String>::new());
    }
}
