//! How a command ends: the exit codes, and the error that leads to one.

use std::process::ExitCode;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It was done; an execution that was followed succeeded.
    Succeeded,
    /// It was not done; an execution that was followed failed or was cancelled.
    Failed,
    /// The command line, the manifest or the input is wrong.
    Misuse,
    /// No server answers, or it cannot work just now.
    NoServer,
    /// Interrupted from the keyboard: whatever was watched goes on.
    Detached,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Succeeded => 0,
            Code::Failed => 1,
            Code::Misuse => 2,
            Code::NoServer => 3,
            // As shells have it for an interrupt.
            Code::Detached => 130,
        })
    }
}

/// Why a command was not done: in words, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    /// What is wrong and what to do.
    pub message: String,
}

impl Failure {
    /// It was not done.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            code: Code::Failed,
            message: message.into(),
        }
    }

    /// It was asked for in a wrong way.
    pub fn misuse(message: impl Into<String>) -> Self {
        Self {
            code: Code::Misuse,
            message: message.into(),
        }
    }

    /// There is no server to ask.
    pub fn no_server(message: impl Into<String>) -> Self {
        Self {
            code: Code::NoServer,
            message: message.into(),
        }
    }
}

impl From<service::Fatal> for Failure {
    fn from(error: service::Fatal) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<service::config::ConfigErrors> for Failure {
    fn from(errors: service::config::ConfigErrors) -> Self {
        Self::misuse(errors.to_string())
    }
}
