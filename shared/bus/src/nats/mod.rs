//! The log on a real server.

pub(crate) mod api;
mod dead;
pub(crate) mod follow;
pub(crate) mod inbox;
pub(crate) mod log;
pub(crate) mod pull;
pub(crate) mod read;
pub(crate) mod trials;

pub use inbox::NatsInbox;
pub use log::NatsLog;
