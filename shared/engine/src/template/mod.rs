//! Templates: what they may read, compiling them once, and rendering them within bounds.
//!
//! - A template reaches the context's five roots and nothing else: no environment of the process,
//!   no file, no network, no clock, no chance, no other template.
//! - A command's template is safe by construction: each value is escaped for the very place in the
//!   shell's grammar in which it stands, or refused (see [`crate::shell`]).
//! - Compiling finds every error that does not depend on values; rendering finds the others.
//! - Rendering is bounded: by output, by loops, by what filters may build up.
//!
//! Cloning is cheap, and a compiled template can be used from several threads at once.

mod analysis;
mod edits;
mod environment;
mod marks;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde_json::Value as Json;

pub(crate) use analysis::Node;

/// The name Tera knows a template by; without a suffix that would switch HTML escaping on.
const NAME: &str = "template";

/// What a template is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text that nobody runs, such as an agent's goal: values are printed as they are.
    Text,
    /// A shell command: values are escaped for where they stand.
    Command,
}

/// A compiled template.
#[derive(Clone)]
pub struct Template {
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    kind: Kind,
    tera: tera::Tera,
    edits: edits::Edits,
    references: Vec<Reference>,
    printed: Vec<analysis::Printed>,
    sole: Option<usize>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("source", &self.inner.source)
            .field("kind", &self.inner.kind)
            .finish_non_exhaustive()
    }
}

/// One path that a template reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The root, then the static keys and indexes: `["steps", "check-api", "output", "summary"]`.
    pub path: Vec<String>,
    /// Whether a computed index follows the path, as in `steps.a.output[alert.name]`.
    pub is_dynamic: bool,
    /// Whether the root is a loop's variable or one that the template `set`, not the context's.
    pub is_bound: bool,
    /// The byte of the template at which the path begins.
    pub offset: usize,
    /// The line of the template, counted from 1.
    pub line: u32,
}

impl Reference {
    /// The step that is read, when the path leads to one.
    pub fn step(&self) -> Option<&str> {
        match self.path.as_slice() {
            [root, step, ..] if root == "steps" && !self.is_bound => Some(step),
            _ => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path.join("."))
    }
}

/// What is wrong with a template, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the template: {message}")]
pub struct TemplateError {
    /// The byte of the template that is meant.
    pub offset: usize,
    /// The line of the template, counted from 1.
    pub line: u32,
    pub message: String,
}

impl TemplateError {
    pub(crate) fn at(source: &str, offset: usize, message: impl Into<String>) -> Self {
        Self {
            offset,
            line: line_of(source, offset),
            message: message.into(),
        }
    }
}

/// Why a template could not be rendered with these values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RenderError {
    /// The path whose value is missing or refused, where one can be named.
    pub path: Option<String>,
    pub message: String,
}

impl RenderError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            path: None,
            message: message.into(),
        }
    }
}

/// How much a render may make.
#[derive(Clone, Copy, Debug)]
pub struct RenderLimits {
    /// Of the rendered text, escapes included.
    pub output_bytes_max: usize,
}

impl Default for RenderLimits {
    /// 1 MiB: the size of one message on the bus.
    fn default() -> Self {
        Self {
            output_bytes_max: 1024 * 1024,
        }
    }
}

impl Template {
    /// Compiles `source`, which may read the outputs of `steps`.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the text.
    pub fn compile(source: &str, kind: Kind, steps: &[&str]) -> Result<Self, Vec<TemplateError>> {
        Self::compile_with(source, kind, steps, &BTreeSet::new())
    }

