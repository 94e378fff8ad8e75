//! Reads a located tree into the manifest's types, field by field.
//!
//! Invariants:
//! - Every problem is reported; a field that cannot be read is left out of the draft, and reading
//!   goes on.
//! - Only what one field or its neighbours decide is checked here; templates, conditions and what
//!   refers to another step are `program`'s.

mod runtime;
mod step;

use std::collections::HashMap;

use protocol::ids::{Namespace, WorkflowName};

use super::located::Node;
use super::object::{Object, Sink};
use super::types::{API_VERSION, KIND, Metadata, Runtime, Trigger};
use crate::admit::Policy;
use crate::program::StepDraft;
use runtime::{runtime, trigger};
use step::step;
pub(super) use step::{AGENT_FIELDS, CLI_FIELDS, CONDITIONAL_FIELDS};

/// So many steps may a workflow have.
pub const STEPS_MAX: usize = 1000;
/// Sources that need no configuration.
pub const BUILT_IN_SOURCES: [&str; 3] = ["alertmanager", "webhook", "nats"];

/// What could be read of a manifest.
pub(super) struct Draft {
    pub metadata: Option<Metadata>,
    pub trigger: Option<Trigger>,
    pub runtime: Runtime,
    pub steps: Vec<StepDraft>,
    pub suspend: bool,
}

pub(super) fn workflow(sink: &Sink, node: &Node, policy: &Policy) -> Option<Draft> {
    let mut top = Object::new(sink, "", node)?;
    api_version_and_kind(&mut top);
    // What the cluster adds to an object that it gives back.
    top.ignore(&["status"]);
    let metadata = match top.object("metadata") {
        Some(object) => metadata(object),
        None => {
            top.missing(
                "metadata",
                "it holds the workflow's name: `metadata: {name: my-workflow}`",
            );
            None
        }
    };
    let spec = top.object("spec");
    if spec.is_none() {
        top.missing("spec", "it holds the steps");
    }
    top.finish(&|name| match name {
        "name" | "namespace" | "annotations" | "labels" => {
            Some(format!("unknown field; \"{name}\" belongs into metadata"))
        }
        "steps" | "trigger" | "runtime" | "suspend" => {
            Some(format!("unknown field; \"{name}\" belongs into spec"))
        }
        _ => None,
    });
    let mut draft = Draft {
        metadata,
        trigger: None,
        runtime: Runtime::default(),
        steps: Vec::new(),
        suspend: false,
    };
    if let Some(spec) = spec {
        read_spec(spec, policy, &mut draft);
    }
    Some(draft)
}

fn api_version_and_kind(top: &mut Object) {
    match top.text("apiVersion") {
        Some(version) if version != API_VERSION => {
            let message = format!("unknown apiVersion \"{version}\"; write {API_VERSION}");
            top.sink.error("apiVersion", message);
        }
        None if top.take("apiVersion").is_none() => {
            top.missing("apiVersion", &format!("write `apiVersion: {API_VERSION}`"));
        }
        _ => {}
    }
    match top.text("kind") {
        Some(kind) if kind != KIND => {
            top.sink
                .error("kind", format!("unknown kind \"{kind}\"; write {KIND}"));
        }
        None if top.take("kind").is_none() => top.missing("kind", &format!("write `kind: {KIND}`")),
        _ => {}
    }
}

fn metadata(mut object: Object) -> Option<Metadata> {
    let name = object.text("name");
    let has_name = object.take("name").is_some();
    if !has_name {
        object.missing("name", "name the workflow, as in `name: pod-crash-investigation`");
    }
    if let Some(Err(error)) = name.as_deref().map(WorkflowName::new) {
        object.sink.error(&object.path_of("name"), error.to_string());
    }
    let namespace = object.text("namespace");
    if let Some(Err(error)) = namespace.as_deref().map(Namespace::new) {
        object.sink.error(&object.path_of("namespace"), error.to_string());
    }
    let labels = object.texts("labels");
    let annotations = object.texts("annotations");
    let uid = object.text("uid");
    object.ignore(&[
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
    ]);
    object.finish(&|_| None);
    Some(Metadata {
        // Where it is missing, that was reported, and the rest is still checked.
        name: name.unwrap_or_default(),
        namespace: namespace.unwrap_or_else(|| Namespace::default().to_string()),
        labels,
        annotations,
        uid,
    })
}

fn read_spec(mut spec: Object, policy: &Policy, draft: &mut Draft) {
    let sink = spec.sink;
    draft.trigger = spec.object("trigger").and_then(|object| trigger(object, policy));
    if let Some(object) = spec.object("runtime") {
        draft.runtime = runtime(object, policy);
    }
    draft.suspend = spec.boolean("suspend").unwrap_or_default();
    match spec.list("steps") {
        Some([]) => spec
            .sink
            .error("spec.steps", "is empty; a workflow needs at least one step"),
        Some(items) => {
            if items.len() > STEPS_MAX {
                let message = format!("has {} steps; a workflow may have {STEPS_MAX}", items.len());
                spec.sink.error("spec.steps", message);
            }
            draft.steps = items
                .iter()
                .take(STEPS_MAX)
                .enumerate()
                .map(|(index, node)| step(spec.sink, index, node, policy))
                .collect();
            check_names(spec.sink, &draft.steps);
        }
        None if spec.take("steps").is_none() => {
            spec.missing("steps", "a workflow needs at least one step");
        }
        None => {}
    }
    spec.finish(&|name| match name {
        "image" | "environment" | "env" | "llm_config" => {
            Some(format!("unknown field; \"{name}\" belongs into spec.runtime"))
        }
        "source" | "filters" => Some(format!("unknown field; \"{name}\" belongs into spec.trigger")),
        _ => None,
    });
    check_duration(&draft.steps, policy, sink);
}

fn check_names(sink: &Sink, steps: &[StepDraft]) {
    let mut first_at: HashMap<&str, usize> = HashMap::new();
    for step in steps {
        let Some(name) = step.name.as_deref() else {
            continue;
        };
        if let Some(first) = first_at.get(name) {
            let message = format!(
                "the name \"{name}\" is taken by spec.steps[{first}]; each step has a name of its own"
            );
            sink.error(&format!("{}.name", step.path()), message);
        } else {
            first_at.insert(name, step.index);
        }
    }
}

fn check_duration(steps: &[StepDraft], policy: &Policy, sink: &Sink) {
    let total_ms: u64 = steps.iter().map(|step| step.timeout_ms).sum();
    if total_ms > policy.execution_ms_max {
        let message = format!(
            "the steps' timeouts add up to {}; an execution may last {}; shorten them, or make two workflows of it",
            hours(total_ms),
            hours(policy.execution_ms_max)
        );
        sink.error("spec.steps", message);
    }
}

fn hours(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 60, minutes % 60) {
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}
