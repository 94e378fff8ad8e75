//! Whatever stands in the log, an execution that was accepted ends: with a result that cannot be read, a task that
//! is too large for a message, a lane that makes no sense. On the simulated broker, in virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bus::{
    Appended, Blobs, Consume, Log, StreamId,
    sim::{Faults, SimBroker, SimLog},
};
use engine::{Rules, fixgate::Gate};
use protocol::{
    Append, Attempt, BlobRef, Body, Cancel, Cause, Done, End, EndStatus, ExecutionId, Fact, Input, Json,
    LaneAction, Namespace, Outcome, Start, StepName, Subject, Task, WorkflowName,
};
use serde_json::{Value, json};
use service::Metrics;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Steps of these tests may take this long. What is wrong must show long before.
const STEP_SECONDS: u64 = 7200;
/// A fact that contradicts the log is given some minutes for the log to catch up.
const ENDS_WITHIN: Duration = Duration::from_secs(600);

struct World {
    broker: SimBroker,
    log: SimLog,
    execution: ExecutionId,
}

impl World {
    /// A broker without faults, and one scheduler.
    fn new() -> Self {
        let broker = SimBroker::new(1, Faults::default());
        let rules = Rules {
            timer_grace: Duration::from_secs(10),
            gate: Gate::default(),
            propose_namespaces: Vec::new(),
        };
        let options = Consume {
            concurrency: 4,
            poison_after: 50,
            drain: Duration::from_secs(1),
        };
        tokio::spawn(scheduler::decide_facts(
            broker.client(),
            Blobs::in_memory(),
            rules,
            // No state is kept from one execution's fact to the next but one's.
            1,
            Metrics::new(),
            options,
            CancellationToken::new(),
        ));
        Self {
            log: broker.client(),
            broker,
            execution: ExecutionId::derive(&["always ends"]),
        }
    }

    async fn put(&self, subject: &Subject, body: Vec<u8>) {
        self.log.write_fact(subject, body).await.unwrap();
    }

    async fn write(&self, subject: &Subject, fact: &Fact) {
        self.put(subject, protocol::encode(self.log.now(), fact)).await;
    }

    async fn start(&self, spec: Value, input: Input) {
        let start = Start {
            namespace: Namespace::default(),
            execution: self.execution,
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&spec).unwrap(),
            input: Json::of(&input).unwrap(),
            delivery: None,
            uid: None,
        };
        let subject = Subject::Start(Namespace::default(), self.execution);
        self.write(&subject, &Fact::Start(Box::new(start))).await;
    }

    fn done(step: &str) -> Done {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        Done {
            step: StepName::new(step).unwrap(),
            attempt: Attempt::FIRST,
            outcome: Outcome::Succeeded,
            output: None,
            started_at: at,
            completed_at: at,
            runner: "test".into(),
        }
    }

    fn done_subject(&self, step: &str) -> Subject {
        let step = StepName::new(step).unwrap();
        Subject::Done(Namespace::default(), self.execution, step, Attempt::FIRST)
    }

    async fn cancel(&self) {
        let subject = Subject::CancelRequest(Namespace::default(), self.execution, 0);
        let cancel = Cancel {
            reason: "by hand".into(),
        };
        self.write(&subject, &Fact::Cancel(cancel)).await;
    }

    fn lane(&self) -> Vec<Append> {
        let messages = self.broker.messages(StreamId::Log).into_iter();
        messages
            .filter(|message| message.subject.starts_with("fist.cmd."))
            .map(|message| protocol::decode(&message.payload).unwrap().body)
            .collect()
    }

    fn dead_letters(&self) -> usize {
        self.broker.messages(StreamId::DeadLetters).len()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(
                began.elapsed() < ENDS_WITHIN,
                "not within {ENDS_WITHIN:?}: {what}; the lane: {:#?}",
                self.lane()
            );
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn handed_out(&self, step: &str) {
        self.until(&format!("{step} is handed out"), |world| {
            world
                .lane()
                .iter()
                .any(|append| matches!(&append.action, LaneAction::Task(task) if task.step.as_str() == step))
        })
        .await;
    }

    /// Another scheduler hands out a step, and this one has not heard of it.
    async fn another_hands_out(&self, step: &str) {
        let messages = self.broker.messages(StreamId::Log);
        let (start, last) = (&messages[0], messages.last().unwrap());
        let mut task: Task = match protocol::decode::<Append>(&last.payload).unwrap().body.action {
            LaneAction::Task(task) => *task,
            other => panic!("{other:?}"),
        };
        task.step = StepName::new(step).unwrap();
        let subject = Subject::Command(task.task_type.clone(), Namespace::default(), self.execution);
        let append = Append {
            cause: Cause {
                subject: start.subject.clone(),
                seq: start.seq,
            },
            records: Vec::new(),
            action: LaneAction::Task(Box::new(task)),
        };
        let body = protocol::encode(self.log.now(), &append);
        let written = self.log.append(&subject, body, last.seq).await;
        assert!(matches!(written, Ok(Appended::At(_))));
    }

    /// The one end.
    async fn end(&self) -> End {
        let ends = |world: &Self| -> Vec<End> {
            let lane = world.lane().into_iter();
            lane.filter_map(|append| match append.action {
                LaneAction::End(end) => Some(end),
                LaneAction::Task(_) | LaneAction::Plan(_) => None,
            })
            .collect()
        };
        self.until("the execution ends", |world| !ends(world).is_empty())
            .await;
        // Whatever else is under way changes nothing.
        sleep(Duration::from_secs(2 * STEP_SECONDS)).await;
        let mut ends = ends(self);
        assert_eq!(ends.len(), 1);
        ends.remove(0)
    }
}

