//! Ingest: the only HTTP door, and the intake of alerts.
//!
//! An alert's way: a webhook makes it durable in `FIST_ALERTS` ([`http`]), or somebody publishes it there; the
//! intake reads it ([`sources`]), matches it against the definitions ([`definitions`]), writes a start fact for
//! each workflow that wants it ([`start`]), then its disposition ([`intake`]), and only then acknowledges it.
//!
//! Invariants:
//! - Nothing is held here that is not also in NATS: any number of replicas run side by side, and any may be
//!   killed at any moment.
//! - What exists is read by questions to store-writer, or from the log; this service has no database.

mod admission;
mod definitions;
pub mod http;
mod identity;
mod intake;
mod kubernetes;
mod queries;
pub mod sources;
mod start;
mod story;
mod stream_info;

use std::{sync::Arc, time::Duration};

use bus::{Attached, Consume, Definitions, NatsLog, Started, attach, attach::look_after, topology};
use service::{
    Fatal, Service,
    http::{Limits, bind, observed, serve},
};
use tokio_util::sync::CancellationToken;

use admission::Admission;
use definitions::Registry;
use intake::Intake;
use sources::Sources;
use start::Starter;

/// Handlers of one message that may vanish before it is set aside.
const POISON_AFTER: u64 = 5;

/// Runs the service until its shutdown.
///
/// # Errors
/// Why it cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let listener = bind("http.listen", &service.config.http.listen).await?;
    Box::pin(run_at(service, listener)).await
}

/// Runs the service behind a port that is open already, as tests and `fist up` want it.
///
/// # Errors
/// Why it cannot go on.
pub async fn run_at(service: Service, listener: tokio::net::TcpListener) -> Result<(), Fatal> {
    let Attached {
        connection,
        log,
        blobs,
    } = attach(&service).await?;
    let started = Started::open(&connection).await?;
    let definitions = Definitions::open(&connection).await?;
    let registry = Registry::new(connection.clone(), definitions, &service.config)?;
    let starter = Starter::new(log.clone(), started.clone(), service.metrics.clone());
    let admission = Admission::new(
        log.clone(),
        service.config.nats.admission_stop_percent,
        service.metrics.clone(),
    );
    let app = Arc::new(http::App::new(http::Parts {
        service: service.clone(),
        connection: connection.clone(),
        log: log.clone(),
        blobs,
        sources: Sources::new(&service.config.sources),
        registry: registry.clone(),
        starter: starter.clone(),
        admission: admission.clone(),
    }));
    let parts = kubernetes::Parts {
        log: log.clone(),
        registry: registry.clone(),
        starter: starter.clone(),
        admission: admission.clone(),
    };
    let intake = Intake::new(
        log.clone(),
        started,
        registry.clone(),
        starter,
        admission.clone(),
        &service.config,
        service.metrics.clone(),
    );
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "listening for webhooks and the API");
        for exposure in http::exposures(&service.config, &address.to_string()) {
            tracing::warn!("{exposure}");
        }
    }
    let router = observed(http::router(&app), service.metrics.clone());
    // One that fails ends the others, each in order.
    let end = service.shutdown.child_token();
    let door = serve(
        listener,
        router,
        Limits::from_config(&service.config),
        end.clone(),
    );
    let working = async {
        let outcome = work(&service, &log, intake, end.clone()).await;
        end.cancel();
        outcome
    };
    let is_watching = service.config.ingest.watch_workflows;
    let watching = async {
        if !is_watching {
            return Ok(());
        }
        let outcome = Box::pin(kubernetes::run(&service, parts, end.clone())).await;
        end.cancel();
        outcome
    };
    let serving = async { tokio::join!(working, watching, door, registry.watch(&end)) };
    let queues: &[_] = match is_watching {
        true => &[topology::INGEST, topology::WORKFLOW_STATUS],
        false => &[topology::INGEST],
    };
    let (worked, watched, (), ()) = tokio::select! {
        ended = Box::pin(serving) => ended,
        never = look_after(&service, &log, queues) => match never {},
        never = admission.show() => match never {},
    };
    let outcome = worked.and(watched);
    connection.close().await;
    outcome
}

async fn work(service: &Service, log: &NatsLog, intake: Intake, end: CancellationToken) -> Result<(), Fatal> {
    let options = Consume {
        concurrency: service.config.ingest.concurrency,
        poison_after: POISON_AFTER,
        drain: Duration::from_millis(service.config.shutdown.drain_ms),
    };
    bus::consume(log.clone(), &topology::INGEST, options, Arc::new(intake), end).await?;
    Ok(())
}
