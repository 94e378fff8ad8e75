//! Records as rows: what every backend reads and writes, in types that all of them have.
//!
//! Invariants:
//! - `record(rows(record)) == record`: the columns that people read are derived, the parts are kept beside
//!   them, and only the parts are read back.
//! - Timestamps are milliseconds here; a backend shows them as its own type. JSON is text here.

use protocol::{
    Alert, AlertStatus, Attempt, DispositionKind, EndStatus, ExecutionId, StepName, Timestamp,
    query::AlertCounts,
    views::{AlertView, ExecutionStatus, ExecutionSummary},
};
use serde::{Serialize, de::DeserializeOwned};

use super::StoreError;
use crate::{
    reading::AlertEntry,
    record::{
        AttemptParts, DispatchedPart, DonePart, EndPart, Record, RecordedPart, StartPart, Touched, shown_text,
    },
};

/// One row of `executions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ExecutionRow {
    pub id: String,
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub trigger_source: Option<String>,
    pub status: String,
    pub steps_completed: i32,
    pub total_steps: i32,
    pub current_step: Option<String>,
    pub input_context: Option<String>,
    pub outputs: Option<String>,
    pub error: Option<String>,
    pub started_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub created_at: Option<i64>,
    pub workflow_steps: Option<String>,
    pub failed_step: Option<String>,
    pub start_seq: Option<i64>,
    pub end_seq: Option<i64>,
    pub last_seq: i64,
}

/// One row of `steps`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StepRow {
    pub execution_id: String,
    pub name: String,
    pub attempt: i32,
    pub position: Option<i32>,
    pub step_type: Option<String>,
    pub status: String,
    pub started_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub output: Option<String>,
    pub error: Option<String>,
    pub message: Option<String>,
    pub dispatched: Option<String>,
    pub recorded: Option<String>,
    pub done: Option<String>,
    pub done_output: Option<String>,
}

/// The row of the execution itself. Start columns are filled only where `touched` says that they changed.
pub(crate) fn execution_row(id: ExecutionId, record: &Record, touched: &Touched) -> ExecutionRow {
    let start = record.start.as_ref().filter(|_| touched.start);
    ExecutionRow {
        id: id.to_string(),
        name: start.map(|start| start.name.to_string()),
        namespace: start.map(|start| start.namespace.to_string()),
        trigger_source: start.map(|start| start.trigger_source.clone()),
        status: record.status().as_str().to_owned(),
        steps_completed: small(record.steps_completed()),
        total_steps: small(record.total_steps()),
        current_step: record.current_step(),
        input_context: start.map(|start| json(&start.input_context)),
        outputs: record.outputs().map(|outputs| json(&outputs)),
        error: record.end.as_ref().and_then(|end| end.error.clone()),
        started_at: record.started_at().map(Timestamp::as_millis),
        completed_at: record.end.as_ref().map(|end| end.at.as_millis()),
        created_at: start.map(|start| start.created_at.as_millis()),
        workflow_steps: start.map(|start| json(&start.steps)),
        failed_step: record
            .end
            .as_ref()
            .and_then(|end| end.failed_step.as_ref().map(StepName::to_string)),
        start_seq: start.map(|start| seq(start.seq)),
        end_seq: record.end.as_ref().map(|end| seq(end.seq)),
        last_seq: seq(record.last_seq),
    }
}

/// The rows of the attempts that `touched` names.
pub(crate) fn step_rows(id: ExecutionId, record: &Record, touched: &Touched) -> Vec<StepRow> {
    let row = |(step, attempt): &(StepName, Attempt)| {
        let parts = record.attempts.get(&(step.clone(), *attempt))?;
        let view = record.attempt_view(step, *attempt)?;
        let done_output = parts.done.as_ref().and_then(|done| done.output.as_ref());
        let is_overridden = parts
            .recorded
            .as_ref()
            .is_some_and(|recorded| recorded.output.is_some());
        Some(StepRow {
            execution_id: id.to_string(),
            name: view.name,
            attempt: small(view.attempt),
            position: i32::try_from(record.place(step)).ok(),
            step_type: Some(view.step_type).filter(|step_type| !step_type.is_empty()),
            status: view.status.as_str().to_owned(),
            started_at: view.started_at.map(Timestamp::as_millis),
            completed_at: view.completed_at.map(Timestamp::as_millis),
            output: view.output.as_ref().map(json),
            error: view.error,
            message: view.message,
            dispatched: parts.dispatched.as_ref().map(json),
            recorded: parts.recorded.as_ref().map(json),
            done: parts.done.as_ref().map(json),
            done_output: done_output.filter(|_| is_overridden).map(json),
        })
    };
    touched.attempts.iter().filter_map(row).collect()
}

