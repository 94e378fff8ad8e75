//! Workflow objects of a real API server: what it refuses, what ingest takes in, and what their status says.
//!
//! `cluster::testing` says which cluster.

use bus::Log as _;
use cluster::testing::TestCluster;
use protocol::{
    Append, Attempt, Cause, End, EndStatus, LaneAction, Start, Subject, Task, TaskType, subjects,
};
use serde_json::{Value, json};

use crate::world::{Ingest, World, answered, definition, until};

fn open(test: &str) -> Option<TestCluster> {
    service::install_crypto();
    let cluster = TestCluster::open(&format!("ingest-{test}"))?;
    cluster.define_workflows();
    Some(cluster)
}

fn config(cluster: &TestCluster) -> String {
    format!(
        "[ingest]\nwatch_workflows = true\nwatch_namespaces = [\"{}\"]\n[kubernetes]\nkubeconfig = \"{}\"\n",
        cluster.namespace(),
        cluster.kubeconfig().display()
    )
}

/// A workflow with these steps in YAML's flow style.
fn workflow(name: &str, steps: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {{name: {name}}}\nspec:\n  steps: [{steps}]\n"
    )
}

/// The status of an object, once it is as wanted.
async fn status(cluster: &TestCluster, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    until(&format!("the status of {name}"), || async {
        let object = cluster
            .try_kubectl(&["get", "workflow", name, "-o", "json"])
            .ok()?;
        let object: Value = serde_json::from_str(&object).unwrap();
        Some(object["status"].clone()).filter(&is_wanted)
    })
    .await
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

#[test]
fn kubectl_refuses_at_once_what_the_definition_can_tell() {
    let Some(cluster) = open("refused") else { return };
    for (steps, part) in [
        (
            "{name: a, type: cli, command: x, comand: y}",
            "unknown field \"spec.steps[0].comand\"",
        ),
        ("{name: a b, type: cli, command: x}", "spec.steps[0].name"),
        (
            "{name: a, type: cli, command: x}, {name: a, type: cli, command: x}",
            "Duplicate value",
        ),
        (
            "{name: a, type: cli}",
            "command is missing; it is what a cli step runs",
        ),
        ("{name: a, type: agent}", "goal is missing"),
        ("{name: a, type: conditional}", "condition is missing"),
        (
            "{name: a, type: cli, command: x, goal: g}",
            "goal is a field of agent steps",
        ),
        (
            "{name: a, type: agent, goal: g, onFalse: fail}",
            "on_false is a field of conditional steps",
        ),
        (
            "{name: a, type: cli, command: x, timeout_minutes: 1, timeoutSeconds: 5}",
            "give timeout_minutes or timeout_seconds, not both",
        ),
        (
            "{name: a, type: cli, command: x, timeout_minutes: 1, timeoutMinutes: 2}",
            "timeout_minutes stands twice",
        ),
        (
            "{name: a, type: cli, command: x, timeout_minutes: 1441}",
            "spec.steps[0].timeout_minutes",
        ),
        (
            "{name: a, type: shell, command: x}",
            "spec.steps[0].type: Unsupported value",
        ),
        ("", "spec.steps"),
    ] {
        let refused = cluster.try_apply(&workflow("bad", steps)).expect_err(steps);
        assert!(refused.contains(part), "{steps}: {refused}");
    }
    cluster.apply(&workflow(
        "both",
        "{name: a, type: agent, goal: g, timeout_minutes: 1, onTimeout: fail, llmConfig: {maxTurns: 3, api_key_secret: k}}",
    ));
    let kept = &cluster.get(&["workflow", "both"])["spec"]["steps"][0];
    assert_eq!(
        kept,
        &json!({"name": "a", "type": "agent", "goal": "g", "timeout_minutes": 1, "onTimeout": "fail",
            "llmConfig": {"maxTurns": 3, "api_key_secret": "k"}})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_validator_finds_stands_in_the_status_in_its_own_words() {
    let Some(cluster) = open("invalid") else { return };
    let world = World::with(&config(&cluster)).await;
    let manifest = workflow(
        "wrong",
        "{name: a, type: cli, command: 'echo {{ steps.b.output.stdout }}'}, {name: c, type: conditional, condition: 'steps.a.output.x ='}",
    );
    cluster.apply(&manifest);
    let found = status(&cluster, "wrong", |status| {
        condition(status, "Valid")["status"] == "False"
    })
    .await;
    let validated = world
        .post("/api/v1/validate")
        .header("content-type", "application/yaml")
        .body(manifest);
    let validated = answered(validated, 200).await;
    // Lines are the file's, which the API server does not keep.
    let without_lines = |text: &str| {
        let lines = text.lines().map(|line| match line.split_once(": line ") {
            Some((severity, rest)) => format!(
                "{severity}: {}",
                rest.split_once(": ").map_or("", |(_, rest)| rest)
            ),
            None => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let text = condition(&found, "Valid")["message"].as_str().unwrap();
    assert_eq!(text, without_lines(validated["text"].as_str().unwrap()));
    assert_eq!(found["phase"], "Invalid");
    assert!(
        text.contains("steps[0].command") && text.contains("steps[1].condition"),
        "{text}"
    );
    until("the event", || async {
        let events = cluster.list(&["events.events.k8s.io"]);
        events
            .iter()
            .any(|event| event["reason"] == "Invalid" && event["regarding"]["name"] == "wrong")
            .then_some(())
    })
    .await;
    assert!(world.starts().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_comes_and_goes_with_its_object() {
    let Some(cluster) = open("definitions") else {
        return;
    };
    let file = config(&cluster);
    let mut world = World::with(&file).await;
    let known = |world: &World| world.get("/api/v1/workflows");
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    world.apply(&definition("by-hand", "webhook", "")).await;
    for name in ["one", "two"] {
        cluster.apply(&definition(name, "webhook", "alertname: X"));
        status(&cluster, name, |status| status["phase"] == "Ready").await;
    }
    assert_eq!(
        names(&answered(known(&world), 200).await),
        ["by-hand", "one", "two"]
    );
    cluster.kubectl(&["delete", "workflow", "one"]);
    until("it is out", || async {
        let found = names(&answered(known(&world), 200).await);
        (found == ["by-hand", "two"]).then_some(())
    })
    .await;
    // While nobody watches.
    world.ingest.kill().await;
    cluster.kubectl(&["delete", "workflow", "two"]);
    world.ingest = Ingest::start(&world.nats, &file).await;
    until("that is out, too", || async {
        (names(&answered(known(&world), 200).await) == ["by-hand"]).then_some(())
    })
    .await;
}

/// The message that hands a step out, or ends the execution.
fn append(start: &Start, action: LaneAction) -> Append {
    let subject = Subject::Start(start.namespace.clone(), start.execution);
    Append {
        cause: Cause {
            subject: subject.to_string(),
            seq: 1,
        },
        records: Vec::new(),
        action,
    }
}

fn task(start: &Start, index: u32, at: protocol::Timestamp) -> LaneAction {
    LaneAction::Task(Box::new(Task {
        namespace: start.namespace.clone(),
        execution: start.execution,
        workflow: start.workflow.clone(),
        step: ["a", "b"][index as usize].parse().unwrap(),
        index,
        attempt: Attempt::FIRST,
        task_type: TaskType::cli(),
        dispatched_at: at,
        deadline: at.after(std::time::Duration::from_secs(600)),
        timeout: "10 minutes".into(),
        work: json!({"command": "x"}),
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_runs_once_and_again_when_asked_and_its_status_follows() {
    let Some(cluster) = open("executions") else { return };
    let file = config(&cluster);
    let world = World::with(&file).await;
    let _second = Ingest::start(&world.nats, &file).await;
    let manifest = workflow(
        "once",
        "{name: a, type: cli, command: x}, {name: b, type: cli, command: w}",
    );
    cluster.apply(&manifest);
    let pending = status(&cluster, "once", |status| status["executionId"].is_string()).await;
    assert_eq!(
        (&pending["phase"], &pending["steps"]),
        (&json!("Pending"), &json!("0/2"))
    );
    let start = until("it starts", || async { world.starts().await.into_iter().next() }).await;
    assert_eq!(pending["executionId"], start.execution.to_string());
    assert_eq!(start.trigger_source, "kubernetes");

    // As the scheduler hands out steps.
    let lane = Subject::Command(TaskType::cli(), start.namespace.clone(), start.execution);
    for index in [0, 1] {
        world
            .lane(&lane, &append(&start, task(&start, index, world.log.now())))
            .await;
        let expected = json!(format!("{index}/2"));
        let running = status(&cluster, "once", |status| {
            status["phase"] == "Running" && status["steps"] == expected
        })
        .await;
        assert_eq!(running["currentStep"], ["a", "b"][index as usize]);
    }
    // A changed spec does not run again.
    cluster.apply(&manifest.replace("command: w", "command: z"));
    status(&cluster, "once", |status| status["observedGeneration"] == 2).await;
    // Asked for, it does; what the former run still says is not told of the new one.
    cluster.kubectl(&["annotate", "workflow", "once", "punching-fist.io/rerun=2"]);
    let again = status(&cluster, "once", |status| {
        status["executionId"] != start.execution.to_string()
    })
    .await;
    assert_eq!(
        (&again["phase"], &again["steps"]),
        (&json!("Pending"), &json!("0/2"))
    );
    let note = Subject::Note(start.namespace.clone(), start.execution);
    let end = |status, error: Option<&str>| {
        LaneAction::End(End {
            status,
            error: error.map(str::to_owned),
            failed_step: None,
            at: world.log.now(),
        })
    };
    world
        .lane(&note, &append(&start, end(EndStatus::Succeeded, None)))
        .await;
    let starts = until("both have started", || async {
        let starts = world.starts().await;
        (starts.len() == 2).then_some(starts)
    })
    .await;
    let second = &starts[1];
    assert_eq!(again["executionId"], second.execution.to_string());
    let note = Subject::Note(second.namespace.clone(), second.execution);
    world
        .lane(
            &note,
            &append(
                second,
                end(EndStatus::Failed, Some("step `a` failed: exit code 3")),
            ),
        )
        .await;
    let failed = status(&cluster, "once", |status| status["phase"] == "Failed").await;
    assert_eq!(failed["lastError"], "step `a` failed: exit code 3");
    assert_eq!(condition(&failed, "Complete")["status"], "True");
    assert_eq!(condition(&failed, "Valid")["status"], "True");

    // A third, whose object goes while it runs.
    cluster.apply(&workflow("gone", "{name: a, type: cli, command: x}"));
    let third = until("the third starts", || async {
        world.starts().await.into_iter().nth(2)
    })
    .await;
    cluster.kubectl(&["delete", "workflow", "gone"]);
    until("it is cancelled", || async {
        let filter = subjects::facts_filter(&third.namespace, third.execution);
        let last = world.log.last(&filter).await.unwrap()?;
        matches!(Subject::parse(&last.subject), Ok(Subject::CancelRequest(..))).then_some(())
    })
    .await;
    assert_eq!(world.starts().await.len(), 3);
}
