//! `fist up`: every service in this one process, with a nats-server of its own and a SQLite database.
//!
//! Invariants:
//! - One process has the directory at a time, and what a killed one left running is ended first.
//! - The address is printed once everything works, and the nats-server is the last to stop.

mod directory;
mod parts;
mod plan;
mod server;

use std::{net::SocketAddr, time::Duration};

use bus::{Connection, Settings, Sizes, TopologyError, topology};
use service::{
    Service,
    config::{Config, Secret, Secrets},
    telemetry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    args::Up,
    failure::{Code, Failure},
    show,
};
use directory::Directory;
use parts::Parts;
use plan::{Nats, Plan};
use server::NatsServer;

pub use directory::{Running, running};
pub use plan::default_dir;

/// How long to look for a NATS server at the start.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// Runs everything until it is asked to end.
pub async fn run(asked: Up) -> Result<Code, Failure> {
    let plan = Plan::new(&asked, service::config::process_env().collect())?;
    telemetry::init(&plan.config.log)?;
    let commands = commands(&plan.config).await?;
    let directory = Directory::open(&plan.dir)?;
    let shutdown = service::shutdown::on_signals()?;
    end_with_the_terminal(shutdown.clone())?;
    let nats_stops = CancellationToken::new();
    let (config, nats) = match plan.nats {
        Nats::Own => {
            let server = NatsServer::start(directory.path(), &plan.config).await?;
            let config = server.configured(plan.config);
            (config, Some(server))
        }
        Nats::Given => {
            let mut config = plan.config;
            if plan.has_own_database {
                config.database.consumer =
                    format!("{}-{}", topology::STORE_WRITER.name, directory.identity()?);
            }
            (config, None)
        }
    };
    let description = match &nats {
        Some(server) => format!("{} (its own, version {})", config.nats.url, server.version()),
        None => config.nats.url.clone(),
    };
    let supervised = nats.map(|server| tokio::spawn(server.supervise(nats_stops.clone())));
    let found = Found {
        nats: description,
        commands,
    };
    let outcome = Box::pin(with_nats(config, &directory, &found, shutdown)).await;
    nats_stops.cancel();
    if let Some(supervised) = supervised {
        let _ = supervised.await;
    }
    directory.close();
    outcome.map(|()| Code::Succeeded)
}

/// A terminal that is closed is another way to ask for the end, unless this process was told to outlive it
/// (`nohup`). Left alone, the signal would kill us and leave the nats-server behind.
fn end_with_the_terminal(shutdown: CancellationToken) -> Result<(), Failure> {
    if is_hangup_ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Ok(());
    }
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
        .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    tokio::spawn(async move {
        hangup.recv().await;
        tracing::info!("the terminal was closed; finishing what is in hand");
        shutdown.cancel();
    });
    Ok(())
}

/// Whether `SigIgn` of `/proc/self/status` has the bit of signal 1.
fn is_hangup_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// What the banner says of where things are.
struct Found {
    nats: String,
    commands: String,
}

/// Where commands run. A kubeconfig that leads nowhere is told before anything is started; whether the cluster
/// answers is not asked: it may be away for a while, and tasks wait for it.
async fn commands(config: &Config) -> Result<String, Failure> {
    if config.cli.executor == service::config::Executor::Local {
        return Ok("run as processes of this machine".to_owned());
    }
    let cluster = cluster::connect(&config.kubernetes)
        .await
        .map_err(|error| Failure::misuse(format!("commands are to run as pods: {error}")))?;
    let namespace = match &config.cli.pod_namespace {
        Some(namespace) => namespace,
        None => &cluster.namespace,
    };
    Ok(format!(
        "run as pods in the namespace {namespace} of {}",
        cluster.address
    ))
}

/// Sets NATS up, and runs the services on it.
async fn with_nats(
    mut config: Config,
    directory: &Directory,
    found: &Found,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    set_up(&config).await?;
    directory.write_nats(&config)?;
    let listener = parts::listen(&config.http.listen).await?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::failed(format!("no address: {error}")))?;
    config.http.listen = address.to_string();
    let service = Service::new("fist", config.into(), shutdown).with_tracing()?;
    let outcome = run_parts(&service, listener, address, directory, found).await;
    service.spans.close().await;
    outcome
}

async fn run_parts(
    service: &Service,
    listener: TcpListener,
    address: SocketAddr,
    directory: &Directory,
    found: &Found,
) -> Result<(), Failure> {
    let mut parts = Parts::start(service, listener);
    let url = url_of(address);
    tokio::select! {
        ended = parts.first_end() => return parts.end(ended).await,
        () = parts::ready(service, &url) => {}
        () = service.shutdown.cancelled() => return parts.end(None).await,
    }
    directory.write_http(&url)?;
    show::data(&banner(&service.config, directory, &url, found));
    let ended = tokio::select! {
        ended = parts.first_end() => ended,
        () = service.shutdown.cancelled() => None,
    };
    parts.end(ended).await
}

