//! What a handler's failure means for its message: the one vocabulary between services and the ack policy.
//!
//! Invariant: a step that failed is not a [`Failure`]; it is a fact. This is for what kept the *service*
//! from doing its work.

use std::time::Duration;

/// Why a message was not handled, by what happens to it next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Something else must recover first: the message comes again, not before `after`.
    #[error("{reason}; trying again in {} ms", after.as_millis())]
    Retry {
        /// How long to leave it alone.
        after: Duration,
        /// What is wrong just now.
        reason: String,
    },
    /// It can never be handled: it becomes a dead letter.
    #[error("{reason}")]
    Reject {
        /// What is wrong with it.
        reason: String,
    },
    /// The service cannot go on; the message is left to others.
    #[error("{reason}")]
    Fatal {
        /// What is wrong, and the remedy.
        reason: String,
    },
}

impl Failure {
    /// How long a message rests where the cause gives no better time.
    pub const RETRY_AFTER: Duration = Duration::from_secs(1);

    /// Again after [`Failure::RETRY_AFTER`].
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry {
            after: Self::RETRY_AFTER,
            reason: reason.into(),
        }
    }

    /// Never again.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject {
            reason: reason.into(),
        }
    }

    /// The service stops.
    pub fn fatal(reason: impl Into<String>) -> Self {
        Self::Fatal {
            reason: reason.into(),
        }
    }
}
