//! The example configuration of `deploy/nats/`: the server takes it, each service can do its part with it, and
//! nothing beyond.
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Duration};

use bus::{
    Appended, Blobs, Budgets, ConnectError, Connection, Definitions, Inbox, Log, NatsLog, Position, Settings,
    Sizes, Started, StreamId, Written, permissions, testing::TestNats, topology,
};
use bytes::Bytes;
use futures_util::StreamExt;
use protocol::{
    AlertId, Attempt, Day, DeadLetter, ExecutionId, Namespace, SourceName, StepName, Subject, TaskType,
    TimerId, Timestamp, WorkflowName,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

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

    async fn connection(&self, user: &str) -> Connection {
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
    let letter_again = ingest.dead_letter_by_id(letters[0].id).await.unwrap();
    assert_eq!(letter_again.as_ref(), letters.first());
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
    let messages = scheduler.read_execution(&ns, exec).await.unwrap();
    assert!(messages.iter().any(|message| message.seq == seq), "{messages:?}");

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
        for reader in [user, "scheduler", "ingest", "store-writer"] {
            let blobs = Blobs::open(&world.connection(reader).await).await.unwrap();
            assert_eq!(blobs.get(&blob).await.unwrap(), Some(content.clone()), "{reader}");
        }
        let attempts = [Subject::Done(ns.clone(), exec, step(), attempt).to_string()];
        assert!(runner.holds_any(&attempts).await.unwrap());
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
    // How far behind each is, which reads its oldest message.
    for (user, durable) in [
        ("ingest", topology::INGEST),
        ("ingest", topology::WORKFLOW_STATUS),
        ("scheduler", topology::SCHEDULER),
        ("scheduler", topology::TIMERS),
        ("cli-runner", topology::CLI),
        ("agent-runner", topology::AGENT),
        ("store-writer", topology::STORE_WRITER),
    ] {
        let state = world.log(user).await.consumer_state(&durable).await;
        state.unwrap_or_else(|error| panic!("{user}, {}: {error}", durable.name));
    }
    let responder = world.connection("store-writer").await;
    let blobs = Blobs::open(&responder).await.unwrap();
    blobs
        .put(Bytes::from_static(b"an answer that fits no message"))
        .await
        .unwrap();
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

/// A client of a user, and what its server says against it.
async fn heard(world: &World, user: &str) -> (async_nats::Client, UnboundedReceiver<String>) {
    let (said, hears) = unbounded_channel();
    // A source may not even ask about JetStream, so it connects as any client would.
    let client =
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), format!("secret-of-{user}"))
            .event_callback(move |event| {
                let said = said.clone();
                async move {
                    let _ = said.send(event.to_string());
                }
            })
            .connect(world.0.url())
            .await
            .unwrap();
    (client, hears)
}

/// Waits until the server has refused each of these subjects.
async fn refused(hears: &mut UnboundedReceiver<String>, mut subjects: Vec<String>, user: &str) {
    while !subjects.is_empty() {
        let said = timeout(PATIENCE, hears.recv()).await;
        let said = said
            .unwrap_or_else(|_| panic!("{user} was not refused {subjects:?}"))
            .unwrap();
        subjects.retain(|subject| {
            !(said.contains("Permissions Violation") && said.contains(&format!("\"{subject}\"")))
        });
    }
}

/// Whether a pattern of the table covers a subject without wildcards.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(given)) if expected == given => {}
            _ => return false,
        }
    }
}

