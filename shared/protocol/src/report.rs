//! The report on an execution as Markdown: what a person reads in a ticket, a chat or a mail.
//!
//! Invariants:
//! - What came from outside (names, outputs, a model's words) is text: it forms no link, no image, no heading and no
//!   HTML, whatever it holds.
//! - A quote that does not stand where it is said to is marked so.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    lane::StepStatus,
    views::{ExecutionView, StepView},
};

/// Entries of a list.
const ENTRIES_MAX: usize = 50;
/// Characters of one text.
const TEXT_CHARS_MAX: usize = 8000;
/// Lines of a command's output.
const OUTPUT_LINES_MAX: usize = 20;

/// The whole report.
pub fn markdown(view: &ExecutionView) -> String {
    let summary = &view.summary;
    let mut text = format!(
        "# {}: {}\n\n",
        plain(summary.name.as_str()),
        summary.status.as_str()
    );
    let from = match summary.trigger_source.as_str() {
        own @ ("cli" | "api" | "kubernetes") => format!("started by {own}"),
        source => format!("started by an alert of {}", plain(source)),
    };
    let took = match (summary.started_at, summary.completed_at) {
        (Some(started), Some(completed)) => {
            format!(", after {:.1} s", completed.since(started).as_secs_f64())
        }
        _ => String::new(),
    };
    let _ = writeln!(
        text,
        "Execution {} in namespace {}, {from} at {}{took}.",
        code(&summary.id.to_string()),
        code(summary.namespace.as_str()),
        summary.created_at
    );
    if let Some(error) = &summary.error {
        let _ = writeln!(text, "\n**{}**", plain(error));
    }
    let agents = view.steps.iter().filter(|step| step.step_type == "agent");
    let mut is_investigated = false;
    for step in agents {
        if let Some(output) = step.output.as_ref().map(whole) {
            is_investigated = true;
            findings(&mut text, &step.name, output);
        }
    }
    for step in view.steps.iter().filter(|step| step.step_type == "cli") {
        if let Some(output) = step.output.as_ref().map(whole) {
            command(&mut text, step, output, is_investigated);
        }
    }
    timeline(&mut text, view);
    text
}

/// An output too large for a message is told by its preview.
fn whole(output: &Value) -> &Value {
    match (output.get("blob"), output.get("preview")) {
        (Some(_), Some(preview)) => preview,
        _ => output,
    }
}

fn findings(text: &mut String, step: &str, output: &Value) {
    let status = output["status"].as_str().unwrap_or("complete");
    let _ = writeln!(text, "\n## Investigation {}: {}\n", code(step), plain(status));
    paragraph(text, None, &output["summary"]);
    paragraph(text, Some("Root cause"), &output["root_cause"]);
    if let (Some(confidence), true) = (output["confidence"].as_f64(), output["root_cause"].is_string()) {
        let _ = writeln!(text, "\nConfidence: {:.0} %", confidence * 100.0);
    }
    list(text, "Findings", &output["findings"]);
    evidence(text, &output["evidence"]);
    list(text, "Ruled out", &output["ruled_out"]);
    list(text, "Recommendations", &output["recommendations"]);
    if let Some(command) = output["fix_command"]
        .as_str()
        .filter(|text| !text.trim().is_empty())
    {
        let word = match output["can_auto_fix"] == Value::Bool(true) {
            true => "safe to run, says the investigation, and the fix gate would let it pass",
            false => "a proposal: it is not to be run without a person",
        };
        let _ = writeln!(
            text,
            "\n### Proposed command\n\n{}\n\n({word})",
            code(command.trim())
        );
    }
    paragraph(text, Some("For whoever takes over"), &output["escalation_notes"]);
    list(text, "What was looked at", &output["actions_taken"]);
    if output["scripted"] == Value::Bool(true) {
        text.push_str("\n_Played from a script, not by a model._\n");
    }
}

/// What a command that may have changed something did; and any command's words where nobody investigated, or it failed.
fn command(text: &mut String, step: &StepView, output: &Value, is_investigated: bool) {
    if output["proposed"] == Value::Bool(true) {
        let command = output["command"].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "\n## Step {}: proposed, not run\n\n{}",
            code(&step.name),
            code(command)
        );
        return;
    }
    let fix = output.get("fix").filter(|fix| fix.is_object());
    if is_investigated && fix.is_none() && step.error.is_none() {
        return;
    }
    let _ = writeln!(text, "\n## Step {}: {}\n", code(&step.name), step.status.as_str());
    if let Some(fix) = fix {
        let of = |key: &str| fix[key].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "{}, proposed by {}: {}",
            code(of("command")),
            plain(of("proposed_by")),
            plain(of("outcome"))
        );
    }
    for key in ["stdout", "stderr"] {
        let printed = output[key].as_str().unwrap_or_default().trim_end();
        if !printed.is_empty() {
            let lines: Vec<&str> = printed.lines().collect();
            let last = &lines[lines.len().saturating_sub(OUTPUT_LINES_MAX)..];
            let _ = writeln!(text, "\n{key}:\n\n{}", block(&last.join("\n")));
        }
    }
}

