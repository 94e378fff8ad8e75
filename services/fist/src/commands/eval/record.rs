//! `fist eval record`: a case from a real execution.
//!
//! Invariants:
//! - What is written is a case that `fist eval` reads, and says of its expectations that they are a draft.
//! - Goal and alert are redacted as the agent's were; the transcript is so already.

use agent_runner::{
    evaluation::case::{self, Problem},
    redact::Redactor,
};
use protocol::{
    turns::ModelTurn,
    views::{AttemptTranscript, ToolTurnView, TranscriptView, TurnView},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::{
    args::EvalRecord,
    client::{Client, Request},
    failure::{Code, Failure},
    show,
};

/// How the agent ends; no tool that is recorded.
const ENDING: &str = "submit_findings";
/// Characters of the finding that is drafted as what must be said.
const DRAFT_CHARS_MAX: usize = 120;

/// Does it.
pub async fn run(client: &Client, asked: &EvalRecord) -> Outcome {
    let request = Request::get(&["api", "v1", "executions", &asked.id, "transcript"])
        .query("step", asked.step.as_deref());
    let answer = client.send(&request).await?;
    let view: TranscriptView = serde_json::from_str(&answer.text).map_err(|error| {
        Failure::no_server(format!(
            "the server's answer cannot be read ({error}): is --server right, and of this version?"
        ))
    })?;
    if view.truncated {
        show::aside("The transcript is longer than one answer holds; what came last is not in the case.");
    }
    let attempt = chosen(&view)?;
    let text = case_of(&view.id.to_string(), attempt)?;
    match &asked.output {
        None => {
            show::data(&text);
        }
        Some(path) => {
            std::fs::write(path, &text)
                .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
            show::aside(&format!(
                "{}: its expectations are a draft; edit them, then `fist eval {}`",
                path.display(),
                path.display()
            ));
        }
    }
    Ok(Code::Succeeded)
}

/// The last attempt at the step.
fn chosen(view: &TranscriptView) -> Result<&AttemptTranscript, Failure> {
    let mut steps: Vec<&str> = view
        .attempts
        .iter()
        .map(|attempt| attempt.step.as_str())
        .collect();
    steps.dedup();
    match (steps.as_slice(), view.attempts.last()) {
        ([_], Some(attempt)) => Ok(attempt),
        (several, Some(_)) => Err(Failure::misuse(format!(
            "{} has several steps of type agent: choose one with --step, of {}",
            view.id,
            several.join(", ")
        ))),
        (_, None) => Err(Failure::failed(format!(
            "{} has no transcript: no step of type agent has begun",
            view.id
        ))),
    }
}

/// The case as YAML.
fn case_of(id: &str, attempt: &AttemptTranscript) -> Result<String, Failure> {
    let redactor = Redactor::new(&[], []).map_err(Failure::failed)?;
    // Those of MCP servers cannot be evaluated.
    let (left_out, tools): (Vec<&String>, Vec<&String>) =
        attempt.tools.iter().partition(|tool| tool.starts_with("mcp:"));
    for tool in left_out {
        show::aside(&format!(
            "{tool} is left out: tools of MCP servers cannot be evaluated"
        ));
    }
    let mut begins = json!({
        "description": format!("Recorded from step {} of execution {id}.", attempt.step),
        "goal": redactor.text(&attempt.goal),
        "namespace": attempt.namespace,
        "at": attempt.dispatched_at.to_string(),
        "tools": tools,
    });
    if let Some(alert) = &attempt.alert {
        begins["alert"] = redactor.value(alert);
    }
    let answers = json!({ "answers": answers(attempt) });
    let (expect, notes) = draft(attempt);
    let text = format!(
        "{}\n# What the tools gave, call by call. A model may ask in other words: widen `arguments` to `match`, a regular\n\
         # expression over the call on one line, where any such call has this answer.\n{}\n\
         # A DRAFT, made of what this investigation found. Whether that was right, it cannot know: keep the words that\n\
         # every right answer has, say which fix is right, and take this comment away.\n{}{notes}",
        yaml(&begins)?,
        yaml(&answers)?,
        yaml(&json!({ "expect": expect }))?,
    );
    match case::parse("the recorded case", &text) {
        Ok(_) => Ok(text),
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
            Err(Failure::failed(lines.join("\n")))
        }
    }
}

