//! What earlier steps of the same execution left: stdout and stderr of commands, whole, and any step's output as JSON;
//! a window of lines, or the lines that match.
//!
//! Invariants:
//! - A text is redacted whole before a window of it is taken, and before it is searched: a secret over several lines
//!   is not recognised by its middle, and a pattern must not find out what is hidden.
//! - What is not shown is said: which lines of how many, what was cut, what was never kept.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use protocol::{
    BlobRef,
    lane::{EarlierStep, Left},
};
use serde_json::{Value, json};

use super::{
    Surroundings, Tool, ToolError,
    window::{self, Window},
};
use crate::{artefacts::Earlier, redact::Redactor};

/// By what name workflows and models call it.
pub const NAME: &str = "read_file";

/// Bytes of a text that are looked at: twice what `cli.output_spill_bytes_max` is by default.
const TEXT_BYTES_MAX: usize = 32 * 1024 * 1024;
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
        let mut schema = json!({
            "type": "object",
            "required": ["step"],
            "additionalProperties": false,
            "properties": {
                "step": {"type": "string", "description": "The step's name", "minLength": 1, "maxLength": 200},
                "stream": {"type": ["string", "null"], "enum": ["stdout", "stderr", "output", null], "description": "stdout where absent; output is the step's output as JSON, the only one of steps that run no command"},
            },
        });
        window::add_properties(&mut schema);
        schema
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
            tokio::task::spawn_blocking(move || window.show(&read.text, &head, &read.notes, bytes_max))
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
