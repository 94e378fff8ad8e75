//! One batch as one transaction.
//!
//! Invariants:
//! - A batch is a handful of statements, whatever its size: rows travel as arrays.
//! - Rows are locked, inserted and updated in the order of their ids, so that batches of two replicas
//!   cannot wait for each other in a circle.
//! - A batch that met another one inserting the same execution starts over, and then finds its row.

use std::collections::BTreeMap;

use protocol::ExecutionId;
use sqlx::{PgPool, Postgres, Transaction};

use super::{SELECT_STEPS, classify, execution_row, step_row};
use crate::{
    record::{Record, Touched},
    store::{
        Batch, StoreError, Written,
        rows::{self, AlertRow, ExecutionRow, StepRow},
    },
};

/// How often a batch starts over because of other writers before it counts as failed; each time one of
/// the others has got through.
const CONTENTION_MAX: u32 = 20;

/// Serialisation failure and deadlock: other writers were in the way.
const CONTENTION_CODES: [&str; 2] = ["40001", "40P01"];

/// Why one attempt at a batch did not commit.
enum Aborted {
    /// Another writer was in the way; the same again works.
    Contended(String),
    Failed(StoreError),
}

/// Joins `batch` into the records.
pub(super) async fn apply(pool: &PgPool, batch: &Batch) -> Result<Written, StoreError> {
    let mut reason = String::new();
    for _ in 0..CONTENTION_MAX {
        match apply_once(pool, batch).await {
            Ok(written) => return Ok(written),
            Err(Aborted::Failed(error)) => return Err(error),
            Err(Aborted::Contended(why)) => reason = why,
        }
    }
    Err(StoreError::Unavailable(format!(
        "other writers were in the way {CONTENTION_MAX} times: {reason}"
    )))
}

