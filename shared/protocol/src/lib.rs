//! The wire: every identifier, subject and message body that crosses a process boundary.
//!
//! Invariants:
//! - This crate does no I/O and reads no clock.
//! - Subjects are built and parsed in [`subjects`] and nowhere else.
//! - What was once written must decode for ever: `tests/golden/` holds one file per message kind and
//!   version, and a change that cannot read them is a new version, not an edit.
#![warn(missing_docs)]

pub mod alerts;
pub mod budget;
pub mod dead;
pub mod envelope;
pub mod facts;
pub mod ids;
pub mod json;
pub mod lane;
pub mod live;
pub mod output;
pub mod query;
pub mod report;
pub mod subjects;
pub mod time;
pub mod trace;
pub mod turns;
pub mod views;

pub use alerts::{Alert, AlertStatus, Disposition, DispositionKind};
pub use budget::{BudgetDay, Day};
pub use dead::DeadLetter;
pub use envelope::{DecodeError, decode, encode};
pub use facts::{Begun, Cancel, Dead, Done, Fact, Input, Outcome, Start, StepError, StepFailure, TimerFired};
pub use ids::{
    AlertId, Attempt, ExecutionId, IdError, Namespace, SourceName, StepName, TaskType, TimerId, WorkflowName,
};
pub use json::Json;
pub use lane::{Append, Cause, End, EndStatus, LaneAction, StepRecord, StepStatus, Task};
pub use output::{BlobRef, Body};
pub use subjects::Subject;
pub use time::Timestamp;
pub use trace::{SpanContext, SpanId, TraceId};
