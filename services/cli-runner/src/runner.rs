//! What becomes of one task: settled already, refused, or run; and then a `done` fact.
//!
//! Invariants:
//! - Nothing runs for an attempt that has a `done` fact, or for an execution that has ended.
//! - A gated command is handed to the executor only by the process whose `begun` fact stands, and only once.
//! - An ordinary command that may run a second time has a `begun` fact before it does; one that ran beside another
//!   without knowing has it before its task is acknowledged.
//! - What came of a command is written as long as this process lives: a server that is away is waited for.

use std::{sync::Arc, time::Duration};

use bus::{
    Failure, Handler, Log, LogMessage, Written,
    runner::{Came, InHand, TaskTrace, Tasks},
};
use bytes::Bytes;
use protocol::{Begun, Body, Fact, Outcome, StepFailure, Task, decode, encode, lane::CliWork};

use crate::{
    capture::{Capture, Limits},
    dry_run,
    executor::{End, Executor, ExecutorError, Finished, Job},
    live::LiveSink,
    output::{self, Fix, Spill},
    release::{Release, StartedGated},
    task,
};

/// Live lines that wait to be published.
const LIVE_LINES_MAX: usize = 256;
/// How soon a task goes to another when this process ends.
const RELEASED_AFTER: Duration = Duration::from_millis(100);

/// Handles the tasks of the queue `cli`.
pub struct Runner<L, E> {
    pub tasks: Tasks<L>,
    pub executor: Arc<E>,
    pub limits: Limits,
    pub release: Release,
    pub started_gated: StartedGated,
}

impl<L: Log, E: Executor> Handler for Runner<L, E> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let Some((task, in_hand)) = self.tasks.take(&message, deliveries).await? else {
            return Ok(());
        };
        let work: CliWork = self.tasks.work(&task).await?;
        let job = match task::job(&task, &work) {
            Ok(job) => job,
            Err(error) => {
                let refused = self.tasks.failed(error.reason, error.message);
                return self.tasks.write_done(&task, refused).await.map(drop);
            }
        };
        // What must not be done in vain is asked for once more.
        if job.program.is_gated()
            && self
                .tasks
                .is_over(&task.namespace, task.execution, &task.step, task.attempt)
                .await?
        {
            return Ok(());
        }
        let _running = self.tasks.metrics.step_running("cli");
        // A server that crashes may forget a delivery of the last moments, and hands the task out as if for the first
        // time: to those who were connected before it, it does not.
        let may_be_second = deliveries > 1 || message.at < self.tasks.log.connected_since();
        if may_be_second && !job.program.is_gated() {
            self.record_repeat(&task).await?;
        }
        let trace = self.tasks.trace(&task);
        let came = Box::pin(self.attempt(&task, &work, &job, &in_hand, &trace)).await;
        trace.end(self.tasks.log.now(), |span| {
            span.name = format!("run {}", task.step);
            span.attributes = vec![
                ("fist.step.name", task.step.as_str().into()),
                ("fist.runner", self.tasks.instance.as_str().into()),
            ];
            span.error = match &came {
                Ok(came) => came.outcome.failure().map(|failure| failure.as_str().to_owned()),
                Err(_) => Some("put_off".to_owned()),
            };
        });
        let came = came?;
        if self.tasks.write_done(&task, came).await? == Written::Already {
            self.record_if_another_ended(&task).await?;
        }
        self.started_gated.settled(&task);
        self.executor.forget(&job).await;
        Ok(())
    }

    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        self.tasks.poisoned(&message, trials).await
    }
}

impl<L: Log, E: Executor> Runner<L, E> {
    async fn attempt(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        in_hand: &InHand,
        trace: &TaskTrace,
    ) -> Result<Came, Failure> {
        let is_gated = job.program.is_gated();
        if is_gated && let Some(unknown) = self.begun_elsewhere(task).await? {
            return self.adopted(task, work, job, in_hand, trace, unknown).await;
        }
        if self.tasks.log.now() >= task.deadline {
            let message = format!("{}, before a runner could begin it", output::timed_out(task));
            return Ok(self.tasks.failed(StepFailure::Timeout, message));
        }
        if is_gated {
            if let Some(unknown) = self.begin(task).await? {
                return Ok(unknown);
            }
            self.started_gated.starts(task);
        }
        let stop = self.release.stop(in_hand, is_gated);
        let result = self
            .lively(task, async |sink| self.executor.run(job, &stop, sink).await)
            .await;
        self.reported(task, work, job, trace, result).await
    }

