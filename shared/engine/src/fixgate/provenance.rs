//! Whether a suggested command comes from an investigation that is sound enough to act on.
//!
//! Invariant: what is missing in an investigation's output counts against it.

use serde_json::Value;

use super::Refusal;
use crate::manifest::Provider;

/// Where a suggested command comes from: what is known of the investigation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The investigation's `status`: `complete`, `partial`, `inconclusive`.
    pub status: String,
    /// Whether its evidence was found in what tools returned.
    pub grounded: bool,
    /// Whether its turns came from a file.
    pub scripted: bool,
    /// Whether it says that the fix is safe to apply.
    pub can_auto_fix: bool,
}

impl Provenance {
    /// Reads an agent step's output. What is missing in it counts as a no.
    #[must_use]
    pub fn of_output(output: &Value, provider: Option<Provider>) -> Provenance {
        let is_true = |value: &Value, key: &str| value.get(key) == Some(&Value::Bool(true));
        let evidence = output.get("evidence").and_then(Value::as_array);
        let is_ungrounded =
            |item: &Value| item.get("grounded") == Some(&Value::Bool(false)) || is_true(item, "ungrounded");
        Provenance {
            status: output
                .get("status")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            grounded: evidence.is_some_and(|items| !items.is_empty() && !items.iter().any(is_ungrounded)),
            scripted: provider == Some(Provider::Scripted)
                || is_true(output, "scripted")
                || output.get("provider").and_then(Value::as_str) == Some(Provider::Scripted.as_str()),
            can_auto_fix: is_true(output, "can_auto_fix"),
        }
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        let refuse = |reason: &str| Err(Refusal::new(reason));
        if self.scripted {
            return refuse("it was suggested by a scripted investigation, which is never applied");
        }
        if self.status != "complete" {
            return Err(Refusal::new(format!(
                "the investigation that suggested it is {}, not complete",
                if self.status.is_empty() {
                    "without a status"
                } else {
                    &self.status
                }
            )));
        }
        if !self.grounded {
            return refuse(
                "the investigation that suggested it has no evidence that was found in a tool's output",
            );
        }
        if !self.can_auto_fix {
            return refuse("the investigation that suggested it says can_auto_fix: false");
        }
        Ok(())
    }
}
