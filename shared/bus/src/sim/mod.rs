//! The simulated broker: the log in memory, in virtual time, with faults, from a seed.
//!
//! It runs under tokio's paused clock on a current-thread runtime: hours pass in milliseconds, and a seed
//! replays, provided that the code under test draws no randomness of its own (`tokio::select!` needs
//! `biased`, tables need an order).
//!
//! Invariant: without faults it behaves as the server does; `tests/conformance.rs` runs one table on both.

mod client;
mod inbox;
mod log;
mod rng;
mod state;
mod strikes;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use protocol::Timestamp;
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::inbox::SimReceipt;
use self::state::{Now, State};
pub use self::{
    client::Cut,
    inbox::SimInbox,
    log::SimLog,
    rng::Rng,
    state::{Defect, Effect},
    strikes::{FaultKind, Strike, Struck},
};
use crate::{log::LogMessage, topology::StreamId};

/// What goes wrong, each in so many of a thousand cases. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes that never arrive, and time out.
    pub publish_lost: u16,
    /// Writes that take effect, and time out all the same.
    pub publish_ack_lost: u16,
    /// Guarded writes that the server refuses since another is at the same subject (error 10164).
    pub contended: u16,
    /// Acks, naks, terms and progress reports that never arrive.
    pub settle_lost: u16,
    /// Deliveries that are delivered a second time while the first is being handled.
    pub duplicated: u16,
    /// Reads and other requests that fail.
    pub unavailable: u16,
    /// Reads of an execution that leave out the newest messages. The real log does not do this; it shows that
    /// the compare-and-set guards alone.
    pub stale_reads: u16,
    /// Each consumer sees each message later by up to this, and so in another order.
    pub delivery_delay_max: Duration,
    /// Each request takes up to this.
    pub latency_max: Duration,
}

impl Faults {
    /// Some of everything.
    pub fn rough() -> Self {
        Self {
            publish_lost: 20,
            publish_ack_lost: 50,
            contended: 20,
            settle_lost: 50,
            duplicated: 50,
            unavailable: 10,
            stale_reads: 50,
            delivery_delay_max: Duration::from_millis(500),
            latency_max: Duration::from_millis(20),
        }
    }
}

/// The broker. Cheap to clone.
#[derive(Clone)]
pub struct SimBroker {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    began: Instant,
}

/// When every simulation begins: 2026-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_767_225_600_000;

impl SimBroker {
    /// A broker with all streams and consumers of the topology, empty.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self::with_strikes(seed, faults, None)
    }

    /// The same; where `only` is given, exactly these faults strike. Latencies and delays stay as `faults` say.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    pub fn with_strikes(seed: u64, faults: Faults, only: Option<BTreeSet<Strike>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new(seed, faults, only)),
                changed: Notify::new(),
                began: Instant::now(),
            }),
        }
    }

    /// A client, such as one process of a service.
    pub fn client(&self) -> SimLog {
        let now = self.now();
        let id = self.state().new_client(now);
        SimLog::new(self.clone(), id)
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Bounds a stream; `None` takes the bound away.
    pub fn set_bytes_max(&self, stream: StreamId, bytes_max: Option<u64>) {
        self.state().set_bytes_max(stream, bytes_max);
    }

    /// Gives a durable consumer another `ack_wait` than the topology's.
    pub fn set_ack_wait(&self, consumer: &str, ack_wait: Duration) {
        self.state().set_ack_wait(consumer, ack_wait);
    }

    /// Breaks the broker itself: to show that a test would notice.
    pub fn set_defect(&self, defect: Defect) {
        self.state().defect = Some(defect);
    }

    /// All messages of a stream, without any fault: for what a test asserts.
    pub fn messages(&self, stream: StreamId) -> Vec<LogMessage> {
        self.messages_from(stream, 1)
    }

    /// The same, from the sequence `first_seq` on.
    pub fn messages_from(&self, stream: StreamId, first_seq: u64) -> Vec<LogMessage> {
        self.state().from(stream, first_seq).cloned().collect()
    }

    /// Everything that took effect, in order: for what a test asserts.
    pub fn effects(&self) -> Vec<Effect> {
        self.state().effects.clone()
    }

    /// How many points ([`SimLog::crash_at`]) the client with this [`salt`](crate::Log::salt) has passed.
    pub fn points_of(&self, client: u64) -> u64 {
        self.state().client(client).points
    }

    /// How many took effect so far.
    pub fn effects_count(&self) -> usize {
        self.state().effects.len()
    }

    /// The faults that struck so far, in order.
    pub fn struck(&self) -> Vec<Struck> {
        self.state().strikes.struck.clone()
    }

    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.moment().at
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while holding it has failed already.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment(&self) -> Now {
        let instant = Instant::now();
        let at = Timestamp::from_millis(EPOCH_MS).after(instant - self.shared.began);
        Now { instant, at }
    }

    fn wake_all(&self) {
        self.shared.changed.notify_waiters();
    }

    /// Waits for a write, or until `deadline`. Takes what `ready` finds, looking again after each write, and
    /// at the moment that it names.
    async fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut State, Now) -> Found<T>,
    ) -> Option<T> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            // Registered before looking, so that a write in between is not missed.
            changed.as_mut().enable();
            let now = self.moment();
            let look_again = match ready(&mut self.state(), now) {
                Found::This(found) => return Some(found),
                Found::Nothing { until } => until,
            };
            if deadline.is_some_and(|deadline| now.instant >= deadline) {
                return None;
            }
            match [look_again, deadline].into_iter().flatten().min() {
                Some(until) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(until.max(now.instant + Duration::from_millis(1))) => {}
                    }
                }
                None => changed.await,
            }
        }
    }
}

/// What a look at the state came to.
enum Found<T> {
    This(T),
    /// Nothing; without a write, not before `until` either.
    Nothing {
        until: Option<Instant>,
    },
}
