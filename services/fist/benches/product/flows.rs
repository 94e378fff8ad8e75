//! Flows, and how they are driven: so many in flight, from their start fact to the end on their lane.
//!
//! Invariant: the product and the bare protocol are driven and observed by the same code here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Follow, Log as _, LogMessage, NatsLog, Position};
use bytes::Bytes;
use engine::{context::input_of_alert, manifest::Spec};
use futures_util::StreamExt as _;
use protocol::{Alert, ExecutionId, Fact, Json, Namespace, Start, Subject, WorkflowName, encode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::world::PATIENCE;

/// Of what kind a flow's steps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Conditions, which the scheduler settles.
    Conditional,
    /// Tasks that a runner answers at once.
    InProcess,
    /// The command `true`, as a process of this machine.
    Cli,
    /// Agents with the scripted provider: one turn, which submits findings.
    Agent,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Conditional => "conditional",
            Self::InProcess => "in-process",
            Self::Cli => "cli `true`",
            Self::Agent => "agent, scripted",
        }
    }

    fn step(self, number: usize) -> Value {
        let name = format!("step-{number}");
        match self {
            Self::Conditional => {
                json!({"name": name, "type": "conditional", "condition": "{{ source.data.severity }} == \"critical\""})
            }
            Self::InProcess | Self::Cli => json!({"name": name, "type": "cli", "command": "true"}),
            Self::Agent => json!({"name": name, "type": "agent", "goal": "Look at {{ alert.name }}"}),
        }
    }
}

/// The script of the agents.
pub const SCRIPT: &str = "turns:\n  - submit_findings:\n      summary: Nothing to see.\n      root_cause: none\n      confidence: 0.9\n";

/// Starts of one workflow.
#[derive(Clone)]
pub struct Workflow {
    start: Start,
    pub steps: usize,
    /// A start fact before and after its execution's id: what is measured is not who writes it.
    message: (String, String),
}

impl Workflow {
    /// So many steps of one kind, one after another, started by an alert of ordinary size.
    pub fn new(kind: Kind, steps: usize) -> Self {
        let list: Vec<Value> = (0..steps).map(|number| kind.step(number)).collect();
        let mut spec = json!({"steps": list});
        if kind == Kind::Agent {
            spec["runtime"] = json!({"llm_config": {"provider": "scripted", "model": "bench"}});
        }
        // As admission writes it.
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let alert: Alert = serde_json::from_value(json!({
            "source": "alertmanager", "name": "KubePodCrashLooping", "severity": "critical", "status": "firing",
            "fingerprint": "c1f2a9b0d3e45678", "starts_at": "2026-01-01T00:00:00Z",
            "labels": {
                "alertname": "KubePodCrashLooping", "severity": "critical", "cluster": "eu-1", "namespace": "payments",
                "pod": "api-7d9c5b6f4-x2x9k", "container": "api", "job": "kube-state-metrics",
            },
            "annotations": {
                "summary": "Pod payments/api-7d9c5b6f4-x2x9k (api) is restarting 1.05 times / 10 minutes.",
                "runbook_url": "https://runbooks.example.com/kubepodcrashlooping",
            },
        }))
        .unwrap();
        let start = Start {
            namespace: Namespace::default(),
            execution: ExecutionId::from_uuid(uuid::Uuid::now_v7()),
            workflow: WorkflowName::new("bench").unwrap(),
            trigger_source: alert.source.to_string(),
            spec: Json::of(&serde_json::to_value(spec).unwrap()).unwrap(),
            input: Json::of(&input_of_alert(&alert, std::slice::from_ref(&alert))).unwrap(),
            delivery: None,
            uid: None,
        };
        Self::of(start, steps)
    }

    fn of(start: Start, steps: usize) -> Self {
        let id = start.execution.to_string();
        let fact = Fact::Start(Box::new(start.clone()));
        let text = String::from_utf8(encode(service::clock::now(), &fact)).unwrap();
        let (before, after) = text.split_once(&id).unwrap();
        Self {
            message: (before.to_owned(), after.to_owned()),
            start,
            steps,
        }
    }

    /// One command that takes longer than anybody measures.
    pub fn sleeping() -> Self {
        let mut workflow = Self::new(Kind::Cli, 1);
        let mut spec = workflow.start.spec.read();
        spec["steps"][0]["command"] = json!("sleep 600");
        workflow.start.spec = Json::of(&spec).unwrap();
        Self::of(workflow.start, workflow.steps)
    }

    /// A start fact of its own.
    pub fn start(&self, execution: ExecutionId) -> (Subject, Vec<u8>) {
        let subject = Subject::Start(self.start.namespace.clone(), execution);
        let (before, after) = &self.message;
        (subject, format!("{before}{execution}{after}").into_bytes())
    }
}

/// Who starts flows.
pub trait Starter: Send + Sync + 'static {
    /// Starts one; what it wrote is durable when this returns.
    fn start(&self, execution: ExecutionId) -> impl Future<Output = ()> + Send;
}

