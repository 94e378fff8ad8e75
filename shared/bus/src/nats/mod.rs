//! The log on a real server.

pub(crate) mod inbox;
pub(crate) mod trials;
