//! How one client of the simulated broker fares: killed, frozen, cut off, with a clock of its own.

use std::time::Duration;

use protocol::Timestamp;
use tokio::time::Instant;

/// How one client fares.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) is_crashed: bool,
    /// By the broker's clock.
    pub(super) connected_at: Timestamp,
    /// Points passed: before and after each of its requests' effects.
    pub(super) points: u64,
    /// The point at which it crashes.
    pub(super) crash_at: Option<u64>,
    /// Until when it does nothing, as under SIGSTOP.
    pub(super) frozen_until: Option<Instant>,
    /// Until when it is cut off.
    pub(super) cut: Option<(Instant, Cut)>,
    /// How far its clock is from the broker's.
    pub(super) clock_ms: i64,
}

/// How a client is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing that it sends arrives.
    Requests,
    /// What it sends takes effect, and no answer comes back.
    Answers,
}

/// What a client may do at a point.
pub(super) enum Pass {
    Dead,
    After(Duration),
}

impl Client {
    /// Passes one point.
    pub(super) fn pass(&mut self, now: Instant, lag: Duration) -> Pass {
        if !self.is_crashed {
            self.is_crashed = self.crash_at == Some(self.points);
            self.points += 1;
        }
        if self.is_crashed {
            return Pass::Dead;
        }
        let frozen = self
            .frozen_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        Pass::After(lag.max(frozen))
    }

    pub(super) fn cut_at(&self, now: Instant) -> Option<Cut> {
        self.cut.filter(|(until, _)| now < *until).map(|(_, cut)| cut)
    }

    /// Until when no message reaches it.
    pub(super) fn deaf_until(&self, now: Instant) -> Option<Instant> {
        let cut = self.cut.map(|(until, _)| until);
        cut.max(self.frozen_until).filter(|until| now < *until)
    }
}
