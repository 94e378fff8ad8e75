//! The budget of a namespace: what the loop asks before each call of a model, and tells after it.
//!
//! Invariants:
//! - What a call may take is set aside before it is made, over all processes; so together they stay within the budget
//!   as far as estimates hold. What a call took counts as it is.
//! - A recorded turn counts once, on the day of its record, whoever settles it and however often.
//! - Waiting for room ends with the time that the loop gives for the call.

use std::time::Duration;

use bus::{Budgets, Failure, LogError};
use futures_util::future::BoxFuture;
use protocol::{
    BudgetDay, Day, Namespace, Task, Timestamp,
    budget::{Request, Shortage, Spent, TurnId},
    turns::{ModelTurn, Usage},
};
use service::{
    Metrics,
    backoff::Policy,
    config::{BudgetExhausted, Price},
};
use tokio::time::Instant;

/// How long after its deadline a task may still come again, and its turns with it.
const TASK_AGAIN_WITHIN: Duration = Duration::from_secs(3600);
/// What a reservation outlives the time for its call: other machines' clocks may be ahead.
const CLOCKS_APART: Duration = Duration::from_secs(30);

/// Between two looks at a budget that has no room.
const ROOM_AGAIN: Policy = Policy {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(15),
    ..Policy::PATIENT
};

/// A change of what is used and reserved; says what the rules of [`BudgetDay`] say.
pub type Change<'a> = &'a (dyn Fn(&mut BudgetDay) -> Result<bool, Shortage> + Send + Sync);

/// Where the days of a namespace are kept.
pub trait Ledger: Send + Sync {
    /// Applies `change` to a day, whole and after all others; see [`Budgets::change`].
    fn change<'a>(
        &'a self,
        namespace: &'a Namespace,
        day: Day,
        now: Timestamp,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Result<bool, Shortage>, LogError>>;
}

impl Ledger for Budgets {
    fn change<'a>(
        &'a self,
        namespace: &'a Namespace,
        day: Day,
        now: Timestamp,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Result<bool, Shortage>, LogError>> {
        Box::pin(Budgets::change(self, namespace, day, now, change))
    }
}

/// The budget that one task's calls are taken from.
pub struct Budget<'a> {
    /// Where it is kept.
    pub ledger: &'a dyn Ledger,
    /// Whose calls these are.
    pub task: &'a Task,
    /// Tokens that the task's namespace may use on one day.
    pub limit_tokens: u64,
    /// What to do without room.
    pub exhausted: BudgetExhausted,
    /// What the model costs, where that is known.
    pub price: Option<Price>,
    /// Counts.
    pub metrics: &'a Metrics,
    /// An instant by the wall clock and by the timer, so that waiting and days go by one clock.
    pub began: (Timestamp, Instant),
}

/// A call that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which answer of the model it is to bring.
    pub turn: u32,
    /// Tokens that it may take.
    pub tokens: u64,
    /// Tokens that must be left for the last turn after it.
    pub spare: u64,
    /// Whether it is the last turn, because the budget ends.
    pub is_last: bool,
    /// When the answer must be there.
    pub until: Instant,
}

/// Whether a call may be made.
#[derive(Debug)]
pub enum Granted {
    /// Its tokens are set aside.
    Yes(Held),
    /// There is no room. Says so for people, with the budget and when it resets.
    No(String),
}

/// What is set aside for a call.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    day: Day,
    turn: u32,
}