fn timeline(text: &mut String, view: &ExecutionView) {
    text.push_str("\n## Timeline\n\n| at | step | type | status | |\n|---|---|---|---|---|\n");
    for step in &view.steps {
        let status = match step.status {
            StepStatus::Pending if view.summary.status.is_terminal() => "Not run",
            status => status.as_str(),
        };
        let at = step.started_at.map_or_else(String::new, |at| at.to_string());
        let word = step
            .error
            .as_deref()
            .or(step.message.as_deref())
            .unwrap_or_default();
        let word: String = word.chars().take(200).collect();
        let attempt = if step.attempt > 1 {
            format!(" (attempt {})", step.attempt)
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "| {at} | {}{attempt} | {} | {status} | {} |",
            plain(&step.name),
            plain(&step.step_type),
            plain(&word)
        );
    }
}

fn paragraph(text: &mut String, title: Option<&str>, value: &Value) {
    let Some(words) = value.as_str().map(str::trim).filter(|words| !words.is_empty()) else {
        return;
    };
    if let Some(title) = title {
        let _ = writeln!(text, "\n### {title}\n");
    }
    let _ = writeln!(text, "{}", plain(words));
}

fn list(text: &mut String, title: &str, value: &Value) {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n### {title}\n");
    for item in items.iter().take(ENTRIES_MAX) {
        let words = match item {
            Value::String(words) => words.clone(),
            Value::Object(parts) => {
                let word = |(key, value): (&String, &Value)| match value {
                    Value::String(words) => format!("{key}: {words}"),
                    other => format!("{key}: {other}"),
                };
                parts.iter().map(word).collect::<Vec<_>>().join("; ")
            }
            other => other.to_string(),
        };
        let _ = writeln!(text, "- {}", plain(&words));
    }
    if items.len() > ENTRIES_MAX {
        let _ = writeln!(text, "- … and {} more", items.len() - ENTRIES_MAX);
    }
}

fn evidence(text: &mut String, value: &Value) {
    let quotes = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if quotes.is_empty() {
        return;
    }
    text.push_str("\n### Evidence\n\n");
    for quote in quotes.iter().take(ENTRIES_MAX) {
        let of = |key: &str| quote[key].as_str().unwrap_or_default();
        let mark = match quote["grounded"] == Value::Bool(true) {
            true => "",
            false => " — **not in that call's result**",
        };
        let _ = writeln!(text, "- {}: {}{mark}", code(of("call_id")), code(of("quote")));
    }
}

/// Words as Markdown that shows just them, on one line.
fn plain(words: &str) -> String {
    let mut shown = String::with_capacity(words.len());
    for character in one_line(words).chars() {
        if "\\`*_{}[]<>()#!|~&".contains(character) {
            shown.push('\\');
        }
        shown.push(character);
    }
    // What would begin a list, a quote or a rule, and a bare address that viewers make a link of.
    if shown.starts_with(['-', '+', '=']) || shown.starts_with(|c: char| c.is_ascii_digit()) {
        shown.insert(0, '\u{200b}');
    }
    shown
        .replace("://", ":\u{200b}//")
        .replace("www.", "www\u{200b}.")
}

/// Words as code, on one line.
fn code(words: &str) -> String {
    let words = one_line(words);
    let fence = "`".repeat(longest_run(&words) + 1);
    // A blank keeps a backtick at an end apart, and is not shown.
    match words.is_empty() || words.starts_with('`') || words.ends_with('`') {
        true => format!("{fence} {words} {fence}"),
        false => format!("{fence}{words}{fence}"),
    }
}

/// Lines as code.
fn block(lines: &str) -> String {
    let fence = "`".repeat(longest_run(lines).max(2) + 1);
    let lines: String = lines.chars().filter(|c| *c == '\n' || !is_control(*c)).collect();
    format!("{fence}text\n{lines}\n{fence}")
}

fn longest_run(words: &str) -> usize {
    let runs = words.split(|c| c != '`').map(str::len);
    runs.max().unwrap_or(0)
}

fn one_line(words: &str) -> String {
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = words
        .chars()
        .filter(|c| !is_control(*c))
        .take(TEXT_CHARS_MAX + 1)
        .collect();
    match shown.char_indices().nth(TEXT_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &shown[..at]),
        None => shown,
    }
}

