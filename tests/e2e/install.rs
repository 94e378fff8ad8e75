//! The chart on a real cluster, with real images: installed, used, its pods deleted under it, and removed.
//!
//! | variable | |
//! |---|---|
//! | `TEST_IMAGE` | the image with all services, as NAME:TAG, which the nodes have or can pull; unset: the test is skipped, and with `CI` set it fails; `none`: it is skipped |
//! | `TEST_AGENT_IMAGE` | the same with kubectl; `punching-fist-agent:<tag of TEST_IMAGE>` where unset |
//! | `TEST_NATS_IMAGE` | nats-server; `nats:2.15-alpine` where unset |

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cluster::testing::{TestCluster, shell_image};
use serde_json::{Value, json};

use crate::{
    chart,
    product::{PATIENCE, root},
};

/// How long an installation may take until everything is ready.
const READY_WITHIN: &str = "5m";

/// How often the cluster is asked again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long kubectl may take to find a pod and open a port to it.
const DOOR_WITHIN: Duration = Duration::from_secs(30);

const WORKFLOW: &str = r#"apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: on-alert
spec:
  trigger:
    source: alertmanager
    filters: {alertname: Hello}
  runtime:
    llm_config: {provider: scripted, model: cluster-pods}
  steps:
    - name: look
      type: cli
      command: kubectl get pods -o name | wc -l; echo {{ alert.labels.round }}
    - name: investigate
      type: agent
      goal: Which pods run?
      tools: [kubectl]
    - name: is-critical
      type: conditional
      condition: alert.severity == critical
"#;

/// What the agent does: it asks the cluster, with the investigator's token.
const SCRIPT: &str = r#"description: The pods of a namespace.
turns:
  - text: I look at the pods.
    calls:
      - {name: pods, tool: kubectl, arguments: {args: [get, pods, -A, -o, name]}}
  - let:
      running: {from: pods, match: '(?m)^pod/', count: true}
    submit_findings:
      summary: "${running} pods are there."
      root_cause: Nothing is wrong.
      confidence: 0.5
      findings: ["${running} pods are there."]
      recommendations: [Nothing needs to be done.]
"#;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The image to try; `None`, after one loud line, where none is named.
fn image() -> Option<String> {
    let named = variable("TEST_IMAGE").unwrap_or_default();
    if named.is_empty() || named == "none" {
        assert!(
            named == "none" || std::env::var_os("CI").is_none(),
            "TEST_IMAGE names no image, and CI is set; say `none` to go on without one"
        );
        eprintln!("SKIPPED: the chart was not installed, because TEST_IMAGE names no image");
        return None;
    }
    Some(named)
}

