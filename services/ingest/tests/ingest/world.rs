//! A nats-server with ingest before it, and the means to ask both.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Appended, Connection, Log as _, LogMessage, NatsLog, Written, testing::TestNats};
use protocol::{Append, Disposition, Fact, SourceName, Start, Subject, decode, encode};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use service::{Config, Fatal, Health, Metrics, Service};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// How long anything may take to come about on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOKS_EVERY: Duration = Duration::from_millis(10);

/// One running ingest.
pub struct Ingest {
    pub base: String,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), Fatal>>,
}

impl Ingest {
    pub async fn start(nats: &TestNats, file: &str) -> Self {
        service::install_crypto();
        let url = [("FIST_NATS_URL".to_owned(), nats.url())];
        let config = Config::parse(Some(("test.toml", file)), url.into_iter()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let service = Service {
            name: "ingest",
            config: Arc::new(config),
            shutdown: CancellationToken::new(),
            health: Health::new(),
            metrics: Metrics::new(),
            spans: service::Spans::default(),
        };
        let shutdown = service.shutdown.clone();
        let running = tokio::spawn(Box::pin(ingest::run_at(service, listener)));
        let this = Self {
            base,
            shutdown,
            running,
        };
        let client = Client::new();
        let ready = format!("{}/readyz", this.base);
        until("ingest is ready", || async {
            let answer = client.get(&ready).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        this
    }

    /// Ends it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    /// Ends it like a crash.
    pub async fn kill(&mut self) {
        self.running.abort();
        let _ = (&mut self.running).await;
    }
}

/// A nats-server, one ingest, and a client.
pub struct World {
    pub nats: TestNats,
    pub connection: Connection,
    pub log: NatsLog,
    pub ingest: Ingest,
    pub client: Client,
    _records: Option<Records>,
}

/// A store-writer on SQLite.
struct Records {
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Drop for Records {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Records {
    async fn start(nats: &TestNats) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("fist.db").display());
        let variables = [
            ("FIST_NATS_URL".to_owned(), nats.url()),
            ("FIST_DATABASE_URL".to_owned(), url),
        ];
        let service = Service {
            name: "store-writer",
            config: Arc::new(Config::parse(None, variables.into_iter()).unwrap()),
            shutdown: CancellationToken::new(),
            health: Health::new(),
            metrics: Metrics::new(),
            spans: service::Spans::default(),
        };
        let (health, shutdown) = (service.health.clone(), service.shutdown.clone());
        tokio::spawn(Box::pin(store_writer::run(service)));
        until("store-writer is ready", || async { health.readiness().ok() }).await;
        Self {
            shutdown,
            _directory: directory,
        }
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// With a store-writer, so that everything can be read.
    pub async fn with_records(file: &str) -> Self {
        let mut world = Self::with(file).await;
        world._records = Some(Records::start(&world.nats).await);
        world
    }

    /// Writes to the lane of an execution, as the scheduler does.
    pub async fn lane(&self, subject: &Subject, append: &Append) -> u64 {
        let (namespace, id) = subject.execution().unwrap();
        let filter = protocol::subjects::lane_filter(namespace, id);
        let last = self
            .log
            .last(&filter)
            .await
            .unwrap()
            .map_or(0, |message| message.seq);
        match self
            .log
            .append(subject, encode(self.log.now(), append), last)
            .await
            .unwrap()
        {
            Appended::At(seq) => seq,
            Appended::Conflict => panic!("nobody else writes here"),
        }
    }

    /// Writes a fact, as runners do.
    pub async fn fact(&self, subject: &Subject, fact: &Fact) {
        let payload = encode(self.log.now(), fact);
        assert!(matches!(
            self.log.write_fact(subject, payload).await.unwrap(),
            Written::New(_)
        ));
    }

    /// With this configuration.
    pub async fn with(file: &str) -> Self {
        let (nats, connection) = TestNats::ready().await;
        let log = NatsLog::open(&connection).await.unwrap();
        let ingest = Ingest::start(&nats, file).await;
        Self {
            nats,
            connection,
            log,
            ingest,
            client: Client::new(),
            _records: None,
        }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.ingest.base))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.ingest.base))
    }

    /// Applies a manifest in YAML.
    pub async fn apply(&self, manifest: &str) -> Value {
        let request = self
            .post("/api/v1/workflows")
            .header("content-type", "application/yaml");
        answered(request.body(manifest.to_owned()), 200).await
    }

    /// Posts alerts as JSON, and expects them to be accepted.
    pub async fn webhook(&self, source: &str, body: &str) -> Value {
        answered(
            self.post(&format!("/webhooks/{source}")).body(body.to_owned()),
            202,
        )
        .await
    }

