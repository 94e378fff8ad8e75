//! What an agent-runner wants of a cluster, against a real API server: whom kubectl is there, and which Secrets
//! are read.

use std::path::{Path, PathBuf};

use agent_runner::{
    kubernetes::{Investigator, Kubernetes},
    redact::Redactor,
    tools::{Given, Surroundings, Toolbox},
};
use cluster::testing::{Door, TestCluster};
use serde_json::Map;
use service::{Metrics, config::Secret};

use super::*;

/// The operator's key, which must not be sent in the place of a workflow's own.
const OPERATORS: &str = "sk-operator-0123456789abcdef0123456789";

/// The two accounts with the rights that the chart gives them, as far as one namespace goes.
const ACCOUNTS: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: investigator}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: runner}
rules:
  - {apiGroups: [''], resources: [serviceaccounts/token], resourceNames: [investigator, absent], verbs: [create]}
  - {apiGroups: [''], resources: [secrets], resourceNames: [llm-key, gone, two], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: investigator}
rules:
  - {apiGroups: [''], resources: [configmaps], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: runner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: runner}
subjects: [{kind: ServiceAccount, name: runner}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: investigator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: investigator}
subjects: [{kind: ServiceAccount, name: investigator}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: to-be-seen}
";

fn open(test: &str) -> Option<TestCluster> {
    let cluster = TestCluster::open(test)?;
    cluster.apply(ACCOUNTS);
    Some(cluster)
}

/// agent-runner's own way to the cluster.
fn runners(cluster: &TestCluster) -> PathBuf {
    let (host, port) = cluster.server();
    cluster.kubeconfig_of("runner", &format!("{host}:{port}"))
}

fn kubernetes(kubeconfig: &Path) -> Arc<Kubernetes> {
    Kubernetes::new(service::config::Kubernetes {
        kubeconfig: Some(kubeconfig.to_owned()),
    })
}

/// The agents' kubectl in this namespace, whose every start is noted.
struct Kubectl {
    toolbox: Toolbox,
    seen: PathBuf,
}

impl Kubectl {
    fn new(cluster: &TestCluster, investigator: Option<&Arc<Investigator>>) -> Self {
        let seen = cluster.directory().join("seen");
        let program = cluster.directory().join("noting-kubectl");
        let script = format!(
            "#!/bin/sh\n{{ env; stat -c 'mode %a' \"$KUBECONFIG\"; cat \"$KUBECONFIG\"; echo; }} >> {}\nexec kubectl \"$@\"\n",
            seen.display()
        );
        write_program(&program, &script);
        let mut tools = Config::default().tools;
        tools.kubectl_bin = program.display().to_string();
        let surroundings = Surroundings {
            tools: &tools,
            output_bytes_max: 32 * 1024,
            timeout_ms: 20_000,
            env: &Map::new(),
            namespace: cluster.namespace(),
            investigator,
            earlier: None,
            redactor: &Redactor::new(&[], []).unwrap(),
        };
        let toolbox = Toolbox::from_config(&["kubectl".to_owned()], &surroundings).unwrap();
        Self { toolbox, seen }
    }

    async fn call(&self, words: &[&str]) -> Given {
        let redactor = Redactor::new(&[], []).unwrap();
        let arguments = json!({"args": words});
        self.toolbox
            .call("kubectl", &arguments, WITHIN, &redactor, &Metrics::new())
            .await
    }
}

fn token_of(kubeconfig: &Path) -> String {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    let kubeconfig: Value = serde_json::from_str(&text).unwrap();
    kubeconfig["users"][0]["user"]["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn kubectl_is_the_investigator_and_never_the_runner() {
    let Some(cluster) = open("agent-kubectl") else {
        return;
    };
    let runners = runners(&cluster);
    let investigator = Investigator::new(kubernetes(&runners), "investigator");
    let kubectl = Kubectl::new(&cluster, Some(&investigator));
    let shown = kubectl.call(&["get", "configmap", "to-be-seen"]).await;
    assert!(!shown.is_error && shown.text.contains("to-be-seen"), "{shown:?}");
    let account = format!("system:serviceaccount:{}:investigator", cluster.namespace());
    let forbidden = kubectl.call(&["get", "pods"]).await;
    assert!(
        forbidden.is_error && forbidden.text.contains(&account),
        "{forbidden:?}"
    );
    for resource in ["secrets", "secret/llm-key", "serviceaccounts/token"] {
        let may = kubectl.call(&["auth", "can-i", "get", resource]).await;
        assert!(may.is_error && may.text.contains("no"), "{may:?}");
    }
    // The program itself: what it was led to, by what, and who that is.
    let seen = std::fs::read_to_string(&kubectl.seen).unwrap();
    assert!(!seen.contains(&token_of(&runners)), "the runner's own token");
    assert!(
        seen.contains("mode 600") && !seen.contains("KUBERNETES_SERVICE_HOST"),
        "{seen}"
    );
    let kubeconfig = cluster.directory().join("as-the-tool");
    let text = seen
        .lines()
        .find(|line| line.starts_with("{\"apiVersion\""))
        .unwrap();
    std::fs::write(&kubeconfig, text).unwrap();
    let who = std::process::Command::new("kubectl")
        .args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])
        .env("KUBECONFIG", &kubeconfig)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&who.stdout), account, "{who:?}");
    // Nothing of it is left but the directory that goes with the tool.
    let left = seen
        .lines()
        .find_map(|line| line.strip_prefix("KUBECONFIG="))
        .unwrap();
    assert!(!Path::new(left).exists(), "{left}");
}

