//! What earlier steps of the same execution left: stdout and stderr of commands, whole, and any step's output as JSON;
//! a window of lines, or the lines that match.
//!
//! Invariants:
//! - A text is redacted whole before a window of it is taken, and before it is searched: a secret over several lines
//!   is not recognised by its middle, and a pattern must not find out what is hidden.
//! - What is not shown is said: which lines of how many, what was cut, what was never kept.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use protocol::{
    BlobRef,
    lane::{EarlierStep, Left},
};
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::{Surroundings, Tool, ToolError};
use crate::{artefacts::Earlier, redact::Redactor};

/// Lines, or matches, where the call does not say.
const LINES_DEFAULT: u64 = 200;
/// Lines, or matches, that one call may ask for.
const LINES_MAX: u64 = 2000;
/// Lines around a match where the call does not say.
const CONTEXT_DEFAULT: u64 = 2;
/// Lines around a match that may be asked for.
const CONTEXT_MAX: u64 = 50;
/// Bytes of a text that are looked at: twice what `cli.output_spill_bytes_max` is by default.
const TEXT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Characters of a pattern.
const PATTERN_CHARS_MAX: u64 = 500;
/// Bytes of a result that its head and its notes take.
const NOTES_BYTES: usize = 1024;
/// The part of a result that one line may take.
const LINE_PART: usize = 4;
/// Steps that the description names.
const NAMED_STEPS_MAX: usize = 40;

struct ReadFile {
    earlier: Option<Arc<dyn Earlier>>,
    redactor: Redactor,
    output_bytes_max: usize,
    /// The text that was read last: whoever reads on needs it again, and what has ended does not change.
    last: Arc<Mutex<Option<Read>>>,
}

/// A text, ready to be shown.
#[derive(Clone)]
struct Read {
    step: String,
    stream: Stream,
    text: Arc<str>,
    notes: Arc<[String]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
    Output,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Output => "output",
        }
    }
}

/// Makes the tool, for what the step's task names.
///
/// # Errors
/// None.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    Ok(Box::new(ReadFile {
        earlier: surroundings.earlier.cloned(),
        redactor: surroundings.redactor.clone(),
        output_bytes_max: surroundings.output_bytes_max,
        last: Arc::default(),
    }))
}

impl Tool for ReadFile {
    fn description(&self) -> String {
        let steps = self.steps();
        let mut names: Vec<String> = steps.iter().take(NAMED_STEPS_MAX).map(described).collect();
        if steps.len() > NAMED_STEPS_MAX {
            names.push(format!("and {} more", steps.len() - NAMED_STEPS_MAX));
        }
        let steps = match names.is_empty() {
            true => "There are no earlier steps, so there is nothing to read.".to_owned(),
            false => format!("Steps: {}.", names.join(", ")),
        };
        format!(
            "Reads what earlier steps of this execution left, whole, also where the goal shows only a part: stdout and \
             stderr of a command, or any step's output as JSON. Shows numbered lines from `from_line` on, or with `grep` \
             those that match. {steps}"
        )
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["step"],
            "additionalProperties": false,
            "properties": {
                "step": {"type": "string", "description": "The step's name", "minLength": 1, "maxLength": 200},
                "stream": {"type": ["string", "null"], "enum": ["stdout", "stderr", "output", null], "description": "stdout where absent; output is the step's output as JSON, the only one of steps that run no command"},
                "from_line": {"type": ["integer", "null"], "description": "The first line, from 1; a negative number counts from the end, so -50 gives the last 50. 1 where absent", "minimum": -100_000_000, "maximum": 100_000_000},
                "lines": {"type": ["integer", "null"], "description": "Lines at most, or matches with `grep`; 200 where absent", "minimum": 1, "maximum": LINES_MAX},
                "grep": {"type": ["string", "null"], "description": "A regular expression (Rust's regex; (?i) ignores case): only lines that match, from `from_line` on", "maxLength": PATTERN_CHARS_MAX},
                "context": {"type": ["integer", "null"], "description": "Lines around each match; 2 where absent", "minimum": 0, "maximum": CONTEXT_MAX},
            },
        })
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let step = self.step(arguments["step"].as_str().unwrap_or_default().trim())?;
            let stream = stream(step, arguments["stream"].as_str())?;
            let window = Window::read(arguments).map_err(ToolError::Refused)?;
            let read = self.read(step, stream).await?;
            let bytes_max = self.output_bytes_max;
            let head = format!("{} of {}", stream.name(), described(step));
            // A search through a large text must not keep others from going on.
            tokio::task::spawn_blocking(move || shown(&read, &window, &head, bytes_max))
                .await
                .map_err(|error| ToolError::Failed(error.to_string()))
        })
    }
}

