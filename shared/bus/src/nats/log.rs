//! [`Log`] on a real server: the rules of the log, each in one method.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, header, jetstream::kv};
use bytes::Bytes;
use futures_util::FutureExt;
use protocol::{
    Attempt, DeadLetter, ExecutionId, Namespace, SourceName, SpanContext, SpanId, StepName, Subject,
    TaskType, TimerId, Timestamp, TraceId, subjects, trace::TRACEPARENT,
};
use serde::Deserialize;
use service::Spans;
use tokio::time::Instant;

use super::{
    api::{Api, PublishError, compare_and_set, write_once},
    dead, follow,
    inbox::NatsInbox,
    read::Reader,
    trials::Trials,
};
use crate::{
    connect::Connection,
    log::{
        Appended, ConsumerState, Follow, Log, LogError, LogMessage, Position, StoredDeadLetter, StreamState,
        Written,
    },
    topology::{Durable, StreamId, TRIALS_BUCKET},
};

/// The log on a NATS server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NatsLog {
    inner: Arc<Inner>,
    spans: Spans,
}

#[derive(Debug)]
struct Inner {
    api: Api,
    log: Reader,
    alerts: Reader,
    timers: Reader,
    dead_letters: Reader,
    trials: kv::Store,
}

/// How long a write that is safe to repeat is repeated.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// Most messages of one [`Log::read_from`].
const READ_MESSAGES_MAX: usize = 10_000;

