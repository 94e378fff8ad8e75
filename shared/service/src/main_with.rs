//! What the `main` of every stand-alone service does around its `run`.
//!
//! ```no_run
//! # async fn run(service: service::Service) -> Result<(), service::Fatal> { Ok(()) }
//! fn main() -> std::process::ExitCode {
//!     service::main_with("scheduler", run)
//! }
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{Config, process_env};
use crate::fatal::Fatal;
use crate::{Service, health, http, shutdown, telemetry};

/// The service could not go on.
const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const EXIT_MISUSE: u8 = 2;

/// Runs one service as a process: command line, configuration, logs, TLS,
/// health, signals, and the exit code (0 ended as asked, 1 failed, 2 misuse).
pub fn main_with<Running>(name: &'static str, run: impl FnOnce(Service) -> Running) -> ExitCode
where
    Running: Future<Output = Result<(), Fatal>>,
{
    main_with_flags(name, &[], |service, _| run(service))
}

/// As [`main_with`], for a service that knows flags of its own; `run` gets those
/// of `flags` (such as `--rebuild`) that were given.
pub fn main_with_flags<Running>(
    name: &'static str,
    flags: &[&'static str],
    run: impl FnOnce(Service, Vec<&'static str>) -> Running,
) -> ExitCode
where
    Running: Future<Output = Result<(), Fatal>>,
{
    let (path, given) = match arguments(flags, std::env::args().skip(1)) {
        Ok(Asked::Run(path, given)) => (path.or_else(config_variable), given),
        Ok(Asked::Help) => {
            println!("{}", usage(name, flags));
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Version) => {
            println!("{name} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(reason) => return end(name, EXIT_MISUSE, &format!("{reason}\n{}", usage(name, flags))),
    };
    let config = match Config::load(path.as_deref(), process_env()) {
        Ok(config) => Arc::new(config),
        Err(errors) => return end(name, EXIT_MISUSE, &errors.to_string()),
    };
    if let Err(error) = telemetry::init(&config.log) {
        return end(name, EXIT_FAILED, &error.to_string());
    }
    install_crypto();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(name, EXIT_FAILED, &format!("cannot start: {error}")),
    };
    let outcome = runtime.block_on(Box::pin(supervise(name, config, |service| run(service, given))));
    // Blocking work that outlives the drain time must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(name, EXIT_FAILED, &error.to_string()),
    }
}

/// Chooses the one crypto library for TLS, once per process; a program that
/// does not use [`main_with`] calls it before it connects anywhere.
pub fn install_crypto() {
    // It fails only where one is installed already, which is then this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Bounds for the health door, which answers small requests of machines.
pub fn health_limits() -> http::Limits {
    http::Limits {
        header_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(10),
        connections_max: 64,
        drain: Duration::from_secs(1),
    }
}

async fn supervise<Running>(
    name: &'static str,
    config: Arc<Config>,
    run: impl FnOnce(Service) -> Running,
) -> Result<(), Fatal>
where
    Running: Future<Output = Result<(), Fatal>>,
{
    let service = Service::new(name, config.clone(), shutdown::on_signals()?).with_tracing()?;
    // The health door stays open while the service drains, and says so.
    let door_closes = CancellationToken::new();
    let mut door = None;
    if let Some(address) = &config.health.listen {
        let listener = http::bind("health.listen", address).await?;
        let router = health::router(service.health.clone(), service.metrics.clone());
        door = Some(tokio::spawn(http::serve(
            listener,
            router,
            health_limits(),
            door_closes.clone(),
        )));
    }
    tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "started");
    let outcome = drained(&service, Duration::from_millis(config.shutdown.drain_ms), run).await;
    service.spans.close().await;
    door_closes.cancel();
    if let Some(door) = door {
        let _ = door.await;
    }
    if outcome.is_ok() {
        tracing::info!(service = name, "ended");
    }
    outcome
}

/// Runs the service to its end, which after shutdown must come in time.
async fn drained<Running>(
    service: &Service,
    drain: Duration,
    run: impl FnOnce(Service) -> Running,
) -> Result<(), Fatal>
where
    Running: Future<Output = Result<(), Fatal>>,
{
    let mut running = Box::pin(run(service.clone()));
    tokio::select! {
        outcome = &mut running => return outcome,
        () = service.shutdown.cancelled() => service.health.stopping(),
    }
    tokio::time::timeout(drain, running).await.unwrap_or_else(|_| {
        Err(Fatal::new(format!(
            "did not end within {} ms of being asked (shutdown.drain_ms); unfinished work will be delivered again",
            drain.as_millis()
        )))
    })
}

enum Asked {
    Run(Option<PathBuf>, Vec<&'static str>),
    Help,
    Version,
}

fn arguments(flags: &[&'static str], mut given: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut path = None;
    let mut asked = Vec::new();
    while let Some(argument) = given.next() {
        if let Some(flag) = flags.iter().find(|flag| **flag == argument) {
            asked.push(*flag);
            continue;
        }
        match argument.as_str() {
            "-h" | "--help" => return Ok(Asked::Help),
            "-V" | "--version" => return Ok(Asked::Version),
            "--config" => path = Some(given.next().ok_or("--config needs a file")?),
            other => match other.strip_prefix("--config=") {
                Some(file) => path = Some(file.to_owned()),
                None => return Err(format!("unknown argument {other:?}")),
            },
        }
    }
    Ok(Asked::Run(path.map(PathBuf::from), asked))
}

fn config_variable() -> Option<PathBuf> {
    process_env()
        .find(|(name, value)| name == "FIST_CONFIG" && !value.is_empty())
        .map(|(_, value)| value.into())
}

fn usage(name: &str, flags: &[&str]) -> String {
    let flags: String = flags.iter().map(|flag| format!(" [{flag}]")).collect();
    format!(
        "Usage: {name} [--config FILE]{flags}\n\n\
         Without a file (or FIST_CONFIG) the defaults hold; FIST_<SECTION>_<KEY> variables win over both."
    )
}

fn end(name: &str, code: u8, reason: &str) -> ExitCode {
    eprintln!("{name}: {reason}");
    ExitCode::from(code)
}
