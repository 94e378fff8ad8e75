//! What a step in a pod costs beside a bare pod, measured in the same run on the cluster of `TEST_KUBECONFIG`:
//! `make bench-kube`.
//!
//! A bare pod is created and waited for until a watch says Succeeded. A step is all that the executor does: created,
//! watched, its log read to the end. The scheduler's and NATS' few milliseconds a step are not in it.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use cli_runner::{
    executor::{
        Executor, Job, Program, Stop,
        pods::{Pods, Settings},
    },
    live::LiveSink,
};
use cluster::testing::{TestCluster, shell_image};
use futures_util::{StreamExt as _, future::join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams, runtime::watcher};
use protocol::{Attempt, ExecutionId, Namespace, StepName, WorkflowName};
use serde_json::json;
use service::clock;

/// How often one pod and one step are measured, by turns.
const ROUNDS: usize = 7;
/// What anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn job(name: &str) -> Job {
    let now = clock::now();
    Job {
        namespace: Namespace::default(),
        execution: ExecutionId::derive(&["bench", name, &now.to_string()]),
        workflow: WorkflowName::new("bench").unwrap(),
        step: StepName::new("step").unwrap(),
        attempt: Attempt::FIRST,
        program: Program::Shell("true".to_owned()),
        env: BTreeMap::new(),
        image: None,
        resources: None,
        deadline: now.after(PATIENCE),
    }
}

async fn step(pods: &Pods, name: &str) -> Duration {
    let (job, begun) = (job(name), Instant::now());
    let (sink, _lines) = LiveSink::new(1);
    let finished = tokio::time::timeout(PATIENCE, pods.run(&job, &Stop::default(), &sink)).await;
    finished.unwrap().unwrap();
    let took = begun.elapsed();
    pods.forget(&job).await;
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

async fn measured(cluster: &TestCluster, client: Client) {
    let api: Api<Pod> = Api::namespaced(client.clone(), cluster.namespace());
    let settings = Settings {
        account: None,
        start_timeout: PATIENCE,
        ..Settings::for_tests(cluster.namespace(), &shell_image())
    };
    let pods = Pods::new(client, settings);
    // Once without counting: images, connections, the watch.
    step(&pods, "warm").await;
    bare_pods(&api, &["warm".to_owned()]).await;
    let (mut alone, mut steps) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        alone.push(bare_pods(&api, &[format!("bare-{round}")]).await);
        steps.push(step(&pods, &format!("step-{round}")).await);
    }
    let (alone, one) = (median(alone), median(steps));
    println!("one bare pod     {alone:7.3} s   median of {ROUNDS}");
    println!(
        "one step         {one:7.3} s   {:+.0} ms, {:.2} of the bare pod (wanted: at most +100 ms)",
        (one - alone) * 1000.0,
        one / alone
    );
    let names: Vec<String> = (0..60).map(|number| format!("many-{number}")).collect();
    let sixty = bare_pods(&api, &names).await.as_secs_f64();
    let begun = Instant::now();
    let flows = (0..20).map(|flow| {
        let pods = &pods;
        async move {
            for number in 0..3 {
                step(pods, &format!("flow-{flow}-{number}")).await;
            }
        }
    });
    join_all(flows).await;
    let twenty = begun.elapsed().as_secs_f64();
    println!("sixty bare pods  {sixty:7.3} s   at once");
    println!(
        "20 × 3 steps     {twenty:7.3} s   at once, {:.2} of the sixty (wanted: at most 1.15)",
        twenty / sixty
    );
    let figures = json!({
        "bare_pod_s": alone, "step_s": one, "sixty_bare_pods_s": sixty, "twenty_flows_s": twenty,
        "step_ratio": one / alone, "flows_ratio": twenty / sixty,
    });
    println!("{figures}");
}

fn main() {
    service::install_crypto();
    let Some(cluster) = TestCluster::open("bench") else {
        eprintln!("bench-kube: name a cluster with TEST_KUBECONFIG");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let settings = service::config::Kubernetes {
            kubeconfig: Some(cluster.kubeconfig().to_owned()),
        };
        let client = cluster::connect(&settings).await.unwrap().client;
        measured(&cluster, client).await;
    });
}
