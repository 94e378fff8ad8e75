//! The table of all routes: the router and the OpenAPI document are both made from it.
//!
//! To serve something new, add its entry here and its handler in the file of its kind.

use axum::http::Method;
use service::config::Role;

use super::{
    Handler, alerts, budget, deadletters, events, executions, logs, openapi,
    params::{Allowed, Param},
    submit, transcript, webhooks, workflows,
};

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Everybody, under any load: probes and Prometheus bring no token, and find numbers and states here, but nothing
    /// that an alert, a command or a model said.
    Open,
    /// Who has a token of the API with this role, where there are any tokens.
    Api(Role),
    /// Who proves what the source asks for; where it asks for nothing, as `Api(Role::Run)`.
    Webhook,
}

/// What a route reads as its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A manifest in YAML or JSON.
    Manifest,
    /// A manifest, an invocation, or a manifest with input.
    Submission,
    /// An alert's payload.
    Payload,
    /// An optional reason.
    Reason,
}

/// What a route answers when all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gives {
    /// The status.
    pub status: u16,
    /// The media type.
    pub media_type: &'static str,
    /// The name of the schema in the document.
    pub schema: &'static str,
}

/// One route.
#[derive(Clone)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with its parts in braces.
    pub path: &'static str,
    /// Who may come in.
    pub door: Door,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The parameters of its query.
    pub query: &'static [Param],
    /// What it reads.
    pub takes: Takes,
    /// What it gives.
    pub gives: Gives,
    /// What it refuses with beside 400, 401, 403, 429 and 503.
    pub refuses: &'static [u16],
    /// What answers.
    pub handler: Handler,
}

const JSON: &str = "application/json";

const fn gives(status: u16, schema: &'static str) -> Gives {
    Gives {
        status,
        media_type: JSON,
        schema,
    }
}

/// A route that reads and takes nothing.
const fn get(path: &'static str, summary: &'static str, schema: &'static str, handler: Handler) -> Route {
    Route {
        method: Method::GET,
        path,
        door: Door::Api(Role::Read),
        summary,
        query: &[],
        takes: Takes::Nothing,
        gives: gives(200, schema),
        refuses: &[],
        handler,
    }
}

const LIMIT: Param = Param {
    name: "limit",
    allowed: Allowed::Limit,
    doc: "At most so many entries.",
};
const CURSOR: Param = Param {
    name: "cursor",
    allowed: Allowed::Text,
    doc: "The `next` of the page before; pages run from new to old.",
};
const NAMESPACE: Param = Param {
    name: "namespace",
    allowed: Allowed::Namespace,
    doc: "Only in this namespace.",
};

const STATUSES: &[&str] = &["Pending", "Running", "Succeeded", "Failed", "Cancelled"];
const DISPOSITIONS: &[&str] = &["started", "merged", "filtered", "resolved", "rejected"];
const TRUE_OR_FALSE: Allowed = Allowed::OneOf(&["true", "false"]);

/// Every route there is.
pub fn table() -> Vec<Route> {
    let mut all = intake();
    all.extend(executions_table());
    all.extend(others());
    all.extend(about_the_process());
    all
}

fn intake() -> Vec<Route> {
    vec![
        Route {
            method: Method::POST,
            door: Door::Webhook,
            takes: Takes::Payload,
            gives: gives(202, "Accepted"),
            refuses: &[404, 413],
            ..get(
                "/webhooks/{source}",
                "Takes alerts: Alertmanager's webhook at `alertmanager`, any JSON at `webhook` and at the sources of the configuration.",
                "Accepted",
                |app, call| Box::pin(webhooks::post(app, call)),
            )
        },
        Route {
            method: Method::POST,
            door: Door::Api(Role::Run),
            takes: Takes::Submission,
            gives: gives(202, "Submitted"),
            refuses: &[404, 409, 413, 415, 422],
            ..get(
                "/api/v1/executions",
                "Executes a manifest once, or invokes a definition with input.",
                "Submitted",
                |app, call| Box::pin(submit::execution(app, call)),
            )
        },
        Route {
            method: Method::POST,
            door: Door::Api(Role::Admin),
            takes: Takes::Manifest,
            gives: gives(200, "Applied"),
            refuses: &[409, 413, 415, 422],
            ..get(
                "/api/v1/workflows",
                "Applies a manifest: a definition is stored, anything else is executed once.",
                "Applied",
                |app, call| Box::pin(workflows::apply(app, call)),
            )
        },
        Route {
            method: Method::POST,
            takes: Takes::Manifest,
            refuses: &[413, 415],
            ..get(
                "/api/v1/validate",
                "Says what is wrong with a manifest, and stores nothing.",
                "Validation",
                |app, call| Box::pin(submit::validate(app, call)),
            )
        },
    ]
}