/// The record without its attempts.
pub(crate) fn record(row: ExecutionRow) -> Result<(ExecutionId, Record), StoreError> {
    let id: ExecutionId = row.id.parse().map_err(|error| corrupt(&row.id, &error))?;
    let start = match (row.start_seq, row.created_at) {
        (Some(start_seq), Some(created_at)) => Some(StartPart {
            seq: unsigned(start_seq),
            namespace: parsed(&row.id, row.namespace)?,
            name: parsed(&row.id, row.name)?,
            trigger_source: row.trigger_source.unwrap_or_default(),
            steps: from_json(&row.id, row.workflow_steps.as_deref().unwrap_or("[]"))?,
            input_context: from_json(&row.id, row.input_context.as_deref().unwrap_or("null"))?,
            created_at: Timestamp::from_millis(created_at),
        }),
        _ => None,
    };
    let end = match (row.end_seq, row.completed_at) {
        (Some(end_seq), Some(at)) => Some(EndPart {
            seq: unsigned(end_seq),
            status: end_status(&row.id, &row.status)?,
            error: row.error,
            failed_step: row
                .failed_step
                .map(|step| parsed(&row.id, Some(step)))
                .transpose()?,
            at: Timestamp::from_millis(at),
        }),
        _ => None,
    };
    let record = Record {
        start,
        attempts: Default::default(),
        end,
        last_seq: unsigned(row.last_seq),
    };
    Ok((id, record))
}

/// One attempt of the record `row.execution_id`.
pub(crate) fn attempt(row: StepRow) -> Result<((StepName, Attempt), AttemptParts), StoreError> {
    let id = row.execution_id.as_str();
    let step: StepName = parsed(id, Some(row.name))?;
    let number = u32::try_from(row.attempt).unwrap_or_default();
    let number = Attempt::try_from(number).map_err(|error| corrupt(id, &error))?;
    let dispatched: Option<DispatchedPart> = optional(id, row.dispatched.as_deref())?;
    let recorded: Option<RecordedPart> = optional(id, row.recorded.as_deref())?;
    let mut done: Option<DonePart> = optional(id, row.done.as_deref())?;
    if let Some(done) = &mut done {
        let is_overridden = recorded
            .as_ref()
            .is_some_and(|recorded| recorded.output.is_some());
        let output = if is_overridden {
            row.done_output
        } else {
            row.output
        };
        done.output = optional(id, output.as_deref())?;
    }
    let parts = AttemptParts {
        dispatched,
        recorded,
        done,
    };
    Ok(((step, number), parts))
}

/// A status of `executions.status`.
pub(crate) fn status(id: &str, text: &str) -> Result<ExecutionStatus, StoreError> {
    let known = ExecutionStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == text);
    known.ok_or_else(|| corrupt(id, &format!("`{text}` is no status")))
}

fn end_status(id: &str, text: &str) -> Result<EndStatus, StoreError> {
    match status(id, text)? {
        ExecutionStatus::Succeeded => Ok(EndStatus::Succeeded),
        ExecutionStatus::Failed => Ok(EndStatus::Failed),
        ExecutionStatus::Cancelled => Ok(EndStatus::Cancelled),
        ExecutionStatus::Pending | ExecutionStatus::Running => {
            Err(corrupt(id, &format!("it has an end and the status {text}")))
        }
    }
}

/// A required column as an identifier.
pub(crate) fn parsed<T>(id: &str, text: Option<String>) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text = text.ok_or_else(|| corrupt(id, &"a column that is never null is null"))?;
    text.parse().map_err(|error| corrupt(id, &error))
}

/// A column of JSON text.
pub(crate) fn from_json<T: DeserializeOwned>(id: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(id, &error))
}

fn optional<T: DeserializeOwned>(id: &str, text: Option<&str>) -> Result<Option<T>, StoreError> {
    text.map(|text| from_json(id, text)).transpose()
}

/// `value` as JSON text.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    // Our own types with string keys: serialising them cannot fail.
    serde_json::to_string(value).expect("rows always serialise")
}

