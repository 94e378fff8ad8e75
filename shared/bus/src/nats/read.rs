//! Reads of a stream without a consumer: batched direct gets, followed to their end.
//!
//! Invariants:
//! - A read is whole or an error: every batch must end with the server's own end mark, and each message
//!   names the one before it.
//! - What was acknowledged before the read began, it holds. With more than one replica a direct get may be
//!   answered by one that lags, so there the leader is asked for the last sequence afterwards.

use std::time::Duration;

use async_nats::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use protocol::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::api::{Api, RequestFailure};
use crate::{
    connect::REQUEST_TIME,
    log::{LogError, LogMessage},
};

/// A message with its headers.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) message: LogMessage,
    pub(crate) headers: HeaderMap,
}

impl Raw {
    /// A message whose headers are not of interest.
    pub(crate) fn plain(message: LogMessage) -> Self {
        Self {
            message,
            headers: HeaderMap::new(),
        }
    }
}

/// Reads of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    api: Api,
    stream: String,
    /// Whether a replica that lags may answer.
    may_lag: bool,
}

/// Messages of one request; with [`BATCH_BYTES_MAX`] far below what the server buffers for a client.
const BATCH_MESSAGES_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How long a read may go on trying.
const READ_TIME: Duration = Duration::from_secs(10);

/// What a batch brought.
struct Batch {
    messages: Vec<Raw>,
    /// Messages on the filter that are still to come.
    pending: u64,
}

impl Reader {
    /// `replicas` as the stream has them.
    pub(crate) fn new(api: Api, stream: &str, replicas: usize) -> Self {
        Self {
            api,
            stream: stream.to_owned(),
            may_lag: replicas > 1,
        }
    }

