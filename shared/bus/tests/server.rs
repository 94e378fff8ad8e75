//! What only a real server shows: setting up, restarts, and texts of its errors.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use bus::{
    Appended, Blobs, Change, ConnectError, Connection, Definitions, Inbox, Log, LogError, NatsLog, Position,
    Settings, Sizes, Started, Stored, StreamId, Written, testing::TestNats, topology,
};
use bytes::Bytes;
use futures_util::StreamExt;
use protocol::{
    Attempt, ExecutionId, Namespace, SourceName, SpanContext, SpanId, StepName, Subject, TaskType, TraceId,
    WorkflowName,
};
use service::{Config, Metrics, Service, Spans};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

fn execution(n: u32) -> (Namespace, ExecutionId) {
    (
        Namespace::default(),
        ExecutionId::derive(&["test", &n.to_string()]),
    )
}

fn step() -> StepName {
    StepName::new("check").unwrap()
}

#[tokio::test]
async fn setting_up_twice_changes_nothing() {
    let (_server, connection) = TestNats::ready().await;
    topology::check(&connection).await.unwrap();
    topology::init(&connection, &Sizes::small()).await.unwrap();
    let larger = Sizes {
        log_bytes_max: 600 << 20,
        ..Sizes::small()
    };
    topology::init(&connection, &larger).await.unwrap();
    let log = NatsLog::open(&connection).await.unwrap();
    let state = log.stream_state(StreamId::Log).await.unwrap();
    assert_eq!(state.bytes_max, Some(600 << 20));
}

#[tokio::test]
async fn setting_up_brings_an_older_consumer_up_to_date() {
    use async_nats::jetstream::consumer::pull;
    let (_server, connection) = TestNats::ready().await;
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = context.get_stream("FIST_LOG").await.unwrap();
    let config = async || {
        let consumer = stream.get_consumer::<pull::Config>("store-writer").await.unwrap();
        consumer.cached_info().config.clone()
    };
    // As it was made once: with all subjects of the stream, one by one.
    let filters = protocol::subjects::LOG_SUBJECTS.map(str::to_owned).to_vec();
    let older = pull::Config {
        durable_name: Some("store-writer".to_owned()),
        ack_wait: topology::STORE_WRITER.ack_wait,
        max_ack_pending: topology::STORE_WRITER.in_flight_max.into(),
        filter_subjects: filters.clone(),
        ..pull::Config::default()
    };
    stream.create_consumer(older).await.unwrap();
    assert_eq!(config().await.filter_subjects, filters);
    topology::init(&connection, &Sizes::small()).await.unwrap();
    assert_eq!(config().await.filter_subjects, Vec::<String>::new());
}

