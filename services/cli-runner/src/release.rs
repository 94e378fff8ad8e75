//! How this process lets commands go when it ends, and which gated ones it may have started while it lives.
//!
//! Invariant: commands that passed the fix gate are let go last: ended half-way, nobody could say what they did.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bus::runner::InHand;
use protocol::{Attempt, ExecutionId, StepName, Task};
use tokio_util::sync::CancellationToken;

use crate::executor::Stop;

/// When commands are let go. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Release {
    ordinary: CancellationToken,
    gated: CancellationToken,
}

impl Release {
    /// How the command of an attempt is stopped from outside.
    pub fn stop(&self, in_hand: &InHand, is_gated: bool) -> Stop {
        let release = if is_gated { &self.gated } else { &self.ordinary };
        Stop {
            cancel: in_hand.cancelled.clone(),
            release: release.clone(),
        }
    }

    /// Once the process ends: most commands are over in a moment, and running them again at the next start
    /// would do their effects twice, so ordinary ones are let go after a quarter of `drain`. Gated ones get half
    /// of it.
    pub async fn follow(&self, shutdown: &CancellationToken, drain: Duration) {
        shutdown.cancelled().await;
        tokio::time::sleep(drain / 4).await;
        self.ordinary.cancel();
        tokio::time::sleep(drain / 4).await;
        self.gated.cancel();
    }
}

type Key = (ExecutionId, StepName, Attempt);

/// Gated attempts that this process handed to the executor and has no fact for yet.
#[derive(Debug, Default)]
pub struct StartedGated(Mutex<HashSet<Key>>);

impl StartedGated {
    /// The gated command goes to the executor: from here on it may have run.
    pub fn starts(&self, task: &Task) {
        self.lock().insert(key(task));
    }

    /// It certainly did not run after all, or its fact is written.
    pub fn settled(&self, task: &Task) {
        self.lock().remove(&key(task));
    }

    /// Whether this process may have started it.
    pub fn may_have(&self, task: &Task) -> bool {
        self.lock().contains(&key(task))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        // Whole entries are put in and taken out, so what a panic left is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(task: &Task) -> Key {
    (task.execution, task.step.clone(), task.attempt)
}
