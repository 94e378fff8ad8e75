//! What agents use of their budgets: KV `fist-budgets`, key `<namespace>.<yyyy-mm-dd>`, value a
//! [`protocol::BudgetDay`].
//!
//! Invariant: a value changes by compare-and-set only, so changes of several processes never overwrite each other.

use std::time::Duration;

use async_nats::jetstream::kv;
use protocol::{BudgetDay, Day, Namespace, Timestamp, decode, encode};
use tokio::time::Instant;

use crate::{
    connect::Connection,
    definitions::{Stored, put_if},
    jitter,
    log::LogError,
    nats::{api::Api, log::bucket_error, read::Reader},
    topology::BUDGETS_BUCKET,
};

/// How long one change goes on trying against other writers and a server that does not answer.
const CHANGE_TIME: Duration = Duration::from_secs(10);
/// Pauses between two tries grow from here to there, times a random part.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Namespaces of one day that are listed.
const LISTED_MAX: usize = 1000;

/// The use of one namespace on the day that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayEntry {
    /// Whose it is.
    pub namespace: Namespace,
    /// What is used and reserved.
    pub day: BudgetDay,
}

/// The budgets' bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budgets {
    store: kv::Store,
    reader: Reader,
}

fn key(namespace: &Namespace, day: Day) -> String {
    format!("{namespace}.{day}")
}

fn read(key: &str, value: &[u8]) -> Result<BudgetDay, LogError> {
    let envelope = decode::<BudgetDay>(value).map_err(|error| LogError::Damaged {
        what: format!("the key {key} of the bucket {BUDGETS_BUCKET}"),
        reason: error.to_string(),
    })?;
    Ok(envelope.body)
}

impl Budgets {
    /// Opens the bucket on `connection`.
    ///
    /// # Errors
    /// [`LogError::Missing`] where `fist nats init` did not run, or not since there are budgets.
    pub async fn open(connection: &Connection) -> Result<Self, LogError> {
        let store = connection
            .context
            .get_key_value(BUDGETS_BUCKET)
            .await
            .map_err(|error| bucket_error(BUDGETS_BUCKET, &error))?;
        let api = Api {
            connection: connection.clone(),
        };
        let replicas = store.stream.cached_info().config.num_replicas;
        Ok(Self {
            reader: Reader::new(api, &format!("KV_{BUDGETS_BUCKET}"), replicas),
            store,
        })
    }

    /// What a namespace has used and reserved on a day; nothing where nobody wrote any.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn get(&self, namespace: &Namespace, day: Day) -> Result<BudgetDay, LogError> {
        Ok(self.entry(&key(namespace, day)).await?.0)
    }

    /// What every namespace has used and reserved on a day, by namespace; at most a thousand.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn list(&self, day: Day) -> Result<Vec<DayEntry>, LogError> {
        let prefix = format!("$KV.{BUDGETS_BUCKET}.");
        let entries = self
            .reader
            .all(&format!("{prefix}*.{day}"), 1, LISTED_MAX)
            .await?;
        let mut days = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(key) = entry.message.subject.strip_prefix(&prefix) else {
                continue;
            };
            let namespace = key
                .split_once('.')
                .and_then(|(name, _)| Namespace::new(name).ok());
            // A mark of a deletion has no value.
            let (Some(namespace), false) = (namespace, entry.message.payload.is_empty()) else {
                continue;
            };
            let day = read(key, &entry.message.payload)?;
            days.push(DayEntry { namespace, day });
        }
        days.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        Ok(days)
    }

    /// Changes what a namespace has used and reserved on a day, and hands back what `change` said when its result
    /// was written. `change` is called again whenever another writer was faster, and must bear that the change
    /// before was written nevertheless, since an answer of the server may be lost.
    ///
    /// # Errors
    /// [`LogError`], after ten seconds of trying where it may pass.
    pub async fn change<T>(
        &self,
        namespace: &Namespace,
        day: Day,
        now: Timestamp,
        change: impl Fn(&mut BudgetDay) -> T,
    ) -> Result<T, LogError> {
        let key = key(namespace, day);
        let deadline = Instant::now() + CHANGE_TIME;
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.change_once(&key, now, &change).await {
                Ok(Some(said)) => return Ok(said),
                Ok(None) => LogError::unavailable("change a budget", "other writers were always faster"),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            let next = Instant::now() + jitter::up_to(pause);
            if next >= deadline {
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// `None` where another writer was faster.
    async fn change_once<T>(
        &self,
        key: &str,
        now: Timestamp,
        change: &impl Fn(&mut BudgetDay) -> T,
    ) -> Result<Option<T>, LogError> {
        let (before, revision) = self.entry(key).await?;
        let mut after = before.clone();
        let said = change(&mut after);
        if after == before {
            return Ok(Some(said));
        }
        let value = encode(now, &after).into();
        match put_if(&self.store, key.to_owned(), value, revision, "change a budget").await? {
            Stored::At(_) => Ok(Some(said)),
            Stored::Conflict => Ok(None),
        }
    }

    /// The value and its revision, 0 where there is none.
    async fn entry(&self, key: &str) -> Result<(BudgetDay, u64), LogError> {
        let entry = self
            .store
            .entry(key)
            .await
            .map_err(|error| LogError::unavailable("read a budget", error))?;
        match entry.filter(|entry| entry.operation == kv::Operation::Put) {
            Some(entry) => Ok((read(key, &entry.value)?, entry.revision)),
            None => Ok((BudgetDay::default(), 0)),
        }
    }
}