impl NatsLog {
    /// Opens the log on `connection`. The streams must be there: see [`crate::topology::check`].
    ///
    /// # Errors
    /// [`LogError::Missing`] where they are not.
    pub async fn open(connection: &Connection) -> Result<Self, LogError> {
        let api = Api {
            connection: connection.clone(),
        };
        let trials = connection
            .context
            .get_key_value(TRIALS_BUCKET)
            .await
            .map_err(|error| bucket_error(TRIALS_BUCKET, &error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                log: reader(&api, StreamId::Log).await?,
                alerts: reader(&api, StreamId::Alerts).await?,
                timers: reader(&api, StreamId::Timers).await?,
                dead_letters: reader(&api, StreamId::DeadLetters).await?,
                api,
                trials,
            }),
            spans: Spans::default(),
        })
    }

    /// The same log, whose messages name the spans that they are about.
    pub fn with_spans(self, spans: Spans) -> Self {
        Self { spans, ..self }
    }

    /// The connection it works on.
    pub fn connection(&self) -> &Connection {
        &self.inner.api.connection
    }

    /// What has to be added to this machine's clock to have that of the NATS server, in milliseconds
    /// ([`service::clock::correction_ms`]).
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn clock_correction_ms(&self) -> Result<i64, LogError> {
        #[derive(Deserialize)]
        struct Told {
            /// When the server wrote its answer.
            ts: Timestamp,
        }
        let stream = StreamId::Log.name();
        let asked = service::clock::machine();
        let told: Told = self
            .inner
            .api
            .request(&format!("STREAM.INFO.{stream}"), None)
            .await
            .map_err(|failure| failure.about(|| format!("the stream {stream}")))?;
        Ok(service::clock::correction_ms(
            asked,
            told.ts,
            service::clock::machine(),
        ))
    }

    /// Repeats a write that is safe to repeat until it is answered or [`WRITE_TIME`] is over.
    async fn write_repeatedly(
        &self,
        stream: StreamId,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Written, LogError> {
        let deadline = Instant::now() + WRITE_TIME;
        let mut pause = Duration::from_millis(10);
        loop {
            let sent = self
                .inner
                .api
                .publish(
                    stream.name(),
                    subject.clone(),
                    Some(headers.clone()),
                    payload.clone(),
                )
                .await;
            let error = match sent {
                Ok(seq) => return Ok(Written::New(seq)),
                Err(PublishError::WrongLast) => return Ok(Written::Already),
                Err(PublishError::Contended) => {
                    LogError::unavailable(format!("take a message on {subject}"), "another writer is at it")
                }
                Err(PublishError::Unknown(error)) => error,
                Err(PublishError::Failed(error @ LogError::Unavailable { .. })) => error,
                Err(PublishError::Failed(error)) => return Err(error),
            };
            let next = Instant::now() + pause + crate::jitter::up_to(pause);
            if next >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, "writing again");
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Names the span that a message is about, so that a runner in any language can write spans below it.
    fn name_span(&self, headers: &mut HeaderMap, about: impl FnOnce() -> Option<(TraceId, SpanId)>) {
        if let Some(context) = self.spans.context(about) {
            headers.insert(TRACEPARENT, context.to_string().as_str());
        }
    }

    fn reader_of(&self, stream: StreamId) -> Option<&Reader> {
        match stream {
            StreamId::Log => Some(&self.inner.log),
            StreamId::Alerts => Some(&self.inner.alerts),
            StreamId::Timers => Some(&self.inner.timers),
            StreamId::DeadLetters => Some(&self.inner.dead_letters),
            StreamId::Live => None,
        }
    }
}

async fn reader(api: &Api, stream: StreamId) -> Result<Reader, LogError> {
    let info: StreamInfo = api
        .request(&format!("STREAM.INFO.{}", stream.name()), None)
        .await
        .map_err(|failure| failure.about(|| format!("the stream {}", stream.name())))?;
    Ok(Reader::new(api.clone(), stream.name(), info.config.num_replicas))
}

/// A bucket that cannot be opened.
pub(crate) fn bucket_error(bucket: &str, error: &async_nats::jetstream::context::KeyValueError) -> LogError {
    use async_nats::jetstream::context::KeyValueErrorKind;
    match error.kind() {
        KeyValueErrorKind::GetBucket => LogError::Missing {
            what: format!("the bucket {bucket}"),
        },
        _ => LogError::unavailable(format!("open the bucket {bucket}"), error),
    }
}

#[derive(Deserialize)]
struct StreamInfo {
    config: StreamConfig,
    state: State,
}

#[derive(Deserialize)]
struct StreamConfig {
    #[serde(default)]
    num_replicas: usize,
    #[serde(default)]
    max_bytes: i64,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
    bytes: u64,
    first_seq: u64,
    last_seq: u64,
}

#[derive(Deserialize)]
struct ConsumerInfo {
    num_pending: u64,
    num_ack_pending: u64,
    ack_floor: Floor,
}

#[derive(Deserialize)]
struct Floor {
    stream_seq: u64,
}

/// The span that a message of a lane is about: an attempt's where it hands one out, which its subject does not tell.
fn appended_span(subject: &Subject, payload: &[u8]) -> Option<(TraceId, SpanId)> {
    #[derive(Deserialize)]
    struct Appended {
        body: Body,
    }
    #[derive(Deserialize)]
    struct Body {
        action: Action,
    }
    #[derive(Deserialize)]
    struct Action {
        task: Task,
    }
    #[derive(Deserialize)]
    struct Task {
        step: StepName,
        attempt: Attempt,
    }
    if let Subject::Command(_, _, execution) = subject
        && let Ok(appended) = serde_json::from_slice::<Appended>(payload)
    {
        let Task { step, attempt } = appended.body.action.task;
        let span = SpanId::of_attempt(*execution, &step, attempt);
        return Some((TraceId::of(*execution), span));
    }
    subject.span()
}

impl Log for NatsLog {
    type Inbox = NatsInbox;

    fn now(&self) -> Timestamp {
        service::clock::now()
    }

    fn connected_since(&self) -> Timestamp {
        let unbroken = i64::try_from(self.connection().unbroken().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.now().as_millis().saturating_sub(unbroken))
    }

    fn is_replicated(&self) -> bool {
        self.inner.log.is_replicated()
    }

    async fn write_fact(&self, subject: &Subject, payload: Vec<u8>) -> Result<Written, LogError> {
        let mut headers = write_once();
        self.name_span(&mut headers, || subject.span());
        self.write_repeatedly(StreamId::Log, subject.to_string(), headers, payload.into())
            .await
    }

    async fn append(
        &self,
        subject: &Subject,
        payload: Vec<u8>,
        expected_last: u64,
    ) -> Result<Appended, LogError> {
        let Some(filter) = crate::log::lane_of(subject) else {
            return Err(crate::log::not_a_lane(subject));
        };
        let mut headers = compare_and_set(&filter, expected_last);
        self.name_span(&mut headers, || appended_span(subject, &payload));
        let sent = self
            .inner
            .api
            .publish(
                StreamId::Log.name(),
                subject.to_string(),
                Some(headers),
                payload.into(),
            )
            .await;
        match sent {
            Ok(seq) => Ok(Appended::At(seq)),
            Err(PublishError::WrongLast | PublishError::Contended | PublishError::Unknown(_)) => {
                Ok(Appended::Conflict)
            }
            Err(PublishError::Failed(error)) => Err(error),
        }
    }

    async fn read_execution_after(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        after: u64,
    ) -> Result<Vec<LogMessage>, LogError> {
        let facts = subjects::facts_filter(namespace, execution);
        let lane = subjects::lane_filter(namespace, execution);
        let messages = self.inner.log.moment(&facts, &lane, after).await?;
        Ok(messages.into_iter().map(|raw| raw.message).collect())
    }

    async fn read_turns(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> Result<Vec<LogMessage>, LogError> {
        let filter = subjects::attempt_turns_filter(namespace, execution, step, attempt);
        let turns = self.inner.log.write_once(&filter).await?;
        Ok(turns.into_iter().map(|raw| raw.message).collect())
    }

    async fn read_from(&self, first_seq: u64, max: usize) -> Result<Vec<LogMessage>, LogError> {
        let messages = self
            .inner
            .log
            .all(">", first_seq, max.min(READ_MESSAGES_MAX))
            .await?;
        Ok(messages.into_iter().map(|raw| raw.message).collect())
    }

    async fn last(&self, filter: &str) -> Result<Option<LogMessage>, LogError> {
        Ok(self.inner.log.last(filter).await?.map(|raw| raw.message))
    }

    async fn holds_any(&self, subjects: &[String]) -> Result<bool, LogError> {
        self.inner.log.holds_any(subjects).await
    }

    async fn follow(&self, filters: Vec<String>, position: Position) -> Result<Follow, LogError> {
        follow::follow(self.inner.api.clone(), StreamId::Log.name(), filters, position).await
    }

    async fn arm_timer(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        timer: &TimerId,
        at: Timestamp,
    ) -> Result<(), LogError> {
        let set = Subject::TimerSet(namespace.clone(), execution, timer.clone());
        let fire = Subject::TimerFire(namespace.clone(), execution, timer.clone());
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SCHEDULE, format!("@at {at}").as_str());
        headers.insert(header::NATS_SCHEDULE_TARGET, fire.to_string().as_str());
        self.write_repeatedly(StreamId::Timers, set.to_string(), headers, Bytes::new())
            .await?;
        Ok(())
    }

    fn spans(&self) -> Spans {
        self.spans.clone()
    }

    async fn publish_intake(
        &self,
        source: &SourceName,
        payload: Vec<u8>,
        caller: Option<SpanContext>,
    ) -> Result<u64, LogError> {
        let subject = Subject::Intake(source.clone()).to_string();
        let headers = caller.map(|caller| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, caller.to_string().as_str());
            headers
        });
        let action = format!("take a message on {subject}");
        match self
            .inner
            .api
            .publish(StreamId::Alerts.name(), subject, headers, payload.into())
            .await
        {
            Ok(seq) => Ok(seq),
            Err(PublishError::WrongLast | PublishError::Contended) => Err(LogError::unavailable(
                action,
                "the stream refuses a write without any condition",
            )),
            Err(PublishError::Unknown(error) | PublishError::Failed(error)) => Err(error),
        }
    }

    async fn publish_live(&self, subject: &Subject, payload: Vec<u8>) {
        // Polled once: where the client's buffer is full, or the server is away, progress is dropped.
        let client = &self.inner.api.connection.client;
        let sent = client.publish(subject.to_string(), payload.into()).now_or_never();
        if !matches!(sent, Some(Ok(()))) {
            tracing::trace!(%subject, "live progress dropped");
        }
    }

    async fn follow_live(&self, filters: Vec<String>, position: Position) -> Result<Follow, LogError> {
        follow::follow(self.inner.api.clone(), StreamId::Live.name(), filters, position).await
    }

    async fn dead_letter(&self, letter: DeadLetter) -> Result<(), LogError> {
        let consumer = TaskType::new(letter.consumer.clone()).map_err(|error| LogError::Refused {
            action: "take a dead letter".to_owned(),
            reason: error.to_string(),
        })?;
        let mut headers = HeaderMap::new();
        // A dead letter whose acknowledgement was lost is written again.
        let id = format!("{}.{}.{}", letter.stream, letter.consumer, letter.seq);
        headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        let payload = protocol::encode(self.now(), &letter);
        self.write_repeatedly(
            StreamId::DeadLetters,
            Subject::DeadLetter(consumer).to_string(),
            headers,
            payload.into(),
        )
        .await?;
        Ok(())
    }

    async fn dead_letters(&self, before: Option<u64>, max: usize) -> Result<Vec<StoredDeadLetter>, LogError> {
        let state = self.stream_state(StreamId::DeadLetters).await?;
        dead::list(&self.inner.dead_letters, &state, before, max).await
    }

    async fn purge_dead_letter(&self, id: u64) -> Result<bool, LogError> {
        #[derive(Deserialize)]
        struct Deleted {
            success: bool,
        }
        // A number that is not there is another error than a message that is not, so it is looked for first.
        if self.dead_letter_by_id(id).await?.is_none() {
            return Ok(false);
        }
        let stream = StreamId::DeadLetters.name();
        let body = serde_json::json!({ "seq": id });
        let endpoint = format!("STREAM.MSG.DELETE.{stream}");
        match self.inner.api.request::<Deleted>(&endpoint, Some(&body)).await {
            Ok(deleted) => Ok(deleted.success),
            // Somebody else was first.
            Err(_) if self.dead_letter_by_id(id).await?.is_none() => Ok(false),
            Err(failure) => Err(failure.about(|| format!("the stream {stream}"))),
        }
    }

    async fn dead_letter_by_id(&self, id: u64) -> Result<Option<StoredDeadLetter>, LogError> {
        Ok(self
            .inner
            .dead_letters
            .at(id)
            .await?
            .and_then(|raw| dead::stored(&raw)))
    }

    async fn stream_state(&self, stream: StreamId) -> Result<StreamState, LogError> {
        let info: StreamInfo = self
            .inner
            .api
            .request(&format!("STREAM.INFO.{}", stream.name()), None)
            .await
            .map_err(|failure| failure.about(|| format!("the stream {}", stream.name())))?;
        Ok(StreamState {
            first_seq: info.state.first_seq,
            last_seq: info.state.last_seq,
            messages: info.state.messages,
            bytes: info.state.bytes,
            bytes_max: u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0),
        })
    }

    async fn consumer_state(&self, durable: &Durable) -> Result<ConsumerState, LogError> {
        let endpoint = format!("CONSUMER.INFO.{}.{}", durable.stream.name(), durable.name);
        let info: ConsumerInfo = self.inner.api.request(&endpoint, None).await.map_err(|failure| {
            failure.about(|| format!("the consumer {} of {}", durable.name, durable.stream.name()))
        })?;
        let mut oldest: Option<LogMessage> = None;
        if info.num_pending + info.num_ack_pending > 0
            && let Some(reader) = self.reader_of(durable.stream)
        {
            // Behind the ack floor, the first message on the filters is one that is not acknowledged.
            for filter in (durable.filters)() {
                let first = reader.first(&filter, info.ack_floor.stream_seq + 1).await?;
                oldest = oldest
                    .into_iter()
                    .chain(first.map(|raw| raw.message))
                    .min_by_key(|message| message.seq);
            }
        }
        Ok(ConsumerState {
            waiting: info.num_pending,
            in_flight: info.num_ack_pending,
            oldest: oldest.map(|message| message.at),
            acked_to_seq: info.ack_floor.stream_seq,
        })
    }

    async fn inbox(&self, durable: &Durable) -> Result<NatsInbox, LogError> {
        let api = self.inner.api.clone();
        let endpoint = format!("CONSUMER.INFO.{}.{}", durable.stream.name(), durable.name);
        api.request::<serde_json::Value>(&endpoint, None)
            .await
            .map_err(|failure| {
                failure.about(|| format!("the consumer {} of {}", durable.name, durable.stream.name()))
            })?;
        let trials = Trials::new(self.inner.trials.clone(), durable.name);
        Ok(NatsInbox::new(api, durable, trials))
    }
}
