//! The program itself: it comes up against a real log, answers, rebuilds, and ends when it is asked to.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bus::{Connection, Log, NatsLog, testing::TestNats};
use protocol::{
    ExecutionId, Fact, Input, Json, Namespace, Start, Subject, WorkflowName, encode,
    query::{Answer, Query},
    subjects,
};
use serde_json::json;

/// Whatever is waited for comes within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kills the program when a test panics.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(nats: &TestNats, directory: &Path, arguments: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_store-writer"));
    command
        .args(arguments)
        .env("FIST_NATS_URL", nats.url())
        .env(
            "FIST_DATABASE_URL",
            format!("sqlite://{}/fist.db", directory.display()),
        )
        .env("FIST_HEALTH_LISTEN", "127.0.0.1:0")
        .current_dir(directory)
        .stdin(Stdio::null());
    Program(command.spawn().unwrap())
}

async fn ended(program: &mut Program) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = program.0.try_wait().unwrap() {
            return status.success();
        }
        assert!(Instant::now() < deadline, "the program did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write_start(connection: &Connection) -> ExecutionId {
    let log = NatsLog::open(connection).await.unwrap();
    let id = ExecutionId::derive(&["web"]);
    let start = Start {
        namespace: Namespace::default(),
        execution: id,
        workflow: WorkflowName::new("web").unwrap(),
        trigger_source: "api".to_owned(),
        spec: Json::of(&json!({ "steps": [{ "name": "check", "type": "cli", "command": "true" }] })).unwrap(),
        input: Json::of(&Input::default()).unwrap(),
        delivery: None,
        uid: None,
    };
    let payload = encode(log.now(), &Fact::Start(Box::new(start)));
    log.write_fact(&Subject::Start(Namespace::default(), id), payload)
        .await
        .unwrap();
    id
}

/// Asks until somebody listens and the list has an entry.
async fn listed(connection: &Connection) -> ExecutionId {
    let deadline = Instant::now() + PATIENCE;
    let question = serde_json::to_vec(&Query::Executions(Default::default())).unwrap();
    loop {
        let reply = connection
            .client()
            .request(subjects::QUERY, question.clone().into())
            .await;
        let answer = reply
            .ok()
            .map(|reply| serde_json::from_slice::<Answer>(&reply.payload).unwrap());
        if let Some(Answer::Executions(page)) = answer
            && let Some(first) = page.items.first()
        {
            return first.id;
        }
        assert!(Instant::now() < deadline, "no execution was listed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_projects_answers_ends_and_rebuilds() {
    let (nats, connection) = TestNats::ready().await;
    let directory = tempfile::tempdir().unwrap();
    let id = write_start(&connection).await;
    let mut running = program(&nats, directory.path(), &[]);
    assert_eq!(listed(&connection).await, id);
    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(
        ended(&mut running).await,
        "a program that is asked to end ends well"
    );

    // Its file is lost; everything in it is in the log.
    std::fs::remove_file(directory.path().join("fist.db")).unwrap();
    let mut rebuilding = program(&nats, directory.path(), &["--rebuild"]);
    assert!(ended(&mut rebuilding).await);
    let mut running = program(&nats, directory.path(), &[]);
    assert_eq!(listed(&connection).await, id);
    running.0.kill().unwrap();
    assert!(!ended(&mut running).await);
}
