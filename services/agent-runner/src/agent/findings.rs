//! The output of an agent step: what the model submitted, checked against what tools returned.
//!
//! Invariants:
//! - `actions_taken`, `usage`, `status` and `stop_reason` are ours, never the model's word.
//! - `can_auto_fix` is true only if the investigation is complete, not scripted, every quote was found where it is said
//!   to be, one at least in a call that succeeded, and the fix gate would let the command pass. Else the reason stands
//!   in `escalation_notes`.

use engine::fixgate::{Gate, GateContext};
use protocol::turns::Usage;
use serde_json::{Map, Value, json};

use super::{
    BUDGET,
    transcript::{Point, ToolPoint},
};
use crate::tools::{cut::cut, read_file, read_more, window::without_numbers};

/// Characters of the shortest quote that can support a fix: shorter ones occur everywhere.
const SUPPORT_CHARS_MIN: usize = 4;
/// Characters of one line of `actions_taken`.
const ACTION_CHARS_MAX: usize = 300;
/// Texts of the model that a partial output shows as its findings.
const PARTIAL_TEXTS_MAX: usize = 5;
/// Bytes of each.
const PARTIAL_TEXT_BYTES_MAX: usize = 4000;

/// How an investigation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model submitted by itself.
    Submitted,
    /// A limit was reached, or something failed.
    Short {
        /// The limit in one word, for machines.
        reason: &'static str,
        /// What happened, for people.
        message: String,
    },
}

/// What an output is made from.
pub struct Material<'a> {
    /// The record.
    pub points: &'a [Point],
    /// What was submitted, if anything.
    pub submitted: Option<&'a Value>,
    /// How it ended.
    pub end: &'a End,
    /// What it cost in tokens.
    pub usage: Usage,
    /// And in billionths of a US dollar, where the model has a price.
    pub cost_nano_usd: Option<u64>,
    /// Answers of the model.
    pub turns: u32,
    /// Where the record is.
    pub transcript_ref: String,
    /// Whether the turns came from a file.
    pub is_scripted: bool,
    /// The fix gate, as configured.
    pub gate: &'a Gate,
    /// The namespace that a fix may touch.
    pub fix_namespace: &'a str,
}

/// The output.
pub fn output(material: &Material<'_>) -> Value {
    let empty = Value::Object(Map::new());
    let said = material.submitted.unwrap_or(&empty);
    let (evidence, grounding) = evidence(&said["evidence"], material.points);
    let status = match (material.end, said["status"].as_str()) {
        (End::Short { reason: BUDGET, .. }, _) => "inconclusive",
        (End::Short { .. }, _) => "partial",
        (End::Submitted, Some("inconclusive")) => "inconclusive",
        (End::Submitted, _) => "complete",
    };
    let fix_command = match material.end {
        End::Submitted => said["fix_command"]
            .as_str()
            .map(str::trim)
            .filter(|command| !command.is_empty()),
        End::Short { .. } => None,
    };
    let wanted = said["can_auto_fix"] == Value::Bool(true);
    let refusal = refusal(material, status, fix_command, &grounding);
    let mut notes: Vec<String> = Vec::new();
    notes.extend(
        said["escalation_notes"]
            .as_str()
            .map(str::to_owned)
            .filter(|text| !text.is_empty()),
    );
    if let End::Short { message, .. } = material.end {
        notes.push(format!("The investigation is not complete: {message}"));
    }
    if let (true, Some(reason)) = (wanted, &refusal) {
        notes.push(format!("Not to be fixed automatically: {reason}"));
    }
    let mut output = json!({
        "summary": said["summary"].as_str().map_or_else(|| partial_summary(material), str::to_owned),
        "findings": list(&said["findings"]).unwrap_or_else(|| partial_findings(material)),
        "ruled_out": list(&said["ruled_out"]).unwrap_or_else(|| json!([])),
        "root_cause": said["root_cause"],
        "confidence": said["confidence"].as_f64().unwrap_or(0.0),
        "recommendations": list(&said["recommendations"]).unwrap_or_else(|| json!([])),
        "can_auto_fix": wanted && refusal.is_none(),
        "fix_command": fix_command,
        "actions_taken": actions(material.points),
        "escalation_notes": if notes.is_empty() { Value::Null } else { Value::String(notes.join("\n")) },
        "evidence": evidence,
        "status": status,
        "stop_reason": match material.end {
            End::Submitted => "findings_submitted",
            End::Short { reason, .. } => reason,
        },
        "usage": {
            "input_tokens": material.usage.input_tokens,
            "output_tokens": material.usage.output_tokens,
            "cached_tokens": material.usage.cached_tokens,
            "turns": material.turns,
        },
        "transcript_ref": material.transcript_ref,
    });
    if let Some(cost) = material.cost_nano_usd {
        output["usage"]["cost_usd"] = json!(cost as f64 / 1e9);
    }
    if material.is_scripted {
        output["scripted"] = Value::Bool(true);
    }
    output
}

