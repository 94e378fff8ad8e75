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

#[cfg(test)]
mod samples;
#[cfg(test)]
mod world;

use std::{sync::Arc, time::Duration};

use bus::{Blobs, Connection, Log, NatsLog, Settings, topology::STORE_WRITER};
use service::{Config, Fatal, Service};
use tokio::task::JoinSet;

pub use rebuild::{RebuildError, Rebuilt, rebuild};

use crate::{projector::Projector, query::Answerer, store::Store};

/// How often the lag and the connection are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// Projects and answers until shutdown.
///
/// # Errors
/// What keeps the service from working, with the remedy. A database that is away does not.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let store = open_store(&service.config)?;
    service.health.expect("nats");
    service.health.expect("database");
    service.health.expect("queries");
    let (connection, log) = open_log(&service).await?;
    let blobs = Blobs::open(&connection)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
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
    tasks.spawn(watch(connection.clone(), log.clone(), service.clone()));
    let deleting = retention::run(log, store, service.clone());
    tasks.spawn(async {
        deleting.await;
        Ok(())
    });
    let outcome = join(tasks, &service).await;
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
    let (connection, log) = open_log(&service).await?;
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

async fn open_log(service: &Service) -> Result<(Connection, NatsLog), Fatal> {
    let nats = &service.config.nats;
    let wait = Duration::from_millis(nats.connect_timeout_ms);
    let password = nats
        .password
        .as_ref()
        .map(|password| password.expose().to_owned());
    let settings = Settings {
        url: nats.url.clone(),
        credentials_file: nats.credentials_file.clone(),
        user_and_password: nats.user.clone().zip(password),
        tls_ca_file: nats.tls_ca_file.clone(),
        client_name: format!("fist {}", service.name),
        attempt_time: wait,
        deadline: wait,
    };
    let connection = Connection::open(&settings)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    let log = NatsLog::open(&connection)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    Ok((connection, log))
}

/// Waits for all; the first that fails ends the others.
async fn join(mut tasks: JoinSet<Result<(), Fatal>>, service: &Service) -> Result<(), Fatal> {
    let mut outcome = Ok(());
    while let Some(task) = tasks.join_next().await {
        let ended = task.unwrap_or_else(|error| Err(Fatal::new(format!("store-writer has a bug: {error}"))));
        if ended.is_err() && outcome.is_ok() {
            // The others cannot be told through the process's own token, which is not ours to cancel.
            tasks.abort_all();
            outcome = ended;
        } else if outcome.is_ok() && !service.shutdown.is_cancelled() {
            // Retention returns at once where it is off.
            continue;
        }
    }
    outcome
}

/// Shows how far the database is behind, and whether NATS is there.
async fn watch(connection: Connection, log: NatsLog, service: Service) -> Result<(), Fatal> {
    loop {
        let is_connected = connection.is_connected();
        let state = if is_connected {
            Ok(())
        } else {
            Err(format!("no connection to {}", connection.url()))
        };
        service.health.set("nats", state);
        if is_connected && let Ok(state) = log.consumer_state(&STORE_WRITER).await {
            let age = state
                .oldest
                .map(|oldest| log.now().since(oldest))
                .unwrap_or_default();
            service
                .metrics
                .projection_lag(state.waiting + state.in_flight, age);
            service.metrics.queue(STORE_WRITER.name, state.waiting, age);
        }
        tokio::select! {
            () = service.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}
