//! Alert payloads under fuzz: whatever a source sends, each alert of it is read or refused with a reason, in order, and
//! an alert's identity does not hang on how its JSON is written.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

use fuzz::{Target, gist, shape};
use ingest::sources::{Reader, Sources};
use protocol::{Alert, SourceName};
use serde_json::Value;

fn seeds() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/alerts");
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let mut seeds: Vec<String> = paths
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    seeds.push(
        r#"{"labels":{"alertname":"A"},"status":"firing","startsAt":"2026-01-01T00:00:00Z"}"#.to_owned(),
    );
    seeds.push(r#"{"name":"disk full","severity":"HIGH","status":"ok","host":"web-1"}"#.to_owned());
    seeds.push(r#"[{"title":"a","id":7},{"title":"b","state":"resolved"}]"#.to_owned());
    seeds.push(r#"{"version":"4","status":"firing","commonLabels":{"x":"1"},"alerts":[]}"#.to_owned());
    seeds
}

/// The same JSON with the keys of every object in the other order.
fn turned_round(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .rev()
                .map(|(key, value)| (key.clone(), turned_round(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(turned_round).collect()),
        other => other.clone(),
    }
}

fn identities(alerts: &[Result<Alert, String>]) -> Vec<Option<(&str, &str, Option<String>)>> {
    alerts
        .iter()
        .map(|alert| {
            let alert = alert.as_ref().ok()?;
            Some((
                alert.fingerprint.as_str(),
                alert.status.as_str(),
                alert.starts_at.map(|at| at.to_string()),
            ))
        })
        .collect()
}

#[test]
fn every_alert_of_a_payload_is_read_or_refused() {
    let target = Target {
        name: "alerts",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        seeds: seeds(),
        words: &[
            "\"alerts\":[",
            "\"labels\":{",
            "\"annotations\":{",
            "\"status\":",
            "\"firing\"",
            "\"resolved\"",
            "\"startsAt\":",
            "\"endsAt\":",
            "\"fingerprint\":",
            "\"0001-01-01T00:00:00Z\"",
            "\"2026-02-30T25:61:61Z\"",
            "\"alertname\":",
            "\"severity\":",
            "\"version\":\"4\"",
            "\"groupKey\":",
            "null",
            "true",
            "{}",
            "[]",
            "1e999",
            "\"\\ud800\"",
            "\"\\u0000\"",
            ",",
            ":",
            "{",
            "}",
            "[",
            "]",
            "\u{fffd}",
        ],
    };
    let sources = Sources::new(&BTreeMap::new());
    let names = ["alertmanager", "webhook", "nats"].map(|name| SourceName::new(name).unwrap());
    fuzz::fuzz(&target, |text| {
        // One character stands for a byte that is no UTF-8.
        let bytes: Vec<u8> = text
            .split('\u{fffd}')
            .collect::<Vec<_>>()
            .join("\u{1}")
            .bytes()
            .map(|b| if b == 1 { 0xff } else { b })
            .collect();
        let mut shapes = Vec::new();
        for name in &names {
            let reader: Reader = sources.reader(name);
            let alerts = match reader.read(name, &bytes) {
                Ok(alerts) => alerts,
                Err(reason) => {
                    assert!(!reason.is_empty(), "a refusal has a reason");
                    shapes.push(gist(reason));
                    continue;
                }
            };
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            if name.as_str() == "alertmanager"
                && let Some(list) = body.get("alerts").and_then(Value::as_array)
            {
                assert_eq!(alerts.len(), list.len(), "one result for each alert of the group");
            }
            for alert in &alerts {
                match alert {
                    Ok(alert) => {
                        assert!(!alert.fingerprint.is_empty(), "an alert has an identity");
                        assert_eq!(
                            alert.severity,
                            alert.severity.to_lowercase(),
                            "a severity is in lower case"
                        );
                        let written = serde_json::to_string(alert).unwrap();
                        let read: Alert = serde_json::from_str(&written).unwrap();
                        assert_eq!(read, *alert, "it is read from the log as it was written");
                    }
                    Err(reason) => assert!(!reason.is_empty(), "a refusal has a reason"),
                }
            }
            let round = serde_json::to_vec(&turned_round(&body)).unwrap();
            let other = reader.read(name, &round).unwrap();
            assert_eq!(
                identities(&other),
                identities(&alerts),
                "in another order it is another alert"
            );
            shapes.push(format!(
                "{} {}",
                alerts.len().min(9),
                alerts.iter().filter(|alert| alert.is_ok()).count().min(9)
            ));
            shapes.extend(
                alerts
                    .iter()
                    .take(4)
                    .filter_map(|alert| alert.as_ref().err().map(gist)),
            );
        }
        shape(shapes)
    });
}