/// Each user tries on the real server what every other one may, and what only an admin may; the server refuses all
/// that is not in the user's own row, and nothing comes of it.
#[tokio::test]
async fn nobody_can_do_more() {
    let world = World::start().await;
    let (ns, exec) = (namespace(), execution());
    let users = permissions::users();
    assert_eq!(
        users.iter().map(|user| user.name).collect::<Vec<_>>(),
        USERS.map(|(name, _)| name)
    );
    let of_admin = [
        "$JS.API.STREAM.CREATE.FIST_OWN".to_owned(),
        "$JS.API.STREAM.UPDATE.FIST_LOG".to_owned(),
        "$JS.API.STREAM.DELETE.FIST_LOG".to_owned(),
        "$JS.API.STREAM.PURGE.FIST_ALERTS".to_owned(),
        "$JS.API.STREAM.MSG.DELETE.FIST_ALERTS".to_owned(),
        "$JS.API.CONSUMER.DURABLE.CREATE.FIST_LOG.scheduler".to_owned(),
        "$JS.API.CONSUMER.DELETE.FIST_LOG.scheduler".to_owned(),
        "$JS.API.CONSUMER.PAUSE.FIST_LOG.scheduler".to_owned(),
        "_INBOX.ingest.spoofed".to_owned(),
        "_INBOX.x".to_owned(),
        "something.else".to_owned(),
    ];
    let of_others = users.iter().flat_map(permissions::User::publish);
    let concrete = |pattern: String| match pattern.as_str() {
        ">" => "everything".to_owned(),
        _ => pattern.replace(['*', '>'], "x"),
    };
    let mut tried: Vec<String> = of_others.map(concrete).chain(of_admin).collect();
    tried.sort();
    tried.dedup();
    assert!(tried.len() > 40, "{tried:?}");
    for user in users.iter().filter(|user| user.name != "admin") {
        let (client, mut hears) = heard(&world, user.name).await;
        let (own, not) = (user.publish(), user.publish_not());
        let is_in =
            |patterns: &[String], subject: &String| patterns.iter().any(|pattern| covers(pattern, subject));
        let others: Vec<String> = tried
            .iter()
            .filter(|subject| !is_in(&own, subject) || is_in(&not, subject))
            .cloned()
            .collect();
        let taken = "$JS.API.CONSUMER.MSG.NEXT.FIST_LOG.scheduler".to_owned();
        assert!(
            user.name == "scheduler" || others.contains(&taken),
            "{}",
            user.name
        );
        assert!(others.len() > 15, "{}: {others:?}", user.name);
        for subject in &others {
            client.publish(subject.clone(), "{}".into()).await.unwrap();
        }
        refused(&mut hears, others, user.name).await;

        // Nor listen to more than its own answers.
        let mut closed: Vec<String> = [">", "fist.>", "fist.alerts.*", "$JS.>", "_INBOX.*.>"]
            .map(str::to_owned)
            .to_vec();
        let inboxes = users.iter().filter(|other| other.name != user.name);
        closed.extend(inboxes.map(|other| format!("_INBOX.{}.>", other.name)));
        if user.name != "source" {
            closed.push("_INBOX.>".to_owned());
        } else {
            // Its wildcard is taken, and gives it no answers of the others; see below.
            closed.retain(|subject| subject != "_INBOX.*.>");
        }
        let mut subscriptions = Vec::new();
        for subject in &closed {
            subscriptions.push(client.subscribe(subject.clone()).await.unwrap());
        }
        refused(&mut hears, closed, user.name).await;
    }
    let admin = world.log("admin").await;
    topology::check(&world.connection("admin").await).await.unwrap();
    for stream in StreamId::ALL {
        assert_eq!(
            admin.stream_state(stream).await.unwrap().last_seq,
            0,
            "{stream:?}"
        );
    }
    // Only who calls models counts what they took.
    let budgets = Budgets::open(&world.connection("admin").await).await.unwrap();
    assert_eq!(budgets.list(Day::of(Timestamp::default())).await.unwrap(), []);
    assert_eq!(
        admin
            .last(&protocol::subjects::lane_filter(&ns, exec))
            .await
            .unwrap(),
        None
    );
}

/// What a source may do works, and the wildcard of its inboxes shows it none of the others' answers.
#[tokio::test]
async fn a_source_publishes_alerts_and_learns_nothing() {
    let world = World::start().await;
    let (source, _hears) = heard(&world, "source").await;
    let mut answers = source.subscribe("_INBOX.>").await.unwrap();
    source.flush().await.unwrap();
    // Everybody else asks and is answered meanwhile.
    for (user, _) in USERS.iter().filter(|(user, _)| *user != "source") {
        world.connection(user).await.client().flush().await.unwrap();
    }
    // The server delivers in order, so that what came before would be seen first.
    let subject = Subject::Intake(SourceName::new("web").unwrap()).to_string();
    source
        .publish_with_reply(subject, "_INBOX.own", "{}".into())
        .await
        .unwrap();
    let first = timeout(PATIENCE, answers.next())
        .await
        .expect("an answer")
        .unwrap();
    assert_eq!(first.subject.as_str(), "_INBOX.own");
    let text = String::from_utf8_lossy(&first.payload);
    assert!(text.contains("FIST_ALERTS"), "{text}");
    let admin = world.log("admin").await;
    assert_eq!(admin.stream_state(StreamId::Alerts).await.unwrap().messages, 1);
}

#[tokio::test]
async fn a_stranger_is_not_let_in() {
    let world = World::start().await;
    for credentials in [
        None,
        Some(("ingest", "wrong")),
        Some(("nobody", "secret-of-nobody")),
        Some(("ingest", "")),
    ] {
        let settings = Settings {
            url: world.0.url(),
            user_and_password: credentials.map(|(user, password)| (user.to_owned(), password.to_owned())),
            client_name: "test".to_owned(),
            attempt_time: PATIENCE,
            deadline: PATIENCE,
            ..Settings::default()
        };
        let error = Connection::open(&settings).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Unauthorized { .. }),
            "{credentials:?}: {error}"
        );
    }
}
