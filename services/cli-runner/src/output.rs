//! What a finished command leaves: the step's output, and its outcome in words.
//!
//! | key of the output | |
//! |---|---|
//! | `stdout`, `stderr` | text, at most `cli.output_inline_bytes_max` bytes; of more, head and tail, with a note between |
//! | `exit_code` | 128 + n where signal n ended it; absent where the system did not report it |
//! | `command` | as rendered |
//! | `duration_ms` | from its beginning to its end |
//! | `json` | where stdout is one JSON value of at most 1 MiB |
//! | `fix` | of a command that passed the fix gate: who proposed it, what ran, what the dry run answered, the outcome |
//! | `not_stored` | why the output is a shortened one, with no whole anywhere: the object store did not take it |
//! | `stdout_ref`, `stderr_ref` | where the text is not exactly what was printed: `{"sha256", "bytes"}` of the object in `fist-blobs` that is |
//!
//! Invariant: a text that is not all that was printed says so, and where the rest is.

use bus::runner::NotStored;
use nix::sys::signal::Signal;
use protocol::{BlobRef, Outcome, StepError, StepFailure, Task, lane::CliWork};
use serde_json::{Map, Value, json};

use crate::{
    capture::{Capture, Limits},
    dry_run::DryRun,
    executor::{End, Finished},
};

/// Bytes of stdout that are looked at for a JSON value: what `kubectl get -o json` prints of a large object.
const JSON_BYTES_MAX: usize = 1024 * 1024;

/// Characters of a store's reason.
const NOT_STORED_CHARS_MAX: usize = 500;

/// How kubectl begins what the API server said.
const FROM_SERVER: &str = "Error from server";

/// Where the whole of one stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spill {
    /// In the output itself.
    NotNeeded,
    /// In the object store, up to the limit.
    Stored(BlobRef),
    /// Nowhere, for this reason.
    Failed(String),
}

/// What of `capture` must be kept apart, because the output cannot hold it as it is.
pub fn to_spill(capture: &Capture, limits: Limits) -> Option<&[u8]> {
    match capture.as_text(limits.inline_bytes_max) {
        Some(_) => None,
        None => Some(capture.kept()),
    }
}

/// The output of a finished command.
pub fn output(command: &str, finished: &Finished, spills: [&Spill; 2], limits: Limits) -> Value {
    let [stdout_spill, stderr_spill] = spills;
    let mut output = Map::new();
    output.insert(
        "stdout".into(),
        text("stdout", &finished.stdout, stdout_spill, limits).into(),
    );
    output.insert(
        "stderr".into(),
        text("stderr", &finished.stderr, stderr_spill, limits).into(),
    );
    if let Some(code) = exit_code(&finished.end) {
        output.insert("exit_code".into(), code.into());
    }
    output.insert("command".into(), command.into());
    let duration_ms = u64::try_from(finished.duration.as_millis()).unwrap_or(u64::MAX);
    output.insert("duration_ms".into(), duration_ms.into());
    if let Some(value) = json_value(&finished.stdout) {
        output.insert("json".into(), value);
    }
    for (key, spill) in [("stdout_ref", stdout_spill), ("stderr_ref", stderr_spill)] {
        if let Spill::Stored(blob) = spill {
            output.insert(key.into(), json!(blob));
        }
    }
    Value::Object(output)
}

fn text(stream: &str, capture: &Capture, spill: &Spill, limits: Limits) -> String {
    capture.text(limits.inline_bytes_max, |cut| {
        let rest = match spill {
            Spill::Stored(_) if capture.is_whole() => format!("the whole is in {stream}_ref"),
            Spill::Stored(blob) => {
                format!(
                    "the first {} of {} bytes are in {stream}_ref",
                    blob.bytes,
                    capture.bytes()
                )
            }
            Spill::Failed(reason) => format!("the whole could not be stored: {reason}"),
            Spill::NotNeeded => "not kept".to_owned(),
        };
        format!("\n… [{cut} bytes cut; {rest}] …\n")
    })
}

fn json_value(stdout: &Capture) -> Option<Value> {
    let text = stdout.as_text(JSON_BYTES_MAX)?;
    serde_json::from_str(text).ok()
}

fn exit_code(end: &End) -> Option<i32> {
    match end {
        End::Exited(code) => Some(*code),
        End::OutOfMemory(code) => Some(*code),
        End::Signalled(signal) => Some(128 + signal),
        End::TimedOut(code) | End::Cancelled(code) => *code,
    }
}

