//! Where an execution stands: a fold of its command lane and the facts that the lane names.
//!
//! Invariants:
//! - The fold evaluates nothing: conditions, skips and time-outs are read from the lane's records, so
//!   that a replay by a newer engine gives the state that was decided on.
//! - A fact that the lane does not name has not been answered, and changes nothing here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use protocol::{
    Append, Attempt, Cause, EndStatus, Fact, LaneAction, Outcome, Start, StepError, StepName, StepStatus,
    Subject, Task, Timestamp,
};
use serde_json::Value;

use crate::{definition::Definition, origin::Origin};

/// Where an execution stands.
#[derive(Clone, Debug)]
pub struct State {
    /// What it began with.
    pub(crate) start: Origin,
    /// Its definition, compiled; else why it cannot be.
    pub(crate) definition: Result<Arc<Definition>, String>,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Its steps, in the workflow's order.
    pub(crate) steps: Vec<StepState>,
    /// Sequences of the facts that the lane names.
    answered: HashSet<u64>,
    /// Tasks of a plan that the lane does not hold yet.
    planned: Vec<(Cause, Task)>,
}

/// How far an execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepted; nothing decided.
    Pending,
    /// Something was decided, and it is not over.
    Running,
    /// Over.
    Ended(EndStatus),
}

/// Where one step stands.
#[derive(Clone, Debug, PartialEq)]
pub struct StepState {
    /// Its status.
    pub status: StepStatus,
    /// The attempt that was made or is being made.
    pub attempt: Option<Attempt>,
    /// When the attempt was handed out, where it was.
    pub dispatched_at: Option<Timestamp>,
    /// When the running attempt must be over, and the limit in the author's words.
    pub limit: Option<(Timestamp, String)>,
    /// What it left.
    pub output: Option<Value>,
    /// Why it failed.
    pub error: Option<StepError>,
}

impl StepState {
    const PENDING: Self = Self {
        status: StepStatus::Pending,
        attempt: None,
        dispatched_at: None,
        limit: None,
        output: None,
        error: None,
    };
}

/// A message of the log, decoded, as the fold reads it. Outputs are inline: who reads the log fetches
/// what was stored apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Logged {
    /// A fact.
    Fact(Fact),
    /// A message of the command lane.
    Lane(Append),
}

/// Why a log does not add up to a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// There is no start fact: it is older than the log, or never was.
    #[error("the log holds no start fact of this execution: it has aged out, or the execution never was")]
    NoStart,
    /// The lane names a fact that is not there, or a step that the workflow has not.
    #[error("the log contradicts itself: {0}")]
    Inconsistent(String),
}

impl State {
    /// The state before anything was decided.
    pub fn new(start: &Start, definition: Result<Arc<Definition>, String>) -> Self {
        let count = definition.as_ref().map_or(0, |definition| definition.len());
        Self {
            start: Origin::of(start),
            definition,
            phase: Phase::Pending,
            steps: vec![StepState::PENDING; count],
            answered: HashSet::new(),
            planned: Vec::new(),
        }
    }

    /// Folds all messages of one execution. `compile` gives the definition of a start fact, from a cache
    /// where there is one.
    ///
    /// # Errors
    /// [`ReplayError`] where the start fact is missing, or the lane names what is not there.
    pub fn replay(
        messages: &[(u64, Logged)],
        compile: impl FnOnce(&Start) -> Result<Arc<Definition>, String>,
    ) -> Result<Self, ReplayError> {
        let facts = facts_of(messages);
        let start = facts
            .values()
            .find_map(|fact| match fact {
                Fact::Start(start) => Some(start.as_ref()),
                _ => None,
            })
            .ok_or(ReplayError::NoStart)?;
        let definition = compile(start);
        let mut state = Self::new(start, definition);
        state.follow(messages, &facts)?;
        Ok(state)
    }

    /// Folds what came behind the messages that this state is a fold of, and nothing of these again.
    ///
    /// # Errors
    /// [`ReplayError::Inconsistent`] as well where a fact is named that stands before them; the state is of no use
    /// then.
    pub fn go_on(&mut self, messages: &[(u64, Logged)]) -> Result<(), ReplayError> {
        self.follow(messages, &facts_of(messages))
    }

    fn follow(&mut self, messages: &[(u64, Logged)], facts: &HashMap<u64, &Fact>) -> Result<(), ReplayError> {
        for (_, message) in messages {
            if let Logged::Lane(append) = message {
                let cause = facts.get(&append.cause.seq).ok_or_else(|| {
                    ReplayError::Inconsistent(format!(
                        "a command names the fact {} at {}, which is not there",
                        append.cause.subject, append.cause.seq
                    ))
                })?;
                self.apply(append, cause)?;
            }
        }
        Ok(())
    }

