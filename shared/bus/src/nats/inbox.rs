//! A durable pull consumer of a real server.

use std::time::Duration;

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
    api: Api,
    puller: Puller,
    trials: Trials,
    ack_wait: Duration,
}

impl NatsInbox {
    pub(crate) fn new(api: Api, durable: &Durable, trials: Trials) -> Self {
        Self {
            puller: Puller::new(api.clone(), durable.stream.name(), durable.name, MISSING_GRACE),
            api,
            trials,
            ack_wait: durable.ack_wait,
        }
    }

    fn deliver(&self, pulled: Pulled) -> Delivery {
        Delivery {
            message: pulled.message,
            deliveries: pulled.deliveries,
            receipt: Receipt::Nats(NatsReceipt {
                client: self.api.connection.client.clone(),
                reply: pulled.reply,
                trials: self.trials.clone(),
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
        let client = self.api.connection.client.clone();
        for pulled in self.puller.close().await {
            let settled = client.publish(pulled.reply, nak(UNTOUCHED_AFTER)).await;
            if let Err(error) = settled {
                tracing::debug!(%error, "a message was not handed back; it comes again after ack_wait");
            }
        }
    }
}

/// Where the server wants to hear about a delivery.
#[derive(Clone, Debug)]
pub(crate) struct NatsReceipt {
    client: async_nats::Client,
    reply: async_nats::Subject,
    trials: Trials,
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
        if let Err(error) = self.client.publish(self.reply.clone(), word).await {
            tracing::debug!(%error, "an acknowledgement was not sent; the message comes again");
        }
    }

    pub(crate) async fn trial_begins(&self, seq: u64) -> Result<u64, LogError> {
        self.trials.begin(seq).await
    }

    pub(crate) async fn trial_ends(&self, seq: u64) {
        self.trials.end(seq).await;
    }
}
