//! A durable pull consumer of a real server.

use bytes::Bytes;

use crate::{inbox::Settlement, log::LogError};

/// Where the server wants to hear about a delivery.
#[derive(Clone, Debug)]
pub(crate) struct NatsReceipt {
    client: async_nats::Client,
    reply: async_nats::Subject,
    trials: super::trials::Trials,
}

impl NatsReceipt {
    pub(crate) async fn settle(&self, settlement: Settlement) {
        let word = match settlement {
            Settlement::Ack => Bytes::from_static(b"+ACK"),
            Settlement::NakAfter(after) => {
                // The server reads nanoseconds.
                Bytes::from(format!("-NAK {{\"delay\":{}}}", after.as_nanos()))
            }
            Settlement::Term => Bytes::from_static(b"+TERM"),
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
