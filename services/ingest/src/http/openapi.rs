//! The OpenAPI 3.1 document, made from the table of routes and the schemas beside it; and the doors through
//! which the process itself is watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use service::config::Role;

use super::{
    Answer, App, json,
    problem::Problem,
    routes::{Door, Route, Takes, table},
    schemas::schemas,
    with_type,
};

/// The document.
pub fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in table() {
        let method = route.method.as_str().to_ascii_lowercase();
        paths
            .entry(route.path)
            .or_default()
            .insert(method, operation(&route));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Punching Fist",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Alerts come in by webhook, executions by manifest or invocation; everything that happens can be read. docs/api.md explains it with examples.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": {
                "type": "http", "scheme": "bearer",
                "description": "A token has a role: `read`, `run` or `admin`, each of which may do what the one before it may. The role that an operation needs stands beside `token` there. A server without tokens asks for none.",
            } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses(route),
        "security": security(route.door),
    });
    if let Some(body) = request_body(route.takes) {
        operation["requestBody"] = body;
    }
    operation
}

/// What is asked of who asks; `{}` because a server without tokens asks for none.
fn security(door: Door) -> Value {
    match door {
        Door::Open => json!([]),
        Door::Api(role) => json!([{ "token": [role.as_str()] }, {}]),
        Door::Webhook => json!([{ "token": [Role::Run.as_str()] }, {}]),
    }
}

fn operation_id(route: &Route) -> String {
    let words = route
        .path
        .split(['/', '.', '{', '}'])
        .filter(|word| !matches!(*word, "" | "api" | "v1"));
    let method = route.method.as_str().to_ascii_lowercase();
    std::iter::once(method.as_str())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = route.query.iter().map(|param| {
        json!({
            "name": param.name, "in": "query", "required": false,
            "description": param.doc, "schema": param.allowed.schema(),
        })
    });
    let header = |name: &str, doc: &str| json!({ "name": name, "in": "header", "required": false, "description": doc, "schema": { "type": "string" } });
    let in_header = match route.gives.schema {
        "Event" => Some(header(
            "Last-Event-ID",
            "The id of the last event that was seen; the stream goes on after it.",
        )),
        "Submitted" => Some(header(
            "Idempotency-Key",
            "The same key makes a repeated submission the same execution.",
        )),
        _ => None,
    };
    in_path.chain(in_query).chain(in_header).collect()
}

fn responses(route: &Route) -> Value {
    let mut all = Map::new();
    let gives = route.gives;
    let schema = json!({ "$ref": format!("#/components/schemas/{}", gives.schema) });
    all.insert(
        gives.status.to_string(),
        json!({ "description": route.summary, "content": { gives.media_type: { "schema": schema } } }),
    );
    if route.path == "/readyz" || route.path == "/healthz" {
        let content = json!({ "application/json": { "schema": schema } });
        all.insert(
            "503".to_owned(),
            json!({ "description": "It does not, and says why.", "content": content }),
        );
        return Value::Object(all);
    }
    if gives.schema == "Event" {
        all.insert(
            "204".to_owned(),
            json!({ "description": "Everything that will ever happen was seen." }),
        );
    }
    let common: &[u16] = match route.door {
        Door::Open => &[400],
        Door::Api(Role::Read) => &[400, 401, 429, 503],
        Door::Api(_) => &[400, 401, 403, 429, 503],
        Door::Webhook => &[400, 401, 403, 503],
    };
    let refused: BTreeSet<u16> = common.iter().chain(route.refuses).copied().collect();
    for status in refused {
        let reason = StatusCode::from_u16(status)
            .ok()
            .and_then(|status| status.canonical_reason());
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        all.insert(
            status.to_string(),
            json!({
                "description": reason.unwrap_or("Refused"),
                "content": { "application/problem+json": { "schema": schema } },
            }),
        );
    }
    Value::Object(all)
}

fn request_body(takes: Takes) -> Option<Value> {
    let manifest = json!({ "$ref": "#/components/schemas/Manifest" });
    let yaml = json!({ "schema": { "type": "string" } });
    let (required, content) = match takes {
        Takes::Nothing => return None,
        Takes::Manifest => (
            true,
            json!({ "application/yaml": yaml, "application/json": { "schema": manifest } }),
        ),
        Takes::Submission => {
            let invocation = json!({ "$ref": "#/components/schemas/Invocation" });
            let with_input = json!({ "$ref": "#/components/schemas/ManifestWithInput" });
            let any = json!({ "anyOf": [manifest, invocation, with_input] });
            (
                true,
                json!({ "application/yaml": yaml, "application/json": { "schema": any } }),
            )
        }
        Takes::Payload => (true, json!({ "application/json": { "schema": {} } })),
        Takes::Reason => {
            let schema = json!({ "type": "object", "properties": { "reason": { "type": "string" } }, "additionalProperties": false });
            (false, json!({ "application/json": { "schema": schema } }))
        }
    };
    Some(json!({ "required": required, "content": content }))
}

/// `GET /openapi.json`.
pub async fn served() -> Answer {
    json(StatusCode::OK, &document())
}

/// `GET /healthz`.
pub async fn healthz(app: Arc<App>) -> Answer {
    watched("alive", "silent", app.health.liveness())
}

/// `GET /readyz`.
pub async fn readyz(app: Arc<App>) -> Answer {
    watched("ready", "failing", app.health.readiness())
}

fn watched(good: &str, list: &str, state: Result<(), BTreeMap<String, String>>) -> Answer {
    match state {
        Ok(()) => json(StatusCode::OK, &json!({ "status": good })),
        Err(reasons) => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "status": format!("not {good}"), list: reasons }),
        ),
    }
}

/// `GET /metrics`.
pub async fn metrics(app: Arc<App>) -> Result<axum::response::Response, Problem> {
    Ok(with_type(
        StatusCode::OK,
        service::Metrics::CONTENT_TYPE,
        app.metrics.encode(),
    ))
}
