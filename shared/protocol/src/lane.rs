//! The command lane: what the scheduler decided, one message per fact that changed anything.
//!
//! Invariants:
//! - Every message of a lane names the fact that caused it, so that a redelivered fact is recognised.
//! - State is a fold of the lane and the facts it names; nothing is evaluated again on replay, because
//!   what the scheduler itself found out (conditions, skips, time-outs) is written in `records`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    facts::StepError,
    ids::{Attempt, ExecutionId, Namespace, StepName, TaskType, WorkflowName},
    subjects::Subject,
    time::Timestamp,
};

/// One message of the lane `fist.cmd.*.<namespace>.<execution>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Append {
    /// The fact this answers.
    pub cause: Cause,
    /// What the scheduler itself found out about steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<StepRecord>,
    /// What happens next.
    pub action: LaneAction,
}

/// Names a fact.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cause {
    /// Its subject; a fact is written once, so this identifies it.
    pub subject: String,
    /// Its sequence in the log.
    pub seq: u64,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneAction {
    /// Run this (on `fist.cmd.<type>.…`).
    Task(Box<Task>),
    /// Run these; each follows in a message of its own with the same cause (on `fist.cmd.note.…`).
    Plan(Vec<Task>),
    /// The execution is over (on `fist.cmd.note.…`, or `fist.cmd.cancel.…` where a task may be running).
    End(End),
}

/// One attempt handed to a runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// Which execution.
    pub execution: ExecutionId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// Which step.
    pub step: StepName,
    /// Its place in the workflow, from 0.
    pub index: u32,
    /// Which attempt.
    pub attempt: Attempt,
    /// Which queue.
    #[serde(rename = "type")]
    pub task_type: TaskType,
    /// When it was handed out; time-outs run from here.
    pub dispatched_at: Timestamp,
    /// When it must be over.
    pub deadline: Timestamp,
    /// The limit that leads to the deadline as the author wrote it, for error texts: `10 minutes`.
    pub timeout: String,
    /// What to do, in the shape of the type: [`CliWork`], [`AgentWork`], or another runner's own.
    pub work: Value,
}

impl Task {
    /// Where the fact of the attempt's end stands.
    pub fn done_subject(&self) -> Subject {
        let (namespace, step) = (self.namespace.clone(), self.step.clone());
        Subject::Done(namespace, self.execution, step, self.attempt)
    }

    /// Where the fact stands that the attempt is made, for one that must not be made twice, or made again.
    pub fn begun_subject(&self) -> Subject {
        let (namespace, step) = (self.namespace.clone(), self.step.clone());
        Subject::Begun(namespace, self.execution, step, self.attempt)
    }

    /// Where its lines and events go while it runs.
    pub fn live_subject(&self) -> Subject {
        let (namespace, step) = (self.namespace.clone(), self.step.clone());
        Subject::Live(namespace, self.execution, step, self.attempt)
    }
}

/// The work of a `cli` task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CliWork {
    /// The command as rendered and escaped: an argument for `/bin/sh -c`. Under 128 KiB, the system's
    /// limit for one argument.
    pub command: String,
    /// Where the command passed the fix gate: the argv to run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<Vec<String>>,
    /// Whether the server is asked first, with `--dry-run=server` behind that argv.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Where the command passed the fix gate: who proposed it, for the record.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proposed_by: String,
    /// Pod image; absent means the runner's configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Environment: the workflow's, overridden by the step's.
    #[serde(default)]
    pub env: Map<String, Value>,
    /// Pod resources (`requests`, `limits`) as in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Value>,
    /// The user that the pod runs as, from 1; absent means the runner's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
}

/// The work of an `agent` task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentWork {
    /// The goal as rendered.
    pub goal: String,
    /// The tools it may use, by name.
    pub tools: Vec<String>,
    /// Provider, model and limits: the workflow's `llm_config` overridden by the step's.
    #[serde(default)]
    pub llm_config: Map<String, Value>,
    /// `env` of the workflow, for `PROMETHEUS_URL` and the like.
    #[serde(default)]
    pub env: Map<String, Value>,
    /// Whether running out of time fails the step instead of returning what there is.
    #[serde(default)]
    pub fail_on_timeout: bool,
    /// The alert's namespace where it names one, else the workflow's: where a fix may be proposed for.
    #[serde(default)]
    pub fix_namespace: String,
    /// What started the execution, for the prompt: the alert as templates see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<Value>,
    /// For an agent that may read what earlier steps left: the steps that have ended, in the workflow's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierStep>,
}

/// A step that had ended when a task was handed out, and where its output is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlierStep {
    /// Which step.
    pub step: StepName,
    /// Its type as it is written: `cli`, `agent`, `conditional`.
    #[serde(rename = "type")]
    pub step_type: String,
    /// How it ended.
    pub status: StepStatus,
    /// Where its output is.
    pub left: Left,
}

/// Where the output of an ended step is. What a runner left is never copied: its fact has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Left {
    /// In the `done` fact of this attempt.
    Fact(Attempt),
    /// Here: the scheduler settled the step itself.
    Output(Value),
    /// In a record of the lane, and too large to be copied; its bytes of JSON.
    TooLarge(u64),
    /// Nowhere: there is none.
    Nothing,
}

/// Something the scheduler itself found out about a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Which step.
    pub step: StepName,
    /// Its place in the workflow, from 0.
    pub index: u32,
    /// Which attempt.
    pub attempt: Attempt,
    /// How it stands now.
    pub status: StepStatus,
    /// What it left, where anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// Why it failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepError>,
    /// Why it was skipped, or how a condition came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the scheduler decided it.
    pub at: Timestamp,
}

/// States of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The variants are the terms of the manual.
pub enum StepStatus {
    Pending,
    Running,
    Succeeded,
    Failed,
    Skipped,
}

impl StepStatus {
    /// Whether nothing further happens to the step.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Skipped => true,
        }
    }

    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Skipped => "Skipped",
        }
    }
}

/// The end of an execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// How it ended.
    pub status: EndStatus,
    /// Why, where it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The step that failed, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<StepName>,
    /// When the scheduler decided it.
    pub at: Timestamp,
}

/// Final states of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The variants are the terms of the manual.
pub enum EndStatus {
    Succeeded,
    Failed,
    Cancelled,
}

impl EndStatus {
    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}
