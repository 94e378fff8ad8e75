//! The events of an execution: reading the server's stream, and the lines that a person sees.
//!
//! Invariants:
//! - An event is told once, also when the connection broke in between: the stream resumes after the last id.
//! - A line is never rewritten; what is piped reads as what is seen.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use protocol::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::show::{Style, Tone, age::took, clean, one_line, tone_of};

/// One event, as the API gives it.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which step.
    #[serde(default)]
    pub step: Option<String>,
    /// Which attempt at it.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// How the step, or the execution, stands now.
    #[serde(default)]
    pub status: Option<String>,
    /// What there is to say.
    #[serde(default)]
    pub message: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// What only this kind has.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Event {
    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        self.kind == "execution.completed"
    }
}

/// Bytes of the largest event that is read; the server's are far smaller.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// Takes a `text/event-stream` apart.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// The id of the last event that had one: where to resume.
    pub last_id: Option<String>,
}

impl Frames {
    /// The data of all events that this piece completes.
    ///
    /// # Errors
    /// In words, that no server of ours sent this.
    pub fn read(&mut self, piece: &[u8]) -> Result<Vec<String>, String> {
        self.buffer.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let frame = String::from_utf8_lossy(&frame);
            let mut data = Vec::new();
            for line in frame.lines() {
                match line.split_once(':') {
                    Some(("data", value)) => data.push(value.strip_prefix(' ').unwrap_or(value)),
                    Some(("id", value)) => self.last_id = Some(value.trim().to_owned()),
                    _ => {}
                }
            }
            if !data.is_empty() {
                events.push(data.join("\n"));
            }
        }
        if self.buffer.len() > EVENT_BYTES_MAX {
            return Err(format!("an event is larger than {EVENT_BYTES_MAX} bytes"));
        }
        Ok(events)
    }

    /// Forgets a half event, since the connection that brought it is gone.
    pub fn broken(&mut self) {
        self.buffer.clear();
    }
}

/// Tells events as lines.
#[derive(Debug, Default)]
pub struct Teller {
    style: Style,
    shows_logs: bool,
    began: Option<Timestamp>,
    name: String,
    order: HashMap<String, usize>,
    total: usize,
    width: usize,
    started: HashMap<(String, u32), Timestamp>,
    kinds: HashMap<String, String>,
    /// Attempts of which lines were told, as they were printed or from the record.
    lines_told: HashSet<(String, u32)>,
    /// Why the last step that failed did, as it was told.
    step_error: Option<String>,
    /// How it ended, once it has: the state.
    pub ended: Option<String>,
}

/// Characters of a message within a line.
const MESSAGE_CHARS_MAX: usize = 160;

impl Teller {
    /// For a stream of this style.
    pub fn new(style: Style, shows_logs: bool) -> Self {
        Self {
            style,
            shows_logs,
            ..Self::default()
        }
    }

    /// The lines that tell this event; none where it is of no interest.
    pub fn tell(&mut self, event: &Event) -> Vec<String> {
        match event.kind.as_str() {
            "execution.accepted" => self.accepted(event),
            "step.started" => self.step_started(event),
            "step.completed" => self.step_completed(event),
            "agent.turn" => self.said(event),
            "agent.tool" => self.tool(event),
            "log.line" if self.shows_logs && self.is_at_work(event) => self.log_line(event),
            "execution.cancel_requested" => {
                let reason = one_line(event.message.as_deref().unwrap_or_default(), MESSAGE_CHARS_MAX);
                vec![self.line(event, &format!("asked to cancel: {reason}"))]
            }
            "execution.completed" => self.completed(event),
            _ => Vec::new(),
        }
    }

