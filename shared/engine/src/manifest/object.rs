//! Reads the fields of one located object, and remembers what was asked for, so that what is left
//! over is an unknown field.
//!
//! Invariants:
//! - Every problem goes to one [`Sink`]; reading goes on after each.
//! - A field is asked for by its snake_case name, and found by its camelCase one too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::located::{Entry, Node, Shape};
pub(super) use super::sink::Sink;
use crate::nearest::{did_you_mean, nearest};

/// One object whose fields are being read.
pub(super) struct Object<'n> {
    pub(super) sink: &'n Sink,
    pub(super) path: String,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
}

impl<'n> Object<'n> {
    pub(super) fn new(sink: &'n Sink, path: &str, node: &'n Node) -> Option<Object<'n>> {
        let Shape::Map(entries) = &node.shape else {
            let message = format!(
                "expected an object of `key: value` fields, found {}",
                node.described()
            );
            sink.error_at(path, node.line, message);
            return None;
        };
        Some(Object {
            sink,
            path: path.to_owned(),
            entries,
            asked: Vec::new(),
        })
    }

    pub(super) fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// The field's node; null counts as absent, as it does for Kubernetes.
    pub(super) fn take(&mut self, name: &'static str) -> Option<(String, &'n Node)> {
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
        let camel = camel_case(name);
        let path = self.path_of(name);
        let mut found = self
            .entries
            .iter()
            .filter(|entry| entry.key == name || entry.key == camel);
        let first = found.next()?;
        if let Some(second) = found.next() {
            let message = format!("stands twice, as {} and {}; keep one", first.key, second.key);
            self.sink.error_at(&path, second.line, message);
        }
        self.sink.register(&path, first.line, &first.node);
        (first.node.shape != Shape::Null).then_some((path, &first.node))
    }

    /// Fields that are accepted and not read.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.asked.push(name);
        }
    }

    pub(super) fn missing(&self, name: &str, remedy: &str) {
        self.sink
            .error(&self.path_of(name), format!("is missing; {remedy}"));
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        let (path, node) = self.take(name)?;
        text_of(self.sink, &path, node)
    }

    /// A text that says something, where it is there at all.
    pub(super) fn filled_text(&mut self, name: &'static str) -> Option<String> {
        self.text_that_says(name, "give it a value, or remove it")
    }

    /// A text that must be there and say something; `remedy` says what it is for.
    pub(super) fn needed_text(&mut self, name: &'static str, remedy: &str) -> Option<String> {
        let text = self.text_that_says(name, remedy);
        if self.take(name).is_none() {
            self.missing(name, remedy);
        }
        text
    }

    fn text_that_says(&mut self, name: &'static str, remedy: &str) -> Option<String> {
        let text = self.text(name)?;
        if text.trim().is_empty() {
            self.sink
                .error(&self.path_of(name), format!("is empty; {remedy}"));
            return None;
        }
        Some(text)
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Option<bool> {
        let (path, node) = self.take(name)?;
        match &node.shape {
            Shape::Bool(value) => Some(*value),
            Shape::Text(text) if matches!(text.as_str(), "true" | "false") => {
                let message = format!(
                    "expected true or false, found {}; remove the quotes",
                    node.described()
                );
                self.sink.error_at(&path, node.line, message);
                None
            }
            _ => {
                let message = format!("expected true or false, found {}", node.described());
                self.sink.error_at(&path, node.line, message);
                None
            }
        }
    }

    pub(super) fn whole_number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
        hint: &dyn Fn(f64) -> String,
    ) -> Option<u64> {
        let (path, node) = self.take(name)?;
        let fail = |message: String| {
            self.sink.error_at(&path, node.line, message);
            None
        };
        let (number, written) = match &node.shape {
            Shape::Number(number, written) => (number, written),
            Shape::Text(text) if text.trim().parse::<f64>().is_ok() => {
                return fail(format!(
                    "expected a whole number, found {}; remove the quotes",
                    node.described()
                ));
            }
            _ => return fail(format!("expected a whole number, found {}", node.described())),
        };
        let bounds = format!("{} to {}", range.start(), range.end());
        match number.as_u64() {
            Some(value) if range.contains(&value) => Some(value),
            Some(_) => fail(format!("must be {bounds}, not {written}")),
            None if number.as_i64().is_some() => fail(format!("must be {bounds}, not {written}")),
            None => {
                let hint = hint(number.as_f64().unwrap_or_default());
                fail(format!("must be a whole number, {bounds}, not {written}{hint}"))
            }
        }
    }

    pub(super) fn number(&mut self, name: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let (path, node) = self.take(name)?;
        let (value, written) = match &node.shape {
            Shape::Number(number, text) => (number.as_f64(), text.clone()),
            _ => (None, node.described().to_string()),
        };
        match value {
            Some(value) if range.contains(&value) => Some(value),
            _ => {
                let kind = if value.is_some() { "" } else { "a number, " };
                let message = format!(
                    "must be {kind}{} to {}, not {written}",
                    range.start(),
                    range.end(),
                );
                self.sink.error_at(&path, node.line, message);
                None
            }
        }
    }

    /// One of a closed set of words, in snake_case or camelCase.
    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let (path, node) = self.take(name)?;
        let text = text_of(self.sink, &path, node)?;
        let found = choices
            .iter()
            .find(|(word, _)| *word == text || camel_case(word) == text);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let hint = did_you_mean(&text, "it may be", &words);
            self.sink
                .error(&path, format!("unknown value \"{text}\"; {hint}"));
        }
        found.map(|(_, value)| *value)
    }

    /// A map of strings.
    pub(super) fn texts(&mut self, name: &'static str) -> BTreeMap<String, String> {
        self.map(name, text_of)
    }

    /// A map of strings, in which numbers may stand as they are, as in Kubernetes' quantities.
    pub(super) fn quantities(&mut self, name: &'static str) -> BTreeMap<String, String> {
        self.map(name, |sink, path, node| match &node.shape {
            Shape::Number(_, written) => Some(written.clone()),
            _ => text_of(sink, path, node),
        })
    }

    fn map(
        &mut self,
        name: &'static str,
        read: impl Fn(&Sink, &str, &Node) -> Option<String>,
    ) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let Some((path, node)) = self.take(name) else {
            return found;
        };
        let Some(object) = Object::new(self.sink, &path, node) else {
            return found;
        };
        for entry in object.entries {
            let path = format!("{path}.{}", entry.key);
            self.sink.register(&path, entry.line, &entry.node);
            if let Some(value) = read(self.sink, &path, &entry.node) {
                found.insert(entry.key.clone(), value);
            }
        }
        found
    }

    pub(super) fn object(&mut self, name: &'static str) -> Option<Object<'n>> {
        let (path, node) = self.take(name)?;
        Object::new(self.sink, &path, node)
    }

    pub(super) fn list(&mut self, name: &'static str) -> Option<&'n [Node]> {
        let (path, node) = self.take(name)?;
        let Shape::List(items) = &node.shape else {
            let message = format!("expected a list of `- ` items, found {}", node.described());
            self.sink.error_at(&path, node.line, message);
            return None;
        };
        for (index, item) in items.iter().enumerate() {
            self.sink.register(&format!("{path}[{index}]"), item.line, item);
        }
        Some(items)
    }

    /// Reports what was not asked for. `elsewhere` says of a name that it belongs to something else.
    pub(super) fn finish(self, elsewhere: &dyn Fn(&str) -> Option<String>) {
        for entry in self.entries {
            let is_known = |name: &str| name == entry.key || camel_case(name) == entry.key;
            if self.asked.iter().any(|name| is_known(name)) {
                continue;
            }
            let message = elsewhere(&snake_case(&entry.key)).unwrap_or_else(|| self.unknown(&entry.key));
            self.sink.error_at(&self.path_of(&entry.key), entry.line, message);
        }
    }

    fn unknown(&self, key: &str) -> String {
        let is_camel = key.chars().any(char::is_uppercase);
        let spelled = |name: &str| {
            if is_camel {
                camel_case(name)
            } else {
                name.to_owned()
            }
        };
        match nearest(key, self.asked.iter().copied()) {
            Some(near) => format!("unknown field; did you mean \"{}\"?", spelled(near)),
            None => {
                let names: Vec<String> = self.asked.iter().map(|name| spelled(name)).collect();
                format!("unknown field; the fields here are: {}", names.join(", "))
            }
        }
    }
}

/// A node that must be a string.
pub(super) fn text_of(sink: &Sink, path: &str, node: &Node) -> Option<String> {
    let remedy = match &node.shape {
        Shape::Text(text) if text.contains('\0') => {
            sink.error_at(path, node.line, "holds a NUL character, which no text here can");
            return None;
        }
        Shape::Text(text) => return Some(text.clone()),
        Shape::Number(_, written) => format!("; write \"{written}\", in quotes"),
        Shape::Bool(value) => format!("; write \"{value}\", in quotes"),
        Shape::List(_) => "; write it as one string".to_owned(),
        Shape::Map(_) => "; a string that begins with { stands in quotes".to_owned(),
        Shape::Null => String::new(),
    };
    sink.error_at(
        path,
        node.line,
        format!("expected a string, found {}{remedy}", node.described()),
    );
    None
}

/// `timeout_minutes` → `timeoutMinutes`.
pub(super) fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut is_after_gap = false;
    for c in name.chars() {
        if c == '_' {
            is_after_gap = true;
        } else if std::mem::take(&mut is_after_gap) {
            camel.extend(c.to_uppercase());
        } else {
            camel.push(c);
        }
    }
    camel
}

/// `timeoutMinutes` → `timeout_minutes`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
            snake.extend(c.to_lowercase());
        } else {
            snake.push(c);
        }
    }
    snake
}
