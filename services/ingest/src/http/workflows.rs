//! Definitions: applied, read, deleted. What is no definition is executed once when it is applied.

use std::sync::Arc;

use axum::http::StatusCode;
use engine::{
    admit::{Admitted, Role},
    manifest::RERUN_ANNOTATION,
};
use protocol::{
    Namespace, Start, WorkflowName,
    query::{LIMIT_DEFAULT, REPLY_BYTES_MAX},
    views::{Page, WorkflowView},
};
use serde_json::{Value, json};

use super::{Answer, App, Call, json, problem::Problem, submit};
use crate::{
    definitions::{Applied, Known},
    identity,
    start::Outcome,
};

/// `POST /api/v1/workflows`.
pub async fn apply(app: Arc<App>, call: Call) -> Answer {
    let (text, format) = submit::manifest_text(&call)?;
    let admitted = submit::admitted(&app, text, format)?;
    app.admission
        .check()
        .await
        .map_err(|closed| Problem::unavailable(closed.to_string()))?;
    match admitted.role {
        Role::Definition => define(&app, &admitted).await,
        Role::Execution => execute_once(&app, &call, admitted).await,
    }
}

async fn define(app: &App, admitted: &Admitted) -> Answer {
    let (namespace, name) = submit::names(admitted)?;
    let (applied, generation) = app.registry.apply(&namespace, &name, &admitted.workflow).await?;
    let result = match applied {
        Applied::Created => "created",
        Applied::Configured => "configured",
        Applied::Unchanged => "unchanged",
    };
    let warnings: Vec<String> = admitted.warnings.iter().map(ToString::to_string).collect();
    let body = json!({
        "result": result,
        "role": "definition",
        "name": name,
        "namespace": namespace,
        "generation": generation,
        "execution": null,
        "warnings": warnings,
    });
    json(StatusCode::OK, &body)
}

async fn execute_once(app: &App, call: &Call, admitted: Admitted) -> Answer {
    let occasion = submit::occasion(app, call);
    let (namespace, name) = submit::names(&admitted)?;
    let metadata = &admitted.workflow.metadata;
    let rerun = metadata.annotations.get(RERUN_ANNOTATION).map(String::as_str);
    let id = identity::execution_of_object(&namespace, &name, None, rerun);
    let mut warnings: Vec<String> = admitted.warnings.iter().map(ToString::to_string).collect();
    let start = Start {
        namespace: namespace.clone(),
        execution: id,
        workflow: name.clone(),
        trigger_source: submit::trigger_source(call).to_owned(),
        spec: submit::canonical(&admitted.workflow.spec)?,
        input: submit::carried(&admitted.input.unwrap_or_default())?,
        delivery: None,
        uid: None,
    };
    let result = match app.starter.start_execution(&start, &occasion).await? {
        Outcome::New => "started",
        Outcome::Already(first) => {
            if !first.is_same_work(&start) {
                warnings.push(format!(
                    "warning: {namespace}/{name} was executed before, and a change does not run it again; give the annotation {RERUN_ANNOTATION} a new value for that"
                ));
            }
            "unchanged"
        }
    };
    // What is applied takes the place of what had its name.
    app.registry.delete(&namespace, &name).await?;
    let body = json!({
        "result": result,
        "role": "execution",
        "name": name,
        "namespace": namespace,
        "generation": null,
        "execution": { "id": id, "url": submit::url_of(id) },
        "warnings": warnings,
    });
    json(StatusCode::OK, &body)
}

/// `GET /api/v1/workflows`.
pub async fn list(app: Arc<App>, call: Call) -> Answer {
    let wanted: Option<Namespace> = call.query.parsed("namespace");
    let after = call.query.text("cursor").map(position).transpose()?;
    let limit = call.query.parsed("limit").unwrap_or(LIMIT_DEFAULT as usize);
    let mut known = app.registry.read_all().await?;
    known.retain(|each| {
        wanted
            .as_ref()
            .is_none_or(|namespace| each.namespace == *namespace)
    });
    known.sort_by(|one, other| one.place().cmp(&other.place()));
    if let Some(after) = &after {
        known.retain(|each| each.place() > (after.0.as_str(), after.1.as_str()));
    }
    let mut is_last = known.len() <= limit;
    known.truncate(limit);
    let mut items = Vec::new();
    let mut bytes = 0;
    for each in &known {
        bytes += each.name.as_str().len() + 256;
        if bytes > REPLY_BYTES_MAX {
            is_last = false;
            break;
        }
        items.push(viewed(each, false)?);
    }
    let next = items
        .last()
        .filter(|_| !is_last)
        .map(|last| format!("{}/{}", last.namespace, last.name));
    json(StatusCode::OK, &Page { items, next })
}

fn position(cursor: &str) -> Result<(String, String), Problem> {
    match cursor.split_once('/') {
        Some((namespace, name)) => Ok((namespace.to_owned(), name.to_owned())),
        None => Err(
            Problem::bad_request("parameter cursor: use the `next` of the page before")
                .with("parameter", "cursor"),
        ),
    }
}

/// `GET /api/v1/workflows/{namespace}/{name}`.
pub async fn one(app: Arc<App>, call: Call) -> Answer {
    let (namespace, name) = addressed(&call)?;
    let known = app
        .registry
        .read(&namespace, &name)
        .await?
        .ok_or_else(|| no_such(&namespace, &name))?;
    json(StatusCode::OK, &viewed(&known, true)?)
}

/// `DELETE /api/v1/workflows/{namespace}/{name}`.
pub async fn delete(app: Arc<App>, call: Call) -> Answer {
    let (namespace, name) = addressed(&call)?;
    if !app.registry.delete(&namespace, &name).await? {
        return Err(no_such(&namespace, &name));
    }
    let body = json!({ "result": "deleted", "name": name, "namespace": namespace });
    json(StatusCode::OK, &body)
}

fn addressed(call: &Call) -> Result<(Namespace, WorkflowName), Problem> {
    let invalid = |error: protocol::IdError| Problem::not_found(error.to_string());
    Ok((
        Namespace::new(call.path("namespace")).map_err(invalid)?,
        WorkflowName::new(call.path("name")).map_err(invalid)?,
    ))
}

fn no_such(namespace: &Namespace, name: &WorkflowName) -> Problem {
    Problem::not_found(format!("there is no workflow {namespace}/{name}"))
}

fn viewed(known: &Known, whole: bool) -> Result<WorkflowView, Problem> {
    let spec = &known.workflow.spec;
    let manifest = whole
        .then(|| serde_json::to_value(&known.workflow))
        .transpose()
        .map_err(|error| Problem::internal(format!("the manifest cannot be written: {error}")))?;
    Ok(WorkflowView {
        name: known.name.clone(),
        namespace: known.namespace.clone(),
        trigger_source: spec.trigger.as_ref().map(|trigger| trigger.source.clone()),
        suspended: spec.suspend,
        steps: u32::try_from(spec.steps.len()).unwrap_or(u32::MAX),
        updated_at: known.updated_at,
        generation: known.generation,
        manifest: manifest.filter(|manifest| *manifest != Value::Null),
    })
}
