//! The score of an investigation: each expectation of its case, met or not.
//!
//! Invariant: the score is a function of the case and of what came out; nothing that the model says about itself
//! counts beyond what [`crate::agent::findings`] lets stand.

use serde::Serialize;
use serde_json::Value;

use super::{
    case::{Case, Fix},
    recording::Unrecorded,
};

/// Characters that a report shows of what was found.
const FOUND_CHARS_MAX: usize = 300;

/// One expectation, and what came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Criterion {
    /// Which: `status`, `says`, `says_not`, `fix`, `grounded`, `turns`, `calls`, `unrecorded`.
    pub criterion: &'static str,
    /// Whether it is met.
    pub passed: bool,
    /// What the case wants.
    pub expected: String,
    /// What came.
    pub found: String,
}

/// What came of an investigation.
pub struct Came<'a> {
    /// The step's output.
    pub output: &'a Value,
    /// Answers of the model.
    pub turns: u32,
    /// Tool calls.
    pub calls: u32,
    /// Those that nothing was recorded for.
    pub unrecorded: &'a Unrecorded,
}

/// Every criterion of the case, in the order in which they are documented.
pub fn score(case: &Case, came: &Came<'_>) -> Vec<Criterion> {
    let expect = &case.expect;
    let mut all = vec![status(&expect.status, came.output)];
    let said = said(came.output);
    let whole = said.join("\n");
    for pattern in &expect.says {
        let passed = pattern.regex.is_match(&whole);
        all.push(Criterion {
            criterion: "says",
            passed,
            expected: format!("/{}/", pattern.text),
            found: match pattern.regex.find(&whole) {
                Some(found) => shown(found.as_str()),
                None => format!("not in: {}", shown(&whole)),
            },
        });
    }
    for pattern in &expect.says_not {
        let found = pattern.regex.find(&whole);
        all.push(Criterion {
            criterion: "says_not",
            passed: found.is_none(),
            expected: format!("not /{}/", pattern.text),
            found: found.map_or_else(|| "nothing of it".to_owned(), |found| shown(found.as_str())),
        });
    }
    all.extend(expect.fix.as_ref().map(|wanted| fix(wanted, came.output)));
    all.push(grounded(expect.grounded_min, &came.output["evidence"]));
    let limits = [
        ("turns", expect.turns_max, came.turns),
        ("calls", expect.calls_max, came.calls),
        ("unrecorded", expect.unrecorded_max, came.unrecorded.count),
    ];
    for (criterion, max, found) in limits {
        let Some(max) = max else { continue };
        all.push(Criterion {
            criterion,
            passed: found <= max,
            expected: format!("at most {max}"),
            found: found.to_string(),
        });
    }
    all
}

/// Summary, root cause and findings: where an investigation says what it found.
fn said(output: &Value) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut said: Vec<String> = [&output["summary"], &output["root_cause"]]
        .into_iter()
        .filter_map(text)
        .collect();
    let findings = output["findings"].as_array();
    said.extend(findings.into_iter().flatten().filter_map(text));
    said
}

fn status(expected: &str, output: &Value) -> Criterion {
    let status = output["status"].as_str().unwrap_or("none");
    let reason = output["stop_reason"].as_str().unwrap_or_default();
    Criterion {
        criterion: "status",
        passed: status == expected,
        expected: expected.to_owned(),
        found: match status {
            "partial" => format!(
                "partial ({reason}): {}",
                shown(output["escalation_notes"].as_str().unwrap_or_default())
            ),
            status => status.to_owned(),
        },
    }
}

/// A right fix must also be fit to be applied: what the gate or the grounds refuse helps nobody.
fn fix(wanted: &Fix, output: &Value) -> Criterion {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let proposed = output["fix_command"].as_str().map(plain);
    let is_fit = output["can_auto_fix"] == Value::Bool(true);
    let notes = output["escalation_notes"].as_str().unwrap_or("the model says so");
    let found = match (&proposed, is_fit) {
        (None, _) => "none".to_owned(),
        (Some(command), true) => shown(command),
        (Some(command), false) => format!(
            "{}, which is not to be applied by itself: {}",
            shown(command),
            shown(notes)
        ),
    };
    let (passed, expected) = match wanted {
        Fix::NoFix => (proposed.is_none() && !is_fit, "none".to_owned()),
        Fix::AnyOf(commands) => (
            is_fit
                && proposed.is_some_and(|proposed| commands.iter().any(|command| plain(command) == proposed)),
            commands.join(", or "),
        ),
    };
    Criterion {
        criterion: "fix",
        passed,
        expected,
        found,
    }
}

