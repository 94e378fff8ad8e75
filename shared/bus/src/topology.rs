//! Every stream, durable consumer and bucket: one table, made by one idempotent [`init`].
//!
//! Invariants:
//! - Services never create, change or delete any of these; they [`check`] that they are there.
//! - `init` never deletes a stream; it names what is incompatible.
//! - Consumers have no `max_deliver` and no `backoff`: poison is counted by us, and the engine alone retries.

use std::{
    collections::BTreeSet,
    iter,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    kv, object_store,
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use protocol::{TaskType, subjects};

pub use crate::setup::{TopologyError, check, init, init_store_writer};

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
    /// Progress for whoever is watching; lossy.
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
/// KV bucket of what agents use of their budgets, by namespace and day.
pub const BUDGETS_BUCKET: &str = "fist-budgets";

/// A durable consumer.
#[derive(Clone, Debug)]
pub struct Durable {
    /// Its name, also in dead letters.
    pub name: &'static str,
    /// What it reads.
    pub stream: StreamId,
    /// Which subjects; none: all.
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
    // With the subjects of the stream named, the server looks through a block's subjects for each message: 1,500 a second.
    filters: Vec::new,
    ack_wait: Duration::from_secs(60),
    in_flight_max: 10_000,
};

/// The consumer called `name`, which remembers how far a database of its own has come in the log. All
/// store-writers of one database share one; two databases need two, or each would get half.
pub fn store_writer(name: &str) -> Durable {
    static OTHERS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if name == STORE_WRITER.name {
        return STORE_WRITER;
    }
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    let name = match others.get(name) {
        Some(known) => known,
        // Kept for ever, which is short: a process has the few names of its configuration.
        None => {
            let kept: &'static str = name.to_owned().leak();
            others.insert(kept);
            kept
        }
    };
    Durable { name, ..STORE_WRITER }
}

/// Alerts as they came.
pub const INGEST: Durable = Durable {
    name: "ingest",
    stream: StreamId::Alerts,
    filters: || vec![subjects::ALL_INTAKE.to_owned()],
    ack_wait: ACK_WAIT,
    in_flight_max: 1024,
};

/// What the lanes say, for the status of Workflow objects. Where nobody watches any, nobody reads it, which costs
/// nothing: the log keeps its messages by age.
pub const WORKFLOW_STATUS: Durable = Durable {
    name: "workflow-status",
    stream: StreamId::Log,
    filters: || vec![subjects::ALL_COMMANDS.to_owned()],
    ack_wait: ACK_WAIT,
    in_flight_max: 1024,
};

/// Every durable consumer there is.
pub const DURABLES: [Durable; 7] = [
    SCHEDULER,
    TIMERS,
    CLI,
    AGENT,
    STORE_WRITER,
    INGEST,
    WORKFLOW_STATUS,
];

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
    /// How long large bodies are kept; what is put again meanwhile lives for half of it anew. More than twice as long
    /// as the log may name one.
    pub blobs_max_age: Duration,
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
            blobs_max_age: Duration::from_secs(528 * 3600),
            started_max_age: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

impl Sizes {
    /// Small ones, for tests and machines with little disk: the server reserves what a stream may take.
    pub fn small() -> Self {
        Self {
            log_bytes_max: 512 << 20,
            alerts_bytes_max: 64 << 20,
            blobs_bytes_max: 256 << 20,
            ..Self::default()
        }
    }
}

/// How long live progress is kept for whoever comes late.
const LIVE_MAX_AGE: Duration = Duration::from_secs(15 * 60);
const LIVE_BYTES_MAX: i64 = 32 << 20;
const DEAD_LETTERS_MAX_AGE: Duration = Duration::from_secs(90 * 24 * 3600);
const DEAD_LETTERS_BYTES_MAX: i64 = 256 << 20;
const WORKFLOWS_BYTES_MAX: i64 = 256 << 20;
const STARTED_BYTES_MAX: i64 = 512 << 20;
const TRIALS_BYTES_MAX: i64 = 16 << 20;
/// A message that was not delivered for this long is not suspected any more.
const TRIALS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

const BUDGETS_BYTES_MAX: i64 = 128 << 20;
/// A day counts turns for as long as their tasks may come again; executions last 72 h at most.
const BUDGETS_MAX_AGE: Duration = Duration::from_secs(4 * 24 * 3600);

/// What the server publishes about messages that our consumers will not get again.
const ADVISORIES: [&str; 2] = [
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.FIST_*.>",
    "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.FIST_*.>",
];

/// The table of streams: [`StreamId`] by [`StreamId`].
pub(crate) fn stream_config(id: StreamId, sizes: &Sizes) -> stream::Config {
    let base = stream::Config {
        name: id.name().to_owned(),
        num_replicas: usize::from(sizes.replicas),
        allow_direct: true,
        ..stream::Config::default()
    };
    match id {
        StreamId::Log => stream::Config {
            description: Some(
                "Punching Fist: facts, commands, turns and dispositions; every execution's truth".to_owned(),
            ),
            subjects: subjects::LOG_SUBJECTS.map(str::to_owned).to_vec(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_age: sizes.log_max_age,
            max_bytes: signed(sizes.log_bytes_max),
            // Rule 1 holds as long as the first message exists.
            deny_delete: true,
            deny_purge: true,
            ..base
        },
        StreamId::Alerts => stream::Config {
            description: Some("Punching Fist: alerts as they came, until they are worked on".to_owned()),
            subjects: vec![subjects::ALL_INTAKE.to_owned()],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_bytes: signed(sizes.alerts_bytes_max),
            ..base
        },
        StreamId::Timers => stream::Config {
            description: Some("Punching Fist: timers, armed (set) and fired (fire)".to_owned()),
            subjects: subjects::TIMER_SUBJECTS.map(str::to_owned).to_vec(),
            // A fired timer goes when its fact is written; an armed one stays until it fires. No age limit: a
            // schedule beyond it would never fire. No limit of bytes: the oldest would be dropped unfired.
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::Old,
            // Arming a timer again takes the place of the former.
            max_messages_per_subject: 1,
            allow_message_schedules: true,
            allow_rollup: true,
            ..base
        },
        StreamId::DeadLetters => stream::Config {
            description: Some("Punching Fist: what could not be processed, with the reason".to_owned()),
            subjects: iter::once(subjects::ALL_DEAD)
                .chain(ADVISORIES)
                .map(str::to_owned)
                .collect(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_age: DEAD_LETTERS_MAX_AGE,
            max_bytes: DEAD_LETTERS_BYTES_MAX,
            ..base
        },
        StreamId::Live => stream::Config {
            description: Some("Punching Fist: progress for whoever is watching; lossy".to_owned()),
            subjects: vec![subjects::ALL_LIVE.to_owned()],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            // On disk, though it is lossy: a stream in memory is gone, with its configuration, after a restart of
            // a single server, and who makes it anew then?
            storage: StorageType::File,
            max_age: LIVE_MAX_AGE,
            max_bytes: LIVE_BYTES_MAX,
            num_replicas: 1,
            // Nobody waits for its acknowledgements.
            no_ack: true,
            ..base
        },
    }
}

/// The table of KV buckets.
pub(crate) fn bucket_configs(sizes: &Sizes) -> Vec<kv::Config> {
    let bucket = |name: &str, description: &str, max_age: Duration, max_bytes: i64| kv::Config {
        bucket: name.to_owned(),
        description: description.to_owned(),
        history: 1,
        max_age,
        max_bytes,
        num_replicas: usize::from(sizes.replicas),
        ..kv::Config::default()
    };
    vec![
        bucket(
            WORKFLOWS_BUCKET,
            "Punching Fist: workflow definitions",
            Duration::ZERO,
            WORKFLOWS_BYTES_MAX,
        ),
        bucket(
            STARTED_BUCKET,
            "Punching Fist: what was started, longer than the log remembers",
            sizes.started_max_age,
            STARTED_BYTES_MAX,
        ),
        bucket(
            TRIALS_BUCKET,
            "Punching Fist: handlers that never came back, by message",
            TRIALS_MAX_AGE,
            TRIALS_BYTES_MAX,
        ),
        bucket(
            BUDGETS_BUCKET,
            "Punching Fist: what agents use of their budgets, by namespace and day",
            BUDGETS_MAX_AGE,
            BUDGETS_BYTES_MAX,
        ),
    ]
}

/// The one object store.
pub(crate) fn blobs_config(sizes: &Sizes) -> object_store::Config {
    object_store::Config {
        bucket: BLOBS_BUCKET.to_owned(),
        description: Some("Punching Fist: bodies over 64 KiB, by their sha256".to_owned()),
        max_age: sizes.blobs_max_age,
        max_bytes: signed(sizes.blobs_bytes_max),
        num_replicas: usize::from(sizes.replicas),
        ..object_store::Config::default()
    }
}

pub(crate) fn consumer_config(durable: &Durable) -> pull::Config {
    pull::Config {
        durable_name: Some(durable.name.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: durable.ack_wait,
        max_deliver: -1,
        max_ack_pending: i64::from(durable.in_flight_max),
        filter_subjects: (durable.filters)(),
        ..pull::Config::default()
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
