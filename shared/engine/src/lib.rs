//! The pure core: what a workflow means and what is to be done next.
//!
//! Invariants: no clock, no randomness, no I/O, no async runtime. Time, ids and outcomes arrive
//! in facts; what is to happen leaves as commands.

pub mod condition;
pub mod manifest;
#[allow(dead_code)] // Used by admission.
mod nearest;
pub(crate) mod shell;
pub mod template;