fn grounded(min: f64, evidence: &Value) -> Criterion {
    let quotes = evidence.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_grounded = |quote: &&Value| quote["grounded"] == Value::Bool(true);
    let grounded = quotes.iter().filter(is_grounded).count();
    // No quote at all is no evidence, and not a share of one.
    let share = match quotes.len() {
        0 => 0.0,
        all => grounded as f64 / all as f64,
    };
    let first_wrong = quotes.iter().find(|quote| !is_grounded(quote));
    let wrong = first_wrong.map_or_else(String::new, |quote| {
        let text = |key: &str| quote[key].as_str().unwrap_or_default();
        format!(
            "; not in the result of {}: {}",
            text("call_id"),
            shown(text("quote"))
        )
    });
    Criterion {
        criterion: "grounded",
        passed: share >= min,
        expected: format!("at least {:.0} % of the quotes", min * 100.0),
        found: format!("{grounded} of {}{wrong}", quotes.len()),
    }
}

/// On one line, and cut.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(FOUND_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;
    use serde_json::json;

    use super::{super::case::parse, *};

    fn told(expectations: &str, output: &Value, turns: u32, calls: u32) -> String {
        let text = format!("goal: why?\ntools: [kubectl]\nexpect: {expectations}\n");
        let case = parse("case.yaml", &text).unwrap();
        let unrecorded = Unrecorded {
            count: 1,
            calls: vec!["kubectl get x".into()],
        };
        let came = Came {
            output,
            turns,
            calls,
            unrecorded: &unrecorded,
        };
        score(&case, &came)
            .iter()
            .map(|each| {
                format!(
                    "{} {}: {} | {}\n",
                    if each.passed { "+" } else { "-" },
                    each.criterion,
                    each.expected,
                    each.found
                )
            })
            .collect()
    }

    const EXPECTATIONS: &str = "{says: ['(?i)oomkilled', 'limit of \\d+Mi'], says_not: ['(?i)disk'], \
                                fix: [kubectl rollout undo deployment/web -n shop], turns_max: 3, calls_max: 4, \
                                unrecorded_max: 0}";

    #[test]
    fn what_is_right_passes() {
        let output = json!({
            "status": "complete", "summary": "web is OOMKilled.", "root_cause": "A limit\nof 64Mi, the limit of 64Mi.",
            "findings": [], "can_auto_fix": true, "fix_command": "kubectl  rollout undo deployment/web -n shop",
            "evidence": [{"call_id": "c1", "quote": "OOMKilled", "grounded": true}],
        });
        expect![[r#"
            + status: complete | complete
            + says: /(?i)oomkilled/ | OOMKilled
            + says: /limit of \d+Mi/ | limit of 64Mi
            + says_not: not /(?i)disk/ | nothing of it
            + fix: kubectl rollout undo deployment/web -n shop | kubectl rollout undo deployment/web -n shop
            + grounded: at least 100 % of the quotes | 1 of 1
            + turns: at most 3 | 3
            + calls: at most 4 | 4
            - unrecorded: at most 0 | 1
        "#]]
        .assert_eq(&told(EXPECTATIONS, &output, 3, 4));
    }

    #[test]
    fn what_is_wrong_fails_and_says_what_came() {
        let output = json!({
            "status": "partial", "stop_reason": "turns", "summary": "The disk is full.", "root_cause": null,
            "findings": ["oomkilled once", {"pod": "web"}], "can_auto_fix": false,
            "fix_command": "kubectl rollout undo deployment/web -n shop", "escalation_notes": "all 30 turns are used",
            "evidence": [
                {"call_id": "c1", "quote": "OOMKilled", "grounded": true},
                {"call_id": "c2", "quote": "no space left", "grounded": false},
            ],
        });
        expect![[r#"
            - status: complete | partial (turns): all 30 turns are used
            + says: /(?i)oomkilled/ | oomkilled
            - says: /limit of \d+Mi/ | not in: The disk is full. oomkilled once {"pod":"web"}
            - says_not: not /(?i)disk/ | disk
            - fix: kubectl rollout undo deployment/web -n shop | kubectl rollout undo deployment/web -n shop, which is not to be applied by itself: all 30 turns are used
            - grounded: at least 100 % of the quotes | 1 of 2; not in the result of c2: no space left
            - turns: at most 3 | 4
            - calls: at most 4 | 5
            - unrecorded: at most 0 | 1
        "#]].assert_eq(&told(EXPECTATIONS, &output, 4, 5));
    }

    #[test]
    fn no_fix_means_none_at_all_and_no_quote_is_no_evidence() {
        let none =
            json!({"status": "inconclusive", "summary": "?", "fix_command": null, "can_auto_fix": false});
        let proposed = json!({
            "status": "complete", "summary": "?", "can_auto_fix": false,
            "fix_command": "kubectl delete pod web-1 -n shop", "evidence": [],
        });
        expect![[r#"
            + status: inconclusive | inconclusive
            + fix: none | none
            + grounded: at least 0 % of the quotes | 0 of 0
            + status: complete | complete
            - fix: none | kubectl delete pod web-1 -n shop, which is not to be applied by itself: the model says so
            - grounded: at least 100 % of the quotes | 0 of 0
        "#]].assert_eq(&format!(
            "{}{}",
            told("{status: inconclusive, fix: none, grounded_min: 0}", &none, 1, 0),
            told("{fix: none}", &proposed, 1, 0)
        ));
    }
}
