//! The manifest: what a person writes in a Workflow, as types, and the one parser and validator
//! that turn text into them.
//!
//! Invariants:
//! - A [`Workflow`] that came out of [`crate::admit`] is valid as a whole; nothing downstream
//!   checks it again.
//! - [`Spec`] survives a trip through JSON exactly: it travels in the start fact, and an execution
//!   is decided from that copy alone.
//! - snake_case is what is written; camelCase is read too.

mod fields;
mod types;

pub use fields::{FieldDoc, fields, schema};
pub use types::{
    API_VERSION, AgentStep, ApiVersion, CliStep, ConditionalStep, FixMode, KIND, Kind, LlmConfig, Metadata,
    OnFalse, OnTimeout, Provider, RERUN_ANNOTATION, Resources, Runtime, STEP_TIMEOUT_DEFAULT_MS,
    STEP_TIMEOUT_MINUTES_MAX, STEP_TIMEOUT_SECONDS_MAX, Spec, Step, StepForm, StepKind, StepType, Tool,
    Trigger, Workflow,
};
