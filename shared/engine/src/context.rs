//! What templates and conditions can see: `source`, `alert`, `steps`, `env`, `execution`.
//!
//! Invariants:
//! - These five roots and nothing else; nothing of the process, its files or its environment.
//! - An alert's severity is lower case, however it was written.
//! - Convenience keys (labels under `source.data`, an output's keys under the step) never hide what
//!   stands there by right.

use std::collections::BTreeMap;

use protocol::alerts::Alert;
use protocol::facts::Input;
use protocol::lane::StepStatus;
use serde_json::{Map, Value, json};

/// Of a group of alerts so many reach `source.data.alerts`.
pub const GROUP_ALERTS_MAX: usize = 100;
/// Under this name `source.data` says how many alerts of the group are not among `alerts`.
pub const ALERTS_CUT: &str = "alerts_cut";

/// Which execution it is, as `execution.*`.
#[derive(Debug, Clone, Copy)]
pub struct ExecutionRoot<'a> {
    /// Its id.
    pub id: &'a str,
    /// The workflow's name, which is also the execution's.
    pub name: &'a str,
    /// Where it belongs.
    pub namespace: &'a str,
}

/// A step that is over, as `steps.<name>`.
#[derive(Debug, Clone, Copy)]
pub struct FinishedStep<'a> {
    /// Its name, as written.
    pub name: &'a str,
    /// How it ended.
    pub status: StepStatus,
    /// What it left.
    pub output: Option<&'a Value>,
}

/// The context of an execution, as one value with the five roots.
#[must_use]
pub fn build<'a>(
    execution: ExecutionRoot<'_>,
    input: Input,
    env: &BTreeMap<String, String>,
    steps: impl IntoIterator<Item = FinishedStep<'a>>,
) -> Value {
    // The macro would copy the input.
    let mut source = Map::new();
    source.insert("data".to_owned(), Value::Object(input.data));
    let mut roots = Map::new();
    roots.insert("source".to_owned(), Value::Object(source));
    roots.insert("alert".to_owned(), Value::Object(input.alert.unwrap_or_default()));
    roots.insert("steps".to_owned(), steps_root(steps));
    roots.insert("env".to_owned(), json!(env));
    roots.insert(
        "execution".to_owned(),
        json!({"id": execution.id, "name": execution.name, "namespace": execution.namespace}),
    );
    Value::Object(roots)
}

/// Puts other steps in the place of those that `context` shows; its other roots stay.
pub fn set_steps<'a>(context: &mut Value, steps: impl IntoIterator<Item = FinishedStep<'a>>) {
    if let Value::Object(roots) = context {
        roots.insert("steps".to_owned(), steps_root(steps));
    }
}

fn steps_root<'a>(steps: impl IntoIterator<Item = FinishedStep<'a>>) -> Value {
    let steps = steps
        .into_iter()
        .map(|step| (step.name.to_owned(), step_root(&step)));
    Value::Object(steps.collect())
}

/// `status`, `output`, and the output's own keys beside them.
fn step_root(step: &FinishedStep<'_>) -> Value {
    let mut root = Map::new();
    root.insert("status".to_owned(), step.status.as_str().into());
    let output = match step.output {
        Some(Value::Object(own)) => {
            let mut output = own.clone();
            if let Some(Value::Object(json)) = own.get("json") {
                add_missing(&mut output, json);
            }
            root.insert("output".to_owned(), Value::Null);
            add_missing(&mut root, own);
            Value::Object(output)
        }
        Some(other) => other.clone(),
        None => Value::Object(Map::new()),
    };
    root.insert("output".to_owned(), output);
    Value::Object(root)
}

fn add_missing(to: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        if !to.contains_key(key) {
            to.insert(key.clone(), value.clone());
        }
    }
}

/// The input that an alert gives an execution: its labels flattened, plus `labels`, `annotations`,
/// and the group that it came with under `alerts`; where that is cut, [`ALERTS_CUT`] says by how many.
#[must_use]
pub fn input_of_alert(alert: &Alert, group: &[Alert]) -> Input {
    let mut data = alert.labels.clone();
    let cut = group.len().saturating_sub(GROUP_ALERTS_MAX);
    let group: Vec<Value> = group
        .iter()
        .take(GROUP_ALERTS_MAX)
        .map(|alert| Value::Object(alert_root(alert)))
        .collect();
    data.insert("labels".to_owned(), Value::Object(alert.labels.clone()));
    data.insert("annotations".to_owned(), Value::Object(alert.annotations.clone()));
    data.insert("alerts".to_owned(), Value::Array(group));
    if cut > 0 {
        data.insert(ALERTS_CUT.to_owned(), cut.into());
    }
    Input {
        data,
        alert: Some(alert_root(alert)),
    }
}

