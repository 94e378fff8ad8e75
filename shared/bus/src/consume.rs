//! The ack policy, in one place: what becomes of a message by what its handler returned.
//!
//! | the handler | the message |
//! |---|---|
//! | is at work | in-progress ack every third of `ack_wait` |
//! | `Ok` | ack |
//! | `Retry{after}` | delayed nak, never a bare one |
//! | `Reject` | dead letter, then term |
//! | `Fatal` | delayed nak; the consumer stops |
//! | panics, hangs, or dies with its process | redelivery; after [`Consume::poison_after`] of these [`Handler::poisoned`] decides |
//!
//! Invariants:
//! - At most [`Consume::concurrency`] messages are on loan to one consumer, none waiting in a buffer.
//! - An ack follows the durable effect, which the handler has made when it returns `Ok`.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use protocol::DeadLetter;
use service::Config;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    failure::Failure,
    inbox::{Delivery, Inbox},
    log::{Log, LogMessage},
    topology::Durable,
};

/// What a service does with the messages of one durable consumer.
pub trait Handler: Send + Sync + 'static {
    /// Handles `message`, which is delivered for the `deliveries`th time. What it leads to is durable when
    /// this returns `Ok`. May be dropped at an await, which is a redelivery to come.
    fn handle(
        &self,
        message: LogMessage,
        deliveries: u64,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Decides about a message whose handlers never came back `trials` times. The default rejects it, which
    /// makes it a dead letter; a service that must tell somebody else writes that first.
    fn poisoned(&self, message: LogMessage, trials: u64) -> impl Future<Output = Result<(), Failure>> + Send {
        async move { Err(poison(&message, trials)) }
    }
}

/// The failure of a message that kills its handlers.
pub fn poison(message: &LogMessage, trials: u64) -> Failure {
    Failure::reject(format!(
        "poison: {trials} handlers of {} in a row neither succeeded nor failed; they crashed, hung or were killed",
        message.subject
    ))
}

/// How to consume.
#[derive(Clone, Debug)]
pub struct Consume {
    /// Messages handled at one time.
    pub concurrency: usize,
    /// Handlers of one message that may vanish (crash, hang, kill) before it is poison. Counted from the
    /// fourth delivery on, across all processes; a handler that comes back with `Retry` does not count.
    pub poison_after: u64,
    /// How long handlers may go on after the shutdown began. Then they are dropped and their messages handed back.
    pub drain: Duration,
}

impl Consume {
    /// How this configuration wants tasks and facts to be consumed. A fifth of the time for shutting down is left
    /// for what comes after the handlers.
    pub fn from_config(config: &Config, concurrency: usize) -> Self {
        Self {
            concurrency,
            poison_after: config.scheduler.poison_deliveries_max,
            drain: Duration::from_millis(config.shutdown.drain_ms) * 4 / 5,
        }
    }
}

/// Deliveries without any book-keeping: the usual first, and what a restart or two adds.
const FREE_DELIVERIES: u64 = 3;

/// How soon a message that was handed back at shutdown goes to another.
const HANDED_BACK_AFTER: Duration = Duration::from_millis(100);

/// How long a message rests after its handler panicked.
const PANIC_RETRY_AFTER: Duration = Duration::from_secs(2);

/// How long a few free places wait for others before messages are asked for.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// Messages that nobody takes are asked for anew at this interval.
const ROUND_MAX: Duration = Duration::from_secs(5);

/// Takes messages of `durable` and has them handled until `shutdown`; then finishes what is in hand within
/// [`Consume::drain`] and hands the rest back.
///
/// # Errors
/// The reason of a [`Failure::Fatal`], or that the consumer is missing.
pub async fn consume<L: Log, H: Handler>(
    log: L,
    durable: &Durable,
    options: Consume,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let Some(mut inbox) = open(&log, durable, &shutdown).await? else {
        return Ok(());
    };
    let concurrency = options.concurrency.max(1);
    let work = Arc::new(Work {
        log,
        handler,
        durable: durable.clone(),
        progress_every: inbox.ack_wait() / 3,
        poison_after: options.poison_after.max(1),
        give_up: CancellationToken::new(),
    });
    let mut in_hand: JoinSet<Option<Failure>> = JoinSet::new();
    // Under load, a request for every place that comes free would cost the server as much as the messages.
    let enough = (concurrency / 8).max(1);
    let mut few_since: Option<Instant> = None;
    let outcome = loop {
        let free = concurrency.saturating_sub(in_hand.len());
        let next_batch = async {
            if free < enough {
                sleep_until(*few_since.get_or_insert_with(Instant::now) + GATHER_TIME).await;
            }
            inbox.next_batch(free, ROUND_MAX).await
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok(()),
            Some(done) = in_hand.join_next() => {
                if let Ok(Some(fatal)) = done {
                    break Err(fatal);
                }
            }
            batch = next_batch, if free > 0 => match batch {
                Ok(deliveries) => {
                    few_since = None;
                    for delivery in deliveries {
                        in_hand.spawn(Arc::clone(&work).run(delivery));
                    }
                }
                Err(error) => break Err(error.into()),
            },
        }
    };
    inbox.close().await;
    work.drain(in_hand, options.drain).await;
    outcome
}