    /// Folds one more message of the lane, with the fact that it names.
    ///
    /// # Errors
    /// [`ReplayError::Inconsistent`] where it names a step that the workflow has not.
    pub fn apply(&mut self, append: &Append, cause: &Fact) -> Result<(), ReplayError> {
        let is_first = self.answered.insert(append.cause.seq);
        if let (true, Fact::Done(done)) = (is_first, cause) {
            let step = self.step_mut(&done.step)?;
            let (status, error) = match &done.outcome {
                Outcome::Succeeded => (StepStatus::Succeeded, None),
                Outcome::Skipped { .. } => (StepStatus::Skipped, None),
                Outcome::Failed(error) => (StepStatus::Failed, Some(error.clone())),
            };
            *step = StepState {
                status,
                attempt: Some(done.attempt),
                dispatched_at: step.dispatched_at,
                limit: None,
                output: done.output.as_ref().map(|body| body.preview().clone()),
                error,
            };
        }
        for record in &append.records {
            let step = self.step_mut(&record.step)?;
            *step = StepState {
                status: record.status,
                attempt: Some(record.attempt),
                dispatched_at: step.dispatched_at,
                limit: None,
                output: record.output.clone(),
                error: record.error.clone(),
            };
        }
        match &append.action {
            LaneAction::Task(task) => self.dispatched(task)?,
            LaneAction::Plan(tasks) => {
                self.phase = Phase::Running;
                self.planned
                    .extend(tasks.iter().map(|task| (append.cause.clone(), task.clone())));
            }
            LaneAction::End(end) => self.phase = Phase::Ended(end.status),
        }
        Ok(())
    }

    /// Folds the command of one task.
    ///
    /// # Errors
    /// [`ReplayError::Inconsistent`] where the workflow has no such step.
    pub fn dispatched(&mut self, task: &Task) -> Result<(), ReplayError> {
        self.planned
            .retain(|(_, planned)| (&planned.step, planned.attempt) != (&task.step, task.attempt));
        self.phase = Phase::Running;
        *self.step_mut(&task.step)? = StepState {
            status: StepStatus::Running,
            attempt: Some(task.attempt),
            dispatched_at: Some(task.dispatched_at),
            limit: Some((task.deadline, task.timeout.clone())),
            output: None,
            error: None,
        };
        Ok(())
    }

    fn step_mut(&mut self, name: &StepName) -> Result<&mut StepState, ReplayError> {
        let missing = || ReplayError::Inconsistent(format!("the workflow has no step `{name}`"));
        let index = self.index_of(name).ok_or_else(missing)?;
        self.steps.get_mut(index).ok_or_else(missing)
    }

    /// The place of a step in the workflow, from 0.
    pub fn index_of(&self, name: &StepName) -> Option<usize> {
        self.definition.as_ref().ok()?.index_of(name.as_str())
    }

    /// The type of a step as it is written; `unknown` where the workflow has no such step.
    pub fn step_type(&self, name: &StepName) -> &'static str {
        let Ok(definition) = &self.definition else {
            return "unknown";
        };
        definition.index_of(name.as_str()).map_or("unknown", |index| {
            definition.spec().steps[index].step_type().as_str()
        })
    }

    /// What it began with.
    pub fn start(&self) -> &Origin {
        &self.start
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The steps, in the workflow's order.
    pub fn steps(&self) -> &[StepState] {
        &self.steps
    }

    /// Whether the lane names the fact at this sequence of the log.
    pub fn has_answered(&self, seq: u64) -> bool {
        self.answered.contains(&seq)
    }

    /// The namespace in which a fix may act: the alert's where it names one, else the workflow's.
    pub fn fix_namespace(&self) -> String {
        self.start.fix_namespace()
    }

    /// Whether some runner may be at work for this execution.
    pub(crate) fn has_running_step(&self) -> bool {
        self.steps.iter().any(|step| step.status == StepStatus::Running)
    }

    /// The subject of a command of this execution.
    pub(crate) fn command_subject(&self, task: &Task) -> Subject {
        Subject::Command(
            task.task_type.clone(),
            self.start.namespace.clone(),
            self.start.execution,
        )
    }
}

/// The facts among these, by their sequences.
fn facts_of(messages: &[(u64, Logged)]) -> HashMap<u64, &Fact> {
    let facts = messages.iter().filter_map(|(seq, message)| match message {
        Logged::Fact(fact) => Some((*seq, fact)),
        Logged::Lane(_) => None,
    });
    facts.collect()
}

/// A task of a plan that is not on the lane yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Outstanding {
    /// Where it goes.
    pub subject: Subject,
    /// The fact that led to the plan.
    pub cause: Cause,
    /// The task.
    pub task: Task,
}

/// What was decided and is not on the lane yet: what a redelivered fact has to append before it is
/// acknowledged.
pub fn outstanding(state: &State) -> Vec<Outstanding> {
    match state.phase {
        Phase::Ended(_) => Vec::new(),
        Phase::Pending | Phase::Running => state
            .planned
            .iter()
            .map(|(cause, task)| Outstanding {
                subject: state.command_subject(task),
                cause: cause.clone(),
                task: task.clone(),
            })
            .collect(),
    }
}
