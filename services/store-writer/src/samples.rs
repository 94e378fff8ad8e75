//! Histories for tests: the messages of executions as the scheduler and runners write them.

use std::time::Duration;

use protocol::{
    Alert, AlertId, AlertStatus, Append, Attempt, Body, Cancel, Cause, Disposition, DispositionKind, Done,
    End, EndStatus, ExecutionId, Fact, Input, Json, LaneAction, Namespace, Outcome, SourceName, Start,
    StepError, StepFailure, StepName, StepRecord, StepStatus, Subject, Task, TaskType, Timestamp,
    WorkflowName, encode,
};
use serde_json::{Value, json};

use crate::{
    reading::{Message, Reading, read},
    record::{Record, Touched},
    store::Batch,
};

/// 2026-01-01T00:00:00Z.
pub(crate) const EPOCH_MS: i64 = 1_767_225_600_000;

/// A message of the log.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub subject: Subject,
    pub seq: u64,
    pub at: Timestamp,
    pub payload: Vec<u8>,
}

/// Messages of one execution, in the order of the log. Each takes a second.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub id: ExecutionId,
    pub namespace: Namespace,
    pub workflow: WorkflowName,
    pub messages: Vec<Stored>,
    next_seq: u64,
}

pub(crate) fn instant(second: u64) -> Timestamp {
    Timestamp::from_millis(EPOCH_MS).after(Duration::from_secs(second))
}

fn step(name: &str) -> StepName {
    StepName::new(name).expect("a step's name")
}

pub(crate) fn failure(reason: StepFailure, message: &str) -> Outcome {
    Outcome::Failed(StepError {
        reason,
        message: message.to_owned(),
    })
}

impl History {
    /// An execution of `workflow` that is told from others by `key`; its first message has `first_seq`.
    pub(crate) fn new(workflow: &str, key: &str, first_seq: u64) -> Self {
        Self {
            id: ExecutionId::derive(&[workflow, key]),
            namespace: Namespace::default(),
            workflow: WorkflowName::new(workflow).expect("a workflow's name"),
            messages: Vec::new(),
            next_seq: first_seq,
        }
    }

    fn push(mut self, subject: Subject, payload: Vec<u8>) -> Self {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.messages.push(Stored {
            subject,
            seq,
            at: instant(seq),
            payload,
        });
        self
    }

    fn fact(self, subject: Subject, fact: &Fact) -> Self {
        let at = instant(self.next_seq);
        self.push(subject, encode(at, fact))
    }

    fn lane(self, subject: Subject, records: Vec<StepRecord>, action: LaneAction) -> Self {
        let cause = Cause {
            subject: Subject::Start(self.namespace.clone(), self.id).to_string(),
            seq: self.next_seq - 1,
        };
        let at = instant(self.next_seq);
        self.push(
            subject,
            encode(
                at,
                &Append {
                    cause,
                    records,
                    action,
                },
            ),
        )
    }

    pub(crate) fn start(self, steps: &[(&str, &str)]) -> Self {
        let steps: Vec<Value> = steps
            .iter()
            .map(|(name, step_type)| json!({ "name": name, "type": step_type }))
            .collect();
        let start = Start {
            namespace: self.namespace.clone(),
            execution: self.id,
            workflow: self.workflow.clone(),
            trigger_source: "alertmanager".to_owned(),
            spec: Json::of(&json!({ "steps": steps })).expect("readable"),
            input: Json::of(&Input {
                data: [("pod".to_owned(), json!("web-1"))].into_iter().collect(),
                alert: Some([("name".to_owned(), json!("PodCrash"))].into_iter().collect()),
            })
            .expect("readable"),
            delivery: None,
            uid: None,
        };
        let subject = Subject::Start(self.namespace.clone(), self.id);
        self.fact(subject, &Fact::Start(Box::new(start)))
    }

    pub(crate) fn task(self, name: &str) -> Self {
        let at = instant(self.next_seq);
        let task = Task {
            namespace: self.namespace.clone(),
            execution: self.id,
            workflow: self.workflow.clone(),
            step: step(name),
            index: 0,
            attempt: Attempt::FIRST,
            task_type: TaskType::cli(),
            dispatched_at: at,
            deadline: at.after(Duration::from_secs(600)),
            timeout: "10 minutes".to_owned(),
            work: json!({ "command": "true" }),
        };
        let subject = Subject::Command(TaskType::cli(), self.namespace.clone(), self.id);
        self.lane(subject, Vec::new(), LaneAction::Task(Box::new(task)))
    }

    pub(crate) fn done(self, name: &str, outcome: Outcome, output: Option<Body>) -> Self {
        let at = instant(self.next_seq);
        let done = Done {
            step: step(name),
            attempt: Attempt::FIRST,
            outcome,
            output,
            started_at: at,
            completed_at: at.after(Duration::from_millis(500)),
            runner: "runner-1".to_owned(),
        };
        let subject = Subject::Done(self.namespace.clone(), self.id, step(name), Attempt::FIRST);
        self.fact(subject, &Fact::Done(done))
    }

    pub(crate) fn succeeded(self, name: &str, output: Value) -> Self {
        self.done(name, Outcome::Succeeded, Some(Body::Inline(output)))
    }

    pub(crate) fn cancel_request(self) -> Self {
        let subject = Subject::CancelRequest(self.namespace.clone(), self.id, 0);
        self.fact(
            subject,
            &Fact::Cancel(Cancel {
                reason: "enough".to_owned(),
            }),
        )
    }

