//! What a server says about its tools, made fit for models: bounded, redacted, in a form that their vendors accept.
//!
//! Invariant: only tools that the operator allows are kept, and each of them has an entry.

use std::collections::BTreeMap;

use rmcp::{
    RoleClient,
    model::{PaginatedRequestParams, Tool},
    service::{Peer, ServiceError},
};
use serde_json::Value;

use crate::{redact::Redactor, tools::cut::cut};

/// Pages of a list that are read. A server has some hundred tools at most, and shows them on one page or a few.
const PAGES_MAX: usize = 16;
/// Tools of a list that are looked at.
const TOOLS_MAX: usize = 1024;
/// Bytes of one tool's schema: each turn of a model carries them.
const SCHEMA_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one tool's description.
const DESCRIPTION_BYTES_MAX: usize = 2048;

/// What became of an allowed tool.
pub(super) enum Listed {
    /// The server has it.
    Ready {
        /// For the model.
        description: String,
        /// Of its arguments.
        schema: Value,
    },
    /// It cannot be called, for this reason.
    Absent(String),
}

/// Each allowed tool, as the server `server` describes it.
///
/// # Errors
/// When the server does not answer as it should.
pub(super) async fn list(
    peer: &Peer<RoleClient>,
    server: &str,
    allowed: &[String],
    redactor: &Redactor,
) -> Result<Vec<(String, Listed)>, ServiceError> {
    let mut found: BTreeMap<String, Listed> = BTreeMap::new();
    let (mut cursor, mut seen) = (None, 0);
    for _ in 0..PAGES_MAX {
        let params = PaginatedRequestParams::default().with_cursor(cursor.take());
        let page = peer.list_tools(Some(params)).await?;
        for tool in page.tools {
            seen += 1;
            let is_wanted = allowed.iter().any(|name| *name == tool.name) && !found.contains_key(&*tool.name);
            if is_wanted && seen <= TOOLS_MAX {
                found.insert(tool.name.to_string(), described(&tool, server, redactor));
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() || found.len() == allowed.len() || seen >= TOOLS_MAX {
            break;
        }
    }
    let how_far = match cursor {
        Some(_) => format!("among the first {seen} that it lists"),
        None => format!("among the {seen} that it lists"),
    };
    let entry = |name: &String| {
        let missing = || {
            Listed::Absent(format!(
                "the MCP server `{server}` has no tool `{name}` {how_far}"
            ))
        };
        (name.clone(), found.remove(name).unwrap_or_else(missing))
    };
    Ok(allowed.iter().map(entry).collect())
}

fn described(tool: &Tool, server: &str, redactor: &Redactor) -> Listed {
    let schema = accepted(redacted(Value::Object((*tool.input_schema).clone()), redactor));
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return Listed::Absent(format!(
            "its schema on the MCP server `{server}` has {bytes} bytes, and {SCHEMA_BYTES_MAX} are allowed"
        ));
    }
    let told = [tool.description.as_deref(), tool.title.as_deref()]
        .into_iter()
        .flatten()
        .find(|text| !text.trim().is_empty())
        .unwrap_or("It has no description.");
    let told = cut(redactor.text(told), DESCRIPTION_BYTES_MAX);
    Listed::Ready {
        description: format!("The tool `{}` of the MCP server `{server}`. {told}", tool.name),
        schema,
    }
}

/// Texts without secrets. Fields keep their values whatever they are called: `token` is an argument's name here.
fn redacted(value: Value, redactor: &Redactor) -> Value {
    match value {
        Value::String(text) => Value::String(redactor.text(&text)),
        Value::Array(items) => items.into_iter().map(|item| redacted(item, redactor)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, redacted(value, redactor)))
            .collect(),
        other => other,
    }
}

/// As vendors accept a schema: an object's, and alternatives not at the top. What is left out, the server checks.
fn accepted(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        for keyword in ["oneOf", "anyOf", "allOf", "not", "enum"] {
            fields.shift_remove(keyword);
        }
        fields.insert("type".to_owned(), Value::from("object"));
        // OpenAI refuses an object that does not say this.
        fields
            .entry("properties")
            .or_insert_with(|| serde_json::json!({}));
    }
    schema
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::redact::untagged;

    fn told(tool: Value) -> String {
        let tool: Tool = serde_json::from_value(tool).unwrap();
        let redactor = Redactor::new(&["hunter[0-9]".to_owned()], []).unwrap();
        match described(&tool, "git", &redactor) {
            Listed::Ready { description, schema } => format!("{description}\n{schema}"),
            Listed::Absent(reason) => reason,
        }
    }

    #[test]
    fn a_tool_is_redacted_bounded_and_made_acceptable() {
        let tool = json!({"name": "log", "description": "by hunter2", "inputSchema": {
            "anyOf": [{"required": ["a"]}], "properties": {"token": {"type": "string", "default": "hunter2"}},
        }});
        assert_eq!(
            untagged(&told(tool)),
            "The tool `log` of the MCP server `git`. by [REDACTED:configured]\n{\"properties\":{\"token\":\
             {\"type\":\"string\",\"default\":\"[REDACTED:configured]\"}},\"type\":\"object\"}"
        );
        let bare = told(json!({"name": "log", "description": "", "inputSchema": {}}));
        assert!(
            bare.contains("It has no description.") && bare.ends_with(r#"{"type":"object","properties":{}}"#)
        );
        let long = told(json!({"name": "log", "description": "x".repeat(9000), "inputSchema": {}}));
        assert!(long.len() < DESCRIPTION_BYTES_MAX + 300, "{}", long.len());
        let large =
            json!({"name": "log", "inputSchema": {"properties": {"a": {"description": "x".repeat(20_000)}}}});
        assert!(told(large).contains("bytes, and 16384 are allowed"));
    }
}
