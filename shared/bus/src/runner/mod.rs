//! What every runner does with the tasks of its queue, whatever it runs: tasks in, `done` facts out.
//!
//! | a task | what becomes of it |
//! |---|---|
//! | cannot be read | dead letter |
//! | this process is at it | put off |
//! | has its fact, or its execution has ended | nothing; acknowledged |
//! | its work cannot be read | failed step, dead letter |
//! | its runners vanish again and again | failed step, dead letter |
//! | any other | the service's own business, then a fact |
//!
//! Invariants:
//! - Nothing runs for an attempt that has a `done` fact, or for an execution that has ended.
//! - A task is acknowledged only after its fact is in the log.
//! - What came of an attempt is written as long as this process lives: a server that is away is waited for.

mod done;
mod running;
mod trace;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use protocol::{
    Append, Attempt, ExecutionId, LaneAction, Namespace, StepFailure, StepName, Subject, Task, decode,
    subjects,
};
use serde::de::DeserializeOwned;
use service::{Fatal, Metrics, Service, clock};
use tokio_util::sync::CancellationToken;

pub use self::{
    done::{Came, NotStored},
    running::{InHand, Running},
    trace::TaskTrace,
};
use crate::{
    Attached, Blobs, Consume, Durable, Failure, Follow, Handler, Log, LogMessage, NatsLog, Position,
    StreamId, consume,
};

/// How soon a task comes again that this very process is at.
const IN_HAND_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The tasks of one queue, as one process takes them. Cheap to clone; clones share what is in hand.
#[derive(Clone)]
pub struct Tasks<L> {
    /// The log.
    pub log: L,
    /// Large bodies.
    pub blobs: Blobs,
    /// Where the tasks come from.
    pub queue: Durable,
    /// Names this process in facts; unique to it.
    pub instance: String,
    /// Counts.
    pub metrics: Metrics,
    /// What this process is at.
    pub running: Running,
    /// Cancelled when this process takes no more tasks.
    pub shutdown: CancellationToken,
}

impl Tasks<NatsLog> {
    /// The tasks of `queue`, until the service's shutdown.
    pub fn new(service: &Service, attached: &Attached, queue: Durable) -> Self {
        Self {
            log: attached.log.clone(),
            blobs: attached.blobs.clone(),
            queue,
            instance: instance(service.name),
            metrics: service.metrics.clone(),
            running: Running::default(),
            shutdown: service.shutdown.child_token(),
        }
    }
}

impl<L: Log> Tasks<L> {
    /// Takes the task of a message in hand; `None` where there is nothing left to do for it.
    ///
    /// # Errors
    /// [`Failure::Reject`] where the message holds no task, [`Failure::Retry`] where this process is at it already,
    /// and what keeps the log from being read.
    pub async fn take(
        &self,
        message: &LogMessage,
        deliveries: u64,
    ) -> Result<Option<(Task, InHand)>, Failure> {
        self.metrics.delivery(self.queue.name, deliveries);
        let task = self
            .read(&message.payload)
            .map_err(|reason| self.rejected(reason))?;
        let Some(in_hand) = self.running.enter(&task) else {
            return Err(Failure::Retry {
                after: IN_HAND_AGAIN_AFTER,
                reason: "this process is at it already".to_owned(),
            });
        };
        let is_settled = !self.is_new(&task, message, deliveries) && self.is_settled(&task).await?;
        Ok((!is_settled).then_some((task, in_hand)))
    }

    /// Begins the trace of a run of `task`.
    pub fn trace(&self, task: &Task) -> TaskTrace {
        TaskTrace::begin(self.log.spans(), task, &self.instance, self.log.now())
    }

    /// What a task is to do, in the shape of the queue's type.
    ///
    /// # Errors
    /// [`Failure::Reject`] where it is of another shape; the step has failed then.
    pub async fn work<W: DeserializeOwned>(&self, task: &Task) -> Result<W, Failure> {
        match work(task) {
            Ok(work) => Ok(work),
            Err(reason) => {
                self.write_done(task, self.failed(StepFailure::DeadLetter, &reason))
                    .await?;
                Err(self.rejected(reason))
            }
        }
    }

    /// Decides about a task that killed its runners again and again: the scheduler hears of it before it is set
    /// aside. For [`Handler::poisoned`].
    ///
    /// # Errors
    /// Always: [`Failure::Reject`], or what keeps the fact from being written.
    pub async fn poisoned(&self, message: &LogMessage, trials: u64) -> Result<(), Failure> {
        if let Ok(task) = self.read(&message.payload) {
            let reason = format!(
                "{trials} runners in a row were lost while they were at this step (killed, crashed or out of memory); its task is among the dead letters (`fist get deadletters`)"
            );
            self.write_done(&task, self.failed(StepFailure::DeadLetter, reason))
                .await?;
        }
        self.metrics.dead_letter(self.queue.name);
        Err(consume::poison(message, trials))
    }

