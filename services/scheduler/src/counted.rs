//! Counts what a consumer is given, and what it makes a dead letter.

use bus::{Failure, Handler, LogMessage};
use service::Metrics;

/// A handler whose deliveries and dead letters are counted.
pub(crate) struct Counted<H> {
    pub(crate) handler: H,
    /// Name of its consumer.
    pub(crate) consumer: &'static str,
    pub(crate) metrics: Metrics,
}

impl<H: Handler> Handler for Counted<H> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        self.metrics.delivery(self.consumer, deliveries);
        self.counted(self.handler.handle(message, deliveries).await)
    }

    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        self.counted(self.handler.poisoned(message, trials).await)
    }
}

impl<H> Counted<H> {
    fn counted(&self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(Failure::Reject { .. }) = &outcome {
            self.metrics.dead_letter(self.consumer);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use protocol::Timestamp;

    use super::*;

    /// Rejects what says so, and has the rest come again.
    struct Picky;

    impl Handler for Picky {
        async fn handle(&self, message: LogMessage, _deliveries: u64) -> Result<(), Failure> {
            match &message.payload[..] {
                b"good" => Ok(()),
                b"bad" => Err(Failure::reject("bad")),
                _ => Err(Failure::Retry {
                    after: Duration::from_secs(1),
                    reason: "later".to_owned(),
                }),
            }
        }
    }

    #[tokio::test]
    async fn dead_letters_are_counted_and_what_comes_again_is_not() {
        let counted = Counted {
            handler: Picky,
            consumer: "scheduler",
            metrics: Metrics::new(),
        };
        let message = |text: &'static str| LogMessage {
            subject: "fist.fact.x".to_owned(),
            seq: 1,
            at: Timestamp::from_millis(0),
            payload: text.into(),
            caller: None,
        };
        counted.handle(message("good"), 1).await.unwrap();
        counted.handle(message("later"), 1).await.unwrap_err();
        counted.handle(message("bad"), 2).await.unwrap_err();
        counted.poisoned(message("good"), 9).await.unwrap_err();
        let text = counted.metrics.encode();
        for line in [
            "fist_deliveries_total{consumer=\"scheduler\"} 3",
            "fist_redeliveries_total{consumer=\"scheduler\"} 1",
            "fist_dead_letters_total{consumer=\"scheduler\"} 2",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
        }
    }
}
