//! What an execution began with, kept small: ten thousand of them wait in one scheduler at a time.
//!
//! Invariants:
//! - The spec is not kept: its definition, shared by all executions of it, is.
//! - The input is kept as JSON text, a third of what its values take, and read when a step asks for it.

use protocol::{ExecutionId, Input, Namespace, Start, WorkflowName};

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
    /// The namespace in which a fix may act.
    pub(crate) fix_namespace: Box<str>,
    input: Box<str>,
}

impl Origin {
    /// Of this start.
    pub(crate) fn of(start: &Start) -> Self {
        let fix_namespace = context::fix_namespace(&start.input, start.namespace.as_str());
        // Maps with string keys and finite numbers, for which serialisation cannot fail.
        let input = serde_json::to_string(&start.input).expect("an input always serialises");
        Self {
            namespace: start.namespace.clone(),
            execution: start.execution,
            workflow: start.workflow.clone(),
            trigger_source: start.trigger_source.as_str().into(),
            fix_namespace: fix_namespace.into(),
            input: input.into(),
        }
    }

    /// What the execution works on.
    pub(crate) fn input(&self) -> Input {
        serde_json::from_str(&self.input).expect("what was written from an input can be read as one")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn the_input_comes_back_as_it_was() {
        let input: Input = serde_json::from_value(json!({
            "data": {"z": 1, "a": [1.5, null, "\u{0}\"é\n"], "big": 18_446_744_073_709_551_615_u64, "deep": {"x": {}}},
            "alert": {"name": "A", "labels": {"namespace": "prod"}},
        }))
        .unwrap();
        let start = Start {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["origin"]),
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: json!({"steps": []}),
            input: input.clone(),
            delivery: None,
            uid: None,
        };
        let origin = Origin::of(&start);
        assert_eq!(origin.input(), input);
        let keys: Vec<String> = origin.input().data.keys().cloned().collect();
        assert_eq!(
            keys,
            ["z", "a", "big", "deep"],
            "templates walk over keys in the order of the input"
        );
        assert_eq!(&*origin.fix_namespace, "prod");
    }
}
