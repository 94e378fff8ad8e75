//! Reads of a stream without a consumer: batched direct gets, followed to their end.
//!
//! Invariants:
//! - A read is whole or an error: every answer must end with the server's own end mark, and each message
//!   names the one before it.
//! - Reads of one execution go by the server's index of subjects. Searching by wildcard walks the blocks of
//!   the whole stream once that holds more than 64 Ki subjects: 180 ms at 400,000 messages against 1.
//! - What was acknowledged before the read began, it holds. With more than one replica a direct get may be
//!   answered by one that lags, so there the leader is asked for the last sequence afterwards.

use std::{future::Future, time::Duration};

use async_nats::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures_util::{StreamExt, future::try_join_all};
use protocol::{SpanContext, Timestamp, trace::TRACEPARENT};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::api::{Api, EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, RequestFailure};
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

/// What one request brought.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<Raw>,
    /// Messages that are still to come.
    pending: u64,
    /// Where a request for the last of each subject looked up to.
    up_to: u64,
    /// Whether the server refused, because there are more than it gives at once.
    is_too_much: bool,
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

    /// Whether there are copies of the stream on several servers.
    pub(crate) fn is_replicated(&self) -> bool {
        self.may_lag
    }

    /// All messages on `filter` from `first_seq` on, at most `max`, by walking the stream. For filters that
    /// most messages are on: for others the server searches block by block, which takes the longer the
    /// larger the stream is.
    pub(crate) async fn all(&self, filter: &str, first_seq: u64, max: usize) -> Result<Vec<Raw>, LogError> {
        repeatedly(|| async {
            let messages = self.walk(filter, first_seq, max).await?;
            // Behind the stream's end there is nothing, and no replica lags for that.
            let last_read = messages
                .last()
                .map_or(first_seq.saturating_sub(1), |raw| raw.message.seq);
            if messages.len() < max {
                self.check_lag(filter, last_read).await?;
            }
            Ok(messages)
        })
        .await
    }

    /// All messages on `filter`, of which no subject holds more than one. The server finds them by its index.
    pub(crate) async fn write_once(&self, filter: &str) -> Result<Vec<Raw>, LogError> {
        repeatedly(|| async {
            let Some((messages, _)) = self.last_of_each(&[filter], 0).await? else {
                return self.walk(filter, 1, usize::MAX).await;
            };
            self.check_lag(filter, messages.last().map_or(0, |raw| raw.message.seq))
                .await?;
            Ok(messages)
        })
        .await
    }

    /// All messages behind `after` on `once`, of which no subject holds more than one, and on `lane`, of which few
    /// subjects hold many: as they were at one moment, in stream order. From the beginning on, where the lane went on
    /// from another message than the one at `after`.
    pub(crate) async fn moment(&self, once: &str, lane: &str, after: u64) -> Result<Vec<Raw>, LogError> {
        repeatedly(|| self.moment_once(once, lane, after)).await
    }

    async fn moment_once(&self, once: &str, lane: &str, after: u64) -> Result<Vec<Raw>, LogError> {
        let (messages, lane_last, once_last) = match self.last_of_each(&[lane, once], after).await? {
            Some((newest, up_to)) => {
                let once_prefix = once.trim_end_matches('>');
                let (facts, ends): (Vec<Raw>, Vec<Raw>) = newest
                    .into_iter()
                    .partition(|raw| raw.message.subject.starts_with(once_prefix));
                let lane_last = ends.last().map_or(after, |end| end.message.seq);
                let once_last = facts.last().map_or(after, |fact| fact.message.seq);
                let lane = if is_unbroken(&ends, lane, after) {
                    ends
                } else {
                    let subjects = ends.iter().map(|end| self.subject(&end.message, after, up_to));
                    try_join_all(subjects).await?.into_iter().flatten().collect()
                };
                let messages = lane.into_iter().chain(facts).collect();
                (messages, lane_last, once_last)
            }
            // More than the server gives at once. The lane first: what it names was in the log before it, so
            // that the facts read afterwards hold it.
            None => {
                let mut messages = self.walk(lane, after + 1, usize::MAX).await?;
                let lane_last = messages.last().map_or(after, |raw| raw.message.seq);
                let facts = self.walk(once, after + 1, usize::MAX).await?;
                let once_last = facts.last().map_or(after, |raw| raw.message.seq);
                messages.extend(facts);
                (messages, lane_last, once_last)
            }
        };
        self.check_lag(lane, lane_last).await?;
        self.check_lag(once, once_last).await?;
        let mut messages: Vec<Raw> = messages;
        messages.sort_unstable_by_key(|raw| raw.message.seq);
        let is_of_lane = |raw: &&Raw| !raw.message.subject.starts_with(once.trim_end_matches('>'));
        let goes_on = messages
            .iter()
            .find(is_of_lane)
            .is_none_or(|first| guard(first, lane) == Some(after));
        if after > 0 && !goes_on {
            return Box::pin(self.moment_once(once, lane, 0)).await;
        }
        Ok(messages)
    }

    /// All messages on the subject of `last` behind `after` and up to `up_to`, of which `last` is the last.
    async fn subject(&self, last: &LogMessage, after: u64, up_to: u64) -> Result<Vec<Raw>, LogError> {
        let mut messages = self.walk(&last.subject, after + 1, usize::MAX).await?;
        messages.retain(|raw| raw.message.seq <= up_to);
        if messages.last().map(|raw| raw.message.seq) == Some(last.seq) {
            Ok(messages)
        } else {
            Err(LogError::unavailable(
                format!("read {}", last.subject),
                "two answers differ; one was of a replica that lags behind",
            ))
        }
    }

    async fn walk(&self, filter: &str, first_seq: u64, max: usize) -> Result<Vec<Raw>, LogError> {
        let mut messages = Vec::new();
        let mut next_seq = first_seq.max(1);
        let mut announced = false;
        while messages.len() < max {
            // At least two: a batch of one is answered without an end mark when there is none.
            let wanted = (max - messages.len()).clamp(2, BATCH_MESSAGES_MAX);
            let request = json!({"seq": next_seq, "next_by_subj": filter, "batch": wanted, "max_bytes": BATCH_BYTES_MAX});
            let answer = self.ask(request, filter).await?;
            let Some(last) = answer.messages.last() else {
                if announced {
                    return Err(unavailable(filter, "more was announced than came"));
                }
                break;
            };
            next_seq = last.message.seq + 1;
            announced = answer.pending > 0;
            messages.extend(answer.messages);
            if !announced {
                break;
            }
        }
        messages.truncate(max);
        Ok(messages)
    }

    /// The last message behind `after` of each subject on any of `filters`, in stream order, and up to where that
    /// looked; `None` where there are more than the server gives at once.
    async fn last_of_each(&self, filters: &[&str], after: u64) -> Result<Option<(Vec<Raw>, u64)>, LogError> {
        let what = filters.join(", ");
        let mut messages: Vec<Raw> = Vec::new();
        let mut up_to = 0;
        loop {
            let next_seq = messages.last().map_or(after, |raw| raw.message.seq) + 1;
            let request = json!({
                "multi_last": filters, "seq": next_seq, "up_to_seq": up_to, "max_bytes": BATCH_BYTES_MAX,
            });
            let answer = self.ask(request, &what).await?;
            if answer.is_too_much {
                return Ok(None);
            }
            let is_empty = answer.messages.is_empty();
            up_to = answer.up_to.max(up_to);
            messages.extend(answer.messages);
            if answer.pending == 0 {
                return Ok(Some((messages, up_to)));
            }
            if is_empty {
                return Err(unavailable(&what, "more was announced than came"));
            }
        }
    }

    /// Sends one request for several messages, and takes the answer to its end mark.
    async fn ask(&self, request: serde_json::Value, what: &str) -> Result<Answer, LogError> {
        let client = &self.api.connection.client;
        let inbox = client.new_inbox();
        let mut incoming = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| unavailable(what, error))?;
        client
            .publish_with_reply(
                format!("$JS.API.DIRECT.GET.{}", self.stream),
                inbox,
                request.to_string().into(),
            )
            .await
            .map_err(|error| unavailable(what, error))?;
        let mut answer = Answer::default();
        loop {
            let message = match timeout(REQUEST_TIME, incoming.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(unavailable(what, "the connection was closed")),
                Err(_) => return Err(unavailable(what, "no answer in time")),
            };
            let headers = message.headers.unwrap_or_default();
            let before = answer.messages.last().map_or(0, |raw| raw.message.seq);
            let follows = number(&headers, header::NATS_LAST_SEQUENCE) == Some(before);
            match message.status.map(|status| status.as_u16()) {
                None | Some(OK) => {
                    if !follows {
                        return Err(unavailable(what, "a message of the answer was lost on the way"));
                    }
                    let raw = raw(headers, message.payload)
                        .ok_or_else(|| unavailable(what, "an answer without its sequence"))?;
                    answer.messages.push(raw);
                }
                Some(END_OF_BATCH) => {
                    if !follows {
                        return Err(unavailable(what, "a message of the answer was lost on the way"));
                    }
                    answer.pending = number(&headers, "Nats-Num-Pending").unwrap_or(0);
                    answer.up_to = number(&headers, "Nats-UpTo-Sequence").unwrap_or(0);
                    return Ok(answer);
                }
                // The server folds the failure to load a message into the same status, with other words.
                Some(NOT_FOUND)
                    if answer.messages.is_empty() && is_none(message.description.as_deref(), &request) =>
                {
                    return Ok(answer);
                }
                Some(TOO_MUCH) => {
                    answer.is_too_much = true;
                    return Ok(answer);
                }
                Some(NO_RESPONDERS) => {
                    return Err(unavailable(
                        what,
                        format!("{} has no leader just now", self.stream),
                    ));
                }
                Some(status) => {
                    let words = message.description.unwrap_or_default();
                    return Err(unavailable(what, format!("{status} {words}")));
                }
            }
        }
    }

    /// An error when the leader has more on `filter` than a read brought, which went to `last_read`.
    async fn check_lag(&self, filter: &str, last_read: u64) -> Result<(), LogError> {
        if self.may_lag
            && self
                .leader_last(filter)
                .await?
                .is_some_and(|last| last > last_read)
        {
            return Err(unavailable(filter, "the replica that answered lags behind"));
        }
        Ok(())
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

    /// Whether there is a message on any of `subjects`, which have no wildcards.
    pub(crate) async fn holds_any(&self, subjects: &[String]) -> Result<bool, LogError> {
        if self.may_lag {
            let lasts = subjects.iter().map(|subject| self.leader_last(subject));
            return Ok(try_join_all(lasts).await?.iter().any(Option::is_some));
        }
        // Where there are several, the client drops all answers but the first, which is enough.
        let what = subjects.join(", ");
        let found = self.one(json!({"multi_last": subjects}), &what).await?;
        Ok(found.is_some())
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
            Some(StatusCode::NOT_FOUND) if is_none(answer.description.as_deref(), &request) => Ok(None),
            Some(status) => Err(LogError::unavailable(
                format!("read {what}"),
                format!("{status} {}", answer.description.unwrap_or_default()),
            )),
        }
    }
}

