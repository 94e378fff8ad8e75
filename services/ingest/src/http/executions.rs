//! Reading executions: lists, one, and its parts.

use std::sync::Arc;

use axum::http::StatusCode;
use bus::{Blobs, Log};
use protocol::{
    BlobRef, ExecutionId, Namespace, Subject,
    query::ExecutionFilter,
    subjects,
    views::{ExecutionStatus, ExecutionView},
};
use serde_json::{Value, json};

use super::{Answer, App, Call, json, problem::Problem, with_type};

/// Fewest characters of a shortened id.
const PREFIX_CHARS_MIN: usize = 4;

/// Most bytes of large bodies in one answer; what is beyond stays a reference with its preview.
const OUTPUTS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A page of executions.
pub async fn list(app: Arc<App>, call: Call) -> Answer {
    let status = call.query.text("status");
    let filter = ExecutionFilter {
        status: ExecutionStatus::ALL
            .into_iter()
            .find(|each| Some(each.as_str()) == status),
        workflow: call.query.parsed("workflow"),
        namespace: call.query.parsed("namespace"),
        limit: call.query.parsed("limit"),
        cursor: call.query.text("cursor").map(str::to_owned),
    };
    json(StatusCode::OK, &app.queries.executions(filter).await?)
}

/// One execution.
pub async fn one(app: Arc<App>, call: Call) -> Answer {
    json(StatusCode::OK, &found(&app, call.path("id")).await?)
}

/// How one stands.
pub async fn status(app: Arc<App>, call: Call) -> Answer {
    let view = found(&app, call.path("id")).await?;
    json(
        StatusCode::OK,
        &json!({ "id": view.summary.id, "status": view.summary.status }),
    )
}

/// How far one is.
pub async fn progress(app: Arc<App>, call: Call) -> Answer {
    let summary = found(&app, call.path("id")).await?.summary;
    let percent = match (summary.status, summary.total_steps) {
        (ExecutionStatus::Succeeded, _) => 100,
        (_, 0) => 0,
        (_, total) => u64::from(summary.steps_completed) * 100 / u64::from(total),
    };
    let body = json!({
        "steps_completed": summary.steps_completed,
        "total_steps": summary.total_steps,
        "current_step": summary.current_step,
        "percent": percent,
    });
    json(StatusCode::OK, &body)
}

/// What one left. Large bodies are kept beside the record; here they were asked for, so here they are whole.
pub async fn outputs(app: Arc<App>, call: Call) -> Answer {
    let mut outputs = found(&app, call.path("id")).await?.outputs.unwrap_or(Value::Null);
    let mut left = OUTPUTS_BYTES_MAX;
    make_whole(&app.blobs, &mut outputs, &mut left).await;
    let parts = match &mut outputs {
        Value::Object(parts) => parts,
        _ => return json(StatusCode::OK, &outputs),
    };
    // The one of the step that failed first: it is what is looked for.
    if let Some(failed) = parts.get_mut("failed_step_output") {
        make_whole(&app.blobs, failed, &mut left).await;
    }
    for of_steps in ["steps", "outputs"] {
        for output in parts
            .get_mut(of_steps)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
        {
            make_whole(&app.blobs, output.1, &mut left).await;
        }
    }
    json(StatusCode::OK, &outputs)
}

/// The report on one, so far.
pub async fn report(app: Arc<App>, call: Call) -> Answer {
    let mut view = found(&app, call.path("id")).await?;
    let mut left = OUTPUTS_BYTES_MAX;
    for output in view.steps.iter_mut().filter_map(|step| step.output.as_mut()) {
        make_whole(&app.blobs, output, &mut left).await;
    }
    let mut text = protocol::report::markdown(&view);
    for step in &view.steps {
        if step
            .output
            .as_ref()
            .is_some_and(|output| output.get("gone").is_some())
        {
            text.push_str(&format!("\nOf the output of step `{}`, {GONE}.\n", step.name));
        }
    }
    Ok(with_type(StatusCode::OK, "text/markdown; charset=utf-8", text))
}

