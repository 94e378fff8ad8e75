//! Runs the steps of type `cli`: takes tasks from `fist.cmd.cli.>`, runs each command in its own process
//! group or pod, and writes what came of it as a `done` fact.
//!
//! Invariants:
//! - A task is acknowledged only after its fact is in the log.
//! - One attempt runs once at a time, and a command that passed the fix gate runs at most once for ever.

pub mod capture;
pub mod clock;
pub mod executor;
pub mod live;