fn list(value: &Value) -> Option<Value> {
    value.as_array().map(|items| Value::Array(items.clone()))
}

/// How many quotes are where they are said to be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Grounding {
    ungrounded: usize,
    /// Grounded in a call that succeeded, and long enough to mean something.
    supporting: usize,
}

/// The quotes, each marked as found or not.
fn evidence(said: &Value, points: &[Point]) -> (Value, Grounding) {
    let mut grounding = Grounding::default();
    let quotes = said.as_array().into_iter().flatten().map(|item| {
        let text = |key: &str| item[key].as_str().unwrap_or_default();
        let (call_id, quote) = (text("call_id"), text("quote"));
        let found = points.iter().find_map(|point| match point {
            Point::Tool(tool) if is_of(tool, call_id) && occurs_in(quote, tool) => Some(tool),
            _ => None,
        });
        match found {
            Some(tool) if !tool.is_error && quote.trim().chars().count() >= SUPPORT_CHARS_MIN => {
                grounding.supporting += 1
            }
            Some(_) => {}
            None => grounding.ungrounded += 1,
        }
        json!({"call_id": call_id, "quote": quote, "grounded": found.is_some()})
    });
    let quotes = Value::Array(quotes.collect());
    (quotes, grounding)
}

/// Whether this is the call's own result, or what was read of it later.
fn is_of(tool: &ToolPoint, call_id: &str) -> bool {
    let is_more = tool.call.tool == read_more::NAME && tool.call.arguments["call_id"] == call_id;
    tool.call.id == call_id || (is_more && !tool.is_error)
}

/// Whether `quote` stands in the result; the numbers of lines that were read are not part of it.
fn occurs_in(quote: &str, tool: &ToolPoint) -> bool {
    let is_numbered = [read_more::NAME, read_file::NAME].contains(&tool.call.tool.as_str());
    occurs(quote, &tool.text) || (is_numbered && occurs(quote, &without_numbers(&tool.text)))
}

/// Whether `quote` stands in `text`; line breaks and runs of blanks are all the same.
pub fn occurs(quote: &str, text: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let quote = plain(quote);
    !quote.is_empty() && plain(text).contains(&quote)
}

/// Why nothing may be fixed automatically; `None` where it may.
fn refusal(
    material: &Material<'_>,
    status: &str,
    fix_command: Option<&str>,
    grounding: &Grounding,
) -> Option<String> {
    if material.is_scripted {
        return Some("its turns came from a script".to_owned());
    }
    if status != "complete" {
        return Some(format!("the investigation is {status}"));
    }
    if grounding.ungrounded > 0 {
        return Some(format!(
            "{} of its quotes do not occur in the cited results",
            grounding.ungrounded
        ));
    }
    if grounding.supporting == 0 {
        return Some("no quote from a successful call supports it".to_owned());
    }
    let Some(command) = fix_command else {
        return Some("there is no fix_command".to_owned());
    };
    let context = GateContext {
        namespace: material.fix_namespace,
        provenance: None,
    };
    material
        .gate
        .check(command, &context)
        .err()
        .map(|refusal| format!("the fix gate refuses the command: {refusal}"))
}

/// One line for each call, in the order of the results.
fn actions(points: &[Point]) -> Value {
    let line = |point: &Point| match point {
        Point::Tool(tool) => {
            let outcome = if tool.is_error { " (no success)" } else { "" };
            let line = one_line(&tool.call.tool, &tool.call.arguments);
            Some(format!(
                "{}{outcome}",
                line.chars().take(ACTION_CHARS_MAX).collect::<String>()
            ))
        }
        Point::Model(_) => None,
    };
    points.iter().filter_map(line).collect()
}