/// An alert as `alert.*`.
#[must_use]
pub fn alert_root(alert: &Alert) -> Map<String, Value> {
    let mut root = Map::new();
    root.insert("name".to_owned(), alert.name.as_str().into());
    root.insert("severity".to_owned(), alert.severity.to_lowercase().into());
    root.insert("status".to_owned(), alert.status.as_str().into());
    root.insert("labels".to_owned(), Value::Object(alert.labels.clone()));
    root.insert("annotations".to_owned(), Value::Object(alert.annotations.clone()));
    root.insert("fingerprint".to_owned(), alert.fingerprint.as_str().into());
    if let Some(starts_at) = &alert.starts_at {
        root.insert("starts_at".to_owned(), starts_at.to_string().into());
    }
    root
}

/// An alert that a person wrote, by annotation, `--alert` or API: the severity in lower case, the
/// rest as it stands.
#[must_use]
pub fn written_alert(mut written: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::String(severity)) = written.get_mut("severity") {
        *severity = severity.to_lowercase();
    }
    written
}

/// The namespace in which an execution's fixes belong: the alert's label `namespace`, else the
/// workflow's.
#[must_use]
pub fn fix_namespace<'a>(input: &'a Input, workflow_namespace: &'a str) -> &'a str {
    input
        .alert
        .as_ref()
        .and_then(|alert| alert.get("labels"))
        .and_then(|labels| labels.get("namespace"))
        .and_then(Value::as_str)
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or(workflow_namespace)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;
    use protocol::alerts::AlertStatus;
    use protocol::ids::SourceName;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_alert_becomes_input_and_roots() {
        let alert = Alert {
            source: SourceName::new("alertmanager").unwrap(),
            name: "PodCrash".into(),
            severity: "Critical".into(),
            status: AlertStatus::Firing,
            fingerprint: "f1".into(),
            starts_at: None,
            ends_at: None,
            labels: object(json!({"pod": "web-1", "labels": "shadow", "namespace": "prod"})),
            annotations: object(json!({"summary": "down"})),
        };
        let input = input_of_alert(&alert, std::slice::from_ref(&alert));
        assert_eq!(fix_namespace(&input, "default"), "prod");
        assert_eq!(input.data.get(ALERTS_CUT), None);
        let group = vec![alert.clone(); GROUP_ALERTS_MAX + 2];
        assert_eq!(input_of_alert(&alert, &group).data[ALERTS_CUT], 2);
        let output = json!({
            "stdout": "{…}", "exit_code": 0, "status": "hidden",
            "json": {"name": "web", "stdout": "not this"},
        });
        let context = build(
            ExecutionRoot {
                id: "e1",
                name: "w",
                namespace: "default",
            },
            input,
            &BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            [
                FinishedStep {
                    name: "get-pod",
                    status: StepStatus::Succeeded,
                    output: Some(&output),
                },
                FinishedStep {
                    name: "later",
                    status: StepStatus::Skipped,
                    output: None,
                },
            ],
        );
        expect![[r#"
            {
              "source": {
                "data": {
                  "pod": "web-1",
                  "labels": {
                    "pod": "web-1",
                    "labels": "shadow",
                    "namespace": "prod"
                  },
                  "namespace": "prod",
                  "annotations": {
                    "summary": "down"
                  },
                  "alerts": [
                    {
                      "name": "PodCrash",
                      "severity": "critical",
                      "status": "firing",
                      "labels": {
                        "pod": "web-1",
                        "labels": "shadow",
                        "namespace": "prod"
                      },
                      "annotations": {
                        "summary": "down"
                      },
                      "fingerprint": "f1"
                    }
                  ]
                }
              },
              "alert": {
                "name": "PodCrash",
                "severity": "critical",
                "status": "firing",
                "labels": {
                  "pod": "web-1",
                  "labels": "shadow",
                  "namespace": "prod"
                },
                "annotations": {
                  "summary": "down"
                },
                "fingerprint": "f1"
              },
              "steps": {
                "get-pod": {
                  "status": "Succeeded",
                  "output": {
                    "stdout": "{…}",
                    "exit_code": 0,
                    "status": "hidden",
                    "json": {
                      "name": "web",
                      "stdout": "not this"
                    },
                    "name": "web"
                  },
                  "stdout": "{…}",
                  "exit_code": 0,
                  "json": {
                    "name": "web",
                    "stdout": "not this"
                  }
                },
                "later": {
                  "status": "Skipped",
                  "output": {}
                }
              },
              "env": {
                "A": "1"
              },
              "execution": {
                "id": "e1",
                "name": "w",
                "namespace": "default"
              }
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&context).unwrap());
    }

    #[test]
    fn a_written_alert_has_its_severity_in_lower_case() {
        let alert = written_alert(object(json!({"name": "X", "severity": "WARNING"})));
        assert_eq!(alert["severity"], "warning");
        let input = Input {
            data: Map::new(),
            alert: Some(alert),
        };
        assert_eq!(fix_namespace(&input, "team-a"), "team-a");
    }
}
