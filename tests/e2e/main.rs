//! End to end: the real binaries as separate processes against a real nats-server and a real database, and the
//! tidiness of the repository. One test binary, so that it is linked once.
#![allow(clippy::unwrap_used)]

mod compose;
mod examples;
mod kubernetes;
mod product;
mod separate;
mod tidy;
