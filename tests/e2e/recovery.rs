//! The whole promise on a real cluster: a pod crash-loops, an agent looks at it with the real kubectl and a real
//! Prometheus, its findings are grounded, and its fix passes the gate, runs as the fix account, and the pod recovers.
//!
//! The model is a mock of Anthropic's API: it plays what a model would say. All else is real.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use cluster::testing::{TestCluster, shell_image};
use serde_json::{Value, json};

use crate::{
    kubernetes,
    mock::{Dialect, KEY, Mock, Reply, submits},
    product::{Product, free_port},
};

/// A Prometheus that scrapes itself, in a directory of its own.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    /// `None`, after one loud line, where none is installed; in CI that is a failure.
    fn start(cluster: &TestCluster) -> Option<Self> {
        let port = free_port();
        let file = cluster.directory().join("prometheus.yml");
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs: [{{job_name: self, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
        );
        fs::write(&file, config).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                cluster.directory().join("prometheus").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, port }),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no prometheus: {error}");
                eprintln!("SKIPPED: a recovery was not tried, since there is no prometheus: {error}");
                None
            }
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A deployment of one pod that runs `command`.
fn deployment(command: &str) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "web", "image": shell_image(), "imagePullPolicy": "IfNotPresent",
                        "command": ["/bin/sh", "-c", command],
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    })
    .to_string()
}

const WORKFLOW: &str = r#"apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: recover-web
spec:
  runtime:
    llm_config: {provider: anthropic, model: mock}
  steps:
    - name: investigate
      type: agent
      timeout_minutes: 5
      goal: Why does the deployment web not run, and what would mend it?
      tools: [kubectl, promql]
    - name: is-safe
      type: conditional
      condition: steps.investigate.output.can_auto_fix == true
    - name: mend
      type: cli
      timeout_minutes: 5
      mode: auto
      command: "{{ steps.investigate.output.fix_command }}"
    - name: verify
      type: cli
      timeout_minutes: 5
      command: kubectl rollout status deployment/web --timeout=120s -n NAMESPACE
"#;

/// What the model says: it looks at four things at once, and then knows.
fn replies(namespace: &str) -> Vec<Reply> {
    let kubectl = |id: &'static str, args: &[&str]| (id, "kubectl", json!({ "args": args }).to_string());
    vec![
        Reply::Answer(
            "I look at the pod, its log, the deployment's revisions, and what Prometheus knows.",
            vec![
                kubectl("pods", &["get", "pods", "-l", "app=web"]),
                kubectl("log", &["logs", "-l", "app=web", "--tail=20"]),
                kubectl("revisions", &["rollout", "history", "deployment/web"]),
                ("up", "promql", json!({"query": "up"}).to_string()),
            ],
        ),
        submits(&json!({
            "summary": "web crash-loops since its last rollout: a key is missing from its configuration.",
            "findings": ["The pod crash-loops", "It says that a key is missing", "There is an earlier revision"],
            "root_cause": "The newest revision wants DB_HOST, which nobody sets.",
            "confidence": 0.95,
            "can_auto_fix": true,
            "fix_command": format!("kubectl rollout undo deployment/web -n {namespace}"),
            "recommendations": ["Set DB_HOST before rolling out again."],
            "evidence": [
                {"call_id": "pods", "quote": "CrashLoopBackOff"},
                {"call_id": "log", "quote": "FATAL: the key DB_HOST is not set"},
                {"call_id": "revisions", "quote": "deployment.apps/web"},
                {"call_id": "up", "quote": "job=\"self\""},
            ],
        })),
    ]
}

