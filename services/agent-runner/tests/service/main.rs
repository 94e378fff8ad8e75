//! The whole service against a real nats-server, with a mock model and a stand-in for kubectl.
#![allow(clippy::unwrap_used)]

mod budgets;
mod hostile;
mod in_cluster;
mod killed;
#[path = "../mock/mod.rs"]
mod mock;

use std::{path::Path, sync::Arc, time::Duration};

use bus::{
    Appended, Connection, Log, NatsLog, Position,
    testing::{TestNats, write_program},
};
use futures_util::StreamExt as _;
use mock::{DIALECTS, Dialect, KEY, Mock, PLANTED, Reply, submits};
use protocol::{
    Append, Attempt, Cause, Done, End, EndStatus, ExecutionId, Fact, LaneAction, Namespace, Outcome,
    StepFailure, StepName, Subject, Task, TaskType, Timestamp, WorkflowName, decode, encode, live::Live,
    subjects, turns::Turn,
};
use serde_json::{Value, json};
use service::{Config, Fatal, Service, config::Secrets};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(60);

struct Bench {
    _nats: TestNats,
    connection: Connection,
    log: NatsLog,
    dir: tempfile::TempDir,
    config: Config,
}

struct Running {
    shutdown: CancellationToken,
    service: JoinHandle<Result<(), Fatal>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(WITHIN, self.service)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

impl Bench {
    async fn new() -> Self {
        let (nats, connection) = TestNats::ready().await;
        let dir = tempfile::tempdir().unwrap();
        let kubectl = dir.path().join("kubectl");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\necho 'web-1   CrashLoopBackOff'\necho 'env password={PLANTED}'\n",
            dir.path().join("calls").display()
        );
        write_program(&kubectl, &script);
        let mut config = Config::default();
        config.nats.url = nats.url();
        config.tools.kubectl_bin = kubectl.display().to_string();
        config.llm.scripted_dir = Some(dir.path().to_owned());
        let log = NatsLog::open(&connection).await.unwrap();
        Self {
            _nats: nats,
            connection,
            log,
            dir,
            config,
        }
    }

    fn start(&self, secrets: Secrets) -> Running {
        let shutdown = CancellationToken::new();
        let service = Service::new("agent-runner", Arc::new(self.config.clone()), shutdown.clone());
        Running {
            shutdown,
            service: tokio::spawn(agent_runner::serve(service, secrets)),
        }
    }

    /// Hands out a task; `time` from now until its deadline.
    async fn hand_out(&self, work: Value, time: Duration) -> Task {
        self.hand_out_in("prod", work, time).await
    }

    /// The same for a workflow of this namespace.
    async fn hand_out_in(&self, namespace: &str, work: Value, time: Duration) -> Task {
        let task = Task {
            namespace: Namespace::new(namespace).unwrap(),
            execution: ExecutionId::from_uuid(uuid::Uuid::now_v7()),
            workflow: WorkflowName::new("w").unwrap(),
            step: StepName::new("investigate").unwrap(),
            index: 0,
            attempt: Attempt::FIRST,
            task_type: TaskType::agent(),
            dispatched_at: now(),
            deadline: now().after(time),
            timeout: format!("{} seconds", time.as_secs()),
            work,
        };
        self.append(&task, LaneAction::Task(Box::new(task.clone())), 0)
            .await;
        task
    }

    async fn append(&self, task: &Task, action: LaneAction, expected_last: u64) -> u64 {
        let subject = match &action {
            LaneAction::End(_) => Subject::Cancel(task.namespace.clone(), task.execution),
            _ => Subject::Command(TaskType::agent(), task.namespace.clone(), task.execution),
        };
        let cause = Cause {
            subject: "x".into(),
            seq: 1,
        };
        let append = Append {
            cause,
            records: vec![],
            action,
        };
        match self
            .log
            .append(&subject, encode(now(), &append), expected_last)
            .await
            .unwrap()
        {
            Appended::At(seq) => seq,
            Appended::Conflict => panic!("nobody else writes to this lane"),
        }
    }

