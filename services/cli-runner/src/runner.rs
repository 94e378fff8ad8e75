//! What becomes of one task: settled already, refused, or run; and then a `done` fact.
//!
//! Invariants:
//! - Nothing runs for an attempt that has a `done` fact, or for an execution that has ended.
//! - A gated command is handed to the executor only by the process whose `begun` fact stands, and only once.
//! - What came of a command is written as long as this process lives: a server that is away is waited for.

use std::{sync::Arc, time::Duration};

use bus::{Blobs, Failure, Handler, Log, LogError, LogMessage, Written};
use bytes::Bytes;
use protocol::{
    Append, Begun, BlobRef, Body, Done, Fact, LaneAction, Outcome, StepError, StepFailure, Subject, Task,
    Timestamp, decode, encode, lane::CliWork, output::INLINE_BYTES_MAX, subjects,
};
use serde_json::Value;
use service::{Metrics, backoff};
use tokio_util::sync::CancellationToken;

use crate::{
    capture::{Capture, Limits},
    executor::{Executor, ExecutorError, Finished, Job},
    live::LiveSink,
    output::{self, Spill},
    running::{InHand, Running},
    task,
};

/// Live lines that wait to be published.
const LIVE_LINES_MAX: usize = 256;
/// How soon a task comes again that this very process is at.
const IN_HAND_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How soon a task goes to another when this process ends.
const RELEASED_AFTER: Duration = Duration::from_millis(100);
/// Attempts at storing a large output before the step goes on without it.
const BLOB_ATTEMPTS_MAX: u32 = 6;

/// Handles the tasks of the queue `cli`.
pub struct Runner<L, E> {
    pub log: L,
    pub blobs: Blobs,
    pub executor: Arc<E>,
    pub limits: Limits,
    /// Names this process in facts; unique to it.
    pub instance: String,
    pub metrics: Metrics,
    pub running: Running,
    pub shutdown: CancellationToken,
}

/// What came of an attempt, before it is a fact.
struct Came {
    outcome: Outcome,
    output: Option<Body>,
    started_at: Timestamp,
}

impl<L: Log, E: Executor> Runner<L, E> {
    /// Nothing ran.
    fn failed(&self, reason: StepFailure, message: impl Into<String>) -> Came {
        let outcome = Outcome::Failed(StepError {
            reason,
            message: message.into(),
        });
        Came {
            outcome,
            output: None,
            started_at: self.log.now(),
        }
    }
}

impl<L: Log, E: Executor> Handler for Runner<L, E> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        self.metrics.delivery(bus::topology::CLI.name, deliveries);
        let task = task::read(&message.payload).map_err(|reason| self.reject(reason))?;
        let Some(in_hand) = self.running.enter(&task) else {
            return Err(Failure::Retry {
                after: IN_HAND_AGAIN_AFTER,
                reason: "this process is at it already".to_owned(),
            });
        };
        if self.is_settled(&task).await? {
            return Ok(());
        }
        let work = match task::work(&task) {
            Ok(work) => work,
            Err(reason) => {
                self.write_done(&task, self.failed(StepFailure::DeadLetter, &reason))
                    .await?;
                return Err(self.reject(reason));
            }
        };
        let job = match task::job(&task, &work) {
            Ok(job) => job,
            Err(error) => {
                return self
                    .write_done(&task, self.failed(error.reason, error.message))
                    .await;
            }
        };
        let _running = self.metrics.step_running("cli");
        let came = Box::pin(self.attempt(&task, &work, &job, &in_hand)).await?;
        self.write_done(&task, came).await?;
        in_hand.gated_settled();
        self.executor.forget(&job).await;
        Ok(())
    }

    /// The task killed its runners again and again: the scheduler hears of it before it is set aside.
    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        if let Ok(task) = task::read(&message.payload) {
            let reason = format!(
                "{trials} runners in a row were lost while they were at this step (killed, crashed or out of memory); its task is among the dead letters (`fist get deadletters`)"
            );
            self.write_done(&task, self.failed(StepFailure::DeadLetter, reason))
                .await?;
        }
        self.metrics.dead_letter(bus::topology::CLI.name);
        Err(bus::consume::poison(&message, trials))
    }
}

impl<L: Log, E: Executor> Runner<L, E> {
    /// The task becomes a dead letter. (Steps and executions are counted by the scheduler, once each.)
    fn reject(&self, reason: String) -> Failure {
        self.metrics.dead_letter(bus::topology::CLI.name);
        Failure::Reject { reason }
    }

