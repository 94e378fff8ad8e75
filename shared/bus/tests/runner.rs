//! What every runner does with its tasks, on the simulated broker.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{
    Appended, Blobs, Consume, Failure, Handler, Log, LogMessage, StreamId,
    blobs::BLOB_BYTES_MAX,
    runner::{Came, Running, Tasks, perform},
    sim::{Faults, SimBroker, SimLog},
    topology,
};
use protocol::{
    Append, Attempt, Body, Cause, Done, End, EndStatus, ExecutionId, Fact, LaneAction, Namespace, Outcome,
    StepFailure, Subject, Task, TaskType, WorkflowName, decode, encode, output::INLINE_BYTES_MAX, subjects,
};
use serde_json::{Value, json};
use service::Metrics;
use tokio_util::sync::CancellationToken;

struct Bench {
    broker: SimBroker,
    tasks: Tasks<SimLog>,
}

impl Bench {
    fn new() -> Self {
        let broker = SimBroker::new(1, Faults::default());
        let tasks = Tasks {
            log: broker.client(),
            blobs: Blobs::in_memory(),
            queue: topology::CLI,
            instance: "this/1".into(),
            metrics: Metrics::new(),
            running: Running::default(),
            shutdown: CancellationToken::new(),
        };
        Self { broker, tasks }
    }

