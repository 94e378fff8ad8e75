//! Ingest as a whole, on a real nats-server: what goes in by HTTP and NATS, and what the log holds then.
#![allow(clippy::unwrap_used)]

mod alertmanager;
mod api;
mod contract;
mod intake;
mod kubernetes;
mod security;
mod webhooks;
mod world;
