//! Every example through the whole product: applied, started by the alert beside it, run by the real services,
//! its agent's turns from the file beside it. Programs that need a cluster, a database or a certificate at
//! their other end are played by scripts that print what these print.

use std::{fs, path::Path};

use bus::testing::write_program;
use serde_json::Value;

use crate::product::{Product, root};

/// What stands for programs whose other end is not here.
const STAND_INS: [(&str, &str); 4] = [
    (
        "kubectl",
        r#"case "$*" in
*"get pod "*"json"*) printf '%s\n' '{"metadata":{"name":"web-1","ownerReferences":[{"kind":"ReplicaSet","name":"web-6d4"}]},"spec":{"containers":[{"name":"web","resources":{"limits":{"memory":"128Mi"}}}],"nodeName":"node-1"},"status":{"phase":"Running","containerStatuses":[{"name":"web","restartCount":7,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled"}}}]}}' ;;
*json*) printf '%s\n' '{"items":[],"metadata":{"name":"node-1"},"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady","message":"PLEG is not healthy"}]}}' ;;
*logs*) printf '%s\n' 'starting' 'panic: cannot connect to database' ;;
*) printf '%s\n' 'NAME READY STATUS' "web-1 0/1 CrashLoopBackOff" "$*" ;;
esac
"#,
    ),
    (
        "pg_isready",
        "printf '%s\\n' 'orders-db:5432 - accepting connections'\n",
    ),
    (
        "psql",
        r#"case "$*" in
*json_build_object*) printf '%s\n' '{"used":97,"max":100,"used_percent":97,"idle_in_transaction":40,"waiting_for_locks":3}' ;;
*) printf '%s\n' ' pid | state | query' ' 4711 | idle in transaction | select 1' ;;
esac
"#,
    ),
    (
        "openssl",
        "printf '%s\\n' 'subject=CN = web.example' 'notAfter=Dec  1 00:00:00 2026 GMT' 'issuer=CN = Example CA'\n",
    ),
];

pub fn stand_ins(directory: &Path) -> String {
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, script) in STAND_INS {
        let path = bin.join(name);
        write_program(&path, &format!("#!/bin/sh\n{script}"));
    }
    bin.to_string_lossy().into_owned()
}

/// The example, with its agent's turns from the file of the same name.
fn manifest(name: &str) -> String {
    let text = fs::read_to_string(root().join(format!("examples/{name}.yaml"))).unwrap();
    if !root().join(format!("examples/scripted/{name}.yaml")).exists() {
        return text;
    }
    let model = format!("    llm_config: {{provider: scripted, model: {name}}}\n");
    let scripted = if text.contains("\n  runtime:\n") {
        text.replacen("\n  runtime:\n", &format!("\n  runtime:\n{model}"), 1)
    } else {
        text.replacen("\nspec:\n", &format!("\nspec:\n  runtime:\n{model}"), 1)
    };
    assert_ne!(scripted, text, "{name}");
    scripted
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn every_example_runs_from_its_alert_to_its_end() {
    let Some(product) = Product::start(1).await else {
        return;
    };
    let names = names();
    assert!(names.len() >= 8, "{names:?}");
    for name in &names {
        product
            .post(0, "/api/v1/workflows", "application/yaml", "", &manifest(name))
            .await;
        let alert = fs::read_to_string(root().join(format!("examples/alerts/{name}.json"))).unwrap();
        product
            .post(0, "/webhooks/alertmanager", "application/json", "", &alert)
            .await;
    }
    for name in &names {
        let id = product
            .until(&format!("{name} has started"), || async {
                let found = product
                    .get(0, &format!("/api/v1/executions?workflow={name}"))
                    .await?;
                Some(found["items"].as_array()?.first()?["id"].as_str()?.to_owned())
            })
            .await;
        let execution = product.ended(&id).await;
        assert_eq!(execution["status"], "Succeeded", "{name}: {execution:#}");
        assert_eq!(execution["trigger_source"], "alertmanager", "{name}");
        let agent = execution["steps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|step| step["type"] == "agent");
        if let Some(agent) = agent.filter(|agent| agent["status"] != "Skipped") {
            check_investigation(name, &agent["output"]);
        }
    }
}

/// A scripted investigation never leads to a fix, and its evidence is what the tools really said.
fn check_investigation(name: &str, output: &Value) {
    assert_eq!(output["can_auto_fix"], false, "{name}: {output:#}");
    assert!(
        output["summary"]
            .as_str()
            .is_some_and(|summary| !summary.is_empty()),
        "{name}: {output:#}"
    );
    assert!(
        output["usage"]["turns"].as_u64().is_some_and(|turns| turns >= 1),
        "{name}: {output:#}"
    );
}
