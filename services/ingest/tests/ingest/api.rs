//! The API with its records: what is made, read, watched and ended through it.

use std::time::Duration;

use bus::{Budgets, Log as _};
use futures_util::StreamExt as _;
use protocol::{
    Append, Attempt, Body, Cause, Day, Done, End, EndStatus, ExecutionId, Fact, LaneAction, Namespace,
    Outcome, StepName, Subject, Task, TaskType, WorkflowName,
    budget::{Request, Spent, TurnId},
    encode,
    live::{Live, Stream},
    subjects,
    turns::{ModelTurn, ToolCall, ToolTurn, Turn, Usage},
};
use serde_json::{Value, json};

use super::world::{Ingest, World, answered, definition, group, refused, until};

const TWO_STEPS: &str = r#"
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: twice
  annotations:
    source.data: '{"pod": "web-1"}'
spec:
  steps:
    - name: first
      type: cli
      command: echo {{ source.data.pod }}
    - name: second
      type: cli
      command: echo two
"#;

fn yaml(world: &World, path: &str, manifest: &str) -> reqwest::RequestBuilder {
    world
        .post(path)
        .header("content-type", "application/yaml")
        .body(manifest.to_owned())
}

fn id_of(answer: &Value) -> ExecutionId {
    answer["id"].as_str().unwrap().parse().unwrap()
}

/// One execution, played as scheduler and runner would.
struct Play<'w> {
    world: &'w World,
    namespace: Namespace,
    id: ExecutionId,
    steps: Vec<StepName>,
}

impl<'w> Play<'w> {
    fn new(world: &'w World, id: ExecutionId, steps: &[&str]) -> Self {
        let steps = steps.iter().map(|step| StepName::new(*step).unwrap()).collect();
        Self {
            world,
            namespace: Namespace::default(),
            id,
            steps,
        }
    }

    async fn cause(&self) -> Cause {
        let filter = subjects::facts_filter(&self.namespace, self.id);
        let last = self.world.log.last(&filter).await.unwrap().unwrap();
        Cause {
            subject: last.subject,
            seq: last.seq,
        }
    }

    async fn dispatch(&self, index: usize) {
        self.dispatch_as(index, TaskType::cli(), json!({ "command": "echo" }))
            .await;
    }

    async fn dispatch_as(&self, index: usize, task_type: TaskType, work: Value) {
        let now = self.world.log.now();
        let task = Task {
            namespace: self.namespace.clone(),
            execution: self.id,
            workflow: WorkflowName::new("twice").unwrap(),
            step: self.steps[index].clone(),
            index: u32::try_from(index).unwrap(),
            attempt: Attempt::FIRST,
            task_type: task_type.clone(),
            dispatched_at: now,
            deadline: now.after(Duration::from_secs(600)),
            timeout: "10 minutes".into(),
            work,
        };
        let append = Append {
            cause: self.cause().await,
            records: vec![],
            action: LaneAction::Task(Box::new(task)),
        };
        let subject = Subject::Command(task_type, self.namespace.clone(), self.id);
        self.world.lane(&subject, &append).await;
    }

    async fn line(&self, index: usize, text: &str) {
        let subject = Subject::Live(
            self.namespace.clone(),
            self.id,
            self.steps[index].clone(),
            Attempt::FIRST,
        );
        let line = Live::Line {
            stream: Stream::Stdout,
            text: text.into(),
        };
        self.world
            .log
            .publish_live(&subject, encode(self.world.log.now(), &line))
            .await;
    }

    async fn turn(&self, index: usize, k: u32, turn: &Turn) {
        let subject = Subject::Turn(
            self.namespace.clone(),
            self.id,
            self.steps[index].clone(),
            Attempt::FIRST,
            k,
        );
        let payload = encode(self.world.log.now(), turn);
        assert!(matches!(
            self.world.log.write_fact(&subject, payload).await.unwrap(),
            bus::Written::New(_)
        ));
    }

    async fn done(&self, index: usize, stdout: &str) {
        let output =
            json!({ "stdout": stdout, "stderr": "", "exit_code": 0, "command": "echo", "duration_ms": 1 });
        self.done_with(index, Body::Inline(output)).await;
    }

    async fn done_with(&self, index: usize, output: Body) {
        let now = self.world.log.now();
        let done = Done {
            step: self.steps[index].clone(),
            attempt: Attempt::FIRST,
            outcome: Outcome::Succeeded,
            output: Some(output),
            started_at: now,
            completed_at: now,
            runner: "test".into(),
        };
        let subject = Subject::Done(
            self.namespace.clone(),
            self.id,
            self.steps[index].clone(),
            Attempt::FIRST,
        );
        self.world.fact(&subject, &Fact::Done(done)).await;
    }

