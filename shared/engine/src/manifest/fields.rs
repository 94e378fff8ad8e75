//! The list of all manifest fields, read from the JSON Schema: for the documentation's test, and
//! for the nearest name in an error.
//!
//! Invariant: there is no second list; a field that the types gain appears here by itself.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::types::Workflow;

/// One field of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDoc {
    /// Where it stands, such as `spec.steps[].command`.
    pub path: String,
    /// Its JSON type: `string`, `integer`, `number`, `boolean`, `object`, `array`, `map of string`.
    pub field_type: String,
    /// The values it may have, where they are a closed set.
    pub values: Vec<String>,
    /// Whether it must be given.
    pub is_required: bool,
    /// What it is for, in one paragraph.
    pub doc: String,
}

/// The manifest's JSON Schema, with every subschema in its place.
#[must_use]
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|s| s.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<Workflow>()
        .to_value()
}

/// Every field of the manifest, in the order in which the types declare them.
#[must_use]
pub fn fields() -> Vec<FieldDoc> {
    let mut found = Vec::new();
    collect("", &schema(), &mut found);
    found
}

fn collect(parent: &str, schema: &Value, found: &mut Vec<FieldDoc>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let required = schema.get("required").and_then(Value::as_array);
    for (name, written) in properties {
        let path = if parent.is_empty() {
            name.clone()
        } else {
            format!("{parent}.{name}")
        };
        let inner = non_null(written);
        let doc = written
            .get("description")
            .or_else(|| inner.get("description"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        found.push(FieldDoc {
            path: path.clone(),
            field_type: type_name(inner),
            values: values(inner),
            is_required: required.is_some_and(|names| names.iter().any(|n| n.as_str() == Some(name))),
            doc: doc.split_whitespace().collect::<Vec<_>>().join(" "),
        });
        match inner.get("items") {
            Some(item) => collect(&format!("{path}[]"), item, found),
            None => collect(&path, inner, found),
        }
    }
}

/// What an optional field may hold beside null.
fn non_null(schema: &Value) -> &Value {
    let Some(choices) = schema.get("anyOf").and_then(Value::as_array) else {
        return schema;
    };
    choices
        .iter()
        .find(|choice| choice.get("type") != Some(&Value::from("null")))
        .unwrap_or(schema)
}

fn type_name(schema: &Value) -> String {
    if !values(schema).is_empty() {
        return "string".to_owned();
    }
    let name = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null")
            .unwrap_or("any"),
        _ => "any",
    };
    match (name, schema.get("additionalProperties")) {
        ("object", Some(Value::Object(value))) => match value.get("type").and_then(Value::as_str) {
            Some(inner) => format!("map of {inner}"),
            None => name.to_owned(),
        },
        _ => name.to_owned(),
    }
}

fn values(schema: &Value) -> Vec<String> {
    if let Some(single) = schema.get("const").and_then(Value::as_str) {
        return vec![single.to_owned()];
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    schema
        .get("oneOf")
        .and_then(Value::as_array)
        .map(|choices| choices.iter().flat_map(values).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn every_field_has_a_type_and_a_doc() {
        let listed: Vec<String> = fields()
            .iter()
            .map(|f| {
                assert!(!f.doc.is_empty(), "{} has no doc comment", f.path);
                let required = if f.is_required { " *" } else { "" };
                let values = if f.values.is_empty() {
                    String::new()
                } else {
                    format!(" = {}", f.values.join("|"))
                };
                format!("{}: {}{values}{required}", f.path, f.field_type)
            })
            .collect();
        expect![[r#"
            apiVersion: string = punching-fist.io/v1alpha1 *
            kind: string = Workflow *
            metadata: object *
            metadata.name: string *
            metadata.namespace: string
            metadata.labels: map of string
            metadata.annotations: map of string
            metadata.uid: string
            spec: object *
            spec.trigger: object
            spec.trigger.source: string *
            spec.trigger.filters: map of string
            spec.runtime: object
            spec.runtime.image: string
            spec.runtime.environment: map of string
            spec.runtime.llm_config: object
            spec.runtime.llm_config.provider: string = anthropic|openai|scripted
            spec.runtime.llm_config.model: string
            spec.runtime.llm_config.endpoint: string
            spec.runtime.llm_config.api_key_secret: string
            spec.runtime.llm_config.temperature: number
            spec.runtime.llm_config.max_tokens: integer
            spec.runtime.llm_config.max_turns: integer
            spec.steps: array *
            spec.steps[].name: string *
            spec.steps[].type: string = cli|agent|conditional *
            spec.steps[].timeout_minutes: integer
            spec.steps[].timeout_seconds: integer
            spec.steps[].command: string
            spec.steps[].image: string
            spec.steps[].env: map of string
            spec.steps[].resources: object
            spec.steps[].resources.requests: map of string
            spec.steps[].resources.limits: map of string
            spec.steps[].run_as_user: integer
            spec.steps[].fix: boolean
            spec.steps[].mode: string = auto|propose
            spec.steps[].goal: string
            spec.steps[].tools: array
            spec.steps[].llm_config: object
            spec.steps[].llm_config.provider: string = anthropic|openai|scripted
            spec.steps[].llm_config.model: string
            spec.steps[].llm_config.endpoint: string
            spec.steps[].llm_config.api_key_secret: string
            spec.steps[].llm_config.temperature: number
            spec.steps[].llm_config.max_tokens: integer
            spec.steps[].llm_config.max_turns: integer
            spec.steps[].on_timeout: string = partial|fail
            spec.steps[].condition: string
            spec.steps[].on_false: string = skip_remaining|skip_next|fail|continue
            spec.suspend: boolean"#]]
        .assert_eq(&listed.join("\n"));
    }
}