    fn task(&self, name: &str) -> Task {
        let now = self.tasks.log.now();
        Task {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&[name]),
            workflow: WorkflowName::new("w").unwrap(),
            step: name.parse().unwrap(),
            index: 0,
            attempt: Attempt::FIRST,
            task_type: TaskType::cli(),
            dispatched_at: now,
            deadline: now.after(Duration::from_secs(60)),
            timeout: "1 minute".into(),
            work: json!({"command": "true"}),
        }
    }

    fn append_of(task: &Task, action: LaneAction) -> Append {
        let start = Subject::Start(task.namespace.clone(), task.execution);
        Append {
            cause: Cause {
                subject: start.to_string(),
                seq: 1,
            },
            records: Vec::new(),
            action,
        }
    }

    /// The message of a queue that holds `action`.
    fn message(&self, task: &Task, action: LaneAction) -> LogMessage {
        let subject = Subject::Command(TaskType::cli(), task.namespace.clone(), task.execution);
        let at = self.tasks.log.now();
        LogMessage {
            subject: subject.to_string(),
            seq: 1,
            at,
            payload: encode(at, &Self::append_of(task, action)).into(),
            caller: None,
        }
    }

    fn dispatched(&self, task: &Task) -> LogMessage {
        self.message(task, LaneAction::Task(Box::new(task.clone())))
    }

    async fn append(&self, task: &Task, subject: Subject, action: LaneAction) {
        let lane = subjects::lane_filter(&task.namespace, task.execution);
        let last = self.tasks.log.last(&lane).await.unwrap();
        let payload = encode(self.tasks.log.now(), &Self::append_of(task, action));
        let last = last.map_or(0, |message| message.seq);
        let appended = self.tasks.log.append(&subject, payload, last).await.unwrap();
        assert!(matches!(appended, Appended::At(_)));
    }

    async fn dispatch(&self, task: &Task) {
        let subject = Subject::Command(TaskType::cli(), task.namespace.clone(), task.execution);
        self.append(task, subject, LaneAction::Task(Box::new(task.clone())))
            .await;
    }

    async fn cancel(&self, task: &Task) {
        let subject = Subject::Cancel(task.namespace.clone(), task.execution);
        self.append(task, subject, LaneAction::End(self.end())).await;
    }

    fn end(&self) -> End {
        End {
            status: EndStatus::Cancelled,
            error: None,
            failed_step: None,
            at: self.tasks.log.now(),
        }
    }

    fn succeeded(&self) -> Came {
        Came {
            outcome: Outcome::Succeeded,
            output: Some(Body::Inline(json!({"stdout": "ok"}))),
            started_at: self.tasks.log.now(),
        }
    }

    async fn done(&self, task: &Task) -> Option<Done> {
        let subject = task.done_subject().to_string();
        let message = self.tasks.log.last(&subject).await.unwrap()?;
        match decode::<Fact>(&message.payload).unwrap().body {
            Fact::Done(done) => Some(done),
            other => panic!("{other:?}"),
        }
    }

    /// How the step failed, in words.
    async fn failed(&self, task: &Task) -> String {
        match self.done(task).await.unwrap().outcome {
            Outcome::Failed(error) => format!("{:?}: {}", error.reason, error.message),
            other => panic!("{other:?}"),
        }
    }

    fn dead_letters_counted(&self, count: u32) -> bool {
        let line = format!("fist_dead_letters_total{{consumer=\"cli\"}} {count}");
        self.tasks.metrics.encode().contains(&line)
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_is_taken_unless_there_is_nothing_left_to_do() {
    let bench = Bench::new();
    let task = bench.task("fresh");
    let (taken, in_hand) = bench
        .tasks
        .take(&bench.dispatched(&task), 1)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(taken, task);
    let again = bench.tasks.take(&bench.dispatched(&task), 2).await.unwrap_err();
    assert!(matches!(again, Failure::Retry { .. }), "{again:?}");
    let other = bench.task("other");
    assert!(
        bench
            .tasks
            .take(&bench.dispatched(&other), 1)
            .await
            .unwrap()
            .is_some()
    );
    drop(in_hand);
    assert!(
        bench
            .tasks
            .take(&bench.dispatched(&task), 3)
            .await
            .unwrap()
            .is_some()
    );

    bench.tasks.write_done(&task, bench.succeeded()).await.unwrap();
    assert!(
        bench
            .tasks
            .take(&bench.dispatched(&task), 4)
            .await
            .unwrap()
            .is_none()
    );

    let cancelled = bench.task("cancelled");
    bench.dispatch(&cancelled).await;
    bench.cancel(&cancelled).await;
    assert!(
        bench
            .tasks
            .take(&bench.dispatched(&cancelled), 1)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn of_a_new_task_the_log_is_asked_only_where_its_execution_may_have_ended() {
    let bench = Bench::new();
    tokio::time::advance(2 * service::clock::TOLERANCE).await;
    bench.tasks.running.listens_from(0);
    let is_asked = async |task: &Task, deliveries| {
        let points = bench.tasks.log.points();
        let taken = bench
            .tasks
            .take(&bench.dispatched(task), deliveries)
            .await
            .unwrap();
        (bench.tasks.log.points() > points, taken.is_some())
    };
    let task = bench.task("new");
    bench.dispatch(&task).await;
    assert_eq!(is_asked(&task, 1).await, (false, true));
    assert_eq!(
        is_asked(&task, 2).await,
        (true, true),
        "perhaps at work elsewhere"
    );
    assert_eq!(is_asked(&task, 1).await, (true, true), "it was in hand here");

    let cancelled = bench.task("cancelled");
    bench.dispatch(&cancelled).await;
    bench.cancel(&cancelled).await;
    bench.tasks.running.cancel(cancelled.execution, 3);
    assert_eq!(is_asked(&cancelled, 1).await, (true, false));

    // More cancels than are kept in mind: those of older tasks may be forgotten.
    for number in 0..2000 {
        let other = ExecutionId::derive(&["other", &number.to_string()]);
        bench.tasks.running.cancel(other, 4 + number);
    }
    assert_eq!(is_asked(&bench.task("older"), 1).await, (true, true));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_set_aside_and_counted() {
    let bench = Bench::new();
    let task = bench.task("s");
    let ended = bench.message(&task, LaneAction::End(bench.end()));
    let garbage = LogMessage {
        payload: "{".into(),
        ..ended.clone()
    };
    for message in [&ended, &garbage] {
        let failure = bench.tasks.take(message, 1).await.unwrap_err();
        assert!(matches!(failure, Failure::Reject { .. }), "{failure:?}");
    }
    let failure = bench.tasks.take(&ended, 1).await.unwrap_err();
    assert_eq!(failure.to_string(), "a message of the queue `cli` holds no task");
    assert!(bench.dead_letters_counted(3));
    assert_eq!(bench.done(&task).await, None);

    let failure = bench.tasks.work::<u32>(&task).await.unwrap_err();
    assert!(matches!(failure, Failure::Reject { .. }), "{failure:?}");
    let failed = bench.failed(&task).await;
    assert!(
        failed.starts_with("DeadLetter: the work of the step s cannot be read: "),
        "{failed}"
    );
    assert!(bench.dead_letters_counted(4));

    let killer = bench.task("killer");
    let failure = bench
        .tasks
        .poisoned(&bench.dispatched(&killer), 8)
        .await
        .unwrap_err();
    assert!(matches!(failure, Failure::Reject { .. }), "{failure:?}");
    let failed = bench.failed(&killer).await;
    assert!(
        failed.starts_with("DeadLetter: 8 runners in a row were lost"),
        "{failed}"
    );
    assert!(bench.dead_letters_counted(5));
}

#[tokio::test(start_paused = true)]
async fn a_result_is_written_once_and_the_first_stands() {
    let bench = Bench::new();
    let task = bench.task("s");
    bench.tasks.write_done(&task, bench.succeeded()).await.unwrap();
    let late = bench.tasks.failed(StepFailure::Timeout, "late");
    bench.tasks.write_done(&task, late).await.unwrap();
    let done = bench.done(&task).await.unwrap();
    assert_eq!(
        (done.outcome, done.runner.as_str(), done.attempt),
        (Outcome::Succeeded, "this/1", Attempt::FIRST)
    );
    assert_eq!(done.output, Some(Body::Inline(json!({"stdout": "ok"}))));
    assert_eq!(bench.broker.messages(StreamId::Log).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_waits_for_the_log_as_long_as_the_process_lives() {
    let bench = Bench::new();
    let (task, away) = (
        bench.task("s"),
        Faults {
            publish_lost: 1000,
            ..Faults::default()
        },
    );
    bench.broker.set_faults(away.clone());
    let began = tokio::time::Instant::now();
    let back = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        bench.broker.set_faults(Faults::default());
    };
    let (written, ()) = tokio::join!(bench.tasks.write_done(&task, bench.succeeded()), back);
    written.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(3600));
    assert!(bench.done(&task).await.is_some());

    // The process ends: what is in hand is tried once more, and then left to another.
    bench.broker.set_faults(away);
    let second = bench.task("second");
    let end = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        bench.tasks.shutdown.cancel();
    };
    let (written, ()) = tokio::join!(bench.tasks.write_done(&second, bench.succeeded()), end);
    let failure = written.unwrap_err();
    assert!(matches!(failure, Failure::Retry { .. }), "{failure:?}");
    bench.broker.set_faults(Faults::default());
    assert_eq!(bench.done(&second).await, None);
    bench.tasks.write_done(&second, bench.succeeded()).await.unwrap();
    assert!(bench.done(&second).await.is_some(), "also while the process ends");
}

#[tokio::test(start_paused = true)]
async fn a_large_output_is_stored_apart_and_shown_by_its_preview() {
    let bench = Bench::new();
    let short = |_: &Value, bytes_max: usize| json!({ "bytes_max": bytes_max });
    let small = json!("x".repeat(INLINE_BYTES_MAX - 2));
    assert_eq!(
        bench.tasks.body(small.clone(), short).await.unwrap(),
        Body::Inline(small)
    );
    let large = json!("x".repeat(INLINE_BYTES_MAX - 1));
    // What is in hand at the end of the process is kept as well.
    bench.tasks.shutdown.cancel();
    let Body::Blob { blob, preview } = bench.tasks.body(large.clone(), short).await.unwrap() else {
        panic!("larger than a message may be")
    };
    let stored = bench.tasks.blobs.get(&blob).await.unwrap().unwrap();
    assert_eq!(stored, large.to_string());
    assert_eq!(preview, json!({ "bytes_max": INLINE_BYTES_MAX / 2 }));

    let too_large = json!("x".repeat(BLOB_BYTES_MAX));
    let not_stored = bench.tasks.body(too_large, short).await.unwrap_err();
    assert_eq!(not_stored.preview, preview);
    assert!(!not_stored.error.is_transient(), "{}", not_stored.error);
}

/// Is at each task until its execution is cancelled or the process ends.
struct Waiting {
    tasks: Tasks<SimLog>,
    begun: Arc<Mutex<Vec<String>>>,
}

impl Handler for Waiting {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let Some((task, in_hand)) = self.tasks.take(&message, deliveries).await? else {
            return Ok(());
        };
        self.begun.lock().unwrap().push(task.step.to_string());
        let reason = tokio::select! {
            biased;
            () = in_hand.cancelled.cancelled() => StepFailure::Cancelled,
            () = self.tasks.shutdown.cancelled() => return Err(Failure::retry("the process ends")),
        };
        self.tasks
            .write_done(&task, self.tasks.failed(reason, "ended"))
            .await
            .map(drop)
    }
}

/// Waits for a condition, in virtual time.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_what_runs_for_its_execution_and_a_shutdown_ends_all() {
    let bench = Bench::new();
    let (task, other, over) = (bench.task("task"), bench.task("other"), bench.task("over"));
    bench.dispatch(&over).await;
    bench.cancel(&over).await;
    let begun = Arc::new(Mutex::new(Vec::new()));
    let waiting = Waiting {
        tasks: bench.tasks.clone(),
        begun: Arc::clone(&begun),
    };
    let options = Consume {
        concurrency: 4,
        poison_after: 8,
        drain: Duration::from_secs(10),
    };
    let tasks = bench.tasks.clone();
    let performing = tokio::spawn(async move { perform(&tasks, options, Arc::new(waiting)).await });
    bench.dispatch(&task).await;
    bench.dispatch(&other).await;
    until("both are in hand", async || begun.lock().unwrap().len() == 2).await;
    bench.cancel(&task).await;
    until("it is cancelled", async || bench.done(&task).await.is_some()).await;
    assert_eq!(bench.failed(&task).await, "Cancelled: ended");
    assert_eq!(bench.done(&other).await, None);
    assert!(
        !begun.lock().unwrap().contains(&"over".to_owned()),
        "an execution that is over runs nothing"
    );
    bench.tasks.shutdown.cancel();
    performing.await.unwrap().unwrap();
    assert_eq!(bench.done(&other).await, None, "left to another");
}
