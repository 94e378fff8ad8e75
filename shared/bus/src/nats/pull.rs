//! Pull requests to one consumer: as much demand at the server as the caller has room, and no more.
//!
//! Invariants:
//! - Messages on the way never exceed what the caller asked for in its last call.
//! - A request that the server has lost (restart, new leader, cut connection) is noticed: by the reconnect,
//!   by the server's word, or at the latest by two heartbeats that did not come.
//! - Every wait may be dropped without losing a message.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    api::{Api, RequestFailure},
    read::{caller, timestamp},
};
use crate::{
    connect::Connected,
    log::{LogError, LogMessage},
};

/// The server says that it is still there this often.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// A request ends by itself after this.
const EXPIRES: Duration = Duration::from_secs(30);

/// Pause before asking again where a consumer has no leader just now.
const UNANSWERED_PAUSE: Duration = Duration::from_millis(250);

/// Unanswered requests in a row, after which the consumer is asked for by name.
const UNANSWERED_MAX: u32 = 4;

/// A message as a consumer delivered it.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) message: LogMessage,
    pub(crate) deliveries: u64,
    /// Counts what the consumer delivered, from 1, without gaps.
    pub(crate) consumer_seq: u64,
    pub(crate) reply: async_nats::Subject,
}

/// The pulling end of one consumer.
#[derive(Debug)]
pub(crate) struct Puller {
    api: Api,
    stream: String,
    consumer: String,
    subscription: Option<Subscriber>,
    inbox: String,
    reconnects: watch::Receiver<Connected>,
    /// Messages asked for and neither delivered nor given up by the server.
    outstanding: usize,
    heard_at: Instant,
    not_before: Instant,
    unanswered: u32,
    missing_since: Option<Instant>,
    missing_grace: Duration,
}

impl Puller {
    /// `missing_grace`: for how long the consumer may be missing before that is an error.
    pub(crate) fn new(api: Api, stream: &str, consumer: &str, missing_grace: Duration) -> Self {
        let mut reconnects = api.connection.connected();
        reconnects.mark_unchanged();
        Self {
            api,
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            subscription: None,
            inbox: String::new(),
            reconnects,
            outstanding: 0,
            heard_at: Instant::now(),
            not_before: Instant::now(),
            unanswered: 0,
            missing_since: None,
            missing_grace,
        }
    }

