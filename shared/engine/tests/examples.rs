//! The examples: valid without warnings, started by the alert beside them, and rendered with it.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use engine::{
    Admitted, Format, Policy, Program, Role, admit,
    context::{self, ExecutionRoot, FinishedStep},
    filters::Matcher,
    fixgate::{self, GateContext},
    manifest::Trigger,
    program::{Gated, Work},
    template::{RenderLimits, Template},
};
use protocol::{Alert, AlertStatus, StepStatus};
use serde_json::{Value, json};

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn stems(directory: &Path, extension: &str) -> BTreeSet<String> {
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn admitted(name: &str) -> Admitted {
    let text = fs::read_to_string(examples().join(format!("{name}.yaml"))).unwrap();
    admit(&text, Format::Yaml, &Policy::default()).unwrap_or_else(|problems| {
        panic!(
            "{name}: {}",
            problems.iter().map(ToString::to_string).collect::<String>()
        )
    })
}

/// The one alert of the payload beside the example.
fn alert(name: &str) -> Alert {
    let text = fs::read_to_string(examples().join(format!("alerts/{name}.json"))).unwrap();
    let payload: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&payload["version"], &payload["status"]),
        (&json!("4"), &json!("firing")),
        "{name}"
    );
    let alerts = payload["alerts"].as_array().unwrap();
    assert_eq!(alerts.len(), 1, "{name}");
    let field = |key: &str| alerts[0][key].as_object().unwrap().clone();
    let labels = field("labels");
    let label = |key: &str| labels[key].as_str().unwrap().to_owned();
    Alert {
        source: "alertmanager".parse().unwrap(),
        name: label("alertname"),
        severity: label("severity"),
        status: AlertStatus::Firing,
        fingerprint: alerts[0]["fingerprint"].as_str().unwrap().to_owned(),
        starts_at: Some(alerts[0]["startsAt"].as_str().unwrap().parse().unwrap()),
        ends_at: None,
        annotations: field("annotations"),
        labels,
    }
}

/// What the steps leave, as far as later ones read more of it than text.
fn output(workflow: &str, step: &str, work: &Work) -> Value {
    let printed = match (workflow, step) {
        ("pod-crash-loop", "get_pod") => json!({"status": {"containerStatuses": [
            {"name": "checkout", "restartCount": 17, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
        ("disk-filling", "usage") => json!({"used_percent": 91, "free_kib": 1024, "inodes_used_percent": 12}),
        ("certificate-expiry", "certificate") => {
            json!({"host": "shop.example.com", "days_left": 12, "ends": "Mar 14 12:00:00 2026 GMT", "issuer": "x"})
        }
        ("node-not-ready", "state") => {
            json!({"ready": "Unknown", "reason": "NodeStatusUnknown", "since": "2026"})
        }
        ("database-health", "connections") => {
            json!({"used_percent": 93, "waiting_for_locks": 2, "idle_in_transaction": 1})
        }
        _ => Value::Null,
    };
    match work {
        // What an attacker could have a model write reaches the report as text.
        Work::Agent { .. } => json!({
            "summary": "It's full: $(reboot) `reboot` \"x\"", "root_cause": "a deadlock in the pool", "confidence": 0.9,
            "findings": ["END-OF-REPORT is only text within a line", "a $HOME"], "can_auto_fix": true,
            "fix_command": "kubectl rollout undo deployment/checkout", "status": "complete",
        }),
        Work::Cli(_) if printed.is_null() => {
            json!({"stdout": "OOMKilled it's $(reboot) \"text\"\n", "stderr": ""})
        }
        Work::Cli(_) => json!({"stdout": printed.to_string(), "stderr": "", "json": printed}),
        Work::Conditional { .. } => json!({"condition_met": true}),
    }
}

fn render(name: &str, step: &str, template: &Template, context: &Value, plain: bool) -> String {
    let limits = RenderLimits {
        output_bytes_max: 128 * 1024,
    };
    let rendered = if plain {
        template.render_plain(context, &limits)
    } else {
        template.render(context, &limits)
    };
    rendered.unwrap_or_else(|error| panic!("{name}, step {step}: {error}"))
}

#[test]
fn every_example_is_valid_and_rendered_with_its_alert() {
    let names = stems(&examples(), "yaml");
    assert!(names.len() >= 9, "{names:?}");
    assert_eq!(
        stems(&examples().join("alerts"), "json"),
        names,
        "each has an alert"
    );
    for name in &names {
        let admitted = admitted(name);
        let warnings: Vec<String> = admitted.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, Vec::<String>::new(), "{name}");
        assert_eq!(
            (admitted.workflow.metadata.name.as_str(), admitted.role),
            (name.as_str(), Role::Definition)
        );

        let (alert, spec) = (alert(name), &admitted.workflow.spec);
        let trigger: &Trigger = spec.trigger.as_ref().unwrap();
        Matcher::new(trigger)
            .unwrap()
            .matches("alertmanager", &alert.labels)
            .unwrap_or_else(|why| panic!("{name}: {why}"));

        let program = Program::compile(spec).unwrap();
        let input = context::input_of_alert(&alert, std::slice::from_ref(&alert));
        let mut finished: Vec<(String, Value)> = Vec::new();
        for step in &program.steps {
            let steps = finished.iter().map(|(name, output)| FinishedStep {
                name,
                status: StepStatus::Succeeded,
                output: Some(output),
            });
            let execution = ExecutionRoot {
                id: "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f",
                name,
                namespace: "default",
            };
            let context = context::build(execution, input.clone(), &BTreeMap::new(), steps);
            match &step.work {
                Work::Cli(cli) => {
                    let plain = matches!(cli.gate, Some(Gated::Suggested { .. }));
                    let command = render(name, &step.name, &cli.command, &context, plain);
                    assert!(!command.contains("{{"), "{command}");
                    for (_, value) in &cli.env {
                        render(name, &step.name, value, &context, false);
                    }
                    if cli.gate.is_some() {
                        let namespace = context::fix_namespace(&input, "default");
                        let gate = GateContext {
                            namespace,
                            provenance: None,
                        };
                        fixgate::Gate::default()
                            .check(&command, &gate)
                            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
                    }
                }
                Work::Agent { goal } => {
                    render(name, &step.name, goal, &context, false);
                }
                Work::Conditional { condition, .. } => {
                    let found = condition.evaluate(&context);
                    assert!(found.met, "{name}, step {}: {}", step.name, found.message);
                }
            }
            finished.push((step.name.clone(), output(name, &step.name, &step.work)));
        }
    }
}

#[test]
fn every_example_with_an_agent_has_turns_that_need_no_model() {
    let scripted = stems(&examples().join("scripted"), "yaml");
    let with_agent: BTreeSet<String> = stems(&examples(), "yaml")
        .into_iter()
        .filter(|name| {
            let spec = admitted(name).workflow.spec;
            spec.steps
                .iter()
                .any(|step| matches!(step.kind, engine::manifest::StepKind::Agent(_)))
        })
        .collect();
    assert_eq!(scripted, with_agent);
}
