//! Runs the steps of type `cli`: takes tasks from the queue `cli`, runs each command in its own process
//! group or pod, and writes what came of it as a `done` fact.
//!
//! Invariants:
//! - A task is acknowledged only after its fact is in the log.
//! - What dead runners left on this machine is ended before the first task is taken.
//! - One attempt runs once at a time on a machine, and a command that passed the fix gate is started at most
//!   once for ever.

pub mod capture;
mod dry_run;
pub mod executor;
pub mod live;
mod output;
mod release;
mod returns;
mod runner;
mod task;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bus::{
    Consume, NatsLog, attach,
    attach::look_after,
    runner::{Tasks, perform},
    topology,
};
use capture::Limits;
use executor::{Executor, Over, local, pods};
use protocol::{Attempt, ExecutionId, Namespace, StepName};
use release::{Release, StartedGated};
use runner::Runner;
use service::{Fatal, Service, config};

/// How often leftovers of dead runners are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Runs the service until its shutdown.
///
/// # Errors
/// [`Fatal`] where it cannot begin (no NATS, no topology, no directory to work in) or cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let cli = &service.config.cli;
    match cli.executor {
        config::Executor::Local => {
            let local = local::Local::open(local_settings(cli)).map_err(|error| {
                Fatal::because("local commands need a directory to run in (cli.work_dir)", error)
            })?;
            Box::pin(serve(service, local)).await
        }
        config::Executor::Kubernetes => {
            let cluster = cluster::connect(&service.config.kubernetes)
                .await
                .map_err(|error| Fatal::because("commands run as pods (cli.executor)", error))?;
            let settings = pods::Settings::from_config(cli, limits(cli), &cluster.namespace);
            tracing::info!(
                address = cluster.address,
                namespace = settings.namespace,
                "commands run as pods"
            );
            Box::pin(serve(service, pods::Pods::new(cluster.client, settings))).await
        }
    }
}

/// Runs the service with `executor`, whatever the configuration says of it.
///
/// # Errors
/// As [`run`].
pub async fn serve<E: Executor>(service: Service, executor: E) -> Result<(), Fatal> {
    let executor = Arc::new(executor);
    let attached = attach(&service).await?;
    let tasks = Tasks::new(&service, &attached, topology::CLI);
    sweep(executor.as_ref(), &tasks).await;
    let release = Release::default();
    let runner = Runner {
        tasks: tasks.clone(),
        executor: Arc::clone(&executor),
        limits: limits(&service.config.cli),
        release: release.clone(),
        started_gated: StartedGated::default(),
    };
    let options = Consume::from_config(&service.config, service.config.cli.concurrency);
    let drain = options.drain;
    let outcome = tokio::select! {
        outcome = perform(&tasks, options, Arc::new(runner)) => outcome,
        (never, ..) = async {
            tokio::join!(
                look_after(&service, &attached.log, &[topology::CLI]),
                release.follow(&tasks.shutdown, drain),
                sweep_regularly(executor.as_ref(), &tasks),
            )
        } => match never {},
    };
    attached.connection.close().await;
    outcome
}

async fn sweep_regularly<E: Executor>(executor: &E, tasks: &Tasks<NatsLog>) {
    let mut sweeps = tokio::time::interval(SWEEP_EVERY);
    sweeps.reset();
    while tasks.shutdown.run_until_cancelled(sweeps.tick()).await.is_some() {
        sweep(executor, tasks).await;
    }
}

/// The log knows.
impl Over for Tasks<NatsLog> {
    async fn is_over(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> bool {
        let over = Tasks::is_over(self, namespace, execution, step, attempt).await;
        // What cannot be found out now is looked at again by the next sweep.
        over.unwrap_or(false)
    }
}

async fn sweep<E: Executor>(executor: &E, over: &impl Over) {
    match executor.sweep(over).await {
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
