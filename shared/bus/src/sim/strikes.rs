//! Which faults strike: drawn from the seed, or taken from a list, so that a history can be run again with fewer.
//!
//! Invariant: whether one fault strikes depends on the seed, its kind and how often this kind was asked about, and on
//! nothing else; to leave one out changes no other by itself.

use std::{collections::BTreeSet, fmt};

use protocol::Timestamp;

use super::Faults;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// [`Faults::publish_lost`].
    PublishLost,
    /// [`Faults::publish_ack_lost`].
    PublishAckLost,
    /// [`Faults::contended`].
    Contended,
    /// [`Faults::settle_lost`].
    SettleLost,
    /// [`Faults::duplicated`].
    Duplicated,
    /// [`Faults::unavailable`].
    Unavailable,
    /// [`Faults::stale_reads`].
    StaleRead,
}

impl FaultKind {
    /// How many there are.
    const COUNT: usize = 7;

    fn per_mille(self, faults: &Faults) -> u16 {
        match self {
            Self::PublishLost => faults.publish_lost,
            Self::PublishAckLost => faults.publish_ack_lost,
            Self::Contended => faults.contended,
            Self::SettleLost => faults.settle_lost,
            Self::Duplicated => faults.duplicated,
            Self::Unavailable => faults.unavailable,
            Self::StaleRead => faults.stale_reads,
        }
    }
}

/// One fault: the `nth` occasion, from 0, for one of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strike {
    /// What goes wrong.
    pub kind: FaultKind,
    /// On which occasion.
    pub nth: u64,
}

/// A fault that struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Struck {
    /// Which.
    pub strike: Strike,
    /// When, in virtual time.
    pub at: Timestamp,
    /// Whom and what it hit.
    pub hit: String,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} #{} hits {}", self.strike.kind, self.strike.nth, self.hit)
    }
}

/// Draws faults, and remembers those that struck.
#[derive(Debug)]
pub(super) struct Strikes {
    seed: u64,
    /// Only these, whatever [`Faults`] say.
    only: Option<BTreeSet<Strike>>,
    occasions: [u64; FaultKind::COUNT],
    pub(super) struck: Vec<Struck>,
}

impl Strikes {
    pub(super) fn new(seed: u64, only: Option<BTreeSet<Strike>>) -> Self {
        Self {
            seed,
            only,
            occasions: [0; FaultKind::COUNT],
            struck: Vec::new(),
        }
    }

    /// Whether a fault of this kind strikes now.
    pub(super) fn draw(
        &mut self,
        kind: FaultKind,
        faults: &Faults,
        at: Timestamp,
        hit: impl FnOnce() -> String,
    ) -> bool {
        let occasions = &mut self.occasions[kind as usize];
        let strike = Strike {
            kind,
            nth: *occasions,
        };
        *occasions += 1;
        let strikes = match &self.only {
            Some(only) => only.contains(&strike),
            None => {
                let place = (strike.nth << 3 | kind as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
                super::Rng::new(self.seed ^ place).chance(kind.per_mille(faults))
            }
        };
        if strikes {
            let hit = hit();
            self.struck.push(Struck { strike, at, hit });
        }
        strikes
    }
}
