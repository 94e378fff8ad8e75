//! The OpenAPI document and the server are one: everything in it is served, nothing else is, and answers have
//! the fields it names.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::world::{World, answered, definition, group, refused, until};

const ONCE: &str = r#"{"apiVersion": "punching-fist.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "once"},
    "spec": {"steps": [{"name": "a", "type": "cli", "command": "true"}]}}"#;

/// Everything in which `value` is not what `schema` says.
pub fn differences(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return differences(
            document,
            &document["components"]["schemas"][name],
            value,
            place,
            found,
        );
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec![kind],
    };
    if !allowed.contains(&kind) {
        found.push(format!("{place} is {kind}, not {allowed:?}"));
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|words| !words.contains(value))
    {
        found.push(format!("{place} is {value}, none of {}", schema["enum"]));
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                differences(
                    document,
                    &schema["items"],
                    item,
                    &format!("{place}[{index}]"),
                    found,
                );
            }
        }
        Value::Object(fields) => {
            let known = schema["properties"].as_object();
            for name in schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if !fields.contains_key(name) {
                    found.push(format!("{place}.{name} is missing"));
                }
            }
            for (name, field) in fields {
                match known.and_then(|known| known.get(name)) {
                    Some(schema) => differences(document, schema, field, &format!("{place}.{name}"), found),
                    None if schema["additionalProperties"] == json!(false) => {
                        found.push(format!("{place}.{name} is not documented"));
                    }
                    None => {}
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_comparison_sees_differences() {
    let document = json!({ "components": { "schemas": { "A": {
        "type": "object", "properties": { "x": { "type": "integer" } }, "required": ["x"], "additionalProperties": false,
    } } } });
    let schema = json!({ "$ref": "#/components/schemas/A" });
    let check = |value: Value| {
        let mut found = Vec::new();
        differences(&document, &schema, &value, "", &mut found);
        found
    };
    assert!(check(json!({ "x": 1 })).is_empty());
    assert_eq!(check(json!({ "x": "1" })).len(), 1);
    assert_eq!(check(json!({ "y": 1 })).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_the_server_are_one() {
    let world = World::with_records("").await;
    let document = answered(world.get("/openapi.json"), 200).await;
    assert_eq!(document["openapi"], "3.1.0");

    // One of everything, to be read.
    world.apply(&definition("one", "alertmanager", "")).await;
    world
        .webhook("alertmanager", &group(&[("A", "a", "firing")]))
        .await;
    let execution = world.recorded(1).await[0].executions[0];
    let letter = protocol::DeadLetter {
        stream: "FIST_ALERTS".into(),
        seq: 1,
        subject: "fist.alerts.webhook".into(),
        written_at: protocol::Timestamp::default(),
        consumer: "ingest".into(),
        reason: "r".into(),
        deliveries: 1,
        payload: r#"{"name": "C"}"#.into(),
        payload_bytes: 13,
    };
    bus::Log::dead_letter(&world.log, letter).await.unwrap();
    let alert = until("the alert is read", || async {
        let page = answered(world.get("/api/v1/alerts"), 200).await;
        page["items"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    until("the dead letter is read", || async {
        let page = answered(world.get("/api/v1/deadletters"), 200).await;
        page["items"]
            .as_array()
            .filter(|items| !items.is_empty())
            .map(|_| ())
    })
    .await;

    let mut seen = BTreeSet::new();
    let paths = document["paths"].as_object().unwrap();
    // What deletes and ends comes last.
    let mut operations: Vec<(&str, &str, &Value)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .iter()
                .map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
        .collect();
    operations
        .sort_by_key(|(path, method, _)| (*method == "delete", path.ends_with("cancel"), path.to_owned()));
    for (path, method, operation) in operations {
        let concrete = path
            .replace("/workflows/{namespace}/{name}", "/workflows/default/one")
            .replace("/executions/{id}", &format!("/executions/{execution}"))
            .replace("/alerts/{id}", &format!("/alerts/{alert}"))
            .replace("/deadletters/{id}", "/deadletters/1")
            .replace("{source}", "webhook");
        assert!(!concrete.contains('{'), "{concrete}");
        seen.insert(path.to_owned());
        let verb = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let mut request = world
            .client
            .request(verb, format!("{}{concrete}", world.ingest.base));
        if operation["requestBody"]["required"] == json!(true) {
            let body = if path.starts_with("/webhooks") {
                r#"{"name": "B"}"#
            } else {
                ONCE
            };
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let (documented, answer) = operation["responses"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(status.to_string(), *documented, "{method} {path}");
        let (media_type, content) = answer["content"].as_object().unwrap().iter().next().unwrap();
        let given = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(
            given.starts_with(media_type.as_str()),
            "{method} {path} gives {given}"
        );
        if media_type != "application/json" {
            continue;
        }
        let body: Value = response.json().await.unwrap();
        let mut found = Vec::new();
        differences(&document, &content["schema"], &body, "", &mut found);
        assert!(found.is_empty(), "{method} {path}: {found:#?}\n{body:#}");
        // What is not documented of a path is not served.
        for other in ["get", "post", "put", "patch", "delete"] {
            if paths[path].get(other).is_none() {
                let verb = Method::from_bytes(other.to_uppercase().as_bytes()).unwrap();
                let request = world
                    .client
                    .request(verb, format!("{}{concrete}", world.ingest.base));
                let response = request.try_clone().unwrap().send().await.unwrap();
                assert!(
                    response.headers()["allow"]
                        .to_str()
                        .unwrap()
                        .contains(&method.to_uppercase()),
                    "{other} {path}"
                );
                refused(request, 405, "is not served here").await;
            }
        }
    }
    assert_eq!(seen.len(), paths.len());
    for unknown in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/executions/",
        "/api/v2/executions",
        "/metrics/x",
        "/webhooks",
        "/debug",
    ] {
        refused(world.get(unknown), 404, "/openapi.json lists what is").await;
    }
}

/// Every route of the document stands in docs/api.md, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn the_manual_has_every_route() {
    let world = World::new().await;
    let document = answered(world.get("/openapi.json"), 200).await;
    let manual = include_str!("../../../../docs/api.md");
    let mut missing = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let line = format!("`{} {path}`", method.to_uppercase());
            if !manual.contains(&line) {
                missing.push(line);
            }
        }
    }
    assert!(missing.is_empty(), "docs/api.md does not speak of {missing:#?}");
    let count = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .map(|methods| methods.as_object().unwrap().len())
        .sum::<usize>();
    let rows = manual
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter(|line| {
            ["GET ", "POST ", "DELETE "]
                .iter()
                .any(|method| line[3..].starts_with(method))
        });
    assert_eq!(
        rows.count(),
        count,
        "docs/api.md has rows for routes that are not served"
    );
}
