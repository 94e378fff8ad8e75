//! Records in PostgreSQL: for any number of writers.
//!
//! Invariants:
//! - A batch is a handful of statements, whatever its size: rows travel as arrays.
//! - Rows are locked, inserted and updated in the order of their ids, so that batches of two replicas
//!   cannot wait for each other in a circle.
//! - A batch that met another one inserting the same execution starts over, and then finds its row.

use std::{collections::BTreeMap, str::FromStr};

use protocol::{
    ExecutionId, Timestamp,
    query::AlertCounts,
    views::{AlertView, ExecutionSummary},
};
use sqlx::{
    PgPool, Postgres, Row, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};

use super::{
    AlertScan, Batch, ExecutionScan, Horizon, Limits, Store, StoreError, StoreFuture, Written,
    migrate::{Migration, missing},
    rows::{self, AlertRow, ExecutionRow, StepRow},
};
use crate::record::{Record, Touched};

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "records",
    sql: include_str!("migrations/postgres/0001_records.sql"),
}];

/// Key of the advisory lock under which one process at a time migrates: `fist` and a number, in ASCII.
const MIGRATION_LOCK: i64 = 0x6669_7374_0001;

/// A statement, or a wait for a lock, that takes longer has gone wrong.
const STATEMENT_TIMEOUT: &str = "30s";

/// How often a batch starts over because of other writers before it counts as failed; each time one of
/// the others has got through.
const CONTENTION_MAX: u32 = 20;

/// A PostgreSQL database.
pub(super) struct PostgresStore {
    pool: PgPool,
}

/// Why one attempt at a batch did not commit.
enum Aborted {
    /// Another writer was in the way; the same again works.
    Contended(String),
    Failed(StoreError),
}

