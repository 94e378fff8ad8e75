//! The lists of `fist get`, as tables.

use protocol::{
    Timestamp,
    views::{AlertAudit, AlertView, BudgetView, DeadLetterView, ExecutionSummary, WorkflowView},
};
use serde_json::Value;

use super::{
    Style,
    age::{age, now, took},
    one_line,
    table::table,
};

fn optional_age(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map(|at| age(at, now)).unwrap_or_default()
}

/// Puts the namespace first, where all are shown.
fn with_namespace(
    all: bool,
    mut heads: Vec<&str>,
    rows: Vec<(String, Vec<String>)>,
) -> (Vec<&str>, Vec<Vec<String>>) {
    if all {
        heads.insert(0, "NAMESPACE");
    }
    let rows = rows.into_iter().map(|(namespace, mut row)| {
        if all {
            row.insert(0, namespace);
        }
        row
    });
    (heads, rows.collect())
}

/// Executions; `all` shows their namespaces.
pub fn executions(items: &[ExecutionSummary], wide: bool, all: bool, style: Style) -> String {
    let now = now();
    let mut heads = vec!["ID", "WORKFLOW", "STATUS", "STEPS", "CURRENT", "AGE"];
    if wide {
        heads.extend(["TRIGGER", "DURATION", "ERROR"]);
    }
    let row = |item: &ExecutionSummary| {
        let mut row = vec![
            item.id.to_string(),
            item.name.to_string(),
            item.status.as_str().to_owned(),
            format!("{}/{}", item.steps_completed, item.total_steps),
            item.current_step.clone().unwrap_or_default(),
            age(item.created_at, now),
        ];
        if wide {
            let duration = item
                .started_at
                .map(|started| took(item.completed_at.unwrap_or(now).since(started)));
            row.extend([
                item.trigger_source.clone(),
                duration.unwrap_or_default(),
                one_line(item.error.as_deref().unwrap_or_default(), 100),
            ]);
        }
        (item.namespace.to_string(), row)
    };
    let (heads, rows) = with_namespace(all, heads, items.iter().map(row).collect());
    table(&heads, &rows, style)
}

/// Definitions; `all` shows their namespaces.
pub fn workflows(items: &[WorkflowView], wide: bool, all: bool, style: Style) -> String {
    let now = now();
    let mut heads = vec!["NAME", "TRIGGER", "STEPS", "SUSPENDED", "AGE"];
    if wide {
        heads.push("GENERATION");
    }
    let row = |item: &WorkflowView| {
        let mut row = vec![
            item.name.to_string(),
            item.trigger_source.clone().unwrap_or_default(),
            item.steps.to_string(),
            item.suspended.to_string(),
            age(item.updated_at, now),
        ];
        if wide {
            row.push(item.generation.to_string());
        }
        (item.namespace.to_string(), row)
    };
    let (heads, rows) = with_namespace(all, heads, items.iter().map(row).collect());
    table(&heads, &rows, style)
}

