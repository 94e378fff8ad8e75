//! Identifiers, parsed at the edge: a value of these types cannot hold anything a subject, a key or a
//! path could be broken with.
//!
//! Invariant: every accepted string is one token of a NATS subject (no dot, space, `*` or `>`), except
//! [`WorkflowName`], which may hold dots and is never put into a subject.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

/// Why a string is not an identifier of the wanted kind. Display names the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    rule: &'static str,
    value: String,
}

/// As much of a bad value as an error text should carry.
fn shown(value: &str) -> String {
    value.chars().take(80).collect()
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_word(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// What makes a string an identifier of one kind.
pub trait Rule: Clone + fmt::Debug + Ord + std::hash::Hash {
    /// What the identifier names, for error texts.
    const KIND: &'static str;
    /// The rule in words, for error texts.
    const RULE: &'static str;
    /// Whether `text` follows the rule.
    fn accepts(text: &str) -> bool;
}

/// A string that follows rule `R`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String", bound = "R: Rule")]
pub struct Id<R: Rule>(String, PhantomData<R>);

impl<R: Rule> Id<R> {
    /// Checks and wraps `value`.
    ///
    /// # Errors
    /// [`IdError`] when `value` breaks the rule of its kind.
    pub fn new(value: impl Into<String>) -> Result<Self, IdError> {
        let value = value.into();
        if R::accepts(&value) {
            Ok(Self(value, PhantomData))
        } else {
            Err(IdError {
                kind: R::KIND,
                rule: R::RULE,
                value: shown(&value),
            })
        }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps text that is known to follow the rule.
    fn known(value: String) -> Self {
        debug_assert!(R::accepts(&value), "{value}");
        Self(value, PhantomData)
    }
}

impl<R: Rule> fmt::Display for Id<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<R: Rule> FromStr for Id<R> {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl<R: Rule> TryFrom<String> for Id<R> {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl<R: Rule> From<Id<R>> for String {
    fn from(id: Id<R>) -> Self {
        id.0
    }
}

/// A Kubernetes namespace: a DNS label of at most 63 bytes.
pub type Namespace = Id<NamespaceRule>;

/// The rule of [`Namespace`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceRule {}

impl Rule for NamespaceRule {
    const KIND: &'static str = "namespace";
    const RULE: &'static str =
        "use 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit";
    fn accepts(text: &str) -> bool {
        is_dns_label(text)
    }
}

/// The name of a Workflow object: an RFC 1123 subdomain of at most 253 bytes. May hold dots.
pub type WorkflowName = Id<WorkflowNameRule>;

/// The rule of [`WorkflowName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkflowNameRule {}

impl Rule for WorkflowNameRule {
    const KIND: &'static str = "workflow name";
    const RULE: &'static str = "use 1 to 253 lower-case letters, digits, `-` and `.`, each part between dots beginning and ending with a letter or digit";
    fn accepts(text: &str) -> bool {
        text.len() <= 253 && text.split('.').all(is_dns_label)
    }
}

/// The name of a step: `[A-Za-z0-9_-]+`, at most 128 bytes.
pub type StepName = Id<StepNameRule>;

/// The rule of [`StepName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepNameRule {}

impl Rule for StepNameRule {
    const KIND: &'static str = "step name";
    const RULE: &'static str = "use 1 to 128 letters, digits, `_` and `-`";
    fn accepts(text: &str) -> bool {
        is_word(text, 128)
    }
}

/// The name of an alert source: `[A-Za-z0-9_-]+`, at most 128 bytes.
pub type SourceName = Id<SourceNameRule>;

/// The rule of [`SourceName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceNameRule {}

impl Rule for SourceNameRule {
    const KIND: &'static str = "source name";
    const RULE: &'static str = "use 1 to 128 letters, digits, `_` and `-`";
    fn accepts(text: &str) -> bool {
        is_word(text, 128)
    }
}

/// The type of a task, and so the queue it waits in: a DNS label. `note` and `cancel` are lanes of the
/// scheduler and cannot be task types.
pub type TaskType = Id<TaskTypeRule>;

/// The rule of [`TaskType`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskTypeRule {}

impl Rule for TaskTypeRule {
    const KIND: &'static str = "step type";
    const RULE: &'static str = "use a DNS label other than `note` and `cancel`";
    fn accepts(text: &str) -> bool {
        is_dns_label(text) && text != "note" && text != "cancel"
    }
}

/// Identifies one timer of one execution: `[A-Za-z0-9_-]+`, at most 192 bytes.
pub type TimerId = Id<TimerIdRule>;

/// The rule of [`TimerId`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerIdRule {}

impl Rule for TimerIdRule {
    const KIND: &'static str = "timer id";
    const RULE: &'static str = "use 1 to 192 letters, digits, `_` and `-`";
    fn accepts(text: &str) -> bool {
        is_word(text, 192)
    }
}

/// The identity of an alert (source, fingerprint, start, status) as a hash: 1 to 64 hexadecimal digits.
pub type AlertId = Id<AlertIdRule>;

/// The rule of [`AlertId`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertIdRule {}

impl Rule for AlertIdRule {
    const KIND: &'static str = "alert id";
    const RULE: &'static str = "use 1 to 64 lower-case hexadecimal digits";
    fn accepts(text: &str) -> bool {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::known("default".to_owned())
    }
}

impl TaskType {
    /// Commands in a shell.
    pub fn cli() -> Self {
        Self::known("cli".to_owned())
    }

    /// An LLM with tools.
    pub fn agent() -> Self {
        Self::known("agent".to_owned())
    }
}

impl TimerId {
    /// The timer that ends `attempt` of `step` when its runner did not. It names the deadline too: a timer
    /// fires as a write-once fact, so a task that was handed out anew needs a timer of its own.
    pub fn step_deadline(step: &StepName, attempt: Attempt, deadline: Timestamp) -> Self {
        Self::known(format!("{step}-{attempt}-{}", deadline.as_millis()))
    }

    /// Step, attempt and deadline of a timer made by [`TimerId::step_deadline`]; `None` for any other.
    pub fn as_step_deadline(&self) -> Option<(StepName, Attempt, Timestamp)> {
        let (rest, deadline_ms) = self.0.rsplit_once('-')?;
        let (step, attempt) = rest.rsplit_once('-')?;
        Some((
            StepName::new(step).ok()?,
            attempt.parse().ok()?,
            Timestamp::from_millis(deadline_ms.parse().ok()?),
        ))
    }
}

/// Identifies one run of a workflow. UUIDv7 where nothing need be derived, UUIDv5 where the same cause
/// must lead to the same execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionId(Uuid);

/// The UUIDv5 name space under which execution ids are derived. Never change it: ids of executions that
/// already ran would be derived anew.
const DERIVED: Uuid = Uuid::from_u128(0x6a1f_0d5e_93c1_5b7a_8d02_4f0b_2c66_e9a3);

impl ExecutionId {
    /// Wraps an id that the caller made.
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The id that `parts` always lead to. Parts are length-prefixed, so that `["ab", "c"]` and
    /// `["a", "bc"]` differ.
    pub fn derive(parts: &[&str]) -> Self {
        let mut name = Vec::new();
        for part in parts {
            name.extend_from_slice(&(part.len() as u64).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&DERIVED, &name))
    }

    /// The UUID itself.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}

impl FromStr for ExecutionId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // Only the hyphenated lower-case form: it is a subject token and a key, so one id has one spelling.
        match Uuid::try_parse(text) {
            Ok(id) if id.as_hyphenated().to_string() == text => Ok(Self(id)),
            _ => Err(IdError {
                kind: "execution id",
                rule: "use a UUID such as 01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f",
                value: shown(text),
            }),
        }
    }
}

/// Counts the attempts at one step, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Attempt(u32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(1);

    /// The number, from 1.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Attempt {
    type Error = IdError;
    fn try_from(number: u32) -> Result<Self, IdError> {
        if number == 0 {
            return Err(IdError {
                kind: "attempt",
                rule: "attempts count from 1",
                value: "0".to_owned(),
            });
        }
        Ok(Self(number))
    }
}

impl From<Attempt> for u32 {
    fn from(attempt: Attempt) -> Self {
        attempt.0
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Attempt {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let number = text
            .parse::<u32>()
            .ok()
            .filter(|number| number.to_string() == text)
            .unwrap_or(0);
        Self::try_from(number).map_err(|error| IdError {
            value: shown(text),
            ..error
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_accept_and_refuse() {
        for good in ["default", "a", "kube-system", &"x".repeat(63)] {
            assert!(Namespace::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a*", "a b", ">", &"x".repeat(64)] {
            assert!(Namespace::new(bad).is_err(), "{bad}");
        }
        assert!(WorkflowName::new("a.b-c.d").is_ok());
        assert!(WorkflowName::new("a..b").is_err());
        assert!(StepName::new("check_api-Gateway9").is_ok());
        assert!(StepName::new("ünï").is_err());
        assert!(TaskType::new("note").is_err());
        assert!(TaskType::new("cancel").is_err());
        assert!(AlertId::new("0af").is_ok() && AlertId::new("0AF").is_err());
    }

    #[test]
    fn execution_ids_have_one_spelling() {
        let id = ExecutionId::derive(&["default", "web"]);
        assert_eq!(id.to_string().parse::<ExecutionId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<ExecutionId>().is_err());
        assert!(id.as_uuid().simple().to_string().parse::<ExecutionId>().is_err());
    }

    #[test]
    fn derived_ids_are_stable_and_keep_parts_apart() {
        assert_eq!(
            ExecutionId::derive(&["a", "b"]).to_string(),
            ExecutionId::derive(&["a", "b"]).to_string()
        );
        assert_ne!(
            ExecutionId::derive(&["ab", "c"]),
            ExecutionId::derive(&["a", "bc"])
        );
    }

    #[test]
    fn step_deadline_timers_name_their_step_and_attempt() {
        for step in ["a", "a-1", "check_2-x-3"] {
            let step = StepName::new(step).unwrap();
            let attempt = Attempt::try_from(7).unwrap();
            let deadline = Timestamp::from_millis(1_795_445_258_123);
            let timer = TimerId::step_deadline(&step, attempt, deadline);
            assert_eq!(timer.as_step_deadline(), Some((step, attempt, deadline)));
        }
        assert_eq!(TimerId::new("plain").unwrap().as_step_deadline(), None);
    }

    #[test]
    fn attempts_count_from_one_and_have_one_spelling() {
        assert!("1".parse::<Attempt>().is_ok());
        for bad in ["0", "01", "+1", "", "4294967296"] {
            assert!(bad.parse::<Attempt>().is_err(), "{bad}");
        }
    }
}
