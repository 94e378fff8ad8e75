//! Records in PostgreSQL: for any number of writers.
//!
//! Invariants:
//! - Connections are made when they are needed; a server that is away is an error like any other.
//! - Every statement ends within [`STATEMENT_TIMEOUT`], waits for locks included.

use std::str::FromStr;

use protocol::{
    ExecutionId, Timestamp,
    query::AlertCounts,
    views::{AlertView, ExecutionSummary},
};
use sqlx::{
    PgPool, Postgres, Row,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};

use super::{
    AlertScan, Batch, ExecutionScan, Horizon, Limits, Store, StoreError, StoreFuture, StoredAlert,
    StoredRows, Written,
    migrate::{Migration, missing},
    rows::{self, AlertRow, ExecutionRow, StepRow},
};
use crate::record::Record;

mod write;

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "records",
    sql: include_str!("../migrations/postgres/0001_records.sql"),
}];

/// Key of the advisory lock under which one process at a time migrates: `fist` and a number, in ASCII.
const MIGRATION_LOCK: i64 = 0x6669_7374_0001;

/// A statement, or a wait for a lock, that takes longer has gone wrong.
const STATEMENT_TIMEOUT: &str = "30s";

/// A PostgreSQL database.
pub(super) struct PostgresStore {
    pool: PgPool,
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
                    current_step, left(error, 2001) AS error, (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
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
                    current_step, left(error, 2001) AS error, (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
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
            "SELECT id, source, left(fingerprint, 2001) AS fingerprint, left(name, 2001) AS name, status, disposition, \
                    CASE WHEN octet_length(labels::text) <= 65536 THEN labels::text \
                         ELSE json_build_object('…', octet_length(labels::text) || ' bytes of labels are not listed')::text \
                    END AS labels, left(reason, 2001) AS reason, \
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

    async fn rows_now(&self, id: ExecutionId) -> Result<Option<StoredRows>, StoreError> {
        let mut tx = self
            .pool
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(classify)?;
        let execution = sqlx::query(SELECT_WHOLE_EXECUTION)
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(classify)?;
        let Some(execution) = execution else {
            return Ok(None);
        };
        let steps = sqlx::query(SELECT_WHOLE_STEPS)
            .bind(id.to_string())
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        let whole = |row: &PgRow| {
            Ok(StepRow {
                position: get(row, "position")?,
                step_type: get(row, "type")?,
                status: get(row, "status")?,
                started_at: get(row, "started_at")?,
                completed_at: get(row, "completed_at")?,
                error: get(row, "error")?,
                message: get(row, "message")?,
                ..step_row(row)?
            })
        };
        Ok(Some(StoredRows {
            execution: ExecutionRow {
                outputs: get(&execution, "outputs")?,
                ..execution_row(&execution)?
            },
            steps: steps.iter().map(whole).collect::<Result<_, StoreError>>()?,
        }))
    }

    async fn alert_rows_now(
        &self,
        after_seq: u64,
        to_seq: u64,
        rows_max: u32,
    ) -> Result<Vec<StoredAlert>, StoreError> {
        let rows = sqlx::query(SELECT_WHOLE_ALERTS)
            .bind(rows::seq(after_seq))
            .bind(rows::seq(to_seq))
            .bind(i64::from(rows_max))
            .fetch_all(&self.pool)
            .await
            .map_err(classify)?;
        let whole = |row: &PgRow| {
            Ok(StoredAlert(AlertRow {
                identity: get(row, "identity")?,
                delivery: get(row, "delivery")?,
                delivery_seq: get(row, "delivery_seq")?,
                delivery_alerts: get(row, "delivery_alerts")?,
                seq: get(row, "seq")?,
                ..alert_row(row)?
            }))
        };
        rows.iter().map(whole).collect()
    }

    async fn nth_newest_alert_now(&self, newer: u64) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT (extract(epoch FROM received_at) * 1000)::bigint FROM alerts \
             ORDER BY received_at DESC, id DESC LIMIT 1 OFFSET $1",
        )
        .bind(rows::seq(newer))
        .fetch_optional(&self.pool)
        .await
        .map_err(classify)?;
        Ok(at.map(Timestamp::from_millis))
    }

    async fn expire_beyond_now(&self, kept: u64, rows_max: u32) -> Result<u64, StoreError> {
        let gone = sqlx::query(
            "DELETE FROM executions WHERE id IN \
               (SELECT id FROM executions WHERE created_at IS NOT NULL AND completed_at IS NOT NULL \
                ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $1)",
        )
        .bind(rows::seq(kept))
        .bind(i64::from(rows_max))
        .execute(&self.pool)
        .await
        .map_err(classify)?;
        Ok(gone.rows_affected())
    }

