//! agent-runner: performs agent tasks. It lets a model investigate with read-only tools, and gives back findings
//! that are checked against what the tools returned.
//!
//! Invariants:
//! - Nothing that a model says acts: tools only read, and a proposed command is data.
//! - What the log holds is what the model saw: redacted first, recorded second, used third.

pub mod llm;
pub mod redact;
pub mod tools;
