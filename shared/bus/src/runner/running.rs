//! The attempts that this process is at: how a redelivered task is kept from a second start, and how a
//! cancel finds what it ends.
//!
//! Invariant: an attempt is entered before anything is asked about it, so that no cancel falls between the
//! question and the start.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::{Attempt, ExecutionId, StepName, Task};
use tokio_util::sync::CancellationToken;

type Key = (ExecutionId, StepName, Attempt);

/// The attempts in hand. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<HashMap<Key, CancellationToken>>>);

impl Running {
    /// Takes the attempt in hand until the returned value is dropped; `None` where it is already.
    pub fn enter(&self, task: &Task) -> Option<InHand> {
        let key = (task.execution, task.step.clone(), task.attempt);
        let mut attempts = self.lock();
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

    /// The execution has ended: ends what runs for it. How many attempts that were.
    pub fn cancel(&self, execution: ExecutionId) -> usize {
        let attempts = self.lock();
        let of_it = attempts.iter().filter(|((id, ..), _)| *id == execution);
        of_it.map(|(_, cancelled)| cancelled.cancel()).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, CancellationToken>> {
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
        self.running.lock().remove(&self.key);
    }
}
