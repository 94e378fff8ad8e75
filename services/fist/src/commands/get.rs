//! `fist get`: lists and single things, as tables or as the server answers them.

use std::io::IsTerminal;

use protocol::{
    Timestamp,
    views::{
        AlertAudit, AlertView, DeadLetterView, ExecutionStatus, ExecutionSummary, ExecutionView, Page,
        WorkflowView,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Outcome, kind_and_id};
use crate::{
    args::{Get, Output},
    client::{Answer, Client, Request},
    failure::{Code, Failure},
    show::{
        self, Style, Tone,
        age::{age, now, took},
        report,
        table::table,
    },
};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Executions,
    Workflows,
    Alerts,
    DeadLetters,
}

impl Kind {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.to_ascii_lowercase().as_str() {
            "executions" | "execution" | "exec" | "execs" | "ex" => Ok(Self::Executions),
            "workflows" | "workflow" | "wf" | "wfs" => Ok(Self::Workflows),
            "alerts" | "alert" | "al" => Ok(Self::Alerts),
            "deadletters" | "deadletter" | "dl" | "dlq" => Ok(Self::DeadLetters),
            _ => Err(Failure::misuse(format!(
                "there is no kind `{text}`: get executions (exec), workflows (wf), alerts (al) or deadletters (dl)"
            ))),
        }
    }

    /// In paths.
    fn plural(self) -> &'static str {
        match self {
            Self::Executions => "executions",
            Self::Workflows => "workflows",
            Self::Alerts => "alerts",
            Self::DeadLetters => "deadletters",
        }
    }

    /// In names, as `-o name` prints them.
    fn singular(self) -> &'static str {
        match self {
            Self::Executions => "execution",
            Self::Workflows => "workflow",
            Self::Alerts => "alert",
            Self::DeadLetters => "deadletter",
        }
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Self::Executions | Self::Workflows)
    }

    /// The name of one of them in its JSON.
    fn name_of(self, item: &Value) -> String {
        let name = match self {
            Self::Workflows => &item["name"],
            Self::Executions | Self::Alerts | Self::DeadLetters => &item["id"],
        };
        let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
        format!("{}/{name}", self.singular())
    }
}

/// Does it.
pub async fn run(client: &Client, asked: &Get) -> Outcome {
    let (kind, id) = kind_and_id(&asked.kind, asked.id.as_deref())?;
    let kind = Kind::parse(&kind)?;
    check(asked, kind, id.is_some())?;
    if asked.audit {
        return audit(client, asked.output).await;
    }
    match id {
        Some(id) => one(client, kind, &id, asked).await,
        None => list(client, kind, asked).await,
    }
}

/// Refuses options that this kind has not.
fn check(asked: &Get, kind: Kind, is_one: bool) -> Result<(), Failure> {
    let only = |option: &str, given: bool, right: Kind| match given && kind != right {
        true => Err(Failure::misuse(format!(
            "{option} is for {} only",
            right.plural()
        ))),
        false => Ok(()),
    };
    only("--status", asked.status.is_some(), Kind::Executions)?;
    only("--workflow", asked.workflow.is_some(), Kind::Executions)?;
    only("--disposition", asked.disposition.is_some(), Kind::Alerts)?;
    only("--source", asked.source.is_some(), Kind::Alerts)?;
    only("--audit", asked.audit, Kind::Alerts)?;
    let filters = [
        ("--status", asked.status.is_some()),
        ("--workflow", asked.workflow.is_some()),
        ("--disposition", asked.disposition.is_some()),
        ("--source", asked.source.is_some()),
        ("--limit", asked.limit.is_some()),
        ("--cursor", asked.cursor.is_some()),
    ];
    match filters.into_iter().find(|(_, given)| is_one && *given) {
        Some((option, _)) => Err(Failure::misuse(format!(
            "{option} is for lists; leave it or the id out"
        ))),
        None => Ok(()),
    }
}

async fn one(client: &Client, kind: Kind, id: &str, asked: &Get) -> Outcome {
    let namespace = asked.scope.namespace.as_deref().unwrap_or("default");
    let request = match kind {
        Kind::Workflows => Request::get(&["api", "v1", "workflows", namespace, id]),
        other => Request::get(&["api", "v1", other.plural(), id]),
    };
    let answer = client.send(&request).await?;
    let value = answer.json()?;
    if let Some(output @ (Output::Json | Output::Yaml | Output::Name)) = asked.output {
        print_document(&answer.text, output, &kind.name_of(&value))?;
        return Ok(Code::Succeeded);
    }
    let wide = asked.output == Some(Output::Wide);
    let style = Style::stdout();
    let text = match kind {
        Kind::Executions => {
            let view: ExecutionView = read(&answer)?;
            let mut text = executions(
                std::slice::from_ref(&view.summary),
                wide,
                asked.scope.all_namespaces,
                style,
            );
            text.push('\n');
            text.push_str(&report::steps(&view, style));
            if let Some(error) = &view.summary.error {
                text.push_str(&format!(
                    "\n{}\n",
                    style.paint(Tone::Bad, show::clean(error).trim_end())
                ));
            }
            text
        }
        Kind::Workflows => workflows(&[read(&answer)?], wide, asked.scope.all_namespaces, style),
        Kind::Alerts => alerts(&[read(&answer)?], wide, style),
        Kind::DeadLetters => {
            let letter: DeadLetterView = read(&answer)?;
            format!(
                "{}\n{}\n",
                deadletters(std::slice::from_ref(&letter), wide, style),
                show::clean(&letter.payload)
            )
        }
    };
    show::data(&text);
    Ok(Code::Succeeded)
}

