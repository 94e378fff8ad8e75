//! agent-runner: performs agent tasks. It lets a model investigate with read-only tools, and gives back findings
//! that are checked against what the tools returned.
//!
//! Invariants:
//! - Nothing that a model says acts: tools only read, and a proposed command is data.
//! - What the log holds is what the model saw: redacted first, recorded second, used third.
//! - A task is acknowledged only after its fact is in the log.

pub mod agent;
mod clock;
pub mod llm;
pub mod redact;
pub mod runner;
pub mod running;
pub mod tools;
mod web;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bus::{Blobs, Connection, Consume, Follow, Log, NatsLog, Position, Settings, topology};
use engine::fixgate::Gate;
use futures_util::StreamExt as _;
use protocol::{Subject, subjects};
use redact::Redactor;
use runner::Runner;
use running::Running;
use service::{
    Fatal, Service,
    config::{Nats, Secrets},
};
use tokio_util::sync::CancellationToken;

/// How long to go on trying for the first connection to NATS.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// How often the connection and the queue are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs the service until its shutdown, with the keys of this process's environment.
///
/// # Errors
/// [`Fatal`] where it cannot begin (no NATS, no topology, a key file that cannot be read) or cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let secrets = Secrets::from_env(&service.config.llm).map_err(|error| Fatal::new(error.to_string()))?;
    Box::pin(serve(service, secrets)).await
}

/// Runs the service with these keys.
///
/// # Errors
/// As [`run`].
pub async fn serve(service: Service, secrets: Secrets) -> Result<(), Fatal> {
    service.health.expect("nats");
    let config = Arc::clone(&service.config);
    let own = [&secrets.anthropic_api_key, &secrets.openai_api_key];
    let redactor = Redactor::new(&config.tools.redact, own.into_iter().flatten()).map_err(Fatal::new)?;
    let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
        .map_err(|reason| Fatal::new(format!("fix.verbs: {reason}")))?;
    let opened = |error: bus::LogError| Fatal::new(error.to_string());
    let connection = Connection::open(&nats_settings(&config.nats))
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    topology::check(&connection)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    let log = NatsLog::open(&connection).await.map_err(opened)?;
    let running = Running::default();
    let end = service.shutdown.child_token();
    let runner = Runner {
        log: log.clone(),
        blobs: Blobs::open(&connection).await.map_err(opened)?,
        config: Arc::clone(&config),
        secrets,
        redactor,
        gate,
        instance: instance(),
        metrics: service.metrics.clone(),
        running: running.clone(),
        shutdown: end.clone(),
    };
    // Before the first task: a cancel that comes after the task was looked up must be heard.
    let cancels = log
        .follow(vec![subjects::ALL_CANCELS.to_owned()], Position::New)
        .await
        .map_err(opened)?;
    let over = CancellationToken::new();
    let options = Consume {
        concurrency: config.agent.concurrency,
        poison_after: config.scheduler.poison_deliveries_max,
        drain: Duration::from_millis(config.shutdown.drain_ms) * 4 / 5,
    };
    let consuming = async {
        let outcome = Box::pin(bus::consume(
            log.clone(),
            &topology::AGENT,
            options,
            Arc::new(runner),
            end.clone(),
        ))
        .await;
        // Ended by itself: the others have nothing to wait for.
        end.cancel();
        over.cancel();
        outcome.map_err(|failure| Fatal::new(failure.to_string()))
    };
    let following = async {
        let outcome = follow_cancels(cancels, &running, &over).await;
        end.cancel();
        outcome
    };
    let (consumed, followed, ()) = tokio::join!(consuming, following, keep_house(&service, &log, &end));
    connection.close().await;
    consumed.and(followed)
}

/// Ends what runs for executions that were cancelled.
async fn follow_cancels(
    mut cancels: Follow,
    running: &Running,
    over: &CancellationToken,
) -> Result<(), Fatal> {
    loop {
        let message = tokio::select! {
            () = over.cancelled() => return Ok(()),
            message = cancels.next() => message,
        };
        match message {
            Some(Ok(message)) => {
                if let Ok(Subject::Cancel(_, execution)) = Subject::parse(&message.subject) {
                    let ended = running.cancel(execution);
                    tracing::debug!(%execution, ended, "execution cancelled");
                }
            }
            Some(Err(error)) => return Err(Fatal::because("cancellations can be heard no longer", error)),
            None => {
                return Err(Fatal::new(
                    "cancellations can be heard no longer: their stream ended",
                ));
            }
        }
    }
}

/// Reports on the connection and the queue.
async fn keep_house(service: &Service, log: &NatsLog, end: &CancellationToken) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = looks.tick() => {
                let state = log.connection().is_connected();
                service.health.set("nats", state.then_some(()).ok_or_else(|| "not connected; reconnecting".to_owned()));
                if let Ok(queue) = log.consumer_state(&topology::AGENT).await {
                    let oldest = queue.oldest.map(|at| clock::now().since(at)).unwrap_or_default();
                    service.metrics.queue(topology::AGENT.name, queue.waiting + queue.in_flight, oldest);
                }
            }
        }
    }
}

fn nats_settings(nats: &Nats) -> Settings {
    let password = nats
        .password
        .as_ref()
        .map(|password| password.expose().to_owned());
    Settings {
        url: nats.url.clone(),
        credentials_file: nats.credentials_file.clone(),
        user_and_password: nats.user.clone().zip(password),
        tls_ca_file: nats.tls_ca_file.clone(),
        client_name: "fist agent-runner".to_owned(),
        attempt_time: Duration::from_millis(nats.connect_timeout_ms),
        deadline: CONNECT_WITHIN,
    }
}

/// A name that no other runner ever had.
fn instance() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "agent-runner",
        host => host,
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{host}/{}.{}.{count}",
        std::process::id(),
        clock::now().as_millis()
    )
}