/// With a line's end at its own end, which the serializer may leave out.
fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|error| Failure::failed(format!("the case cannot be written: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn answers(attempt: &AttemptTranscript) -> Vec<Value> {
    let turns = attempt.turns.iter().filter_map(|turn| match turn {
        TurnView::Tool(turn) if is_of_a_tool(turn, attempt) => Some(turn),
        TurnView::Tool(_) | TurnView::Model(_) => None,
    });
    let mut answers: Vec<Value> = Vec::new();
    for turn in turns {
        let mut answer = json!({
            "tool": turn.tool,
            "arguments": case::without_nulls(&turn.arguments),
            "result": result(turn),
        });
        if turn.is_error {
            answer["is_error"] = json!(true);
        }
        // The same again adds nothing: the last answer to a call stays.
        if !answers.contains(&answer) {
            answers.push(answer);
        }
    }
    answers
}

/// What no tool gave, but the loop's own limits, depends on the run.
fn is_of_a_tool(turn: &ToolTurnView, attempt: &AttemptTranscript) -> bool {
    let is_own = turn.tool == ENDING || !attempt.tools.contains(&turn.tool);
    let was_run = !(turn.is_error && result(turn).starts_with("not run: "));
    !is_own && was_run && turn.arguments.is_object()
}

fn result(turn: &ToolTurnView) -> String {
    let shown = match (turn.result.get("blob"), turn.result.get("preview")) {
        (Some(_), Some(preview)) => preview,
        _ => &turn.result,
    };
    match shown {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What this investigation came to, as expectations, and what is left to decide as comments.
fn draft(attempt: &AttemptTranscript) -> (Value, String) {
    let models: Vec<&ModelTurn> = attempt
        .turns
        .iter()
        .filter_map(|turn| match turn {
            TurnView::Model(turn) => Some(turn),
            TurnView::Tool(_) => None,
        })
        .collect();
    let findings = models
        .iter()
        .rev()
        .flat_map(|turn| &turn.calls)
        .find(|call| call.tool == ENDING)
        .map(|call| &call.arguments);
    let none = Value::Null;
    let findings = findings.unwrap_or(&none);
    let mut expect = Map::new();
    let status = match findings["status"].as_str() {
        Some("inconclusive") => "inconclusive",
        _ => "complete",
    };
    expect.insert("status".to_owned(), json!(status));
    let said = findings["root_cause"]
        .as_str()
        .or(findings["summary"].as_str())
        .filter(|said| !said.trim().is_empty());
    if let Some(said) = said {
        expect.insert("says".to_owned(), json!([pattern(said)]));
    }
    let mut notes = String::new();
    let command = findings["fix_command"]
        .as_str()
        .filter(|command| !command.trim().is_empty());
    match (command, findings["can_auto_fix"] == Value::Bool(true)) {
        (Some(command), true) => {
            expect.insert("fix".to_owned(), json!([command]));
        }
        (Some(command), false) => {
            notes = format!(
                "  # It proposed this, not to be applied by itself. If it is right: fix: [{}]\n",
                show::one_line(command, 300)
            );
        }
        (None, _) => {
            expect.insert("fix".to_owned(), json!("none"));
        }
    }
    expect.insert("grounded_min".to_owned(), json!(1));
    // Room for a way that is not this one.
    expect.insert("turns_max".to_owned(), json!(2 * models.len()));
    expect.insert("calls_max".to_owned(), json!(2 * answers(attempt).len()));
    (Value::Object(expect), notes)
}

/// The beginning of a sentence as a regular expression that forgives case and blanks.
fn pattern(said: &str) -> String {
    let mut words = Vec::new();
    let mut chars = 0;
    for word in said.split_whitespace() {
        chars += word.chars().count() + 1;
        if chars > DRAFT_CHARS_MAX && !words.is_empty() {
            break;
        }
        words.push(escaped(word));
    }
    format!("(?i){}", words.join(r"\s+"))
}

/// A word as it stands, whatever a pattern would make of it.
fn escaped(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    for c in word.chars() {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn attempt(turns: Value) -> AttemptTranscript {
        serde_json::from_value(json!({
            "step": "explain", "attempt": 1, "goal": "Why? password=hunter2hunter2", "tools": ["kubectl"],
            "alert": { "name": "KubePodCrashLooping", "labels": { "namespace": "shop", "token": "abcdefgh12345678" } },
            "namespace": "shop", "dispatched_at": "2026-01-31T12:00:00Z", "turns": turns,
        }))
        .unwrap()
    }

    fn tool(arguments: &Value, result: &str, is_error: bool) -> Value {
        let at = "2026-01-31T12:00:00Z";
        json!({
            "kind": "tool", "call_id": "c", "tool": "kubectl", "arguments": arguments, "is_error": is_error,
            "result": result, "started_at": at, "at": at,
        })
    }

    fn ending(findings: &Value) -> Value {
        json!({
            "kind": "model", "turn": 2, "text": "", "stop_reason": "tool_use", "at": "2026-01-31T12:00:00Z",
            "calls": [{ "id": "e", "tool": "submit_findings", "arguments": findings }],
            "usage": { "input_tokens": 1, "output_tokens": 1, "cached_tokens": 0 },
        })
    }

    #[test]
    fn a_recorded_case_is_read_as_it_was() {
        let nasty =
            "NAME   READY  \n\tweb-1: # no comment\n\n  trailing  \n- 'quoted' \"twice\" {a: b}\n%\u{e4}\n";
        let logs = json!({ "args": ["logs", "web-1", "--tail=5"], "unused": null });
        let text = case_of(
            "0190",
            &attempt(json!([
                tool(&logs, nasty, false),
                tool(&logs, nasty, false),
                tool(
                    &json!({ "args": ["get", "x"] }),
                    "failed: kubectl ended with exit code 1",
                    true
                ),
                tool(
                    &json!({ "args": ["get", "y"] }),
                    "not run: all 60 tool calls are used",
                    true
                ),
                ending(&json!({
                    "summary": "s", "root_cause": "The key DB_URL is missing (see web.env[0]).",
                    "can_auto_fix": true, "fix_command": "kubectl rollout undo deployment/web -n shop",
                })),
            ])),
        )
        .unwrap();
        let case = case::parse("x.yaml", &text).unwrap_or_else(|problems| panic!("{problems:?} in {text}"));
        assert_eq!(case.answers.len(), 2, "{text}");
        assert_eq!(case.answers[0].result, nasty, "{text}");
        assert!(case.answers[1].is_error && !case.answers[0].is_error);
        assert!(
            !text.contains("hunter2") && !text.contains("abcdefgh12345678"),
            "{text}"
        );
        assert!(text.contains("# A DRAFT"), "{text}");
        assert_eq!(case.namespace, "shop");
        assert!(
            case.expect.says[0]
                .regex
                .is_match("the key  DB_URL\nis missing (see web.env[0]).")
        );
        assert_eq!(
            case.expect.fix,
            Some(case::Fix::AnyOf(vec![
                "kubectl rollout undo deployment/web -n shop".to_owned()
            ]))
        );
    }

    #[test]
    fn a_proposal_is_left_to_the_author() {
        let text = case_of(
            "0190",
            &attempt(json!([ending(&json!({
                "summary": "s", "status": "inconclusive", "can_auto_fix": false,
                "fix_command": "kubectl delete pod web-1",
            }))])),
        )
        .unwrap();
        let case = case::parse("x.yaml", &text).unwrap();
        assert_eq!(
            (case.expect.status.as_str(), case.expect.fix),
            ("inconclusive", None)
        );
        let note = "\n  # It proposed this, not to be applied by itself. If it is right: fix: [kubectl delete pod web-1]\n";
        assert!(text.ends_with(note), "{text}");
        // One that submitted nothing is a case to be thought about.
        let text = case_of("0190", &attempt(json!([]))).unwrap();
        assert!(case::parse("x.yaml", &text).unwrap().expect.says.is_empty());
    }
}
