//! The report on an execution: what a person wants to know when it is over.
//!
//! Invariant: what did not come from a tool's own words is marked so; a quote shows whether it is grounded.

use protocol::{
    StepStatus,
    views::{ExecutionStatus, ExecutionView, StepView},
};
use serde_json::Value;

use super::{
    Style, Tone,
    age::took,
    clean, one_line,
    table::{table, wrapped},
};

/// Characters of a line of text.
const WIDTH: usize = 100;
/// Lines of a command's output.
const OUTPUT_LINES_MAX: usize = 12;
/// Entries of a list.
const ENTRIES_MAX: usize = 50;

/// The whole report, as text.
pub fn report(view: &ExecutionView, style: Style) -> String {
    let mut text = header(view, style);
    text.push('\n');
    text.push_str(&steps(view, style));
    let agents: Vec<&StepView> = view
        .steps
        .iter()
        .filter(|step| step.step_type == "agent")
        .collect();
    for step in &view.steps {
        let Some(output) = step.output.as_ref().map(whole) else {
            continue;
        };
        let section = match step.step_type.as_str() {
            "agent" => findings(output, style),
            // Where nobody investigated, the commands' own words are the report.
            "cli" if agents.is_empty() || step.error.is_some() => printed(
                output,
                &format!("fist logs {} --step {}", view.summary.id, step.name),
                style,
            ),
            _ => continue,
        };
        if !section.is_empty() {
            text.push('\n');
            text.push_str(&headline(&step.name, style));
            text.push_str(&section);
        }
    }
    if let Some(error) = &view.summary.error {
        text.push('\n');
        text.push_str(&style.paint(Tone::Bad, wrapped(error, "", WIDTH).trim_end()));
        text.push('\n');
    }
    text
}

fn header(view: &ExecutionView, style: Style) -> String {
    let summary = &view.summary;
    let took = match (summary.started_at, summary.completed_at) {
        (Some(started), Some(completed)) => format!("  after {}", took(completed.since(started))),
        _ => String::new(),
    };
    let name = style.paint(Tone::Strong, summary.name.as_str());
    let status = style.state(summary.status.as_str());
    let mut text = format!("{name}  {status}{took}\n");
    let from = match summary.trigger_source.as_str() {
        own @ ("cli" | "api" | "kubernetes") => format!("started by {own}"),
        source => format!("started by an alert of {}", clean(source)),
    };
    text.push_str(&style.paint(
        Tone::Faint,
        &format!("{} in {}, {from}", summary.id, summary.namespace),
    ));
    text.push('\n');
    text
}

/// The steps as a table.
pub fn steps(view: &ExecutionView, style: Style) -> String {
    let row = |step: &StepView| {
        let duration = match (step.started_at, step.completed_at) {
            (Some(started), Some(completed)) => took(completed.since(started)),
            _ => String::new(),
        };
        let message = step
            .error
            .as_deref()
            .or(step.message.as_deref())
            .unwrap_or_default();
        // What waits in an execution that is over waits for nothing.
        let status = match step.status {
            StepStatus::Pending if view.summary.status.is_terminal() => "Not run",
            status => status.as_str(),
        };
        vec![
            step.name.clone(),
            step.step_type.clone(),
            status.to_owned(),
            duration,
            one_line(message, 80),
        ]
    };
    let rows: Vec<Vec<String>> = view.steps.iter().map(row).collect();
    table(&["STEP", "TYPE", "STATUS", "TIME", "MESSAGE"], &rows, style)
}

/// An output too large for a message is shown by its preview.
fn whole(output: &Value) -> &Value {
    match (output.get("blob"), output.get("preview")) {
        (Some(_), Some(preview)) => preview,
        _ => output,
    }
}

fn headline(name: &str, style: Style) -> String {
    format!("{}\n", style.paint(Tone::Strong, &format!("── {}", clean(name))))
}

