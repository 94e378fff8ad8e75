//! What was once written must decode for ever: one file for each kind of message and version. A file is never
//! edited; a message that changes its shape is a new version, with new files beside the old ones.
#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf};

use protocol::{
    Alert, AlertStatus, Append, Attempt, Begun, BlobRef, Body, BudgetDay, Cancel, Cause, Dead, DeadLetter,
    Disposition, DispositionKind, Done, End, EndStatus, ExecutionId, Fact, Input, Json, LaneAction,
    Namespace, Outcome, Start, StepError, StepFailure, StepName, StepRecord, StepStatus, Task, TaskType,
    TimerFired, TimerId, Timestamp, WorkflowName,
    budget::{Reservation, Settled},
    ids::{AlertId, SourceName},
    lane::{AgentWork, CliWork, EarlierStep, Left},
    live::{Live, Stream},
    turns::{ModelTurn, ToolCall, ToolTurn, Turn, Usage},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_795_445_258_000 + seconds * 1000)
}

fn object(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn step() -> StepName {
    StepName::new("check-disk").unwrap()
}

fn execution() -> ExecutionId {
    "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f".parse().unwrap()
}

/// The file still decodes to `message`, and `message` is still written like that.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, message: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v1/{name}.json"));
    let written = protocol::encode(at(0), message);
    let pretty: Value = serde_json::from_slice(&written).unwrap();
    let pretty = format!("{}\n", serde_json::to_string_pretty(&pretty).unwrap());
    if !path.exists() && std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &pretty).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; a new message gets its file by UPDATE_EXPECT=1",
            path.display()
        )
    });
    let decoded = protocol::decode::<T>(golden.as_bytes()).unwrap();
    assert_eq!(decoded.v, 1, "{name}");
    assert_eq!(
        &decoded.body, message,
        "{name} decodes to something else than it did"
    );
    assert_eq!(
        golden, pretty,
        "{name} is written differently than it was: that is a new version"
    );
}

#[test]
fn facts() {
    let start = Start {
        namespace: Namespace::new("prod").unwrap(),
        execution: execution(),
        workflow: WorkflowName::new("disk-filling").unwrap(),
        trigger_source: "alertmanager".into(),
        spec: Json::of(&json!({ "steps": [{ "name": "check-disk", "type": "cli", "command": "df" }] }))
            .unwrap(),
        input: Json::of(&Input {
            data: object(json!({ "pod": "web-1" })),
            alert: Some(object(json!({ "name": "DiskFilling", "severity": "critical" }))),
        })
        .unwrap(),
        delivery: Some("17-1".into()),
        uid: Some("2a4b6c8d".into()),
    };
    check("fact-start", &Fact::Start(Box::new(start)));
    let begun = Begun {
        step: step(),
        attempt: Attempt::FIRST,
        runner: "host/1".into(),
    };
    check("fact-begun", &Fact::Begun(begun));
    let done = |outcome, output| {
        Fact::Done(Done {
            step: step(),
            attempt: Attempt::FIRST,
            outcome,
            output,
            started_at: at(1),
            completed_at: at(2),
            runner: "host/1".into(),
        })
    };
    let inline = Body::Inline(json!({ "stdout": "93%", "exit_code": 0 }));
    check("fact-done-succeeded", &done(Outcome::Succeeded, Some(inline)));
    let blob = Body::Blob {
        blob: BlobRef {
            sha256: "ab".repeat(32),
            bytes: 100_000,
        },
        preview: json!({ "stdout": "the beginning …" }),
    };
    let error = StepError {
        reason: StepFailure::Command,
        message: "exit code 3: no such disk".into(),
    };
    check("fact-done-failed", &done(Outcome::Failed(error), Some(blob)));
    let skipped = Outcome::Skipped {
        message: "proposed, not run".into(),
    };
    check("fact-done-skipped", &done(skipped, None));
    check(
        "fact-cancel",
        &Fact::Cancel(Cancel {
            reason: "by hand".into(),
        }),
    );
    check(
        "fact-dead",
        &Fact::Dead(Dead {
            subject: "fist.cmd.cli.prod.x".into(),
            seq: 9,
            reason: "poison".into(),
            task: Some((step(), Attempt::FIRST)),
        }),
    );
    let timer = TimerId::step_deadline(&step(), Attempt::FIRST, at(600));
    check("fact-timer", &Fact::Timer(TimerFired { timer }));
}

