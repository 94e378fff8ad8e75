//! The manifest: what a person writes in a Workflow, as types, and the one parser and validator
//! that turn text into them.
//!
//! Invariants:
//! - A [`Workflow`] that came out of [`crate::admit`] is valid as a whole; nothing downstream
//!   checks it again.
//! - [`Spec`] survives a trip through JSON exactly: it travels in the start fact, and an execution
//!   is decided from that copy alone.
//! - snake_case is what is written; camelCase is read too.

mod crd;
mod fields;
mod json;
mod located;
mod object;
mod read;
mod sink;
#[cfg(test)]
mod tests;
mod types;
mod yaml;

use protocol::Json;
use serde_json::Value;

use crate::admit::{Admitted, Format, Policy, Role, input_of_annotations};
use crate::problem::Problem;
use crate::program;
use located::{LINE_UNKNOWN, Node, Shape, SyntaxError};
use object::Sink;

pub use crd::crd;
pub use fields::{FieldDoc, fields, schema};
pub use read::{BUILT_IN_SOURCES, STEPS_MAX};
pub use types::{
    API_VERSION, AgentStep, ApiVersion, CliStep, ConditionalStep, FixMode, KIND, Kind, LlmConfig, Metadata,
    OnFalse, OnTimeout, Provider, RERUN_ANNOTATION, RUN_AS_USER_MAX, Resources, Runtime,
    STEP_TIMEOUT_DEFAULT_MS, STEP_TIMEOUT_MINUTES_MAX, STEP_TIMEOUT_SECONDS_MAX, Spec, Step, StepForm,
    StepKind, StepType, Tool, Trigger, Workflow,
};

/// The documents of a text, at least one.
pub(crate) fn parse_text(text: &str, format: Format, policy: &Policy) -> Result<Vec<Node>, Problem> {
    if text.len() > policy.manifest_bytes_max {
        let message = format!(
            "the text has {} bytes; a manifest may have {}",
            text.len(),
            policy.manifest_bytes_max
        );
        return Err(Problem::error("", message));
    }
    let documents = match format {
        Format::Yaml => yaml::parse(text),
        Format::Json => json::parse(text).map(|document| vec![document]),
    };
    let documents: Vec<Node> = documents
        .map_err(problem_of)?
        .into_iter()
        .flat_map(items_of_list)
        .collect();
    if documents.is_empty() {
        return Err(Problem::error("", "there is no workflow in the text"));
    }
    Ok(documents)
}

pub(crate) fn parse_value(value: &Value) -> Result<Node, Problem> {
    Node::of_value(value).map_err(problem_of)
}

fn problem_of(error: SyntaxError) -> Problem {
    let line = (error.line != LINE_UNKNOWN).then_some(error.line);
    Problem {
        line,
        ..Problem::error("", error.message)
    }
}

/// `kubectl get workflows -o yaml` prints a `kind: List`; what is in it is meant.
fn items_of_list(mut document: Node) -> Vec<Node> {
    let Shape::Map(entries) = &mut document.shape else {
        return vec![document];
    };
    let is_list = entries.iter().any(|entry| {
        entry.key == "kind"
            && matches!(&entry.node.shape, Shape::Text(kind) if kind == "List" || kind == "WorkflowList")
    });
    if is_list {
        let items = entries
            .iter_mut()
            .find(|entry| entry.key == "items")
            .map(|entry| &mut entry.node.shape);
        if let Some(Shape::List(items)) = items {
            return std::mem::take(items);
        }
    }
    vec![document]
}

/// Reads, checks and compiles one document.
pub(crate) fn admit_node(node: &Node, policy: &Policy) -> Result<Admitted, Vec<Problem>> {
    let sink = Sink::default();
    let draft = read::workflow(&sink, node, policy);
    let admitted = draft.and_then(|draft| {
        let compiled = program::compile_drafts(&draft.steps, &draft.runtime, Some(&policy.gate));
        for problem in compiled.problems {
            sink.add_within(problem);
        }
        let metadata = draft.metadata?;
        let input = match input_of_annotations(&metadata.annotations) {
            Ok(input) => input,
            Err(problem) => {
                sink.add_within(problem);
                None
            }
        };
        let is_definition = input.is_none() && (draft.trigger.is_some() || compiled.reads_input);
        let role = if is_definition {
            Role::Definition
        } else {
            Role::Execution
        };
        let steps = draft
            .steps
            .into_iter()
            .map(program::StepDraft::into_step)
            .collect::<Option<Vec<_>>>()?;
        let spec = Spec {
            trigger: draft.trigger,
            runtime: draft.runtime,
            steps,
            suspend: draft.suspend,
        };
        // As a start carries them.
        if let Err(error) = spec.carried() {
            sink.add_within(Problem::error("spec", error.to_string()));
        }
        if let Some(Err(error)) = input.as_ref().map(Json::of) {
            sink.add_within(Problem::error("metadata.annotations", error.to_string()));
        }
        let workflow = Workflow {
            api_version: ApiVersion::V1Alpha1,
            kind: Kind::Workflow,
            metadata,
            spec,
        };
        Some((workflow, input, role))
    });
    let (errors, warnings) = sink.finish();
    match admitted {
        Some((workflow, input, role)) if errors.is_empty() => Ok(Admitted {
            workflow,
            warnings,
            input,
            role,
        }),
        _ => {
            let mut problems = errors;
            if problems.is_empty() {
                problems.push(Problem::error("", "the manifest could not be read"));
            }
            problems.extend(warnings);
            Err(problems)
        }
    }
}
