//! The schemas of the OpenAPI document: what the API gives and takes, field for field.
//!
//! Invariant: an object here has no other fields than the ones listed, and all of them unless it says otherwise;
//! a test holds real answers against this.

use protocol::{DispositionKind, StepStatus, views::ExecutionStatus};
use serde_json::{Map, Value, json};

/// All schemas by name.
pub fn schemas() -> Value {
    let mut all = Map::new();
    for (name, schema) in executions().into_iter().chain(others()).chain(made()) {
        all.insert(name.to_owned(), schema);
    }
    Value::Object(all)
}

fn executions() -> Vec<(&'static str, Value)> {
    let summary = summary_fields();
    let mut whole = summary.clone();
    whole.extend([
        (
            "input_context",
            json!({ "type": "object", "description": "`source.data` and `alert` as templates saw them." }),
        ),
        (
            "outputs",
            json!({ "description": "What it left; null until the end." }),
        ),
        ("steps", list_of(&reference("Step"))),
    ]);
    vec![
        ("Execution", object(&whole)),
        ("ExecutionSummary", object(&summary)),
        ("ExecutionPage", page("ExecutionSummary")),
        (
            "ExecutionStatus",
            object(&[("id", uuid()), ("status", execution_status())]),
        ),
        (
            "Progress",
            object(&[
                ("steps_completed", count()),
                ("total_steps", count()),
                ("current_step", or_null(&text())),
                (
                    "percent",
                    json!({ "type": "integer", "minimum": 0, "maximum": 100 }),
                ),
            ]),
        ),
        (
            "Outputs",
            json!({
                "type": ["object", "null"],
                "description": "Success: `{\"steps\": {name: output}}`. Failure: `error`, `failed_step`, `outputs`, `failed_step_output`. Null until the end.",
            }),
        ),
        (
            "Step",
            object(&[
                ("name", text()),
                ("type", text()),
                ("status", step_status()),
                (
                    "attempt",
                    json!({ "type": "integer", "minimum": 0, "description": "0 where it has not been tried." }),
                ),
                ("started_at", or_null(&instant())),
                ("completed_at", or_null(&instant())),
                (
                    "output",
                    json!({ "description": "What it left; a large one as `{\"blob\": {\"sha256\", \"bytes\"}, \"preview\"}`." }),
                ),
                ("error", or_null(&text())),
                ("message", or_null(&text())),
            ]),
        ),
        ("Event", event()),
        ("Text", text()),
        ("Transcript", transcript()),
    ]
}

fn transcript() -> Value {
    let turn = json!({
        "type": "object",
        "description": "Of kind `model` with `turn`, `text`, `calls` (each `id`, `tool`, `arguments`), `stop_reason`, `usage` and `at`; of kind `tool` with `call_id`, `tool`, `arguments`, `is_error`, `result`, `started_at` and `at`.",
        "properties": {
            "kind": { "type": "string", "enum": ["model", "tool"] },
            "turn": count(),
            "text": text(),
            "calls": list_of(&object(&[("id", text()), ("tool", text()), ("arguments", json!({}))])),
            "stop_reason": text(),
            "usage": object(&[("input_tokens", count()), ("output_tokens", count()), ("cached_tokens", count())]),
            "call_id": text(),
            "tool": text(),
            "arguments": {},
            "is_error": { "type": "boolean" },
            "result": { "description": "Text; one too large for the answer as `{\"blob\": {\"sha256\", \"bytes\"}, \"preview\"}`." },
            "started_at": instant(),
            "at": instant(),
        },
        "required": ["kind", "at"],
        "additionalProperties": false,
    });
    let attempt = object(&[
        ("step", text()),
        ("attempt", count()),
        ("goal", text()),
        ("tools", list_of(&text())),
        ("alert", json!({ "type": ["object", "null"] })),
        ("namespace", text()),
        ("dispatched_at", instant()),
        ("turns", list_of(&turn)),
    ]);
    object(&[
        ("id", uuid()),
        ("attempts", list_of(&attempt)),
        (
            "truncated",
            json!({ "type": "boolean", "description": "Whether turns at the end had no room in the answer." }),
        ),
    ])
}

fn summary_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("id", uuid()),
        ("name", text()),
        ("namespace", text()),
        ("trigger_source", text()),
        ("status", execution_status()),
        ("steps_completed", count()),
        ("total_steps", count()),
        ("current_step", or_null(&text())),
        ("error", or_null(&text())),
        ("started_at", or_null(&instant())),
        ("completed_at", or_null(&instant())),
        ("created_at", instant()),
    ]
}