fn task(task_type: TaskType, work: Value) -> Task {
    Task {
        namespace: Namespace::new("prod").unwrap(),
        execution: execution(),
        workflow: WorkflowName::new("disk-filling").unwrap(),
        step: step(),
        index: 1,
        attempt: Attempt::FIRST,
        task_type,
        dispatched_at: at(0),
        deadline: at(600),
        timeout: "10 minutes (timeout_minutes: 10)".into(),
        work,
    }
}

#[test]
fn the_lane() {
    let cause = || Cause {
        subject: "fist.fact.prod.x.start".into(),
        seq: 4,
    };
    let cli = CliWork {
        command: "kubectl get pod 'web-1'".into(),
        fix: Some(vec!["kubectl".into(), "get".into()]),
        dry_run: false,
        proposed_by: String::new(),
        image: Some("punching-fist/cli:1".into()),
        env: object(json!({ "REGION": "eu" })),
        resources: Some(json!({ "limits": { "memory": "64Mi" } })),
        run_as_user: None,
    };
    check("work-cli", &cli);
    let as_user = CliWork {
        run_as_user: Some(1000),
        ..cli.clone()
    };
    check("work-cli-user", &as_user);
    let fix = CliWork {
        dry_run: true,
        proposed_by: "the investigation of step look".into(),
        ..cli.clone()
    };
    check("work-cli-fix", &fix);
    let record = StepRecord {
        step: StepName::new("is-full").unwrap(),
        index: 0,
        attempt: Attempt::FIRST,
        status: StepStatus::Succeeded,
        output: Some(json!({ "condition_met": true })),
        error: None,
        message: Some("met".into()),
        at: at(0),
    };
    let cli_task = task(TaskType::cli(), json!(cli));
    check(
        "lane-task",
        &Append {
            cause: cause(),
            records: vec![record],
            action: LaneAction::Task(Box::new(cli_task.clone())),
        },
    );
    let agent = AgentWork {
        goal: "why is the disk full".into(),
        tools: vec!["kubectl".into()],
        llm_config: object(json!({ "provider": "anthropic" })),
        env: object(json!({ "PROMETHEUS_URL": "http://prometheus:9090" })),
        fail_on_timeout: false,
        fix_namespace: "prod".into(),
        alert: Some(json!({ "name": "DiskFilling" })),
        earlier: vec![],
    };
    check("work-agent", &agent);
    let earlier = |step: &str, step_type: &str, status, left| EarlierStep {
        step: StepName::new(step).unwrap(),
        step_type: step_type.into(),
        status,
        left,
    };
    let reader = AgentWork {
        goal: "read on".into(),
        tools: vec!["read_file".into()],
        earlier: vec![
            earlier(
                "check-disk",
                "cli",
                StepStatus::Succeeded,
                Left::Fact(Attempt::FIRST),
            ),
            earlier(
                "is-full",
                "conditional",
                StepStatus::Succeeded,
                Left::Output(json!({ "condition_met": true })),
            ),
            earlier("clean", "cli", StepStatus::Skipped, Left::TooLarge(9000)),
            earlier("tell", "cli", StepStatus::Skipped, Left::Nothing),
        ],
        ..AgentWork::default()
    };
    check("work-agent-earlier", &reader);
    let plan = LaneAction::Plan(vec![cli_task, task(TaskType::agent(), json!(agent))]);
    check(
        "lane-plan",
        &Append {
            cause: cause(),
            records: vec![],
            action: plan,
        },
    );
    let failed = StepRecord {
        step: step(),
        index: 0,
        attempt: Attempt::FIRST,
        status: StepStatus::Failed,
        output: None,
        error: Some(StepError {
            reason: StepFailure::Timeout,
            message: "timed out after 10 minutes".into(),
        }),
        message: None,
        at: at(0),
    };
    let end = LaneAction::End(End {
        status: EndStatus::Failed,
        error: Some("step `check-disk` failed: timed out after 10 minutes".into()),
        failed_step: Some(step()),
        at: at(0),
    });
    check(
        "lane-end",
        &Append {
            cause: cause(),
            records: vec![failed],
            action: end,
        },
    );
}

