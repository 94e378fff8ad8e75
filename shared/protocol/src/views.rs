//! What readers see: the records as the API answers them, field for field.
//!
//! Invariant: the names here are the API's; `fist -o json` prints exactly these.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    alerts::{AlertStatus, DispositionKind},
    facts::Input,
    ids::{Attempt, ExecutionId, Namespace, SourceName, StepName, WorkflowName},
    lane::StepStatus,
    time::Timestamp,
    turns::ModelTurn,
};

/// States of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The variants are the terms of the manual.
pub enum ExecutionStatus {
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl ExecutionStatus {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing further happens.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// One execution, without its steps; the form of lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutionSummary {
    /// Which one.
    pub id: ExecutionId,
    /// Its workflow's name.
    pub name: WorkflowName,
    /// Where it belongs.
    pub namespace: Namespace,
    /// A source's name for alerts, else `api`, `cli` or `kubernetes`.
    pub trigger_source: String,
    /// How it stands.
    pub status: ExecutionStatus,
    /// Steps that are Succeeded, Failed or Skipped.
    pub steps_completed: u32,
    /// Steps in the workflow.
    pub total_steps: u32,
    /// The step that runs.
    pub current_step: Option<String>,
    /// Why it failed or was cancelled.
    pub error: Option<String>,
    /// When its first step was handed out or decided.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// One execution, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutionView {
    /// What lists show.
    #[serde(flatten)]
    pub summary: ExecutionSummary,
    /// `{"source": {"data": {…}}, "alert": {…}}` as templates saw it.
    pub input_context: Value,
    /// Success: `{"steps": {name: output}}`. Failure: `{"error", "failed_step", "outputs",
    /// "failed_step_output"}`. Null until the end.
    pub outputs: Option<Value>,
    /// One entry per step attempt, in the workflow's order; steps that have not run are Pending.
    pub steps: Vec<StepView>,
}

/// One attempt at a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// The step.
    pub name: String,
    /// `cli`, `agent`, `conditional`.
    #[serde(rename = "type")]
    pub step_type: String,
    /// How it stands.
    pub status: StepStatus,
    /// From 1; 0 where it has not been tried.
    pub attempt: u32,
    /// When it was handed out.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// What it left; a large one as `{"blob": {"sha256", "bytes"}, "preview": …}`.
    pub output: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it was skipped, or how a condition came out.
    pub message: Option<String>,
}

/// What the agents of an execution were asked, answered and got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TranscriptView {
    /// Which execution.
    pub id: ExecutionId,
    /// One entry per attempt at a step of type `agent`, in the order in which they were handed out.
    pub attempts: Vec<AttemptTranscript>,
    /// Whether turns are left out at the end, because the answer would be too large.
    pub truncated: bool,
}

/// The transcript of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptTranscript {
    /// The step.
    pub step: StepName,
    /// From 1.
    pub attempt: Attempt,
    /// The goal as rendered.
    pub goal: String,
    /// The tools it may use, by name.
    pub tools: Vec<String>,
    /// The alert as templates saw it; null where none started the execution.
    pub alert: Option<Value>,
    /// The namespace that tools look at and a fix may touch.
    pub namespace: String,
    /// When it was handed out.
    pub dispatched_at: Timestamp,
    /// What happened, in order.
    pub turns: Vec<TurnView>,
}

/// One point of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TurnView {
    /// The model answered.
    Model(ModelTurn),
    /// A tool gave its result.
    Tool(ToolTurnView),
}

/// What a tool gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolTurnView {
    /// The call it answers.
    pub call_id: String,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
    /// Whether it failed or was refused.
    pub is_error: bool,
    /// What the model was shown; one too large for the answer as `{"blob": {"sha256", "bytes"}, "preview": …}`.
    pub result: Value,
    /// When the call began.
    pub started_at: Timestamp,
    /// When the result was there.
    pub at: Timestamp,
}

/// One delivery of an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertView {
    /// `<identity>.<delivery>`.
    pub id: String,
    /// Where it came from.
    pub source: SourceName,
    /// The source's fingerprint; empty where it could not be read.
    pub fingerprint: String,
    /// Its name; empty where it could not be read.
    pub name: String,
    /// Firing or resolved; null where it could not be read.
    pub status: Option<AlertStatus>,
    /// Its labels.
    pub labels: Map<String, Value>,
    /// What became of it.
    pub disposition: DispositionKind,
    /// Why.
    pub reason: String,
    /// The executions it started, or was merged into.
    pub executions: Vec<ExecutionId>,
    /// When it was durable.
    pub received_at: Timestamp,
}

/// The balance of alerts: received equals the sum of the dispositions and what still waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertAudit {
    /// Messages that ever became durable in `FIST_ALERTS`.
    pub messages_received: u64,
    /// Of these, not yet processed.
    pub messages_waiting: u64,
    /// Of these, with a disposition for every alert in them.
    pub messages_recorded: u64,
    /// Alerts in the recorded messages.
    pub alerts: u64,
    /// Alerts by disposition; their sum equals `alerts`.
    pub dispositions: std::collections::BTreeMap<DispositionKind, u64>,
    /// Whether nothing is missing: received = waiting + recorded, and alerts = the sum.
    pub balanced: bool,
}

/// A definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowView {
    /// Its name.
    pub name: WorkflowName,
    /// Where it belongs.
    pub namespace: Namespace,
    /// The trigger's source, where it has one.
    pub trigger_source: Option<String>,
    /// Whether alerts start it.
    pub suspended: bool,
    /// How many steps.
    pub steps: u32,
    /// When it was last applied.
    pub updated_at: Timestamp,
    /// Counts its changes: the revision in the definitions bucket.
    pub generation: u64,
    /// The manifest in canonical form; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Value>,
}

/// A message that could not be processed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// Its sequence among the dead letters.
    pub id: u64,
    /// The subject it came on.
    pub subject: String,
    /// Its sequence in its own stream.
    pub seq: u64,
    /// Its stream.
    pub stream: String,
    /// Who could not process it.
    pub consumer: String,
    /// Why.
    pub reason: String,
    /// How often it was delivered.
    pub deliveries: u64,
    /// When it was set aside.
    pub at: Timestamp,
    /// The message as text, shortened.
    pub payload: String,
}

/// The budget of a namespace on the day that it is, in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetView {
    /// Whose agents it is for.
    pub namespace: Namespace,
    /// The day, as `2026-01-31`.
    pub day: String,
    /// Tokens that may be used, read and written.
    pub limit_tokens: u64,
    /// Tokens that are used.
    pub used_tokens: u64,
    /// Tokens that are set aside for calls under way.
    pub reserved_tokens: u64,
    /// Tokens that are neither.
    pub left_tokens: u64,
    /// What the used ones have cost in US dollars, as far as their models have a price; null where none has.
    pub cost_usd: Option<f64>,
    /// Used tokens whose model has no price.
    pub unpriced_tokens: u64,
    /// When the day ends.
    pub resets_at: Timestamp,
}

/// One page of a list, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Ask with this as `cursor` for the next page; null on the last.
    pub next: Option<String>,
}

impl ExecutionView {
    /// The input as `input_context` shows it.
    pub fn input_context(input: Input) -> Value {
        // The macro would copy the input.
        let source = Map::from_iter([("data".to_owned(), Value::Object(input.data))]);
        let alert = input.alert.map_or(Value::Null, Value::Object);
        Value::Object(Map::from_iter([
            ("source".to_owned(), Value::Object(source)),
            ("alert".to_owned(), alert),
        ]))
    }
}