/// Starts flows as ingest does.
pub struct Product {
    pub log: NatsLog,
    pub workflow: Workflow,
}

impl Starter for Product {
    async fn start(&self, execution: ExecutionId) {
        let (subject, payload) = self.workflow.start(execution);
        self.log.write_fact(&subject, payload).await.unwrap();
    }
}

/// What ended, as the log says.
pub struct Ends(Follow);

impl Ends {
    pub async fn follow(log: &NatsLog) -> Self {
        let filters = ["fist.cmd.note.>", "fist.cmd.cancel.>"];
        let filters = filters.map(str::to_owned).to_vec();
        Self(log.follow(filters, Position::New).await.unwrap())
    }

    /// The next execution that ended.
    async fn next(&mut self) -> ExecutionId {
        loop {
            let message: LogMessage = tokio::time::timeout(PATIENCE, self.0.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            // Plans are notes, too; ours have no steps side by side, so that every note is an end.
            if let Some((_, id)) = Subject::parse(&message.subject).unwrap().execution() {
                return id;
            }
        }
    }

    /// Waits until these have ended.
    async fn of(&mut self, mut ids: std::collections::HashSet<ExecutionId>) {
        while !ids.is_empty() {
            ids.remove(&self.next().await);
        }
    }
}

/// What a drive came to.
#[derive(Clone, Debug)]
pub struct Driven {
    pub flows: usize,
    pub took: Duration,
    /// From before the start fact was written until the end was read, of each flow.
    pub latencies: Vec<Duration>,
}

impl Driven {
    pub fn flows_per_s(&self) -> f64 {
        self.flows as f64 / self.took.as_secs_f64()
    }

    /// So that `part` of all flows took at most this, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let index = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1;
        sorted[index].as_secs_f64() * 1000.0
    }
}

/// Starts flows for `time`, at most `in_flight` of them unfinished at any moment, and waits for the last.
pub async fn drive<S: Starter>(
    starter: &Arc<S>,
    ends: &mut Ends,
    in_flight: usize,
    time: Duration,
) -> Driven {
    let free = Arc::new(Semaphore::new(in_flight));
    let began = Instant::now();
    let (tell, mut started) = tokio::sync::mpsc::unbounded_channel();
    let starting = {
        let (starter, free) = (Arc::clone(starter), Arc::clone(&free));
        tokio::spawn(async move {
            while began.elapsed() < time {
                // Given back when its flow has ended.
                free.acquire().await.unwrap().forget();
                let id = ExecutionId::from_uuid(uuid::Uuid::now_v7());
                // The channel has no bound of its own: there are at most `in_flight` in it.
                tell.send((id, Instant::now())).unwrap();
                let starter = Arc::clone(&starter);
                tokio::spawn(async move { starter.start(id).await });
            }
        })
    };
    let mut open: HashMap<ExecutionId, Instant> = HashMap::new();
    let mut latencies = Vec::new();
    let mut is_over = false;
    while !is_over || !open.is_empty() {
        tokio::select! {
            biased;
            next = started.recv(), if !is_over => match next {
                Some((id, at)) => { open.insert(id, at); }
                None => is_over = true,
            },
            id = ends.next(), if !open.is_empty() => {
                // Its start may have been told since this was last asked for.
                while let Ok((id, at)) = started.try_recv() {
                    open.insert(id, at);
                }
                if let Some(at) = open.remove(&id) {
                    latencies.push(at.elapsed());
                    free.add_permits(1);
                }
            }
        }
    }
    starting.await.unwrap();
    Driven {
        flows: latencies.len(),
        took: began.elapsed(),
        latencies,
    }
}

/// Starts one flow, and waits for its end.
pub async fn one<S: Starter>(starter: &S, ends: &mut Ends) -> Duration {
    let id = ExecutionId::from_uuid(uuid::Uuid::now_v7());
    let began = Instant::now();
    let ((), ()) = tokio::join!(starter.start(id), ends.of([id].into()));
    began.elapsed()
}

/// The middle one.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Bytes of nothing, as long as messages of the product are on average.
pub fn filler(bytes: usize) -> Bytes {
    Bytes::from(vec![b'x'; bytes])
}

/// How long the messages of one flow are, by the first tokens of their subjects.
pub async fn sizes(log: &NatsLog, from_seq: u64) -> BTreeMap<String, usize> {
    let mut sizes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for message in log.read_from(from_seq, 64).await.unwrap() {
        let tokens: Vec<&str> = message.subject.split('.').collect();
        let kind = match tokens[1] {
            "cmd" => tokens[2],
            "turn" => "turn",
            _ => tokens[tokens.len() - 1],
        };
        let (count, bytes) = sizes.entry(kind.to_owned()).or_default();
        *count += 1;
        *bytes += message.payload.len();
    }
    sizes
        .into_iter()
        .map(|(kind, (count, bytes))| (kind, bytes / count))
        .collect()
}
