//! `GET /api/v1/executions/{id}/logs`: what the steps of an execution printed, as plain text.
//!
//! Invariants:
//! - What a step printed is shown whole once it is over, also where its record has only the beginning and the end
//!   of it. Steps are read one by one as they are sent, so that the memory is bounded by one step's output.
//! - Lines that were followed live are not shown twice, unless some were missed: then the whole follows, and says so.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
};

use axum::{body::Body, http::StatusCode};
use bus::{Blobs, Log, LogMessage, Position};
use futures_util::{StreamExt, stream};
use protocol::{
    Attempt, BlobRef, ExecutionId, Namespace, StepName, Subject,
    views::{ExecutionView, StepView},
};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, App, Call, events, executions, executions::Whole, problem::Problem, with_type};
use crate::story::{Event, Story};

/// Pieces that wait for a slow reader.
const WAITING_MAX: usize = 32;
/// Characters of a call, and of why it failed.
const CALL_CHARS_MAX: usize = 300;
const TEXT: &str = "text/plain; charset=utf-8";

/// What the steps printed so far, or until the end.
pub async fn text(app: Arc<App>, call: Call) -> Answer {
    let wanted = call.query.text("step").map(str::to_owned);
    let place = executions::located(&app, call.path("id")).await?;
    let (namespace, id, start_seq) = match place {
        executions::Place::Log {
            namespace,
            id,
            start_seq,
        } => (namespace, id, start_seq),
        executions::Place::Record(view) => return finished(app, *view, wanted.as_deref()),
    };
    if !call.query.is_true("follow") {
        let view = executions::found(&app, &id.to_string()).await?;
        return finished(app, view, wanted.as_deref());
    }
    let permit = events::permit(&app)?;
    let sources = events::Sources::open(&app, &namespace, id, start_seq, Position::All).await?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let (blobs, shutdown) = (app.blobs.clone(), app.shutdown.clone());
    tokio::spawn(async move {
        let _permit = permit;
        let teller = Teller {
            wanted,
            blobs,
            is_prefixed: false,
            lines: HashMap::new(),
            over: HashSet::new(),
            sender,
        };
        teller.follow(sources, &shutdown).await;
    });
    Ok(with_type(
        StatusCode::OK,
        TEXT,
        Body::from_stream(events::chunks(receiver)),
    ))
}

fn finished(app: Arc<App>, view: ExecutionView, wanted: Option<&str>) -> Answer {
    let names: Vec<&str> = view.steps.iter().map(|step| step.name.as_str()).collect();
    if let Some(wanted) = wanted.filter(|wanted| !names.contains(wanted)) {
        return Err(Problem::not_found(format!(
            "there is no step `{wanted}` in {}; its steps are {}",
            view.summary.name,
            names.join(", ")
        )));
    }
    let is_prefixed = wanted.is_none() && names.iter().any(|name| *name != names[0]);
    let steps: Vec<StepView> = view
        .steps
        .into_iter()
        .filter(|step| step.status.is_terminal() && wanted.is_none_or(|wanted| step.name == wanted))
        .collect();
    let (namespace, id) = (view.summary.namespace, view.summary.id);
    let texts = stream::iter(steps).then(move |step| {
        let (app, namespace) = (Arc::clone(&app), namespace.clone());
        async move {
            let (error, message) = (step.error.as_deref(), step.message.as_deref());
            let mut text = looked(&app, &namespace, id, &step).await;
            text.push_str(&printed(&app.blobs, step.output.as_ref(), error, message).await);
            Ok::<_, Infallible>(prefixed(&text, &step.name, is_prefixed))
        }
    });
    Ok(with_type(StatusCode::OK, TEXT, Body::from_stream(texts)))
}

/// Tells one reader what steps print while they run.
struct Teller {
    wanted: Option<String>,
    blobs: Blobs,
    is_prefixed: bool,
    /// For each attempt that was told live, how many lines.
    lines: HashMap<(String, u32), usize>,
    /// Attempts that were told whole.
    over: HashSet<(String, u32)>,
    sender: mpsc::Sender<String>,
}

