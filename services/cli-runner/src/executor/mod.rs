//! How a task becomes a running command: one trait, an implementation for each place where commands run.
//!
//! Invariants:
//! - A job's name follows from execution, step and attempt, so that whoever gets the task again finds what
//!   was started for it instead of starting a second.
//! - A command that failed is a [`Finished`]; an [`ExecutorError`] means that it says nothing about the
//!   command.
//! - When `run` has returned, nothing of the command runs any more. The one exception is
//!   [`ExecutorError::Released`], for executors whose commands outlive this process.

mod directory;
pub mod local;
pub mod pods;
mod processes;

use std::{collections::BTreeMap, future::Future, time::Duration};

use protocol::{Attempt, ExecutionId, Namespace, StepName, Timestamp, WorkflowName};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{capture::Capture, live::LiveSink};

/// A place where commands run.
pub trait Executor: Send + Sync + 'static {
    /// Runs `job` to its end, or adopts what runs for it already, or says why neither can be.
    ///
    /// Dropping the future ends the command where it lives in this process.
    fn run(
        &self,
        job: &Job,
        stop: &Stop,
        live: &LiveSink,
    ) -> impl Future<Output = Result<Finished, ExecutorError>> + Send;

    /// Follows what runs for `job` already to its end, and starts nothing: for a command that must not be started a
    /// second time. `None` where nothing of it is left, so that nobody can say whether it ran.
    fn adopt(
        &self,
        job: &Job,
        stop: &Stop,
        live: &LiveSink,
    ) -> impl Future<Output = Option<Result<Finished, ExecutorError>>> + Send;

    /// Lets go of what is kept for `job` after its result is stored (a pod is removed only then).
    fn forget(&self, job: &Job) -> impl Future<Output = ()> + Send;

    /// Ends and removes what dead runners left behind. Called before the first task and then every minute;
    /// never touches what a living runner is at, nor what another may still adopt: `over` tells which attempts
    /// need nothing any more.
    fn sweep(&self, over: &impl Over) -> impl Future<Output = Result<Swept, ExecutorError>> + Send;
}

/// Who knows which attempts are over.
pub trait Over: Sync {
    /// Whether the attempt has its result, or its execution has ended; false where that cannot be found out.
    fn is_over(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> impl Future<Output = bool> + Send;
}

/// One attempt, ready to be run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// Which execution.
    pub execution: ExecutionId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// Which step.
    pub step: StepName,
    /// Which attempt.
    pub attempt: Attempt,
    /// What to run.
    pub program: Program,
    /// The workflow's own variables.
    pub env: BTreeMap<String, String>,
    /// Pod image; absent means the configured default.
    pub image: Option<String>,
    /// Pod resources (`requests`, `limits`) as in Kubernetes.
    pub resources: Option<Value>,
    /// The pod's user; absent means ours.
    pub run_as_user: Option<u32>,
    /// When it must be over.
    pub deadline: Timestamp,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Text for `/bin/sh -c`.
    Shell(String),
    /// An argv that passed the fix gate, run without a shell and never twice.
    Gated(Vec<String>),
}

impl Program {
    /// Whether it passed the fix gate, and so may change the cluster.
    pub fn is_gated(&self) -> bool {
        matches!(self, Self::Gated(_))
    }

    /// The argv to execute.
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Shell(command) => vec!["/bin/sh", "-c", command],
            Self::Gated(argv) => argv.iter().map(String::as_str).collect(),
        }
    }
}

/// Bytes of a step's name that are shown in a job's name: what 63 leave after prefix, digest and dashes.
const NAME_STEP_BYTES_MAX: usize = 17;

impl Job {
    /// The name under which the attempt runs: a DNS label that begins with `workflow-cli-`, the same for
    /// every runner that is handed this attempt.
    pub fn name(&self) -> String {
        let identity = [
            self.execution.to_string(),
            self.step.to_string(),
            self.attempt.to_string(),
        ];
        let digest = ExecutionId::derive(&identity.each_ref().map(String::as_str));
        let digest = digest.as_uuid().simple();
        let step: String = self
            .step
            .as_str()
            .bytes()
            .map(|byte| match byte {
                b'_' => '-',
                other => char::from(other.to_ascii_lowercase()),
            })
            .take(NAME_STEP_BYTES_MAX)
            .collect();
        match step.trim_matches('-') {
            "" => format!("workflow-cli-{digest}"),
            step => format!("workflow-cli-{step}-{digest}"),
        }
    }
}

/// The two ways in which a running command is stopped from outside.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Its execution has ended: end the command.
    pub cancel: CancellationToken,
    /// This process is going: end the command if it cannot outlive the process, else leave it to be adopted.
    pub release: CancellationToken,
}

/// A command that came to an end, whichever.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What it printed.
    pub stdout: Capture,
    /// What it printed as errors.
    pub stderr: Capture,
    /// When it began.
    pub started_at: Timestamp,
    /// From its beginning to its end; what was left to clean up after it does not count.
    pub duration: Duration,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal that we did not send.
    Signalled(i32),
    /// The node killed it, since it used more memory than its limit; with this code.
    OutOfMemory(i32),
    /// We ended it because its time was up; the code or signal where it came to one.
    TimedOut(Option<i32>),
    /// We ended it because its execution was cancelled; the code or signal where it came to one.
    Cancelled(Option<i32>),
}

/// Why an executor has no [`Finished`].
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Nothing was started, for a reason that lies in the job; trying again changes nothing.
    #[error("{0}")]
    CannotStart(String),
    /// Nothing was started, for a reason that passes; try again.
    #[error("{reason}")]
    Unavailable {
        /// How long to wait.
        after: Duration,
        /// What is in the way.
        reason: String,
    },
    /// What ran is gone, or the place where it ran is broken, and nobody can say what the command did.
    #[error("{0}")]
    Infrastructure(String),
    /// This process is going. Carries what was printed where the command was ended.
    #[error("the runner is shutting down")]
    Released(Option<Box<Finished>>),
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Leftover jobs that were ended and removed.
    pub jobs: usize,
    /// Processes (or pods) that had to be killed for it.
    pub killed: usize,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn job(step: &str) -> Job {
        Job {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["x"]),
            workflow: WorkflowName::new("w").unwrap(),
            step: StepName::new(step).unwrap(),
            attempt: Attempt::FIRST,
            program: Program::Shell("true".into()),
            env: BTreeMap::new(),
            image: None,
            resources: None,
            run_as_user: None,
            deadline: Timestamp::from_millis(0),
        }
    }

    #[test]
    fn names_are_dns_labels_that_tell_jobs_apart() {
        let mut seen = std::collections::BTreeSet::new();
        for step in [
            "get_pod",
            "GET_pod",
            "get-pod",
            "_",
            "--",
            &"x".repeat(128),
            &"x".repeat(127),
        ] {
            let name = job(step).name();
            // A namespace is a DNS label as well, so its rule is the check.
            assert!(Namespace::new(name.as_str()).is_ok(), "{name}");
            assert!(name.starts_with("workflow-cli-"), "{name}");
            assert!(seen.insert(name));
        }
        let mut second = job("get_pod");
        second.attempt = Attempt::try_from(2).unwrap();
        assert!(seen.insert(second.name()));
        assert_eq!(job("a").name(), job("a").name());
    }
}