    async fn forget_now(&self, horizon: Horizon) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        // Everything at once may take long, and is asked for by an operator who waits.
        sqlx::query("SET LOCAL statement_timeout = 0")
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
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
        alerts_before: Timestamp,
        horizon: Horizon,
        rows_max: u32,
    ) -> Result<u64, StoreError> {
        let executions = sqlx::query(
            "DELETE FROM executions WHERE id IN \
               (SELECT id FROM executions \
                WHERE (created_at < timestamptz 'epoch' + $1 * interval '1 ms' \
                       AND completed_at < timestamptz 'epoch' + $1 * interval '1 ms') \
                   OR (created_at IS NULL AND started_at < timestamptz 'epoch' + $1 * interval '1 ms') \
                LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(before.as_millis())
        .bind(i64::from(rows_max))
        .execute(&self.pool)
        .await
        .map_err(classify)?
        .rows_affected();
        // Whole messages at a time, so that their count stays whole; what is deleted is counted by the same statement.
        let alerts: i64 = sqlx::query_scalar(
            "WITH m AS (SELECT delivery_seq, received_at FROM alerts \
                        WHERE received_at < timestamptz 'epoch' + $1 * interval '1 ms' \
                        GROUP BY received_at, delivery_seq HAVING MAX(seq) < $2 ORDER BY received_at LIMIT $3), \
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
        .bind(alerts_before.as_millis())
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
        Box::pin(write::apply(&self.pool, batch))
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

    fn expire(
        &self,
        before: Timestamp,
        alerts_before: Timestamp,
        horizon: Horizon,
        rows_max: u32,
    ) -> StoreFuture<'_, u64> {
        Box::pin(self.expire_now(before, alerts_before, horizon, rows_max))
    }

    fn rows(&self, id: ExecutionId) -> StoreFuture<'_, Option<StoredRows>> {
        Box::pin(self.rows_now(id))
    }

    fn alert_rows(&self, after_seq: u64, to_seq: u64, rows_max: u32) -> StoreFuture<'_, Vec<StoredAlert>> {
        Box::pin(self.alert_rows_now(after_seq, to_seq, rows_max))
    }

    fn nth_newest_alert(&self, newer: u64) -> StoreFuture<'_, Option<Timestamp>> {
        Box::pin(self.nth_newest_alert_now(newer))
    }

    fn expire_beyond(&self, kept: u64, rows_max: u32) -> StoreFuture<'_, u64> {
        Box::pin(self.expire_beyond_now(kept, rows_max))
    }
}

const SELECT_EXECUTIONS: &str = "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, \
        total_steps, current_step, input_context::text AS input_context, error, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at, workflow_steps::text AS workflow_steps, \
        failed_step, start_seq, end_seq, last_seq \
     FROM executions WHERE id = ANY($1::text[]::uuid[])";

const SELECT_WHOLE_EXECUTION: &str = "SELECT id::text AS id, name, namespace, trigger_source, status, steps_completed, \
        total_steps, current_step, input_context::text AS input_context, outputs::text AS outputs, error, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        (extract(epoch FROM created_at) * 1000)::bigint AS created_at, workflow_steps::text AS workflow_steps, \
        failed_step, start_seq, end_seq, last_seq \
     FROM executions WHERE id = $1::text::uuid";

const SELECT_WHOLE_STEPS: &str = "SELECT execution_id::text AS execution_id, name, attempt, position, type, status, \
        (extract(epoch FROM started_at) * 1000)::bigint AS started_at, \
        (extract(epoch FROM completed_at) * 1000)::bigint AS completed_at, \
        output::text AS output, done_output::text AS done_output, error, message, \
        dispatched::text AS dispatched, recorded::text AS recorded, done::text AS done \
     FROM steps WHERE execution_id = $1::text::uuid ORDER BY name COLLATE \"C\", attempt";

const SELECT_WHOLE_ALERTS: &str = "SELECT id, identity, delivery, delivery_seq, delivery_alerts, source, fingerprint, \
        name, status, labels::text AS labels, disposition, reason, executions::text AS executions, \
        (extract(epoch FROM received_at) * 1000)::bigint AS received_at, seq \
     FROM alerts WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3";

/// Outputs only of the executions in `$2`: others' folds do not need them, and they may be large.
const SELECT_STEPS: &str = "SELECT execution_id::text AS execution_id, name, attempt, \
        CASE WHEN execution_id = ANY($2::text[]::uuid[]) THEN output::text END AS output, \
        CASE WHEN execution_id = ANY($2::text[]::uuid[]) THEN done_output::text END AS done_output, \
        dispatched::text AS dispatched, recorded::text AS recorded, done::text AS done \
     FROM steps WHERE execution_id = ANY($1::text[]::uuid[])";

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