impl Teller {
    async fn follow(mut self, mut sources: events::Sources, shutdown: &CancellationToken) {
        let mut lives = true;
        loop {
            let told = tokio::select! {
                biased;
                () = self.sender.closed() => return,
                () = shutdown.cancelled() => return,
                message = sources.log.next() => match message {
                    Some(Ok(message)) => self.happened(&sources.story.read(&message)).await,
                    Some(Err(_)) | None => return,
                },
                message = sources.live.next(), if lives => match message {
                    Some(Ok(message)) => self.printed_live(&message).await,
                    Some(Err(_)) | None => { lives = false; continue; }
                },
            };
            if !told {
                return;
            }
        }
    }

    /// Whether to go on.
    async fn happened(&mut self, events: &[Event]) -> bool {
        for event in events {
            match event.kind {
                "execution.accepted" => {
                    let steps = event
                        .more
                        .get("steps")
                        .and_then(Value::as_array)
                        .map_or(0, Vec::len);
                    self.is_prefixed = self.wanted.is_none() && steps > 1;
                }
                "agent.turn" | "agent.tool" if !self.looked(event).await => return false,
                "step.completed" if !self.completed(event).await => return false,
                "execution.completed" => return false,
                _ => {}
            }
        }
        true
    }

    async fn looked(&self, event: &Event) -> bool {
        let step = event.step.as_deref().unwrap_or_default();
        self.is_unwanted(step)
            || self
                .send(prefixed(&of_agent(event), step, self.is_prefixed))
                .await
    }

    async fn completed(&mut self, event: &Event) -> bool {
        let step = event.step.clone().unwrap_or_default();
        if self.is_unwanted(&step) {
            return true;
        }
        let (error, message) = (event.error.as_deref(), event.message.as_deref());
        let whole = printed(&self.blobs, event.output.as_ref(), error, message).await;
        let of_output = printed(&self.blobs, event.output.as_ref(), None, None).await;
        let attempt = (step.clone(), event.attempt.unwrap_or(0));
        let told = self.lines.remove(&attempt);
        // A dry run was told live as well; the output has it apart.
        let dry_run = event.output.as_ref().map_or(0, dry_run_lines);
        self.over.insert(attempt);
        let text = match told {
            None => whole,
            // All of it was told already; what is left is how it ended.
            Some(lines) if lines == of_output.lines().count() + dry_run => {
                whole.strip_prefix(&of_output).unwrap_or_default().to_owned()
            }
            Some(_) => format!("--- some lines were missed; this is the whole ---\n{whole}"),
        };
        self.send(prefixed(&text, &step, self.is_prefixed)).await
    }

    async fn printed_live(&mut self, message: &LogMessage) -> bool {
        let Ok(Subject::Live(_, _, step, attempt)) = Subject::parse(&message.subject) else {
            return true;
        };
        let event = Event::of_progress(message, &step, attempt).filter(|event| event.kind == "log.line");
        let (Some(event), false) = (event, self.is_unwanted(step.as_str())) else {
            return true;
        };
        let told = (step.to_string(), attempt.get());
        if self.over.contains(&told) {
            return true;
        }
        *self.lines.entry(told).or_default() += 1;
        let line = format!("{}\n", event.message.unwrap_or_default());
        self.send(prefixed(&line, step.as_str(), self.is_prefixed)).await
    }

    fn is_unwanted(&self, step: &str) -> bool {
        self.wanted.as_deref().is_some_and(|wanted| wanted != step)
    }

    async fn send(&self, text: String) -> bool {
        text.is_empty() || self.sender.send(text).await.is_ok()
    }
}

