//! Conditions: `<path> <operator> <literal>`, joined by `and`, `or`, `not` and parentheses.
//!
//! Invariants:
//! - Parsed by our own parser, at admission; nothing of a condition ever reaches the template
//!   engine or a shell.
//! - The left side is a path, the right side a literal; there is no other shape, so what an alert
//!   or a model wrote can only ever be compared.
//! - Three-valued: a comparison whose path is missing is unknown, a condition that is unknown is
//!   not met, and its message says why.
//! - Length, nesting and the size of what is reported are bounded.

mod evaluate;
mod lexer;
mod never;
mod parse;

use std::fmt;

use regex::Regex;
use serde_json::Value;

pub use evaluate::{Evaluation, Truth};
pub(crate) use never::{Possible, Reading};

/// A condition may be so long.
pub const CONDITION_BYTES_MAX: usize = 8 * 1024;
/// Parentheses and `not` nest so deep.
pub const CONDITION_DEPTH_MAX: usize = 32;
/// A compiled regular expression may take so much memory.
pub const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// The operators, as they are written.
pub const OPERATORS: [&str; 9] = ["==", "!=", "<", "<=", ">", ">=", "in", "contains", "matches"];

/// What a path may start with.
pub const ROOTS: [&str; 5] = ["source", "alert", "steps", "env", "execution"];

/// A parsed condition.
#[derive(Debug, Clone)]
pub struct Condition {
    source: String,
    root: Expr,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character {})", offset + 1)]
pub struct ConditionError {
    /// Where, in characters from the start.
    pub offset: usize,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// A path on the left side of a comparison: `steps.check-api.output.summary`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    segments: Vec<String>,
}

impl Path {
    /// Its parts, the root first.
    #[must_use]
    pub fn segments(&self) -> &[String] {
        &self.segments
    }

    /// The step that it reads, if it reads one.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [root, step, ..] if root == "steps" => Some(step),
            _ => None,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            let is_plain = !segment.is_empty() && segment.chars().all(lexer::is_path_char);
            match (index, is_plain) {
                (0, _) => f.write_str(segment)?,
                (_, true) => write!(f, ".{segment}")?,
                (_, false) => write!(f, "[{}]", Value::from(segment.as_str()))?,
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Expr {
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Compare(Comparison),
}

#[derive(Debug, Clone)]
struct Comparison {
    path: Path,
    test: Test,
    /// As it was written, for messages.
    text: String,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(Value),
    NotEqual(Value),
    Less(Value),
    LessOrEqual(Value),
    Greater(Value),
    GreaterOrEqual(Value),
    In(Vec<Value>),
    Contains(Value),
    Matches(Regex),
}

impl Condition {
    /// Reads a condition. Steps are not looked up here: see [`Condition::references`].
    ///
    /// # Errors
    /// Where the text is no condition: with the place, and what to write instead.
    pub fn parse(source: &str) -> Result<Condition, ConditionError> {
        parse::parse(source).map(|root| Condition {
            source: source.trim().to_owned(),
            root,
        })
    }

    /// The condition as it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Every path that it reads, in the order in which they stand.
    #[must_use]
    pub fn references(&self) -> Vec<&Path> {
        self.comparisons().into_iter().map(|c| &c.path).collect()
    }

    /// Compares, against the context that [`crate::context::build`] makes.
    #[must_use]
    pub fn evaluate(&self, context: &Value) -> Evaluation {
        evaluate::evaluate(self, context)
    }

    /// What is legal here but surely not meant, as sentences.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for comparison in self.comparisons() {
            let is_empty = |value: &Value| value.as_str() == Some("");
            let compares_with_nothing = match &comparison.test {
                Test::Equal(v)
                | Test::NotEqual(v)
                | Test::Less(v)
                | Test::LessOrEqual(v)
                | Test::Greater(v)
                | Test::GreaterOrEqual(v)
                | Test::Contains(v) => is_empty(v),
                Test::In(values) => values.iter().any(is_empty),
                Test::Matches(_) => false,
            };
            if compares_with_nothing {
                found.push(format!(
                    "`{}` compares with an empty string; a value that is not there is unknown, \
                     and never equal to it",
                    comparison.text
                ));
            }
        }
        found
    }

    /// Why it can never be met, given what is known of the values that it reads; `None` where it can.
    pub(crate) fn never_met_since(&self, possible: &dyn Fn(&Path) -> Possible) -> Option<String> {
        (never::reading(&self.root, possible) == Reading::NeverTrue)
            .then(|| never::why(&self.root, possible))
            .flatten()
    }

    fn comparisons(&self) -> Vec<&Comparison> {
        fn walk<'e>(expr: &'e Expr, found: &mut Vec<&'e Comparison>) {
            match expr {
                Expr::Or(parts) | Expr::And(parts) => {
                    for part in parts {
                        walk(part, found);
                    }
                }
                Expr::Not(inner) => walk(inner, found),
                Expr::Compare(comparison) => found.push(comparison),
            }
        }
        let mut found = Vec::new();
        walk(&self.root, &mut found);
        found
    }
}

/// A regular expression that must match the whole text, bounded in memory.
///
/// # Errors
/// Where it does not compile: with the reason.
pub fn anchored(pattern: &str) -> Result<Regex, String> {
    let build = |pattern: &str| {
        regex::RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES_MAX)
            .build()
            .map_err(|error| one_line(&error.to_string()))
    };
    // By itself first: `a)|(b` must not become valid by what is put round it.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

/// The regex crate draws its errors over several lines; the last says what is wrong.
fn one_line(error: &str) -> String {
    let last = error.lines().last().unwrap_or(error).trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests;