async fn list(client: &Client, kind: Kind, asked: &Get) -> Outcome {
    let namespace = match (
        kind.is_namespaced() && !asked.scope.all_namespaces,
        &asked.scope.namespace,
    ) {
        (false, _) => None,
        (true, given) => Some(given.as_deref().unwrap_or("default")),
    };
    let status = asked.status.as_deref().map(status).transpose()?;
    let request = Request::get(&["api", "v1", kind.plural()])
        .query("namespace", namespace)
        .query("status", status.map(ExecutionStatus::as_str))
        .query("workflow", asked.workflow.as_deref())
        .query(
            "disposition",
            asked.disposition.as_ref().map(|text| text.to_ascii_lowercase()),
        )
        .query("source", asked.source.as_deref())
        .query("limit", asked.limit)
        .query("cursor", asked.cursor.as_deref());
    let answer = client.send(&request).await?;
    if let Some(output @ (Output::Json | Output::Yaml)) = asked.output {
        print_document(&answer.text, output, "")?;
        return Ok(Code::Succeeded);
    }
    let page: Page<Value> = read(&answer)?;
    if page.items.is_empty() {
        let place = namespace
            .map(|namespace| format!(" in {namespace} namespace"))
            .unwrap_or_default();
        show::aside(&format!("No resources found{place}."));
        return Ok(Code::Succeeded);
    }
    let wide = asked.output == Some(Output::Wide);
    let (all, style) = (asked.scope.all_namespaces, Style::stdout());
    let text = if asked.output == Some(Output::Name) {
        page.items
            .iter()
            .map(|item| format!("{}\n", kind.name_of(item)))
            .collect()
    } else {
        match kind {
            Kind::Executions => executions(&read::<Page<_>>(&answer)?.items, wide, all, style),
            Kind::Workflows => workflows(&read::<Page<_>>(&answer)?.items, wide, all, style),
            Kind::Alerts => alerts(&read::<Page<_>>(&answer)?.items, wide, style),
            Kind::DeadLetters => deadletters(&read::<Page<_>>(&answer)?.items, wide, style),
        }
    };
    show::data(&text);
    if let Some(next) = page.next {
        show::aside(&format!(
            "there are more: --limit shows up to 500, `--cursor {next}` goes on from here"
        ));
    }
    Ok(Code::Succeeded)
}

async fn audit(client: &Client, output: Option<Output>) -> Outcome {
    let answer = client
        .send(&Request::get(&["api", "v1", "alerts", "audit"]))
        .await?;
    let audit: AlertAudit = read(&answer)?;
    match output {
        Some(output @ (Output::Json | Output::Yaml | Output::Name)) => {
            print_document(&answer.text, output, "audit")?
        }
        Some(Output::Wide) | None => {
            show::data(&audit_text(&audit));
        }
    }
    if audit.balanced {
        Ok(Code::Succeeded)
    } else {
        Ok(Code::Failed)
    }
}

fn audit_text(audit: &AlertAudit) -> String {
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

fn status(text: &str) -> Result<ExecutionStatus, Failure> {
    let found = ExecutionStatus::ALL
        .into_iter()
        .find(|status| status.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        Failure::misuse(format!(
            "--status {text}: it is pending, running, succeeded, failed or cancelled"
        ))
    })
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    serde_json::from_str(&answer.text).map_err(|error| {
        Failure::no_server(format!(
            "the server's answer cannot be read ({error}): is --server right, and of this version?"
        ))
    })
}

/// What the server answered: as it came (indented for a terminal), as YAML, or only the name.
pub fn print_document(text: &str, output: Output, name: &str) -> Result<(), Failure> {
    let value = || {
        serde_json::from_str::<Value>(text)
            .map_err(|error| Failure::no_server(format!("the server's answer is not JSON: {error}")))
    };
    let unwritable = |error: String| Failure::failed(format!("the answer cannot be written: {error}"));
    let document = match output {
        Output::Name => name.to_owned(),
        Output::Yaml => serde_saphyr::to_string(&value()?).map_err(|error| unwritable(error.to_string()))?,
        Output::Json | Output::Wide if std::io::stdout().is_terminal() => {
            serde_json::to_string_pretty(&value()?).map_err(|error| unwritable(error.to_string()))?
        }
        Output::Json | Output::Wide => text.to_owned(),
    };
    show::line(document.trim_end_matches('\n'));
    Ok(())
}

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

fn executions(items: &[ExecutionSummary], wide: bool, all: bool, style: Style) -> String {
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
                show::one_line(item.error.as_deref().unwrap_or_default(), 100),
            ]);
        }
        (item.namespace.to_string(), row)
    };
    let (heads, rows) = with_namespace(all, heads, items.iter().map(row).collect());
    table(&heads, &rows, style)
}

fn workflows(items: &[WorkflowView], wide: bool, all: bool, style: Style) -> String {
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

fn alerts(items: &[AlertView], wide: bool, style: Style) -> String {
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
        row.push(show::one_line(&item.reason, if wide { 200 } else { 60 }));
        row
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(&heads, &rows, style)
}

fn deadletters(items: &[DeadLetterView], wide: bool, style: Style) -> String {
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
            show::one_line(&item.reason, if wide { 200 } else { 80 }),
        ]);
        row
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(&heads, &rows, style)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_have_kubectls_short_names() {
        for (text, kind) in [
            ("exec", Kind::Executions),
            ("Executions", Kind::Executions),
            ("wf", Kind::Workflows),
            ("alert", Kind::Alerts),
            ("dl", Kind::DeadLetters),
        ] {
            assert_eq!(Kind::parse(text).unwrap(), kind);
        }
        assert!(
            Kind::parse("pods")
                .unwrap_err()
                .message
                .contains("executions (exec)")
        );
    }

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
        assert_eq!(audit_text(&audit), expected);
        audit.balanced = false;
        assert!(audit_text(&audit).contains("NOT balanced"));
    }
}