#[tokio::test]
async fn an_account_that_is_made_anew_is_followed() {
    let Some(cluster) = open("agent-anew") else {
        return;
    };
    let investigator = Investigator::new(kubernetes(&runners(&cluster)), "investigator");
    let kubectl = Kubectl::new(&cluster, Some(&investigator));
    let first = investigator.pass().await.unwrap();
    assert_eq!(investigator.pass().await.unwrap().number, first.number, "kept");
    cluster.kubectl(&["delete", "serviceaccount", "investigator"]);
    cluster.kubectl(&["create", "serviceaccount", "investigator"]);
    // The server knows the old token for some seconds more.
    let noticed = async {
        while investigator.pass().await.unwrap().number == first.number {
            let shown = kubectl.call(&["get", "configmaps"]).await;
            assert!(!shown.is_error && shown.text.contains("to-be-seen"), "{shown:?}");
        }
    };
    tokio::time::timeout(WITHIN, noticed).await.unwrap();
}

#[tokio::test]
async fn a_missing_account_or_right_is_told_with_its_remedy() {
    let Some(cluster) = open("agent-refused") else {
        return;
    };
    let runners = kubernetes(&runners(&cluster));
    let told = async |account: &str| {
        let investigator = Investigator::new(Arc::clone(&runners), account);
        let given = Kubectl::new(&cluster, Some(&investigator))
            .call(&["get", "pods"])
            .await;
        assert!(given.is_error, "{given:?}");
        given.text
    };
    let namespace = cluster.namespace();
    let absent = told("absent").await;
    assert!(
        absent.contains(&format!(
            "there is no service account absent in the namespace {namespace}"
        )) && absent.contains("tools.kubectl_service_account"),
        "{absent}"
    );
    let forbidden = told("default").await;
    assert!(
        forbidden.contains(
            "grant its own account `create` on `serviceaccounts/token` with resourceNames [default]"
        ),
        "{forbidden}"
    );
    // An API server that is away says so within the tool's time.
    let door = Door::open(cluster.server().0, cluster.server().1).await;
    let by_door = kubernetes(&cluster.kubeconfig_of("runner", &door.address()));
    door.shut().await;
    let investigator = Investigator::new(by_door, "investigator");
    let kubectl = Kubectl::new(&cluster, Some(&investigator));
    let away = kubectl.call(&["get", "configmaps"]).await;
    assert!(
        away.is_error && away.text.contains("cannot be reached"),
        "{away:?}"
    );
    door.open_again().await;
    let back = kubectl.call(&["get", "configmaps"]).await;
    assert!(!back.is_error && back.text.contains("to-be-seen"), "{back:?}");
}

/// A model that wants the workflow's key, and a configuration with another one.
async fn with_own_key(bench: &mut Bench, kubeconfig: &Path) -> (Mock, Secrets) {
    let replies = vec![submits(&json!({"summary": format!("the key is {KEY}")}))];
    let mock = Mock::start(Dialect::OpenAi, replies).await;
    bench.config.kubernetes.kubeconfig = Some(kubeconfig.to_owned());
    let secrets = Secrets {
        openai_api_key: Some(Secret::new(OPERATORS)),
        ..mock.secrets()
    };
    (mock, secrets)
}

fn work_with(secret: &str) -> Value {
    json!({
        "goal": "g", "tools": [],
        "llm_config": {"provider": "openai", "model": "test", "api_key_secret": secret},
    })
}