/// Beside these, each type of event has fields of its own; docs/api.md lists them.
fn event() -> Value {
    let types = [
        "execution.accepted",
        "step.started",
        "step.completed",
        "agent.turn",
        "agent.tool",
        "execution.cancel_requested",
        "execution.completed",
        "log.line",
        "agent.tool_call",
        "agent.says",
    ];
    json!({
        "type": "object",
        "description": "The data of one server-sent event.",
        "properties": {
            "seq": { "type": ["integer", "null"] },
            "at": instant(),
            "type": { "type": "string", "enum": types },
            "step": or_null(&text()),
            "attempt": or_null(&count()),
            "status": or_null(&text()),
            "message": or_null(&text()),
            "error": or_null(&text()),
            "output": {},
        },
        "required": ["seq", "at", "type", "step", "attempt", "status", "message", "error"],
    })
}

fn others() -> Vec<(&'static str, Value)> {
    let dispositions = DispositionKind::ALL.map(DispositionKind::as_str);
    let counts: Vec<(&str, Value)> = dispositions.iter().map(|name| (*name, count())).collect();
    vec![
        (
            "Alert",
            object(&[
                ("id", text()),
                ("source", text()),
                ("fingerprint", text()),
                ("name", text()),
                ("status", json!({ "enum": ["firing", "resolved", null] })),
                ("labels", json!({ "type": "object" })),
                ("disposition", json!({ "type": "string", "enum": dispositions })),
                ("reason", text()),
                ("executions", list_of(&uuid())),
                ("received_at", instant()),
            ]),
        ),
        ("AlertPage", page("Alert")),
        (
            "AlertAudit",
            object(&[
                ("messages_received", count()),
                ("messages_waiting", count()),
                ("messages_recorded", count()),
                ("alerts", count()),
                ("dispositions", object(&counts)),
                ("balanced", json!({ "type": "boolean" })),
            ]),
        ),
        ("WorkflowSummary", object(&workflow_fields())),
        ("Workflow", {
            let mut whole = workflow_fields();
            whole.push(("manifest", reference("Manifest")));
            object(&whole)
        }),
        ("WorkflowPage", page("WorkflowSummary")),
        (
            "DeadLetter",
            object(&[
                ("id", count()),
                ("subject", text()),
                ("seq", count()),
                ("stream", text()),
                ("consumer", text()),
                ("reason", text()),
                ("deliveries", count()),
                ("at", instant()),
                ("payload", text()),
            ]),
        ),
        ("DeadLetterPage", page("DeadLetter")),
        (
            "Budget",
            object(&[
                ("namespace", text()),
                ("day", json!({ "type": "string", "format": "date" })),
                ("limit_tokens", count()),
                ("used_tokens", count()),
                ("reserved_tokens", count()),
                ("left_tokens", count()),
                (
                    "cost_usd",
                    json!({
                        "type": ["number", "null"],
                        "description": "Of the used tokens whose model has a price; null where none has.",
                    }),
                ),
                ("unpriced_tokens", count()),
                ("resets_at", instant()),
            ]),
        ),
        ("BudgetPage", page("Budget")),
        (
            "Health",
            json!({
                "type": "object",
                "properties": { "status": text(), "failing": { "type": "object" }, "silent": { "type": "object" } },
                "required": ["status"],
                "additionalProperties": false,
            }),
        ),
        ("Document", json!({ "type": "object" })),
        (
            "Problem",
            json!({
                "type": "object",
                "description": "RFC 9457. Some kinds have members of their own, such as `problems` of a manifest.",
                "properties": {
                    "type": text(),
                    "title": text(),
                    "status": { "type": "integer" },
                    "detail": text(),
                    "problems": list_of(&reference("ManifestProblem")),
                },
                "required": ["type", "title", "status", "detail"],
            }),
        ),
    ]
}

fn workflow_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("name", text()),
        ("namespace", text()),
        ("trigger_source", or_null(&text())),
        ("suspended", json!({ "type": "boolean" })),
        ("steps", count()),
        ("updated_at", instant()),
        ("generation", count()),
    ]
}

