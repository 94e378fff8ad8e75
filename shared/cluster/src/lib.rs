//! The Kubernetes API as our services use it: how they reach it, and the names by which our objects are known.
//!
//! Invariants: this crate knows neither NATS nor how a workflow is decided; a label, annotation, group or
//! finalizer of ours is spelled here and nowhere else.
#![warn(missing_docs)]

mod connect;
mod endpoint;
pub mod names;
pub mod testing;

pub use connect::{Cluster, ConnectError, connect};
pub use endpoint::Endpoint;
