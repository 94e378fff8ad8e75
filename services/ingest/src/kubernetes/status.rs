//! The status of a Workflow object: summaries only, since bodies never go to etcd.
//!
//! Invariant: what is older than what is told already changes nothing.

use kube::api::DynamicObject;
use protocol::Timestamp;
use serde::{Deserialize, Serialize};

/// Characters of an error or message in a status.
const TEXT_CHARS_MAX: usize = 2000;
/// Characters of the list of all problems of a manifest.
const PROBLEMS_CHARS_MAX: usize = 16_000;
/// Runs of a definition that are listed.
const RECENT_RUNS_MAX: usize = 10;

/// What `kubectl get workflow NAME -o yaml` shows under `status`; `engine::manifest::crd` says what each is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_step: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_completed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Run>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recent_runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One run of a definition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Run {
    pub execution_id: String,
    pub phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// As in every Kubernetes object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How an execution stands, as one message of the log tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub execution: String,
    /// The message's place in the log.
    pub seq: u64,
    pub at: Timestamp,
    pub phase: &'static str,
    pub is_over: bool,
    pub current_step: Option<String>,
    pub steps_completed: u32,
    pub total_steps: u32,
    pub error: Option<String>,
}

impl Status {
    /// The object's; what cannot be read counts as absent.
    pub fn of(object: &DynamicObject) -> Self {
        let written = object.data.get("status").cloned();
        written
            .and_then(|status| serde_json::from_value(status).ok())
            .unwrap_or_default()
    }

    /// Says whether the manifest can be run.
    pub fn set_valid(&mut self, is_valid: bool, message: &str, generation: Option<i64>, now: Timestamp) {
        let (status, reason) = match is_valid {
            true => ("True", "Admitted"),
            false => ("False", "Invalid"),
        };
        self.set(
            "Valid",
            status,
            reason,
            cut(message, PROBLEMS_CHARS_MAX),
            generation,
            now,
        );
        self.observed_generation = generation;
    }

    /// It is accepted for execution.
    pub fn set_pending(
        &mut self,
        execution: &str,
        total_steps: u32,
        generation: Option<i64>,
        now: Timestamp,
    ) {
        *self = Self {
            conditions: std::mem::take(&mut self.conditions),
            observed_generation: self.observed_generation,
            phase: Some("Pending".to_owned()),
            execution_id: Some(execution.to_owned()),
            steps_completed: Some(0),
            total_steps: Some(total_steps),
            steps: Some(format!("0/{total_steps}")),
            ..Self::default()
        };
        let message = "the execution has not ended".to_owned();
        self.set("Complete", "False", "Pending", message, generation, now);
    }

    /// Takes in how its own execution stands; whether that is news.
    pub fn advance(&mut self, standing: &Standing, generation: Option<i64>) -> bool {
        let is_of_this = self.execution_id.as_deref() == Some(&standing.execution);
        let is_news = self.log_sequence.is_none_or(|told| told < standing.seq);
        // A rerun's status does not tell of the run before it.
        if !is_of_this || !is_news {
            return false;
        }
        self.log_sequence = Some(standing.seq);
        self.phase = Some(standing.phase.to_owned());
        self.current_step.clone_from(&standing.current_step);
        self.steps_completed = Some(standing.steps_completed);
        self.total_steps = Some(standing.total_steps);
        self.steps = Some(format!("{}/{}", standing.steps_completed, standing.total_steps));
        self.start_time.get_or_insert(standing.at);
        self.last_error = standing.error.as_deref().map(|error| cut(error, TEXT_CHARS_MAX));
        let message = match (&standing.error, standing.is_over) {
            (Some(error), _) => cut(error, TEXT_CHARS_MAX),
            (None, true) => "the execution has ended".to_owned(),
            (None, false) => "the execution has not ended".to_owned(),
        };
        if standing.is_over {
            self.completion_time = Some(standing.at);
        }
        let is_complete = if standing.is_over { "True" } else { "False" };
        self.set(
            "Complete",
            is_complete,
            standing.phase,
            message,
            generation,
            standing.at,
        );
        true
    }