impl PostgresStore {
    /// The store that `url` names. Connects when it is first used.
    pub(super) fn new(url: &str, limits: Limits) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| StoreError::Unusable(format!("database.url cannot be read: {error}")))?
            .application_name("fist store-writer")
            .options([("statement_timeout", STATEMENT_TIMEOUT), ("timezone", "UTC")]);
        let pool = PgPoolOptions::new()
            .max_connections(limits.connections_max)
            .acquire_timeout(limits.acquire_timeout)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    async fn migrate_now(&self) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        let bookkeeping = "CREATE TABLE IF NOT EXISTS schema_migrations \
             (version bigint PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())";
        sqlx::query(bookkeeping)
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        let applied: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM schema_migrations")
            .fetch_one(&mut *tx)
            .await
            .map_err(classify)?;
        for migration in missing(MIGRATIONS, applied)? {
            sqlx::raw_sql(migration.sql)
                .execute(&mut *tx)
                .await
                .map_err(classify)?;
            sqlx::query("INSERT INTO schema_migrations (version, name) VALUES ($1, $2)")
                .bind(migration.version)
                .bind(migration.name)
                .execute(&mut *tx)
                .await
                .map_err(classify)?;
        }
        tx.commit().await.map_err(classify)
    }

    async fn apply_now(&self, batch: &Batch) -> Result<Written, StoreError> {
        let mut reason = String::new();
        for _ in 0..CONTENTION_MAX {
            match self.apply_once(batch).await {
                Ok(written) => return Ok(written),
                Err(Aborted::Failed(error)) => return Err(error),
                Err(Aborted::Contended(why)) => reason = why,
            }
        }
        Err(StoreError::Unavailable(format!(
            "other writers were in the way {CONTENTION_MAX} times: {reason}"
        )))
    }

    async fn apply_once(&self, batch: &Batch) -> Result<Written, Aborted> {
        let mut tx = self.pool.begin().await?;
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

    async fn record_now(&self, id: ExecutionId) -> Result<Option<Record>, StoreError> {
        let mut tx = self
            .pool
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(classify)?;
        let ids = [id.to_string()];
        let row = sqlx::query(SELECT_EXECUTIONS)
            .bind(&ids[..])
            .fetch_optional(&mut *tx)
            .await
            .map_err(classify)?;
        let Some(row) = row else { return Ok(None) };
        let (_, mut record) = rows::record(execution_row(&row)?)?;
        for row in &sqlx::query(SELECT_STEPS)
            .bind(&ids[..])
            .bind(&ids[..])
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?
        {
            let (key, parts) = rows::attempt(step_row(row)?)?;
            record.attempts.insert(key, parts);
        }
        Ok(Some(record))
    }

    async fn executions_now(&self, scan: &ExecutionScan) -> Result<Vec<ExecutionSummary>, StoreError> {
        let (after_at, after_id) = scan.after.unzip();
        let rows = sqlx::query(
            "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, total_steps, \
                    current_step, error, (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
                    (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
                    (extract(epoch FROM created_at) * 1000)::bigint AS created_at \
             FROM executions \
             WHERE created_at IS NOT NULL \
               AND ($1::text IS NULL OR status = $1) AND ($2::text IS NULL OR name = $2) \
               AND ($3::text IS NULL OR namespace = $3) \
               AND ($4::bigint IS NULL \
                    OR (executions.created_at, executions.id) < (timestamptz 'epoch' + $4 * interval '1 ms', $5::text::uuid)) \
             ORDER BY executions.created_at DESC, executions.id DESC LIMIT $6",
        )
        .bind(scan.status.map(|status| status.as_str()))
        .bind(scan.workflow.as_ref().map(|name| name.as_str()))
        .bind(scan.namespace.as_ref().map(|namespace| namespace.as_str()))
        .bind(after_at.map(Timestamp::as_millis))
        .bind(after_id.map(|id: ExecutionId| id.to_string()))
        .bind(i64::from(scan.rows_max))
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows.iter().map(|row| rows::summary(summary_row(row)?)).collect()
    }

    async fn between_now(
        &self,
        low: ExecutionId,
        high: ExecutionId,
        rows_max: u32,
    ) -> Result<Vec<ExecutionSummary>, StoreError> {
        let rows = sqlx::query(
            "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, total_steps, \
                    current_step, error, (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
                    (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
                    (extract(epoch FROM created_at) * 1000)::bigint AS created_at \
             FROM executions \
             WHERE created_at IS NOT NULL AND executions.id BETWEEN $1::text::uuid AND $2::text::uuid \
             ORDER BY executions.id LIMIT $3",
        )
        .bind(low.to_string())
        .bind(high.to_string())
        .bind(i64::from(rows_max))
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows.iter().map(|row| rows::summary(summary_row(row)?)).collect()
    }

    async fn alerts_now(&self, scan: &AlertScan) -> Result<Vec<AlertView>, StoreError> {
        let (after_at, after_id) = scan.after.clone().unzip();
        let rows = sqlx::query(
            "SELECT id, source, fingerprint, name, status, labels::text AS labels, disposition, reason, \
                    executions::text AS executions, (extract(epoch FROM received_at) * 1000)::bigint AS received_at \
             FROM alerts \
             WHERE ($1::text IS NULL OR disposition = $1) AND ($2::text IS NULL OR source = $2) \
               AND ($3::text IS NULL OR id = $3 OR identity = $3) \
               AND ($4::bigint IS NULL \
                    OR (alerts.received_at, id) < (timestamptz 'epoch' + $4 * interval '1 ms', $5::text)) \
             ORDER BY alerts.received_at DESC, id DESC LIMIT $6",
        )
        .bind(scan.disposition.map(|disposition| disposition.as_str()))
        .bind(scan.source.as_deref())
        .bind(scan.id.as_deref())
        .bind(after_at.map(Timestamp::as_millis))
        .bind(after_id)
        .bind(i64::from(scan.rows_max))
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows.iter().map(|row| rows::alert_view(alert_row(row)?)).collect()
    }

    async fn alert_counts_now(&self) -> Result<AlertCounts, StoreError> {
        let counts = sqlx::query_as(
            "SELECT disposition, COUNT(*) FROM alerts GROUP BY disposition \
             UNION ALL SELECT 'messages', COUNT(*) FROM \
               (SELECT 1 FROM alerts GROUP BY delivery_seq, received_at HAVING COUNT(*) >= MAX(delivery_alerts)) AS whole \
             UNION ALL SELECT kind, count FROM expired_alerts",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows::alert_counts(counts)
    }

    async fn forget_now(&self, horizon: Horizon) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        for sql in [
            "DELETE FROM executions WHERE (created_at >= timestamptz 'epoch' + $2 * interval '1 ms' AND start_seq >= $1) \
                OR (created_at IS NULL AND last_seq >= $1)",
            "DELETE FROM alerts WHERE received_at >= timestamptz 'epoch' + $2 * interval '1 ms' AND seq >= $1",
        ] {
            sqlx::query(sql)
                .bind(rows::seq(horizon.seq))
                .bind(horizon.at.as_millis())
                .execute(&mut *tx)
                .await
                .map_err(classify)?;
        }
        tx.commit().await.map_err(classify)
    }

    async fn expire_now(
        &self,
        before: Timestamp,
        horizon: Horizon,
        rows_max: u32,
    ) -> Result<u64, StoreError> {
        let executions = sqlx::query(
            "DELETE FROM executions WHERE id IN \
               (SELECT id FROM executions WHERE completed_at < timestamptz 'epoch' + $1 * interval '1 ms' \
                   OR (created_at IS NULL AND started_at < timestamptz 'epoch' + $1 * interval '1 ms') \
                ORDER BY id LIMIT $2 FOR UPDATE)",
        )
        .bind(before.as_millis())
        .bind(i64::from(rows_max))
        .execute(&self.pool)
        .await
        .map_err(classify)?
        .rows_affected();
        // Whole messages at a time, so that their count stays whole; what is deleted is counted by the same statement.
        let alerts: i64 = sqlx::query_scalar(
            "WITH m AS (SELECT delivery_seq, received_at FROM alerts GROUP BY delivery_seq, received_at \
                        HAVING received_at < timestamptz 'epoch' + $1 * interval '1 ms' AND MAX(seq) < $2 \
                        ORDER BY received_at LIMIT $3), \
                  gone AS (DELETE FROM alerts USING m WHERE alerts.delivery_seq = m.delivery_seq \
                             AND alerts.received_at = m.received_at \
                           RETURNING alerts.delivery_seq, alerts.received_at, delivery_alerts, disposition), \
                  counts AS (SELECT disposition AS kind, COUNT(*) AS count FROM gone GROUP BY disposition \
                             UNION ALL SELECT 'messages', COUNT(*) FROM (SELECT 1 FROM gone \
                               GROUP BY delivery_seq, received_at HAVING COUNT(*) >= MAX(delivery_alerts)) AS whole), \
                  kept AS (INSERT INTO expired_alerts SELECT kind, count FROM counts ORDER BY kind \
                           ON CONFLICT (kind) DO UPDATE SET count = expired_alerts.count + excluded.count) \
             SELECT COUNT(*) FROM gone",
        )
        .bind(before.as_millis())
        .bind(rows::seq(horizon.seq))
        .bind(i64::from(rows_max))
        .fetch_one(&self.pool)
        .await
        .map_err(classify)?;
        Ok(executions + rows::unsigned(alerts))
    }
}

impl Store for PostgresStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.migrate_now())
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            let one = sqlx::query("SELECT 1").execute(&self.pool).await;
            one.map(|_| ()).map_err(classify)
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> StoreFuture<'a, Written> {
        Box::pin(self.apply_now(batch))
    }

    fn record(&self, id: ExecutionId) -> StoreFuture<'_, Option<Record>> {
        Box::pin(self.record_now(id))
    }

    fn executions<'a>(&'a self, scan: &'a ExecutionScan) -> StoreFuture<'a, Vec<ExecutionSummary>> {
        Box::pin(self.executions_now(scan))
    }

    fn executions_between(
        &self,
        low: ExecutionId,
        high: ExecutionId,
        rows_max: u32,
    ) -> StoreFuture<'_, Vec<ExecutionSummary>> {
        Box::pin(self.between_now(low, high, rows_max))
    }

    fn alerts<'a>(&'a self, scan: &'a AlertScan) -> StoreFuture<'a, Vec<AlertView>> {
        Box::pin(self.alerts_now(scan))
    }

    fn alert_counts(&self) -> StoreFuture<'_, AlertCounts> {
        Box::pin(self.alert_counts_now())
    }

    fn forget_from(&self, horizon: Horizon) -> StoreFuture<'_, ()> {
        Box::pin(self.forget_now(horizon))
    }

    fn expire(&self, before: Timestamp, horizon: Horizon, rows_max: u32) -> StoreFuture<'_, u64> {
        Box::pin(self.expire_now(before, horizon, rows_max))
    }
}