/// A sequence as the databases have it; streams do not reach 2^63.
pub(crate) fn seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn small(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn corrupt(id: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Refused(format!("the stored record {id} cannot be read: {why}"))
}

/// One row of `alerts`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AlertRow {
    pub id: String,
    pub identity: String,
    pub delivery: String,
    pub delivery_seq: i64,
    pub delivery_alerts: i64,
    pub source: String,
    pub fingerprint: String,
    pub name: String,
    pub status: Option<String>,
    pub labels: String,
    pub disposition: String,
    pub reason: String,
    pub executions: String,
    pub received_at: i64,
    pub seq: i64,
}

/// The row of a disposition.
pub(crate) fn alert_row(entry: &AlertEntry) -> AlertRow {
    let disposition = &entry.disposition;
    let alert = disposition.alert.as_ref();
    let text = |text: fn(&Alert) -> &str| alert.map(|alert| shown_text(text(alert))).unwrap_or_default();
    AlertRow {
        id: format!("{}.{}", disposition.id, disposition.delivery),
        identity: disposition.id.to_string(),
        delivery: shown_text(&disposition.delivery),
        delivery_seq: seq(disposition.delivery_seq),
        delivery_alerts: i64::from(disposition.delivery_alerts),
        source: disposition.source.to_string(),
        fingerprint: text(|alert| &alert.fingerprint),
        name: text(|alert| &alert.name),
        status: alert.map(|alert| alert.status.as_str().to_owned()),
        labels: alert.map_or_else(|| "{}".to_owned(), |alert| json(&alert.labels)),
        disposition: disposition.disposition.as_str().to_owned(),
        reason: shown_text(&disposition.reason),
        executions: json(&disposition.executions),
        received_at: disposition.received_at.as_millis(),
        seq: seq(entry.seq),
    }
}

/// What readers see of an alert's row.
pub(crate) fn alert_view(row: AlertRow) -> Result<AlertView, StoreError> {
    let statuses = [AlertStatus::Firing, AlertStatus::Resolved];
    let status = row.status.as_deref();
    Ok(AlertView {
        source: parsed(&row.id, Some(row.source))?,
        fingerprint: row.fingerprint,
        name: row.name,
        status: statuses.into_iter().find(|known| Some(known.as_str()) == status),
        labels: from_json(&row.id, &row.labels)?,
        disposition: disposition(&row.id, &row.disposition)?,
        reason: row.reason,
        executions: from_json(&row.id, &row.executions)?,
        received_at: Timestamp::from_millis(row.received_at),
        id: row.id,
    })
}

/// A disposition of `alerts.disposition`.
pub(crate) fn disposition(id: &str, text: &str) -> Result<DispositionKind, StoreError> {
    let known = DispositionKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text);
    known.ok_or_else(|| corrupt(id, &format!("`{text}` is no disposition")))
}

/// Adds up counts by disposition and of `messages`, as the stores read them.
pub(crate) fn alert_counts(counts: Vec<(String, i64)>) -> Result<AlertCounts, StoreError> {
    let mut sum = AlertCounts::default();
    for (kind, count) in counts {
        if kind == MESSAGES {
            sum.messages += unsigned(count);
        } else {
            *sum.dispositions
                .entry(disposition("alert counts", &kind)?)
                .or_default() += unsigned(count);
        }
    }
    Ok(sum)
}

/// The kind under which whole messages are counted.
pub(crate) const MESSAGES: &str = "messages";

/// What lists show of a row; `row` has the columns of a summary.
pub(crate) fn summary(row: ExecutionRow) -> Result<ExecutionSummary, StoreError> {
    let count = |number: i32| u32::try_from(number).unwrap_or_default();
    let created_at = row
        .created_at
        .ok_or_else(|| corrupt(&row.id, &"created_at is null"))?;
    Ok(ExecutionSummary {
        id: row.id.parse().map_err(|error| corrupt(&row.id, &error))?,
        name: parsed(&row.id, row.name)?,
        namespace: parsed(&row.id, row.namespace)?,
        trigger_source: row.trigger_source.unwrap_or_default(),
        status: status(&row.id, &row.status)?,
        steps_completed: count(row.steps_completed),
        total_steps: count(row.total_steps),
        current_step: row.current_step,
        error: row.error,
        started_at: row.started_at.map(Timestamp::from_millis),
        completed_at: row.completed_at.map(Timestamp::from_millis),
        created_at: Timestamp::from_millis(created_at),
    })
}
