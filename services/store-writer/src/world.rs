//! A log on a real server and a database, for tests.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bus::{Appended, Connection, Log, NatsLog, testing::TestNats, topology::STORE_WRITER};
use protocol::{ExecutionId, Subject, views::ExecutionView};
use service::{Config, Fatal, Health, Metrics, Service};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    projector::Projector,
    reading::{Message, Reading, read},
    record::{Record, Touched},
    samples::{History, Stored},
    store::{ExecutionScan, Limits, Store, from_url},
};

/// Whatever is waited for comes within this: a message that a killed server had on its way comes again after
/// the durable's `ack_wait`, a minute.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) struct World {
    pub nats: TestNats,
    pub connection: Connection,
    pub log: NatsLog,
    directory: tempfile::TempDir,
}

/// A projector that runs.
pub(crate) struct Running {
    pub service: Service,
    task: JoinHandle<Result<(), Fatal>>,
}

impl Running {
    /// Ends it as a shutdown does.
    pub(crate) async fn end(self) {
        self.service.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) fn service(batch_max: usize) -> Service {
    let mut config = Config::default();
    config.database.batch_max = batch_max;
    Service {
        name: "store-writer",
        config: Arc::new(config),
        shutdown: CancellationToken::new(),
        health: Health::new(),
        metrics: Metrics::new(),
        spans: service::Spans::default(),
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let (nats, connection) = TestNats::ready().await;
        let log = NatsLog::open(&connection).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self {
            nats,
            connection,
            log,
            directory,
        }
    }

    pub(crate) fn sqlite_url(&self, name: &str) -> String {
        format!("sqlite://{}", self.directory.path().join(name).display())
    }

    /// A database file of its own, with tables.
    pub(crate) async fn sqlite(&self, name: &str) -> Arc<dyn Store> {
        let store = open(&self.sqlite_url(name));
        store.migrate().await.unwrap();
        store
    }

    /// Writes `messages` into the log as their writers do; sequences and times become the log's own.
    pub(crate) async fn write(&self, messages: &[Stored]) {
        let mut lanes: BTreeMap<ExecutionId, u64> = BTreeMap::new();
        for message in messages {
            match &message.subject {
                Subject::Command(_, namespace, id)
                | Subject::Note(namespace, id)
                | Subject::Cancel(namespace, id) => {
                    let known = lanes.get(id).copied();
                    let lane = protocol::subjects::lane_filter(namespace, *id);
                    let last = match known {
                        Some(last) => last,
                        None => self
                            .log
                            .last(&lane)
                            .await
                            .unwrap()
                            .map_or(0, |message| message.seq),
                    };
                    match self
                        .log
                        .append(&message.subject, message.payload.clone(), last)
                        .await
                        .unwrap()
                    {
                        Appended::At(seq) => lanes.insert(*id, seq),
                        Appended::Conflict => panic!("nobody else appends"),
                    };
                }
                fact => {
                    self.log.write_fact(fact, message.payload.clone()).await.unwrap();
                }
            }
        }
    }

    /// Projects into `store` until it is ended.
    pub(crate) fn project(&self, store: &Arc<dyn Store>, batch_max: usize) -> Running {
        let service = service(batch_max);
        let projector = Projector {
            log: self.log.clone(),
            store: Arc::clone(store),
            service: service.clone(),
        };
        Running {
            service,
            task: tokio::spawn(projector.run()),
        }
    }

    /// Waits until the durable has nothing left.
    pub(crate) async fn drained(&self) {
        eventually("the durable is drained", || async {
            let state = self.log.consumer_state(&STORE_WRITER).await.ok()?;
            (state.waiting == 0 && state.in_flight == 0).then_some(())
        })
        .await;
    }

    /// The views that a fold of the whole log gives.
    pub(crate) async fn folded(&self) -> BTreeMap<ExecutionId, ExecutionView> {
        let mut records: BTreeMap<ExecutionId, Record> = BTreeMap::new();
        let mut next = 1;
        loop {
            let page = self.log.read_from(next, 10_000).await.unwrap();
            let Some(last) = page.last() else { break };
            next = last.seq + 1;
            for message in &page {
                let message = Message {
                    subject: &message.subject,
                    seq: message.seq,
                    at: message.at,
                    payload: &message.payload,
                };
                if let Ok(Reading::Change(change)) = read(message) {
                    let record = records.entry(change.execution).or_default();
                    record.apply(change, &mut Touched::default());
                }
            }
        }
        records
            .into_iter()
            .filter_map(|(id, record)| Some((id, record.view(id)?)))
            .collect()
    }

    /// The views that `store` has must be those of the log, in the lists too.
    pub(crate) async fn assert_equals_log(&self, store: &dyn Store) {
        let expected = self.folded().await;
        assert!(!expected.is_empty());
        for (id, view) in &expected {
            let record = store
                .record(*id)
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("{id} has no row"));
            assert_eq!(record.view(*id).as_ref(), Some(view));
        }
        let scan = ExecutionScan {
            rows_max: 10_000,
            ..ExecutionScan::default()
        };
        let listed = store.executions(&scan).await.unwrap();
        let listed: BTreeMap<_, _> = listed.into_iter().map(|summary| (summary.id, summary)).collect();
        assert_eq!(
            listed,
            expected
                .into_iter()
                .map(|(id, view)| (id, view.summary))
                .collect()
        );
    }
}

pub(crate) fn open(url: &str) -> Arc<dyn Store> {
    let limits = Limits {
        acquire_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    from_url(url, limits).unwrap()
}

/// `count` executions of all kinds, their messages dealt out in turn as a busy log has them.
pub(crate) fn mixed(count: u64) -> Vec<Stored> {
    let histories = (0..count).map(|n| {
        let key = n.to_string();
        match n % 3 {
            0 => History::success("web", &key, 1),
            1 => History::timed_out("web", &key, 1),
            _ => History::cancelled("web", &key, 1),
        }
    });
    let mut queues: Vec<_> = histories.map(|history| history.messages.into_iter()).collect();
    let mut messages = Vec::new();
    while !queues.is_empty() {
        queues.retain_mut(|queue| match queue.next() {
            Some(message) => {
                messages.push(message);
                true
            }
            None => false,
        });
    }
    messages
}

/// Waits until `look` sees it.
pub(crate) async fn eventually<T, Looking>(what: &str, mut look: impl FnMut() -> Looking) -> T
where
    Looking: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl World {
    pub(crate) async fn log_dead_letters(&self) -> Vec<protocol::DeadLetter> {
        self.log
            .dead_letters(None, 100)
            .await
            .unwrap()
            .into_iter()
            .map(|stored| stored.letter)
            .collect()
    }
}