/// A command that passed the fix gate, for the record.
pub struct Fix<'a> {
    /// What was run.
    pub argv: &'a [String],
    /// The task's work.
    pub work: &'a CliWork,
    /// What the server said before.
    pub dry_run: Option<&'a DryRun>,
    /// Which runner ran it.
    pub runner: &'a str,
}

impl Fix<'_> {
    /// What stands in the step's output; it is logged as well.
    pub fn record(&self, task: &Task, outcome: &Outcome) -> Value {
        let command = self.argv.join(" ");
        // What a command said may hold a secret: it goes to the record, and not to the log.
        let (outcome, kind) = match outcome {
            Outcome::Succeeded => ("succeeded".to_owned(), "succeeded".to_owned()),
            Outcome::Failed(error) => (error.message.clone(), format!("{:?}", error.reason)),
            Outcome::Skipped { message } => (message.clone(), "skipped".to_owned()),
        };
        tracing::info!(
            target: "audit",
            namespace = %task.namespace,
            workflow = %task.workflow,
            execution = %task.execution,
            step = %task.step,
            attempt = %task.attempt,
            proposed_by = self.work.proposed_by,
            command,
            outcome = kind,
            "a command that passed the fix gate came to its end"
        );
        json!({
            "proposed_by": self.work.proposed_by,
            "command": command,
            "dry_run": self.dry_run.map(DryRun::value),
            "runner": self.runner,
            "outcome": outcome,
        })
    }
}

/// How the attempt came out.
pub fn outcome(task: &Task, finished: &Finished, dry_run: Option<&DryRun>) -> Outcome {
    let failed_dry_run = dry_run.filter(|dry_run| dry_run.exit_code != 0);
    if let (Some(dry_run), End::Exited(_)) = (failed_dry_run, &finished.end) {
        return not_run(dry_run);
    }
    let (reason, message) = match &finished.end {
        End::Exited(0) => return Outcome::Succeeded,
        End::Exited(code) => (StepFailure::Command, exited(*code, &finished.stderr)),
        End::Signalled(signal) => {
            let ended = with_last_line(format!("killed by {}", signal_name(*signal)), &finished.stderr);
            (StepFailure::Command, ended)
        }
        End::OutOfMemory(code) => (
            StepFailure::Command,
            format!(
                "OOMKilled (exit code {code}): the command used more memory than its limit; raise the step's resources.limits.memory"
            ),
        ),
        End::TimedOut(_) => (StepFailure::Timeout, timed_out(task)),
        End::Cancelled(_) => (
            StepFailure::Cancelled,
            "cancelled while the command ran; it was ended".to_owned(),
        ),
    };
    Outcome::Failed(StepError { reason, message })
}

/// A command whose dry run failed: the server said no, or it could not be asked.
fn not_run(dry_run: &DryRun) -> Outcome {
    let mut said = Capture::new(Limits {
        inline_bytes_max: dry_run.said.len(),
        spill_bytes_max: dry_run.said.len(),
    });
    said.push(dry_run.said.as_bytes());
    let line = said.last_line().unwrap_or_default();
    let (reason, message) = match dry_run.said.contains(FROM_SERVER) {
        true => (
            StepFailure::Refused,
            format!("not run: the server refused it in a dry run: {line}"),
        ),
        false => {
            let code = dry_run.exit_code;
            let what = format!("not run: its dry run failed (exit code {code}): {line}");
            (StepFailure::Command, what)
        }
    };
    Outcome::Failed(StepError { reason, message })
}

/// Says which limit was hit.
pub fn timed_out(task: &Task) -> String {
    format!("timed out after {}", task.timeout)
}

fn exited(code: i32, stderr: &Capture) -> String {
    // A shell reports a child's signal so; nothing else is meant by such codes on purpose.
    let hint = match code {
        126 => " (found, but not executable)".to_owned(),
        129..=159 => format!(" ({} ended it)", signal_name(code - 128)),
        _ => String::new(),
    };
    with_last_line(format!("exit code {code}{hint}"), stderr)
}

fn with_last_line(what: String, stderr: &Capture) -> String {
    match stderr.last_line() {
        Some(line) => format!("{what}: {line}"),
        None => what,
    }
}

fn signal_name(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(known) => format!("{known} (signal {signal})"),
        Err(_) => format!("signal {signal}"),
    }
}

/// Bytes to which the texts of a preview are cut at first.
const PREVIEW_TEXT_BYTES_MAX: usize = 16 * 1024;

