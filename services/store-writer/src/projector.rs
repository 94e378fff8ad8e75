//! The loop from the log to the database.
//!
//! Invariants:
//! - A message is acked after the transaction with its rows has committed, never before.
//! - A batch is fetched and read while the one before it is written. A database that is away holds these two in
//!   hand and leaves the rest in the log; nothing is lost, and nothing is tried without a pause that grows.
//! - What cannot be read, and what the database refuses on its own, becomes a dead letter; its neighbours in
//!   the batch are written all the same.

use std::{future::Future, sync::Arc, time::Duration};

use bus::{
    Delivery, Durable, Inbox, Log, LogError,
    consume::dead_letter,
    topology::{self, STORE_WRITER},
};
use futures_util::future::join_all;
use service::{
    Fatal, Service,
    backoff::{self, Failed, GaveUp},
};
use tokio::time::{Instant, timeout};

use crate::{
    reading::{Message, Reading, Unreadable, read},
    store::{Batch, Store, StoreError, Written},
};

/// The name of the durable in numbers, whichever the database has.
const CONSUMER: &str = STORE_WRITER.name;

/// Without messages, the database is asked this often whether it is there.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// One transaction may take this long; then the database counts as away.
const TRANSACTION_TIME: Duration = Duration::from_secs(60);

/// How soon others get what was in hand at shutdown.
const HANDED_BACK_AFTER: Duration = Duration::from_millis(100);

/// A message of a newer build rests this long, for a newer replica to take it, at most so many times:
/// ten minutes are enough for a rollout.
const NEWER_BUILD_RETRY_AFTER: Duration = Duration::from_secs(30);
const NEWER_BUILD_DELIVERIES_MAX: u64 = 20;

/// How long after a failure to fetch messages the next attempt comes.
const FETCH_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What projects one log into one database.
pub struct Projector<L: Log> {
    /// Where the messages come from.
    pub log: L,
    /// Where the rows go.
    pub store: Arc<dyn Store>,
    /// Configuration, shutdown, health, numbers.
    pub service: Service,
}

/// What a batch of deliveries says.
#[derive(Default)]
struct Understood {
    /// Deliveries whose effect is in `batch`, or that have none.
    good: Vec<(Delivery, Reading)>,
    /// Those that nobody can read, and why.
    bad: Vec<(Delivery, Unreadable)>,
}

