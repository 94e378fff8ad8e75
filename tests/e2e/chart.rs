//! The chart and what stands beside it under `deploy/`: what Helm says to it, that copies are copies, and that
//! alerts and dashboard speak of metrics that exist.
//!
//! Helm is found, or built, by `scripts/helm`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use service::Metrics;

use crate::product::root;

/// Helm; `None`, after one loud line, where there is none and it cannot be built. With `CI` set that is a failure.
pub fn helm() -> Option<PathBuf> {
    let found = Command::new(root().join("scripts/helm")).output().unwrap();
    if found.status.success() {
        return Some(String::from_utf8_lossy(&found.stdout).trim().into());
    }
    let reason = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    eprintln!("SKIPPED: the chart was not tried: {reason}");
    None
}

/// The chart's directory.
pub fn chart() -> PathBuf {
    root().join("deploy/helm/punching-fist")
}

/// What `helm template` gives, or says as it refuses.
fn rendered(helm: &Path, values: &[&str]) -> Result<String, String> {
    templated(helm, "x", values, &[])
}

/// The accounts and rights of a release of this name, in the namespace of the same name.
pub fn rights(helm: &Path, release: &str, values: &[&str]) -> String {
    let only = ["templates/rbac.yaml", "templates/serviceaccounts.yaml"];
    let mut words = vec!["--namespace", release];
    words.extend(only.iter().flat_map(|template| ["--show-only", template]));
    templated(helm, release, values, &words).unwrap_or_else(|said| panic!("{said}"))
}

fn templated(helm: &Path, release: &str, values: &[&str], words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(helm);
    command.arg("template").arg(release).arg(chart()).args(words);
    for value in values {
        command.args(["--set", value]);
    }
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn helm_finds_nothing_to_say() {
    let Some(helm) = helm() else { return };
    let lint = Command::new(helm)
        .args(["lint", "--strict"])
        .arg(chart())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&lint.stdout);
    assert!(lint.status.success(), "{said}");
}

#[test]
fn values_that_cannot_be_meant_are_refused_by_name() {
    let Some(helm) = helm() else { return };
    for (value, named) in [
        ("ingest.replica=2", "replica"),
        ("nats.embedded.replicas=2", "replicas"),
        ("cliRunner.executor=pods", "executor"),
        ("nats.external.url=nats://u:p@host", "url"),
        ("ingest.service.port=0", "port"),
        ("nats.embedded.size=lots", "size"),
        (
            "storeWriter.replicas=2",
            "storeWriter.replicas must be 1 with SQLite",
        ),
        ("nats.embedded.enabled=false", "nats.external.url is needed"),
        ("ingest.ingress.enabled=true", "ingest.ingress.hosts is needed"),
    ] {
        let Err(said) = rendered(&helm, &[value]) else {
            panic!("{value} is taken");
        };
        assert!(said.contains(named), "{value}: {said}");
    }
}

#[test]
fn the_values_that_the_readme_recommends_are_taken() {
    let Some(helm) = helm() else { return };
    let readme = read("deploy/helm/punching-fist/README.md");
    let values = readme
        .split_once("```yaml\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(values, _)| values)
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("values.yaml");
    fs::write(&file, values).unwrap();
    let lint = Command::new(helm)
        .args(["lint", "--strict", "--values"])
        .arg(&file)
        .arg(chart())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&lint.stdout);
    assert!(lint.status.success(), "{said}");
}

#[test]
fn a_single_replica_never_keeps_a_node_from_being_drained() {
    let Some(helm) = helm() else { return };
    let budgets = |values: &[&str]| -> BTreeSet<String> {
        rendered(&helm, values)
            .unwrap()
            .split("\n---\n")
            .filter(|object| object.contains("kind: PodDisruptionBudget"))
            .filter_map(|object| {
                let name = object.lines().find(|line| line.starts_with("  name: "))?;
                Some(name.trim_start_matches("  name: x-").to_owned())
            })
            .collect()
    };
    let as_it_comes = budgets(&[]);
    let wanted = ["agent-runner", "cli-runner", "ingest", "scheduler"];
    assert_eq!(as_it_comes, wanted.map(str::to_owned).into());
    let three = budgets(&["nats.embedded.replicas=3", "scheduler.replicas=1"]);
    let wanted = ["agent-runner", "cli-runner", "ingest", "nats"];
    assert_eq!(three, wanted.map(str::to_owned).into());
}

