//! What the product promises while a neighbour is away or full: the database stopped under load, and a log without
//! room.

use std::{collections::BTreeSet, fs, process::Command, sync::Arc};

use bus::{Log as _, NatsLog, StreamId};
use futures_util::future::join_all;
use protocol::{Append, ExecutionId, LaneAction, Subject, decode};
use serde_json::Value;
use service::{Config, Service};
use tokio_util::sync::CancellationToken;

use crate::product::{Product, binary};

const YAML: &str = "application/yaml";

/// One command, and its outcome.
fn workflow(name: &str, command: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {{name: {name}}}
spec:
  steps:
    - name: only
      type: cli
      timeout_minutes: 3
      command: {command}
"
    )
}

async fn submit(product: &Product, name: &str, command: &str) -> String {
    let manifest = workflow(name, command);
    let accepted = product.post(0, "/api/v1/executions", YAML, name, &manifest).await;
    accepted["id"].as_str().unwrap().to_owned()
}

/// The executions whose end the log holds.
async fn ended(log: &NatsLog) -> BTreeSet<ExecutionId> {
    let mut ended = BTreeSet::new();
    let mut next = 1;
    loop {
        let page = log.read_from(next, 1_000).await.unwrap();
        let Some(last) = page.last() else { return ended };
        next = last.seq + 1;
        for message in &page {
            let Ok(Subject::Note(_, id) | Subject::Cancel(_, id) | Subject::Command(_, _, id)) =
                Subject::parse(&message.subject)
            else {
                continue;
            };
            let append: Append = decode(&message.payload).unwrap().body;
            if matches!(append.action, LaneAction::End(_)) {
                ended.insert(id);
            }
        }
    }
}

#[tokio::test]
async fn without_its_database_everything_ends_and_the_record_catches_up() {
    const EXECUTIONS: usize = 100;
    let Some(product) = Product::start(1).await else {
        return;
    };
    let connection = product.nats.connect().await;
    let log = NatsLog::open(&connection).await.unwrap();
    product.postgres.stop();
    let submitting = (0..EXECUTIONS).map(|number| {
        let product = &product;
        async move { submit(product, &format!("away-{number}"), "echo fine").await }
    });
    let submitted: BTreeSet<ExecutionId> = join_all(submitting)
        .await
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(submitted.len(), EXECUTIONS);
    product
        .until("all have ended without a database", || async {
            (ended(&log).await == submitted).then_some(())
        })
        .await;
    // What only the database knows says why it does not answer; what the log knows is answered.
    let (status, text) = product.answer("/api/v1/executions").await;
    assert!(status == 503 && text.contains("database"), "{status}: {text}");
    let one = submitted.first().unwrap();
    assert_eq!(product.ended(&one.to_string()).await["status"], "Succeeded");

    product.postgres.start_again();
    let variables = [("FIST_DATABASE_URL".to_owned(), product.database.clone())];
    let service = Service {
        name: "test",
        config: Arc::new(Config::parse(None, variables.into_iter()).unwrap()),
        shutdown: CancellationToken::new(),
        health: service::Health::new(),
        metrics: service::Metrics::new(),
        spans: service::Spans::default(),
    };
    let store = store_writer::open_store(&service.config).unwrap();
    let found = store_writer::verify(&log, &*store, &service).await.unwrap();
    assert!(found.is_equal(), "{found:#?}");
    assert_eq!(found.executions, EXECUTIONS as u64);
    let (status, text) = product.answer("/api/v1/executions?limit=500").await;
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200);
    assert_eq!(listed["items"].as_array().unwrap().len(), EXECUTIONS);
    connection.close().await;
}

/// Sets NATS up with a log of so many bytes, as an operator does.
fn nats_init(product: &Product, log_bytes_max: u64) {
    let output = Command::new(binary("fist"))
        .args(["nats", "init", "--nats", &product.nats.url()])
        .env_clear()
        .env("FIST_NATS_LOG_BYTES_MAX", log_bytes_max.to_string())
        .env("FIST_NATS_ALERTS_BYTES_MAX", (64 << 20).to_string())
        .env("FIST_NATS_BLOBS_BYTES_MAX", (256 << 20).to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_full_log_admits_nothing_new_what_runs_ends_and_more_room_is_enough() {
    const LOG_BYTES: u64 = 8 << 20;
    let Some(product) = Product::start(1).await else {
        return;
    };
    nats_init(&product, LOG_BYTES);
    let connection = product.nats.connect().await;
    let log = NatsLog::open(&connection).await.unwrap();
    // Commands that hang until something is written for them.
    let gates: Vec<String> = (0..6)
        .map(|number| {
            let gate = product.directory().join(format!("gate-{number}"));
            assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
            gate.to_string_lossy().into_owned()
        })
        .collect();
    let mut running = Vec::new();
    for (number, gate) in gates.iter().enumerate() {
        running.push(submit(&product, &format!("gated-{number}"), &format!("cat {gate}")).await);
    }
    let filler = protocol::SourceName::new("filler").unwrap();
    let mut written = 0;
    while !log.stream_state(StreamId::Log).await.unwrap().is_filled_to(80) {
        let id = protocol::AlertId::new("0a").unwrap();
        let subject = Subject::Disposition(filler.clone(), id, written.to_string());
        log.write_fact(&subject, vec![b'x'; 100_000]).await.unwrap();
        written += 1;
    }
    for (path, body) in [
        ("/webhooks/webhook", r#"{"name": "Refused"}"#.to_owned()),
        ("/api/v1/executions", workflow("refused", "echo no")),
    ] {
        let refused = product
            .until("nothing new is admitted", || async {
                let answer = product.try_post(path, YAML, &body).await?;
                (answer.status() == 503).then_some(answer)
            })
            .await;
        assert!(refused.headers().contains_key("retry-after"), "{refused:?}");
        let text = refused.text().await.unwrap();
        assert!(text.contains("nats.admission_stop_percent"), "{text}");
    }
    // The reserve is theirs.
    for gate in &gates {
        fs::write(gate, "open\n").unwrap();
    }
    for id in &running {
        assert_eq!(product.ended(id).await["status"], "Succeeded");
    }
    let state = log.stream_state(StreamId::Log).await.unwrap();
    assert!(
        state.is_filled_to(80) && state.bytes_max == Some(LOG_BYTES),
        "{state:?}"
    );
    // More room, and intake goes on by itself.
    nats_init(&product, 8 * LOG_BYTES);
    let later = submit(&product, "later", "echo yes").await;
    assert_eq!(product.ended(&later).await["status"], "Succeeded");
    connection.close().await;
}