impl Budget<'_> {
    fn now(&self) -> Timestamp {
        let (at, begun) = self.began;
        at.after(begun.elapsed())
    }

    fn id(&self, turn: u32) -> TurnId {
        let task = self.task;
        TurnId::new(task.execution, &task.step, task.attempt, turn)
    }

    /// Sets aside what a call may take, on the day that it is now. Where there is no room and the configuration
    /// says so, it waits for some until the call's own time is over.
    ///
    /// # Errors
    /// The server's, once it was tried as long as other writes are.
    pub async fn reserve(&self, wanted: Wanted) -> Result<Granted, Failure> {
        let least = wanted.tokens.saturating_add(wanted.spare);
        let can_ever_fit = least <= self.limit_tokens;
        let mut waits = ROOM_AGAIN.waits();
        loop {
            let now = self.now();
            let day = Day::of(now);
            let request = Request {
                tokens: wanted.tokens,
                spare: wanted.spare,
                is_last: wanted.is_last,
                expires_at: now
                    .after(wanted.until.saturating_duration_since(Instant::now()))
                    .after(CLOCKS_APART),
            };
            let id = self.id(wanted.turn);
            let limit_tokens = self.limit_tokens;
            let reserve = |day: &mut BudgetDay| day.reserve(&id, request, limit_tokens, now).map(|()| false);
            let Err(shortage) = self.change(day, &reserve).await? else {
                let turn = wanted.turn;
                return Ok(Granted::Yes(Held { day, turn }));
            };
            let until_tomorrow = day.end().since(now);
            let next = Instant::now() + waits.next_wait().min(until_tomorrow);
            if self.exhausted == BudgetExhausted::Inconclusive || !can_ever_fit || next >= wanted.until {
                return Ok(Granted::No(self.spent(day, wanted, shortage)));
            }
            tracing::debug!(namespace = %self.task.namespace, "waiting for the budget to have room");
            tokio::time::sleep_until(next).await;
        }
    }

    /// Counts a recorded turn, and ends what was held for it. Says whether the turn was the last one because the
    /// budget ended.
    ///
    /// # Errors
    /// As [`Budget::reserve`]. Settling again is safe.
    pub async fn settle(&self, turn: &ModelTurn, held: Option<Held>) -> Result<bool, Failure> {
        let (day, now) = (Day::of(turn.at), self.now());
        let keep_until = self.task.deadline.after(TASK_AGAIN_WITHIN);
        let id = self.id(turn.turn);
        let spent = self.cost(turn.usage);
        let settle = |day: &mut BudgetDay| Ok(day.settle(&id, spent, keep_until, now));
        let was_last = self.change(day, &settle).await?.unwrap_or(false);
        if let Some(held) = held {
            self.metrics
                .budget_tokens_used(self.task.namespace.as_str(), spent.tokens);
            // The call went on over midnight.
            if held.day != day {
                self.release(held, Usage::default()).await?;
            }
        }
        Ok(was_last)
    }

    /// Ends what was held for a call that brought no answer, and counts what it took all the same.
    ///
    /// # Errors
    /// As [`Budget::reserve`].
    pub async fn release(&self, held: Held, usage: Usage) -> Result<(), Failure> {
        let (id, now, spent) = (self.id(held.turn), self.now(), self.cost(usage));
        let release = |day: &mut BudgetDay| {
            day.release(&id, spent, now);
            Ok(false)
        };
        self.change(held.day, &release).await?.ok();
        self.metrics
            .budget_tokens_used(self.task.namespace.as_str(), spent.tokens);
        Ok(())
    }

    /// Ends what may be held for a turn that is not asked for any more. Lossy: what is left expires.
    pub async fn abandon(&self, turn: u32) {
        let day = Day::of(self.now());
        if let Err(error) = self.release(Held { day, turn }, Usage::default()).await {
            tracing::debug!(%error, "a reservation is left to expire");
        }
    }

    async fn change(&self, day: Day, change: Change<'_>) -> Result<Result<bool, Shortage>, Failure> {
        let changing = self.ledger.change(&self.task.namespace, day, self.now(), change);
        Ok(changing.await?)
    }

    fn cost(&self, usage: Usage) -> Spent {
        Spent {
            tokens: usage.input_tokens.saturating_add(usage.output_tokens),
            cost_nano_usd: self.price.map(|price| cost_nano_usd(price, usage)),
        }
    }

    fn spent(&self, day: Day, wanted: Wanted, shortage: Shortage) -> String {
        format!(
            "the budget of namespace {} for {day} is spent: of {} tokens, {} are used and {} are set aside for other calls, and the next call may take {}; it resets at {}",
            self.task.namespace,
            self.limit_tokens,
            shortage.used_tokens,
            shortage.reserved_tokens,
            wanted.tokens,
            day.end()
        )
    }
}

/// What a call costs, in billionths of a US dollar.
pub fn cost_nano_usd(price: Price, usage: Usage) -> u64 {
    price.cost_nano_usd(usage.input_tokens, usage.cached_tokens, usage.output_tokens)
}
