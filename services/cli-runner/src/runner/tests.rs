//! What the runner makes of what executors can say, on the simulated broker.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, atomic::AtomicUsize, atomic::Ordering};

use bus::{
    Blobs,
    runner::Running,
    sim::{Faults, SimBroker, SimLog},
    topology,
};
use futures_util::future::BoxFuture;
use protocol::{
    Append, Attempt, Cause, Done, ExecutionId, LaneAction, Namespace, Outcome, Subject, TaskType, Timestamp,
    WorkflowName,
};
use serde_json::{Value, json};
use service::Metrics;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::executor::{End, Over, Stop, Swept};

/// Says what it is told to, and counts.
#[derive(Default)]
struct Says {
    next: Mutex<Vec<Result<Finished, ExecutorError>>>,
    /// What is left of a former run.
    left: Mutex<Vec<Result<Finished, ExecutorError>>>,
    /// What happens elsewhere while the command runs.
    meanwhile: Mutex<Option<BoxFuture<'static, ()>>>,
    runs: AtomicUsize,
    forgotten: AtomicUsize,
}

impl Executor for Says {
    async fn run(&self, _: &Job, _: &Stop, _: &LiveSink) -> Result<Finished, ExecutorError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        self.next
            .lock()
            .unwrap()
            .pop()
            .expect("a run that the test did not expect")
    }

    async fn adopt(&self, _: &Job, _: &Stop, _: &LiveSink) -> Option<Result<Finished, ExecutorError>> {
        self.left.lock().unwrap().pop()
    }

    async fn forget(&self, _: &Job) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    async fn sweep(&self, _: &impl Over) -> Result<Swept, ExecutorError> {
        Ok(Swept::default())
    }
}

pub(super) const LIMITS: Limits = Limits {
    inline_bytes_max: 1024,
    spill_bytes_max: 4096,
};

struct Bench {
    runner: Runner<SimLog, Says>,
    task: Task,
}

impl Bench {
    fn new(work: Value) -> Self {
        let log = SimBroker::new(1, Faults::default()).client();
        let now = log.now();
        let task = Task {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["x"]),
            workflow: WorkflowName::new("w").unwrap(),
            step: "s".parse().unwrap(),
            index: 0,
            attempt: Attempt::FIRST,
            task_type: TaskType::cli(),
            dispatched_at: now,
            deadline: now.after(Duration::from_secs(60)),
            timeout: "1 minute (timeout_minutes: 1)".into(),
            work,
        };
        let runner = Runner {
            tasks: Tasks {
                log,
                blobs: Blobs::in_memory(),
                queue: topology::CLI,
                instance: "this/1".into(),
                metrics: Metrics::new(),
                running: Running::default(),
                shutdown: CancellationToken::new(),
            },
            executor: Arc::new(Says::default()),
            limits: LIMITS,
            release: Release::default(),
            started_gated: StartedGated::default(),
        };
        Self { runner, task }
    }

    fn plain() -> Self {
        Self::new(json!({"command": "true"}))
    }

    fn gated() -> Self {
        Self::new(json!({"command": "kubectl cordon n", "fix": ["kubectl", "cordon", "n"]}))
    }

    fn says(self, result: Result<Finished, ExecutorError>) -> Self {
        self.runner.executor.next.lock().unwrap().push(result);
        self
    }

    fn message(&self) -> LogMessage {
        let start = Subject::Start(self.task.namespace.clone(), self.task.execution);
        let append = Append {
            cause: Cause {
                subject: start.to_string(),
                seq: 1,
            },
            records: Vec::new(),
            action: LaneAction::Task(Box::new(self.task.clone())),
        };
        let subject = Subject::Command(TaskType::cli(), self.task.namespace.clone(), self.task.execution);
        LogMessage {
            subject: subject.to_string(),
            seq: 1,
            at: self.runner.tasks.log.now(),
            payload: encode(self.runner.tasks.log.now(), &append).into(),
            caller: None,
        }
    }

    async fn handle(&self) -> Result<(), Failure> {
        self.handle_delivery(1).await
    }

    async fn handle_delivery(&self, deliveries: u64) -> Result<(), Failure> {
        self.runner.handle(self.message(), deliveries).await
    }

    /// Whether it is on record that the attempt is made, or made again.
    async fn is_begun(&self) -> bool {
        let subject = self.task.begun_subject().to_string();
        self.runner.tasks.log.last(&subject).await.unwrap().is_some()
    }

    /// The fact of the attempt's end, written by `runner` while the command of this one runs.
    async fn ends_meanwhile_by(&self, runner: &str) {
        let other = Tasks {
            instance: runner.to_owned(),
            ..self.runner.tasks.clone()
        };
        let came = other.failed(StepFailure::Command, "another's");
        let (task, executor) = (self.task.clone(), &self.runner.executor);
        *executor.meanwhile.lock().unwrap() = Some(Box::pin(async move {
            other.write_done(&task, came).await.unwrap();
        }));
    }

    fn runs(&self) -> usize {
        self.runner.executor.runs.load(Ordering::Relaxed)
    }

    /// How the step ended, in words; empty where it has not.
    async fn ended(&self) -> String {
        let subject = self.task.done_subject().to_string();
        let Some(message) = self.runner.tasks.log.last(&subject).await.unwrap() else {
            return String::new();
        };
        match decode::<Fact>(&message.payload).unwrap().body {
            Fact::Done(Done {
                outcome: Outcome::Failed(error),
                ..
            }) => format!("{:?}: {}", error.reason, error.message),
            Fact::Done(done) => format!("{:?}", done.outcome),
            other => panic!("{other:?}"),
        }
    }

    async fn begun_by(&self, runner: &str) {
        let begun = Begun {
            step: self.task.step.clone(),
            attempt: self.task.attempt,
            runner: runner.into(),
        };
        let log = &self.runner.tasks.log;
        let payload = encode(log.now(), &Fact::Begun(begun));
        log.write_fact(&self.task.begun_subject(), payload).await.unwrap();
    }
}