async fn set_up(config: &Config) -> Result<(), Failure> {
    let connection = Connection::open(&bus_settings(config, "up", CONNECT_MAX))
        .await
        .map_err(|error| Failure::failed(error.to_string()))?;
    let outcome = init(&connection, config).await;
    connection.close().await;
    outcome.map_err(|error| Failure::failed(error.to_string()))
}

/// Makes all of the table that is not there, and the place in the log of a database of its own.
pub async fn init(connection: &Connection, config: &Config) -> Result<(), TopologyError> {
    let sizes = sizes(config);
    topology::init(connection, &sizes).await?;
    let durable = topology::store_writer(&config.database.consumer);
    if durable.name == topology::STORE_WRITER.name {
        return Ok(());
    }
    topology::init_store_writer(connection, &durable, &sizes).await
}

/// How to reach the NATS server of this configuration, within `deadline`.
pub fn bus_settings(config: &Config, name: &str, deadline: Duration) -> Settings {
    Settings {
        deadline,
        ..bus::attach::settings(&config.nats, name)
    }
}

/// The sizes of streams that this configuration asks for.
fn sizes(config: &Config) -> Sizes {
    let nats = &config.nats;
    Sizes {
        replicas: u8::try_from(nats.replicas).unwrap_or(u8::MAX),
        log_max_age: Duration::from_secs(nats.log_max_age_hours * 3600),
        log_bytes_max: nats.log_bytes_max,
        alerts_bytes_max: nats.alerts_bytes_max,
        blobs_bytes_max: nats.blobs_bytes_max,
        blobs_max_age: Duration::from_secs(nats.blobs_max_age_hours() * 3600),
        started_max_age: Duration::from_secs(config.ingest.started_days * 24 * 3600),
    }
}

/// Where this machine's own clients reach an address.
fn url_of(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    match (ip.is_unspecified(), address.is_ipv6()) {
        (true, false) => format!("http://127.0.0.1:{port}"),
        (true, true) => format!("http://[::1]:{port}"),
        (false, _) => format!("http://{address}"),
    }
}

/// What a person needs to go on.
fn banner(config: &Config, directory: &Directory, url: &str, found: &Found) -> String {
    let export = match url {
        "http://127.0.0.1:8080" => String::new(),
        url => format!("  for the other commands   export FIST_SERVER={url}\n"),
    };
    let token = if config.http.tokens.is_empty() {
        ""
    } else {
        "  (needs a token: set FIST_TOKEN)"
    };
    format!(
        "fist {} is ready\n\
         \x20 API                      {url}{token}\n\
         \x20 Alertmanager posts to    {url}/webhooks/alertmanager\n\
         \x20 directory                {}\n\
         \x20 NATS                     {}\n\
         \x20 database                 {}\n\
         \x20 commands                 {}\n\
         \x20 agents                   {}\n\
         {export}\
         Next: `fist apply -f FILE` stores a workflow, `fist run -f FILE` runs one, `fist doctor` checks all. Ctrl-C ends.\n",
        env!("CARGO_PKG_VERSION"),
        directory.path().display(),
        found.nats,
        config.database.url_shown(),
        found.commands,
        models(config),
    )
}

/// Which models agents have.
pub fn models(config: &Config) -> String {
    let secrets = match Secrets::from_env(&config.llm) {
        Ok(secrets) => secrets,
        Err(errors) => return errors.to_string(),
    };
    let mut providers: Vec<String> = Vec::new();
    let keys = [
        ("anthropic", &secrets.anthropic_api_key),
        ("openai", &secrets.openai_api_key),
    ];
    for (name, key) in keys {
        if key.as_ref().is_some_and(|key: &Secret| !key.expose().is_empty()) {
            providers.push(name.to_owned());
        }
    }
    if let Some(dir) = &config.llm.scripted_dir {
        providers.push(format!("scripted ({})", dir.display()));
    }
    if providers.is_empty() {
        return "no model yet: set ANTHROPIC_API_KEY or OPENAI_API_KEY before `fist up`".to_owned();
    }
    providers.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nohup_is_noticed() {
        assert!(is_hangup_ignored("Name:\tfist\nSigIgn:\t0000000000001001\n"));
        assert!(!is_hangup_ignored("SigIgn:\t0000000000001000\n") && !is_hangup_ignored(""));
    }

    #[test]
    fn addresses_are_shown_as_this_machine_reaches_them() {
        for (address, url) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("10.0.0.1:80", "http://10.0.0.1:80"),
        ] {
            assert_eq!(url_of(address.parse().unwrap()), url);
        }
    }
}