/// Name and tag. A registry's port is no tag.
fn parts(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// A release in a namespace of the test's own; both have one name.
struct Release {
    cluster: TestCluster,
    helm: PathBuf,
    door: Option<(Child, u16)>,
    client: reqwest::Client,
}

impl Drop for Release {
    fn drop(&mut self) {
        self.close();
        // The namespace goes with the cluster's value, and what has none by its label.
    }
}

impl Release {
    fn install(image: &str, helm: PathBuf, cluster: TestCluster) -> Self {
        service::install_crypto();
        let (name, tag) = parts(image);
        let agent = variable("TEST_AGENT_IMAGE").unwrap_or_else(|| format!("punching-fist-agent:{tag}"));
        let (agent_name, agent_tag) = parts(&agent);
        let nats = variable("TEST_NATS_IMAGE").unwrap_or_else(|| "nats:2.15-alpine".to_owned());
        let (nats_name, nats_tag) = parts(&nats);
        let values = json!({
            "image": {"repository": name, "tag": tag},
            // The workflows of tests beside this one are not for this installation.
            "ingest": {"watchNamespaces": [cluster.namespace()]},
            "cliRunner": {"defaultImage": shell_image()},
            "agentRunner": {
                "image": {"repository": agent_name, "tag": agent_tag},
                "env": [{"name": "FIST_LLM_SCRIPTED_DIR", "value": "/scripted"}],
                "volumes": [{"name": "scripted", "configMap": {"name": "scripted"}}],
                "volumeMounts": [{"name": "scripted", "mountPath": "/scripted"}],
            },
            "nats": {"embedded": {"image": {"repository": nats_name, "tag": nats_tag}}},
        });
        let file = cluster.directory().join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        let script = cluster.directory().join("cluster-pods.yaml");
        fs::write(&script, SCRIPT).unwrap();
        let from = format!("--from-file={}", script.display());
        cluster.kubectl(&["create", "configmap", "scripted", &from]);
        let release = Self {
            cluster,
            helm,
            door: None,
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(20))
                .build()
                .unwrap(),
        };
        let chart = chart::chart();
        // Other tests apply the definition without Helm.
        release.helm(&[
            "install",
            release.cluster.namespace(),
            &chart.to_string_lossy(),
            "--values",
            &file.to_string_lossy(),
            "--take-ownership",
            "--wait",
            "--timeout",
            READY_WITHIN,
        ]);
        release
    }

    fn helm(&self, words: &[&str]) -> String {
        let output = Command::new(&self.helm)
            .args(words)
            .args(["--namespace", self.cluster.namespace()])
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .output()
            .unwrap();
        if !output.status.success() {
            let state = self
                .cluster
                .try_kubectl(&["get", "pods,events"])
                .unwrap_or_default();
            panic!(
                "helm {words:?}: {}\n{state}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An entry of a Secret of the release.
    fn secret(&self, part: &str, entry: &str) -> String {
        let name = format!("{}-{part}", self.cluster.namespace());
        let template = format!("go-template={{{{index .data \"{entry}\" | base64decode}}}}");
        self.cluster.kubectl(&["get", "secret", &name, "-o", &template])
    }

    fn close(&mut self) {
        if let Some((mut child, _)) = self.door.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A port of this machine that leads to ingest.
    async fn port(&mut self) -> Option<u16> {
        let until = Instant::now() + DOOR_WITHIN;
        let mut beats = tokio::time::interval(LOOK_EVERY);
        if let Some((child, port)) = &mut self.door {
            if child.try_wait().unwrap().is_none() {
                return Some(*port);
            }
            self.close();
        }
        let service = format!("service/{}-ingest", self.cluster.namespace());
        // A file, since kubectl would end with a pipe that nobody reads.
        let said = self.cluster.directory().join("port-forward");
        let child = self
            .cluster
            .command()
            .args(["port-forward", &service, ":http"])
            .stdout(fs::File::create(&said).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (child, _) = self.door.insert((child, 0));
        // Forwarding from 127.0.0.1:PORT -> 8080
        let port = loop {
            let text = fs::read_to_string(&said).unwrap();
            let port = text
                .split_once("127.0.0.1:")
                .and_then(|(_, rest)| rest.split_once(' ')?.0.parse::<u16>().ok());
            if port.is_some() || child.try_wait().unwrap().is_some() || Instant::now() > until {
                break port;
            }
            beats.tick().await;
        };
        match port {
            Some(port) => self.door.as_mut()?.1 = port,
            None => self.close(),
        }
        port
    }

    /// What ingest answers; `None` where it cannot be reached, and the next attempt has another door.
    async fn ask(&mut self, path: &str, token: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let url = format!("http://127.0.0.1:{}{path}", self.port().await?);
        let request = match body {
            Some(body) => self.client.post(url).json(body),
            None => self.client.get(url),
        };
        match request.bearer_auth(token).send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                Some((status, answer.json().await.unwrap_or_default()))
            }
            Err(_) => {
                self.close();
                None
            }
        }
    }

    /// Posts as Alertmanager does: again until the alert is taken.
    async fn post_alert(&mut self, round: &str) {
        let alert = json!({
            "version": "4", "groupKey": "{}:{alertname=\"Hello\"}", "status": "firing", "receiver": "punching-fist",
            "groupLabels": {"alertname": "Hello"}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "",
            "alerts": [{
                "status": "firing",
                "labels": {"alertname": "Hello", "severity": "critical", "round": round},
                "annotations": {}, "startsAt": "2026-01-01T00:00:00Z", "fingerprint": format!("hello-{round}"),
            }],
        });
        let token = self.secret("webhook", "token");
        let until = Instant::now() + PATIENCE;
        let mut beats = tokio::time::interval(LOOK_EVERY);
        loop {
            beats.tick().await;
            let answer = self.ask("/webhooks/alertmanager", &token, Some(&alert)).await;
            match answer {
                Some((202, _)) => return,
                Some((401, body)) => panic!("{round}: {body}"),
                answer => assert!(Instant::now() < until, "{round}: {answer:?}"),
            }
        }
    }

    /// The executions, once there are `count` and all have ended.
    async fn ended(&mut self, count: usize) -> Vec<Value> {
        let token = self.secret("api", "tokens");
        let until = Instant::now() + PATIENCE;
        let mut beats = tokio::time::interval(LOOK_EVERY);
        loop {
            beats.tick().await;
            let answer = self.ask("/api/v1/executions", &token, None).await;
            if let Some((200, list)) = &answer {
                let items = list["items"].as_array().unwrap();
                let has_ended =
                    |item: &Value| !matches!(item["status"].as_str(), Some("Pending" | "Running"));
                assert!(items.len() <= count, "too many: {list:#}");
                if items.len() == count && items.iter().all(has_ended) {
                    return items.clone();
                }
            }
            assert!(
                Instant::now() < until,
                "{count} ended executions: {answer:#?}\n{}",
                self.cluster.kubectl(&["get", "pods,events"])
            );
        }
    }

    fn wait_until_ready(&self) {
        for what in ["deployment", "statefulset"] {
            let names = self.cluster.kubectl(&["get", what, "-o", "name"]);
            for name in names.lines() {
                self.cluster.kubectl(&["rollout", "status", name, "--timeout=3m"]);
            }
        }
    }
}

#[tokio::test]
async fn an_installation_works_loses_its_pods_and_goes_without_a_trace() {
    let Some(image) = image() else { return };
    let Some(cluster) = TestCluster::open("e2e-install") else {
        return;
    };
    let Some(helm) = chart::helm() else { return };
    let mut release = Release::install(&image, helm, cluster);
    let name = release.cluster.namespace().to_owned();
    release.cluster.apply(WORKFLOW);
    let token = release.secret("api", "tokens");
    let until = Instant::now() + PATIENCE;
    let mut beats = tokio::time::interval(LOOK_EVERY);
    loop {
        beats.tick().await;
        let answer = release.ask("/api/v1/workflows", &token, None).await;
        let there = answer.as_ref().and_then(|(_, list)| list["items"].as_array());
        if there.is_some_and(|items| !items.is_empty()) {
            break;
        }
        assert!(
            Instant::now() < until,
            "the definition never arrived: {answer:#?}"
        );
    }
    assert_eq!(
        release.ask("/api/v1/executions", "not-it", None).await.unwrap().0,
        401
    );

    release.post_alert("as-installed").await;
    release.ended(1).await;
    let services = [
        "ingest",
        "scheduler",
        "cli-runner",
        "agent-runner",
        "store-writer",
        "nats",
    ];
    for (number, service) in services.iter().enumerate() {
        release.post_alert(service).await;
        let selector = format!("app.kubernetes.io/component={service}");
        release
            .cluster
            .kubectl(&["delete", "pods", "-l", &selector, "--wait=false"]);
        release.ended(number + 2).await;
        release.wait_until_ready();
    }
    let id_and_status: Vec<(String, String)> = release
        .ended(services.len() + 1)
        .await
        .iter()
        .map(|item| (item["id"].to_string(), item["status"].to_string()))
        .collect();
    for (id, status) in &id_and_status {
        let path = format!("/api/v1/executions/{}", id.trim_matches('"'));
        let whole = release.ask(&path, &token, None).await.unwrap().1;
        assert_eq!(status, "\"Succeeded\"", "{whole:#}");
        let summary = &whole["steps"][1]["output"]["summary"];
        // Both saw pods, so both accounts could look.
        assert!(
            summary
                .as_str()
                .is_some_and(|summary| summary.ends_with("pods are there.") && !summary.starts_with("0 ")),
            "{whole:#}"
        );
        let stdout = &whole["steps"][0]["output"]["stdout"];
        assert!(
            stdout
                .as_str()
                .is_some_and(|stdout| !stdout.trim_start().starts_with('0')),
            "{whole:#}"
        );
    }

    // Passwords stay as they are.
    let before = release.secret("nats", "admin");
    let chart = chart::chart();
    release.helm(&[
        "upgrade",
        &name,
        &chart.to_string_lossy(),
        "--reuse-values",
        "--set",
        "scheduler.replicas=1",
        "--wait",
        "--timeout",
        READY_WITHIN,
    ]);
    assert_eq!(before, release.secret("nats", "admin"));

    release.close();
    let said = release.helm(&["uninstall", &name, "--wait", "--timeout", READY_WITHIN]);
    assert!(
        said.contains("kept") && said.contains("CustomResourceDefinition"),
        "{said}"
    );
    let label = format!("app.kubernetes.io/instance={name}");
    let wait = [
        "wait",
        "--for=delete",
        "--timeout=90s",
        "pods",
        "-l",
        label.as_str(),
    ];
    let _ = release.cluster.try_kubectl(&wait);
    let kinds = "deployments,statefulsets,jobs,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,\
                 networkpolicies,poddisruptionbudgets,persistentvolumeclaims";
    let left = release
        .cluster
        .kubectl(&["get", kinds, "-l", &label, "-o", "name"]);
    let mut left: Vec<&str> = left.lines().collect();
    left.sort_unstable();
    let said_to_stay = [
        format!("persistentvolumeclaim/data-{name}-nats-0"),
        format!("persistentvolumeclaim/{name}-store"),
    ];
    assert_eq!(left, said_to_stay);
    let wide = "clusterroles,clusterrolebindings";
    assert_eq!(
        release
            .cluster
            .kubectl(&["get", wide, "-l", &label, "-o", "name"]),
        ""
    );
    let crd = root().join("deploy/crds/workflows.punching-fist.io.yaml");
    assert!(crd.exists());
    release
        .cluster
        .kubectl(&["get", "crd", "workflows.punching-fist.io"]);
}