/// The same output with long texts cut, at most `bytes_max` of JSON: what is shown where the whole is in the
/// object store.
pub fn preview(output: &Value, bytes_max: usize) -> Value {
    let mut text_bytes_max = PREVIEW_TEXT_BYTES_MAX;
    loop {
        let preview = shortened(output, text_bytes_max);
        // Escapes can make text six times as long, so the limit is found by trying.
        if text_bytes_max == 0 || preview.to_string().len() <= bytes_max {
            return preview;
        }
        text_bytes_max /= 2;
    }
}

/// The output where the store refused the whole: its preview, which says so.
pub fn not_stored(refused: NotStored) -> Value {
    let mut output = refused.preview;
    let reason: String = refused
        .error
        .to_string()
        .chars()
        .take(NOT_STORED_CHARS_MAX)
        .collect();
    if let Value::Object(fields) = &mut output {
        let text = format!("this output is shortened, and the whole could not be stored: {reason}");
        fields.insert("not_stored".into(), text.into());
    }
    output
}

fn shortened(output: &Value, text_bytes_max: usize) -> Value {
    let Value::Object(fields) = output else {
        return Value::Null;
    };
    let fields = fields.iter().filter_map(|(key, value)| match value {
        Value::String(text) => Some((key.clone(), Value::String(middle_out(text, text_bytes_max)))),
        // `json` says again what stdout says: all of it or nothing, for half a value would mislead.
        value if key == "json" && value.to_string().len() > text_bytes_max => None,
        value => Some((key.clone(), value.clone())),
    });
    Value::Object(fields.collect())
}

