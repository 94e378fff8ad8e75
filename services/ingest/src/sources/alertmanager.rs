//! Alertmanager: its webhook payload of version 4, or one alert of it.

use protocol::{Alert, SourceName};
use serde_json::{Map, Value};

use super::{Alerts, fields};

/// Whether this is unmistakably Alertmanager's: a group, or one alert with its own spelling of the fields.
pub fn is_payload(body: &Value) -> bool {
    let is_group = body.get("alerts").is_some_and(Value::is_array)
        && (body.get("groupLabels").is_some() || body.get("version") == Some(&Value::from("4")));
    let is_alert = body.pointer("/labels/alertname").is_some()
        && ["startsAt", "endsAt", "generatorURL"]
            .iter()
            .any(|name| body.get(name).is_some())
        && ["name", "alertname", "title"]
            .iter()
            .all(|name| body.get(name).is_none());
    is_group || is_alert
}

/// Reads a group or one alert.
///
/// # Errors
/// Why it is neither.
pub fn read(source: &SourceName, body: &Value) -> Result<Alerts, String> {
    const EXPECTED: &str = "must be Alertmanager's webhook payload or one alert of it";
    let Value::Object(object) = body else {
        return Err(format!(
            "the body is {}, and {EXPECTED}: an object with `alerts` or with `labels`",
            fields::kind_of(body)
        ));
    };
    let Some(alerts) = object.get("alerts") else {
        if object.contains_key("labels") {
            return Ok(vec![alert(source, body, "")]);
        }
        return Err(format!(
            "the body has neither `alerts` nor `labels`, and {EXPECTED}"
        ));
    };
    if let Some(version) = object.get("version").filter(|version| *version != "4") {
        return Err(format!(
            "version is {version}, and this reads Alertmanager's webhook payload of version \"4\""
        ));
    }
    match alerts {
        Value::Array(alerts) if alerts.is_empty() => {
            Err("alerts is empty; there is nothing to record".to_owned())
        }
        Value::Array(alerts) => {
            let one = |(index, each)| alert(source, each, &format!("alerts[{index}]"));
            Ok(alerts.iter().enumerate().map(one).collect())
        }
        other => Err(format!(
            "alerts is {}, and must be a list of alerts",
            fields::kind_of(other)
        )),
    }
}

fn alert(source: &SourceName, value: &Value, place: &str) -> Result<Alert, String> {
    let Value::Object(object) = value else {
        return Err(format!(
            "{place} is {}, and an alert is an object",
            fields::kind_of(value)
        ));
    };
    let at = |name: &str| match place {
        "" => name.to_owned(),
        _ => format!("{place}.{name}"),
    };
    let labels = fields::named_values(object.get("labels"), &at("labels"))?;
    if labels.is_empty() {
        return Err(format!(
            "{} is missing or empty; an alert is known by its labels",
            at("labels")
        ));
    }
    Ok(Alert {
        source: source.clone(),
        name: label(&labels, "alertname"),
        severity: label(&labels, "severity").to_lowercase(),
        status: fields::alertmanager_status(object.get("status"), &at("status"))?,
        fingerprint: fields::fingerprint(object.get("fingerprint").and_then(fields::text_of), &labels),
        starts_at: fields::instant(object.get("startsAt"), &at("startsAt"))?,
        ends_at: fields::instant(object.get("endsAt"), &at("endsAt"))?,
        annotations: fields::named_values(object.get("annotations"), &at("annotations"))?,
        labels,
    })
}

fn label(labels: &Map<String, Value>, name: &str) -> String {
    labels.get(name).and_then(fields::text_of).unwrap_or_default()
}
