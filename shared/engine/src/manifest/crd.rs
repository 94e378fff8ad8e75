//! The Workflow as a CustomResourceDefinition, made of the same types that the parser reads.
//!
//! Invariants:
//! - There is no second list of fields: what the types gain appears here by itself, in both spellings.
//! - The schema is structural, so the API server prunes and refuses what it does not know.
//! - What rules can say here they say with the field's name; everything else is the validator's, and is reported
//!   in the object's status.

use serde_json::{Map, Value, json};

use super::fields::schema;
use super::object::camel_case;
use super::read::{AGENT_FIELDS, CLI_FIELDS, CONDITIONAL_FIELDS, STEPS_MAX};

/// API group.
const GROUP: &str = "punching-fist.io";

/// Fields of a step that only one type has, in the order of the types.
const OF_TYPE: [(&str, &[&str]); 3] = [
    ("cli", &CLI_FIELDS),
    ("agent", &AGENT_FIELDS),
    ("conditional", &CONDITIONAL_FIELDS),
];

/// The definition, for `kubectl apply`.
#[must_use]
pub fn crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("workflows.{GROUP}") },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "Workflow",
                "listKind": "WorkflowList",
                "plural": "workflows",
                "singular": "workflow",
                "shortNames": ["fwf"],
                "categories": ["punching-fist"],
            },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(),
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": "Which steps to take, and for which alerts. With a trigger, or templates that read an alert, it is a definition; any other is executed once, when it is created.",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": spec(),
                        "status": status(),
                    },
                } },
            }],
        },
    })
}

fn columns() -> Value {
    let column = |name: &str, kind: &str, path: &str, priority: u8| json!({ "name": name, "type": kind, "jsonPath": path, "priority": priority });
    json!([
        column("Phase", "string", ".status.phase", 0),
        column("Steps", "string", ".status.steps", 0),
        column("Step", "string", ".status.currentStep", 0),
        column("Runs", "integer", ".status.runs", 0),
        column("Last", "string", ".status.lastRun.phase", 0),
        column("Started", "date", ".status.startTime", 0),
        column("Completed", "date", ".status.completionTime", 0),
        column("Age", "date", ".metadata.creationTimestamp", 0),
        column("Execution", "string", ".status.executionId", 1),
        column("Error", "string", ".status.lastError", 1),
    ])
}

fn spec() -> Value {
    let mut spec = structural(&schema()["properties"]["spec"]);
    let steps = &mut spec["properties"]["steps"];
    steps["minItems"] = json!(1);
    steps["maxItems"] = json!(STEPS_MAX);
    // Two steps of one name are refused as duplicates.
    steps["x-kubernetes-list-type"] = json!("map");
    steps["x-kubernetes-list-map-keys"] = json!(["name"]);
    let step = &mut steps["items"];
    step["properties"]["name"]["pattern"] = json!("^[A-Za-z0-9_-]+$");
    step["properties"]["name"]["maxLength"] = json!(128);
    for rule in step_rules() {
        push_rule(step, rule);
    }
    spec
}

/// What one step must be, rule by rule.
fn step_rules() -> Vec<Value> {
    let has = |field: &str| match camel_case(field) {
        camel if camel == field => format!("has(self.{field})"),
        camel => format!("has(self.{field}) || has(self.{camel})"),
    };
    let mut rules = Vec::new();
    for (step_type, needed, remedy) in [
        ("cli", "command", "it is what a cli step runs"),
        ("agent", "goal", "it is what an agent step is to find out"),
        (
            "conditional",
            "condition",
            "it is what a conditional step decides",
        ),
    ] {
        rules.push(json!({
            "rule": format!("self.type != '{step_type}' || has(self.{needed})"),
            "message": format!("{needed} is missing; {remedy}"),
        }));
    }
    for (step_type, fields) in OF_TYPE {
        for field in fields {
            rules.push(json!({
                "rule": format!("self.type == '{step_type}' || !({})", has(field)),
                "message": format!("{field} is a field of {step_type} steps"),
            }));
        }
    }
    rules.push(json!({
        "rule": format!("!(({}) && ({}))", has("timeout_minutes"), has("timeout_seconds")),
        "message": "give timeout_minutes or timeout_seconds, not both",
    }));
    rules
}

fn push_rule(schema: &mut Value, rule: Value) {
    match schema
        .get_mut("x-kubernetes-validations")
        .and_then(Value::as_array_mut)
    {
        Some(rules) => rules.push(rule),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
}

/// A JSON Schema as the API server takes it, with every field in both spellings.
fn structural(schema: &Value) -> Value {
    let schema = non_null(schema);
    let mut made = Map::new();
    if let Some(doc) = schema.get("description").and_then(Value::as_str) {
        made.insert(
            "description".into(),
            doc.split_whitespace().collect::<Vec<_>>().join(" ").into(),
        );
    }
    let words = closed_set(schema);
    if !words.is_empty() {
        made.insert("type".into(), "string".into());
        made.insert("enum".into(), words.into());
        return Value::Object(made);
    }
    let name = type_name(schema);
    made.insert("type".into(), name.into());
    for limit in ["minimum", "maximum", "pattern", "minLength", "maxLength"] {
        if let Some(value) = schema.get(limit) {
            made.insert(limit.into(), whole(value));
        }
    }
    if let Some(items) = schema.get("items") {
        made.insert("items".into(), structural(items));
    }
    if let Some(values) = schema
        .get("additionalProperties")
        .filter(|values| values.is_object())
    {
        made.insert("additionalProperties".into(), structural(values));
    }
    let mut twins = Vec::new();
    if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
        let mut both = Map::new();
        for (field, written) in fields {
            let camel = camel_case(field);
            let mut made = structural(written);
            // Kubernetes' quantities may be written as numbers.
            if matches!(field.as_str(), "requests" | "limits") {
                made["additionalProperties"] = json!({ "x-kubernetes-int-or-string": true });
            }
            if camel != *field {
                both.insert(camel.clone(), made.clone());
                twins.push((field.clone(), camel));
            }
            both.insert(field.clone(), made);
        }
        made.insert("properties".into(), Value::Object(both));
    }
    if let Some(required) = schema
        .get("required")
        .filter(|names| names.as_array().is_some_and(|names| !names.is_empty()))
    {
        made.insert("required".into(), required.clone());
    }
    let mut made = Value::Object(made);
    for (field, camel) in twins {
        let rule = json!({
            "rule": format!("!(has(self.{field}) && has(self.{camel}))"),
            "message": format!("{field} stands twice, as {field} and {camel}; keep one"),
        });
        push_rule(&mut made, rule);
    }
    made
}

