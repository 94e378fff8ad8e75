//! `fist get`: lists and single things, as tables or as the server answers them.

use std::io::IsTerminal;

use protocol::views::{AlertAudit, DeadLetterView, ExecutionStatus, ExecutionView, Page, TranscriptView};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Outcome, kind_and_id};
use crate::{
    args::{Get, Output},
    client::{Answer, Client, Request},
    failure::{Code, Failure},
    show::{self, Style, Tone, lists, report, transcript},
};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Executions,
    Workflows,
    Alerts,
    DeadLetters,
    Budgets,
}

impl Kind {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.to_ascii_lowercase().as_str() {
            "executions" | "execution" | "exec" | "execs" | "ex" => Ok(Self::Executions),
            "workflows" | "workflow" | "wf" | "wfs" => Ok(Self::Workflows),
            "alerts" | "alert" | "al" => Ok(Self::Alerts),
            "deadletters" | "deadletter" | "dl" | "dlq" => Ok(Self::DeadLetters),
            "budgets" | "budget" | "bu" => Ok(Self::Budgets),
            text if looks_like_id(text) => Err(Failure::misuse(format!(
                "`{text}` is no kind of thing: `fist get execution {text}` shows the execution of that id"
            ))),
            _ => Err(Failure::misuse(format!(
                "there is no kind `{text}`: get executions (exec), workflows (wf), alerts (al), deadletters (dl) or budgets (bu)"
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
            Self::Budgets => "budget",
        }
    }

    /// In names, as `-o name` prints them.
    fn singular(self) -> &'static str {
        match self {
            Self::Executions => "execution",
            Self::Workflows => "workflow",
            Self::Alerts => "alert",
            Self::DeadLetters => "deadletter",
            Self::Budgets => "budget",
        }
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Self::Executions | Self::Workflows)
    }

    /// The name of one of them in its JSON.
    fn name_of(self, item: &Value) -> String {
        let name = match self {
            Self::Workflows => &item["name"],
            Self::Budgets => &item["namespace"],
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
        Some(id) if asked.transcript => of_agents(client, &id, asked).await,
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
    only("--transcript", asked.transcript, Kind::Executions)?;
    if asked.transcript && !is_one {
        return Err(Failure::misuse(
            "--transcript is of one execution: give its id, `fist get executions` lists them",
        ));
    }
    if is_one && kind == Kind::Budgets {
        return Err(Failure::misuse(
            "a budget goes by its namespace: `fist get budget -n NAMESPACE`",
        ));
    }
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
            let mut text = lists::executions(
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
        Kind::Workflows => lists::workflows(&[read(&answer)?], wide, asked.scope.all_namespaces, style),
        Kind::Alerts => lists::alerts(&[read(&answer)?], wide, style),
        Kind::Budgets => lists::budgets(&[read(&answer)?], wide, style),
        Kind::DeadLetters => {
            let letter: DeadLetterView = read(&answer)?;
            format!(
                "{}\n{}\n",
                lists::deadletters(std::slice::from_ref(&letter), wide, style),
                show::clean(&letter.payload)
            )
        }
    };
    show::data(&text);
    Ok(Code::Succeeded)
}

async fn of_agents(client: &Client, id: &str, asked: &Get) -> Outcome {
    let request =
        Request::get(&["api", "v1", "executions", id, "transcript"]).query("step", asked.step.as_deref());
    let answer = client.send(&request).await?;
    if let Some(output @ (Output::Json | Output::Yaml | Output::Name)) = asked.output {
        let name = Kind::Executions.name_of(&answer.json()?);
        print_document(&answer.text, output, &name)?;
        return Ok(Code::Succeeded);
    }
    let view: TranscriptView = read(&answer)?;
    if view.attempts.is_empty() {
        show::aside("No step of type agent has begun.");
    }
    show::data(&transcript::transcript(&view, Style::stdout()));
    Ok(Code::Succeeded)
}

async fn list(client: &Client, kind: Kind, asked: &Get) -> Outcome {
    let namespace = match (
        kind.is_namespaced() && !asked.scope.all_namespaces,
        &asked.scope.namespace,
    ) {
        // Of budgets, all are shown unless one is asked for.
        (false, given) if kind == Kind::Budgets => given.as_deref(),
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
            Kind::Executions => lists::executions(&read::<Page<_>>(&answer)?.items, wide, all, style),
            Kind::Workflows => lists::workflows(&read::<Page<_>>(&answer)?.items, wide, all, style),
            Kind::Alerts => lists::alerts(&read::<Page<_>>(&answer)?.items, wide, style),
            Kind::DeadLetters => lists::deadletters(&read::<Page<_>>(&answer)?.items, wide, style),
            Kind::Budgets => lists::budgets(&read::<Page<_>>(&answer)?.items, wide, style),
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
            show::data(&lists::audit(&audit));
        }
    }
    if audit.balanced {
        Ok(Code::Succeeded)
    } else {
        Ok(Code::Failed)
    }
}

/// Whether it reads like an execution's id, or the beginning of one.
fn looks_like_id(text: &str) -> bool {
    text.len() >= 4
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
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

pub(super) fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_have_kubectls_short_names() {
        for (text, kind) in [
            ("exec", Kind::Executions),
            ("Executions", Kind::Executions),
            ("wf", Kind::Workflows),
            ("alert", Kind::Alerts),
            ("dl", Kind::DeadLetters),
            ("budget", Kind::Budgets),
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
}