/// What an agent said and called on its way, as far as the log still has it.
async fn looked(app: &App, namespace: &Namespace, id: ExecutionId, step: &StepView) -> String {
    let (Ok(name), Ok(attempt)) = (StepName::new(&step.name), Attempt::try_from(step.attempt)) else {
        return String::new();
    };
    if step.step_type != "agent" {
        return String::new();
    }
    let turns = app.log.read_turns(namespace, id, &name, attempt).await;
    // Its findings are in the record all the same.
    let turns = turns.unwrap_or_default();
    let mut story = Story::default();
    turns
        .iter()
        .flat_map(|turn| story.read(turn))
        .map(|event| of_agent(&event))
        .collect()
}

/// An answer of a model, or what a tool gave, in a line or a few.
fn of_agent(event: &Event) -> String {
    let of = |key: &str| event.more.get(key).unwrap_or(&Value::Null);
    let call = |tool: &Value, arguments: &Value| -> String {
        let line = format!("{} {arguments}", tool.as_str().unwrap_or_default());
        line.chars().take(CALL_CHARS_MAX).collect()
    };
    let mut text = String::new();
    match event.kind {
        "agent.turn" => {
            let said = event.message.as_deref().unwrap_or_default().trim();
            text.extend(said.lines().map(|line| format!("{line}\n")));
            for asked in of("calls").as_array().into_iter().flatten() {
                // What it submits is the step's output, which follows.
                if asked["tool"] != "submit_findings" {
                    text.push_str(&format!("→ {}\n", call(&asked["tool"], &asked["arguments"])));
                }
            }
        }
        "agent.tool" => {
            let seconds = of("duration_ms").as_f64().unwrap_or(0.0) / 1000.0;
            let error = event.error.as_deref().and_then(|error| error.lines().next());
            let error: String = error.unwrap_or_default().chars().take(CALL_CHARS_MAX).collect();
            let end = if error.is_empty() {
                String::new()
            } else {
                format!(": {error}")
            };
            let line = call(of("tool"), of("arguments"));
            text.push_str(&format!("← {line} ({seconds:.1} s){end}\n"));
        }
        _ => {}
    }
    text
}

/// What a step printed, as text with a newline at its end: a command's output, an agent's findings, how a
/// condition came out; and why it failed.
async fn printed(
    blobs: &Blobs,
    output: Option<&Value>,
    error: Option<&str>,
    message: Option<&str>,
) -> String {
    let (whole, is_gone) = match output.and_then(|output| output.get("blob")) {
        Some(blob) => match executions::whole(blobs, blob).await {
            Whole::Here(whole) => (Some(whole), false),
            Whole::Gone => (None, true),
            Whole::Unread => (None, false),
        },
        None => (None, false),
    };
    let preview = output.and_then(|output| output.get("preview").filter(|_| output.get("blob").is_some()));
    let mut text = String::new();
    let mut add = |piece: &str| {
        if !piece.is_empty() {
            text.push_str(piece);
            if !piece.ends_with('\n') {
                text.push('\n');
            }
        }
    };
    match whole.as_ref().or(preview).or(output) {
        Some(Value::Object(output)) if output.contains_key("stdout") || output.contains_key("stderr") => {
            for name in ["stdout", "stderr"] {
                add(&stream_text(blobs, output, name).await);
            }
        }
        Some(Value::Object(output)) if output.contains_key("summary") => findings(output, &mut add),
        Some(Value::Object(output)) if output.contains_key("condition_met") => {
            if message.is_none() {
                add(output.get("message").and_then(Value::as_str).unwrap_or_default());
            }
        }
        Some(Value::Null) | None => {}
        Some(other) => add(&other.to_string()),
    }
    if is_gone {
        add(&gone());
    }
    add(message.unwrap_or_default());
    if let Some(error) = error {
        add(&format!("error: {error}"));
    }
    text
}

/// A line in place of what has been kept for as long as large bodies are.
fn gone() -> String {
    format!("… [{}] …\n", executions::GONE)
}

/// How many lines a command's dry run was told in: what it said, between two of our own.
fn dry_run_lines(output: &Value) -> usize {
    let output = output.get("preview").unwrap_or(output);
    let said = output.pointer("/fix/dry_run/said").and_then(Value::as_str);
    said.map_or(0, |said| 2 + said.lines().count().max(1))
}

