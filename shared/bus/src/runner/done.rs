//! From what came of an attempt to its `done` fact, large outputs stored apart.

use bytes::Bytes;
use protocol::{
    BlobRef, Body, Done, Fact, Outcome, StepError, StepFailure, Task, Timestamp, encode,
    output::INLINE_BYTES_MAX,
};
use serde_json::Value;
use service::backoff::Policy;

use super::Tasks;
use crate::{Failure, Log, LogError, Written};

/// Attempts at storing a large output before its attempt goes on without it.
const BLOB_ATTEMPTS_MAX: u32 = 6;

/// What came of an attempt, before it is a fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Came {
    /// How it ended.
    pub outcome: Outcome,
    /// What it left.
    pub output: Option<Body>,
    /// When it began.
    pub started_at: Timestamp,
}

/// An output that is too large for a message, and could not be stored apart.
#[derive(Clone, Debug, PartialEq)]
pub struct NotStored {
    /// A shortened form of it.
    pub preview: Value,
    /// Why.
    pub error: LogError,
}

impl<L: Log> Tasks<L> {
    /// An attempt that failed before anything ran.
    pub fn failed(&self, reason: StepFailure, message: impl Into<String>) -> Came {
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

    /// Writes the fact of an attempt, unless it has one, and says which. Once there is a result, a server that is away is waited
    /// for until this process ends.
    ///
    /// # Errors
    /// Why the log does not take it; the task is to come again.
    pub async fn write_done(&self, task: &Task, came: Came) -> Result<Written, Failure> {
        let completed_at = self.log.now();
        let outcome = came.outcome.status();
        let done = Fact::Done(Done {
            step: task.step.clone(),
            attempt: task.attempt,
            outcome: came.outcome,
            output: came.output,
            started_at: came.started_at,
            completed_at,
            runner: self.instance.clone(),
        });
        let (subject, payload) = (task.done_subject(), encode(completed_at, &done));
        let write = || self.log.write_fact(&subject, payload.clone());
        let written = self
            .persist(Policy::PATIENT, "the result of a step", write)
            .await?;
        if let Written::New(_) = written {
            tracing::info!(execution = %task.execution, step = %task.step, attempt = %task.attempt, outcome, "step ended");
        }
        Ok(written)
    }

    /// The output as a fact holds it: itself, or where it is in the object store and what `preview` makes of it
    /// within the given bytes of JSON.
    ///
    /// # Errors
    /// [`NotStored`] where the store does not take it within a few attempts.
    pub async fn body(
        &self,
        output: Value,
        preview: impl FnOnce(&Value, usize) -> Value,
    ) -> Result<Body, NotStored> {
        let json = output.to_string();
        if json.len() <= INLINE_BYTES_MAX {
            return Ok(Body::Inline(output));
        }
        // The other half of the message is for everything that is not the preview.
        let preview = preview(&output, INLINE_BYTES_MAX / 2);
        match self.put(json.into()).await {
            Ok(blob) => Ok(Body::Blob { blob, preview }),
            Err(error) => Err(NotStored { preview, error }),
        }
    }

    /// Stores a large body. What came of an attempt must not wait for it for ever, so the attempts are few.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn put(&self, bytes: Bytes) -> Result<BlobRef, LogError> {
        let policy = Policy::PATIENT.attempts(BLOB_ATTEMPTS_MAX);
        let stored = self
            .persist(policy, "a large output", || self.blobs.put(bytes.clone()))
            .await;
        if let Err(error) = &stored {
            tracing::warn!(%error, bytes = bytes.len(), "a large output could not be stored");
        }
        stored
    }

    /// Attempts until it succeeds, fails for good, `policy` allows no more, or this process ends; at least once,
    /// since what is in hand at the end of the process is to be kept as well.
    async fn persist<T, Attempting>(
        &self,
        policy: Policy,
        what: &str,
        attempt: impl Fn() -> Attempting,
    ) -> Result<T, LogError>
    where
        Attempting: Future<Output = Result<T, LogError>>,
    {
        let mut waits = policy.waits();
        let mut attempts = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            attempts += 1;
            let is_last = policy.attempts_max.is_some_and(|max| attempts >= max);
            if is_last || !error.is_transient() || self.shutdown.is_cancelled() {
                return Err(error);
            }
            let wait = waits.next_wait();
            tracing::warn!(%error, wait_ms = wait.as_millis(), "{what} waits for NATS");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}