/// A call as a person would write it.
pub fn one_line(tool: &str, arguments: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let words = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
            words.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let words = arguments
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null());
    let words: Vec<String> = words.map(|(_, value)| word(value)).collect();
    format!("{tool} {}", words.join(" "))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn partial_summary(material: &Material<'_>) -> String {
    let why = match material.end {
        End::Short { message, .. } => message.as_str(),
        End::Submitted => "the model gave no summary",
    };
    format!("No findings were submitted: {why}")
}

/// What the model said on its way, where it submitted nothing.
fn partial_findings(material: &Material<'_>) -> Value {
    if material.submitted.is_some() {
        return json!([]);
    }
    let texts = material.points.iter().rev().filter_map(|point| match point {
        Point::Model(turn) if !turn.text.trim().is_empty() => {
            Some(cut(turn.text.trim().to_owned(), PARTIAL_TEXT_BYTES_MAX))
        }
        _ => None,
    });
    let mut texts: Vec<String> = texts.take(PARTIAL_TEXTS_MAX).collect();
    texts.reverse();
    json!(texts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;
    use protocol::{Timestamp, turns::ToolCall};

    use super::*;

    fn tool(id: &str, text: &str, is_error: bool) -> Point {
        Point::Tool(ToolPoint {
            call: ToolCall {
                id: id.into(),
                tool: "kubectl".into(),
                arguments: json!({"args": ["get", "pod", "web-1"]}),
            },
            is_error,
            text: text.into(),
            whole: None,
            started_at: Timestamp::default(),
            at: Timestamp::default(),
        })
    }

    fn points() -> Vec<Point> {
        vec![
            tool(
                "c1",
                "NAME    STATUS\nweb-1   CrashLoopBackOff\n   Reason:\tOOMKilled",
                false,
            ),
            tool(
                "c2",
                "failed: kubectl ended with exit code 1: pods \"web-9\" not found",
                true,
            ),
        ]
    }

    fn made(said: &Value, end: &End, is_scripted: bool) -> Value {
        output(&Material {
            points: &points(),
            submitted: Some(said),
            end,
            usage: Usage::default(),
            cost_nano_usd: None,
            turns: 2,
            transcript_ref: "ref".into(),
            is_scripted,
            gate: &Gate::default(),
            fix_namespace: "prod",
        })
    }

    fn fix(evidence: &Value, command: &str) -> Value {
        json!({
            "summary": "s", "can_auto_fix": true, "fix_command": command, "evidence": evidence,
        })
    }

    const RESTART: &str = "kubectl rollout restart deployment/web -n prod";

    #[test]
    fn quotes_forgive_blanks_and_nothing_else() {
        let text = "web-1   CrashLoopBackOff\n   Reason:\tOOMKilled";
        for quote in [
            "CrashLoopBackOff Reason: OOMKilled",
            " web-1 CrashLoopBackOff ",
            "Reason:\n\nOOMKilled",
            "OOM",
        ] {
            assert!(occurs(quote, text), "{quote}");
        }
        for quote in [
            "",
            "  ",
            "web-1CrashLoopBackOff",
            "crashloopbackoff",
            "web-2",
            "web-1 … OOMKilled",
            "Reason: OOMKilled!",
        ] {
            assert!(!occurs(quote, text), "{quote}");
        }
    }

    #[test]
    fn a_fix_needs_grounds_completeness_and_the_gate() {
        let good = json!([{"call_id": "c1", "quote": "Reason: OOMKilled"}]);
        let submitted = End::Submitted;
        let short = End::Short {
            reason: "time",
            message: "the time is over".into(),
        };
        let ok = made(&fix(&good, RESTART), &submitted, false);
        assert_eq!(
            (&ok["can_auto_fix"], &ok["escalation_notes"]),
            (&json!(true), &Value::Null)
        );
        assert_eq!(ok["evidence"][0]["grounded"], true);
        for (evidence, command, end, is_scripted, reason) in [
            (
                json!([{"call_id": "c2", "quote": "OOMKilled"}]),
                RESTART,
                &submitted,
                false,
                "1 of its quotes do not occur",
            ),
            (
                json!([{"call_id": "c1", "quote": "OOMKilled"}, {"call_id": "c9", "quote": "x"}]),
                RESTART,
                &submitted,
                false,
                "1 of its quotes",
            ),
            (
                json!([]),
                RESTART,
                &submitted,
                false,
                "no quote from a successful call",
            ),
            (
                json!([{"call_id": "c2", "quote": "not found"}]),
                RESTART,
                &submitted,
                false,
                "no quote from a successful call",
            ),
            (
                json!([{"call_id": "c1", "quote": "web"}]),
                RESTART,
                &submitted,
                false,
                "no quote from a successful call",
            ),
            (good.clone(), "", &submitted, false, "there is no fix_command"),
            (
                good.clone(),
                "kubectl delete namespace prod",
                &submitted,
                false,
                "the fix gate refuses",
            ),
            (
                good.clone(),
                "kubectl rollout restart deployment/web -n other",
                &submitted,
                false,
                "namespace other",
            ),
            (
                good.clone(),
                "kubectl rollout restart deployment/web; id",
                &submitted,
                false,
                "the fix gate refuses",
            ),
            (
                good.clone(),
                RESTART,
                &short,
                false,
                "the investigation is partial",
            ),
            (good.clone(), RESTART, &submitted, true, "came from a script"),
        ] {
            let output = made(&fix(&evidence, command), end, is_scripted);
            assert_eq!(output["can_auto_fix"], false, "{reason}");
            let notes = output["escalation_notes"].as_str().unwrap();
            assert!(notes.contains(reason), "{notes}");
            assert_eq!(output["scripted"] == true, is_scripted);
        }
        let partial = made(&fix(&good, RESTART), &short, false);
        assert_eq!(
            (&partial["fix_command"], &partial["status"]),
            (&Value::Null, &json!("partial"))
        );
        let inconclusive = made(
            &json!({"summary": "s", "status": "inconclusive"}),
            &submitted,
            false,
        );
        assert_eq!(inconclusive["status"], "inconclusive");
    }

    #[test]
    fn the_output_has_every_field() {
        let said = json!({"summary": "s", "findings": ["f"], "confidence": 0.5, "actions_taken": ["a lie"], "status": "complete"});
        expect![[r#"
            {
              "summary": "s",
              "findings": [
                "f"
              ],
              "ruled_out": [],
              "root_cause": null,
              "confidence": 0.5,
              "recommendations": [],
              "can_auto_fix": false,
              "fix_command": null,
              "actions_taken": [
                "kubectl get pod web-1",
                "kubectl get pod web-1 (no success)"
              ],
              "escalation_notes": null,
              "evidence": [],
              "status": "complete",
              "stop_reason": "findings_submitted",
              "usage": {
                "input_tokens": 0,
                "output_tokens": 0,
                "cached_tokens": 0,
                "turns": 2
              },
              "transcript_ref": "ref"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&made(&said, &End::Submitted, false)).unwrap());
    }

    #[test]
    fn what_was_read_on_is_evidence_of_the_call_it_is_of() {
        let read = |id: &str, tool: &str, arguments: Value, text: &str| {
            Point::Tool(ToolPoint {
                call: ToolCall {
                    id: id.into(),
                    tool: tool.into(),
                    arguments,
                },
                is_error: false,
                text: text.into(),
                whole: None,
                started_at: Timestamp::default(),
                at: Timestamp::default(),
            })
        };
        let mut points = points();
        points.push(read(
            "m1",
            "read_more",
            json!({"call_id": "c1"}),
            "the result of c1, 900 lines: lines 7 to 8\n7: panic: no memory\n8- at main.go:12",
        ));
        points.push(read(
            "f1",
            "read_file",
            json!({"step": "a"}),
            "stdout of a\n12: one\n13: two",
        ));
        for (call_id, quote, is_grounded) in [
            ("c1", "panic: no memory at main.go:12", true),
            ("m1", "panic: no memory at main.go:12", true),
            ("m1", "7: panic: no memory", true),
            ("c2", "panic: no memory", false),
            ("f1", "one two", true),
            ("c1", "one two", false),
        ] {
            let said = json!([{"call_id": call_id, "quote": quote}]);
            let (evidence, _) = evidence(&said, &points);
            assert_eq!(evidence[0]["grounded"], is_grounded, "{call_id} {quote}");
        }
    }
}