    /// Whether there is nothing left to do: the attempt has its fact, or its execution is over.
    async fn is_settled(&self, task: &Task) -> Result<bool, Failure> {
        if self.log.last(&done_subject(task).to_string()).await?.is_some() {
            return Ok(true);
        }
        let lane = subjects::lane_filter(&task.namespace, task.execution);
        let Some(last) = self.log.last(&lane).await? else {
            return Ok(false);
        };
        let append = decode::<Append>(&last.payload);
        Ok(append.is_ok_and(|envelope| matches!(envelope.body.action, LaneAction::End(_))))
    }

    async fn attempt(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        in_hand: &InHand,
    ) -> Result<Came, Failure> {
        let is_gated = job.program.is_gated();
        if is_gated && let Some(unknown) = self.begun_elsewhere(task, in_hand).await? {
            return Ok(unknown);
        }
        if self.log.now() >= task.deadline {
            let message = format!("{}, before a runner could begin it", output::timed_out(task));
            return Ok(self.failed(StepFailure::Timeout, message));
        }
        if is_gated {
            if let Some(unknown) = self.begin(task, in_hand).await? {
                return Ok(unknown);
            }
            in_hand.gated_starts();
        }
        let stop = in_hand.stop(is_gated);
        let (sink, mut lines) = LiveSink::new(LIVE_LINES_MAX);
        let live = Subject::Live(
            task.namespace.clone(),
            task.execution,
            task.step.clone(),
            task.attempt,
        );
        let running = async {
            let sink = sink;
            self.executor.run(job, &stop, &sink).await
        };
        let forwarding = async {
            while let Some(line) = lines.recv().await {
                self.log.publish_live(&live, encode(self.log.now(), &line)).await;
            }
        };
        let (result, ()) = tokio::join!(running, forwarding);
        match result {
            Ok(finished) => Ok(self.came(task, work, &finished).await),
            Err(error) => self.came_to_nothing(task, work, is_gated, in_hand, error).await,
        }
    }

    /// What there is to report when the executor has no result.
    async fn came_to_nothing(
        &self,
        task: &Task,
        work: &CliWork,
        is_gated: bool,
        in_hand: &InHand,
        error: ExecutorError,
    ) -> Result<Came, Failure> {
        match error {
            ExecutorError::CannotStart(reason) => Ok(self.failed(StepFailure::Infrastructure, reason)),
            ExecutorError::Unavailable { after, reason } => {
                in_hand.gated_settled();
                // Not beyond the deadline, at which somebody has to say so.
                let after = after.min(task.deadline.since(self.log.now()));
                Err(Failure::Retry { after, reason })
            }
            ExecutorError::Infrastructure(reason) if is_gated => Ok(self.failed(
                StepFailure::UnknownOutcome,
                format!("unknown whether it ran: {reason}"),
            )),
            ExecutorError::Infrastructure(reason) => Ok(self.failed(StepFailure::Infrastructure, reason)),
            ExecutorError::Released(Some(finished)) if is_gated => {
                let message = "unknown whether it ran: the runner was shut down while the command was running and ended it; look at what it was to change, it is not run a second time";
                let came = self.came(task, work, &finished).await;
                let outcome = self.failed(StepFailure::UnknownOutcome, message).outcome;
                Ok(Came { outcome, ..came })
            }
            ExecutorError::Released(_) => Err(Failure::Retry {
                after: RELEASED_AFTER,
                reason: "the runner is shutting down".to_owned(),
            }),
        }
    }

    /// What there is to report where another process began this gated attempt, or this one did and may have
    /// started it; `None` where nobody did.
    async fn begun_elsewhere(&self, task: &Task, in_hand: &InHand) -> Result<Option<Came>, Failure> {
        let Some(begun) = self.log.last(&begun_subject(task).to_string()).await? else {
            return Ok(None);
        };
        let runner = match decode::<Fact>(&begun.payload).map(|envelope| envelope.body) {
            Ok(Fact::Begun(begun)) => begun.runner,
            _ => "another runner".to_owned(),
        };
        // Ours and not started: the answer to our own write was lost.
        if runner == self.instance && !in_hand.may_have_started_gated() {
            return Ok(None);
        }
        Ok(Some(self.failed(
            StepFailure::UnknownOutcome,
            format!(
                "unknown whether it ran: {runner} began the command at {} and did not report how it ended; look at what it was to change, it is not run a second time",
                begun.at
            ),
        )))
    }