#[test]
fn a_source_of_the_operators_own_takes_the_place_of_ours() {
    let Some(helm) = helm() else { return };
    let config = "config=[sources.alertmanager]\nkind = \"alertmanager\"\nhmac_secret_file = \"/x\"\n";
    let text = rendered(&helm, &[config]).unwrap();
    assert_eq!(text.matches("[sources.alertmanager]").count(), 1, "{text}");
    assert_eq!(text.matches("[sources.webhook]").count(), 1, "{text}");
}

#[test]
fn what_is_generated_is_what_is_checked_in() {
    if helm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new(root().join("scripts/generate-deploy"))
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut compared = 0;
    let mut open = vec![directory.path().to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let relative = path.strip_prefix(directory.path()).unwrap();
            let checked_in = fs::read_to_string(root().join("deploy").join(relative)).unwrap_or_default();
            assert!(
                fs::read_to_string(&path).unwrap() == checked_in,
                "deploy/{} is not what `make generate` writes",
                relative.display()
            );
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared}");
}

/// Every name of a metric of ours, as Prometheus has it.
fn metrics() -> BTreeSet<String> {
    let metrics = Metrics::new();
    let second = Duration::from_secs(1);
    // Whatever has no sample is not shown at all.
    metrics.alert("a", "started");
    metrics.execution_started("a");
    metrics.execution_ended("Failed");
    metrics.step_ended("cli", "Failed", second);
    metrics.queue("cli", 1, second);
    metrics.delivery("cli", 2);
    metrics.dead_letter("cli");
    metrics.http_request("/", "GET", 200, second);
    metrics.llm_request("a", "b", "ok", second);
    metrics.llm_tokens("a", "b", service::metrics::Tokens::default());
    metrics.budget_tokens_used("a", 1);
    metrics.tool_call("a", "ok", second);
    metrics.projection_lag(1, second);
    metrics.stream_filled("FIST_LOG", 0.5);
    metrics.projection_batch(1, 1, second);
    let _running = metrics.step_running("cli");
    metrics
        .encode()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(str::to_owned)
        .collect()
}

fn named_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("fist_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn alerts_and_dashboard_speak_of_metrics_that_exist() {
    let there = metrics();
    for path in [
        "deploy/prometheus/punching-fist.rules.yaml",
        "deploy/grafana/punching-fist.json",
    ] {
        let named = named_in(&read(path));
        assert!(named.len() > 8, "{path}: {named:#?}");
        let unknown: Vec<_> = named.difference(&there).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:#?}, beside {there:#?}");
    }
}

#[test]
fn the_dashboard_can_be_read() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/punching-fist.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels.iter().filter_map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        assert!(panel["description"].is_string(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(
            targets
                .iter()
                .all(|target| target["expr"].as_str().is_some_and(|expr| expr.contains("fist_"))),
            "{title}"
        );
    }
}

/// The lines of the rules with this key.
fn of_rules(key: &str) -> Vec<String> {
    let text = read("deploy/prometheus/punching-fist.rules.yaml");
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(key))
        .map(|value| value.trim().to_owned())
        .collect()
}

#[test]
fn every_alert_says_what_to_do() {
    let alerts = of_rules("- alert:");
    let runbook = read("docs/operations.md");
    for key in [
        "for:",
        "labels: {severity:",
        "summary:",
        "description:",
        "runbook_url:",
    ] {
        assert_eq!(of_rules(key).len(), alerts.len(), "each alert has {key}");
    }
    for (alert, url) in alerts.iter().zip(of_rules("runbook_url:")) {
        let anchor = format!("docs/operations.md#{}", alert.to_lowercase());
        assert_eq!(url, anchor);
        assert!(
            runbook.lines().any(|line| line == format!("### {alert}")),
            "docs/operations.md has no section {alert}"
        );
    }
}

#[test]
fn alerts_fire_when_they_should_and_not_before() {
    for words in [
        ["check", "rules", "deploy/prometheus/punching-fist.rules.yaml"],
        ["test", "rules", "tests/e2e/punching-fist.rules.test.yaml"],
    ] {
        let output = match Command::new("promtool").args(words).current_dir(root()).output() {
            Ok(output) => output,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "no promtool: {error}");
                eprintln!("SKIPPED: alert rules were not tried, since promtool cannot be run: {error}");
                return;
            }
        };
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {words:?}: {said}");
    }
}
