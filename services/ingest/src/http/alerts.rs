//! Reading alerts: every delivery and what became of it, and the balance.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bus::{Log, StreamId};
use protocol::{DispositionKind, query::AlertFilter, views::AlertAudit};

use super::{Answer, App, Call, json, problem::Problem};

/// How long an audit waits for what is under way between the streams and the database.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);
/// How often it looks meanwhile.
const LOOKS_EVERY: Duration = Duration::from_millis(50);

/// A page of alerts.
pub async fn list(app: Arc<App>, call: Call) -> Answer {
    let wanted = call.query.text("disposition");
    let filter = AlertFilter {
        disposition: DispositionKind::ALL
            .into_iter()
            .find(|each| Some(each.as_str()) == wanted),
        source: call.query.text("source").map(str::to_owned),
        id: None,
        limit: call.query.parsed("limit"),
        cursor: call.query.text("cursor").map(str::to_owned),
    };
    json(StatusCode::OK, &app.queries.alerts(filter).await?)
}

/// One delivery.
pub async fn one(app: Arc<App>, call: Call) -> Answer {
    let id = call.path("id");
    let filter = AlertFilter {
        id: Some(id.to_owned()),
        limit: Some(1),
        ..AlertFilter::default()
    };
    let newest = app.queries.alerts(filter).await?.items.into_iter().next();
    let shown = || id.chars().take(80).collect::<String>();
    json(
        StatusCode::OK,
        &newest.ok_or_else(|| Problem::not_found(format!("there is no alert {}", shown())))?,
    )
}

/// The balance of all alerts.
pub async fn audit(app: Arc<App>, _call: Call) -> Answer {
    let deadline = tokio::time::Instant::now() + SETTLES_WITHIN;
    loop {
        let audit = counted(&app).await?;
        // What was acknowledged a moment ago may be on its way into the database.
        if audit.balanced || tokio::time::Instant::now() >= deadline {
            return json(StatusCode::OK, &audit);
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

async fn counted(app: &App) -> Result<AlertAudit, Problem> {
    let stream = app.log.stream_state(StreamId::Alerts).await?;
    let counts = app.queries.alert_counts().await?;
    let alerts: u64 = counts.dispositions.values().sum();
    // A work queue forgets what was acknowledged, and its sequence counts all that ever came.
    let audit = AlertAudit {
        messages_received: stream.last_seq,
        messages_waiting: stream.messages,
        messages_recorded: counts.messages,
        alerts,
        balanced: stream.last_seq == stream.messages + counts.messages,
        dispositions: DispositionKind::ALL
            .into_iter()
            .map(|kind| (kind, counts.dispositions.get(&kind).copied().unwrap_or(0)))
            .collect(),
    };
    Ok(audit)
}
