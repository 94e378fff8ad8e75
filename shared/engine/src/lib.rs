//! The pure core: what a workflow means and what is to be done next.
//!
//! Invariants: no clock, no randomness, no I/O, no async runtime. Time, ids and outcomes arrive
//! in facts; what is to happen leaves as commands.

pub mod admit;
mod advance;
pub mod condition;
pub mod context;
pub mod decide;
pub mod definition;
pub mod filters;
pub mod fixgate;
pub mod manifest;
mod nearest;
mod origin;
pub mod problem;
pub mod program;
mod scope;
pub(crate) mod shell;
pub mod state;
mod steps;
pub mod template;

pub use admit::{Admitted, Format, Policy, Role, admit, admit_all, admit_value};
pub use decide::{Decision, Illegal, Nothing, Observed, Planned, Rules, decide, instead_of};
pub use definition::Definition;
pub use origin::Origin;
pub use problem::{Problem, Severity, listed};
pub use program::Program;
pub use state::{Logged, Outstanding, Phase, ReplayError, State, StepState, outstanding};