    /// Claims a gated attempt for this process, once and for ever.
    async fn begin(&self, task: &Task, in_hand: &InHand) -> Result<Option<Came>, Failure> {
        let begun = Fact::Begun(Begun {
            step: task.step.clone(),
            attempt: task.attempt,
            runner: self.instance.clone(),
        });
        match self
            .log
            .write_fact(&begun_subject(task), encode(self.log.now(), &begun))
            .await?
        {
            Written::New(_) => Ok(None),
            Written::Already => self.begun_elsewhere(task, in_hand).await,
        }
    }

    async fn came(&self, task: &Task, work: &CliWork, finished: &Finished) -> Came {
        let (stdout, stderr) = (
            self.spill(&finished.stdout).await,
            self.spill(&finished.stderr).await,
        );
        let value = output::output(&work.command, finished, [&stdout, &stderr], self.limits);
        Came {
            outcome: output::outcome(task, finished),
            output: Some(self.body(value).await),
            started_at: finished.started_at,
        }
    }

    async fn spill(&self, capture: &Capture) -> Spill {
        match output::to_spill(capture, self.limits) {
            None => Spill::NotNeeded,
            Some(bytes) => match self.put(bytes).await {
                Ok(blob) => Spill::Stored(blob),
                Err(reason) => Spill::Failed(reason),
            },
        }
    }

    async fn body(&self, output: Value) -> Body {
        let json = output.to_string();
        if json.len() <= INLINE_BYTES_MAX {
            return Body::Inline(output);
        }
        // The other half of the message is for everything that is not the preview.
        let preview = output::preview(&output, INLINE_BYTES_MAX / 2);
        match self.put(json.as_bytes()).await {
            Ok(blob) => Body::Blob { blob, preview },
            Err(_) => Body::Inline(preview),
        }
    }

    /// Stores a large body. It must not cost the command's result, so the attempts are few.
    async fn put(&self, bytes: &[u8]) -> Result<BlobRef, String> {
        let bytes = Bytes::copy_from_slice(bytes);
        let policy = backoff::Policy::PATIENT.attempts(BLOB_ATTEMPTS_MAX);
        let attempt = || async {
            self.blobs.put(bytes.clone()).await.map_err(|error: LogError| {
                if error.is_transient() {
                    backoff::Failed::Transient(error)
                } else {
                    backoff::Failed::Permanent(error)
                }
            })
        };
        backoff::retry(policy, &self.shutdown, attempt, |_| {})
            .await
            .map_err(|error| {
                tracing::warn!(%error, bytes = bytes.len(), "a large output could not be stored");
                error.to_string()
            })
    }

    /// Writes the fact. Once there is a result, a server that is away is waited for until this process ends.
    async fn write_done(&self, task: &Task, came: Came) -> Result<(), Failure> {
        let completed_at = self.log.now();
        let name = match &came.outcome {
            Outcome::Succeeded => "Succeeded",
            Outcome::Skipped { .. } => "Skipped",
            Outcome::Failed(_) => "Failed",
        };
        let done = Fact::Done(Done {
            step: task.step.clone(),
            attempt: task.attempt,
            outcome: came.outcome,
            output: came.output,
            started_at: came.started_at,
            completed_at,
            runner: self.instance.clone(),
        });
        let (subject, payload) = (done_subject(task), encode(completed_at, &done));
        let mut waits = backoff::Policy::PATIENT.waits();
        loop {
            let error = match self.log.write_fact(&subject, payload.clone()).await {
                Ok(Written::New(_)) => {
                    tracing::info!(execution = %task.execution, step = %task.step, attempt = %task.attempt, outcome = name, "step ended");
                    return Ok(());
                }
                Ok(Written::Already) => return Ok(()),
                Err(error) => error,
            };
            if !error.is_transient() || self.shutdown.is_cancelled() {
                return Err(error.into());
            }
            let wait = waits.next_wait();
            tracing::warn!(%error, wait_ms = wait.as_millis(), "the result of a step waits for the log");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}

fn done_subject(task: &Task) -> Subject {
    Subject::Done(
        task.namespace.clone(),
        task.execution,
        task.step.clone(),
        task.attempt,
    )
}

fn begun_subject(task: &Task) -> Subject {
    Subject::Begun(
        task.namespace.clone(),
        task.execution,
        task.step.clone(),
        task.attempt,
    )
}

#[cfg(test)]
mod tests;