async fn apply_once(pool: &PgPool, batch: &Batch) -> Result<Written, Aborted> {
    let mut tx = pool.begin().await?;
    let mut stored = lock(&mut tx, batch).await?;
    let (mut inserts, mut updates, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for &id in batch.changes.keys() {
        let found = stored.remove(&id);
        let is_new = found.is_none();
        let mut record = found.unwrap_or_default();
        let touched: Touched = batch.fold(id, &mut record);
        if touched.is_empty() {
            continue;
        }
        let row = rows::execution_row(id, &record, &touched);
        if is_new { &mut inserts } else { &mut updates }.push(row);
        steps.extend(rows::step_rows(id, &record, &touched));
    }
    let new = inserts.len() as u64;
    let inserted = write_executions(&mut tx, INSERT_EXECUTIONS, inserts).await?;
    if inserted < new {
        return Err(Aborted::Contended(
            "another writer has just inserted the same execution".to_owned(),
        ));
    }
    let written = Written {
        executions: inserted + write_executions(&mut tx, UPDATE_EXECUTIONS, updates).await?,
        steps: write_steps(&mut tx, steps).await?,
        alerts: write_alerts(&mut tx, batch).await?,
    };
    tx.commit().await?;
    Ok(written)
}

/// As [`SELECT_EXECUTIONS`], for a writer: locked in the order of ids, and without the input, which no
/// fold looks at and no update writes again.
const LOCK_EXECUTIONS: &str = "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, \
        total_steps, current_step, NULL::text AS input_context, error, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at, workflow_steps::text AS workflow_steps, \
        failed_step, start_seq, end_seq, last_seq \
     FROM executions WHERE id = ANY($1::text[]::uuid[]) ORDER BY executions.id FOR UPDATE";

/// The records of the batch that are stored already, locked to the end of the transaction.
async fn lock(
    tx: &mut Transaction<'static, Postgres>,
    batch: &Batch,
) -> Result<BTreeMap<ExecutionId, Record>, Aborted> {
    let ids: Vec<String> = batch.changes.keys().map(ExecutionId::to_string).collect();
    let mut records = BTreeMap::new();
    if ids.is_empty() {
        return Ok(records);
    }
    for row in &sqlx::query(LOCK_EXECUTIONS)
        .bind(&ids)
        .fetch_all(&mut **tx)
        .await?
    {
        let (id, record) = rows::record(execution_row(row)?)?;
        records.insert(id, record);
    }
    if records.is_empty() {
        return Ok(records);
    }
    let found: Vec<String> = records.keys().map(ExecutionId::to_string).collect();
    let needs_outputs =
        |(id, record): &(&ExecutionId, &Record)| record.end.is_some() || batch.needs_outputs(**id);
    let whole: Vec<String> = records
        .iter()
        .filter(needs_outputs)
        .map(|(id, _)| id.to_string())
        .collect();
    for row in &sqlx::query(SELECT_STEPS)
        .bind(&found)
        .bind(&whole)
        .fetch_all(&mut **tx)
        .await?
    {
        let row = step_row(row)?;
        let id = rows::parsed(&row.execution_id, Some(row.execution_id.clone()))?;
        let (key, parts) = rows::attempt(row)?;
        if let Some(record) = records.get_mut(&id) {
            record.attempts.insert(key, parts);
        }
    }
    Ok(records)
}

const INSERT_EXECUTIONS: &str = "INSERT INTO executions (id, name, namespace, trigger_source, status, \
        steps_completed, total_steps, current_step, input_context, outputs, error, started_at, completed_at, created_at, \
        workflow_steps, failed_step, start_seq, end_seq, last_seq) \
     SELECT id::uuid, name, namespace, trigger_source, status, steps_completed, total_steps, current_step, \
        input_context::json, outputs::json, error, timestamptz 'epoch' + started_at * interval '1 ms', \
        timestamptz 'epoch' + completed_at * interval '1 ms', timestamptz 'epoch' + created_at * interval '1 ms', \
        workflow_steps::json, failed_step, start_seq, end_seq, last_seq \
     FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[], $8::text[], \
        $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::text[], \
        $17::bigint[], $18::bigint[], $19::bigint[]) \
       AS u (id, name, namespace, trigger_source, status, steps_completed, total_steps, current_step, input_context, \
        outputs, error, started_at, completed_at, created_at, workflow_steps, failed_step, start_seq, end_seq, last_seq) \
     ON CONFLICT (id) DO NOTHING";

const UPDATE_EXECUTIONS: &str = "UPDATE executions e SET name = COALESCE(u.name, e.name), \
        namespace = COALESCE(u.namespace, e.namespace), trigger_source = COALESCE(u.trigger_source, e.trigger_source), \
        status = u.status, steps_completed = u.steps_completed, total_steps = u.total_steps, \
        current_step = u.current_step, input_context = COALESCE(u.input_context::json, e.input_context), \
        outputs = u.outputs::json, error = u.error, started_at = timestamptz 'epoch' + u.started_at * interval '1 ms', \
        completed_at = timestamptz 'epoch' + u.completed_at * interval '1 ms', \
        created_at = COALESCE(timestamptz 'epoch' + u.created_at * interval '1 ms', e.created_at), \
        workflow_steps = COALESCE(u.workflow_steps::json, e.workflow_steps), failed_step = u.failed_step, \
        start_seq = COALESCE(u.start_seq, e.start_seq), end_seq = u.end_seq, last_seq = u.last_seq \
     FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[], $8::text[], \
        $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::text[], \
        $17::bigint[], $18::bigint[], $19::bigint[]) \
       AS u (id, name, namespace, trigger_source, status, steps_completed, total_steps, current_step, input_context, \
        outputs, error, started_at, completed_at, created_at, workflow_steps, failed_step, start_seq, end_seq, last_seq) \
     WHERE e.id = u.id::uuid";

async fn write_executions(
    tx: &mut Transaction<'static, Postgres>,
    sql: &'static str,
    rows: Vec<ExecutionRow>,
) -> Result<u64, Aborted> {
    if rows.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(sql)
        .bind(column(&rows, |row| row.id.clone()))
        .bind(column(&rows, |row| row.name.clone()))
        .bind(column(&rows, |row| row.namespace.clone()))
        .bind(column(&rows, |row| row.trigger_source.clone()))
        .bind(column(&rows, |row| row.status.clone()))
        .bind(column(&rows, |row| row.steps_completed))
        .bind(column(&rows, |row| row.total_steps))
        .bind(column(&rows, |row| row.current_step.clone()))
        .bind(column(&rows, |row| row.input_context.clone()))
        .bind(column(&rows, |row| row.outputs.clone()))
        .bind(column(&rows, |row| row.error.clone()))
        .bind(column(&rows, |row| row.started_at))
        .bind(column(&rows, |row| row.completed_at))
        .bind(column(&rows, |row| row.created_at))
        .bind(column(&rows, |row| row.workflow_steps.clone()))
        .bind(column(&rows, |row| row.failed_step.clone()))
        .bind(column(&rows, |row| row.start_seq))
        .bind(column(&rows, |row| row.end_seq))
        .bind(column(&rows, |row| row.last_seq))
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected())
}

