//! `fist up` with commands as pods, on a real cluster.

use crate::harness::{Said, Up, eventually, fist};
use cluster::testing::{TestCluster, shell_image};

const WORKFLOW: &str = "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: in-a-pod
spec:
  steps:
    - name: where
      type: cli
      command: echo host $(hostname); id -u
";

#[tokio::test]
async fn a_command_runs_as_a_pod_of_the_kubeconfigs_namespace() {
    let Some(cluster) = TestCluster::open("agent-up") else {
        return;
    };
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: punching-fist-cli}\n");
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: developer}\n");
    let binding = format!("--serviceaccount={}:developer", cluster.namespace());
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "developer",
        "--clusterrole=edit",
        &binding,
    ]);
    let (host, port) = cluster.server();
    let kubeconfig = cluster.kubeconfig_of("developer", &format!("{host}:{port}"));
    let dir = cluster.directory().join("up");
    let arguments = [
        "--executor",
        "kubernetes",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    let image = shell_image();
    let up = Up::start_in(&dir, &arguments, &[("FIST_CLI_DEFAULT_IMAGE", &image)]).await;
    let id = up.submits("in-a-pod.yaml", WORKFLOW).await;
    let ended = up.ended(&id).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let printed = up.says(&["logs", &id]).await;
    assert!(
        printed.out.contains("host workflow-cli-") && printed.out.contains("65532"),
        "{printed:?}"
    );
    // It goes once its result is stored, which is a moment before its deletion.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(100));
    while !cluster.list(&["pods"]).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the pod outlives its step");
        looks.tick().await;
    }
    up.stop().await;
}

#[tokio::test]
async fn workflow_objects_run_where_that_is_asked_for() {
    let Some(cluster) = TestCluster::open("agent-watch") else {
        return;
    };
    cluster.define_workflows();
    cluster.kubectl(&["create", "serviceaccount", "developer"]);
    let binding = format!("--serviceaccount={}:developer", cluster.namespace());
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "developer",
        "--clusterrole=edit",
        &binding,
    ]);
    let workflows = "--resource=workflows.punching-fist.io,workflows.punching-fist.io/status";
    let verbs = "--verb=get,list,watch,patch,update";
    cluster.kubectl(&["create", "role", "workflows", verbs, workflows]);
    cluster.kubectl(&["create", "rolebinding", "workflows", "--role=workflows", &binding]);
    let (host, port) = cluster.server();
    let kubeconfig = cluster.kubeconfig_of("developer", &format!("{host}:{port}"));
    let dir = cluster.directory().join("up");
    let arguments = [
        "--executor",
        "kubernetes",
        "--watch-workflows",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
    ];
    let image = shell_image();
    let env = [
        ("FIST_CLI_DEFAULT_IMAGE", image.as_str()),
        ("FIST_CLI_POD_SERVICE_ACCOUNT", "none"),
        ("FIST_INGEST_WATCH_NAMESPACES", cluster.namespace()),
    ];
    let up = Up::start_in(&dir, &arguments, &env).await;
    cluster.apply(WORKFLOW);
    eventually("the object says how it ended", async || {
        let object = cluster.get(&["workflow", "in-a-pod"]);
        (object["status"]["phase"] == "Succeeded").then_some(())
    })
    .await;
    up.stop().await;
}

#[tokio::test]
async fn a_kubeconfig_that_leads_nowhere_is_told_before_anything_starts() {
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().join("kubeconfig");
    std::fs::write(&empty, "apiVersion: v1\nkind: Config\n").unwrap();
    let dir = home.path().join("up");
    let said: Said = fist()
        .args(["up", "--executor", "kubernetes", "--kubeconfig"])
        .arg(&empty)
        .arg("--dir")
        .arg(&dir)
        .output()
        .await
        .unwrap()
        .into();
    assert_eq!(said.code, 2, "{said:?}");
    assert!(
        said.err.contains("commands are to run as pods") && said.err.contains(empty.to_str().unwrap()),
        "{said:?}"
    );
    assert!(!dir.exists());
}

/// What the doctor says of this cluster, without a server.
async fn diagnosis(kubeconfig: &std::path::Path, env: &[(&str, &str)]) -> Said {
    let output = fist()
        .args(["doctor", "--server", "http://127.0.0.1:1", "--kubeconfig"])
        .arg(kubeconfig)
        .env("HOME", "/nonexistent")
        .envs(env.iter().copied())
        .output()
        .await;
    output.unwrap().into()
}

#[tokio::test]
async fn the_doctor_asks_the_cluster_and_says_the_remedies() {
    let Some(cluster) = TestCluster::open("agent-doctor") else {
        return;
    };
    cluster.define_workflows();
    for account in ["punching-fist-cli", "developer", "nobody"] {
        cluster.kubectl(&["create", "serviceaccount", account]);
    }
    let namespace = cluster.namespace();
    let binding = format!("--serviceaccount={namespace}:developer");
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "developer",
        "--clusterrole=edit",
        &binding,
    ]);
    let (host, port) = cluster.server();
    let address = format!("{host}:{port}");
    let env = [
        ("FIST_TOOLS_KUBECTL_SERVICE_ACCOUNT", "investigator"),
        ("FIST_TOOLS_PROMETHEUS_URL", "http://127.0.0.1:1"),
        ("FIST_HTTP_LISTEN", "0.0.0.0:8080"),
    ];
    let developers = cluster.kubeconfig_of("developer", &address);
    let may_much = diagnosis(&developers, &env).await;
    for part in [
        format!("ok    cluster          https://{address}/ is Kubernetes v"),
        "ok    definition       workflows.punching-fist.io serves v1alpha1".to_owned(),
        format!("ok    rights           you may run steps as pods in the namespace {namespace}"),
        "warn  rights           you may not run Workflow objects of all namespaces".to_owned(),
        format!("ok    accounts         {namespace}/punching-fist-cli is there"),
        format!("kubectl -n {namespace} create serviceaccount punching-fist-fix`, or set"),
        format!("fail  accounts         {namespace}/investigator is not there"),
        "warn  prometheus       http://127.0.0.1:1 cannot be asked from here".to_owned(),
        "warn  strangers        http.listen 0.0.0.0:8080 is open to everybody".to_owned(),
    ] {
        assert!(may_much.out.contains(&part), "{part}\n{}", may_much.out);
    }
    assert_eq!(may_much.code, 1);
    let nobodys = cluster.kubeconfig_of("nobody", &address);
    let may_nothing = diagnosis(&nobodys, &env).await.out;
    for part in [
        "fail  rights           you may not run steps as pods",
        "a Role must grant create pods, delete pods, get pods, list pods, watch pods, get pods/log;",
        "fail  rights           you may not let the agents' kubectl run as investigator",
        "create serviceaccounts/token of investigator",
        "cannot be told",
    ] {
        assert!(may_nothing.contains(part), "{part}\n{may_nothing}");
    }
    // Somewhere where no API server is.
    let nowhere = diagnosis(&cluster.kubeconfig_of("nobody", "127.0.0.1:1"), &env).await;
    assert!(
        nowhere
            .out
            .contains("fail  cluster          https://127.0.0.1:1/ does not answer"),
        "{nowhere:?}"
    );
}