pub(super) fn finished() -> Finished {
    Finished {
        end: End::Exited(0),
        stdout: Capture::new(LIMITS),
        stderr: Capture::new(LIMITS),
        started_at: Timestamp::from_millis(0),
        duration: Duration::ZERO,
    }
}

fn busy(after: Duration) -> ExecutorError {
    ExecutorError::Unavailable {
        after,
        reason: "busy".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_executor_says_becomes_the_step_s_end() {
    for (bench, error, text) in [
        (
            Bench::plain(),
            ExecutorError::CannotStart("no kubectl".into()),
            "Infrastructure: no kubectl",
        ),
        (
            Bench::plain(),
            ExecutorError::Infrastructure("the pod vanished".into()),
            "Infrastructure: the pod vanished",
        ),
        (
            Bench::gated(),
            ExecutorError::Infrastructure("the pod vanished".into()),
            "UnknownOutcome: unknown whether it ran: the pod vanished",
        ),
        (
            Bench::gated(),
            ExecutorError::CannotStart("no kubectl".into()),
            "Infrastructure: no kubectl",
        ),
    ] {
        let bench = bench.says(Err(error));
        bench.handle().await.unwrap();
        assert_eq!(bench.ended().await, text);
    }
    let bench = Bench::plain().says(Ok(finished()));
    bench.handle().await.unwrap();
    assert_eq!(bench.ended().await, "Succeeded");
    assert_eq!(
        bench.runner.executor.forgotten.load(Ordering::Relaxed),
        1,
        "only after the fact is written"
    );
    bench.handle().await.unwrap();
    assert_eq!(bench.runs(), 1, "a task with a fact is not run again");
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again_until_the_deadline() {
    let bench = Bench::plain().says(Err(busy(Duration::from_secs(3600))));
    let failure = bench.handle().await.unwrap_err();
    let Failure::Retry { after, .. } = failure else {
        panic!("{failure:?}")
    };
    assert!(after <= Duration::from_secs(60), "{after:?}");
    assert_eq!(bench.ended().await, "");
    tokio::time::advance(after).await;
    bench.handle().await.unwrap();
    let text = "Timeout: timed out after 1 minute (timeout_minutes: 1), before a runner could begin it";
    assert_eq!((bench.ended().await.as_str(), bench.runs()), (text, 1));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_may_run_a_second_time_is_on_record() {
    let bench = Bench::plain().says(Ok(finished()));
    bench.handle().await.unwrap();
    assert!(!bench.is_begun().await, "the usual case costs no fact");

    let bench = Bench::plain().says(Ok(finished()));
    bench.handle_delivery(2).await.unwrap();
    assert!(bench.is_begun().await);

    // Written before this runner was connected: a server that crashed since may have forgotten a delivery.
    let bench = Bench::plain().says(Ok(finished()));
    let mut message = bench.message();
    message.at = Timestamp::from_millis(message.at.as_millis() - 1);
    bench.runner.handle(message, 1).await.unwrap();
    assert!(bench.is_begun().await);

    // Settled already: nothing runs, and nothing is to be recorded.
    let bench = Bench::plain().says(Ok(finished()));
    bench.handle().await.unwrap();
    bench.handle_delivery(2).await.unwrap();
    assert!(!bench.is_begun().await);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ran_beside_another_s_is_on_record() {
    // The server forgot that it had delivered the task: both deliveries are the first.
    for (runner, is_recorded) in [("that/2", true), ("this/1", false)] {
        let bench = Bench::plain().says(Ok(finished()));
        bench.ends_meanwhile_by(runner).await;
        bench.handle().await.unwrap();
        assert_eq!(bench.is_begun().await, is_recorded, "{runner}");
        assert_eq!(bench.ended().await, "Command: another's", "the first stands");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gated_command_that_certainly_did_not_start_may_be_tried_again() {
    let bench = Bench::gated()
        .says(Ok(finished()))
        .says(Err(busy(Duration::from_secs(1))));
    assert!(matches!(bench.handle().await, Err(Failure::Retry { .. })));
    bench.handle().await.unwrap();
    assert_eq!((bench.ended().await.as_str(), bench.runs()), ("Succeeded", 2));
}

#[tokio::test(start_paused = true)]
async fn a_gated_command_may_begin_after_its_own_claim_was_answered_by_silence() {
    // The claim is in the log, and its answer was lost: it is this process's, and nothing was started.
    let bench = Bench::gated().says(Ok(finished()));
    bench.begun_by("this/1").await;
    bench.handle().await.unwrap();
    assert_eq!((bench.ended().await.as_str(), bench.runs()), ("Succeeded", 1));
}

#[tokio::test(start_paused = true)]
async fn a_gated_command_of_another_or_of_a_former_handler_is_unknown() {
    let bench = Bench::gated();
    bench.begun_by("that/2").await;
    bench.handle().await.unwrap();
    assert!(
        bench
            .ended()
            .await
            .starts_with("UnknownOutcome: unknown whether it ran: that/2 began")
    );

    // What it left runs on: it is followed to its end, and nothing is started.
    let bench = Bench::gated();
    bench.runner.executor.left.lock().unwrap().push(Ok(finished()));
    bench.begun_by("that/2").await;
    bench.handle().await.unwrap();
    assert_eq!((bench.ended().await.as_str(), bench.runs()), ("Succeeded", 0));

    // A handler of this process started it and was dropped before it could tell.
    let bench = Bench::gated();
    bench.begun_by("this/1").await;
    bench.runner.started_gated.starts(&bench.task);
    bench.handle().await.unwrap();
    assert!(
        bench
            .ended()
            .await
            .starts_with("UnknownOutcome: unknown whether it ran: this/1 began")
    );
    assert_eq!(bench.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_kills_its_runners_ends_its_step_and_is_set_aside() {
    let bench = Bench::plain();
    let failure = bench.runner.poisoned(bench.message(), 8).await.unwrap_err();
    assert!(matches!(failure, Failure::Reject { .. }), "{failure:?}");
    let ended = bench.ended().await;
    assert!(
        ended.starts_with("DeadLetter: 8 runners in a row were lost while they were at this step"),
        "{ended}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_released_command_is_left_to_another() {
    let bench = Bench::plain().says(Err(ExecutorError::Released(None)));
    assert!(matches!(bench.handle().await, Err(Failure::Retry { .. })));
    assert_eq!(bench.ended().await, "");
}
