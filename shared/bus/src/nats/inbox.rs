//! A durable pull consumer of a real server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    api::Api,
    pull::{Pulled, Puller},
    trials::Trials,
};
use crate::{
    inbox::{Delivery, Inbox, Receipt, Settlement},
    log::LogError,
    topology::Durable,
};

/// A durable consumer is an operator's, so its absence is waited out before it is an error.
const MISSING_GRACE: Duration = Duration::from_secs(10);

/// How soon a message that was delivered and not looked at goes to another.
const UNTOUCHED_AFTER: Duration = Duration::from_millis(50);

/// One end of a durable consumer.
pub struct NatsInbox {
    puller: Puller,
    door: Arc<Door>,
    ack_wait: Duration,
}

/// What every receipt of an inbox needs.
#[derive(Debug)]
struct Door {
    client: async_nats::Client,
    trials: Trials,
}

impl NatsInbox {
    pub(crate) fn new(api: Api, durable: &Durable, trials: Trials) -> Self {
        Self {
            door: Arc::new(Door {
                client: api.connection.client.clone(),
                trials,
            }),
            puller: Puller::new(api, durable.stream.name(), durable.name, MISSING_GRACE),
            ack_wait: durable.ack_wait,
        }
    }

    fn deliver(&self, pulled: Pulled) -> Delivery {
        Delivery {
            message: pulled.message,
            deliveries: pulled.deliveries,
            receipt: Receipt::Nats(NatsReceipt {
                door: Arc::clone(&self.door),
                reply: pulled.reply,
            }),
        }
    }
}

impl Inbox for NatsInbox {
    fn ack_wait(&self) -> Duration {
        self.ack_wait
    }

    async fn next_batch(&mut self, max: usize, wait_max: Duration) -> Result<Vec<Delivery>, LogError> {
        let batch = self.puller.next_batch(max, wait_max).await?;
        Ok(batch.into_iter().map(|pulled| self.deliver(pulled)).collect())
    }

    async fn close(self) {
        for pulled in self.puller.close().await {
            let settled = self.door.client.publish(pulled.reply, nak(UNTOUCHED_AFTER)).await;
            if let Err(error) = settled {
                tracing::debug!(%error, "a message was not handed back; it comes again after ack_wait");
            }
        }
    }
}

/// Where the server wants to hear about a delivery.
#[derive(Clone, Debug)]
pub(crate) struct NatsReceipt {
    door: Arc<Door>,
    reply: async_nats::Subject,
}

/// The server reads nanoseconds.
fn nak(after: Duration) -> Bytes {
    Bytes::from(format!("-NAK {{\"delay\":{}}}", after.as_nanos()))
}

/// Why a message was termed, in the server's advisory: tells ours from others'.
pub(crate) const TERM_REASON: &str = "dead letter written";

impl NatsReceipt {
    pub(crate) async fn settle(&self, settlement: Settlement) {
        let word = match settlement {
            Settlement::Ack => Bytes::from_static(b"+ACK"),
            Settlement::NakAfter(after) => nak(after),
            Settlement::Term => Bytes::from(format!("+TERM {TERM_REASON}")),
            Settlement::Progress => Bytes::from_static(b"+WPI"),
        };
        if let Err(error) = self.door.client.publish(self.reply.clone(), word).await {
            tracing::debug!(%error, "an acknowledgement was not sent; the message comes again");
        }
    }

    pub(crate) async fn trial_begins(&self, seq: u64) -> Result<u64, LogError> {
        self.door.trials.begin(seq).await
    }

    pub(crate) async fn trial_ends(&self, seq: u64) {
        self.door.trials.end(seq).await;
    }
}
