//! The attempts that this process is at: how a redelivered task is kept from a second start, and how a
//! cancel finds what it ends.
//!
//! Invariant: an attempt is entered before anything is asked about it, so that no cancel falls between the
//! question and the start.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::{Attempt, ExecutionId, StepName, Task};
use tokio_util::sync::CancellationToken;

use crate::executor::Stop;

type Key = (ExecutionId, StepName, Attempt);

/// The attempts in hand.
#[derive(Clone, Debug, Default)]
pub struct Running {
    shared: Arc<Mutex<Shared>>,
    /// Cancelled when commands are to be let go because the process ends.
    release: CancellationToken,
    /// The same for commands that passed the fix gate, which get more time: ended half-way, nobody could
    /// say what they did.
    release_gated: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    attempts: HashMap<Key, CancellationToken>,
    /// Gated attempts that this process handed to the executor and has no fact for yet.
    started_gated: HashSet<Key>,
}

impl Running {
    /// Takes the attempt in hand until the returned value is dropped; `None` where it is already.
    pub fn enter(&self, task: &Task) -> Option<InHand> {
        let key = key(task);
        let cancel = CancellationToken::new();
        let mut shared = self.lock();
        if shared.attempts.contains_key(&key) {
            return None;
        }
        shared.attempts.insert(key.clone(), cancel.clone());
        Some(InHand {
            running: self.clone(),
            key,
            cancel,
        })
    }

    /// The execution has ended: ends what runs for it. How many attempts that were.
    pub fn cancel(&self, execution: ExecutionId) -> usize {
        let shared = self.lock();
        let of_it = shared.attempts.iter().filter(|((id, ..), _)| *id == execution);
        of_it.map(|(_, cancel)| cancel.cancel()).count()
    }

    /// The process ends: lets ordinary commands go.
    pub fn release(&self) {
        self.release.cancel();
    }

    /// The process ends and its time is nearly over: lets gated commands go too.
    pub fn release_gated(&self) {
        self.release_gated.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Whole entries are put in and taken out, so what a panic left is sound.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(task: &Task) -> Key {
    (task.execution, task.step.clone(), task.attempt)
}

/// One attempt in hand.
#[derive(Debug)]
pub struct InHand {
    running: Running,
    key: Key,
    cancel: CancellationToken,
}

impl InHand {
    /// How its command is stopped from outside.
    pub fn stop(&self, is_gated: bool) -> Stop {
        let release = if is_gated {
            &self.running.release_gated
        } else {
            &self.running.release
        };
        Stop {
            cancel: self.cancel.clone(),
            release: release.clone(),
        }
    }

    /// Notes that the gated command goes to the executor: from here on it may have run.
    pub fn gated_starts(&self) {
        self.running.lock().started_gated.insert(self.key.clone());
    }

    /// Notes that the gated command certainly did not run after all, or that its fact is written.
    pub fn gated_settled(&self) {
        self.running.lock().started_gated.remove(&self.key);
    }

    /// Whether this process may have started the gated command.
    pub fn may_have_started_gated(&self) -> bool {
        self.running.lock().started_gated.contains(&self.key)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.running.lock().attempts.remove(&self.key);
    }
}