    /// A gated attempt that was begun by somebody: what still runs for it is followed to its end, and nothing is
    /// started; where nothing is left, it is `unknown`.
    async fn adopted(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        in_hand: &InHand,
        trace: &TaskTrace,
        unknown: Came,
    ) -> Result<Came, Failure> {
        let stop = self.release.stop(in_hand, true);
        let result = self
            .lively(task, async |sink| self.executor.adopt(job, &stop, sink).await)
            .await;
        match result {
            None => Ok(unknown),
            Some(result) => self.reported(task, work, job, trace, result).await,
        }
    }

    /// Does `run`, and publishes what it prints meanwhile.
    async fn lively<T>(&self, task: &Task, run: impl AsyncFnOnce(&LiveSink) -> T) -> T {
        let (sink, mut lines) = LiveSink::new(LIVE_LINES_MAX);
        let live = task.live_subject();
        let running = async {
            let sink = sink;
            run(&sink).await
        };
        let forwarding = async {
            while let Some(line) = lines.recv().await {
                self.tasks
                    .log
                    .publish_live(&live, encode(self.tasks.log.now(), &line))
                    .await;
            }
        };
        let (result, ()) = tokio::join!(running, forwarding);
        result
    }

    async fn reported(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        trace: &TaskTrace,
        result: Result<Finished, ExecutorError>,
    ) -> Result<Came, Failure> {
        match &result {
            Ok(finished) => command_span(trace, job, finished),
            Err(ExecutorError::Released(Some(finished))) => command_span(trace, job, finished),
            Err(_) => {}
        }
        match result {
            Ok(finished) => Ok(self.came(task, work, job, finished, None).await),
            Err(error) => self.came_to_nothing(task, work, job, error).await,
        }
    }

    /// What there is to report when the executor has no result.
    async fn came_to_nothing(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        error: ExecutorError,
    ) -> Result<Came, Failure> {
        let is_gated = job.program.is_gated();
        match error {
            ExecutorError::CannotStart(reason) => Ok(self.tasks.failed(StepFailure::Infrastructure, reason)),
            ExecutorError::Unavailable { after, reason } => {
                self.started_gated.settled(task);
                // Not beyond the deadline, at which somebody has to say so.
                let after = after.min(task.deadline.since(self.tasks.log.now()));
                Err(Failure::Retry { after, reason })
            }
            ExecutorError::Infrastructure(reason) if is_gated => Ok(self.tasks.failed(
                StepFailure::UnknownOutcome,
                format!("unknown whether it ran: {reason}"),
            )),
            ExecutorError::Infrastructure(reason) => {
                Ok(self.tasks.failed(StepFailure::Infrastructure, reason))
            }
            ExecutorError::Released(Some(finished)) if is_gated => {
                let message = "unknown whether it ran: the runner was shut down while the command was running and ended it; look at what it was to change, it is not run a second time";
                let outcome = self.tasks.failed(StepFailure::UnknownOutcome, message).outcome;
                Ok(self.came(task, work, job, *finished, Some(outcome)).await)
            }
            ExecutorError::Released(_) => Err(Failure::Retry {
                after: RELEASED_AFTER,
                reason: "the runner is shutting down".to_owned(),
            }),
        }
    }

    /// Puts on record that an ordinary attempt may be made more than once, for reasons outside the step: a runner that
    /// was lost, or could not tell that it lives. (Of a gated one, `begun` says that it is made at all.)
    async fn record_repeat(&self, task: &Task) -> Result<(), Failure> {
        let begun = Fact::Begun(Begun {
            step: task.step.clone(),
            attempt: task.attempt,
            runner: self.tasks.instance.clone(),
        });
        let payload = encode(self.tasks.log.now(), &begun);
        if let Written::New(_) = self.tasks.log.write_fact(&task.begun_subject(), payload).await? {
            tracing::warn!(execution = %task.execution, step = %task.step, attempt = %task.attempt, "the command may run a second time");
        }
        Ok(())
    }

    /// A server that crashed may have forgotten that it delivered a task, and then hands it out as if for the first
    /// time: who finds the result of another beside its own knows that both ran.
    async fn record_if_another_ended(&self, task: &Task) -> Result<(), Failure> {
        let Some(message) = self.tasks.log.last(&task.done_subject().to_string()).await? else {
            return Ok(());
        };
        let stands = decode::<Fact>(&message.payload).map(|envelope| envelope.body);
        match stands {
            Ok(Fact::Done(done)) if done.runner == self.tasks.instance => Ok(()),
            _ => self.record_repeat(task).await,
        }
    }

