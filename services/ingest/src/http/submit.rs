//! What makes executions: manifests, invocations of definitions; what ends them early; and validation, which
//! does neither.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bus::{Log, Written};
use engine::{
    admit::{Admitted, Format, admit, admit_all},
    context::written_alert,
};
use protocol::{
    Cancel, ExecutionId, Fact, Input, Json, Namespace, Start, Subject, WorkflowName, encode, subjects,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Answer, App, Call, events, executions, json,
    problem::{Problem, problems_as_json},
};
use crate::{
    identity,
    start::{Occasion, Outcome},
};

/// Longest `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 256;
/// Longest reason of a cancellation.
const REASON_CHARS_MAX: usize = 1000;

/// `POST /api/v1/executions`.
pub async fn execution(app: Arc<App>, call: Call) -> Answer {
    let key = idempotency_key(&call)?;
    let occasion = occasion(&app, &call);
    if let Some(key) = &key
        && let Some(answer) = invoked_before(&app, &call, key).await?
    {
        return Ok(answer);
    }
    let submission = submission(&app, &call).await?;
    app.admission
        .check()
        .await
        .map_err(|closed| Problem::unavailable(closed.to_string()))?;
    let Submission {
        namespace,
        workflow,
        spec,
        input,
        warnings,
    } = submission;
    let id = match &key {
        Some(key) => identity::execution_of_key(&namespace, &workflow, key),
        None => ExecutionId::from_uuid(Uuid::now_v7()),
    };
    let start = Start {
        namespace,
        execution: id,
        workflow,
        trigger_source: trigger_source(&call).to_owned(),
        spec,
        input: carried(&input)?,
        delivery: None,
        uid: None,
    };
    match app.starter.start_execution(&start, &occasion).await? {
        Outcome::New => {}
        Outcome::Already(first) if first.is_same_work(&start) => {}
        Outcome::Already(_) => {
            return Err(key_of_another(&start.namespace, &start.workflow, id));
        }
    }
    accepted(&start.namespace, &start.workflow, id, &warnings)
}

/// The answer to an invocation whose key has led to an execution already. The key decides, and not what has become of
/// the definition since: it may have changed, be suspended, or be gone.
async fn invoked_before(app: &App, call: &Call, key: &str) -> Result<Option<Response<Body>>, Problem> {
    // What is no invocation, or a wrong one, is for those who say so.
    let Ok(invocation) = serde_json::from_slice::<Invocation>(&call.body) else {
        return Ok(None);
    };
    let namespace = invocation
        .namespace
        .map_or(Ok(Namespace::default()), Namespace::new);
    let (Ok(namespace), Ok(workflow)) = (namespace, WorkflowName::new(invocation.workflow)) else {
        return Ok(None);
    };
    let id = identity::execution_of_key(&namespace, &workflow, key);
    let Some(found) = app.starter.find(&namespace, id).await? else {
        return Ok(None);
    };
    let input = invocation.input.over(Input::default())?;
    if found.input.is_some_and(|first| first.read() != input) {
        return Err(key_of_another(&namespace, &workflow, id));
    }
    accepted(&namespace, &workflow, id, &[]).map(Some)
}

fn key_of_another(namespace: &Namespace, workflow: &WorkflowName, id: ExecutionId) -> Problem {
    Problem::conflict(format!(
        "this Idempotency-Key was used before for workflow {namespace}/{workflow} with another manifest or input (execution {id}); use a new key"
    ))
}

fn accepted(namespace: &Namespace, workflow: &WorkflowName, id: ExecutionId, warnings: &[String]) -> Answer {
    let url = url_of(id);
    let mut body = json!({
        "id": id,
        "name": workflow,
        "namespace": namespace,
        "status": "Pending",
        "url": url,
    });
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
    let mut response = json(StatusCode::ACCEPTED, &body)?;
    if let Ok(location) = HeaderValue::from_str(&url) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The address of an execution.
pub fn url_of(id: ExecutionId) -> String {
    format!("/api/v1/executions/{id}")
}

/// What led to a start: this call.
pub fn occasion(app: &App, call: &Call) -> Occasion {
    Occasion {
        since: app.log.now(),
        caller: call.caller(),
    }
}

/// Who submits: the command line says so itself.
pub fn trigger_source(call: &Call) -> &'static str {
    match call.header("user-agent") {
        Some(agent) if agent == "fist" || agent.starts_with("fist/") => "cli",
        _ => "api",
    }
}

fn idempotency_key(call: &Call) -> Result<Option<String>, Problem> {
    match call.headers.get("idempotency-key").map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(key)) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        Some(_) => Err(Problem::bad_request(format!(
            "header Idempotency-Key: use 1 to {KEY_BYTES_MAX} printable ASCII characters"
        ))),
    }
}