/// Whether `ends`, the last message of each subject of a lane, are all that the lane has behind `after`: each was
/// appended behind the one before it, as its own guard says, which the server checked.
fn is_unbroken(ends: &[Raw], lane: &str, after: u64) -> bool {
    let mut before = after;
    ends.iter().all(|end| {
        let follows = guard(end, lane) == Some(before);
        before = end.message.seq;
        follows
    })
}

/// The sequence of the lane's message that this one was appended behind; 0 for the first.
fn guard(raw: &Raw, lane: &str) -> Option<u64> {
    let filter = raw.headers.get(EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT)?;
    (filter.as_str() == lane)
        .then(|| number(&raw.headers, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE))
        .flatten()
}

// Statuses of an answer.
const OK: u16 = 200;
const END_OF_BATCH: u16 = 204;
const NOT_FOUND: u16 = 404;
const TOO_MUCH: u16 = 413;
const NO_RESPONDERS: u16 = 503;

/// Whether "not found" means that there is none, rather than that one could not be loaded.
fn is_none(description: Option<&str>, request: &serde_json::Value) -> bool {
    request.get("multi_last").is_none() || description == Some("No Results")
}

fn unavailable(what: &str, reason: impl std::fmt::Display) -> LogError {
    LogError::unavailable(format!("read {what}"), reason)
}

