//! The bare protocol: the messages that the log needs for a flow, with the same subjects, headers and sizes, by the
//! NATS client alone. No engine, no JSON, none of our crates in its path.
//!
//! For a flow of three tasks: a start fact (write-once), per step a timer, then a command (compare-and-set on the lane),
//! then a done fact (write-once), and an end (compare-and-set). Facts and commands come by the same durable consumers,
//! each message is acknowledged after what follows from it is durable.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_nats::{
    HeaderMap, header,
    jetstream::{Context, Message, consumer::PullConsumer},
};
use bus::topology::{CLI, Durable, SCHEDULER, STORE_WRITER};
use bytes::Bytes;
use futures_util::StreamExt as _;
use protocol::ExecutionId;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    flows::{Starter, filler},
    world::Nats,
};

/// What the messages of one flow are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Steps that a runner gets; none where the scheduler settles all by itself.
    pub tasks: usize,
    /// Turns that a runner writes before its done fact.
    pub turns: usize,
    pub start_bytes: usize,
    pub command_bytes: usize,
    pub turn_bytes: usize,
    pub done_bytes: usize,
    pub end_bytes: usize,
    /// Whether somebody reads and acknowledges the whole log, as store-writer does.
    pub is_read: bool,
}

/// Messages in hand at one time, of each consumer.
const CONCURRENCY: usize = 256;

struct Party {
    js: Context,
    shape: Shape,
    lanes: Mutex<HashMap<String, Lane>>,
}

/// How many commands an execution has, and the sequence of the last. Locked until an append is acknowledged: a runner
/// can finish before that.
type Lane = Arc<tokio::sync::Mutex<(usize, u64)>>;

/// The protocol at work.
pub struct Bare {
    party: Arc<Party>,
    tasks: JoinSet<()>,
}

impl Bare {
    pub async fn start(nats: &Nats, shape: Shape) -> Self {
        let party = Arc::new(Party {
            js: context(nats).await,
            shape,
            lanes: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let consumer = consumer(&party.js, &SCHEDULER).await;
        tasks.spawn(each(consumer, Arc::clone(&party), |party, message| {
            party.decide(message)
        }));
        if shape.tasks > 0 {
            let js = context(nats).await;
            let consumer = self::consumer(&js, &CLI).await;
            let runner = Arc::new(Party {
                js,
                shape,
                lanes: Mutex::default(),
            });
            tasks.spawn(each(consumer, runner, |party, message| party.run(message)));
        }
        if shape.is_read {
            let js = context(nats).await;
            let consumer = self::consumer(&js, &STORE_WRITER).await;
            tasks.spawn(read(consumer));
        }
        Self { party, tasks }
    }

    /// Who starts flows, with a connection of its own.
    pub async fn starter(&self, nats: &Nats) -> Arc<BareStarter> {
        Arc::new(BareStarter {
            js: context(nats).await,
            body: filler(self.party.shape.start_bytes),
        })
    }

    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// A connection of its own, as each service has one.
pub async fn context(nats: &Nats) -> Context {
    async_nats::jetstream::new(async_nats::connect(nats.server.url()).await.unwrap())
}

async fn consumer(js: &Context, durable: &Durable) -> PullConsumer {
    js.get_consumer_from_stream(durable.name, durable.stream.name())
        .await
        .unwrap()
}

/// Handles the messages of a consumer side by side.
async fn each<F>(consumer: PullConsumer, party: Arc<Party>, handle: fn(Arc<Party>, Message) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(CONCURRENCY));
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(CONCURRENCY)
        .messages()
        .await
        .unwrap();
    let mut in_hand = JoinSet::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let permit = Arc::clone(&free).acquire_owned().await.unwrap();
        let party = Arc::clone(&party);
        in_hand.spawn(async move {
            handle(party, message).await;
            drop(permit);
        });
        while in_hand.try_join_next().is_some() {}
    }
}

async fn read(consumer: PullConsumer) {
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(CONCURRENCY)
        .messages()
        .await
        .unwrap();
    while let Some(message) = messages.next().await {
        message.unwrap().ack().await.unwrap();
    }
}

fn write_once() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers
}

async fn publish(js: &Context, subject: String, headers: HeaderMap, body: Bytes) -> u64 {
    let sent = js.publish_with_headers(subject, headers, body).await.unwrap();
    sent.await.unwrap().sequence
}

impl Party {
    /// One fact: the next command, or the end.
    async fn decide(self: Arc<Self>, message: Message) {
        let execution = message.subject.split('.').nth(3).unwrap().to_owned();
        let lane = Arc::clone(self.lanes.lock().unwrap().entry(execution.clone()).or_default());
        let mut lane = lane.lock().await;
        let (given, last) = *lane;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
            last.to_string().as_str(),
        );
        headers.insert(
            "Nats-Expected-Last-Subject-Sequence-Subject",
            format!("fist.cmd.*.default.{execution}").as_str(),
        );
        if given < self.shape.tasks {
            self.arm(&execution, given).await;
            let subject = format!("fist.cmd.cli.default.{execution}");
            let seq = publish(&self.js, subject, headers, filler(self.shape.command_bytes)).await;
            *lane = (given + 1, seq);
        } else {
            let subject = format!("fist.cmd.note.default.{execution}");
            publish(&self.js, subject, headers, filler(self.shape.end_bytes)).await;
            self.lanes.lock().unwrap().remove(&execution);
        }
        message.ack().await.unwrap();
    }

    async fn arm(&self, execution: &str, step: usize) {
        let at = service::clock::now().after(std::time::Duration::from_secs(600));
        let timer = format!("default.{execution}.step-{step}-1-{}", at.as_millis());
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SCHEDULE, format!("@at {at}").as_str());
        headers.insert(
            header::NATS_SCHEDULE_TARGET,
            format!("fist.timer.fire.{timer}").as_str(),
        );
        publish(&self.js, format!("fist.timer.set.{timer}"), headers, Bytes::new()).await;
    }

    /// One command: its turns, and its done fact. A message's sequence tells one step from another.
    async fn run(self: Arc<Self>, message: Message) {
        let execution = message.subject.split('.').nth(4).unwrap();
        let step = message.info().unwrap().stream_sequence;
        for turn in 0..self.shape.turns {
            let subject = format!("fist.turn.default.{execution}.step-{step}.1.{turn}");
            publish(&self.js, subject, write_once(), filler(self.shape.turn_bytes)).await;
        }
        let subject = format!("fist.fact.default.{execution}.step-{step}.1.done");
        publish(&self.js, subject, write_once(), filler(self.shape.done_bytes)).await;
        message.ack().await.unwrap();
    }
}

/// Starts flows of the bare protocol.
pub struct BareStarter {
    js: Context,
    body: Bytes,
}

impl Starter for BareStarter {
    async fn start(&self, execution: ExecutionId) {
        let subject = format!("fist.fact.default.{execution}.start");
        publish(&self.js, subject, write_once(), self.body.clone()).await;
    }
}
