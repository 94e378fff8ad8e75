//! The agent-runner as a process that is killed with SIGKILL at every point of an investigation, and another goes on.

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
    time::Instant,
};

use protocol::turns::ToolTurn;

use super::*;

/// Investigations that run beside each other: each waits for its task to be handed out anew.
const AT_ONCE: usize = 16;
/// Answers of the model in it, and the calls that they ask for.
const TURNS: usize = 6;
const CALLS: usize = 10;

/// When the process is killed.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// As soon as so many points are recorded.
    Recorded(usize),
    /// As soon as the model has been asked so often: its answer is on its way, and not recorded.
    Answering(usize),
    /// As soon as so many calls have run: the result of the last is perhaps not recorded.
    Called(usize),
}

/// A process of this bench; killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(bench: &Bench, mock: &Mock) -> Self {
        Self::start_with_log(bench, mock, Stdio::null())
    }

    fn start_with_log(bench: &Bench, mock: &Mock, log: Stdio) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_agent-runner"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("FIST_NATS_URL", &bench.config.nats.url)
            .env("FIST_TOOLS_KUBECTL_BIN", &bench.config.tools.kubectl_bin)
            .env("FIST_LOG_LEVEL", "trace")
            .env("ANTHROPIC_API_KEY", KEY)
            .env("ANTHROPIC_BASE_URL", format!("http://127.0.0.1:{}", mock.port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Six turns, ten calls.
fn replies() -> Vec<Reply> {
    let pods = |names: &[(&'static str, &str)]| names.iter().map(|(id, pod)| looks(id, pod)).collect();
    vec![
        Reply::Answer("three at once", pods(&[("c1", "a"), ("c2", "b"), ("c3", "c")])),
        Reply::Answer("", pods(&[("c4", "d")])),
        Reply::Answer("two", pods(&[("c5", "e"), ("c6", "f")])),
        Reply::Answer("", pods(&[("c7", "g"), ("c8", "h"), ("c9", "i")])),
        Reply::Answer("one more", pods(&[("c10", "j")])),
        submits(&json!({
            "summary": "web crash-loops", "root_cause": "memory", "confidence": 0.9, "can_auto_fix": true,
            "fix_command": "kubectl rollout restart deployment/web -n prod",
            "evidence": [{"call_id": "c9", "quote": "web-1 CrashLoopBackOff"}],
        })),
    ]
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        looks.tick().await;
    }
}

fn tool(turn: &Turn) -> Option<&ToolTurn> {
    match turn {
        Turn::Tool(tool) => Some(tool),
        Turn::Model(_) => None,
    }
}

/// The output without what may differ: the order in which calls of one answer came back, and the attempt's own name.
fn comparable(done: &Done) -> Value {
    let mut output = output(done);
    let mut actions: Vec<String> = output["actions_taken"]
        .as_array()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    actions.sort();
    output["actions_taken"] = json!(actions);
    output["transcript_ref"] = Value::Null;
    output
}

/// What came of it, and what it cost: answers charged, answers given, calls made.
async fn investigated(point: Option<Point>) -> (Value, usize) {
    let bench = Bench::new().await;
    let mock = Mock::start_by_turn(Dialect::Anthropic, replies()).await;
    let mut process = Process::start(&bench, &mock);
    let mut work = work(Dialect::Anthropic);
    work["goal"] = "why?".into();
    let task = bench.hand_out(work, Duration::from_secs(600)).await;
    let mut recorded = Vec::new();
    if let Some(point) = point {
        until(&format!("{point:?}"), async || match point {
            Point::Recorded(count) => bench.turns(&task).await.len() >= count,
            Point::Answering(count) => mock.answered() >= count,
            Point::Called(count) => bench.calls().len() >= count,
        })
        .await;
        drop(process);
        recorded = bench.turns(&task).await;
        process = Process::start(&bench, &mock);
    }
    let done = bench.done(&task).await;
    assert_eq!(done.outcome, Outcome::Succeeded, "{point:?}");
    drop(process);
    assert_eq!(mock.problems(), Vec::<String>::new(), "{point:?}");
    assert_eq!(mock.billed(), TURNS, "{point:?}: every answer is charged once");
    let turns = bench.turns(&task).await;
    assert_eq!(turns.len(), TURNS + CALLS, "{point:?}");
    assert_eq!(
        turns[..recorded.len()],
        recorded[..],
        "{point:?}: what is recorded stays"
    );
    // An answer that had been recorded was not asked for again, a call that had its result was not made again.
    let answers = recorded
        .iter()
        .filter(|turn| matches!(turn, Turn::Model(_)))
        .count();
    let again = usize::from(point.is_some() && answers < TURNS);
    assert!(
        mock.answered() <= TURNS + again,
        "{point:?}: {} answers",
        mock.answered()
    );
    let calls = bench.calls();
    let had: BTreeSet<String> = recorded
        .iter()
        .filter_map(tool)
        .map(|tool| tool.arguments["args"][2].as_str().unwrap().to_owned())
        .collect();
    for pod in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        let made = calls
            .iter()
            .filter(|call| call.contains(&format!("pod {pod} ")))
            .count();
        let most = if point.is_none() || had.contains(pod) {
            1
        } else {
            2
        };
        assert!(
            (1..=most).contains(&made),
            "{point:?}: {pod} was looked at {made} times"
        );
    }
    (comparable(&done), calls.len())
}

#[tokio::test]
async fn killed_at_every_point_it_comes_to_the_same_and_pays_once() {
    let (whole, calls) = investigated(None).await;
    assert_eq!(calls, CALLS);
    assert_eq!(
        (&whole["can_auto_fix"], &whole["usage"]["turns"]),
        (&json!(true), &json!(TURNS)),
        "{whole}"
    );
    // The last record ends it, so a kill after it may find the result there already.
    let points = (1..TURNS + CALLS)
        .map(Point::Recorded)
        .chain((1..=TURNS).map(Point::Answering))
        .chain((1..=CALLS).map(Point::Called));
    let runs = points.map(|point| async move { (point, investigated(Some(point)).await.0) });
    let mut runs = std::pin::pin!(futures_util::stream::iter(runs).buffer_unordered(AT_ONCE));
    while let Some((point, output)) = runs.next().await {
        assert_eq!(output, whole, "{point:?}");
    }
}

#[tokio::test]
async fn what_is_resumed_with_little_time_left_ends_in_time_with_what_there_is() {
    let bench = Bench::new().await;
    let replies = vec![
        Reply::Answer("it seems to crash", vec![looks("c1", "web-1")]),
        Reply::Silent,
    ];
    let mock = Mock::start_by_turn(Dialect::Anthropic, replies).await;
    let process = Process::start(&bench, &mock);
    // The task is handed out anew 15 s after its runner was last heard of: when the time for anything but the ending is
    // over, or nearly so.
    let task = bench
        .hand_out(work(Dialect::Anthropic), Duration::from_secs(32))
        .await;
    until("the second question", async || mock.requests().len() >= 2).await;
    drop(process);
    let process = Process::start(&bench, &mock);
    let done = bench.done(&task).await;
    drop(process);
    assert_eq!(done.outcome, Outcome::Succeeded, "{done:?}");
    assert!(
        done.completed_at < task.deadline,
        "{} {}",
        done.completed_at,
        task.deadline
    );
    let partial = output(&done);
    assert_eq!(
        (
            &partial["status"],
            &partial["stop_reason"],
            &partial["can_auto_fix"]
        ),
        (&json!("partial"), &json!("time"), &json!(false)),
        "{partial}"
    );
    assert_eq!(partial["findings"], json!(["it seems to crash"]));
    assert_eq!(partial["actions_taken"], json!(["kubectl get pod web-1"]));
    let last = mock.requests().pop().unwrap();
    assert_eq!(
        last["tool_choice"]["name"], "submit_findings",
        "the second runner asks for the ending only"
    );
}

#[tokio::test]
async fn no_sink_gets_a_planted_secret() {
    let bench = Bench::new().await;
    let mut live = bench
        .log
        .follow_live(vec![subjects::ALL_LIVE.to_owned()], Position::New)
        .await
        .unwrap();
    let tells = format!("I found password={PLANTED} and {KEY}");
    let mut findings = findings("web-1 CrashLoopBackOff");
    findings["summary"] = tells.clone().into();
    let replies = vec![
        Reply::Answer(
            Box::leak(tells.into_boxed_str()),
            vec![
                looks("toolu_1", "web-1"),
                (
                    "toolu_2",
                    "kubectl",
                    json!({"args": ["get", "pod", format!("password={PLANTED}")]}).to_string(),
                ),
            ],
        ),
        submits(&findings),
    ];
    let mock = Mock::start(Dialect::Anthropic, replies).await;
    let log = bench.dir.path().join("log");
    let process = Process::start_with_log(&bench, &mock, std::fs::File::create(&log).unwrap().into());
    // The goal and the alert of this work, and what kubectl prints, hold the secret too.
    let task = bench
        .hand_out(work(Dialect::Anthropic), Duration::from_secs(600))
        .await;
    let done = bench.done(&task).await;
    drop(process);
    assert_eq!(done.outcome, Outcome::Succeeded);
    assert_eq!(bench.calls().len(), 1, "a call with a secret in it is not made");
    bench.assert_no_secret().await;
    assert_eq!(mock.problems(), Vec::<String>::new(), "the model got none");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("tool called"), "{log}");
    let mut said = 0;
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(200), live.next()).await {
        let text = String::from_utf8_lossy(&message.unwrap().payload).into_owned();
        assert!(!text.contains(PLANTED) && !text.contains(KEY), "{text}");
        said += 1;
    }
    assert!(said >= 2, "{said}");
    for secret in [PLANTED, KEY] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
}