/// Puts the body in place of a reference to it, where it can be read and is within what is `left` of the answer.
async fn make_whole(blobs: &Blobs, output: &mut Value, left: &mut u64) {
    let (Some(blob), Some(_)) = (output.get("blob"), output.get("preview")) else {
        return;
    };
    let bytes = blob.get("bytes").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let Some(rest) = left.checked_sub(bytes) else {
        return;
    };
    match whole(blobs, blob).await {
        Whole::Here(whole) => {
            *output = whole;
            *left = rest;
        }
        Whole::Gone => output["gone"] = GONE.into(),
        Whole::Unread => {}
    }
}

/// What is said in place of a body that has been kept for as long as bodies are.
pub const GONE: &str =
    "the whole is kept no more (nats.blobs_max_age_hours); this is what the record has of it";

/// A large body that a record refers to.
pub enum Whole {
    /// Itself.
    Here(Value),
    /// It has left the object store, and does not come back.
    Gone,
    /// It cannot be read, just now at least.
    Unread,
}

/// Reads one.
pub async fn whole(blobs: &Blobs, blob: &Value) -> Whole {
    let Ok(blob) = serde_json::from_value::<BlobRef>(blob.clone()) else {
        return Whole::Unread;
    };
    match blobs.get(&blob).await {
        Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_or(Whole::Unread, Whole::Here),
        Ok(None) => Whole::Gone,
        Err(_) => Whole::Unread,
    }
}

/// The execution that an id, whole or shortened, means.
pub async fn found(app: &App, id: &str) -> Result<ExecutionView, Problem> {
    let id = full_id(app, id).await?;
    app.queries
        .execution(id)
        .await?
        .ok_or_else(|| no_such(&id.to_string()))
}

/// Where an execution can be read.
pub enum Place {
    /// In the log, whole.
    Log {
        /// Its namespace.
        namespace: Namespace,
        /// Its id.
        id: ExecutionId,
        /// The sequence of its start.
        start_seq: u64,
    },
    /// Only in the record: it is older than the log.
    Record(Box<ExecutionView>),
}

/// Where an execution is: in the log as long as it is there, so that a database that is away keeps nobody from
/// watching or cancelling.
pub async fn located(app: &App, id: &str) -> Result<Place, Problem> {
    let id = full_id(app, id).await?;
    let start = app.log.last(&subjects::start_anywhere(id)).await?;
    let parsed = start.map(|start| (Subject::parse(&start.subject), start.seq));
    if let Some((Ok(Subject::Start(namespace, _)), start_seq)) = parsed {
        return Ok(Place::Log {
            namespace,
            id,
            start_seq,
        });
    }
    match app.queries.execution(id).await? {
        Some(view) => Ok(Place::Record(Box::new(view))),
        None => Err(no_such(&id.to_string())),
    }
}

async fn full_id(app: &App, given: &str) -> Result<ExecutionId, Problem> {
    let given = given.to_ascii_lowercase();
    if let Ok(id) = given.parse() {
        return Ok(id);
    }
    let is_prefix = (PREFIX_CHARS_MIN..36).contains(&given.len())
        && given.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !is_prefix {
        let shown: String = given.chars().take(80).collect();
        return Err(Problem::not_found(format!(
            "`{shown}` is not an execution's id: use a UUID, or its first {PREFIX_CHARS_MIN} or more characters"
        )));
    }
    let mut matching = app.queries.by_prefix(&given).await?;
    match (matching.pop(), matching.pop()) {
        (Some(only), None) => Ok(only.id),
        (Some(one), Some(other)) => Err(Problem::conflict(format!(
            "`{given}` is the beginning of several ids, {} and {} among them; give more of it",
            other.id, one.id
        ))),
        (None, _) => Err(no_such(&given)),
    }
}

fn no_such(id: &str) -> Problem {
    Problem::not_found(format!("there is no execution {id}"))
}
