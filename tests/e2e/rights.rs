//! What each account of the chart may do and what it may not, by the word of a real API server.
//!
//! `cluster::testing` says which cluster.

use std::{fs, path::Path, process::Command};

use cluster::testing::{TestCluster, shell_image};

use crate::chart;

/// A question for `kubectl auth can-i`: the words after it (what stands behind a slash is an object's name), and the
/// namespace; empty: all of them.
type Question = (&'static str, &'static str);

/// The namespace of the release, which has the test's own name.
const OWN: &str = "OWN";
const ALL: &str = "";
/// A namespace that has nothing to do with the release.
const OTHER: &str = "kube-system";
/// The one whose Secret `models` opted in.
const OPTED_IN: &str = "OPTED_IN";

/// Nobody may any of these, anywhere.
const NEVER: [Question; 12] = [
    ("list secrets", ALL),
    ("get secrets", OWN),
    ("get secrets", OTHER),
    ("create pods --subresource=exec", OWN),
    ("create pods --subresource=exec", OTHER),
    ("create pods --subresource=attach", OWN),
    ("create pods --subresource=portforward", OWN),
    ("create deployments.apps", OWN),
    ("create rolebindings.rbac.authorization.k8s.io", OWN),
    ("impersonate serviceaccounts", OWN),
    ("delete namespaces", ALL),
    ("create workflows.punching-fist.io", OWN),
];

const MAY: [(&str, &[Question]); 8] = [
    (
        "ingest",
        &[
            ("list workflows.punching-fist.io", ALL),
            ("watch workflows.punching-fist.io", ALL),
            ("patch workflows.punching-fist.io --subresource=status", OTHER),
            ("create events.events.k8s.io", OTHER),
        ],
    ),
    (
        "cli-runner",
        &[
            ("create pods", OWN),
            ("delete pods", OWN),
            ("watch pods", OWN),
            ("get pods --subresource=log", OWN),
        ],
    ),
    (
        "agent-runner",
        &[
            ("create serviceaccounts/OWN-investigator --subresource=token", OWN),
            ("get secrets/models", OPTED_IN),
        ],
    ),
    (
        "investigator",
        &[
            ("list pods", ALL),
            ("get pods --subresource=log", OTHER),
            ("list events", OTHER),
            ("get nodes", ALL),
            ("list deployments.apps", ALL),
            ("list jobs.batch", OTHER),
            ("get configmaps", OTHER),
        ],
    ),
    (
        "cli",
        &[
            ("list pods", ALL),
            ("get pods --subresource=log", OTHER),
            ("list events", OTHER),
            ("get nodes", ALL),
            ("list deployments.apps", ALL),
            ("list jobs.batch", OTHER),
            ("get configmaps", OTHER),
        ],
    ),
    (
        "fix",
        &[
            ("patch deployments.apps", OTHER),
            ("patch statefulsets.apps", OTHER),
            ("patch daemonsets.apps", OTHER),
            ("patch deployments.apps --subresource=scale", OTHER),
            ("patch replicasets.apps --subresource=scale", OTHER),
            ("list controllerrevisions.apps", OTHER),
            ("delete pods", OTHER),
            ("patch nodes", ALL),
        ],
    ),
    ("scheduler", &[]),
    ("store-writer", &[]),
];

/// Beyond [`NEVER`]: what is near enough to an account's rights to be got wrong.
const MAY_NOT: [(&str, &[Question]); 8] = [
    (
        "ingest",
        &[
            ("update workflows.punching-fist.io", OWN),
            ("update workflows.punching-fist.io --subresource=status", OWN),
            ("patch events.events.k8s.io", OWN),
            ("delete workflows.punching-fist.io", OWN),
            ("list pods", OWN),
            ("create serviceaccounts/OWN-investigator --subresource=token", OWN),
        ],
    ),
    (
        "cli-runner",
        &[
            ("list pods", OTHER),
            ("create pods", OTHER),
            ("get pods --subresource=log", OTHER),
            ("list workflows.punching-fist.io", OWN),
            ("create serviceaccounts/OWN-fix --subresource=token", OWN),
            ("patch pods", OWN),
            ("list events", OWN),
        ],
    ),
    (
        "agent-runner",
        &[
            ("create serviceaccounts/OWN-fix --subresource=token", OWN),
            ("create serviceaccounts/OWN-cli --subresource=token", OWN),
            ("create serviceaccounts/default --subresource=token", OTHER),
            ("get secrets/other", OPTED_IN),
            ("list secrets", OPTED_IN),
            ("get secrets/models", OWN),
            ("list pods", OWN),
            ("create pods", OWN),
        ],
    ),
    (
        "investigator",
        &[
            ("create pods", OWN),
            ("delete pods", OTHER),
            ("patch deployments.apps", OTHER),
            ("get secrets/models", OPTED_IN),
            ("get nodes --subresource=proxy", ALL),
            ("get services --subresource=proxy", OTHER),
        ],
    ),
    (
        "cli",
        &[
            ("create pods", OWN),
            ("delete pods", OWN),
            ("patch deployments.apps", OTHER),
            ("patch nodes", ALL),
            ("get secrets/models", OPTED_IN),
        ],
    ),
    (
        "fix",
        &[
            ("create pods", OWN),
            ("delete deployments.apps", OTHER),
            ("delete nodes", ALL),
            ("create pods --subresource=eviction", OTHER),
            ("get configmaps", OTHER),
            ("get pods --subresource=log", OTHER),
            ("delete jobs.batch", OTHER),
        ],
    ),
    (
        "scheduler",
        &[("get pods", OWN), ("list workflows.punching-fist.io", OWN)],
    ),
    (
        "store-writer",
        &[("get pods", OWN), ("list workflows.punching-fist.io", OWN)],
    ),
];