fn error_of(done: &Done) -> (StepFailure, String) {
    match &done.outcome {
        Outcome::Failed(error) => (error.reason, error.message.clone()),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn a_workflows_own_key_is_read_where_it_opted_in_and_stays_there() {
    let Some(cluster) = open("agent-own-key") else {
        return;
    };
    for (name, entries) in [
        ("llm-key", vec![format!("--from-literal=OPENAI_API_KEY={KEY}")]),
        (
            "two",
            vec![format!("--from-literal=a={KEY}"), "--from-literal=b=x".into()],
        ),
        ("private", vec![format!("--from-literal=api-key={KEY}")]),
    ] {
        let mut words = vec!["create", "secret", "generic", name];
        words.extend(entries.iter().map(String::as_str));
        cluster.kubectl(&words);
    }
    let mut bench = Bench::new().await;
    let (mock, secrets) = with_own_key(&mut bench, &runners(&cluster)).await;
    let running = bench.start(secrets);
    let within = Duration::from_secs(600);
    let namespace = cluster.namespace();
    for (namespace, secret, said) in [
        (
            namespace,
            "private",
            "`get` on `secrets` with resourceNames [private]",
        ),
        ("default", "llm-key", "the namespace must opt in"),
        (
            namespace,
            "gone",
            "does not exist: make it with `kubectl create secret",
        ),
        (
            namespace,
            "two",
            "has 2 entries and none is `OPENAI_API_KEY` or `api-key`",
        ),
    ] {
        let task = bench.hand_out_in(namespace, work_with(secret), within).await;
        let (reason, message) = error_of(&bench.done(&task).await);
        assert_eq!(reason, StepFailure::Agent);
        assert!(
            message.contains(said) && message.contains(&format!("`{namespace}`")),
            "{message}"
        );
    }
    assert_eq!(
        mock.requests().len(),
        0,
        "the operator's key was not used instead"
    );
    let task = bench.hand_out_in(namespace, work_with("llm-key"), within).await;
    let done = bench.done(&task).await;
    assert_eq!(done.outcome, Outcome::Succeeded);
    // The mock answers whoever has the key, and says what else came.
    assert_eq!(mock.problems(), Vec::<String>::new());
    let summary = output(&done)["summary"].as_str().unwrap().to_owned();
    assert!(summary.starts_with("the key is [REDACTED:own-key#"), "{summary}");
    bench.assert_no_secret().await;
    running.stop().await;
}

#[tokio::test]
async fn a_cluster_that_is_away_is_waited_for_within_the_steps_time() {
    let Some(cluster) = open("agent-away") else {
        return;
    };
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "llm-key",
        &format!("--from-literal=api-key={KEY}"),
    ]);
    let (host, port) = cluster.server();
    let door = Door::open(host, port).await;
    let mut bench = Bench::new().await;
    let kubeconfig = cluster.kubeconfig_of("runner", &door.address());
    let (mock, secrets) = with_own_key(&mut bench, &kubeconfig).await;
    let running = bench.start(secrets);
    door.shut().await;
    let namespace = cluster.namespace();
    let short = bench
        .hand_out_in(namespace, work_with("llm-key"), Duration::from_secs(6))
        .await;
    let done = bench.done(&short).await;
    let (reason, message) = error_of(&done);
    assert_eq!(reason, StepFailure::Infrastructure, "{message}");
    assert!(
        message.contains(&door.address()) && message.contains("cannot be reached"),
        "{message}"
    );
    assert!(done.completed_at < short.deadline);
    // Nobody settles this one until the server is back.
    let long = bench
        .hand_out_in(namespace, work_with("llm-key"), Duration::from_secs(600))
        .await;
    let started = async {
        while bench
            .log
            .consumer_state(&bus::topology::AGENT)
            .await
            .unwrap()
            .in_flight
            == 0
        {}
    };
    tokio::time::timeout(WITHIN, started).await.unwrap();
    door.open_again().await;
    assert_eq!(bench.done(&long).await.outcome, Outcome::Succeeded);
    assert_eq!(mock.problems(), Vec::<String>::new());
    running.stop().await;
}

#[tokio::test]
async fn without_a_cluster_only_what_needs_one_fails() {
    let mut bench = Bench::new().await;
    let nowhere = bench.dir.path().join("no-kubeconfig");
    let (mock, _) = with_own_key(&mut bench, &nowhere).await;
    bench.config.tools.kubectl_service_account = Some("investigator".into());
    let running = bench.start(mock.secrets());
    let within = Duration::from_secs(600);
    let task = bench.hand_out(work_with("llm-key"), within).await;
    let (_, message) = error_of(&bench.done(&task).await);
    assert!(
        message.contains("kubernetes.kubeconfig") && message.contains("no-kubeconfig"),
        "{message}"
    );
    let mut without = work_with("");
    without["llm_config"]
        .as_object_mut()
        .unwrap()
        .remove("api_key_secret");
    let task = bench.hand_out(without, within).await;
    assert_eq!(bench.done(&task).await.outcome, Outcome::Succeeded);
    running.stop().await;
}