#[tokio::test]
async fn services_name_all_that_is_missing() {
    let server = TestNats::start().await;
    let connection = server.connect().await;
    let error = topology::check(&connection).await.unwrap_err().to_string();
    for part in [
        "FIST_LOG",
        "FIST_TIMERS",
        "KV_fist-workflows",
        "OBJ_fist-blobs",
        "run `fist nats init`",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = NatsLog::open(&connection).await.unwrap_err();
    assert!(matches!(error, LogError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn more_than_the_disk_is_refused_with_the_keys_to_lower() {
    let server = TestNats::start().await;
    let connection = server.connect().await;
    let sizes = Sizes {
        log_bytes_max: 1 << 60,
        ..Sizes::small()
    };
    let error = topology::init(&connection, &sizes).await.unwrap_err().to_string();
    assert!(
        error.contains("FIST_LOG") && error.contains("nats.log_bytes_max"),
        "{error}"
    );
}

#[tokio::test]
async fn no_server_is_one_clear_sentence() {
    let settings = Settings {
        url: "nats://127.0.0.1:1".to_owned(),
        attempt_time: Duration::from_millis(200),
        deadline: Duration::from_millis(500),
        ..Settings::default()
    };
    let error = Connection::open(&settings).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("nats.url"), "{error}");
}

#[tokio::test]
async fn what_was_written_before_the_connection_broke_is_told_from_what_came_after() {
    let (mut server, connection) = TestNats::ready().await;
    let log = NatsLog::open(&connection).await.unwrap();
    let (namespace, id) = execution(1);
    let written = async |n| {
        let subject = Subject::CancelRequest(namespace.clone(), id, n);
        while !matches!(log.write_fact(&subject, b"x".to_vec()).await, Ok(Written::New(_))) {}
        log.last(&subject.to_string()).await.unwrap().unwrap().at
    };
    let before = written(1).await;
    assert!(log.connected_since() <= before);
    server.kill9();
    let is_noticed = async {
        while log.connected_since() <= before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_noticed).await.unwrap();
    server.restart().await;
    // The client tells of its connection a moment after its first use.
    let is_told = async {
        let mut number = 2;
        while written(number).await < log.connected_since() {
            number += 1;
        }
    };
    tokio::time::timeout(PATIENCE, is_told).await.unwrap();
    assert!(before < log.connected_since());
}

#[tokio::test]
async fn facts_and_followers_survive_a_killed_server() {
    let (mut server, connection) = TestNats::ready().await;
    let log = NatsLog::open(&connection).await.unwrap();
    let (namespace, id) = execution(1);
    let fact = |n: u32| Subject::CancelRequest(namespace.clone(), id, n);
    let mut follow = log
        .follow(
            vec![protocol::subjects::facts_filter(&namespace, id)],
            Position::New,
        )
        .await
        .unwrap();
    assert_eq!(
        log.write_fact(&fact(1), b"1".to_vec()).await.unwrap(),
        Written::New(1)
    );
    let first = tokio::time::timeout(PATIENCE, follow.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!((first.seq, &first.payload[..]), (1, &b"1"[..]));

    let mut inbox = log.inbox(&topology::SCHEDULER).await.unwrap();
    server.kill9();
    // Written while the server is away: the write is repeated until the server is back.
    let writer = tokio::spawn({
        let (log, subject) = (log.clone(), fact(2));
        async move {
            loop {
                match log.write_fact(&subject, b"2".to_vec()).await {
                    Ok(written) => return written,
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
        }
    });
    server.restart().await;
    tokio::time::timeout(PATIENCE, writer).await.unwrap().unwrap();
    let second = tokio::time::timeout(PATIENCE, follow.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(&second.payload[..], b"2");
    // The inbox, opened before, delivers both.
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let delivery = tokio::time::timeout(PATIENCE, inbox.next())
            .await
            .unwrap()
            .unwrap();
        seen.push(delivery.message.seq);
        delivery.ack().await;
    }
    assert_eq!(seen, [first.seq, second.seq]);
    assert_eq!(
        log.read_execution(&namespace, id).await.unwrap(),
        vec![first, second]
    );
}

/// Reads by index up to 1,024 subjects, in several answers when they are large; beyond that, by walking.
#[tokio::test]
async fn long_executions_are_read_whole() {
    for facts in [700, 1500] {
        let (_server, connection) = TestNats::ready().await;
        let log = NatsLog::open(&connection).await.unwrap();
        let (namespace, id) = execution(2);
        let (_, other) = execution(3);
        let mut last = 0;
        for n in 0..facts {
            let fact = Subject::CancelRequest(namespace.clone(), id, n);
            log.write_fact(&fact, vec![b'x'; 8000]).await.unwrap();
            let turn = Subject::Turn(namespace.clone(), id, step(), Attempt::FIRST, n);
            log.write_fact(&turn, vec![b'z'; 10]).await.unwrap();
            if n % 10 == 0 {
                let command = Subject::Command(TaskType::cli(), namespace.clone(), id);
                let Appended::At(seq) = log.append(&command, vec![b'y'; 100], last).await.unwrap() else {
                    panic!("a conflict without another writer")
                };
                last = seq;
                let fact = Subject::CancelRequest(namespace.clone(), other, n);
                log.write_fact(&fact, Vec::new()).await.unwrap();
            }
        }
        let messages = log.read_execution(&namespace, id).await.unwrap();
        assert_eq!(messages.len(), (facts + facts / 10) as usize);
        assert!(messages.is_sorted_by(|a, b| a.seq < b.seq));
        let turns = log
            .read_turns(&namespace, id, &step(), Attempt::FIRST)
            .await
            .unwrap();
        assert_eq!(turns.len(), facts as usize);
        assert!(turns.is_sorted_by(|a, b| a.seq < b.seq));
        let all = (facts * 2 + facts / 10 * 2) as usize;
        assert_eq!(log.read_from(1, 10_000).await.unwrap().len(), all);
        assert_eq!(log.read_from(all as u64 - 39, 100).await.unwrap().len(), 40);
        assert!(log.read_from(all as u64 + 1, 40).await.unwrap().is_empty());
    }
}

/// What is acknowledged while others write is in the very next read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_see_what_was_acknowledged() {
    let (_server, connection) = TestNats::ready().await;
    let log = NatsLog::open(&connection).await.unwrap();
    let writers: Vec<_> = (10..14)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                let (namespace, id) = execution(n);
                let command = Subject::Command(TaskType::cli(), namespace.clone(), id);
                let mut last = 0;
                for n in 0..100 {
                    let fact = Subject::CancelRequest(namespace.clone(), id, n);
                    let Written::New(fact) = log.write_fact(&fact, b"{}".to_vec()).await.unwrap() else {
                        panic!("it was there")
                    };
                    let Appended::At(seq) = log.append(&command, b"{}".to_vec(), last).await.unwrap() else {
                        panic!("a conflict without another writer")
                    };
                    last = seq;
                    let seqs: Vec<_> = log.read_execution(&namespace, id).await.unwrap();
                    let newest: Vec<_> = seqs.iter().rev().take(2).map(|message| message.seq).collect();
                    assert_eq!(newest, [seq, fact]);
                    assert_eq!(seqs.len(), 2 * (n as usize + 1));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn blobs_are_put_once_and_checked() {
    let (_server, connection) = TestNats::ready().await;
    let blobs = Blobs::open(&connection).await.unwrap();
    let content = Bytes::from(vec![7_u8; 300_000]);
    let blob = blobs.put(content.clone()).await.unwrap();
    assert_eq!((blob.bytes, blob.sha256.len()), (300_000, 64));
    assert_eq!(blobs.put(content.clone()).await.unwrap(), blob);
    assert_eq!(blobs.get(&blob).await.unwrap(), Some(content));
    let empty = blobs.put(Bytes::new()).await.unwrap();
    assert_eq!(blobs.get(&empty).await.unwrap(), Some(Bytes::new()));
    let absent = protocol::BlobRef {
        sha256: "0".repeat(64),
        bytes: 5,
    };
    assert_eq!(blobs.get(&absent).await.unwrap(), None);
}

#[tokio::test]
async fn the_servers_clock_is_asked_and_one_of_the_same_machine_needs_no_correction() {
    let (_server, connection) = TestNats::ready().await;
    let log = NatsLog::open(&connection).await.unwrap();
    assert_eq!(log.clock_correction_ms().await.unwrap(), 0);
}

#[tokio::test]
async fn a_follower_that_is_slow_misses_nothing() {
    const MESSAGES: u32 = 1_500;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("nats.conf");
    // The server drops clients for which more than this waits.
    std::fs::write(
        &config,
        "max_pending: 9MB\njetstream { store_dir: $NATS_STORE_DIR }\n",
    )
    .unwrap();
    let server = TestNats::start_with(Some(config), Vec::new()).await;
    let connection = server.connect().await;
    topology::init(&connection, &Sizes::small()).await.unwrap();
    let log = NatsLog::open(&connection).await.unwrap();
    let (namespace, id) = execution(1);
    let filter = protocol::subjects::facts_filter(&namespace, id);
    // Its connection is its own, and nobody reads from it while 30 MB are written.
    let slow = NatsLog::open(&server.connect().await).await.unwrap();
    let mut follow = slow.follow(vec![filter], Position::All).await.unwrap();
    for n in 1..=MESSAGES {
        let fact = Subject::CancelRequest(namespace.clone(), id, n);
        log.write_fact(&fact, vec![b'x'; 20_000]).await.unwrap();
    }
    for expected in 1..=u64::from(MESSAGES) {
        let next = tokio::time::timeout(PATIENCE, follow.next());
        assert_eq!(next.await.unwrap().unwrap().unwrap().seq, expected);
    }
}

/// A file system of its own, which is full soon; gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, after one loud line, where this process may not mount one.
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            refused => {
                // Containers mostly may not, in CI neither.
                eprintln!("SKIPPED: a full disk was not tried, since none can be mounted: {refused:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_keeps_what_was_acknowledged() {
    let Some(disk) = SmallDisk::mount(24 << 20) else {
        return;
    };
    let store = disk.0.path().join("store");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("nats.conf");
    // The server believes that there is room.
    let text = format!(
        "jetstream {{ store_dir: {:?}, max_file_store: 20GB }}",
        store.display().to_string()
    );
    std::fs::write(&config, text).unwrap();
    let mut server = TestNats::start_with(Some(config), Vec::new()).await;
    let connection = server.connect().await;
    topology::init(&connection, &Sizes::small()).await.unwrap();
    let log = NatsLog::open(&connection).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![1_u8; 12 << 20]).unwrap();
    let source = SourceName::new("web").unwrap();
    let mut taken = 0;
    let error = loop {
        match log.publish_intake(&source, vec![b'x'; 900_000], None).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 30, "a disk of 24 MiB took it all");
    };
    // Which intake answers with 503 and Retry-After: the sender sends it again.
    assert!(taken > 0 && error.is_transient(), "{taken} taken, then {error:?}");
    // There is room again, and the server is started anew, as its own log asks for.
    std::fs::remove_file(&ballast).unwrap();
    server.restart().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = log.publish_intake(&source, b"after".to_vec(), None).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
    // What was acknowledged is there; what was not may be there as well.
    let state = log.stream_state(StreamId::Alerts).await.unwrap();
    assert!(state.messages > taken, "{taken} taken, {state:?}");
    connection.close().await;
    drop(server);
}

/// The messages of the store of large bodies: how many, and the first one's sequence.
async fn blob_messages(connection: &Connection) -> (u64, u64) {
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = context.get_stream("OBJ_fist-blobs").await.unwrap();
    let state = &stream.cached_info().state;
    (state.messages, state.first_sequence)
}

#[tokio::test]
async fn blobs_go_by_age_and_what_is_put_again_late_is_written_anew() {
    let (_server, connection) = TestNats::ready().await;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = async || context.get_stream("OBJ_fist-blobs").await.unwrap();
    // As an installation has it that is older than their age.
    let mut former = stream().await.cached_info().config.clone();
    former.max_age = Duration::ZERO;
    context.update_stream(former).await.unwrap();
    let sizes = Sizes {
        blobs_max_age: hours(400),
        ..Sizes::small()
    };
    topology::init(&connection, &sizes).await.unwrap();
    assert_eq!(stream().await.cached_info().config.max_age, hours(400));

    fn later(hours: i64) -> protocol::Timestamp {
        protocol::Timestamp::from_millis(service::clock::now().as_millis() + hours * 3_600_000)
    }
    let blobs = Blobs::open(&connection).await.unwrap();
    let young = Blobs::open_at(&connection, || later(199)).await.unwrap();
    let old = Blobs::open_at(&connection, || later(201)).await.unwrap();
    let content = Bytes::from(vec![7_u8; 300_000]);
    let blob = blobs.put(content.clone()).await.unwrap();
    // Three chunks, and what describes them.
    assert_eq!(blob_messages(&connection).await, (4, 1));
    assert_eq!(young.put(content.clone()).await.unwrap(), blob);
    assert_eq!(blob_messages(&connection).await, (4, 1));
    assert_eq!(old.put(content.clone()).await.unwrap(), blob);
    // The former chunks stay until they are of age.
    assert_eq!(blob_messages(&connection).await, (7, 1));
    assert_eq!(blobs.get(&blob).await.unwrap(), Some(content.clone()));
    // As age takes them.
    stream().await.purge().sequence(5).await.unwrap();
    assert_eq!(blob_messages(&connection).await, (4, 5));
    assert_eq!(blobs.get(&blob).await.unwrap(), Some(content));
    stream().await.purge().await.unwrap();
    assert_eq!(blobs.get(&blob).await.unwrap(), None);
}

#[tokio::test]
async fn definitions_are_watched_listed_and_deleted() {
    let (mut server, connection) = TestNats::ready().await;
    let definitions = Definitions::open(&connection).await.unwrap();
    let namespace = Namespace::default();
    let name = |text: &str| WorkflowName::new(text).unwrap();
    let first = definitions
        .put(&namespace, &name("a.b"), Bytes::from("one"))
        .await
        .unwrap();
    assert_eq!(
        definitions
            .put_if(&namespace, &name("a.b"), Bytes::from("no"), 0)
            .await
            .unwrap(),
        Stored::Conflict
    );
    let Stored::At(second) = definitions
        .put_if(&namespace, &name("a.b"), Bytes::from("two"), first)
        .await
        .unwrap()
    else {
        panic!("nobody else writes")
    };
    let mut changes = Box::pin(definitions.watch().await.unwrap());
    let mut next = async || {
        tokio::time::timeout(PATIENCE, changes.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    let Change::Put(definition) = next().await else {
        panic!("a deletion")
    };
    assert_eq!(
        (definition.revision, &definition.manifest[..]),
        (second, &b"two"[..])
    );
    assert_eq!(
        definitions.list().await.unwrap(),
        std::slice::from_ref(&definition)
    );
    assert_eq!(
        definitions.get(&namespace, &name("a.b")).await.unwrap(),
        Some(definition)
    );
    server.restart().await;
    assert!(definitions.delete(&namespace, &name("a.b")).await.unwrap());
    assert!(!definitions.delete(&namespace, &name("a.b")).await.unwrap());
    assert!(matches!(next().await, Change::Deleted { name, .. } if name.as_str() == "a.b"));
    assert!(definitions.list().await.unwrap().is_empty());
    assert!(matches!(
        definitions
            .put_if(&namespace, &name("a.b"), Bytes::from("new"), 0)
            .await
            .unwrap(),
        Stored::At(_)
    ));
}

#[tokio::test]
async fn starts_are_remembered_and_refreshed() {
    let (_server, connection) = TestNats::ready().await;
    let started = Started::open(&connection).await.unwrap();
    assert_eq!(started.get("k-1").await.unwrap(), None);
    let Stored::At(revision) = started.create("k-1", Bytes::from("x")).await.unwrap() else {
        panic!("nobody else writes")
    };
    assert_eq!(
        started.create("k-1", Bytes::from("y")).await.unwrap(),
        Stored::Conflict
    );
    let Stored::At(again) = started.refresh("k-1", Bytes::from("x"), revision).await.unwrap() else {
        panic!("nobody else writes")
    };
    assert_eq!(
        started.refresh("k-1", Bytes::from("x"), revision).await.unwrap(),
        Stored::Conflict
    );
    assert_eq!(started.get("k-1").await.unwrap().unwrap().revision, again);
    assert!(started.get("a.b").await.is_err());
}

#[tokio::test]
async fn a_service_waits_for_streams_that_are_made_beside_it() {
    let server = TestNats::start().await;
    let variables = [("FIST_NATS_URL".to_owned(), server.url())];
    let config = Config::parse(None, variables.into_iter()).unwrap();
    let service = Service::new("cli-runner", config.into(), CancellationToken::new());
    let attaching = tokio::spawn({
        let service = service.clone();
        async move { bus::attach(&service).await.map(drop) }
    });
    let waits = async {
        while !format!("{:?}", service.health.readiness()).contains("fist nats init") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits)
        .await
        .expect("it says what it waits for");
    topology::init(&server.connect().await, &Sizes::small())
        .await
        .unwrap();
    attaching.await.unwrap().unwrap();
}

#[tokio::test]
async fn messages_name_the_span_that_they_are_about() {
    let (_server, connection) = TestNats::ready().await;
    let plain = NatsLog::open(&connection).await.unwrap();
    let tracing = service::config::Tracing {
        otlp_endpoint: Some("http://127.0.0.1:9".to_owned()),
        ..Config::default().tracing
    };
    let spans = Spans::start(&tracing, "scheduler", &Metrics::new()).unwrap();
    let traced = plain.clone().with_spans(spans);
    let context = async_nats::jetstream::new(connection.client().clone());
    let stream = context.get_stream("FIST_LOG").await.unwrap();
    let header = async |subject: &Subject| {
        let message = stream.get_last_raw_message_by_subject(&subject.to_string()).await;
        let headers = message.unwrap().headers;
        headers.get("traceparent").map(|value| value.as_str().to_owned())
    };

    let (ns, id) = execution(1);
    let named = |span| SpanContext {
        trace: TraceId::of(id),
        span,
        is_sampled: true,
    };
    let root = named(SpanId::of_execution(id)).to_string();
    let attempt = named(SpanId::of_attempt(id, &step(), Attempt::FIRST)).to_string();
    let start = Subject::Start(ns.clone(), id);
    traced.write_fact(&start, b"{}".to_vec()).await.unwrap();
    assert_eq!(header(&start).await, Some(root.clone()));
    let task = br#"{"v":1,"body":{"action":{"task":{"step":"check","attempt":1}}}}"#;
    let command = Subject::Command(TaskType::cli(), ns.clone(), id);
    let Appended::At(seq) = traced.append(&command, task.to_vec(), 0).await.unwrap() else {
        panic!("nobody else writes here");
    };
    assert_eq!(header(&command).await, Some(attempt.clone()));
    let note = Subject::Note(ns.clone(), id);
    traced.append(&note, b"{}".to_vec(), seq).await.unwrap();
    assert_eq!(header(&note).await, Some(root));
    let done = Subject::Done(ns, id, step(), Attempt::FIRST);
    traced.write_fact(&done, b"{}".to_vec()).await.unwrap();
    assert_eq!(header(&done).await, Some(attempt));
    // Off, nothing is added.
    let (ns, id) = execution(2);
    let start = Subject::Start(ns, id);
    plain.write_fact(&start, b"{}".to_vec()).await.unwrap();
    assert_eq!(header(&start).await, None);

    // Who sent an alert is known to who works on it.
    let source = SourceName::new("web").unwrap();
    let caller: SpanContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        .parse()
        .unwrap();
    let mut inbox = plain.inbox(&topology::INGEST).await.unwrap();
    for caller in [Some(caller), None] {
        plain
            .publish_intake(&source, b"{}".to_vec(), caller)
            .await
            .unwrap();
        let delivery = inbox.next().await.unwrap();
        assert_eq!(delivery.message.caller, caller);
        delivery.ack().await;
    }
    inbox.close().await;
}
