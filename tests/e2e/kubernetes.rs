//! The product on a real cluster: workflows by `kubectl apply`, steps in pods, while services are killed and
//! while the API server is away. The services run beside the cluster, each with its own account's token.
//!
//! `cluster::testing` says which cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use bus::sim::Rng;
use cluster::testing::{Door, TestCluster, shell_image};
use serde_json::Value;

use crate::{
    chart,
    product::{Environment, Product},
};

/// What the agent of [`workflow`] does: it asks the real cluster with the real kubectl.
const SCRIPT: &str = r#"description: The pods of a namespace.
turns:
  - text: I look at the pods.
    calls:
      - {name: pods, tool: kubectl, arguments: {args: [get, pods, -o, name]}}
      - {name: secrets, tool: kubectl, arguments: {args: [auth, can-i, get, secrets]}}
  - let:
      running: {from: pods, match: '(?m)^pod/', count: true}
    submit_findings:
      summary: "${running} pods are there."
      root_cause: Nothing is wrong.
      confidence: 0.5
      findings: ["${running} pods are there."]
      recommendations: [Nothing needs to be done.]
"#;

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(60);

/// A namespace with the definition in its cluster, and the accounts and rights of the chart for a release of its name.
pub fn open(test: &str) -> Option<TestCluster> {
    let cluster = TestCluster::open(test)?;
    let helm = chart::helm()?;
    cluster.define_workflows();
    cluster.apply(&chart::rights(&helm, cluster.namespace(), &[]));
    Some(cluster)
}

/// What kubectl writes for each change of each pod while it watches: what happened, to which, and its identity.
fn watched_pods(cluster: &mut TestCluster) -> PathBuf {
    let line = "jsonpath={.type} {.object.metadata.name} {.object.metadata.uid}{'\\n'}";
    cluster.watch(
        "pods",
        &["get", "pods", "-w", "--output-watch-events", "-o", line],
    )
}

/// The variables that lead each service to this cluster, which it reaches at `address`.
pub fn environment(cluster: &TestCluster, address: &str) -> Environment {
    let namespace = cluster.namespace().to_owned();
    let scripts = cluster.directory().join("scripted");
    fs::create_dir_all(&scripts).unwrap();
    fs::write(scripts.join("cluster-pods.yaml"), SCRIPT).unwrap();
    let kubeconfigs: BTreeMap<&'static str, PathBuf> = ["ingest", "cli-runner", "agent-runner"]
        .into_iter()
        .map(|service| {
            (
                service,
                cluster.kubeconfig_of(&format!("{namespace}-{service}"), address),
            )
        })
        .collect();
    Box::new(move |service| {
        let mut found = Vec::new();
        if let Some(path) = kubeconfigs.get(service) {
            found.push(("FIST_KUBERNETES_KUBECONFIG", path.to_str().unwrap().to_owned()));
        }
        match service {
            "ingest" => {
                found.push(("FIST_INGEST_WATCH_WORKFLOWS", "true".to_owned()));
                found.push(("FIST_INGEST_WATCH_NAMESPACES", namespace.clone()));
            }
            "cli-runner" => {
                found.push(("FIST_CLI_EXECUTOR", "kubernetes".to_owned()));
                found.push(("FIST_CLI_POD_NAMESPACE", namespace.clone()));
                found.push(("FIST_CLI_POD_SERVICE_ACCOUNT", format!("{namespace}-cli")));
                found.push(("FIST_CLI_POD_FIX_SERVICE_ACCOUNT", format!("{namespace}-fix")));
                found.push(("FIST_CLI_DEFAULT_IMAGE", shell_image()));
            }
            "agent-runner" => {
                found.push(("FIST_TOOLS_KUBECTL_BIN", "kubectl".to_owned()));
                found.push((
                    "FIST_TOOLS_KUBECTL_SERVICE_ACCOUNT",
                    format!("{namespace}-investigator"),
                ));
                found.push(("FIST_LLM_SCRIPTED_DIR", scripts.to_str().unwrap().to_owned()));
            }
            _ => {}
        }
        found
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    })
}

pub fn workflow_object(cluster: &TestCluster, name: &str) -> Option<Value> {
    let found = cluster.list(&["workflows"]);
    found.into_iter().find(|item| item["metadata"]["name"] == name)
}

fn pods(cluster: &TestCluster) -> Vec<Value> {
    cluster.list(&["pods", "-l", "component=workflow-cli"])
}

/// Two commands, an investigation and a condition; slow enough that somebody is killed in the midst of it.
fn workflow(name: &str, seconds: u32) -> String {
    format!(
        r#"apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: {name}
  annotations:
    source.data: '{{"word": "it is ; $(false) me"}}'
spec:
  runtime:
    llm_config: {{provider: scripted, model: cluster-pods}}
  steps:
    - name: look
      type: cli
      timeout_minutes: 5
      command: sleep {seconds}; printf '%s\n' {{{{ source.data.word }}}}; echo aside >&2
    - name: investigate
      type: agent
      timeoutMinutes: 5
      goal: Which pods run in the namespace?
      tools: [kubectl]
    - name: is-me
      type: conditional
      condition: steps.look.output.stdout contains me
    - name: report
      type: cli
      timeout_minutes: 5
      command: sleep {seconds}; echo {{{{ steps.investigate.output.summary }}}}
"#
    )
}

