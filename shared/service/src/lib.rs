//! What every service's `main.rs` needs, and no business of any one service:
//! configuration, logs, metrics, health, HTTP listening, the end of a process.
//!
//! Invariants: this crate knows neither NATS nor workflows; a service sees the
//! outside only through its [`Service`], so that several can run in one
//! process, and in tests.
#![warn(missing_docs)]

pub mod backoff;
pub mod clock;
pub mod config;
mod fatal;
pub mod health;
pub mod http;
mod main_with;
pub mod metrics;
pub mod shutdown;
pub mod spans;
pub mod telemetry;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use fatal::Fatal;
pub use health::Health;
pub use main_with::{health_limits, install_crypto, main_with, main_with_flags};
pub use metrics::Metrics;
pub use spans::Spans;

/// JSON is made of many small pieces: the system's allocator took a fifth of the time of all services.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a service is given to run with.
#[derive(Clone, Debug)]
pub struct Service {
    /// The service's own name, such as `scheduler`.
    pub name: &'static str,
    /// The whole configuration.
    pub config: Arc<Config>,
    /// Cancelled when the process is to end; the service then finishes or
    /// hands back what it has in hand, and returns.
    pub shutdown: CancellationToken,
    /// Where the service reports whether it can work.
    pub health: Health,
    /// Where the service counts.
    pub metrics: Metrics,
    /// Where the service says what took how long. Off until [`Service::with_tracing`].
    pub spans: Spans,
}

impl Service {
    /// A service of its own, with the process's metrics.
    pub fn new(name: &'static str, config: Arc<Config>, shutdown: CancellationToken) -> Self {
        Self {
            name,
            config,
            shutdown,
            health: Health::new(),
            metrics: Metrics::global(),
            spans: Spans::default(),
        }
    }

    /// The same with spans sent where the configuration says; to be closed at the end ([`Spans::close`]).
    ///
    /// # Errors
    /// As [`Spans::start`].
    pub fn with_tracing(self) -> Result<Self, Fatal> {
        let spans = Spans::start(&self.config.tracing, self.name, &self.metrics)?;
        Ok(Self { spans, ..self })
    }

    /// One of several services in this process: the same configuration and
    /// end, its own name, and its own names among the health checks.
    pub fn part(&self, name: &'static str) -> Self {
        Self {
            name,
            health: self.health.part(name),
            spans: self.spans.part(name),
            ..self.clone()
        }
    }
}
