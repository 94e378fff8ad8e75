//! The executions this process has in mind: a lock and, for some, a state for each.
//!
//! Invariants:
//! - Two facts of one execution are never decided on at the same time in one process: a runner can finish
//!   before its scheduler has its own publish-ack.
//! - A state in here may be behind the log, never ahead of it: every append is guarded by its `lane_seq`.
//! - Bounded: beyond `states_max` the least recently used states are dropped; they can be read again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use engine::State;
use protocol::{ExecutionId, Timestamp};
use tokio::sync::OwnedMutexGuard;

/// A state, and the last sequence of the lane that it is a fold of.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) state: State,
    pub(crate) lane_seq: u64,
    /// When its start was written.
    pub(crate) started_at: Timestamp,
}

/// What the lock of one execution guards.
pub(crate) type Slot = OwnedMutexGuard<Option<Known>>;

#[derive(Debug)]
struct Cell {
    slot: Arc<tokio::sync::Mutex<Option<Known>>>,
    used: u64,
}

/// The executions in mind.
#[derive(Debug)]
pub(crate) struct Executions {
    states_max: usize,
    cells: Mutex<(u64, HashMap<ExecutionId, Cell>)>,
}

impl Executions {
    pub(crate) fn new(states_max: usize) -> Self {
        Self {
            states_max: states_max.max(1),
            cells: Mutex::default(),
        }
    }

    /// Waits for this execution's turn.
    pub(crate) async fn lock(&self, execution: ExecutionId) -> Slot {
        let slot = {
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            let (clock, cells) = &mut *cells;
            *clock += 1;
            let used = *clock;
            if cells.len() >= self.states_max && !cells.contains_key(&execution) {
                make_room(cells, self.states_max);
            }
            let cell = cells.entry(execution).or_insert_with(|| Cell {
                slot: Arc::default(),
                used,
            });
            cell.used = used;
            Arc::clone(&cell.slot)
        };
        slot.lock_owned().await
    }
}

/// Drops the older half of what nobody holds. Half at a time, so that its cost is spread over as many locks.
fn make_room(cells: &mut HashMap<ExecutionId, Cell>, states_max: usize) {
    let mut free: Vec<(u64, ExecutionId)> = cells
        .iter()
        .filter(|(_, cell)| Arc::strong_count(&cell.slot) == 1)
        .map(|(execution, cell)| (cell.used, *execution))
        .collect();
    free.sort_unstable();
    for (_, execution) in free.into_iter().take(states_max.div_ceil(2)) {
        cells.remove(&execution);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(executions: &Executions) -> usize {
        executions
            .cells
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .len()
    }

    fn id(number: usize) -> ExecutionId {
        ExecutionId::derive(&[&number.to_string()])
    }

    #[tokio::test]
    async fn the_number_in_mind_stays_bounded_and_what_is_held_stays() {
        let executions = Executions::new(8);
        let held = executions.lock(id(0)).await;
        for number in 1..100 {
            drop(executions.lock(id(number)).await);
            assert!(count(&executions) <= 8, "{}", count(&executions));
        }
        let again = executions.lock(id(0));
        tokio::pin!(again);
        let waits = futures_util::poll!(&mut again).is_pending();
        assert!(
            waits,
            "the lock that is held must still be the one that is waited for"
        );
        drop(held);
        again.await;
    }
}
