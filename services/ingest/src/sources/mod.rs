//! Sources of alerts: one file per kind, each a pure function from bytes to alerts.
//!
//! Invariants:
//! - What a webhook takes and what arrives straight over NATS is read by the same function, so that both
//!   mean the same.
//! - A message that can be read as a whole yields one entry per alert in it, in order; what is wrong with one
//!   alert rejects that one alone.
//!
//! To add a kind: one file here with a `read`, one arm in [`Reader::read`], one value of
//! `service::config::SourceKind`.

mod alertmanager;
mod fields;
mod generic;

pub use fields::hex;

use std::collections::BTreeMap;

use protocol::{Alert, SourceName};
use serde_json::Value;
use service::config::{Mapping, Source, SourceKind};

/// The built-in source of Alertmanager's webhooks.
pub const ALERTMANAGER: &str = "alertmanager";
/// The built-in source of any JSON with sensible names.
pub const WEBHOOK: &str = "webhook";
/// The name that the manual suggests for alerts published straight to NATS.
pub const NATS: &str = "nats";

/// What a message held: for each alert the alert, or why it cannot be taken.
pub type Alerts = Vec<Result<Alert, String>>;

/// How the payloads of one source are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Alertmanager's webhook, version 4, or one alert of it.
    Alertmanager,
    /// By the paths of the configuration.
    Mapped(Box<Mapping>),
    /// By the names that such things usually have.
    Sensible,
}

impl Reader {
    /// Reads one message.
    ///
    /// # Errors
    /// Why the message as a whole cannot be read, and where.
    pub fn read(&self, source: &SourceName, bytes: &[u8]) -> Result<Alerts, String> {
        let body: Value = serde_json::from_slice(bytes).map_err(|error| not_json(bytes, &error))?;
        match self {
            Self::Alertmanager => alertmanager::read(source, &body),
            // An Alertmanager payload is understood whatever the source is called, as the manual says of
            // alerts that are published straight to NATS.
            Self::Mapped(_) | Self::Sensible if alertmanager::is_payload(&body) => {
                alertmanager::read(source, &body)
            }
            Self::Mapped(mapping) => generic::read(source, &body, &generic::Paths::of(mapping)),
            Self::Sensible => generic::read(source, &body, &generic::Paths::sensible()),
        }
    }
}

fn not_json(bytes: &[u8], error: &serde_json::Error) -> String {
    if bytes.is_empty() {
        return "the body is empty; send the alerts as JSON".to_owned();
    }
    format!("the body is not JSON: {error}")
}

/// A source with a webhook of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// How its payloads are read.
    pub reader: Reader,
    /// Its section of the configuration, where it has one: what the sender must prove.
    pub configured: Option<Source>,
}

/// All sources: the built-in ones, and those of the configuration over them.
#[derive(Clone, Debug)]
pub struct Sources {
    webhooks: BTreeMap<String, Webhook>,
}

impl Sources {
    /// From the sections `[sources.<name>]`.
    pub fn new(configured: &BTreeMap<String, Source>) -> Self {
        let builtin = |reader| Webhook {
            reader,
            configured: None,
        };
        let mut webhooks = BTreeMap::from([
            (ALERTMANAGER.to_owned(), builtin(Reader::Alertmanager)),
            (WEBHOOK.to_owned(), builtin(Reader::Sensible)),
        ]);
        for (name, source) in configured {
            let reader = match source.kind {
                SourceKind::Alertmanager => Reader::Alertmanager,
                SourceKind::Generic => Reader::Mapped(Box::new(source.mapping.clone())),
            };
            let webhook = Webhook {
                reader,
                configured: Some(source.clone()),
            };
            webhooks.insert(name.clone(), webhook);
        }
        Self { webhooks }
    }

    /// The webhook called `name`.
    pub fn webhook(&self, name: &str) -> Option<&Webhook> {
        self.webhooks.get(name)
    }

