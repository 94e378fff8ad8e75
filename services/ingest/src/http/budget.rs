//! `GET /api/v1/budget`: what the agents of each namespace have used of their budget today.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::StatusCode;
use bus::Budgets;
use protocol::{
    BudgetDay, Day, Namespace, Timestamp,
    views::{BudgetView, Page},
};
use service::clock;

use super::{Answer, App, Call, json};

/// All budgets, or one namespace's. Namespaces without a budget of their own appear once they have used some of the
/// common one.
pub async fn list(app: Arc<App>, call: Call) -> Answer {
    let wanted: Option<Namespace> = call.query.parsed("namespace");
    let now = clock::now();
    let used = match app.config.agent.has_budgets() {
        true => used(&app, wanted.as_ref(), Day::of(now)).await?,
        // Where there is no budget, there need not be a bucket.
        false => BTreeMap::new(),
    };
    let views = used.into_iter().filter_map(|(namespace, day)| {
        let limit_tokens = app.config.agent.budget_of(namespace.as_str())?;
        Some(view(namespace, &day, limit_tokens, now))
    });
    let page = Page {
        items: views.collect(),
        next: None,
    };
    json(StatusCode::OK, &page)
}

async fn used(
    app: &App,
    wanted: Option<&Namespace>,
    day: Day,
) -> Result<BTreeMap<Namespace, BudgetDay>, bus::LogError> {
    let budgets = Budgets::open(&app.connection).await?;
    if let Some(namespace) = wanted {
        return Ok(BTreeMap::from([(
            namespace.clone(),
            budgets.get(namespace, day).await?,
        )]));
    }
    let configured = app.config.agent.namespace_budget_tokens_per_day.keys();
    let configured = configured.filter_map(|name| Namespace::new(name).ok());
    let mut used: BTreeMap<_, _> = configured.map(|name| (name, BudgetDay::default())).collect();
    for entry in budgets.list(day).await? {
        used.insert(entry.namespace, entry.day);
    }
    Ok(used)
}

fn view(namespace: Namespace, day: &BudgetDay, limit_tokens: u64, now: Timestamp) -> BudgetView {
    let today = Day::of(now);
    let reserved_tokens = day.reserved_tokens(now);
    let has_cost = day.used_tokens > day.unpriced_tokens;
    BudgetView {
        namespace,
        day: today.to_string(),
        limit_tokens,
        used_tokens: day.used_tokens,
        reserved_tokens,
        left_tokens: limit_tokens.saturating_sub(day.used_tokens.saturating_add(reserved_tokens)),
        cost_usd: has_cost.then_some(day.cost_nano_usd as f64 / 1e9),
        unpriced_tokens: day.unpriced_tokens,
        resets_at: today.end(),
    }
}
