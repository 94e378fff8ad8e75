//! The attempts that this process is at: how a redelivered task is kept from a second start, and how a
//! cancel finds what it ends.
//!
//! Invariants:
//! - An attempt is entered before anything is asked about it, so that no cancel falls between the question and the
//!   start.
//! - Of an execution whose task is younger than what [`Running::is_new`] asks for, every cancel was heard, or will
//!   be heard while the attempt is in hand.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::{Attempt, ExecutionId, StepName, Task};
use tokio_util::sync::CancellationToken;

type Key = (ExecutionId, StepName, Attempt);

/// Cancels kept in mind; of tasks older than the last that was forgotten, the log is asked.
const CANCELS_MAX: usize = 1024;
/// Attempts kept in mind that were in hand.
const FORMER_MAX: usize = 1024;

/// The attempts in hand. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    attempts: HashMap<Key, CancellationToken>,
    cancels: VecDeque<(u64, ExecutionId)>,
    /// All cancels behind this sequence are in mind, or not heard yet; `None` while nobody listens.
    heard_from: Option<u64>,
    former: VecDeque<Key>,
}

impl Running {
    /// Takes the attempt in hand until the returned value is dropped; `None` where it is already.
    pub fn enter(&self, task: &Task) -> Option<InHand> {
        let key = (task.execution, task.step.clone(), task.attempt);
        let attempts = &mut self.lock().attempts;
        if attempts.contains_key(&key) {
            return None;
        }
        let cancelled = CancellationToken::new();
        attempts.insert(key.clone(), cancelled.clone());
        Some(InHand {
            running: self.clone(),
            key,
            cancelled,
        })
    }

    /// From here on [`Running::cancel`] is called for each cancel whose sequence in the log is greater than `seq`.
    pub fn listens_from(&self, seq: u64) {
        self.lock().heard_from = Some(seq);
    }

    /// The execution has ended, by the message at `seq`: ends what runs for it. How many attempts that were.
    pub fn cancel(&self, execution: ExecutionId, seq: u64) -> usize {
        let mut state = self.lock();
        if state.cancels.len() == CANCELS_MAX
            && let Some((forgotten, _)) = state.cancels.pop_front()
        {
            state.heard_from = state.heard_from.map(|from| from.max(forgotten));
        }
        state.cancels.push_back((seq, execution));
        let of_it = state.attempts.iter().filter(|((id, ..), _)| *id == execution);
        of_it.map(|(_, cancelled)| cancelled.cancel()).count()
    }

    /// Whether the task, which stands at `seq` of the log, is new to this process, every cancel of its execution is
    /// heard, and none was so far.
    pub fn is_new(&self, task: &Task, seq: u64) -> bool {
        let state = self.lock();
        let is_task = |(execution, step, attempt): &Key| {
            (*execution, step, *attempt) == (task.execution, &task.step, task.attempt)
        };
        state.heard_from.is_some_and(|from| seq > from)
            && state
                .cancels
                .iter()
                .all(|(_, cancelled)| *cancelled != task.execution)
            && !state.former.iter().any(is_task)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole entries are put in and taken out, so what a panic left is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt in hand.
#[derive(Debug)]
pub struct InHand {
    running: Running,
    key: Key,
    /// Cancelled when the execution is.
    pub cancelled: CancellationToken,
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.running.lock();
        if let Some((key, _)) = state.attempts.remove_entry(&self.key) {
            if state.former.len() == FORMER_MAX {
                state.former.pop_front();
            }
            state.former.push_back(key);
        }
    }
}