/// What could move a cursor, or make text read in another order than it is written.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn view(steps: &Value) -> ExecutionView {
        serde_json::from_value(json!({
            "id": "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f", "name": "disk", "namespace": "prod",
            "trigger_source": "alertmanager", "status": "Succeeded", "steps_completed": 2, "total_steps": 2,
            "current_step": null, "error": null, "started_at": "2026-01-01T00:00:00Z",
            "completed_at": "2026-01-01T00:00:42.5Z", "created_at": "2026-01-01T00:00:00Z",
            "input_context": {}, "outputs": null, "steps": steps,
        }))
        .unwrap()
    }

    fn step(name: &str, step_type: &str, output: &Value) -> Value {
        json!({
            "name": name, "type": step_type, "status": "Succeeded", "attempt": 1,
            "started_at": "2026-01-01T00:00:01Z", "completed_at": "2026-01-01T00:00:02Z",
            "output": output, "error": null, "message": null,
        })
    }

    #[test]
    fn a_report_tells_the_findings_the_evidence_the_fix_and_the_time() {
        let investigation = json!({
            "summary": "web is out of memory.", "root_cause": "The limit is 64Mi.", "confidence": 0.9,
            "findings": ["It was OOMKilled", {"pod": "web-1"}], "status": "complete", "can_auto_fix": true,
            "ruled_out": ["The node has memory left"],
            "fix_command": "kubectl rollout undo deployment/web -n prod", "recommendations": ["Raise the limit"],
            "evidence": [
                {"call_id": "c1", "quote": "Reason:\tOOMKilled", "grounded": true},
                {"call_id": "c2", "quote": "a `b` c", "grounded": false},
            ],
            "actions_taken": ["kubectl get pods"], "escalation_notes": null,
        });
        let fix = json!({"stdout": "deployment rolled back\n", "stderr": "", "fix": {
            "command": "kubectl rollout undo deployment/web --namespace=prod",
            "proposed_by": "the investigation of step look", "outcome": "succeeded",
        }});
        let view = view(&json!([
            step("look", "agent", &investigation),
            step("mend", "cli", &fix),
            step(
                "later",
                "cli",
                &json!({"command": "kubectl delete pod/x", "proposed": true})
            ),
        ]));
        expect![[r#"
            # disk: Succeeded

            Execution `01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f` in namespace `prod`, started by an alert of alertmanager at 2026-01-01T00:00:00.000Z, after 42.5 s.

            ## Investigation `look`: complete

            web is out of memory.

            ### Root cause

            The limit is 64Mi.

            Confidence: 90 %

            ### Findings

            - It was OOMKilled
            - pod: web-1

            ### Evidence

            - `c1`: `Reason: OOMKilled`
            - `c2`: ``a `b` c`` — **not in that call's result**

            ### Ruled out

            - The node has memory left

            ### Recommendations

            - Raise the limit

            ### Proposed command

            `kubectl rollout undo deployment/web -n prod`

            (safe to run, says the investigation, and the fix gate would let it pass)

            ### What was looked at

            - kubectl get pods

            ## Step `mend`: Succeeded

            `kubectl rollout undo deployment/web --namespace=prod`, proposed by the investigation of step look: succeeded

            stdout:

            ```text
            deployment rolled back
            ```

            ## Step `later`: proposed, not run

            `kubectl delete pod/x`

            ## Timeline

            | at | step | type | status | |
            |---|---|---|---|---|
            | 2026-01-01T00:00:01.000Z | look | agent | Succeeded |  |
            | 2026-01-01T00:00:01.000Z | mend | cli | Succeeded |  |
            | 2026-01-01T00:00:01.000Z | later | cli | Succeeded |  |
        "#]].assert_eq(&markdown(&view));
    }

    #[test]
    fn words_from_outside_stay_words() {
        for (words, shown) in [
            ("[a](http://x)", "\\[a\\]\\(http:\u{200b}//x\\)"),
            ("![i](x)", "\\!\\[i\\]\\(x\\)"),
            ("<img src=x>", "\\<img src=x\\>"),
            ("a\n# b", "a \\# b"),
            ("- a", "\u{200b}- a"),
            ("a | b", "a \\| b"),
            ("\u{1b}[31mred\u{202e}", "\\[31mred"),
        ] {
            assert_eq!(plain(words), shown);
        }
        assert_eq!(code("a ``` b"), "````a ``` b````");
        assert_eq!(code("`a"), "`` `a ``");
        assert_eq!(block("x\n```\ny"), "````text\nx\n```\ny\n````");
    }
}
