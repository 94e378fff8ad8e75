//! The services of `fist up`, side by side in this process.
//!
//! Invariant: none runs on without the others: the first that ends ends all, and its reason is the process's.

use std::{future::Future, pin::Pin, time::Duration};

use service::{Fatal, Service};
use tokio::{net::TcpListener, task::JoinSet};

use crate::failure::Failure;

/// How often to look whether everything works.
const READY_PAUSE: Duration = Duration::from_millis(20);
/// After this, what is missing is said.
const READY_SLOW: Duration = Duration::from_secs(10);
/// How long one question whether the door is open may take.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// A service's `run`.
type Run = fn(Service) -> Running;
type Running = Pin<Box<dyn Future<Output = Result<(), Fatal>> + Send>>;

/// All services, in the order in which they start. Ingest is the last: it opens the door.
const PARTS: [(&str, Run); 4] = [
    ("store-writer", |service| Box::pin(store_writer::run(service))),
    ("scheduler", |service| Box::pin(scheduler::run(service))),
    ("cli-runner", |service| Box::pin(cli_runner::run(service))),
    ("agent-runner", |service| Box::pin(agent_runner::run(service))),
];

/// How the first part ended.
type Ended = Option<(&'static str, Result<(), Fatal>)>;

/// Services at work.
#[derive(Debug)]
pub struct Parts {
    service: Service,
    running: JoinSet<(&'static str, Result<(), Fatal>)>,
}

/// Opens the port of the HTTP door.
pub async fn listen(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "choose another with --http; port 0 takes a free one",
            _ => "choose another with --http",
        };
        Failure::failed(format!("cannot listen at {address}: {error}; {remedy}"))
    })
}

impl Parts {
    /// Starts all of them.
    pub fn start(service: &Service, listener: TcpListener) -> Self {
        let mut parts = Self {
            service: service.clone(),
            running: JoinSet::new(),
        };
        for (name, run) in PARTS {
            parts.spawn(name, run(service.part(name)));
        }
        let door = service.part("ingest");
        parts.spawn("ingest", Box::pin(ingest::run_at(door, listener)));
        parts
    }

    fn spawn(&mut self, name: &'static str, running: Running) {
        // Not ready before each has reported.
        self.service.part(name).health.expect("nats");
        self.running
            .spawn(async move { (name, tokio::spawn(running).await.unwrap_or_else(bug)) });
    }

    /// Waits for the first that ends.
    pub async fn first_end(&mut self) -> Ended {
        // Whatever fails here is none of the parts: they are joined within.
        self.running.join_next().await.and_then(Result::ok)
    }

    /// Ends all, within the time for it.
    pub async fn end(mut self, first: Ended) -> Result<(), Failure> {
        let asked = self.service.shutdown.is_cancelled();
        self.service.health.stopping();
        self.service.shutdown.cancel();
        let mut failed = first.and_then(|(name, outcome)| match (outcome, asked) {
            (Err(error), _) => Some(format!("{name}: {error}")),
            (Ok(()), false) => Some(format!("{name} ended, and nobody asked it to")),
            (Ok(()), true) => None,
        });
        let drain_ms = self.service.config.shutdown.drain_ms;
        let rest = async {
            while let Some((name, outcome)) = self.first_end().await {
                if let Err(error) = outcome {
                    failed.get_or_insert(format!("{name}: {error}"));
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(drain_ms), rest)
            .await
            .is_err()
        {
            failed.get_or_insert(format!(
                "not everything ended within {drain_ms} ms of being asked (shutdown.drain_ms); what was unfinished goes on at the next start"
            ));
        }
        failed.map_or(Ok(()), |reason| Err(Failure::failed(reason)))
    }
}

fn bug(error: tokio::task::JoinError) -> Result<(), Fatal> {
    Err(Fatal::new(format!("it has a bug: {error}")))
}

/// Returns once every service has reported that it works, and the door answers.
pub async fn ready(service: &Service, url: &str) {
    let began = tokio::time::Instant::now();
    let mut said = false;
    let http = reqwest::Client::builder().no_proxy().timeout(PROBE_MAX).build();
    loop {
        match service.health.readiness() {
            Ok(()) => {
                let answer = match &http {
                    Ok(http) => http.get(format!("{url}/healthz")).send().await,
                    Err(_) => return,
                };
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return;
                }
            }
            Err(failing) if began.elapsed() > READY_SLOW && !said => {
                said = true;
                tracing::warn!(?failing, "still waiting for these");
            }
            Err(_) => {}
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}