#[tokio::test]
async fn a_crash_looping_pod_is_looked_at_mended_and_recovers() {
    let Some(mut cluster) = kubernetes::open("e2e-recovery") else {
        return;
    };
    let Some(prometheus) = Prometheus::start(&cluster) else {
        return;
    };
    cluster.apply(&deployment("exec sleep 100000"));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    cluster.apply(&deployment(
        "echo 'FATAL: the key DB_HOST is not set' >&2; exit 1",
    ));
    let mock = Mock::start(Dialect::Anthropic, replies(cluster.namespace())).await;
    let (host, port) = cluster.server();
    let services = kubernetes::environment(&cluster, &format!("{host}:{port}"));
    let (model, metrics) = (mock.port, prometheus.port);
    let environment = move |service: &str| {
        let mut found = services(service);
        if service == "agent-runner" {
            found.push(("ANTHROPIC_API_KEY".to_owned(), KEY.to_owned()));
            let url = format!("http://127.0.0.1:{model}");
            found.push(("ANTHROPIC_BASE_URL".to_owned(), url));
            let url = format!("http://127.0.0.1:{metrics}");
            found.push(("FIST_TOOLS_PROMETHEUS_URL".to_owned(), url));
        }
        found
    };
    let Some(product) = Product::start_with(1, Box::new(environment)).await else {
        return;
    };
    let accounts = cluster.watch(
        "pods",
        &[
            "get",
            "pods",
            "-w",
            "-l",
            "component=workflow-cli",
            "-o",
            "jsonpath={.metadata.annotations.punching-fist\\.io/step} {.spec.serviceAccountName}{'\\n'}",
        ],
    );
    // Between two restarts that are far apart, so that it is still so when the agent looks.
    product
        .until("the pod crash-loops", || async {
            cluster
                .list(&["pods", "-l", "app=web"])
                .iter()
                .flat_map(|pod| {
                    pod["status"]["containerStatuses"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default()
                })
                .any(|status| {
                    status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                        && status["restartCount"].as_u64() >= Some(2)
                })
                .then_some(())
        })
        .await;
    cluster.apply(&WORKFLOW.replace("NAMESPACE", cluster.namespace()));
    let id = product
        .until("the workflow names its execution", || async {
            let object = kubernetes::workflow_object(&cluster, "recover-web")?;
            object["status"]["executionId"].as_str().map(str::to_owned)
        })
        .await;
    let execution = product.ended(&id).await;
    assert_eq!(execution["status"], "Succeeded", "{execution:#}");
    assert_eq!(mock.problems(), Vec::<String>::new());
    let steps = execution["steps"].as_array().unwrap();
    let found = &steps[0]["output"];
    assert_eq!(
        (&found["status"], &found["can_auto_fix"]),
        (&json!("complete"), &json!(true)),
        "{found:#}"
    );
    let grounded = |quote: &Value| quote["grounded"] == true;
    assert!(
        found["evidence"].as_array().unwrap().iter().all(grounded),
        "{found:#}"
    );
    let fix = &steps[2]["output"]["fix"];
    assert_eq!(
        fix["proposed_by"], "the investigation of step investigate",
        "{fix:#}"
    );
    assert_eq!(
        (&fix["outcome"], &fix["dry_run"]["exit_code"]),
        (&json!("succeeded"), &json!(0)),
        "{fix:#}"
    );
    assert!(
        fix["dry_run"]["said"].as_str().unwrap().contains("dry run"),
        "{fix:#}"
    );
    let stdout = steps[2]["output"]["stdout"].as_str().unwrap();
    assert!(
        stdout.contains("rolled back") && !stdout.contains("dry run"),
        "{stdout}"
    );
    // The pod is well, and it was the fix account that mended it, and no other pod that ran as it.
    let pods = cluster.list(&["pods", "-l", "app=web"]);
    let is_ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    assert!(pods.iter().any(is_ready), "{pods:#?}");
    let accounts = fs::read_to_string(accounts).unwrap();
    let namespace = cluster.namespace();
    for line in accounts.lines() {
        let account = match line.split(' ').next() {
            Some("mend") => format!("mend {namespace}-fix"),
            _ => format!("verify {namespace}-cli"),
        };
        assert_eq!(line, account, "{accounts}");
    }
    assert!(
        accounts.contains("mend ") && accounts.contains("verify "),
        "{accounts}"
    );
    product
        .until("no pod of ours is left", || async {
            let pods = cluster.list(&["pods", "-l", "component=workflow-cli"]);
            pods.is_empty().then_some(())
        })
        .await;
}