const SELECT_EXECUTIONS: &str = "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, \
        total_steps, current_step, input_context::text AS input_context, error, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at, workflow_steps::text AS workflow_steps, \
        failed_step, start_seq, end_seq, last_seq \
     FROM executions WHERE id = ANY($1::text[]::uuid[])";

/// As [`SELECT_EXECUTIONS`], for a writer: locked in the order of ids, and without the input, which no
/// fold looks at and no update writes again.
const LOCK_EXECUTIONS: &str = "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, \
        total_steps, current_step, NULL::text AS input_context, error, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at, workflow_steps::text AS workflow_steps, \
        failed_step, start_seq, end_seq, last_seq \
     FROM executions WHERE id = ANY($1::text[]::uuid[]) ORDER BY executions.id FOR UPDATE";

/// Outputs only of the executions in `$2`: others' folds do not need them, and they may be large.
const SELECT_STEPS: &str = "SELECT execution_id::text AS execution_id, name, attempt, \
        CASE WHEN execution_id = ANY($2::text[]::uuid[]) THEN output::text END AS output, \
        CASE WHEN execution_id = ANY($2::text[]::uuid[]) THEN done_output::text END AS done_output, \
        dispatched::text AS dispatched, recorded::text AS recorded, done::text AS done \
     FROM steps WHERE execution_id = ANY($1::text[]::uuid[])";

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