    async fn done(&self, task: &Task) -> Done {
        let filter = subjects::facts_filter(&task.namespace, task.execution);
        let waiting = async {
            let mut facts = self.log.follow(vec![filter], Position::All).await.unwrap();
            loop {
                let message = facts.next().await.unwrap().unwrap();
                if let Fact::Done(done) = decode::<Fact>(&message.payload).unwrap().body {
                    return done;
                }
            }
        };
        tokio::time::timeout(WITHIN, waiting)
            .await
            .expect("the step ends")
    }

    async fn turns(&self, task: &Task) -> Vec<Turn> {
        let messages = self
            .log
            .read_turns(&task.namespace, task.execution, &task.step, task.attempt)
            .await
            .unwrap();
        messages
            .iter()
            .map(|message| decode::<Turn>(&message.payload).unwrap().body)
            .collect()
    }

    /// Fails where a planted secret is anywhere in the log, but in the task itself.
    async fn assert_no_secret(&self) {
        for message in self.log.read_from(1, 10_000).await.unwrap() {
            if message
                .subject
                .starts_with(subjects::ALL_COMMANDS.trim_end_matches('>'))
            {
                continue;
            }
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            for secret in [PLANTED, KEY] {
                assert!(!text.contains(secret), "{}: {text}", message.subject);
            }
        }
    }

    fn calls(&self) -> Vec<String> {
        calls(self.dir.path())
    }
}

