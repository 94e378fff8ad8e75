//! Checks arguments against the part of JSON Schema that our tools use.
//!
//! Invariants: in a schema of ours, a keyword that this file does not know makes a test fail, not a check silently pass.
//! In others' (of MCP servers) it refuses nothing: the server knows it.

use serde_json::Value;

/// Every problem of `value`, in words that a model can act on.
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, value, "", &mut found);
    found
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let name = if path.is_empty() { "the arguments" } else { path };
    if !types(schema).iter().any(|wanted| is_of(value, wanted)) {
        found.push(format!("{name} must be {}", types(schema).join(" or ")));
        return;
    }
    if let Some(allowed) = schema["enum"]
        .as_array()
        .filter(|allowed| !allowed.contains(value))
    {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        found.push(format!("{name} must be one of {}", allowed.join(", ")));
    }
    match value {
        Value::String(text) => {
            let chars = text.chars().count() as u64;
            if schema["maxLength"].as_u64().is_some_and(|max| chars > max) {
                found.push(format!(
                    "{name} is too long: at most {} characters",
                    schema["maxLength"]
                ));
            }
            if schema["minLength"].as_u64().is_some_and(|min| chars < min) {
                found.push(format!("{name} must not be empty"));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let is_low = schema["minimum"].as_f64().is_some_and(|min| number < min);
            let is_high = schema["maximum"].as_f64().is_some_and(|max| number > max);
            if is_low || is_high {
                found.push(format!(
                    "{name} must be between {} and {}",
                    schema["minimum"], schema["maximum"]
                ));
            }
        }
        Value::Array(items) => check_items(schema, items, path, found),
        Value::Object(_) => check_fields(schema, value, path, found),
        Value::Null | Value::Bool(_) => {}
    }
}

fn check_items(schema: &Value, items: &[Value], path: &str, found: &mut Vec<String>) {
    if schema["maxItems"]
        .as_u64()
        .is_some_and(|max| items.len() as u64 > max)
    {
        found.push(format!(
            "{path} has too many items: at most {}",
            schema["maxItems"]
        ));
    }
    if schema["minItems"]
        .as_u64()
        .is_some_and(|min| (items.len() as u64) < min)
    {
        found.push(format!("{path} must not be empty"));
    }
    for (at, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{at}]"), found);
    }
}

fn check_fields(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    for required in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if value.get(required).is_none() {
            found.push(format!("`{required}` is missing"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(key) {
            Some(property) => {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                check(property, value, &path, found);
            }
            None if schema["additionalProperties"] == Value::Bool(false)
                && schema["patternProperties"].is_null() =>
            {
                found.push(format!("there is no `{key}`"));
            }
            None => {}
        }
    }
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) if !names.is_empty() => names.iter().filter_map(Value::as_str).collect(),
        _ => vec!["any"],
    }
}

fn is_of(value: &Value, wanted: &str) -> bool {
    match wanted {
        "any" => true,
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

/// Keywords that [`problems`] checks, or that only inform.
#[cfg(test)]
const KNOWN: [&str; 13] = [
    "type",
    "enum",
    "maxLength",
    "minLength",
    "minimum",
    "maximum",
    "maxItems",
    "minItems",
    "items",
    "required",
    "properties",
    "additionalProperties",
    "description",
];

/// Fails on a keyword that is not checked.
#[cfg(test)]
pub fn assert_known(schema: &Value) {
    for (key, value) in schema.as_object().into_iter().flatten() {
        assert!(
            KNOWN.contains(&key.as_str()),
            "`{key}` is not checked by schema.rs"
        );
        match key.as_str() {
            "properties" => value
                .as_object()
                .into_iter()
                .flatten()
                .for_each(|(_, property)| assert_known(property)),
            "items" => assert_known(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_refuses_nothing() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
            "$defs": {"size": {"type": "integer"}}, "minProperties": 99, "dependentRequired": {"a": ["zz"]},
            "patternProperties": {"^x-": {"type": "string"}},
            "properties": {
                "a": {"$ref": "#/$defs/size"}, "b": true, "c": {"type": "int64"}, "d": {"type": []},
                "e": {"items": [{"type": "string"}], "prefixItems": [{}]}, "f": {"oneOf": [{"type": "null"}]},
                "g": {"const": 1, "format": "date", "pattern": "^$", "multipleOf": 7}, "h": {"type": "integer"},
            },
        });
        let arguments = json!({
            "a": "big", "b": 1, "c": 5, "d": [], "e": [1, "x"], "f": 2, "g": "z", "h": 3.0, "x-y": "z",
        });
        assert_eq!(problems(&schema, &arguments), Vec::<String>::new());
        assert_eq!(problems(&schema, &json!({"h": 3.5})), ["h must be integer"]);
    }

    #[test]
    fn every_problem_is_named() {
        let schema = json!({
            "type": "object", "required": ["q", "z"], "additionalProperties": false,
            "properties": {
                "q": {"type": "string", "maxLength": 3, "minLength": 1},
                "z": {"type": "integer"},
                "n": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                "l": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string", "enum": ["a", "b"]}},
            },
        });
        assert_known(&schema);
        assert_eq!(
            problems(&schema, &json!({"q": "x", "z": 1, "n": null, "l": ["a"]})),
            Vec::<String>::new()
        );
        assert_eq!(problems(&schema, &json!("x")), ["the arguments must be object"]);
        assert_eq!(
            problems(&schema, &json!({"q": "long", "n": 2, "l": ["a", "c", 1], "x": 1})),
            [
                "`z` is missing",
                "q is too long: at most 3 characters",
                "n must be between 0 and 1",
                "l has too many items: at most 2",
                "l[1] must be one of \"a\", \"b\"",
                "l[2] must be string",
                "there is no `x`",
            ]
        );
    }
}