/// Repeats a read until it is whole, or [`READ_TIME`] is over.
async fn repeatedly<T, F: Future<Output = Result<T, LogError>>>(
    mut read: impl FnMut() -> F,
) -> Result<T, LogError> {
    let deadline = Instant::now() + READ_TIME;
    loop {
        let error = match read().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let pause = Duration::from_millis(20) + crate::jitter::up_to(Duration::from_millis(80));
        if !error.is_transient() || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "reading again");
        tokio::time::sleep(pause).await;
    }
}

/// The last of a header's values: the server adds its own behind those that the writer sent.
fn number(headers: &HeaderMap, name: impl header::IntoHeaderName) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}

/// The span that a message's writer names. What is no `traceparent` is ignored, as W3C has it.
pub(crate) fn caller(headers: &HeaderMap) -> Option<SpanContext> {
    headers.get(TRACEPARENT)?.as_str().parse().ok()
}

fn raw(headers: HeaderMap, payload: Bytes) -> Option<Raw> {
    let message = LogMessage {
        subject: headers.get_last(header::NATS_SUBJECT)?.as_str().to_owned(),
        seq: number(&headers, header::NATS_SEQUENCE)?,
        at: headers.get_last(header::NATS_TIME_STAMP)?.as_str().parse().ok()?,
        payload,
        caller: caller(&headers),
    };
    Some(Raw { message, headers })
}

/// The server's nanoseconds as ours.
pub(crate) fn timestamp(nanos: i128) -> Timestamp {
    Timestamp::from_millis(i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX))
}
