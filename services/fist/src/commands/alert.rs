//! `fist alert send`: posts alerts as their source would.

use std::time::Duration;

use protocol::views::{AlertView, Page};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Outcome,
    follow::{Following, Lines, follow},
    pairs,
};
use crate::{
    args::AlertSend,
    client::{Client, Request},
    failure::{Code, Failure},
    manifests, show,
};

/// The source whose payload is Alertmanager's; all others are posted as the default mapping reads them.
const ALERTMANAGER: &str = "alertmanager";
/// How long an alert may take to be recorded.
const RECORDED_MAX: Duration = Duration::from_secs(30);
/// How often to look meanwhile.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Alerts to look through.
const LOOK_LIMIT: u32 = 500;

/// Does it.
pub async fn send(client: &Client, asked: AlertSend) -> Outcome {
    let payload = match &asked.file {
        Some(file) => manifests::read_text(file)?.1,
        None if asked.name.is_none() => {
            return Err(Failure::misuse(
                "give the alert's --name (and --label KEY=VALUE), or a payload with -f FILE",
            ));
        }
        None => payload(&asked)?.to_string(),
    };
    let path = ["webhooks", asked.source.as_str()];
    let answer = client
        .send(&Request::post(&path, "application/json", payload))
        .await?
        .json()?;
    let accepted = answer["accepted"].as_u64().unwrap_or(0);
    let rejected = answer["rejected"].as_u64().unwrap_or(0);
    let also = if rejected > 0 {
        format!(", {rejected} rejected")
    } else {
        String::new()
    };
    let plural = if accepted == 1 { "alert" } else { "alerts" };
    show::line(&format!(
        "{accepted} {plural} accepted{also} (delivery {})",
        answer["delivery"]
    ));
    if !(asked.wait || asked.follow) {
        return Ok(Code::Succeeded);
    }
    let delivery = answer["delivery"].to_string();
    let alerts = recorded(
        client,
        &asked.source,
        delivery.trim_matches('"'),
        accepted + rejected,
    )
    .await?;
    for alert in &alerts {
        let executions: Vec<String> = alert
            .executions
            .iter()
            .map(|id| format!(" execution/{id}"))
            .collect();
        let reason = if alert.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", alert.reason)
        };
        let name = if alert.name.is_empty() {
            "alert"
        } else {
            &alert.name
        };
        show::line(&show::clean(&format!(
            "{name} {}{reason}{}",
            alert.disposition.as_str(),
            executions.concat()
        )));
    }
    if !asked.follow {
        return Ok(Code::Succeeded);
    }
    let mut code = Code::Succeeded;
    let mut ids: Vec<_> = alerts.iter().flat_map(|alert| &alert.executions).collect();
    ids.sort_unstable_by_key(ToString::to_string);
    ids.dedup();
    if ids.is_empty() {
        return Err(Failure::failed(
            "no execution follows from it; `fist get alerts` shows why",
        ));
    }
    for id in ids {
        let following = Following {
            lines: Lines::Stderr,
            logs: false,
            output: None,
        };
        match follow(client, &id.to_string(), following).await? {
            Code::Succeeded => {}
            Code::Detached => return Ok(Code::Detached),
            other => code = other,
        }
    }
    Ok(code)
}