/// The end of what a command printed; `whole_by` is the command that prints all of it.
fn printed(output: &Value, whole_by: &str, style: Style) -> String {
    let of = |key: &str| output[key].as_str().filter(|printed| !printed.trim().is_empty());
    let mut text = String::new();
    for key in ["stdout", "stderr"] {
        let Some(printed) = of(key) else {
            continue;
        };
        if key == "stderr" && of("stdout").is_some() {
            text.push_str(&style.paint(Tone::Faint, "  stderr:\n"));
        }
        let lines: Vec<&str> = printed.trim_end().lines().collect();
        let left_out = lines.len().saturating_sub(OUTPUT_LINES_MAX);
        if left_out > 0 {
            // What was too long to be kept here has its middle cut, so that the lines are more than these.
            let count = if output
                .get(format!("{key}_ref"))
                .is_some_and(|whole| !whole.is_null())
            {
                "more".to_owned()
            } else {
                left_out.to_string()
            };
            text.push_str(&style.paint(
                Tone::Faint,
                &format!("  … {count} lines before these: `{whole_by}`\n"),
            ));
        }
        for line in &lines[left_out..] {
            let line = clean(line);
            let line = if key == "stderr" {
                style.paint(Tone::Faint, &line)
            } else {
                line
            };
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

fn findings(output: &Value, style: Style) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            text.push_str(&format!("{}\n{body}", style.paint(Tone::Strong, title)));
        }
    };
    section("Summary", paragraph(&output["summary"]));
    let mut cause = paragraph(&output["root_cause"]);
    if let (false, Some(confidence)) = (cause.is_empty(), output["confidence"].as_f64()) {
        let percent = format!("  ({:.0} % sure)\n", confidence * 100.0);
        cause.push_str(&style.paint(Tone::Faint, &percent));
    }
    section("Root cause", cause);
    section("Findings", list(&output["findings"], "•"));
    section("Evidence", evidence(&output["evidence"], style));
    section("Ruled out", list(&output["ruled_out"], "•"));
    section("Recommendations", list(&output["recommendations"], "•"));
    section("Fix", fix(output, style));
    section("Actions taken", list(&output["actions_taken"], "•"));
    section("Escalation", paragraph(&output["escalation_notes"]));
    text.push_str(&colophon(output, style));
    text
}

fn paragraph(value: &Value) -> String {
    match value.as_str().map(str::trim) {
        None | Some("") => String::new(),
        Some(text) => wrapped(text, "  ", WIDTH),
    }
}

fn list(value: &Value, bullet: &str) -> String {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text = String::new();
    for item in items.iter().take(ENTRIES_MAX) {
        let wrapped = wrapped(&item_text(item), "    ", WIDTH);
        let bulleted = wrapped.replacen("    ", &format!("  {bullet} "), 1);
        text.push_str(&bulleted);
    }
    if items.len() > ENTRIES_MAX {
        text.push_str(&format!("    … and {} more\n", items.len() - ENTRIES_MAX));
    }
    text
}

