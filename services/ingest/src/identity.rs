//! What makes two alerts the same alert, and two starts the same start.
//!
//! Invariant: nothing here depends on when or where it is computed; two processes that read the same message
//! come to the same ids. Never change a formula: what has started would start again.

use protocol::{Alert, AlertId, AlertStatus, ExecutionId, Namespace, SourceName, Timestamp, WorkflowName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An alert's identity: source, fingerprint, start and status.
pub fn alert_id(alert: &Alert, starts_at: Timestamp) -> AlertId {
    digest(&[
        "alert",
        alert.source.as_str(),
        &alert.fingerprint,
        &starts_at.to_string(),
        alert.status.as_str(),
    ])
}

/// The identity of what could not be read: the delivery itself.
pub fn unread_id(source: &SourceName, delivery: &str) -> AlertId {
    digest(&["unread", source.as_str(), delivery])
}

/// Under which an alert without a start time is remembered; the status is part of an alert's identity.
pub fn sighting_key(source: &SourceName, fingerprint: &str, status: AlertStatus) -> String {
    format!(
        "seen-{}",
        digest(&["seen", source.as_str(), fingerprint, status.as_str()])
    )
}

/// The execution that this firing of an alert starts of this workflow.
pub fn execution_of_alert(
    namespace: &Namespace,
    workflow: &WorkflowName,
    alert: &Alert,
    starts_at: Timestamp,
) -> ExecutionId {
    ExecutionId::derive(&[
        namespace.as_str(),
        workflow.as_str(),
        alert.source.as_str(),
        &alert.fingerprint,
        &starts_at.to_string(),
    ])
}

/// The execution that a repeated submission under this `Idempotency-Key` means.
pub fn execution_of_key(namespace: &Namespace, workflow: &WorkflowName, key: &str) -> ExecutionId {
    ExecutionId::derive(&["idempotency-key", namespace.as_str(), workflow.as_str(), key])
}

/// The one execution of a Workflow that is executed once, when it is created: by its UID where it has one,
/// else by its name; a new `rerun` annotation is a new execution.
pub fn execution_of_object(
    namespace: &Namespace,
    workflow: &WorkflowName,
    uid: Option<&str>,
    rerun: Option<&str>,
) -> ExecutionId {
    let object = uid.map_or(["name", workflow.as_str()], |uid| ["uid", uid]);
    ExecutionId::derive(&[
        "object",
        namespace.as_str(),
        object[0],
        object[1],
        rerun.unwrap_or_default(),
    ])
}

/// What an alert without a start time goes by: the span in which it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// When it was first seen, which stands for its start.
    pub first: Timestamp,
    /// When it was last seen.
    pub last: Timestamp,
}

impl Sighting {
    /// The sighting after the alert was seen `at`, given the one `before`: new again once it was not seen for
    /// `silence`. Times are those of the messages, so that a redelivery changes nothing.
    pub fn seen(before: Option<Self>, at: Timestamp, silence: std::time::Duration) -> Self {
        match before {
            Some(before) if at.since(before.last) < silence => Self {
                first: before.first,
                last: before.last.max(at),
            },
            _ => Self { first: at, last: at },
        }
    }
}

fn digest(parts: &[&str]) -> AlertId {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digits = crate::sources::hex(&hash.finalize(), 32);
    AlertId::new(digits).expect("32 hexadecimal digits are an alert id")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use serde_json::Map;

    use super::*;

    fn alert(source: &str, fingerprint: &str, status: AlertStatus) -> Alert {
        Alert {
            source: SourceName::new(source).unwrap(),
            name: "A".into(),
            severity: String::new(),
            status,
            fingerprint: fingerprint.into(),
            starts_at: None,
            ends_at: None,
            labels: Map::new(),
            annotations: Map::new(),
        }
    }

    #[test]
    fn ids_never_change() {
        let at: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let (ns, name) = (Namespace::default(), WorkflowName::new("w").unwrap());
        let firing = alert("alertmanager", "c0ffee", AlertStatus::Firing);
        let printed = [
            alert_id(&firing, at).to_string(),
            execution_of_alert(&ns, &name, &firing, at).to_string(),
            execution_of_key(&ns, &name, "k").to_string(),
            execution_of_object(&ns, &name, None, None).to_string(),
            execution_of_object(&ns, &name, Some("u"), Some("2")).to_string(),
            sighting_key(&firing.source, "c0ffee", AlertStatus::Firing),
            unread_id(&firing.source, "7").to_string(),
        ];
        expect_test::expect![[r#"
            6d514732626aaa14392551ac1347a196
            945a6d3b-8602-54a7-8fd1-ce899e897726
            7b346a81-0fa9-5e9f-ad29-d98e70558802
            918ed264-c98f-58cb-9b09-01f78ce5e5a1
            09d16639-60f6-5852-8ee0-ecc470c3e1f8
            seen-9e7c33c4789dd61f1d3047f19e923544
            98e341585f6e212db061cbc1e5bb6f1e"#]]
        .assert_eq(&printed.join("\n"));
    }

    #[test]
    fn every_part_of_an_identity_counts() {
        let at = Timestamp::from_millis(1_000);
        let one = alert_id(&alert("a", "b", AlertStatus::Firing), at);
        assert_ne!(one, alert_id(&alert("a", "b", AlertStatus::Resolved), at));
        assert_ne!(one, alert_id(&alert("ab", "", AlertStatus::Firing), at));
        assert_ne!(one, alert_id(&alert("a", "c", AlertStatus::Firing), at));
        assert_ne!(
            one,
            alert_id(
                &alert("a", "b", AlertStatus::Firing),
                Timestamp::from_millis(2_000)
            )
        );
    }

    #[test]
    fn an_alert_without_a_start_is_new_again_after_silence() {
        let day = Duration::from_secs(24 * 3600);
        let hour = |hours: i64| Timestamp::from_millis(1_000_000 + hours * 3_600_000);
        let first = Sighting::seen(None, hour(0), day);
        assert_eq!(first.first, hour(0));
        let again = Sighting::seen(Some(first), hour(23), day);
        assert_eq!(
            again,
            Sighting {
                first: hour(0),
                last: hour(23)
            }
        );
        // Each sighting counts: 46 hours after the first, 23 after the last, it is the same.
        let still = Sighting::seen(Some(again), hour(46), day);
        assert_eq!(still.first, hour(0));
        // A redelivery of an older message changes nothing.
        assert_eq!(Sighting::seen(Some(still), hour(23), day), still);
        assert_eq!(Sighting::seen(Some(still), hour(70), day).first, hour(70));
    }
}
