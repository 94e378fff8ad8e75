//! Which calls are not worth making: the same again, and a tool that fails the same way again and again.
//!
//! Invariant: it is a function of the record and the time, so a resumed investigation decides the same.

use std::time::Duration;

use protocol::{Timestamp, turns::ToolCall};

use super::transcript::{Point, ToolPoint};
use crate::tools::{STOPPED, read_more};

/// After this time the same call may say something new.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Failures of a tool in the same words that end it.
const SAME_FAILURES_MAX: usize = 3;
/// How the result of a call begins that was not made.
pub const NOT_RUN: &str = "not run: ";

/// Why `call` is not made, if it is not. `before` are the calls of the same answer that stand before it.
pub fn objection(points: &[Point], before: &[ToolCall], call: &ToolCall, now: Timestamp) -> Option<String> {
    let is_same = |other: &ToolCall| other.tool == call.tool && other.arguments == call.arguments;
    if let Some(same) = before.iter().find(|other| is_same(other)) {
        return Some(format!("{NOT_RUN}it is the same as {} of this answer", same.id));
    }
    let made = || made(points).filter(|(_, tool)| tool.call.tool == call.tool);
    // A neighbour that is away fails all calls of one answer: that counts once. Time that ran out asks for less.
    let mut failures: Vec<(&str, usize)> = made()
        .filter(|(_, tool)| tool.is_error && !tool.text.starts_with(STOPPED))
        .map(|(turn, tool)| (tool.text.as_str(), turn))
        .collect();
    failures.sort_unstable();
    failures.dedup();
    let worn_out = failures
        .chunk_by(|(one, _), (other, _)| one == other)
        .find(|same| same.len() >= SAME_FAILURES_MAX);
    if let Some(same) = worn_out {
        return Some(format!(
            "{NOT_RUN}{} has failed {} times in the same way, so it is not called any more in this investigation; go \
             another way, or submit what you have",
            call.tool,
            same.len()
        ));
    }
    let same = made().map(|(_, tool)| tool);
    let same = same.filter(|tool| !tool.is_error && is_same(&tool.call)).last()?;
    let age = now.since(same.at);
    (age < REPEAT_AFTER).then(|| {
        format!(
            "{NOT_RUN}{} asked just this {} s ago and has its result; {} with its id shows it again. In {} s it may be \
             asked anew",
            same.call.id,
            age.as_secs(),
            read_more::NAME,
            (REPEAT_AFTER - age).as_secs() + 1
        )
    })
}

/// The results of calls that were made, each with the number of its answer.
fn made(points: &[Point]) -> impl Iterator<Item = (usize, &ToolPoint)> {
    let mut turn = 0;
    points.iter().filter_map(move |point| match point {
        Point::Model(_) => {
            turn += 1;
            None
        }
        Point::Tool(tool) if !tool.text.starts_with(NOT_RUN) => Some((turn, tool)),
        Point::Tool(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use protocol::turns::{ModelTurn, Usage};
    use serde_json::json;

    use super::*;

    fn call(id: &str, tool: &str, n: u32) -> ToolCall {
        ToolCall {
            id: id.into(),
            tool: tool.into(),
            arguments: json!({ "n": n }),
        }
    }

    fn gave(call: ToolCall, is_error: bool, text: &str, at_s: i64) -> Point {
        Point::Tool(ToolPoint {
            call,
            is_error,
            text: text.into(),
            whole: None,
            started_at: Timestamp::default(),
            at: Timestamp::from_millis(at_s * 1000),
        })
    }

    #[test]
    fn the_same_again_and_what_only_fails_is_not_called() {
        let answer = Point::Model(ModelTurn {
            turn: 1,
            text: String::new(),
            calls: Vec::new(),
            stop_reason: String::new(),
            usage: Usage::default(),
            at: Timestamp::default(),
        });
        let fails = |n: usize, text: &str| gave(call("f", "kubectl", n as u32), true, text, 0);
        let failing = |times: usize| -> Vec<Point> {
            let each = |n| [answer.clone(), fails(n, "failed: no server")];
            (0..times).flat_map(each).collect()
        };
        let slow = |n| {
            [
                answer.clone(),
                fails(n, "stopped: the call took longer than 30.0 s"),
            ]
        };
        let slow: Vec<Point> = (0..5).flat_map(slow).collect();
        let at_once: Vec<Point> = (0..5).map(|n| fails(n, "failed: no server")).collect();
        let told = |text: &str| gave(call("t", "kubectl", 1), true, text, 0);
        let ok = gave(call("a", "kubectl", 1), false, "pods", 10);
        for (points, before, asked, at_s, expected) in [
            (vec![ok.clone()], vec![], call("b", "kubectl", 2), 11, None),
            (vec![ok.clone()], vec![], call("b", "promql", 1), 11, None),
            (
                vec![ok.clone()],
                vec![],
                call("b", "kubectl", 1),
                12,
                Some("a asked just this 2 s ago"),
            ),
            (vec![ok.clone()], vec![], call("b", "kubectl", 1), 70, None),
            (
                vec![],
                vec![call("a", "kubectl", 1)],
                call("b", "kubectl", 1),
                0,
                Some("same as a of this answer"),
            ),
            (
                vec![],
                vec![call("a", "kubectl", 2)],
                call("b", "kubectl", 1),
                0,
                None,
            ),
            // A failed call may be tried again, until it is clear that it fails.
            (failing(2), vec![], call("b", "kubectl", 1), 0, None),
            (
                failing(3),
                vec![],
                call("b", "kubectl", 7),
                0,
                Some("failed 3 times in the same way"),
            ),
            (failing(3), vec![], call("b", "curl", 7), 0, None),
            (slow, vec![], call("b", "kubectl", 9), 0, None),
            (at_once, vec![], call("b", "kubectl", 9), 0, None),
            (
                vec![told("failed: a"), told("failed: b"), told("failed: a")],
                vec![],
                call("b", "kubectl", 1),
                0,
                None,
            ),
            (
                [
                    failing(2),
                    vec![told("not run: x"), told("not run: x"), told("not run: x")],
                ]
                .concat(),
                vec![],
                call("b", "kubectl", 1),
                0,
                None,
            ),
        ] {
            let now = Timestamp::from_millis(at_s * 1000);
            let found = objection(&points, &before, &asked, now);
            match expected {
                None => assert_eq!(found, None, "{points:?}"),
                Some(part) => assert!(
                    found
                        .as_deref()
                        .is_some_and(|text| text.starts_with(NOT_RUN) && text.contains(part)),
                    "{found:?}"
                ),
            }
        }
    }
}
