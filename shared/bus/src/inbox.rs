//! One end of a durable consumer, and what is taken from it.
//!
//! Invariants:
//! - An inbox never holds more undelivered messages than its caller asked for, so that none ages in a buffer.
//! - Nothing is acknowledged by being dropped: what is neither acked, naked nor termed comes again after
//!   `ack_wait`.

use std::{future::Future, time::Duration};

use crate::log::{LogError, LogMessage};

/// A durable consumer, shared by all who open it: each message goes to one of them at a time.
pub trait Inbox: Send + 'static {
    /// After how long without any word a message goes to another.
    fn ack_wait(&self) -> Duration;

    /// Waits for messages: returns as soon as there is one, with all that are there by then, at most `max`;
    /// with none after `wait_max`. May be dropped while it waits without losing a message. Outages are waited out.
    ///
    /// # Errors
    /// [`LogError::Missing`] when the consumer or its stream is gone.
    fn next_batch(
        &mut self,
        max: usize,
        wait_max: Duration,
    ) -> impl Future<Output = Result<Vec<Delivery>, LogError>> + Send;

    /// Takes no more, and hands back what was delivered and not taken.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Waits for one message.
    ///
    /// # Errors
    /// As [`Inbox::next_batch`].
    fn next(&mut self) -> impl Future<Output = Result<Delivery, LogError>> + Send {
        async {
            loop {
                if let Some(delivery) = self.next_batch(1, NEXT_WAIT).await?.pop() {
                    return Ok(delivery);
                }
            }
        }
    }
}

/// One round of [`Inbox::next`].
const NEXT_WAIT: Duration = Duration::from_secs(30);

/// A message on loan: another consumer gets it unless it is settled, or progress is reported, within `ack_wait`.
#[must_use = "a delivery that is not settled comes again after ack_wait"]
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: LogMessage,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
    pub(crate) receipt: Receipt,
}

/// What to tell the server about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    Ack,
    NakAfter(Duration),
    Term,
    Progress,
}

/// Where to tell it.
#[derive(Clone, Debug)]
pub(crate) enum Receipt {
    Nats(crate::nats::inbox::NatsReceipt),
    Sim(crate::sim::SimReceipt),
}

/// A bare nak is redelivered at once, three times in two milliseconds; this is the least pause.
const NAK_AFTER_MIN: Duration = Duration::from_millis(10);

impl Delivery {
    /// It is handled, durably: never again.
    pub async fn ack(self) {
        self.receipt.settle(Settlement::Ack).await;
    }

    /// Again, not before `after`.
    pub async fn nak(self, after: Duration) {
        self.receipt
            .settle(Settlement::NakAfter(after.max(NAK_AFTER_MIN)))
            .await;
    }

    /// Never again, though it was not handled. Write the dead letter first.
    pub async fn term(self) {
        self.receipt.settle(Settlement::Term).await;
    }

    /// Still at it: the time until redelivery begins anew.
    pub async fn progress(&self) {
        self.receipt.settle(Settlement::Progress).await;
    }
}

impl Receipt {
    /// Lossy like all acks: what does not arrive leads to a redelivery, which every handler must bear.
    async fn settle(&self, settlement: Settlement) {
        match self {
            Self::Nats(receipt) => receipt.settle(settlement).await,
            Self::Sim(receipt) => receipt.settle(settlement),
        }
    }

    /// Notes that a suspicious message is about to be handled, and says how often it was before without its
    /// handler ever coming back.
    pub(crate) async fn trial_begins(&self, seq: u64) -> Result<u64, LogError> {
        match self {
            Self::Nats(receipt) => receipt.trial_begins(seq).await,
            Self::Sim(receipt) => Ok(receipt.trial_begins(seq)),
        }
    }

    /// Notes that the handler of a suspicious message came back. Lossy: at worst a trial counts too much.
    pub(crate) async fn trial_ends(&self, seq: u64) {
        match self {
            Self::Nats(receipt) => receipt.trial_ends(seq).await,
            Self::Sim(receipt) => receipt.trial_ends(seq),
        }
    }
}
