//! Records in a SQLite file: for one machine, no server needed.
//!
//! Invariants:
//! - Writers take the database's one write lock before they read (`BEGIN IMMEDIATE`), so that none writes
//!   on what it read too early.
//! - A commit is on the disk when it returns (`synchronous = FULL`): the log's message is acked after it.
//! - Timestamps are RFC 3339 text of one length, which sorts like time.

use std::{str::FromStr, time::Duration};

use protocol::{
    ExecutionId, Timestamp,
    query::AlertCounts,
    views::{AlertView, ExecutionSummary},
};
use sqlx::{
    Row, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
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
    sql: include_str!("../migrations/sqlite/0001_records.sql"),
}];

/// How long a writer waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A database file.
pub(super) struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// The store in the file of `url`, which is made where it is missing.
    pub(super) fn new(url: &str, limits: Limits) -> Result<Self, StoreError> {
        let unusable = |reason: String| StoreError::Unusable(format!("database.url: {reason}"));
        let options = SqliteConnectOptions::from_str(url).map_err(|error| unusable(error.to_string()))?;
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(unusable(
                "a database in memory would forget every execution: name a file, such as sqlite://fist.db"
                    .to_owned(),
            ));
        }
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(limits.connections_max)
            .acquire_timeout(limits.acquire_timeout)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(classify)
    }

    async fn migrate_now(&self) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let bookkeeping = "CREATE TABLE IF NOT EXISTS schema_migrations \
             (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT";
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
            sqlx::query(
                "INSERT INTO schema_migrations VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
            )
            .bind(migration.version)
            .bind(migration.name)
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        }
        tx.commit().await.map_err(classify)
    }

    async fn record_now(&self, id: ExecutionId) -> Result<Option<Record>, StoreError> {
        // One snapshot for both tables.
        let mut tx = self.pool.begin().await.map_err(classify)?;
        load(&mut tx, id).await
    }

    async fn executions_now(&self, scan: &ExecutionScan) -> Result<Vec<ExecutionSummary>, StoreError> {
        let (after_at, after_id) = scan.after.unzip();
        let rows = sqlx::query(
            "SELECT id, name, namespace, trigger_source, status, steps_completed, total_steps, current_step, \
                    substr(error, 1, 2001) AS error, started_at, completed_at, created_at \
             FROM executions \
             WHERE created_at IS NOT NULL \
               AND (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR name = ?2) AND (?3 IS NULL OR namespace = ?3) \
               AND (?4 IS NULL OR (created_at, id) < (?4, ?5)) \
             ORDER BY created_at DESC, id DESC LIMIT ?6",
        )
        .bind(scan.status.map(|status| status.as_str()))
        .bind(scan.workflow.as_ref().map(|name| name.as_str()))
        .bind(scan.namespace.as_ref().map(|namespace| namespace.as_str()))
        .bind(after_at.map(|at: Timestamp| at.to_string()))
        .bind(after_id.map(|id: ExecutionId| id.to_string()))
        .bind(scan.rows_max)
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
            "SELECT id, name, namespace, trigger_source, status, steps_completed, total_steps, current_step, \
                    substr(error, 1, 2001) AS error, started_at, completed_at, created_at \
             FROM executions WHERE created_at IS NOT NULL AND id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
        )
        .bind(low.to_string())
        .bind(high.to_string())
        .bind(rows_max)
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows.iter().map(|row| rows::summary(summary_row(row)?)).collect()
    }

    async fn alerts_now(&self, scan: &AlertScan) -> Result<Vec<AlertView>, StoreError> {
        let (after_at, after_id) = scan.after.clone().unzip();
        let rows = sqlx::query(
            "SELECT id, source, substr(fingerprint, 1, 2001) AS fingerprint, substr(name, 1, 2001) AS name, status, disposition, \
                    CASE WHEN octet_length(labels) <= 65536 THEN labels \
                         ELSE json_object('…', octet_length(labels) || ' bytes of labels are not listed') \
                    END AS labels, substr(reason, 1, 2001) AS reason, executions, received_at \
             FROM alerts \
             WHERE (?1 IS NULL OR disposition = ?1) AND (?2 IS NULL OR source = ?2) \
               AND (?3 IS NULL OR id = ?3 OR identity = ?3) \
               AND (?4 IS NULL OR (received_at, id) < (?4, ?5)) \
             ORDER BY received_at DESC, id DESC LIMIT ?6",
        )
        .bind(scan.disposition.map(|disposition| disposition.as_str()))
        .bind(scan.source.as_deref())
        .bind(scan.id.as_deref())
        .bind(after_at.map(|at: Timestamp| at.to_string()))
        .bind(after_id)
        .bind(scan.rows_max)
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows.iter().map(|row| rows::alert_view(alert_row(row)?)).collect()
    }

    async fn alert_counts_now(&self) -> Result<AlertCounts, StoreError> {
        let counts = sqlx::query_as(
            "SELECT disposition, COUNT(*) FROM alerts GROUP BY disposition \
             UNION ALL SELECT 'messages', COUNT(*) FROM \
               (SELECT 1 FROM alerts GROUP BY delivery_seq, received_at HAVING COUNT(*) >= MAX(delivery_alerts)) \
             UNION ALL SELECT kind, count FROM expired_alerts",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        rows::alert_counts(counts)
    }

    async fn rows_now(&self, id: ExecutionId) -> Result<Option<StoredRows>, StoreError> {
        // One snapshot for both tables.
        let mut tx = self.pool.begin().await.map_err(classify)?;
        let execution = sqlx::query("SELECT * FROM executions WHERE id = ?1")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(classify)?;
        let Some(execution) = execution else {
            return Ok(None);
        };
        let steps = sqlx::query("SELECT * FROM steps WHERE execution_id = ?1 ORDER BY name, attempt")
            .bind(id.to_string())
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        let whole = |row: &SqliteRow| {
            Ok(StepRow {
                position: get(row, "position")?,
                step_type: get(row, "type")?,
                status: get(row, "status")?,
                started_at: get_time(row, "started_at")?,
                completed_at: get_time(row, "completed_at")?,
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
        let rows = sqlx::query("SELECT * FROM alerts WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3")
            .bind(rows::seq(after_seq))
            .bind(rows::seq(to_seq))
            .bind(rows_max)
            .fetch_all(&self.pool)
            .await
            .map_err(classify)?;
        let whole = |row: &SqliteRow| {
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
        let at: Option<String> = sqlx::query_scalar(
            "SELECT received_at FROM alerts ORDER BY received_at DESC, id DESC LIMIT 1 OFFSET ?1",
        )
        .bind(rows::seq(newer))
        .fetch_optional(&self.pool)
        .await
        .map_err(classify)?;
        at.map(|at| at.parse::<Timestamp>())
            .transpose()
            .map_err(StoreError::Refused)
    }

    async fn expire_beyond_now(&self, kept: u64, rows_max: u32) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let gone = sqlx::query(
            "DELETE FROM executions WHERE id IN \
               (SELECT id FROM executions WHERE created_at IS NOT NULL AND completed_at IS NOT NULL \
                ORDER BY created_at DESC, id DESC LIMIT ?2 OFFSET ?1)",
        )
        .bind(rows::seq(kept))
        .bind(rows_max)
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        tx.commit().await.map_err(classify)?;
        Ok(gone)
    }

    async fn forget_now(&self, horizon: Horizon) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for sql in [
            "DELETE FROM executions WHERE (created_at >= ?2 AND start_seq >= ?1) OR (created_at IS NULL AND last_seq >= ?1)",
            "DELETE FROM alerts WHERE received_at >= ?2 AND seq >= ?1",
        ] {
            sqlx::query(sql)
                .bind(rows::seq(horizon.seq))
                .bind(horizon.at.to_string())
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
        let mut tx = self.write().await?;
        let executions = sqlx::query(
            "DELETE FROM executions WHERE id IN \
               (SELECT id FROM executions WHERE (created_at < ?1 AND completed_at < ?1) \
                   OR (created_at IS NULL AND started_at < ?1) LIMIT ?2)",
        )
        .bind(before.to_string())
        .bind(rows_max)
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        // Whole messages at a time, so that their count stays whole.
        sqlx::raw_sql("CREATE TEMP TABLE IF NOT EXISTS leaving (id TEXT PRIMARY KEY); DELETE FROM leaving")
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        sqlx::query(
            "INSERT INTO leaving SELECT a.id FROM alerts a JOIN \
               (SELECT delivery_seq, received_at FROM alerts WHERE received_at < ?1 \
                GROUP BY received_at, delivery_seq HAVING MAX(seq) < ?2 ORDER BY received_at LIMIT ?3) m \
             USING (delivery_seq, received_at)",
        )
        .bind(alerts_before.to_string())
        .bind(rows::seq(horizon.seq))
        .bind(rows_max)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        let count = "INSERT INTO expired_alerts \
             SELECT disposition, COUNT(*) FROM alerts JOIN leaving USING (id) GROUP BY disposition \
             UNION ALL SELECT 'messages', COUNT(*) FROM (SELECT 1 FROM alerts JOIN leaving USING (id) \
               GROUP BY delivery_seq, received_at HAVING COUNT(*) >= MAX(delivery_alerts)) \
             WHERE TRUE ON CONFLICT (kind) DO UPDATE SET count = count + excluded.count";
        sqlx::query(count).execute(&mut *tx).await.map_err(classify)?;
        let alerts = sqlx::query("DELETE FROM alerts WHERE id IN (SELECT id FROM leaving)")
            .execute(&mut *tx)
            .await
            .map_err(classify)?
            .rows_affected();
        tx.commit().await.map_err(classify)?;
        Ok(executions + alerts)
    }
}

impl Store for SqliteStore {
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
        Box::pin(async { write::apply(self.write().await?, batch).await })
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

async fn load(tx: &mut Transaction<'static, Sqlite>, id: ExecutionId) -> Result<Option<Record>, StoreError> {
    let row = sqlx::query("SELECT * FROM executions WHERE id = ?1")
        .bind(id.to_string())
        .fetch_optional(&mut **tx)
        .await
        .map_err(classify)?;
    let Some(row) = row else { return Ok(None) };
    let (_, mut record) = rows::record(execution_row(&row)?)?;
    let steps = sqlx::query("SELECT * FROM steps WHERE execution_id = ?1")
        .bind(id.to_string())
        .fetch_all(&mut **tx)
        .await
        .map_err(classify)?;
    for row in &steps {
        let (key, parts) = rows::attempt(step_row(row)?)?;
        record.attempts.insert(key, parts);
    }
    Ok(Some(record))
}

fn execution_row(row: &SqliteRow) -> Result<ExecutionRow, StoreError> {
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

fn summary_row(row: &SqliteRow) -> Result<ExecutionRow, StoreError> {
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
        started_at: get_time(row, "started_at")?,
        completed_at: get_time(row, "completed_at")?,
        created_at: get_time(row, "created_at")?,
        ..ExecutionRow::default()
    })
}

fn step_row(row: &SqliteRow) -> Result<StepRow, StoreError> {
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

fn alert_row(row: &SqliteRow) -> Result<AlertRow, StoreError> {
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
        received_at: get_time(row, "received_at")?.unwrap_or_default(),
        ..AlertRow::default()
    })
}

fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(column).map_err(classify)
}

fn get_time(row: &SqliteRow, column: &str) -> Result<Option<i64>, StoreError> {
    let text: Option<String> = get(row, column)?;
    let parse = |text: String| text.parse::<Timestamp>().map(Timestamp::as_millis);
    text.map(parse).transpose().map_err(StoreError::Refused)
}

fn time(ms: Option<i64>) -> Option<String> {
    ms.map(|ms| Timestamp::from_millis(ms).to_string())
}

/// SQLite's primary result codes that speak of the data, not of the database: too big, constraint, mismatch.
const DATA_CODES: [i64; 3] = [18, 19, 20];

fn classify(error: sqlx::Error) -> StoreError {
    let reason = error.to_string();
    match &error {
        sqlx::Error::Database(database) => {
            let code = database
                .code()
                .and_then(|code| code.parse::<i64>().ok())
                .unwrap_or_default();
            // The low byte of an extended code is the primary one.
            if DATA_CODES.contains(&(code & 0xff)) {
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