/// An entry as a text, whatever its shape: its own words, else its parts.
fn item_text(item: &Value) -> String {
    match item {
        Value::String(text) => text.clone(),
        Value::Object(parts) => {
            if let (Some(tool), Some(arguments)) =
                (parts.get("tool").and_then(Value::as_str), parts.get("arguments"))
            {
                return crate::events::shown_call(tool, arguments);
            }
            let parts = parts
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| match value {
                    Value::String(text) => format!("{key}: {text}"),
                    other => format!("{key}: {other}"),
                });
            parts.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

fn evidence(value: &Value, style: Style) -> String {
    let mut text = String::new();
    for item in value.as_array().into_iter().flatten().take(ENTRIES_MAX) {
        let quote = one_line(item["quote"].as_str().unwrap_or_default(), 2 * WIDTH);
        let call = one_line(item["call_id"].as_str().unwrap_or("?"), 40);
        let line = if item["grounded"].as_bool() == Some(false) {
            style.paint(
                Tone::Bad,
                &format!("✗ {call}: “{quote}” (not in that tool's output)"),
            )
        } else {
            format!("{} {call}: “{quote}”", style.paint(Tone::Good, "✓"))
        };
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn fix(output: &Value, style: Style) -> String {
    let command = output["fix_command"]
        .as_str()
        .map(str::trim)
        .filter(|command| !command.is_empty());
    match (command, output["can_auto_fix"].as_bool()) {
        (Some(command), Some(true)) => format!("  {}\n", clean(command)),
        (Some(command), _) => {
            format!(
                "  {}\n  {}\n",
                clean(command),
                style.paint(Tone::Faint, "(a proposal; not to be applied by itself)")
            )
        }
        (None, _) => String::new(),
    }
}

/// How complete it is, who said it, and what it cost.
fn colophon(output: &Value, style: Style) -> String {
    let mut parts = Vec::new();
    if let Some(status) = output["status"].as_str() {
        let reason = output["stop_reason"]
            .as_str()
            .filter(|_| status != "complete")
            .unwrap_or_default();
        let reason = if reason.is_empty() {
            String::new()
        } else {
            format!(" ({reason})")
        };
        parts.push(format!("{status}{reason}"));
    }
    if output["scripted"].as_bool() == Some(true) {
        parts.push("scripted, without a model".to_owned());
    }
    let usage = &output["usage"];
    if let Some(turns) = usage["turns"].as_u64() {
        parts.push(format!("{turns} {}", if turns == 1 { "turn" } else { "turns" }));
    }
    if let (Some(input), Some(written)) = (usage["input_tokens"].as_u64(), usage["output_tokens"].as_u64())
        && input + written > 0
    {
        parts.push(format!("{input} tokens read, {written} written"));
    }
    if parts.is_empty() {
        return String::new();
    }
    format!("{}\n", style.paint(Tone::Faint, &clean(&parts.join(" · "))))
}

/// Whether this state is a success, once it is the last.
pub fn is_success(status: ExecutionStatus) -> bool {
    status == ExecutionStatus::Succeeded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn view(steps: &Value, status: &str, error: Option<&str>) -> ExecutionView {
        serde_json::from_value(json!({
            "id": "0190f5b4-0000-7000-8000-000000000001", "name": "disk", "namespace": "default",
            "trigger_source": "alertmanager", "status": status, "steps_completed": 1, "total_steps": 1,
            "current_step": null, "error": error, "started_at": "2026-01-02T03:04:05.000Z",
            "completed_at": "2026-01-02T03:04:07.500Z", "created_at": "2026-01-02T03:04:05.000Z",
            "input_context": {}, "outputs": null, "steps": steps,
        }))
        .unwrap()
    }

    #[test]
    fn an_investigation_says_what_is_grounded() {
        let output = json!({
            "summary": "The disk is full.", "root_cause": "Logs.\u{1b}[2J", "confidence": 0.85,
            "findings": ["/ is at 91 %", {"what": "log", "bytes": 5}],
            "evidence": [{"call_id": "c1", "quote": "91% /", "grounded": true}, {"call_id": "c2", "quote": "made up", "grounded": false}],
            "recommendations": ["Rotate."], "can_auto_fix": false, "fix_command": "kubectl delete pod x",
            "actions_taken": [{"tool": "kubectl", "arguments": {"args": ["get", "pods"]}}],
            "status": "partial", "stop_reason": "timeout", "scripted": true,
            "usage": {"turns": 2, "input_tokens": 10, "output_tokens": 5},
        });
        let steps = json!([{"name": "explain", "type": "agent", "status": "succeeded", "attempt": 1,
            "started_at": "2026-01-02T03:04:05.000Z", "completed_at": "2026-01-02T03:04:07.000Z",
            "output": output, "error": null, "message": null}]);
        let steps = states_as_written(steps);
        let expected = "\
disk  Succeeded  after 2.5 s
0190f5b4-0000-7000-8000-000000000001 in default, started by an alert of alertmanager

STEP      TYPE    STATUS      TIME    MESSAGE
explain   agent   Succeeded   2.0 s   -

── explain
Summary
  The disk is full.
Root cause
  Logs.\u{fffd}[2J
  (85 % sure)
Findings
  • / is at 91 %
  • what: log; bytes: 5
Evidence
  ✓ c1: “91% /”
  ✗ c2: “made up” (not in that tool's output)
Recommendations
  • Rotate.
Fix
  kubectl delete pod x
  (a proposal; not to be applied by itself)
Actions taken
  • kubectl get pods
partial (timeout) · scripted, without a model · 2 turns · 10 tokens read, 5 written
";
        assert_eq!(
            report(&view(&steps, "Succeeded", None), Style::default()),
            expected
        );
    }

    /// The wire's own spelling of a step's state.
    fn states_as_written(mut steps: Value) -> Value {
        for step in steps.as_array_mut().unwrap() {
            step["status"] = json!(StepStatus::Succeeded);
        }
        steps
    }

    #[test]
    fn without_an_agent_the_commands_speak() {
        let long: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        let steps = states_as_written(json!([{"name": "look", "type": "cli", "status": "", "attempt": 1,
            "started_at": null, "completed_at": null, "output": {"stdout": long, "stderr": "hm"},
            "error": null, "message": null}]));
        let text = report(
            &view(&steps, "Failed", Some("step look failed: exit code 1")),
            Style::default(),
        );
        assert!(
            text.contains(
                "  … 8 lines before these: `fist logs 0190f5b4-0000-7000-8000-000000000001 --step look`\n  line 9\n"
            ),
            "{text}"
        );
        assert!(
            text.ends_with("  line 20\n  stderr:\n  hm\n\nstep look failed: exit code 1\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_cut_is_not_counted_and_what_waits_for_nothing_is_said() {
        let long: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        let mut steps = states_as_written(json!([
            {"name": "look", "type": "cli", "status": "", "attempt": 1, "started_at": null, "completed_at": null,
                "output": {"stdout": long, "stdout_ref": {"sha256": "00", "bytes": 70_000}}, "error": null, "message": null},
            {"name": "later", "type": "cli", "status": "", "attempt": 0, "started_at": null, "completed_at": null,
                "output": null, "error": null, "message": null},
        ]));
        steps[1]["status"] = json!(StepStatus::Pending);
        let text = report(&view(&steps, "Failed", Some("cancelled")), Style::default());
        assert!(
            text.contains("  … more lines before these: `fist logs "),
            "{text}"
        );
        assert!(text.contains("later   cli    Not run     -      -\n"), "{text}");
        let running = super::steps(&view(&steps, "Running", None), Style::default());
        assert!(running.contains("Pending"), "{running}");
    }
}
