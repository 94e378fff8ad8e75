//! What the agents of one namespace use on one day, as the bucket of budgets holds it; and the rules by which it
//! changes.
//!
//! Invariants:
//! - A turn counts once, however often it is settled: the highest settled turn of every attempt is kept for as long
//!   as its task may come again.
//! - An attempt has one open reservation at most; reserving again takes its place.
//! - A reservation that nobody settles ends by itself.
//! - The value is bounded: [`RESERVATIONS_MAX`] and [`SETTLED_MAX`] entries.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Attempt, ExecutionId, StepName},
    time::Timestamp,
};

/// Reservations of one namespace that are open at one time.
pub const RESERVATIONS_MAX: usize = 512;
/// Attempts whose highest settled turn is remembered; of more, the one that may be forgotten first goes.
pub const SETTLED_MAX: usize = 512;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A day of the UTC calendar; prints as `2026-01-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Timestamp);

impl Day {
    /// The day that `at` lies in.
    pub fn of(at: Timestamp) -> Self {
        let day_ms = i64::try_from(DAY.as_millis()).unwrap_or(i64::MAX);
        Self(Timestamp::from_millis(at.as_millis() / day_ms * day_ms))
    }

    /// The midnight at which the next day begins.
    pub fn end(self) -> Timestamp {
        self.0.after(DAY)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .to_string()
            .chars()
            .take(10)
            .try_for_each(|c| write!(f, "{c}"))
    }
}

/// One turn of one attempt: what reserves and is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnId {
    /// The attempt, as [`TurnId::new`] writes it.
    attempt: String,
    /// Which answer of the model, from 1.
    turn: u32,
}

impl TurnId {
    /// The name of a turn.
    pub fn new(execution: ExecutionId, step: &StepName, attempt: Attempt, turn: u32) -> Self {
        Self {
            attempt: format!("{execution}/{step}/{attempt}"),
            turn,
        }
    }
}

/// Tokens that are set aside for a call of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// For which turn.
    pub turn: u32,
    /// How many.
    pub tokens: u64,
    /// Whether the turn is the last one, because the budget ends.
    #[serde(default)]
    pub is_last: bool,
    /// After this, it no longer counts.
    pub expires_at: Timestamp,
}

/// How far an attempt is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The highest turn that is counted in `used_tokens`.
    pub turn: u32,
    /// Whether that turn was the last one, because the budget ended.
    #[serde(default)]
    pub is_last: bool,
    /// Until when this must be remembered.
    pub keep_until: Timestamp,
}

/// What a call is to reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Tokens that the call may take.
    pub tokens: u64,
    /// Tokens that must be left beside them, which are not reserved.
    pub spare: u64,
    /// Whether the turn is the last one, because the budget ends.
    pub is_last: bool,
    /// After this, the reservation no longer counts.
    pub expires_at: Timestamp,
}

/// What a call took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Tokens, read and written.
    pub tokens: u64,
    /// Billionths of a US dollar; `None` where the model has no price.
    pub cost_nano_usd: Option<u64>,
}

/// Why a reservation was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Tokens that are used.
    pub used_tokens: u64,
    /// Tokens that others have reserved.
    pub reserved_tokens: u64,
}

/// The use of one namespace on one day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetDay {
    /// Tokens of settled calls, read and written.
    pub used_tokens: u64,
    /// What those with a price have cost, in billionths of a US dollar.
    #[serde(default)]
    pub cost_nano_usd: u64,
    /// The part of `used_tokens` whose model has no price.
    #[serde(default)]
    pub unpriced_tokens: u64,
    /// What is open, by attempt (`<execution>/<step>/<attempt>`).
    #[serde(default)]
    pub reservations: BTreeMap<String, Reservation>,
    /// What is settled, by attempt.
    #[serde(default)]
    pub settled: BTreeMap<String, Settled>,
}

impl BudgetDay {
    /// Tokens that are reserved at `now`.
    pub fn reserved_tokens(&self, now: Timestamp) -> u64 {
        let open = self.reservations.values().filter(|open| open.expires_at > now);
        open.fold(0, |sum, open| sum.saturating_add(open.tokens))
    }

    /// Sets tokens aside for a turn, if `limit_tokens` has room for them and the spare ones.
    ///
    /// # Errors
    /// [`Shortage`]; nothing has changed then, but that what was over is forgotten.
    pub fn reserve(
        &mut self,
        turn: &TurnId,
        request: Request,
        limit_tokens: u64,
        now: Timestamp,
    ) -> Result<(), Shortage> {
        self.forget(now);
        let own = self.reservations.get(&turn.attempt).map_or(0, |own| own.tokens);
        let reserved_tokens = self.reserved_tokens(now) - own;
        let needed = [reserved_tokens, request.tokens, request.spare];
        let total = needed.into_iter().fold(self.used_tokens, u64::saturating_add);
        let is_full = own == 0 && self.reservations.len() >= RESERVATIONS_MAX;
        if total > limit_tokens || is_full {
            return Err(Shortage {
                used_tokens: self.used_tokens,
                reserved_tokens,
            });
        }
        let reservation = Reservation {
            turn: turn.turn,
            tokens: request.tokens,
            is_last: request.is_last,
            expires_at: request.expires_at,
        };
        self.reservations.insert(turn.attempt.clone(), reservation);
        Ok(())
    }

    /// Counts what a recorded turn took, unless it is counted, and ends its reservation. Says whether the turn was
    /// the last one because the budget ended.
    pub fn settle(&mut self, turn: &TurnId, spent: Spent, keep_until: Timestamp, now: Timestamp) -> bool {
        self.forget(now);
        if let Some(settled) = self.settled.get(&turn.attempt).filter(|s| s.turn >= turn.turn) {
            return settled.is_last && settled.turn == turn.turn;
        }
        let reservation = self.end_reservation(turn);
        let is_last = reservation.is_some_and(|reservation| reservation.is_last);
        // What could not be remembered is not counted: it might be again.
        if keep_until <= now {
            return is_last;
        }
        self.add(spent);
        let settled = Settled {
            turn: turn.turn,
            is_last,
            keep_until,
        };
        self.settled.insert(turn.attempt.clone(), settled);
        while self.settled.len() > SETTLED_MAX {
            let first = self.settled.iter().min_by_key(|(_, settled)| settled.keep_until);
            let Some(first) = first.map(|(attempt, _)| attempt.clone()) else {
                break;
            };
            self.settled.remove(&first);
        }
        is_last
    }

    /// Ends the reservation of a turn that brought no answer, and counts what it took all the same; nothing, where
    /// the reservation is ended already.
    pub fn release(&mut self, turn: &TurnId, spent: Spent, now: Timestamp) {
        self.forget(now);
        if self.end_reservation(turn).is_some() {
            self.add(spent);
        }
    }

    fn add(&mut self, spent: Spent) {
        self.used_tokens = self.used_tokens.saturating_add(spent.tokens);
        match spent.cost_nano_usd {
            Some(cost) => self.cost_nano_usd = self.cost_nano_usd.saturating_add(cost),
            None => self.unpriced_tokens = self.unpriced_tokens.saturating_add(spent.tokens),
        }
    }

    fn end_reservation(&mut self, turn: &TurnId) -> Option<Reservation> {
        let is_its = |open: &Reservation| open.turn <= turn.turn;
        self.reservations
            .get(&turn.attempt)
            .is_some_and(is_its)
            .then(|| self.reservations.remove(&turn.attempt))
            .flatten()
    }

    fn forget(&mut self, now: Timestamp) {
        self.reservations.retain(|_, open| open.expires_at > now);
        self.settled.retain(|_, settled| settled.keep_until > now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: u64 = 1000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn turn(attempt: &str, turn: u32) -> TurnId {
        TurnId {
            attempt: attempt.to_owned(),
            turn,
        }
    }

    fn request(tokens: u64) -> Request {
        Request {
            tokens,
            spare: 0,
            is_last: false,
            expires_at: at(1000),
        }
    }

    fn spent(tokens: u64) -> Spent {
        Spent {
            tokens,
            cost_nano_usd: None,
        }
    }

    enum Do {
        Reserve(&'static str, u32, u64, u64),
        Settle(&'static str, u32, u64),
        Release(&'static str, u32, u64),
    }

    /// One story: at which time what is done, whether it was granted, and what is used and reserved afterwards.
    #[test]
    fn what_is_reserved_is_settled_once_or_expires() {
        use Do::{Release, Reserve, Settle};
        let mut day = BudgetDay::default();
        for (n, (now, what, granted, used, reserved)) in [
            (0, Reserve("a", 1, 400, 0), true, 0, 400),
            // The same turn again, by whoever goes on with it: not twice.
            (1, Reserve("a", 1, 500, 0), true, 0, 500),
            (2, Reserve("b", 1, 501, 0), false, 0, 500),
            (2, Reserve("b", 1, 400, 101), false, 0, 500),
            (2, Reserve("b", 1, 400, 100), true, 0, 900),
            (3, Settle("a", 1, 120), true, 120, 400),
            (3, Settle("a", 1, 120), true, 120, 400),
            (4, Reserve("a", 2, 480, 0), true, 120, 880),
            // Late news of a turn that is settled leaves the next one's reservation alone.
            (5, Settle("a", 1, 120), true, 120, 880),
            (5, Release("a", 1, 50), true, 120, 880),
            // A call without an answer costs once, too.
            (6, Release("a", 2, 30), true, 150, 400),
            (6, Release("a", 2, 30), true, 150, 400),
            // The owner of "b" is killed: its tokens come back as its reservation expires, not before.
            (999, Reserve("c", 1, 451, 0), false, 150, 400),
            (1000, Reserve("c", 1, 451, 0), true, 150, 0),
            // It was alive after all, and has recorded its turn: that counts.
            (1001, Settle("b", 1, 300), true, 450, 0),
            (1002, Settle("b", 1, 300), true, 450, 0),
            // Beyond what was reserved, and beyond the limit, what was taken counts as it is.
            (1003, Settle("b", 2, 900), true, 1350, 0),
            (1003, Reserve("d", 1, 1, 0), false, 1350, 0),
            // Too late to be remembered.
            (5000, Settle("b", 3, 10), true, 1350, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let now = at(now);
            let was_granted = match what {
                Reserve(attempt, n, tokens, spare) => {
                    let request = Request {
                        spare,
                        ..request(tokens)
                    };
                    day.reserve(&turn(attempt, n), request, LIMIT, now).is_ok()
                }
                Settle(attempt, n, tokens) => {
                    day.settle(&turn(attempt, n), spent(tokens), at(5000), now);
                    true
                }
                Release(attempt, n, tokens) => {
                    day.release(&turn(attempt, n), spent(tokens), now);
                    true
                }
            };
            let found = (was_granted, day.used_tokens, day.reserved_tokens(now));
            assert_eq!(found, (granted, used, reserved), "line {n}");
        }
        assert!(day.settled.is_empty() && day.reservations.is_empty());
    }

    #[test]
    fn who_goes_on_learns_that_a_turn_was_the_last() {
        let mut day = BudgetDay::default();
        let last = Request {
            is_last: true,
            ..request(10)
        };
        day.reserve(&turn("a", 1), request(10), LIMIT, at(0)).unwrap();
        assert!(!day.settle(&turn("a", 1), spent(1), at(500), at(0)));
        day.reserve(&turn("a", 2), last, LIMIT, at(0)).unwrap();
        for _ in 0..2 {
            assert!(day.settle(&turn("a", 2), spent(1), at(500), at(1)));
        }
        assert!(!day.settle(&turn("a", 1), spent(1), at(500), at(1)));
    }

    #[test]
    fn costs_are_summed_beside_what_has_no_price() {
        let mut day = BudgetDay::default();
        let priced = Spent {
            tokens: 7,
            cost_nano_usd: Some(21),
        };
        day.settle(&turn("a", 1), priced, at(500), at(0));
        day.settle(&turn("b", 1), spent(5), at(500), at(0));
        let found = (day.used_tokens, day.cost_nano_usd, day.unpriced_tokens);
        assert_eq!(found, (12, 21, 5));
    }

    #[test]
    fn it_is_bounded() {
        let mut day = BudgetDay::default();
        for n in 0..RESERVATIONS_MAX {
            day.reserve(&turn(&n.to_string(), 1), request(1), 10_000, at(0))
                .unwrap();
        }
        assert!(day.reserve(&turn("more", 1), request(1), 10_000, at(0)).is_err());
        for n in 0..=SETTLED_MAX {
            let keep_until = at(1000 + i64::try_from(n).unwrap());
            day.settle(&turn(&n.to_string(), 1), spent(1), keep_until, at(0));
        }
        assert_eq!(day.settled.len(), SETTLED_MAX);
        assert!(!day.settled.contains_key("0"), "the first that may be forgotten");
        assert!(serde_json::to_vec(&day).unwrap().len() < 200_000);
    }

    #[test]
    fn days_are_those_of_utc() {
        let day = |text: &str| Day::of(text.parse().unwrap());
        let first = day("2026-11-26T00:00:00Z");
        assert_eq!(first, day("2026-11-27T00:59:59.999+01:00"));
        assert_ne!(first, day("2026-11-27T00:00:00Z"));
        assert_eq!(first.to_string(), "2026-11-26");
        assert_eq!(first.end().to_string(), "2026-11-27T00:00:00.000Z");
    }
}