fn can(cluster: &TestCluster, opted_in: &str, account: &str, (words, namespace): Question) -> bool {
    let own = cluster.namespace();
    let words = words.replace(OWN, own);
    let account = format!("--as=system:serviceaccount:{own}:{own}-{account}");
    let mut asked = vec!["auth", "can-i"];
    asked.extend(words.split(' '));
    asked.push(&account);
    match namespace {
        ALL => asked.push("--all-namespaces"),
        OWN => {}
        OPTED_IN => asked.extend(["--namespace", opted_in]),
        other => asked.extend(["--namespace", other]),
    }
    let output = cluster.command().args(&asked).output().unwrap();
    // It says no by its exit code too, and warns of resources that have no namespace.
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{asked:?}: {other} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The accounts and rights of the chart, for a release with the namespace's name, and a Secret of the other's.
fn grant(helm: &Path, cluster: &TestCluster, opted_in: &TestCluster) {
    let secret = format!(
        "agentRunner.apiKeySecrets[0].namespace={},agentRunner.apiKeySecrets[0].name=models",
        opted_in.namespace()
    );
    let rendered = chart::rights(helm, cluster.namespace(), &[&secret]);
    cluster.define_workflows();
    let file = cluster.directory().join("rights.yaml");
    fs::write(&file, rendered).unwrap();
    // Without a namespace of its own, since the objects are of two.
    let applied = Command::new("kubectl")
        .args(["apply", "-f"])
        .arg(&file)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .output()
        .unwrap();
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
}

#[test]
fn each_account_may_what_it_needs_and_no_more() {
    let Some(cluster) = TestCluster::open("e2e-rights") else {
        return;
    };
    let Some(opted_in) = TestCluster::open("e2e-opted-in") else {
        return;
    };
    let Some(helm) = chart::helm() else { return };
    grant(&helm, &cluster, &opted_in);
    let mut wrong = Vec::new();
    let mut asked = 0;
    let mut ask = |account: &str, question: Question, expected: bool| {
        asked += 1;
        if can(&cluster, opted_in.namespace(), account, question) != expected {
            wrong.push(format!(
                "{account}: {} in {:?}: {}",
                question.0, question.1, !expected
            ));
        }
    };
    for (account, questions) in MAY {
        for question in questions {
            ask(account, *question, true);
        }
        for question in NEVER {
            ask(account, question, false);
        }
    }
    for (account, questions) in MAY_NOT {
        for question in questions {
            ask(account, *question, false);
        }
    }
    assert!(wrong.is_empty(), "of {asked}: {wrong:#?}");
}

/// What a step's command may look like once the gate has let it through, and what an investigation asks.
const DEPLOYMENT: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: IMAGE
          imagePullPolicy: IfNotPresent
          command: [/bin/sh, -c, "echo hello; exec sleep 3600"]
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

#[test]
fn the_fix_gates_verbs_and_an_investigations_questions_work_with_their_accounts() {
    let Some(cluster) = TestCluster::open("e2e-verbs") else {
        return;
    };
    let Some(helm) = chart::helm() else { return };
    grant(&helm, &cluster, &cluster);
    cluster.apply(&DEPLOYMENT.replace("IMAGE", &shell_image()));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=2m"]);
    let pods = cluster.list(&["pods", "-l", "app=web"]);
    let pod = pods[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let node = pods[0]["spec"]["nodeName"].as_str().unwrap().to_owned();
    let (host, port) = cluster.server();
    let run = |account: &str, line: &str| -> Result<String, String> {
        let account = format!("{}-{account}", cluster.namespace());
        let config = cluster.kubeconfig_of(&account, &format!("{host}:{port}"));
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(config)
            .args(line.split(' '))
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    for line in [
        format!("describe pod {pod}"),
        format!("logs {pod}"),
        "get events".to_owned(),
        "get pods -A -o wide".to_owned(),
        "rollout history deployment/web".to_owned(),
        "rollout status deployment/web".to_owned(),
        format!("describe node {node}"),
        "describe deployment web".to_owned(),
        "auth can-i get pods".to_owned(),
        "api-resources".to_owned(),
    ] {
        for account in ["investigator", "cli"] {
            run(account, &line).unwrap_or_else(|error| panic!("{account}: {line}: {error}"));
        }
    }
    for line in [
        "rollout restart deployment/web".to_owned(),
        "rollout undo deployment/web".to_owned(),
        "scale deployment/web --replicas=2".to_owned(),
        "scale deployment/web --current-replicas=2 --replicas=1".to_owned(),
        // Others use the node.
        format!("cordon {node} --dry-run=server"),
        format!("uncordon {node} --dry-run=server"),
    ] {
        run("fix", &line).unwrap_or_else(|error| panic!("fix: {line}: {error}"));
        let refused = run("cli", &line);
        assert!(
            refused.is_err() || line.contains("cordon"),
            "cli: {line}: {refused:?}"
        );
    }
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=2m"]);
    let pods = cluster.list(&["pods", "-l", "app=web"]);
    let pod = pods[0]["metadata"]["name"].as_str().unwrap();
    // Waits until it is gone, as kubectl does where nobody says otherwise.
    let deleted = format!("delete pod {pod} --timeout=60s");
    run("fix", &deleted).unwrap_or_else(|error| panic!("fix: {deleted}: {error}"));
    for line in ["get secrets", "exec deployment/web -- true", "get configmaps"] {
        let refused = run("fix", line).expect_err(line);
        assert!(refused.contains("orbidden"), "fix: {line}: {refused}");
    }
    let refused = run("investigator", "get secrets").expect_err("get secrets");
    assert!(refused.contains("orbidden"), "{refused}");
}
