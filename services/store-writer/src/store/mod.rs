//! Where records are kept: one trait, one file per database, one contract suite for all of them.
//!
//! Invariants:
//! - A batch is written whole or not at all, in one transaction.
//! - Writers of one execution exclude each other from reading its rows to the commit, so that no part is
//!   lost between replicas.
//! - Rows of an execution whose start is not known yet are kept, and no list shows them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use protocol::{
    DispositionKind, ExecutionId, Namespace, Timestamp, WorkflowName,
    query::AlertCounts,
    views::{AlertView, ExecutionStatus, ExecutionSummary},
};

use crate::{
    reading::{AlertEntry, Change},
    record::{Part, Record, Touched},
};

#[cfg(test)]
mod contract;
mod migrate;
mod postgres;
pub(crate) mod rows;
mod sqlite;

/// What a store gives back.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Why a store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or cannot work just now. The same again may succeed later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database works, and does not take this, or holds what cannot be read. The same again fails again.
    #[error("the database refuses: {0}")]
    Refused(String),
    /// The database cannot be used by this build or with this configuration.
    #[error("{0}")]
    Unusable(String),
}

/// What is written in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// By execution, in the order in which they came.
    pub changes: BTreeMap<ExecutionId, Vec<Change>>,
    /// Dispositions of alerts.
    pub alerts: Vec<AlertEntry>,
}

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Rows of `executions` inserted or changed.
    pub executions: u64,
    /// Rows of `steps` inserted or changed.
    pub steps: u64,
    /// Rows of `alerts` inserted.
    pub alerts: u64,
}

/// Which executions, and from where in their order: newest first, by `created_at` and id.
#[derive(Clone, Debug, Default)]
pub struct ExecutionScan {
    /// Only in this state.
    pub status: Option<ExecutionStatus>,
    /// Only of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Only in this namespace.
    pub namespace: Option<Namespace>,
    /// Only after this one.
    pub after: Option<(Timestamp, ExecutionId)>,
    /// At most this many.
    pub rows_max: u32,
}

/// Which alerts, and from where in their order: newest first, by `received_at` and id.
#[derive(Clone, Debug, Default)]
pub struct AlertScan {
    /// Only with this disposition.
    pub disposition: Option<DispositionKind>,
    /// Only from this source.
    pub source: Option<String>,
    /// Only the delivery, or the deliveries of the identity, with this id.
    pub id: Option<String>,
    /// Only after this one.
    pub after: Option<(Timestamp, String)>,
    /// At most this many.
    pub rows_max: u32,
}

/// Characters of an error, a name or a reason in a list: 2,000, and one more that tells that there are more.
pub const LISTED_CHARS_MAX: usize = 2_001;

/// The oldest message that the log still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Its sequence.
    pub seq: u64,
    /// When the log took it.
    pub at: Timestamp,
}

