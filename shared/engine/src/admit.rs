//! Admission: from a text or an object to a valid workflow, or to every problem it has.
//!
//! Invariants:
//! - One way in for files, the HTTP API and the Kubernetes API; so one set of rules and one text per
//!   error.
//! - What is admitted can be run: templates and conditions compile, and refer to what exists.

use std::collections::{BTreeMap, BTreeSet};

use protocol::facts::Input;
use serde_json::{Map, Value};

use crate::context::written_alert;
use crate::fixgate::Gate;
use crate::manifest::{self, Workflow};
use crate::problem::Problem;

/// The annotations that are an execution's own input.
pub const INPUT_ANNOTATIONS: [&str; 3] = ["alert.name", "alert.severity", "source.data"];

/// How a manifest is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2; several documents in one text are allowed for [`admit_all`].
    Yaml,
    /// JSON.
    Json,
}

/// What the configuration decides about manifests.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Names of the configured alert sources, beside the built-in ones.
    pub sources: BTreeSet<String>,
    /// Retired or undated model names, and what is used instead.
    pub model_aliases: BTreeMap<String, String>,
    /// A manifest may have so many bytes.
    pub manifest_bytes_max: usize,
    /// The steps' timeouts may add up to so many milliseconds.
    pub execution_ms_max: u64,
    /// The fix gate, to warn of fixes that it will always refuse.
    pub gate: Gate,
}

impl Default for Policy {
    /// No sources or aliases of one's own; 1 MiB; 72 hours, which is as long as the log is
    /// certain to keep a fact from being written twice.
    fn default() -> Policy {
        Policy {
            sources: BTreeSet::new(),
            model_aliases: BTreeMap::new(),
            manifest_bytes_max: 1024 * 1024,
            execution_ms_max: 72 * 60 * 60 * 1000,
            gate: Gate::default(),
        }
    }
}

/// Whether creating a Workflow executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It waits for alerts and invocations.
    Definition,
    /// It is executed once, when it is created.
    Execution,
}

/// A valid workflow.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The workflow, with model aliases led to their models.
    pub workflow: Workflow,
    /// What is legal but surely not meant.
    pub warnings: Vec<Problem>,
    /// Its own input, from its annotations, where it has any.
    pub input: Option<Input>,
    /// Whether creating it executes it.
    pub role: Role,
}

/// Admits the one workflow of a text.
///
/// # Errors
/// Every problem of the text, in the order of its lines, warnings after errors.
pub fn admit(text: &str, format: Format, policy: &Policy) -> Result<Admitted, Vec<Problem>> {
    let mut all = admit_all(text, format, policy);
    match (all.len(), all.pop()) {
        (1, Some(only)) => only,
        (count, _) => Err(vec![Problem::error(
            "",
            format!("the text holds {count} workflows, and one is expected here; send them one by one"),
        )]),
    }
}

/// Admits every workflow of a text: each YAML document, each item of a `kind: List`. There is always
/// at least one result: a text that is empty or cannot be read is one error.
#[must_use]
pub fn admit_all(text: &str, format: Format, policy: &Policy) -> Vec<Result<Admitted, Vec<Problem>>> {
    match manifest::parse_text(text, format, policy) {
        Ok(documents) => documents
            .iter()
            .map(|document| manifest::admit_node(document, policy))
            .collect(),
        Err(problem) => vec![Err(vec![problem])],
    }
}

/// Admits a workflow that was parsed elsewhere, such as an object of the Kubernetes API.
///
/// # Errors
/// Every problem; without lines.
pub fn admit_value(value: &Value, policy: &Policy) -> Result<Admitted, Vec<Problem>> {
    let node = manifest::parse_value(value).map_err(|problem| vec![problem])?;
    manifest::admit_node(&node, policy)
}

/// The input in a workflow's annotations; `None` where there is none of the three.
///
/// # Errors
/// Where `source.data` is not a JSON object: with the place in it. The problem's line counts within
/// the annotation's own text.
pub fn input_of_annotations(annotations: &BTreeMap<String, String>) -> Result<Option<Input>, Problem> {
    if !INPUT_ANNOTATIONS
        .iter()
        .any(|name| annotations.contains_key(*name))
    {
        return Ok(None);
    }
    let data = match annotations.get("source.data") {
        Some(text) => source_data(text).map_err(|(line, message)| Problem {
            line,
            ..Problem::error("metadata.annotations.source.data", message)
        })?,
        None => Map::new(),
    };
    let alert: Map<String, Value> = ["name", "severity"]
        .into_iter()
        .filter_map(|key| {
            let value = annotations.get(&format!("alert.{key}"))?;
            Some((key.to_owned(), Value::from(value.as_str())))
        })
        .collect();
    let alert = (!alert.is_empty()).then(|| written_alert(alert));
    Ok(Some(Input { data, alert }))
}

fn source_data(text: &str) -> Result<Map<String, Value>, (Option<u32>, String)> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let found = match other {
                Value::Array(_) => "a list",
                Value::String(_) => "a string",
                Value::Number(_) => "a number",
                Value::Bool(_) => "true or false",
                Value::Null | Value::Object(_) => "null",
            };
            let message = format!("must be a JSON object, not {found}; write as in '{{\"pod\": \"web-1\"}}'");
            Err((None, message))
        }
        Err(error) => {
            let line = u32::try_from(error.line()).ok().filter(|line| *line > 0);
            let message = format!("is not JSON: {error}; write as in '{{\"pod\": \"web-1\"}}'");
            Err((line, message))
        }
    }
}