fn calls(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn work(dialect: Dialect) -> Value {
    json!({
        "goal": format!("why does web-1 crash? (token={PLANTED})"),
        "tools": ["kubectl"],
        "llm_config": {"provider": dialect.name(), "model": "test"},
        "fix_namespace": "prod",
        "alert": {"name": "PodCrash", "labels": {"pod": "web-1", "note": format!("password={PLANTED}")}},
    })
}

fn looks(id: &'static str, pod: &str) -> (&'static str, &'static str, String) {
    (id, "kubectl", json!({"args": ["get", "pod", pod]}).to_string())
}

fn findings(quote: &str) -> Value {
    json!({
        "summary": "web-1 crash-loops", "findings": ["it crash-loops"], "root_cause": "memory", "confidence": 0.9,
        "can_auto_fix": true, "fix_command": "kubectl rollout restart deployment/web -n prod",
        "evidence": [{"call_id": "toolu_1", "quote": quote}],
    })
}

fn output(done: &Done) -> Value {
    done.output
        .as_ref()
        .map(|body| body.preview().clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn an_investigation_is_recorded_grounded_and_free_of_secrets() {
    for dialect in DIALECTS {
        let bench = Bench::new().await;
        let mock = Mock::start(
            dialect,
            vec![
                Reply::Answer(
                    "I look at both",
                    vec![looks("toolu_1", "web-1"), looks("toolu_2", "web-2")],
                ),
                submits(&findings("web-1 CrashLoopBackOff")),
            ],
        )
        .await;
        let mut live = bench
            .log
            .follow_live(vec![subjects::ALL_LIVE.to_owned()], Position::New)
            .await
            .unwrap();
        let running = bench.start(mock.secrets());
        let task = bench.hand_out(work(dialect), Duration::from_secs(600)).await;
        let done = bench.done(&task).await;
        assert_eq!(done.outcome, Outcome::Succeeded);
        let said = tokio::time::timeout(WITHIN, live.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let said = decode::<Live>(&said.payload).unwrap().body;
        assert_eq!(
            said,
            Live::Says {
                text: "I look at both".into()
            }
        );
        let called = tokio::time::timeout(WITHIN, live.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let called = decode::<Live>(&called.payload).unwrap().body;
        assert!(
            matches!(&called, Live::ToolCall { tool, arguments } if tool == "kubectl" && arguments == "get pod web-1"),
            "{called:?}"
        );
        let output = output(&done);
        assert_eq!(
            (&output["status"], &output["can_auto_fix"]),
            (&json!("complete"), &json!(true)),
            "{output}"
        );
        assert_eq!(output["evidence"][0]["grounded"], true);
        assert_eq!(
            output["usage"],
            json!({"input_tokens": 200, "output_tokens": 60, "cached_tokens": 40, "turns": 2})
        );
        assert_eq!(
            output["transcript_ref"],
            subjects::attempt_turns_filter(&task.namespace, task.execution, &task.step, task.attempt)
        );
        assert_eq!(mock.problems(), Vec::<String>::new(), "{dialect:?}");
        let turns = bench.turns(&task).await;
        assert!(
            matches!(
                &turns[..],
                [Turn::Model(_), Turn::Tool(_), Turn::Tool(_), Turn::Model(_)]
            ),
            "{turns:?}"
        );
        assert_eq!(bench.calls().len(), 2);
        bench.assert_no_secret().await;
        let second = serde_json::to_string(&mock.requests()[1]).unwrap();
        assert!(
            second.contains("password=[REDACTED:value#") && second.contains("end of data"),
            "{second}"
        );
        running.stop().await;
    }
}

#[tokio::test]
async fn an_ungrounded_quote_is_marked_and_forbids_the_fix() {
    let bench = Bench::new().await;
    let mock = Mock::start(
        Dialect::Anthropic,
        vec![
            Reply::Answer("", vec![looks("toolu_1", "web-1")]),
            submits(&findings("web-1 OOMKilled")),
        ],
    )
    .await;
    let running = bench.start(mock.secrets());
    let task = bench
        .hand_out(work(Dialect::Anthropic), Duration::from_secs(600))
        .await;
    let output = output(&bench.done(&task).await);
    assert_eq!(
        (&output["can_auto_fix"], &output["evidence"][0]["grounded"]),
        (&json!(false), &json!(false))
    );
    running.stop().await;
}

#[tokio::test]
async fn another_runner_goes_on_where_one_was_shut_down() {
    for dialect in DIALECTS {
        let bench = Bench::new().await;
        let mock = Mock::start(
            dialect,
            vec![
                Reply::Answer("", vec![looks("toolu_1", "web-1"), looks("toolu_2", "web-2")]),
                Reply::Silent,
                submits(&findings("web-1 CrashLoopBackOff")),
            ],
        )
        .await;
        let first = bench.start(mock.secrets());
        let task = bench.hand_out(work(dialect), Duration::from_secs(600)).await;
        let asked_twice = async {
            while mock.requests().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WITHIN, asked_twice).await.unwrap();
        first.stop().await;
        let second = bench.start(mock.secrets());
        let done = bench.done(&task).await;
        assert_eq!(done.outcome, Outcome::Succeeded);
        assert_eq!(output(&done)["usage"]["turns"], 2);
        assert_eq!(
            (mock.answered(), bench.calls().len()),
            (2, 2),
            "nothing was paid or run twice"
        );
        assert_eq!(mock.problems(), Vec::<String>::new());
        second.stop().await;
    }
}

#[tokio::test]
async fn a_cancel_stops_the_model_call_and_records_what_was_done() {
    let bench = Bench::new().await;
    let mock = Mock::start(
        Dialect::Anthropic,
        vec![Reply::Answer("", vec![looks("toolu_1", "web-1")]), Reply::Silent],
    )
    .await;
    let running = bench.start(mock.secrets());
    let task = bench
        .hand_out(work(Dialect::Anthropic), Duration::from_secs(600))
        .await;
    let asked_twice = async {
        while mock.requests().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, asked_twice).await.unwrap();
    let lane = subjects::lane_filter(&task.namespace, task.execution);
    let last = bench.log.last(&lane).await.unwrap().unwrap().seq;
    let end = End {
        status: EndStatus::Cancelled,
        error: None,
        failed_step: None,
        at: now(),
    };
    bench.append(&task, LaneAction::End(end), last).await;
    let done = bench.done(&task).await;
    assert!(
        matches!(&done.outcome, Outcome::Failed(error) if error.reason == StepFailure::Cancelled),
        "{done:?}"
    );
    assert_eq!(output(&done)["actions_taken"], json!(["kubectl get pod web-1"]));
    running.stop().await;
}

#[tokio::test]
async fn time_that_runs_out_gives_what_there_is_in_time() {
    let bench = Bench::new().await;
    let replies = || {
        vec![
            Reply::Answer("it seems to crash", vec![looks("toolu_1", "web-1")]),
            Reply::Silent,
            submits(&findings("web-1 CrashLoopBackOff")),
        ]
    };
    let mock = Mock::start(Dialect::OpenAi, replies()).await;
    let running = bench.start(mock.secrets());
    let task = bench
        .hand_out(work(Dialect::OpenAi), Duration::from_secs(6))
        .await;
    let done = bench.done(&task).await;
    assert_eq!(done.outcome, Outcome::Succeeded);
    assert!(
        done.completed_at < task.deadline,
        "{} {}",
        done.completed_at,
        task.deadline
    );
    let partial = output(&done);
    assert_eq!(
        (&partial["status"], &partial["stop_reason"]),
        (&json!("partial"), &json!("time"))
    );
    assert_eq!(
        (&partial["fix_command"], &partial["can_auto_fix"]),
        (&Value::Null, &json!(false))
    );
    assert_eq!(partial["summary"], "web-1 crash-loops");
    let last = mock.requests().pop().unwrap();
    assert_eq!(last["tools"].as_array().unwrap().len(), 1);
    assert_eq!(last["tool_choice"]["function"]["name"], "submit_findings");
    running.stop().await;
    // The author wants a failure instead.
    let mock = Mock::start(Dialect::OpenAi, replies()).await;
    let running = bench.start(mock.secrets());
    let mut strict = work(Dialect::OpenAi);
    strict["fail_on_timeout"] = json!(true);
    let task = bench.hand_out(strict, Duration::from_secs(6)).await;
    let done = bench.done(&task).await;
    let Outcome::Failed(error) = &done.outcome else {
        panic!("{done:?}")
    };
    assert_eq!(error.reason, StepFailure::Timeout);
    assert!(
        error.message.starts_with("timed out after 6 seconds"),
        "{error:?}"
    );
    assert_eq!(output(&done)["status"], "partial");
    running.stop().await;
}

#[tokio::test]
async fn without_one_answer_the_step_fails_and_says_why() {
    let bench = Bench::new().await;
    let refused = Reply::Status(
        401,
        vec![],
        json!({"error": {"type": "authentication_error", "message": format!("bad key {KEY}")}}),
    );
    let mock = Mock::start(Dialect::Anthropic, vec![refused]).await;
    let running = bench.start(mock.secrets());
    let cases = [
        (work(Dialect::Anthropic), "answered 401"),
        (work(Dialect::OpenAi), "set OPENAI_API_KEY"),
        (
            json!({"goal": "g", "tools": ["ssh"], "llm_config": {"provider": "anthropic"}}),
            "there is no tool `ssh`",
        ),
        (
            json!({"goal": "g", "tools": ["mcp:tickets"], "llm_config": {"provider": "anthropic"}}),
            "has no section [tools.mcp.tickets]",
        ),
        (
            json!({"goal": "g", "tools": [], "llm_config": {"provider": "anthropic", "endpoint": "https://evil.example"}}),
            "llm.allowed_endpoints",
        ),
        (
            json!({"goal": "g", "tools": [], "llm_config": {"provider": "scripted", "model": "none"}}),
            "there is no none.yaml",
        ),
    ];
    for (work, said) in cases {
        let task = bench.hand_out(work, Duration::from_secs(600)).await;
        let done = bench.done(&task).await;
        let Outcome::Failed(error) = &done.outcome else {
            panic!("{done:?}")
        };
        assert_eq!(error.reason, StepFailure::Agent);
        assert!(error.message.contains(said), "{}", error.message);
        assert_eq!(done.output, None);
    }
    bench.assert_no_secret().await;
    running.stop().await;
}

#[tokio::test]
async fn an_attempt_that_has_its_fact_is_not_made_again() {
    let bench = Bench::new().await;
    let mock = Mock::start(Dialect::Anthropic, vec![submits(&json!({"summary": "s"}))]).await;
    let running = bench.start(mock.secrets());
    let task = bench
        .hand_out(work(Dialect::Anthropic), Duration::from_secs(600))
        .await;
    bench.done(&task).await;
    let lane = subjects::lane_filter(&task.namespace, task.execution);
    let last = bench.log.last(&lane).await.unwrap().unwrap().seq;
    bench
        .append(&task, LaneAction::Task(Box::new(task.clone())), last)
        .await;
    let acknowledged = async {
        loop {
            let state = bench.log.consumer_state(&bus::topology::AGENT).await.unwrap();
            if state.waiting == 0 && state.in_flight == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(WITHIN, acknowledged).await.unwrap();
    assert_eq!(mock.requests().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_script_reports_on_the_real_tools_and_never_fixes() {
    let bench = Bench::new().await;
    let script = r#"
let: {pod: {from: goal, match: 'why does (\S+)'}}
turns:
  - text: I look at ${pod}.
    calls: [{name: pod, tool: kubectl, arguments: {args: [get, pod, "${pod}"]}}]
  - let: {state: {from: pod, match: '${pod}\s+(\S+)', else: unknown}}
    submit_findings:
      summary: "${pod} is in ${state}"
      can_auto_fix: true
      fix_command: kubectl rollout restart deployment/web -n prod
      evidence: [{call: pod, match: '${pod}.*'}]
"#;
    std::fs::write(bench.dir.path().join("crash.yaml"), script).unwrap();
    let running = bench.start(Secrets::default());
    let mut scripted = work(Dialect::Anthropic);
    scripted["llm_config"] = json!({"provider": "scripted", "model": "crash"});
    let task = bench.hand_out(scripted, Duration::from_secs(600)).await;
    let done = bench.done(&task).await;
    let output = output(&done);
    assert_eq!(output["summary"], "web-1 is in CrashLoopBackOff");
    assert_eq!(
        (&output["scripted"], &output["can_auto_fix"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(output["evidence"][0]["grounded"], true, "{output}");
    assert_eq!(
        bench.calls(),
        ["get pod web-1 --namespace=prod --request-timeout=30000ms"]
    );
    running.stop().await;
}

/// A server that knows one ticket and tells its own token, in as few lines as a shell needs.
const TICKETS: &str = r#"
echo $$ > PID
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
    *'"initialize"'*) result='"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"t","version":"1"}' ;;
    *'"tools/list"'*) result='"tools":[{"name":"find","inputSchema":{"type":"object","required":["pod"]}},{"name":"close","inputSchema":{}}]' ;;
    *'"tools/call"'*) result='"content":[{"type":"text","text":"ticket 7: web-1 fails since noon '"$TOKEN"'"}]' ;;
    *) continue ;;
  esac
  echo '{"jsonrpc":"2.0","id":'"$id"',"result":{'"$result"'}}'
done
"#;

#[tokio::test]
async fn a_step_has_the_tools_of_an_mcp_server_for_as_long_as_it_lasts() {
    let mut bench = Bench::new().await;
    let file = |name: &str| bench.dir.path().join(name);
    std::fs::write(file("token"), PLANTED).unwrap();
    let script = TICKETS.replace("PID", &file("pid").display().to_string());
    let configuration = format!(
        "[tools.mcp.tickets]\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\nenv_files = {{ TOKEN = {:?} }}\n\
         tools = [\"find\"]\n",
        file("token")
    );
    let parsed = Config::parse(Some(("fist.toml", &configuration)), std::iter::empty()).unwrap();
    let script = r#"
turns:
  - calls: [{name: ticket, tool: mcp_tickets_find, arguments: {pod: web-1}}]
  - let: {since: {from: ticket, match: 'fails since (\S+)'}}
    submit_findings:
      summary: "it fails since ${since}"
      evidence: [{call: ticket, match: 'ticket \d+'}]
"#;
    std::fs::write(file("ticket.yaml"), script).unwrap();
    let pid = file("pid");
    bench.config.tools.mcp = parsed.tools.mcp;
    let running = bench.start(Secrets::default());
    let work = json!({
        "goal": "g", "tools": ["mcp:tickets"], "llm_config": {"provider": "scripted", "model": "ticket"},
    });
    let task = bench.hand_out(work, Duration::from_secs(600)).await;
    let done = bench.done(&task).await;
    let output = output(&done);
    assert_eq!(output["summary"], "it fails since noon", "{output}");
    assert_eq!(output["evidence"][0]["grounded"], true, "{output}");
    bench.assert_no_secret().await;
    let pid = std::fs::read_to_string(pid).unwrap();
    let gone = async {
        while Path::new("/proc").join(pid.trim()).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, gone).await.unwrap();
    running.stop().await;
}