/// What became of the alerts of one message.
async fn recorded(
    client: &Client,
    source: &str,
    delivery: &str,
    count: u64,
) -> Result<Vec<AlertView>, Failure> {
    let deadline = Instant::now() + RECORDED_MAX;
    let request = Request::get(&["api", "v1", "alerts"])
        .query("source", Some(source))
        .query("limit", Some(LOOK_LIMIT));
    loop {
        let found = client.send(&request).await.and_then(|answer| {
            let page: Result<Page<AlertView>, _> = serde_json::from_str(&answer.text);
            page.map_err(|error| Failure::failed(format!("the server's answer cannot be read: {error}")))
        });
        let waiting = match found {
            Ok(page) => {
                let of_this: Vec<AlertView> = page
                    .items
                    .into_iter()
                    .filter(|alert| is_of(&alert.id, delivery))
                    .collect();
                if of_this.len() as u64 >= count {
                    return Ok(of_this);
                }
                Failure::failed(format!(
                    "not recorded within {} s; it is durable, and `fist get alerts` shows it later",
                    RECORDED_MAX.as_secs()
                ))
            }
            Err(failure) if failure.code == Code::NoServer => failure,
            Err(failure) => return Err(failure),
        };
        if Instant::now() >= deadline {
            return Err(waiting);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Whether `<identity>.<delivery>` belongs to this message; its second alert and on have `-<index>` behind it.
fn is_of(id: &str, delivery: &str) -> bool {
    id.rsplit_once('.')
        .is_some_and(|(_, of)| of == delivery || of.split('-').next() == Some(delivery))
}

fn object(option: &str, given: &[String]) -> Result<Map<String, Value>, Failure> {
    Ok(pairs(option, given)?
        .into_iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect())
}

/// A payload of one alert, made of the given parts.
fn payload(asked: &AlertSend) -> Result<Value, Failure> {
    let name = asked.name.as_deref().unwrap_or_default();
    let status = if asked.resolved { "resolved" } else { "firing" };
    let now = show::age::now().to_string();
    let starts_at = asked.starts_at.as_deref().unwrap_or(&now);
    let mut labels = object("--label", &asked.label)?;
    let annotations = object("--annotation", &asked.annotation)?;
    if asked.source != ALERTMANAGER {
        let mut alert = json!({
            "name": name, "status": status, "starts_at": starts_at, "labels": labels, "annotations": annotations,
        });
        if let Some(severity) = &asked.severity {
            alert["severity"] = json!(severity);
        }
        if let Some(fingerprint) = &asked.fingerprint {
            alert["fingerprint"] = json!(fingerprint);
        }
        return Ok(alert);
    }
    labels.insert("alertname".to_owned(), json!(name));
    if let Some(severity) = &asked.severity {
        labels.insert("severity".to_owned(), json!(severity));
    }
    let mut alert = json!({
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": starts_at,
        "endsAt": if asked.resolved { now.as_str() } else { "0001-01-01T00:00:00Z" },
        "generatorURL": "",
    });
    if let Some(fingerprint) = &asked.fingerprint {
        alert["fingerprint"] = json!(fingerprint);
    }
    Ok(json!({
        "version": "4",
        "groupKey": format!("{{}}:{{alertname={:?}}}", name),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "fist",
        "groupLabels": {"alertname": name},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::args::{Alert, Args, Command};

    fn asked(arguments: &[&str]) -> AlertSend {
        let args = Args::try_parse_from(["fist", "alert", "send"].iter().chain(arguments)).unwrap();
        match args.command {
            Command::Alert(Alert::Send(send)) => send,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_alert_is_made_as_alertmanager_makes_it() {
        let arguments = [
            "--name",
            "DiskFull",
            "--severity",
            "critical",
            "--label",
            "node=a",
            "--starts-at",
            "2026-01-02T03:04:05Z",
        ];
        let payload = payload(&asked(&arguments)).unwrap();
        let labels = json!({"node": "a", "alertname": "DiskFull", "severity": "critical"});
        assert_eq!(payload["version"], "4");
        assert_eq!(payload["commonLabels"], labels);
        assert_eq!(payload["alerts"][0]["labels"], labels);
        assert_eq!(payload["alerts"][0]["startsAt"], "2026-01-02T03:04:05Z");
        assert_eq!(payload["alerts"][0]["status"], "firing");
    }

    #[test]
    fn other_sources_get_what_the_default_mapping_reads() {
        let payload = payload(&asked(&[
            "--source",
            "webhook",
            "--name",
            "x",
            "--resolved",
            "--fingerprint",
            "f",
        ]))
        .unwrap();
        assert_eq!(payload["status"], "resolved");
        assert_eq!(payload["fingerprint"], "f");
        assert!(payload.get("severity").is_none());
    }

    #[test]
    fn deliveries_are_told_apart() {
        assert!(is_of("0a.12", "12") && is_of("0a.12-1", "12"));
        assert!(!is_of("0a.121", "12") && !is_of("12.3", "12"));
    }
}