fn executions_table() -> Vec<Route> {
    vec![
        Route {
            query: &[
                Param {
                    name: "status",
                    allowed: Allowed::OneOf(STATUSES),
                    doc: "Only in this state.",
                },
                Param {
                    name: "workflow",
                    allowed: Allowed::Workflow,
                    doc: "Only of this workflow.",
                },
                NAMESPACE,
                LIMIT,
                CURSOR,
            ],
            ..get(
                "/api/v1/executions",
                "Lists executions, newest first.",
                "ExecutionPage",
                |app, call| Box::pin(executions::list(app, call)),
            )
        },
        Route {
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}",
                "One execution, whole.",
                "Execution",
                |app, call| Box::pin(executions::one(app, call)),
            )
        },
        Route {
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/status",
                "How it stands.",
                "ExecutionStatus",
                |app, call| Box::pin(executions::status(app, call)),
            )
        },
        Route {
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/progress",
                "How far it is.",
                "Progress",
                |app, call| Box::pin(executions::progress(app, call)),
            )
        },
        Route {
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/outputs",
                "What it left; null until the end.",
                "Outputs",
                |app, call| Box::pin(executions::outputs(app, call)),
            )
        },
        Route {
            gives: Gives {
                status: 200,
                media_type: "text/event-stream",
                schema: "Event",
            },
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/events",
                "What happens, as server-sent events: history, then live, until the end. `Last-Event-ID` resumes.",
                "Event",
                |app, call| Box::pin(events::stream(app, call)),
            )
        },
        Route {
            query: &[
                Param {
                    name: "step",
                    allowed: Allowed::Step,
                    doc: "Only of this step.",
                },
                Param {
                    name: "follow",
                    allowed: TRUE_OR_FALSE,
                    doc: "Goes on until the execution ends.",
                },
            ],
            gives: Gives {
                status: 200,
                media_type: "text/plain",
                schema: "Text",
            },
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/logs",
                "What its steps printed.",
                "Text",
                |app, call| Box::pin(logs::text(app, call)),
            )
        },
        Route {
            gives: Gives {
                status: 200,
                media_type: "text/markdown",
                schema: "Text",
            },
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/report",
                "The report on it, as Markdown: findings, evidence, what was ruled out, commands, and when.",
                "Text",
                |app, call| Box::pin(executions::report(app, call)),
            )
        },
        Route {
            query: &[Param {
                name: "step",
                allowed: Allowed::Step,
                doc: "Only of this step.",
            }],
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/transcript",
                "What its agents were asked and answered, and what their tools gave, as far as it has come.",
                "Transcript",
                |app, call| Box::pin(transcript::read(app, call)),
            )
        },
        Route {
            method: Method::POST,
            door: Door::Api(Role::Run),
            takes: Takes::Reason,
            gives: gives(202, "Cancelling"),
            refuses: &[404, 409],
            ..get(
                "/api/v1/executions/{id}/cancel",
                "Asks for it to be cancelled.",
                "Cancelling",
                |app, call| Box::pin(submit::cancel(app, call)),
            )
        },
    ]
}

