//! The compose stack on a real Docker daemon: everything healthy in time, a rule of the real Prometheus that ends in
//! a stored report, and every service killed in turn with an execution in flight.
//!
//! | variable | |
//! |---|---|
//! | `DOCKER_HOST` | the daemon; unset: the test is skipped, and with `CI` set it fails; `none`: it is skipped |
//! | `TEST_IMAGE`, `TEST_AGENT_IMAGE` | the images, `punching-fist:test` and `punching-fist-agent:test`; where the daemon lacks one, both are built under these last names |
//! | `DOCKER_BUILD_ARGS` | see `scripts/images` |
//!
//! Invariant: the project has a name and ports of its own, and goes with its volumes when the test ends, also by a
//! panic.

use std::{
    fs,
    future::Future,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::product::{free_port, root};

/// Within which everything is healthy once the images are there.
const HEALTHY: Duration = Duration::from_secs(60);
/// For anything else. A command in hand is given to another runner after some tens of seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// For the first build of the images.
const BUILD: Duration = Duration::from_secs(3600);
const SERVICES: [&str; 9] = [
    "ingest",
    "scheduler",
    "cli-runner",
    "agent-runner",
    "store-writer",
    "nats",
    "postgres",
    "prometheus",
    "alertmanager",
];

struct Stack {
    variables: Vec<(&'static str, String)>,
    project: String,
    address: String,
    client: reqwest::Client,
}

/// Whether there is a daemon; after one loud line, where there is none.
fn has_daemon(test: &str) -> bool {
    let named = std::env::var("DOCKER_HOST").unwrap_or_default();
    if !named.is_empty() && named != "none" {
        return true;
    }
    assert!(
        named == "none" || std::env::var_os("CI").is_none(),
        "DOCKER_HOST names no daemon, and CI is set; say `none` to go on without one"
    );
    eprintln!("SKIPPED: {test}, because DOCKER_HOST names no daemon");
    false
}

async fn run(command: &mut Command, within: Duration) -> Result<String, String> {
    let shown = format!("{:?}", command.as_std());
    let running = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .current_dir(root())
        .output();
    let output: Output = timeout(within, running)
        .await
        .map_err(|_| format!("not within {within:?}: {shown}"))?
        .map_err(|error| format!("{shown}: {error}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.success() {
        Ok(out.into_owned())
    } else {
        Err(format!("{shown}: {}\n{out}{err}", output.status))
    }
}

/// The images that are to be tested, built where they are not there.
async fn images() -> [String; 2] {
    let named = ["TEST_IMAGE", "TEST_AGENT_IMAGE"].map(|variable| std::env::var(variable).ok());
    let built = ["punching-fist:test", "punching-fist-agent:test"].map(str::to_owned);
    if let [Some(services), Some(agent)] = named {
        let inspected = run(
            Command::new("docker").args(["image", "inspect", &services, &agent]),
            PATIENCE,
        )
        .await;
        if inspected.is_ok() {
            return [services, agent];
        }
        eprintln!("{services} and {agent} are not both there: building");
    }
    run(
        Command::new(root().join("scripts/images")).args(["--tag", "test"]),
        BUILD,
    )
    .await
    .unwrap_or_else(|error| panic!("{error}"));
    built
}

impl Stack {
    async fn start() -> Self {
        service::install_crypto();
        let [services, agent] = images().await;
        let project = format!("fist-test-{}", std::process::id());
        let port = free_port();
        let stack = Self {
            variables: vec![
                ("COMPOSE_PROJECT_NAME", project.clone()),
                // One's own settings would change the test.
                ("COMPOSE_DISABLE_ENV_FILE", "1".to_owned()),
                ("COMPOSE_FILE", "docker-compose.yml".to_owned()),
                ("FIST_IMAGE", services),
                ("FIST_AGENT_IMAGE", agent),
                ("FIST_HTTP_PORT", port.to_string()),
                ("PROMETHEUS_PORT", free_port().to_string()),
                ("ALERTMANAGER_PORT", free_port().to_string()),
                ("FIST_TOKEN", String::new()),
                ("ANTHROPIC_API_KEY", String::new()),
                ("OPENAI_API_KEY", String::new()),
            ],
            project,
            address: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(20))
                .build()
                .unwrap(),
        };
        // What is pulled is no part of the time to become healthy.
        if let Err(error) = stack.compose(&["create", "--no-build"], BUILD).await {
            panic!("{error}");
        }
        stack.up(HEALTHY).await;
        stack
    }

    async fn compose(&self, words: &[&str], within: Duration) -> Result<String, String> {
        let mut command = Command::new("docker");
        command
            .arg("compose")
            .args(words)
            .envs(self.variables.iter().cloned());
        run(&mut command, within).await
    }

    /// Starts what does not run, and waits until everything is healthy.
    async fn up(&self, within: Duration) {
        let began = Instant::now();
        if let Err(error) = self
            .compose(&["up", "--detach", "--no-build", "--wait"], within)
            .await
        {
            panic!("{error}\n{}", self.last_words().await);
        }
        eprintln!("healthy after {:.1} s", began.elapsed().as_secs_f64());
    }

    async fn kill(&self, service: &str) {
        if let Err(error) = self.compose(&["kill", service], PATIENCE).await {
            panic!("{error}");
        }
    }

    async fn last_words(&self) -> String {
        let words = self
            .compose(&["logs", "--no-color", "--tail", "15"], PATIENCE)
            .await;
        words.unwrap_or_else(|error| error)
    }

    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        loop {
            interval.tick().await;
            if let Some(found) = look().await {
                return found;
            }
            if Instant::now() > deadline {
                panic!("not within {PATIENCE:?}: {what}\n{}", self.last_words().await);
            }
        }
    }

    async fn text(&self, path: &str) -> Option<String> {
        let answer = self
            .client
            .get(format!("{}{path}", self.address))
            .send()
            .await
            .ok()?;
        let answer = answer.error_for_status().ok()?;
        answer.text().await.ok()
    }

    async fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.text(path).await?).ok()
    }

    /// Posts until it is taken, as every client does on 503 or a broken connection.
    async fn post(&self, path: &str, key: &str, body: &str) -> Value {
        self.until(&format!("POST {path} is taken"), || async {
            let request = self
                .client
                .post(format!("{}{path}", self.address))
                .header("content-type", "application/yaml")
                .header("idempotency-key", key)
                .body(body.to_owned());
            let answer = request.send().await.ok()?;
            let status = answer.status();
            let text = answer.text().await.ok()?;
            assert!(
                status.is_success() || status.is_server_error(),
                "{status}: {text}"
            );
            status
                .is_success()
                .then(|| serde_json::from_str(&text).unwrap_or(Value::Null))
        })
        .await
    }

    /// The execution, once it has ended and is in the database.
    async fn ended(&self, id: &str) -> Value {
        self.until(&format!("execution {id} has ended"), || async {
            let execution = self.get(&format!("/api/v1/executions/{id}")).await?;
            let status = execution["status"].as_str()?;
            ["Succeeded", "Failed", "Cancelled"]
                .contains(&status)
                .then_some(execution)
        })
        .await
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let ended = std::process::Command::new("docker")
            .args([
                "compose",
                "down",
                "--volumes",
                "--remove-orphans",
                "--timeout",
                "2",
            ])
            .envs(self.variables.iter().cloned())
            .current_dir(root())
            .output();
        if !ended.is_ok_and(|output| output.status.success()) {
            eprintln!("the compose project {} is not removed", self.project);
        }
    }
}

