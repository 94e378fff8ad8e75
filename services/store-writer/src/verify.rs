//! Whether the database says what the log says: the log folded anew, and compared with every column of every row.
//!
//! Invariants:
//! - Nothing is changed: the fold goes into a temporary database.
//! - Store-writers may go on meanwhile. A row that moved is compared with a fold of what the log has of it by then, and
//!   is different only when it stays so.
//! - What has begun to leave the log is not compared: its fold would lack its beginning.

use std::{sync::Arc, time::Duration};

use bus::{Log, LogError, StreamId, topology};
use protocol::{ExecutionId, Namespace, Timestamp};
use serde_json::Value;
use service::Service;
use tokio::time::{Instant, sleep};

use crate::{
    projector::batch_of,
    reading::{Message, Reading, read},
    rebuild::{PAGE_MESSAGES, RebuildError, horizon, patiently, readings},
    record::{Record, Touched},
    store::{
        ExecutionScan, Horizon, Limits, Store, StoreError, StoredAlert, StoredRows, from_url,
        rows::{self, AlertRow, ExecutionRow, StepRow},
    },
};

/// Rows of one page.
const ROWS_MAX: u32 = 200;

/// Differences that are told in words; of the others the number.
pub const DIFFERENCES_TOLD_MAX: usize = 100;

/// Characters of a value in a difference.
const VALUE_CHARS_MAX: usize = 80;

/// How long the record may stand still before it counts as behind for good.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether it has moved.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often rows that differ are looked at again, while store-writers have something in hand.
const LOOKS_MAX: u32 = 25;

/// Executions that are looked at again; of more the first look counts.
const AGAIN_MAX: usize = 1_000;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Messages of the log that were folded.
    pub messages: u64,
    /// Messages that cannot be read; they are among the dead letters.
    pub unreadable: u64,
    /// Executions that were compared, with all their steps.
    pub executions: u64,
    /// Alerts that were compared.
    pub alerts: u64,
    /// Executions that are over and not in the database, as its retention has it.
    pub expired: u64,
    /// Rows and columns that differ.
    pub differences: u64,
    /// The first [`DIFFERENCES_TOLD_MAX`] of them, in words.
    pub told: Vec<String>,
}

impl Verified {
    /// Whether the database says what the log says.
    pub fn is_equal(&self) -> bool {
        self.differences == 0
    }