/// Deliveries of alerts.
pub fn alerts(items: &[AlertView], wide: bool, style: Style) -> String {
    let now = now();
    let mut heads = vec![
        "ID",
        "NAME",
        "SOURCE",
        "STATUS",
        "DISPOSITION",
        "EXECUTIONS",
        "AGE",
    ];
    if wide {
        heads.extend(["FINGERPRINT", "LABELS"]);
    }
    heads.push("REASON");
    let row = |item: &AlertView| {
        let executions: Vec<String> = item.executions.iter().map(ToString::to_string).collect();
        let mut row = vec![
            item.id.clone(),
            item.name.clone(),
            item.source.to_string(),
            item.status
                .map(|status| status.as_str().to_owned())
                .unwrap_or_default(),
            item.disposition.as_str().to_owned(),
            match (executions.len(), wide) {
                (0..=1, _) | (_, true) => executions.join(","),
                (more, false) => format!("{} and {} more", executions[0], more - 1),
            },
            optional_age(Some(item.received_at), now),
        ];
        if wide {
            let label = |(key, value): (&String, &Value)| {
                format!(
                    "{key}={}",
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                )
            };
            row.push(item.fingerprint.clone());
            row.push(item.labels.iter().map(label).collect::<Vec<_>>().join(","));
        }
        row.push(one_line(&item.reason, if wide { 200 } else { 60 }));
        row
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(&heads, &rows, style)
}

/// Messages that could not be processed.
pub fn deadletters(items: &[DeadLetterView], wide: bool, style: Style) -> String {
    let now = now();
    let mut heads = vec!["ID", "CONSUMER", "DELIVERIES", "AGE"];
    if wide {
        heads.extend(["STREAM", "SEQ"]);
    }
    heads.extend(["SUBJECT", "REASON"]);
    let row = |item: &DeadLetterView| {
        let mut row = vec![
            item.id.to_string(),
            item.consumer.clone(),
            item.deliveries.to_string(),
            age(item.at, now),
        ];
        if wide {
            row.extend([item.stream.clone(), item.seq.to_string()]);
        }
        row.extend([
            item.subject.clone(),
            one_line(&item.reason, if wide { 200 } else { 80 }),
        ]);
        row
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(&heads, &rows, style)
}

/// Today's budgets.
pub fn budgets(items: &[BudgetView], wide: bool, style: Style) -> String {
    let now = now();
    let mut heads = vec![
        "NAMESPACE",
        "LIMIT",
        "USED",
        "RESERVED",
        "LEFT",
        "COST",
        "RESETS IN",
    ];
    if wide {
        heads.extend(["UNPRICED", "DAY"]);
    }
    let row = |item: &BudgetView| {
        let mut row = vec![
            item.namespace.to_string(),
            item.limit_tokens.to_string(),
            item.used_tokens.to_string(),
            item.reserved_tokens.to_string(),
            item.left_tokens.to_string(),
            item.cost_usd.map(|usd| format!("${usd:.4}")).unwrap_or_default(),
            age(now, item.resets_at),
        ];
        if wide {
            row.extend([item.unpriced_tokens.to_string(), item.day.clone()]);
        }
        row
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(&heads, &rows, style)
}

/// The balance of all alerts.
pub fn audit(audit: &AlertAudit) -> String {
    let mut text = format!(
        "messages received   {}\n  recorded          {}\n  waiting           {}\nalerts in them      {}\n",
        audit.messages_received, audit.messages_recorded, audit.messages_waiting, audit.alerts
    );
    for (kind, count) in &audit.dispositions {
        text.push_str(&format!("  {:17} {count}\n", kind.as_str()));
    }
    text.push_str(match audit.balanced {
        true => "balanced: received equals the sum\n",
        false => {
            "NOT balanced: received is not the sum; the database may be behind or away (`fist doctor`)\n"
        }
    });
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn namespaces_stand_first_where_all_are_shown() {
        let item: ExecutionSummary = serde_json::from_value(json!({
            "id": "0190f5b4-0000-7000-8000-000000000001", "name": "disk", "namespace": "prod",
            "trigger_source": "cli", "status": "Running", "steps_completed": 1, "total_steps": 3,
            "current_step": "look", "error": null, "started_at": null, "completed_at": null,
            "created_at": now(),
        }))
        .unwrap();
        let text = executions(&[item], false, true, Style::default());
        let expected = "\
NAMESPACE   ID                                     WORKFLOW   STATUS    STEPS   CURRENT   AGE
prod        0190f5b4-0000-7000-8000-000000000001   disk       Running   1/3     look      0s
";
        assert_eq!(text, expected);
    }

    #[test]
    fn budgets_show_what_is_left_and_what_it_cost() {
        let item = |namespace: &str, cost_usd: Option<f64>| BudgetView {
            namespace: serde_json::from_value(json!(namespace)).unwrap(),
            day: "2026-01-31".into(),
            limit_tokens: 1_000_000,
            used_tokens: 250_000,
            reserved_tokens: 9_000,
            left_tokens: 741_000,
            cost_usd,
            unpriced_tokens: 4,
            resets_at: now(),
        };
        let text = budgets(
            &[item("prod", Some(0.75)), item("dev", None)],
            true,
            Style::default(),
        );
        let expected = "\
NAMESPACE   LIMIT     USED     RESERVED   LEFT     COST      RESETS IN   UNPRICED   DAY
prod        1000000   250000   9000       741000   $0.7500   0s          4          2026-01-31
dev         1000000   250000   9000       741000   -         0s          4          2026-01-31
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_balance_says_when_it_is_off() {
        let mut audit: AlertAudit = serde_json::from_value(json!({
            "messages_received": 3, "messages_waiting": 0, "messages_recorded": 3, "alerts": 4,
            "dispositions": {"started": 1, "merged": 3}, "balanced": true,
        }))
        .unwrap();
        let expected = "\
messages received   3
  recorded          3
  waiting           0
alerts in them      4
  started           1
  merged            3
balanced: received equals the sum
";
        assert_eq!(super::audit(&audit), expected);
        audit.balanced = false;
        assert!(super::audit(&audit).contains("NOT balanced"));
    }
}
