//! One table of cases, run against the simulated broker and against a real nats-server, so that the simulator
//! stays honest.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bus::{
    Appended, Connection, Consume, Delivery, Durable, Failure, Follow, Handler, Inbox, Log, LogError,
    LogMessage, NatsLog, Position, Sizes, StreamId, Written, consume,
    sim::{Faults, SimBroker, SimLog},
    testing::TestNats,
    topology::{self, CLI, DURABLES, INGEST, SCHEDULER, STORE_WRITER, TIMERS},
};
use futures_util::StreamExt;
use protocol::{
    Attempt, DeadLetter, ExecutionId, Namespace, SourceName, StepName, Subject, TaskType, TimerId, subjects,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

type Case<L> = (&'static str, fn(L) -> Pin<Box<dyn Future<Output = ()> + Send>>);

/// The table. Every case begins with empty streams of 1 MiB, and consumers whose `ack_wait` is [`ACK_WAIT`].
fn cases<L: Log>() -> Vec<Case<L>> {
    vec![
        ("a fact is written once", |log| Box::pin(fact_once(log))),
        ("of facts that race one is new", |log| Box::pin(facts_race(log))),
        ("an append is a compare-and-set over the whole lane", |log| {
            Box::pin(append_is_cas(log))
        }),
        ("of appends that race one wins", |log| Box::pin(appends_race(log))),
        ("only lanes are appended to", |log| {
            Box::pin(append_wants_a_lane(log))
        }),
        ("an execution is read whole and alone", |log| {
            Box::pin(execution_is_read(log))
        }),
        ("turns are read in the order of the log", |log| {
            Box::pin(turns_are_read(log))
        }),
        ("the last message is found by wildcard", |log| {
            Box::pin(last_by_wildcard(log))
        }),
        ("one look tells whether any subject is held", |log| {
            Box::pin(any_is_held(log))
        }),
        ("the log is read in pages", |log| Box::pin(log_in_pages(log))),
        ("a follower gets history, then what comes", |log| {
            Box::pin(follower(log))
        }),
        ("live progress is followed", |log| Box::pin(live(log))),
        ("a consumer gets what is on its filters", |log| {
            Box::pin(filters(log))
        }),
        ("the store's consumer gets everything", |log| {
            Box::pin(everything(log))
        }),
        ("an ack is for good", |log| Box::pin(ack(log))),
        ("without a word a message comes again", |log| {
            Box::pin(redelivery(log))
        }),
        ("progress postpones redelivery", |log| Box::pin(progress(log))),
        ("a nak is redelivered after its delay", |log| Box::pin(nak(log))),
        ("a term is for good", |log| Box::pin(term(log))),
        ("an ack that comes late counts", |log| Box::pin(late_ack(log))),
        ("two ends share a consumer", |log| Box::pin(two_ends(log))),
        ("a timer fires in time and once", |log| Box::pin(timer(log))),
        ("a timer in the past fires at once", |log| {
            Box::pin(past_timer(log))
        }),
        ("arming a timer again moves it", |log| Box::pin(moved_timer(log))),
        ("intake is numbered and goes when it is acked", |log| {
            Box::pin(intake(log))
        }),
        ("a full log refuses what is new", |log| Box::pin(full_log(log))),
        ("a full intake refuses what is new", |log| {
            Box::pin(full_intake(log))
        }),
        ("a message too large is refused", |log| Box::pin(too_large(log))),
        ("dead letters are kept once and listed newest first", |log| {
            Box::pin(dead_letters(log))
        }),
        ("consumers tell how far they are", |log| {
            Box::pin(consumer_state(log))
        }),
        ("consume: success is acked", |log| Box::pin(consume_success(log))),
        ("consume: retry comes again later", |log| {
            Box::pin(consume_retry(log))
        }),
        ("consume: reject becomes a dead letter", |log| {
            Box::pin(consume_reject(log))
        }),
        ("consume: fatal stops and hands over", |log| {
            Box::pin(consume_fatal(log))
        }),
        ("consume: a long handler keeps its message", |log| {
            Box::pin(consume_long(log))
        }),
        ("consume: poison becomes a dead letter", |log| {
            Box::pin(consume_poison(log))
        }),
        ("consume: retries are no poison", |log| {
            Box::pin(consume_no_poison(log))
        }),
        ("consume: concurrency is reached and kept", |log| {
            Box::pin(consume_concurrency(log))
        }),
        ("consume: the drain finishes what is in hand", |log| {
            Box::pin(consume_drain(log))
        }),
        ("consume: after the drain messages are handed back", |log| {
            Box::pin(consume_hands_back(log))
        }),
    ]
}

const ACK_WAIT: Duration = Duration::from_millis(1500);
/// For what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what must not happen.
const QUIET: Duration = Duration::from_millis(400);
/// The server's timers are not exact to the millisecond.
const EARLY: Duration = Duration::from_millis(20);

fn durable(of: &Durable) -> Durable {
    Durable {
        ack_wait: ACK_WAIT,
        ..of.clone()
    }
}

#[test]
fn the_simulated_broker_conforms() {
    for (name, case) in cases::<SimLog>() {
        for seed in 0..3 {
            eprintln!("simulated, seed {seed}: {name}");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let broker = SimBroker::new(seed, Faults::default());
                for stream in [StreamId::Log, StreamId::Alerts] {
                    broker.set_bytes_max(stream, Some(1 << 20));
                }
                for durable in DURABLES {
                    broker.set_ack_wait(durable.name, ACK_WAIT);
                }
                case(broker.client()).await;
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_server_conforms() {
    // Most of a case's time is waiting; a few at a time keep two cores busy and no more.
    let places = Arc::new(Semaphore::new(6));
    let running: Vec<_> = cases::<NatsLog>()
        .into_iter()
        .map(|(name, case)| {
            let places = Arc::clone(&places);
            (
                name,
                tokio::spawn(async move {
                    let _place = places.acquire_owned().await.unwrap();
                    let server = TestNats::start().await;
                    let connection = server.connect().await;
                    set_up_small(&connection).await;
                    case(NatsLog::open(&connection).await.unwrap()).await;
                }),
            )
        })
        .collect();
    let mut failed = Vec::new();
    for (name, case) in running {
        if case.await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed on the real server: {failed:#?}");
}

async fn set_up_small(connection: &Connection) {
    let sizes = Sizes {
        log_bytes_max: 1 << 20,
        alerts_bytes_max: 1 << 20,
        ..Sizes::small()
    };
    topology::init(connection, &sizes).await.unwrap();
    let context = async_nats::jetstream::new(connection.client().clone());
    for durable in DURABLES {
        let stream = context.get_stream(durable.stream.name()).await.unwrap();
        let mut consumer = stream
            .get_consumer::<async_nats::jetstream::consumer::pull::Config>(durable.name)
            .await
            .unwrap();
        let info = consumer.info().await.unwrap();
        let config = async_nats::jetstream::consumer::pull::Config {
            durable_name: Some(durable.name.to_owned()),
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: info.config.max_ack_pending,
            filter_subjects: (durable.filters)(),
            ..Default::default()
        };
        stream.update_consumer(config).await.unwrap();
    }
}

// What the cases are made of.

fn namespace() -> Namespace {
    Namespace::default()
}

fn execution(n: u32) -> ExecutionId {
    ExecutionId::derive(&["conformance", &n.to_string()])
}

fn fact(of: u32, n: u32) -> Subject {
    Subject::CancelRequest(namespace(), execution(of), n)
}

fn command(of: u32) -> Subject {
    Subject::Command(TaskType::cli(), namespace(), execution(of))
}

fn step() -> StepName {
    StepName::new("check").unwrap()
}

async fn written(log: &impl Log, subject: &Subject) -> u64 {
    match log.write_fact(subject, b"{}".to_vec()).await.unwrap() {
        Written::New(seq) => seq,
        Written::Already => panic!("{subject} was there"),
    }
}

async fn appended(log: &impl Log, subject: &Subject, expected: u64) -> u64 {
    match log.append(subject, b"{}".to_vec(), expected).await.unwrap() {
        Appended::At(seq) => seq,
        Appended::Conflict => panic!("{subject} is not at {expected}"),
    }
}

async fn next(inbox: &mut impl Inbox) -> Delivery {
    timeout(PATIENCE, inbox.next())
        .await
        .expect("a delivery")
        .unwrap()
}

async fn quiet(inbox: &mut impl Inbox, time: Duration) {
    let batch = inbox.next_batch(10, time).await.unwrap();
    assert!(batch.is_empty(), "unexpected: {batch:?}");
}

async fn followed(follow: &mut Follow) -> LogMessage {
    timeout(PATIENCE, follow.next())
        .await
        .expect("a message")
        .unwrap()
        .unwrap()
}

/// Waits until `is_so` holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"));
}

// Facts and lanes.

async fn fact_once(log: impl Log) {
    assert_eq!(
        log.write_fact(&fact(1, 1), b"first".to_vec()).await.unwrap(),
        Written::New(1)
    );
    assert_eq!(
        log.write_fact(&fact(1, 1), b"second".to_vec()).await.unwrap(),
        Written::Already
    );
    assert_eq!(
        log.write_fact(&fact(1, 2), b"other".to_vec()).await.unwrap(),
        Written::New(2)
    );
    let messages = log.read_execution(&namespace(), execution(1)).await.unwrap();
    assert_eq!(&messages[0].payload[..], b"first");
    assert_eq!(messages.len(), 2);
}

async fn facts_race(log: impl Log) {
    let racers: Vec<_> = (0..8)
        .map(|n: u8| {
            let log = log.clone();
            tokio::spawn(async move { log.write_fact(&fact(1, 1), vec![n]).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for racer in racers {
        new += usize::from(matches!(racer.await.unwrap(), Written::New(_)));
    }
    assert_eq!(new, 1);
}

async fn append_is_cas(log: impl Log) {
    let conflict = |subject, expected| {
        let log = log.clone();
        async move {
            let appended = log.append(&subject, b"{}".to_vec(), expected).await.unwrap();
            assert_eq!(appended, Appended::Conflict, "{subject} {expected}");
        }
    };
    written(&log, &fact(1, 1)).await;
    conflict(command(1), 1).await;
    let first = appended(&log, &command(1), 0).await;
    conflict(command(1), 0).await;
    // One lane, whatever the subject within it.
    conflict(Subject::Note(namespace(), execution(1)), 0).await;
    conflict(Subject::Cancel(namespace(), execution(1)), 0).await;
    conflict(Subject::Command(TaskType::agent(), namespace(), execution(1)), 0).await;
    let second = appended(&log, &Subject::Note(namespace(), execution(1)), first).await;
    conflict(command(1), first).await;
    // Facts and other executions do not count.
    written(&log, &fact(1, 2)).await;
    appended(&log, &command(2), 0).await;
    appended(&log, &Subject::Cancel(namespace(), execution(1)), second).await;
}

async fn appends_race(log: impl Log) {
    let racers: Vec<_> = (0..8)
        .map(|n: u32| {
            let log = log.clone();
            let subject = if n.is_multiple_of(2) {
                command(1)
            } else {
                Subject::Note(namespace(), execution(1))
            };
            tokio::spawn(async move { log.append(&subject, Vec::new(), 0).await.unwrap() })
        })
        .collect();
    let mut won = 0;
    for racer in racers {
        won += usize::from(matches!(racer.await.unwrap(), Appended::At(_)));
    }
    assert_eq!(won, 1);
    assert_eq!(
        log.read_execution(&namespace(), execution(1))
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn append_wants_a_lane(log: impl Log) {
    let error = log.append(&fact(1, 1), Vec::new(), 0).await.unwrap_err();
    assert!(matches!(error, LogError::Refused { .. }), "{error}");
    assert!(
        log.read_execution(&namespace(), execution(1))
            .await
            .unwrap()
            .is_empty()
    );
}

// Reading.

async fn execution_is_read(log: impl Log) {
    let other = Namespace::new("other").unwrap();
    let mut expected = Vec::new();
    let mut last = 0;
    for n in 1..=20 {
        expected.push(written(&log, &fact(1, n)).await);
        written(&log, &fact(2, n)).await;
        written(&log, &Subject::CancelRequest(other.clone(), execution(1), n)).await;
        written(
            &log,
            &Subject::Turn(namespace(), execution(1), step(), Attempt::FIRST, n),
        )
        .await;
        let lane = match n % 3 {
            0 => Subject::Note(namespace(), execution(1)),
            1 => command(1),
            _ => Subject::Command(TaskType::agent(), namespace(), execution(1)),
        };
        last = appended(&log, &lane, last).await;
        expected.push(last);
    }
    let messages = log.read_execution(&namespace(), execution(1)).await.unwrap();
    assert_eq!(
        messages.iter().map(|message| message.seq).collect::<Vec<_>>(),
        expected
    );
    let age = log.now().since(messages[0].at);
    assert!(age < PATIENCE, "{age:?}");
    // Facts and messages of the lane by turns.
    for known in 0..=expected.len() {
        let after = known.checked_sub(1).map_or(0, |known| expected[known]);
        let is_lane = known.is_multiple_of(2);
        let rest = log
            .read_execution_after(&namespace(), execution(1), after)
            .await
            .unwrap();
        let rest: Vec<u64> = rest.iter().map(|message| message.seq).collect();
        let from = match is_lane {
            true => known,
            // The lane does not go on from there.
            false => 0,
        };
        assert_eq!(rest, expected[from..], "behind {after}");
    }
    assert!(
        log.read_execution(&namespace(), execution(3))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn turns_are_read(log: impl Log) {
    let second = Attempt::try_from(2).unwrap();
    for k in 0..12 {
        written(
            &log,
            &Subject::Turn(namespace(), execution(1), step(), Attempt::FIRST, k),
        )
        .await;
        written(&log, &Subject::Turn(namespace(), execution(1), step(), second, k)).await;
    }
    let turns = log
        .read_turns(&namespace(), execution(1), &step(), Attempt::FIRST)
        .await
        .unwrap();
    let subjects: Vec<_> = turns.into_iter().map(|turn| turn.subject).collect();
    let expected: Vec<_> = (0..12)
        .map(|k| Subject::Turn(namespace(), execution(1), step(), Attempt::FIRST, k).to_string())
        .collect();
    assert_eq!(subjects, expected);
}

async fn last_by_wildcard(log: impl Log) {
    assert_eq!(
        log.last(&subjects::start_anywhere(execution(1))).await.unwrap(),
        None
    );
    let start = Subject::Start(Namespace::new("somewhere").unwrap(), execution(1));
    written(&log, &start).await;
    let found = log
        .last(&subjects::start_anywhere(execution(1)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.subject, found.seq), (start.to_string(), 1));
    let first = appended(&log, &command(1), 0).await;
    let second = appended(&log, &Subject::Note(namespace(), execution(1)), first).await;
    let found = log
        .last(&subjects::lane_filter(&namespace(), execution(1)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.seq, second);
}

/// One look over several subjects.
async fn any_is_held(log: impl Log) {
    let note = Subject::Note(namespace(), execution(1));
    let subjects = [&note, &command(1), &command(2)].map(ToString::to_string);
    assert!(!log.holds_any(&subjects).await.unwrap());
    let first = appended(&log, &command(1), 0).await;
    assert!(log.holds_any(&subjects).await.unwrap());
    appended(&log, &note, first).await;
    assert!(log.holds_any(&subjects).await.unwrap(), "more than one");
    assert!(!log.holds_any(&subjects[2..]).await.unwrap());
}

async fn log_in_pages(log: impl Log) {
    for n in 1..=25 {
        written(&log, &fact(n, 1)).await;
    }
    let mut first = 1;
    let mut seqs = Vec::new();
    loop {
        let page = log.read_from(first, 10).await.unwrap();
        assert!(page.len() <= 10);
        let Some(last) = page.last() else { break };
        first = last.seq + 1;
        seqs.extend(page.iter().map(|message| message.seq));
    }
    assert_eq!(seqs, (1..=25).collect::<Vec<_>>());
    assert_eq!(log.read_from(7, 1).await.unwrap()[0].seq, 7);
    assert!(log.read_from(1, 0).await.unwrap().is_empty());
}

async fn follower(log: impl Log) {
    let filters = || {
        vec![
            subjects::facts_filter(&namespace(), execution(1)),
            subjects::lane_filter(&namespace(), execution(1)),
        ]
    };
    written(&log, &fact(1, 1)).await;
    written(&log, &fact(2, 1)).await;
    let third = appended(&log, &command(1), 0).await;
    let mut all = log.follow(filters(), Position::All).await.unwrap();
    let mut later = log.follow(filters(), Position::Seq(2)).await.unwrap();
    let mut new = log.follow(filters(), Position::New).await.unwrap();
    let fourth = written(&log, &fact(1, 2)).await;
    written(&log, &fact(2, 2)).await;
    let sixth = appended(&log, &command(1), third).await;
    for (follow, expected) in [
        (&mut all, vec![1, third, fourth, sixth]),
        (&mut later, vec![third, fourth, sixth]),
        (&mut new, vec![fourth, sixth]),
    ] {
        for seq in expected {
            assert_eq!(followed(follow).await.seq, seq);
        }
    }
    assert!(timeout(QUIET, all.next()).await.is_err());
}

async fn live(log: impl Log) {
    let subject = Subject::Live(namespace(), execution(1), step(), Attempt::FIRST);
    let filters = || vec![subjects::live_filter(&namespace(), execution(1))];
    let mut new = log.follow_live(filters(), Position::New).await.unwrap();
    log.publish_live(&subject, b"one".to_vec()).await;
    let message = followed(&mut new).await;
    assert_eq!(
        (message.subject, &message.payload[..]),
        (subject.to_string(), &b"one"[..])
    );
    let mut all = log.follow_live(filters(), Position::All).await.unwrap();
    assert_eq!(&followed(&mut all).await.payload[..], b"one");
}

// Consumers.

async fn filters(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let first = appended(&log, &Subject::Note(namespace(), execution(1)), 0).await;
    let second = appended(&log, &command(1), first).await;
    let third = appended(
        &log,
        &Subject::Command(TaskType::agent(), namespace(), execution(1)),
        second,
    )
    .await;
    appended(&log, &Subject::Cancel(namespace(), execution(1)), third).await;
    let mut inbox = log.inbox(&durable(&CLI)).await.unwrap();
    let delivery = next(&mut inbox).await;
    assert_eq!(delivery.message.seq, second);
    assert_eq!(delivery.message.subject, command(1).to_string());
    delivery.ack().await;
    quiet(&mut inbox, QUIET).await;
}

async fn everything(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    appended(&log, &command(1), 0).await;
    written(
        &log,
        &Subject::Turn(namespace(), execution(1), step(), Attempt::FIRST, 0),
    )
    .await;
    let source = SourceName::new("web").unwrap();
    let id = protocol::AlertId::new("0a").unwrap();
    written(&log, &Subject::Disposition(source, id, "7".to_owned())).await;
    let mut inbox = log.inbox(&durable(&STORE_WRITER)).await.unwrap();
    let mut seqs = Vec::new();
    while seqs.len() < 4 {
        for delivery in inbox.next_batch(100, PATIENCE).await.unwrap() {
            seqs.push(delivery.message.seq);
            delivery.ack().await;
        }
    }
    assert_eq!(seqs, [1, 2, 3, 4]);
}

async fn ack(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let delivery = next(&mut inbox).await;
    assert_eq!((delivery.message.seq, delivery.deliveries), (1, 1));
    delivery.ack().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
}

async fn redelivery(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let _first = next(&mut inbox).await;
    let lent_at = log.now();
    let second = next(&mut inbox).await;
    assert_eq!((second.message.seq, second.deliveries), (1, 2));
    let rested = log.now().since(lent_at);
    assert!(rested >= ACK_WAIT - EARLY - QUIET, "{rested:?}");
    second.ack().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
}

async fn progress(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let delivery = next(&mut inbox).await;
    for _ in 0..5 {
        quiet(&mut inbox, ACK_WAIT / 2).await;
        delivery.progress().await;
    }
    delivery.ack().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
}

async fn nak(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let after = Duration::from_millis(700);
    for deliveries in 1..=3 {
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.deliveries, deliveries);
        let given_back_at = log.now();
        delivery.nak(after).await;
        if deliveries == 3 {
            break;
        }
        quiet(&mut inbox, after - QUIET).await;
        assert!(log.now().since(given_back_at) < ACK_WAIT);
    }
}

async fn term(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    next(&mut inbox).await.term().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
    // Of the server's own account of it, nothing shows.
    assert!(log.dead_letters(None, 10).await.unwrap().is_empty());
}

async fn late_ack(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let mut inbox = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let first = next(&mut inbox).await;
    let second = next(&mut inbox).await;
    assert_eq!(second.deliveries, 2);
    first.ack().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
    drop(second);
}

async fn two_ends(log: impl Log) {
    let mut one = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    let mut two = log.inbox(&durable(&SCHEDULER)).await.unwrap();
    for n in 1..=20 {
        written(&log, &fact(n, 1)).await;
    }
    let mut seqs = Vec::new();
    while seqs.len() < 20 {
        for inbox in [&mut one, &mut two] {
            for delivery in inbox.next_batch(3, QUIET).await.unwrap() {
                assert_eq!(delivery.deliveries, 1);
                seqs.push(delivery.message.seq);
                delivery.ack().await;
            }
        }
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
    one.close().await;
    // What one end asked for does not keep messages from the other.
    written(&log, &fact(21, 1)).await;
    let delivery = next(&mut two).await;
    assert_eq!((delivery.message.seq, delivery.deliveries), (21, 1));
}

// Timers.

fn timer_id() -> TimerId {
    TimerId::new("check-1").unwrap()
}

fn fired(of: u32) -> String {
    Subject::TimerFire(namespace(), execution(of), timer_id()).to_string()
}

async fn timer(log: impl Log) {
    let mut inbox = log.inbox(&durable(&TIMERS)).await.unwrap();
    let at = log.now().after(Duration::from_millis(1500));
    log.arm_timer(&namespace(), execution(1), &timer_id(), at)
        .await
        .unwrap();
    let delivery = next(&mut inbox).await;
    assert_eq!(delivery.message.subject, fired(1));
    // A server goes by whole seconds here and there, and never by more than one.
    assert!(log.now() >= at, "{} is before {at}", log.now());
    delivery.ack().await;
    quiet(&mut inbox, ACK_WAIT * 2).await;
    eventually("an empty stream", || async {
        log.stream_state(StreamId::Timers).await.unwrap().messages == 0
    })
    .await;
}

async fn past_timer(log: impl Log) {
    let mut inbox = log.inbox(&durable(&TIMERS)).await.unwrap();
    let past = protocol::Timestamp::from_millis(log.now().as_millis() - 3_600_000);
    let armed_at = log.now();
    log.arm_timer(&namespace(), execution(1), &timer_id(), past)
        .await
        .unwrap();
    let delivery = next(&mut inbox).await;
    assert_eq!(delivery.message.subject, fired(1));
    assert!(log.now().since(armed_at) < Duration::from_secs(5));
    delivery.ack().await;
}

async fn moved_timer(log: impl Log) {
    let mut inbox = log.inbox(&durable(&TIMERS)).await.unwrap();
    let (soon, later) = (Duration::from_millis(1000), Duration::from_millis(2500));
    let began = log.now();
    log.arm_timer(&namespace(), execution(1), &timer_id(), began.after(soon))
        .await
        .unwrap();
    log.arm_timer(&namespace(), execution(1), &timer_id(), began.after(later))
        .await
        .unwrap();
    log.arm_timer(&namespace(), execution(2), &timer_id(), began.after(soon))
        .await
        .unwrap();
    for expected in [2, 1] {
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.message.subject, fired(expected));
        delivery.ack().await;
    }
    assert!(log.now() >= began.after(later));
    quiet(&mut inbox, ACK_WAIT).await;
}

// Intake and limits.

async fn intake(log: impl Log) {
    let source = SourceName::new("web-1").unwrap();
    assert_eq!(
        log.publish_intake(&source, b"one".to_vec(), None).await.unwrap(),
        1
    );
    assert_eq!(
        log.publish_intake(&source, b"one".to_vec(), None).await.unwrap(),
        2
    );
    let mut inbox = log.inbox(&durable(&INGEST)).await.unwrap();
    for seq in [1, 2] {
        let delivery = next(&mut inbox).await;
        assert_eq!(delivery.message.seq, seq);
        assert_eq!(
            delivery.message.subject,
            Subject::Intake(source.clone()).to_string()
        );
        delivery.ack().await;
    }
    eventually("an empty stream", || async {
        log.stream_state(StreamId::Alerts).await.unwrap().messages == 0
    })
    .await;
    assert_eq!(log.stream_state(StreamId::Alerts).await.unwrap().last_seq, 2);
    assert_eq!(
        log.publish_intake(&source, b"two".to_vec(), None).await.unwrap(),
        3
    );
}

const MEBIBYTE: usize = 1 << 20;

async fn full_log(log: impl Log) {
    assert!(!log.stream_state(StreamId::Log).await.unwrap().is_filled_to(80));
    let mut n = 0;
    let error = loop {
        n += 1;
        assert!(n < 20, "nothing is refused");
        match log.write_fact(&fact(n, 1), vec![b'x'; MEBIBYTE / 10]).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, LogError::Full { stream, .. } if stream == "FIST_LOG"),
        "{error:?}"
    );
    let state = log.stream_state(StreamId::Log).await.unwrap();
    assert!(state.is_filled_to(80) && !state.is_filled_to(101), "{state:?}");
    assert_eq!(state.messages, u64::from(n) - 1);
    let error = log
        .append(&command(1), vec![b'x'; MEBIBYTE / 5], 0)
        .await
        .unwrap_err();
    assert!(matches!(error, LogError::Full { .. }), "{error:?}");
    assert!(matches!(Failure::from(error), Failure::Retry { .. }));
    // What is there stays, and other streams go on.
    assert!(
        log.read_execution(&namespace(), execution(1))
            .await
            .unwrap()
            .len()
            == 1
    );
    log.publish_intake(&SourceName::new("web").unwrap(), b"{}".to_vec(), None)
        .await
        .unwrap();
}

async fn full_intake(log: impl Log) {
    let source = SourceName::new("web").unwrap();
    let mut n = 0;
    let error = loop {
        n += 1;
        assert!(n < 20, "nothing is refused");
        match log.publish_intake(&source, vec![b'x'; MEBIBYTE / 10], None).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, LogError::Full { stream, .. } if stream == "FIST_ALERTS"),
        "{error:?}"
    );
    let mut inbox = log.inbox(&durable(&INGEST)).await.unwrap();
    next(&mut inbox).await.ack().await;
    next(&mut inbox).await.ack().await;
    eventually("room again", || async {
        log.publish_intake(&source, vec![b'x'; MEBIBYTE / 10], None)
            .await
            .is_ok()
    })
    .await;
}

async fn too_large(log: impl Log) {
    let error = log
        .write_fact(&fact(1, 1), vec![b'x'; 2 * MEBIBYTE])
        .await
        .unwrap_err();
    assert!(
        matches!(error, LogError::TooLarge { bytes, bytes_max, .. } if bytes == 2 * MEBIBYTE && bytes_max == MEBIBYTE),
        "{error:?}"
    );
    assert!(matches!(Failure::from(error), Failure::Reject { .. }));
}

// Dead letters and states.

fn letter(seq: u64) -> DeadLetter {
    DeadLetter {
        stream: "FIST_LOG".to_owned(),
        seq,
        subject: fact(1, 1).to_string(),
        written_at: protocol::Timestamp::from_millis(5),
        consumer: "scheduler".to_owned(),
        reason: "no sense in it".to_owned(),
        deliveries: 2,
        payload: "{}".to_owned(),
        payload_bytes: 2,
    }
}

async fn dead_letters(log: impl Log) {
    assert!(log.dead_letters(None, 10).await.unwrap().is_empty());
    assert_eq!(log.dead_letter_by_id(1).await.unwrap(), None);
    for seq in 1..=5 {
        log.dead_letter(letter(seq)).await.unwrap();
        log.dead_letter(letter(seq)).await.unwrap();
    }
    let ids = |letters: Vec<bus::StoredDeadLetter>| {
        letters.iter().map(|letter| letter.letter.seq).collect::<Vec<_>>()
    };
    let newest = log.dead_letters(None, 3).await.unwrap();
    let before = newest.last().unwrap().id;
    assert_eq!(ids(newest.clone()), [5, 4, 3]);
    assert_eq!(ids(log.dead_letters(Some(before), 3).await.unwrap()), [2, 1]);
    let found = log.dead_letter_by_id(before).await.unwrap().unwrap();
    assert_eq!(found, newest[2]);
    assert_eq!(found.letter, letter(3));
    assert!(log.purge_dead_letter(before).await.unwrap());
    assert!(!log.purge_dead_letter(before).await.unwrap());
    assert!(!log.purge_dead_letter(99).await.unwrap());
    assert_eq!(log.dead_letter_by_id(before).await.unwrap(), None);
    assert_eq!(ids(log.dead_letters(None, 10).await.unwrap()), [5, 4, 2, 1]);
}

async fn consumer_state(log: impl Log) {
    let consumer = durable(&CLI);
    let state = log.consumer_state(&consumer).await.unwrap();
    assert_eq!((state.waiting, state.in_flight, state.oldest), (0, 0, None));
    written(&log, &fact(1, 1)).await;
    for n in 1..=3 {
        appended(&log, &command(n), 0).await;
    }
    let state = log.consumer_state(&consumer).await.unwrap();
    let oldest = log
        .last(&subjects::lane_filter(&namespace(), execution(1)))
        .await
        .unwrap()
        .unwrap()
        .at;
    assert_eq!(
        (state.waiting, state.in_flight, state.oldest),
        (3, 0, Some(oldest))
    );
    let mut inbox = log.inbox(&consumer).await.unwrap();
    let first = next(&mut inbox).await;
    let state = log.consumer_state(&consumer).await.unwrap();
    assert_eq!(
        (state.waiting, state.in_flight, state.oldest),
        (2, 1, Some(oldest))
    );
    first.ack().await;
    let oldest = log
        .last(&subjects::lane_filter(&namespace(), execution(2)))
        .await
        .unwrap()
        .unwrap()
        .at;
    eventually("the second is the oldest", || async {
        let state = log.consumer_state(&consumer).await.unwrap();
        (state.waiting, state.in_flight, state.oldest) == (2, 0, Some(oldest))
    })
    .await;
}

// The ack policy.

/// Does what it is told by message and delivery, and writes down what it saw.
struct Scripted {
    act: fn(&LogMessage, u64) -> Act,
    seen: Mutex<Vec<(u64, u64)>>,
    at_work: AtomicUsize,
    most_at_work: AtomicUsize,
}

enum Act {
    Return(Result<(), Failure>),
    /// Succeed after this.
    Take(Duration),
    Panic,
}

impl Scripted {
    fn new(act: fn(&LogMessage, u64) -> Act) -> Arc<Self> {
        Arc::new(Self {
            act,
            seen: Mutex::default(),
            at_work: AtomicUsize::new(0),
            most_at_work: AtomicUsize::new(0),
        })
    }

    fn seen(&self) -> Vec<(u64, u64)> {
        self.seen.lock().unwrap().clone()
    }

    async fn saw(&self, count: usize) {
        eventually("deliveries", || async { self.seen().len() >= count }).await;
    }
}

impl Handler for Scripted {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        self.seen.lock().unwrap().push((message.seq, deliveries));
        match (self.act)(&message, deliveries) {
            Act::Return(result) => result,
            Act::Panic => panic!("as the script says"),
            Act::Take(time) => {
                let at_work = self.at_work.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_at_work.fetch_max(at_work, Ordering::SeqCst);
                tokio::time::sleep(time).await;
                self.at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
    }
}

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Running {
    async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("an end").unwrap()
    }
}

fn start(log: &impl Log, concurrency: usize, handler: &Arc<Scripted>) -> Running {
    let stop = CancellationToken::new();
    let options = Consume {
        concurrency,
        poison_after: 1,
        drain: Duration::from_millis(1000),
    };
    let (log, handler, token) = (log.clone(), Arc::clone(handler), stop.clone());
    let task = tokio::spawn(async move { consume(log, &durable(&SCHEDULER), options, handler, token).await });
    Running { stop, task }
}

async fn all_acked(log: &impl Log, seq: u64) {
    eventually("all acked", || async {
        let state = log.consumer_state(&durable(&SCHEDULER)).await.unwrap();
        state.acked_to_seq >= seq && state.in_flight == 0
    })
    .await;
}

async fn consume_success(log: impl Log) {
    for n in 1..=50 {
        written(&log, &fact(n, 1)).await;
    }
    let handler = Scripted::new(|_, _| Act::Return(Ok(())));
    let running = start(&log, 8, &handler);
    handler.saw(50).await;
    all_acked(&log, 50).await;
    assert_eq!(running.stop().await, Ok(()));
    let mut seen = handler.seen();
    seen.sort_unstable();
    assert_eq!(seen, (1..=50).map(|seq| (seq, 1)).collect::<Vec<_>>());
}

async fn consume_retry(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, deliveries| {
        Act::Return(if deliveries < 3 {
            Err(Failure::Retry {
                after: Duration::from_millis(300),
                reason: "not yet".to_owned(),
            })
        } else {
            Ok(())
        })
    });
    let began = log.now();
    let running = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    assert!(log.now().since(began) >= Duration::from_millis(600) - EARLY);
    assert_eq!(handler.seen(), [(1, 1), (1, 2), (1, 3)]);
    running.stop().await.unwrap();
}

async fn consume_reject(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, _| Act::Return(Err(Failure::reject("no sense in it"))));
    let running = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    running.stop().await.unwrap();
    let letters = log.dead_letters(None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].letter;
    assert_eq!(
        (letter.stream.as_str(), letter.seq, letter.consumer.as_str()),
        ("FIST_LOG", 1, "scheduler")
    );
    assert_eq!(
        (letter.reason.as_str(), letter.deliveries, letter.payload.as_str()),
        ("no sense in it", 1, "{}")
    );
    assert_eq!(letter.subject, fact(1, 1).to_string());
    assert_eq!(handler.seen(), [(1, 1)]);
}

async fn consume_fatal(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, deliveries| {
        Act::Return(if deliveries == 1 {
            Err(Failure::fatal("out of order"))
        } else {
            Ok(())
        })
    });
    let running = start(&log, 4, &handler);
    let ended = timeout(PATIENCE, running.task).await.expect("an end").unwrap();
    assert_eq!(ended, Err(Failure::fatal("out of order")));
    let successor = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    successor.stop().await.unwrap();
    assert_eq!(handler.seen(), [(1, 1), (1, 2)]);
}

async fn consume_long(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, _| Act::Take(ACK_WAIT * 3));
    let running = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    running.stop().await.unwrap();
    assert_eq!(handler.seen(), [(1, 1)]);
}

async fn consume_poison(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    written(&log, &fact(2, 1)).await;
    let handler = Scripted::new(|message, _| {
        if message.seq == 1 {
            Act::Panic
        } else {
            Act::Return(Ok(()))
        }
    });
    let running = start(&log, 4, &handler);
    all_acked(&log, 2).await;
    running.stop().await.unwrap();
    let letters = log.dead_letters(None, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0].letter.reason.starts_with("poison: 1 handlers of "),
        "{letters:?}"
    );
    // Three deliveries are free, the fourth is the trial that counts, the fifth is not handled.
    assert_eq!(handler.seen().iter().filter(|(seq, _)| *seq == 1).count(), 4);
}

async fn consume_no_poison(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, deliveries| {
        Act::Return(if deliveries < 9 {
            Err(Failure::Retry {
                after: Duration::from_millis(50),
                reason: "the database is away".to_owned(),
            })
        } else {
            Ok(())
        })
    });
    let running = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    running.stop().await.unwrap();
    assert_eq!(handler.seen().len(), 9);
    assert!(log.dead_letters(None, 10).await.unwrap().is_empty());
}

async fn consume_concurrency(log: impl Log) {
    for n in 1..=12 {
        written(&log, &fact(n, 1)).await;
    }
    let handler = Scripted::new(|_, _| Act::Take(Duration::from_millis(200)));
    let running = start(&log, 3, &handler);
    all_acked(&log, 12).await;
    running.stop().await.unwrap();
    assert_eq!(handler.most_at_work.load(Ordering::SeqCst), 3);
    let mut times = BTreeMap::new();
    for (seq, _) in handler.seen() {
        *times.entry(seq).or_insert(0) += 1;
    }
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

async fn consume_drain(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, _| Act::Take(Duration::from_millis(500)));
    let running = start(&log, 4, &handler);
    handler.saw(1).await;
    running.stop().await.unwrap();
    assert_eq!(handler.at_work.load(Ordering::SeqCst), 0);
    all_acked(&log, 1).await;
}

async fn consume_hands_back(log: impl Log) {
    written(&log, &fact(1, 1)).await;
    let handler = Scripted::new(|_, deliveries| {
        if deliveries == 1 {
            Act::Take(Duration::from_secs(3600))
        } else {
            Act::Return(Ok(()))
        }
    });
    let running = start(&log, 4, &handler);
    handler.saw(1).await;
    let began = log.now();
    running.stop().await.unwrap();
    let successor = start(&log, 4, &handler);
    all_acked(&log, 1).await;
    successor.stop().await.unwrap();
    assert_eq!(handler.seen(), [(1, 1), (1, 2)]);
    // Sooner than by waiting for the former's time to run out after its last word.
    assert!(log.now().since(began) < Duration::from_millis(1000) + ACK_WAIT);
}
