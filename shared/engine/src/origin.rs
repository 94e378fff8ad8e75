//! What an execution began with, kept small: ten thousand of them wait in one scheduler at a time.
//!
//! Invariants:
//! - The spec is not kept: its definition, shared by all executions of it, is.
//! - The input stays JSON text, a third of what its values take, and is read when a step asks for it.

use protocol::{ExecutionId, Input, Json, Namespace, Start, WorkflowName};

use crate::context;

/// What an execution began with.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// Which execution this is.
    pub execution: ExecutionId,
    /// The workflow's name.
    pub workflow: WorkflowName,
    /// What it began with: a source's name, `api`, `kubernetes`.
    pub trigger_source: Box<str>,
    /// What the execution works on.
    pub(crate) input: Json<Input>,
}

impl Origin {
    /// Of this start.
    pub(crate) fn of(start: &Start) -> Self {
        Self {
            namespace: start.namespace.clone(),
            execution: start.execution,
            workflow: start.workflow.clone(),
            trigger_source: start.trigger_source.as_str().into(),
            input: start.input.clone(),
        }
    }

    /// The namespace in which a fix may act.
    pub(crate) fn fix_namespace(&self) -> String {
        context::fix_namespace(&self.input.read(), self.namespace.as_str()).to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn origin(input: &Input) -> Origin {
        Origin::of(&Start {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["origin"]),
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&json!({"steps": []})).unwrap(),
            input: Json::of(input).unwrap(),
            delivery: None,
            uid: None,
        })
    }

    #[test]
    fn the_input_comes_back_as_it_was() {
        let input: Input = serde_json::from_value(json!({
            "data": {"z": 1, "a": [1.5, null, "\u{0}\"é\n"], "big": 18_446_744_073_709_551_615_u64, "deep": {"x": {}}},
            "alert": {"name": "A", "labels": {"namespace": "prod"}},
        }))
        .unwrap();
        let origin = origin(&input);
        assert_eq!(origin.input.read(), input);
        let keys: Vec<String> = origin.input.read().data.keys().cloned().collect();
        assert_eq!(
            keys,
            ["z", "a", "big", "deep"],
            "templates walk over keys in the order of the input"
        );
    }

    #[test]
    fn a_fix_acts_where_the_alert_is() {
        let of = |input| origin(&serde_json::from_value(input).unwrap()).fix_namespace();
        assert_eq!(of(json!({"alert": {"labels": {"namespace": "prod"}}})), "prod");
        assert_eq!(of(json!({"alert": {"labels": {"namespace": ""}}})), "default");
        assert_eq!(of(json!({"data": {"namespace": "prod"}})), "default");
    }
}