const UPSERT_STEPS: &str = "INSERT INTO steps (execution_id, name, attempt, position, type, status, started_at, \
        completed_at, output, error, message, dispatched, recorded, done, done_output) \
     SELECT execution_id::uuid, name, attempt, position, type, status, \
        timestamptz 'epoch' + started_at * interval '1 ms', timestamptz 'epoch' + completed_at * interval '1 ms', \
        output::json, error, message, dispatched::json, recorded::json, done::json, done_output::json \
     FROM UNNEST($1::text[], $2::text[], $3::int[], $4::int[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], \
        $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[]) \
       AS u (execution_id, name, attempt, position, type, status, started_at, completed_at, output, error, message, \
        dispatched, recorded, done, done_output) \
     ON CONFLICT (execution_id, name, attempt) DO UPDATE SET position = excluded.position, type = excluded.type, \
        status = excluded.status, started_at = excluded.started_at, completed_at = excluded.completed_at, \
        output = COALESCE(excluded.output, steps.output), error = excluded.error, message = excluded.message, \
        dispatched = excluded.dispatched, recorded = excluded.recorded, done = excluded.done, \
        done_output = COALESCE(excluded.done_output, steps.done_output)";

async fn write_steps(tx: &mut Transaction<'static, Postgres>, rows: Vec<StepRow>) -> Result<u64, Aborted> {
    if rows.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(UPSERT_STEPS)
        .bind(column(&rows, |row| row.execution_id.clone()))
        .bind(column(&rows, |row| row.name.clone()))
        .bind(column(&rows, |row| row.attempt))
        .bind(column(&rows, |row| row.position))
        .bind(column(&rows, |row| row.step_type.clone()))
        .bind(column(&rows, |row| row.status.clone()))
        .bind(column(&rows, |row| row.started_at))
        .bind(column(&rows, |row| row.completed_at))
        .bind(column(&rows, |row| row.output.clone()))
        .bind(column(&rows, |row| row.error.clone()))
        .bind(column(&rows, |row| row.message.clone()))
        .bind(column(&rows, |row| row.dispatched.clone()))
        .bind(column(&rows, |row| row.recorded.clone()))
        .bind(column(&rows, |row| row.done.clone()))
        .bind(column(&rows, |row| row.done_output.clone()))
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected())
}

const INSERT_ALERTS: &str = "INSERT INTO alerts (id, identity, delivery, delivery_seq, delivery_alerts, source, \
        fingerprint, name, status, labels, disposition, reason, executions, received_at, seq) \
     SELECT id, identity, delivery, delivery_seq, delivery_alerts, source, fingerprint, name, status, labels::json, \
        disposition, reason, executions::json, timestamptz 'epoch' + received_at * interval '1 ms', seq \
     FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], \
        $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bigint[]) \
       AS u (id, identity, delivery, delivery_seq, delivery_alerts, source, fingerprint, name, status, labels, \
        disposition, reason, executions, received_at, seq) \
     ON CONFLICT (id) DO NOTHING";

async fn write_alerts(tx: &mut Transaction<'static, Postgres>, batch: &Batch) -> Result<u64, Aborted> {
    if batch.alerts.is_empty() {
        return Ok(0);
    }
    // In one order for all writers, and each once.
    let rows: BTreeMap<String, AlertRow> = batch
        .alerts
        .iter()
        .map(rows::alert_row)
        .map(|row| (row.id.clone(), row))
        .collect();
    let rows: Vec<AlertRow> = rows.into_values().collect();
    let done = sqlx::query(INSERT_ALERTS)
        .bind(column(&rows, |row| row.id.clone()))
        .bind(column(&rows, |row| row.identity.clone()))
        .bind(column(&rows, |row| row.delivery.clone()))
        .bind(column(&rows, |row| row.delivery_seq))
        .bind(column(&rows, |row| row.delivery_alerts))
        .bind(column(&rows, |row| row.source.clone()))
        .bind(column(&rows, |row| row.fingerprint.clone()))
        .bind(column(&rows, |row| row.name.clone()))
        .bind(column(&rows, |row| row.status.clone()))
        .bind(column(&rows, |row| row.labels.clone()))
        .bind(column(&rows, |row| row.disposition.clone()))
        .bind(column(&rows, |row| row.reason.clone()))
        .bind(column(&rows, |row| row.executions.clone()))
        .bind(column(&rows, |row| row.received_at))
        .bind(column(&rows, |row| row.seq))
        .execute(&mut **tx)
        .await?;
    Ok(done.rows_affected())
}

fn column<R, T>(rows: &[R], value: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

impl From<sqlx::Error> for Aborted {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|database| database.code());
        if code.is_some_and(|code| CONTENTION_CODES.contains(&code.as_ref())) {
            Self::Contended(error.to_string())
        } else {
            Self::Failed(classify(error))
        }
    }
}

impl From<StoreError> for Aborted {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}