    fn accepted(&mut self, event: &Event) -> Vec<String> {
        self.began = Some(event.at);
        let text = |key: &str| {
            event
                .more
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        self.name = text("name");
        let steps = event
            .more
            .get("steps")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for (index, step) in steps.iter().enumerate() {
            let name = step["name"].as_str().unwrap_or_default().to_owned();
            self.width = self.width.max(name.chars().count());
            self.kinds
                .insert(name.clone(), step["type"].as_str().unwrap_or_default().to_owned());
            self.order.insert(name, index + 1);
        }
        self.total = steps.len();
        let plural = if self.total == 1 { "step" } else { "steps" };
        let name = self.style.paint(Tone::Strong, &self.name);
        let rest = format!(
            "{name} {} ({} {plural}, namespace {})",
            text("id"),
            self.total,
            text("namespace")
        );
        vec![self.line(event, &rest)]
    }

    fn step_started(&mut self, event: &Event) -> Vec<String> {
        let step = event.step.clone().unwrap_or_default();
        self.started
            .insert((step.clone(), event.attempt.unwrap_or(0)), event.at);
        let kind = event
            .more
            .get("step_type")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let mut rest = kind
            .or_else(|| self.kinds.get(&step).cloned())
            .unwrap_or_default();
        if let Some(limit) = event
            .more
            .get("timeout")
            .and_then(Value::as_str)
            .filter(|limit| !limit.is_empty())
        {
            // The limit as it reads, without the field that set it.
            rest.push_str(&format!(
                ", at most {}",
                limit.split(" (").next().unwrap_or(limit)
            ));
        }
        let rest = self.style.paint(Tone::Faint, &rest);
        vec![self.step_line(event, "Running", &rest)]
    }

    fn step_completed(&mut self, event: &Event) -> Vec<String> {
        let key = (event.step.clone().unwrap_or_default(), event.attempt.unwrap_or(0));
        let by_clock = self.started.remove(&key).map(|started| event.at.since(started));
        let by_runner = event
            .more
            .get("duration_ms")
            .and_then(Value::as_u64)
            .map(Duration::from_millis);
        let status = event.status.as_deref().unwrap_or("Succeeded");
        let mut rest = by_runner.or(by_clock).map(took).unwrap_or_default();
        if let Some(message) = event.message.as_deref().filter(|message| !message.is_empty()) {
            let gap = if rest.is_empty() { "" } else { "  " };
            rest.push_str(&format!("{gap}{}", one_line(message, MESSAGE_CHARS_MAX)));
        }
        let mut lines = self.recorded_lines(event, &key);
        lines.push(self.step_line(event, status, &rest));
        if let Some(error) = &event.error {
            lines.extend(self.below(error, Tone::Bad));
            self.step_error = Some(error.clone());
        }
        lines
    }

    fn said(&self, event: &Event) -> Vec<String> {
        let text = one_line(event.message.as_deref().unwrap_or_default(), MESSAGE_CHARS_MAX);
        if text.is_empty() {
            Vec::new()
        } else {
            vec![self.detail(&self.style.paint(Tone::Faint, &text))]
        }
    }

    fn tool(&self, event: &Event) -> Vec<String> {
        let text = |key: &str| event.more.get(key).and_then(Value::as_str).unwrap_or_default();
        let call = shown_call(text("tool"), event.more.get("arguments").unwrap_or(&Value::Null));
        let failed = event
            .more
            .get("is_error")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let duration = event
            .more
            .get("duration_ms")
            .and_then(Value::as_u64)
            .map(Duration::from_millis);
        let mut line = format!("→ {}", one_line(&call, MESSAGE_CHARS_MAX));
        if let Some(duration) = duration {
            line.push_str(&self.style.paint(Tone::Faint, &format!("  {}", took(duration))));
        }
        let mut lines = vec![self.detail(&line)];
        if failed {
            let error = event.error.as_deref().unwrap_or("failed");
            lines.push(
                self.detail(
                    &self
                        .style
                        .paint(Tone::Bad, &format!("  {}", one_line(error, MESSAGE_CHARS_MAX))),
                ),
            );
        }
        lines
    }

    /// Whether the step's end has not been told: lines that come after it were told from the record.
    fn is_at_work(&self, event: &Event) -> bool {
        let key = (event.step.clone().unwrap_or_default(), event.attempt.unwrap_or(0));
        self.started.contains_key(&key) || self.lines_told.contains(&key)
    }

    fn log_line(&mut self, event: &Event) -> Vec<String> {
        self.lines_told
            .insert((event.step.clone().unwrap_or_default(), event.attempt.unwrap_or(0)));
        vec![self.printed(event.message.as_deref().unwrap_or_default())]
    }

    fn printed(&self, text: &str) -> String {
        self.detail(&self.style.paint(Tone::Faint, &format!("│ {}", clean(text))))
    }

    /// What a step printed, from its record, where none of it was told as it was printed: live lines are lossy,
    /// and a brief command is over before they can be followed.
    fn recorded_lines(&self, event: &Event, key: &(String, u32)) -> Vec<String> {
        if !self.shows_logs || self.lines_told.contains(key) {
            return Vec::new();
        }
        let output = event.more.get("output").unwrap_or(&Value::Null);
        ["stdout", "stderr"]
            .iter()
            .filter_map(|stream| output.get(stream).and_then(Value::as_str))
            .flat_map(str::lines)
            .map(|line| self.printed(line))
            .collect()
    }

    fn completed(&mut self, event: &Event) -> Vec<String> {
        let status = event.status.clone().unwrap_or_default();
        let name = self.style.paint(Tone::Strong, &self.name);
        let mut lines = vec![self.line(event, &format!("{name} {}", self.style.state(&status)))];
        // What the failed step said stands just above; only what it did not say is news.
        let is_news = |error: &&String| {
            self.step_error
                .as_ref()
                .is_none_or(|told| !error.ends_with(told.as_str()))
        };
        if let Some(error) = event.error.as_ref().filter(is_news) {
            lines.extend(self.below(error, Tone::Bad));
        }
        self.ended = Some(status);
        lines
    }

    fn line(&self, event: &Event, rest: &str) -> String {
        let since = self.began.map_or(Duration::ZERO, |began| event.at.since(began));
        format!("{:>8}  {rest}", took(since))
    }

    fn step_line(&self, event: &Event, status: &str, rest: &str) -> String {
        let step = clean(event.step.as_deref().unwrap_or_default());
        let place = self
            .order
            .get(&step)
            .map_or_else(|| "[?]".to_owned(), |n| format!("[{n}/{}]", self.total));
        let padded = format!("{status:9}");
        let status = tone_of(status).map_or(padded.clone(), |tone| self.style.paint(tone, &padded));
        self.line(
            event,
            format!("{place} {step:width$}  {status}  {rest}", width = self.width).trim_end(),
        )
    }

    fn detail(&self, text: &str) -> String {
        format!("{:14}{text}", "")
    }

    /// A text of several lines below a line.
    fn below(&self, text: &str, tone: Tone) -> Vec<String> {
        clean(text)
            .lines()
            .take(20)
            .map(|line| self.detail(&self.style.paint(tone, line)))
            .collect()
    }
}

/// A tool's call as one would type it: `kubectl get pods`, `promql up`, `read_file check`.
pub fn shown_call(tool: &str, arguments: &Value) -> String {
    let words = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => items
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    };
    let Value::Object(arguments) = arguments else {
        return format!("{tool} {}", words(arguments));
    };
    let main = ["args", "query", "url", "step"]
        .into_iter()
        .find_map(|key| arguments.get(key).map(|value| (key, words(value))));
    let mut text = tool.to_owned();
    if let Some((_, value)) = &main {
        text.push_str(&format!(" {value}"));
    }
    for (key, value) in arguments {
        if main.as_ref().is_none_or(|(main, _)| main != key) && !value.is_null() {
            text.push_str(&format!(" {key}={}", words(value)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn told(events: &[Value]) -> String {
        let mut teller = Teller::new(Style::default(), true);
        let mut lines = Vec::new();
        for event in events {
            lines.extend(teller.tell(&serde_json::from_value(event.clone()).unwrap()));
        }
        lines.join("\n")
    }

    fn at(second: u32) -> String {
        format!("2026-01-02T03:04:{second:02}.000Z")
    }

    #[test]
    fn an_investigation_reads_like_this() {
        let text = told(&[
            json!({"type": "execution.accepted", "at": at(0), "id": "0190", "name": "disk", "namespace": "default",
                "steps": [{"name": "look", "type": "cli"}, {"name": "explain", "type": "agent"}]}),
            json!({"type": "step.started", "at": at(0), "step": "look", "attempt": 1, "step_type": "cli", "timeout": "1 minute (timeout_minutes: 1)"}),
            json!({"type": "log.line", "at": at(1), "step": "look", "attempt": 1, "message": "91% /\u{1b}[2J", "stream": "stdout"}),
            json!({"type": "step.completed", "at": at(1), "step": "look", "attempt": 1, "status": "Succeeded", "duration_ms": 820}),
            json!({"type": "step.started", "at": at(1), "step": "explain", "attempt": 1, "step_type": "agent"}),
            json!({"type": "agent.turn", "at": at(2), "step": "explain", "attempt": 1, "message": "I look\nat it.", "turn": 1}),
            json!({"type": "agent.tool", "at": at(3), "step": "explain", "attempt": 1, "tool": "kubectl",
                "arguments": {"args": ["get", "pods"]}, "is_error": true, "error": "refused", "duration_ms": 100}),
            json!({"type": "step.completed", "at": at(9), "step": "explain", "attempt": 1, "status": "Failed", "error": "no turn\nat all"}),
            json!({"type": "something.new", "at": at(9)}),
            json!({"type": "execution.completed", "at": at(10), "status": "Failed", "error": "step explain failed"}),
        ]);
        let expected = "
   0.0 s  disk 0190 (2 steps, namespace default)
   0.0 s  [1/2] look     Running    cli, at most 1 minute
              │ 91% /\u{fffd}[2J
   1.0 s  [1/2] look     Succeeded  0.9 s
   1.0 s  [2/2] explain  Running    agent
              I look at it.
              → kubectl get pods  0.1 s
                refused
   9.0 s  [2/2] explain  Failed     8.0 s
              no turn
              at all
  10.0 s  disk Failed
              step explain failed";
        assert_eq!(text, expected.trim_start_matches('\n'));
    }

    #[test]
    fn lines_that_nobody_heard_are_told_from_the_record_once() {
        let text = told(&[
            json!({"type": "step.started", "at": at(0), "step": "brief", "attempt": 1, "step_type": "cli"}),
            json!({"type": "step.completed", "at": at(1), "step": "brief", "attempt": 1, "status": "Succeeded",
                   "output": {"stdout": "fine\n", "stderr": "beware\n", "exit_code": 0}}),
            json!({"type": "log.line", "at": at(1), "step": "brief", "attempt": 1, "message": "fine", "stream": "stdout"}),
        ]);
        assert_eq!(text.matches("│ fine").count(), 1, "{text}");
        assert_eq!(text.matches("│ beware").count(), 1, "{text}");
    }

    #[test]
    fn why_it_failed_is_told_once() {
        let failing = |error: &str| {
            told(&[
                json!({"type": "execution.accepted", "at": at(0), "id": "0190", "name": "disk", "namespace": "default",
                    "steps": [{"name": "look", "type": "cli"}]}),
                json!({"type": "step.completed", "at": at(1), "step": "look", "attempt": 1, "status": "Failed", "error": "exit code 3"}),
                json!({"type": "execution.completed", "at": at(1), "status": "Failed", "error": error}),
            ])
        };
        assert!(
            failing("step `look` failed: exit code 3")
                .ends_with("              exit code 3\n   1.0 s  disk Failed")
        );
        assert!(failing("cancelled: enough").ends_with("disk Failed\n              cancelled: enough"));
    }

    #[test]
    fn frames_come_in_any_pieces() {
        let stream = b"retry: 2000\n\nid: 7\nevent: a\ndata: {\"x\":\ndata: 1}\n\n: keep-alive\n\nid: 9\ndata: b\n\nid: 11\ndata: half";
        for size in 1..stream.len() {
            let mut frames = Frames::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                events.extend(frames.read(piece).unwrap());
            }
            assert_eq!(events, ["{\"x\":\n1}", "b"], "{size}");
            // The half event was not seen, so it is asked for again.
            assert_eq!(frames.last_id.as_deref(), Some("9"), "{size}");
        }
    }

    #[test]
    fn calls_read_as_they_are_typed() {
        for (tool, arguments, text) in [
            (
                "kubectl",
                json!({"args": ["get", "pods", "-A"]}),
                "kubectl get pods -A",
            ),
            (
                "promql",
                json!({"query": "up", "range": "1h"}),
                "promql up range=1h",
            ),
            (
                "curl",
                json!({"method": "HEAD", "url": "https://x"}),
                "curl https://x method=HEAD",
            ),
            (
                "read_file",
                json!({"step": "check", "grep": "error"}),
                "read_file check grep=error",
            ),
            ("other", json!("text"), "other text"),
        ] {
            assert_eq!(shown_call(tool, &arguments), text);
        }
    }
}