fn others() -> Vec<Route> {
    vec![
        Route {
            query: &[NAMESPACE, LIMIT, CURSOR],
            ..get(
                "/api/v1/workflows",
                "Lists definitions, by namespace and name.",
                "WorkflowPage",
                |app, call| Box::pin(workflows::list(app, call)),
            )
        },
        Route {
            refuses: &[404],
            ..get(
                "/api/v1/workflows/{namespace}/{name}",
                "One definition, whole.",
                "Workflow",
                |app, call| Box::pin(workflows::one(app, call)),
            )
        },
        Route {
            method: Method::DELETE,
            door: Door::Api(Role::Admin),
            refuses: &[404],
            ..get(
                "/api/v1/workflows/{namespace}/{name}",
                "Deletes a definition; what runs goes on.",
                "Deleted",
                |app, call| Box::pin(workflows::delete(app, call)),
            )
        },
        Route {
            query: &[
                Param {
                    name: "disposition",
                    allowed: Allowed::OneOf(DISPOSITIONS),
                    doc: "Only those that became this.",
                },
                Param {
                    name: "source",
                    allowed: Allowed::Source,
                    doc: "Only from this source.",
                },
                LIMIT,
                CURSOR,
            ],
            ..get(
                "/api/v1/alerts",
                "Lists deliveries of alerts, newest first.",
                "AlertPage",
                |app, call| Box::pin(alerts::list(app, call)),
            )
        },
        get(
            "/api/v1/alerts/audit",
            "The balance of all alerts: received equals the sum.",
            "AlertAudit",
            |app, call| Box::pin(alerts::audit(app, call)),
        ),
        Route {
            refuses: &[404],
            ..get(
                "/api/v1/alerts/{id}",
                "One delivery of an alert; by the id of the alert alone, its newest delivery.",
                "Alert",
                |app, call| Box::pin(alerts::one(app, call)),
            )
        },
        Route {
            query: &[NAMESPACE],
            ..get(
                "/api/v1/budget",
                "What the agents of each namespace have used of today's budget.",
                "BudgetPage",
                |app, call| Box::pin(budget::list(app, call)),
            )
        },
        Route {
            query: &[LIMIT, CURSOR],
            ..get(
                "/api/v1/deadletters",
                "Lists messages that could not be processed, newest first.",
                "DeadLetterPage",
                |app, call| Box::pin(deadletters::list(app, call)),
            )
        },
        Route {
            refuses: &[404],
            ..get(
                "/api/v1/deadletters/{id}",
                "One message that could not be processed.",
                "DeadLetter",
                |app, call| Box::pin(deadletters::one(app, call)),
            )
        },
        Route {
            method: Method::DELETE,
            door: Door::Api(Role::Admin),
            refuses: &[404],
            ..get(
                "/api/v1/deadletters/{id}",
                "Purges one for good, with what it holds of its message.",
                "Purged",
                |app, call| Box::pin(deadletters::purge(app, call)),
            )
        },
        Route {
            method: Method::POST,
            door: Door::Api(Role::Run),
            gives: gives(202, "Replayed"),
            refuses: &[404, 409],
            ..get(
                "/api/v1/deadletters/{id}/replay",
                "Delivers an alert again that could not be processed.",
                "Replayed",
                |app, call| Box::pin(deadletters::replay(app, call)),
            )
        },
    ]
}

fn about_the_process() -> Vec<Route> {
    vec![
        Route {
            door: Door::Open,
            ..get("/healthz", "Whether the process lives.", "Health", |app, _| {
                Box::pin(openapi::healthz(app))
            })
        },
        Route {
            door: Door::Open,
            ..get("/readyz", "Whether the process can work.", "Health", |app, _| {
                Box::pin(openapi::readyz(app))
            })
        },
        Route {
            door: Door::Open,
            gives: Gives {
                status: 200,
                media_type: "text/plain",
                schema: "Text",
            },
            ..get(
                "/metrics",
                "Numbers, as Prometheus reads them.",
                "Text",
                |app, _| Box::pin(openapi::metrics(app)),
            )
        },
        Route {
            door: Door::Open,
            ..get("/openapi.json", "This document.", "Document", |_, _| {
                Box::pin(openapi::served())
            })
        },
    ]
}

#[cfg(test)]
mod tests {
    use protocol::{DispositionKind, views::ExecutionStatus};

    use super::*;

    #[test]
    fn parameters_know_every_state_and_disposition() {
        assert_eq!(STATUSES, ExecutionStatus::ALL.map(ExecutionStatus::as_str));
        assert_eq!(DISPOSITIONS, DispositionKind::ALL.map(DispositionKind::as_str));
    }
}