    /// The same, for a command whose environment has `variables` that hold values.
    ///
    /// # Errors
    /// As [`Template::compile`].
    pub fn compile_with(
        source: &str,
        kind: Kind,
        steps: &[&str],
        variables: &BTreeSet<String>,
    ) -> Result<Self, Vec<TemplateError>> {
        if let Some(offset) = source.find('\0') {
            return Err(vec![TemplateError::at(
                source,
                offset,
                "a NUL cannot stand in a template",
            )]);
        }
        if marks::is_in(source) {
            return Err(vec![TemplateError::at(
                source,
                0,
                "the private-use characters U+10F1E0 to U+10F1E2 cannot stand in a template; leave them out",
            )]);
        }
        let pieces = tokens::pieces(source).map_err(|error| vec![error])?;
        let mut analysis = analysis::analyse(source, &pieces, kind, steps);
        let mut tera = environment::tera(kind);
        let rewritten = analysis.edits.apply(source);
        if let Err(error) = tera.add_raw_template(NAME, &rewritten)
            && analysis.errors.is_empty()
        {
            analysis
                .errors
                .push(syntax_error(source, &analysis.edits, &error));
        }
        if !analysis.errors.is_empty() {
            // What the shell's walk finds is worth knowing at the same time.
            if kind == Kind::Command
                && matches!(sole(source, &analysis), Ok(None))
                && fold(&mut analysis.nodes, source).is_ok()
            {
                analysis
                    .errors
                    .extend(crate::shell::check(&analysis.nodes, source, variables));
            }
            return Err(in_order(analysis.errors));
        }
        let sole = sole(source, &analysis).map_err(|error| vec![error]);
        let sole = if kind == Kind::Command {
            sole?
        } else {
            sole.unwrap_or_default()
        };
        if kind == Kind::Command && sole.is_none() {
            fold(&mut analysis.nodes, source)?;
            let errors = crate::shell::check(&analysis.nodes, source, variables);
            if !errors.is_empty() {
                return Err(in_order(errors));
            }
        }
        let inner = Inner {
            source: source.to_owned(),
            kind,
            tera,
            edits: analysis.edits,
            references: analysis.references,
            printed: analysis.printed,
            sole,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Every path that `source` reads, as far as it can be followed: for one that does not compile.
    pub(crate) fn references_in(source: &str, kind: Kind, steps: &[&str]) -> Vec<Reference> {
        tokens::pieces(source).map_or_else(
            |_| Vec::new(),
            |pieces| analysis::analyse(source, &pieces, kind, steps).references,
        )
    }

    /// The text it was compiled from.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Every path that the template reads, in the order of the text.
    pub fn references(&self) -> &[Reference] {
        &self.inner.references
    }

    /// The path, when the template is nothing but `{{ path }}`.
    ///
    /// Such a command asks to run text as code: whether it may is the caller's to decide, and
    /// [`Template::render_plain`] gives the text. [`Template::render`] refuses it.
    pub fn sole_expression(&self) -> Option<&Reference> {
        self.inner.sole.and_then(|index| self.inner.references.get(index))
    }

    /// Renders with `context`, an object with the roots; a command's values are escaped.
    ///
    /// # Errors
    /// A value that is missing (with the path, and the keys that exist), one that no escaping
    /// makes safe where it stands, or more output than `limits` allow.
    pub fn render(&self, context: &Json, limits: &RenderLimits) -> Result<String, RenderError> {
        let parts = self.parts(context, limits)?;
        if !parts.iter().any(|part| matches!(part, marks::Part::Value(..))) {
            return plain(parts, limits);
        }
        let mut shell = crate::shell::Writer::new(limits.output_bytes_max);
        for part in &parts {
            match part {
                marks::Part::Text(text) => shell.text(text).map_err(RenderError::new)?,
                marks::Part::Value(printed, value) => {
                    shell
                        .value(value)
                        .map_err(|message| self.refused(*printed, &message))?;
                }
            }
        }
        shell.finish().map_err(RenderError::new)
    }

    /// Renders without escaping anything: for a command that no shell will read.
    ///
    /// # Errors
    /// A value that is missing or (in a command) null, or more output than `limits` allow.
    pub fn render_plain(&self, context: &Json, limits: &RenderLimits) -> Result<String, RenderError> {
        plain(self.parts(context, limits)?, limits)
    }

    fn parts(&self, context: &Json, limits: &RenderLimits) -> Result<Vec<marks::Part>, RenderError> {
        let values = tera::Context::from_serialize(context).map_err(|error| {
            RenderError::new(format!("the context must be an object with the roots: {error}"))
        })?;
        // Marks make the text longer than what comes of it: three characters of four bytes and a letter a value.
        let mut out = Bounded {
            bytes: Vec::new(),
            max: limits.output_bytes_max.saturating_mul(4),
        };
        let rendered = self.inner.tera.render_to(NAME, &values, &mut out);
        if out.bytes.len() >= out.max {
            return Err(too_long(limits));
        }
        rendered.map_err(|error| self.render_error(&error, context))?;
        let printed =
            String::from_utf8(out.bytes).map_err(|_| RenderError::new("what was rendered is not text"))?;
        if self.inner.kind == Kind::Text {
            return Ok(vec![marks::Part::Text(printed)]);
        }
        marks::read(&printed).ok_or_else(|| {
            RenderError::new("a value was changed after it was printed; give the filter to the expression itself: `{{ value | filter }}`")
        })
    }

    /// A value that cannot stand where the template has it.
    fn refused(&self, printed: usize, message: &str) -> RenderError {
        let Some(printed) = self.inner.printed.get(printed) else {
            return RenderError::new(message);
        };
        let expression = &self.inner.source[printed.start..printed.end];
        let line = line_of(&self.inner.source, printed.start);
        RenderError {
            path: Some(expression.to_owned()),
            message: format!("line {line} of the template: `{expression}`: {message}"),
        }
    }

    /// Says what went wrong in the words of the template as written.
    fn render_error(&self, error: &tera::Error, context: &Json) -> RenderError {
        let tera::ErrorKind::RenderingError(report) = error.kind() else {
            return RenderError::new(error.to_string());
        };
        let span = &report.span().range;
        let (start, end) = (
            self.inner.edits.original(span.start),
            self.inner.edits.original(span.end),
        );
        let line = line_of(&self.inner.source, start);
        let inside = self.inner.references.iter().filter(|reference| {
            // Tera's span may begin behind the root, at the attribute it missed.
            let expression_end = self.inner.source[reference.offset..]
                .find(['}', '%'])
                .map_or(usize::MAX, |length| reference.offset + length);
            reference.offset < end.max(start + 1) && start <= expression_end
        });
        let message = report.message();
        let is_null = message.contains(environment::NULL);
        for reference in inside {
            let name = reference.to_string();
            if is_null {
                if lookup(context, &reference.path).is_some_and(Json::is_null) || reference.is_bound {
                    return RenderError {
                        path: Some(name.clone()),
                        message: format!("line {line} of the template: `{name}` {}", environment::NULL),
                    };
                }
            } else if reference.is_bound {
                if message.contains(environment::MISSING) {
                    let message = format!("line {line} of the template: `{name}` has no value");
                    return RenderError {
                        path: Some(name),
                        message,
                    };
                }
            } else if let Some(missing) = missing(context, &reference.path) {
                return RenderError {
                    path: Some(name),
                    message: format!("line {line} of the template: {missing}"),
                };
            }
        }
        RenderError::new(format!("line {line} of the template: {message}"))
    }
}

/// Tera's own complaint, at the place of the template as written.
fn syntax_error(source: &str, edits: &edits::Edits, error: &tera::Error) -> TemplateError {
    match error.kind() {
        tera::ErrorKind::SyntaxError(report) => {
            let offset = edits.original(report.span().range.start).min(source.len());
            TemplateError::at(source, offset, expectation(source, offset, report.message()))
        }
        _ => TemplateError::at(source, 0, error.to_string()),
    }
}

/// Tera's "Found … but expected …" by what is written at the place, since what Tera found may be ours.
fn expectation(source: &str, offset: usize, message: &str) -> String {
    let Some((_, expected)) = message.split_once("but expected ") else {
        return message.to_owned();
    };
    let (before, rest) = source.split_at_checked(offset).unwrap_or((source, ""));
    let rest = rest.trim_start();
    let is_at_end = rest.starts_with("}}") || rest.starts_with("%}");
    let expected = match expected.trim_end_matches('.') {
        "identifier" | "ident" => "a name",
        // What is printed stands in our own parentheses, so that theirs is meant only at the very end.
        ")" | "`)`" if is_at_end => "`)`",
        ")" | "`)`" | "}}" | "`}}`" => "the end of the expression",
        several if several.starts_with("one of: ") => "a value",
        other => other,
    };
    let length = rest.find([' ', '\n', ')', '}', '%']).unwrap_or(rest.len()).max(1);
    let found: String = if is_at_end {
        rest[..2].to_owned()
    } else {
        rest.chars().take(length.min(40)).collect()
    };
    let is_value = rest.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '"' | '\''));
    let hint = match before.trim_end().chars().next_back() {
        Some('.') if is_value => "; an item of a list is written in brackets, as in `list[0]`",
        Some('(' | ',') if is_value => "; arguments have names, as in `default(value=\"none\")`",
        _ => "",
    };
    if found.is_empty() {
        format!("ends where {expected} is expected{hint}")
    } else {
        format!("`{found}` stands where {expected} is expected{hint}")
    }
}