/// Opens the consumer, as soon as the server can say where it is: a cluster that has just lost a server has no
/// leader for it for some seconds, and that is no reason for a service to end. `None`: the shutdown came first.
async fn open<L: Log>(
    log: &L,
    durable: &Durable,
    shutdown: &CancellationToken,
) -> Result<Option<L::Inbox>, Failure> {
    loop {
        match log.inbox(durable).await {
            Ok(inbox) => return Ok(Some(inbox)),
            Err(error) if error.is_transient() => {
                tracing::warn!(consumer = durable.name, %error, "the consumer cannot be opened yet; trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(Failure::RETRY_AFTER) => {}
        }
    }
}

/// What every message's task needs.
struct Work<L, H> {
    log: L,
    handler: Arc<H>,
    durable: Durable,
    progress_every: Duration,
    poison_after: u64,
    give_up: CancellationToken,
}

/// How a handler ended.
enum Came {
    Back(Result<(), Failure>),
    Panicked,
    /// The drain's time was over.
    Interrupted,
}

impl<L: Log, H: Handler> Work<L, H> {
    /// Has one message handled and settles it. Returns what stops the consumer.
    async fn run(self: Arc<Self>, delivery: Delivery) -> Option<Failure> {
        let is_trial = delivery.deliveries > FREE_DELIVERIES;
        let came = if is_trial {
            match delivery.receipt.trial_begins(delivery.message.seq).await {
                Ok(trials) if trials >= self.poison_after => {
                    let decision = self.handler.poisoned(delivery.message.clone(), trials);
                    self.watch(&delivery, decision).await
                }
                Ok(_) => self.handle(&delivery).await,
                Err(error) => Came::Back(Err(error.into())),
            }
        } else {
            self.handle(&delivery).await
        };
        if is_trial && !matches!(came, Came::Panicked) {
            delivery.receipt.trial_ends(delivery.message.seq).await;
        }
        self.settle(delivery, came).await
    }

    async fn handle(&self, delivery: &Delivery) -> Came {
        let handling = self.handler.handle(delivery.message.clone(), delivery.deliveries);
        self.watch(delivery, handling).await
    }

    /// Runs a handler, and reports progress as long as its task gets to run.
    async fn watch(&self, delivery: &Delivery, handling: impl Future<Output = Result<(), Failure>>) -> Came {
        let mut handling = std::pin::pin!(AssertUnwindSafe(handling).catch_unwind());
        let mut progress =
            tokio::time::interval_at(Instant::now() + self.progress_every, self.progress_every);
        loop {
            tokio::select! {
                biased;
                result = &mut handling => return result.map_or(Came::Panicked, Came::Back),
                () = self.give_up.cancelled() => return Came::Interrupted,
                _ = progress.tick() => delivery.progress().await,
            }
        }
    }

    async fn settle(&self, delivery: Delivery, came: Came) -> Option<Failure> {
        let consumer = self.durable.name;
        match came {
            Came::Back(Ok(())) => delivery.ack().await,
            Came::Back(Err(Failure::Retry { after, reason })) => {
                tracing::warn!(consumer, message = ?delivery.message, reason, after_ms = after.as_millis(), "trying again later");
                delivery.nak(after).await;
            }
            Came::Back(Err(Failure::Reject { reason })) => self.set_aside(delivery, reason).await,
            Came::Back(Err(Failure::Fatal { reason })) => {
                tracing::error!(consumer, message = ?delivery.message, reason, "the consumer stops");
                delivery.nak(HANDED_BACK_AFTER).await;
                return Some(Failure::Fatal { reason });
            }
            Came::Panicked => {
                tracing::error!(consumer, message = ?delivery.message, deliveries = delivery.deliveries, "the handler panicked");
                delivery.nak(PANIC_RETRY_AFTER).await;
            }
            Came::Interrupted => delivery.nak(HANDED_BACK_AFTER).await,
        }
        None
    }

    /// The dead letter comes first: a message is never dropped without one.
    async fn set_aside(&self, delivery: Delivery, reason: String) {
        let consumer = self.durable.name;
        tracing::error!(consumer, message = ?delivery.message, reason, "set aside as a dead letter");
        let letter = dead_letter(&self.durable, &delivery, reason);
        match self.log.dead_letter(letter).await {
            Ok(()) => delivery.term().await,
            Err(error) => {
                tracing::error!(consumer, %error, "the dead letter could not be written; trying again");
                delivery.nak(Failure::RETRY_AFTER).await;
            }
        }
    }

    /// Lets handlers finish within `time`, then drops them; their messages are handed back.
    async fn drain(&self, mut in_hand: JoinSet<Option<Failure>>, time: Duration) {
        let finished = async { while in_hand.join_next().await.is_some() {} };
        if tokio::time::timeout(time, finished).await.is_err() {
            tracing::warn!(
                consumer = self.durable.name,
                in_hand = in_hand.len(),
                "handlers are still at it after the drain time; their messages go to others"
            );
            self.give_up.cancel();
            // What remains is one message to the server each; a server that is away must not hold up the end.
            let handed_back = async { while in_hand.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(HAND_BACK_TIME, handed_back).await;
        }
    }
}

/// How long handing messages back may take.
const HAND_BACK_TIME: Duration = Duration::from_secs(2);

/// The dead letter of a delivery.
pub fn dead_letter(durable: &Durable, delivery: &Delivery, reason: String) -> DeadLetter {
    let message = &delivery.message;
    DeadLetter {
        stream: durable.stream.name().to_owned(),
        seq: message.seq,
        subject: message.subject.clone(),
        written_at: message.at,
        consumer: durable.name.to_owned(),
        reason,
        deliveries: delivery.deliveries,
        payload: DeadLetter::payload_text(&message.payload),
        payload_bytes: message.payload.len() as u64,
    }
}
