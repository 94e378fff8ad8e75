//! A parsed document in which every value knows its line.
//!
//! Invariants:
//! - YAML and JSON give the same tree, so that there is one reader and one error text.
//! - Depth, size and the growth by aliases are bounded; no key stands twice in one object.

use serde_json::Value;

/// So many values may be in one text, aliases counted as often as they are used.
pub(super) const NODES_MAX: usize = 200_000;
/// So deep may they nest.
pub(super) const DEPTH_MAX: usize = 32;

/// Line of what came without text, such as an object from the Kubernetes API.
pub(super) const LINE_UNKNOWN: u32 = 0;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// From 1; 0 where unknown.
    pub line: u32,
    /// Whether it is a block of text under its key, which starts on the line after.
    pub is_block: bool,
    pub shape: Shape,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Null,
    Bool(bool),
    /// A number, and how it was written.
    Number(serde_json::Number, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    pub line: u32,
    pub node: Node,
}

/// Why a text is no document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// From 1; 0 where unknown.
    pub line: u32,
    pub message: String,
}

impl SyntaxError {
    pub(super) fn new(line: u32, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            line,
            message: message.into(),
        }
    }
}

impl Node {
    pub(super) fn new(line: u32, shape: Shape) -> Node {
        Node {
            line,
            is_block: false,
            shape,
        }
    }

    /// The tree of a value that was parsed elsewhere, without lines.
    pub(super) fn of_value(value: &Value) -> Result<Node, SyntaxError> {
        of_value(value, 0)
    }

    /// How many values it is, itself included.
    pub(super) fn count(&self) -> usize {
        match &self.shape {
            Shape::List(items) => 1 + items.iter().map(Node::count).sum::<usize>(),
            Shape::Map(entries) => 1 + entries.iter().map(|entry| entry.node.count()).sum::<usize>(),
            Shape::Null | Shape::Bool(_) | Shape::Number(..) | Shape::Text(_) => 1,
        }
    }

    /// How much text it holds.
    pub(super) fn text_bytes(&self) -> usize {
        match &self.shape {
            Shape::Text(text) | Shape::Number(_, text) => text.len(),
            Shape::List(items) => items.iter().map(Node::text_bytes).sum(),
            Shape::Map(entries) => entries.iter().map(|e| e.key.len() + e.node.text_bytes()).sum(),
            Shape::Null | Shape::Bool(_) => 0,
        }
    }

    /// How many levels it has, itself included.
    pub(super) fn depth(&self) -> usize {
        let below = match &self.shape {
            Shape::List(items) => items.iter().map(Node::depth).max(),
            Shape::Map(entries) => entries.iter().map(|entry| entry.node.depth()).max(),
            Shape::Null | Shape::Bool(_) | Shape::Number(..) | Shape::Text(_) => None,
        };
        1 + below.unwrap_or_default()
    }

    /// What it is, for an error: `the number 5`, `a list`.
    pub(super) fn described(&self) -> String {
        match &self.shape {
            Shape::Null => "null".to_owned(),
            Shape::Bool(value) => value.to_string(),
            Shape::Number(_, text) => format!("the number {text}"),
            Shape::Text(text) => {
                let short: String = text.chars().take(40).collect();
                let more = if short.len() < text.len() { "…" } else { "" };
                format!("the string \"{short}{more}\"")
            }
            Shape::List(_) => "a list".to_owned(),
            Shape::Map(_) => "an object".to_owned(),
        }
    }
}

fn of_value(value: &Value, depth: usize) -> Result<Node, SyntaxError> {
    if depth > DEPTH_MAX {
        return Err(too_deep(LINE_UNKNOWN));
    }
    let shape = match value {
        Value::Null => Shape::Null,
        Value::Bool(value) => Shape::Bool(*value),
        Value::Number(number) => Shape::Number(number.clone(), number.to_string()),
        Value::String(text) => Shape::Text(text.clone()),
        Value::Array(items) => Shape::List(
            items
                .iter()
                .map(|item| of_value(item, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(map) => Shape::Map(
            map.iter()
                .map(|(key, value)| {
                    let node = of_value(value, depth + 1)?;
                    Ok(Entry {
                        key: key.clone(),
                        line: LINE_UNKNOWN,
                        node,
                    })
                })
                .collect::<Result<_, SyntaxError>>()?,
        ),
    };
    Ok(Node::new(LINE_UNKNOWN, shape))
}

pub(super) fn too_deep(line: u32) -> SyntaxError {
    SyntaxError::new(
        line,
        format!("values nest more than {DEPTH_MAX} deep; a manifest needs 6"),
    )
}

pub(super) fn too_many(line: u32) -> SyntaxError {
    SyntaxError::new(line, format!("more than {NODES_MAX} values; split the file"))
}

pub(super) fn key_twice(line: u32, key: &str, first: u32) -> SyntaxError {
    SyntaxError::new(
        line,
        format!("the key \"{key}\" stands twice in one object, first on line {first}; remove one of them"),
    )
}
