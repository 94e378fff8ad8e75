//! Questions to store-writer: core NATS requests on `fist.query.<kind>`, answered in JSON.
//!
//! Invariants:
//! - An answer stays under [`REPLY_BYTES_MAX`]; lists page by bytes, large outputs are references.
//! - What cannot be answered is answered with a [`QueryError`], never with silence.

use serde::{Deserialize, Serialize};

use crate::{
    alerts::DispositionKind,
    ids::{ExecutionId, Namespace, WorkflowName},
    views::{AlertView, ExecutionStatus, ExecutionSummary, ExecutionView, Page},
};

/// Replies stay under this many bytes, half of the payload limit of a NATS server as it comes.
pub const REPLY_BYTES_MAX: usize = 512 * 1024;

/// Entries of a page where the asker names no limit.
pub const LIMIT_DEFAULT: u32 = 50;

/// Most entries of a page.
pub const LIMIT_MAX: u32 = 500;

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "snake_case")]
pub enum Query {
    /// Executions, newest first.
    Executions(ExecutionFilter),
    /// One execution.
    Execution {
        /// Which.
        id: ExecutionId,
    },
    /// Executions whose id begins with these digits, at most two of them: to resolve a shortened id.
    ExecutionPrefix {
        /// The first characters of the id, at least four.
        prefix: String,
    },
    /// Deliveries of alerts, newest first.
    Alerts(AlertFilter),
    /// Counts of alerts by disposition.
    AlertCounts,
}

/// Which executions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecutionFilter {
    /// Only in this state.
    pub status: Option<ExecutionStatus>,
    /// Only of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Only in this namespace.
    pub namespace: Option<Namespace>,
    /// At most this many.
    pub limit: Option<u32>,
    /// Where the previous page ended.
    pub cursor: Option<String>,
}

/// Which alerts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertFilter {
    /// Only with this disposition.
    pub disposition: Option<DispositionKind>,
    /// Only from this source.
    pub source: Option<String>,
    /// Only the delivery, or the deliveries of the identity, with this id.
    pub id: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
    /// Where the previous page ended.
    pub cursor: Option<String>,
}

/// Counts of what is recorded of alerts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AlertCounts {
    /// Messages of which at least one alert is recorded and none is missing.
    pub messages: u64,
    /// Alerts by disposition.
    pub dispositions: std::collections::BTreeMap<DispositionKind, u64>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Query::Executions`] and [`Query::ExecutionPrefix`].
    Executions(Page<ExecutionSummary>),
    /// To [`Query::Execution`]; `None` where there is none.
    Execution(Option<Box<ExecutionView>>),
    /// To [`Query::Alerts`].
    Alerts(Page<AlertView>),
    /// To [`Query::AlertCounts`].
    AlertCounts(AlertCounts),
    /// To any.
    Error(QueryError),
}

/// Why a question was not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum QueryError {
    /// The question is wrong: a cursor that is none, a limit out of range.
    #[error("{message}")]
    Invalid {
        /// What is wrong and what would be right.
        message: String,
    },
    /// The database cannot be reached just now.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
    },
}