fn execution_row(row: &PgRow) -> Result<ExecutionRow, StoreError> {
    Ok(ExecutionRow {
        input_context: get(row, "input_context")?,
        workflow_steps: get(row, "workflow_steps")?,
        failed_step: get(row, "failed_step")?,
        start_seq: get(row, "start_seq")?,
        end_seq: get(row, "end_seq")?,
        last_seq: get(row, "last_seq")?,
        ..summary_row(row)?
    })
}

fn summary_row(row: &PgRow) -> Result<ExecutionRow, StoreError> {
    Ok(ExecutionRow {
        id: get(row, "id")?,
        name: get(row, "name")?,
        namespace: get(row, "namespace")?,
        trigger_source: get(row, "trigger_source")?,
        status: get(row, "status")?,
        steps_completed: get(row, "steps_completed")?,
        total_steps: get(row, "total_steps")?,
        current_step: get(row, "current_step")?,
        error: get(row, "error")?,
        started_at: get(row, "started_at")?,
        completed_at: get(row, "completed_at")?,
        created_at: get(row, "created_at")?,
        ..ExecutionRow::default()
    })
}

fn step_row(row: &PgRow) -> Result<StepRow, StoreError> {
    Ok(StepRow {
        execution_id: get(row, "execution_id")?,
        name: get(row, "name")?,
        attempt: get(row, "attempt")?,
        output: get(row, "output")?,
        dispatched: get(row, "dispatched")?,
        recorded: get(row, "recorded")?,
        done: get(row, "done")?,
        done_output: get(row, "done_output")?,
        ..StepRow::default()
    })
}

fn alert_row(row: &PgRow) -> Result<AlertRow, StoreError> {
    Ok(AlertRow {
        id: get(row, "id")?,
        source: get(row, "source")?,
        fingerprint: get(row, "fingerprint")?,
        name: get(row, "name")?,
        status: get(row, "status")?,
        labels: get(row, "labels")?,
        disposition: get(row, "disposition")?,
        reason: get(row, "reason")?,
        executions: get(row, "executions")?,
        received_at: get(row, "received_at")?,
        ..AlertRow::default()
    })
}

fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    row.try_get(column).map_err(classify)
}

/// Classes of SQLSTATE that speak of the data, not of the database: data exception, integrity constraint,
/// program limit exceeded.
const DATA_CLASSES: [&str; 3] = ["22", "23", "54"];

/// Serialisation failure and deadlock: other writers were in the way.
const CONTENTION_CODES: [&str; 2] = ["40001", "40P01"];

fn classify(error: sqlx::Error) -> StoreError {
    let reason = error.to_string();
    match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            if DATA_CLASSES.iter().any(|class| code.starts_with(class)) {
                StoreError::Refused(reason)
            } else {
                StoreError::Unavailable(reason)
            }
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            StoreError::Refused(reason)
        }
        _ => StoreError::Unavailable(reason),
    }
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