fn in_order(mut errors: Vec<TemplateError>) -> Vec<TemplateError> {
    errors.sort_by_key(|error| error.offset);
    errors.dedup();
    errors
}

/// The only reference of a template that is one bare path; an error when it is some other expression alone.
fn sole(source: &str, analysis: &analysis::Analysis) -> Result<Option<usize>, TemplateError> {
    let mut values = 0;
    for node in &analysis.nodes {
        match node {
            Node::Value(_) => values += 1,
            Node::Text(text) if text.trim().is_empty() => {}
            _ => return Ok(None),
        }
    }
    match (analysis.printed.as_slice(), values) {
        ([printed], 1) if printed.is_path => Ok(Some(0)),
        ([printed], 1) => Err(TemplateError::at(
            source,
            printed.start,
            "a command that is nothing but one expression runs text as code; only a step's output itself may stand there, as in `{{ steps.<agent step>.output.fix_command }}`, without filters or operators",
        )),
        _ => Ok(None),
    }
}

/// Replaces filter sections that hold no expression by the text they make.
fn fold(nodes: &mut [Node], source: &str) -> Result<(), Vec<TemplateError>> {
    for node in nodes {
        match node {
            Node::Fold { start, end } => {
                let mut tera = environment::tera(Kind::Command);
                let text = tera
                    .add_raw_template(NAME, &source[*start..*end])
                    .and_then(|()| tera.render(NAME, &tera::Context::new()))
                    .map_err(|error| vec![TemplateError::at(source, *start, error.to_string())])?;
                if marks::is_in(&text) {
                    let message =
                        "these filters cannot be used on a section of a command; write its text out";
                    return Err(vec![TemplateError::at(source, *start, message)]);
                }
                *node = Node::Text(text);
            }
            Node::If { branches, .. } => {
                for branch in branches {
                    fold(branch, source)?;
                }
            }
            Node::For { body, otherwise, .. } => {
                fold(body, source)?;
                fold(otherwise, source)?;
            }
            Node::Text(_) | Node::Value(_) | Node::Break | Node::Continue => {}
        }
    }
    Ok(())
}

