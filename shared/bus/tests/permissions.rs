//! The example configuration of `deploy/nats/`: the server takes it, each service can do its part with it, and
//! nothing beyond.
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Duration};

use bus::{
    Appended, Blobs, Budgets, Definitions, Inbox, Log, NatsLog, Position, Sizes, Started, StreamId, Written,
    testing::TestNats, topology,
};
use bytes::Bytes;
use futures_util::StreamExt;
use protocol::{
    AlertId, Attempt, Day, DeadLetter, ExecutionId, Namespace, SourceName, StepName, Subject, TaskType,
    TimerId, Timestamp, WorkflowName,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
const USERS: [(&str, &str); 7] = [
    ("admin", "ADMIN"),
    ("ingest", "INGEST"),
    ("scheduler", "SCHEDULER"),
    ("cli-runner", "CLI"),
    ("agent-runner", "AGENT"),
    ("store-writer", "STORE"),
    ("source", "SOURCE"),
];

struct World(TestNats);

impl World {
    async fn start() -> Self {
        let config = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nats/nats-server.conf");
        let passwords = USERS.map(|(user, variable)| {
            (
                format!("FIST_NATS_{variable}_PASSWORD"),
                format!("secret-of-{user}"),
            )
        });
        let name = ("NATS_SERVER_NAME".to_owned(), "nats-0".to_owned());
        let server = TestNats::start_with(Some(config), passwords.into_iter().chain([name]).collect()).await;
        let world = Self(server);
        topology::init(&world.connection("admin").await, &Sizes::small())
            .await
            .unwrap();
        world
    }

    async fn connection(&self, user: &str) -> bus::Connection {
        let credentials = (user.to_owned(), format!("secret-of-{user}"));
        self.0.connect_as(Some(credentials)).await
    }

    async fn log(&self, user: &str) -> NatsLog {
        NatsLog::open(&self.connection(user).await).await.unwrap()
    }
}

fn namespace() -> Namespace {
    Namespace::default()
}

fn execution() -> ExecutionId {
    ExecutionId::derive(&["permissions"])
}

fn step() -> StepName {
    StepName::new("check").unwrap()
}

async fn take_one(log: &NatsLog, durable: &topology::Durable) -> bus::LogMessage {
    let mut inbox = log.inbox(durable).await.unwrap();
    let delivery = timeout(PATIENCE, inbox.next())
        .await
        .expect("a delivery")
        .unwrap();
    let message = delivery.message.clone();
    delivery.ack().await;
    inbox.close().await;
    message
}

fn letter(consumer: &str) -> DeadLetter {
    DeadLetter {
        stream: "FIST_LOG".to_owned(),
        seq: 1,
        subject: "x".to_owned(),
        written_at: Timestamp::from_millis(0),
        consumer: consumer.to_owned(),
        reason: "because".to_owned(),
        deliveries: 1,
        payload: String::new(),
        payload_bytes: 0,
    }
}

#[tokio::test]
async fn every_service_can_do_its_part() {
    let world = World::start().await;
    let (ns, exec) = (namespace(), execution());
    let source = SourceName::new("web").unwrap();
    for user in [
        "ingest",
        "scheduler",
        "cli-runner",
        "agent-runner",
        "store-writer",
    ] {
        topology::check(&world.connection(user).await)
            .await
            .unwrap_or_else(|error| panic!("{user}: {error}"));
    }

    let connection = world.connection("ingest").await;
    let ingest = NatsLog::open(&connection).await.unwrap();
    ingest
        .publish_intake(&source, b"{}".to_vec(), None)
        .await
        .unwrap();
    take_one(&ingest, &topology::INGEST).await;
    let start = Subject::Start(ns.clone(), exec);
    assert!(matches!(
        ingest.write_fact(&start, b"{}".to_vec()).await.unwrap(),
        Written::New(_)
    ));
    let disposition = Subject::Disposition(source, AlertId::new("0a").unwrap(), "1".to_owned());
    ingest.write_fact(&disposition, b"{}".to_vec()).await.unwrap();
    ingest
        .write_fact(&Subject::CancelRequest(ns.clone(), exec, 1), b"{}".to_vec())
        .await
        .unwrap();
    ingest.dead_letter(letter("ingest")).await.unwrap();
    let letters = ingest.dead_letters(None, 5).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(ingest.purge_dead_letter(letters[0].id).await.unwrap());
    let definitions = Definitions::open(&connection).await.unwrap();
    definitions
        .put(&ns, &WorkflowName::new("a").unwrap(), Bytes::from("{}"))
        .await
        .unwrap();
    let mut changes = Box::pin(definitions.watch().await.unwrap());
    timeout(PATIENCE, changes.next())
        .await
        .expect("a change")
        .unwrap()
        .unwrap();
    Started::open(&connection)
        .await
        .unwrap()
        .create("k", Bytes::from("x"))
        .await
        .unwrap();
    let mut follow = ingest
        .follow(vec![protocol::subjects::facts_filter(&ns, exec)], Position::All)
        .await
        .unwrap();
    assert_eq!(
        timeout(PATIENCE, follow.next())
            .await
            .expect("a fact")
            .unwrap()
            .unwrap()
            .subject,
        start.to_string()
    );

    let scheduler = world.log("scheduler").await;
    take_one(&scheduler, &topology::SCHEDULER).await;
    scheduler
        .arm_timer(&ns, exec, &TimerId::new("t").unwrap(), scheduler.now())
        .await
        .unwrap();
    let command = Subject::Command(TaskType::cli(), ns.clone(), exec);
    let Appended::At(seq) = scheduler.append(&command, b"{}".to_vec(), 0).await.unwrap() else {
        panic!("nobody else appends")
    };
    let command = Subject::Command(TaskType::agent(), ns.clone(), exec);
    assert!(matches!(
        scheduler.append(&command, b"{}".to_vec(), seq).await.unwrap(),
        Appended::At(_)
    ));
    take_one(&scheduler, &topology::TIMERS).await;
    scheduler
        .write_fact(
            &Subject::Timer(ns.clone(), exec, TimerId::new("t").unwrap()),
            b"{}".to_vec(),
        )
        .await
        .unwrap();
    scheduler.dead_letter(letter("scheduler")).await.unwrap();

    let content = Bytes::from(vec![1_u8; 200_000]);
    for (user, durable, attempt) in [
        ("cli-runner", &topology::CLI, 1),
        ("agent-runner", &topology::AGENT, 2),
    ] {
        let connection = world.connection(user).await;
        let runner = NatsLog::open(&connection).await.unwrap();
        take_one(&runner, durable).await;
        let attempt = Attempt::try_from(attempt).unwrap();
        runner
            .write_fact(&Subject::Begun(ns.clone(), exec, step(), attempt), b"{}".to_vec())
            .await
            .unwrap();
        runner
            .write_fact(&Subject::Done(ns.clone(), exec, step(), attempt), b"{}".to_vec())
            .await
            .unwrap();
        runner
            .publish_live(&Subject::Live(ns.clone(), exec, step(), attempt), b"{}".to_vec())
            .await;
        let blobs = Blobs::open(&connection).await.unwrap();
        let blob = blobs.put(content.clone()).await.unwrap();
        assert_eq!(blobs.get(&blob).await.unwrap(), Some(content.clone()));
        runner
            .follow(vec![protocol::subjects::ALL_CANCELS.to_owned()], Position::New)
            .await
            .unwrap();
    }
    let agent = world.log("agent-runner").await;
    agent
        .write_fact(
            &Subject::Turn(ns.clone(), exec, step(), Attempt::FIRST, 0),
            b"{}".to_vec(),
        )
        .await
        .unwrap();
    let today = Day::of(agent.now());
    let budgets = Budgets::open(&world.connection("agent-runner").await)
        .await
        .unwrap();
    budgets
        .change(&ns, today, agent.now(), |day| day.used_tokens = 7)
        .await
        .unwrap();
    let listed = Budgets::open(&connection)
        .await
        .unwrap()
        .list(today)
        .await
        .unwrap();
    assert_eq!(listed[0].day.used_tokens, 7);
    let mut live = ingest
        .follow_live(vec![protocol::subjects::ALL_LIVE.to_owned()], Position::All)
        .await
        .unwrap();
    timeout(PATIENCE, live.next())
        .await
        .expect("live progress")
        .unwrap()
        .unwrap();

    let store = world.log("store-writer").await;
    take_one(&store, &topology::STORE_WRITER).await;
    assert!(store.read_from(1, 100).await.unwrap().len() >= 8);
    store.consumer_state(&topology::STORE_WRITER).await.unwrap();
    let responder = world.connection("store-writer").await;
    let mut questions = responder
        .client()
        .subscribe(protocol::subjects::QUERY)
        .await
        .unwrap();
    let asker = connection.client().clone();
    let asking = async move {
        loop {
            // The subscription is at the server a moment after it was made.
            match asker.request(protocol::subjects::QUERY, "?".into()).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let answering = async {
        let question = questions.next().await.unwrap();
        let reply = question.reply.unwrap();
        responder.client().publish(reply, "!".into()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = timeout(PATIENCE, asking) => answer.expect("an answer"),
        () = answering => unreachable!(),
    };
    assert_eq!(&answer.payload[..], b"!");
}

/// Sends what is not allowed, and looks at the streams: nothing came of it.
#[tokio::test]
async fn nobody_can_do_more() {
    let world = World::start().await;
    let (ns, exec) = (namespace(), execution());
    let start = Subject::Start(ns.clone(), exec).to_string();
    let command = Subject::Command(TaskType::cli(), ns.clone(), exec).to_string();
    let done = Subject::Done(ns.clone(), exec, step(), Attempt::FIRST).to_string();
    let timer = Subject::TimerSet(ns.clone(), exec, TimerId::new("t").unwrap()).to_string();
    let purge = "$JS.API.STREAM.PURGE.FIST_ALERTS".to_owned();
    let delete = "$JS.API.STREAM.DELETE.FIST_LOG".to_owned();
    let update = "$JS.API.STREAM.UPDATE.FIST_LOG".to_owned();
    let unwatch = "$JS.API.CONSUMER.DELETE.FIST_LOG.scheduler".to_owned();
    let budget = format!(
        "$KV.{}.{ns}.{}",
        topology::BUDGETS_BUCKET,
        Day::of(Timestamp::default())
    );
    let forbidden = [
        (
            "source",
            vec![
                &start, &command, &done, &timer, &purge, &delete, &update, &unwatch, &budget,
            ],
        ),
        (
            "ingest",
            vec![
                &command, &done, &timer, &purge, &delete, &update, &unwatch, &budget,
            ],
        ),
        (
            "scheduler",
            vec![&start, &done, &purge, &delete, &update, &unwatch, &budget],
        ),
        (
            "cli-runner",
            vec![
                &start, &command, &timer, &purge, &delete, &update, &unwatch, &budget,
            ],
        ),
        (
            "agent-runner",
            vec![&start, &command, &timer, &purge, &delete, &update, &unwatch],
        ),
        (
            "store-writer",
            vec![
                &start, &command, &done, &timer, &purge, &delete, &update, &unwatch, &budget,
            ],
        ),
    ];
    for (user, subjects) in forbidden {
        // A source may not even ask about JetStream, so it connects as any client would.
        let client =
            async_nats::ConnectOptions::with_user_and_password(user.to_owned(), format!("secret-of-{user}"))
                .connect(world.0.url())
                .await
                .unwrap();
        for subject in subjects {
            client.publish(subject.clone(), "{}".into()).await.unwrap();
        }
        client.flush().await.unwrap();
    }
    let admin = world.log("admin").await;
    topology::check(&world.connection("admin").await).await.unwrap();
    for stream in [StreamId::Log, StreamId::Timers] {
        assert_eq!(
            admin.stream_state(stream).await.unwrap().last_seq,
            0,
            "{stream:?}"
        );
    }
    // Only who calls models counts what they took.
    let budgets = Budgets::open(&world.connection("admin").await).await.unwrap();
    assert_eq!(budgets.list(Day::of(Timestamp::default())).await.unwrap(), []);
    // What a source may do works.
    let source = async_nats::ConnectOptions::with_user_and_password(
        "source".to_owned(),
        "secret-of-source".to_owned(),
    )
    .connect(world.0.url())
    .await
    .unwrap();
    let subject = Subject::Intake(SourceName::new("web").unwrap()).to_string();
    source.request(subject, "{}".into()).await.unwrap();
    assert_eq!(admin.stream_state(StreamId::Alerts).await.unwrap().messages, 1);
}
