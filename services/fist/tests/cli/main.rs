//! The real command on a real `fist up`: what a person types, reads, and gets as an exit code.
#![allow(clippy::unwrap_used)]

mod agents;
mod commands;
mod documented;
mod evaluation;
mod following;
mod harness;
mod lifecycle;
mod pods;
mod reading;
mod secrets;
mod together;
mod tracing;