/// A step with its type and its end.
fn described(step: &EarlierStep) -> String {
    format!("{} ({}, {})", step.step, step.step_type, step.status.as_str())
}

/// The stream that a call means.
fn stream(step: &EarlierStep, asked: Option<&str>) -> Result<Stream, ToolError> {
    let is_command = step.step_type == "cli" && matches!(step.left, Left::Fact(_));
    match asked {
        Some("output") => Ok(Stream::Output),
        None if !is_command => Ok(Stream::Output),
        Some(_) if !is_command => Err(ToolError::Refused(format!(
            "{} ran no command, and has only its output: use stream=output",
            described(step)
        ))),
        Some("stderr") => Ok(Stream::Stderr),
        _ => Ok(Stream::Stdout),
    }
}

impl ReadFile {
    fn steps(&self) -> &[EarlierStep] {
        self.earlier.as_ref().map_or(&[], |earlier| earlier.steps())
    }

    fn step(&self, name: &str) -> Result<&EarlierStep, ToolError> {
        let steps = self.steps();
        if steps.is_empty() {
            return Err(ToolError::Refused(
                "no step of this execution ended before this one: there is nothing to read".to_owned(),
            ));
        }
        steps
            .iter()
            .find(|step| step.step.as_str() == name)
            .ok_or_else(|| {
                let mut names: Vec<&str> = steps.iter().map(|step| step.step.as_str()).collect();
                names.truncate(NAMED_STEPS_MAX);
                ToolError::Refused(format!(
                    "no step `{name}` ended before this one; there are {}",
                    names.join(", ")
                ))
            })
    }

    async fn read(&self, step: &EarlierStep, stream: Stream) -> Result<Read, ToolError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last.filter(|last| last.step == step.step.as_str() && last.stream == stream) {
            return Ok(last);
        }
        let failed =
            |reason: String| ToolError::Failed(format!("{} cannot be read: {reason}", described(step)));
        let earlier = self
            .earlier
            .as_ref()
            .ok_or_else(|| failed("it is not there".to_owned()))?;
        let output = earlier.output(step).await.map_err(failed)?;
        let mut notes: Vec<String> = output.note.into_iter().collect();
        let Some(value) = output.value else {
            let note = notes.pop().unwrap_or_else(|| "it left nothing".to_owned());
            return Err(failed(note));
        };
        let raw = match stream {
            Stream::Output => Raw::Json(value),
            Stream::Stdout | Stream::Stderr => text(earlier.as_ref(), &value, stream, &mut notes)
                .await
                .map_err(failed)?,
        };
        let (redactor, last, name) = (
            self.redactor.clone(),
            Arc::clone(&self.last),
            step.step.to_string(),
        );
        // A large text takes a while to be searched for secrets.
        let read = move || {
            let read = Read {
                step: name,
                stream,
                text: raw.redacted(&redactor, &mut notes).into(),
                notes: notes.into(),
            };
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(read.clone());
            read
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| failed(error.to_string()))
    }
}

/// A text as it was kept.
enum Raw {
    Json(Value),
    Bytes(bytes::Bytes),
}

