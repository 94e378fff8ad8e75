//! The only database door: projects the log into SQL, and answers `fist.query.read`.
//!
//! Invariants:
//! - The database holds no truth: every row can be built again from the log (`--rebuild`).
//! - A message is acked after its rows are committed, never before.
#![warn(missing_docs)]

pub mod reading;
pub mod record;
pub mod store;
pub mod testing;

#[cfg(test)]
mod samples;
