//! The log, by NATS JetStream: connecting, the table of streams and consumers, reading and appending,
//! consuming with the ack policy, what runners do with tasks, large bodies, and a simulated broker with the same behaviour.
//!
//! Invariants:
//! - async-nats appears behind this crate's types only, except for core NATS requests
//!   ([`Connection::client`]).
//! - What [`Log`] promises, [`NatsLog`] and [`sim::SimLog`] both keep: one table of conformance cases runs on
//!   both.
#![warn(missing_docs)]

pub mod attach;
pub mod blobs;
pub mod budgets;
pub mod connect;
pub mod consume;
pub mod definitions;
pub mod failure;
pub mod inbox;
mod jitter;
pub mod log;
mod nats;
pub mod permissions;
pub mod runner;
pub mod server;
mod setup;
pub mod sim;
pub mod started;
pub mod testing;
pub mod topology;

pub use attach::{Attached, attach};
pub use blobs::Blobs;
pub use budgets::{Budgets, DayEntry};
pub use connect::{ConnectError, Connection, Settings};
pub use consume::{Consume, Handler, consume};
pub use definitions::{Change, Definition, Definitions, Stored};
pub use failure::Failure;
pub use inbox::{Delivery, Inbox};
pub use log::{
    Appended, ConsumerState, Follow, Log, LogError, LogMessage, Position, StoredDeadLetter, StreamState,
    Written,
};
pub use nats::{NatsInbox, NatsLog};
pub use started::{Started, StartedEntry};
pub use topology::{Durable, Sizes, StreamId, TopologyError};
