//! Whether an alert starts a workflow: the trigger's source and its filters.
//!
//! Invariants:
//! - All filters must match; a label that is not there matches nothing, not even the empty string.
//! - `~` begins a regular expression for the whole value.
//! - A refusal names the filter, for the alert's recorded disposition.

use regex::Regex;
use serde_json::{Map, Value};

use crate::condition::anchored;
use crate::manifest::Trigger;

/// A trigger whose filters are compiled.
#[derive(Debug, Clone)]
pub struct Matcher {
    source: String,
    filters: Vec<(String, Filter)>,
}

#[derive(Debug, Clone)]
enum Filter {
    Exact(String),
    Pattern(Regex),
}

impl Matcher {
    /// Compiles a trigger's filters.
    ///
    /// # Errors
    /// Where a regular expression does not compile; of an admitted trigger all do.
    pub fn new(trigger: &Trigger) -> Result<Matcher, String> {
        let filters = trigger
            .filters
            .iter()
            .map(|(label, expected)| Ok((label.clone(), parse(expected)?)))
            .collect::<Result<_, String>>()?;
        Ok(Matcher {
            source: trigger.source.clone(),
            filters,
        })
    }

    /// Whether alerts of `source` are looked at at all.
    #[must_use]
    pub fn wants_source(&self, source: &str) -> bool {
        self.source == source
    }

    /// Whether an alert of `source` with these labels starts the workflow.
    ///
    /// # Errors
    /// Why it does not, as a sentence that names the filter.
    pub fn matches(&self, source: &str, labels: &Map<String, Value>) -> Result<(), String> {
        if !self.wants_source(source) {
            return Err(format!("the trigger's source is {}, not {source}", self.source));
        }
        for (label, filter) in &self.filters {
            let Some(value) = labels.get(label) else {
                return Err(format!(
                    "the filter {label}={} found no such label",
                    filter.shown()
                ));
            };
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let does_match = match filter {
                Filter::Exact(expected) => *expected == text,
                Filter::Pattern(regex) => regex.is_match(&text),
            };
            if !does_match {
                let found: String = text.chars().take(80).collect();
                return Err(format!(
                    "the filter {label}={} does not match \"{found}\"",
                    filter.shown()
                ));
            }
        }
        Ok(())
    }
}

impl Filter {
    fn shown(&self) -> String {
        match self {
            Filter::Exact(text) => format!("\"{text}\""),
            Filter::Pattern(regex) => {
                let whole = regex.as_str();
                let inner = whole
                    .strip_prefix(r"\A(?:")
                    .and_then(|rest| rest.strip_suffix(r")\z"));
                format!("\"~{}\"", inner.unwrap_or(whole))
            }
        }
    }
}

fn parse(expected: &str) -> Result<Filter, String> {
    match expected.strip_prefix('~') {
        Some(pattern) => anchored(pattern)
            .map(Filter::Pattern)
            .map_err(|reason| format!("\"{pattern}\" is not a regular expression: {reason}")),
        None => Ok(Filter::Exact(expected.to_owned())),
    }
}

/// Whether a filter's value can be read.
///
/// # Errors
/// What is wrong with its regular expression.
pub fn check(expected: &str) -> Result<(), String> {
    parse(expected).map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_filters_must_match_and_the_failing_one_is_named() {
        let labels = json!({"alertname": "PodCrashLooping", "severity": "critical", "n": 5, "empty": ""});
        let labels = labels.as_object().unwrap();
        let check = |source: &str, filters: &[(&str, &str)]| {
            let trigger = Trigger {
                source: "alertmanager".into(),
                filters: filters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            };
            match Matcher::new(&trigger).map(|matcher| matcher.matches(source, labels)) {
                Ok(Ok(())) => "starts".to_owned(),
                Ok(Err(reason)) => format!("filtered: {reason}"),
                Err(error) => format!("error: {error}"),
            }
        };
        let lines = [
            check("alertmanager", &[]),
            check(
                "alertmanager",
                &[("alertname", "PodCrashLooping"), ("severity", "~crit.*|warning")],
            ),
            check("alertmanager", &[("n", "5"), ("empty", "")]),
            check("webhook", &[]),
            check("alertmanager", &[("severity", "warning")]),
            check("alertmanager", &[("alertname", "~Pod")]),
            check("alertmanager", &[("alertname", "~Pod.*"), ("team", "")]),
            check("alertmanager", &[("alertname", "~Pod(")]),
        ];
        expect![[r#"
            starts
            starts
            starts
            filtered: the trigger's source is alertmanager, not webhook
            filtered: the filter severity="warning" does not match "critical"
            filtered: the filter alertname="~Pod" does not match "PodCrashLooping"
            filtered: the filter team="" found no such label
            error: "Pod(" is not a regular expression: unclosed group"#]]
        .assert_eq(&lines.join("\n"));
    }
}