impl Raw {
    fn redacted(self, redactor: &Redactor, notes: &mut Vec<String>) -> String {
        let bytes = match self {
            Self::Json(value) => {
                return serde_json::to_string_pretty(&redactor.value(&value)).unwrap_or_default();
            }
            Self::Bytes(bytes) => bytes,
        };
        if bytes.len() > TEXT_BYTES_MAX {
            notes.push(format!(
                "only the first {TEXT_BYTES_MAX} of {} bytes are shown",
                bytes.len()
            ));
        }
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]);
        if matches!(text, std::borrow::Cow::Owned(_)) || bytes.contains(&0) {
            notes.push("not all of it is text: what is none is shown as \u{fffd}".to_owned());
        }
        redactor.text(&text.replace('\0', "\u{fffd}"))
    }
}

/// What a command printed on `stream`: from the object store where its record has only a part of it.
async fn text(
    earlier: &dyn Earlier,
    output: &Value,
    stream: Stream,
    notes: &mut Vec<String>,
) -> Result<Raw, String> {
    let name = stream.name();
    let recorded = output[name].as_str();
    let reference = &output[format!("{name}_ref")];
    if !reference.is_null() {
        let blob: BlobRef = serde_json::from_value(reference.clone())
            .map_err(|error| format!("its {name}_ref is none: {error}"))?;
        if let Some(bytes) = earlier.whole(&blob).await? {
            notes.extend(recorded.and_then(|recorded| kept_part(recorded, &blob)));
            return Ok(Raw::Bytes(bytes));
        }
        notes.push(format!(
            "shortened: the object store has the whole {name} no more"
        ));
    }
    match recorded {
        Some(recorded) => Ok(Raw::Bytes(recorded.to_owned().into())),
        None => Err(format!("its output has no {name}; use stream=output")),
    }
}

/// That a command printed more than was kept of it: its record says so where it was cut.
fn kept_part(recorded: &str, blob: &BlobRef) -> Option<String> {
    let (_, rest) = recorded.split_once(&format!("the first {} of ", blob.bytes))?;
    let (total, _) = rest.split_once(" bytes are in ")?;
    let total: u64 = total.parse().ok()?;
    Some(format!(
        "the command printed {total} bytes; the first {} were kept",
        blob.bytes
    ))
}

/// Which lines a call wants.
struct Window {
    /// From 1; negative from the end.
    from_line: i64,
    lines: usize,
    grep: Option<(Regex, usize)>,
}

impl Window {
    fn read(arguments: &Value) -> Result<Self, String> {
        let count = |key: &str, default: u64| {
            usize::try_from(arguments[key].as_u64().unwrap_or(default)).unwrap_or(usize::MAX)
        };
        let from_line = arguments["from_line"].as_i64().unwrap_or(1);
        if from_line == 0 {
            return Err("from_line counts from 1; -1 is the last line".to_owned());
        }
        let grep = match arguments["grep"].as_str().filter(|pattern| !pattern.is_empty()) {
            Some(pattern) => {
                let regex = RegexBuilder::new(pattern)
                    .size_limit(PATTERN_BYTES_MAX)
                    .dfa_size_limit(PATTERN_BYTES_MAX)
                    .build()
                    .map_err(|error| format!("grep is no regular expression that can be used: {error}"))?;
                Some((regex, count("context", CONTEXT_DEFAULT)))
            }
            None => None,
        };
        Ok(Self {
            from_line,
            lines: count("lines", LINES_DEFAULT),
            grep,
        })
    }
}

