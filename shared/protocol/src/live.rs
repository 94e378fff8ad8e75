//! Live progress on `fist.live.<namespace>.<execution>.<step>.<attempt>`: lossy by design, never a truth.

use serde::{Deserialize, Serialize};

/// A piece of progress that a person who follows sees at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Live {
    /// A line that a command printed, without its newline; not over 8 KiB.
    Line {
        /// `stdout` or `stderr`.
        stream: Stream,
        /// The line, what is not UTF-8 replaced.
        text: String,
    },
    /// An agent is about to call a tool.
    ToolCall {
        /// The tool.
        tool: String,
        /// Its arguments, shortened to one line.
        arguments: String,
    },
    /// An agent said something between its calls.
    Says {
        /// The text, shortened.
        text: String,
    },
}

/// Which of a command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The names say it.
pub enum Stream {
    Stdout,
    Stderr,
}