fn middle_out(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(bytes_max / 2);
    let tail = text.ceil_char_boundary(text.len() - bytes_max / 2);
    let cut = tail - head;
    format!(
        "{}\n… [{cut} bytes not shown; they are in the whole output] …\n{}",
        &text[..head],
        &text[tail..]
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use protocol::Timestamp;

    use super::*;

    const LIMITS: Limits = Limits {
        inline_bytes_max: 200,
        spill_bytes_max: 1000,
    };

    fn finished(end: End, stdout: &[u8], stderr: &[u8]) -> Finished {
        let mut captures = [stdout, stderr].map(|bytes| {
            let mut capture = Capture::new(LIMITS);
            capture.push(bytes);
            capture
        });
        Finished {
            end,
            stderr: std::mem::replace(&mut captures[1], Capture::new(LIMITS)),
            stdout: std::mem::replace(&mut captures[0], Capture::new(LIMITS)),
            started_at: Timestamp::from_millis(0),
            duration: Duration::from_millis(1234),
        }
    }

    fn task() -> Task {
        serde_json::from_value(json!({
            "namespace": "default", "execution": "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f", "workflow": "w",
            "step": "s", "index": 0, "attempt": 1, "type": "cli", "dispatched_at": "2026-01-01T00:00:00Z",
            "deadline": "2026-01-01T00:10:00Z", "timeout": "10 minutes (timeout_minutes: 10)", "work": {},
        }))
        .unwrap()
    }

    fn words(end: End, stderr: &[u8]) -> String {
        match outcome(&task(), &finished(end, b"", stderr), None) {
            Outcome::Failed(error) => format!("{:?}: {}", error.reason, error.message),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn an_output_that_was_not_stored_says_so() {
        let refused = NotStored {
            preview: json!({"stdout": "1 … 9"}),
            error: bus::LogError::Full {
                stream: "OBJ_fist-blobs".to_owned(),
                reason: "maximum bytes exceeded".to_owned(),
            },
        };
        let output = not_stored(refused);
        assert_eq!(output["stdout"], "1 … 9");
        let told = output["not_stored"].as_str().unwrap();
        assert!(
            told.starts_with("this output is shortened") && told.contains("OBJ_fist-blobs is full"),
            "{told}"
        );
    }

    #[test]
    fn outcomes_in_words() {
        for (end, stderr, text) in [
            (End::Exited(0), "warning\n", "Succeeded"),
            (End::Exited(3), "one\ntwo\n\n", "Command: exit code 3: two"),
            (End::Exited(3), "", "Command: exit code 3"),
            (
                End::Exited(137),
                "",
                "Command: exit code 137 (SIGKILL (signal 9) ended it)",
            ),
            (
                End::OutOfMemory(137),
                "",
                "Command: OOMKilled (exit code 137): the command used more memory than its limit; raise the step's resources.limits.memory",
            ),
            (End::Signalled(11), "", "Command: killed by SIGSEGV (signal 11)"),
            (
                End::TimedOut(Some(143)),
                "x",
                "Timeout: timed out after 10 minutes (timeout_minutes: 10)",
            ),
            (
                End::Cancelled(None),
                "x",
                "Cancelled: cancelled while the command ran; it was ended",
            ),
        ] {
            assert_eq!(words(end, stderr.as_bytes()), text);
        }
    }

    #[test]
    fn an_output_has_the_documented_keys() {
        let small = finished(End::Exited(0), b"{\"name\": \"web-1\"}\n", b"note\n");
        assert_eq!(
            output("get", &small, [&Spill::NotNeeded; 2], LIMITS),
            json!({
                "stdout": "{\"name\": \"web-1\"}\n", "stderr": "note\n", "exit_code": 0, "command": "get",
                "duration_ms": 1234, "json": {"name": "web-1"},
            })
        );
        for no_value in ["", "web-1\n", "{} {}", "[1,"] {
            let printed = finished(End::Exited(0), no_value.as_bytes(), b"");
            assert_eq!(
                output("get", &printed, [&Spill::NotNeeded; 2], LIMITS).get("json"),
                None,
                "{no_value}"
            );
        }
        let killed = finished(End::Signalled(9), b"", b"");
        assert_eq!(
            output("x", &killed, [&Spill::NotNeeded; 2], LIMITS)["exit_code"],
            137
        );
    }

    #[test]
    fn cut_texts_say_where_the_rest_is() {
        let blob = |bytes| {
            Spill::Stored(BlobRef {
                sha256: "0a".repeat(32),
                bytes,
            })
        };
        for (length, spill, note) in [
            (500, blob(500), "the whole is in stdout_ref] …"),
            (
                5000,
                blob(1000),
                "the first 1000 of 5000 bytes are in stdout_ref] …",
            ),
            (
                500,
                Spill::Failed("NATS is away".into()),
                "the whole could not be stored: NATS is away] …",
            ),
        ] {
            let long = finished(End::Exited(0), &vec![b'x'; length], b"");
            assert!(to_spill(&long.stdout, LIMITS).is_some());
            let output = output("x", &long, [&spill, &Spill::NotNeeded], LIMITS);
            let text = output["stdout"].as_str().unwrap();
            assert!(text.contains(note) && text.len() <= 200, "{text}");
            assert_eq!(
                output.get("stdout_ref").is_some(),
                matches!(spill, Spill::Stored(_))
            );
        }
        assert!(to_spill(&finished(End::Exited(0), b"\xff", b"").stdout, LIMITS).is_some());
        assert!(to_spill(&finished(End::Exited(0), b"text", b"").stdout, LIMITS).is_none());
    }

    #[test]
    fn a_preview_has_the_same_shape_and_fits() {
        let long = "\u{1}".repeat(100_000);
        let whole =
            json!({"stdout": long, "stderr": "short", "exit_code": 0, "command": "c", "json": [long]});
        let preview = preview(&whole, 64 * 1024);
        assert!(preview.to_string().len() <= 64 * 1024);
        assert_eq!(
            (&preview["stderr"], &preview["exit_code"]),
            (&json!("short"), &json!(0))
        );
        assert!(preview["stdout"].as_str().unwrap().contains("bytes not shown"));
        assert_eq!(preview.get("json"), None);
    }

    #[test]
    fn a_dry_run_that_failed_says_whether_the_server_refused() {
        let dry_run = |exit_code: i32, said: &str| DryRun {
            exit_code,
            said: said.into(),
        };
        for (end, dry_run, reason, part) in [
            (
                End::Exited(1),
                dry_run(
                    1,
                    "warning: x\nError from server (Forbidden): pods \"a\" is forbidden",
                ),
                StepFailure::Refused,
                "refused it in a dry run: Error from server (Forbidden)",
            ),
            (
                End::Exited(127),
                dry_run(127, "sh: kubectl: not found"),
                StepFailure::Command,
                "its dry run failed (exit code 127): sh: kubectl: not found",
            ),
            (
                End::OutOfMemory(137),
                dry_run(137, ""),
                StepFailure::Command,
                "OOMKilled",
            ),
            (
                End::TimedOut(None),
                dry_run(143, ""),
                StepFailure::Timeout,
                "timed out after",
            ),
            (
                End::Exited(2),
                dry_run(0, "pod/a deleted (server dry run)"),
                StepFailure::Command,
                "exit code 2",
            ),
        ] {
            match outcome(&task(), &finished(end, b"", b""), Some(&dry_run)) {
                Outcome::Failed(error) => {
                    assert_eq!(error.reason, reason, "{error:?}");
                    assert!(error.message.contains(part), "{error:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