    /// The names of all webhooks, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.webhooks.keys().map(String::as_str).collect()
    }

    /// The webhooks that ask their senders for nothing, where the API has tokens or has none.
    pub fn open_to_everybody(&self, has_tokens: bool) -> Vec<&str> {
        let is_open = |webhook: &Webhook| match &webhook.configured {
            Some(source) => !source.has_secret() && (source.is_open || !has_tokens),
            None => !has_tokens,
        };
        let open = self.webhooks.iter().filter(|(_, webhook)| is_open(webhook));
        open.map(|(name, _)| name.as_str()).collect()
    }

    /// How messages of `source` are read; one that nobody configured is read by sensible names.
    pub fn reader(&self, source: &SourceName) -> Reader {
        self.webhook(source.as_str())
            .map_or(Reader::Sensible, |webhook| webhook.reader.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use expect_test::{Expect, expect};

    use super::*;

    fn printed(read: &Result<Alerts, String>) -> String {
        let alerts = match read {
            Ok(alerts) => alerts,
            Err(reason) => return format!("unreadable: {reason}\n"),
        };
        let mut text = String::new();
        for alert in alerts {
            let line = match alert {
                Err(reason) => format!("rejected: {reason}\n"),
                Ok(alert) => format!(
                    "{} [{}] {} {} since {} until {} {} {}\n",
                    alert.name,
                    alert.severity,
                    alert.status.as_str(),
                    alert.fingerprint,
                    alert.starts_at.map_or("-".to_owned(), |at| at.to_string()),
                    alert.ends_at.map_or("-".to_owned(), |at| at.to_string()),
                    Value::Object(alert.labels.clone()),
                    Value::Object(alert.annotations.clone()),
                ),
            };
            text.push_str(&line);
        }
        text
    }

    fn configured() -> Sources {
        let file = r#"
[sources.grafana]
[sources.grafana.mapping]
alerts = "data.alerts"
name = "title"
labels = "meta.tags"
status = "state"
starts_at = "since"
fingerprint = "uid"
[sources.second]
kind = "alertmanager"
"#;
        let config = service::config::Config::parse(Some(("test.toml", file)), std::iter::empty()).unwrap();
        Sources::new(&config.sources)
    }

    #[track_caller]
    fn check(source: &str, body: &str, expected: &Expect) {
        let name = SourceName::new(source).unwrap();
        let read = configured().reader(&name).read(&name, body.as_bytes());
        expected.assert_eq(&printed(&read));
    }

    const FIRING: &str = r#"{"status":"firing","labels":{"alertname":"PodCrashLooping","severity":"Critical","pod":"web-1"},"annotations":{"summary":"it crashes"},"startsAt":"2026-01-02T03:04:05.678Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://p/","fingerprint":"c0ffee"}"#;

    #[test]
    fn alertmanager_groups() {
        let resolved = r#"{"status":"resolved","labels":{"alertname":"B"},"annotations":{},"startsAt":"2026-01-02T03:04:05Z","endsAt":"2026-01-02T03:14:05Z","fingerprint":"b"}"#;
        let body = format!(
            r#"{{"version":"4","groupKey":"g","status":"firing","receiver":"r","groupLabels":{{}},"commonLabels":{{}},"commonAnnotations":{{}},"externalURL":"","truncatedAlerts":0,"alerts":[{FIRING},{resolved}]}}"#
        );
        let expected = expect![[r#"
            PodCrashLooping [critical] firing c0ffee since 2026-01-02T03:04:05.678Z until - {"alertname":"PodCrashLooping","severity":"Critical","pod":"web-1"} {"summary":"it crashes"}
            B [] resolved b since 2026-01-02T03:04:05.000Z until 2026-01-02T03:14:05.000Z {"alertname":"B"} {}
        "#]];
        // The same bytes mean the same whatever the source is called.
        for source in ["alertmanager", "second", "webhook", "nats", "grafana"] {
            check(source, &body, &expected);
        }
    }

    #[test]
    fn one_alert_of_a_group() {
        let expected = expect![[r#"
            PodCrashLooping [critical] firing c0ffee since 2026-01-02T03:04:05.678Z until - {"alertname":"PodCrashLooping","severity":"Critical","pod":"web-1"} {"summary":"it crashes"}
        "#]];
        for source in ["alertmanager", "nats"] {
            check(source, FIRING, &expected);
        }
    }

    #[test]
    fn a_missing_fingerprint_is_a_hash_of_the_labels_whatever_their_order() {
        let expected = expect![[r#"
            A [] firing 476f5639e32505c5 since - until - {"alertname":"A","x":"1"} {}
        "#]];
        check(
            "alertmanager",
            r#"{"labels":{"alertname":"A","x":"1"}}"#,
            &expected,
        );
        let name = SourceName::new("alertmanager").unwrap();
        let fingerprint = |body: &str| {
            let alerts = Reader::Alertmanager.read(&name, body.as_bytes()).unwrap();
            alerts[0].clone().unwrap().fingerprint
        };
        let (first, second) = (
            r#"{"labels":{"alertname":"A","x":"1"}}"#,
            r#"{"labels":{"x":"1","alertname":"A"}}"#,
        );
        assert_eq!(fingerprint(first), fingerprint(second));
        assert_ne!(
            fingerprint(first),
            fingerprint(r#"{"labels":{"alertname":"A","x":"2"}}"#)
        );
        assert_ne!(
            fingerprint(first),
            fingerprint(r#"{"labels":{"alertname":"A","x1":""}}"#)
        );
    }

    #[test]
    fn what_is_wrong_with_one_alert_rejects_that_one() {
        check(
            "alertmanager",
            r#"{"version":"4","alerts":[
                {"labels":{"alertname":"A"},"fingerprint":"a"}, 7, {"labels":"x"}, {"labels":{}},
                {"labels":{"alertname":"A"},"status":"perhaps"}, {"labels":{"alertname":"A"},"startsAt":"noon"}]}"#,
            &expect![[r#"
                A [] firing a since - until - {"alertname":"A"} {}
                rejected: alerts[1] is a number, and an alert is an object
                rejected: alerts[2].labels is a string, and must be an object of names and values
                rejected: alerts[3].labels is missing or empty; an alert is known by its labels
                rejected: alerts[4].status is "perhaps", and must be "firing" or "resolved"
                rejected: alerts[5].startsAt: `noon` is not a time; use RFC 3339 such as 2026-01-31T03:00:00Z, or Unix seconds
            "#]],
        );
    }

    #[test]
    fn unreadable_as_a_whole() {
        for (body, expected) in [
            (
                "",
                expect![[r#"
                unreadable: the body is empty; send the alerts as JSON
            "#]],
            ),
            (
                "{\n \"alerts\": [",
                expect![[r#"
                unreadable: the body is not JSON: EOF while parsing a list at line 2 column 12
            "#]],
            ),
            (
                "[]",
                expect![[r#"
                unreadable: the body is a list, and must be Alertmanager's webhook payload or one alert of it: an object with `alerts` or with `labels`
            "#]],
            ),
            (
                r#"{"hello":1}"#,
                expect![[r#"
                unreadable: the body has neither `alerts` nor `labels`, and must be Alertmanager's webhook payload or one alert of it
            "#]],
            ),
            (
                r#"{"version":"5","alerts":[]}"#,
                expect![[r#"
                unreadable: version is "5", and this reads Alertmanager's webhook payload of version "4"
            "#]],
            ),
            (
                r#"{"version":"4","alerts":[]}"#,
                expect![[r#"
                unreadable: alerts is empty; there is nothing to record
            "#]],
            ),
            (
                r#"{"version":"4","alerts":{}}"#,
                expect![[r#"
                unreadable: alerts is an object, and must be a list of alerts
            "#]],
            ),
        ] {
            check("alertmanager", body, &expected);
        }
    }

    #[test]
    fn sensible_names() {
        for (body, expected) in [
            (
                r#"{"name":"DiskFull","severity":"WARNING","host":"db-1","percent":93}"#,
                expect![[r#"
                    DiskFull [warning] firing 2caf87d99e08f6d0 since - until - {"host":"db-1","percent":"93","alertname":"DiskFull","severity":"WARNING"} {}
                "#]],
            ),
            (
                r#"[{"title":"A","state":"ok","id":7,"timestamp":1767323045,"tags":{"a":true,"n":null},"details":{"d":"e"}},
                    {"alertname":"B","labels":{"alertname":"C","severity":"info"},"startsAt":"2026-01-02T03:04:05Z"}]"#,
                expect![[r#"
                    A [] resolved 7 since 2026-01-02T03:04:05.000Z until - {"a":"true","alertname":"A"} {"d":"e"}
                    B [info] firing a841ae4adc6d8546 since 2026-01-02T03:04:05.000Z until - {"alertname":"C","severity":"info"} {}
                "#]],
            ),
            (
                r#"{"alerts":[{"name":"A","fingerprint":"f"},{"severity":"x"}]}"#,
                expect![[r#"
                    A [] firing f since - until - {"alertname":"A"} {}
                    rejected: alerts[1] has no name; give it one as `name`, `alertname`, `alert`, `title`, `check`, `rule`, `labels.alertname`
                "#]],
            ),
            (
                r#""text""#,
                expect![[r#"
                unreadable: the body is a string, and must be one alert (an object) or a list of them
            "#]],
            ),
        ] {
            check("webhook", body, &expected);
        }
    }

    #[test]
    fn configured_mappings() {
        for (body, expected) in [
            (
                r#"{"data":{"alerts":[{"title":"A","uid":"u","state":"alerting","since":"1767323045","meta":{"tags":{"k":"v"}}}]}}"#,
                expect![[r#"
                    A [] firing u since 2026-01-02T03:04:05.000Z until - {"k":"v","alertname":"A"} {}
                "#]],
            ),
            (
                r#"{"data":{}}"#,
                expect![[r#"
                    unreadable: nothing stands at `data.alerts`, where the configuration of source grafana says the alerts are
                "#]],
            ),
            (
                r#"{"data":{"alerts":[{"name":"A"},{"title":"B","meta":{"tags":"x"}}]}}"#,
                expect![[r#"
                    rejected: data.alerts[0] has no name; give it one as `title`
                    rejected: data.alerts[1].meta.tags is a string, and must be an object of names and values
                "#]],
            ),
        ] {
            check("grafana", body, &expected);
        }
    }
}
