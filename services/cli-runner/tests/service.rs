//! The service against a real nats-server: tasks in, facts out, and nothing run twice.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Appended, Blobs, Connection, Log, NatsLog, Position, testing::TestNats, topology};
use futures_util::StreamExt;
use protocol::{
    Append, Attempt, Begun, Body, Cause, Done, End, EndStatus, ExecutionId, Fact, LaneAction, Namespace,
    Outcome, StepFailure, StepName, Subject, Task, TaskType, WorkflowName, decode, encode,
    live::{Live, Stream},
    subjects,
};
use serde_json::{Value, json};
use service::{Config, Fatal, Health, Metrics, Service, clock};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(40);

struct Bench {
    nats: TestNats,
    connection: Connection,
    log: NatsLog,
    root: tempfile::TempDir,
}

struct Runner {
    service: Service,
    task: JoinHandle<Result<(), Fatal>>,
}

impl Bench {
    async fn new() -> Self {
        let (nats, connection) = TestNats::ready().await;
        let log = NatsLog::open(&connection).await.unwrap();
        Self {
            nats,
            connection,
            log,
            root: tempfile::tempdir().unwrap(),
        }
    }

    /// A runner in this process, with a directory of its own, as on another machine.
    async fn runner(&self, name: &str) -> Runner {
        let mut config = Config::default();
        config.nats.url = self.nats.url();
        config.cli.work_dir = Some(self.root.path().join(name));
        config.cli.kill_grace_ms = 300;
        config.shutdown.drain_ms = 10_000;
        let service = Service {
            name: "cli-runner",
            config: Arc::new(config),
            shutdown: CancellationToken::new(),
            health: Health::new(),
            metrics: Metrics::new(),
            spans: service::Spans::default(),
        };
        let task = tokio::spawn(cli_runner::run(service.clone()));
        until("the runner is ready", || service.health.readiness().is_ok()).await;
        Runner { service, task }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// How often a command appended a line to the file.
    fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.file(name)).map_or(0, |text| text.lines().count())
    }

    /// A task that runs `command`, in which `@` stands for the bench's directory.
    fn task(&self, step: &str, command: &str) -> Task {
        let command = command.replace('@', self.root.path().to_str().unwrap());
        self.task_of(step, json!({ "command": command }))
    }

    fn gated(&self, step: &str, script: &str) -> Task {
        let script = script.replace('@', self.root.path().to_str().unwrap());
        self.task_of(
            step,
            json!({ "command": "as the author wrote it", "fix": ["sh", "-c", script] }),
        )
    }

    fn task_of(&self, step: &str, work: Value) -> Task {
        let now = clock::now();
        Task {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&[step]),
            workflow: WorkflowName::new("test").unwrap(),
            step: StepName::new(step).unwrap(),
            index: 0,
            attempt: Attempt::FIRST,
            task_type: TaskType::cli(),
            dispatched_at: now,
            deadline: now.after(Duration::from_secs(120)),
            timeout: "2 minutes (timeout_minutes: 2)".into(),
            work,
        }
    }

    async fn append(&self, task: &Task, subject: Subject, action: LaneAction) -> u64 {
        let start = Subject::Start(task.namespace.clone(), task.execution);
        let append = Append {
            cause: Cause {
                subject: start.to_string(),
                seq: 1,
            },
            records: Vec::new(),
            action,
        };
        let lane = subjects::lane_filter(&task.namespace, task.execution);
        let last = self
            .log
            .last(&lane)
            .await
            .unwrap()
            .map_or(0, |message| message.seq);
        match self
            .log
            .append(&subject, encode(clock::now(), &append), last)
            .await
            .unwrap()
        {
            Appended::At(seq) => seq,
            Appended::Conflict => panic!("nobody else writes to this lane"),
        }
    }

    async fn dispatch(&self, task: &Task) -> u64 {
        let subject = Subject::Command(TaskType::cli(), task.namespace.clone(), task.execution);
        self.append(task, subject, LaneAction::Task(Box::new(task.clone())))
            .await
    }

    async fn cancel(&self, task: &Task) {
        let end = End {
            status: EndStatus::Cancelled,
            error: None,
            failed_step: None,
            at: clock::now(),
        };
        let subject = Subject::Cancel(task.namespace.clone(), task.execution);
        self.append(task, subject, LaneAction::End(end)).await;
    }

    async fn done(&self, task: &Task) -> Done {
        let subject = task.done_subject().to_string();
        let mut follow = self.log.follow(vec![subject], Position::All).await.unwrap();
        let message = tokio::time::timeout(PATIENCE, follow.next())
            .await
            .expect("no done fact")
            .unwrap()
            .unwrap();
        match decode::<Fact>(&message.payload).unwrap().body {
            Fact::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    async fn is_done(&self, task: &Task) -> bool {
        self.log
            .last(&task.done_subject().to_string())
            .await
            .unwrap()
            .is_some()
    }

    /// Waits until everything up to `seq` is acknowledged and nothing is in hand.
    async fn acked(&self, seq: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let state = self.log.consumer_state(&topology::CLI).await.unwrap();
            if state.in_flight == 0 && state.waiting == 0 && state.acked_to_seq >= seq {
                return;
            }
            assert!(Instant::now() < deadline, "never acknowledged: {state:?}");
        }
    }
}