/// What is to be executed.
struct Submission {
    namespace: Namespace,
    workflow: WorkflowName,
    spec: Json<Value>,
    input: Input,
    warnings: Vec<String>,
}

/// A definition by name, with input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invocation {
    workflow: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    input: GivenInput,
}

/// A manifest, as an object or a text, with input beyond its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WithInput {
    manifest: Value,
    #[serde(default)]
    input: GivenInput,
}

/// Input as people write it; the same shape that `input_context` shows.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenInput {
    #[serde(default)]
    source: Option<GivenSource>,
    #[serde(default)]
    alert: Option<Map<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenSource {
    #[serde(default)]
    data: Map<String, Value>,
}

impl GivenInput {
    /// `own` with this over it.
    fn over(self, own: Input) -> Result<Input, Problem> {
        let Input { mut data, alert } = own;
        data.extend(self.source.unwrap_or_default().data);
        let given = self.alert.map(given_alert).transpose()?;
        let alert = match (alert, given) {
            (Some(mut own), Some(given)) => {
                own.extend(given);
                Some(own)
            }
            (own, given) => own.or(given),
        };
        Ok(Input {
            data,
            alert: alert.map(written_alert),
        })
    }
}

/// What templates know of an alert, and nothing beside it: a part that is misspelt here would be missing there.
/// Null counts as absent.
fn given_alert(mut given: Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    given.retain(|_, value| !value.is_null());
    for (part, value) in &given {
        let wanted = match part.as_str() {
            "name" | "severity" | "status" | "fingerprint" | "starts_at" if value.is_string() => continue,
            "labels" | "annotations" if value.is_object() => continue,
            "name" | "severity" | "status" | "fingerprint" | "starts_at" => "must be a string",
            "labels" | "annotations" => "must be an object of names and values",
            _ => {
                "is no part of an alert; they are name, severity, status, fingerprint, starts_at, labels, annotations"
            }
        };
        let shown: String = part.chars().take(80).collect();
        return Err(Problem::bad_request(format!("input.alert.{shown} {wanted}")));
    }
    Ok(given)
}

async fn submission(app: &App, call: &Call) -> Result<Submission, Problem> {
    let (text, format) = manifest_text(call)?;
    if format == Format::Json {
        // Malformed JSON is left to admission, which says where in its own words.
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) if object.contains_key("workflow") => {
                return invoked(app, shaped(Value::Object(object))?).await;
            }
            Ok(Value::Object(object)) if object.contains_key("manifest") => {
                let WithInput { manifest, input } = shaped(Value::Object(object))?;
                let (text, format) = match manifest {
                    Value::String(text) => (text, Format::Yaml),
                    other => (other.to_string(), Format::Json),
                };
                return manifest_with(admitted(app, &text, format)?, input);
            }
            _ => {}
        }
    }
    manifest_with(admitted(app, text, format)?, GivenInput::default())
}

fn shaped<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| {
        Problem::bad_request(format!(
            "the body is neither a manifest nor {{\"workflow\", \"namespace\", \"input\": {{\"source\": {{\"data\": {{…}}}}, \"alert\": {{…}}}}}}: {error}"
        ))
    })
}

fn manifest_with(admitted: Admitted, input: GivenInput) -> Result<Submission, Problem> {
    let (namespace, workflow) = names(&admitted)?;
    Ok(Submission {
        namespace,
        workflow,
        spec: canonical(&admitted.workflow.spec)?,
        input: input.over(admitted.input.unwrap_or_default())?,
        warnings: admitted.warnings.iter().map(ToString::to_string).collect(),
    })
}

async fn invoked(app: &App, invocation: Invocation) -> Result<Submission, Problem> {
    let namespace = match invocation.namespace {
        Some(text) => Namespace::new(text).map_err(|error| Problem::bad_request(error.to_string()))?,
        None => Namespace::default(),
    };
    let workflow =
        WorkflowName::new(invocation.workflow).map_err(|error| Problem::bad_request(error.to_string()))?;
    let known = app.registry.read(&namespace, &workflow).await?.ok_or_else(|| {
        Problem::not_found(format!(
            "there is no workflow {namespace}/{workflow}; `fist get workflows` lists them, `fist apply -f FILE` adds one"
        ))
    })?;
    if known.workflow.spec.suspend {
        return Err(Problem::conflict(format!(
            "workflow {namespace}/{workflow} is suspended; apply it with `suspend: false` to use it"
        )));
    }
    Ok(Submission {
        namespace,
        workflow,
        spec: canonical(&known.workflow.spec)?,
        input: invocation.input.over(Input::default())?,
        warnings: Vec::new(),
    })
}

/// The input as it travels.
pub fn carried(input: &Input) -> Result<Json<Input>, Problem> {
    Json::of(input).map_err(|error| Problem::bad_request(format!("the input: {error}")))
}

