//! Facts: what happened. Each is written once, on a subject of its own, and never changed.
//!
//! Invariant: a fact carries everything its readers need; no reader has to ask another service.

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    ids::{Attempt, ExecutionId, Namespace, StepName, TimerId, WorkflowName},
    json::Json,
    output::Body,
    time::Timestamp,
};

/// Any fact of `fist.fact.>`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fact {
    /// An execution was accepted.
    Start(Box<Start>),
    /// An attempt that must not be made twice is about to be made, or any other may be made a second time.
    Begun(Begun),
    /// A runner finished an attempt.
    Done(Done),
    /// Somebody asked for the execution to be cancelled.
    Cancel(Cancel),
    /// A message of the execution could not be processed and was set aside.
    Dead(Dead),
    /// A timer fired.
    Timer(TimerFired),
}

/// The kind first, and then the body as what it is. (What is derived takes any body apart in between.)
impl<'de> Deserialize<'de> for Fact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Tag {
            kind: Kind,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            Start,
            Begun,
            Done,
            Cancel,
            Dead,
            Timer,
        }
        fn of<T: DeserializeOwned, E: Error>(body: &RawValue) -> Result<T, E> {
            serde_json::from_str(body.get()).map_err(E::custom)
        }
        let body = <&RawValue>::deserialize(deserializer)?;
        // As it is written here the kind stands in front, and the rest need not be gone through for it.
        let front = body.get().strip_prefix(r#"{"kind":"#).and_then(|rest| {
            let end = rest.char_indices().skip(1).find(|(_, letter)| *letter == '"')?.0;
            serde_json::from_str(rest.get(..=end)?).ok()
        });
        let kind = match front {
            Some(kind) => kind,
            None => of::<Tag, D::Error>(body)?.kind,
        };
        Ok(match kind {
            Kind::Start => Self::Start(of(body)?),
            Kind::Begun => Self::Begun(of(body)?),
            Kind::Done => Self::Done(of(body)?),
            Kind::Cancel => Self::Cancel(of(body)?),
            Kind::Dead => Self::Dead(of(body)?),
            Kind::Timer => Self::Timer(of(body)?),
        })
    }
}

/// An accepted execution: the definition as it was, and the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// Which execution this is.
    pub execution: ExecutionId,
    /// The workflow's name, which is also the execution's.
    pub workflow: WorkflowName,
    /// What started it: a source's name for alerts, else `api`, `cli` or `kubernetes`.
    pub trigger_source: String,
    /// The workflow's `spec` in canonical form, as the engine serialises it.
    pub spec: Json<Value>,
    /// What it works on.
    pub input: Json<Input>,
    /// The delivery of an alert that led to it, as in the disposition's subject; tells a repeat of the
    /// same delivery from a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// UID of the Kubernetes object it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// The input of an execution, as templates see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// `source.data`.
    #[serde(default)]
    pub data: Map<String, Value>,
    /// `alert`, as templates see it (name, severity, status, labels, annotations, fingerprint, starts_at);
    /// absent where no alert started the execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<Map<String, Value>>,
}

/// Written by a runner before an attempt with effects that must not happen twice; and on any other attempt, when it
/// may be made more than once because a runner or the server was lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Which step.
    pub step: StepName,
    /// Which attempt.
    pub attempt: Attempt,
    /// Who is making it: the runner's instance name, unique to one process.
    pub runner: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Which step.
    pub step: StepName,
    /// Which attempt.
    pub attempt: Attempt,
    /// How it ended.
    pub outcome: Outcome,
    /// What it left: present on success, and on failure where there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Body>,
    /// When the runner began.
    pub started_at: Timestamp,
    /// When the runner had the outcome.
    pub completed_at: Timestamp,
    /// The runner's instance name.
    #[serde(default)]
    pub runner: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it should.
    Succeeded,
    /// It did nothing, on purpose, and says why; the execution goes on.
    Skipped {
        /// The reason.
        message: String,
    },
    /// It did not.
    Failed(StepError),
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepError {
    /// The class of failure, for machines.
    pub reason: StepFailure,
    /// What went wrong and what to do, for people.
    pub message: String,
}

/// Classes of step failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepFailure {
    /// The command ended with a non-zero exit code or a signal.
    Command,
    /// The step's time ran out.
    Timeout,
    /// The execution was cancelled while the step ran.
    Cancelled,
    /// A template could not be rendered for this input.
    Template,
    /// A condition was not met and the step says `on_false: fail`.
    Condition,
    /// The fix gate, or another policy, refused to run it.
    Refused,
    /// The agent could not do its work (provider, credentials, no completed turn).
    Agent,
    /// The attempt could not be made, or what made it vanished, for reasons outside the step.
    Infrastructure,
    /// An attempt that must not be repeated was interrupted: unknown whether it ran.
    UnknownOutcome,
    /// The task could not be read, or killed its runners again and again; it is among the dead letters.
    DeadLetter,
}

impl StepFailure {
    /// The class as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Template => "template",
            Self::Condition => "condition",
            Self::Refused => "refused",
            Self::Agent => "agent",
            Self::Infrastructure => "infrastructure",
            Self::UnknownOutcome => "unknown_outcome",
            Self::DeadLetter => "dead_letter",
        }
    }
}

impl Outcome {
    /// The status that a step has by it.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Skipped { .. } => "Skipped",
            Self::Failed(_) => "Failed",
        }
    }

    /// The class of failure, where it is one.
    pub fn failure(&self) -> Option<StepFailure> {
        match self {
            Self::Failed(error) => Some(error.reason),
            Self::Succeeded | Self::Skipped { .. } => None,
        }
    }
}

/// A request to cancel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    /// Why, in the words of who asked.
    pub reason: String,
}

/// A message that was set aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dead {
    /// Subject of the message.
    pub subject: String,
    /// Its sequence in the log.
    pub seq: u64,
    /// Why it could not be processed.
    pub reason: String,
    /// The step and attempt it belonged to, where it was a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<(StepName, Attempt)>,
}

/// A timer that fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimerFired {
    /// Which one.
    pub timer: TimerId,
}