impl Runner {
    async fn stop(self) {
        self.service.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the drain is bounded")
            .unwrap()
            .unwrap();
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        look.tick().await;
    }
}

fn failure(done: &Done) -> (StepFailure, &str) {
    match &done.outcome {
        Outcome::Failed(error) => (error.reason, &error.message),
        other => panic!("{other:?}"),
    }
}

fn output(done: &Done) -> &Value {
    match done.output.as_ref().unwrap() {
        Body::Inline(output) => output,
        Body::Blob { .. } => panic!("a large output"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_becomes_a_fact() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let good = bench.task("good", r#"echo '{"replicas": 3}'; echo note >&2"#);
    bench.dispatch(&good).await;
    let done = bench.done(&good).await;
    assert_eq!(done.outcome, Outcome::Succeeded);
    assert!(done.started_at <= done.completed_at && done.attempt == Attempt::FIRST);
    let mut seen = output(&done).clone();
    assert!(seen["duration_ms"].take().as_u64().unwrap() < 10_000);
    let command = good.work["command"].clone();
    assert_eq!(
        seen,
        json!({
            "stdout": "{\"replicas\": 3}\n", "stderr": "note\n", "exit_code": 0, "command": command,
            "duration_ms": null, "json": {"replicas": 3},
        })
    );

    let bad = bench.task("bad", "echo so far; echo no such pod >&2; exit 3");
    let seq = bench.dispatch(&bad).await;
    let done = bench.done(&bad).await;
    assert_eq!(failure(&done), (StepFailure::Command, "exit code 3: no such pod"));
    assert_eq!(output(&done)["stdout"], "so far\n");
    bench.acked(seq).await;

    let metrics = runner.service.metrics.encode();
    assert!(
        metrics.contains(r#"fist_deliveries_total{consumer="cli"} 2"#),
        "{metrics}"
    );
    // The scheduler counts steps, once for each outcome; counted here as well, they would be twice as many.
    assert!(!metrics.contains("fist_steps_total{"), "{metrics}");
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_delivered_again_runs_once() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task("once", "echo x >>@/ran; until [ -e @/go ]; do sleep 0.05; done");
    bench.dispatch(&task).await;
    until("it runs", || bench.lines("ran") == 1).await;
    let again = bench.dispatch(&task).await;
    fs::write(bench.file("go"), "").unwrap();
    assert_eq!(bench.done(&task).await.outcome, Outcome::Succeeded);
    // The second delivery was put off while the first was at it; then it finds the fact.
    bench.acked(again).await;
    let last = bench.dispatch(&task).await;
    bench.acked(last).await;
    assert_eq!(bench.lines("ran"), 1);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_command_and_keeps_what_it_printed() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task("long", "echo begun; echo x >@/ran; sleep 600");
    let other = bench.task("other", "until [ -e @/go ]; do sleep 0.05; done");
    bench.dispatch(&task).await;
    bench.dispatch(&other).await;
    until("it runs", || bench.lines("ran") == 1).await;
    bench.cancel(&task).await;
    let done = bench.done(&task).await;
    assert_eq!(
        failure(&done),
        (
            StepFailure::Cancelled,
            "cancelled while the command ran; it was ended"
        )
    );
    assert_eq!(
        (&output(&done)["stdout"], &output(&done)["exit_code"]),
        (&json!("begun\n"), &json!(143))
    );
    assert!(!bench.is_done(&other).await, "only that execution is cancelled");
    fs::write(bench.file("go"), "").unwrap();
    assert_eq!(bench.done(&other).await.outcome, Outcome::Succeeded);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_before_it_begins_runs_nothing() {
    let bench = Bench::new().await;
    let cancelled = bench.task("cancelled", "echo x >>@/ran");
    bench.dispatch(&cancelled).await;
    bench.cancel(&cancelled).await;
    let mut late = bench.task("late", "echo x >>@/ran");
    late.deadline = clock::now();
    let seq = bench.dispatch(&late).await;
    let runner = bench.runner("a").await;
    bench.acked(seq).await;
    assert!(!bench.is_done(&cancelled).await);
    let message = "timed out after 2 minutes (timeout_minutes: 2), before a runner could begin it";
    assert_eq!(failure(&bench.done(&late).await), (StepFailure::Timeout, message));
    assert_eq!(bench.lines("ran"), 0);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_says_which_limit_was_hit() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let mut task = bench.task("slow", "echo begun; sleep 600");
    task.deadline = clock::now().after(Duration::from_secs(1));
    task.timeout = "1 s (timeout_seconds: 1)".into();
    bench.dispatch(&task).await;
    let done = bench.done(&task).await;
    assert_eq!(
        failure(&done),
        (StepFailure::Timeout, "timed out after 1 s (timeout_seconds: 1)")
    );
    assert_eq!(output(&done)["stdout"], "begun\n");
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_command_runs_without_a_shell_and_once() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.gated("fix", "echo x >>@/ran; echo done");
    bench.dispatch(&task).await;
    let done = bench.done(&task).await;
    assert_eq!(
        (&output(&done)["stdout"], &output(&done)["command"]),
        (&json!("done\n"), &json!("as the author wrote it"))
    );
    let again = bench.dispatch(&task).await;
    bench.acked(again).await;
    assert_eq!(bench.lines("ran"), 1);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_command_that_another_began_is_not_run_again() {
    let bench = Bench::new().await;
    let task = bench.gated("fix", "echo x >>@/ran");
    let begun = Begun {
        step: task.step.clone(),
        attempt: task.attempt,
        runner: "node-1/7.1.0".into(),
    };
    bench
        .log
        .write_fact(&task.begun_subject(), encode(clock::now(), &Fact::Begun(begun)))
        .await
        .unwrap();
    let seq = bench.dispatch(&task).await;
    let runner = bench.runner("a").await;
    let done = bench.done(&task).await;
    let (reason, message) = failure(&done);
    assert_eq!(reason, StepFailure::UnknownOutcome);
    assert!(
        message.starts_with("unknown whether it ran: node-1/7.1.0 began the command at "),
        "{message}"
    );
    bench.acked(seq).await;
    assert_eq!(bench.lines("ran"), 0);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_hands_commands_back_and_lets_gated_ones_finish() {
    let bench = Bench::new().await;
    let first = bench.runner("a").await;
    let plain = bench.task("plain", "echo x >>@/ran; [ -e @/second ] || sleep 600");
    let gated = bench.gated(
        "gated",
        "echo x >>@/fixed; until [ -e @/second ]; do sleep 0.05; done",
    );
    bench.dispatch(&plain).await;
    bench.dispatch(&gated).await;
    until("both run", || {
        bench.lines("ran") == 1 && bench.lines("fixed") == 1
    })
    .await;
    first.service.shutdown.cancel();
    let second = bench.runner("b").await;
    fs::write(bench.file("second"), "").unwrap();
    let done = bench.done(&gated).await;
    assert_eq!(done.outcome, Outcome::Succeeded, "{done:?}");
    assert_eq!(bench.done(&plain).await.outcome, Outcome::Succeeded);
    assert_eq!(
        (bench.lines("ran"), bench.lines("fixed")),
        (2, 1),
        "begun anew by the other; finished by its own"
    );
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_soon_after_the_shutdown_began_is_not_run_again() {
    let bench = Bench::new().await;
    let first = bench.runner("a").await;
    let brief = bench.task("brief", "echo x >>@/ran; until [ -e @/go ]; do sleep 0.05; done");
    bench.dispatch(&brief).await;
    until("it runs", || bench.lines("ran") == 1).await;
    first.service.shutdown.cancel();
    fs::write(bench.file("go"), "").unwrap();
    assert_eq!(bench.done(&brief).await.outcome, Outcome::Succeeded);
    first.stop().await;
    assert_eq!(bench.lines("ran"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_command_that_outlasts_the_shutdown_is_unknown() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.gated("fix", "echo x >>@/ran; echo half; sleep 600");
    bench.dispatch(&task).await;
    until("it runs", || bench.lines("ran") == 1).await;
    runner.stop().await;
    let done = bench.done(&task).await;
    let (reason, message) = failure(&done);
    assert_eq!(reason, StepFailure::UnknownOutcome);
    assert!(
        message.starts_with("unknown whether it ran: the runner was shut down"),
        "{message}"
    );
    assert_eq!(output(&done)["stdout"], "half\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_binary_outputs_are_whole_in_the_object_store() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let blobs = Blobs::open(&bench.connection).await.unwrap();
    let task = bench.task(
        "large",
        r"yes 0123456789abcde | head -c 3200000; printf '\377' >&2",
    );
    bench.dispatch(&task).await;
    let done = bench.done(&task).await;
    let Some(Body::Blob { blob, preview }) = &done.output else {
        panic!("{:?}", done.output)
    };
    let whole: Value = serde_json::from_slice(&blobs.get(blob).await.unwrap().unwrap()).unwrap();
    let text = whole["stdout"].as_str().unwrap();
    assert!(
        text.len() <= 64 * 1024 && text.contains("bytes cut; the whole is in stdout_ref] …"),
        "{}",
        text.len()
    );
    let stdout = blobs
        .get(&serde_json::from_value(whole["stdout_ref"].clone()).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stdout, "0123456789abcde\n".repeat(200_000).as_bytes());
    let stderr = blobs
        .get(&serde_json::from_value(whole["stderr_ref"].clone()).unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (whole["stderr"].as_str(), stderr.as_ref()),
        (Some("\u{FFFD}"), &b"\xff"[..])
    );
    assert!(preview.to_string().len() < 64 * 1024);
    assert_eq!(preview["exit_code"], 0);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_is_a_failed_step_and_a_dead_letter() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task_of("odd", json!({ "command": ["not", "text"] }));
    let seq = bench.dispatch(&task).await;
    let done = bench.done(&task).await;
    let (reason, message) = failure(&done);
    assert_eq!(reason, StepFailure::DeadLetter);
    assert!(
        message.starts_with("the work of the step odd cannot be read"),
        "{message}"
    );
    bench.acked(seq).await;
    let letters = bench.log.dead_letters(None, 10).await.unwrap();
    assert_eq!((letters.len(), letters[0].letter.seq), (1, seq));
    let metrics = runner.service.metrics.encode();
    assert!(
        metrics.contains(r#"fist_dead_letters_total{consumer="cli"} 1"#),
        "{metrics}"
    );
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_command_is_a_failure() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task("empty", "  ");
    bench.dispatch(&task).await;
    let done = bench.done(&task).await;
    assert_eq!(failure(&done).0, StepFailure::Refused);
    assert!(failure(&done).1.starts_with("the command is empty once rendered"));
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_live() {
    let bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task("talk", "until [ -e @/go ]; do sleep 0.05; done; echo hello >&2");
    let filter = subjects::live_filter(&task.namespace, task.execution);
    let mut live = bench.log.follow_live(vec![filter], Position::New).await.unwrap();
    bench.dispatch(&task).await;
    fs::write(bench.file("go"), "").unwrap();
    let message = tokio::time::timeout(PATIENCE, live.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let line = Live::Line {
        stream: Stream::Stderr,
        text: "hello".into(),
    };
    assert_eq!(decode::<Live>(&message.payload).unwrap().body, line);
    runner.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_waits_for_a_server_that_is_away() {
    let mut bench = Bench::new().await;
    let runner = bench.runner("a").await;
    let task = bench.task(
        "patient",
        "echo x >>@/ran; until [ -e @/go ]; do sleep 0.05; done; echo over; : >@/over",
    );
    let seq = bench.dispatch(&task).await;
    until("it runs", || bench.lines("ran") == 1).await;
    bench.nats.kill9();
    fs::write(bench.file("go"), "").unwrap();
    until("it is over", || bench.file("over").exists()).await;
    bench.nats.restart().await;
    let done = bench.done(&task).await;
    assert_eq!(
        (&done.outcome, &output(&done)["stdout"]),
        (&Outcome::Succeeded, &json!("over\n"))
    );
    bench.acked(seq).await;
    assert_eq!(bench.lines("ran"), 1);
    runner.stop().await;
}