fn made() -> Vec<(&'static str, Value)> {
    let problem = object(&[
        (
            "severity",
            json!({ "type": "string", "enum": ["error", "warning"] }),
        ),
        ("field", text()),
        ("line", or_null(&count())),
        ("message", text()),
    ]);
    let input = json!({
        "type": "object",
        "properties": {
            "source": { "type": "object", "properties": { "data": { "type": "object" } }, "additionalProperties": false },
            "alert": {
                "type": "object",
                "properties": {
                    "name": or_null(&text()),
                    "severity": or_null(&text()),
                    "status": or_null(&text()),
                    "fingerprint": or_null(&text()),
                    "starts_at": or_null(&text()),
                    "labels": or_null(&json!({ "type": "object" })),
                    "annotations": or_null(&json!({ "type": "object" })),
                },
                "additionalProperties": false,
            },
        },
        "additionalProperties": false,
    });
    vec![
        ("Manifest", engine::manifest::schema()),
        ("ManifestProblem", problem),
        ("Input", input),
        (
            "Invocation",
            optional(
                &[
                    ("workflow", text()),
                    ("namespace", text()),
                    ("input", reference("Input")),
                ],
                &["workflow"],
            ),
        ),
        (
            "ManifestWithInput",
            optional(
                &[
                    ("manifest", json!({ "anyOf": [reference("Manifest"), text()] })),
                    ("input", reference("Input")),
                ],
                &["manifest"],
            ),
        ),
        (
            "Accepted",
            optional(
                &[
                    ("accepted", count()),
                    ("delivery", count()),
                    ("rejected", count()),
                ],
                &["accepted", "delivery"],
            ),
        ),
        (
            "Submitted",
            optional(
                &[
                    ("id", uuid()),
                    ("name", text()),
                    ("namespace", text()),
                    ("status", execution_status()),
                    ("url", text()),
                    ("warnings", list_of(&text())),
                ],
                &["id", "name", "namespace", "status", "url"],
            ),
        ),
        (
            "Applied",
            object(&[
                (
                    "result",
                    json!({ "type": "string", "enum": ["created", "configured", "unchanged", "started"] }),
                ),
                (
                    "role",
                    json!({ "type": "string", "enum": ["definition", "execution"] }),
                ),
                ("name", text()),
                ("namespace", text()),
                ("generation", or_null(&count())),
                (
                    "execution",
                    json!({
                        "type": ["object", "null"],
                        "properties": { "id": uuid(), "url": text() },
                        "required": ["id", "url"],
                        "additionalProperties": false,
                    }),
                ),
                ("warnings", list_of(&text())),
            ]),
        ),
        (
            "Deleted",
            object(&[
                ("result", json!({ "const": "deleted" })),
                ("name", text()),
                ("namespace", text()),
            ]),
        ),
        (
            "Validation",
            object(&[
                ("valid", json!({ "type": "boolean" })),
                ("problems", list_of(&reference("ManifestProblem"))),
                ("warnings", list_of(&reference("ManifestProblem"))),
                ("text", text()),
                (
                    "workflows",
                    list_of(&object(&[
                        ("name", text()),
                        ("namespace", text()),
                        (
                            "role",
                            json!({ "type": "string", "enum": ["definition", "execution"] }),
                        ),
                    ])),
                ),
            ]),
        ),
        (
            "Cancelling",
            object(&[("id", uuid()), ("cancel_requested", json!({ "const": true }))]),
        ),
        (
            "Purged",
            object(&[("result", text()), ("id", count()), ("subject", text())]),
        ),
        (
            "Replayed",
            object(&[("id", count()), ("subject", text()), ("delivery", count())]),
        ),
    ]
}

/// An object that has exactly these fields.
fn object(fields: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    optional(fields, &names)
}

/// An object that has no other fields than these.
fn optional(fields: &[(&str, Value)], required: &[&str]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn page(item: &str) -> Value {
    object(&[("items", list_of(&reference(item))), ("next", or_null(&text()))])
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn list_of(schema: &Value) -> Value {
    json!({ "type": "array", "items": schema })
}

fn or_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(name) = schema.get("type").and_then(Value::as_str).map(str::to_owned) {
        schema["type"] = json!([name, "null"]);
    }
    schema
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid" })
}

fn instant() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn execution_status() -> Value {
    json!({ "type": "string", "enum": ExecutionStatus::ALL.map(ExecutionStatus::as_str) })
}

fn step_status() -> Value {
    let all = [
        StepStatus::Pending,
        StepStatus::Running,
        StepStatus::Succeeded,
        StepStatus::Failed,
        StepStatus::Skipped,
    ];
    json!({ "type": "string", "enum": all.map(StepStatus::as_str) })
}