/// The spec as it travels.
pub fn canonical(spec: &engine::manifest::Spec) -> Result<Json<Value>, Problem> {
    spec.carried()
        .map_err(|error| Problem::bad_request(format!("the spec: {error}")))
}

/// The names of what was admitted.
pub fn names(admitted: &Admitted) -> Result<(Namespace, WorkflowName), Problem> {
    let metadata = &admitted.workflow.metadata;
    let invalid =
        |error: protocol::IdError| Problem::internal(format!("admission let this through: {error}"));
    Ok((
        Namespace::new(metadata.namespace.as_str()).map_err(invalid)?,
        WorkflowName::new(metadata.name.as_str()).map_err(invalid)?,
    ))
}

/// Admits a manifest, or says everything that is wrong with it.
pub fn admitted(app: &App, text: &str, format: Format) -> Result<Admitted, Problem> {
    admit(text, format, app.registry.policy()).map_err(|problems| Problem::not_admitted(&problems))
}

/// The body as text, and how it is written, by its content type.
pub fn manifest_text(call: &Call) -> Result<(&str, Format), Problem> {
    let text = std::str::from_utf8(&call.body).map_err(|error| {
        Problem::bad_request(format!(
            "the body is not UTF-8, from byte {} on",
            error.valid_up_to()
        ))
    })?;
    let given = call.header("content-type").unwrap_or_default();
    let media_type = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let format = match media_type.as_str() {
        "application/json" => Format::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Format::Yaml,
        "" if text.trim_start().starts_with('{') => Format::Json,
        "" => Format::Yaml,
        other => {
            let shown: String = other.chars().take(80).collect();
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("Content-Type {shown} is not read here; send application/yaml or application/json"),
            ));
        }
    };
    Ok((text, format))
}

/// `POST /api/v1/validate`.
pub async fn validate(app: Arc<App>, call: Call) -> Answer {
    let (text, format) = manifest_text(&call)?;
    let (mut errors, mut warnings, mut workflows) = (Vec::new(), Vec::new(), Vec::new());
    for result in admit_all(text, format, app.registry.policy()) {
        match result {
            Ok(admitted) => {
                workflows.push(json!({
                    "name": admitted.workflow.metadata.name,
                    "namespace": admitted.workflow.metadata.namespace,
                    "role": match admitted.role {
                        engine::admit::Role::Definition => "definition",
                        engine::admit::Role::Execution => "execution",
                    },
                }));
                warnings.extend(admitted.warnings);
            }
            Err(problems) => {
                let (wrong, odd): (Vec<_>, Vec<_>) =
                    problems.into_iter().partition(engine::Problem::is_error);
                errors.extend(wrong);
                warnings.extend(odd);
            }
        }
    }
    let body = json!({
        "valid": errors.is_empty(),
        "problems": problems_as_json(&errors),
        "warnings": problems_as_json(&warnings),
        "text": engine::problem::listed(&[errors, warnings].concat()),
        "workflows": workflows,
    });
    json(StatusCode::OK, &body)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelRequest {
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /api/v1/executions/{id}/cancel`.
pub async fn cancel(app: Arc<App>, call: Call) -> Answer {
    let request = if call.body.is_empty() {
        CancelRequest::default()
    } else {
        serde_json::from_slice(&call.body).map_err(|error| {
            Problem::bad_request(format!(
                "the body must be empty or {{\"reason\": \"…\"}} in JSON: {error}"
            ))
        })?
    };
    let reason = request.reason.filter(|reason| !reason.trim().is_empty());
    let reason = reason.unwrap_or_else(|| "no reason was given".to_owned());
    let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
    let (namespace, id) = match executions::located(&app, call.path("id")).await? {
        executions::Place::Log { namespace, id, .. } => (namespace, id),
        executions::Place::Record(view) => {
            let summary = view.summary;
            return Err(Problem::conflict(format!(
                "execution {} is {} and has left the log; there is nothing to cancel",
                summary.id,
                summary.status.as_str()
            )));
        }
    };
    let last = app.log.last(&subjects::lane_filter(&namespace, id)).await?;
    if let Some(status) = last.as_ref().and_then(events::end_status) {
        return Err(Problem::conflict(format!(
            "execution {id} has already ended: it is {}",
            status.as_str()
        )));
    }
    let subject = Subject::CancelRequest(namespace, id, 0);
    let fact = Fact::Cancel(Cancel { reason });
    match app.log.write_fact(&subject, encode(app.log.now(), &fact)).await? {
        // A second request changes nothing; the first one's reason stands.
        Written::New(_) | Written::Already => {}
    }
    json(
        StatusCode::ACCEPTED,
        &json!({ "id": id, "cancel_requested": true }),
    )
}
