//! The error that ends a process, in words for the person who started it.

use std::error::Error;
use std::fmt;

use crate::config::ConfigErrors;

/// Why a service cannot go on: what was tried, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    message: String,
}

impl Fatal {
    /// A reason that says everything, the remedy included.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    /// What failed, and the error with all that caused it.
    pub fn because(what: impl fmt::Display, error: impl Error) -> Self {
        let mut message = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors already print what caused them.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self { message }
    }
}

impl From<ConfigErrors> for Fatal {
    fn from(errors: ConfigErrors) -> Self {
        Self::new(errors.to_string())
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Fatal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn it_says_what_failed_and_every_cause_once() {
        let cause = "x".parse::<u8>().expect_err("x is no number");
        assert_eq!(
            Fatal::because("cannot count", Outer(cause)).to_string(),
            "cannot count: outer: invalid digit found in string"
        );
    }
}
