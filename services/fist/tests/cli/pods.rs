//! `fist up` with commands as pods, on a real cluster.

use crate::harness::{Said, Up, fist};
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
