//! What a call's result looks like to a model: text, and of everything else its type and size.

use std::fmt::Write as _;

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use crate::tools::{ToolError, cut::cut};

/// The text of a result; as a failure where the server says that the call failed.
pub(super) fn shown(result: &CallToolResult) -> Result<String, ToolError> {
    let mut text = String::new();
    for block in &result.content {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match block {
            ContentBlock::Text(block) => text.push_str(&block.text),
            other => text.push_str(&named(other)),
        }
    }
    // Servers repeat structure as text, for clients that know text only; some leave that out.
    let has_text = result.content.iter().any(|block| block.as_text().is_some());
    if let Some(structure) = result.structured_content.as_ref().filter(|_| !has_text) {
        let _ = write!(text, "{}{structure}", if text.is_empty() { "" } else { "\n" });
    }
    match result.is_error {
        Some(true) => Err(ToolError::Failed(text)),
        _ => Ok(text),
    }
}

fn named(block: &ContentBlock) -> String {
    let (kind, mime_type, bytes) = match block {
        ContentBlock::Text(text) => ("text", None, Some(text.text.len())),
        ContentBlock::Image(image) => ("image", Some(&image.mime_type), Some(decoded(&image.data))),
        ContentBlock::Audio(audio) => ("audio", Some(&audio.mime_type), Some(decoded(&audio.data))),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { mime_type, text, .. } => {
                ("resource", mime_type.as_ref(), Some(text.len()))
            }
            ResourceContents::BlobResourceContents { mime_type, blob, .. } => {
                ("resource", mime_type.as_ref(), Some(decoded(blob)))
            }
            _ => ("resource", None, None),
        },
        ContentBlock::ResourceLink(link) => (
            "link to a resource",
            link.mime_type.as_ref(),
            link.size.and_then(|size| usize::try_from(size).ok()),
        ),
        _ => ("content of another type", None, None),
    };
    let mut name = format!("[not shown: {kind}");
    if let Some(mime_type) = mime_type {
        let _ = write!(name, ", {}", cut(mime_type.clone(), 100));
    }
    if let Some(bytes) = bytes {
        let _ = write!(name, ", {bytes} bytes");
    }
    name.push(']');
    name
}

/// Bytes that base64 text stands for.
fn decoded(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn printed(result: serde_json::Value) -> String {
        let result: CallToolResult = serde_json::from_value(result).unwrap();
        match shown(&result) {
            Ok(text) => text,
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn text_is_joined_and_the_rest_is_named() {
        let result = json!({"content": [
            {"type": "text", "text": "one\n"},
            {"type": "text", "text": "two"},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAA=="},
            {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "mimeType": "text/plain", "text": "hidden"}},
            {"type": "resource", "resource": {"uri": "file:///b", "blob": "AAA="}},
            {"type": "resource_link", "uri": "file:///c", "name": "c"},
        ], "structuredContent": {"a": 1}});
        assert_eq!(
            printed(result),
            "one\ntwo\n[not shown: image, image/png, 4 bytes]\n[not shown: audio, audio/wav, 3 bytes]\n\
             [not shown: resource, text/plain, 6 bytes]\n[not shown: resource, 2 bytes]\n\
             [not shown: link to a resource]"
        );
    }

    #[test]
    fn structure_without_text_is_shown_and_a_failure_is_one() {
        assert_eq!(
            printed(json!({"content": [], "structuredContent": {"a": 1}})),
            r#"{"a":1}"#
        );
        assert_eq!(printed(json!({"content": []})), "");
        let failed = json!({"content": [{"type": "text", "text": "no such ticket"}], "isError": true});
        assert_eq!(printed(failed), r#"Failed("no such ticket")"#);
    }
}