    /// Takes in how one run of a definition stands; whether that is news.
    pub fn count(&mut self, standing: &Standing) -> bool {
        let before = self.clone();
        let at = self
            .recent_runs
            .iter()
            .position(|run| run.execution_id == standing.execution);
        let run = match at {
            Some(at) => &mut self.recent_runs[at],
            None => {
                self.runs = Some(self.runs.unwrap_or(0) + 1);
                self.recent_runs.insert(
                    0,
                    Run {
                        execution_id: standing.execution.clone(),
                        start_time: Some(standing.at),
                        ..Run::default()
                    },
                );
                self.recent_runs.truncate(RECENT_RUNS_MAX);
                &mut self.recent_runs[0]
            }
        };
        if run.completion_time.is_none() {
            standing.phase.clone_into(&mut run.phase);
            run.error = standing
                .error
                .as_deref()
                .map(|error| cut(error, TEXT_CHARS_MAX / 10));
            run.completion_time = standing.is_over.then_some(standing.at);
        }
        self.last_run = self.recent_runs.first().cloned();
        *self != before
    }

    fn set(
        &mut self,
        kind: &str,
        status: &str,
        reason: &str,
        message: String,
        generation: Option<i64>,
        now: Timestamp,
    ) {
        let former = self
            .conditions
            .iter()
            .position(|condition| condition.kind == kind);
        let since = former
            .map(|at| &self.conditions[at])
            .filter(|condition| condition.status == status)
            .map_or(now, |condition| condition.last_transition_time);
        let condition = Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since,
            observed_generation: generation,
        };
        match former {
            Some(at) => self.conditions[at] = condition,
            None => self.conditions.push(condition),
        }
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn standing(seq: u64, phase: &'static str, completed: u32) -> Standing {
        Standing {
            execution: "one".into(),
            seq,
            at: Timestamp::from_millis(seq as i64 * 1000),
            phase,
            is_over: phase != "Running",
            current_step: None,
            steps_completed: completed,
            total_steps: 3,
            error: None,
        }
    }

    #[test]
    fn what_comes_late_or_twice_changes_nothing() {
        let mut status = Status::default();
        status.set_pending("one", 3, Some(1), Timestamp::from_millis(0));
        assert!(status.advance(&standing(7, "Running", 1), Some(1)));
        assert!(status.advance(&standing(9, "Succeeded", 3), Some(1)));
        let told = status.clone();
        for late in [
            standing(9, "Succeeded", 3),
            standing(8, "Running", 2),
            standing(7, "Running", 1),
        ] {
            assert!(!status.advance(&late, Some(1)));
        }
        assert_eq!(status, told);
        assert_eq!(status.steps.as_deref(), Some("3/3"));
        let other = Standing {
            execution: "another".into(),
            ..standing(99, "Failed", 0)
        };
        assert!(!status.advance(&other, Some(1)), "a former run's");
    }

    #[test]
    fn a_definition_counts_each_run_once() {
        let mut status = Status::default();
        for (execution, phase) in [
            ("one", "Running"),
            ("two", "Running"),
            ("one", "Succeeded"),
            ("one", "Running"),
            ("two", "Failed"),
        ] {
            status.count(&Standing {
                execution: execution.into(),
                ..standing(1, phase, 0)
            });
        }
        assert_eq!(status.runs, Some(2));
        let last = status.last_run.clone().unwrap();
        assert_eq!(
            (last.execution_id.as_str(), last.phase.as_str()),
            ("two", "Failed")
        );
        assert_eq!(status.recent_runs[1].phase, "Succeeded");
        assert!(!status.count(&Standing {
            execution: "two".into(),
            ..standing(1, "Running", 0)
        }));
        for number in 0..20 {
            status.count(&Standing {
                execution: format!("more-{number}"),
                ..standing(1, "Running", 0)
            });
        }
        assert_eq!((status.runs, status.recent_runs.len()), (Some(22), 10));
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut status = Status::default();
        let times = |status: &Status| status.conditions[0].last_transition_time.as_millis();
        status.set_valid(true, "", Some(1), Timestamp::from_millis(1));
        status.set_valid(true, "", Some(2), Timestamp::from_millis(2));
        assert_eq!(times(&status), 1);
        status.set_valid(false, "wrong", Some(3), Timestamp::from_millis(3));
        assert_eq!((times(&status), status.observed_generation), (3, Some(3)));
    }
}