    fn read(&self, payload: &[u8]) -> Result<Task, String> {
        let envelope = decode::<Append>(payload).map_err(|error| error.to_string())?;
        match envelope.body.action {
            LaneAction::Task(task) => Ok(*task),
            LaneAction::Plan(_) | LaneAction::End(_) => Err(format!(
                "a message of the queue `{}` holds no task",
                self.queue.name
            )),
        }
    }

    /// The task becomes a dead letter. (Steps and executions are counted by the scheduler, once each.)
    fn rejected(&self, reason: String) -> Failure {
        self.metrics.dead_letter(self.queue.name);
        Failure::Reject { reason }
    }

    /// Whether nobody can have run the task, or ended its execution unheard: so the log need not be asked, which would
    /// be one request more for every step.
    fn is_new(&self, task: &Task, message: &LogMessage, deliveries: u64) -> bool {
        // A server that was killed may have forgotten a delivery; copies of the log may know of it at different times.
        let trusted_since = self.log.connected_since().after(clock::TOLERANCE);
        deliveries == 1
            && !self.log.is_replicated()
            && message.at >= trusted_since
            && self.running.is_new(task, message.seq)
    }

    async fn is_settled(&self, task: &Task) -> Result<bool, Failure> {
        self.is_over(&task.namespace, task.execution, &task.step, task.attempt)
            .await
    }

    /// Whether there is nothing left to do for an attempt: it has its fact, or its execution is over.
    ///
    /// # Errors
    /// What keeps the log from being read.
    pub async fn is_over(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> Result<bool, Failure> {
        let done = Subject::Done(namespace.clone(), execution, step.clone(), attempt).to_string();
        // One look, which nearly always finds nothing, and for which the server has an index.
        let note = Subject::Note(namespace.clone(), execution).to_string();
        let cancel = Subject::Cancel(namespace.clone(), execution).to_string();
        if !self.log.holds_any(&[done.clone(), note, cancel]).await? {
            return Ok(false);
        }
        if self.log.last(&done).await?.is_some() {
            return Ok(true);
        }
        // A note may be an end or a plan, behind which there are tasks.
        let lane = subjects::lane_filter(namespace, execution);
        let Some(last) = self.log.last(&lane).await? else {
            return Ok(false);
        };
        let append = decode::<Append>(&last.payload);
        Ok(append.is_ok_and(|envelope| matches!(envelope.body.action, LaneAction::End(_))))
    }
}

/// What a task is to do, in the shape of its type.
///
/// # Errors
/// Why it is of another shape.
pub fn work<W: DeserializeOwned>(task: &Task) -> Result<W, String> {
    serde_json::from_value(task.work.clone())
        .map_err(|error| format!("the work of the step {} cannot be read: {error}", task.step))
}

/// Has `handler` handle the tasks until their shutdown and what is in hand then, and cancels attempts in hand
/// whose execution is cancelled meanwhile.
///
/// # Errors
/// Why no task can be taken, or no cancellation be heard, any more.
pub async fn perform<L: Log, H: Handler>(
    tasks: &Tasks<L>,
    options: Consume,
    handler: Arc<H>,
) -> Result<(), Fatal> {
    // Before the first task: a cancel that comes after the task was looked up must be heard.
    let cancels = vec![subjects::ALL_CANCELS.to_owned()];
    let last_seq = tasks.log.stream_state(StreamId::Log).await?.last_seq;
    let cancels = tasks.log.follow(cancels, Position::Seq(last_seq + 1)).await?;
    tasks.running.listens_from(last_seq);
    let shutdown = tasks.shutdown.clone();
    let consuming = consume(tasks.log.clone(), &tasks.queue, options, handler, shutdown);
    let mut consuming = std::pin::pin!(consuming);
    let deaf = tokio::select! {
        biased;
        outcome = &mut consuming => return Ok(outcome?),
        deaf = follow_cancels(cancels, &tasks.running) => deaf,
    };
    tasks.shutdown.cancel();
    consuming.await?;
    Err(deaf)
}

/// Ends what runs for executions that are cancelled. Returns why no more of them can be heard.
async fn follow_cancels(mut cancels: Follow, running: &Running) -> Fatal {
    while let Some(message) = cancels.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => return Fatal::because("cancellations can be heard no longer", error),
        };
        if let Ok(Subject::Cancel(_, execution)) = Subject::parse(&message.subject) {
            let ended = running.cancel(execution, message.seq);
            tracing::debug!(%execution, ended, "execution cancelled");
        }
    }
    Fatal::new("cancellations can be heard no longer: their stream ended")
}

/// A name that no other runner ever had: facts tell by it who began what.
fn instance(service: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => service,
        host => host,
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{host}/{}.{}.{count}",
        std::process::id(),
        clock::now().as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runners_of_one_process_have_different_names() {
        let [one, two] = [instance("cli-runner"), instance("cli-runner")];
        assert_ne!(one, two);
        assert!(
            one.contains(&format!("/{}.", std::process::id())),
            "{one} names the process"
        );
    }
}