/// What is right for one of these, however it was disturbed.
fn check(execution: &Value, context: &str) {
    assert_eq!(execution["status"], "Succeeded", "{context}: {execution:#}");
    assert_eq!(execution["trigger_source"], "kubernetes", "{context}");
    let steps = execution["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{context}: {execution:#}");
    assert!(
        steps
            .iter()
            .all(|step| step["attempt"] == 1 || step["type"] == "conditional"),
        "{context}: {execution:#}"
    );
    let look = &steps[0]["output"];
    assert_eq!(
        look["stdout"], "it is ; $(false) me\n",
        "{context}: {execution:#}"
    );
    assert_eq!(look["stderr"], "aside\n", "{context}: {execution:#}");
}

async fn ended(product: &Product, cluster: &TestCluster, name: &str) -> Value {
    let id = product
        .until(&format!("{name} names its execution"), || async {
            workflow_object(cluster, name)?["status"]["executionId"]
                .as_str()
                .map(str::to_owned)
        })
        .await;
    let execution = product.ended(&id).await;
    let object = product
        .until(&format!("{name}'s status says how it ended"), || async {
            let object = workflow_object(cluster, name)?;
            let conditions = object["status"]["conditions"].as_array()?.clone();
            let is_complete = conditions
                .iter()
                .any(|condition| condition["type"] == "Complete" && condition["status"] == "True");
            is_complete.then_some(object)
        })
        .await;
    let status = &object["status"];
    assert_eq!(status["phase"], execution["status"], "{object:#}");
    assert_eq!(status["stepsCompleted"], 4, "{object:#}");
    assert_eq!(
        status["observedGeneration"], object["metadata"]["generation"],
        "{object:#}"
    );
    execution
}

#[tokio::test]
async fn an_applied_workflow_runs_once_whoever_is_killed() {
    let Some(mut cluster) = open("e2e-killed") else {
        return;
    };
    let (host, port) = cluster.server();
    let Some(mut product) = Product::start_with(2, environment(&cluster, &format!("{host}:{port}"))).await
    else {
        return;
    };
    let seen = cluster.watch("workflows", &["get", "workflows", "-w", "--no-headers"]);
    let seen_pods = watched_pods(&mut cluster);
    let names: Vec<String> = (0..4).map(|number| format!("w-{number}")).collect();
    for name in &names {
        cluster.apply(&workflow(name, 3));
    }
    let mut rng = Rng::new(7);
    let mut killed = Vec::new();
    let mut beats = tokio::time::interval(Duration::from_millis(1500));
    let until = Instant::now() + Duration::from_secs(24);
    while Instant::now() < until {
        beats.tick().await;
        killed.push(product.kill_and_restart_one_of(&["ingest", "cli-runner"], rng.below(4) as usize));
    }
    let context = format!("killed {killed:?}");
    for name in &names {
        check(&ended(&product, &cluster, name).await, &context);
        let found = product
            .get(0, &format!("/api/v1/executions?workflow={name}"))
            .await
            .unwrap();
        assert_eq!(
            found["items"].as_array().unwrap().len(),
            1,
            "{context}: {found:#}"
        );
    }
    product
        .until("no pod is left", || async {
            pods(&cluster).is_empty().then_some(())
        })
        .await;
    // One pod for each attempt: a name never came with two identities.
    let mut identities: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in fs::read_to_string(seen_pods).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, name, uid] = words.as_slice() {
            identities
                .entry((*name).to_owned())
                .or_default()
                .insert((*uid).to_owned());
        }
    }
    assert_eq!(identities.len(), 8, "two pods for each of four: {identities:#?}");
    assert!(
        identities.values().all(|of_one| of_one.len() == 1),
        "{context}: {identities:#?}"
    );
    // Whoever looked on saw it go from step to step.
    let seen = fs::read_to_string(seen).unwrap();
    for part in ["Running", "1/4", "Succeeded", "4/4"] {
        assert!(
            seen.contains(part),
            "`kubectl get workflows -w` never showed {part}:\n{seen}"
        );
    }
}

// The door must be kept while kubectl is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_for_a_minute_loses_and_doubles_nothing() {
    let Some(mut cluster) = open("e2e-away") else {
        return;
    };
    let (host, port) = cluster.server();
    let door = Door::open(host, port).await;
    let Some(product) = Product::start_with(1, environment(&cluster, &door.address())).await else {
        return;
    };
    let seen_pods = watched_pods(&mut cluster);
    cluster.apply(&workflow("before", 20));
    product
        .until("a pod of it runs", || async {
            pods(&cluster)
                .iter()
                .any(|pod| pod["status"]["phase"] == "Running")
                .then_some(())
        })
        .await;
    door.shut().await;
    // Applied while nobody of ours can see it.
    cluster.apply(&workflow("meanwhile", 1));
    tokio::time::sleep(OUTAGE).await;
    door.open_again().await;
    for name in ["before", "meanwhile"] {
        check(&ended(&product, &cluster, name).await, name);
    }
    product
        .until("no pod is left", || async {
            pods(&cluster).is_empty().then_some(())
        })
        .await;
    let names: BTreeSet<String> = fs::read_to_string(seen_pods)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once(' ').map(|(_, pod)| pod.to_owned()))
        .collect();
    assert_eq!(names.len(), 4, "one pod for each attempt: {names:#?}");
}