/// A limit without the `.0` of a float, which the API server would print differently.
fn whole(value: &Value) -> Value {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
        _ => value.clone(),
    }
}

fn non_null(schema: &Value) -> &Value {
    let Some(choices) = schema.get("anyOf").and_then(Value::as_array) else {
        return schema;
    };
    let is_null = |choice: &&Value| choice.get("type") == Some(&Value::from("null"));
    choices.iter().find(|choice| !is_null(choice)).unwrap_or(schema)
}

fn type_name(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(name)) => name,
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null")
            .unwrap_or("object"),
        _ => "object",
    }
}

/// The words of a closed set, in both spellings.
fn closed_set(schema: &Value) -> Vec<Value> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str| {
        for spelling in [word.to_owned(), camel_case(word)] {
            if !words.contains(&spelling) {
                words.push(spelling);
            }
        }
    };
    let listed = schema.get("enum").and_then(Value::as_array);
    let choices = schema.get("oneOf").and_then(Value::as_array);
    for word in listed.into_iter().flatten().filter_map(Value::as_str) {
        add(word);
    }
    for choice in choices.into_iter().flatten() {
        let several = choice.get("enum").and_then(Value::as_array);
        for word in choice
            .get("const")
            .into_iter()
            .chain(several.into_iter().flatten())
            .filter_map(Value::as_str)
        {
            add(word);
        }
    }
    words.into_iter().map(Value::from).collect()
}

/// What ingest writes there: summaries only.
fn status() -> Value {
    let text = |doc: &str| json!({ "type": "string", "description": doc });
    let time = |doc: &str| json!({ "type": "string", "format": "date-time", "description": doc });
    let count = |doc: &str| json!({ "type": "integer", "minimum": 0, "description": doc });
    let run = || {
        json!({
            "type": "object",
            "properties": {
                "executionId": text("The execution's id."),
                "phase": text("How it stands: Running, Succeeded, Failed or Cancelled."),
                "startTime": time("When its first step began."),
                "completionTime": time("When it ended."),
                "error": text("Why it did not succeed."),
            },
        })
    };
    let mut recent = run();
    recent["description"] = json!("One run.");
    json!({
        "type": "object",
        "description": "Written by ingest.",
        "properties": {
            "phase": text("Of an execution: Pending, Running, Succeeded, Failed or Cancelled. Of a definition: Ready or Suspended. Of what is not valid: Invalid."),
            "executionId": text("The execution of this object."),
            "currentStep": text("The step that runs."),
            "stepsCompleted": count("Steps that are over."),
            "totalSteps": count("Steps that the workflow has."),
            "steps": text("Completed of total, for people."),
            "startTime": time("When its first step began."),
            "completionTime": time("When it ended."),
            "lastError": text("Why it did not succeed."),
            "runs": count("Of a definition: executions that it started, as far as they were seen."),
            "lastRun": run(),
            "recentRuns": { "type": "array", "maxItems": 10, "description": "Of a definition: its latest runs, newest first.", "items": recent },
            "observedGeneration": count("The generation of the spec that this is about."),
            "logSequence": count("The place in the log up to which this is told."),
            "conditions": {
                "type": "array",
                "description": "Valid: whether the manifest can be run. Complete: whether the execution has ended.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": text("Valid or Complete."),
                        "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                        "reason": text("One word."),
                        "message": text("In words."),
                        "lastTransitionTime": time("When the status changed last."),
                        "observedGeneration": count("The generation of the spec that it is about."),
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Calls `visit` with every schema below `schema`, and where it stands.
    fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, schema);
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), inner, visit);
        }
        for (inner, name) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[inner].is_object() {
                walk(&format!("{path}{name}"), &schema[inner], visit);
            }
        }
    }

    #[test]
    fn the_schema_is_structural_and_every_field_has_both_spellings() {
        let crd = crd();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut paths = Vec::new();
        walk("spec", spec, &mut |path, schema| {
            paths.push(path.to_owned());
            for foreign in [
                "anyOf", "oneOf", "allOf", "$ref", "const", "format", "default", "title",
            ] {
                assert!(schema.get(foreign).is_none(), "{path} has {foreign}");
            }
            let is_open = schema["x-kubernetes-int-or-string"] == true;
            assert!(is_open || schema["type"].is_string(), "{path} has no type");
        });
        for field in super::super::fields() {
            let Some(rest) = field.path.strip_prefix("spec.") else {
                continue;
            };
            let camel: Vec<String> = rest.split('.').map(camel_case).collect();
            for path in [format!("spec.{rest}"), format!("spec.{}", camel.join("."))] {
                assert!(paths.contains(&path), "{path} is missing");
            }
        }
    }
}
