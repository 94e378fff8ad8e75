//! Manifests on their way to the server: read from files and stdin, taken apart into documents.
//!
//! Invariant: a document keeps the line numbers of its file, so that the server's errors fit what the author
//! sees.

use std::{io::Read, path::Path};

use engine::admit::Format;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Bytes of the largest file that is read; the server's own limit is lower.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A text with manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How errors call it.
    pub name: String,
    /// The text.
    pub text: String,
    /// How it is written.
    pub format: Format,
}

/// One manifest, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// How it is written.
    pub format: Format,
}

impl Document {
    /// Its media type.
    pub fn media_type(&self) -> &'static str {
        media_type(self.format)
    }
}

/// The media type of a format.
pub fn media_type(format: Format) -> &'static str {
    match format {
        Format::Yaml => "application/yaml",
        Format::Json => "application/json",
    }
}

/// Reads a text, from stdin where the path is `-`.
///
/// # Errors
/// The file, and the system's reason.
pub fn read_text(path: &Path) -> Result<(String, String), Failure> {
    let is_stdin = path.as_os_str() == "-";
    let name = if is_stdin {
        "stdin".to_owned()
    } else {
        path.display().to_string()
    };
    let cannot = |reason: String| Failure::misuse(format!("cannot read {name}: {reason}"));
    let mut bytes = Vec::new();
    let read = if is_stdin {
        std::io::stdin()
            .lock()
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| cannot(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(cannot(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        cannot(format!(
            "it is not UTF-8, from byte {} on",
            error.utf8_error().valid_up_to()
        ))
    })?;
    Ok((name, text))
}

/// Reads the manifests of a file.
///
/// # Errors
/// The file, and the system's reason.
pub fn read(path: &Path) -> Result<Source, Failure> {
    let (name, text) = read_text(path)?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
        || (path.as_os_str() == "-" && text.trim_start().starts_with('{'));
    Ok(Source {
        name,
        text,
        format: if is_json { Format::Json } else { Format::Yaml },
    })
}

/// The documents of a text, each to be sent by itself.
pub fn documents(source: &Source) -> Vec<Document> {
    let parts = match source.format {
        Format::Json => vec![source.text.clone()],
        Format::Yaml => yaml_documents(&source.text),
    };
    let mut documents = Vec::new();
    for text in parts {
        match listed(&text, source.format) {
            Some(items) => documents.extend(items.iter().map(|item| Document {
                text: item.to_string(),
                format: Format::Json,
            })),
            None => documents.push(Document {
                text,
                format: source.format,
            }),
        }
    }
    documents
}

/// The items of a `kind: List`.
fn listed(text: &str, format: Format) -> Option<Vec<Value>> {
    if !text.contains("List") {
        return None;
    }
    let value = parsed(text, format)?;
    if value["kind"] != "List" {
        return None;
    }
    value["items"].as_array().cloned()
}

/// The value of a text; `None` where it is not one, which admission says in better words.
fn parsed(text: &str, format: Format) -> Option<Value> {
    match format {
        Format::Json => serde_json::from_str(text).ok(),
        Format::Yaml => serde_saphyr::from_str(text).ok(),
    }
}

/// Taken apart at `---`, which can stand at the beginning of a line only as a separator. What came before a
/// document becomes empty lines.
fn yaml_documents(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut lines_before = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let begins = line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace);
        if begins && has_content(&current) {
            documents.push(std::mem::take(&mut current));
            lines_before = number;
        }
        if current.is_empty() {
            current.push_str(&"\n".repeat(lines_before));
        }
        current.push_str(line);
    }
    if has_content(&current) || documents.is_empty() {
        documents.push(current);
    }
    documents
}

fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim();
        !(line.is_empty() || line == "---" || line == "..." || line.starts_with('#') || line.starts_with('%'))
    })
}

/// The document in this namespace, where it names none.
///
/// # Errors
/// That it names another, as kubectl has it.
pub fn in_namespace(document: Document, namespace: Option<&str>) -> Result<Document, Failure> {
    let Some(namespace) = namespace else {
        return Ok(document);
    };
    let Some(mut value) = parsed(&document.text, document.format).filter(Value::is_object) else {
        return Ok(document);
    };
    match value["metadata"]["namespace"].as_str() {
        Some(own) if own == namespace => Ok(document),
        Some(own) => Err(Failure::misuse(format!(
            "the namespace of the manifest, {own}, is not the one of --namespace, {namespace}: leave one of them out"
        ))),
        None if value["metadata"].is_object() => {
            value["metadata"]["namespace"] = json!(namespace);
            Ok(Document {
                text: value.to_string(),
                format: Format::Json,
            })
        }
        None => Ok(document),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn yaml(text: &str) -> Vec<String> {
        let source = Source {
            name: "x".to_owned(),
            text: text.to_owned(),
            format: Format::Yaml,
        };
        documents(&source)
            .into_iter()
            .map(|document| document.text)
            .collect()
    }

    #[test]
    fn documents_keep_their_lines() {
        assert_eq!(yaml("a: 1\n---\nb: 2\n"), ["a: 1\n", "\n---\nb: 2\n"]);
        assert_eq!(
            yaml("---\n# first\na: 1\n---\n\n---\nb: 2"),
            ["---\n# first\na: 1\n", "\n\n\n---\n\n---\nb: 2"]
        );
        assert_eq!(yaml("%YAML 1.2\n---\na: 1\n"), ["%YAML 1.2\n---\na: 1\n"]);
        assert_eq!(
            yaml("a: |\n  ---\n  b\n---- no\n"),
            ["a: |\n  ---\n  b\n---- no\n"]
        );
        assert_eq!(yaml(""), [""]);
    }

    #[test]
    fn lists_are_sent_one_by_one() {
        assert_eq!(
            yaml("kind: List\nitems:\n- {kind: Workflow}\n- {x: 1}\n"),
            ["{\"kind\":\"Workflow\"}", "{\"x\":1}"]
        );
    }

    #[test]
    fn a_namespace_is_put_in_or_agreed_with() {
        let document = |text: &str| Document {
            text: text.to_owned(),
            format: Format::Yaml,
        };
        let put = in_namespace(document("metadata: {name: a}"), Some("prod")).unwrap();
        assert_eq!(put.text, r#"{"metadata":{"name":"a","namespace":"prod"}}"#);
        let same = document("metadata: {name: a, namespace: prod}");
        assert_eq!(in_namespace(same.clone(), Some("prod")).unwrap(), same);
        assert!(
            in_namespace(same, Some("dev"))
                .unwrap_err()
                .message
                .contains("--namespace, dev")
        );
    }
}