impl<L: Log> Projector<L> {
    /// Brings the database to this build's form, and projects until shutdown.
    ///
    /// # Errors
    /// What keeps this process from ever working: an unusable database, or a missing consumer.
    pub async fn run(self) -> Result<(), Fatal> {
        let report = |state| self.service.health.set("database", state);
        self.service.health.expect("database");
        match prepare(&*self.store, &self.service).await {
            Ok(()) => report(Ok(())),
            Err(GaveUp::Shutdown) => return Ok(()),
            Err(error) => return Err(Fatal::new(error.to_string())),
        }
        let Some(mut inbox) = self.open().await? else {
            return Ok(());
        };
        let mut next = Understood::default();
        loop {
            if !next.is_empty() {
                if self.service.shutdown.is_cancelled() {
                    hand_back(next.into_deliveries()).await;
                    break;
                }
                next = self.settle_and_fetch(next, &mut inbox).await;
                continue;
            }
            let deliveries = tokio::select! {
                biased;
                () = self.service.shutdown.cancelled() => break,
                deliveries = inbox.next_batch(self.batch_max(), IDLE_MAX) => deliveries,
            };
            match deliveries {
                Ok(deliveries) if deliveries.is_empty() => {
                    let ping = timeout(TRANSACTION_TIME, self.store.ping()).await;
                    report(
                        ping.unwrap_or_else(|_| Err(too_slow()))
                            .map_err(|error| error.to_string()),
                    );
                }
                Ok(deliveries) => self.understand(deliveries, &mut next),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "no messages can be fetched just now");
                    tokio::time::sleep(FETCH_RETRY_AFTER).await;
                }
                Err(error) => return Err(Fatal::because("cannot read the log", error)),
            }
        }
        inbox.close().await;
        Ok(())
    }

    /// This database's place in the log.
    fn durable(&self) -> Durable {
        topology::store_writer(&self.service.config.database.consumer)
    }

    async fn open(&self) -> Result<Option<L::Inbox>, Fatal> {
        let attempt = || async {
            self.log.inbox(&self.durable()).await.map_err(|error| {
                if error.is_transient() {
                    Failed::Transient(error)
                } else {
                    Failed::Permanent(error)
                }
            })
        };
        let tell = |again: backoff::Again<'_, LogError>| tracing::warn!(error = %again.error, "the consumer cannot be opened yet");
        match backoff::retry(backoff::Policy::PATIENT, &self.service.shutdown, attempt, tell).await {
            Ok(inbox) => Ok(Some(inbox)),
            Err(GaveUp::Shutdown) => Ok(None),
            Err(error) => Err(Fatal::new(error.to_string())),
        }
    }

    fn batch_max(&self) -> usize {
        self.service.config.database.batch_max
    }

    /// Settles what is in hand, and meanwhile takes what comes next, which it returns.
    async fn settle_and_fetch(&self, in_hand: Understood, inbox: &mut L::Inbox) -> Understood {
        let progress_every = inbox.ack_wait() / 3;
        let mut settling = std::pin::pin!(self.settle(in_hand, progress_every));
        let mut progress = tokio::time::interval_at(Instant::now() + progress_every, progress_every);
        let mut next = Understood::default();
        // What keeps messages from being fetched is met, and told, by the next fetch.
        let mut can_fetch = true;
        loop {
            let free = self.batch_max().saturating_sub(next.len());
            tokio::select! {
                biased;
                () = &mut settling => return next,
                fetched = inbox.next_batch(free, IDLE_MAX), if can_fetch && free > 0 => match fetched {
                    Ok(deliveries) => self.understand(deliveries, &mut next),
                    Err(_) => can_fetch = false,
                },
                _ = progress.tick(), if !next.is_empty() => {
                    join_all(next.deliveries().map(Delivery::progress)).await;
                }
            }
        }
    }

    fn understand(&self, deliveries: Vec<Delivery>, understood: &mut Understood) {
        for delivery in deliveries {
            self.service.metrics.delivery(CONSUMER, delivery.deliveries);
            understood.add(delivery);
        }
    }

    /// Writes what the deliveries say, and settles each of them.
    async fn settle(&self, in_hand: Understood, progress_every: Duration) {
        let Understood { good, bad } = in_hand;
        for (delivery, error) in bad {
            self.set_aside_unreadable(delivery, &error).await;
        }
        let (deliveries, readings): (Vec<_>, Vec<_>) = good.into_iter().unzip();
        let batch = batch_of(&readings);
        match self.write(&batch, &deliveries, progress_every).await {
            Ok(_) => {
                join_all(deliveries.into_iter().map(Delivery::ack)).await;
            }
            Err(GaveUp::Shutdown) => hand_back(deliveries).await,
            Err(error) => {
                tracing::warn!(%error, messages = deliveries.len(), "the database refuses a batch; writing its messages one by one");
                self.write_one_by_one(deliveries, readings, progress_every).await;
            }
        }
    }

    /// Finds the message that the database refuses, and spares the others.
    async fn write_one_by_one(
        &self,
        deliveries: Vec<Delivery>,
        readings: Vec<Reading>,
        progress_every: Duration,
    ) {
        let mut waiting: Vec<(Delivery, Reading)> = deliveries.into_iter().zip(readings).rev().collect();
        while let Some((delivery, reading)) = waiting.pop() {
            let batch = batch_of(std::slice::from_ref(&reading));
            let in_hand: Vec<&Delivery> = std::iter::once(&delivery)
                .chain(waiting.iter().map(|(delivery, _)| delivery))
                .collect();
            match self.write(&batch, in_hand, progress_every).await {
                Ok(_) => delivery.ack().await,
                Err(GaveUp::Shutdown) => {
                    let rest = waiting.into_iter().map(|(delivery, _)| delivery);
                    hand_back(std::iter::once(delivery).chain(rest)).await;
                    return;
                }
                Err(error) => self.set_aside(delivery, error.to_string()).await,
            }
        }
    }

    /// Writes `batch`, trying again while the database is away.
    async fn write<'d>(
        &self,
        batch: &Batch,
        in_hand: impl IntoIterator<Item = &'d Delivery>,
        progress_every: Duration,
    ) -> Result<Written, GaveUp<StoreError>> {
        if batch.is_empty() {
            return Ok(Written::default());
        }
        let began = Instant::now();
        let attempt = || async {
            let written = timeout(TRANSACTION_TIME, self.store.apply(batch)).await;
            written.unwrap_or_else(|_| Err(too_slow())).map_err(by_hope)
        };
        let tell = |again: backoff::Again<'_, StoreError>| {
            let wait_ms = again.wait.as_millis();
            tracing::warn!(error = %again.error, attempt = again.attempt, wait_ms, "messages wait for the database");
            self.service.health.set("database", Err(again.error.to_string()));
        };
        let writing = backoff::retry(backoff::Policy::PATIENT, &self.service.shutdown, attempt, tell);
        let in_hand: Vec<&Delivery> = in_hand.into_iter().collect();
        let written = with_progress(writing, &in_hand, progress_every).await?;
        self.service.health.set("database", Ok(()));
        let rows = written.executions + written.steps + written.alerts;
        self.service
            .metrics
            .projection_batch(in_hand.len(), rows, began.elapsed());
        Ok(written)
    }

    async fn set_aside_unreadable(&self, delivery: Delivery, error: &Unreadable) {
        let may_be_read_later =
            error.is_from_a_newer_build() && delivery.deliveries < NEWER_BUILD_DELIVERIES_MAX;
        if may_be_read_later {
            tracing::warn!(%error, message = ?delivery.message, "left to a newer replica");
            delivery.nak(NEWER_BUILD_RETRY_AFTER).await;
        } else {
            self.set_aside(delivery, error.to_string()).await;
        }
    }

    /// The dead letter comes first: a message is never dropped without one.
    async fn set_aside(&self, delivery: Delivery, reason: String) {
        tracing::error!(message = ?delivery.message, reason, "set aside as a dead letter");
        let letter = dead_letter(&self.durable(), &delivery, reason);
        match self.log.dead_letter(letter).await {
            Ok(()) => {
                self.service.metrics.dead_letter(CONSUMER);
                delivery.term().await;
            }
            Err(error) => {
                tracing::warn!(%error, "the dead letter could not be written; the message comes again");
                delivery.nak(FETCH_RETRY_AFTER).await;
            }
        }
    }
}