/// The stack's own workflow, its agent with turns from the file that the stack brings.
fn service_down() -> String {
    let text = fs::read_to_string(root().join("deploy/compose/workflows/service-down.yaml")).unwrap();
    let scripted = "spec:\n  runtime:\n    llm_config: {provider: scripted, model: service-down}\n";
    assert!(text.contains("\nspec:\n"));
    text.replacen("spec:\n", scripted, 1)
}

/// All three types of steps, and long enough that somebody is killed in the midst.
fn in_flight(victim: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {{name: while-{victim}-is-killed}}
spec:
  runtime:
    llm_config: {{provider: scripted, model: service-down}}
  steps:
    - name: first
      type: cli
      timeout_minutes: 5
      command: sleep 2; id -u; touch /usr/here 2>/dev/null || echo read-only; kubectl version --client >/dev/null && echo kubectl
    - name: is-kubectl
      type: conditional
      condition: steps.first.output.stdout contains kubectl
    - name: look
      type: agent
      timeout_minutes: 5
      goal: What about service={victim}?
      tools: [promql]
    - name: last
      type: cli
      timeout_minutes: 5
      command: echo {{{{ steps.look.output.summary }}}}
"
    )
}

#[tokio::test]
async fn a_rule_ends_in_a_report_and_whoever_is_killed_nothing_is_lost() {
    if !has_daemon("compose") {
        return;
    }
    let stack = Stack::start().await;
    published_on_this_machine_only(&stack).await;
    a_rule_of_prometheus_ends_in_a_stored_report(&stack).await;
    for victim in SERVICES {
        an_execution_in_flight_ends(&stack, victim).await;
    }
    nothing_is_lost(&stack).await;
}

