//! Deletes what is older, or more, than an operator wants to keep; off unless configured.
//!
//! Invariant: an execution that is not over is never deleted, however old.

use std::{sync::Arc, time::Duration};

use bus::Log;
use protocol::Timestamp;
use service::{Service, config::Database};

use crate::{
    rebuild::{horizon, horizon_of_an_empty_log},
    store::{Store, StoreError},
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(3600);

/// Rows of one transaction, so that none holds up the writers.
const ROWS_MAX: u32 = 500;

/// What is kept; `None`: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// How long executions are kept once they are over, and alerts.
    age: Option<Duration>,
    /// How many executions that are over.
    executions: Option<u64>,
    /// How many alerts.
    alerts: Option<u64>,
}

impl Kept {
    fn of(database: &Database) -> Self {
        let limit = |number: u64| Some(number).filter(|number| *number > 0);
        Self {
            age: limit(database.retention_days).map(|days| Duration::from_secs(days * 24 * 3600)),
            executions: limit(database.retention_executions_max),
            alerts: limit(database.retention_alerts_max),
        }
    }
}

/// Deletes until shutdown; returns at once where the configuration keeps everything.
pub(crate) async fn run<L: Log>(log: L, store: Arc<dyn Store>, service: Service) {
    let kept = Kept::of(&service.config.database);
    if kept == Kept::default() {
        return;
    }
    loop {
        match sweep(&log, &*store, kept, &service).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, ?kept, "deleted what is beyond database.retention_*"),
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

/// Deletes all that is over and beyond `kept`. Returns how many rows went.
pub(crate) async fn sweep<L: Log>(
    log: &L,
    store: &dyn Store,
    kept: Kept,
    service: &Service,
) -> Result<u64, String> {
    let now = log.now();
    let first = horizon(log).await.map_err(|error| error.to_string())?;
    let horizon = first.unwrap_or_else(|| horizon_of_an_empty_log(now));
    // Before the epoch there is nothing.
    let before = kept.age.map_or(Timestamp::from_millis(0), |age| {
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now.as_millis().saturating_sub(age_ms))
    });
    // Those received in the same millisecond as the oldest that is kept stay as well.
    let oldest_alert = match kept.alerts {
        Some(count) => store.nth_newest_alert(count - 1).await.map_err(told)?,
        None => None,
    };
    let alerts_before = oldest_alert.map_or(before, |oldest| oldest.max(before));
    let mut deleted = 0;
    while !service.shutdown.is_cancelled() {
        let mut rows = store
            .expire(before, alerts_before, horizon, ROWS_MAX)
            .await
            .map_err(told)?;
        if let Some(count) = kept.executions {
            rows += store.expire_beyond(count, ROWS_MAX).await.map_err(told)?;
        }
        if rows == 0 {
            break;
        }
        deleted += rows;
    }
    Ok(deleted)
}

fn told(error: StoreError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protocol::DispositionKind;

    use super::*;
    use crate::{
        samples::{History, batch, disposition},
        store::ExecutionScan,
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
        let day = Kept {
            age: Some(Duration::from_secs(24 * 3600)),
            ..Kept::default()
        };
        assert_eq!(sweep(&world.log, &*store, day, &service).await.unwrap(), 1);
        assert_eq!(store.record(old.id).await.unwrap(), None);
        assert_eq!(store.record(running.id).await.unwrap().unwrap(), running.fold());
        assert_eq!(store.alert_counts().await.unwrap(), counts);
        assert_eq!(sweep(&world.log, &*store, day, &service).await.unwrap(), 0);

        // Of the three that are over the newest stays; what still runs is older than all of them, and stays too.
        let newest = Kept {
            executions: Some(1),
            ..Kept::default()
        };
        assert_eq!(sweep(&world.log, &*store, newest, &service).await.unwrap(), 2);
        let scan = ExecutionScan {
            rows_max: 10,
            ..ExecutionScan::default()
        };
        let left = store.executions(&scan).await.unwrap();
        let over: Vec<bool> = left.iter().map(|left| left.completed_at.is_some()).collect();
        assert_eq!(over, [true, false]);
        assert_eq!(left[1].id, running.id);
        assert_eq!(sweep(&world.log, &*store, newest, &service).await.unwrap(), 0);
    }
}
