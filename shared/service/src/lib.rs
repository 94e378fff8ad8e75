//! What every service's `main.rs` needs, and no business of any one service:
//! configuration, logs, metrics, health, HTTP listening, the end of a process.
//!
//! Invariant: this crate knows neither NATS nor workflows.
#![warn(missing_docs)]

pub mod config;