    fn differs(&mut self, what: String) {
        self.differences += 1;
        if self.told.len() < DIFFERENCES_TOLD_MAX {
            self.told.push(what);
        }
    }
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The record has not come to where the log ends.
    #[error(
        "the record has come to message {at} of {last} and goes no further: let a store-writer of this database run (consumer {consumer}), and try again"
    )]
    Behind {
        /// How far it is.
        at: u64,
        /// How far the log is.
        last: u64,
        /// Whose place in the log it is.
        consumer: String,
    },
    /// No temporary database.
    #[error("no temporary database can be made: {0}")]
    Temporary(#[from] std::io::Error),
    /// The log or a database.
    #[error(transparent)]
    Failed(#[from] RebuildError),
}

impl From<LogError> for VerifyError {
    fn from(error: LogError) -> Self {
        Self::Failed(RebuildError::Log(error))
    }
}

impl From<StoreError> for VerifyError {
    fn from(error: StoreError) -> Self {
        Self::Failed(RebuildError::Store(error))
    }
}

/// Compares `store` with `log`, up to where the log ends now.
///
/// # Errors
/// [`VerifyError`] where it cannot be compared; differences are no error.
pub async fn verify<L: Log>(log: &L, store: &dyn Store, service: &Service) -> Result<Verified, VerifyError> {
    let mut found = Verified::default();
    let last = log.stream_state(StreamId::Log).await?.last_seq;
    let Some(first) = horizon(log).await? else {
        return Ok(found);
    };
    let directory = tempfile::tempdir()?;
    let url = format!("sqlite://{}", directory.path().join("fold.db").display());
    let folded = from_url(&url, Limits::default())?;
    folded.migrate().await?;
    fold(log, &*folded, first.seq, last, service, &mut found).await?;
    caught_up(log, last, service).await?;
    let comparison = Comparison {
        log,
        store,
        folded,
        first,
        last,
        service,
    };
    comparison.executions(&mut found).await?;
    comparison.strangers(&mut found).await?;
    comparison.alerts(&mut found).await?;
    Ok(found)
}

/// Folds the log from `next` to `last` into `folded`.
async fn fold<L: Log>(
    log: &L,
    folded: &dyn Store,
    mut next: u64,
    last: u64,
    service: &Service,
    found: &mut Verified,
) -> Result<(), VerifyError> {
    while next <= last {
        if service.shutdown.is_cancelled() {
            return Err(RebuildError::Interrupted.into());
        }
        let mut page = log.read_from(next, PAGE_MESSAGES).await?;
        page.retain(|message| message.seq <= last);
        let Some(newest) = page.last() else { break };
        next = newest.seq + 1;
        found.messages += page.len() as u64;
        let batch = batch_of(&readings(&page, &mut found.unreadable));
        folded.apply(&batch).await?;
    }
    Ok(())
}

/// Waits until the database has all up to `last`.
async fn caught_up<L: Log>(log: &L, last: u64, service: &Service) -> Result<(), VerifyError> {
    let consumer = &service.config.database.consumer;
    let durable = topology::store_writer(consumer);
    let (mut at, mut moved) = (0, Instant::now());
    loop {
        let state = log.consumer_state(&durable).await?;
        if state.acked_to_seq >= last || (state.waiting == 0 && state.in_flight == 0) {
            return Ok(());
        }
        if state.acked_to_seq > at {
            (at, moved) = (state.acked_to_seq, Instant::now());
        }
        if moved.elapsed() > STANDSTILL_MAX {
            return Err(VerifyError::Behind {
                at,
                last,
                consumer: consumer.clone(),
            });
        }
        tokio::select! {
            () = service.shutdown.cancelled() => return Err(RebuildError::Interrupted.into()),
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// An execution that is to be compared.
struct Wanted {
    id: ExecutionId,
    namespace: Namespace,
    /// Whether retention may have taken it.
    may_be_expired: bool,
}

/// What a look at one gave.
enum Looked {
    Equal,
    Expired,
    Differs(Vec<String>),
}

struct Comparison<'a, L> {
    log: &'a L,
    store: &'a dyn Store,
    folded: Arc<dyn Store>,
    first: Horizon,
    last: u64,
    service: &'a Service,
}

impl<L: Log> Comparison<'_, L> {
    /// Every execution whose start the log holds.
    async fn executions(&self, found: &mut Verified) -> Result<(), VerifyError> {
        let mut scan = ExecutionScan {
            rows_max: ROWS_MAX,
            ..ExecutionScan::default()
        };
        let mut newer_over = 0;
        let mut differing = Vec::new();
        loop {
            let page = self.folded.executions(&scan).await?;
            let Some(oldest) = page.last() else { break };
            scan.after = Some((oldest.created_at, oldest.id));
            for summary in page {
                let completed_at = summary.completed_at;
                let wanted = Wanted {
                    id: summary.id,
                    namespace: summary.namespace,
                    may_be_expired: completed_at.is_some_and(|at| self.may_be_expired(at, newer_over)),
                };
                newer_over += u64::from(completed_at.is_some());
                match self.execution(&wanted, true).await? {
                    Looked::Equal => found.executions += 1,
                    Looked::Expired => found.expired += 1,
                    Looked::Differs(_) if differing.len() < AGAIN_MAX => differing.push(wanted),
                    Looked::Differs(differences) => {
                        found.executions += 1;
                        differences
                            .into_iter()
                            .for_each(|difference| found.differs(difference));
                    }
                }
            }
        }
        self.differing(differing, found).await
    }

    /// Looks again at what differed: a store-writer may have had a part of it in hand.
    async fn differing(&self, mut differing: Vec<Wanted>, found: &mut Verified) -> Result<(), VerifyError> {
        let mut looks = 0;
        while !differing.is_empty() {
            looks += 1;
            let was_idle = self.is_idle().await?;
            let mut still = Vec::new();
            for wanted in differing {
                match self.execution(&wanted, false).await? {
                    Looked::Equal => found.executions += 1,
                    Looked::Expired => found.expired += 1,
                    Looked::Differs(differences) => still.push((wanted, differences)),
                }
            }
            if looks >= LOOKS_MAX || (was_idle && self.is_idle().await?) {
                for (_, differences) in still {
                    found.executions += 1;
                    differences
                        .into_iter()
                        .for_each(|difference| found.differs(difference));
                }
                return Ok(());
            }
            differing = still.into_iter().map(|(wanted, _)| wanted).collect();
            self.rest().await?;
        }
        Ok(())
    }

    /// Whether no store-writer has anything in hand or before it, so that no row is about to change.
    async fn is_idle(&self) -> Result<bool, VerifyError> {
        let durable = topology::store_writer(&self.service.config.database.consumer);
        let state = self.log.consumer_state(&durable).await?;
        Ok(state.waiting == 0 && state.in_flight == 0)
    }

    /// Whether retention may have taken an execution that ended at `completed_at`.
    fn may_be_expired(&self, completed_at: Timestamp, newer_over: u64) -> bool {
        let database = &self.service.config.database;
        let kept = Duration::from_secs(database.retention_days * 24 * 3600);
        let is_old = database.retention_days > 0 && self.log.now().since(completed_at) >= kept;
        let max = database.retention_executions_max;
        is_old || (max > 0 && newer_over >= max)
    }

    /// One execution; `from_fold`: by what was folded of it, where its row has not moved since.
    async fn execution(&self, wanted: &Wanted, from_fold: bool) -> Result<Looked, VerifyError> {
        let id = wanted.id;
        let stored = match self.asked(|| self.store.rows(id)).await? {
            Ok(Some(stored)) => stored,
            Ok(None) if wanted.may_be_expired => return Ok(Looked::Expired),
            Ok(None) => {
                let difference = format!("execution {id}: the log has it, the database has not");
                return Ok(Looked::Differs(vec![difference]));
            }
            Err(refused) => return Ok(Looked::Differs(vec![format!("execution {id}: {refused}")])),
        };
        let to = rows::unsigned(stored.execution.last_seq);
        let folded = match from_fold && to <= self.last {
            true => self.folded.record(id).await?,
            // What the log has of it up to where the row has come.
            false => None,
        };
        let record = match folded {
            Some(record) => record,
            None => self.folded_to(id, &wanted.namespace, to.max(self.last)).await?,
        };
        let differences = compared(id, &expected(id, &record), &stored);
        Ok(match differences.is_empty() {
            true => Looked::Equal,
            false => Looked::Differs(differences),
        })
    }

    /// A fold of what the log has of one execution up to `to`.
    async fn folded_to(
        &self,
        id: ExecutionId,
        namespace: &Namespace,
        to: u64,
    ) -> Result<Record, VerifyError> {
        let mut record = Record::default();
        for message in self.log.read_execution(namespace, id).await? {
            let reading = read(Message {
                subject: &message.subject,
                seq: message.seq,
                at: message.at,
                payload: &message.payload,
            });
            if let (Ok(Reading::Change(change)), true) = (reading, message.seq <= to) {
                record.apply(change, &mut Touched::default());
            }
        }
        Ok(record)
    }

    /// Executions of the database that should be in the log, and are not.
    async fn strangers(&self, found: &mut Verified) -> Result<(), VerifyError> {
        let mut scan = ExecutionScan {
            rows_max: ROWS_MAX,
            ..ExecutionScan::default()
        };
        loop {
            let page = match self.asked(|| self.store.executions(&scan)).await? {
                Ok(page) => page,
                // A row that cannot be read is among them, and was found above where the log has it.
                Err(refused) => {
                    found.differs(format!(
                        "the executions of the database cannot be listed: {refused}"
                    ));
                    return Ok(());
                }
            };
            let Some(oldest) = page.last() else { return Ok(()) };
            let is_last = oldest.created_at < self.first.at;
            scan.after = Some((oldest.created_at, oldest.id));
            for summary in page.iter().filter(|summary| summary.created_at >= self.first.at) {
                let id = summary.id;
                let known = self.folded.record(id).await?;
                if known.is_some_and(|record| record.start.is_some()) {
                    continue;
                }
                let Ok(Some(stored)) = self.asked(|| self.store.rows(id)).await? else {
                    continue;
                };
                let start_seq = stored.execution.start_seq.map(rows::unsigned);
                // Younger ones were not folded; of older ones the log may have lost the start.
                if start_seq.is_some_and(|seq| seq >= self.first.seq && seq <= self.last) {
                    found.differs(format!("execution {id}: the database has it, the log has not"));
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Every alert whose disposition the log holds.
    async fn alerts(&self, found: &mut Verified) -> Result<(), VerifyError> {
        let mut after = self.first.seq.saturating_sub(1);
        loop {
            let folded = self.folded.alert_rows(after, self.last, ROWS_MAX).await?;
            // The last page ends where the fold ends, so that what the database has beyond is seen too.
            let to = match folded.last() {
                Some(newest) if folded.len() == ROWS_MAX as usize => rows::unsigned(newest.0.seq),
                _ => self.last,
            };
            let mut looks = 0;
            let differences = loop {
                let was_idle = self.is_idle().await?;
                // One more than there should be shows that there are more.
                let max = ROWS_MAX + 1;
                let stored = patiently(self.service, || self.store.alert_rows(after, to, max)).await?;
                let differences = compared_alerts(&folded, &stored);
                looks += 1;
                let is_final = looks >= LOOKS_MAX || (was_idle && self.is_idle().await?);
                if differences.is_empty() || is_final {
                    break differences;
                }
                self.rest().await?;
            };
            found.alerts += folded.len() as u64;
            differences
                .into_iter()
                .for_each(|difference| found.differs(difference));
            if to >= self.last {
                return Ok(());
            }
            after = to;
        }
    }

    /// What the database answers, waiting for it while it is away; the inner error is its refusal, which says what it
    /// holds that cannot be read.
    async fn asked<T, Asking>(
        &self,
        ask: impl FnMut() -> Asking,
    ) -> Result<Result<T, StoreError>, VerifyError>
    where
        Asking: Future<Output = Result<T, StoreError>>,
    {
        match patiently(self.service, ask).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(RebuildError::Store(refused @ StoreError::Refused(_))) => Ok(Err(refused)),
            Err(error) => Err(error.into()),
        }
    }

    async fn rest(&self) -> Result<(), VerifyError> {
        tokio::select! {
            () = self.service.shutdown.cancelled() => Err(RebuildError::Interrupted.into()),
            () = sleep(LOOK_EVERY) => Ok(()),
        }
    }
}

/// The rows that `record` has to have.
fn expected(id: ExecutionId, record: &Record) -> StoredRows {
    let touched = Touched {
        execution: true,
        start: true,
        attempts: record.attempts.keys().cloned().collect(),
    };
    StoredRows {
        execution: rows::execution_row(id, record, &touched),
        steps: rows::step_rows(id, record, &touched),
    }
}

/// What differs, in words.
fn compared(id: ExecutionId, expected: &StoredRows, stored: &StoredRows) -> Vec<String> {
    let of = format!("execution {id}");
    let mut differences = columns(
        &of,
        execution_columns(&expected.execution),
        execution_columns(&stored.execution),
    );
    let find = |rows: &StoredRows, step: &StepRow| {
        let same = |row: &&StepRow| (&row.name, row.attempt) == (&step.name, step.attempt);
        rows.steps.iter().find(same).cloned()
    };
    for step in &expected.steps {
        let of = format!("{of}, step {} attempt {}", step.name, step.attempt);
        match find(stored, step) {
            Some(row) => differences.extend(columns(&of, step_columns(step), step_columns(&row))),
            None => differences.push(format!("{of}: the log has it, the database has not")),
        }
    }
    for step in &stored.steps {
        if find(expected, step).is_none() {
            differences.push(format!(
                "{of}, step {} attempt {}: the database has it, the log has not",
                step.name, step.attempt
            ));
        }
    }
    differences
}

fn compared_alerts(expected: &[StoredAlert], stored: &[StoredAlert]) -> Vec<String> {
    let find = |rows: &[StoredAlert], id: &str| rows.iter().find(|row| row.0.id == id).cloned();
    let mut differences = Vec::new();
    for alert in expected {
        let of = format!("alert {}", alert.0.id);
        match find(stored, &alert.0.id) {
            Some(row) => differences.extend(columns(&of, alert_columns(&alert.0), alert_columns(&row.0))),
            None => differences.push(format!("{of}: the log has it, the database has not")),
        }
    }
    for alert in stored {
        if find(expected, &alert.0.id).is_none() {
            differences.push(format!(
                "alert {}: the database has it, the log has not",
                alert.0.id
            ));
        }
    }
    differences
}

/// A column and what stands in it; `None` for NULL.
type Column = (&'static str, Option<String>);

fn columns<const N: usize>(of: &str, expected: [Column; N], stored: [Column; N]) -> Vec<String> {
    let pairs = expected.into_iter().zip(stored);
    let differ = |((column, expected), (_, stored)): (Column, Column)| {
        (!is_same(expected.as_deref(), stored.as_deref())).then(|| {
            let (stored, expected) = (shown(stored.as_deref()), shown(expected.as_deref()));
            format!("{of}: {column} is {stored}, and the log says {expected}")
        })
    };
    pairs.filter_map(differ).collect()
}

/// The same text, or the same JSON in another spelling, as an older build may have written it.
fn is_same(one: Option<&str>, other: Option<&str>) -> bool {
    let (Some(one), Some(other)) = (one, other) else {
        return one == other;
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    one == other || json(one).is_some_and(|value| json(other) == Some(value))
}

fn shown(value: Option<&str>) -> String {
    let Some(value) = value else {
        return "NULL".to_owned();
    };
    let shown: String = value.chars().take(VALUE_CHARS_MAX).collect();
    let mark = if shown.len() < value.len() { "…" } else { "" };
    format!("`{shown}{mark}`")
}

fn number<T: ToString>(number: T) -> Option<String> {
    Some(number.to_string())
}

fn time(ms: Option<i64>) -> Option<String> {
    ms.map(|ms| Timestamp::from_millis(ms).to_string())
}

fn execution_columns(row: &ExecutionRow) -> [Column; 18] {
    [
        ("name", row.name.clone()),
        ("namespace", row.namespace.clone()),
        ("trigger_source", row.trigger_source.clone()),
        ("status", Some(row.status.clone())),
        ("steps_completed", number(row.steps_completed)),
        ("total_steps", number(row.total_steps)),
        ("current_step", row.current_step.clone()),
        ("input_context", row.input_context.clone()),
        ("outputs", row.outputs.clone()),
        ("error", row.error.clone()),
        ("started_at", time(row.started_at)),
        ("completed_at", time(row.completed_at)),
        ("created_at", time(row.created_at)),
        ("workflow_steps", row.workflow_steps.clone()),
        ("failed_step", row.failed_step.clone()),
        ("start_seq", row.start_seq.and_then(number)),
        ("end_seq", row.end_seq.and_then(number)),
        ("last_seq", number(row.last_seq)),
    ]
}

fn step_columns(row: &StepRow) -> [Column; 12] {
    [
        ("position", row.position.and_then(number)),
        ("type", row.step_type.clone()),
        ("status", Some(row.status.clone())),
        ("started_at", time(row.started_at)),
        ("completed_at", time(row.completed_at)),
        ("output", row.output.clone()),
        ("error", row.error.clone()),
        ("message", row.message.clone()),
        ("dispatched", row.dispatched.clone()),
        ("recorded", row.recorded.clone()),
        ("done", row.done.clone()),
        ("done_output", row.done_output.clone()),
    ]
}

fn alert_columns(row: &AlertRow) -> [Column; 14] {
    [
        ("identity", Some(row.identity.clone())),
        ("delivery", Some(row.delivery.clone())),
        ("delivery_seq", number(row.delivery_seq)),
        ("delivery_alerts", number(row.delivery_alerts)),
        ("source", Some(row.source.clone())),
        ("fingerprint", Some(row.fingerprint.clone())),
        ("name", Some(row.name.clone())),
        ("status", row.status.clone()),
        ("labels", Some(row.labels.clone())),
        ("disposition", Some(row.disposition.clone())),
        ("reason", Some(row.reason.clone())),
        ("executions", Some(row.executions.clone())),
        ("received_at", time(Some(row.received_at))),
        ("seq", number(row.seq)),
    ]
}

#[cfg(test)]
mod tests;