    /// What there is to report where another process began this gated attempt, or this one did and may have
    /// started it; `None` where nobody did.
    async fn begun_elsewhere(&self, task: &Task) -> Result<Option<Came>, Failure> {
        let Some(begun) = self.tasks.log.last(&task.begun_subject().to_string()).await? else {
            return Ok(None);
        };
        let runner = match decode::<Fact>(&begun.payload).map(|envelope| envelope.body) {
            Ok(Fact::Begun(begun)) => begun.runner,
            _ => "another runner".to_owned(),
        };
        // Ours and not started: the answer to our own write was lost.
        if runner == self.tasks.instance && !self.started_gated.may_have(task) {
            return Ok(None);
        }
        Ok(Some(self.tasks.failed(
            StepFailure::UnknownOutcome,
            format!(
                "unknown whether it ran: {runner} began the command at {} and did not report how it ended; look at what it was to change, it is not run a second time",
                begun.at
            ),
        )))
    }

    /// Claims a gated attempt for this process, once and for ever.
    async fn begin(&self, task: &Task) -> Result<Option<Came>, Failure> {
        let begun = Fact::Begun(Begun {
            step: task.step.clone(),
            attempt: task.attempt,
            runner: self.tasks.instance.clone(),
        });
        match self
            .tasks
            .log
            .write_fact(&task.begun_subject(), encode(self.tasks.log.now(), &begun))
            .await?
        {
            Written::New(_) => Ok(None),
            Written::Already => self.begun_elsewhere(task).await,
        }
    }

    /// What is left of a finished command. `known` is its outcome where that does not follow from how it ended.
    async fn came(
        &self,
        task: &Task,
        work: &CliWork,
        job: &Job,
        finished: Finished,
        known: Option<Outcome>,
    ) -> Came {
        let (dry_run, finished) = match work.dry_run {
            true => {
                let (dry_run, stdout) = dry_run::split(finished.stdout, &job.name(), self.limits);
                (dry_run, Finished { stdout, ..finished })
            }
            false => (None, finished),
        };
        let outcome = known.unwrap_or_else(|| output::outcome(task, &finished, dry_run.as_ref()));
        let (stdout, stderr) = (
            self.spill(&finished.stdout).await,
            self.spill(&finished.stderr).await,
        );
        let mut value = output::output(&work.command, &finished, [&stdout, &stderr], self.limits);
        if let Some(argv) = &work.fix {
            let fix = Fix {
                argv,
                work,
                dry_run: dry_run.as_ref(),
                runner: &self.tasks.instance,
            };
            value["fix"] = fix.record(task, &outcome);
        }
        let body = self.tasks.body(value, output::preview).await;
        // A command cannot be run again for the sake of its output.
        let body = body.unwrap_or_else(|refused| Body::Inline(output::not_stored(refused)));
        Came {
            outcome,
            output: Some(body),
            started_at: finished.started_at,
        }
    }

    async fn spill(&self, capture: &Capture) -> Spill {
        match output::to_spill(capture, self.limits) {
            None => Spill::NotNeeded,
            Some(bytes) => match self.tasks.put(Bytes::copy_from_slice(bytes)).await {
                Ok(blob) => Spill::Stored(blob),
                Err(error) => Spill::Failed(error.to_string()),
            },
        }
    }
}

/// The span of the command itself; what came before it in the run is its way there, such as a pod's start.
fn command_span(trace: &TaskTrace, job: &Job, finished: &Finished) {
    trace.part(&["command"], |span| {
        span.name = "command".to_owned();
        span.began = finished.started_at;
        span.ended = finished.started_at.after(finished.duration);
        span.attributes = vec![
            // In a cluster, the pod's.
            ("fist.job.name", job.name().into()),
            ("fist.command.gated", job.program.is_gated().into()),
        ];
        let (code, error) = match &finished.end {
            End::Exited(0) => (Some(0), None),
            End::Exited(code) => (Some(*code), Some("exit_code")),
            End::Signalled(signal) => (Some(128 + signal), Some("signal")),
            End::OutOfMemory(code) => (Some(*code), Some("out_of_memory")),
            End::TimedOut(code) => (*code, Some("timeout")),
            End::Cancelled(code) => (*code, Some("cancelled")),
        };
        span.attributes
            .extend(code.map(|code| ("process.exit.code", code.into())));
        span.error = error.map(str::to_owned);
    });
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
