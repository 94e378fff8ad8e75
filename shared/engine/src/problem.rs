//! Problems of a manifest: what is wrong or surely not meant, where, and what to write instead.
//!
//! Invariant: a problem has one text, its `Display`; file, API and command line all show that.

use std::fmt;

use serde::{Deserialize, Serialize};

/// At most so many problems are reported of one manifest; the last says how many were left out.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong with a manifest, or surely not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Whether the manifest is refused for it.
    pub severity: Severity,
    /// The field, such as `spec.steps[2].command`; empty where the text as a whole is meant.
    pub field: String,
    /// The line of the text, from 1, where there was a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// What is wrong, and what to do about it.
    pub message: String,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The manifest is refused.
    Error,
    /// It is accepted; but this was surely not meant.
    Warning,
}

impl Problem {
    /// An error, whose line is not known yet.
    #[must_use]
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Error,
            field: field.into(),
            line: None,
            message: message.into(),
        }
    }

    /// A warning, whose line is not known yet.
    #[must_use]
    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Warning,
            ..Problem::error(field, message)
        }
    }

    /// Whether the manifest is refused for it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Several problems as a text, one a line.
#[must_use]
pub fn listed(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
