//! Starting executions: the one way in for alerts, the API, and whatever else will start some.
//!
//! Invariants:
//! - A start is a fact, written once; the first one's spec and input stand.
//! - An execution with a derived id never starts again, not even once the log has forgotten it: its identity is
//!   remembered after the fact was acknowledged, and looked up before one is written.

use std::time::Duration;

use bus::{Log, LogError, NatsLog, Started, StartedEntry, Written};
use protocol::{
    ExecutionId, Fact, Input, Json, Namespace, SpanContext, SpanId, Start, Subject, Timestamp, TraceId,
    decode, encode,
};
use serde::{Deserialize, Serialize};
use service::{
    Metrics,
    spans::{Kind, Span},
};
use sha2::{Digest, Sha256};

/// What is remembered is written anew when it is seen again after so long; its expiry counts from there.
const REFRESH_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Starts executions. Cheap to clone.
#[derive(Clone)]
pub struct Starter {
    log: NatsLog,
    started: Started,
    metrics: Metrics,
}

/// What led to a start, for its trace.
#[derive(Clone, Copy, Debug)]
pub struct Occasion {
    /// When it came to us.
    pub since: Timestamp,
    /// The span of who sent it, where they named one.
    pub caller: Option<SpanContext>,
}

/// What became of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It started.
    New,
    /// It had been started before, by this.
    Already(First),
}

/// The start that came first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// The delivery of an alert that led to it.
    #[serde(default)]
    pub delivery: Option<String>,
    /// Digest of spec and input.
    work: String,
}

/// A start that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What it works on, where that is still known.
    pub input: Option<Json<Input>>,
}

impl First {
    fn of(start: &Start) -> Self {
        Self {
            delivery: start.delivery.clone(),
            work: work_of(start),
        }
    }

    /// Whether `start` asks for the same work: the same spec with the same input.
    pub fn is_same_work(&self, start: &Start) -> bool {
        self.work == work_of(start)
    }
}

impl Starter {
    /// Over this log, remembering in this bucket.
    pub fn new(log: NatsLog, started: Started, metrics: Metrics) -> Self {
        Self {
            log,
            started,
            metrics,
        }
    }

    /// The start of an execution, where there was one: with its input as long as the log holds it.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn find(&self, namespace: &Namespace, id: ExecutionId) -> Result<Option<Found>, LogError> {
        let subject = Subject::Start(namespace.clone(), id).to_string();
        if let Some(message) = self.log.last(&subject).await? {
            let input = match decode::<Fact>(&message.payload).map(|envelope| envelope.body) {
                Ok(Fact::Start(start)) => Some(start.input),
                // Written by a newer build: it stands, whatever it says.
                Ok(_) | Err(_) => None,
            };
            return Ok(Some(Found { input }));
        }
        Ok(self.remembered(id).await?.map(|_| Found { input: None }))
    }

    /// Starts an execution, once. Safe to repeat after an error.
    ///
    /// # Errors
    /// [`LogError`]; after a transient one it may have started.
    pub async fn start_execution(&self, start: &Start, occasion: &Occasion) -> Result<Outcome, LogError> {
        let id = start.execution;
        if !is_derived(id) {
            return self.written(start, occasion).await;
        }
        if let Some((first, entry)) = self.remembered(id).await? {
            if self.log.now().since(entry.at) >= REFRESH_AFTER {
                // A conflict means that another process refreshed it just now.
                self.started
                    .refresh(&key(id), entry.value, entry.revision)
                    .await?;
            }
            return Ok(Outcome::Already(first));
        }
        let outcome = self.written(start, occasion).await?;
        let first = match &outcome {
            Outcome::New => First::of(start),
            Outcome::Already(first) => first.clone(),
        };
        let value = serde_json::to_vec(&first).unwrap_or_default();
        // A conflict means that another process remembered the same.
        self.started.create(&key(id), value.into()).await?;
        Ok(outcome)
    }

    async fn written(&self, start: &Start, occasion: &Occasion) -> Result<Outcome, LogError> {
        let subject = Subject::Start(start.namespace.clone(), start.execution);
        let fact = encode(self.log.now(), &Fact::Start(Box::new(start.clone())));
        match self.log.write_fact(&subject, fact).await? {
            Written::New(_) => {
                self.metrics.execution_started(&start.trigger_source);
                self.record(start, occasion);
                tracing::info!(
                    execution = %start.execution,
                    workflow = %start.workflow,
                    namespace = %start.namespace,
                    source = start.trigger_source,
                    "execution accepted"
                );
                Ok(Outcome::New)
            }
            Written::Already => Ok(Outcome::Already(self.stands(&subject, start).await?)),
        }
    }

    /// The span from what led to an execution to its start.
    fn record(&self, start: &Start, occasion: &Occasion) {
        let trace = TraceId::of(start.execution);
        self.log.spans().record(trace, || Span {
            trace,
            id: SpanId::of_part(start.execution, &["intake"]),
            parent: Some(SpanId::of_execution(start.execution)),
            name: format!("intake {}", start.trigger_source),
            kind: match (&start.delivery, &start.uid) {
                (Some(_), _) => Kind::Consumer,
                (None, Some(_)) => Kind::Internal,
                (None, None) => Kind::Server,
            },
            began: occasion.since,
            ended: self.log.now(),
            attributes: vec![
                ("fist.execution.id", start.execution.to_string().into()),
                ("fist.workflow.name", start.workflow.as_str().into()),
                ("fist.trigger.source", start.trigger_source.as_str().into()),
            ],
            error: None,
            link: occasion.caller,
        });
    }

    /// The start that stands in the log.
    async fn stands(&self, subject: &Subject, start: &Start) -> Result<First, LogError> {
        let unknown = || First {
            delivery: None,
            ..First::of(start)
        };
        let Some(message) = self.log.last(&subject.to_string()).await? else {
            // It expired between the two requests.
            return Ok(unknown());
        };
        Ok(
            match decode::<Fact>(&message.payload).map(|envelope| envelope.body) {
                Ok(Fact::Start(first)) => First::of(&first),
                // Written by a newer build: it stands, whatever it says.
                Ok(_) | Err(_) => unknown(),
            },
        )
    }

    async fn remembered(&self, id: ExecutionId) -> Result<Option<(First, StartedEntry)>, LogError> {
        let Some(entry) = self.started.get(&key(id)).await? else {
            return Ok(None);
        };
        let first = serde_json::from_slice(&entry.value).map_err(|error| LogError::Damaged {
            what: format!("what is remembered of execution {id}"),
            reason: error.to_string(),
        })?;
        Ok(Some((first, entry)))
    }
}

fn key(id: ExecutionId) -> String {
    format!("exec-{id}")
}

/// Ids that are made anew each time cannot come twice, and need not be remembered.
fn is_derived(id: ExecutionId) -> bool {
    id.as_uuid().get_version_num() == 5
}

fn work_of(start: &Start) -> String {
    let mut hash = Sha256::new();
    for part in [start.spec.as_str(), start.input.as_str()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    crate::sources::hex(&hash.finalize(), 32)
}