fn two_steps() -> Value {
    json!({ "steps": [
        { "name": "one", "type": "cli", "command": "true", "timeout_seconds": STEP_SECONDS },
        { "name": "two", "type": "cli", "command": "echo {{ steps.one.stdout }}", "timeout_seconds": STEP_SECONDS },
    ]})
}

fn has_failed(end: &End, step: Option<&str>, part: &str) {
    assert_eq!(end.status, EndStatus::Failed);
    assert_eq!(end.failed_step.as_ref().map(StepName::as_str), step);
    let error = end.error.as_deref().unwrap_or_default();
    assert!(error.contains(part), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_first_task_that_is_too_large_for_a_message() {
    let world = World::new();
    let spec = json!({ "steps": [
        { "name": "look", "type": "agent", "goal": "{{ source.data.text }} {{ source.data.text }}", "tools": [], "timeout_seconds": STEP_SECONDS },
    ]});
    // Fits a start fact; with the goal, which says it twice, it fits no task.
    let input = Input {
        data: json!({ "text": "g".repeat(120_000) })
            .as_object()
            .unwrap()
            .clone(),
        alert: json!({ "name": "A", "annotations": { "text": "a".repeat(900_000) } })
            .as_object()
            .cloned(),
    };
    world.start(spec, input).await;
    has_failed(&world.end().await, Some("look"), "larger than the server accepts");
    assert_eq!(world.dead_letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn conditions_whose_outcomes_are_too_large_for_a_message() {
    let world = World::new();
    let condition =
        json!({ "type": "conditional", "condition": "source.data.text != x", "on_false": "continue" });
    let mut steps: Vec<Value> = vec![condition; 20];
    for (number, step) in steps.iter_mut().enumerate() {
        step["name"] = json!(format!("c{number}"));
    }
    let input = Input {
        data: json!({ "text": "t".repeat(200_000) })
            .as_object()
            .unwrap()
            .clone(),
        alert: None,
    };
    world.start(json!({ "steps": steps }), input).await;
    // Either the outcomes are short enough to stand in the log, or it says that they are not.
    let end = world.end().await;
    if end.status != EndStatus::Succeeded {
        has_failed(&end, None, "larger than the server accepts");
    }
    assert_eq!(world.dead_letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_lost_from_the_object_store() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    let done = Done {
        output: Some(Body::Blob {
            blob: BlobRef {
                sha256: "0".repeat(64),
                bytes: 7,
            },
            preview: json!({}),
        }),
        ..World::done("one")
    };
    world.write(&world.done_subject("one"), &Fact::Done(done)).await;
    has_failed(&world.end().await, Some("one"), "not in the object store");
    assert_eq!(world.dead_letters(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_no_fact() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    world
        .put(&world.done_subject("one"), b"exit code 0".to_vec())
        .await;
    has_failed(&world.end().await, Some("one"), "among the dead letters");
    assert_eq!(world.dead_letters(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stray_message_among_the_facts_stops_nothing() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    // Of a step that is not at work: nobody is waiting for it, and the others go on.
    world.put(&world.done_subject("two"), b"garbage".to_vec()).await;
    world
        .until("it is set aside", |world| world.dead_letters() == 1)
        .await;
    world
        .write(&world.done_subject("one"), &Fact::Done(World::done("one")))
        .await;
    world.cancel().await;
    assert_ne!(world.end().await.status, EndStatus::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_cannot_be_replayed() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    // As if a build with other rules had written it: the workflow has no such step.
    world.another_hands_out("three").await;
    world
        .write(&world.done_subject("one"), &Fact::Done(World::done("one")))
        .await;
    has_failed(&world.end().await, None, "the workflow has no step `three`");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_a_cached_state_does_not_expect() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    world.another_hands_out("two").await;
    let began = world.log.now();
    world
        .write(&world.done_subject("two"), &Fact::Done(World::done("two")))
        .await;
    let end = world.end().await;
    assert_eq!(end.status, EndStatus::Succeeded, "{end:?}");
    let took = end.at.since(began);
    assert!(
        took < Duration::from_secs(1),
        "it was read again only after {took:?}"
    );
    assert_eq!(world.dead_letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_never_reports() {
    let world = World::new();
    world.start(two_steps(), Input::default()).await;
    world.handed_out("one").await;
    let began = world.log.now();
    sleep(Duration::from_secs(STEP_SECONDS - 60)).await;
    let end = world.end().await;
    has_failed(
        &end,
        Some("one"),
        "timed out after 7200 s (timeout_seconds: 7200)",
    );
    // The step's own time, and the grace in which its runner could have said so itself.
    let took = end.at.since(began).as_secs();
    assert!((STEP_SECONDS..STEP_SECONDS + 20).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_result_after_the_start_has_aged_out() {
    let world = World::new();
    world
        .write(&world.done_subject("one"), &Fact::Done(World::done("one")))
        .await;
    has_failed(&world.end().await, None, "the log holds no start fact");
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_never_was_gets_no_lane() {
    let world = World::new();
    world.cancel().await;
    world
        .until("it is set aside", |world| world.dead_letters() == 1)
        .await;
    sleep(Duration::from_secs(STEP_SECONDS)).await;
    assert_eq!(world.lane(), []);
}
