//! YAML 1.2 to located trees, one per document, from the parser's events.
//!
//! Invariants:
//! - Scalars are read by the YAML 1.2 core schema: `yes` and `on` are strings, `0o17` is a number.
//! - An alias is a copy, and counts as one: a text cannot unfold into more than [`NODES_MAX`] values.
//! - Built with a stack of our own, so that no text can exhaust the thread's.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::located::{DEPTH_MAX, Entry, NODES_MAX, Node, Shape, SyntaxError, key_twice, too_deep, too_many};

/// So much text may aliases copy.
const COPIED_BYTES_MAX: usize = 1024 * 1024;

/// Every document of the text that is not empty.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut builder = Builder::default();
    // A byte order mark is not part of the text.
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            let column = error.marker().col() + 1;
            let line = u32::try_from(error.marker().line()).unwrap_or(u32::MAX);
            let hint = if error.info().contains('\t') || error.info().contains("tab") {
                "; indent with spaces, not with tabs"
            } else {
                ""
            };
            SyntaxError::new(
                line,
                format!("not YAML: {} (column {column}){hint}", error.info()),
            )
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    copied_bytes: usize,
}

/// A list or an object whose end has not come yet.
struct Open {
    line: u32,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        seen: HashMap<String, u32>,
        key: Option<(String, u32)>,
    },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = u32::try_from(span.start.line()).unwrap_or(u32::MAX);
        match event {
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                let mut node = Node::new(line, scalar(&text, style, tag.as_deref(), line)?);
                // Folding joins lines, so that only a literal block's lines are the text's.
                node.is_block = style == ScalarStyle::Literal;
                self.put(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.as_deref(), line)?;
                self.open(line, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.as_deref(), line)?;
                self.open(
                    line,
                    anchor,
                    Content::Map {
                        entries: Vec::new(),
                        seen: HashMap::new(),
                        key: None,
                    },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                // Known to the parser, but not finished: `&a [*a]`.
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(SyntaxError::new(
                        line,
                        "an alias cannot stand inside what it names",
                    ));
                };
                node.line = line;
                self.nodes += node.count() - 1;
                self.copied_bytes += node.text_bytes();
                if self.copied_bytes > COPIED_BYTES_MAX {
                    return Err(SyntaxError::new(
                        line,
                        "aliases copy more than 1 MiB of text; write it once",
                    ));
                }
                if self.open.len() + node.depth() > DEPTH_MAX {
                    return Err(too_deep(line));
                }
                self.put(node, 0)
            }
        }
    }

    fn open(&mut self, line: u32, anchor: usize, content: Content) -> Result<(), SyntaxError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(too_deep(line));
        }
        self.open.push(Open {
            line,
            anchor,
            content,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(done) = self.open.pop() else {
            return Ok(());
        };
        let shape = match done.content {
            Content::List(items) => Shape::List(items),
            Content::Map { entries, .. } => Shape::Map(entries),
        };
        self.put(Node::new(done.line, shape), done.anchor)
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(too_many(node.line));
        }
        if anchor > 0 {
            // The copy that is kept counts too: anchors alone must not multiply memory.
            self.nodes += node.count();
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None if node.shape == Shape::Null => {}
            None => self.documents.push(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { entries, seen, key }) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, node }),
                None => {
                    let text = key_of(&node)?;
                    if let Some(first) = seen.insert(text.clone(), node.line) {
                        return Err(key_twice(node.line, &text, first));
                    }
                    *key = Some((text, node.line));
                }
            },
        }
        Ok(())
    }
}

fn key_of(node: &Node) -> Result<String, SyntaxError> {
    match &node.shape {
        Shape::Text(text) if text == "<<" => Err(SyntaxError::new(
            node.line,
            "merge keys (`<<`) are not part of YAML 1.2; write the fields out",
        )),
        Shape::Text(text) | Shape::Number(_, text) => Ok(text.clone()),
        Shape::Bool(value) => Ok(value.to_string()),
        Shape::Null => Err(SyntaxError::new(node.line, "a key is missing before this `:`")),
        Shape::List(_) | Shape::Map(_) => Err(SyntaxError::new(
            node.line,
            format!(
                "a key is a string, not {}; a value that begins with {{ or [ stands in quotes, as templates do",
                node.described()
            ),
        )),
    }
}

fn refuse_tag(tag: Option<&Tag>, line: u32) -> Result<(), SyntaxError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Err(SyntaxError::new(
            line,
            format!("the tag {tag} has no meaning in a manifest; remove it"),
        )),
        _ => Ok(()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: u32) -> Result<Shape, SyntaxError> {
    refuse_tag(tag, line)?;
    let is_text_by_tag = tag.is_some_and(|tag| tag.suffix == "str");
    if style != ScalarStyle::Plain || is_text_by_tag {
        return Ok(Shape::Text(text.to_owned()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Shape::Null,
        "true" | "True" | "TRUE" => Shape::Bool(true),
        "false" | "False" | "FALSE" => Shape::Bool(false),
        _ => number(text).map_or_else(
            || Shape::Text(text.to_owned()),
            |number| Shape::Number(number, text.to_owned()),
        ),
    })
}

/// A number by the core schema. Infinities and NaN are none here: no field could take them.
fn number(text: &str) -> Option<serde_json::Number> {
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().map(Into::into);
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(Into::into);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    if !is_number {
        return None;
    }
    let plain = text.strip_prefix('+').unwrap_or(text);
    if let Ok(whole) = plain.parse::<i64>() {
        return Some(whole.into());
    }
    plain.parse::<f64>().ok().and_then(serde_json::Number::from_f64)
}