fn shown(read: &Read, window: &Window, head: &str, output_bytes_max: usize) -> String {
    // Lines are never collected: a text of nothing but line ends would take many times its size.
    let text = &*read.text;
    let count = text.lines().count();
    let first = match window.from_line {
        from_end if from_end < 0 => {
            let back = usize::try_from(from_end.unsigned_abs()).unwrap_or(usize::MAX);
            count.saturating_sub(back)
        }
        from => usize::try_from(from - 1).unwrap_or(usize::MAX),
    };
    let page = Page {
        body: String::new(),
        bytes_left: output_bytes_max.saturating_sub(NOTES_BYTES),
        line_bytes_max: output_bytes_max / LINE_PART,
        next: 0,
    };
    let (told, body) = match &window.grep {
        _ if count == 0 => ("it is empty".to_owned(), String::new()),
        _ if first >= count => (format!("there is no line {}", window.from_line), String::new()),
        Some((regex, context)) => matching(text, first, window.lines, regex, *context, page),
        None => plain(text, first, window.lines, count, page),
    };
    let mut shown = format!("{head}, {count} lines, {} bytes: {told}", text.len());
    for note in read.notes.iter() {
        // Writing into a String cannot fail.
        let _ = write!(shown, "\n({note})");
    }
    if !body.is_empty() {
        let _ = write!(shown, "\n{}", body.trim_end_matches('\n'));
    }
    shown
}

/// Lines that are shown, within what a result may hold.
struct Page {
    body: String,
    bytes_left: usize,
    line_bytes_max: usize,
    /// The line after the last one that is shown, from 0.
    next: usize,
}

impl Page {
    /// Adds a line with its number, from 0. False where it does not fit: there is always room for one.
    fn add(&mut self, at: usize, mark: char, line: &str) -> bool {
        let is_first = self.body.is_empty();
        let gap = if is_first || at == self.next { "" } else { "--\n" };
        let end = line.floor_char_boundary(self.line_bytes_max);
        let mut text = format!("{gap}{}{mark} {}", at + 1, &line[..end]);
        if end < line.len() {
            let _ = write!(text, "… [{} bytes of this line cut]", line.len() - end);
        }
        text.push('\n');
        if text.len() > self.bytes_left && !is_first {
            return false;
        }
        self.bytes_left = self.bytes_left.saturating_sub(text.len());
        self.body.push_str(&text);
        self.next = at + 1;
        true
    }
}

fn plain(text: &str, first: usize, lines: usize, count: usize, mut page: Page) -> (String, String) {
    for (at, line) in text.lines().enumerate().skip(first).take(lines) {
        if !page.add(at, ':', line) {
            break;
        }
    }
    let mut told = format!("lines {} to {}", first + 1, page.next);
    if page.next < count {
        let _ = write!(told, "; more with from_line={}", page.next + 1);
    }
    (told, page.body)
}

/// The first `count` lines from `first` on that match, with their neighbours.
fn matching(
    text: &str,
    first: usize,
    count: usize,
    regex: &Regex,
    context: usize,
    mut page: Page,
) -> (String, String) {
    let mut before: VecDeque<(usize, &str)> = VecDeque::new();
    let mut neighbours_left = 0;
    let (mut total, mut shown, mut last_shown) = (0_usize, 0, first);
    let mut is_full = false;
    for (at, line) in text.lines().enumerate() {
        let is_match = at >= first && regex.is_match(line);
        total += usize::from(is_match);
        if is_full {
            continue;
        }
        let is_wanted = is_match && shown < count;
        if is_wanted {
            is_full = before.drain(..).any(|(at, line)| !page.add(at, '-', line));
            neighbours_left = context + 1;
        }
        if neighbours_left > 0 {
            neighbours_left -= 1;
            is_full = is_full || !page.add(at, if is_match { ':' } else { '-' }, line);
            if is_match && !is_full {
                shown += 1;
                last_shown = at;
            }
        } else {
            before.push_back((at, line));
            if before.len() > context {
                before.pop_front();
            }
        }
    }
    let mut told = match total {
        0 => format!("no line from {} on matches", first + 1),
        total => format!("{shown} of {total} lines that match from {} on", first + 1),
    };
    if shown == 0 && total > 0 {
        told.push_str("; the lines before the first fill the result, so ask for less context");
    } else if shown < total {
        let _ = write!(told, "; more with from_line={}", last_shown + 2);
    }
    (told, page.body)
}
