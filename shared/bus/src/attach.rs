//! What every service does with NATS before its work and beside it: connect, check that the topology is
//! there, and report on the connection and the queues.
//!
//! Invariant: a service that cannot reach NATS at its start ends with the reason and the remedy; one that
//! loses it later is not ready, goes on trying, and loses nothing.

use std::{convert::Infallible, time::Duration};

use service::{Fatal, Service, clock, config::Nats};
use tokio::time::Instant;

use crate::{
    Blobs, ConnectError, Connection, Durable, Failure, Log, LogError, NatsLog, Settings, TopologyError,
    topology,
};

/// How long to go on trying for the first connection: a NATS server that starts beside us takes seconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// How long to wait for the streams and consumers: where everything is installed at once, `fist nats init` runs beside us.
const TOPOLOGY_WITHIN: Duration = Duration::from_secs(60);

/// How often the connection and the queues are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How many looks lie between two at the server's clock.
const CLOCK_EVERY_LOOKS: u64 = 15;

/// What a service works with.
#[derive(Clone)]
pub struct Attached {
    /// The connection.
    pub connection: Connection,
    /// The log over it.
    pub log: NatsLog,
    /// Large bodies.
    pub blobs: Blobs,
}

/// Connects a service to its NATS server.
///
/// # Errors
/// [`Fatal`] where the server cannot be reached within a minute or is too old, or where `fist nats init` has not
/// been run within another.
pub async fn attach(service: &Service) -> Result<Attached, Fatal> {
    service.health.expect("nats");
    let settings = settings(&service.config.nats, service.name);
    let connection = Connection::open(&settings).await?;
    for exposure in connection.exposures() {
        tracing::warn!(url = connection.url(), "{exposure}");
    }
    let deadline = Instant::now() + TOPOLOGY_WITHIN;
    let mut is_told = false;
    loop {
        // A server that is busy, or elects its leader, may answer only the next time.
        let error = match open(&connection, service).await {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        if !std::mem::replace(&mut is_told, true) {
            let within_s = TOPOLOGY_WITHIN.as_secs();
            tracing::warn!(%error, within_s, "waiting for NATS to be set up");
        }
        service.health.set("nats", Err(error.to_string()));
        if Instant::now() + LOOK_EVERY >= deadline {
            return Err(error);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = service.shutdown.cancelled() => return Err(error),
        }
    }
}

async fn open(connection: &Connection, service: &Service) -> Result<Attached, Fatal> {
    topology::check(connection).await?;
    let log = NatsLog::open(connection).await?.with_spans(service.spans.clone());
    follow_servers_clock(&log).await?;
    Ok(Attached {
        connection: connection.clone(),
        log,
        blobs: Blobs::open(connection).await?,
    })
}

/// Goes by the server's clock where this machine's is off.
async fn follow_servers_clock(log: &NatsLog) -> Result<(), LogError> {
    let correction_ms = log.clock_correction_ms().await?;
    if clock::correct_by(correction_ms) {
        tracing::warn!(
            correction_ms,
            "this machine's clock and that of the NATS server differ; times are NATS' from here on: set the clocks (NTP)"
        );
    }
    Ok(())
}

/// How the configuration wants NATS to be reached, by a client of this name. Who will not wait a minute for a server
/// that starts puts in another deadline.
pub fn settings(nats: &Nats, client_name: &str) -> Settings {
    let password = nats
        .password
        .as_ref()
        .map(|password| password.expose().to_owned());
    Settings {
        url: nats.url.clone(),
        credentials_file: nats.credentials_file.clone(),
        user_and_password: nats.user.clone().zip(password),
        inbox_prefix: nats.inbox_prefix.clone(),
        tls_ca_file: nats.tls_ca_file.clone(),
        client_name: format!("fist {client_name}"),
        attempt_time: Duration::from_millis(nats.connect_timeout_ms),
        deadline: CONNECT_WITHIN,
    }
}

// All of these texts name the remedy.
impl From<ConnectError> for Fatal {
    fn from(error: ConnectError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<TopologyError> for Fatal {
    fn from(error: TopologyError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<LogError> for Fatal {
    fn from(error: LogError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<Failure> for Fatal {
    fn from(failure: Failure) -> Self {
        Self::new(failure.to_string())
    }
}

/// Reports on the connection and on the queues of `durables`, for as long as it is polled.
pub async fn look_after(service: &Service, log: &NatsLog, durables: &[Durable]) -> Infallible {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = 0_u64;
    loop {
        looks.tick().await;
        look += 1;
        if look.is_multiple_of(CLOCK_EVERY_LOOKS) {
            // A server that is away is asked again; the correction stays as it was.
            let _ = follow_servers_clock(log).await;
        }
        let connection = log.connection();
        let away = || format!("not connected to NATS at {}; trying again", connection.url());
        let state = connection.is_connected().then_some(()).ok_or_else(away);
        service.health.set("nats", state);
        for durable in durables {
            if let Ok(queue) = log.consumer_state(durable).await {
                let oldest = queue.oldest.map(|at| log.now().since(at)).unwrap_or_default();
                service
                    .metrics
                    .queue(durable.name, queue.waiting + queue.in_flight, oldest);
            }
        }
    }
}