fn plain(parts: Vec<marks::Part>, limits: &RenderLimits) -> Result<String, RenderError> {
    let mut out = String::new();
    for part in parts {
        match part {
            marks::Part::Text(text) => out.push_str(&text),
            marks::Part::Value(_, value) => out.push_str(&value.text),
        }
        if out.len() > limits.output_bytes_max {
            return Err(too_long(limits));
        }
    }
    Ok(out)
}

fn too_long(limits: &RenderLimits) -> RenderError {
    RenderError::new(format!(
        "rendered, this is more than {} bytes; print a part of the values, as in `{{{{ value | truncate(length=1000) }}}}`",
        limits.output_bytes_max
    ))
}

/// The value at `path`, where keys are also indexes of lists.
fn lookup<'j>(context: &'j Json, path: &[String]) -> Option<&'j Json> {
    path.iter().try_fold(context, |value, key| match value {
        Json::Object(map) => map.get(key),
        Json::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// What is missing on the way to `path`, and what exists there instead; `None` when all is there.
fn missing(context: &Json, path: &[String]) -> Option<String> {
    let length = (1..=path.len()).find(|length| lookup(context, &path[..*length]).is_none())?;
    let (parent, key) = (&path[..length - 1], &path[length - 1]);
    let full = path.join(".");
    let at = parent.join(".");
    let at = if at.is_empty() {
        "the context".to_owned()
    } else {
        format!("`{at}`")
    };
    Some(match lookup(context, parent)? {
        Json::Object(map) if map.is_empty() => format!("`{full}` does not exist: {at} is empty"),
        Json::Object(map) => {
            const KEYS_MAX: usize = 20;
            let keys: Vec<&str> = map.keys().map(String::as_str).take(KEYS_MAX).collect();
            let more = if map.len() > KEYS_MAX { ", …" } else { "" };
            let nearest = analysis::nearest(key, map.keys().map(String::as_str));
            format!(
                "`{full}` does not exist: {at} has {}{more}{nearest}",
                keys.join(", ")
            )
        }
        Json::Array(list) => format!("`{full}` does not exist: {at} is a list of {}", list.len()),
        Json::Null => format!("`{full}` does not exist: {at} is null"),
        Json::String(_) => format!("`{full}` does not exist: {at} is a text, which has no keys"),
        Json::Number(_) | Json::Bool(_) => {
            format!("`{full}` does not exist: {at} is a number or boolean, which has no keys")
        }
    })
}

/// The line of a byte, counted from 1.
fn line_of(source: &str, offset: usize) -> u32 {
    let before = source.as_bytes().get(..offset).unwrap_or(source.as_bytes());
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(lines).unwrap_or(u32::MAX).saturating_add(1)
}

/// A buffer that takes so much and no more.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.max.saturating_sub(self.bytes.len());
        if bytes.len() >= room {
            self.bytes.resize(self.max, 0);
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