    /// Publishes straight to the stream.
    pub async fn publish(&self, source: &str, body: &str) -> u64 {
        let source = SourceName::new(source).unwrap();
        self.log
            .publish_intake(&source, body.as_bytes().to_vec(), None)
            .await
            .unwrap()
    }

    pub async fn messages(&self) -> Vec<LogMessage> {
        self.log.read_from(1, 10_000).await.unwrap()
    }

    /// All dispositions in the order of their alerts, whichever was recorded first.
    pub async fn dispositions(&self) -> Vec<Disposition> {
        let all = self.messages().await;
        let alerts = all
            .iter()
            .filter(|message| message.subject.starts_with("fist.alert."));
        let mut found: Vec<Disposition> = alerts
            .map(|message| decode::<Disposition>(&message.payload).unwrap().body)
            .collect();
        found.sort_by_key(|each| (each.delivery_seq, each.delivery.len(), each.delivery.clone()));
        found
    }

    /// Waits until this many alerts are recorded and nothing waits, and gives their dispositions.
    pub async fn recorded(&self, count: usize) -> Vec<Disposition> {
        let found = until(&format!("{count} alerts are recorded"), || async {
            let waiting = self
                .log
                .stream_state(bus::StreamId::Alerts)
                .await
                .unwrap()
                .messages;
            let found = self.dispositions().await;
            (found.len() >= count && waiting == 0).then_some(found)
        })
        .await;
        assert_eq!(found.len(), count, "{found:#?}");
        found
    }

    /// All starts in the order in which they were written.
    pub async fn starts(&self) -> Vec<Start> {
        let all = self.messages().await;
        let starts = all
            .iter()
            .filter(|message| matches!(Subject::parse(&message.subject), Ok(Subject::Start(..))));
        let read = |message: &LogMessage| match decode::<Fact>(&message.payload).unwrap().body {
            Fact::Start(start) => *start,
            other => panic!("{other:?}"),
        };
        starts.map(read).collect()
    }
}

/// Waits for a condition.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never came about: {what}");
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

/// Sends a request and expects a status and a JSON body.
#[track_caller]
pub fn answered(request: RequestBuilder, status: u16) -> impl Future<Output = Value> {
    let caller = std::panic::Location::caller();
    async move {
        let response = request.send().await.unwrap();
        let found = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(found.as_u16(), status, "{caller}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{caller}: {error}: {text}"))
    }
}

/// Sends a request and expects a problem with this status, whose detail holds these words.
#[track_caller]
pub fn refused(request: RequestBuilder, status: u16, words: &str) -> impl Future<Output = Value> {
    let caller = std::panic::Location::caller();
    let words = words.to_owned();
    async move {
        let response = request.send().await.unwrap();
        assert_is_problem(&response, caller);
        let found = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(found.as_u16(), status, "{caller}: {body}");
        assert_eq!(body["status"], status, "{caller}: {body}");
        assert!(
            body["detail"].as_str().unwrap().contains(&words),
            "{caller}: {body}"
        );
        body
    }
}

fn assert_is_problem(response: &Response, caller: &std::panic::Location<'_>) {
    let media_type = response
        .headers()
        .get("content-type")
        .map(|value| value.to_str().unwrap());
    assert_eq!(media_type, Some("application/problem+json"), "{caller}");
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        assert!(response.headers().contains_key("retry-after"), "{caller}");
    }
}

/// A definition that alerts of this source start, with these filters in YAML.
pub fn definition(name: &str, source: &str, filters: &str) -> String {
    format!(
        r#"
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: {name}
spec:
  trigger:
    source: {source}
    filters: {{{filters}}}
  steps:
    - name: look
      type: cli
      command: echo {{{{ source.data.pod }}}}
"#
    )
}

/// Alertmanager's payload with one alert for each `(name, fingerprint, status)`.
pub fn group(alerts: &[(&str, &str, &str)]) -> String {
    let alerts: Vec<Value> = alerts
        .iter()
        .map(|(name, fingerprint, status)| {
            serde_json::json!({
                "status": status,
                "labels": { "alertname": name, "severity": "critical", "pod": "web-1", "namespace": "prod" },
                "annotations": { "summary": "it is broken" },
                "startsAt": "2026-01-02T03:04:05.678Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus/graph",
                "fingerprint": fingerprint,
            })
        })
        .collect();
    serde_json::json!({
        "version": "4", "groupKey": "{}:{alertname=\"A\"}", "truncatedAlerts": 0, "status": "firing",
        "receiver": "fist", "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {},
        "externalURL": "http://alertmanager", "alerts": alerts,
    })
    .to_string()
}