#[test]
fn turns_and_live() {
    let call = ToolCall {
        id: "toolu_1".into(),
        tool: "kubectl".into(),
        arguments: json!({ "args": ["get"] }),
    };
    let model = ModelTurn {
        turn: 1,
        text: "I look at the pod.".into(),
        calls: vec![call],
        stop_reason: "tool_use".into(),
        usage: Usage {
            input_tokens: 900,
            output_tokens: 40,
            cached_tokens: 800,
        },
        at: at(3),
    };
    check("turn-model", &Turn::Model(model));
    let tool = ToolTurn {
        call_id: "toolu_1".into(),
        tool: "kubectl".into(),
        arguments: json!({ "args": ["get"] }),
        is_error: false,
        result: Body::Inline(json!("NAME READY")),
        whole: None,
        started_at: at(3),
        at: at(4),
    };
    let cut = ToolTurn {
        whole: Some(BlobRef {
            sha256: "ab".repeat(32),
            bytes: 100_000,
        }),
        ..tool.clone()
    };
    check("turn-tool", &Turn::Tool(tool));
    check("turn-tool-cut", &Turn::Tool(cut));
    check(
        "live-line",
        &Live::Line {
            stream: Stream::Stderr,
            text: "warning".into(),
        },
    );
    check(
        "live-tool-call",
        &Live::ToolCall {
            tool: "promql".into(),
            arguments: "up".into(),
        },
    );
    check(
        "live-says",
        &Live::Says {
            text: "It is the disk.".into(),
        },
    );
}

#[test]
fn alerts_and_dead_letters() {
    let alert = Alert {
        source: SourceName::new("alertmanager").unwrap(),
        name: "DiskFilling".into(),
        severity: "critical".into(),
        status: AlertStatus::Firing,
        fingerprint: "c0ffee".into(),
        starts_at: Some(at(-60)),
        ends_at: None,
        labels: object(json!({ "alertname": "DiskFilling" })),
        annotations: object(json!({ "summary": "93 %" })),
    };
    let disposition = Disposition {
        id: AlertId::new("0a1b").unwrap(),
        delivery: "17-1".into(),
        delivery_seq: 17,
        delivery_alerts: 2,
        source: alert.source.clone(),
        alert: Some(alert),
        disposition: DispositionKind::Started,
        reason: String::new(),
        executions: vec![execution()],
        received_at: at(0),
    };
    check("alert-disposition", &disposition);
    let letter = DeadLetter {
        stream: "FIST_LOG".into(),
        seq: 12,
        subject: "fist.cmd.cli.prod.x".into(),
        written_at: at(0),
        consumer: "cli".into(),
        reason: "poison".into(),
        deliveries: 6,
        payload: "{}".into(),
        payload_bytes: 2,
    };
    check("dead-letter", &letter);
}

#[test]
fn budgets() {
    let attempt = format!("{}/{}/1", execution(), step());
    let day = BudgetDay {
        used_tokens: 4200,
        cost_nano_usd: 12_600_000,
        unpriced_tokens: 200,
        reservations: [(
            attempt.clone(),
            Reservation {
                turn: 3,
                tokens: 9000,
                is_last: false,
                expires_at: at(60),
            },
        )]
        .into(),
        settled: [(
            attempt,
            Settled {
                turn: 2,
                is_last: false,
                keep_until: at(3600),
            },
        )]
        .into(),
    };
    check("budget-day", &day);
}
