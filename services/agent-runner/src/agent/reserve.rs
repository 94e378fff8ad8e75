//! What an investigation asks its namespace's budget, and what follows from the answer.
//!
//! Invariant: without room for a turn and the ending after it, only the ending is asked for; without room for that,
//! nothing.

use bus::Failure;
use tokio::time::Instant;

use super::{
    BUDGET, Interrupted, Investigation, Memory,
    findings::End,
    prompt,
    transcript::{Point, Standing},
};
use crate::{
    budget::{Granted, Held, Wanted},
    llm::{Message, TOKEN_BYTES},
    tools::{read_more, submit_findings},
};

/// That there was no room for a call in the namespace's budget.
pub(super) struct NoRoom {
    /// So for people.
    pub(super) message: String,
    /// Not even for the ending.
    pub(super) is_final: bool,
}

impl Investigation<'_> {
    /// Sets aside what a call may take: `None` where the budget has no room for it, `Some(None)` without a budget.
    pub(super) async fn reserve(
        &self,
        points: &[Point],
        memory: &mut Memory,
        messages: &[Message],
        is_last: bool,
        until: Instant,
    ) -> Result<Option<Option<Held>>, Interrupted> {
        let Some(budget) = &self.budget else {
            return Ok(Some(None));
        };
        let standing = Standing::of(points);
        let tokens = self.tokens_needed(&standing, messages);
        // The next turn reads what this one reads and writes, and writes in its turn. Before the first, there is
        // nothing that a last one could be about.
        let spare = match is_last || standing.turns == 0 {
            true => 0,
            false => tokens + u64::from(self.limits.output_tokens_max),
        };
        let wanted = Wanted {
            turn: standing.turns + 1,
            tokens,
            spare,
            is_last: is_last && memory.no_room.is_some(),
            until,
        };
        match self.unless_interrupted(budget.reserve(wanted)).await?? {
            Granted::Yes(held) => Ok(Some(Some(held))),
            Granted::No(message) => {
                tracing::info!(message, "no room in the budget");
                memory.no_room = Some(NoRoom {
                    message,
                    is_final: spare == 0,
                });
                Ok(None)
            }
        }
    }

    /// Tokens that a call may take: what the one before read and wrote, what has come since, and a whole answer.
    fn tokens_needed(&self, standing: &Standing<'_>, messages: &[Message]) -> u64 {
        let new = messages.iter().rev().map_while(|message| match message {
            Message::User(text) => Some(text.len()),
            Message::Results(results) => Some(results.iter().map(|result| result.shown.len()).sum()),
            Message::Assistant { .. } => None,
        });
        let mut new_bytes: usize = new.sum();
        if standing.turns == 0 {
            let always = [read_more::spec(), submit_findings::spec()];
            let specs = self.toolbox.specs().into_iter().chain(always);
            let specs = specs.map(|spec| spec.description.len() + spec.schema.to_string().len());
            new_bytes += prompt::SYSTEM.len() + specs.sum::<usize>();
        }
        let written = standing.last.map_or(0, |turn| turn.usage.output_tokens);
        let new_tokens = new_bytes.div_ceil(TOKEN_BYTES) as u64;
        standing.last_input_tokens + written + new_tokens + u64::from(self.limits.output_tokens_max)
    }

    /// Settles the last recorded turn, in case the process that recorded it died before it did.
    pub(super) async fn settle_recorded(&self, points: &[Point], memory: &mut Memory) -> Result<(), Failure> {
        let standing = Standing::of(points);
        let (Some(budget), Some(turn)) = (&self.budget, standing.last) else {
            return Ok(());
        };
        let was_last = budget.settle(turn, None).await?;
        if was_last && standing.submitted().is_some() {
            memory.cut_short = Some(End::Short {
                reason: BUDGET,
                message: format!(
                    "the budget of namespace {} was nearly spent",
                    budget.task.namespace
                ),
            });
        }
        Ok(())
    }
}
