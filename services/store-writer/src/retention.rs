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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protocol::DispositionKind;

    use super::*;
    use crate::{
        samples::{History, batch, disposition},
        world::{World, mixed, service},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_is_over_and_old_goes() {
        let world = World::new().await;
        let store = world.sqlite("a.db").await;
        // Of last January, by their own times.
        let old = History::success("web", "old", 1);
        let running = History::new("web", "still running", 21)
            .start(&[("check", "cli")])
            .task("check");
        let mut before = old.batch();
        before.changes.extend(running.batch().changes);
        let alert = disposition(40, 1, 0, 1, DispositionKind::Started);
        before.alerts = batch(std::slice::from_ref(&alert)).alerts;
        store.apply(&before).await.unwrap();
        let counts = store.alert_counts().await.unwrap();
        world.write(&mixed(3)).await;
        let projector = world.project(&store, 100);
        world.drained().await;
        projector.end().await;

        let service = service(100);
        // The log begins at 1, and so before all of these: alerts it might still hold are not counted out.
        assert_eq!(sweep(&world.log, &*store, DAY, &service).await.unwrap(), 1);
        assert_eq!(store.record(old.id).await.unwrap(), None);
        assert_eq!(store.record(running.id).await.unwrap().unwrap(), running.fold());
        assert_eq!(store.alert_counts().await.unwrap(), counts);
        assert_eq!(sweep(&world.log, &*store, DAY, &service).await.unwrap(), 0);
    }
}
