//! The Kubernetes API as our services use it: how they reach it, and the names by which our objects are known.
//!
//! Invariants: this crate knows neither NATS nor how a workflow is decided; a name that more than one crate asks the
//! API server for is spelled here.
#![warn(missing_docs)]

mod connect;
mod endpoint;
pub mod names;
mod reason;
pub mod testing;

pub use connect::{Cluster, ConnectError, connect};
pub use endpoint::Endpoint;
pub use reason::reason;
