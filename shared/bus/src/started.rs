//! What was started, longer than the log remembers: KV `fist-started`, an entry per start identity.
//!
//! Entries expire (90 days as configured) after they were last written, so seeing one again refreshes it.
//!
//! Invariant: an entry is written only once the start fact is acknowledged, so it never claims too much.

use async_nats::jetstream::kv;
use bytes::Bytes;
use protocol::Timestamp;

use crate::{
    connect::Connection,
    definitions::{Stored, put_if},
    log::LogError,
    nats::{log::bucket_error, read::timestamp},
    topology::STARTED_BUCKET,
};

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedEntry {
    /// What was written.
    pub value: Bytes,
    /// For [`Started::refresh`].
    pub revision: u64,
    /// When it was last written.
    pub at: Timestamp,
}

/// The memory of starts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Started {
    store: kv::Store,
}

/// Keys are ours (UUIDs, hashes): one token of letters, digits, `-`, `_` and `=`.
fn checked(key: &str) -> Result<&str, LogError> {
    let fits = (1..=200).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'='));
    if fits {
        Ok(key)
    } else {
        Err(LogError::Refused {
            action: "use a start identity as a key".to_owned(),
            reason: format!(
                "`{}` holds other than letters, digits, `-`, `_` and `=`",
                key.escape_debug()
            ),
        })
    }
}

impl Started {
    /// Opens the bucket on `connection`.
    ///
    /// # Errors
    /// [`LogError::Missing`] where `fist nats init` did not run.
    pub async fn open(connection: &Connection) -> Result<Self, LogError> {
        let store = connection
            .context
            .get_key_value(STARTED_BUCKET)
            .await
            .map_err(|error| bucket_error(STARTED_BUCKET, &error))?;
        Ok(Self { store })
    }

    /// The entry of `key`.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn get(&self, key: &str) -> Result<Option<StartedEntry>, LogError> {
        let entry = self
            .store
            .entry(checked(key)?)
            .await
            .map_err(|error| LogError::unavailable("read what was started", error))?;
        Ok(entry
            .filter(|entry| entry.operation == kv::Operation::Put)
            .map(|entry| StartedEntry {
                value: entry.value,
                revision: entry.revision,
                at: timestamp(entry.created.unix_timestamp_nanos()),
            }))
    }

    /// Writes the entry of `key` if there is none.
    ///
    /// # Errors
    /// [`LogError`]; creating again is safe.
    pub async fn create(&self, key: &str, value: Bytes) -> Result<Stored, LogError> {
        put_if(
            &self.store,
            checked(key)?.to_owned(),
            value,
            0,
            "record what was started",
        )
        .await
    }

    /// Writes the entry of `key` anew, which begins its time anew, if its revision is `revision`.
    ///
    /// # Errors
    /// [`LogError`]; refreshing again is safe.
    pub async fn refresh(&self, key: &str, value: Bytes, revision: u64) -> Result<Stored, LogError> {
        put_if(
            &self.store,
            checked(key)?.to_owned(),
            value,
            revision,
            "record what was started",
        )
        .await
    }
}
