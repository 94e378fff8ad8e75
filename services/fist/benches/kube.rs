//! What a step in a pod costs beside a bare pod, measured in the same run on the cluster of `TEST_KUBECONFIG`:
//! `make bench-kube`.
//!
//! A bare pod is created and waited for until a watch says Succeeded. A flow is posted to a running `fist up`, and its
//! events are followed until it has ended: intake, log, scheduler, runner, pod and result are all in it.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../tests/cli/harness.rs"]
mod harness;

use std::time::{Duration, Instant};

use cluster::testing::{TestCluster, shell_image};
use futures_util::{StreamExt as _, future::join_all};
use harness::Up;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams, runtime::watcher};
use serde_json::{Value, json};

/// How often one pod and one flow are measured, by turns.
const ROUNDS: usize = 7;
/// What anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a workflow of so many steps, one after another, to its end.
async fn flow(up: &Up, steps: usize) -> Duration {
    let steps: Vec<Value> = (0..steps)
        .map(|number| json!({"name": format!("step-{number}"), "type": "cli", "command": "true"}))
        .collect();
    let manifest = json!({
        "apiVersion": "punching-fist.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "bench"},
        "spec": {"steps": steps},
    });
    let begun = Instant::now();
    let body = manifest.to_string();
    let (status, answer) = up
        .api("POST", "/api/v1/executions", Some(("application/json", &body)))
        .await;
    assert!((200..300).contains(&status), "{status}: {answer}");
    // The answer comes in chunks: its object is one line of it.
    let object = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
    let id = serde_json::from_str::<Value>(object).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/v1/executions/{id}/events");
    let events = tokio::time::timeout(PATIENCE, up.api("GET", &path, None)).await;
    let took = begun.elapsed();
    let events = events.unwrap().1;
    assert!(events.contains("Succeeded"), "{events}");
    took
}

/// A pod that is as small as can be, in the namespace that enforces `restricted`.
fn bare(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "c", "image": shell_image(), "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", "true"],
                "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))
    .unwrap()
}

/// Creates the pods at once, and waits until a watch says of all that they succeeded.
async fn bare_pods(api: &Api<Pod>, names: &[String]) -> Duration {
    let config = watcher::Config::default().labels("!app");
    let mut seen = std::pin::pin!(watcher(api.clone(), config));
    // The watch stands before the first pod is made.
    while !matches!(seen.next().await.unwrap().unwrap(), watcher::Event::InitDone) {}
    let begun = Instant::now();
    let made = names
        .iter()
        .map(|name| async move { api.create(&PostParams::default(), &bare(name)).await.unwrap() });
    let mut left: std::collections::BTreeSet<&String> = names.iter().collect();
    let watching = async {
        while !left.is_empty() {
            if let watcher::Event::Apply(pod) = seen.next().await.unwrap().unwrap() {
                let is_over = pod.status.and_then(|status| status.phase).as_deref() == Some("Succeeded");
                if is_over && let Some(name) = &pod.metadata.name {
                    left.remove(name);
                }
            }
        }
    };
    let (_, watched) = tokio::join!(join_all(made), tokio::time::timeout(PATIENCE, watching));
    watched.unwrap();
    let took = begun.elapsed();
    for name in names {
        let _ = api
            .delete(name, &kube::api::DeleteParams::default().grace_period(0))
            .await;
    }
    took
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64()
}

async fn measured(cluster: &TestCluster, client: Client, up: &Up) {
    let api: Api<Pod> = Api::namespaced(client, cluster.namespace());
    // Once without counting: images, connections, the watch.
    flow(up, 1).await;
    bare_pods(&api, &["warm".to_owned()]).await;
    let (mut alone, mut flows) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        alone.push(bare_pods(&api, &[format!("bare-{round}")]).await);
        flows.push(flow(up, 1).await);
    }
    let (alone, one) = (median(alone), median(flows));
    println!("one bare pod       {alone:7.3} s   median of {ROUNDS}");
    println!(
        "a flow of 1 step   {one:7.3} s   {:+.0} ms, {:.2} of the bare pod (wanted: at most +100 ms)",
        (one - alone) * 1000.0,
        one / alone
    );
    let three = flow(up, 3).await.as_secs_f64();
    println!(
        "a flow of 3 steps  {three:7.3} s   {:.2} of the bare pod",
        three / alone
    );
    let names: Vec<String> = (0..60).map(|number| format!("many-{number}")).collect();
    let sixty = bare_pods(&api, &names).await.as_secs_f64();
    let begun = Instant::now();
    join_all((0..20).map(|_| flow(up, 3))).await;
    let twenty = begun.elapsed().as_secs_f64();
    println!("sixty bare pods    {sixty:7.3} s   at once");
    println!(
        "20 × 3 steps       {twenty:7.3} s   at once, {:.2} of the sixty (wanted: at most 1.15)",
        twenty / sixty
    );
    let figures = json!({
        "bare_pod_s": alone, "flow_of_1_s": one, "flow_of_3_s": three, "sixty_bare_pods_s": sixty,
        "twenty_flows_s": twenty, "step_ratio": one / alone, "flows_ratio": twenty / sixty,
    });
    println!("{figures}");
}

fn main() {
    service::install_crypto();
    let Some(cluster) = TestCluster::open("bench") else {
        eprintln!("bench-kube: name a cluster with TEST_KUBECONFIG");
        std::process::exit(2);
    };
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: punching-fist-cli}\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let settings = service::config::Kubernetes {
            kubeconfig: Some(cluster.kubeconfig().to_owned()),
        };
        let client = cluster::connect(&settings).await.unwrap().client;
        let kubeconfig = cluster.kubeconfig().to_str().unwrap();
        let arguments = ["--executor", "kubernetes", "--kubeconfig", kubeconfig];
        let image = shell_image();
        let env = [
            ("FIST_CLI_DEFAULT_IMAGE", image.as_str()),
            ("FIST_CLI_POD_NAMESPACE", cluster.namespace()),
        ];
        let up = Up::start_in(&cluster.directory().join("up"), &arguments, &env).await;
        measured(&cluster, client, &up).await;
        up.stop().await;
    });
}
