//! The scripted turns of the examples: each plays to its end with whatever the tools give, names only tools
//! that its workflow has, and makes no call that they refuse.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use agent_runner::{
    llm::{Message, Provider, Request, ToolResult, scripted::Scripted},
    redact::Redactor,
    tools::{Surroundings, Toolbox, submit_findings},
};
use engine::{Format, Policy, admit, manifest::StepKind};
use serde_json::Map;
use service::{Config, Metrics};
use tokio::time::Instant;

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The tools of the workflow's agent steps.
fn tools(name: &str) -> Vec<String> {
    let text = fs::read_to_string(examples().join(format!("{name}.yaml"))).unwrap();
    let admitted = admit(&text, Format::Yaml, &Policy::default()).unwrap();
    let steps = admitted.workflow.spec.steps;
    let tools = steps.iter().filter_map(|step| match &step.kind {
        StepKind::Agent(agent) => Some(agent.tools.iter().map(ToString::to_string)),
        StepKind::Cli(_) | StepKind::Conditional(_) => None,
    });
    tools.flatten().collect()
}

/// Plays a script to its findings; the goal is what its first cuts look at.
async fn play(name: &str, goal: &str) {
    let text = fs::read_to_string(examples().join(format!("scripted/{name}.yaml"))).unwrap();
    let script = Scripted::parse(name, &text).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    let mut config = Config::default();
    // Whatever passes the tool's own rules is printed back.
    config.tools.kubectl_bin = "echo".to_owned();
    config.tools.prometheus_url = "http://127.0.0.1:1".to_owned();
    config.tools.curl_allowed_hosts = vec!["127.0.0.1".to_owned()];
    let surroundings = Surroundings {
        tools: &config.tools,
        output_bytes_max: 32 * 1024,
        timeout_ms: 10_000,
        env: &Map::new(),
        namespace: "shop",
        investigator: None,
        earlier: None,
        redactor: &Redactor::new(&[], []).unwrap(),
    };
    let toolbox = Toolbox::from_config(&tools(name), &surroundings).unwrap();
    let (redactor, metrics) = (Redactor::new(&[], []).unwrap(), Metrics::new());
    let mut messages = vec![Message::User(goal.to_owned())];
    for _ in 0..10 {
        let request = Request {
            system: "",
            goal,
            messages: &messages,
            tools: &toolbox.specs(),
            must_call: None,
            output_tokens_max: 1000,
            deadline: Instant::now() + Duration::from_secs(30),
            idempotency_key: "key",
        };
        let answer = script
            .answer(&request)
            .await
            .unwrap_or_else(|error| panic!("{name}: {}", error.message));
        if let Some(findings) = answer
            .calls
            .iter()
            .find(|call| call.tool == submit_findings::NAME)
        {
            assert_eq!(
                submit_findings::problems(&findings.arguments),
                Vec::<String>::new(),
                "{name}"
            );
            return;
        }
        let mut results = Vec::new();
        for call in &answer.calls {
            let given = toolbox
                .call(
                    &call.tool,
                    &call.arguments,
                    Duration::from_secs(10),
                    &redactor,
                    &metrics,
                )
                .await;
            assert_ne!(
                given.outcome, "refused",
                "{name}: {} {}: {}",
                call.tool, call.arguments, given.text
            );
            results.push(ToolResult {
                call_id: call.id.clone(),
                recorded: given.text.clone(),
                shown: given.text,
                is_error: given.is_error,
            });
        }
        messages.push(Message::Assistant {
            text: answer.text,
            calls: answer.calls,
        });
        messages.push(Message::Results(results));
    }
    panic!("{name}: no findings within ten turns");
}

#[tokio::test]
async fn every_example_plays_to_its_findings() {
    service::install_crypto();
    let names: BTreeSet<String> = fs::read_dir(examples().join("scripted"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        play(&name, "").await;
        play(&name, "pod=web-1 namespace=shop service=web node=worker-7 host=db-1 database=orders http://127.0.0.1:1/metrics").await;
    }
}