async fn published_on_this_machine_only(stack: &Stack) {
    let running = stack.compose(&["config", "--format", "json"], PATIENCE).await;
    let config: Value = serde_json::from_str(&running.unwrap()).unwrap();
    let ports: Vec<&Value> = config["services"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(|service| service["ports"].as_array())
        .flatten()
        .collect();
    assert_eq!(ports.len(), 3, "{ports:#?}");
    assert!(
        ports.iter().all(|port| port["host_ip"] == "127.0.0.1"),
        "{ports:#?}"
    );
}

/// The service that writes the records goes away. Nobody tells; Prometheus finds out, and the workflow runs without
/// the database.
async fn a_rule_of_prometheus_ends_in_a_stored_report(stack: &Stack) {
    stack.post("/api/v1/workflows", "", &service_down()).await;
    stack.kill("store-writer").await;
    stack
        .until("an alert has started an execution", || async {
            let metrics = stack.text("/metrics").await?;
            let started = r#"fist_alerts_total{source="alertmanager",disposition="started"} "#;
            metrics.contains(started).then_some(())
        })
        .await;
    stack.up(PATIENCE).await;
    let id = stack
        .until("the execution is recorded", || async {
            let list = stack.get("/api/v1/executions?workflow=service-down").await?;
            list["items"][0]["id"].as_str().map(str::to_owned)
        })
        .await;
    let execution = stack.ended(&id).await;
    assert_eq!(execution["status"], "Succeeded", "{execution:#}");
    assert_eq!(execution["trigger_source"], "alertmanager", "{execution:#}");
    let report = execution["outputs"]["steps"]["report"]["stdout"]
        .as_str()
        .unwrap();
    assert!(
        report.contains("The alert is about store-writer"),
        "{execution:#}"
    );
    let found = &execution["outputs"]["steps"]["investigate"];
    assert_eq!(found["evidence"][0]["grounded"], true, "{execution:#}");
}

async fn an_execution_in_flight_ends(stack: &Stack, victim: &str) {
    let began = Instant::now();
    let accepted = stack.post("/api/v1/executions", victim, &in_flight(victim)).await;
    let id = accepted["id"].as_str().unwrap();
    stack
        .until("the execution is at work", || async {
            let progress = stack.get(&format!("/api/v1/executions/{id}/progress")).await?;
            (progress["current_step"] == "first").then_some(())
        })
        .await;
    stack.kill(victim).await;
    stack.up(PATIENCE).await;
    let execution = stack.ended(id).await;
    let context = format!("{victim} was killed: {execution:#}");
    assert_eq!(execution["status"], "Succeeded", "{context}");
    let steps = execution["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{context}");
    assert!(
        steps
            .iter()
            .all(|step| step["type"] == "conditional" || step["attempt"] == 1),
        "{context}"
    );
    assert_eq!(
        steps[0]["output"]["stdout"], "65532\nread-only\nkubectl\n",
        "{context}"
    );
    assert!(
        steps[3]["output"]["stdout"].as_str().unwrap().contains(victim),
        "{context}"
    );
    eprintln!("{victim}: {:.1} s", began.elapsed().as_secs_f64());
}

async fn nothing_is_lost(stack: &Stack) {
    let audit = stack
        .until("the balance of alerts holds", || async {
            let audit = stack.get("/api/v1/alerts/audit").await?;
            (audit["balanced"] == true).then_some(audit)
        })
        .await;
    assert!(audit["dispositions"]["started"].as_u64() >= Some(1), "{audit:#}");
    let letters = stack.get("/api/v1/deadletters").await.unwrap();
    assert_eq!(letters["items"], serde_json::json!([]), "{letters:#}");
    for victim in SERVICES {
        let path = format!("/api/v1/executions?workflow=while-{victim}-is-killed");
        let list = stack.get(&path).await.unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{victim}: {list:#}");
    }
}

#[test]
fn the_example_of_settings_has_the_defaults() {
    let compose = fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let example = fs::read_to_string(root().join(".env.example")).unwrap();
    let mut missing = Vec::new();
    for setting in compose.split("${").skip(1) {
        let setting = setting.split('}').next().unwrap();
        let (name, default) = setting.split_once(":-").expect("every setting has a default");
        // These are for who builds images elsewhere.
        let is_special = ["FIST_VERSION", "FIST_REVISION", "FIST_IMAGE", "FIST_AGENT_IMAGE"].contains(&name);
        let line = format!("{name}={default}");
        if !is_special && !example.lines().any(|found| found == line) {
            missing.push(line);
        }
    }
    assert!(missing.is_empty(), ".env.example lacks: {missing:#?}");
}
