//! JSON to a located tree.
//!
//! Invariant: the text is checked by serde_json first; the walk here only finds lines and keys that
//! stand twice, in a text that is known to be JSON.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::located::{DEPTH_MAX, Entry, NODES_MAX, Node, Shape, SyntaxError, key_twice, too_deep, too_many};

/// The one document of the text.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX);
        let whole = error.to_string();
        let reason = whole.split(" at line ").next().unwrap_or(&whole);
        return Err(SyntaxError::new(
            line,
            format!("not JSON: {reason} (column {})", error.column()),
        ));
    }
    let mut walk = Walk {
        text,
        at: 0,
        line: 1,
        nodes: 0,
    };
    walk.value(0)
}

struct Walk<'t> {
    text: &'t str,
    /// Byte offset.
    at: usize,
    line: u32,
    nodes: usize,
}

impl Walk<'_> {
    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        self.skip_space();
        let line = self.line;
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(too_many(line));
        }
        if depth > DEPTH_MAX {
            return Err(too_deep(line));
        }
        let shape = match self.byte() {
            b'{' => self.map(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Shape::Text(self.string()?),
            _ => self.word()?,
        };
        Ok(Node::new(line, shape))
    }

    fn map(&mut self, depth: usize) -> Result<Shape, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = HashMap::new();
        self.at += 1;
        loop {
            self.skip_space_and_commas();
            if self.byte() == b'}' || self.at >= self.text.len() {
                self.at += 1;
                return Ok(Shape::Map(entries));
            }
            let line = self.line;
            let key = self.string()?;
            if let Some(first) = seen.insert(key.clone(), line) {
                return Err(key_twice(line, &key, first));
            }
            self.skip_space();
            self.at += 1; // The colon.
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, line, node });
        }
    }

    fn list(&mut self, depth: usize) -> Result<Shape, SyntaxError> {
        let mut items = Vec::new();
        self.at += 1;
        loop {
            self.skip_space_and_commas();
            if self.byte() == b']' || self.at >= self.text.len() {
                self.at += 1;
                return Ok(Shape::List(items));
            }
            items.push(self.value(depth + 1)?);
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        self.at = (end + 1).min(bytes.len());
        self.decoded(start)
    }

    fn word(&mut self) -> Result<Shape, SyntaxError> {
        let start = self.at;
        let length = self.text[start..]
            .bytes()
            .position(|b| b.is_ascii_whitespace() || matches!(b, b',' | b']' | b'}'))
            .unwrap_or(self.text.len() - start);
        // At least one byte, so that the walk always goes on.
        self.at = start + length.max(1);
        Ok(match &self.text[start..start + length] {
            "null" => Shape::Null,
            "true" => Shape::Bool(true),
            "false" => Shape::Bool(false),
            number => Shape::Number(self.decoded(start)?, number.to_owned()),
        })
    }

    /// What serde_json reads from `start` to here.
    fn decoded<T: serde::de::DeserializeOwned>(&self, start: usize) -> Result<T, SyntaxError> {
        let part = self.text.get(start..self.at).unwrap_or_default();
        serde_json::from_str(part).map_err(|error| SyntaxError::new(self.line, format!("not JSON: {error}")))
    }

    fn byte(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    fn skip_space(&mut self) {
        while matches!(self.byte(), b' ' | b'\t' | b'\r' | b'\n') {
            self.line += u32::from(self.byte() == b'\n');
            self.at += 1;
        }
    }

    fn skip_space_and_commas(&mut self) {
        self.skip_space();
        if self.byte() == b',' {
            self.at += 1;
            self.skip_space();
        }
    }
}
