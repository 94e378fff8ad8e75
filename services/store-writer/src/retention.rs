//! Deletes what is older than an operator wants to keep; off unless configured.
//!
//! Invariant: an execution that is not over is never deleted, however old.

use std::{sync::Arc, time::Duration};

use bus::Log;
use service::Service;

use crate::{
    rebuild::{horizon, horizon_of_an_empty_log},
    store::Store,
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(3600);

/// Rows of one transaction, so that none holds up the writers.
const ROWS_MAX: u32 = 500;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Deletes until shutdown; returns at once where the configuration keeps everything.
pub(crate) async fn run<L: Log>(log: L, store: Arc<dyn Store>, service: Service) {
    let days = service.config.database.retention_days;
    let Some(kept) = u32::try_from(days)
        .ok()
        .filter(|days| *days > 0)
        .map(|days| DAY * days)
    else {
        return;
    };
    loop {
        match sweep(&log, &*store, kept, &service).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, days, "deleted what is older than database.retention_days"),
            Err(error) => tracing::warn!(
                error,
                "old rows cannot be deleted just now; trying again in an hour"
            ),
        }
        tokio::select! {
            () = service.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Deletes all that is over for longer than `kept`. Returns how many rows went.
pub(crate) async fn sweep<L: Log>(
    log: &L,
    store: &dyn Store,
    kept: Duration,
    service: &Service,
) -> Result<u64, String> {
    let now = log.now();
    let first = horizon(log).await.map_err(|error| error.to_string())?;
    let horizon = first.unwrap_or_else(|| horizon_of_an_empty_log(now));
    let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
    let before = protocol::Timestamp::from_millis(now.as_millis().saturating_sub(kept_ms));
    let mut deleted = 0;
    while !service.shutdown.is_cancelled() {
        let rows = store
            .expire(before, horizon, ROWS_MAX)
            .await
            .map_err(|error| error.to_string())?;
        if rows == 0 {
            break;
        }
        deleted += rows;
    }
    Ok(deleted)
}
