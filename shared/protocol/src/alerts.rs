//! Alerts as they are recorded: what came in, and what became of it.
//!
//! Invariant: every delivery of every alert has exactly one [`Disposition`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ids::{AlertId, ExecutionId, SourceName},
    time::Timestamp,
};

/// One alert, whatever source it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Where it came from.
    pub source: SourceName,
    /// Its name (`alertname` at Alertmanager).
    pub name: String,
    /// Lower case; empty where the source gives none.
    #[serde(default)]
    pub severity: String,
    /// Firing or resolved.
    pub status: AlertStatus,
    /// The source's fingerprint, else a hash of the labels.
    pub fingerprint: String,
    /// When it began, where the source says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Timestamp>,
    /// When it ended, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Timestamp>,
    /// Its labels.
    #[serde(default)]
    pub labels: Map<String, Value>,
    /// Its annotations.
    #[serde(default)]
    pub annotations: Map<String, Value>,
}

/// Whether an alert is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The names say it.
pub enum AlertStatus {
    Firing,
    Resolved,
}

impl AlertStatus {
    /// The word for people, JSON and templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// What became of one delivery of an alert, on `fist.alert.<source>.<id>.<delivery>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disposition {
    /// The alert's identity.
    pub id: AlertId,
    /// Sequence of the message in `FIST_ALERTS`, with `-<index>` after it for all but the first alert of
    /// a message.
    pub delivery: String,
    /// Sequence of the message in `FIST_ALERTS`.
    pub delivery_seq: u64,
    /// How many alerts that message held.
    pub delivery_alerts: u32,
    /// The source, even where nothing else could be read.
    pub source: SourceName,
    /// The alert, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<Alert>,
    /// What became of it.
    pub disposition: DispositionKind,
    /// Why, for people: which filter did not match, what could not be read, which execution it was merged into.
    #[serde(default)]
    pub reason: String,
    /// The executions it started, or was merged into.
    #[serde(default)]
    pub executions: Vec<ExecutionId>,
    /// When it was durable: the timestamp of its message.
    pub received_at: Timestamp,
}

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DispositionKind {
    /// It started at least one execution.
    Started,
    /// All it would start had been started by an earlier delivery.
    Merged,
    /// No workflow wanted it, or only suspended ones.
    Filtered,
    /// It is over; resolved alerts start nothing.
    Resolved,
    /// It could not be read.
    Rejected,
}

impl DispositionKind {
    /// All of them, in the order of lists.
    pub const ALL: [Self; 5] = [
        Self::Started,
        Self::Merged,
        Self::Filtered,
        Self::Resolved,
        Self::Rejected,
    ];

    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Merged => "merged",
            Self::Filtered => "filtered",
            Self::Resolved => "resolved",
            Self::Rejected => "rejected",
        }
    }
}
