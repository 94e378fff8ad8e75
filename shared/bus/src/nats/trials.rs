//! Counts, across all processes, the handlers of a message that never came back.
//!
//! The server counts deliveries, but not why: a database that was away for an hour leads to hundreds, and
//! none of them speaks against the message. So a suspicious message (delivered often) is entered in a KV
//! bucket before it is handled and taken out when its handler came back.
//!
//! Invariant: an entry's number is how many handlers began and have not come back, or are at it now.

use std::time::Duration;

use async_nats::jetstream::kv;

use crate::log::LogError;

/// Writers of one entry are the few processes that hold the same message.
const TRIES_MAX: u32 = 10;

/// The entries of one consumer.
#[derive(Clone, Debug)]
pub(crate) struct Trials {
    store: kv::Store,
    consumer: &'static str,
}

impl Trials {
    pub(crate) fn new(store: kv::Store, consumer: &'static str) -> Self {
        Self { store, consumer }
    }

    fn key(&self, seq: u64) -> String {
        format!("{}.{seq}", self.consumer)
    }

    /// Adds one and returns how many there were.
    pub(crate) async fn begin(&self, seq: u64) -> Result<u64, LogError> {
        for _ in 0..TRIES_MAX {
            let (count, revision) = self.read(seq).await?;
            if self.write(seq, count + 1, revision).await? {
                return Ok(count);
            }
            tokio::time::sleep(crate::jitter::up_to(Duration::from_millis(20))).await;
        }
        Err(LogError::unavailable(
            "count the trials of a message",
            "too many writers at once",
        ))
    }

    /// Takes one away.
    pub(crate) async fn end(&self, seq: u64) {
        for _ in 0..TRIES_MAX {
            let ended = match self.read(seq).await {
                Ok((0, _)) => Ok(true),
                Ok((count, revision)) => self.write(seq, count - 1, revision).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(crate::jitter::up_to(Duration::from_millis(20))).await,
                Err(error) => {
                    tracing::debug!(%error, seq, "a trial was not ended; it counts against its message");
                    return;
                }
            }
        }
    }

    async fn read(&self, seq: u64) -> Result<(u64, u64), LogError> {
        let entry = self
            .store
            .entry(self.key(seq))
            .await
            .map_err(|error| LogError::unavailable("read the trials of a message", error))?;
        Ok(entry.map_or((0, 0), |entry| {
            let count = match entry.operation {
                kv::Operation::Put => std::str::from_utf8(&entry.value)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                kv::Operation::Delete | kv::Operation::Purge => None,
            };
            (count.unwrap_or(0), entry.revision)
        }))
    }

    /// Whether it was written; `false` when another was first.
    async fn write(&self, seq: u64, count: u64, revision: u64) -> Result<bool, LogError> {
        match self
            .store
            .update(self.key(seq), count.to_string().into(), revision)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(LogError::unavailable("count the trials of a message", error)),
        }
    }
}