/// A database of records.
pub trait Store: Send + Sync + 'static {
    /// Brings the tables to this build's form; safe when several processes do it at once.
    fn migrate(&self) -> StoreFuture<'_, ()>;

    /// Whether the database answers.
    fn ping(&self) -> StoreFuture<'_, ()>;

    /// Joins the batch into the records; when this returns, it is durable.
    fn apply<'a>(&'a self, batch: &'a Batch) -> StoreFuture<'a, Written>;

    /// One record, whole, whether its start is known or not.
    fn record(&self, id: ExecutionId) -> StoreFuture<'_, Option<Record>>;

    /// A page of executions. Texts are cut to [`LISTED_CHARS_MAX`], so that a page is bounded in memory.
    fn executions<'a>(&'a self, scan: &'a ExecutionScan) -> StoreFuture<'a, Vec<ExecutionSummary>>;

    /// Executions with ids from `low` to `high`, both included.
    fn executions_between(
        &self,
        low: ExecutionId,
        high: ExecutionId,
        rows_max: u32,
    ) -> StoreFuture<'_, Vec<ExecutionSummary>>;

    /// A page of alerts. Texts are cut to [`LISTED_CHARS_MAX`], and labels over 64 KiB (Alertmanager's own are a
    /// few hundred bytes) are left out with a word on it.
    fn alerts<'a>(&'a self, scan: &'a AlertScan) -> StoreFuture<'a, Vec<AlertView>>;

    /// Counts of all alerts that were ever recorded, the expired ones included.
    fn alert_counts(&self) -> StoreFuture<'_, AlertCounts>;

    /// Forgets everything that the log from `horizon` on can give again. What is older stays.
    fn forget_from(&self, horizon: Horizon) -> StoreFuture<'_, ()>;

    /// Every column of an execution and its steps, for comparing.
    fn rows(&self, id: ExecutionId) -> StoreFuture<'_, Option<StoredRows>>;

    /// Every column of the alerts whose messages are beyond `after_seq` and not beyond `to_seq`, in the log's order.
    fn alert_rows(&self, after_seq: u64, to_seq: u64, rows_max: u32) -> StoreFuture<'_, Vec<StoredAlert>>;

    /// When the alert was received that `newer` are newer than; `None` where there are not so many.
    fn nth_newest_alert(&self, newer: u64) -> StoreFuture<'_, Option<Timestamp>>;

    /// Deletes at most `rows_max` executions that are over and that `kept` others which are over are newer than
    /// (by start). Returns how many went.
    fn expire_beyond(&self, kept: u64, rows_max: u32) -> StoreFuture<'_, u64>;

    /// Deletes at most `rows_max` executions that were over before `before`, and as many alerts that were
    /// received before `alerts_before` and that the log from `horizon` on does not hold (they stay counted, and must
    /// not be counted twice when they are read again). Returns how many rows went; 0 means that none is left.
    fn expire(
        &self,
        before: Timestamp,
        alerts_before: Timestamp,
        horizon: Horizon,
        rows_max: u32,
    ) -> StoreFuture<'_, u64>;
}

/// An execution and its steps as they stand in the database.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRows {
    pub(crate) execution: rows::ExecutionRow,
    /// By name and attempt.
    pub(crate) steps: Vec<rows::StepRow>,
}

/// An alert as it stands in the database.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAlert(pub(crate) rows::AlertRow);

/// How to reach a database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time.
    pub connections_max: u32,
    /// Time to connect, or to wait for a free connection.
    pub acquire_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8,
            acquire_timeout: Duration::from_secs(5),
        }
    }
}

/// The store that `url` names. Does not connect yet: the database may be away when a service starts.
///
/// # Errors
/// [`StoreError::Unusable`] where the URL is none of a database that can be used.
pub fn from_url(url: &str, limits: Limits) -> Result<Arc<dyn Store>, StoreError> {
    match url.split(':').next() {
        Some("sqlite") => Ok(Arc::new(sqlite::SqliteStore::new(url, limits)?)),
        Some("postgres" | "postgresql") => Ok(Arc::new(postgres::PostgresStore::new(url, limits)?)),
        // The URL itself may hold a password, so that it is not repeated.
        _ => Err(StoreError::Unusable(
            "database.url names no database that is known: begin it with `sqlite://` or `postgres://`"
                .to_owned(),
        )),
    }
}

impl Batch {
    /// Adds what one message says about an execution.
    pub fn push(&mut self, change: Change) {
        self.changes.entry(change.execution).or_default().push(change);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.alerts.is_empty()
    }

    /// Executions for whose fold the stored outputs of their steps are needed: those that end here, and
    /// those where the scheduler's output takes the place of a runner's.
    fn needs_outputs(&self, id: ExecutionId) -> bool {
        let parts = self
            .changes
            .get(&id)
            .into_iter()
            .flatten()
            .flat_map(|change| &change.parts);
        parts.into_iter().any(|part| match part {
            Part::End(_) => true,
            Part::Recorded(_, _, recorded) => recorded.output.is_some(),
            Part::Start(_) | Part::Dispatched(..) | Part::Done(..) => false,
        })
    }

    /// Joins the changes of `id` into `record`.
    fn fold(&self, id: ExecutionId, record: &mut Record) -> Touched {
        let mut touched = Touched::default();
        for change in self.changes.get(&id).into_iter().flatten() {
            record.apply(change.clone(), &mut touched);
        }
        touched
    }
}
