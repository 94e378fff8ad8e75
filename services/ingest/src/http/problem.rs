//! Errors as people and programs get them: `application/problem+json` (RFC 9457).
//!
//! Invariant: every answer with a status of 400 or above is made here.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
};
use bus::LogError;
use protocol::query::QueryError;
use serde_json::{Map, Value, json};
use service::config::Role;

/// How soon to try again what failed for load or an outage.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// One error.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    rest: Box<Rest>,
}

/// What few problems have; in a box, since results carry problems through every handler.
#[derive(Clone, Debug, Default)]
struct Rest {
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// With the words that say what is wrong, and the remedy.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            rest: Box::default(),
        }
    }

    /// 400: the request is wrong.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401: who asks did not prove it. `scheme` is what would.
    pub fn unauthorized(detail: impl Into<String>, scheme: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme))
    }

    /// 403: this token does not reach so far.
    pub fn forbidden(role: Role, needed: Role) -> Self {
        let keys = match needed {
            Role::Read => "`http.read_tokens`, `http.run_tokens` or `http.tokens`",
            Role::Run => "`http.run_tokens` or `http.tokens`",
            Role::Admin => "`http.tokens`",
        };
        let detail = format!(
            "this needs the role {}, and the token has the role {}: use one of {keys}",
            needed.as_str(),
            role.as_str()
        );
        let challenge = HeaderValue::from_static(match needed {
            Role::Read => "Bearer error=\"insufficient_scope\", scope=\"read\"",
            Role::Run => "Bearer error=\"insufficient_scope\", scope=\"run\"",
            Role::Admin => "Bearer error=\"insufficient_scope\", scope=\"admin\"",
        });
        Self::new(StatusCode::FORBIDDEN, detail)
            .with("role", needed.as_str())
            .header(header::WWW_AUTHENTICATE, challenge)
    }

    /// 404: there is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 409: it contradicts what is there.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 413: the request is larger than `bytes_max`, which `limit` names.
    pub fn too_large(what: &str, limit: &str, bytes_max: usize) -> Self {
        let detail = format!("{what} is larger than {bytes_max} bytes, the limit that {limit} sets");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with("bytes_max", bytes_max)
    }

    /// 503: not just now. Webhooks never get 429, which Alertmanager does not try again.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).after(RETRY_AFTER)
    }

    /// 429: this client asks too often.
    pub fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
    }

    /// When to try again, in whole seconds, at least one.
    pub fn after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.rest.headers.retain(|(name, _)| *name != header::RETRY_AFTER);
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    /// 500: our own fault.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// 422: a manifest that is not admitted; the text is the one that `fist validate` prints.
    pub fn not_admitted(problems: &[engine::Problem]) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            engine::problem::listed(problems),
        )
        .with("problems", problems_as_json(problems))
    }

    /// With a member of its own.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.rest.more.insert(name.to_owned(), value.into());
        self
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.rest.headers.push((name, value));
        self
    }

    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The words.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let mut body = Map::from_iter([
            ("type".to_owned(), json!("about:blank")),
            (
                "title".to_owned(),
                json!(self.status.canonical_reason().unwrap_or("Error")),
            ),
            ("status".to_owned(), json!(self.status.as_u16())),
            ("detail".to_owned(), json!(self.detail)),
        ]);
        body.extend(self.rest.more);
        let mut response = Response::new(Body::from(Value::Object(body).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.extend(self.rest.headers);
        response
    }
}

/// Problems of a manifest as `{severity, field, line, message}`.
pub fn problems_as_json(problems: &[engine::Problem]) -> Value {
    let one = |problem: &engine::Problem| json!({ "severity": problem.severity, "field": problem.field, "line": problem.line, "message": problem.message });
    problems.iter().map(one).collect()
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match &error {
            LogError::TooLarge { bytes_max, .. } => Self::too_large(
                "what this would write to NATS",
                "the server's max_payload",
                *bytes_max,
            ),
            error if error.is_transient() => Self::unavailable(error.to_string()),
            // Missing streams, lacking permissions: an operator's repair away, so worth another try.
            error => Self::unavailable(error.to_string()),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Invalid { message } => Self::bad_request(message),
            QueryError::Unavailable { message } => Self::unavailable(message),
        }
    }
}
