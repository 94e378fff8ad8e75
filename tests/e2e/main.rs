//! End to end: the real binaries as separate processes against a real nats-server and a real database, and the
//! tidiness of the repository. One test binary, so that it is linked once.
#![allow(clippy::unwrap_used)]

mod chaos;
mod chart;
mod compose;
mod examples;
mod install;
mod kubernetes;
#[path = "../../services/agent-runner/tests/mock/mod.rs"]
mod mock;
mod outages;
mod product;
mod recovery;
mod rights;
mod separate;
mod tidy;
