//! Runs the steps of type `cli`: takes tasks from the queue `cli`, runs each command in its own process
//! group or pod, and writes what came of it as a `done` fact.
//!
//! Invariants:
//! - A task is acknowledged only after its fact is in the log.
//! - What dead runners left on this machine is ended before the first task is taken.
//! - One attempt runs once at a time on a machine, and a command that passed the fix gate is started at most
//!   once for ever.

pub mod capture;
pub mod clock;
pub mod executor;
pub mod live;
mod output;
mod runner;
mod running;
mod task;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bus::{Blobs, Connection, Consume, Follow, Log, NatsLog, Position, Settings, topology};
use capture::Limits;
use executor::{Executor, local};
use futures_util::StreamExt;
use protocol::{Subject, subjects};
use runner::Runner;
use running::Running;
use service::{
    Fatal, Service,
    config::{self, Nats},
};
use tokio_util::sync::CancellationToken;

/// How long to go on trying for the first connection to NATS.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// How often the connection and the queue are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often leftovers of dead runners are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Runs the service until its shutdown.
///
/// # Errors
/// [`Fatal`] where it cannot begin (no NATS, no topology, no directory to work in) or cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    service.health.expect("nats");
    let cli = &service.config.cli;
    match cli.executor {
        config::Executor::Local => {
            let local = local::Local::open(local_settings(cli)).map_err(|error| {
                Fatal::because("local commands need a directory to run in (cli.work_dir)", error)
            })?;
            Box::pin(serve(service, local)).await
        }
        config::Executor::Kubernetes => Err(Fatal::new(
            "cli.executor: this build runs commands on its own machine only; set it to `local`",
        )),
    }
}

/// Runs the service with `executor`, whatever the configuration says of it.
///
/// # Errors
/// As [`run`].
pub async fn serve<E: Executor>(service: Service, executor: E) -> Result<(), Fatal> {
    let executor = Arc::new(executor);
    sweep(executor.as_ref()).await;
    let connection = Connection::open(&nats_settings(&service.config.nats))
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    topology::check(&connection)
        .await
        .map_err(|error| Fatal::new(error.to_string()))?;
    let opened = |error: bus::LogError| Fatal::new(error.to_string());
    let log = NatsLog::open(&connection).await.map_err(opened)?;
    let running = Running::default();
    let end = service.shutdown.child_token();
    let runner = Runner {
        log: log.clone(),
        blobs: Blobs::open(&connection).await.map_err(opened)?,
        executor: Arc::clone(&executor),
        limits: limits(&service.config.cli),
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
    let drain = Duration::from_millis(service.config.shutdown.drain_ms) * 4 / 5;
    let consuming = async {
        let options = Consume {
            concurrency: service.config.cli.concurrency,
            poison_after: service.config.scheduler.poison_deliveries_max,
            drain,
        };
        let outcome = bus::consume(
            log.clone(),
            &topology::CLI,
            options,
            Arc::new(runner),
            end.clone(),
        )
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
    let (consumed, followed, (), ()) = tokio::join!(
        consuming,
        following,
        release(&running, &end, &over, drain / 2),
        keep_house(&service, &log, executor.as_ref(), &end),
    );
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

/// When the process ends, lets commands go: those that passed the fix gate later, since nobody could say what
/// they did when they are ended half-way.
async fn release(running: &Running, end: &CancellationToken, over: &CancellationToken, gated_time: Duration) {
    end.cancelled().await;
    running.release();
    tokio::select! {
        () = over.cancelled() => {}
        () = tokio::time::sleep(gated_time) => running.release_gated(),
    }
}

/// Reports on the connection and the queue, and sweeps.
async fn keep_house<E: Executor>(service: &Service, log: &NatsLog, executor: &E, end: &CancellationToken) {
    let mut sweeps = tokio::time::interval(SWEEP_EVERY);
    sweeps.reset();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = sweeps.tick() => sweep(executor).await,
            _ = looks.tick() => {
                let state = log.connection().is_connected();
                service.health.set("nats", state.then_some(()).ok_or_else(|| "not connected; reconnecting".to_owned()));
                if let Ok(queue) = log.consumer_state(&topology::CLI).await {
                    let oldest = queue.oldest.map(|at| clock::now().since(at)).unwrap_or_default();
                    service.metrics.queue(topology::CLI.name, queue.waiting + queue.in_flight, oldest);
                }
            }
        }
    }
}

async fn sweep<E: Executor>(executor: &E) {
    match executor.sweep().await {
        Ok(swept) if swept.jobs > 0 => {
            tracing::warn!(
                commands = swept.jobs,
                processes = swept.killed,
                "ended what a dead runner left"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "leftovers of dead runners could not be looked for"),
    }
}

fn local_settings(cli: &config::Cli) -> local::Settings {
    local::Settings {
        work_dir: cli.work_dir.clone().unwrap_or_else(default_work_dir),
        path: cli.path.clone(),
        kubeconfig: cli.kubeconfig.clone(),
        limits: limits(cli),
        kill_grace: Duration::from_millis(cli.kill_grace_ms),
    }
}

/// Where commands run by default: one directory for each user, since another's could not be used.
fn default_work_dir() -> PathBuf {
    std::env::temp_dir().join(format!("punching-fist-{}", nix::unistd::Uid::effective()))
}

fn limits(cli: &config::Cli) -> Limits {
    Limits {
        inline_bytes_max: cli.output_inline_bytes_max,
        spill_bytes_max: cli.output_spill_bytes_max,
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
        client_name: "fist cli-runner".to_owned(),
        attempt_time: Duration::from_millis(nats.connect_timeout_ms),
        deadline: CONNECT_WITHIN,
    }
}

/// A name that no other runner ever had: facts tell by it who began what.
fn instance() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "cli-runner",
        host => host,
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{host}/{}.{}.{count}",
        std::process::id(),
        clock::now().as_millis()
    )
}
