//! A NATS server with its streams, and services beside it in this process.
//!
//! Invariant: every wait has a deadline; what was started is ended.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bus::{
    Connection, Failure, Handler, Log as _, LogMessage, NatsLog, Sizes,
    runner::{Came, Tasks},
    testing::TestNats,
    topology,
};
use protocol::{Body, Outcome};
use serde_json::json;
use service::{Config, Fatal, Health, Metrics, Service, config::Secret};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When the server's files reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// As the server does by itself: every two minutes.
    Default,
    /// Before each acknowledgement.
    Always,
}

impl Sync {
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default sync",
            Self::Always => "sync always",
        }
    }
}

/// A server with nothing in its streams.
pub struct Nats {
    pub server: TestNats,
    pub connection: Connection,
    pub log: NatsLog,
}

impl Nats {
    pub async fn start(sync: Sync) -> Self {
        let config = match sync {
            Sync::Default => "jetstream { store_dir: $NATS_STORE_DIR }\n",
            Sync::Always => "jetstream { store_dir: $NATS_STORE_DIR, sync_interval: always }\n",
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config).unwrap();
        let server = TestNats::start_with(Some(file.path().to_owned()), Vec::new()).await;
        let connection = server.connect().await;
        // The server refuses what the disk could not hold; ten million messages find room here.
        let sizes = Sizes {
            log_bytes_max: 4 << 30,
            alerts_bytes_max: 512 << 20,
            ..Sizes::small()
        };
        topology::init(&connection, &sizes).await.unwrap();
        let log = NatsLog::open(&connection).await.unwrap();
        Self {
            server,
            connection,
            log,
        }
    }

    /// How many messages the log and the timers ever took.
    pub async fn counts(&self) -> [u64; 2] {
        let mut counts = [0, 0];
        for (count, stream) in counts.iter_mut().zip([bus::StreamId::Log, bus::StreamId::Timers]) {
            *count = self.log.stream_state(stream).await.unwrap().last_seq;
        }
        counts
    }

    /// Waits until nothing waits at this consumer any more.
    pub async fn settled(&self, durable: &topology::Durable) {
        until("a consumer is done", async || {
            let state = self.log.consumer_state(durable).await.unwrap();
            state.waiting + state.in_flight == 0
        })
        .await;
    }
}

/// One running service.
pub struct Running {
    service: Service,
    task: JoinHandle<Result<(), Fatal>>,
}

/// A service's configuration: this server, and what `change` makes of the rest.
pub fn config(nats: &Nats, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.nats.url = nats.server.url();
    config.shutdown.drain_ms = 5000;
    change(&mut config);
    config
}

impl Running {
    /// Starts a service by its own `run`, and waits until it says that it is ready.
    pub async fn start<R>(name: &'static str, config: Config, run: impl FnOnce(Service) -> R) -> Self
    where
        R: Future<Output = Result<(), Fatal>> + Send + 'static,
    {
        let service = Service {
            name,
            config: Arc::new(config),
            shutdown: CancellationToken::new(),
            health: Health::new(),
            metrics: Metrics::new(),
            spans: service::Spans::default(),
        };
        let task = tokio::spawn(Box::pin(run(service.clone())));
        until(name, async || {
            assert!(!task.is_finished(), "{name} has ended");
            service.health.readiness().is_ok()
        })
        .await;
        Self { service, task }
    }

    pub async fn scheduler(nats: &Nats) -> Self {
        Self::start("scheduler", config(nats, |_| {}), scheduler::run).await
    }

    pub async fn cli_runner(nats: &Nats) -> Self {
        Self::start("cli-runner", config(nats, |_| {}), cli_runner::run).await
    }

    /// With the scripts of a directory.
    pub async fn agent_runner(nats: &Nats, scripts: &Path) -> Self {
        let with_scripts = |config: &mut Config| {
            config.llm.scripted_dir = Some(scripts.to_owned());
            // As many as a provider would bear; the default of 4 would measure only itself.
            config.agent.concurrency = 64;
        };
        Self::start("agent-runner", config(nats, with_scripts), agent_runner::run).await
    }

    pub async fn store_writer(nats: &Nats, database: &str) -> Self {
        let to_database = |config: &mut Config| config.database.url = Secret::new(database);
        Self::start("store-writer", config(nats, to_database), store_writer::run).await
    }

    /// What every runner does with a task, with nothing to run: steps of type `cli` that take no process.
    pub async fn in_process_runner(nats: &Nats) -> Self {
        Self::start("in-process-runner", config(nats, |_| {}), in_process).await
    }

    pub async fn stop(self) {
        self.service.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// Answers each task at once.
struct AtOnce(Tasks<NatsLog>);

/// Tasks in hand at one time.
const IN_PROCESS_CONCURRENCY: usize = 256;

async fn in_process(service: Service) -> Result<(), Fatal> {
    service.health.expect("nats");
    let attached = bus::attach(&service).await?;
    service.health.set("nats", Ok(()));
    let tasks = Tasks::new(&service, &attached, topology::CLI);
    let options = bus::Consume::from_config(&service.config, IN_PROCESS_CONCURRENCY);
    let handler = Arc::new(AtOnce(tasks.clone()));
    bus::runner::perform(&tasks, options, handler).await
}

impl Handler for AtOnce {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let Some((task, _in_hand)) = self.0.take(&message, deliveries).await? else {
            return Ok(());
        };
        let came = Came {
            outcome: Outcome::Succeeded,
            output: Some(Body::Inline(json!({"exit_code": 0, "stdout": "", "stderr": ""}))),
            started_at: self.0.log.now(),
        };
        self.0.write_done(&task, came).await.map(|_| ())
    }
}

/// A number that no other part of this run has.
pub fn unique() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
