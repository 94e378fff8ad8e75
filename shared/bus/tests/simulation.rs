//! The simulated broker under faults: nothing acknowledged is lost, one writer wins, and a seed replays.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{
    Appended, Consume, Failure, Handler, Log, LogMessage, StreamId, Written, consume,
    sim::{Faults, SimBroker, SimLog},
    topology,
};
use protocol::{ExecutionId, Namespace, SourceName, Subject, TaskType, TimerId, subjects};
use tokio_util::sync::CancellationToken;

const FACTS: u32 = 40;

/// Answers every fact with one append to its execution's lane, as the scheduler does.
struct Answering {
    log: SimLog,
    handled: Arc<Mutex<Vec<String>>>,
}

impl Handler for Answering {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let line = format!("{} {} {deliveries}", self.log.now(), message.subject);
        self.handled.lock().unwrap().push(line);
        let subject = Subject::parse(&message.subject).unwrap();
        let (namespace, execution) = subject.execution().unwrap();
        let lane = subjects::lane_filter(namespace, execution);
        let known = self.log.read_execution(namespace, execution).await?;
        if known.iter().any(|known| known.subject.starts_with("fist.cmd.")) {
            return Ok(());
        }
        let command = Subject::Command(TaskType::cli(), namespace.clone(), execution);
        match self.log.append(&command, message.payload.to_vec(), 0).await? {
            Appended::At(_) => Ok(()),
            Appended::Conflict => match self.log.last(&lane).await? {
                Some(_) => Ok(()),
                None => Err(Failure::retry("nobody has it yet")),
            },
        }
    }
}

fn execution(n: u32) -> ExecutionId {
    ExecutionId::derive(&["simulation", &n.to_string()])
}

/// What happened in one run: the handlers' transcript, and the log.
type Run = (Vec<String>, Vec<String>);

fn run(seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let broker = SimBroker::new(seed, Faults::rough());
        let handled = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let start = |log: SimLog| {
            let options = Consume {
                concurrency: 4,
                poison_after: 1000,
                drain: Duration::from_secs(30),
            };
            let handler = Arc::new(Answering {
                log: log.clone(),
                handled: Arc::clone(&handled),
            });
            tokio::spawn(consume_scheduler(log, options, handler, stop.clone()))
        };
        let doomed = broker.client();
        let doomed_task = start(doomed.clone());
        let survivor = start(broker.client());
        let writer = broker.client();
        for n in 0..FACTS {
            let fact = Subject::CancelRequest(Namespace::default(), execution(n), 1);
            // Until it is acknowledged, as an intake would.
            while writer
                .write_fact(&fact, n.to_string().into_bytes())
                .await
                .is_err()
            {}
            assert_eq!(retried(&writer, &fact).await, Written::Already);
            if n == FACTS / 2 {
                doomed.crash();
            }
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3600);
        while lane_counts(&broker).len() < FACTS as usize {
            assert!(
                tokio::time::Instant::now() < deadline,
                "stuck: {:?}",
                lane_counts(&broker)
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(lane_counts(&broker).values().all(|count| *count == 1));
        doomed_task.abort();
        stop.cancel();
        survivor.await.unwrap().unwrap();
        let log = broker.messages(StreamId::Log);
        let handled = handled.lock().unwrap().clone();
        (
            handled,
            log.iter().map(|message| format!("{message:?}")).collect(),
        )
    })
}

async fn consume_scheduler(
    log: SimLog,
    options: Consume,
    handler: Arc<Answering>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    loop {
        // A service that ends with an error is started again.
        match consume(
            log.clone(),
            &topology::SCHEDULER,
            options.clone(),
            Arc::clone(&handler),
            stop.clone(),
        )
        .await
        {
            Ok(()) => return Ok(()),
            Err(Failure::Retry { after, .. }) => tokio::time::sleep(after).await,
            Err(other) => return Err(other),
        }
    }
}

async fn retried(log: &SimLog, fact: &Subject) -> Written {
    loop {
        if let Ok(written) = log.write_fact(fact, b"other".to_vec()).await {
            return written;
        }
    }
}

fn lane_counts(broker: &SimBroker) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in broker.messages(StreamId::Log) {
        if message.subject.starts_with("fist.cmd.") {
            *counts.entry(message.subject).or_insert(0) += 1;
        }
    }
    counts
}

#[test]
fn every_fact_is_answered_once_whatever_fails() {
    let mut redelivered = 0;
    for seed in 0..100 {
        eprintln!("seed {seed}");
        let (handled, _) = run(seed);
        redelivered += handled.len() - FACTS as usize;
    }
    // Faults that never strike would prove nothing.
    assert!(redelivered > 100, "{redelivered}");
}

#[test]
fn a_seed_replays() {
    for seed in [1, 42, 4711] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}

#[tokio::test(start_paused = true)]
async fn hours_of_timers_pass_at_once() {
    let broker = SimBroker::new(7, Faults::default());
    let log = broker.client();
    let at = log.now().after(Duration::from_secs(72 * 3600));
    let timer = TimerId::new("late").unwrap();
    log.arm_timer(&Namespace::default(), execution(1), &timer, at)
        .await
        .unwrap();
    let mut inbox = log.inbox(&topology::TIMERS).await.unwrap();
    let delivery = bus::Inbox::next(&mut inbox).await.unwrap();
    let late = log.now().since(at);
    assert!(log.now() >= at && late < Duration::from_secs(1), "{late:?}");
    delivery.ack().await;
}

#[tokio::test(start_paused = true)]
async fn the_dead_do_nothing() {
    let broker = SimBroker::new(7, Faults::default());
    let (dead, alive) = (broker.client(), broker.client());
    let source = SourceName::new("web").unwrap();
    alive.publish_intake(&source, b"{}".to_vec(), None).await.unwrap();
    let mut inbox = dead.inbox(&topology::INGEST).await.unwrap();
    let delivery = bus::Inbox::next(&mut inbox).await.unwrap();
    dead.crash();
    delivery.ack().await;
    let write = dead.publish_intake(&source, b"{}".to_vec(), None);
    assert!(
        tokio::time::timeout(Duration::from_secs(60), write)
            .await
            .is_err()
    );
    let mut other = alive.inbox(&topology::INGEST).await.unwrap();
    let again = bus::Inbox::next(&mut other).await.unwrap();
    assert_eq!((again.message.seq, again.deliveries), (1, 2));
    assert_eq!(broker.messages(StreamId::Alerts).len(), 1);
    again.ack().await;
    assert!(broker.messages(StreamId::Alerts).is_empty());
}
