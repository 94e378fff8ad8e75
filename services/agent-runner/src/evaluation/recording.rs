//! Tools that answer from a recording.
//!
//! Invariants:
//! - Nothing outside is asked: a call that nothing is recorded for fails, says so, and is counted.
//! - What the real tool refuses is refused, and not counted.
//! - The same calls in the same order get the same answers.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use super::case::{Calls, RecordedAnswer, without_nulls};
use crate::{
    agent::findings::one_line,
    tools::{Tool, ToolError},
};

/// Calls without an answer that are kept for the report; more are only counted.
const UNRECORDED_KEPT_MAX: usize = 100;

/// What the tools of one investigation answer.
#[derive(Debug)]
pub struct Recording {
    answers: Vec<RecordedAnswer>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// Which answers were given.
    given: Vec<bool>,
    unrecorded: Unrecorded,
}

/// Calls that nothing was recorded for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unrecorded {
    /// How many.
    pub count: u32,
    /// The first of them, each on one line.
    pub calls: Vec<String>,
}

impl Recording {
    /// With these answers, of which none is given yet.
    pub fn new(answers: Vec<RecordedAnswer>) -> Self {
        let told = Told {
            given: vec![false; answers.len()],
            unrecorded: Unrecorded::default(),
        };
        Self {
            answers,
            told: Mutex::new(told),
        }
    }

    /// What was asked in vain.
    pub fn unrecorded(&self) -> Unrecorded {
        self.told().unrecorded.clone()
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self, is_wanted: impl Fn(&RecordedAnswer) -> bool) -> Vec<usize> {
        let answers = self.answers.iter().enumerate();
        answers
            .filter(|(_, answer)| is_wanted(answer))
            .map(|(at, _)| at)
            .collect()
    }

    fn answer(&self, tool: &str, arguments: &Value) -> Result<String, ToolError> {
        let exact = without_nulls(arguments);
        let line = line(tool, &exact);
        let mut told = self.told();
        let of_tool = || self.answers.iter().filter(|answer| answer.tool == tool);
        let is_exact = |to: &Calls| matches!(to, Calls::Exactly(arguments) if *arguments == exact);
        let is_matching =
            |to: &Calls| matches!(to, Calls::Matching(pattern) if pattern.regex.is_match(&line));
        let named = of_tool()
            .find(|answer| is_exact(&answer.to))
            .or_else(|| of_tool().find(|answer| is_matching(&answer.to)));
        let chosen = match named {
            // Answers to the same calls come one after the other, and the last stays: a state that came to rest.
            Some(first) => {
                let alike = self.places(|answer| answer.tool == tool && first.to.is_alike(&answer.to));
                let fresh = alike.iter().find(|at| !told.given[**at]);
                fresh.or(alike.last()).copied()
            }
            None => self
                .places(|answer| answer.tool == tool && matches!(answer.to, Calls::Next))
                .into_iter()
                .find(|at| !told.given[*at]),
        };
        let Some(at) = chosen else {
            told.unrecorded.count += 1;
            if told.unrecorded.calls.len() < UNRECORDED_KEPT_MAX {
                told.unrecorded.calls.push(line.clone());
            }
            return Err(ToolError::Failed(format!(
                "nothing is recorded for `{line}`; ask in another way, or go on without it"
            )));
        };
        told.given[at] = true;
        given(&self.answers[at])
    }
}

/// The call on one line: the tool, then the values of its arguments in the order of their names.
fn line(tool: &str, arguments: &Value) -> String {
    let mut fields: Vec<(&String, &Value)> = arguments.as_object().into_iter().flatten().collect();
    fields.sort_by_key(|(name, _)| name.as_str());
    let sorted: Map<String, Value> = fields
        .into_iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    one_line(tool, &Value::Object(sorted))
}

/// A recorded failure begins as the toolbox has it, which puts those words there itself.
fn given(answer: &RecordedAnswer) -> Result<String, ToolError> {
    let text = answer.result.clone();
    if !answer.is_error {
        return Ok(text);
    }
    Err(
        match (text.strip_prefix("refused: "), text.strip_prefix("failed: ")) {
            (Some(reason), _) => ToolError::Refused(reason.to_owned()),
            (None, Some(reason)) => ToolError::Failed(reason.to_owned()),
            (None, None) => ToolError::Failed(text),
        },
    )
}

