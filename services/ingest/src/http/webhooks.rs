//! `POST /webhooks/{source}`: alerts come in, and are durable before they are acknowledged.

use std::sync::Arc;

use axum::http::StatusCode;
use bus::{Log, LogError};
use protocol::{SourceName, SpanContext};
use serde_json::json;
use service::config::Role;

use super::{Answer, App, Call, auth, json, problem::Problem};

/// Of what is wrong with the alerts of a refused body at most so many reasons are given.
const REASONS_MAX: usize = 20;

/// Takes the alerts of one request.
pub async fn post(app: Arc<App>, call: Call) -> Answer {
    let name = call.path("source");
    let Some(webhook) = app.sources.webhook(name) else {
        let known = app.sources.names();
        let shown: String = name.chars().take(80).collect();
        return Err(Problem::not_found(format!(
            "there is no source `{shown}`; the sources are {} (more by [sources.NAME] in the configuration)",
            known.join(", ")
        ))
        .with("known", known));
    };
    let source = SourceName::new(name).map_err(|error| Problem::not_found(error.to_string()))?;
    match &webhook.configured {
        Some(configured) if configured.has_secret() => {
            auth::webhook(&call.headers, &call.body, name, configured, service::clock::now())?;
        }
        Some(configured) if configured.is_open => {}
        // What starts executions is not open where everything else is locked.
        Some(_) | None => app.tokens.check(app.tokens.holder(&call.headers), Role::Run)?,
    }
    // What cannot be read is refused here, where the sender can still see why; the intake reads it once more.
    let alerts = webhook
        .reader
        .read(&source, &call.body)
        .map_err(Problem::bad_request)?;
    let accepted = alerts.iter().filter(|alert| alert.is_ok()).count();
    if accepted == 0 {
        let reasons: Vec<String> = alerts
            .into_iter()
            .filter_map(Result::err)
            .take(REASONS_MAX)
            .collect();
        return Err(Problem::bad_request(reasons.join("\n")));
    }
    let delivery = made_durable(&app, &source, call.body.to_vec(), call.caller()).await?;
    let rejected = alerts.len() - accepted;
    let mut body = json!({ "accepted": accepted, "delivery": delivery });
    if rejected > 0 {
        body["rejected"] = json!(rejected);
    }
    json(StatusCode::ACCEPTED, &body)
}

/// Puts alerts where they wait to be worked on, if there is room; gives the number of their delivery.
pub(super) async fn made_durable(
    app: &App,
    source: &SourceName,
    payload: Vec<u8>,
    caller: Option<SpanContext>,
) -> Result<u64, Problem> {
    app.admission
        .check()
        .await
        .map_err(|closed| Problem::unavailable(closed.to_string()))?;
    app.log
        .publish_intake(source, payload, caller)
        .await
        .map_err(|error| match error {
            LogError::TooLarge { bytes_max, .. } => {
                Problem::too_large("the body", "the NATS server's max_payload", bytes_max)
            }
            error => Problem::unavailable(format!("the alert is not durable: {error}")),
        })
}