    async fn end(&self) -> u64 {
        let end = End {
            status: EndStatus::Succeeded,
            error: None,
            failed_step: None,
            at: self.world.log.now(),
        };
        let append = Append {
            cause: self.cause().await,
            records: vec![],
            action: LaneAction::End(end),
        };
        self.world
            .lane(&Subject::Note(self.namespace.clone(), self.id), &append)
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_accepted_and_found_at_once() {
    let world = World::with_records("").await;
    let response = yaml(&world, "/api/v1/executions", TWO_STEPS)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let answer: Value = response.json().await.unwrap();
    let id = answer["id"].as_str().unwrap();
    assert_eq!(
        answer,
        json!({ "id": id, "name": "twice", "namespace": "default", "status": "Pending", "url": location })
    );
    // Read your writes: no waiting here.
    let view = answered(world.get(&location), 200).await;
    assert_eq!(
        (&view["status"], &view["trigger_source"]),
        (&json!("Pending"), &json!("api"))
    );
    assert_eq!(view["input_context"]["source"]["data"], json!({ "pod": "web-1" }));
    assert_eq!(
        answered(world.get(&format!("{location}/status")), 200).await,
        json!({ "id": id, "status": "Pending" })
    );
    assert_eq!(
        answered(world.get(&format!("{location}/progress")), 200).await,
        json!({ "steps_completed": 0, "total_steps": 2, "current_step": null, "percent": 0 })
    );
    assert_eq!(
        answered(world.get(&format!("{location}/outputs")), 200).await,
        Value::Null
    );
    let report = world.get(&format!("{location}/report")).send().await.unwrap();
    assert_eq!(
        (report.status().as_u16(), &report.headers()["content-type"]),
        (200, &"text/markdown; charset=utf-8".parse().unwrap())
    );
    let report = report.text().await.unwrap();
    assert!(
        report.starts_with("# twice: Pending\n") && report.contains("## Timeline"),
        "{report}"
    );
    // Posted again it is another execution; by its first digits each is found.
    let again = answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await;
    assert_ne!(again["id"], id);
    until("the list has both", || async {
        let page = answered(world.get("/api/v1/executions?workflow=twice&limit=5"), 200).await;
        (page["items"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    let short = &id[..id.len() - 4];
    assert_eq!(
        answered(world.get(&format!("/api/v1/executions/{short}")), 200).await["id"],
        id
    );
    refused(
        world.get(&format!("/api/v1/executions/{}", &id[..4])),
        409,
        "several ids",
    )
    .await;
    refused(world.get("/api/v1/executions/abc"), 404, "first 4 or more").await;
    refused(
        world.get("/api/v1/executions/ffff0000"),
        404,
        "there is no execution",
    )
    .await;
    let other = ExecutionId::derive(&["other"]);
    refused(
        world.get(&format!("/api/v1/executions/{other}")),
        404,
        "there is no execution",
    )
    .await;
    // Pages.
    let first = answered(world.get("/api/v1/executions?limit=1"), 200).await;
    assert_eq!(first["items"][0]["id"], again["id"], "newest first");
    let next = first["next"].as_str().unwrap();
    let second = answered(
        world
            .get("/api/v1/executions")
            .query(&[("limit", "1"), ("cursor", next)]),
        200,
    )
    .await;
    assert_eq!(
        (&second["items"][0]["id"], &second["next"]),
        (&json!(id), &Value::Null)
    );
    refused(
        world.get("/api/v1/executions?status=done"),
        400,
        "Pending, Running, Succeeded",
    )
    .await;
    refused(world.get("/api/v1/executions?cursor=x"), 400, "cursor").await;
    refused(
        world.get("/api/v1/executions?page=2"),
        400,
        "unknown parameter `page`",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_manifest_is_refused_with_every_problem() {
    let world = World::new().await;
    let bad = "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: x\nspec:\n  steps:\n    - name: a\n      type: cli\n      comand: echo\n    - name: a\n      type: agent\n      goal: look\n      tools: [hammer]\n";
    let expected = engine::admit(bad, engine::Format::Yaml, &engine::Policy::default()).unwrap_err();
    let lines: Vec<String> = expected.iter().map(ToString::to_string).collect();
    assert!(lines.len() >= 3, "{lines:#?}");
    for path in ["/api/v1/executions", "/api/v1/workflows"] {
        let problem = refused(yaml(&world, path, bad), 422, "").await;
        assert_eq!(problem["detail"], lines.join("\n"));
        let problems = problem["problems"].as_array().unwrap();
        assert_eq!(problems.len(), lines.len());
        for (given, wanted) in problems.iter().zip(&expected) {
            assert_eq!(
                (&given["field"], &given["line"], &given["message"]),
                (&json!(wanted.field), &json!(wanted.line), &json!(wanted.message))
            );
        }
    }
    let validation = answered(yaml(&world, "/api/v1/validate", bad), 200).await;
    assert_eq!(
        (&validation["valid"], &validation["text"]),
        (&json!(false), &json!(lines.join("\n")))
    );
    let good = answered(yaml(&world, "/api/v1/validate", TWO_STEPS), 200).await;
    assert_eq!(good["valid"], true);
    assert_eq!(
        good["workflows"],
        json!([{ "name": "twice", "namespace": "default", "role": "execution" }])
    );
    assert_eq!(world.messages().await.len(), 0, "nothing was stored");
    refused(
        world
            .post("/api/v1/executions")
            .body("x=1")
            .header("content-type", "application/x-www-form-urlencoded"),
        415,
        "application/yaml",
    )
    .await;
    refused(
        world
            .post("/api/v1/executions")
            .header("content-type", "application/json")
            .body("{"),
        422,
        "JSON",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_means_the_same_execution() {
    let world = World::new().await;
    let post = |manifest: &str, key: &str| {
        yaml(&world, "/api/v1/executions", manifest).header("idempotency-key", key)
    };
    let first = answered(post(TWO_STEPS, "k-1"), 202).await;
    assert_eq!(answered(post(TWO_STEPS, "k-1"), 202).await, first);
    let changed = TWO_STEPS.replace("echo two", "echo three");
    refused(
        post(&changed, "k-1"),
        409,
        "was used before for workflow default/twice",
    )
    .await;
    assert_ne!(answered(post(&changed, "k-2"), 202).await["id"], first["id"]);
    refused(post(TWO_STEPS, &"k".repeat(300)), 400, "Idempotency-Key").await;
    assert_eq!(world.starts().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_decides_whatever_became_of_the_definition() {
    let world = World::new().await;
    let manifest = definition("crash", "alertmanager", "alertname: A");
    world.apply(&manifest).await;
    let invoke = |pod: &str| {
        let input = json!({ "source": { "data": { "pod": pod } } });
        let body = json!({ "workflow": "crash", "input": input });
        world
            .post("/api/v1/executions")
            .header("idempotency-key", "k-1")
            .json(&body)
    };
    let first = answered(invoke("web-1"), 202).await;
    assert_eq!(answered(invoke("web-1"), 202).await, first);
    world
        .apply(&manifest.replace("alertname: A", "alertname: B"))
        .await;
    assert_eq!(answered(invoke("web-1"), 202).await, first, "it was changed");
    let path = format!("{}/api/v1/workflows/default/crash", world.ingest.base);
    answered(world.client.delete(&path), 200).await;
    assert_eq!(answered(invoke("web-1"), 202).await, first, "it is gone");
    refused(invoke("web-2"), 409, "was used before for workflow default/crash").await;
    assert_eq!(world.starts().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_applied_invoked_and_deleted() {
    let world = World::new().await;
    let manifest = definition("crash", "alertmanager", "alertname: A");
    let created = world.apply(&manifest).await;
    assert_eq!(
        (&created["result"], &created["role"]),
        (&json!("created"), &json!("definition"))
    );
    assert_eq!(world.apply(&manifest).await["result"], "unchanged");
    let configured = world
        .apply(&manifest.replace("alertname: A", "alertname: B"))
        .await;
    assert_eq!(configured["result"], "configured");
    assert!(configured["generation"].as_u64() > created["generation"].as_u64());

    let one = answered(world.get("/api/v1/workflows/default/crash"), 200).await;
    assert_eq!(
        one["manifest"]["spec"]["trigger"]["filters"],
        json!({ "alertname": "B" })
    );
    let listed = answered(world.get("/api/v1/workflows?namespace=default"), 200).await;
    assert_eq!(
        (&listed["items"][0]["name"], &listed["items"][0]["trigger_source"]),
        (&json!("crash"), &json!("alertmanager"))
    );
    assert_eq!(
        answered(world.get("/api/v1/workflows?namespace=other"), 200).await,
        json!({ "items": [], "next": null })
    );

    let invoke = |body: Value| world.post("/api/v1/executions").json(&body);
    let input =
        json!({ "source": { "data": { "pod": "web-1" } }, "alert": { "name": "A", "severity": "CRITICAL" } });
    let answer = answered(invoke(json!({ "workflow": "crash", "input": input })), 202).await;
    let start = world.starts().await.remove(0);
    assert_eq!(
        (start.execution, start.workflow.as_str()),
        (id_of(&answer), "crash")
    );
    assert_eq!(start.input.read().data["pod"], "web-1");
    assert_eq!(start.input.read().alert.unwrap()["severity"], "critical");
    refused(
        invoke(json!({ "workflow": "none" })),
        404,
        "there is no workflow default/none",
    )
    .await;
    refused(
        invoke(json!({ "workflow": "crash", "inputs": {} })),
        400,
        "unknown field `inputs`",
    )
    .await;
    refused(
        invoke(json!({ "workflow": "crash", "namespace": "A" })),
        400,
        "not a valid namespace",
    )
    .await;

    for (alert, words) in [
        (
            json!({ "severty": "low" }),
            "input.alert.severty is no part of an alert",
        ),
        (json!({ "name": 5 }), "input.alert.name must be a string"),
        (json!({ "labels": "pod" }), "input.alert.labels must be an object"),
    ] {
        let misspelt = json!({ "workflow": "crash", "input": { "alert": alert } });
        refused(invoke(misspelt), 400, words).await;
    }

    // A manifest with input beyond its own, as the command line sends it.
    let with_input = json!({ "manifest": TWO_STEPS, "input": { "source": { "data": { "more": 1 } } } });
    answered(invoke(with_input).header("user-agent", "fist/0.1.0"), 202).await;
    let start = world.starts().await.remove(1);
    assert_eq!(
        start.input.read().data,
        json!({ "pod": "web-1", "more": 1 }).as_object().unwrap().clone()
    );
    assert_eq!(start.trigger_source, "cli");

    let path = format!("{}/api/v1/workflows/default/crash", world.ingest.base);
    assert_eq!(
        answered(world.client.delete(&path), 200).await["result"],
        "deleted"
    );
    refused(
        world.client.delete(&path),
        404,
        "there is no workflow default/crash",
    )
    .await;
    refused(
        world.get("/api/v1/workflows/default/crash"),
        404,
        "there is no workflow",
    )
    .await;
    let suspended = manifest.replace("spec:", "spec:\n  suspend: true");
    world.apply(&suspended).await;
    refused(invoke(json!({ "workflow": "crash" })), 409, "is suspended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_definition_is_executed_once_when_it_is_applied() {
    let world = World::new().await;
    let first = world.apply(TWO_STEPS).await;
    assert_eq!(
        (&first["result"], &first["role"]),
        (&json!("started"), &json!("execution"))
    );
    let again = world.apply(&TWO_STEPS.replace("echo two", "echo three")).await;
    assert_eq!(
        (&again["result"], &again["execution"]),
        (&json!("unchanged"), &first["execution"])
    );
    assert!(
        again["warnings"][0]
            .as_str()
            .unwrap()
            .contains("punching-fist.io/rerun")
    );
    let rerun = TWO_STEPS.replace("annotations:", "annotations:\n    punching-fist.io/rerun: '2'");
    let rerun = world.apply(&rerun).await;
    assert_eq!(rerun["result"], "started");
    assert_ne!(rerun["execution"], first["execution"]);
    assert_eq!(world.starts().await.len(), 2);
    // What is posted to executions runs each time.
    answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await;
    assert_eq!(world.starts().await.len(), 3);
}

/// Reads server-sent events until their end.
async fn events(request: reqwest::RequestBuilder) -> Vec<(Option<u64>, Value)> {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = tokio::time::timeout(Duration::from_secs(30), response.text())
        .await
        .unwrap()
        .unwrap();
    text.split("\n\n")
        .filter_map(|block| {
            let data = block.lines().find_map(|line| line.strip_prefix("data: "))?;
            let id = block.lines().find_map(|line| line.strip_prefix("id: "));
            let value: Value = serde_json::from_str(data).unwrap();
            assert!(
                block.contains(&format!("event: {}\n", value["type"].as_str().unwrap())),
                "{block}"
            );
            Some((id.map(|id| id.parse().unwrap()), value))
        })
        .collect()
}

fn told(events: &[(Option<u64>, Value)]) -> String {
    let line = |(id, event): &(Option<u64>, Value)| {
        let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {} {}",
            if id.is_some() { "#" } else { " " },
            text("type"),
            text("step"),
            text("status"),
            text("message")
        )
    };
    events.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_history_then_live_until_the_end() {
    let world = World::with_records("").await;
    let id = id_of(&answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await);
    let play = Play::new(&world, id, &["first", "second"]);
    play.dispatch(0).await;
    play.done(0, "one\n").await;
    let path = format!("/api/v1/executions/{id}/events");
    let watching = tokio::spawn(events(world.get(&path)));
    let follow = tokio::spawn({
        let request = world.get(&format!("/api/v1/executions/{id}/logs?follow=true"));
        async move { request.send().await.unwrap().text().await.unwrap() }
    });
    // The stream is there once its first bytes are: what comes after is live.
    let response = world.get(&path).send().await.unwrap();
    let mut bytes = response.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("step.completed") {
        seen.push_str(&String::from_utf8_lossy(&bytes.next().await.unwrap().unwrap()));
    }
    drop(bytes);
    play.dispatch(1).await;
    play.line(1, "two").await;
    play.done(1, "two\n").await;
    let last = play.end().await;
    let all = watching.await.unwrap();
    let durable: Vec<_> = all
        .iter()
        .filter(|(_, event)| event["type"] != "log.line")
        .cloned()
        .collect();
    expect_test::expect![[r#"
        # execution.accepted - Pending -
        # step.started first Running -
        # step.completed first Succeeded -
        # step.started second Running -
        # step.completed second Succeeded -
        # execution.completed - Succeeded -"#]]
    .assert_eq(&told(&durable));
    assert_eq!(
        durable[0].1["steps"],
        json!([{ "name": "first", "type": "cli" }, { "name": "second", "type": "cli" }])
    );
    assert_eq!(durable[2].1["output"]["stdout"], "one\n");
    assert!(durable.iter().all(|(id, event)| json!(id) == event["seq"]));
    assert_eq!(durable[5].0, Some(last));

    // Resumed, it goes on after what was seen; at the end there is nothing to come again for.
    let third = durable[2].0.unwrap().to_string();
    let rest = events(world.get(&path).header("last-event-id", third)).await;
    assert_eq!(rest, durable[3..]);
    let nothing = world
        .get(&path)
        .header("last-event-id", last.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(nothing.status(), 204);
    refused(
        world.get(&path).header("last-event-id", "x"),
        400,
        "Last-Event-ID",
    )
    .await;

    let logs = "[first] one\n[second] two\n";
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(30), follow)
            .await
            .unwrap()
            .unwrap(),
        logs
    );
    let outputs = until("the record has the end", || async {
        let outputs = answered(world.get(&format!("/api/v1/executions/{id}/outputs")), 200).await;
        (!outputs.is_null()).then_some(outputs)
    })
    .await;
    assert_eq!(outputs["steps"]["second"]["stdout"], "two\n");
    let printed = |query: &str| {
        let request = world.get(&format!("/api/v1/executions/{id}/logs{query}"));
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    assert_eq!(printed("").await, logs);
    assert_eq!(printed("?step=second").await, "two\n");
    assert_eq!(printed("?step=second&follow=true").await, "two\n");
    refused(
        world.get(&format!("/api/v1/executions/{id}/logs?step=third")),
        404,
        "its steps are first, second",
    )
    .await;
    assert_eq!(
        answered(world.get(&format!("/api/v1/executions/{id}/progress")), 200).await["percent"],
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_large_bodies_whole() {
    let world = World::with_records("").await;
    let id = id_of(&answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await);
    let play = Play::new(&world, id, &["first", "second"]);
    let large = json!({ "stdout": "x".repeat(70_000), "exit_code": 0 });
    let blobs = bus::Blobs::open(&world.connection).await.unwrap();
    let blob = blobs.put(large.to_string().into()).await.unwrap();
    let preview = json!({ "stdout": "xx…", "exit_code": 0 });
    play.dispatch(0).await;
    play.done_with(
        0,
        Body::Blob {
            blob: blob.clone(),
            preview: preview.clone(),
        },
    )
    .await;
    play.dispatch(1).await;
    play.done(1, "two\n").await;
    play.end().await;
    let outputs = until("the record has the end", || async {
        let outputs = answered(world.get(&format!("/api/v1/executions/{id}/outputs")), 200).await;
        (!outputs.is_null()).then_some(outputs)
    })
    .await;
    assert_eq!(outputs["steps"]["first"], large);
    assert_eq!(outputs["steps"]["second"]["stdout"], "two\n");
    // The record itself stays small.
    let view = answered(world.get(&format!("/api/v1/executions/{id}")), 200).await;
    assert_eq!(
        view["steps"][0]["output"],
        json!({ "blob": blob, "preview": preview })
    );
    // Once the whole is of age, what is left of it says so, everywhere.
    let purge = world
        .connection
        .client()
        .request("$JS.API.STREAM.PURGE.OBJ_fist-blobs", Vec::new().into());
    assert!(String::from_utf8_lossy(&purge.await.unwrap().payload).contains("\"success\":true"));
    let outputs = answered(world.get(&format!("/api/v1/executions/{id}/outputs")), 200).await;
    assert_eq!(outputs["steps"]["first"]["preview"], preview);
    let told = outputs["steps"]["first"]["gone"].as_str().unwrap();
    assert!(told.contains("nats.blobs_max_age_hours"), "{told}");
    for path in ["logs", "report"] {
        let answer = world.get(&format!("/api/v1/executions/{id}/{path}")).send().await;
        let text = answer.unwrap().text().await.unwrap();
        assert!(text.contains("the whole is kept no more"), "{path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_is_read_from_the_log_alone() {
    let world = World::new().await;
    let id = id_of(&answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await);
    let path = format!("/api/v1/executions/{id}/transcript");
    let play = Play::new(&world, id, &["first", "second", "third"]);
    play.dispatch(0).await;
    assert_eq!(
        answered(world.get(&path), 200).await,
        json!({ "id": id, "attempts": [], "truncated": false })
    );
    refused(
        world.get(&format!("{path}?step=first")),
        404,
        "no step of type agent",
    )
    .await;

    let work = |goal: &str| {
        json!({
            "goal": goal, "tools": ["kubectl"], "fix_namespace": "prod",
            "alert": { "name": "KubePodCrashLooping" },
        })
    };
    play.dispatch_as(1, TaskType::agent(), work("why does it crash?"))
        .await;
    play.dispatch_as(2, TaskType::agent(), work("anything else?"))
        .await;
    let now = world.log.now();
    let (logs, get) = (
        json!({ "args": ["logs", "web-1"] }),
        json!({ "args": ["get", "pods"] }),
    );
    let call = |id: &str, arguments: &Value| ToolCall {
        id: id.into(),
        tool: "kubectl".into(),
        arguments: arguments.clone(),
    };
    play.turn(
        1,
        0,
        &Turn::Model(ModelTurn {
            turn: 1,
            text: "Let me look.".into(),
            calls: vec![call("c1", &logs), call("c2", &get)],
            stop_reason: "tool_use".into(),
            usage: Usage::default(),
            at: now,
        }),
    )
    .await;
    let gave = |id: &str, arguments: &Value, result: Body| {
        Turn::Tool(ToolTurn {
            call_id: id.into(),
            tool: "kubectl".into(),
            arguments: arguments.clone(),
            is_error: false,
            result,
            whole: None,
            started_at: now,
            at: now,
        })
    };
    let large = "line\n".repeat(20_000);
    let blobs = bus::Blobs::open(&world.connection).await.unwrap();
    let blob = blobs.put(json!(large).to_string().into()).await.unwrap();
    let stored = Body::Blob {
        blob,
        preview: json!("line\n…"),
    };
    play.turn(1, 1, &gave("c1", &logs, stored)).await;
    // One that the store no longer has stays a reference.
    let gone = protocol::BlobRef {
        sha256: "0".repeat(64),
        bytes: 70_000,
    };
    let lost = Body::Blob {
        blob: gone.clone(),
        preview: json!("NAME…"),
    };
    play.turn(1, 2, &gave("c2", &get, lost)).await;

    let transcript = answered(world.get(&path), 200).await;
    let attempts = transcript["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    let first = &attempts[0];
    assert_eq!(
        [
            &first["step"],
            &first["goal"],
            &first["namespace"],
            &first["attempt"]
        ],
        [
            &json!("second"),
            &json!("why does it crash?"),
            &json!("prod"),
            &json!(1)
        ]
    );
    assert_eq!(first["alert"]["name"], "KubePodCrashLooping");
    assert_eq!(first["turns"][0]["kind"], "model");
    assert_eq!(
        first["turns"][0]["calls"][1],
        json!({ "id": "c2", "tool": "kubectl", "arguments": get })
    );
    assert_eq!(first["turns"][1]["result"], large);
    let result = &first["turns"][2]["result"];
    assert_eq!(
        (&result["blob"], &result["preview"]),
        (&json!(gone), &json!("NAME…"))
    );
    assert!(result["gone"].is_string(), "{result}");
    assert_eq!(attempts[1]["turns"], json!([]));

    let document = answered(world.get("/openapi.json"), 200).await;
    let schema = &document["components"]["schemas"]["Transcript"];
    let mut found = Vec::new();
    crate::contract::differences(&document, schema, &transcript, "", &mut found);
    assert!(found.is_empty(), "{found:#?}");

    let one = answered(world.get(&format!("{path}?step=third")), 200).await;
    assert_eq!(one["attempts"], json!([attempts[1]]));
    refused(world.get(&format!("{path}?step=first")), 404, "second, third").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_beyond_its_bound_says_so() {
    let world = World::new().await;
    let id = id_of(&answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await);
    let play = Play::new(&world, id, &["first", "second"]);
    for index in [0, 1] {
        play.dispatch_as(
            index,
            TaskType::agent(),
            json!({ "goal": "look", "tools": ["kubectl"] }),
        )
        .await;
        for k in 0..12 {
            let turn = Turn::Model(ModelTurn {
                turn: k + 1,
                text: "x".repeat(800_000),
                calls: vec![],
                stop_reason: "end_turn".into(),
                usage: Usage::default(),
                at: world.log.now(),
            });
            play.turn(index, k, &turn).await;
        }
    }
    let path = format!("/api/v1/executions/{id}/transcript");
    let both = answered(world.get(&path), 200).await;
    assert_eq!(both["truncated"], true);
    let turns = |index: usize| both["attempts"][index]["turns"].as_array().unwrap().len();
    assert_eq!((turns(0), turns(1)), (12, 8));
    let one = answered(world.get(&format!("{path}?step=second")), 200).await;
    assert_eq!(one["truncated"], false);
    assert_eq!(one["attempts"][0]["turns"].as_array().unwrap().len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_is_asked_for_once_and_not_after_the_end() {
    let world = World::new().await;
    let id = id_of(&answered(yaml(&world, "/api/v1/executions", TWO_STEPS), 202).await);
    let path = format!("/api/v1/executions/{id}/cancel");
    refused(world.post(&path).body("nonsense"), 400, "reason").await;
    // Neither needs a database.
    assert_eq!(
        answered(world.post(&path).json(&json!({ "reason": "enough" })), 202).await,
        json!({ "id": id, "cancel_requested": true })
    );
    answered(world.post(&path), 202).await;
    let facts = world.messages().await;
    let cancels: Vec<_> = facts
        .iter()
        .filter(|message| message.subject.ends_with(".cancel.0"))
        .collect();
    assert_eq!(cancels.len(), 1);
    assert!(String::from_utf8_lossy(&cancels[0].payload).contains("enough"));
    Play::new(&world, id, &["first"]).end().await;
    refused(world.post(&path), 409, "it is Succeeded").await;
    let other = ExecutionId::derive(&["other"]);
    refused(
        world.post(&format!("/api/v1/executions/{other}/cancel")),
        503,
        "store-writer",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_their_balance_are_read() {
    let world = World::with_records("").await;
    world.apply(&definition("one", "alertmanager", "")).await;
    let body = group(&[("A", "a", "firing"), ("B", "b", "resolved")]);
    world.webhook("alertmanager", &body).await;
    world.recorded(2).await;
    world.webhook("alertmanager", &body).await;
    world.webhook("webhook", r#"{"name": "C"}"#).await;
    world.publish("nats", "nonsense").await;
    let recorded = world.recorded(6).await;
    let audit = answered(world.get("/api/v1/alerts/audit"), 200).await;
    assert_eq!(
        audit,
        json!({
            "messages_received": 4, "messages_waiting": 0, "messages_recorded": 4, "alerts": 6,
            "dispositions": { "started": 1, "merged": 1, "filtered": 1, "resolved": 2, "rejected": 1 },
            "balanced": true,
        })
    );
    let page = answered(
        world.get("/api/v1/alerts?disposition=started&source=alertmanager"),
        200,
    )
    .await;
    let item = &page["items"][0];
    assert_eq!(
        item["executions"],
        json!(
            recorded
                .iter()
                .find(|each| each.alert.as_ref().is_some_and(|alert| alert.name == "A"))
                .unwrap()
                .executions
        )
    );
    let id = item["id"].as_str().unwrap();
    assert_eq!(
        &answered(world.get(&format!("/api/v1/alerts/{id}")), 200).await,
        item
    );
    let (identity, _) = id.split_once('.').unwrap();
    assert_eq!(
        answered(world.get(&format!("/api/v1/alerts/{identity}")), 200).await["disposition"],
        "merged"
    );
    refused(world.get("/api/v1/alerts/none"), 404, "there is no alert none").await;
    refused(
        world.get("/api/v1/alerts?disposition=lost"),
        400,
        "started, merged",
    )
    .await;
    assert_eq!(
        answered(world.get("/api/v1/alerts?limit=2"), 200).await["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_read_newest_first() {
    let world = World::new().await;
    for seq in 1..=3 {
        let letter = protocol::DeadLetter {
            stream: "FIST_LOG".into(),
            seq,
            subject: Subject::Start(Namespace::default(), ExecutionId::derive(&[&seq.to_string()]))
                .to_string(),
            written_at: world.log.now(),
            consumer: "scheduler".into(),
            reason: "it cannot be read".into(),
            deliveries: 1,
            payload: "x".into(),
            payload_bytes: 1,
        };
        world.log.dead_letter(letter).await.unwrap();
    }
    let first = answered(world.get("/api/v1/deadletters?limit=2"), 200).await;
    let seqs = |page: &Value| {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["seq"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(seqs(&first), [3, 2]);
    let next = first["next"].as_str().unwrap();
    let second = answered(
        world.get(&format!("/api/v1/deadletters?limit=2&cursor={next}")),
        200,
    )
    .await;
    assert_eq!((seqs(&second), &second["next"]), (vec![1], &Value::Null));
    let id = first["items"][0]["id"].as_u64().unwrap();
    assert_eq!(
        answered(world.get(&format!("/api/v1/deadletters/{id}")), 200).await,
        first["items"][0]
    );
    refused(
        world.get("/api/v1/deadletters/999"),
        404,
        "there is no dead letter 999",
    )
    .await;
    refused(world.get("/api/v1/deadletters?cursor=x"), 400, "cursor").await;

    let purge = |id: u64| {
        let url = format!("{}/api/v1/deadletters/{id}", world.ingest.base);
        world.client.delete(url)
    };
    let answer = answered(purge(id), 200).await;
    assert_eq!((&answer["result"], &answer["id"]), (&json!("purged"), &json!(id)));
    refused(purge(id), 404, &format!("there is no dead letter {id}")).await;
    let left = answered(world.get("/api/v1/deadletters"), 200).await;
    assert_eq!(seqs(&left), [2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_was_set_aside_is_replayed_and_nothing_else_is() {
    let world = World::with_records("").await;
    let whole = json!({"name": "Replayed", "severity": "page"}).to_string();
    let letters = [
        ("fist.alerts.webhook", "ingest", whole.as_str(), whole.len()),
        ("fist.alerts.webhook", "ingest", "{\"name\": \"cut", 1_000_000),
        ("fist.alerts.webhook", "ingest", "\u{fffd}", 3),
        (
            "fist.cmd.cli.default.01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f",
            "cli",
            "{}",
            2,
        ),
        (
            "fist.fact.default.01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f.start",
            "store-writer",
            "{}",
            2,
        ),
        ("elsewhere", "scheduler", "{}", 2),
    ];
    for (seq, (subject, consumer, payload, payload_bytes)) in letters.into_iter().enumerate() {
        let letter = protocol::DeadLetter {
            stream: "FIST_ALERTS".into(),
            seq: seq as u64 + 1,
            subject: subject.into(),
            written_at: world.log.now(),
            consumer: consumer.into(),
            reason: "it cannot be read".into(),
            deliveries: 1,
            payload: payload.into(),
            payload_bytes: payload_bytes as u64,
        };
        world.log.dead_letter(letter).await.unwrap();
    }
    let replay = |id: u64| {
        let url = format!("{}/api/v1/deadletters/{id}/replay", world.ingest.base);
        world.client.post(url)
    };
    let answer = answered(replay(1), 202).await;
    assert_eq!(
        (&answer["id"], &answer["subject"]),
        (&json!(1), &json!("fist.alerts.webhook"))
    );
    let alert = until("the alert has its disposition", || async {
        let page = answered(world.get("/api/v1/alerts"), 200).await;
        page["items"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(
        (&alert["name"], &alert["source"]),
        (&json!("Replayed"), &json!("webhook"))
    );
    for (id, part) in [
        (2, "have webhook send it again"),
        (3, "have webhook send it again"),
        (4, "run the workflow again"),
        (5, "fist store rebuild"),
        (6, "only alerts can be replayed"),
    ] {
        refused(replay(id), 409, part).await;
    }
    refused(replay(99), 404, "there is no dead letter 99").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_show_what_is_used_reserved_and_left_today() {
    let file = "[agent]\nbudget_tokens_per_day = 50_000\nnamespace_budget_tokens_per_day = { idle = 20_000, free = 0 }";
    let world = World::with(file).await;
    let budgets = Budgets::open(&world.connection).await.unwrap();
    let now = world.log.now();
    let turn = |n| {
        let step = StepName::new("look").unwrap();
        TurnId::new(ExecutionId::derive(&["budget"]), &step, Attempt::FIRST, n)
    };
    let hour = now.after(Duration::from_secs(3600));
    for name in ["prod", "free"] {
        let namespace = Namespace::new(name).unwrap();
        let change = budgets.change(&namespace, Day::of(now), now, |day| {
            let request = Request {
                tokens: 9000,
                spare: 0,
                is_last: false,
                expires_at: hour,
            };
            let spent = |tokens, cost_nano_usd| Spent {
                tokens,
                cost_nano_usd,
            };
            day.settle(&turn(1), spent(1000, Some(3_500_000)), hour, now);
            day.settle(&turn(2), spent(500, None), hour, now);
            day.reserve(&turn(3), request, 50_000, now)
        });
        change.await.unwrap().unwrap();
    }
    let (day, resets_at) = (Day::of(now).to_string(), Day::of(now).end().to_string());
    let idle = json!({
        "namespace": "idle", "day": day, "limit_tokens": 20_000, "used_tokens": 0, "reserved_tokens": 0,
        "left_tokens": 20_000, "cost_usd": null, "unpriced_tokens": 0, "resets_at": resets_at,
    });
    let prod = json!({
        "namespace": "prod", "day": day, "limit_tokens": 50_000, "used_tokens": 1500, "reserved_tokens": 9000,
        "left_tokens": 39_500, "cost_usd": 0.0035, "unpriced_tokens": 500, "resets_at": resets_at,
    });
    let page = |items: Value| json!({ "items": items, "next": null });
    for (query, items) in [
        ("", json!([idle, prod])),
        ("?namespace=prod", json!([prod])),
        ("?namespace=idle", json!([idle])),
        ("?namespace=free", json!([])),
    ] {
        let answer = answered(world.get(&format!("/api/v1/budget{query}")), 200).await;
        assert_eq!(answer, page(items), "{query}");
    }
    refused(world.get("/api/v1/budget?namespace=No"), 400, "namespace").await;
    refused(world.get("/api/v1/budget?limit=1"), 400, "use namespace").await;

    // An installation from before there were budgets: only where there is one, its bucket is missed.
    let delete = "$JS.API.STREAM.DELETE.KV_fist-budgets".to_owned();
    let client = world.connection.client();
    client.request(delete, "".into()).await.unwrap();
    refused(world.get("/api/v1/budget"), 503, "`fist nats init`").await;
    let without = Ingest::start(&world.nats, "").await;
    let request = world.client.get(format!("{}/api/v1/budget", without.base));
    assert_eq!(answered(request, 200).await, page(json!([])));
    without.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_guard_the_api_and_not_the_watchers() {
    let world = World::with("[http]\ntokens = [\"one\", \"two\"]\n").await;
    let problem = world.get("/api/v1/workflows").send().await.unwrap();
    assert_eq!(problem.headers()["www-authenticate"], "Bearer");
    refused(world.get("/api/v1/workflows"), 401, "Authorization: Bearer").await;
    refused(
        world.get("/api/v1/workflows").bearer_auth("three"),
        401,
        "not known",
    )
    .await;
    answered(world.get("/api/v1/workflows").bearer_auth("two"), 200).await;
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        answered(world.get(open), 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_store_writer_reading_is_refused_for_now() {
    let world = World::new().await;
    for path in ["/api/v1/executions", "/api/v1/alerts", "/api/v1/alerts/audit"] {
        refused(world.get(path), 503, "store-writer does not answer").await;
    }
}
