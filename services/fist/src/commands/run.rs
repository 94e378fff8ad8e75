//! `fist run`: executes a manifest once, or invokes a definition, and follows.

use std::io::IsTerminal;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Outcome,
    follow::{Following, Lines, follow},
    get, pairs,
};
use crate::{
    args::{Output, Run},
    client::{Client, Request},
    failure::{Code, Failure},
    manifests::{self, Document},
    show,
};

/// Parts of an alert beside its labels and annotations.
const ALERT_PARTS: [&str; 5] = ["name", "severity", "status", "fingerprint", "starts_at"];

/// Does it.
pub async fn run(client: &Client, asked: &Run) -> Outcome {
    let input = input(asked)?;
    let request = match (&asked.name, &asked.file) {
        (Some(name), _) => {
            let body = json!({
                "workflow": name,
                "namespace": asked.namespace.as_deref().unwrap_or("default"),
                "input": input,
            });
            Request::post(&["api", "v1", "executions"], "application/json", body.to_string())
        }
        (None, Some(file)) => {
            let source = manifests::read(file)?;
            let document = Document {
                text: source.text,
                format: source.format,
            };
            let document = manifests::in_namespace(document, asked.namespace.as_deref())?;
            submission(&document, &input)
        }
        (None, None) => return Err(Failure::misuse("name a workflow, or a manifest with -f")),
    };
    // The key makes a repeated request the same execution.
    let request = request
        .header("idempotency-key", &Uuid::now_v7().to_string())
        .repeatable();
    // What is not admitted is never an execution that failed.
    let answer = client
        .send(&request)
        .await
        .map_err(|failure| match failure.code {
            Code::Failed => Failure {
                code: Code::Misuse,
                ..failure
            },
            _ => failure,
        })?;
    let submitted = answer.json()?;
    for warning in submitted["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        show::note(warning);
    }
    let id = submitted["id"].as_str().unwrap_or_default().to_owned();
    if asked.detach {
        match asked.output {
            Some(output @ (Output::Json | Output::Yaml | Output::Name)) => {
                get::print_document(&answer.text, output, &format!("execution/{id}"))?;
            }
            Some(Output::Wide) | None => {
                show::line(&id);
            }
        }
        if std::io::stderr().is_terminal() {
            show::aside(&format!("`fist watch {id}` follows it"));
        }
        return Ok(Code::Succeeded);
    }
    follow(
        client,
        &id,
        Following {
            lines: Lines::Stderr,
            logs: asked.logs,
            output: asked.output,
        },
    )
    .await
}

/// A manifest with its input beyond its own.
fn submission(document: &Document, input: &Value) -> Request {
    let path = ["api", "v1", "executions"];
    if input.as_object().is_none_or(Map::is_empty) {
        return Request::post(&path, document.media_type(), document.text.as_str());
    }
    // A text keeps its line numbers; JSON that cannot be read is left to admission, as a text.
    let manifest = match document.format {
        engine::admit::Format::Json => serde_json::from_str(&document.text).ok(),
        engine::admit::Format::Yaml => None,
    };
    let manifest: Value = manifest.unwrap_or_else(|| json!(document.text));
    Request::post(
        &path,
        "application/json",
        json!({ "manifest": manifest, "input": input }).to_string(),
    )
}

/// `{"source": {"data": …}, "alert": …}`, of what was given.
fn input(asked: &Run) -> Result<Value, Failure> {
    let mut data = match &asked.data_json {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => {
                return Err(Failure::misuse(
                    "--data-json must be a JSON object, such as '{\"pod\": \"web-1\"}'",
                ));
            }
            Err(error) => {
                return Err(Failure::misuse(format!(
                    "--data-json is not JSON: {error}; write it as in '{{\"pod\": \"web-1\"}}'"
                )));
            }
        },
    };
    for (key, value) in pairs("--data", &asked.data)? {
        data.insert(key.to_owned(), json!(value));
    }
    let mut input = Map::new();
    if !data.is_empty() || asked.data_json.is_some() {
        input.insert("source".to_owned(), json!({ "data": data }));
    }
    let alert = alert(&asked.alert)?;
    if !alert.is_empty() {
        input.insert("alert".to_owned(), Value::Object(alert));
    }
    Ok(Value::Object(input))
}

fn alert(given: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut alert = Map::new();
    for (key, value) in pairs("--alert", given)? {
        let nested = key
            .split_once('.')
            .filter(|(group, name)| matches!(*group, "labels" | "annotations") && !name.is_empty());
        if let Some((group, name)) = nested {
            let group = alert.entry(group).or_insert_with(|| json!({}));
            group[name] = json!(value);
        } else if ALERT_PARTS.contains(&key) {
            alert.insert(key.to_owned(), json!(value));
        } else {
            return Err(Failure::misuse(format!(
                "--alert {key}: an alert has {}, labels.KEY and annotations.KEY",
                ALERT_PARTS.join(", ")
            )));
        }
    }
    Ok(alert)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn asked(arguments: &[&str]) -> Run {
        let args = Args::try_parse_from(["fist", "run", "wf"].iter().chain(arguments)).unwrap();
        match args.command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn input_is_put_together() {
        let run = asked(&[
            "--data-json",
            r#"{"pod": "x", "n": 1}"#,
            "--data",
            "pod=web-1",
            "-d",
            "a.b=c=d",
            "--alert",
            "severity=critical",
            "--alert",
            "labels.app.kubernetes.io/name=web",
        ]);
        let expected = json!({
            "source": {"data": {"pod": "web-1", "n": 1, "a.b": "c=d"}},
            "alert": {"severity": "critical", "labels": {"app.kubernetes.io/name": "web"}},
        });
        assert_eq!(input(&run).unwrap(), expected);
        assert_eq!(input(&asked(&[])).unwrap(), json!({}));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (arguments, part) in [
            (["--data-json", "[1]"], "must be a JSON object"),
            (["--data-json", "{"], "is not JSON"),
            (["--data", "x"], "KEY=VALUE"),
            (["--alert", "pod=x"], "labels.KEY"),
            (["--alert", "labels.=x"], "labels.KEY"),
        ] {
            let failure = input(&asked(&arguments)).unwrap_err();
            assert_eq!(failure.code, Code::Misuse);
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
