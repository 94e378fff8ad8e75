//! Workflows as objects of the Kubernetes API: a watch that takes them in, and a status that says what became of
//! them.
//!
//! | an object | what becomes of it |
//! |---|---|
//! | is not valid | condition `Valid=False` with every problem; nothing starts |
//! | is a definition | stored in the bucket, and taken out of it when the object goes |
//! | is anything else | executed once; its execution's id is derived from its UID |
//!
//! Invariants:
//! - Any number of replicas watch, without a leader: every effect is idempotent, and a status is written over the
//!   version that was read.
//! - A cluster that is away stops nothing else of this service: webhooks and the API go on, and what changed
//!   meanwhile is taken in when it is back.
//! - There is no finalizer, so no object and no namespace ever waits for us to go.

mod heard;
mod intake;
mod objects;
mod progress;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Consume, Log as _, LogError, NatsLog, topology};
use protocol::{Cancel, ExecutionId, Fact, Namespace, Subject, encode};
use service::{Fatal, Service};
use tokio_util::sync::CancellationToken;

use crate::{admission::Admission, definitions::Registry, start::Starter};

use self::{
    intake::Intake,
    objects::{Objects, Place},
    progress::Progress,
};

/// Messages of the log that are told to objects at one time.
const PROGRESS_CONCURRENCY: usize = 64;

/// What it works with.
pub struct Parts {
    pub log: NatsLog,
    pub registry: Registry,
    pub starter: Starter,
    pub admission: Admission,
}

/// Watches and tells until `end`.
///
/// # Errors
/// Why no cluster can be reached at all, by the configuration; or why the log cannot be read.
pub async fn run(service: &Service, parts: Parts, end: CancellationToken) -> Result<(), Fatal> {
    let cluster = cluster::connect(&service.config.kubernetes)
        .await
        .map_err(|error| Fatal::because("workflows are to be watched (ingest.watch_workflows)", error))?;
    tracing::info!(address = cluster.address, "watching workflows");
    let objects = Objects::new(cluster.client);
    let intake = Arc::new(Intake::new(objects.clone(), &parts));
    let progress = Arc::new(Progress::new(objects, parts.log.clone(), parts.registry));
    let options = Consume::from_config(&service.config, PROGRESS_CONCURRENCY);
    let consuming = bus::consume(
        parts.log,
        &topology::WORKFLOW_STATUS,
        options,
        progress,
        end.clone(),
    );
    let watching = intake.watch(&service.config.ingest.watch_namespaces, &end);
    let (consumed, ()) = tokio::join!(consuming, watching);
    Ok(consumed?)
}

/// Asks for the end of an execution whose object was deleted.
async fn cancel(
    log: &NatsLog,
    namespace: &Namespace,
    id: ExecutionId,
    place: &Place,
) -> Result<(), LogError> {
    let fact = Fact::Cancel(Cancel {
        reason: format!("its Workflow {}/{} was deleted", place.namespace, place.name),
    });
    let subject = Subject::CancelRequest(namespace.clone(), id, 0);
    log.write_fact(&subject, encode(log.now(), &fact)).await?;
    tracing::info!(execution = %id, workflow = place.name, namespace = place.namespace, "its object is gone; it is cancelled");
    Ok(())
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole entries are put in and taken out, so what a panic left is sound.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
