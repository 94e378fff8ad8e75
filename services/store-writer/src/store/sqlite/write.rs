//! One batch, in a transaction that holds the write lock.
//!
//! Invariant: SQLite runs in this process, where a statement costs microseconds; so rows are written one by one.

use protocol::{ExecutionId, Timestamp};
use sqlx::{Sqlite, Transaction};

use super::{classify, load, time};
use crate::{
    record::{Record, Touched},
    store::{
        Batch, StoreError, Written,
        rows::{self, AlertRow, StepRow},
    },
};

/// Joins `batch` into the records, and commits.
pub(super) async fn apply(
    mut tx: Transaction<'static, Sqlite>,
    batch: &Batch,
) -> Result<Written, StoreError> {
    let mut written = Written::default();
    for &id in batch.changes.keys() {
        let stored = load(&mut tx, id).await?;
        let is_new = stored.is_none();
        let mut record = stored.unwrap_or_default();
        let touched = batch.fold(id, &mut record);
        if touched.is_empty() {
            continue;
        }
        save(&mut tx, id, &record, &touched, is_new, &mut written).await?;
    }
    for entry in &batch.alerts {
        written.alerts += insert_alert(&mut tx, &rows::alert_row(entry)).await?;
    }
    tx.commit().await.map_err(classify)?;
    Ok(written)
}

async fn save(
    tx: &mut Transaction<'static, Sqlite>,
    id: ExecutionId,
    record: &Record,
    touched: &Touched,
    is_new: bool,
    written: &mut Written,
) -> Result<(), StoreError> {
    let row = rows::execution_row(id, record, touched);
    let sql = if is_new {
        "INSERT INTO executions (id, name, namespace, trigger_source, status, steps_completed, total_steps, \
            current_step, input_context, outputs, error, started_at, completed_at, created_at, workflow_steps, \
            failed_step, start_seq, end_seq, last_seq) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)"
    } else {
        "UPDATE executions SET name = COALESCE(?2, name), namespace = COALESCE(?3, namespace), \
            trigger_source = COALESCE(?4, trigger_source), status = ?5, steps_completed = ?6, total_steps = ?7, \
            current_step = ?8, input_context = COALESCE(?9, input_context), outputs = ?10, error = ?11, \
            started_at = ?12, completed_at = ?13, created_at = COALESCE(?14, created_at), \
            workflow_steps = COALESCE(?15, workflow_steps), failed_step = ?16, \
            start_seq = COALESCE(?17, start_seq), end_seq = ?18, last_seq = ?19 \
         WHERE id = ?1"
    };
    let done = sqlx::query(sql)
        .bind(row.id)
        .bind(row.name)
        .bind(row.namespace)
        .bind(row.trigger_source)
        .bind(row.status)
        .bind(row.steps_completed)
        .bind(row.total_steps)
        .bind(row.current_step)
        .bind(row.input_context)
        .bind(row.outputs)
        .bind(row.error)
        .bind(time(row.started_at))
        .bind(time(row.completed_at))
        .bind(time(row.created_at))
        .bind(row.workflow_steps)
        .bind(row.failed_step)
        .bind(row.start_seq)
        .bind(row.end_seq)
        .bind(row.last_seq)
        .execute(&mut **tx)
        .await
        .map_err(classify)?;
    written.executions += done.rows_affected();
    for row in rows::step_rows(id, record, touched) {
        written.steps += upsert_step(tx, row).await?;
    }
    Ok(())
}

async fn upsert_step(tx: &mut Transaction<'static, Sqlite>, row: StepRow) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "INSERT INTO steps (execution_id, name, attempt, position, type, status, started_at, completed_at, output, \
            error, message, dispatched, recorded, done, done_output) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
         ON CONFLICT (execution_id, name, attempt) DO UPDATE SET position = ?4, type = ?5, status = ?6, \
            started_at = ?7, completed_at = ?8, output = ?9, error = ?10, message = ?11, dispatched = ?12, \
            recorded = ?13, done = ?14, done_output = ?15",
    )
    .bind(row.execution_id)
    .bind(row.name)
    .bind(row.attempt)
    .bind(row.position)
    .bind(row.step_type)
    .bind(row.status)
    .bind(time(row.started_at))
    .bind(time(row.completed_at))
    .bind(row.output)
    .bind(row.error)
    .bind(row.message)
    .bind(row.dispatched)
    .bind(row.recorded)
    .bind(row.done)
    .bind(row.done_output)
    .execute(&mut **tx)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}

async fn insert_alert(tx: &mut Transaction<'static, Sqlite>, row: &AlertRow) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "INSERT INTO alerts (id, identity, delivery, delivery_seq, delivery_alerts, source, fingerprint, name, status, \
            labels, disposition, reason, executions, received_at, seq) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&row.id)
    .bind(&row.identity)
    .bind(&row.delivery)
    .bind(row.delivery_seq)
    .bind(row.delivery_alerts)
    .bind(&row.source)
    .bind(&row.fingerprint)
    .bind(&row.name)
    .bind(&row.status)
    .bind(&row.labels)
    .bind(&row.disposition)
    .bind(&row.reason)
    .bind(&row.executions)
    .bind(Timestamp::from_millis(row.received_at).to_string())
    .bind(row.seq)
    .execute(&mut **tx)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}