/// Brings the database to this build's form, waiting for it where it is away.
pub(crate) async fn prepare(store: &dyn Store, service: &Service) -> Result<(), GaveUp<StoreError>> {
    let attempt = || async {
        let migrated = timeout(TRANSACTION_TIME, store.migrate()).await;
        migrated.unwrap_or_else(|_| Err(too_slow())).map_err(by_hope)
    };
    let tell = |again: backoff::Again<'_, StoreError>| {
        tracing::warn!(error = %again.error, attempt = again.attempt, "waiting for the database");
        service.health.set("database", Err(again.error.to_string()));
    };
    backoff::retry(backoff::Policy::PATIENT, &service.shutdown, attempt, tell).await
}

/// Whether another attempt may succeed.
fn by_hope(error: StoreError) -> Failed<StoreError> {
    match error {
        StoreError::Unavailable(_) => Failed::Transient(error),
        StoreError::Refused(_) | StoreError::Unusable(_) => Failed::Permanent(error),
    }
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(format!(
        "it did not answer within {} s",
        TRANSACTION_TIME.as_secs()
    ))
}

impl Understood {
    fn add(&mut self, delivery: Delivery) {
        let message = &delivery.message;
        let reading = read(Message {
            subject: &message.subject,
            seq: message.seq,
            at: message.at,
            payload: &message.payload,
        });
        match reading {
            Ok(reading) => self.good.push((delivery, reading)),
            Err(error) => self.bad.push((delivery, error)),
        }
    }

    fn len(&self) -> usize {
        self.good.len() + self.bad.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn into_deliveries(self) -> impl Iterator<Item = Delivery> {
        let good = self.good.into_iter().map(|(delivery, _)| delivery);
        good.chain(self.bad.into_iter().map(|(delivery, _)| delivery))
    }

    fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        let good = self.good.iter().map(|(delivery, _)| delivery);
        good.chain(self.bad.iter().map(|(delivery, _)| delivery))
    }
}

/// What `readings` say, as one batch.
pub(crate) fn batch_of(readings: &[Reading]) -> Batch {
    let mut batch = Batch::default();
    for reading in readings {
        match reading {
            Reading::Change(change) => batch.push(change.clone()),
            Reading::Alert(entry) => batch.alerts.push((**entry).clone()),
            Reading::Nothing => {}
        }
    }
    batch
}

/// Runs `work`, and tells the server of `in_hand` meanwhile that somebody is at it.
async fn with_progress<T>(work: impl Future<Output = T>, in_hand: &[&Delivery], every: Duration) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => {
                join_all(in_hand.iter().map(|delivery| delivery.progress())).await;
            }
        }
    }
}

async fn hand_back(deliveries: impl IntoIterator<Item = Delivery>) {
    join_all(
        deliveries
            .into_iter()
            .map(|delivery| delivery.nak(HANDED_BACK_AFTER)),
    )
    .await;
}

#[cfg(test)]
mod tests;
