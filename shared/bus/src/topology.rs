//! Every stream, durable consumer and bucket: one table, made by one idempotent [`init`].
//!
//! Invariants:
//! - Services never create, change or delete any of these; they [`check`] that they are there.
//! - `init` never deletes, and never changes what would lose messages; it names what is incompatible.
//! - Consumers have no `max_deliver` and no `backoff`: poison is counted by us, and the engine alone retries.

use std::time::Duration;

use protocol::{TaskType, subjects};

/// A stream of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// Every execution's truth.
    Log,
    /// What sources sent and ingest has not worked on yet.
    Alerts,
    /// Timers, armed and fired.
    Timers,
    /// What could not be processed.
    DeadLetters,
    /// Progress for whoever is watching; in memory.
    Live,
}

impl StreamId {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Log,
        Self::Alerts,
        Self::Timers,
        Self::DeadLetters,
        Self::Live,
    ];

    /// Its name in NATS.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "FIST_LOG",
            Self::Alerts => "FIST_ALERTS",
            Self::Timers => "FIST_TIMERS",
            Self::DeadLetters => "FIST_DLQ",
            Self::Live => "FIST_LIVE",
        }
    }
}

/// Object store of bodies over 64 KiB.
pub const BLOBS_BUCKET: &str = "fist-blobs";
/// KV bucket of workflow definitions.
pub const WORKFLOWS_BUCKET: &str = "fist-workflows";
/// KV bucket of what was started, longer than the log remembers.
pub const STARTED_BUCKET: &str = "fist-started";
/// KV bucket that counts the handlers which never came back.
pub const TRIALS_BUCKET: &str = "fist-trials";

/// A durable consumer.
#[derive(Clone, Debug)]
pub struct Durable {
    /// Its name, also in dead letters.
    pub name: &'static str,
    /// What it reads.
    pub stream: StreamId,
    /// Which subjects.
    pub filters: fn() -> Vec<String>,
    /// After how long without any word a message goes to another.
    pub ack_wait: Duration,
    /// Messages on loan at one time, over all processes.
    pub in_flight_max: u32,
}

/// A task whose runner died goes to another after this; a runner that lives says so every third of it.
const ACK_WAIT: Duration = Duration::from_secs(15);

/// The decision loop: all facts.
pub const SCHEDULER: Durable = Durable {
    name: "scheduler",
    stream: StreamId::Log,
    filters: || vec![subjects::ALL_FACTS.to_owned()],
    ack_wait: ACK_WAIT,
    in_flight_max: 4096,
};

/// The scheduler's timers that fired.
pub const TIMERS: Durable = Durable {
    name: "timers",
    stream: StreamId::Timers,
    filters: || vec![subjects::ALL_FIRED.to_owned()],
    ack_wait: ACK_WAIT,
    in_flight_max: 1024,
};

/// Commands for cli-runner.
pub const CLI: Durable = Durable {
    name: "cli",
    stream: StreamId::Log,
    filters: || vec![subjects::queue_filter(&TaskType::cli())],
    ack_wait: ACK_WAIT,
    in_flight_max: 4096,
};

/// Investigations for agent-runner.
pub const AGENT: Durable = Durable {
    name: "agent",
    stream: StreamId::Log,
    filters: || vec![subjects::queue_filter(&TaskType::agent())],
    ack_wait: ACK_WAIT,
    in_flight_max: 4096,
};

/// The whole log, for the database. Waits longer: a batch is one transaction, and a database may be slow.
pub const STORE_WRITER: Durable = Durable {
    name: "store-writer",
    stream: StreamId::Log,
    filters: || subjects::LOG_SUBJECTS.map(str::to_owned).to_vec(),
    ack_wait: Duration::from_secs(60),
    in_flight_max: 10_000,
};

/// Alerts as they came.
pub const INGEST: Durable = Durable {
    name: "ingest",
    stream: StreamId::Alerts,
    filters: || vec![subjects::ALL_INTAKE.to_owned()],
    ack_wait: ACK_WAIT,
    in_flight_max: 1024,
};

/// Every durable consumer there is.
pub const DURABLES: [Durable; 6] = [SCHEDULER, TIMERS, CLI, AGENT, STORE_WRITER, INGEST];

/// What an operator chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Copies of every stream: 1 in development, 3 in production.
    pub replicas: u8,
    /// How long messages stay in the log. Facts are written once for as long as they are there, so this is
    /// more than the longest an execution may last (72 h).
    pub log_max_age: Duration,
    /// Bytes of the log.
    pub log_bytes_max: u64,
    /// Bytes of alerts that wait.
    pub alerts_bytes_max: u64,
    /// Bytes of large bodies.
    pub blobs_bytes_max: u64,
    /// How long a start is remembered after it was last seen.
    pub started_max_age: Duration,
}

impl Default for Sizes {
    /// What the configuration has as its defaults, for tests.
    fn default() -> Self {
        Self {
            replicas: 1,
            log_max_age: Duration::from_secs(168 * 3600),
            log_bytes_max: 8 << 30,
            alerts_bytes_max: 1 << 30,
            blobs_bytes_max: 8 << 30,
            started_max_age: Duration::from_secs(90 * 24 * 3600),
        }
    }
}
