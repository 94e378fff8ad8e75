//! The transcript of an execution's agents, turn by turn.
//!
//! Invariant: what the model and the tools said is shown as text that cannot control the terminal, and cut where it
//! is long; `-o json` has it whole.

use protocol::{
    turns::{ModelTurn, ToolCall},
    views::{AttemptTranscript, ToolTurnView, TranscriptView, TurnView},
};
use serde_json::Value;

use super::{Style, Tone, age::took, clean, one_line, table::wrapped};

/// Characters of a line of text.
const WIDTH: usize = 100;
/// Characters of a line of a tool's result.
const RESULT_CHARS_MAX: usize = 160;
/// Lines of a tool's result that are shown from its beginning, and from its end.
const HEAD_LINES: usize = 12;
const TAIL_LINES: usize = 4;

/// All of it, as text.
pub fn transcript(view: &TranscriptView, style: Style) -> String {
    let mut text = String::new();
    for attempt in &view.attempts {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&one_attempt(attempt, style));
    }
    if view.truncated {
        text.push_str("\nThere is more than one answer holds: ask for one step with --step.\n");
    }
    text
}

fn one_attempt(attempt: &AttemptTranscript, style: Style) -> String {
    let again = match attempt.attempt.get() {
        1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let head = format!("── {}{again}", clean(attempt.step.as_str()));
    let mut text = format!("{}\n", style.paint(Tone::Strong, &head));
    text.push_str(&wrapped(&attempt.goal, "  ", WIDTH));
    text.push_str(&style.paint(Tone::Faint, &format!("  tools: {}\n", attempt.tools.join(", "))));
    if attempt.turns.is_empty() {
        text.push_str("\n  Nothing is recorded yet.\n");
    }
    for turn in &attempt.turns {
        text.push('\n');
        text.push_str(&match turn {
            TurnView::Model(turn) => model(turn, style),
            TurnView::Tool(turn) => tool(turn, style),
        });
    }
    text
}

fn model(turn: &ModelTurn, style: Style) -> String {
    let cost = format!(
        "{} tokens read, {} written",
        turn.usage.input_tokens, turn.usage.output_tokens
    );
    let mut text = format!(
        "{}  {}\n",
        style.paint(Tone::Strong, &format!("turn {}", turn.turn)),
        style.paint(
            Tone::Faint,
            &format!("{cost}; {}", one_line(&turn.stop_reason, 40))
        )
    );
    if !turn.text.trim().is_empty() {
        text.push_str(&wrapped(turn.text.trim(), "  ", WIDTH));
    }
    for call in &turn.calls {
        text.push_str(&asked(call, style));
    }
    text
}

/// A call: on one line, or its arguments as a document where they are many.
fn asked(call: &ToolCall, style: Style) -> String {
    let id = style.paint(Tone::Faint, &one_line(&call.id, 40));
    let shown = crate::events::shown_call(&call.tool, &call.arguments);
    if shown.chars().count() <= RESULT_CHARS_MAX {
        return format!("  → {} {id}\n", one_line(&shown, RESULT_CHARS_MAX));
    }
    let document = serde_json::to_string_pretty(&call.arguments).unwrap_or_default();
    format!(
        "  → {} {id}\n{}",
        one_line(&call.tool, RESULT_CHARS_MAX),
        cut(&document, style)
    )
}

fn tool(turn: &ToolTurnView, style: Style) -> String {
    let outcome = match turn.is_error {
        true => style.paint(Tone::Bad, "no success"),
        false => style.paint(Tone::Good, "ok"),
    };
    let (result, is_preview) = match (turn.result.get("blob"), turn.result.get("preview")) {
        (Some(_), Some(preview)) => (preview, true),
        _ => (&turn.result, false),
    };
    let result = match result {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = format!(
        "  ← {} {} {outcome} after {}\n",
        one_line(&turn.tool, 40),
        style.paint(Tone::Faint, &one_line(&turn.call_id, 40)),
        took(turn.at.since(turn.started_at)),
    );
    text.push_str(&cut(&result, style));
    if is_preview {
        text.push_str(&style.paint(Tone::Faint, "    … the whole could not be read\n"));
    }
    text
}

/// The beginning and the end of a text, indented.
fn cut(text: &str, style: Style) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let line = |line: &&str| {
        let line: String = clean(line).chars().take(RESULT_CHARS_MAX).collect();
        format!("    {line}\n")
    };
    let left_out = lines.len().saturating_sub(HEAD_LINES + TAIL_LINES);
    if left_out == 0 {
        return lines.iter().map(line).collect();
    }
    let head: String = lines[..HEAD_LINES].iter().map(line).collect();
    let tail: String = lines[HEAD_LINES + left_out..].iter().map(line).collect();
    let between = style.paint(
        Tone::Faint,
        &format!("    … {left_out} lines left out; -o json has them\n"),
    );
    format!("{head}{between}{tail}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn turns_are_told_in_order_and_cut() {
        let lines: Vec<String> = (1..=30).map(|n| format!("line {n}")).collect();
        let at = "2026-01-31T12:00:00Z";
        let usage = json!({ "input_tokens": 900, "output_tokens": 40, "cached_tokens": 0 });
        let view: TranscriptView = serde_json::from_value(json!({
            "id": "0190f5b4-0000-7000-8000-000000000000",
            "truncated": true,
            "attempts": [{
                "step": "explain", "attempt": 2, "goal": "Why does web-1 crash?", "tools": ["kubectl", "promql"],
                "alert": null, "namespace": "prod", "dispatched_at": at,
                "turns": [
                    {
                        "kind": "model", "turn": 1, "text": "I look at the\u{1b}[2J logs.", "stop_reason": "tool_use",
                        "calls": [{ "id": "c1", "tool": "kubectl", "arguments": { "args": ["logs", "web-1"] } }],
                        "usage": usage, "at": at,
                    },
                    {
                        "kind": "tool", "call_id": "c1", "tool": "kubectl", "arguments": { "args": ["logs", "web-1"] },
                        "is_error": false, "result": lines.join("\n"), "started_at": at, "at": "2026-01-31T12:00:02Z",
                    },
                    {
                        "kind": "tool", "call_id": "c2", "tool": "promql", "arguments": { "query": "up" },
                        "is_error": true, "result": { "blob": { "sha256": "00", "bytes": 70000 }, "preview": "refused" },
                        "started_at": at, "at": at,
                    },
                ],
            }],
        }))
        .unwrap();
        let text = transcript(&view, Style::default());
        let parts = [
            "── explain, attempt 2\n  Why does web-1 crash?\n  tools: kubectl, promql\n",
            "turn 1  900 tokens read, 40 written; tool_use\n  I look at the\u{fffd}[2J logs.\n",
            "  → kubectl logs web-1 c1\n",
            "  ← kubectl c1 ok after 2.0 s\n    line 1\n",
            "    line 12\n    … 14 lines left out; -o json has them\n    line 27\n",
            "  ← promql c2 no success after 0.0 s\n    refused\n    … the whole could not be read\n",
            "ask for one step with --step",
        ];
        let mut rest = text.as_str();
        for part in parts {
            let (_, after) = rest
                .split_once(part)
                .unwrap_or_else(|| panic!("{part:?} is not in order in {text}"));
            rest = after;
        }
    }
}