/// A tool that describes itself as the real one does, and answers from a recording.
pub struct FromRecording {
    /// Its name.
    pub name: String,
    /// The real one, which describes and checks, and is never called.
    pub real: Box<dyn Tool>,
    /// What it answers.
    pub recording: Arc<Recording>,
}

impl Tool for FromRecording {
    fn description(&self) -> String {
        self.real.description()
    }

    fn schema(&self) -> Value {
        self.real.schema()
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        let answer = self
            .real
            .check(arguments)
            .and_then(|()| self.recording.answer(&self.name, arguments));
        Box::pin(std::future::ready(answer))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::evaluation::case::Pattern;

    fn answer(to: Calls, result: &str, is_error: bool) -> RecordedAnswer {
        RecordedAnswer {
            tool: "kubectl".into(),
            to,
            result: result.into(),
            is_error,
        }
    }

    fn matching(text: &str) -> Calls {
        Calls::Matching(Pattern {
            text: text.into(),
            regex: regex::Regex::new(text).unwrap(),
        })
    }

    #[test]
    fn exact_goes_before_pattern_before_order_and_the_last_stays() {
        let recording = Recording::new(vec![
            answer(Calls::Next, "first of the rest", false),
            answer(matching("^kubectl get pods"), "by pattern, once", false),
            answer(matching("^kubectl get"), "by a wider pattern", false),
            answer(matching("^kubectl get pods"), "by pattern, then", false),
            answer(
                Calls::Exactly(json!({"args": ["get", "pods"]})),
                "exact, once",
                false,
            ),
            answer(
                Calls::Exactly(json!({"args": ["get", "pods"]})),
                "exact, then",
                false,
            ),
            answer(Calls::Next, "second of the rest", false),
        ]);
        let ask = |words: Value| recording.answer("kubectl", &json!({ "args": words, "note": null }));
        for (words, result) in [
            (json!(["get", "pods"]), "exact, once"),
            (json!(["get", "pods"]), "exact, then"),
            (json!(["get", "pods"]), "exact, then"),
            (json!(["get", "pods", "-A"]), "by pattern, once"),
            (json!(["get", "pods", "-A"]), "by pattern, then"),
            (json!(["get", "pods", "-A"]), "by pattern, then"),
            (json!(["get", "nodes"]), "by a wider pattern"),
            (json!(["top", "node"]), "first of the rest"),
            (json!(["top", "node"]), "second of the rest"),
        ] {
            assert_eq!(ask(words).unwrap(), result);
        }
        assert_eq!(recording.unrecorded(), Unrecorded::default());
        let ToolError::Failed(text) = ask(json!(["top", "node"])).unwrap_err() else {
            panic!("a failure")
        };
        assert!(
            text.starts_with("nothing is recorded for `kubectl top node`"),
            "{text}"
        );
        recording.answer("promql", &json!({"query": "up"})).unwrap_err();
        assert_eq!(
            recording.unrecorded(),
            Unrecorded {
                count: 2,
                calls: vec!["kubectl top node".into(), "promql up".into()],
            }
        );
    }

    #[test]
    fn a_line_has_the_arguments_in_the_order_of_their_names() {
        let arguments = json!({"range": "1h", "time": null, "query": "up"});
        assert_eq!(line("promql", &arguments), "promql up 1h");
    }

    #[test]
    fn failures_are_as_they_were() {
        let recording = Recording::new(vec![
            answer(Calls::Next, "refused: `delete` changes things", true),
            answer(Calls::Next, "failed: kubectl ended with exit code 1", true),
            answer(Calls::Next, "pods \"x\" not found", true),
        ]);
        let given = || recording.answer("kubectl", &json!({})).unwrap_err();
        assert_eq!(given(), ToolError::Refused("`delete` changes things".into()));
        assert_eq!(
            given(),
            ToolError::Failed("kubectl ended with exit code 1".into())
        );
        assert_eq!(given(), ToolError::Failed("pods \"x\" not found".into()));
    }
}