/// One stream of a command: the whole where it was too long for the output and is kept beside it, else what the
/// output has of it.
async fn stream_text<'o>(blobs: &Blobs, output: &'o Map<String, Value>, name: &str) -> Cow<'o, str> {
    let inline = output.get(name).and_then(Value::as_str).unwrap_or_default();
    let kept = output
        .get(&format!("{name}_ref"))
        .and_then(|kept| serde_json::from_value::<BlobRef>(kept.clone()).ok());
    let Some(kept) = kept else {
        return Cow::Borrowed(inline);
    };
    let whole = match blobs.get(&kept).await {
        Ok(Some(whole)) => whole,
        Ok(None) => return Cow::Owned(format!("{}\n{}", inline.trim_end_matches('\n'), gone())),
        Err(_) => return Cow::Borrowed(inline),
    };
    let mut text = String::from_utf8_lossy(&whole).into_owned();
    if let Some(end) = end_beyond(inline, kept.bytes) {
        text.push_str("\n… [what came then was too much to be kept; this is its end] …\n");
        text.push_str(end);
    }
    Cow::Owned(text)
}

/// The end of what a command printed, where not even the kept text reaches it: the output says so where it is cut.
fn end_beyond(inline: &str, kept_bytes: u64) -> Option<&str> {
    let (_, after) = inline.rsplit_once(&format!("; the first {kept_bytes} of "))?;
    after.split_once("] …\n").map(|(_, end)| end)
}

fn findings(output: &Map<String, Value>, add: &mut impl FnMut(&str)) {
    let text = |name: &str| output.get(name).and_then(Value::as_str).unwrap_or_default();
    add(text("summary"));
    if !text("root_cause").is_empty() {
        add(&format!("root cause: {}", text("root_cause")));
    }
    for (name, title) in [("findings", "finding"), ("recommendations", "recommendation")] {
        for entry in output.get(name).and_then(Value::as_array).into_iter().flatten() {
            let shown = entry.as_str().map_or_else(|| entry.to_string(), str::to_owned);
            add(&format!("{title}: {shown}"));
        }
    }
}

fn prefixed(text: &str, step: &str, is_prefixed: bool) -> String {
    if !is_prefixed {
        return text.to_owned();
    }
    text.lines().map(|line| format!("[{step}] {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_was_cut_from_the_output_is_printed_whole() {
        let blobs = Blobs::in_memory();
        let all = "1\n2\n3\n4\n";
        let kept = json!(blobs.put(all.into()).await.unwrap());
        let mut output = json!({
            "stdout": "1\n… [4 bytes cut; the whole is in stdout_ref] …\n4\n", "stdout_ref": kept, "stderr": "hm",
        });
        assert_eq!(
            printed(&blobs, Some(&output), Some("exit code 1"), None).await,
            "1\n2\n3\n4\nhm\nerror: exit code 1\n"
        );

        output["stdout"] = json!("1\n… [90 bytes cut; the first 8 of 99 bytes are in stdout_ref] …\n49\n");
        let cut = "\n… [what came then was too much to be kept; this is its end] …\n49\nhm\n";
        assert_eq!(
            printed(&blobs, Some(&output), None, None).await,
            format!("{all}{cut}")
        );

        // Once the object store has forgotten it, what the record has is all there is, and that is said.
        output["stdout_ref"]["sha256"] = json!("0".repeat(64));
        assert_eq!(
            printed(&blobs, Some(&output), None, None).await,
            format!("{}{}hm\n", output["stdout"].as_str().unwrap(), gone())
        );
        let reference =
            json!({"blob": {"sha256": "0".repeat(64), "bytes": 70_000}, "preview": {"stdout": "1 … 9"}});
        assert_eq!(
            printed(&blobs, Some(&reference), None, None).await,
            format!("1 … 9\n{}", gone())
        );
    }
}