    /// All messages on `filter` from `first_seq` on, at most `max`.
    pub(crate) async fn all(&self, filter: &str, first_seq: u64, max: usize) -> Result<Vec<Raw>, LogError> {
        let deadline = Instant::now() + READ_TIME;
        loop {
            let error = match self.all_once(filter, first_seq, max).await {
                Ok(messages) => match self.is_behind(filter, &messages, max).await {
                    Ok(false) => return Ok(messages),
                    Ok(true) => LogError::unavailable(
                        format!("read {filter}"),
                        "the replica that answered lags behind",
                    ),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let pause = Duration::from_millis(20) + crate::jitter::up_to(Duration::from_millis(80));
            if !error.is_transient() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn all_once(&self, filter: &str, first_seq: u64, max: usize) -> Result<Vec<Raw>, LogError> {
        let mut messages = Vec::new();
        let mut next_seq = first_seq.max(1);
        while messages.len() < max {
            // At least two: a batch of one is answered without an end mark when there is none.
            let wanted = (max - messages.len()).clamp(2, BATCH_MESSAGES_MAX);
            let batch = self.batch(filter, next_seq, wanted).await?;
            let Some(last) = batch.messages.last() else { break };
            next_seq = last.message.seq + 1;
            messages.extend(batch.messages);
            if batch.pending == 0 {
                break;
            }
        }
        messages.truncate(max);
        Ok(messages)
    }

    async fn batch(&self, filter: &str, next_seq: u64, wanted: usize) -> Result<Batch, LogError> {
        let client = &self.api.connection.client;
        let fail = |reason: &dyn std::fmt::Display| LogError::unavailable(format!("read {filter}"), reason);
        let inbox = client.new_inbox();
        let mut answers = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| fail(&error))?;
        let request =
            json!({"seq": next_seq, "next_by_subj": filter, "batch": wanted, "max_bytes": BATCH_BYTES_MAX});
        client
            .publish_with_reply(
                format!("$JS.API.DIRECT.GET.{}", self.stream),
                inbox,
                request.to_string().into(),
            )
            .await
            .map_err(|error| fail(&error))?;
        let mut messages: Vec<Raw> = Vec::new();
        loop {
            let answer = match timeout(REQUEST_TIME, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(fail(&"the connection was closed")),
                Err(_) => return Err(fail(&"no answer in time")),
            };
            match answer.status {
                None | Some(StatusCode::OK) => {
                    let headers = answer.headers.unwrap_or_default();
                    let before = number(&headers, header::NATS_LAST_SEQUENCE);
                    let expected = messages.last().map_or(0, |raw| raw.message.seq);
                    if before != Some(expected) {
                        return Err(fail(&"a message of the answer was lost on the way"));
                    }
                    messages.push(
                        raw(headers, answer.payload)
                            .ok_or_else(|| fail(&"an answer without its sequence"))?,
                    );
                }
                Some(StatusCode::NOT_FOUND) => return Ok(Batch { messages, pending: 0 }),
                Some(status) if status.as_u16() == END_OF_BATCH => {
                    let headers = answer.headers.unwrap_or_default();
                    let last = messages.last().map_or(0, |raw| raw.message.seq);
                    if number(&headers, header::NATS_LAST_SEQUENCE) != Some(last) {
                        return Err(fail(&"a message of the answer was lost on the way"));
                    }
                    let pending = number(&headers, "Nats-Num-Pending").unwrap_or(0);
                    return Ok(Batch { messages, pending });
                }
                Some(StatusCode::NO_RESPONDERS) => {
                    return Err(fail(&format!("{} has no leader just now", self.stream)));
                }
                Some(status) => {
                    return Err(fail(&format!(
                        "{status} {}",
                        answer.description.unwrap_or_default()
                    )));
                }
            }
        }
    }

    /// Whether the leader has more on `filter` than a read brought.
    async fn is_behind(&self, filter: &str, messages: &[Raw], max: usize) -> Result<bool, LogError> {
        if !self.may_lag || messages.len() == max {
            return Ok(false);
        }
        let last_read = messages.last().map_or(0, |raw| raw.message.seq);
        Ok(self
            .leader_last(filter)
            .await?
            .is_some_and(|last| last > last_read))
    }

    /// The sequence of the newest message on `filter`, as the leader has it.
    async fn leader_last(&self, filter: &str) -> Result<Option<u64>, LogError> {
        #[derive(Deserialize)]
        struct Answer {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            seq: u64,
        }
        let endpoint = format!("STREAM.MSG.GET.{}", self.stream);
        match self
            .api
            .request::<Answer>(&endpoint, Some(&json!({"last_by_subj": filter})))
            .await
        {
            Ok(answer) => Ok(Some(answer.message.seq)),
            Err(RequestFailure::NotFound) => Ok(None),
            Err(RequestFailure::Log(error)) => Err(error),
        }
    }

    /// The newest message on `filter`.
    pub(crate) async fn last(&self, filter: &str) -> Result<Option<Raw>, LogError> {
        if self.may_lag {
            let Some(seq) = self.leader_last(filter).await? else {
                return Ok(None);
            };
            return Ok(self.all(filter, seq, usize::MAX).await?.pop());
        }
        self.one(json!({"last_by_subj": filter}), filter).await
    }

    /// The message at `seq`.
    pub(crate) async fn at(&self, seq: u64) -> Result<Option<Raw>, LogError> {
        self.one(json!({"seq": seq}), &format!("message {seq} of {}", self.stream))
            .await
    }

    /// The first message on `filter` at `seq` or after it.
    pub(crate) async fn first(&self, filter: &str, seq: u64) -> Result<Option<Raw>, LogError> {
        self.one(json!({"seq": seq.max(1), "next_by_subj": filter}), filter)
            .await
    }

    async fn one(&self, request: serde_json::Value, what: &str) -> Result<Option<Raw>, LogError> {
        let answer = self
            .api
            .connection
            .client
            .request(
                format!("$JS.API.DIRECT.GET.{}", self.stream),
                request.to_string().into(),
            )
            .await
            .map_err(|error| LogError::unavailable(format!("read {what}"), error))?;
        match answer.status {
            None | Some(StatusCode::OK) => raw(answer.headers.unwrap_or_default(), answer.payload)
                .map(Some)
                .ok_or_else(|| {
                    LogError::unavailable(format!("read {what}"), "an answer without its sequence")
                }),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(LogError::unavailable(
                format!("read {what}"),
                format!("{status} {}", answer.description.unwrap_or_default()),
            )),
        }
    }
}

/// The status of a batch's end mark.
const END_OF_BATCH: u16 = 204;

/// The last of a header's values: the server adds its own behind those that the writer sent.
fn number(headers: &HeaderMap, name: impl header::IntoHeaderName) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}

fn raw(headers: HeaderMap, payload: Bytes) -> Option<Raw> {
    let message = LogMessage {
        subject: headers.get_last(header::NATS_SUBJECT)?.as_str().to_owned(),
        seq: number(&headers, header::NATS_SEQUENCE)?,
        at: headers.get_last(header::NATS_TIME_STAMP)?.as_str().parse().ok()?,
        payload,
    };
    Some(Raw { message, headers })
}

/// The server's nanoseconds as ours.
pub(crate) fn timestamp(nanos: i128) -> Timestamp {
    Timestamp::from_millis(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX))
}
