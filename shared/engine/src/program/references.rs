//! What can be known, before anything ran, of the paths that templates and conditions read.
//!
//! Invariants:
//! - An error only for what can never be there: a step that is undeclared, or has not run yet.
//! - What may be there after all (an output's key, a label) is at most a warning.

use std::collections::HashMap;

use serde_json::Value;

use super::{StepDraft, positions};
use crate::condition::{Path, Possible};
use crate::manifest::{Runtime, StepKind};
use crate::nearest::{did_you_mean, nearest};
use crate::problem::Problem;

const CLI_KEYS: [&str; 6] = ["stdout", "stderr", "exit_code", "command", "duration_ms", "json"];
const AGENT_KEYS: [&str; 15] = [
    "summary",
    "findings",
    "root_cause",
    "ruled_out",
    "confidence",
    "recommendations",
    "can_auto_fix",
    "fix_command",
    "actions_taken",
    "escalation_notes",
    "evidence",
    "status",
    "stop_reason",
    "usage",
    "transcript_ref",
];
const CONDITIONAL_KEYS: [&str; 4] = ["condition_met", "condition", "actual", "message"];
const ALERT_KEYS: [&str; 7] = [
    "name",
    "severity",
    "status",
    "labels",
    "annotations",
    "fingerprint",
    "starts_at",
];
const EXECUTION_KEYS: [&str; 3] = ["id", "name", "namespace"];

pub(super) struct Known<'d> {
    drafts: &'d [StepDraft],
    runtime: &'d Runtime,
    positions: HashMap<&'d str, usize>,
}

impl<'d> Known<'d> {
    pub(super) fn new(drafts: &'d [StepDraft], runtime: &'d Runtime) -> Known<'d> {
        Known {
            drafts,
            runtime,
            positions: positions(drafts),
        }
    }

    /// What is wrong with reading `path` in the step at `index`; the problem's field is the caller's.
    pub(super) fn check(&self, index: usize, path: &[String], written: &str) -> Option<Problem> {
        let [root, key, rest @ ..] = path else {
            return None;
        };
        match root.as_str() {
            "steps" => self.check_step(index, key, rest, written),
            "source" if key != "data" => Some(Problem::warning(
                "",
                format!(
                    "`{written}` does not exist; an alert's and an invocation's values are under `source.data`"
                ),
            )),
            "alert" => unlikely(key, &ALERT_KEYS, written, "an alert has"),
            "execution" => closed(key, &EXECUTION_KEYS, written, "an execution has"),
            "env" if !self.runtime.environment.contains_key(key) => {
                let names: Vec<&str> = self.runtime.environment.keys().map(String::as_str).collect();
                let hint = did_you_mean(key, "variables in spec.runtime.environment", &names);
                Some(Problem::warning(
                    "",
                    format!("`{written}` does not exist; {hint}"),
                ))
            }
            _ => None,
        }
    }

    fn check_step(&self, index: usize, name: &str, rest: &[String], written: &str) -> Option<Problem> {
        let mut before: Vec<&str> = self
            .drafts
            .iter()
            .take(index)
            .filter_map(|draft| draft.name.as_deref())
            .collect();
        before.dedup();
        let Some(position) = self.positions.get(name) else {
            let hint = did_you_mean(name, "steps before this one", &before);
            return Some(Problem::error(
                "",
                format!("`{written}` reads the step \"{name}\", which does not exist; {hint}"),
            ));
        };
        if *position == index {
            return Some(Problem::error(
                "",
                format!("`{written}` reads this step's own outcome, which is not there before it ran"),
            ));
        }
        if *position > index {
            let message = format!(
                "`{written}` reads the step \"{name}\", which runs later (spec.steps[{position}]); move it before this one"
            );
            return Some(Problem::error("", message));
        }
        let kind = self.drafts.get(*position)?.kind.as_ref()?;
        match rest {
            [output, key, ..] if output == "output" => check_output(kind, key, written),
            [key, ..] if key != "output" && key != "status" => match kind {
                StepKind::Cli(_) => unlikely(key, &CLI_KEYS, written, "a cli step has"),
                _ => check_output(kind, key, written),
            },
            _ => None,
        }
    }

    /// What values a path can have, for conditions that can never be met.
    pub(super) fn possible(&self, path: &Path) -> Possible {
        let segments: Vec<&str> = path.segments().iter().map(String::as_str).collect();
        let (name, rest) = match segments.as_slice() {
            ["alert", "severity"] => return Possible::LowerCase,
            ["steps", name, rest @ ..] => (*name, rest),
            _ => return Possible::Anything,
        };
        let kind = self
            .positions
            .get(name)
            .and_then(|at| self.drafts.get(*at))
            .and_then(|d| d.kind.as_ref());
        let texts = |words: &[&str]| Possible::OneOf(words.iter().map(|word| Value::from(*word)).collect());
        let booleans = || Possible::OneOf(vec![Value::Bool(true), Value::Bool(false)]);
        match (rest, kind) {
            // A failed step ends the execution: nothing that runs after it can see it.
            (["status"], _) => texts(&["Succeeded", "Skipped"]),
            (["output", "exit_code"] | ["exit_code"], Some(StepKind::Cli(_))) => {
                Possible::OneOf(vec![Value::from(0)])
            }
            (["output", "status"], Some(StepKind::Agent(_))) => {
                texts(&["complete", "partial", "inconclusive"])
            }
            (["output", "can_auto_fix"] | ["can_auto_fix"], Some(StepKind::Agent(_)))
            | (["output", "condition_met"] | ["condition_met"], Some(StepKind::Conditional(_))) => booleans(),
            _ => Possible::Anything,
        }
    }
}

fn check_output(kind: &StepKind, key: &str, written: &str) -> Option<Problem> {
    match kind {
        // The keys of a JSON object that it prints are there too.
        StepKind::Cli(_) => unlikely(key, &CLI_KEYS, written, "a cli step's output has"),
        StepKind::Agent(_) => closed(key, &AGENT_KEYS, written, "an agent's output has"),
        StepKind::Conditional(_) => closed(key, &CONDITIONAL_KEYS, written, "a condition's output has"),
    }
}

/// Of a closed set: anything else is surely not meant.
fn closed(key: &str, keys: &[&str], written: &str, what: &str) -> Option<Problem> {
    if keys.contains(&key) {
        return None;
    }
    let hint = did_you_mean(key, what, keys);
    Some(Problem::warning(
        "",
        format!("`{written}` will not be there; {hint}"),
    ))
}

/// Of an open set: only what is nearly one of the usual names is surely not meant.
fn unlikely(key: &str, keys: &[&str], written: &str, what: &str) -> Option<Problem> {
    let near = nearest(key, keys.iter().copied())?;
    let is_slip = key.len() >= 4 && strsim::damerau_levenshtein(key, near) == 1;
    if keys.contains(&key) || !is_slip {
        return None;
    }
    Some(Problem::warning(
        "",
        format!("`{written}` will hardly be there; {what} \"{near}\""),
    ))
}
