//! The only database door: projects the log into SQL, and answers `fist.query.read`.
//!
//! Invariants:
//! - The database holds no truth: every row can be built again from the log ([`rebuild()`]).
//! - A message is acked after its rows are committed, never before.
#![warn(missing_docs)]

pub mod projector;
pub mod query;
pub mod reading;
pub mod rebuild;
pub mod record;
mod retention;
pub mod store;
pub mod testing;
pub mod verify;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod world;

use std::{sync::Arc, time::Duration};

use bus::{Attached, Log, NatsLog, attach, attach::look_after, topology};
use service::{Config, Fatal, Service};
use tokio::task::JoinSet;

pub use rebuild::{RebuildError, Rebuilt, rebuild};
pub use verify::{Verified, VerifyError, verify};

use crate::{projector::Projector, query::Answerer, store::Store};

/// How often the lag is looked at.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Projects and answers until shutdown.
///
/// # Errors
/// What keeps the service from working, with the remedy. A database that is away does not.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let store = open_store(&service.config)?;
    if let Some(exposure) = service.config.database.exposure() {
        tracing::warn!("{exposure}");
    }
    service.health.expect("database");
    service.health.expect("queries");
    let Attached {
        connection,
        log,
        blobs,
    } = attach(&service).await?;
    let answerer = Answerer {
        log: log.clone(),
        store: Arc::clone(&store),
        blobs,
    };
    let projector = Projector {
        log: log.clone(),
        store: Arc::clone(&store),
        service: service.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(projector.run());
    tasks.spawn(query::serve(connection.clone(), answerer, service.clone()));
    tasks.spawn(show_lag(log.clone(), service.clone()));
    tasks.spawn(look_after_nats(log.clone(), service.clone()));
    let deleting = retention::run(log, store, service.clone());
    tasks.spawn(async {
        deleting.await;
        Ok(())
    });
    let outcome = join(tasks).await;
    connection.close().await;
    outcome
}

/// Builds the database anew from the log, as `store-writer --rebuild` does. Safe to interrupt and to repeat,
/// and beside running services.
///
/// # Errors
/// What went wrong, with the remedy.
pub async fn run_rebuild(service: Service) -> Result<(), Fatal> {
    let store = open_store(&service.config)?;
    let Attached { connection, log, .. } = attach(&service).await?;
    let rebuilt = rebuild(&log, &*store, &service)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    tracing::info!(
        messages = rebuilt.messages,
        unreadable = rebuilt.unreadable,
        "the database is built anew"
    );
    connection.close().await;
    Ok(())
}

/// Compares the database with the log, as `store-writer --verify` does. Changes nothing, and may run beside services.
///
/// # Errors
/// Why it could not be compared, with the remedy; differences are no error.
pub async fn run_verify(service: Service) -> Result<Verified, Fatal> {
    let store = open_store(&service.config)?;
    let Attached { connection, log, .. } = attach(&service).await?;
    let verified = verify(&log, &*store, &service)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    connection.close().await;
    Ok(verified)
}

/// The store that the configuration names. Does not connect yet.
///
/// # Errors
/// Where the URL is none of a database that can be used.
pub fn open_store(config: &Config) -> Result<Arc<dyn Store>, Fatal> {
    let limits = store::Limits {
        connections_max: config.database.connections_max,
        acquire_timeout: Duration::from_millis(config.database.acquire_timeout_ms),
    };
    store::from_url(config.database.url.expose(), limits).map_err(|error| Fatal::new(error.to_string()))
}

/// Waits for all; the first that fails ends the others.
async fn join(mut tasks: JoinSet<Result<(), Fatal>>) -> Result<(), Fatal> {
    while let Some(task) = tasks.join_next().await {
        // Dropped with the set, the others stop at their next await.
        task.unwrap_or_else(|error| Err(Fatal::new(format!("store-writer has a bug: {error}"))))?;
    }
    Ok(())
}

/// Shows how far the database is behind.
async fn show_lag(log: NatsLog, service: Service) -> Result<(), Fatal> {
    let durable = topology::store_writer(&service.config.database.consumer);
    loop {
        if let Ok(state) = log.consumer_state(&durable).await {
            let age = state
                .oldest
                .map(|oldest| log.now().since(oldest))
                .unwrap_or_default();
            service
                .metrics
                .projection_lag(state.waiting + state.in_flight, age);
        }
        tokio::select! {
            () = service.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(SHOW_EVERY) => {}
        }
    }
}

async fn look_after_nats(log: NatsLog, service: Service) -> Result<(), Fatal> {
    let durables = [topology::store_writer(&service.config.database.consumer)];
    tokio::select! {
        () = service.shutdown.cancelled() => {}
        never = look_after(&service, &log, &durables) => match never {},
    }
    Ok(())
}