    /// Waits for messages; see [`crate::Inbox::next_batch`].
    pub(crate) async fn next_batch(
        &mut self,
        max: usize,
        wait_max: Duration,
    ) -> Result<Vec<Pulled>, LogError> {
        let deadline = Instant::now() + wait_max;
        loop {
            let at_hand = self.at_hand(max);
            if !at_hand.is_empty() {
                return Ok(at_hand);
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            if self.unanswered >= UNANSWERED_MAX {
                self.check_consumer().await?;
            }
            self.ask(max).await?;
            // What arrives ends the wait, and is returned without another await: being dropped loses nothing.
            if let Some(message) = self.wait(deadline).await
                && let Some(first) = self.hear(message)
            {
                let mut messages = vec![first];
                messages.extend(self.at_hand(max.saturating_sub(1)));
                return Ok(messages);
            }
        }
    }

    /// Takes no more; what was delivered and not taken is returned.
    pub(crate) async fn close(mut self) -> Vec<Pulled> {
        if let Some(subscription) = &mut self.subscription {
            // Without interest the server drops our requests. Any answer shows that it knows by now.
            let _ = subscription.unsubscribe().await;
            let answer = self.api.connection.client.request("$JS.API.INFO", Bytes::new());
            let _ = tokio::time::timeout(Duration::from_secs(1), answer).await;
        }
        self.at_hand(usize::MAX)
    }

    /// What has arrived, without waiting.
    fn at_hand(&mut self, max: usize) -> Vec<Pulled> {
        let mut messages = Vec::new();
        while messages.len() < max {
            let Some(subscription) = &mut self.subscription else {
                break;
            };
            match subscription.next().now_or_never() {
                Some(Some(message)) => messages.extend(self.hear(message)),
                Some(None) => {
                    self.subscription = None;
                    break;
                }
                None => break,
            }
        }
        messages
    }

    /// Takes in one message of the server: a delivery, or word about our requests.
    fn hear(&mut self, message: Message) -> Option<Pulled> {
        self.heard_at = Instant::now();
        let Some(status) = message.status else {
            self.outstanding = self.outstanding.saturating_sub(1);
            self.unanswered = 0;
            return pulled(message);
        };
        match status {
            StatusCode::IDLE_HEARTBEAT => self.unanswered = 0,
            StatusCode::NO_RESPONDERS => {
                self.outstanding = 0;
                self.unanswered += 1;
                self.not_before = Instant::now() + UNANSWERED_PAUSE;
            }
            _ => {
                let given_up = message.headers.as_ref().and_then(|headers| {
                    headers
                        .get("Nats-Pending-Messages")?
                        .as_str()
                        .parse::<usize>()
                        .ok()
                });
                match given_up {
                    Some(messages) => self.outstanding = self.outstanding.saturating_sub(messages),
                    None => {
                        tracing::debug!(consumer = self.consumer, %status, description = message.description.as_deref(), "pull requests ended");
                        self.outstanding = 0;
                        self.unanswered += 1;
                        self.not_before = Instant::now() + UNANSWERED_PAUSE;
                    }
                }
            }
        }
        None
    }

    /// Brings the demand at the server up to `max`, where it is below half of it.
    async fn ask(&mut self, max: usize) -> Result<(), LogError> {
        if self.reconnects.has_changed().unwrap_or(false) {
            self.reconnects.mark_unchanged();
            self.forget();
        }
        if Instant::now() < self.not_before || self.outstanding > max / 2 || self.outstanding >= max {
            return Ok(());
        }
        let fail = |error: &dyn std::fmt::Display| LogError::unavailable("take a pull request", error);
        let client = &self.api.connection.client;
        if self.subscription.is_none() {
            self.inbox = client.new_inbox();
            self.subscription = Some(
                client
                    .subscribe(self.inbox.clone())
                    .await
                    .map_err(|error| fail(&error))?,
            );
        }
        let wanted = max - self.outstanding;
        let request = json!({
            "batch": wanted,
            "expires": EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        if self.outstanding == 0 {
            self.heard_at = Instant::now();
        }
        self.outstanding += wanted;
        client
            .publish_with_reply(
                format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer),
                self.inbox.clone(),
                Bytes::from(request.to_string()),
            )
            .await
            .map_err(|error| fail(&error))
    }

    /// Waits until something arrives, the server has to be asked again, or `deadline`.
    async fn wait(&mut self, deadline: Instant) -> Option<Message> {
        let ask_at = if self.outstanding == 0 {
            self.not_before
        } else {
            self.silent_at()
        };
        let Some(subscription) = &mut self.subscription else {
            sleep_until(ask_at.min(deadline)).await;
            return None;
        };
        tokio::select! {
            biased;
            message = subscription.next() => {
                if message.is_none() {
                    self.forget();
                    self.not_before = Instant::now() + UNANSWERED_PAUSE;
                }
                message
            }
            _ = self.reconnects.changed() => {
                self.forget();
                None
            }
            () = sleep_until(ask_at.min(deadline)) => {
                if self.outstanding > 0 && Instant::now() >= self.silent_at() {
                    tracing::debug!(consumer = self.consumer, "no heartbeat; asking again");
                    self.unanswered += 1;
                    self.forget();
                }
                None
            }
        }
    }

    /// When silence means that our requests are lost.
    fn silent_at(&self) -> Instant {
        self.heard_at + HEARTBEAT * 2 + HEARTBEAT / 2
    }

    /// Begins anew, with an inbox of its own, so that nothing of before is counted.
    fn forget(&mut self) {
        self.subscription = None;
        self.outstanding = 0;
        self.not_before = Instant::now();
    }

    /// Whether the consumer is there at all. A cluster in motion may deny it for a moment.
    async fn check_consumer(&mut self) -> Result<(), LogError> {
        self.unanswered = 0;
        let endpoint = format!("CONSUMER.INFO.{}.{}", self.stream, self.consumer);
        match self.api.request::<serde_json::Value>(&endpoint, None).await {
            Ok(_) => self.missing_since = None,
            Err(RequestFailure::NotFound) => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.missing_grace {
                    return Err(LogError::Missing {
                        what: format!("the consumer {} of {}", self.consumer, self.stream),
                    });
                }
                self.not_before = Instant::now() + UNANSWERED_PAUSE;
            }
            Err(RequestFailure::Log(error)) => tracing::debug!(%error, "the consumer cannot be asked for"),
        }
        Ok(())
    }
}

/// A delivery, where the server's reply subject says what it must.
fn pulled(message: Message) -> Option<Pulled> {
    let reply = message.reply.clone()?;
    let place = Place::parse(&reply)?;
    Some(Pulled {
        message: LogMessage {
            subject: message.subject.to_string(),
            seq: place.stream_seq,
            at: timestamp(place.nanos),
            caller: message.headers.as_ref().and_then(caller),
            payload: message.payload,
        },
        deliveries: place.deliveries,
        consumer_seq: place.consumer_seq,
        reply,
    })
}

/// What a delivery's reply subject tells.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    deliveries: u64,
    stream_seq: u64,
    consumer_seq: u64,
    nanos: i128,
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<nanos>.<pending>`, or with the
    /// domain and the account's hash behind `ACK`, and perhaps a token at the end (ADR-15).
    fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.split('.').collect();
        let skip = match tokens.len() {
            9 => 4,
            11.. => 6,
            _ => return None,
        };
        if tokens[..2] != ["$JS", "ACK"] {
            return None;
        }
        Some(Self {
            deliveries: tokens[skip].parse().ok()?,
            stream_seq: tokens[skip + 1].parse().ok()?,
            consumer_seq: tokens[skip + 2].parse().ok()?,
            nanos: tokens[skip + 3].parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_reply_subjects_are_read() {
        let place = Some(Place {
            deliveries: 2,
            stream_seq: 7,
            consumer_seq: 9,
            nanos: 1_700_000_000_000_000_000,
        });
        assert_eq!(
            Place::parse("$JS.ACK.FIST_LOG.cli.2.7.9.1700000000000000000.5"),
            place
        );
        assert_eq!(
            Place::parse("$JS.ACK._.hash.FIST_LOG.cli.2.7.9.1700000000000000000.5"),
            place
        );
        assert_eq!(
            Place::parse("$JS.ACK.hub.hash.FIST_LOG.cli.2.7.9.1700000000000000000.5.token"),
            place
        );
        assert_eq!(Place::parse("_INBOX.1"), None);
        assert_eq!(Place::parse("$JS.ACK.FIST_LOG.cli.x.7.9.1.5"), None);
    }
}