    pub(crate) fn record(
        &self,
        name: &str,
        status: StepStatus,
        output: Option<Value>,
        error: Option<&str>,
    ) -> StepRecord {
        StepRecord {
            step: step(name),
            index: 0,
            attempt: Attempt::FIRST,
            status,
            output,
            error: error.map(|message| StepError {
                reason: StepFailure::Timeout,
                message: message.to_owned(),
            }),
            message: None,
            at: instant(self.next_seq),
        }
    }

    pub(crate) fn end(
        self,
        records: Vec<StepRecord>,
        status: EndStatus,
        error: Option<&str>,
        failed: Option<&str>,
    ) -> Self {
        let end = End {
            status,
            error: error.map(str::to_owned),
            failed_step: failed.map(step),
            at: instant(self.next_seq),
        };
        let subject = match status {
            EndStatus::Cancelled => Subject::Cancel(self.namespace.clone(), self.id),
            EndStatus::Succeeded | EndStatus::Failed => Subject::Note(self.namespace.clone(), self.id),
        };
        self.lane(subject, records, LaneAction::End(end))
    }

    /// Two steps, all well.
    pub(crate) fn success(workflow: &str, key: &str, first_seq: u64) -> Self {
        Self::new(workflow, key, first_seq)
            .start(&[("check", "cli"), ("decide", "conditional")])
            .task("check")
            .succeeded("check", json!({ "stdout": "ok", "exit_code": 0 }))
            .decide()
    }

    fn decide(self) -> Self {
        let mut record = self.record(
            "decide",
            StepStatus::Succeeded,
            Some(json!({ "condition_met": true })),
            None,
        );
        record.message = Some("1 == 1".to_owned());
        self.end(vec![record], EndStatus::Succeeded, None, None)
    }

    /// One step done, the second timed out, and its runner reports after that and after the end.
    pub(crate) fn timed_out(workflow: &str, key: &str, first_seq: u64) -> Self {
        let history = Self::new(workflow, key, first_seq)
            .start(&[("check", "cli"), ("fix", "cli"), ("verify", "cli")])
            .task("check")
            .succeeded("check", json!({ "stdout": "bad" }))
            .task("fix");
        let why = "step fix ran longer than its 10 minutes";
        let record = history.record("fix", StepStatus::Failed, None, Some(why));
        history
            .end(vec![record], EndStatus::Failed, Some(why), Some("fix"))
            .done(
                "fix",
                Outcome::Succeeded,
                Some(Body::Inline(json!({ "stdout": "half" }))),
            )
    }

    /// Cancelled while the second step ran, which its runner reports afterwards.
    pub(crate) fn cancelled(workflow: &str, key: &str, first_seq: u64) -> Self {
        Self::new(workflow, key, first_seq)
            .start(&[("check", "cli"), ("fix", "cli")])
            .task("check")
            .succeeded("check", json!({ "stdout": "bad" }))
            .task("fix")
            .cancel_request()
            .end(Vec::new(), EndStatus::Cancelled, Some("cancelled: enough"), None)
            .done(
                "fix",
                failure(StepFailure::Cancelled, "stopped"),
                Some(Body::Inline(json!({ "stdout": "part" }))),
            )
    }

    /// The record of all messages.
    pub(crate) fn fold(&self) -> Record {
        fold(&self.messages)
    }

    /// All messages as one batch.
    pub(crate) fn batch(&self) -> Batch {
        batch(&self.messages)
    }
}

/// The record of `messages`, in this order.
pub(crate) fn fold(messages: &[Stored]) -> Record {
    let (mut record, mut touched) = (Record::default(), Touched::default());
    for message in messages {
        match message.read() {
            Reading::Change(change) => record.apply(change, &mut touched),
            Reading::Alert(_) | Reading::Nothing => {}
        }
    }
    record
}

/// `messages` as one batch.
pub(crate) fn batch(messages: &[Stored]) -> Batch {
    let mut batch = Batch::default();
    for message in messages {
        match message.read() {
            Reading::Change(change) => batch.push(change),
            Reading::Alert(entry) => batch.alerts.push(*entry),
            Reading::Nothing => {}
        }
    }
    batch
}

impl Stored {
    pub(crate) fn read(&self) -> Reading {
        let message = Message {
            subject: &self.subject.to_string(),
            seq: self.seq,
            at: self.at,
            payload: &self.payload,
        };
        read(message).expect("a message that can be read")
    }
}

/// The disposition of one alert of message `delivery_seq`, which held `of` of them.
pub(crate) fn disposition(seq: u64, delivery_seq: u64, index: u32, of: u32, kind: DispositionKind) -> Stored {
    let source = SourceName::new("alertmanager").expect("a source's name");
    let id = AlertId::new(format!("{:08x}", delivery_seq * 100 + u64::from(index))).expect("an alert's id");
    let delivery = if index == 0 {
        delivery_seq.to_string()
    } else {
        format!("{delivery_seq}-{index}")
    };
    let is_readable = kind != DispositionKind::Rejected;
    let body = Disposition {
        id: id.clone(),
        delivery: delivery.clone(),
        delivery_seq,
        delivery_alerts: of,
        source: source.clone(),
        alert: is_readable.then(|| Alert {
            source: source.clone(),
            name: "PodCrash".to_owned(),
            severity: "critical".to_owned(),
            status: AlertStatus::Firing,
            fingerprint: format!("f{index}"),
            starts_at: Some(instant(0)),
            ends_at: None,
            labels: [("pod".to_owned(), json!("web-1"))].into_iter().collect(),
            annotations: Default::default(),
        }),
        disposition: kind,
        reason: "because".to_owned(),
        executions: vec![ExecutionId::derive(&["x"])],
        received_at: instant(delivery_seq),
    };
    Stored {
        subject: Subject::Disposition(source, id, delivery),
        seq,
        at: instant(seq),
        payload: encode(instant(seq), &body),
    }
}
