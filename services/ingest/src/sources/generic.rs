//! Any JSON: read by the paths of the configuration, or by the names that such things usually have.
//!
//! Invariant: `alertname` and `severity` are always among the labels, so that a trigger's filters work alike
//! for every source.

use protocol::{Alert, SourceName};
use serde_json::{Map, Value};
use service::config::Mapping;

use super::{Alerts, fields};

/// For each part of an alert the paths where it may stand; the first at which something stands counts.
pub struct Paths {
    alerts: Vec<String>,
    name: Vec<String>,
    severity: Vec<String>,
    status: Vec<String>,
    fingerprint: Vec<String>,
    starts_at: Vec<String>,
    labels: Vec<String>,
    annotations: Vec<String>,
    /// Whether plain fields that mean nothing else are labels, where there is no object of labels.
    rest_is_labels: bool,
    /// Whether `alerts` must be there.
    alerts_required: bool,
}

impl Paths {
    /// As the operator configured them.
    pub fn of(mapping: &Mapping) -> Self {
        let one = |path: &Option<String>| path.clone().into_iter().collect();
        Self {
            alerts: one(&mapping.alerts),
            name: one(&mapping.name),
            severity: one(&mapping.severity),
            status: one(&mapping.status),
            fingerprint: one(&mapping.fingerprint),
            starts_at: one(&mapping.starts_at),
            labels: one(&mapping.labels),
            annotations: one(&mapping.annotations),
            rest_is_labels: false,
            alerts_required: mapping.alerts.is_some(),
        }
    }

    /// The usual names.
    pub fn sensible() -> Self {
        let these = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            alerts: these(&["alerts"]),
            name: these(&[
                "name",
                "alertname",
                "alert",
                "title",
                "check",
                "rule",
                "labels.alertname",
            ]),
            severity: these(&["severity", "priority", "level", "labels.severity"]),
            status: these(&["status", "state"]),
            fingerprint: these(&["fingerprint", "id", "key"]),
            starts_at: these(&[
                "starts_at",
                "startsAt",
                "started_at",
                "since",
                "timestamp",
                "time",
            ]),
            labels: these(&["labels", "tags"]),
            annotations: these(&["annotations", "details"]),
            rest_is_labels: true,
            alerts_required: false,
        }
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let lists = [
            &self.alerts,
            &self.name,
            &self.severity,
            &self.status,
            &self.fingerprint,
            &self.starts_at,
            &self.labels,
            &self.annotations,
        ];
        lists.into_iter().flatten()
    }
}

/// Reads one alert or a list of them.
///
/// # Errors
/// Why it is neither.
pub fn read(source: &SourceName, body: &Value, paths: &Paths) -> Result<Alerts, String> {
    let (place, list) = match found(body, &paths.alerts) {
        Some((path, list)) => (path, list),
        None if paths.alerts_required => {
            return Err(format!(
                "nothing stands at `{}`, where the configuration of source {source} says the alerts are",
                paths.alerts.join("`, `")
            ));
        }
        None => ("", body),
    };
    match list {
        Value::Object(_) => Ok(vec![alert(source, list, place, paths)]),
        Value::Array(alerts) if alerts.is_empty() => {
            Err("the list of alerts is empty; there is nothing to record".to_owned())
        }
        Value::Array(alerts) => {
            let one = |(index, each)| alert(source, each, &format!("{place}[{index}]"), paths);
            Ok(alerts.iter().enumerate().map(one).collect())
        }
        other => Err(format!(
            "{} is {}, and must be one alert (an object) or a list of them",
            if place.is_empty() { "the body" } else { place },
            fields::kind_of(other)
        )),
    }
}

fn alert(source: &SourceName, value: &Value, place: &str, paths: &Paths) -> Result<Alert, String> {
    let whole = if place.is_empty() { "the alert" } else { place };
    let Value::Object(object) = value else {
        return Err(format!(
            "{whole} is {}, and an alert is an object",
            fields::kind_of(value)
        ));
    };
    let at = |path: &str| match place {
        "" => path.to_owned(),
        _ => format!("{place}.{path}"),
    };
    let text = |candidates: &[String]| found(value, candidates).and_then(|(_, value)| fields::text_of(value));
    let name = text(&paths.name).filter(|name| !name.is_empty()).ok_or_else(|| {
        format!(
            "{whole} has no name; give it one as `{}`",
            paths.name.join("`, `")
        )
    })?;
    let severity = text(&paths.severity).unwrap_or_default();
    let named = |candidates: &[String]| match found(value, candidates) {
        Some((path, value)) => fields::named_values(Some(value), &at(path)),
        None => Ok(Map::new()),
    };
    let mut labels = match found(value, &paths.labels) {
        None if paths.rest_is_labels => rest(object, paths),
        _ => named(&paths.labels)?,
    };
    labels
        .entry("alertname")
        .or_insert_with(|| Value::from(name.clone()));
    if !severity.is_empty() {
        labels
            .entry("severity")
            .or_insert_with(|| Value::from(severity.clone()));
    }
    let starts_at = match found(value, &paths.starts_at) {
        Some((path, value)) => fields::instant(Some(value), &at(path))?,
        None => None,
    };
    Ok(Alert {
        source: source.clone(),
        name,
        severity: severity.to_lowercase(),
        status: fields::loose_status(&text(&paths.status).unwrap_or_default()),
        fingerprint: fields::fingerprint(text(&paths.fingerprint), &labels),
        starts_at,
        ends_at: None,
        annotations: named(&paths.annotations)?,
        labels,
    })
}

/// The plain fields of an alert that have no meaning of their own.
fn rest(object: &Map<String, Value>, paths: &Paths) -> Map<String, Value> {
    let is_known = |name: &String| paths.all().any(|path| path == name);
    let plain = object.iter().filter(|(name, _)| !is_known(name));
    let entry = |(name, value): (&String, &Value)| Some((name.clone(), Value::from(fields::text_of(value)?)));
    plain.filter_map(entry).collect()
}

/// The first of `paths` at which something other than null stands.
fn found<'p, 'v>(value: &'v Value, paths: &'p [String]) -> Option<(&'p str, &'v Value)> {
    let stands = |path: &'p String| {
        let value = path.split('.').try_fold(value, |value, part| match value {
            Value::Object(object) => object.get(part),
            Value::Array(list) => list.get(part.parse::<usize>().ok()?),
            _ => None,
        })?;
        (!value.is_null()).then_some((path.as_str(), value))
    };
    paths.iter().find_map(stands)
}
